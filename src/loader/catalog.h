/*
 * Where the loader asks what a name stands for. Implemented by src/registry; tests have their own.
 * Called without any loader lock held; must answer from memory (no I/O, no SQLite) and from any thread.
 */
#ifndef GR_CATALOG_H
#define GR_CATALOG_H

#include "base/error.h"

#include <stdbool.h>
#include <stdint.h>

#define GR_NAME_MAX 128 /* project and adapter names: [A-Za-z0-9._-]{1,128}, not "." or ".." */
#define GR_DEFAULT_ADAPTER "default"

struct gr_event;

typedef struct gr_catalog_entry {
    char project[GR_NAME_MAX + 1];
    char adapter[GR_NAME_MAX + 1];
    char *path;            /* only if asked for; owned by whoever asked: gr_free */
    char generation[65];   /* hex SHA-256 registered for the name, or "" if not known yet */
    uint64_t revision;     /* changes whenever the name points at something else */
    bool pinned;
} gr_catalog_entry;

typedef struct gr_catalog {
    /* Errors: NOT_FOUND (unknown project or adapter, says which), BAD_NAME (what cannot be a name), OUT_OF_MEMORY.
     * `adapter` is never NULL. */
    int (*find)(void *self, const char *project, const char *adapter, bool with_path, gr_catalog_entry *out,
                graft_error *err);
    /* History, best effort, never blocks: what happened to a name. May be NULL. */
    void (*record)(void *self, const struct gr_event *event);
    void *self;
} gr_catalog;

/* One thing that happened, for history and logs. Strings are valid during the call only. */
typedef enum gr_event_kind {
    GR_EVENT_LOADED,
    GR_EVENT_FAILED,
    GR_EVENT_EVICTED,
    GR_EVENT_UNLOADED,
    GR_EVENT_FALLBACK,
    GR_EVENT_USED
} gr_event_kind;

typedef struct gr_event {
    gr_event_kind kind;
    const char *project, *adapter, *generation;
    int code;           /* FAILED, FALLBACK */
    const char *message;
    uint64_t bytes;
    double ms;          /* LOADED: the load; USED: the lease */
    uint64_t tokens;    /* USED */
    const char *format; /* LOADED */
    int rank;           /* LOADED */
    bool stale;         /* LOADED: the generation is none that the name should have from now on */
    uint64_t revision;  /* LOADED, FAILED: the catalogue entry's that was loaded; 0 = not known */
} gr_event;

#endif
