/*
 * A catalogue and a backend without files, for tests of the loader: every load can be slowed, made to fail, or held
 * until told, and every use after free, double free or read too many is noticed.
 */
#ifndef LOADER_FAKE_H
#define LOADER_FAKE_H

#include "base/clock.h"
#include "base/memory.h"
#include "base/thread.h"
#include "loader/loader.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FAKE_NAMES 64
#define FAKE_ALIVE 0x41444150u

typedef struct fake_adapter {
    atomic_uint magic; /* FAKE_ALIVE while loaded */
    int name;
    int generation;
    uint64_t bytes;
} fake_adapter;

/* One registered name: "pN/default". Fields are set by the test before or while the loader runs. */
typedef struct fake_name {
    atomic_uint revision, generation; /* generation 0: not registered */
    atomic_int fail_code;             /* 0, or what prepare fails with */
    atomic_int fail_times;            /* how many more times; -1: always */
    atomic_int breaks, break_code;    /* load fails so often, with this */
    _Atomic uint64_t bytes_then;      /* and if this is not 0, it is a file of that size then */
    _Atomic uint64_t bytes, more;     /* what prepare announces, and what it turns out to take beyond that */
    atomic_int prepares, reads;       /* how often prepare and load ran */
    atomic_int held_reads;            /* the first so many loads wait until this is 0 */
    atomic_int present;               /* 0: unknown to the catalogue */
    atomic_int pinned, told;          /* what the catalogue says: pinned; the generation "told" */
} fake_name;

/* What the catalogue was told. */
typedef struct fake_event {
    gr_event_kind kind;
    bool stale;
    char project[16], generation[65];
} fake_event;

typedef struct fake {
    fake_name names[FAKE_NAMES];
    atomic_int alive;        /* adapters that exist */
    _Atomic uint64_t live_bytes, most_bytes;
    atomic_int gate;         /* loads wait while > 0 */
    atomic_int waiting_at_gate;
    atomic_int prepare_gate; /* so does prepare */
    void (*on_find)(int name);            /* called after the catalogue has looked */
    void (*on_event)(const gr_event *e);  /* called when it is told something */
    pthread_mutex_t events_mutex;
    fake_event events[64];
    int n_events;
    atomic_int errors;       /* something impossible was seen */
    _Atomic uint64_t own, process; /* what is measured */
    int sleep_us;
} fake;

static int fake_index(const char *project) {
    return atoi(project + 1);
}

static int fake_find(void *self, const char *project, const char *adapter, bool with_path, gr_catalog_entry *out, graft_error *err) {
    fake *f = self;
    fake_name *n = &f->names[fake_index(project)];
    if (!atomic_load(&n->present) || strcmp(adapter, "default") != 0) {
        return gr_fail(err, GRAFT_E_NOT_FOUND, "%s/%s is not registered", project, adapter);
    }
    memset(out, 0, sizeof *out);
    snprintf(out->project, sizeof out->project, "%s", project);
    snprintf(out->adapter, sizeof out->adapter, "%s", adapter);
    out->revision = atomic_load(&n->revision);
    out->pinned = atomic_load(&n->pinned);
    if (atomic_load(&n->told)) {
        snprintf(out->generation, sizeof out->generation, "%d-%d", fake_index(project), atomic_load(&n->told));
    }
    if (f->on_find) {
        f->on_find(fake_index(project));
    }
    if (with_path) {
        out->path = gr_strdup(project);
        if (!out->path) {
            return gr_fail_memory(err, strlen(project));
        }
    }
    return 0;
}

static void fake_record(void *self, const gr_event *e) {
    fake *f = self;
    pthread_mutex_lock(&f->events_mutex);
    if (f->n_events < (int)(sizeof f->events / sizeof *f->events)) {
        fake_event *kept = &f->events[f->n_events++];
        kept->kind = e->kind;
        kept->stale = e->stale;
        snprintf(kept->project, sizeof kept->project, "%.15s", e->project);
        snprintf(kept->generation, sizeof kept->generation, "%s", e->generation);
    }
    pthread_mutex_unlock(&f->events_mutex);
    if (f->on_event) {
        f->on_event(e);
    }
}

/* How often it was told of a load of this generation, with that mark. */
static inline int fake_told_of(fake *f, const char *generation, bool stale) {
    int n = 0;
    pthread_mutex_lock(&f->events_mutex);
    for (int i = 0; i < f->n_events; i++) {
        const fake_event *e = &f->events[i];
        n += e->kind == GR_EVENT_LOADED && e->stale == stale && strcmp(e->generation, generation) == 0;
    }
    pthread_mutex_unlock(&f->events_mutex);
    return n;
}

static int fake_identify(void *self, const char *path, gr_file_identity *out, graft_error *err) {
    fake *f = self;
    (void)err;
    memset(out, 0, sizeof *out);
    out->inode = (uint64_t)fake_index(path) + 1;
    out->mtime_ns = (int64_t)atomic_load(&f->names[fake_index(path)].generation);
    return 0;
}

/* What prepare found: a file that changes after it does not change what is being read. */
typedef struct fake_job {
    int name, generation;
    uint64_t bytes;
} fake_job;

