/*
 * Leases and flights. Whoever wants an adapter looks in the table; if it is not resident, becomes a waiter of the
 * flight that will bring it, and starts that flight if there is none. Flights run on the loader's threads.
 *
 * A flight that finds no room is parked, not blocked: its thread goes on with others, and every lease that ends and
 * every load that ends puts the parked ones back into the queue.
 */
#include "loader.h"

#include "base/clock.h"
#include "loader/table.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

struct gr_lease {
    gr_loader *loader;
    gr_version *version; /* NULL: the base */
    graft_error why;     /* the base: why */
};

struct gr_loader {
    gr_loader_options o;
    gr_mutex mutex; /* rank LOADER: everything below */
    gr_table table;
    gr_version *queue_first, *queue_last; /* flights to work on */
    gr_cond work;                         /* the queue is not empty, or stop */
    gr_cond pause;                        /* a retry's pause ends early by stop */
    bool stop;
    uint64_t random;
    int n_threads;
    pthread_t threads[8];
};

/* ---- small helpers, with the mutex held unless said otherwise ---- */

static void enqueue(gr_loader *l, gr_version *v) {
    v->parked = false;
    v->queue_next = NULL;
    if (l->queue_last) {
        l->queue_last->queue_next = v;
    } else {
        l->queue_first = v;
    }
    l->queue_last = v;
    gr_cond_signal(&l->work);
}

static gr_version *dequeue(gr_loader *l) {
    gr_version *v = l->queue_first;
    if (v) {
        l->queue_first = v->queue_next;
        if (!l->queue_first) {
            l->queue_last = NULL;
        }
        v->queue_next = NULL;
    }
    return v;
}

/* The longest that any waiter will wait for room; 0 = nobody waits. The mutex is held. */
static int64_t patience(const gr_version *v) {
    int64_t until = 0;
    for (const gr_waiter *w = v->waiters; w; w = w->next) {
        until = w->deadline_us > until ? w->deadline_us : until;
    }
    return until;
}

/* When the next parked flight's patience ends; 0 = none is parked with a deadline. Those whose time is up go into the queue, to
 * end there. */
static int64_t next_deadline(gr_loader *l) {
    int64_t now = gr_now_us(), next = 0;
    for (gr_version *v = l->table.versions; v; v = v->next) {
        int64_t until = v->state == GR_LOADING && v->parked ? patience(v) : 0;
        if (until != 0 && until <= now) {
            enqueue(l, v);
        } else if (until != 0 && (next == 0 || until < next)) {
            next = until;
        }
    }
    return next;
}

/* Memory came back or a lease ended: parked flights may try again. */
static void unpark(gr_loader *l) {
    for (gr_version *v = l->table.versions; v; v = v->next) {
        if (v->state == GR_LOADING && v->parked) {
            enqueue(l, v);
        }
    }
}

/* Without the mutex: gives back the memory of dead versions, then lets the table forget them. */
static void bury(gr_loader *l, gr_version *dead) {
    while (dead) {
        gr_version *next = dead->queue_next;
        int64_t start = gr_now_us();
        l->o.backend.free(l->o.backend.self, dead->loaded.adapter);
        int64_t took = gr_now_us() - start;
        gr_mutex_lock(&l->mutex);
        gr_histogram_add(&l->table.metrics.evict_us, took);
        gr_table_freed(&l->table, dead);
        unpark(l);
        gr_mutex_unlock(&l->mutex);
        dead = next;
    }
}

/* Without the mutex. */
static void record(gr_loader *l, gr_event_kind kind, const char *key, uint64_t revision, const gr_loaded *loaded, double ms,
                   const graft_error *err) {
    if (!l->o.catalog.record) {
        return;
    }
    char project[GR_NAME_MAX + 1], adapter[GR_NAME_MAX + 1];
    const char *slash = strchr(key, '/');
    snprintf(project, sizeof project, "%.*s", (int)(slash - key), key);
    snprintf(adapter, sizeof adapter, "%s", slash + 1);
    gr_event event = {.kind = kind, .project = project, .adapter = adapter, .ms = ms,
                      .generation = loaded ? loaded->generation : "", .bytes = loaded ? loaded->bytes : 0,
                      .format = loaded ? loaded->format : NULL, .rank = loaded ? loaded->rank : 0,
                      .code = err ? err->code : 0, .message = err ? err->message : NULL, .revision = revision};
    l->o.catalog.record(l->o.catalog.self, &event);
}

