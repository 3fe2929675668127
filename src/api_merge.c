/* A base and adapters as one model: opening all of them, then writing. */
#include "api.h"

#include "base/file.h"
#include "base/memory.h"
#include "model/merge.h"

#include <math.h>
#include <string.h>

#define MAX_FACTOR 100.0f

graft_merge_options graft_merge_options_default(void) {
    return (graft_merge_options){.size = sizeof(graft_merge_options), .type = "same", .max_adapter_bytes = (uint64_t)4 << 30};
}

static int check(const graft_merge_options *o, enum ggml_type *type, graft_error *err) {
    if (!o || o->size != sizeof *o) {
        return gr_fail(err, GRAFT_E_BAD_REQUEST, "graft_model_merge needs options from graft_merge_options_default");
    }
    if (!o->model || !*o->model || !o->out || !*o->out || !o->adapters || o->n_adapters == 0) {
        return gr_fail(err, GRAFT_E_BAD_REQUEST, "graft_model_merge needs a model, adapters and a path to write to");
    }
    if (o->n_adapters > GRAFT_MERGE_ADAPTERS) {
        return gr_fail(err, GRAFT_E_BAD_REQUEST, "%zu adapters, at most %d", o->n_adapters, GRAFT_MERGE_ADAPTERS);
    }
    for (size_t i = 0; i < o->n_adapters; i++) {
        if (!o->adapters[i].adapter || !(fabsf(o->adapters[i].factor) <= MAX_FACTOR)) {
            return gr_fail(err, GRAFT_E_BAD_REQUEST, "adapter %zu: a path and a factor from -100 to 100 are needed", i);
        }
    }
    if (!o->type || !gr_merge_type_find(type, o->type)) {
        return gr_fail(err, GRAFT_E_BAD_REQUEST, "option type: no such type");
    }
    if (o->threads < 0 || o->threads > 512) {
        return gr_fail(err, GRAFT_E_BAD_REQUEST, "option threads: %d is outside 0 to 512", o->threads);
    }
    return 0;
}

/* The last part of a path, as valid UTF-8 for a key: gr_free. */
static char *last_part(const char *path) {
    char q[GR_QUOTE_SIZE];
    size_t n;
    const char *last = gr_path_last(path, &n);
    return gr_strdup(gr_quote(q, last, n));
}

static int open_use(gr_merge_use *out, const gr_base_model *base, const graft_merge_use *use, const graft_merge_options *o,
                    const gr_log *log, graft_error *err) {
    gr_adapter *a = NULL;
    graft_error why;
    char *name = last_part(use->adapter);
    if (!name) {
        return gr_fail_memory(err, strlen(use->adapter));
    }
    int rc = gr_adapter_open(&a, base, use->adapter, GRAFT_TYPE_F32, o->max_adapter_bytes, log, &why);
    *out = (gr_merge_use){a, use->factor, name};
    return rc ? gr_fail(err, rc, "%s: %s", name, why.message) : 0;
}

static int merge(const graft_merge_options *o, const gr_base_model *base, enum ggml_type type, const gr_log *log, graft_error *err) {
    gr_merge_use uses[GRAFT_MERGE_ADAPTERS] = {{NULL, 0, NULL}};
    int rc = 0;
    for (size_t i = 0; i < o->n_adapters && !rc; i++) {
        rc = open_use(&uses[i], base, &o->adapters[i], o, log, err);
    }
    if (!rc) {
        gr_merge_options options = {.type = type,
                                    .threads = o->threads ? o->threads : gr_physical_cores(),
                                    .replace = o->replace,
                                    .progress = o->progress,
                                    .progress_user = o->progress_user};
        rc = gr_merge(base, uses, o->n_adapters, o->out, &options, err);
    }
    for (size_t i = 0; i < o->n_adapters; i++) {
        gr_adapter_release((gr_adapter *)uses[i].adapter);
        gr_free((char *)uses[i].name);
    }
    return rc;
}

int graft_model_merge(const graft_merge_options *o, graft_error *err) {
    enum ggml_type type;
    int rc = check(o, &type, err);
    if (rc) {
        return rc;
    }
    gr_log log = {o->log, o->log_user};
    gr_base_options options = {.vocab_only = true, .log = &log};
    gr_base_model *base = NULL;
    rc = gr_base_model_open(&base, o->model, &options, err);
    rc = rc ? rc : merge(o, base, type, &log, err);
    gr_base_model_close(base);
    return rc;
}
