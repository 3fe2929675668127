/* What both forms of an export share: the target's beginning and end, progress, refusals. */
#include "export.h"

#include "base/memory.h"

#include <string.h>

static const char *const peft_names[] = {"adapter_config.json", "adapter_model.safetensors", NULL};

int gr_export_step(gr_export_steps *s, uint64_t bytes, graft_error *err) {
    const gr_export_options *o = s->options;
    s->done += bytes;
    float fraction = s->total ? (float)((double)s->done / (double)s->total) : 1.0f;
    if (o->progress && !o->progress(fraction < 1 ? fraction : 1, o->progress_user)) {
        return gr_fail(err, GRAFT_E_CANCELLED, "writing the adapter was cancelled");
    }
    return 0;
}

gr_dtype gr_export_dtype(graft_export_type type, gr_dtype from) {
    return type == GRAFT_EXPORT_F32 ? GR_DTYPE_F32 : type == GRAFT_EXPORT_F16 ? GR_DTYPE_F16 : from;
}

int gr_export_refuse(const gr_plan_entry *e, const char *what, const char *form, graft_error *err) {
    char q[GR_QUOTE_SIZE];
    return gr_fail(err, GRAFT_E_UNSUPPORTED_ADAPTER, "%s: %s has no place in %s", gr_quote(q, e->module, strlen(e->module)), what,
                   form);
}

bool gr_export_transposed(const gr_plan *plan, const gr_plan_entry *e, const gr_tensor_info *t) {
    return plan->source->format == GR_SOURCE_GGUF ? t == e->a && e->op == GR_OP_ROWS : e->transposed && t->n_dims == 2;
}

/* Replacing is meant for older results, not for what is being read. */
static int check_own(const gr_plan *plan, const char *path, bool folder, graft_error *err) {
    const gr_file *f = &plan->source->weights;
    char *inside = NULL;
    if (folder) {
        size_t size = strlen(path) + strlen(peft_names[1]) + 2;
        inside = gr_alloc(size);
        if (!inside) {
            return gr_fail_memory(err, size);
        }
        snprintf(inside, size, "%s/%s", path, peft_names[1]);
    }
    bool same = gr_target_is_file(inside ? inside : path, f->device, f->inode);
    gr_free(inside);
    return same ? gr_fail(err, GRAFT_E_BAD_REQUEST, "the adapter cannot be written over itself") : 0;
}

int gr_export(const gr_plan *plan, const char *path, const gr_export_options *options, graft_error *err) {
    bool folder = options->to == GRAFT_FORMAT_PEFT;
    const char *const *names = folder ? peft_names : NULL;
    int rc = check_own(plan, path, folder, err);
    if (rc) {
        return rc;
    }
    gr_target target;
    rc = gr_target_open(&target, path, names, options->replace, err);
    if (!rc) {
        rc = folder ? gr_export_peft(plan, &target, options, err) : gr_export_gguf(plan, &target, options, err);
    }
    rc = rc ? rc : gr_file_unchanged(&plan->source->weights, err);
    if (rc) {
        gr_target_abandon(&target, names);
        return rc;
    }
    return gr_target_commit(&target, names, err);
}
