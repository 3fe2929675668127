/*
 * Who asks. A request looks in the table; if the adapter is not resident it becomes a waiter of the flight that will bring
 * it, and starts that flight if there is none. Nothing here touches a file: whoever asked first can leave without harm to the
 * others, and the decode thread may ask too.
 */
#include "loader_state.h"

#include "base/clock.h"

#include <stdio.h>
#include <string.h>

/* ---- waiters: with the mutex held ----------------------------------------------------------------------- */

static void waiter_link(gr_version *v, gr_waiter *w) {
    w->prev = NULL;
    w->next = v->waiters;
    if (v->waiters) {
        v->waiters->prev = w;
    }
    v->waiters = w;
}

void gr_waiter_unlink(gr_version *v, gr_waiter *w) {
    if (w->prev) {
        w->prev->next = w->next;
    } else {
        v->waiters = w->next;
    }
    if (w->next) {
        w->next->prev = w->prev;
    }
}

void gr_late(const gr_version *v, graft_error *err) {
    gr_fail(err, v->no_room ? GRAFT_E_BUSY : GRAFT_E_DEADLINE, "%s was not ready in time%s", v->slot->key,
            v->no_room ? ": every adapter in memory is in use" : "");
}

bool gr_falls_back(gr_loader *l, graft_fallback fallback, gr_lease *lease, const graft_error *err) {
    bool possible = err->code != GRAFT_E_NOT_FOUND && err->code != GRAFT_E_BAD_NAME && err->code != GRAFT_E_SHUTTING_DOWN;
    if (fallback != GRAFT_FALLBACK_BASE || !possible) {
        return false;
    }
    lease->version = NULL;
    lease->why = *err;
    l->table.metrics.fallbacks++;
    return true;
}

/* A blocked caller waits for its waiter to be resolved. At the deadline: false, with the reason. */
static bool await(gr_loader *l, gr_version *flight, gr_waiter *w, graft_error *err) {
    while (!w->resolved) {
        if (w->deadline_us == 0) {
            gr_cond_wait(w->cond, &l->mutex);
        } else if (!gr_cond_wait_until(w->cond, &l->mutex, w->deadline_us) && !w->resolved && gr_now_us() >= w->deadline_us) {
            gr_waiter_unlink(flight, w);
            gr_late(flight, err);
            gr_flight_left(l, flight);
            return false;
        }
    }
    return true;
}

/* ---- asking --------------------------------------------------------------------------------------------- */

typedef struct gr_asking {
    const gr_lease_request *request;
    gr_catalog_entry entry;
    uint64_t pin_events; /* as of before the catalogue was asked: what it says of pins counts while there was none since */
    gr_lease *lease; /* made first, so that a load that succeeds cannot fail to be handed over */
    int64_t start;
} gr_asking;

typedef enum gr_answer { ANSWER_LEASE, ANSWER_ERROR, ANSWER_WAIT } gr_answer;

/* Without the mutex: what the catalogue says, and a lease object to fill. */
static int begin(gr_asking *a, gr_loader *l, const gr_lease_request *request, graft_error *err) {
    memset(a, 0, sizeof *a);
    a->request = request;
    a->start = gr_now_us();
    a->pin_events = atomic_load(&l->pin_events);
    int rc = l->o.catalog.find(l->o.catalog.self, request->project, request->adapter ? request->adapter : GR_DEFAULT_ADAPTER,
                               false, &a->entry, err);
    if (rc) {
        return rc;
    }
    a->lease = gr_zalloc(sizeof *a->lease);
    if (!a->lease) {
        return gr_fail_memory(err, sizeof *a->lease);
    }
    a->lease->loader = l;
    return 0;
}

static gr_version *take_hit(gr_loader *l, const gr_asking *a, gr_slot *slot) {
    gr_version *v = slot->resident;
    int64_t now = gr_now_us();
    gr_policy_hit(l->table.policy, &v->policy);
    gr_table_hold(&l->table, v, now);
    v->temporary = v->temporary && a->request->temporary;
    slot->hits++;
    l->table.metrics.hits++;
    gr_histogram_add(&l->table.metrics.hit_us, now - a->start);
    return v;
}

/* A flight that has not asked the catalogue yet will find this revision, or a newer one. Who looked into the catalogue before
 * it changed and comes here after is served with the newer one too: revisions only grow. */
static bool may_join(const gr_version *flight, const gr_asking *a) {
    return flight && !a->request->reload && (!flight->path || flight->revision >= a->entry.revision);
}

