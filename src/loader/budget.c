#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "budget.h"

#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#if defined(__APPLE__)
#include <libproc.h>
#include <sys/resource.h>
#include <sys/sysctl.h>
#endif

static uint64_t used(const gr_budget *b) {
    return b->fixed + b->own + b->resident + b->loading + b->draining;
}

uint64_t gr_budget_free(const gr_budget *b) {
    uint64_t u = used(b);
    return u < b->limit ? b->limit - u : 0;
}

uint64_t gr_budget_capacity(const gr_budget *b) {
    uint64_t others = b->fixed + b->own;
    return others < b->limit ? b->limit - others : 0;
}

bool gr_budget_reserve(gr_budget *b, uint64_t bytes) {
    if (bytes > gr_budget_free(b)) {
        return false;
    }
    b->loading += bytes;
    return true;
}

void gr_budget_commit(gr_budget *b, uint64_t reserved, uint64_t actual) {
    assert(reserved <= b->loading && actual <= reserved);
    b->loading -= reserved;
    b->resident += actual;
}

void gr_budget_drain(gr_budget *b, uint64_t bytes) {
    assert(bytes <= b->resident);
    b->resident -= bytes;
    b->draining += bytes;
}

void gr_budget_freed(gr_budget *b, uint64_t bytes) {
    assert(bytes <= b->draining);
    b->draining -= bytes;
}

/* A file that holds one number; UINT64_MAX if absent or not a number ("max"). */
static uint64_t number_in(const char *path) {
    uint64_t n = UINT64_MAX;
    FILE *f = fopen(path, "r");
    if (f) {
        if (fscanf(f, "%" SCNu64, &n) != 1) {
            n = UINT64_MAX;
        }
        fclose(f);
    }
    return n;
}

#if defined(__linux__)
/* The lowest memory.max from our cgroup up to the root (cgroup v2; v1's one file as well). */
static uint64_t cgroup_limit(void) {
    uint64_t lowest = number_in("/sys/fs/cgroup/memory/memory.limit_in_bytes");
    FILE *f = fopen("/proc/self/cgroup", "r");
    char line[600];
    while (f && fgets(line, sizeof line, f)) {
        char *group = strncmp(line, "0::", 3) == 0 ? line + 3 : NULL;
        if (!group) {
            continue;
        }
        group[strcspn(group, "\n")] = '\0';
        for (char *end = group + strlen(group); end > group; end = strrchr(group, '/')) {
            char path[700];
            *end = '\0';
            snprintf(path, sizeof path, "/sys/fs/cgroup%s/memory.max", group);
            uint64_t n = number_in(path);
            lowest = n < lowest ? n : lowest;
            if (!strrchr(group, '/')) {
                break;
            }
        }
    }
    if (f) {
        fclose(f);
    }
    uint64_t top = number_in("/sys/fs/cgroup/memory.max");
    return top < lowest ? top : lowest;
}
#endif

static uint64_t physical_memory(void) {
#if defined(__APPLE__)
    uint64_t bytes = 0;
    size_t size = sizeof bytes;
    return sysctlbyname("hw.memsize", &bytes, &size, NULL, 0) == 0 ? bytes : UINT64_MAX;
#else
    long pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
    return pages > 0 && page > 0 ? (uint64_t)pages * (uint64_t)page : UINT64_MAX;
#endif
}

uint64_t gr_machine_memory(void) {
    uint64_t most = physical_memory();
#if defined(__linux__)
    uint64_t group = cgroup_limit();
    most = group < most ? group : most;
#endif
    return most;
}

uint64_t gr_budget_clamp(uint64_t wanted) {
    uint64_t most = gr_machine_memory();
    return wanted == 0 || wanted > most ? most : wanted;
}

uint64_t gr_process_memory(void) {
#if defined(__linux__)
    uint64_t total = 0, resident = 0;
    FILE *f = fopen("/proc/self/statm", "r");
    if (!f) {
        return 0;
    }
    int n = fscanf(f, "%" SCNu64 " %" SCNu64, &total, &resident);
    fclose(f);
    return n == 2 ? resident * (uint64_t)sysconf(_SC_PAGESIZE) : 0;
#elif defined(__APPLE__)
    struct rusage_info_v2 info;
    return proc_pid_rusage(getpid(), RUSAGE_INFO_V2, (rusage_info_t *)&info) == 0 ? info.ri_phys_footprint : 0;
#else
    return 0;
#endif
}
