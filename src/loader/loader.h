/*
 * The dynamic loader: names in, leases out. README.md in this folder has the lease laws.
 *
 * One mutex guards all of it (rank LOADER). It is never held across the catalogue, file I/O, loading, freeing or a
 * callback. Loads run on the loader's own threads, so whoever asked first can leave without harm to the others.
 */
#ifndef GR_LOADER_H
#define GR_LOADER_H

#include "base/log.h"
#include "loader/catalog.h"
#include "loader/metrics.h"
#include "loader/policy.h"

typedef struct gr_loader gr_loader;
typedef struct gr_lease gr_lease;

/* What a loaded adapter says of itself. */
typedef struct gr_loaded {
    void *adapter;         /* the backend's object */
    uint64_t bytes;
    char generation[65];
    const char *format;    /* static */
    int rank;
    bool no_effect;        /* the probe saw no difference from the base */
    double cost_ms;        /* what loading it again would take, for the policy; 0 = as long as this took */
} gr_loaded;

/* What makes a file identifiable without reading it. */
typedef struct gr_file_identity {
    uint64_t device, inode, size;
    int64_t mtime_ns, ctime_ns;
} gr_file_identity;

/* How adapters are really sized, loaded and freed; a fake in tests. Called without locks, on loader threads; `free` also
 * on threads that unload, and on the clerk. */
typedef struct gr_backend {
    /* Cheap: stat. Fails where the files are not there. */
    int (*identify)(void *self, const char *path, gr_file_identity *out, graft_error *err);
    /* Opens, verifies, and says how many bytes loading will take at most. *job is for load or abandon. */
    int (*prepare)(void *self, const char *path, void **job, uint64_t *bytes, graft_error *err);
    /* Ends the job in any case. */
    int (*load)(void *self, void *job, gr_loaded *out, graft_error *err);
    void (*abandon)(void *self, void *job);
    void (*free)(void *self, void *adapter);
    /* Measured bytes: of graft's own memory that is no adapter, and of the whole process. Cheap. Each may be NULL. */
    uint64_t (*own)(void *self);
    uint64_t (*process)(void *self);
    void *self;
} gr_backend;

typedef struct gr_loader_options {
    gr_catalog catalog;
    gr_backend backend;
    graft_policy policy;
    int max_adapters;            /* resident at once; 0 = bounded by bytes only */
    uint64_t memory_limit;       /* bytes for everything, already clamped */
    uint64_t fixed_bytes;        /* base weights, KV, buffers */
    int threads;                 /* loader threads, 1 to 8; 0 = 2 */
    int retry_attempts;          /* 3: tries in all, only for errors that may pass */
    int64_t retry_base_us;       /* first pause; doubles, with jitter (50 ms) */
    int64_t failure_ttl_us;      /* how long a failure is remembered for an unchanged file (10 s) */
    uint64_t seed;               /* of the jitter */
    const gr_log *log;
} gr_loader_options;

/* Errors: OUT_OF_MEMORY, BUDGET_EXHAUSTED (fixed_bytes alone exceed the limit: with the numbers). */
int gr_loader_create(gr_loader **out, const gr_loader_options *options, graft_error *err);
/* Waiters end with SHUTTING_DOWN, no load is under way when it returns, and none begins. Leases stay good. */
void gr_loader_stop(gr_loader *l);
/* Stops; all leases must have been released. */
void gr_loader_free(gr_loader *l);

typedef struct gr_lease_request {
    const char *project;
    const char *adapter;   /* NULL = "default" */
    bool temporary;        /* unload on release if this lease had to load it */
    bool reload;           /* load anew even if resident; never joins an older flight */
    graft_fallback fallback; /* BASE or ERROR; for registered adapters only: an unknown name is always an error */
    int64_t deadline_us;   /* on gr_now_us's clock; 0 = as long as loading takes, and no waiting for room */
} gr_lease_request;

/* Whether the catalogue knows the name. Errors: NOT_FOUND, BAD_NAME, OUT_OF_MEMORY. */
int gr_loader_knows(gr_loader *l, const char *project, const char *adapter, graft_error *err);

