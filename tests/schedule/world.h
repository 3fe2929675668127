/*
 * A catalogue and a backend for schedules: names whose files change under the loader, loads that take time, fail, or take more
 * memory than they said; and what must hold of every call: no lock is held, nothing is freed twice or used after it, no memory
 * beyond the limit.
 */
#ifndef WORLD_H
#define WORLD_H

#include "schedule.h"

#include "base/clock.h"
#include "base/memory.h"
#include "base/thread.h"
#include "loader/loader_state.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { NAMES = 4, ADAPTERS = 512, GENERATIONS = 64 };

typedef struct w_name {
    unsigned registered;          /* generation of the files when they were registered; also the name of their folder */
    unsigned content[GENERATIONS]; /* of each folder: what is in the files by now */
    unsigned newest;
    unsigned revision;
    uint64_t bytes, more;         /* what loading is said to take, and takes beyond that */
    bool pinned;                  /* by the catalogue */
    bool reloaded;                /* somebody asked for that */
    bool told;                    /* the catalogue knows the generation */
    bool learns;                  /* the catalogue takes over what loads say of it */
    unsigned learned;             /* 0: nothing yet */
    int fail_code, fail_times;    /* prepare fails so often; -1: always */
    bool fail_in_load;            /* load does instead */
    int prepares, reads, frees;
    int bad_prepares[GENERATIONS]; /* that failed for a bad file */
} w_name;

typedef struct w_adapter {
    bool alive;
    int name;
    unsigned generation;
    uint64_t bytes;
} w_adapter;

static struct {
    w_name names[NAMES];
    w_adapter adapters[ADAPTERS]; /* never used twice: what was freed stays freed */
    int n_adapters, alive;
    uint64_t live_bytes, limit;
    int64_t load_us, record_us; /* loading takes, telling the catalogue takes, at most */
    uint64_t own, process;
    int evicted, unloaded;
} W;

static void w_outside(const char *what) {
    if (sched_holds_lock()) {
        sched_fail("%s is called with a lock held", what);
    }
    sched_point(what);
}

static int w_index(const char *project) {
    return project[1] - '0';
}

static int w_find(void *self, const char *project, const char *adapter, bool with_path, gr_catalog_entry *out, graft_error *err) {
    (void)self;
    w_outside("catalogue: find");
    int i = w_index(project);
    if (i >= NAMES || W.names[i].revision == 0) {
        return gr_fail(err, GRAFT_E_NOT_FOUND, "%s/%s is not registered", project, adapter);
    }
    memset(out, 0, sizeof *out);
    strcpy(out->project, project);
    strcpy(out->adapter, adapter);
    out->revision = W.names[i].revision;
    out->pinned = W.names[i].pinned;
    if (W.names[i].told) {
        snprintf(out->generation, sizeof out->generation, "%d-%u", i, W.names[i].registered);
    } else if (W.names[i].learned) {
        snprintf(out->generation, sizeof out->generation, "%d-%u", i, W.names[i].learned);
    }
    char path[16];
    snprintf(path, sizeof path, "p%d@%u", i, W.names[i].registered);
    if (with_path && !(out->path = gr_strdup(path))) {
        return gr_fail_memory(err, strlen(path));
    }
    sched_point("catalogue: found");
    return 0;
}

/* What the files in the folder hold. */
static unsigned w_content(const char *path) {
    return W.names[w_index(path)].content[atoi(strchr(path, '@') + 1) % GENERATIONS];
}

static unsigned w_registered_content(const w_name *n) {
    return n->content[n->registered % GENERATIONS];
}

static void w_record(void *self, const gr_event *event) {
    (void)self;
    w_outside("catalogue: record");
    W.evicted += event->kind == GR_EVENT_EVICTED;
    W.unloaded += event->kind == GR_EVENT_UNLOADED;
    w_name *n = &W.names[w_index(event->project)];
    if (n->learns && event->kind == GR_EVENT_LOADED && !event->stale && event->revision == n->revision) {
        n->learned = (unsigned)atoi(strchr(event->generation, '-') + 1);
    }
    if (W.record_us) {
        gr_sleep_us((int64_t)sched_draw((uint64_t)W.record_us) + 1);
    }
    sched_point("catalogue: recorded");
}

static int w_identify(void *self, const char *path, gr_file_identity *out, graft_error *err) {
    (void)self;
    (void)err;
    w_outside("identify");
    memset(out, 0, sizeof *out);
    out->inode = (uint64_t)w_index(path) + 1;
    out->mtime_ns = w_content(path);
    return 0;
}

