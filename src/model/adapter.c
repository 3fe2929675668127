/* Adapters as a whole: their memory, their making in three steps - layout, reading, finish - and the counting of users. */
#include "adapter.h"

#include "base/memory.h"
#include "model/adapter_finish.h"
#include "model/adapter_layout.h"
#include "model/adapter_read.h"

#include <string.h>

/* ---- size ----------------------------------------------------------------------------------------------- */

static uint64_t block_bytes(const gr_plan *plan, graft_adapter_type type) {
    uint64_t bytes = 0;
    for (size_t i = 0; i < plan->n; i++) {
        gr_module m;
        gr_module_describe(&m, plan, &plan->entries[i], type);
        bytes += gr_module_matrix_bytes(&m) + gr_module_vector_bytes(&m, &plan->entries[i]);
    }
    return bytes;
}

uint64_t gr_adapter_size(const gr_plan *plan, graft_adapter_type type) {
    return sizeof(gr_adapter) + plan->n * sizeof(gr_module) + plan->base->n_weights * sizeof(int32_t) +
           strlen(plan->source->path) + 1 + plan->n_invocation * sizeof(int32_t) + block_bytes(plan, type);
}

/* ---- building ------------------------------------------------------------------------------------------- */

static int allocate(gr_adapter *a, const gr_plan *plan, graft_adapter_type type, graft_error *err) {
    a->bytes = gr_adapter_size(plan, type);
    a->modules = gr_calloc(plan->n, sizeof *a->modules);
    a->by_weight = gr_alloc(plan->base->n_weights * sizeof *a->by_weight);
    a->path = gr_strdup(plan->source->path);
    a->block = gr_alloc_aligned((size_t)block_bytes(plan, type));
    a->invocation = plan->n_invocation ? gr_alloc(plan->n_invocation * sizeof *a->invocation) : NULL;
    bool all = a->modules && a->by_weight && a->path && a->block && (a->invocation || !plan->n_invocation);
    return all ? 0 : gr_fail_memory(err, (size_t)a->bytes);
}

static void lay_out(gr_adapter *a, const gr_plan *plan, graft_adapter_type type) {
    char *memory = a->block;
    a->n_weights = plan->base->n_weights;
    memset(a->by_weight, 0xff, a->n_weights * sizeof *a->by_weight);
    for (size_t i = 0; i < plan->n; i++) {
        const gr_plan_entry *e = &plan->entries[i];
        gr_module *m = &a->modules[a->n_modules++];
        gr_module_describe(m, plan, e, type);
        gr_module_place_matrices(m, memory);
        memory += gr_module_matrix_bytes(m);
        gr_module_place_vectors(m, e, memory);
        memory += gr_module_vector_bytes(m, e);
        if (a->by_weight[m->weight] < 0) {
            a->by_weight[m->weight] = (int32_t)i;
        }
    }
}

/* libllama's adapters know products with a whole weight; those with the embedding they take for its rows. */
static bool only_by_rows(const gr_plan *plan, const gr_module *m) {
    const gr_weight *w = &plan->base->weights[m->weight];
    return m->kind != GR_LOW_RANK || m->op != GR_OP_PRODUCT || m->first != 0 || m->n_out != w->n_out || m->gain.magnitude ||
           m->shift || strcmp(w->name, "token_embd.weight") == 0;
}

/* Everything but the numbers. *out is valid after an error too, or NULL. */
static int make_adapter(gr_adapter **out, const gr_plan *plan, graft_adapter_type type, graft_error *err) {
    gr_adapter *a = *out = gr_zalloc(sizeof *a);
    if (!a) {
        return gr_fail_memory(err, sizeof *a);
    }
    atomic_init(&a->references, 1);
    int rc = allocate(a, plan, type, err);
    if (rc) {
        return rc;
    }
    lay_out(a, plan, type);
    for (size_t i = 0; i < a->n_modules; i++) {
        a->by_rows_only = a->by_rows_only || only_by_rows(plan, &a->modules[i]);
    }
    if (plan->n_invocation) {
        memcpy(a->invocation, plan->invocation, plan->n_invocation * sizeof *a->invocation);
        a->n_invocation = (int)plan->n_invocation;
    }
    a->rank_min = plan->rank_min;
    a->rank_max = plan->rank_max;
    a->type = type;
    a->format = gr_source_format_name(plan->source->format);
    return 0;
}

static int finish_modules(gr_adapter *a, const gr_plan *plan, graft_error *err) {
    int rc = 0;
    a->no_effect = true;
    for (size_t i = 0; i < a->n_modules && !rc; i++) {
        rc = gr_module_finish(&a->modules[i], plan, i, err);
        a->no_effect = a->no_effect && a->modules[i].zero;
    }
    return rc;
}

int gr_adapter_build(gr_adapter **out, const gr_plan *plan, graft_adapter_type type, graft_error *err) {
    gr_adapter *a = NULL;
    int rc = make_adapter(&a, plan, type, err);
    rc = rc ? rc : gr_adapter_read(a, plan, err);
    rc = rc ? rc : finish_modules(a, plan, err);
    if (rc) {
        gr_adapter_release(a);
        return rc;
    }
    *out = a;
    return 0;
}

/* ---- sharing -------------------------------------------------------------------------------------------- */

int gr_module_token(const gr_module *m, int64_t token) {
    int low = 0, high = m->n_tokens;
    while (low < high) {
        int middle = low + (high - low) / 2;
        if (m->tokens[middle] < token) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low < m->n_tokens && m->tokens[low] == token ? low : -1;
}

gr_adapter *gr_adapter_retain(gr_adapter *a) {
    if (a) {
        atomic_fetch_add_explicit(&a->references, 1, memory_order_relaxed);
    }
    return a;
}

void gr_adapter_release(gr_adapter *a) {
    /* Release: our reads of the matrices happen before the free. Acquire: the freer sees all of that. */
    if (!a || atomic_fetch_sub_explicit(&a->references, 1, memory_order_acq_rel) != 1) {
        return;
    }
    for (size_t i = 0; i < a->n_modules; i++) {
        gr_free(a->modules[i].own);
    }
    gr_free(a->block);
    gr_free(a->path);
    gr_free(a->invocation);
    gr_free(a->by_weight);
    gr_free(a->modules);
    gr_free(a);
}