static gr_version *join(gr_version *flight, const gr_asking *a) {
    if (flight->revision < a->entry.revision) {
        flight->revision = a->entry.revision;
    }
    flight->temporary = flight->temporary && a->request->temporary;
    return flight;
}

/* With the mutex held: a lease, an error, or a flight to wait for (*flight). */
static gr_answer consider(gr_loader *l, gr_asking *a, gr_version **flight, graft_error *err) {
    if (l->stop) {
        gr_fail(err, GRAFT_E_SHUTTING_DOWN, "the loader is closing");
        return ANSWER_ERROR;
    }
    gr_slot *slot = gr_table_slot(&l->table, a->entry.project, a->entry.adapter);
    if (!slot) {
        gr_fail_memory(err, sizeof *slot);
        return ANSWER_ERROR;
    }
    if (slot->resident && slot->resident->revision >= a->entry.revision && !a->request->reload) {
        a->lease->version = take_hit(l, a, slot);
        a->lease->hit = true;
        return ANSWER_LEASE;
    }
    if (may_join(slot->flight, a)) {
        *flight = join(slot->flight, a);
        if ((*flight)->short_since && a->request->deadline_us == 0) {
            gr_late(*flight, err); /* does not wait for room, and there is none */
            return ANSWER_ERROR;
        }
        return ANSWER_WAIT;
    }
    gr_version *v = gr_table_begin(&l->table, slot, a->entry.revision);
    if (!v) {
        gr_fail_memory(err, sizeof *v);
        return ANSWER_ERROR;
    }
    v->temporary = a->request->temporary;
    v->reload = a->request->reload;
    if (a->entry.pinned && a->pin_events == atomic_load(&l->pin_events)) {
        gr_table_pin(&l->table, slot, true);
    }
    gr_flight_enqueue(l, v);
    *flight = v;
    return ANSWER_WAIT;
}

/* With the mutex held. */
static void wait_for(gr_loader *l, gr_version *flight, gr_waiter *w, const gr_asking *a) {
    w->slot = flight->slot;
    w->lease = a->lease;
    w->fallback = a->request->fallback;
    w->deadline_us = a->request->deadline_us;
    w->since_us = a->start;
    l->table.metrics.misses++;
    waiter_link(flight, w);
}

/* An error that did not come through a flight: the base instead, or the error stays. */
static int settle(gr_loader *l, gr_asking *a, graft_error *err) {
    bool base = false;
    if (a->lease) {
        gr_mutex_lock(&l->mutex);
        base = gr_falls_back(l, a->request->fallback, a->lease, err);
        gr_mutex_unlock(&l->mutex);
    }
    if (base) {
        return 0;
    }
    gr_free(a->lease);
    a->lease = NULL;
    return err->code;
}

/* Takes part in the flight until it ends. */
static int sit_out(gr_loader *l, gr_asking *a, gr_version *flight, gr_waiter *w, graft_error *err) {
    bool in_time = await(l, flight, w, err);
    gr_mutex_unlock(&l->mutex);
    if (!in_time) {
        return settle(l, a, err);
    }
    if (w->error.code) { /* whether to fall back was decided when the waiter was resolved */
        *err = w->error;
        gr_free(a->lease);
        a->lease = NULL;
    }
    return w->error.code;
}

static void note_fallback(gr_loader *l, const gr_lease *lease, const gr_catalog_entry *entry) {
    if (lease && !lease->version) {
        char key[GR_KEY_SIZE];
        snprintf(key, sizeof key, "%s/%s", entry->project, entry->adapter);
        gr_record_fallback(l, key, &lease->why);
    }
}

int gr_loader_lease(gr_lease **out, gr_loader *l, const gr_lease_request *request, graft_error *err) {
    graft_error local = {0};
    gr_asking a;
    gr_version *flight = NULL;
    int rc = begin(&a, l, request, &local);
    if (!rc) {
        gr_mutex_lock(&l->mutex);
        gr_answer answer = consider(l, &a, &flight, &local);
        if (answer == ANSWER_WAIT) {
            gr_cond cond;
            gr_waiter w = {.cond = &cond};
            gr_cond_init(&cond);
            wait_for(l, flight, &w, &a);
            rc = sit_out(l, &a, flight, &w, &local);
            gr_cond_finish(&cond);
        } else {
            gr_mutex_unlock(&l->mutex);
            rc = answer == ANSWER_ERROR ? settle(l, &a, &local) : 0;
        }
    }
    if (rc) {
        if (err) {
            *err = local;
        }
        return rc;
    }
    note_fallback(l, a.lease, &a.entry);
    *out = a.lease;
    return 0;
}

