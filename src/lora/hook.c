/*
 * The evaluation callback: which of libllama's nodes some adapter of the plan changes, and whether they are what the plan
 * relies on. What is done to them is in apply.h.
 *
 * ggml asks for each node of the graph, in order, "do you want to see this one?", computes all nodes up to and
 * including the one we want, and shows it. At that moment its operands are still alive (their memory may be
 * reused by later nodes) and nobody has read its result. That is when the changes go in.
 *
 * A weight alone does not say which node: a tied embedding is read by rows at the beginning and multiplied with at the
 * end. So all that is kept by weight is kept by weight and operation: a target.
 */
#include "lora/hook.h"

#include "base/memory.h"
#include "lora/apply.h"
#include "lora/sane.h"

#include <ggml.h>
#include <string.h>

/* An entry of the map from weight tensors to ids. The address is only compared. */
typedef struct known_weight {
    const void *tensor; /* NULL: free */
    int weight;         /* -1: not one of the base's */
} known_weight;

struct gr_hook {
    const gr_base_model *base;
    gr_apply *apply;

    known_weight *known;
    size_t known_mask, n_known;

    /* this decode */
    const gr_row_plan *plan;  /* NULL: nothing to do */
    size_t n_targets;         /* [n_weights * GR_OPS]: weight * GR_OPS + op */
    uint8_t *touched;         /* [n_targets]: bits of the turns that some adapter of the plan has there; 0 = none */
    uint8_t *seen;            /* [n_targets]: its node came by */
    bool wanted[GR_OPS];      /* some target of it is touched */
    int n_touched, n_products;
    const char *fault;        /* what made this decode worthless; the first one counts */
    int fault_weight;
};

int gr_hook_create(gr_hook **out, const gr_base_model *base, int max_rows, int n_threads, const gr_kernels *kernels,
                   graft_error *err) {
    size_t n_known = 64;
    while (n_known < 4 * base->n_weights) {
        n_known *= 2;
    }
    gr_hook *h = gr_zalloc(sizeof *h);
    if (!h) {
        return gr_fail_memory(err, sizeof *h);
    }
    h->base = base;
    h->known_mask = n_known - 1;
    h->n_targets = base->n_weights * GR_OPS;
    h->known = gr_calloc(n_known, sizeof *h->known);
    h->touched = gr_zalloc(h->n_targets);
    h->seen = gr_zalloc(h->n_targets);
    int status = 0;
    if (!h->known || !h->touched || !h->seen) {
        status = gr_fail_memory(err, n_known * sizeof *h->known);
    } else {
        status = gr_apply_create(&h->apply, max_rows, n_threads, kernels, err);
    }
    if (status) {
        gr_hook_free(h);
        return status;
    }
    *out = h;
    return 0;
}

void gr_hook_free(gr_hook *h) {
    if (!h) {
        return;
    }
    gr_apply_free(h->apply);
    gr_free(h->seen);
    gr_free(h->touched);
    gr_free(h->known);
    gr_free(h);
}

void gr_hook_attach(gr_hook *h, struct llama_context *ctx) {
    gr_pool_attach(h->apply->pool, ctx);
}

/* ---- which node ---------------------------------------------------------------------------------------- */

/*
 * The weight's id, or -1. By name on first sight, by address afterwards: weights live as long as the model, so an
 * address never comes to mean another one. (Tensors of a graph do come and go; they are no leaves and do not get
 * here.) When the map is full, which no known graph makes it, names do.
 */
static int weight_of(gr_hook *h, const struct ggml_tensor *w) {
    size_t at = (size_t)(((uint64_t)(uintptr_t)w * 0x9E3779B97F4A7C15u) >> 32) & h->known_mask;
    while (h->known[at].tensor && h->known[at].tensor != w) {
        at = (at + 1) & h->known_mask;
    }
    if (h->known[at].tensor) {
        return h->known[at].weight;
    }
    int weight = gr_base_model_weight(h->base, w->name);
    if (h->n_known <= h->known_mask / 2) {
        h->known[at].tensor = w;
        h->known[at].weight = weight;
        h->n_known++;
    }
    return weight;
}

