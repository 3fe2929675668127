/* One place for what each kind of module holds. */
#include "adapter_layout.h"

#include "model/convert.h"

#include <stdlib.h>
#include <string.h>

size_t gr_packed_size(gr_dtype type, size_t n) {
    return type == GR_DTYPE_Q8_0 ? n / GR_Q8_0_BLOCK * sizeof(gr_q8_0) : n * gr_dtype_size(type);
}

static int padded(int64_t n) {
    return (int)((n + GR_PAD - 1) / GR_PAD * GR_PAD);
}

static uint64_t aligned(uint64_t bytes) {
    return (bytes + 63) & ~(uint64_t)63;
}

/* ---- what it is ----------------------------------------------------------------------------------------- */

static gr_dtype stored_as(const gr_plan_entry *e, graft_adapter_type type) {
    if (type == GRAFT_TYPE_F32) {
        return GR_DTYPE_F32;
    }
    bool blocks = e->op == GR_OP_PRODUCT && (e->kind == GR_WHOLE || e->kind == GR_LOW_RANK) &&
                  !(e->kind == GR_LOW_RANK && e->rows.order == GR_ROWS_NEOX_QKV);
    return type == GRAFT_TYPE_Q8_0 && blocks ? GR_DTYPE_Q8_0 : GR_DTYPE_F16;
}

void gr_module_describe(gr_module *m, const gr_plan *plan, const gr_plan_entry *e, graft_adapter_type type) {
    const gr_weight *w = &plan->base->weights[e->weight];
    bool rows = e->op == GR_OP_ROWS;
    int64_t n_in = rows ? w->n_out : w->n_in;
    int64_t n_out = rows ? w->n_in : e->kind == GR_TOKENS ? w->n_out : e->n_rows;
    *m = (gr_module){.weight = e->weight,
                     .kind = e->kind,
                     .op = e->op,
                     .rank = e->kind == GR_LOW_RANK ? e->rank : 0,
                     .n_in = (int)n_in,
                     .n_out = (int)n_out,
                     .first = rows || e->kind == GR_TOKENS ? 0 : (int)e->first,
                     .stride_in = padded(n_in),
                     .stride_out = padded(n_out),
                     .scale = e->kind == GR_LOW_RANK ? (float)e->scale : 1.0f,
                     .type = stored_as(e, type),
                     .n_tokens = e->kind == GR_TOKENS ? (int)e->n_tokens : 0};
    m->stride_rank = rows && e->kind == GR_LOW_RANK ? padded(e->rank) : 0;
}

gr_packed gr_module_a(const gr_module *m) {
    bool rows = m->op == GR_OP_ROWS;
    size_t in = (size_t)m->n_in, out = (size_t)m->n_out, stride_in = (size_t)m->stride_in, stride_out = (size_t)m->stride_out;
    switch (m->kind) {
    case GR_LOW_RANK:
        return rows ? (gr_packed){in, (size_t)m->rank, (size_t)m->stride_rank} : (gr_packed){(size_t)m->rank, in, stride_in};
    case GR_WHOLE: return rows ? (gr_packed){in, out, stride_out} : (gr_packed){out, in, stride_in};
    case GR_TOKENS: return (gr_packed){(size_t)m->n_tokens, rows ? out : in, rows ? stride_out : stride_in};
    default: return (gr_packed){0, 0, 0};
    }
}

gr_packed gr_module_b(const gr_module *m) {
    return m->kind == GR_LOW_RANK ? (gr_packed){(size_t)m->rank, (size_t)m->n_out, (size_t)m->stride_out} : (gr_packed){0, 0, 0};
}

/* ---- how large ------------------------------------------------------------------------------------------ */

static uint64_t matrix_bytes(gr_packed p, gr_dtype type) {
    return aligned(gr_packed_size(type, p.rows * p.stride));
}

uint64_t gr_module_matrix_bytes(const gr_module *m) {
    return matrix_bytes(gr_module_a(m), m->type) + matrix_bytes(gr_module_b(m), m->type);
}

/* Vectors of n_out numbers. */
static int n_vectors(const gr_plan_entry *e) {
    switch (e->kind) {
    case GR_LOW_RANK: return (e->magnitude ? 4 : 0) + (e->bias ? 1 : 0);
    case GR_NORM:
    case GR_BIAS: return 1;
    default: return 0;
    }
}

static uint64_t one_vector(const gr_module *m) {
    return aligned((uint64_t)m->n_out * sizeof(float));
}

uint64_t gr_module_vector_bytes(const gr_module *m, const gr_plan_entry *e) {
    return (uint64_t)n_vectors(e) * one_vector(m) + aligned((uint64_t)m->n_tokens * sizeof(int32_t));
}

/* ---- where ---------------------------------------------------------------------------------------------- */

/* Not of Q8_0: there it is in the last block of a row, which is filled as a whole. */
static void zero_padding(void *matrix, gr_packed p, gr_dtype type) {
    size_t size = gr_dtype_size(type);
    for (size_t k = 0; k < p.rows && p.used < p.stride && type != GR_DTYPE_Q8_0; k++) {
        memset((char *)matrix + (k * p.stride + p.used) * size, 0, (p.stride - p.used) * size);
    }
}

void gr_module_place_matrices(gr_module *m, char *memory) {
    gr_packed a = gr_module_a(m), b = gr_module_b(m);
    char *after = memory + matrix_bytes(a, m->type);
    zero_padding(memory, a, m->type);
    zero_padding(after, b, m->type);
    m->a = a.rows ? memory : NULL;
    m->b = b.rows ? after : NULL;
}

static int ascending(const void *a, const void *b) {
    int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;
    return (x > y) - (x < y);
}

static void place_tokens(gr_module *m, const gr_plan_entry *e, char *memory) {
    int32_t *tokens = (int32_t *)(void *)memory;
    memcpy(tokens, e->tokens, e->n_tokens * sizeof *tokens);
    qsort(tokens, e->n_tokens, sizeof *tokens, ascending);
    m->tokens = tokens;
}

void gr_module_place_vectors(gr_module *m, const gr_plan_entry *e, char *memory) {
    uint64_t size = one_vector(m);
    const float *vectors[5] = {0};
    for (int i = 0; i < n_vectors(e); i++, memory += size) {
        memset(memory, 0, (size_t)size);
        vectors[i] = (const float *)(const void *)memory;
    }
    if (e->kind == GR_TOKENS) {
        place_tokens(m, e, memory);
    } else if (e->kind == GR_NORM) {
        m->factor = vectors[0];
    } else if (e->kind == GR_BIAS) {
        m->shift = vectors[0];
    } else if (e->magnitude) {
        m->gain = (gr_gain){vectors[0], vectors[1], vectors[2], vectors[3]};
        m->shift = vectors[4];
    } else {
        m->shift = vectors[0];
    }
}
