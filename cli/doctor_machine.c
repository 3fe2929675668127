/* graft doctor: the machine. What a system does not tell is "unknown", never guessed. */
#include "doctor.h"

#include "base/thread.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/statvfs.h>
#include <sys/utsname.h>
#include <unistd.h>

/* ---- processor ---------------------------------------------------------------------------------------- */

/* The processor's flags as Linux lists them, with a blank at either end; false elsewhere. */
static bool cpu_flags(char *out, size_t size) {
    FILE *f = fopen("/proc/cpuinfo", "r");
    char *line = NULL;
    size_t room = 0;
    bool found = false;
    while (f && !found && getline(&line, &room, f) > 0) {
        found = strncmp(line, "flags", 5) == 0 || strncmp(line, "Features", 8) == 0;
        if (found) {
            line[strcspn(line, "\n")] = '\0';
            snprintf(out, size, "%s ", strchr(line, ':') ? strchr(line, ':') + 1 : "");
        }
    }
    free(line);
    if (f) {
        fclose(f);
    }
    return found;
}

static bool has_flag(const char *flags, const char *name) {
    char word[32];
    snprintf(word, sizeof word, " %s ", name);
    return strstr(flags, word) != NULL;
}

static void check_cpu(doctor *d) {
    static const char *const wanted[] = {"avx2", "f16c", "fma", "avx512f", "avx512_vnni", "amx_tile", "asimd", "asimdhp",
                                         "asimddp", "sve", "i8mm"};
    struct utsname system;
    char flags[8192], found[256] = "";
    const char *machine = uname(&system) == 0 ? system.machine : "unknown";
    if (!cpu_flags(flags, sizeof flags)) {
        doctor_say(d, DOCTOR_OK, "processor", NULL, "%s, %d cores, features unknown", machine, gr_physical_cores());
        return;
    }
    for (size_t i = 0; i < CLI_COUNT(wanted); i++) {
        size_t n = strlen(found);
        if (has_flag(flags, wanted[i])) {
            snprintf(found + n, sizeof found - n, "%s%s", n ? " " : "", wanted[i]);
        }
    }
    bool slow = strcmp(machine, "x86_64") == 0 && (!has_flag(flags, "avx2") || !has_flag(flags, "f16c"));
    doctor_say(d, slow ? DOCTOR_WARN : DOCTOR_OK, "processor",
               slow ? "adapters are applied by slow code without AVX2 and F16C" : NULL,
               "%s, %d cores; %s", machine, gr_physical_cores(), *found ? found : "none of the features that matter");
}

/* ---- memory ------------------------------------------------------------------------------------------- */

/* 0 = not there, or no limit. */
static uint64_t number_in(const char *path) {
    unsigned long long n = 0;
    FILE *f = fopen(path, "r");
    if (!f) {
        return 0;
    }
    if (fscanf(f, "%llu", &n) != 1 || n > UINT64_MAX / 4) {
        n = 0;
    }
    fclose(f);
    return n;
}

static void lower(uint64_t *least, uint64_t n) {
    if (n && (!*least || n < *least)) {
        *least = n;
    }
}

/* The lowest limit from our cgroup up to the root; 0 = none. */
static uint64_t cgroup_limit(void) {
    char group[1024] = "", path[1100];
    uint64_t least = number_in("/sys/fs/cgroup/memory/memory.limit_in_bytes");
    FILE *f = fopen("/proc/self/cgroup", "r");
    while (f && fgets(group, sizeof group, f) && strncmp(group, "0::", 3) != 0) {
        *group = '\0';
    }
    if (f) {
        fclose(f);
    }
    group[strcspn(group, "\n")] = '\0';
    for (char *end = group + strlen(group); strncmp(group, "0::/", 4) == 0 && end; end = strrchr(group, '/')) {
        *end = '\0';
        snprintf(path, sizeof path, "/sys/fs/cgroup%s/memory.max", group + 3);
        lower(&least, number_in(path));
    }
    lower(&least, number_in("/sys/fs/cgroup/memory.max"));
    return least;
}

static uint64_t machine_memory(void) {
    long pages = sysconf(_SC_PHYS_PAGES), size = sysconf(_SC_PAGESIZE);
    return pages > 0 && size > 0 ? (uint64_t)pages * (uint64_t)size : 0;
}

uint64_t doctor_memory(void) {
    uint64_t least = machine_memory();
    lower(&least, cgroup_limit());
    return least;
}

static void check_memory(doctor *d) {
    char all[CLI_BYTES_SIZE], group[CLI_BYTES_SIZE], wanted[CLI_BYTES_SIZE];
    uint64_t machine = machine_memory(), cgroup = cgroup_limit(), limit = (uint64_t)d->set.memory_limit_mb << 20;
    uint64_t most = doctor_memory();
    bool over = limit && most && limit > most;
    if (!machine) {
        doctor_say(d, DOCTOR_OK, "memory", NULL, "unknown");
        return;
    }
    doctor_say(d, over ? DOCTOR_WARN : DOCTOR_OK, "memory", over ? "a lower memory_limit_mb says what there is" : NULL,
               "%s%s%s%s; graft takes at most %s (memory_limit_mb)", cli_bytes(all, machine),
               cgroup && cgroup < machine ? ", of which the cgroup allows " : "",
               cgroup && cgroup < machine ? cli_bytes(group, cgroup) : "", cgroup ? "" : ", no cgroup limit",
               limit ? cli_bytes(wanted, limit) : "all of it");
}

/* ---- limits ------------------------------------------------------------------------------------------- */

static void check_files(doctor *d) {
    enum { SERVER_FILES = 1024 + 64 };
    struct rlimit l;
    if (getrlimit(RLIMIT_NOFILE, &l) != 0) {
        doctor_say(d, DOCTOR_OK, "open files", NULL, "unknown");
        return;
    }
    bool few = l.rlim_cur < SERVER_FILES;
    if (l.rlim_cur == RLIM_INFINITY) {
        doctor_say(d, DOCTOR_OK, "open files", NULL, "no limit");
        return;
    }
    doctor_say(d, few ? DOCTOR_WARN : DOCTOR_OK, "open files",
               few ? "`ulimit -n 4096`, or LimitNOFILE= of the service, for 1024 connections" : NULL,
               "%" PRIu64 " at once", (uint64_t)l.rlim_cur);
}

void doctor_disk(doctor *d, const char *folder) {
    struct statvfs s;
    char free_bytes[CLI_BYTES_SIZE], q[GR_QUOTE_PATH_SIZE];
    gr_quote_path(q, folder);
    if (statvfs(folder, &s) != 0) {
        doctor_say(d, DOCTOR_WARN, "disk", "the folder must be there", "%s: %s", q, strerror(errno));
        return;
    }
    uint64_t bytes = (uint64_t)s.f_bavail * s.f_frsize;
    doctor_state state = bytes < 1 << 20 ? DOCTOR_FAIL : bytes < 100 << 20 ? DOCTOR_WARN : DOCTOR_OK;
    doctor_say(d, state, "disk", state ? "make room: the registry cannot be written without" : NULL, "%s free in %s",
               cli_bytes(free_bytes, bytes), q);
}

void doctor_machine(doctor *d) {
    check_cpu(d);
    check_memory(d);
    check_files(d);
}
