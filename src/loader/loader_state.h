/*
 * What the loader consists of, for the files in this folder.
 *
 *     lease.c    who asks: hits, waiting, giving back           (callers' threads)
 *     flight.c   one loading of a name, from path to resident   (loader threads)
 *     clerk.c    freeing what others gave up, deadlines, measured memory   (one thread)
 *     loader.c   birth and end, unload, pin, looking
 */
#ifndef GR_LOADER_STATE_H
#define GR_LOADER_STATE_H

#include "loader/loader.h"
#include "loader/table.h"

#include <stdatomic.h>

#define GR_LOADER_THREADS 8 /* at most */
#define GR_KEY_SIZE (2 * GR_NAME_MAX + 2)

struct gr_lease {
    gr_loader *loader;
    gr_version *version; /* NULL: the base */
    bool hit;
    graft_error why;     /* the base: why */
};

struct gr_loader {
    gr_loader_options o;
    gr_mutex mutex; /* rank LOADER: everything below. Held for a few pointers' worth of work; README.md says what never
                       happens under it */
    gr_table table;
    gr_version *queue_first, *queue_last;   /* flights to work on */
    gr_version *parked_first;               /* flights that wait for room, oldest first */
    uint64_t n_paused;                      /* flights that wait for their next attempt */
    atomic_uint_fast64_t pin_events;        /* how often gr_loader_pin was called; read without the mutex */
    gr_version *dead;                     /* what the clerk is to free, linked by queue_next */
    gr_cond work;                         /* the queue is not empty, or stop */
    gr_cond landed;                       /* a slot is no longer `landing` */
    gr_cond clerk;                        /* `dead`, a new deadline or pause, or stop */
    bool stop;
    uint64_t random;
    int64_t failed_at, busy_at; /* the newest; 0 = never */
    int failed_code;
    int n_threads;
    bool clerk_runs;
    pthread_t threads[GR_LOADER_THREADS], clerk_thread;
};

/* ---- with the mutex held ---- */

/* Puts a flight at the end of the queue; not any more once the loader stops, since gr_loader_stop ends all flights. */
void gr_flight_enqueue(gr_loader *l, gr_version *v);
/* Puts those into the queue whose pause is over; *next: when the next one's is, if that is sooner. */
void gr_flight_unpause(gr_loader *l, int64_t now, int64_t *next);
/* Memory came back or a lease ended: parked flights may try again. */
void gr_flight_unpark(gr_loader *l);
/* A waiter left. A parked flight that nobody is patient for any more goes into the queue, to end there. */
void gr_flight_left(gr_loader *l, gr_version *v);
void gr_waiter_unlink(gr_version *v, gr_waiter *w);
/* A failure as the asker sees it: an error, or the base with the reason. True if `lease` became the base's. */
bool gr_falls_back(gr_loader *l, graft_fallback fallback, gr_lease *lease, const graft_error *err);
/* Why a waiter whose time is up did not get its adapter. */
void gr_late(const gr_version *v, graft_error *err);

/* ---- without it ---- */

/* Gives back the memory of dead versions, then lets the table forget them. */
void gr_bury(gr_loader *l, gr_version *dead);
/* Calls back those who waited without blocking (a list by `next`), and frees what they waited with. */
void gr_call_back(gr_waiter *waiters);
/* A key's two names. */
void gr_split_key(char project[GR_NAME_MAX + 1], char adapter[GR_NAME_MAX + 1], const char *key);
/* Tells the catalogue that something happened to a name: `event`, completed by the names, by what is loaded (NULL: nothing) and
 * by the error (NULL: none). */
void gr_tell(gr_loader *l, const char *key, gr_event event, const gr_loaded *loaded, const graft_error *err);
/* The usual form of it. */
void gr_record(gr_loader *l, gr_event_kind kind, const char *key, uint64_t revision, const gr_loaded *loaded, double ms,
               const graft_error *err);
/* The same for versions that were evicted, a list by queue_next, and the log. */
void gr_say_evicted(gr_loader *l, const gr_version *evicted);
void gr_record_fallback(gr_loader *l, const char *key, const graft_error *why);
/* A log line about a name. */
void gr_loader_say(gr_loader *l, graft_log_level level, const char *key, const char *generation, int code,
                   const char *format, ...) GR_PRINTF(6, 7);
/* Ends a flight that failed. */
void gr_flight_failed(gr_loader *l, gr_version *v, const graft_error *err);

void *gr_loader_thread(void *loader);
void *gr_clerk_thread(void *loader);

#endif
