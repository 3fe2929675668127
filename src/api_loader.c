/* Adapters by name: leases, loading and unloading, the current project. */
#include "api.h"

#include "base/clock.h"
#include "base/memory.h"
#include "registry/registry.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- names ---------------------------------------------------------------------------------------------- */

static void copy_name(char out[GRAFT_NAME_SIZE], const char *name) {
    snprintf(out, GRAFT_NAME_SIZE, "%s", name);
}

/* The current project, and its adapter unless another is named. */
static int take_current(graft *g, const char *adapter, char out_project[GRAFT_NAME_SIZE], char out_adapter[GRAFT_NAME_SIZE],
                        graft_error *err) {
    gr_mutex_lock(&g->mutex);
    copy_name(out_project, g->current_project);
    copy_name(out_adapter, adapter ? "" : g->current_adapter);
    gr_mutex_unlock(&g->mutex);
    return *out_project ? 0
                        : gr_fail(err, GRAFT_E_BAD_REQUEST, "project: NULL stands for the current project, and there is none "
                                                            "(graft_switch_project sets it)");
}

/* What the names given stand for; whether they are registered is for the loader to say. */
static int names_of(graft *g, const char *project, const char *adapter, char out_project[GRAFT_NAME_SIZE],
                    char out_adapter[GRAFT_NAME_SIZE], graft_error *err) {
    char p[GRAFT_NAME_SIZE] = "", a[GRAFT_NAME_SIZE] = "";
    if (!project) {
        int rc = take_current(g, adapter, p, a, err);
        if (rc) {
            return rc;
        }
        project = p;
        adapter = adapter ? adapter : a;
    }
    adapter = adapter ? adapter : GR_DEFAULT_ADAPTER;
    if (strnlen(project, GRAFT_NAME_SIZE) == GRAFT_NAME_SIZE || strnlen(adapter, GRAFT_NAME_SIZE) == GRAFT_NAME_SIZE) {
        int rc = gr_loader_knows(g->loader, project, adapter, err); /* which says what is wrong with it */
        return rc ? rc : gr_fail(err, GRAFT_E_BAD_NAME, "a name of more than %d characters", GR_NAME_MAX);
    }
    copy_name(out_project, project);
    copy_name(out_adapter, adapter);
    return 0;
}

int gr_api_resolve(graft *g, const char *project, const char *adapter, char out_project[GRAFT_NAME_SIZE],
                   char out_adapter[GRAFT_NAME_SIZE], graft_error *err) {
    char p[GRAFT_NAME_SIZE], a[GRAFT_NAME_SIZE];
    int rc = names_of(g, project, adapter, p, a, err);
    rc = rc ? rc : gr_loader_knows(g->loader, p, a, err);
    if (!rc) {
        copy_name(out_project, p);
        copy_name(out_adapter, a);
    }
    return rc;
}

/* ---- leases --------------------------------------------------------------------------------------------- */

graft_lease_options graft_lease_options_default(void) {
    return (graft_lease_options){.size = sizeof(graft_lease_options), .wait_ms = -1};
}

static int check_lease(const graft_lease_options *o, graft_error *err) {
    if (o->size != sizeof *o) {
        return gr_fail(err, GRAFT_E_BAD_REQUEST, "option size: %zu, must be %zu (graft_lease_options_default sets it)",
                       o->size, sizeof *o);
    }
    if (o->wait_ms < -1 || o->wait_ms > GR_MAX_WAIT_MS) {
        return gr_fail(err, GRAFT_E_BAD_REQUEST, "option wait_ms: %d is outside -1 to %d", o->wait_ms, GR_MAX_WAIT_MS);
    }
    if ((unsigned)o->fallback > GRAFT_FALLBACK_ERROR) {
        return gr_fail(err, GRAFT_E_BAD_REQUEST, "option fallback: there is no number %d", (int)o->fallback);
    }
    return 0;
}

int64_t gr_api_deadline(const graft *g, int wait_ms) {
    int64_t ms = wait_ms < 0 ? g->adapter_wait_ms : wait_ms;
    return ms ? gr_now_us() + 1000 * ms : 0;
}

graft_fallback gr_api_fallback(const graft *g, graft_fallback fallback) {
    return fallback == GRAFT_FALLBACK_DEFAULT ? g->fallback : fallback;
}

static int take(graft_lease *l, const graft_lease_options *o, graft_error *err) {
    graft *g = l->g;
    int64_t start = gr_now_us();
    int rc = names_of(g, o->project, o->adapter, l->project, l->adapter, err);
    if (rc) {
        return rc;
    }
    const gr_lease_request request = {
        .project = l->project,
        .adapter = l->adapter,
        .temporary = o->temporary,
        .reload = o->reload,
        .fallback = gr_api_fallback(g, o->fallback),
        .deadline_us = gr_api_deadline(g, o->wait_ms),
    };
    rc = gr_loader_lease(&l->lease, g->loader, &request, err);
    l->wait_ms = (double)(gr_now_us() - start) / 1000;
    return rc;
}

int graft_lease_take(graft_lease **out, graft *g, const graft_lease_options *options, graft_error *err) {
    GR_NEEDS(out && g && options, "somewhere to put the lease, an instance, and options")
    int rc = check_lease(options, err);
    if (rc) {
        return rc;
    }
    graft_lease *l = gr_zalloc(sizeof *l);
    if (!l) {
        return gr_fail_memory(err, sizeof *l);
    }
    l->g = g;
    rc = take(l, options, err);
    if (rc) {
        gr_free(l);
        return rc;
    }
    *out = l;
    return 0;
}

