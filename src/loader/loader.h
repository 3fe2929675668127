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
} gr_loaded;

/* What makes a file identifiable without reading it. */
typedef struct gr_file_identity {
    uint64_t device, inode, size;
    int64_t mtime_ns, ctime_ns;
} gr_file_identity;

/* How adapters are really sized, loaded and freed; a fake in tests. Called without locks, on loader threads
 * (identify: on the caller's). */
typedef struct gr_backend {
    /* Cheap: stat. Fails where the files are not there. */
    int (*identify)(void *self, const char *path, gr_file_identity *out, graft_error *err);
    /* Opens, verifies, and says how many bytes loading will take at most. *job is for load or abandon. */
    int (*prepare)(void *self, const char *path, void **job, uint64_t *bytes, graft_error *err);
    /* Ends the job in any case. */
    int (*load)(void *self, void *job, gr_loaded *out, graft_error *err);
    void (*abandon)(void *self, void *job);
    void (*free)(void *self, void *adapter);
    void *self;
} gr_backend;

typedef struct gr_loader_options {
    gr_catalog catalog;
    gr_backend backend;
    gr_policy_kind policy;
    int max_adapters;            /* resident at once; 0 = bounded by bytes only */
    uint64_t memory_limit;       /* bytes for everything, already clamped */
    uint64_t fixed_bytes;        /* base weights, KV, buffers */
    int threads;                 /* loader threads (2) */
    int retry_attempts;          /* 3: tries in all, only for errors that may pass */
    int64_t retry_base_us;       /* first pause; doubles, with jitter (50 ms) */
    int64_t failure_ttl_us;      /* how long a failure is remembered for an unchanged file (10 s) */
    uint64_t seed;               /* of the jitter */
    const gr_log *log;
} gr_loader_options;

/* Errors: OUT_OF_MEMORY, BUDGET_EXHAUSTED (fixed_bytes alone exceed the limit: with the numbers). */
int gr_loader_create(gr_loader **out, const gr_loader_options *options, graft_error *err);
/* Waiters end with SHUTTING_DOWN; all leases must have been released. */
void gr_loader_free(gr_loader *l);

typedef enum gr_fallback { GR_FALLBACK_ERROR, GR_FALLBACK_BASE } gr_fallback;

typedef struct gr_lease_request {
    const char *project;
    const char *adapter;   /* NULL = "default" */
    bool temporary;        /* unload on release if this lease had to load it */
    bool reload;           /* load anew even if resident; never joins an older flight */
    gr_fallback fallback;  /* for registered adapters only: an unknown name is always an error */
    int64_t deadline_us;   /* on gr_now_us's clock; 0 = none */
} gr_lease_request;

/*
 * The adapter of a name, held: it stays in memory until gr_lease_release, whatever happens to the name.
 * Waits for a load if need be. Errors: NOT_FOUND, BUSY (all residents are leased; deadline passed),
 * LARGER_THAN_BUDGET, SHUTTING_DOWN, and, without fallback, whatever loading failed with.
 */
int gr_loader_lease(gr_lease **out, gr_loader *l, const gr_lease_request *request, graft_error *err);

/* Called once, on any thread, without locks. `lease` is the callee's (NULL on failure, see err). */
typedef void (*gr_lease_fn)(gr_lease *lease, const graft_error *err, void *user);
/* The asynchronous form: returns at once; a hit calls back before it returns. */
void gr_loader_lease_async(gr_loader *l, const gr_lease_request *request, gr_lease_fn done, void *user);

void gr_lease_release(gr_lease *lease);

/* Borrowed from the lease. */
void *gr_lease_adapter(const gr_lease *lease);            /* NULL = the base, by fallback */
const char *gr_lease_generation(const gr_lease *lease);   /* "" for the base */
const graft_error *gr_lease_fallback(const gr_lease *lease); /* why the base; code 0 if it is not */

/* Unreachable at once; freed at the last release. *freed: bytes given back now, *pending: when leases end.
 * Errors: NOT_FOUND (not resident). */
int gr_loader_unload(gr_loader *l, const char *project, const char *adapter, uint64_t *freed, uint64_t *pending,
                     graft_error *err);
/* A pinned adapter is never evicted. Errors: NOT_FOUND (not resident). */
int gr_loader_pin(gr_loader *l, const char *project, const char *adapter, bool pinned, graft_error *err);
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
void gr_loader_metrics(gr_loader *l, gr_loader_metrics_snapshot *out);
/* Walks every invariant. For tests; takes the mutex. */
bool gr_loader_check(gr_loader *l);

#endif
