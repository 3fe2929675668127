/*
 * The evaluation callback and what it needs: the map from libllama's weights to the base's table, the plan's
 * touched weights, and the work for one product.
 *
 * ggml asks for each node of the graph, in order, "do you want to see this one?", computes all nodes up to and
 * including the one we want, and shows it. At that moment its operands are still alive (their memory may be
 * reused by later nodes) and nobody has read its result. That is when the delta goes in.
 *
 * For one product the groups that have an adapter for its weight become parts; parts are worked off in waves whose
 * intermediate values t fit the scratch. Within a wave `down` comes before `up` for all parts. Threads split
 * `down` by k or by rows and `up` by outputs, so that no two write the same element, and a row that several
 * adapters share gets its deltas in the plan's order.
 */
#include "lora/hook.h"

#include "base/memory.h"
#include "lora/pool.h"

#include <float.h>
#include <ggml.h>
#include <stdatomic.h>
#include <string.h>

/*
 * What an adapter may do to a row before the row is given up: |t| and, for float32 modules, |y| above these or NaN.
 * Real values are below 1e6. B of a float16 or Q8_0 module is at most 65504 and the rank at most 1024, so that t below its
 * limit keeps B t below 1e17, whose square float32 still holds: the norms that follow cannot overflow.
 *
 * A row that is given up becomes zero in this product, since NaN and infinity would spread: where attention runs
 * over all cells of the KV cache and masks afterwards, one NaN in a cell reaches every sequence.
 */
static const float T_LIMIT = 1e9f, Y_LIMIT = 1e17f;

/*
 * Work of one product, in elements of A and B touched times rows, from which on it is shared out. Handing it to
 * the pool costs about 3 µs (a mutex and two barriers).
 */
#define GR_SHARE_FROM 60000

enum { MAX_PARTS = 64 }; /* per wave */

/* One adapter's share of one product. */
typedef struct part {
    const gr_adapter *adapter;
    const gr_module *module;
    const int32_t *rows;
    const float *scales;
    int n_rows;
    float *t; /* [n_rows][rank] in the hook's scratch */
} part;

/* An entry of the map from weight tensors to ids. The address is only compared. */
typedef struct known_weight {
    const void *tensor; /* NULL: free */
    int weight;         /* -1: not one of the base's */
} known_weight;

struct gr_hook {
    const gr_base_model *base;
    const gr_kernels *kernels;
    gr_pool *pool;

    known_weight *known;
    size_t known_mask, n_known;

    /* this decode */
    const gr_row_plan *plan;  /* NULL: nothing to do */
    uint8_t *touched;         /* [n_weights]: some adapter of the plan has it */
    uint8_t *seen;            /* [n_weights]: its product came by */
    int n_touched, n_products;
    const char *fault;        /* what made this decode worthless; the first one counts */
    int fault_weight;
    const gr_adapter *bad_adapter;
    atomic_int bad_part;      /* one of this wave's that brought y over its limit, or -1 */

    /* this product */
    const void *x;
    void *y;
    size_t x_stride, y_stride;
    part parts[MAX_PARTS];
    int n_parts;

