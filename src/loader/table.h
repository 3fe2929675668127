/*
 * Names and versions: the loader's state and its only transitions. Called with the loader's mutex held; no I/O,
 * no freeing of adapters, no callbacks.
 *
 * A slot is a name (project/adapter) that was asked for at least once. A version is one loading of that name:
 *
 *      absent ──begin──► loading ──ready──► resident ──detach──► draining ──► gone
 *                            └────fail────► failed
 *
 * A slot reaches at most one resident version and one flight (the newest loading one). Versions are numbered by
 * `serial`: of two that become ready, the later begun wins the slot, whichever finishes first.
 */
#ifndef GR_TABLE_H
#define GR_TABLE_H

#include "base/memory.h"
#include "base/thread.h"
#include "loader/budget.h"
#include "loader/loader.h"

/* uthash allocates its buckets; a failure must come back to us (hh.tbl is NULL then) instead of ending the process. */
#define HASH_NONFATAL_OOM 1
#define uthash_malloc(size) gr_alloc(size)
#define uthash_free(block, size) gr_free(block)
#include <uthash.h>

typedef enum gr_state { GR_ABSENT, GR_LOADING, GR_RESIDENT, GR_DRAINING, GR_FAILED } gr_state;

const char *gr_state_name(gr_state s);

/* The version that a policy's entry is part of. */
#define GR_VERSION_OF(entry) ((gr_version *)(void *)((char *)(entry) - offsetof(gr_version, policy)))

typedef struct gr_version gr_version;

typedef struct gr_slot {
    UT_hash_handle hh;
    gr_version *resident, *flight;
    struct gr_failure *failure;    /* the last one, or NULL */
    bool pinned;
    bool landing;                  /* the catalogue is being told of a load that will be resident */
    uint64_t hits;
    char key[];                    /* "project/adapter" */
} gr_slot;

/* A failure is remembered for an unchanged file, so that a storm of requests does not read a bad file each time. */
typedef struct gr_failure {
    graft_error error;
    gr_file_identity identity;
    uint64_t revision;    /* of the catalogue's entry: what is wrong with one may be right for the next */
    int64_t until;
} gr_failure;

/* Somebody who waits for a flight. Resolved exactly once, under the mutex, by taking it off the list. */
typedef struct gr_waiter {
    struct gr_waiter *prev, *next;
    const gr_slot *slot;
    gr_lease *lease;      /* made beforehand, so that a load that succeeds cannot fail to be handed over */
    gr_lease_fn done;     /* NULL: a blocked caller, woken through `cond` */
    void *user;
    gr_cond *cond;
    bool resolved;
    graft_fallback fallback;
    int64_t deadline_us;  /* willing to wait until then; 0 = as long as loading takes, but not for room */
    int64_t since_us;
    graft_error error;
} gr_waiter;

struct gr_version {
    gr_version *prev, *next;   /* all versions that are not gone */
    gr_slot *slot;
    gr_state state;
    uint64_t serial, revision;
    uint32_t leases;
    char *path;                /* LOADING: NULL until the catalogue was asked */
    char expected[65];         /* generation the catalogue has; "" = any (first load, or a reload) */
    gr_file_identity identity; /* before anything was read, for the negative cache */
    bool reload;               /* LOADING: whatever was known before does not count */
    bool remembered;           /* LOADING: fails as it did before, with the same file */
    gr_loaded loaded;          /* RESIDENT, DRAINING */
    uint64_t wanted_bytes;     /* LOADING: what prepare announced */
    uint64_t reserved;         /* LOADING */
    int attempts;              /* LOADING: that failed */
    graft_error last_error;    /* LOADING: of the last of them */
    int64_t retry_at;          /* LOADING: paused until then; 0 = not paused */
    int64_t short_since;       /* LOADING: since when it finds no room; 0 = it does not lack any */
    int64_t busy_since;        /* LOADING: since when the backend works on it; 0 = it does not */
    bool temporary;            /* only temporary leases ever asked for it: unloaded with the last of them */
    bool given_up;             /* DRAINING: because of that */
    bool unwanted;             /* LOADING: unloaded meanwhile; goes to its waiters only */
    bool announced;            /* LOADING: gr_policy_miss was called */
    bool parked;               /* LOADING: waits for room, among the parked */
    bool no_room;              /* LOADING: found none when last it looked */
    void *job;                 /* LOADING: the backend's, once prepared */
    gr_waiter *waiters;
    gr_policy_entry policy;
    double load_ms;
    int64_t last_used;
    gr_version *queue_next;    /* in the loader's queue of flights, among the parked, or in a list of versions to free */
};