/* ---- waiters ---- */

static void waiter_link(gr_version *v, gr_waiter *w) {
    w->prev = NULL;
    w->next = v->waiters;
    if (v->waiters) {
        v->waiters->prev = w;
    }
    v->waiters = w;
}

static void waiter_unlink(gr_version *v, gr_waiter *w) {
    if (w->prev) {
        w->prev->next = w->next;
    } else {
        v->waiters = w->next;
    }
    if (w->next) {
        w->next->prev = w->prev;
    }
}

/* A failure as the asker sees it: an error, or the base with the reason. True if the waiter gets the lease. */
static bool falls_back(gr_loader *l, gr_fallback fallback, gr_lease *lease, const graft_error *err) {
    bool possible = err->code != GRAFT_E_NOT_FOUND && err->code != GRAFT_E_BAD_NAME && err->code != GRAFT_E_SHUTTING_DOWN;
    if (fallback != GR_FALLBACK_BASE || !possible) {
        return false;
    }
    lease->version = NULL;
    lease->why = *err;
    l->table.metrics.fallbacks++;
    return true;
}

/*
 * Takes all waiters off a version that ended. Blocked callers are woken here; those with callbacks are returned,
 * to be called without the mutex. `err` NULL: each lease is already counted on the version.
 */
static gr_waiter *resolve(gr_loader *l, gr_version *v, const graft_error *err) {
    gr_waiter *callbacks = NULL, *next;
    int64_t now = gr_now_us();
    for (gr_waiter *w = v->waiters; w; w = next) {
        next = w->next;
        gr_histogram_add(&l->table.metrics.wait_us, now - w->since_us);
        if (!err) {
            w->lease->version = v;
            w->error.code = 0;
        } else {
            w->error = *err;
            if (falls_back(l, w->fallback, w->lease, err)) {
                w->error.code = 0;
            }
        }
        w->resolved = true;
        if (w->done) {
            w->next = callbacks;
            callbacks = w;
        } else {
            gr_cond_signal(w->cond);
        }
    }
    v->waiters = NULL;
    return callbacks;
}

/* Without the mutex. */
static void call_back(gr_waiter *callbacks) {
    while (callbacks) {
        gr_waiter *next = callbacks->next;
        if (callbacks->error.code) {
            gr_free(callbacks->lease);
            callbacks->lease = NULL;
        }
        callbacks->done(callbacks->lease, &callbacks->error, callbacks->user);
        gr_free(callbacks);
        callbacks = next;
    }
}

/* ---- flights: on the loader's threads ---- */

static bool may_pass(int code) {
    return code == GRAFT_E_IO_ERROR || code == GRAFT_E_CHANGED_WHILE_READING || code == GRAFT_E_OUT_OF_MEMORY;
}

/* A file that changed under us is not worth remembering: the next try sees another file anyway. */
static bool worth_remembering(int code) {
    return !may_pass(code) && code != GRAFT_E_BUSY && code != GRAFT_E_SHUTTING_DOWN && code != GRAFT_E_CANCELLED;
}