static int fake_prepare(void *self, const char *path, void **job, uint64_t *bytes, graft_error *err) {
    fake *f = self;
    fake_name *n = &f->names[fake_index(path)];
    atomic_fetch_add(&n->prepares, 1);
    while (atomic_load(&f->prepare_gate)) {
        gr_sleep_us(200);
    }
    int code = atomic_load(&n->fail_code);
    if (code) {
        int left = atomic_load(&n->fail_times);
        if (left != 0) {
            if (left > 0) {
                atomic_fetch_sub(&n->fail_times, 1);
            }
            return gr_fail(err, code, "%s: made to fail", path);
        }
    }
    fake_job *made = gr_alloc(sizeof *made);
    if (!made) {
        return gr_fail_memory(err, sizeof *made);
    }
    *made = (fake_job){fake_index(path), (int)atomic_load(&n->generation), atomic_load(&n->bytes)};
    *job = made;
    *bytes = made->bytes;
    return 0;
}

static void fake_abandon(void *self, void *job) {
    (void)self;
    gr_free(job);
}

static int fake_load(void *self, void *job, gr_loaded *out, graft_error *err) {
    fake *f = self;
    fake_job j = *(fake_job *)job;
    fake_name *n = &f->names[j.name];
    gr_free(job);
    int reads = atomic_fetch_add(&n->reads, 1) + 1;
    atomic_fetch_add(&f->waiting_at_gate, 1);
    while (atomic_load(&f->gate) || reads <= atomic_load(&n->held_reads)) {
        gr_sleep_us(200);
    }
    atomic_fetch_sub(&f->waiting_at_gate, 1);
    if (f->sleep_us) {
        gr_sleep_us(f->sleep_us);
    }
    if (atomic_load(&n->breaks) > 0) {
        atomic_fetch_sub(&n->breaks, 1);
        uint64_t then = atomic_load(&n->bytes_then);
        atomic_store(&n->bytes, then ? then : atomic_load(&n->bytes));
        return gr_fail(err, atomic_load(&n->break_code), "p%d: made to fail while it was read", j.name);
    }
    fake_adapter *a = gr_alloc(sizeof *a);
    if (!a) {
        return gr_fail_memory(err, sizeof *a);
    }
    uint64_t bytes = j.bytes;
    a->name = j.name;
    a->generation = j.generation;
    a->bytes = bytes;
    atomic_init(&a->magic, FAKE_ALIVE);
    uint64_t now = atomic_fetch_add(&f->live_bytes, bytes) + bytes;
    uint64_t most = atomic_load(&f->most_bytes);
    while (now > most && !atomic_compare_exchange_weak(&f->most_bytes, &most, now)) {
    }
    atomic_fetch_add(&f->alive, 1);
    memset(out, 0, sizeof *out);
    out->adapter = a;
    out->bytes = bytes + atomic_load(&n->more);
    out->format = "fake";
    snprintf(out->generation, sizeof out->generation, "%d-%d", j.name, a->generation);
    return 0;
}

static void fake_free(void *self, void *adapter) {
    fake *f = self;
    fake_adapter *a = adapter;
    if (atomic_exchange(&a->magic, 0xdeadu) != FAKE_ALIVE) {
        atomic_fetch_add(&f->errors, 1);
    }
    atomic_fetch_sub(&f->alive, 1);
    atomic_fetch_sub(&f->live_bytes, a->bytes);
    gr_free(a);
}

static uint64_t fake_own(void *self) {
    return atomic_load(&((fake *)self)->own);
}

static uint64_t fake_process(void *self) {
    return atomic_load(&((fake *)self)->process);
}

/* Uses a leased adapter: notices one that was freed, or belongs to somebody else. */
static void fake_use(fake *f, const gr_lease *lease, int index) {
    const fake_adapter *a = gr_lease_adapter(lease);
    if (a && (atomic_load(&a->magic) != FAKE_ALIVE || a->name != index)) {
        atomic_fetch_add(&f->errors, 1);
    }
}

static void fake_init(fake *f, int n, uint64_t bytes) {
    memset(f, 0, sizeof *f);
    pthread_mutex_init(&f->events_mutex, NULL);
    for (int i = 0; i < n; i++) {
        atomic_init(&f->names[i].present, 1);
        atomic_init(&f->names[i].generation, 1);
        atomic_init(&f->names[i].revision, 1);
        atomic_init(&f->names[i].bytes, bytes);
    }
}

static gr_loader_options fake_options(fake *f) {
    return (gr_loader_options){
        .catalog = {fake_find, fake_record, f},
        .backend = {.identify = fake_identify, .prepare = fake_prepare, .load = fake_load, .abandon = fake_abandon, .free = fake_free,
                    .own = fake_own, .process = fake_process, .self = f},
        .policy = GRAFT_POLICY_LRU,
        .max_adapters = 3,
        .memory_limit = 1000,
        .fixed_bytes = 100,
        .threads = 2,
        .retry_attempts = 3,
        .retry_base_us = 1000,
        .failure_ttl_us = 10 * 1000000,
        .seed = 1,
    };
}

#endif
