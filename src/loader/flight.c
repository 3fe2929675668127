/*
 * One loading of a name: ask the catalogue where its files are, see whether they failed before, open and verify, find room,
 * read, and hand leases to those who wait. Runs on the loader's threads.
 *
 * No thread waits, but for another that is telling of the same name: a flight that finds no room is parked, and every lease
 * that ends and every load that ends puts the parked ones back into the queue, and so does the clerk when graft's own memory has
 * fallen; one that failed for a reason that may pass is paused, and the clerk puts it back when it is time.
 */
#include "loader_state.h"

#include "base/clock.h"
#include "base/mix.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define LONGEST_PAUSE_US 5000000 /* between two attempts */

/* ---- the queue: with the mutex held --------------------------------------------------------------------- */

void gr_flight_enqueue(gr_loader *l, gr_version *v) {
    if (l->stop) {
        return;
    }
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

static void park(gr_loader *l, gr_version *v) {
    gr_version **at = &l->parked_first;
    while (*at && (*at)->serial < v->serial) { /* few, and who came first stays first */
        at = &(*at)->queue_next;
    }
    v->parked = true;
    v->queue_next = *at;
    *at = v;
    gr_cond_signal(&l->clerk); /* who looks at graft's own memory meanwhile */
}

static void unpark(gr_loader *l, gr_version *v) {
    gr_version **at = &l->parked_first;
    while (*at != v) {
        at = &(*at)->queue_next;
    }
    *at = v->queue_next;
    v->queue_next = NULL;
    v->parked = false;
}

void gr_flight_unpark(gr_loader *l) {
    while (l->parked_first && !l->stop) {
        gr_version *v = l->parked_first;
        unpark(l, v);
        gr_flight_enqueue(l, v);
    }
}

void gr_flight_unpause(gr_loader *l, int64_t now, int64_t *next) {
    for (gr_version *v = l->n_paused > 0 ? l->table.versions : NULL; v; v = v->next) {
        if (v->state != GR_LOADING || v->retry_at == 0) {
            continue;
        }
        if (v->retry_at <= now) {
            v->retry_at = 0;
            l->n_paused--;
            gr_flight_enqueue(l, v);
        } else if (*next == 0 || v->retry_at < *next) {
            *next = v->retry_at;
        }
    }
}

/* The longest that any waiter will wait for room; 0 = nobody waits. */
static int64_t patience(const gr_version *v) {
    int64_t until = 0;
    for (const gr_waiter *w = v->waiters; w; w = w->next) {
        until = w->deadline_us > until ? w->deadline_us : until;
    }
    return until;
}

void gr_flight_left(gr_loader *l, gr_version *v) {
    if (v->parked && patience(v) <= gr_now_us()) {
        unpark(l, v);
        gr_flight_enqueue(l, v);
    }
}

/* Answers one who waits; true if that is by a callback, which is then the caller's to make. `err` NULL: the lease is granted. */
static bool answer(gr_loader *l, gr_version *v, gr_waiter *w, const graft_error *err) {
    gr_histogram_add(&l->table.metrics.wait_us, gr_now_us() - w->since_us);
    if (!err) {
        w->lease->version = v;
        w->error.code = 0;
    } else {
        w->error = *err;
        if (gr_falls_back(l, w->fallback, w->lease, err)) {
            w->error.code = 0;
        }
    }
    w->resolved = true;
    if (!w->done) {
        gr_cond_signal(w->cond);
    }
    return w->done != NULL;
}

/*
 * Takes all waiters off a version that ended. Blocked callers are woken here; those with callbacks are returned, to be
 * called without the mutex. `err` NULL: each lease is already counted on the version.
 */
static gr_waiter *resolve(gr_loader *l, gr_version *v, const graft_error *err) {
    gr_waiter *callbacks = NULL, *next;
    for (gr_waiter *w = v->waiters; w; w = next) {
        next = w->next;
        if (answer(l, v, w, err)) {
            w->next = callbacks;
            callbacks = w;
        }
    }
    v->waiters = NULL;
    return callbacks;
}

/* The same for those alone who do not wait for room at all. */
static gr_waiter *resolve_impatient(gr_loader *l, gr_version *v) {
    gr_waiter *callbacks = NULL, *next;
    graft_error err;
    gr_late(v, &err);
    for (gr_waiter *w = v->waiters; w; w = next) {
        next = w->next;
        if (w->deadline_us == 0) {
            gr_waiter_unlink(v, w);
            if (answer(l, v, w, &err)) {
                w->next = callbacks;
                callbacks = w;
            }
        }
    }
    return callbacks;
}

/* ---- which errors --------------------------------------------------------------------------------------- */

static bool may_pass(int code) {
    return code == GRAFT_E_IO_ERROR || code == GRAFT_E_CHANGED_WHILE_READING || code == GRAFT_E_OUT_OF_MEMORY;
}

/* A file that changed under us is not worth remembering: the next try sees another file anyway. */
static bool worth_remembering(int code) {
    return !may_pass(code) && code != GRAFT_E_BUSY && code != GRAFT_E_SHUTTING_DOWN && code != GRAFT_E_CANCELLED &&
           code != GRAFT_E_LARGER_THAN_BUDGET && code != GRAFT_E_BUDGET_EXHAUSTED && code != GRAFT_E_NOT_FOUND;
}

/* ---- the steps: without the mutex ----------------------------------------------------------------------- */

static bool same_file(const gr_file_identity *a, const gr_file_identity *b) {
    return a->device == b->device && a->inode == b->inode && a->size == b->size && a->mtime_ns == b->mtime_ns &&
           a->ctime_ns == b->ctime_ns;
}

/* With the mutex held. */
static bool failed_before(gr_loader *l, gr_version *v, graft_error *err) {
    const gr_failure *failure = v->slot->failure;
    bool same = failure && failure->revision == v->revision && same_file(&failure->identity, &v->identity);
    if (!same || v->reload || gr_now_us() >= failure->until) {
        return false;
    }
    l->table.metrics.negative_hits++;
    v->remembered = true;
    *err = failure->error;
    return true;
}

static int find(gr_loader *l, const char *key, gr_catalog_entry *entry, graft_error *err) {
    char project[GR_NAME_MAX + 1], adapter[GR_NAME_MAX + 1];
    gr_split_key(project, adapter, key);
    return l->o.catalog.find(l->o.catalog.self, project, adapter, true, entry, err);
}

/* Where the files are. Until v->path is set others may join and raise v->revision: then the catalogue is asked again. */
static int look_up(gr_loader *l, gr_version *v, graft_error *err) {
    for (;;) {
        gr_catalog_entry entry;
        gr_file_identity identity = {0};
        uint64_t pin_events = atomic_load(&l->pin_events);
        int rc = find(l, v->slot->key, &entry, err);
        if (rc) {
            return rc;
        }
        /* If it cannot be examined, loading will say so better. */
        l->o.backend.identify(l->o.backend.self, entry.path, &identity, NULL);
        gr_mutex_lock(&l->mutex);
        bool current = entry.revision >= v->revision;
        if (current) {
            v->revision = entry.revision;
            v->path = entry.path;
            v->identity = identity;
            if (entry.pinned && pin_events == atomic_load(&l->pin_events)) { /* perhaps since it was asked for */
                gr_table_pin(&l->table, v->slot, true);
            }
            if (!v->reload) {
                memcpy(v->expected, entry.generation, sizeof v->expected);
            }
            rc = failed_before(l, v, err) ? err->code : 0;
        }
        gr_mutex_unlock(&l->mutex);
        if (current) {
            return rc;
        }
        gr_free(entry.path);
    }
}

typedef enum gr_step { STEP_GO, STEP_PARKED, STEP_FAILED } gr_step;

/* Reserves `bytes`, evicting as needed. */
static gr_step find_room(gr_loader *l, gr_version *v, uint64_t bytes, graft_error *err) {
    for (;;) {
        gr_version *evicted = NULL;
        uint64_t own = l->o.backend.own ? l->o.backend.own(l->o.backend.self) : 0;
        gr_mutex_lock(&l->mutex);
        if (l->stop) {
            gr_mutex_unlock(&l->mutex);
            gr_fail(err, GRAFT_E_SHUTTING_DOWN, "the loader is closing");
            return STEP_FAILED;
        }
        gr_budget *budget = &l->table.budget;
        budget->own = budget->loading == 0 ? own : budget->own; /* what loads have taken so far would count twice */
        gr_room room = gr_table_make_room(&l->table, v, bytes, &evicted);
        bool parked = !evicted && (room == GR_ROOM_WAIT || (room == GR_ROOM_NONE && patience(v) > gr_now_us()));
        v->no_room = room != GR_ROOM_MADE;
        v->short_since = room != GR_ROOM_NONE ? 0 : v->short_since ? v->short_since : gr_now_us();
        gr_waiter *impatient = NULL;
        if (parked) {
            park(l, v);
            impatient = room == GR_ROOM_NONE ? resolve_impatient(l, v) : NULL;
        }
        if (room == GR_ROOM_NONE && !parked && v->slot->flight == v) {
            v->slot->flight = NULL; /* it will end busy: who joined now might be willing to wait longer */
        }
        uint64_t capacity = gr_budget_capacity(budget), free_now = gr_budget_free(budget);
        gr_mutex_unlock(&l->mutex);
        gr_call_back(impatient); /* from here on v is another thread's, if it was parked */
        gr_say_evicted(l, evicted);
        bool again = evicted != NULL && room == GR_ROOM_WAIT;
        gr_bury(l, evicted);
        if (again) {
            continue;
        }
        if (room == GR_ROOM_MADE) {
            return STEP_GO;
        }
        if (room == GR_ROOM_NEVER) {
            gr_fail(err, GRAFT_E_LARGER_THAN_BUDGET,
                    "needs %" PRIu64 " bytes, the memory limit leaves %" PRIu64 " for adapters", bytes, capacity);
            return STEP_FAILED;
        }
        if (parked) {
            return STEP_PARKED;
        }
        gr_fail(err, GRAFT_E_BUSY,
                "needs %" PRIu64 " bytes or a place, %" PRIu64 " bytes are free and every adapter in memory is in use",
                bytes, free_now);
        return STEP_FAILED;
    }
}

/* It took more than was announced (a module that had to stay in float32): evicts for the rest, or gives it back. */
static int settle_bytes(gr_loader *l, gr_version *v, const gr_loaded *loaded, graft_error *err) {
    for (;;) {
        gr_version *evicted = NULL;
        gr_mutex_lock(&l->mutex);
        uint64_t reserved = v->reserved;
        bool fits = loaded->bytes <= reserved || gr_table_reserve_more(&l->table, v, loaded->bytes);
        gr_policy_entry *victim = fits ? NULL : gr_policy_evict(l->table.policy, loaded->bytes - reserved);
        if (victim) {
            gr_table_evicted(&l->table, GR_VERSION_OF(victim), &evicted);
        }
        gr_mutex_unlock(&l->mutex);
        gr_say_evicted(l, evicted);
        gr_bury(l, evicted);
        if (fits || !evicted) {
            return fits ? 0
                        : gr_fail(err, GRAFT_E_BUDGET_EXHAUSTED,
                                  "took %" PRIu64 " bytes instead of %" PRIu64 ", and the rest is not free", loaded->bytes,
                                  reserved);
        }
    }
}

static int check_generation(const gr_version *v, const gr_loaded *loaded, graft_error *err) {
    if (v->expected[0] && strcmp(v->expected, loaded->generation) != 0) {
        return gr_fail(err, GRAFT_E_CHANGED_ON_DISK,
                       "the files have generation %.12s, registered is %.12s; reload to accept them", loaded->generation,
                       v->expected);
    }
    return 0;
}

/* The backend works on it from now on, or no longer. */
static void set_busy(gr_loader *l, gr_version *v, bool busy) {
    int64_t since = busy ? gr_now_us() : 0;
    gr_mutex_lock(&l->mutex);
    v->busy_since = since;
    gr_mutex_unlock(&l->mutex);
}

static int prepare(gr_loader *l, gr_version *v, graft_error *err) {
    const gr_backend *b = &l->o.backend;
    gr_file_identity identity = {0};
    set_busy(l, v, true);
    b->identify(b->self, v->path, &identity, NULL); /* anew: since the last attempt it may be another file */
    int rc = b->prepare(b->self, v->path, &v->job, &v->wanted_bytes, err);
    set_busy(l, v, false);
    v->identity = identity;
    v->job = rc ? NULL : v->job;
    return rc;
}

/* Look up, prepare, find room, load. PARKED: comes back later with v->job kept. */
static gr_step attempt(gr_loader *l, gr_version *v, gr_loaded *loaded, graft_error *err) {
    if (!v->path && look_up(l, v, err)) {
        return STEP_FAILED;
    }
    if (!v->job && prepare(l, v, err)) {
        return STEP_FAILED;
    }
    if (!v->reserved) {
        gr_step step = find_room(l, v, v->wanted_bytes, err);
        if (step != STEP_GO) {
            return step;
        }
    }
    void *job = v->job;
    v->job = NULL;
    set_busy(l, v, true);
    int rc = l->o.backend.load(l->o.backend.self, job, loaded, err);
    set_busy(l, v, false);
    if (rc) {
        return STEP_FAILED;
    }
    rc = settle_bytes(l, v, loaded, err);
    rc = rc ? rc : check_generation(v, loaded, err);
    if (rc) {
        l->o.backend.free(l->o.backend.self, loaded->adapter);
        return STEP_FAILED;
    }
    return STEP_GO;
}

/* ---- ends ----------------------------------------------------------------------------------------------- */

void gr_flight_failed(gr_loader *l, gr_version *v, const graft_error *err) {
    char key[GR_KEY_SIZE];
    if (v->job) {
        l->o.backend.abandon(l->o.backend.self, v->job);
        v->job = NULL;
    }
    snprintf(key, sizeof key, "%s", v->slot->key);
    bool remembered = v->remembered;
    bool remember = !remembered && worth_remembering(err->code);
    gr_mutex_lock(&l->mutex);
    uint64_t revision = v->revision;
    gr_mutex_unlock(&l->mutex);
    if (!remembered) { /* first the history and the log, then who waits */
        gr_loader_say(l, GRAFT_LOG_WARN, key, NULL, err->code, "not loaded: %s: %s", graft_error_name(err->code), err->message);
        gr_record(l, GR_EVENT_FAILED, key, revision, NULL, 0, err);
    }
    gr_mutex_lock(&l->mutex);
    if (err->code == GRAFT_E_BUSY) {
        l->table.metrics.busy++;
        l->busy_at = gr_now_us();
    } else if (!remembered && err->code != GRAFT_E_SHUTTING_DOWN) {
        l->failed_at = gr_now_us();
        l->failed_code = err->code;
    }
    if (v->parked) { /* only when the loader stops */
        unpark(l, v);
    }
    l->n_paused -= v->retry_at != 0;
    gr_waiter *callbacks = resolve(l, v, err);
    gr_table_fail(&l->table, v, err, remember ? gr_now_us() + l->o.failure_ttl_us : 0);
    gr_flight_unpark(l);
    gr_mutex_unlock(&l->mutex);
    gr_call_back(callbacks);
}

/* Whether the name is to have the generation that was loaded: not if it was expected anyway, nor if a load that began later was
 * quicker. Of one name one load lands at a time, so that the catalogue hears of them in the order in which they become
 * resident. */
static bool begin_landing(gr_loader *l, const gr_version *v) {
    gr_mutex_lock(&l->mutex);
    while (v->slot->landing) { /* for as long as `record` takes, which does not block */
        gr_cond_wait(&l->landed, &l->mutex);
    }
    v->slot->landing = true;
    const gr_version *resident = v->slot->resident;
    bool news = !v->expected[0] && !v->unwanted && !(resident && resident->serial > v->serial);
    gr_mutex_unlock(&l->mutex);
    return news;
}

static void landed(gr_loader *l, gr_version *v, const gr_loaded *loaded, double ms) {
    gr_version *dead = NULL;
    /* First the history and the log: who waits must find what a reload made of the name. */
    gr_loader_say(l, loaded->no_effect ? GRAFT_LOG_WARN : GRAFT_LOG_INFO, v->slot->key, loaded->generation,
                  loaded->no_effect ? GRAFT_E_NO_EFFECT : 0, "loaded, %" PRIu64 " bytes in %.1f ms%s", loaded->bytes, ms,
                  loaded->no_effect ? "; it has no effect" : "");
    bool news = begin_landing(l, v);
    /* Since v->path is set nobody changes the revision. */
    gr_tell(l, v->slot->key, (gr_event){.kind = GR_EVENT_LOADED, .revision = v->revision, .ms = ms, .stale = !news}, loaded,
            NULL);
    gr_mutex_lock(&l->mutex);
    gr_histogram_add(&l->table.metrics.load_us, (int64_t)(ms * 1000));
    v->slot->landing = false;
    gr_cond_broadcast(&l->landed);
    gr_table_ready(&l->table, v, loaded, ms, gr_now_us(), &dead);
    gr_waiter *callbacks = resolve(l, v, NULL);
    gr_flight_unpark(l);
    gr_cond_signal(&l->clerk); /* from now on there is something to measure */
    gr_mutex_unlock(&l->mutex);
    /* From here on v may be gone: whoever was handed a lease may have released it. */
    gr_bury(l, dead);
    gr_call_back(callbacks);
}

/* ---- trying again --------------------------------------------------------------------------------------- */

/* Doubles with each attempt, up to the longest, and up to half as much again so that flights do not come back together. */
static int64_t pause_after(gr_loader *l, int attempts) {
    int64_t pause = l->o.retry_base_us;
    for (int i = 1; i < attempts && pause < LONGEST_PAUSE_US; i++) {
        pause *= 2;
    }
    pause = pause < LONGEST_PAUSE_US ? pause : LONGEST_PAUSE_US;
    return pause + (int64_t)(gr_mix_next(&l->random) % (uint64_t)(pause / 2 + 1));
}

/* Lets the flight rest until its next attempt, holding nothing; from then on v is another thread's. False, and nothing happens,
 * if nobody waits for it, or the loader stops: *err says so then. */
static bool pause_flight(gr_loader *l, gr_version *v, graft_error *err) {
    gr_mutex_lock(&l->mutex);
    bool rest = v->waiters && !l->stop;
    if (l->stop) {
        gr_fail(err, GRAFT_E_SHUTTING_DOWN, "the loader is closing");
    }
    if (rest) {
        gr_table_unreserve(&l->table, v);
        v->retry_at = gr_now_us() + pause_after(l, v->attempts);
        l->n_paused++;
        l->table.metrics.retries++;
        gr_count_code(l->table.metrics.retried, &l->table.metrics.n_retried, v->last_error.code);
        gr_flight_unpark(l);
        gr_cond_signal(&l->clerk);
    }
    gr_mutex_unlock(&l->mutex);
    return rest;
}

/* A failed attempt: the end, or there will be another. */
static void fell_short(gr_loader *l, gr_version *v, graft_error *err) {
    v->attempts++;
    v->last_error = *err;
    /* A changed file is worth one more try: a writer may just have finished. */
    int most = err->code == GRAFT_E_CHANGED_WHILE_READING ? 2 : l->o.retry_attempts;
    if (!may_pass(err->code) || v->attempts >= most) {
        gr_flight_failed(l, v, err);
        return;
    }
    gr_loader_say(l, GRAFT_LOG_INFO, v->slot->key, NULL, err->code, "attempt %d of %d failed: %s: %s", v->attempts, most,
                  graft_error_name(err->code), err->message);
    if (!pause_flight(l, v, err)) {
        gr_flight_failed(l, v, err);
    }
}

static void fly(gr_loader *l, gr_version *v) {
    graft_error err = {0};
    gr_loaded loaded = {0};
    int64_t start = gr_now_us();
    switch (attempt(l, v, &loaded, &err)) {
    case STEP_GO: landed(l, v, &loaded, (double)(gr_now_us() - start) / 1000); break;
    case STEP_PARKED: break;
    case STEP_FAILED: fell_short(l, v, &err); break;
    }
}

void *gr_loader_thread(void *arg) {
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
            gr_cond_wait(&l->work, &l->mutex);
        }
    }
    gr_mutex_unlock(&l->mutex);
    return NULL;
}
