/*
 * Every kernel set against sums in double precision, over shapes chosen for their tails; and the promises of
 * kernels.h: nothing outside is touched, and results do not depend on company or on splitting.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "base/memory.h"
#include "lora/kernels_simd.h"
#include "lora/random_adapter.h"
#include "model/convert.h"

#include <ggml.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_ROWS = 11, GAP = 3 }; /* GAP: floats between rows that no kernel may use or change */

typedef struct problem {
    gr_base_model base;
    gr_weight weight;
    gr_adapter *adapter;
    const gr_module *m;
    float *x, *y;          /* MAX_ROWS rows each; y is what it was before */
    size_t x_stride, y_stride; /* in floats */
    int32_t rows[MAX_ROWS];
    float scale[MAX_ROWS];
    int n_rows;
} problem;

static float uniform(uint64_t *state) {
    return (float)(gr_random(state) >> 8) * (2.0f / 16777216.0f) - 1.0f;
}

static float element(const gr_module *m, const void *matrix, size_t at) {
    if (m->type == GR_DTYPE_Q8_0) {
        const gr_q8_0 *block = (const gr_q8_0 *)matrix + at / 32;
        return ggml_fp16_to_fp32(block->factor) * (float)block->q[at % 32];
    }
    if (m->type == GR_DTYPE_F16) {
        return ggml_fp16_to_fp32(((const ggml_fp16_t *)matrix)[at]);
    }
    return ((const float *)matrix)[at];
}

/* Another factor for each block, some of them no normal float16, some negative (which no packer makes). */
static void vary_factors(const gr_module *m, const void *matrix, int stride, uint64_t *state) {
    gr_q8_0 *block = (gr_q8_0 *)matrix;
    for (int i = 0; i < m->rank * stride / 32; i++) {
        float factor = (0.2f + uniform(state)) * (gr_random(state) % 8 ? 0.01f : 1e-6f);
        block[i].factor = ggml_fp32_to_fp16(factor);
    }
}

/* Rows are a random choice in random order; the memory behind the last row of x and y is not ours. */
static void make(problem *p, int n_in, int n_out, int rank, gr_dtype type, int n_rows, uint64_t seed) {
    int id = 0;
    uint64_t state = seed * 77 + 5;
    memset(p, 0, sizeof *p);
    p->weight.n_in = n_in;
    p->weight.n_out = n_out;
    p->base.weights = &p->weight;
    p->base.n_weights = 1;
    assert_int_equal(gr_random_adapter_create(&p->adapter, &p->base, &id, 1, rank, type, 1.0f, seed, NULL), 0);
    p->adapter->modules[0].scale = 1.5f + uniform(&state);
    p->m = p->adapter->modules;
    if (type == GR_DTYPE_Q8_0) {
        vary_factors(p->m, p->m->a, p->m->stride_in, &state);
        vary_factors(p->m, p->m->b, p->m->stride_out, &state);
    }
    p->x_stride = (size_t)(n_in + GAP);
    p->y_stride = (size_t)(n_out + GAP);
    p->x = malloc((p->x_stride * (MAX_ROWS - 1) + (size_t)n_in) * sizeof(float));
    p->y = malloc((p->y_stride * (MAX_ROWS - 1) + (size_t)n_out) * sizeof(float));
    for (size_t i = 0; i < p->x_stride * (MAX_ROWS - 1) + (size_t)n_in; i++) {
        p->x[i] = i % p->x_stride < (size_t)n_in ? uniform(&state) : NAN;
    }
    for (size_t i = 0; i < p->y_stride * (MAX_ROWS - 1) + (size_t)n_out; i++) {
        p->y[i] = i % p->y_stride < (size_t)n_out ? uniform(&state) : 12345.0f;
    }
    int32_t all[MAX_ROWS];
    for (int i = 0; i < MAX_ROWS; i++) {
        int at = (int)(gr_random(&state) % (uint32_t)(i + 1));
        all[i] = all[at];
        all[at] = i;
    }
    p->n_rows = n_rows;
    for (int i = 0; i < n_rows; i++) {
        p->rows[i] = all[i];
        p->scale[i] = 2.0f * uniform(&state);
    }
}

static void finish(problem *p) {
    free(p->x);
    free(p->y);
    gr_random_adapter_free(p->adapter);
}

static float *run_down(const problem *p, const gr_kernels *kernels, int k0, int k1) {
    float *t = malloc((size_t)(p->n_rows * p->m->rank) * sizeof *t);
    for (int i = 0; i < p->n_rows * p->m->rank; i++) {
        t[i] = 777.0f;
    }
    kernels->down(t, p->m, p->x, p->x_stride * sizeof(float), p->rows, p->scale, p->n_rows, k0, k1);
    return t;
}