/* The operation that the node is, and the operand that would be a weight. False: of no interest. */
static bool operation_of(const struct ggml_tensor *node, gr_op *op, const struct ggml_tensor **weight) {
    switch (node->op) {
    case GGML_OP_MUL_MAT: *op = GR_OP_PRODUCT; break;
    case GGML_OP_GET_ROWS: *op = GR_OP_ROWS; break;
    case GGML_OP_MUL: *op = GR_OP_MUL; break;
    case GGML_OP_ADD: *op = GR_OP_ADD; break;
    default: return false;
    }
    *weight = node->src[*op == GR_OP_MUL || *op == GR_OP_ADD];
    return true;
}

/* The target that this node is and that some adapter of the plan changes, or -1. */
static int wanted_target(gr_hook *h, const struct ggml_tensor *node) {
    const struct ggml_tensor *w;
    gr_op op;
    if (!operation_of(node, &op, &w) || !h->wanted[op] || w->op != GGML_OP_NONE) {
        return -1;
    }
    int weight = weight_of(h, w), target = weight * GR_OPS + (int)op;
    return weight >= 0 && h->touched[target] ? target : -1;
}

static void fault(gr_hook *h, int weight, const char *what) {
    if (!h->fault) {
        h->fault = what;
        h->fault_weight = weight;
    }
}

static bool reachable(const struct ggml_tensor *t) {
    ggml_backend_buffer_t buffer = t->view_src ? t->view_src->buffer : t->buffer;
    return buffer && ggml_backend_buffer_is_host(buffer);
}

/* Float32 in memory that we can reach, n columns, rows contiguous in themselves. */
static bool plain_rows(const struct ggml_tensor *t, int64_t n) {
    return t->type == GGML_TYPE_F32 && t->ne[0] == n && t->ne[3] == 1 && t->nb[0] == sizeof(float) && reachable(t);
}

/* The same as a matrix. */
static bool plain_matrix(const struct ggml_tensor *t, int64_t n) {
    return plain_rows(t, n) && t->ne[2] == 1;
}

/* ---- what came by ---------------------------------------------------------------------------------------- */

/* These fill the node and return its number of rows, or -1 if it is not as it must be. */

static int64_t product_node(gr_node *out, const struct ggml_tensor *node, const gr_weight *w) {
    const struct ggml_tensor *x = node->src[1];
    if (!plain_matrix(node, w->n_out) || !plain_matrix(x, w->n_in) || x->ne[1] != node->ne[1]) {
        return -1;
    }
    out->x = x->data;
    out->x_stride = x->nb[1];
    out->n_in = (int)w->n_in;
    return node->ne[1];
}

static int64_t rows_node(gr_node *out, const struct ggml_tensor *node, const gr_weight *w) {
    const struct ggml_tensor *ids = node->src[1];
    if (!plain_matrix(node, w->n_in) || ids->type != GGML_TYPE_I32 || ids->ne[0] != node->ne[1] ||
        ids->nb[0] != sizeof(int32_t) || ids->ne[1] != 1 || ids->ne[2] != 1 || !reachable(ids)) {
        return -1;
    }
    out->ids = ids->data;
    for (int64_t i = 0; i < ids->ne[0]; i++) {
        if (out->ids[i] < 0 || out->ids[i] >= w->n_out) {
            return -1;
        }
    }
    return node->ne[1];
}

/*
 * A vector times or plus every row, or every head of every row: [n][rows], [n][heads][rows]. With one row the two look alike;
 * then what is no number of rows is one of heads. (Norms over heads come before the last layer drops rows, so that one row
 * is the only row of the batch.)
 */
static int64_t vector_node(gr_node *out, const struct ggml_tensor *node, const gr_weight *w, const gr_row_plan *plan) {
    if (!plain_rows(node, w->n_out)) {
        return -1;
    }
    bool heads = node->ne[2] > 1 || (node->ne[1] != plan->n_tokens && node->ne[1] != plan->n_outputs);
    if (heads) {
        out->heads = (int)node->ne[1];
        out->head_stride = node->nb[1];
        out->y_stride = node->nb[2];
    }
    return node->ne[heads ? 2 : 1];
}

static int64_t describe(gr_node *out, const struct ggml_tensor *node, const gr_weight *w, const gr_row_plan *plan) {
    out->y = node->data;
    out->y_stride = node->nb[1];
    out->heads = 1;
    switch (out->op) {
    case GR_OP_PRODUCT: return product_node(out, node, w);
    case GR_OP_ROWS: return rows_node(out, node, w);
    case GR_OP_MUL:
    case GR_OP_ADD: return vector_node(out, node, w, plan);
    case GR_OPS: break;
    }
    return -1;
}