void graft_lease_release(graft_lease *lease) {
    if (lease) {
        gr_lease_release(lease->lease);
        gr_free(lease);
    }
}

void graft_lease_get_info(const graft_lease *lease, graft_lease_info *out) {
    const gr_loaded *loaded = gr_lease_loaded(lease->lease);
    *out = (graft_lease_info){
        .project = lease->project,
        .adapter = lease->adapter,
        .generation = gr_lease_generation(lease->lease),
        .bytes = loaded ? loaded->bytes : 0,
        .hit = gr_lease_hit(lease->lease),
        .no_effect = loaded && loaded->no_effect,
        .fallback = *gr_lease_fallback(lease->lease),
        .wait_ms = lease->wait_ms,
    };
}

/* ---- one call each -------------------------------------------------------------------------------------- */

int graft_load_adapter(graft *g, const char *project, const char *adapter, bool reload, graft_error *err) {
    GR_NEEDS(g, "an instance")
    graft_lease_options o = graft_lease_options_default();
    graft_lease *lease;
    o.project = project;
    o.adapter = adapter;
    o.reload = reload;
    o.fallback = GRAFT_FALLBACK_ERROR;
    int rc = graft_lease_take(&lease, g, &o, err);
    if (!rc) {
        graft_lease_release(lease);
    }
    return rc;
}

int graft_unload_adapter(graft *g, const char *project, const char *adapter, uint64_t *freed, uint64_t *pending,
                         graft_error *err) {
    GR_NEEDS(g, "an instance")
    char p[GRAFT_NAME_SIZE], a[GRAFT_NAME_SIZE];
    uint64_t now, later;
    int rc = gr_api_resolve(g, project, adapter, p, a, err);
    rc = rc ? rc : gr_loader_unload(g->loader, p, a, &now, &later, err);
    if (!rc && freed) {
        *freed = now;
    }
    if (!rc && pending) {
        *pending = later;
    }
    return rc;
}

int graft_pin_adapter(graft *g, const char *project, const char *adapter, bool pinned, graft_error *err) {
    GR_NEEDS(g, "an instance")
    char p[GRAFT_NAME_SIZE], a[GRAFT_NAME_SIZE];
    int rc = gr_api_resolve(g, project, adapter, p, a, err);
    return rc ? rc : gr_registry_adapter_pin(g->registry, p, a, pinned, err); /* which tells the loader */
}

int graft_switch_project(graft *g, const char *project, const char *adapter, graft_error *err) {
    GR_NEEDS(g, "an instance")
    char p[GRAFT_NAME_SIZE], a[GRAFT_NAME_SIZE];
    int rc = gr_api_resolve(g, project, adapter, p, a, err);
    rc = rc ? rc : graft_load_adapter(g, p, a, false, err);
    if (!rc) {
        gr_mutex_lock(&g->mutex);
        copy_name(g->current_project, p);
        copy_name(g->current_adapter, a);
        gr_mutex_unlock(&g->mutex);
    }
    return rc;
}

int graft_current_project(graft *g, char project[GRAFT_NAME_SIZE], char adapter[GRAFT_NAME_SIZE], graft_error *err) {
    GR_NEEDS(g && project && adapter, "an instance, and somewhere to put both names")
    char p[GRAFT_NAME_SIZE], a[GRAFT_NAME_SIZE];
    if (take_current(g, NULL, p, a, NULL)) {
        return gr_fail(err, GRAFT_E_NOT_FOUND, "there is no current project");
    }
    copy_name(project, p);
    copy_name(adapter, a);
    return 0;
}

/* ---- what is loaded ------------------------------------------------------------------------------------- */

typedef struct loaded_list {
    graft_loaded_list list; /* first: what the caller has */
    graft_loaded *items;
    gr_loaded_info *infos;  /* the texts */
} loaded_list;

static int by_name(const void *a, const void *b) {
    const gr_loaded_info *x = a, *y = b;
    int order = strcmp(x->project, y->project);
    return order ? order : strcmp(x->adapter, y->adapter);
}

int graft_loaded_adapters(graft_loaded_list **out, graft *g, graft_error *err) {
    GR_NEEDS(out && g, "somewhere to put the list, and an instance")
    loaded_list *l = gr_zalloc(sizeof *l);
    size_t n = 0;
    if (!l) {
        return gr_fail_memory(err, sizeof *l);
    }
    int rc = gr_loader_list(g->loader, &l->infos, &n, err);
    l->items = rc ? NULL : gr_calloc(n + 1, sizeof *l->items);
    if (!l->items) {
        rc = rc ? rc : gr_fail_memory(err, (n + 1) * sizeof *l->items);
        graft_loaded_list_free(&l->list);
        return rc;
    }
    qsort(l->infos, n, sizeof *l->infos, by_name);
    for (size_t i = 0; i < n; i++) {
        const gr_loaded_info *from = &l->infos[i];
        l->items[i] = (graft_loaded){
            .project = from->project,
            .adapter = from->adapter,
            .generation = from->generation,
            .state = from->state,
            .bytes = from->bytes,
            .leases = from->leases,
            .pinned = from->pinned,
            .no_effect = from->no_effect,
            .hits = from->hits,
            .load_ms = from->load_ms,
            .idle_ms = (double)from->idle_us / 1000,
        };
    }
    l->list = (graft_loaded_list){l->items, n};
    *out = &l->list;
    return 0;
}

void graft_loaded_list_free(graft_loaded_list *list) {
    if (list) {
        loaded_list *l = (loaded_list *)list;
        gr_free(l->items);
        gr_free(l->infos);
        gr_free(l);
    }
}
