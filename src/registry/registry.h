/*
 * The registry: which adapters there are, by name, and what happened to them. graft.h's section of the same name says what
 * each function does; src/api_registry.c checks arguments and calls these. `gr_registry` is `graft_registry`.
 *
 *     names.c     what a name may be               index.c    the registry in memory, which answers
 *     lock.c      one writer per file              store.c    the file: SQLite
 *     examine.c   an adapter's files               load.c     file -> memory, at opening
 *     scan.c      a folder of adapters             writer.c   the thread that owns the file
 *     put.c       the changes                      history.c  events -> counters, log
 *     list.c      snapshots for callers            watch.c    telling the loader of changes
 *     registry.c  opening, closing, the catalog    backup.c   the copy beside the file, and going back to it
 *     keys.c      who may ask a server
 */
#ifndef GR_REGISTRY_H
#define GR_REGISTRY_H

#include "graft.h"
#include "loader/catalog.h"

typedef graft_registry gr_registry;

/* `options` as graft_registry_open checked them. */
int gr_registry_open(gr_registry **out, const graft_registry_options *options, graft_error *err);
void gr_registry_close(gr_registry *r);

/* What the loader asks. Borrowed: the registry must outlive it. */
gr_catalog gr_registry_catalog(gr_registry *r);

/* From now on LOADED events are noted as being on the base with this fingerprint (gr_base_model's). Errors: OUT_OF_MEMORY. */
int gr_registry_set_base(gr_registry *r, const uint8_t fingerprint[32], graft_error *err);

/* Writes the history down now. Errors: as a change's. */
int gr_registry_flush(gr_registry *r, graft_error *err);

/*
 * Watching: for the loader, which holds versions of what the registry names. A new name is no change to it. A reload or a
 * replacement that found the same path and content is none either. Renaming or removing a project tells REMOVED for each of
 * its adapters, under the old name.
 */
typedef enum gr_registry_change {
    GR_REGISTRY_REMOVED,
    GR_REGISTRY_CHANGED,
    GR_REGISTRY_PINNED,
    GR_REGISTRY_UNPINNED
} gr_registry_change;

/*
 * Told after a change was committed and applied, on the thread that made it, with no lock held. Two threads' changes of one
 * name may be told in either order: ask the catalog how things stand. Must not call gr_registry_unwatch.
 */
typedef void (*gr_registry_watch_fn)(void *user, gr_registry_change change, const char *project, const char *adapter);

/* One watcher at a time. Errors: CONFLICT (there is one). */
int gr_registry_watch(gr_registry *r, gr_registry_watch_fn fn, void *user, graft_error *err);
/* When it returns, fn is not running and will not be called again. */
void gr_registry_unwatch(gr_registry *r);

/* Names are checked; the rest is the caller's to give rightly (no NULL but where graft.h allows it). */
int gr_registry_project_add(gr_registry *r, const char *project, graft_error *err);
int gr_registry_project_rename(gr_registry *r, const char *from, const char *to, graft_error *err);
int gr_registry_project_remove(gr_registry *r, const char *project, graft_error *err);
/* The folder that adapters must lie below, resolved; NULL = anywhere. Borrowed, never changes. */
const char *gr_registry_root(const gr_registry *r);
/* `below` (absolute, resolved): the files must lie below it, besides the registry's root. */
int gr_registry_adapter_add_below(gr_registry *r, const char *below, const char *project, const char *adapter, const char *path,
                                  unsigned flags, graft_error *err);
int gr_registry_adapter_add(gr_registry *r, const char *project, const char *adapter, const char *path, unsigned flags,
                            graft_error *err);
int gr_registry_adapter_remove(gr_registry *r, const char *project, const char *adapter, graft_error *err);
int gr_registry_adapter_pin(gr_registry *r, const char *project, const char *adapter, bool pinned, graft_error *err);
int gr_registry_adapter_reload(gr_registry *r, const char *project, const char *adapter, bool *changed, graft_error *err);

int gr_registry_adapter_list(graft_registered_list **out, gr_registry *r, const char *project, const char *adapter,
                             graft_error *err);
int gr_registry_project_list(graft_project_list **out, gr_registry *r, const char *project, graft_error *err);
int gr_registry_event_list(graft_event_list **out, gr_registry *r, const char *project, const char *adapter, size_t most,
                           graft_error *err);

/* The limits of graft.h, smaller in tests. */
typedef struct gr_scan_limits {
    size_t entries;
    int depth;
} gr_scan_limits;

int gr_registry_scan(gr_registry *r, const char *path, const gr_scan_limits *limits, graft_scan_fn fn, void *user,
                     graft_scan_summary *out, graft_error *err);

/* keys.c */
int gr_registry_key_add(char secret[GRAFT_KEY_SIZE], gr_registry *r, const char *name, const char *const *projects,
                        size_t n_projects, graft_error *err);
int gr_registry_key_remove(gr_registry *r, const char *name, graft_error *err);
int gr_registry_key_list(graft_key_list **out, gr_registry *r, const char *name, graft_error *err);
int gr_registry_key_find(graft_key_list **out, gr_registry *r, const char *secret, graft_error *err);
size_t gr_registry_key_count(gr_registry *r);

int gr_registry_examine(graft_registry_condition *out, const graft_registry_options *options, graft_error *err);
int gr_registry_recover(graft_registry_condition *out, const graft_registry_options *options, graft_error *err);

/* Memory against the file, and the index's own invariants. For tests. */
bool gr_registry_check(gr_registry *r);

#endif