typedef struct gr_table {
    gr_slot *slots;            /* uthash by key */
    gr_version *versions;
    gr_policy *policy;
    gr_budget budget;
    int max_adapters;
    uint64_t next_serial;
    uint64_t n_resident, n_loading, n_draining, n_leases;
    uint64_t n_reserved;       /* of the loading ones: those that hold a reservation */
    uint64_t held_bytes;       /* of the resident ones: those that a lease or a pin holds */
    graft_metrics metrics;
} gr_table;

/* The slot of a name, made if need be; NULL if memory is out. */
gr_slot *gr_table_slot(gr_table *t, const char *project, const char *adapter);
/* Without making it. */
gr_slot *gr_table_find(gr_table *t, const char *project, const char *adapter);

/* absent -> loading. The new version is the slot's flight. NULL if memory is out. */
gr_version *gr_table_begin(gr_table *t, gr_slot *slot, uint64_t revision);

typedef enum gr_room { GR_ROOM_MADE, GR_ROOM_WAIT, GR_ROOM_NONE, GR_ROOM_NEVER } gr_room;

/*
 * Makes room for `bytes` and reserves them for a loading version. Evicts what nobody holds; the evicted go to *evicted
 * (linked by queue_next), draining: the caller frees them without the mutex and calls gr_table_freed.
 * Until they are freed their bytes count, so MADE may need a second call: it returns WAIT then.
 *   MADE   reserved
 *   WAIT   bytes are on their way back (draining, or loads under way): try again when something was freed or ended
 *   NONE   everything is held, or so much that evicting the rest would not be enough: nothing was evicted then
 *   NEVER  larger than the budget
 */
gr_room gr_table_make_room(gr_table *t, gr_version *v, uint64_t bytes, gr_version **evicted);

/* Whether evicting all that nobody holds would make `bytes` free. Else nothing need go. */
bool gr_table_eviction_helps(const gr_table *t, uint64_t bytes);
/* Gives back what a loading version has reserved. */
void gr_table_unreserve(gr_table *t, gr_version *v);
/* A loading version needs more than it has reserved: the rest, if it is free. */
bool gr_table_reserve_more(gr_table *t, gr_version *v, uint64_t bytes);

/* loading -> resident (or, if unwanted or overtaken, straight to draining). Each waiter gets a lease: counted here,
 * handed over by the caller. A version that is thereby replaced is detached. Versions without leases that are now draining
 * go to *dead. */
void gr_table_ready(gr_table *t, gr_version *v, const gr_loaded *loaded, double load_ms, int64_t now, gr_version **dead);
/* loading -> failed -> gone. The waiters must have been taken off. The version is freed. */
void gr_table_fail(gr_table *t, gr_version *v, const graft_error *err, int64_t remember_until);

/* resident -> draining: the name no longer reaches it. Goes to *dead if nobody holds it. */
void gr_table_detach(gr_table *t, gr_version *v, gr_version **dead);
/* The same for a version that the policy has just given up as a victim (nobody holds it, it is out of the queues). */
void gr_table_evicted(gr_table *t, gr_version *v, gr_version **dead);
/* One lease more on a resident or just loaded version; one less (dead: it was the last on a draining one). */
void gr_table_hold(gr_table *t, gr_version *v, int64_t now);
void gr_table_unhold(gr_table *t, gr_version *v, int64_t now, gr_version **dead);
void gr_table_pin(gr_table *t, gr_slot *slot, bool pinned);

/* The memory of a dead version was given back: draining -> gone. Frees the version. */
void gr_table_freed(gr_table *t, gr_version *v);

void gr_table_finish(gr_table *t);
/* Every invariant. */
bool gr_table_check(const gr_table *t);

#endif
