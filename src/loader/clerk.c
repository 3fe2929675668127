/*
 * The clerk: one thread for what must not wait behind a load. It frees versions that were given up on threads which must not
 * stop for that, tells those whose time is up, sends flights whose pause is over on their way, looks whether graft's own memory
 * has made room for those that wait for some, and measures the process: what the system says it takes counts, whatever the
 * budget believes.
 */
#include "loader_state.h"

#include "base/clock.h"

#include <inttypes.h>

#define MEASURE_US 1000000 /* between two looks at the process, while adapters are in memory */
#define OWN_US 50000 /* between two looks at graft's own memory, while flights wait for room: nobody tells when it falls */

/* Those whose callbacks are due because their time is up, off their flights; *next: when the next one's is, 0 = never. The
 * mutex is held. Blocked callers look after themselves. */
static gr_waiter *take_late(gr_loader *l, int64_t now, int64_t *next) {
    gr_waiter *late = NULL;
    *next = 0;
    for (gr_version *v = l->table.versions; v; v = v->next) {
        bool left = false;
        for (gr_waiter *w = v->waiters, *following; w; w = following) {
            following = w->next;
            if (!w->done || w->deadline_us == 0) {
                continue;
            }
            if (w->deadline_us > now) {
                *next = *next == 0 || w->deadline_us < *next ? w->deadline_us : *next;
                continue;
            }
            gr_waiter_unlink(v, w);
            gr_late(v, &w->error);
            if (gr_falls_back(l, w->fallback, w->lease, &w->error)) {
                w->error.code = 0;
            }
            w->next = late;
            late = w;
            left = true;
        }
        if (left) {
            gr_flight_left(l, v);
        }
    }
    return late;
}

/* The process takes more than the limit: one adapter goes, and the next look says whether that was enough. */
static void measure(gr_loader *l) {
    uint64_t process = l->o.backend.process(l->o.backend.self);
    uint64_t limit = l->o.memory_limit;
    if (process > limit) {
        uint64_t freed = gr_loader_relieve(l, 1);
        if (freed > 0) {
            gr_log_line(l->o.log, GRAFT_LOG_WARN,
                        "the process takes %" PRIu64 " bytes, the limit is %" PRIu64 ": freed %" PRIu64, process, limit,
                        freed);
        }
    }
}

/* Flights that found no room try again if graft itself takes less than when the last one looked. The mutex is held, but not while
 * measuring. */
static void measure_own(gr_loader *l) {
    gr_mutex_unlock(&l->mutex);
    uint64_t own = l->o.backend.own(l->o.backend.self);
    gr_mutex_lock(&l->mutex);
    if (own < l->table.budget.own) {
        gr_flight_unpark(l);
    }
}

void *gr_clerk_thread(void *arg) {
    gr_loader *l = arg;
    int64_t measure_at = 0, own_at = 0;
    gr_mutex_lock(&l->mutex);
    while (!l->stop) {
        int64_t now = gr_now_us(), next = 0;
        gr_version *dead = l->dead;
        l->dead = NULL;
        gr_waiter *late = take_late(l, now, &next);
        gr_flight_unpause(l, now, &next);
        bool measures = l->o.backend.process && l->table.n_resident > 0;
        bool due = measures && now >= measure_at;
        if (dead || late || due) {
            gr_mutex_unlock(&l->mutex);
            gr_bury(l, dead);
            gr_call_back(late);
            if (due) {
                measure(l);
                measure_at = now + MEASURE_US;
            }
            gr_mutex_lock(&l->mutex);
            continue;
        }
        bool waits = l->o.backend.own && l->parked_first;
        if (waits && now >= own_at) {
            measure_own(l);
            own_at = now + OWN_US;
            continue;
        }
        if (waits && (next == 0 || own_at < next)) {
            next = own_at;
        }
        if (measures && (next == 0 || measure_at < next)) {
            next = measure_at;
        }
        if (next) {
            gr_cond_wait_until(&l->clerk, &l->mutex, next);
        } else {
            gr_cond_wait(&l->clerk, &l->mutex);
        }
    }
    gr_mutex_unlock(&l->mutex);
    return NULL;
}