    float *t;
    size_t t_size;
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
    h->kernels = kernels;
    h->known_mask = n_known - 1;
    h->known = gr_calloc(n_known, sizeof *h->known);
    h->touched = gr_zalloc(base->n_weights);
    h->seen = gr_zalloc(base->n_weights);
    h->t_size = (size_t)max_rows * GR_MAX_RANK; /* the largest single part */
    h->t = gr_alloc_aligned(h->t_size * sizeof *h->t);
    int status = 0;
    if (!h->known || !h->touched || !h->seen || !h->t) {
        status = gr_fail_memory(err, h->t_size * sizeof *h->t);
    } else {
        status = gr_pool_create(&h->pool, n_threads, err);
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
    gr_pool_free(h->pool);
    gr_free(h->t);
    gr_free(h->seen);
    gr_free(h->touched);
    gr_free(h->known);
    gr_free(h);
}

void gr_hook_attach(gr_hook *h, struct llama_context *ctx) {
    gr_pool_attach(h->pool, ctx);
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

/* The weight whose product this node is and that some adapter of the plan changes, or -1. */
static int wanted_weight(gr_hook *h, const struct ggml_tensor *node) {
    const struct ggml_tensor *w = node->op == GGML_OP_MUL_MAT ? node->src[0] : NULL;
    if (!w || w->op != GGML_OP_NONE) {
        return -1;
    }
    int weight = weight_of(h, w);
    return weight >= 0 && h->touched[weight] ? weight : -1;
}

static void fault(gr_hook *h, int weight, const char *what) {
    if (!h->fault) {
        h->fault = what;
        h->fault_weight = weight;
    }
}

/* A float32 matrix of n columns in memory that we can reach, rows contiguous in themselves. */
static bool plain_matrix(const struct ggml_tensor *t, int64_t n) {
    ggml_backend_buffer_t buffer = t->view_src ? t->view_src->buffer : t->buffer;
    return t->type == GGML_TYPE_F32 && t->ne[0] == n && t->ne[2] == 1 && t->ne[3] == 1 && t->nb[0] == sizeof(float) &&
           buffer && ggml_backend_buffer_is_host(buffer);
}

/* ---- the delta of one product -------------------------------------------------------------------------- */

/* [begin, end) of thread i's share of n, in multiples of `unit`. */
static void share(int n, int unit, int i, int n_threads, int *begin, int *end) {
    int units = (n + unit - 1) / unit;
    *begin = (int)((int64_t)units * i / n_threads) * unit;
    *end = (int)((int64_t)units * (i + 1) / n_threads) * unit;
    *begin = *begin < n ? *begin : n;
    *end = *end < n ? *end : n;
}

static void down(void *hook, int thread, int n_threads) {
    const gr_hook *h = hook;
    for (int i = 0; i < h->n_parts; i++) {
        const part *p = h->parts + i;
        int begin, end;
        if (p->n_rows >= 4 * n_threads) { /* many rows: each thread all of A, in whole tiles of rows */
            share(p->n_rows, 4, thread, n_threads, &begin, &end);
            h->kernels->down(p->t + (size_t)begin * (size_t)p->module->rank, p->module, h->x, h->x_stride,
                             p->rows + begin, p->scales + begin, end - begin, 0, p->module->rank);
        } else {
            share(p->module->rank, 4, thread, n_threads, &begin, &end);
            h->kernels->down(p->t, p->module, h->x, h->x_stride, p->rows, p->scales, p->n_rows, begin, end);
        }
    }
}

/* Whether all of v is within +-limit, and no NaN. On bit patterns, which compilers vectorise. */
static bool is_sane(const float *v, int n, float limit) {
    uint32_t bits, limit_bits, bad = 0;
    memcpy(&limit_bits, &limit, sizeof limit_bits);
    for (int i = 0; i < n; i++) {
        memcpy(&bits, v + i, sizeof bits);
        bad |= (bits & 0x7fffffffu) > limit_bits;
    }
    return !bad;
}

static bool t_is_sane(const part *p) {
    return is_sane(p->t, p->n_rows * p->module->rank, T_LIMIT);
}

/* Whether what came in was a number. If not, the row was spoilt before it met this adapter, through the cache or by
 * the base: it is left as it is, so that its logits tell the engine, and this adapter is not blamed. */
static bool came_in_sane(const gr_hook *h, const part *p, int i) {
    const char *x = (const char *)h->x + h->x_stride * (size_t)p->rows[i];
    return is_sane((const float *)(const void *)x, p->module->n_in, FLT_MAX);
}

/* Whether the adapter of the part made a number out of something that was one, in every row. */
static bool part_is_innocent(const gr_hook *h, const part *p) {
    for (int i = 0; i < p->n_rows; i++) {
        const float *t = p->t + (size_t)i * (size_t)p->module->rank;
        if (!is_sane(t, p->module->rank, T_LIMIT) && came_in_sane(h, p, i)) {
            return false;
        }
    }
    return true;
}

static float *y_at(const gr_hook *h, int32_t row, int o) {
    return (float *)(void *)((char *)h->y + h->y_stride * (size_t)row) + o;
}

/* The part has rows to give up: one at a time. */
static void up_with_care(gr_hook *h, const part *p, int begin, int end) {
    for (int i = 0; i < p->n_rows; i++) {
        const float *t = p->t + (size_t)i * (size_t)p->module->rank;
        if (is_sane(t, p->module->rank, T_LIMIT)) {
            h->kernels->up(h->y, h->y_stride, p->module, t, p->rows + i, 1, begin, end);
        } else if (came_in_sane(h, p, i)) {
            memset(y_at(h, p->rows[i], begin), 0, (size_t)(end - begin) * sizeof(float));
        }
    }
}

/* B in float32 can overflow whatever t is. */
static void check_y(gr_hook *h, int at, int begin, int end) {
    const part *p = h->parts + at;
    for (int i = 0; i < p->n_rows; i++) {
        float *y = y_at(h, p->rows[i], begin);
        if (!is_sane(y, end - begin, Y_LIMIT) && came_in_sane(h, p, i)) {
            memset(y, 0, (size_t)(end - begin) * sizeof(float));
            atomic_store_explicit(&h->bad_part, at, memory_order_relaxed);
        }
    }
}

static void up_part(gr_hook *h, int at, int begin, int end) {
    const part *p = h->parts + at;
    if (t_is_sane(p)) {
        h->kernels->up(h->y, h->y_stride, p->module, p->t, p->rows, p->n_rows, begin, end);
    } else {
        up_with_care(h, p, begin, end);
    }
    if (p->module->type == GR_DTYPE_F32) {
        check_y(h, at, begin, end);
    }
}

static void up(void *hook, int thread, int n_threads) {
    gr_hook *h = hook;
    for (int i = 0; i < h->n_parts; i++) {
        int begin, end;
        share(h->parts[i].module->n_out, 2 * GR_PAD, thread, n_threads, &begin, &end);
        up_part(h, i, begin, end);
    }
}

/* Whole parts, dealt out: each thread streams through A and B of its own adapters, with no barrier in between. */
static void down_and_up(void *hook, int thread, int n_threads) {
    gr_hook *h = hook;
    for (int i = thread; i < h->n_parts; i += n_threads) {
        const part *p = h->parts + i;
        h->kernels->down(p->t, p->module, h->x, h->x_stride, p->rows, p->scales, p->n_rows, 0, p->module->rank);
        up_part(h, i, 0, p->module->n_out);
    }
}

static int64_t work_of(const part *p) {
    return (int64_t)p->module->rank * (p->module->n_in + p->module->n_out) * p->n_rows;
}

/* Whether dealing out whole parts keeps the threads about equally busy, and no two of them write to one row. */
static bool can_be_dealt_out(const gr_hook *h, int n_threads, int64_t work) {
    if (!h->plan->disjoint || h->n_parts < n_threads) {
        return false;
    }
    for (int thread = 0; thread < n_threads; thread++) {
        int64_t mine = 0;
        for (int i = thread; i < h->n_parts; i += n_threads) {
            mine += work_of(h->parts + i);
        }
        if (mine * n_threads * 4 > work * 5) { /* a quarter above its share: the others would wait */
            return false;
        }
    }
    return true;
}

/* Works off the collected parts. */
static void run_wave(gr_hook *h) {
    int64_t work = 0;
    for (int i = 0; i < h->n_parts; i++) {
        work += work_of(h->parts + i);
    }
    int n_threads = gr_pool_threads(h->pool);
    atomic_store_explicit(&h->bad_part, -1, memory_order_relaxed);
    bool done = true;
    if (work < GR_SHARE_FROM || n_threads == 1) {
        down_and_up(h, 0, 1);
    } else if (can_be_dealt_out(h, n_threads, work)) {
        done = gr_pool_run(h->pool, down_and_up, NULL, h);
    } else {
        done = gr_pool_run(h->pool, down, up, h);
    }
    if (!done) {
        fault(h, h->parts[0].module->weight, "ggml refused to compute");
    }
    for (int i = 0; i < h->n_parts && !h->bad_adapter; i++) {
        if (!t_is_sane(h->parts + i) && !part_is_innocent(h, h->parts + i)) {
            h->bad_adapter = h->parts[i].adapter;
        }
    }
    int bad_part = atomic_load_explicit(&h->bad_part, memory_order_relaxed);
    if (bad_part >= 0 && !h->bad_adapter) {
        h->bad_adapter = h->parts[bad_part].adapter;
    }
    h->n_parts = 0;
}

static const gr_module *module_for(const gr_adapter *a, int weight) {
    int32_t at = (size_t)weight < a->n_weights ? a->by_weight[weight] : -1;
    return at < 0 || a->modules[at].zero ? NULL : &a->modules[at];
}

static void add_deltas(gr_hook *h, int weight, bool outputs) {
    size_t used = 0;
    for (int i = 0; i < h->plan->n_groups; i++) {
        const gr_row_group *g = h->plan->groups + i;
        const gr_module *m = module_for(g->adapter, weight);
        int n_rows = outputs ? g->n_out_rows : g->n_rows;
        if (!m || n_rows == 0) {
            continue;
        }
        size_t need = (size_t)n_rows * (size_t)m->rank;
        if (h->n_parts == MAX_PARTS || used + need > h->t_size) {
            run_wave(h);
            used = 0;
        }
        part p = {g->adapter, m, outputs ? g->out_rows : g->rows, outputs ? g->out_scales : g->scales, n_rows,
                  h->t + used};
        h->parts[h->n_parts++] = p;
        used += (need + 15) & ~(size_t)15; /* parts start on their own cache lines; t_size is a multiple of 16 */
    }
    if (h->n_parts > 0) {
        run_wave(h);
    }
}

/* A wanted node was computed. */
static void product(gr_hook *h, int weight, const struct ggml_tensor *node) {
    const gr_weight *w = h->base->weights + weight;
    const struct ggml_tensor *x = node->src[1];
    int64_t n_rows = node->ne[1];
    if (h->seen[weight]) {
        fault(h, weight, "came by twice in one decode");
    } else if (!plain_matrix(node, w->n_out) || !plain_matrix(x, w->n_in) || x->ne[1] != n_rows) {
        fault(h, weight, "is not a plain matrix product here");
    } else if (n_rows != h->plan->n_tokens && n_rows != h->plan->n_outputs) {
        fault(h, weight, "was given an unexpected number of rows");
    }
    h->seen[weight] = 1;
    h->n_products++;
    if (h->fault) {
        return;
    }
    h->x = x->data;
    h->y = node->data;
    h->x_stride = x->nb[1];
    h->y_stride = node->nb[1];
    add_deltas(h, weight, n_rows != h->plan->n_tokens);
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
    int weight = wanted_weight(h, node);
    if (!ask && weight >= 0) {
        product(h, weight, node);
    }
    return ask ? weight >= 0 : true;
}

ggml_backend_sched_eval_callback gr_hook_callback(void) {
    return callback;
}

/* ---- around a decode ----------------------------------------------------------------------------------- */

void gr_hook_begin(gr_hook *h, const gr_row_plan *plan) {
    h->plan = plan && plan->n_groups > 0 ? plan : NULL;
    h->n_touched = h->n_products = 0;
    h->fault = NULL;
    h->bad_adapter = NULL;
    if (!h->plan) {
        return;
    }
    memset(h->touched, 0, h->base->n_weights);
    memset(h->seen, 0, h->base->n_weights);
    for (int i = 0; i < plan->n_groups; i++) {
        const gr_adapter *a = plan->groups[i].adapter;
        for (size_t j = 0; j < a->n_modules; j++) {
            const gr_module *m = a->modules + j;
            h->n_touched += !m->zero && !h->touched[m->weight];
            h->touched[m->weight] |= !m->zero;
        }
    }
}

/* A touched weight that never came by; there is one. */
static int missing_weight(const gr_hook *h) {
    size_t w = 0;
    while (w + 1 < h->base->n_weights && !(h->touched[w] && !h->seen[w])) {
        w++;
    }
    return (int)w;
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
    if (h->bad_adapter) {
        *bad_adapter = h->bad_adapter;
        return gr_fail(err, GRAFT_E_NON_FINITE_OUTPUT, "the adapter brings values to NaN or beyond %g",
                       (double)T_LIMIT);
    }
    return 0;
}

int gr_hook_products(const gr_hook *h) {
    return h->n_products;
}