/* A wanted node was computed. */
static void came_by(gr_hook *h, int target, const struct ggml_tensor *node) {
    static const char *const unlike[GR_OPS] = {"is not a plain matrix product here", "is not read by plain rows here",
                                               "does not multiply plain rows here", "is not added to plain rows here"};
    int weight = target / GR_OPS;
    gr_node found = {.op = (gr_op)(target % GR_OPS)};
    int64_t n_rows = describe(&found, node, h->base->weights + weight, h->plan);
    if (h->seen[target]) {
        fault(h, weight, "came by twice in one decode");
    } else if (n_rows < 0) {
        fault(h, weight, unlike[found.op]);
    } else if (n_rows != h->plan->n_tokens && n_rows != h->plan->n_outputs) {
        fault(h, weight, "was given an unexpected number of rows");
    }
    h->seen[target] = 1;
    h->n_products++;
    if (h->fault) {
        return;
    }
    gr_apply_node(h->apply, &found, h->plan, weight, h->touched[target], n_rows != h->plan->n_tokens);
    if (h->apply->refused) {
        fault(h, weight, "could not be changed, as ggml refused to compute");
    }
}

/*
 * ask: whether we want to see the node. Else it is there. Returning false from the second kind would drop the rest
 * of the graph without an error from llama_decode, so faults are noted and told by gr_hook_end.
 */
static bool callback(struct ggml_tensor *node, bool ask, void *user) {
    gr_hook *h = user;
    if (!h->plan) {
        return false;
    }
    int target = wanted_target(h, node);
    if (!ask && target >= 0) {
        came_by(h, target, node);
    }
    return ask ? target >= 0 : true;
}

ggml_backend_sched_eval_callback gr_hook_callback(void) {
    return callback;
}

/* ---- around a decode ----------------------------------------------------------------------------------- */

static void touch(gr_hook *h, const gr_module *m) {
    uint8_t *turns = &h->touched[m->weight * GR_OPS + (int)m->op];
    h->n_touched += *turns == 0;
    *turns |= (uint8_t)(1u << gr_turn_of(m));
    h->wanted[m->op] = true;
}

void gr_hook_begin(gr_hook *h, const gr_row_plan *plan) {
    h->plan = plan && plan->n_groups > 0 ? plan : NULL;
    h->n_touched = h->n_products = 0;
    h->fault = NULL;
    gr_apply_begin(h->apply);
    if (!h->plan) {
        return;
    }
    memset(h->touched, 0, h->n_targets);
    memset(h->seen, 0, h->n_targets);
    memset(h->wanted, 0, sizeof h->wanted);
    for (int i = 0; i < plan->n_groups; i++) {
        const gr_adapter *a = plan->groups[i].adapter;
        for (size_t j = 0; j < a->n_modules; j++) {
            if (!a->modules[j].zero) {
                touch(h, a->modules + j);
            }
        }
    }
}

/* A touched target that never came by; there is one. */
static int missing_weight(const gr_hook *h) {
    size_t target = 0;
    while (target + 1 < h->n_targets && !(h->touched[target] && !h->seen[target])) {
        target++;
    }
    return (int)(target / GR_OPS);
}

int gr_hook_end(gr_hook *h, const gr_adapter **bad_adapter, graft_error *err) {
    bool had_plan = h->plan != NULL;
    h->plan = NULL;
    if (!had_plan) {
        return 0;
    }
    if (!h->fault && h->n_products < h->n_touched) {
        fault(h, missing_weight(h), "never came by, though an adapter changes it");
    }
    if (h->fault) {
        char name[GR_QUOTE_SIZE];
        const char *raw = h->base->weights[h->fault_weight].name;
        return gr_fail(err, GRAFT_E_INTERNAL, "libllama's graph is not as expected: weight %s %s",
                       gr_quote(name, raw, strlen(raw)), h->fault);
    }
    if (h->apply->bad_adapter) {
        *bad_adapter = h->apply->bad_adapter;
        return gr_fail(err, GRAFT_E_NON_FINITE_OUTPUT, "the adapter brings values to NaN or beyond %g",
                       (double)GR_T_LIMIT);
    }
    return 0;
}

int gr_hook_products(const gr_hook *h) {
    return h->n_products;
}
