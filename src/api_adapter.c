/* Adapters: loading, giving back, inspecting. */
#include "api.h"

#include "base/memory.h"
#include "model/adapter_layout.h"

#include <string.h>

static int charge(graft_adapter *a, uint64_t bytes, graft_error *err) {
    int rc = gr_loader_charge(a->g->loader, bytes, err);
    if (!rc) {
        a->charged += bytes;
        atomic_fetch_add(&a->g->path_charged, bytes);
    }
    return rc;
}

static void discharge(graft_adapter *a, uint64_t bytes) {
    atomic_fetch_sub(&a->g->path_charged, bytes);
    a->charged -= bytes;
    gr_loader_discharge(a->g->loader, bytes);
}

/* Its memory is not graft's own: counted as such it would be counted twice. */
static void count_as_adapter(graft_adapter *a, uint64_t bytes) {
    atomic_fetch_add(&a->g->path_bytes, bytes - a->bytes); /* also downwards: unsigned numbers wrap */
    a->bytes = bytes;
}

static void give_back(graft_adapter *a) {
    count_as_adapter(a, 0);
    discharge(a, a->charged);
}

static int build_charged(graft_adapter *a, gr_opened *opened, graft_error *err) {
    gr_adapter *built = NULL;
    int rc = gr_opened_build(&built, opened, err);
    if (rc) {
        return rc;
    }
    rc = gr_api_check_way(a->g, built, err);
    if (rc) {
        gr_adapter_release(built);
        return rc;
    }
    uint64_t bytes = gr_api_bytes(a->g, built);
    if (bytes < a->charged) {
        discharge(a, a->charged - bytes);
    } else if (bytes > a->charged && (rc = charge(a, bytes - a->charged, err)) != 0) {
        gr_adapter_release(built);
        return rc;
    }
    count_as_adapter(a, built->bytes);
    a->farewell.adapter = built;
    return 0;
}

/* Its bytes are taken from the limit, and from what counts as graft's own, before any matrix is read. What modules that had to
 * stay in float32 take on top is asked for afterwards. */
static int build(graft_adapter *a, gr_opened *opened, graft_error *err) {
    int rc = charge(a, gr_api_most_bytes(a->g, opened), err);
    if (rc) {
        gr_opened_free(opened);
        return rc;
    }
    count_as_adapter(a, gr_opened_bytes(opened));
    rc = build_charged(a, opened, err);
    if (rc) {
        give_back(a);
    }
    return rc;
}

/* Requests may have kept its memory until now. */
static void on_freed(gr_farewell *f) {
    graft_adapter *a = (graft_adapter *)f; /* its first member */
    give_back(a);
    gr_free(a);
}

int graft_adapter_open(graft_adapter **out, graft *g, const char *path, graft_error *err) {
    if (!out || !g || !path) {
        return gr_fail(err, GRAFT_E_BAD_REQUEST, "graft_adapter_open needs a handle to fill, an instance and a path");
    }
    graft_adapter *a = gr_zalloc(sizeof *a);
    if (!a) {
        return gr_fail_memory(err, sizeof *a);
    }
    a->g = g;
    a->farewell.done = on_freed;
    gr_opened *opened = NULL;
    gr_source_limits limits = {g->max_adapter_bytes, NULL};
    int rc = gr_opened_make(&opened, g->base, path, g->adapter_type, limits, &g->log, err);
    rc = rc ? rc : build(a, opened, err);
    if (rc) {
        gr_free(a);
        return rc;
    }
    *out = a;
    return 0;
}

void graft_adapter_free(graft_adapter *a) {
    if (a) {
        /* With libllama's copy the decode thread frees it in a moment: not worth refusing others what it leaves. */
        if (atomic_load(&a->farewell.adapter->references) == 1) {
            give_back(a);
        }
        gr_engine_forget(a->g->engine, &a->farewell);
    }
}

void graft_adapter_get_info(const graft_adapter *handle, graft_adapter_info *out) {
    const gr_adapter *a = handle->farewell.adapter;
    *out = (graft_adapter_info){
        .path = a->path,
        .format = a->format,
        .generation = a->generation,
        .bytes = a->bytes,
        .load_ms = a->load_ms,
        .n_modules = (int)a->n_modules,
        .rank_min = a->rank_min,
        .rank_max = a->rank_max,
        .type = a->type,
        .no_effect = a->no_effect,
    };
}

/* ---- inspecting ---------------------------------------------------------------------------------------- */

/* The texts that the public part points to live in the source, the plan and the report, so these stay. */
typedef struct inspection {
    graft_inspection info; /* first: what the caller has */
    char *path;
    gr_source *source;
    gr_plan *plan;
    gr_report report;
    graft_module_info *modules;
    graft_reason *reasons;
} inspection;

