/* How the loader really sizes, loads, probes and frees adapters, and what it hears from the registry. */
#include "api.h"

#include "base/clock.h"
#include "base/memory.h"
#include "loader/budget.h"
#include "lora/grouped.h"
#include "model/source.h"
#include "registry/registry.h"

#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

/* ---- files ---------------------------------------------------------------------------------------------- */

static int64_t nanoseconds(struct timespec t) {
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

#if defined(__APPLE__)
#define MTIME(s) ((s)->st_mtimespec)
#define CTIME(s) ((s)->st_ctimespec)
#else
#define MTIME(s) ((s)->st_mtim)
#define CTIME(s) ((s)->st_ctim)
#endif

static int64_t later(int64_t a, int64_t b) {
    return a > b ? a : b;
}

/* Adds what `path` is to the identity; what is not there adds nothing. */
static bool add_identity(gr_file_identity *out, const char *path) {
    struct stat s;
    if (stat(path, &s) != 0) {
        return false;
    }
    out->device ^= (uint64_t)s.st_dev;
    out->inode = out->inode * 31 + (uint64_t)s.st_ino;
    out->size += (uint64_t)s.st_size;
    out->mtime_ns = later(out->mtime_ns, nanoseconds(MTIME(&s)));
    out->ctime_ns = later(out->ctime_ns, nanoseconds(CTIME(&s)));
    return true;
}

/* A folder is what its entries and its files are. */
static int identify(void *self, const char *path, gr_file_identity *out, graft_error *err) {
    (void)self;
    memset(out, 0, sizeof *out);
    if (!add_identity(out, path)) {
        return gr_fail(err, GRAFT_E_ADAPTER_FILE_MISSING, "no such file or folder");
    }
    size_t room = strlen(path) + 64;
    char *file = gr_alloc(room);
    if (!file) {
        return gr_fail_memory(err, room);
    }
    for (size_t i = 0; i < GR_SOURCE_FILES; i++) {
        snprintf(file, room, "%s/%s", path, gr_source_files[i]);
        add_identity(out, file);
    }
    gr_free(file);
    return 0;
}

/* ---- loading -------------------------------------------------------------------------------------------- */

/* Where adapters are applied grouped, libllama makes a copy of its own. */
static bool makes_twins(const graft *g) {
    return gr_engine_apply(g->engine) == GRAFT_APPLY_GROUPED;
}

uint64_t gr_api_most_bytes(const graft *g, const gr_opened *o) {
    uint64_t bytes = gr_opened_bytes(o);
    return makes_twins(g) ? bytes + gr_grouped_most(bytes, gr_opened_modules(o), g->adapter_type) : bytes;
}

uint64_t gr_api_bytes(const graft *g, const gr_adapter *a) {
    return makes_twins(g) ? a->bytes + gr_grouped_size(a) : a->bytes;
}

int gr_api_check_way(const graft *g, const gr_adapter *a, graft_error *err) {
    graft_error why;
    if (!makes_twins(g) || gr_grouped_check(a, &why) == 0) {
        return 0;
    }
    return gr_fail(err, why.code, "%s; apply is grouped: %s", why.message, gr_engine_apply_reason(g->engine));
}

static int prepare(void *self, const char *path, void **job, uint64_t *bytes, graft_error *err) {
    graft *g = self;
    gr_opened *o = NULL;
    gr_source_limits limits = {g->max_adapter_bytes, gr_registry_root(g->registry)};
    int rc = gr_opened_make(&o, g->base, path, g->adapter_type, limits, &g->log, err);
    if (!rc) {
        *bytes = gr_api_most_bytes(g, o);
        *job = o;
    }
    return rc;
}

static void abandon(void *self, void *job) {
    (void)self;
    gr_opened_free(job);
}

static void drop(void *self, void *adapter) {
    graft *g = self;
    gr_adapter *a = adapter;
    uint64_t bytes = a->bytes;
    gr_engine_drop(g->engine, a);
    atomic_fetch_sub(&g->named_bytes, bytes);
}

static int load(void *self, void *job, gr_loaded *out, graft_error *err) {
    graft *g = self;
    gr_adapter *a;
    bool no_effect = false;
    int rc = gr_opened_build(&a, job, err);
    if (rc) {
        return rc;
    }
    rc = gr_api_check_way(g, a, err);
    if (rc) {
        gr_adapter_release(a);
        return rc;
    }
    atomic_fetch_add(&g->named_bytes, a->bytes);
    if (g->probe && !a->no_effect) {
        rc = gr_probe_run(g->probe, a, &no_effect, err);
        if (rc) {
            drop(g, a);
            return rc;
        }
    }
    *out = (gr_loaded){
        .adapter = a,
        .bytes = gr_api_bytes(g, a),
        .format = a->format,
        .rank = a->rank_max,
        .no_effect = no_effect || a->no_effect,
        .cost_ms = a->load_ms, /* the probe's time is that of the requests beside it */
    };
    memcpy(out->generation, a->generation, sizeof out->generation);
    return 0;
}

/* ---- measuring ------------------------------------------------------------------------------------------ */

uint64_t gr_backend_own_bytes(const graft *g) {
    uint64_t all = gr_memory_bytes(), adapters = atomic_load(&g->named_bytes) + atomic_load(&g->path_bytes);
    return all > adapters ? all - adapters : 0;
}

static uint64_t own(void *self) {
    return gr_backend_own_bytes(self);
}

static uint64_t process(void *self) {
    (void)self;
    return gr_process_memory();
}

/* ---- the registry --------------------------------------------------------------------------------------- */

static int find_none(void *self, const char *project, const char *adapter, bool with_path, gr_catalog_entry *out,
                     graft_error *err) {
    (void)self, (void)project, (void)adapter, (void)with_path, (void)out;
    return gr_fail(err, GRAFT_E_BAD_REQUEST, "the instance was opened without a registry: no adapter has a name");
}

/* Two threads' changes may be told in either order: so what is done is what the registry says now, one after the other. */
static void follow_pin(graft *g, const char *project, const char *adapter) {
    gr_catalog catalog = gr_registry_catalog(g->registry);
    gr_catalog_entry entry;
    gr_mutex_lock(&g->mutex);
    if (catalog.find(catalog.self, project, adapter, false, &entry, NULL) == 0) {
        gr_loader_pin(g->loader, project, adapter, entry.pinned, NULL);
    }
    gr_mutex_unlock(&g->mutex);
}

/* A name that is gone takes its adapter with it; one that points elsewhere is loaded anew when it is next asked for. */
static void on_change(void *user, gr_registry_change change, const char *project, const char *adapter) {
    graft *g = user;
    uint64_t freed, pending;
    switch (change) {
    case GR_REGISTRY_REMOVED:
        gr_loader_pin(g->loader, project, adapter, false, NULL); /* another may be given the name */
        gr_loader_unload(g->loader, project, adapter, &freed, &pending, NULL);
        gr_mutex_lock(&g->mutex);
        if (strcmp(g->current_project, project) == 0 && strcmp(g->current_adapter, adapter) == 0) {
            g->current_project[0] = g->current_adapter[0] = '\0';
        }
        gr_mutex_unlock(&g->mutex);
        break;
    case GR_REGISTRY_PINNED:
    case GR_REGISTRY_UNPINNED: follow_pin(g, project, adapter); break;
    case GR_REGISTRY_CHANGED: break;
    }
}

static int attach(graft *g, graft_error *err) {
    int rc = gr_registry_set_base(g->registry, g->base->fingerprint, err);
    rc = rc ? rc : gr_registry_watch(g->registry, on_change, g, err);
    g->watching = rc == 0;
    return rc;
}

int gr_backend_start(graft *g, const graft_options *o, uint64_t fixed, graft_error *err) {
    gr_loader_options options = {
        .catalog = {.find = find_none},
        .backend = {identify, prepare, load, abandon, drop, own, process, g},
        .policy = o->policy,
        .max_adapters = o->max_adapters,
        .memory_limit = g->memory_limit,
        .fixed_bytes = fixed,
        .threads = o->loader_threads,
        .retry_attempts = o->retry_attempts,
        .retry_base_us = (int64_t)o->retry_base_ms * 1000,
        .failure_ttl_us = 10 * 1000000,
        .seed = (uint64_t)gr_now_us(),
        .log = &g->log,
    };
    if (g->registry) {
        options.catalog = gr_registry_catalog(g->registry);
    }
    int rc = o->probe && g->registry && g->base->arch ? gr_probe_create(&g->probe, g->engine, err) : 0;
    rc = rc ? rc : gr_loader_create(&g->loader, &options, err);
    return rc || !g->registry ? rc : attach(g, err);
}

void gr_backend_stop(graft *g) {
    if (g->watching) {
        gr_registry_unwatch(g->registry);
    }
    if (g->loader) {
        gr_loader_stop(g->loader);
    }
}