typedef struct w_job {
    int name;
    unsigned generation;
} w_job;

static bool w_fails(w_name *n) {
    if (!n->fail_code || n->fail_times == 0) {
        return false;
    }
    n->fail_times -= n->fail_times > 0;
    return true;
}

static int w_prepare(void *self, const char *path, void **job, uint64_t *bytes, graft_error *err) {
    (void)self;
    w_outside("prepare");
    w_name *n = &W.names[w_index(path)];
    n->prepares++;
    if (!n->fail_in_load && w_fails(n)) {
        n->bad_prepares[w_content(path) % GENERATIONS]++;
        return gr_fail(err, n->fail_code, "%s: made to fail", path);
    }
    w_job *made = gr_alloc(sizeof *made);
    if (!made) {
        return gr_fail_memory(err, sizeof *made);
    }
    *made = (w_job){w_index(path), w_content(path)};
    *job = made;
    *bytes = n->bytes;
    return 0;
}

static void w_abandon(void *self, void *job) {
    (void)self;
    w_outside("abandon");
    gr_free(job);
}

static void w_take(uint64_t bytes) {
    W.live_bytes += bytes;
    if (W.live_bytes > W.limit) {
        sched_fail("adapters take %" PRIu64 " bytes, the limit is %" PRIu64, W.live_bytes, W.limit);
    }
}

static int w_load(void *self, void *job, gr_loaded *out, graft_error *err) {
    (void)self;
    w_outside("load");
    w_job j = *(w_job *)job;
    w_name *n = &W.names[j.name];
    uint64_t bytes = n->bytes;
    n->reads++;
    w_take(bytes);
    sched_point("load: reading");
    if (W.load_us) {
        gr_sleep_us((int64_t)sched_draw((uint64_t)W.load_us) + 1);
    }
    gr_free(job);
    if (n->fail_in_load && w_fails(n)) {
        W.live_bytes -= bytes;
        return gr_fail(err, n->fail_code, "p%d: made to fail", j.name);
    }
    if (W.n_adapters == ADAPTERS) {
        sched_fail("more than %d loads", ADAPTERS);
    }
    w_adapter *a = &W.adapters[W.n_adapters++];
    *a = (w_adapter){true, j.name, j.generation, bytes};
    W.alive++;
    memset(out, 0, sizeof *out);
    out->adapter = a;
    out->bytes = bytes + n->more;
    out->format = "fake";
    snprintf(out->generation, sizeof out->generation, "%d-%u", j.name, j.generation);
    return 0;
}

static void w_free(void *self, void *adapter) {
    (void)self;
    w_outside("free");
    w_adapter *a = adapter;
    if (!a->alive) {
        sched_fail("an adapter is freed twice: p%d", a->name);
    }
    a->alive = false;
    sched_point("free: half way");
    W.names[a->name].frees++;
    W.alive--;
    W.live_bytes -= a->bytes;
}

static uint64_t w_own(void *self) {
    (void)self;
    w_outside("own");
    return W.own;
}

static uint64_t w_process(void *self) {
    (void)self;
    w_outside("process");
    return W.process;
}

static void w_init(uint64_t bytes, uint64_t limit) {
    memset(&W, 0, sizeof W);
    W.limit = limit;
    for (int i = 0; i < NAMES; i++) {
        W.names[i].registered = W.names[i].content[1] = W.names[i].newest = W.names[i].revision = 1;
        W.names[i].bytes = bytes;
    }
}

/* Another adapter is registered under the name. */
static void w_replace(int name) {
    w_name *n = &W.names[name];
    n->registered = ++n->newest;
    n->content[n->registered % GENERATIONS] = n->registered;
    n->revision++;
    sched_note("registers anew p", name);
    sched_point("registered");
}

/* The file changes, and nobody tells the catalogue. */
static void w_rewrite(int name) {
    w_name *n = &W.names[name];
    n->content[n->registered % GENERATIONS] = ++n->newest;
    sched_note("rewrites the file of p", name);
    sched_point("rewritten");
}

static gr_loader_options w_options(void) {
    return (gr_loader_options){
        .catalog = {w_find, w_record, NULL},
        .backend = {.identify = w_identify, .prepare = w_prepare, .load = w_load, .abandon = w_abandon, .free = w_free},
        .policy = GRAFT_POLICY_LRU,
        .max_adapters = 3,
        .memory_limit = 100 + W.limit,
        .fixed_bytes = 100,
        .threads = 2,
        .retry_attempts = 3,
        .retry_base_us = 40,
        .failure_ttl_us = 100 * 1000000,
        .seed = 1,
    };
}

#endif
