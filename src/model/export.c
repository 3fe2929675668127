/* What both forms of an export share: the target's beginning and end, progress, refusals. */
#include "export.h"

#include "base/memory.h"

#include <string.h>

static const char *const peft_names[] = {"adapter_config.json", "adapter_model.safetensors", NULL};

gr_progress gr_export_progress(const gr_export_options *o, uint64_t total) {
    return (gr_progress){.fn = o->progress, .user = o->progress_user, .total = total};
}

int gr_export_step(gr_progress *p, uint64_t n, graft_error *err) {
    return gr_progress_add(p, n, "writing the adapter", err);
}

gr_dtype gr_export_dtype(graft_export_type type, gr_dtype from) {
    return type == GRAFT_EXPORT_F32 ? GR_DTYPE_F32 : type == GRAFT_EXPORT_F16 ? GR_DTYPE_F16 : from;
}

int gr_export_refuse(const gr_plan_entry *e, const char *what, const char *form, graft_error *err) {
    char q[GR_QUOTE_SIZE];
    return gr_fail(err, GRAFT_E_UNSUPPORTED_ADAPTER, "%s: %s has no place in %s", gr_quote(q, e->module, strlen(e->module)), what,
                   form);
}

int gr_export_low_rank(const gr_plan_entry *e, const char *form, graft_error *err) {
    static const char *const kinds[] = {[GR_WHOLE] = "a whole weight (modules_to_save)",
                                        [GR_TOKENS] = "a trained token",
                                        [GR_NORM] = "a trained norm",
                                        [GR_BIAS] = "a trained bias"};
    return e->kind == GR_LOW_RANK ? 0 : gr_export_refuse(e, kinds[e->kind], form, err);
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
