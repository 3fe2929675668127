/*
 * One node's changes: collecting parts into waves, and sharing a wave out over threads. Threads split `first` by k or by rows
 * and `second` by outputs, so that no two write the same element, and a row that several adapters share gets their changes
 * in the plan's order.
 */
#include "lora/apply.h"

#include "base/memory.h"
#include "lora/sane.h"

/*
 * Work of one wave, in products of two numbers, from which on it is shared out. Handing it to the pool costs about 3 µs (a
 * mutex and two barriers).
 */
#define GR_SHARE_FROM 60000

int gr_apply_create(gr_apply **out, int max_rows, int n_threads, const gr_kernels *kernels, graft_error *err) {
    gr_apply *a = gr_zalloc(sizeof *a);
    if (!a) {
        return gr_fail_memory(err, sizeof *a);
    }
    a->kernels = kernels;
    a->t_size = (size_t)max_rows * GR_MAX_RANK; /* the largest single part */
    a->t = gr_alloc_aligned(a->t_size * sizeof *a->t);
    int status = a->t ? gr_pool_create(&a->pool, n_threads, err) : gr_fail_memory(err, a->t_size * sizeof *a->t);
    if (status) {
        gr_apply_free(a);
        return status;
    }
    *out = a;
    return 0;
}

void gr_apply_free(gr_apply *a) {
    if (a) {
        gr_pool_free(a->pool);
        gr_free(a->t);
        gr_free(a);
    }
}

void gr_apply_begin(gr_apply *a) {
    a->bad_adapter = NULL;
    a->refused = false;
}

/* ---- a wave ---------------------------------------------------------------------------------------------- */

static const gr_way *way_of(const gr_module *m) {
    bool product = m->op == GR_OP_PRODUCT;
    switch (m->kind) {
    case GR_LOW_RANK: return product ? &gr_way_product : &gr_way_rows;
    case GR_NORM: return &gr_way_norm;
    case GR_BIAS: return &gr_way_bias;
    case GR_WHOLE:
    case GR_TOKENS: break;
    }
    return product ? &gr_way_dense_product : &gr_way_dense_rows;
}

/* What threads share: tokens of a head, else outputs. */
static int width_of(const gr_module *m) {
    return m->kind == GR_TOKENS && m->op == GR_OP_PRODUCT ? m->n_tokens : m->n_out;
}

void gr_thread_share(int n, int unit, int i, int n_threads, int *begin, int *end) {
    int units = (n + unit - 1) / unit;
    *begin = (int)((int64_t)units * i / n_threads) * unit;
    *end = (int)((int64_t)units * (i + 1) / n_threads) * unit;
    *begin = *begin < n ? *begin : n;
    *end = *end < n ? *end : n;
}

static void first(void *apply, int thread, int n_threads) {
    const gr_apply *a = apply;
    for (int i = 0; i < a->n_parts; i++) {
        const gr_way *way = way_of(a->parts[i].module);
        if (way->first) {
            way->first(a, a->parts + i, thread, n_threads);
        }
    }
}

static void second(void *apply, int thread, int n_threads) {
    gr_apply *a = apply;
    for (int i = 0; i < a->n_parts; i++) {
        const gr_module *m = a->parts[i].module;
        int begin, end;
        gr_thread_share(width_of(m), 2 * GR_PAD, thread, n_threads, &begin, &end);
        way_of(m)->second(a, i, begin, end);
    }
}

/* Whole parts, dealt out: each thread streams through A and B of its own adapters, with no barrier in between. */
static void first_and_second(void *apply, int thread, int n_threads) {
    gr_apply *a = apply;
    for (int i = thread; i < a->n_parts; i += n_threads) {
        const gr_module *m = a->parts[i].module;
        const gr_way *way = way_of(m);
        if (way->first) {
            way->first(a, a->parts + i, 0, 1);
        }
        way->second(a, i, 0, width_of(m));
    }
}

static int64_t work_of(const gr_part *p) {
    return way_of(p->module)->work(p);
}

/* Whether dealing out whole parts keeps the threads about equally busy, and no two of them write to one element. */
static bool can_be_dealt_out(const gr_apply *a, int n_threads, int64_t work) {
    if (!a->disjoint || a->n_parts < n_threads || !a->low_rank) {
        return false;
    }
    for (int thread = 0; thread < n_threads; thread++) {
        int64_t mine = 0;
        for (int i = thread; i < a->n_parts; i += n_threads) {
            mine += work_of(a->parts + i);
        }
        if (mine * n_threads * 4 > work * 5) { /* a quarter above its share: the others would wait */
            return false;
        }
    }
    return true;
}