void graft_inspection_free(graft_inspection *i) {
    if (i) {
        inspection *in = (inspection *)i;
        gr_free(in->reasons);
        gr_free(in->modules);
        gr_plan_free(in->plan);
        gr_source_close(in->source);
        gr_report_finish(&in->report);
        gr_free(in->path);
        gr_free(in);
    }
}

/* What its matrices and vectors take, padding included. */
static uint64_t module_bytes(const gr_module *m, const gr_plan_entry *e) {
    return gr_module_matrix_bytes(m) + gr_module_vector_bytes(m, e);
}

/* Entries of the plan and modules of the adapter built from it are in the same order. */
static int list_modules(inspection *in, const graft *g, const gr_adapter *built, graft_error *err) {
    size_t n = in->plan->n;
    in->modules = gr_calloc(n, sizeof *in->modules);
    if (!in->modules) {
        return gr_fail_memory(err, n * sizeof *in->modules);
    }
    for (size_t i = 0; i < n; i++) {
        const gr_plan_entry *e = &in->plan->entries[i];
        const gr_weight *w = &g->base->weights[e->weight];
        in->modules[i] = (graft_module_info){
            .module = e->module,
            .weight = w->name,
            .rank = e->rank,
            .scale = e->scale,
            .n_in = w->n_in,
            .n_out = w->n_out,
            .dtype = gr_dtype_name(e->value ? e->value->dtype : e->a->dtype),
            .bytes = module_bytes(&built->modules[i], e),
            .kind = gr_plan_entry_kind(in->plan, e),
        };
    }
    in->info.modules = in->modules;
    in->info.n_modules = n;
    in->info.bytes = built->bytes;
    return 0;
}

static int list_reasons(inspection *in, graft_error *err) {
    size_t n = in->report.n;
    in->reasons = gr_calloc(n, sizeof *in->reasons);
    if (!in->reasons || in->report.lost) {
        return gr_fail_memory(err, n * sizeof *in->reasons);
    }
    for (size_t i = 0; i < n; i++) {
        const gr_reason *r = &in->report.reasons[i];
        in->reasons[i] = (graft_reason){r->severity, r->error.code, r->where, r->error.message};
    }
    in->info.reasons = in->reasons;
    in->info.n_reasons = n;
    return 0;
}

static int inspect(inspection *in, graft *g, graft_error *err) {
    graft_error opening, why = {0};
    gr_adapter *built = NULL;
    int rc = gr_source_open(&in->source, in->path, (gr_source_limits){g->max_adapter_bytes, NULL}, &in->report, &opening);
    if (rc) {
        rc = gr_report_end(&in->report, &opening, &why);
    } else {
        in->info.format = gr_source_format_name(in->source->format);
        rc = gr_verify(&in->plan, g->base, in->source, &in->report, &why);
        /* NaN and infinity, and a file that cannot be read to its end, show only when it is built. */
        rc = rc ? rc : gr_adapter_build(&built, in->plan, g->adapter_type, &why);
        rc = rc ? rc : gr_api_check_way(g, built, &why);
        gr_file_close(&in->source->weights); /* nothing will be read: keep no file open for as long as this lives */
    }
    if (rc == GRAFT_E_OUT_OF_MEMORY) {
        *err = why;
        return rc;
    }
    if (rc && in->report.n_errors == 0) {
        gr_report_error(&in->report, why.code, NULL, "%s", why.message);
    }
    in->info.loadable = rc == 0;
    if (built && built->no_effect) {
        gr_report_warn(&in->report, GRAFT_E_NO_EFFECT, NULL, "every A or B is zero: the adapter changes nothing");
    }
    rc = built ? list_modules(in, g, built, err) : 0;
    gr_adapter_release(built);
    return rc ? rc : list_reasons(in, err);
}

int graft_inspect(graft_inspection **out, graft *g, const char *path, graft_error *err) {
    if (!out || !g || !path) {
        return gr_fail(err, GRAFT_E_BAD_REQUEST, "graft_inspect needs a result to fill, an instance and a path");
    }
    graft_error ignored;
    err = err ? err : &ignored;
    inspection *in = gr_zalloc(sizeof *in);
    if (!in) {
        return gr_fail_memory(err, sizeof *in);
    }
    gr_report_init(&in->report);
    in->path = gr_strdup(path);
    in->info.path = in->path;
    int rc = in->path ? inspect(in, g, err) : gr_fail_memory(err, strlen(path));
    if (rc) {
        graft_inspection_free(&in->info);
        return rc;
    }
    *out = &in->info;
    return 0;
}
