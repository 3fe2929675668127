/*
 * What adapters do to one node of libllama's graph, once the hook has found it: the parts that a node falls into, how they are
 * shared out over threads (apply.c), and how each kind of change is made (apply_*.c). Internal to the hook.
 *
 * For one node the plan's groups that change it become parts: one group, one module. Parts are worked off in waves. Within
 * a wave everybody's first pass (which fills t) comes before everybody's second (which changes y).
 *
 * The order on one element of y does not depend on who is in the batch: first what replaces (another head, other rows of an
 * embedding, a norm), then what scales (DoRA), then what adds; within each by the adapters' addresses.
 */
#ifndef GR_APPLY_H
#define GR_APPLY_H

#include "lora/kernels.h"
#include "lora/pool.h"
#include "lora/row_plan.h"

#include <stdatomic.h>

/* When a module's turn comes. */
enum { GR_REPLACES, GR_SCALES, GR_ADDS, GR_TURNS };

static inline int gr_turn_of(const gr_module *m) {
    if (m->kind == GR_WHOLE || m->kind == GR_TOKENS || m->kind == GR_NORM) {
        return GR_REPLACES;
    }
    return m->gain.magnitude ? GR_SCALES : GR_ADDS;
}

/* A node that was computed. Its rows are y; what else there is depends on the operation. */
typedef struct gr_node {
    gr_op op;
    void *y;
    size_t y_stride;
    const void *x;          /* PRODUCT: float32, [rows][n_in] */
    size_t x_stride;
    int n_in;
    const int32_t *ids;     /* ROWS: the rows' tokens, all in range */
    int heads;              /* MUL, ADD: vectors in each row, 1 but for norms over heads */
    size_t head_stride;
} gr_node;

/* One module's share of one node. */
typedef struct gr_part {
    const gr_adapter *adapter;
    const gr_module *module;
    const int32_t *rows;
    const float *factors; /* f, by row */
    int n_rows;
    float *t;             /* LOW_RANK: [n_rows][rank] in the scratch */
} gr_part;

enum { GR_MAX_PARTS = 64 }; /* per wave */

typedef struct gr_apply {
    const gr_kernels *kernels;
    gr_pool *pool;
    float *t;             /* scratch, enough for the largest single part */
    size_t t_size, t_used;

    /* this wave */
    gr_node node;
    bool disjoint;        /* no row has two adapters */
    gr_part parts[GR_MAX_PARTS];
    int n_parts;
    bool alike;           /* all parts have the same outputs */
    bool low_rank;        /* all are LOW_RANK */
    atomic_int bad_part;  /* one that brought y over its limit, or -1 */

    /* since gr_apply_begin */
    const gr_adapter *bad_adapter;
    bool refused;         /* ggml did not compute */
} gr_apply;

/* How one kind of change is made. */
typedef struct gr_way {
    /* Thread i's share of t; NULL: there is none. */
    void (*first)(const gr_apply *a, const gr_part *p, int thread, int n_threads);
    /* Changes outputs [begin, end) of the part's width, multiples of GR_PAD but for the last. All that comes out wrong is given up
     * and noted (gr_spoilt). */
    void (*second)(gr_apply *a, int part, int begin, int end);
    int64_t (*work)(const gr_part *p); /* about, in products of two numbers */
} gr_way;

extern const gr_way gr_way_product, gr_way_rows;                     /* LOW_RANK: apply_low_rank.c */
extern const gr_way gr_way_dense_product, gr_way_dense_rows;         /* WHOLE and TOKENS: apply_dense.c */
extern const gr_way gr_way_norm, gr_way_bias;                        /* apply_vector.c */

/* For nodes of at most max_rows rows. */
int gr_apply_create(gr_apply **out, int max_rows, int n_threads, const gr_kernels *kernels, graft_error *err);
void gr_apply_free(gr_apply *a);

/* Forgets what the last decode did wrong. */
void gr_apply_begin(gr_apply *a);
/* All changes of `weight` in a node; `turns` says which turns there are (bits), `outputs` in which numbering its rows are. */
void gr_apply_node(gr_apply *a, const gr_node *node, const gr_row_plan *plan, int weight, unsigned turns, bool outputs);

/* For apply_*.c: the part's piece of row i of y, from output o on. */
static inline float *gr_part_y(const gr_apply *a, const gr_part *p, int i, int o) {
    char *row = (char *)a->node.y + a->node.y_stride * (size_t)p->rows[i];
    return (float *)(void *)row + p->module->first + o;
}

/* [begin, end) of thread i's share of n, in multiples of `unit`. */
void gr_thread_share(int n, int unit, int i, int n_threads, int *begin, int *end);

#endif