/* Whether the adapter of the part made a t that is too large out of what was a number, in some row. */
static bool is_to_blame(const gr_apply *a, const gr_part *p) {
    int rank = p->module->rank;
    if (!p->t || gr_is_sane(p->t, p->n_rows * rank, GR_T_LIMIT)) {
        return false;
    }
    for (int i = 0; i < p->n_rows; i++) {
        if (!gr_is_sane(p->t + (size_t)i * (size_t)rank, rank, GR_T_LIMIT) && gr_came_in_sane(a, p, i)) {
            return true;
        }
    }
    return false;
}

static void blame(gr_apply *a) {
    for (int i = 0; i < a->n_parts && !a->bad_adapter; i++) {
        if (is_to_blame(a, a->parts + i)) {
            a->bad_adapter = a->parts[i].adapter;
        }
    }
    int bad_part = atomic_load_explicit(&a->bad_part, memory_order_relaxed);
    if (bad_part >= 0 && !a->bad_adapter) {
        a->bad_adapter = a->parts[bad_part].adapter;
    }
}

/* Works off the collected parts. */
static void run_wave(gr_apply *a) {
    int64_t work = 0;
    for (int i = 0; i < a->n_parts; i++) {
        work += work_of(a->parts + i);
    }
    int n_threads = gr_pool_threads(a->pool);
    atomic_store_explicit(&a->bad_part, -1, memory_order_relaxed);
    bool done = true;
    if (work < GR_SHARE_FROM || n_threads == 1) {
        first_and_second(a, 0, 1);
    } else if (can_be_dealt_out(a, n_threads, work)) {
        done = gr_pool_run(a->pool, first_and_second, NULL, a);
    } else {
        done = gr_pool_run(a->pool, first, second, a);
    }
    a->refused |= !done;
    blame(a);
    a->n_parts = 0;
    a->t_used = 0;
}

/* ---- collecting ------------------------------------------------------------------------------------------ */

/* Whether a thread's share of one part are the outputs of its share of the other. */
static bool same_shares(const gr_module *m, const gr_module *n) {
    return m->first == n->first && m->n_out == n->n_out &&
           !(m->op == GR_OP_PRODUCT && (m->kind == GR_TOKENS || n->kind == GR_TOKENS));
}

/*
 * Threads work off a wave without waiting for each other, so no two parts of it may write to one element unless the same thread
 * does both, in order. Low-rank modules of one adapter change different outputs, those of different adapters different rows
 * where no row has two adapters.
 */
static bool fits_wave(const gr_apply *a, const gr_module *m, size_t need) {
    if (a->n_parts == GR_MAX_PARTS || a->t_used + need > a->t_size) {
        return false;
    }
    return a->n_parts == 0 || (a->alike && same_shares(a->parts[0].module, m)) ||
           (a->disjoint && a->low_rank && m->kind == GR_LOW_RANK);
}

static void collect(gr_apply *a, gr_part p) {
    const gr_module *m = p.module;
    size_t need = m->kind == GR_LOW_RANK ? (size_t)p.n_rows * (size_t)m->rank : 0;
    if (!fits_wave(a, m, need)) {
        run_wave(a);
    }
    bool first_one = a->n_parts == 0;
    a->alike = first_one || (a->alike && same_shares(a->parts[0].module, m));
    a->low_rank = (first_one || a->low_rank) && m->kind == GR_LOW_RANK;
    p.t = need ? a->t + a->t_used : NULL;
    a->t_used += (need + 15) & ~(size_t)15; /* parts start on their own cache lines; t_size is a multiple of 16 */
    a->parts[a->n_parts++] = p;
}

/* The modules of one adapter for this weight and operation that have their turn. */
static void collect_group(gr_apply *a, const gr_row_group *g, int weight, int turn, bool outputs) {
    int n_rows = outputs ? g->n_out_rows : g->n_rows;
    int32_t at = (size_t)weight < g->adapter->n_weights && n_rows > 0 ? g->adapter->by_weight[weight] : -1;
    for (; at >= 0 && (size_t)at < g->adapter->n_modules && g->adapter->modules[at].weight == weight; at++) {
        const gr_module *m = g->adapter->modules + at;
        if (m->op == a->node.op && !m->zero && gr_turn_of(m) == turn) {
            collect(a, (gr_part){g->adapter, m, outputs ? g->out_rows : g->rows, outputs ? g->out_scales : g->scales,
                                 n_rows, NULL});
        }
    }
}

void gr_apply_node(gr_apply *a, const gr_node *node, const gr_row_plan *plan, int weight, unsigned turns, bool outputs) {
    a->node = *node;
    a->disjoint = plan->disjoint;
    for (int turn = 0; turn < GR_TURNS; turn++) {
        for (int i = 0; turns >> turn & 1 && i < plan->n_groups; i++) {
            collect_group(a, plan->groups + i, weight, turn, outputs);
        }
    }
    if (a->n_parts > 0) {
        run_wave(a);
    }
}