void gr_loader_lease_async(gr_loader *l, const gr_lease_request *request, gr_lease_fn done, void *user) {
    graft_error err = {0};
    gr_asking a;
    gr_version *flight = NULL;
    gr_waiter *w = NULL;
    int rc = begin(&a, l, request, &err);
    if (!rc && !(w = gr_zalloc(sizeof *w))) {
        gr_fail_memory(&err, sizeof *w);
        rc = settle(l, &a, &err);
    } else if (!rc) {
        w->done = done;
        w->user = user;
        gr_mutex_lock(&l->mutex);
        gr_answer answer = consider(l, &a, &flight, &err);
        if (answer == ANSWER_WAIT) {
            wait_for(l, flight, w, &a);
            gr_cond_signal(&l->clerk); /* for the deadline */
            gr_mutex_unlock(&l->mutex);
            return;
        }
        gr_mutex_unlock(&l->mutex);
        rc = answer == ANSWER_ERROR ? settle(l, &a, &err) : 0;
    }
    gr_free(w);
    if (!rc) {
        err.code = 0;
        note_fallback(l, a.lease, &a.entry);
    }
    done(rc ? NULL : a.lease, &err, user);
}

void gr_call_back(gr_waiter *waiters) {
    while (waiters) {
        gr_waiter *next = waiters->next;
        gr_loader *l = waiters->lease->loader;
        if (waiters->error.code) {
            gr_free(waiters->lease);
            waiters->lease = NULL;
        } else if (!waiters->lease->version) {
            gr_record_fallback(l, waiters->slot->key, &waiters->lease->why);
        }
        waiters->done(waiters->lease, &waiters->error, waiters->user);
        gr_free(waiters);
        waiters = next;
    }
}

int gr_loader_knows(gr_loader *l, const char *project, const char *adapter, graft_error *err) {
    gr_catalog_entry entry;
    return l->o.catalog.find(l->o.catalog.self, project, adapter ? adapter : GR_DEFAULT_ADAPTER, false, &entry, err);
}

/* ---- giving back ---------------------------------------------------------------------------------------- */

/* Gives the lease back; what is to be freed goes to *dead. */
static void give_back(gr_loader *l, gr_version *v, gr_version **dead) {
    if (v->temporary && v->state == GR_RESIDENT && v->leases == 1 && !v->slot->pinned) {
        gr_table_detach(&l->table, v, dead);
        v->given_up = true;
        l->table.metrics.unloads++;
    }
    gr_table_unhold(&l->table, v, gr_now_us(), dead);
    gr_flight_unpark(l);
}

void gr_lease_release(gr_lease *lease) {
    if (lease && lease->version) {
        gr_loader *l = lease->loader;
        gr_version *dead = NULL;
        gr_mutex_lock(&l->mutex);
        give_back(l, lease->version, &dead);
        gr_mutex_unlock(&l->mutex);
        gr_bury(l, dead);
    }
    gr_free(lease);
}

void gr_lease_release_later(gr_lease *lease) {
    if (lease && lease->version) {
        gr_loader *l = lease->loader;
        gr_mutex_lock(&l->mutex);
        const gr_version *before = l->dead;
        give_back(l, lease->version, &l->dead);
        if (l->dead != before) {
            gr_cond_signal(&l->clerk);
        }
        gr_mutex_unlock(&l->mutex);
    }
    gr_free(lease);
}

gr_lease *gr_lease_copy(const gr_lease *lease) {
    gr_lease *copy = gr_alloc(sizeof *copy);
    if (copy) {
        *copy = *lease;
        if (copy->version) {
            gr_mutex_lock(&copy->loader->mutex);
            gr_table_hold(&copy->loader->table, copy->version, gr_now_us());
            gr_mutex_unlock(&copy->loader->mutex);
        }
    }
    return copy;
}

void gr_lease_used(const gr_lease *lease, uint64_t tokens, double ms) {
    const gr_version *v = lease->version;
    if (v) {
        gr_tell(lease->loader, v->slot->key, (gr_event){.kind = GR_EVENT_USED, .tokens = tokens, .ms = ms}, &v->loaded, NULL);
    }
}

bool gr_lease_hit(const gr_lease *lease) {
    return lease->hit;
}

const gr_loaded *gr_lease_loaded(const gr_lease *lease) {
    return lease->version ? &lease->version->loaded : NULL;
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