/* splitmix64: only for spreading retries. */
static uint64_t next_random(gr_loader *l) {
    uint64_t z = (l->random += UINT64_C(0x9e3779b97f4a7c15));
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

/* Ends a flight that failed. The mutex is not held. */
static void flight_failed(gr_loader *l, gr_version *v, const graft_error *err) {
    char key[2 * GR_NAME_MAX + 2];
    if (v->job) {
        l->o.backend.abandon(l->o.backend.self, v->job);
        v->job = NULL;
    }
    snprintf(key, sizeof key, "%s", v->slot->key);
    uint64_t revision = v->revision;
    gr_mutex_lock(&l->mutex);
    if (err->code == GRAFT_E_BUSY) {
        l->table.metrics.busy++;
    }
    gr_waiter *callbacks = resolve(l, v, err);
    gr_table_fail(&l->table, v, err, worth_remembering(err->code) ? gr_now_us() + l->o.failure_ttl_us : 0);
    unpark(l);
    gr_mutex_unlock(&l->mutex);
    gr_log_line(l->o.log, GRAFT_LOG_WARN, "adapter %s: not loaded: %s: %s", key, graft_error_name(err->code), err->message);
    record(l, GR_EVENT_FAILED, key, revision, NULL, 0, err);
    call_back(callbacks);
}

/* Waits before the next attempt; false when the loader is closing. */
static bool pause_before(gr_loader *l, int attempt) {
    gr_mutex_lock(&l->mutex);
    int64_t pause = l->o.retry_base_us << (attempt - 1);
    pause += (int64_t)(next_random(l) % (uint64_t)(pause / 2 + 1));
    int64_t until = gr_now_us() + pause;
    l->table.metrics.retries++;
    while (!l->stop && gr_cond_wait_until(&l->pause, &l->mutex, until)) {
    }
    bool go_on = !l->stop;
    gr_mutex_unlock(&l->mutex);
    return go_on;
}

typedef enum gr_step { STEP_GO, STEP_PARKED, STEP_FAILED } gr_step;

/* Reserves `bytes`, evicting as needed. */
static gr_step find_room(gr_loader *l, gr_version *v, uint64_t bytes, graft_error *err) {
    for (;;) {
        gr_version *evicted = NULL;
        gr_mutex_lock(&l->mutex);
        if (l->stop) {
            gr_mutex_unlock(&l->mutex);
            gr_fail(err, GRAFT_E_SHUTTING_DOWN, "the loader is closing");
            return STEP_FAILED;
        }
        gr_room room = gr_table_make_room(&l->table, v, bytes, &evicted);
        bool parked = !evicted && (room == GR_ROOM_WAIT || (room == GR_ROOM_NONE && patience(v) > gr_now_us()));
        v->parked = parked;
        v->no_room = room != GR_ROOM_MADE;
        uint64_t capacity = gr_budget_capacity(&l->table.budget), free_now = gr_budget_free(&l->table.budget);
        gr_mutex_unlock(&l->mutex);
        for (gr_version *e = evicted; e; e = e->queue_next) {
            gr_log_line(l->o.log, GRAFT_LOG_INFO, "adapter %s: evicted, %" PRIu64 " bytes", e->slot->key, e->loaded.bytes);
            record(l, GR_EVENT_EVICTED, e->slot->key, e->revision, &e->loaded, 0, NULL);
        }
        bool again = evicted != NULL && room == GR_ROOM_WAIT;
        bury(l, evicted);
        if (again) {
            continue;
        }
        switch (room) {
        case GR_ROOM_MADE:
            return STEP_GO;
        case GR_ROOM_NEVER:
            gr_fail(err, GRAFT_E_LARGER_THAN_BUDGET, "needs %" PRIu64 " bytes, the memory limit leaves %" PRIu64 " for adapters", bytes, capacity);
            return STEP_FAILED;
        default:
            if (parked) {
                return STEP_PARKED;
            }
            gr_fail(err, GRAFT_E_BUSY, "needs %" PRIu64 " bytes or a place, %" PRIu64 " bytes are free and every adapter in memory is in use",
                    bytes, free_now);
            return STEP_FAILED;
        }
    }
}

/* Prepare, find room, load. PARKED: comes back later with v->job kept. */
static gr_step attempt(gr_loader *l, gr_version *v, gr_loaded *loaded, graft_error *err) {
    if (!v->job) {
        uint64_t bytes = 0;
        if (l->o.backend.prepare(l->o.backend.self, v->path, &v->job, &bytes, err)) {
            v->job = NULL;
            return STEP_FAILED;
        }
        v->wanted_bytes = bytes;
    }
    if (!v->reserved) {
        gr_step step = find_room(l, v, v->wanted_bytes, err);
        if (step != STEP_GO) {
            return step;
        }
    }
    void *job = v->job;
    v->job = NULL;
    if (l->o.backend.load(l->o.backend.self, job, loaded, err)) {
        return STEP_FAILED;
    }
    if (loaded->bytes > v->reserved) {
        /* More than announced (a module that had to stay in float32): ask for the rest, or give it back. */
        gr_mutex_lock(&l->mutex);
        bool fits = gr_budget_reserve(&l->table.budget, loaded->bytes - v->reserved);
        uint64_t reserved = v->reserved;
        v->reserved = fits ? loaded->bytes : v->reserved;
        gr_mutex_unlock(&l->mutex);
        if (!fits) {
            l->o.backend.free(l->o.backend.self, loaded->adapter);
            gr_fail(err, GRAFT_E_BUDGET_EXHAUSTED, "took %" PRIu64 " bytes instead of %" PRIu64 ", and the rest is not free", loaded->bytes, reserved);
            return STEP_FAILED;
        }
    }
    if (v->expected[0] && strcmp(v->expected, loaded->generation) != 0) {
        l->o.backend.free(l->o.backend.self, loaded->adapter);
        gr_fail(err, GRAFT_E_CHANGED_ON_DISK, "the files have generation %.12s, registered is %.12s; reload to accept them",
                loaded->generation, v->expected);
        return STEP_FAILED;
    }
    return STEP_GO;
}

static void flight_landed(gr_loader *l, gr_version *v, const gr_loaded *loaded, double ms) {
    gr_version *dead = NULL;
    char key[2 * GR_NAME_MAX + 2];
    gr_loaded said = *loaded;
    uint64_t revision = v->revision;
    gr_mutex_lock(&l->mutex);
    snprintf(key, sizeof key, "%s", v->slot->key);
    gr_histogram_add(&l->table.metrics.load_us, (int64_t)(ms * 1000));
    gr_table_ready(&l->table, v, loaded, ms, gr_now_us(), &dead);
    gr_waiter *callbacks = resolve(l, v, NULL);
    unpark(l);
    gr_mutex_unlock(&l->mutex);
    /* From here on v may be gone: whoever was handed a lease may have released it. */
    gr_log_line(l->o.log, said.no_effect ? GRAFT_LOG_WARN : GRAFT_LOG_INFO, "adapter %s: loaded generation %.12s, %" PRIu64 " bytes in %.1f ms%s",
                key, said.generation, said.bytes, ms, said.no_effect ? "; it has no effect" : "");
    record(l, GR_EVENT_LOADED, key, revision, &said, ms, NULL);
    bury(l, dead);
    call_back(callbacks);
}

static void fly(gr_loader *l, gr_version *v) {
    graft_error err = {0};
    gr_loaded loaded = {0};
    for (;;) {
        int64_t start = gr_now_us();
        switch (attempt(l, v, &loaded, &err)) {
        case STEP_GO:
            flight_landed(l, v, &loaded, (double)(gr_now_us() - start) / 1000);
            return;
        case STEP_PARKED:
            return;
        case STEP_FAILED:
            break;
        }
        v->attempts++;
        /* A changed file is worth one more try: a writer may just have finished. */
        int most = err.code == GRAFT_E_CHANGED_WHILE_READING ? 2 : l->o.retry_attempts;
        if (!may_pass(err.code) || v->attempts >= most) {
            flight_failed(l, v, &err);
            return;
        }
        gr_log_line(l->o.log, GRAFT_LOG_INFO, "adapter %s: attempt %d of %d failed: %s: %s", v->slot->key, v->attempts, most,
                    graft_error_name(err.code), err.message);
        if (!pause_before(l, v->attempts)) {
            gr_fail(&err, GRAFT_E_SHUTTING_DOWN, "the loader is closing");
            flight_failed(l, v, &err);
            return;
        }
    }
}

static void *loader_thread(void *arg) {
    gr_loader *l = arg;
    gr_mutex_lock(&l->mutex);
    for (;;) {
        gr_version *v = dequeue(l);
        if (v) {
            gr_mutex_unlock(&l->mutex);
            fly(l, v);
            gr_mutex_lock(&l->mutex);
        } else if (l->stop) {
            break;
        } else {
            int64_t until = next_deadline(l);
            if (l->queue_first) {
                continue;
            }
            if (until) {
                gr_cond_wait_until(&l->work, &l->mutex, until);
            } else {
                gr_cond_wait(&l->work, &l->mutex);
            }
        }
    }
    gr_mutex_unlock(&l->mutex);
    return NULL;
}

/* ---- leases ---- */

static bool same_file(const gr_file_identity *a, const gr_file_identity *b) {
    return a->device == b->device && a->inode == b->inode && a->size == b->size && a->mtime_ns == b->mtime_ns && a->ctime_ns == b->ctime_ns;
}

typedef struct gr_request_state {
    const gr_lease_request *request;
    gr_catalog_entry entry;   /* its path is taken over by a flight */
    gr_file_identity identity;
    bool identified;          /* the file's identity is known (or known to be unknowable) */
    gr_lease *lease;
    int64_t start;
} gr_request_state;

typedef enum gr_answer { ANSWER_LEASE, ANSWER_ERROR, ANSWER_WAIT, ANSWER_IDENTIFY } gr_answer;

/* With the mutex held: a lease, an error, or a flight to wait for (*flight). IDENTIFY: stat the file, then again. */
static gr_answer consider(gr_loader *l, gr_request_state *s, gr_version **flight, graft_error *err) {
    if (l->stop) {
        gr_fail(err, GRAFT_E_SHUTTING_DOWN, "the loader is closing");
        return ANSWER_ERROR;
    }
    gr_slot *slot = gr_table_slot(&l->table, s->entry.project, s->entry.adapter);
    if (!slot) {
        gr_fail_memory(err, sizeof *slot);
        return ANSWER_ERROR;
    }
    gr_version *v = slot->resident;
    if (v && v->revision == s->entry.revision && !s->request->reload) {
        int64_t now = gr_now_us();
        gr_policy_hit(l->table.policy, &v->policy);
        gr_table_hold(&l->table, v, now);
        v->temporary = v->temporary && s->request->temporary;
        slot->hits++;
        l->table.metrics.hits++;
        gr_histogram_add(&l->table.metrics.hit_us, now - s->start);
        s->lease->version = v;
        return ANSWER_LEASE;
    }
    if (!s->identified) {
        return ANSWER_IDENTIFY;
    }
    v = slot->flight;
    if (v && v->revision == s->entry.revision && !s->request->reload) {
        v->temporary = v->temporary && s->request->temporary;
        *flight = v;
        return ANSWER_WAIT;
    }
    const gr_failure *failure = slot->failure;
    if (failure && !s->request->reload && gr_now_us() < failure->until && same_file(&failure->identity, &s->identity)) {
        l->table.metrics.negative_hits++;
        *err = failure->error;
        return ANSWER_ERROR;
    }
    v = gr_table_begin(&l->table, slot, s->entry.path, s->entry.revision);
    if (!v) {
        gr_fail_memory(err, sizeof *v);
        return ANSWER_ERROR;
    }
    s->entry.path = NULL;
    v->identity = s->identity;
    v->temporary = s->request->temporary;
    if (!s->request->reload) {
        memcpy(v->expected, s->entry.generation, sizeof v->expected);
    }
    if (s->entry.pinned) {
        gr_table_pin(&l->table, slot, true);
    }
    enqueue(l, v);
    *flight = v;
    return ANSWER_WAIT;
}

/* Without the mutex: what the catalogue says, and a lease object to fill. */
static int begin_request(gr_loader *l, gr_request_state *s, const gr_lease_request *request, graft_error *err) {
    memset(s, 0, sizeof *s);
    s->request = request;
    s->start = gr_now_us();
    int rc = l->o.catalog.find(l->o.catalog.self, request->project, request->adapter ? request->adapter : GR_DEFAULT_ADAPTER,
                               false, &s->entry, err);
    if (rc) {
        return rc;
    }
    s->lease = gr_zalloc(sizeof *s->lease);
    if (!s->lease) {
        return gr_fail_memory(err, sizeof *s->lease);
    }
    s->lease->loader = l;
    return 0;
}

/* Without the mutex: only a miss needs the path and the file's identity. */
static int identify(gr_loader *l, gr_request_state *s, graft_error *err) {
    gr_catalog_entry full;
    int rc = l->o.catalog.find(l->o.catalog.self, s->entry.project, s->entry.adapter, true, &full, err);
    if (rc) {
        return rc;
    }
    s->entry = full;
    s->identified = true;
    /* If it cannot be examined, loading will say so better. */
    l->o.backend.identify(l->o.backend.self, s->entry.path, &s->identity, NULL);
    return 0;
}

/* Ends a request that did not become a waiter; the mutex is not held. Consumes s->lease on error. */
static int end_request(gr_loader *l, gr_request_state *s, gr_lease **out, int rc, graft_error *err) {
    gr_free(s->entry.path);
    s->entry.path = NULL;
    if (rc == 0) {
        *out = s->lease;
        return 0;
    }
    bool base = false;
    if (s->lease) {
        gr_mutex_lock(&l->mutex);
        base = falls_back(l, s->request->fallback, s->lease, err);
        gr_mutex_unlock(&l->mutex);
    }
    if (base) {
        *out = s->lease;
        return 0;
    }
    gr_free(s->lease);
    return rc;
}

/* A blocked caller waits for its waiter to be resolved. The mutex is held. At the deadline: false, with the reason. */
static bool await(gr_loader *l, gr_version *flight, gr_waiter *w, graft_error *err) {
    while (!w->resolved) {
        if (w->deadline_us == 0) {
            gr_cond_wait(w->cond, &l->mutex);
        } else if (!gr_cond_wait_until(w->cond, &l->mutex, w->deadline_us) && !w->resolved && gr_now_us() >= w->deadline_us) {
            waiter_unlink(flight, w);
            gr_fail(err, flight->no_room ? GRAFT_E_BUSY : GRAFT_E_DEADLINE, "%s was not ready in time%s", flight->slot->key,
                    flight->no_room ? ": every adapter in memory is in use" : "");
            if (!flight->waiters && flight->parked) {
                enqueue(l, flight); /* nobody is left to be patient for: let it end */
            }
            return false;
        }
    }
    return true;
}

int gr_loader_lease(gr_lease **out, gr_loader *l, const gr_lease_request *request, graft_error *err) {
    graft_error local = {0};
    gr_request_state s;
    int rc = begin_request(l, &s, request, &local);
    for (bool waiting = true; rc == 0 && waiting;) {
        gr_version *flight = NULL;
        gr_mutex_lock(&l->mutex);
        gr_answer answer = consider(l, &s, &flight, &local);
        if (answer == ANSWER_WAIT) {
            gr_cond cond;
            gr_cond_init(&cond);
            gr_waiter w = {.lease = s.lease, .cond = &cond, .fallback = request->fallback,
                           .deadline_us = request->deadline_us, .since_us = s.start};
            l->table.metrics.misses++;
            waiter_link(flight, &w);
            bool in_time = await(l, flight, &w, &local);
            gr_mutex_unlock(&l->mutex);
            gr_cond_finish(&cond);
            if (in_time && w.error.code == 0) {
                rc = 0;
            } else if (in_time) {
                local = w.error;
                rc = local.code;
                gr_free(s.lease); /* falling back was decided when the waiter was resolved */
                s.lease = NULL;
            } else {
                rc = local.code;
            }
            break;
        }
        gr_mutex_unlock(&l->mutex);
        if (answer == ANSWER_IDENTIFY) {
            rc = identify(l, &s, &local);
        } else {
            rc = answer == ANSWER_ERROR ? local.code : 0;
            waiting = false;
        }
    }
    rc = end_request(l, &s, out, rc, &local);
    if (rc && err) {
        *err = local;
    }
    return rc;
}

void gr_loader_lease_async(gr_loader *l, const gr_lease_request *request, gr_lease_fn done, void *user) {
    graft_error err = {0};
    gr_request_state s;
    gr_lease *lease = NULL;
    gr_waiter *w = NULL;
    int rc = begin_request(l, &s, request, &err);
    while (rc == 0) {
        gr_version *flight = NULL;
        if (!w && !(w = gr_zalloc(sizeof *w))) {
            rc = gr_fail_memory(&err, sizeof *w);
            break;
        }
        *w = (gr_waiter){.lease = s.lease, .done = done, .user = user,
                         .fallback = request->fallback, .deadline_us = request->deadline_us, .since_us = s.start};
        gr_mutex_lock(&l->mutex);
        gr_answer answer = consider(l, &s, &flight, &err);
        if (answer == ANSWER_WAIT) {
            l->table.metrics.misses++;
            waiter_link(flight, w);
            gr_mutex_unlock(&l->mutex);
            gr_free(s.entry.path);
            return;
        }
        gr_mutex_unlock(&l->mutex);
        if (answer == ANSWER_IDENTIFY) {
            rc = identify(l, &s, &err);
        } else {
            rc = answer == ANSWER_ERROR ? err.code : 0;
            break;
        }
    }
    gr_free(w);
    rc = end_request(l, &s, &lease, rc, &err);
    if (rc == 0) {
        err.code = 0;
    }
    done(rc == 0 ? lease : NULL, &err, user);
}

void gr_lease_release(gr_lease *lease) {
    if (!lease) {
        return;
    }
    gr_loader *l = lease->loader;
    gr_version *v = lease->version;
    if (v) {
        gr_version *dead = NULL;
        gr_mutex_lock(&l->mutex);
        if (v->temporary && v->state == GR_RESIDENT && v->leases == 1 && !v->slot->pinned) {
            gr_table_detach(&l->table, v, &dead);
            l->table.metrics.unloads++;
        }
        gr_table_unhold(&l->table, v, gr_now_us(), &dead);
        unpark(l);
        gr_mutex_unlock(&l->mutex);
        bury(l, dead);
    }
    gr_free(lease);
}

void *gr_lease_adapter(const gr_lease *lease) {
    return lease->version ? lease->version->loaded.adapter : NULL;
}

const char *gr_lease_generation(const gr_lease *lease) {
    return lease->version ? lease->version->loaded.generation : "";
}

const graft_error *gr_lease_fallback(const gr_lease *lease) {
    return &lease->why;
}

/* ---- unload, pin, pressure ---- */

int gr_loader_unload(gr_loader *l, const char *project, const char *adapter, uint64_t *freed, uint64_t *pending, graft_error *err) {
    gr_version *dead = NULL;
    uint64_t now = 0, later = 0;
    gr_mutex_lock(&l->mutex);
    gr_slot *slot = gr_table_find(&l->table, project, adapter);
    gr_version *v = slot ? slot->resident : NULL;
    bool found = v || (slot && slot->flight);
    if (slot && slot->flight) { /* its waiters get it, the name does not */
        slot->flight->unwanted = true;
        slot->flight = NULL;
    }
    if (v) {
        *(v->leases ? &later : &now) += v->loaded.bytes;
        gr_table_detach(&l->table, v, &dead);
        l->table.metrics.unloads++;
    }
    gr_mutex_unlock(&l->mutex);
    if (!found) {
        return gr_fail(err, GRAFT_E_NOT_FOUND, "%s/%s is not loaded", project, adapter);
    }
    if (dead) {
        record(l, GR_EVENT_UNLOADED, dead->slot->key, dead->revision, &dead->loaded, 0, NULL);
    }
    bury(l, dead);
    *freed = now;
    *pending = later;
    return 0;
}

int gr_loader_pin(gr_loader *l, const char *project, const char *adapter, bool pinned, graft_error *err) {
    gr_mutex_lock(&l->mutex);
    gr_slot *slot = gr_table_find(&l->table, project, adapter);
    bool resident = slot && slot->resident;
    if (resident || (slot && !pinned)) {
        gr_table_pin(&l->table, slot, pinned);
        unpark(l);
    }
    gr_mutex_unlock(&l->mutex);
    return resident || !pinned ? 0 : gr_fail(err, GRAFT_E_NOT_FOUND, "%s/%s is not loaded", project, adapter);
}

uint64_t gr_loader_relieve(gr_loader *l, uint64_t bytes) {
    uint64_t freed = 0;
    while (freed < bytes) {
        gr_version *dead = NULL;
        gr_mutex_lock(&l->mutex);
        gr_policy_entry *victim = gr_policy_evict(l->table.policy, 0);
        if (victim) {
            gr_version *v = GR_VERSION_OF(victim);
            freed += v->loaded.bytes;
            gr_table_evicted(&l->table, v, &dead);
        }
        gr_mutex_unlock(&l->mutex);
        if (!victim) {
            break;
        }
        record(l, GR_EVENT_EVICTED, dead->slot->key, dead->revision, &dead->loaded, 0, NULL);
        bury(l, dead);
    }
    return freed;
}

/* ---- looking ---- */

int gr_loader_list(gr_loader *l, gr_loaded_info **out, size_t *n, graft_error *err) {
    gr_mutex_lock(&l->mutex);
    size_t count = 0;
    for (const gr_version *v = l->table.versions; v; v = v->next) {
        count++;
    }
    gr_mutex_unlock(&l->mutex);
    /* A few more than there are now, since the allocation happens without the mutex. */
    size_t room = count + 16, filled = 0;
    gr_loaded_info *list = gr_calloc(room, sizeof *list);
    if (!list) {
        return gr_fail_memory(err, room * sizeof *list);
    }
    int64_t now = gr_now_us();
    gr_mutex_lock(&l->mutex);
    for (const gr_version *v = l->table.versions; v && filled < room; v = v->next) {
        gr_loaded_info *i = &list[filled++];
        const char *slash = strchr(v->slot->key, '/');
        snprintf(i->project, sizeof i->project, "%.*s", (int)(slash - v->slot->key), v->slot->key);
        snprintf(i->adapter, sizeof i->adapter, "%s", slash + 1);
        memcpy(i->generation, v->loaded.generation, sizeof i->generation);
        i->state = gr_state_name(v->state);
        i->bytes = v->state == GR_LOADING ? v->reserved : v->loaded.bytes;
        i->leases = v->leases;
        i->pinned = v->slot->pinned;
        i->no_effect = v->loaded.no_effect;
        i->load_ms = v->load_ms;
        i->idle_us = v->leases || v->state == GR_LOADING ? 0 : now - v->last_used;
        i->hits = v->slot->hits;
    }
    gr_mutex_unlock(&l->mutex);
    *out = list;
    *n = filled;
    return 0;
}

void gr_loader_metrics(gr_loader *l, gr_loader_metrics_snapshot *out) {
    gr_mutex_lock(&l->mutex);
    *out = l->table.metrics;
    const gr_budget *b = &l->table.budget;
    out->limit = b->limit;
    out->fixed = b->fixed;
    out->resident = b->resident;
    out->loading = b->loading;
    out->draining = b->draining;
    out->n_resident = l->table.n_resident;
    out->n_loading = l->table.n_loading;
    out->n_draining = l->table.n_draining;
    out->n_leases = l->table.n_leases;
    gr_mutex_unlock(&l->mutex);
}

bool gr_loader_check(gr_loader *l) {
    gr_mutex_lock(&l->mutex);
    bool ok = gr_table_check(&l->table);
    gr_mutex_unlock(&l->mutex);
    return ok;
}

/* ---- birth and end ---- */

int gr_loader_create(gr_loader **out, const gr_loader_options *options, graft_error *err) {
    if (options->fixed_bytes >= options->memory_limit) {
        return gr_fail(err, GRAFT_E_BUDGET_EXHAUSTED, "the base model and its caches need %" PRIu64 " bytes, the memory limit is %" PRIu64,
                       options->fixed_bytes, options->memory_limit);
    }
    gr_loader *l = gr_zalloc(sizeof *l);
    if (!l) {
        return gr_fail_memory(err, sizeof *l);
    }
    l->o = *options;
    l->random = options->seed;
    l->table.budget.limit = options->memory_limit;
    l->table.budget.fixed = options->fixed_bytes;
    l->table.max_adapters = options->max_adapters;
    int rc = gr_policy_create(&l->table.policy, options->policy, gr_budget_capacity(&l->table.budget), err);
    if (rc) {
        gr_free(l);
        return rc;
    }
    gr_policy_limit_count(l->table.policy, (size_t)l->table.max_adapters);
    gr_mutex_init(&l->mutex, GR_RANK_LOADER);
    gr_cond_init(&l->work);
    gr_cond_init(&l->pause);
    int wanted = options->threads > 0 ? options->threads : 2;
    wanted = wanted > 8 ? 8 : wanted;
    for (int i = 0; i < wanted; i++) {
        if (gr_thread_start(&l->threads[i], loader_thread, l) != 0) {
            gr_loader_free(l);
            return gr_fail(err, GRAFT_E_OUT_OF_MEMORY, "could not start a loader thread");
        }
        l->n_threads = i + 1;
    }
    *out = l;
    return 0;
}

/* Flights that no thread will take any more. */
static void cancel_flights(gr_loader *l) {
    graft_error err;
    gr_fail(&err, GRAFT_E_SHUTTING_DOWN, "the loader is closing");
    for (;;) {
        gr_mutex_lock(&l->mutex);
        gr_version *v = l->table.versions;
        while (v && v->state != GR_LOADING) {
            v = v->next;
        }
        gr_mutex_unlock(&l->mutex);
        if (!v) {
            return;
        }
        flight_failed(l, v, &err);
    }
}

void gr_loader_free(gr_loader *l) {
    if (!l) {
        return;
    }
    gr_mutex_lock(&l->mutex);
    l->stop = true;
    l->queue_first = l->queue_last = NULL; /* what is queued ends in cancel_flights */
    gr_cond_broadcast(&l->work);
    gr_cond_broadcast(&l->pause);
    gr_mutex_unlock(&l->mutex);
    for (int i = 0; i < l->n_threads; i++) {
        gr_thread_join(l->threads[i]);
    }
    cancel_flights(l);
    gr_version *dead = NULL;
    gr_mutex_lock(&l->mutex);
    for (gr_version *v = l->table.versions, *next; v; v = next) {
        next = v->next;
        if (v->state == GR_RESIDENT) {
            gr_table_detach(&l->table, v, &dead);
        }
    }
    gr_mutex_unlock(&l->mutex);
    bury(l, dead);
    gr_table_finish(&l->table);
    gr_cond_finish(&l->pause);
    gr_cond_finish(&l->work);
    gr_mutex_finish(&l->mutex);
    gr_free(l);
}