/*
 * The adapter of a name, held: it stays in memory until gr_lease_release, whatever happens to the name.
 * Waits for a load if need be. Errors: NOT_FOUND, BUSY (all residents are leased, and the deadline passed), DEADLINE (still
 * loading), LARGER_THAN_BUDGET, SHUTTING_DOWN, and, without fallback, whatever loading failed with.
 */
int gr_loader_lease(gr_lease **out, gr_loader *l, const gr_lease_request *request, graft_error *err);

/* Called once, on any thread, without locks. `lease` is the callee's (NULL on failure, see err). */
typedef void (*gr_lease_fn)(gr_lease *lease, const graft_error *err, void *user);
/* The asynchronous form: returns at once, without touching a file or waiting; a hit calls back before it returns. */
void gr_loader_lease_async(gr_loader *l, const gr_lease_request *request, gr_lease_fn done, void *user);

void gr_lease_release(gr_lease *lease);
/* As release, but if that was the last lease on a version to be freed, another thread frees it: for the decode thread, which
 * must not stop for it, and whose help freeing may need. */
void gr_lease_release_later(gr_lease *lease);
/* A lease more on what `lease` holds. NULL if memory is out. */
gr_lease *gr_lease_copy(const gr_lease *lease);
/* For the history: a request used the lease. */
void gr_lease_used(const gr_lease *lease, uint64_t tokens, double ms);

/* Borrowed from the lease. */
bool gr_lease_hit(const gr_lease *lease);                    /* it was resident when asked for */
const gr_loaded *gr_lease_loaded(const gr_lease *lease);     /* NULL = the base */
void *gr_lease_adapter(const gr_lease *lease);            /* NULL = the base, by fallback */
const char *gr_lease_generation(const gr_lease *lease);   /* "" for the base */
const graft_error *gr_lease_fallback(const gr_lease *lease); /* why the base; code 0 if it is not */

/* Unreachable at once; freed at the last release. *freed: bytes given back now, *pending: when leases end.
 * Errors: NOT_FOUND (not resident). */
int gr_loader_unload(gr_loader *l, const char *project, const char *adapter, uint64_t *freed, uint64_t *pending,
                     graft_error *err);
/* A pinned adapter is never evicted. One that is loading is pinned when it is resident. Errors: NOT_FOUND (neither). */
int gr_loader_pin(gr_loader *l, const char *project, const char *adapter, bool pinned, graft_error *err);
/* Bytes that no name reaches (an adapter opened by path) join the fixed ones; named adapters are evicted for them if need
 * be. Errors: BUDGET_EXHAUSTED. */
int gr_loader_charge(gr_loader *l, uint64_t bytes, graft_error *err);
void gr_loader_discharge(gr_loader *l, uint64_t bytes);
/* The measured process is over its limit: evicts what nobody holds until `bytes` came free. Returns bytes freed. */
uint64_t gr_loader_relieve(gr_loader *l, uint64_t bytes);

typedef struct gr_loaded_info {
    char project[GR_NAME_MAX + 1], adapter[GR_NAME_MAX + 1];
    char generation[65];
    const char *state;       /* "loading", "resident", "draining" */
    uint64_t bytes;
    uint32_t leases;
    bool pinned, no_effect;
    double load_ms;
    int64_t idle_us;         /* since the last release or hit */
    uint64_t hits;
} gr_loaded_info;

/* A snapshot, for gr_free. */
int gr_loader_list(gr_loader *l, gr_loaded_info **out, size_t *n, graft_error *err);
/* Counters and gauges; cheap. */
void gr_loader_metrics(gr_loader *l, graft_metrics *out);
/* The newest troubles. -1 = there were none. */
typedef struct gr_recent {
    int64_t failed_us_ago, busy_us_ago;
    int64_t working_us; /* how long the longest piece of work on a load has taken so far; 0 = none is under way */
    int failed_code;
} gr_recent;

void gr_loader_recent(gr_loader *l, gr_recent *out);
/* How long somebody has waited for room, because what is in memory is in use; 0 = nobody does. */
int64_t gr_loader_starved_us(gr_loader *l);
/* Walks every invariant. For tests; takes the mutex. */
bool gr_loader_check(gr_loader *l);

#endif