static size_t y_count(const problem *p) {
    return p->y_stride * (MAX_ROWS - 1) + (size_t)p->m->n_out;
}

/* A copy of y with the delta of rows [r0, r1) and outputs [o0, o1) added. */
static float *run_up(const problem *p, const gr_kernels *kernels, const float *t, int r0, int r1, int o0, int o1) {
    float *y = malloc(y_count(p) * sizeof *y);
    memcpy(y, p->y, y_count(p) * sizeof *y);
    kernels->up(y, p->y_stride * sizeof(float), p->m, t + r0 * p->m->rank, p->rows + r0, r1 - r0, o0, o1);
    return y;
}

/* Float32 sums of n terms, each rounded, in lanes: far below this; one term too few or too many: far above. */
static void check_close(double got, double want, double size) {
    if (!(fabs(got - want) <= 2e-6 * size + 1e-12)) {
        fail_msg("got %.9g, want %.9g (size %g)", got, want, size);
    }
}

static void check_down(const problem *p, const float *t) {
    const gr_module *m = p->m;
    for (int i = 0; i < p->n_rows; i++) {
        for (int k = 0; k < m->rank; k++) {
            double sum = 0, size = 0, scale = (double)m->scale * p->scale[i];
            for (int j = 0; j < m->n_in; j++) {
                double term = (double)element(m, m->a, (size_t)k * (size_t)m->stride_in + (size_t)j) *
                              p->x[p->x_stride * (size_t)p->rows[i] + (size_t)j];
                sum += term;
                size += fabs(term);
            }
            check_close(t[i * m->rank + k], scale * sum, fabs(scale) * size);
        }
    }
}

/* All of y, also what must not have changed. */
static void check_up(const problem *p, const float *t, const float *y, int o0, int o1) {
    const gr_module *m = p->m;
    for (size_t at = 0; at < y_count(p); at++) {
        int row = (int)(at / p->y_stride), o = (int)(at % p->y_stride), i = 0;
        while (i < p->n_rows && p->rows[i] != row) {
            i++;
        }
        if (i == p->n_rows || o < o0 || o >= o1) {
            assert_true(y[at] == p->y[at]);
            continue;
        }
        double sum = 0, size = fabsf(p->y[at]);
        for (int k = 0; k < m->rank; k++) {
            double b = element(m, m->b, (size_t)k * (size_t)m->stride_out + (size_t)o), term = b * t[i * m->rank + k];
            sum += term;
            size += fabs(term);
        }
        check_close(y[at], p->y[at] + sum, size);
    }
}

static void check_problem(const gr_kernels *kernels, int n_in, int n_out, int rank, gr_dtype type, int n_rows,
                          uint64_t seed) {
    problem p;
    make(&p, n_in, n_out, rank, type, n_rows, seed);
    float *t = run_down(&p, kernels, 0, rank);
    check_down(&p, t);
    int o0 = n_out > 3 * GR_PAD ? GR_PAD : 0, o1 = n_out > 3 * GR_PAD ? 3 * GR_PAD : n_out;
    float *part = run_up(&p, kernels, t, 0, n_rows, o0, o1);
    check_up(&p, t, part, o0, o1);
    float *whole = run_up(&p, kernels, t, 0, n_rows, 0, n_out);
    check_up(&p, t, whole, 0, n_out);
    free(whole);
    free(part);
    free(t);
    finish(&p);
}

static const gr_kernels *sets(int i) {
    return i == 0 ? gr_kernels_reference() : i == 1 ? gr_kernels_avx2() : i == 2 ? gr_kernels_neon() : NULL;
}

static const gr_dtype types[] = {GR_DTYPE_F32, GR_DTYPE_F16, GR_DTYPE_Q8_0};

static void test_shapes(void **state) {
    static const int sizes[] = {1, 7, 8, 9, 15, 16, 17, 24, 33, 63, 64, 65, 100, 129, 192, 300};
    uint64_t seed = 1;
    (void)state;
    for (int s = 0; s < 3; s++) {
        for (size_t a = 0; sets(s) && a < sizeof sizes / sizeof *sizes; a++) {
            for (size_t b = 0; b < sizeof sizes / sizeof *sizes; b++, seed++) {
                int rank = 1 + (int)(seed % 20), n_rows = 1 + (int)(seed * 7 % MAX_ROWS);
                check_problem(sets(s), sizes[a], sizes[b], rank, types[seed % 3], n_rows, seed);
            }
        }
    }
}

static void test_ranks_and_rows(void **state) {
    (void)state;
    for (int s = 0; s < 3; s++) {
        for (int rank = 1; sets(s) && rank <= 70; rank++) {
            for (int n_rows = 1; n_rows <= MAX_ROWS; n_rows += rank % 5 ? 3 : 1) {
                for (int i = 0; i < 3; i++) {
                    check_problem(sets(s), 45, 83, rank, types[i], n_rows, (uint64_t)(rank * 100 + n_rows));
                }
            }
        }
    }
}

