/* Lays out and fills the one block of a random adapter; the packing is described in model/adapter.h. */
#include "lora/random_adapter.h"

#include "base/memory.h"
#include "model/convert.h"

#include <ggml.h>
#include <math.h>

static int padded(int64_t n) {
    return (int)((n + GR_PAD - 1) / GR_PAD * GR_PAD);
}

/* Bytes of a packed matrix; a multiple of 64 whatever the type, so that what follows is aligned. */
static size_t matrix_bytes(const gr_module *m, int stride) {
    size_t bytes = gr_packed_size(m->type, (size_t)m->rank * (size_t)stride);
    return (bytes + 63) & ~(size_t)63;
}

/* Four bits of x: times an integer of 7 bits that is exact in float16. */
static float four_bits(float x) {
    int exponent;
    float fraction = frexpf(x, &exponent);
    return ldexpf(roundf(fraction * 16.0f) / 16.0f, exponent);
}

/* Uniform numbers of about the standard deviation `sigma` in the first n columns, zeros in the padding. All are
 * integers of -127 to 127 times one factor. */
static void fill(void *matrix, const gr_module *m, int n, int stride, float sigma, uint64_t *state) {
    float factor = four_bits(sqrtf(3.0f) * sigma / 127.0f);
    for (int k = 0; k < m->rank; k++) {
        for (int j = 0; j < stride; j++) {
            size_t at = (size_t)k * (size_t)stride + (size_t)j;
            int q = (int)(gr_random(state) % 255) - 127;
            q = j < n ? q : 0;
            if (m->type == GR_DTYPE_Q8_0) {
                gr_q8_0 *block = (gr_q8_0 *)matrix + at / GR_Q8_0_BLOCK;
                block->factor = ggml_fp32_to_fp16(factor);
                block->q[at % GR_Q8_0_BLOCK] = (int8_t)q;
            } else if (m->type == GR_DTYPE_F16) {
                ((ggml_fp16_t *)matrix)[at] = ggml_fp32_to_fp16(factor * (float)q);
            } else {
                ((float *)matrix)[at] = factor * (float)q;
            }
        }
    }
}

/* Everything but the matrices. Returns the bytes that those need. */
static size_t describe(gr_adapter *a, const gr_base_model *base, const int *weights, int rank, gr_dtype type) {
    size_t bytes = 0;
    for (size_t i = 0; i < base->n_weights; i++) {
        a->by_weight[i] = -1;
    }
    for (size_t i = 0; i < a->n_modules; i++) {
        const gr_weight *w = base->weights + weights[i];
        gr_module *m = a->modules + i;
        m->weight = weights[i];
        m->rank = rank;
        m->n_in = (int)w->n_in;
        m->n_out = (int)w->n_out;
        m->stride_in = padded(w->n_in);
        m->stride_out = padded(w->n_out);
        m->scale = 1.0f;
        m->type = type;
        a->by_weight[weights[i]] = (int32_t)i;
        bytes += matrix_bytes(m, m->stride_in) + matrix_bytes(m, m->stride_out);
    }
    return bytes;
}

int gr_random_adapter_create(gr_adapter **out, const gr_base_model *base, const int *weights, size_t n, int rank,
                             gr_dtype type, float gain, uint64_t seed, graft_error *err) {
    gr_adapter *a = gr_zalloc(sizeof *a);
    if (!a) {
        return gr_fail_memory(err, sizeof *a);
    }
    atomic_init(&a->references, 1);
    a->n_modules = n;
    a->n_weights = base->n_weights;
    a->rank_min = a->rank_max = rank;
    a->type = type == GR_DTYPE_F16 ? GRAFT_TYPE_F16 : type == GR_DTYPE_Q8_0 ? GRAFT_TYPE_Q8_0 : GRAFT_TYPE_F32;
    a->modules = gr_calloc(n, sizeof *a->modules);
    a->by_weight = gr_calloc(base->n_weights, sizeof *a->by_weight);
    size_t bytes = a->modules && a->by_weight ? describe(a, base, weights, rank, type) : 0;
    a->block = gr_alloc_aligned(bytes);
    if (!a->modules || !a->by_weight || !a->block) {
        gr_random_adapter_free(a);
        return gr_fail_memory(err, bytes);
    }
    char *at = a->block;
    uint64_t state = seed * 2 + 1;
    for (size_t i = 0; i < n; i++) {
        gr_module *m = a->modules + i;
        fill(at, m, m->n_in, m->stride_in, 1.0f / sqrtf((float)m->n_in), &state);
        m->a = at;
        at += matrix_bytes(m, m->stride_in);
        fill(at, m, m->n_out, m->stride_out, gain / sqrtf((float)rank), &state);
        m->b = at;
        at += matrix_bytes(m, m->stride_out);
    }
    *out = a;
    return 0;
}

void gr_random_adapter_free(gr_adapter *a) {
    if (a) {
        gr_free(a->block);
        gr_free(a->by_weight);
        gr_free(a->modules);
        gr_free(a);
    }
}
