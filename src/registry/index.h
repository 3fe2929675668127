/*
 * The registry in memory: what requests are answered from. Projects sorted by name, each with its adapters sorted by
 * name, so that a find is two binary searches, a list needs no sorting, and renaming a project touches no adapter.
 *
 * Who may do what. Only the writer thread (writer.h) changes which projects and rows there are, and it does so with the
 * mutex held; so it may read them without. Every other thread holds the mutex. The fields marked (m) are also written by
 * whoever reports an event: the writer thread too needs the mutex for those.
 */
#ifndef GR_INDEX_H
#define GR_INDEX_H

#include "base/thread.h"
#include "loader/catalog.h"

typedef struct gr_project gr_project;

/* One adapter. A registry of 10,000 has as many of these: fields that are mostly empty are behind pointers. */
typedef struct gr_row {
    gr_project *project;
    struct gr_row *dirty_next;      /* (m) in the index's list of rows whose (m) fields are newer than the file */
    int64_t id;                     /* adapters.id */
    uint64_t revision;              /* handed out anew whenever the name points at something else; never twice */
    char *path;
    char *error;                    /* (m) NULL = none */
    const char *base;               /* (m) interned in the index; "" = none */
    graft_history *history;         /* (m) NULL = nothing happened yet */
    uint64_t file_bytes, bytes;     /* (m) */
    int64_t created, changed;       /* (m) */
    int32_t rank;                   /* (m) */
    int32_t error_code;             /* (m) */
    uint8_t state;                  /* (m) graft_registered_state */
    uint8_t format;                 /* (m) gr_format_name */
    bool pinned, dirty;             /* dirty: (m) */
    bool has_generation;            /* (m) */
    uint8_t generation[32];         /* (m) */
    char name[];
} gr_row;

struct gr_project {
    int64_t id; /* projects.id */
    char *name;
    int64_t created, changed;
    gr_row **rows;
    size_t n, capacity;
};

/* A base's fingerprint, kept once for all rows that name it, and until the index ends. */
typedef struct gr_base_name {
    struct gr_base_name *next;
    char hex[65];
} gr_base_name;

typedef struct gr_index {
    gr_mutex mutex; /* rank REGISTRY. Never held across SQLite or a file */
    gr_project **projects;
    size_t n, capacity;
    size_t n_rows;
    gr_row *dirty;
    gr_base_name *bases;
    uint64_t next_revision;
} gr_index;

void gr_index_init(gr_index *x);
void gr_index_finish(gr_index *x);

/* "", "peft", "gguf" for 0 to 2; and back (0 for anything else). Static storage. */
const char *gr_format_name(int format);
int gr_format_of(const char *name);
/* graft_registered_state by its name; false for others. */
bool gr_state_of(graft_registered_state *out, const char *name);

/* The project or adapter of that name, or NULL. */
gr_project *gr_index_project(const gr_index *x, const char *name);
gr_row *gr_index_row(const gr_project *p, const char *name);

/* Unlinked objects; NULL if memory is out. */
gr_project *gr_project_new(const char *name);
gr_row *gr_row_new(const char *name, const char *path);
/* NULL is fine. A project's rows go with it. */
void gr_project_free(gr_project *p);
void gr_row_free(gr_row *r);

/* Make sure that so many more projects, or one more row, fit; false if memory is out. Writer thread, mutex NOT held:
 * growing copies outside it. */
bool gr_index_reserve(gr_index *x, size_t more);
bool gr_project_reserve(gr_index *x, gr_project *p);

/* These cannot fail; mutex held. Insert: room was reserved. */
void gr_index_insert_project(gr_index *x, gr_project *p);
void gr_index_insert_row(gr_index *x, gr_project *p, gr_row *row);
/* Take out, for the caller to free once the mutex is released. */
void gr_index_take_project(gr_index *x, gr_project *p);
void gr_index_take_row(gr_index *x, gr_row *row);
/* Gives the project `name` (taken over) and its new place; returns the old name. */
char *gr_index_rename(gr_index *x, gr_project *p, char *name);

/* Mutex held. Puts the row on the dirty list. */
void gr_index_mark(gr_index *x, gr_row *row);
/* Mutex held. NULL if memory is out. */
const char *gr_index_base(gr_index *x, const char *hex);

/* Every invariant: order, counts, back pointers, the dirty list. For tests; takes the mutex. */
bool gr_index_check(gr_index *x);

#endif