/* Wide enough for several strips of the reference, and for the demo model's shapes. */
static void test_large(void **state) {
    (void)state;
    for (int s = 0; s < 3; s++) {
        if (sets(s)) {
            check_problem(sets(s), 1536, 576, 16, GR_DTYPE_F16, 8, 1);
            check_problem(sets(s), 577, 1537, 64, GR_DTYPE_F32, 5, 2);
            check_problem(sets(s), 1537, 577, 16, GR_DTYPE_Q8_0, 1, 3);
            check_problem(sets(s), 576, 1536, 16, GR_DTYPE_Q8_0, 8, 4);
        }
    }
}

/* A row's t and y are the same bits alone and in company, in one call and split. */
static void test_company_and_split(void **state) {
    (void)state;
    for (int s = 0; s < 3; s++) {
        for (int rank = 1; sets(s) && rank < 48; rank += 4) {
            const gr_kernels *kernels = sets(s);
            problem p;
            make(&p, 83, 171, rank, types[rank / 4 % 3], 7, (uint64_t)rank);
            float *t = run_down(&p, kernels, 0, rank);
            float *y = run_up(&p, kernels, t, 0, 7, 0, 171);
            for (int i = 0; i < 7; i++) {
                problem one = p;
                one.rows[0] = p.rows[i];
                one.scale[0] = p.scale[i];
                one.n_rows = 1;
                float *alone = run_down(&one, kernels, 0, rank);
                assert_memory_equal(alone, t + i * rank, (size_t)rank * sizeof(float));
                float *y_alone = run_up(&one, kernels, alone, 0, 1, 0, 171);
                size_t at = p.y_stride * (size_t)p.rows[i];
                assert_memory_equal(y_alone + at, y + at, 171 * sizeof(float));
                free(y_alone);
                free(alone);
            }
            int cut = rank / 3;
            float *low = run_down(&p, kernels, 0, cut), *high = run_down(&p, kernels, cut, rank);
            for (int i = 0; i < 7 * rank; i++) {
                assert_true(t[i] == (i % rank < cut ? low[i] : high[i]));
                assert_true((i % rank < cut ? high[i] : low[i]) == 777.0f); /* the other part is left alone */
            }
            int piece_size = rank % 8 == 1 ? GR_PAD : 3 * GR_PAD;
            for (int o0 = 0; o0 < 171; o0 += piece_size) {
                int o1 = o0 + piece_size < 171 ? o0 + piece_size : 171;
                float *piece = run_up(&p, kernels, t, 0, 7, o0, o1);
                for (size_t i = 0; i < y_count(&p); i++) {
                    int o = (int)(i % p.y_stride);
                    assert_true(piece[i] == (o >= o0 && o < o1 ? y[i] : p.y[i]));
                }
                free(piece);
            }
            free(low);
            free(high);
            free(y);
            free(t);
            finish(&p);
        }
    }
}

static void test_nothing_to_do(void **state) {
    (void)state;
    for (int s = 0; s < 3; s++) {
        if (sets(s)) {
            problem p;
            make(&p, 20, 20, 3, GR_DTYPE_F16, 2, 9);
            float t[6] = {1, 2, 3, 4, 5, 6};
            sets(s)->down(t, p.m, p.x, p.x_stride * sizeof(float), p.rows, p.scale, 0, 0, 3);
            sets(s)->down(t, p.m, p.x, p.x_stride * sizeof(float), p.rows, p.scale, 2, 2, 2);
            assert_true(t[0] == 1 && t[1] == 2 && t[2] == 3 && t[3] == 4 && t[4] == 5 && t[5] == 6);
            float *y = run_up(&p, sets(s), t, 0, 0, 0, 20);
            check_up(&p, t, y, 0, 0);
            free(y);
            y = run_up(&p, sets(s), t, 0, 2, GR_PAD, GR_PAD);
            check_up(&p, t, y, 0, 0);
            free(y);
            finish(&p);
        }
    }
}

static void test_best(void **state) {
    const gr_kernels *best = gr_kernels_best();
    (void)state;
    assert_non_null(best);
    assert_ptr_equal(best, gr_kernels_best());
    bool simd = gr_kernels_avx2() || gr_kernels_neon();
    assert_true(simd == (best != gr_kernels_reference()));
    assert_string_equal(gr_kernels_reference()->name, "reference");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_shapes),
        cmocka_unit_test(test_ranks_and_rows),
        cmocka_unit_test(test_large),
        cmocka_unit_test(test_company_and_split),
        cmocka_unit_test(test_nothing_to_do),
        cmocka_unit_test(test_best),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
