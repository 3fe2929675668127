/* An adapter stored in Q8_0 against the same one in float32: the deltas differ by what the rounding allows. */
#include "make_adapter.h"

#include "lora/kernels_simd.h"
#include "lora/random_adapter.h"
#include "model/adapter.h"

enum { ROWS = 5 };

/*
 * How far an element of a block may be off, by convert.h: half its factor, which is at most
 * largest / 127 * (1 + 2^-11) + 2^-24. `x` is a packed row in float32, `at` one of its elements.
 */
static double rounding(const float *x, int at) {
    double largest = 0;
    for (int i = at / 32 * 32; i < at / 32 * 32 + 32; i++) {
        largest = fmax(largest, fabs((double)x[i]));
    }
    return 0.50002 * (largest / 127 * (1 + 0x1p-11) + 0x1p-24);
}

typedef struct bound {
    double value, size, error; /* exact, sum of magnitudes, and how far Q8_0 may be off */
} bound;

/* t[k] of one row of x: an error e of A[k][j] moves it by e |x[j]|. */
static bound bound_of_t(const gr_module *m, const float *x, int k) {
    const float *a = (const float *)m->a + k * m->stride_in;
    bound b = {0};
    for (int j = 0; j < m->n_in; j++) {
        b.value += (double)m->scale * a[j] * x[j];
        b.size += m->scale * fabs((double)a[j] * x[j]);
        b.error += m->scale * rounding(a, j) * fabs((double)x[j]);
    }
    return b;
}

/* y[o] = sum B t: (B + e)(t + d) - B t is at most |B| |d| + |e| (|t| + |d|). */
static bound bound_of_y(const gr_module *m, const bound *t, int o) {
    bound b = {0};
    for (int k = 0; k < m->rank; k++) {
        const float *row = (const float *)m->b + k * m->stride_out;
        b.value += (double)row[o] * t[k].value;
        b.size += fabs((double)row[o]) * t[k].size;
        b.error += fabs((double)row[o]) * t[k].error + rounding(row, o) * (fabs(t[k].value) + t[k].error);
    }
    return b;
}

/* The largest part of the bound that a difference takes. `sums`: what float32 sums may be off besides. */
static double share(double got, bound b) {
    double sums = 4e-6 * b.size;
    double off = fabs(got - b.value);
    if (!(off <= b.error + sums)) {
        fail_msg("got %.9g, wanted %.9g, off by %.3g of %.3g", got, b.value, off, b.error);
    }
    return off / b.error;
}

static double check_module(const gr_kernels *kernels, const gr_module *exact, const gr_module *q, uint64_t *state) {
    float *x = malloc((size_t)(ROWS * q->n_in) * sizeof *x), *y = calloc((size_t)(ROWS * q->n_out), sizeof *y);
    float *t = malloc((size_t)(ROWS * q->rank) * sizeof *t), scales[ROWS];
    bound *bounds = malloc((size_t)q->rank * sizeof *bounds);
    int32_t rows[ROWS];
    double most = 0;
    for (int i = 0; i < ROWS * q->n_in; i++) {
        x[i] = (float)(gr_random(state) >> 8) * (2.0f / 16777216.0f) - 1.0f;
    }
    for (int i = 0; i < ROWS; i++) {
        rows[i] = i;
        scales[i] = 1.0f;
    }
    kernels->down(t, q, x, (size_t)q->n_in * sizeof *x, rows, scales, ROWS, 0, q->rank);
    kernels->up(y, (size_t)q->n_out * sizeof *y, q, t, rows, ROWS, 0, q->n_out);
    for (int i = 0; i < ROWS; i++) {
        for (int k = 0; k < q->rank; k++) {
            bounds[k] = bound_of_t(exact, x + i * q->n_in, k);
            share(t[i * q->rank + k], bounds[k]);
        }
        for (int o = 0; o < q->n_out; o++) {
            bound b = bound_of_y(exact, bounds, o);
            most = fmax(most, share(y[i * q->n_out + o], b));
            assert_true(b.error < 0.03 * b.size); /* so that the bound says something */
        }
    }
    free(bounds);
    free(t);
    free(y);
    free(x);
    return most;
}

static gr_adapter *load(const gr_base_model *base, const char *path, graft_adapter_type type) {
    gr_adapter *a;
    graft_error err;
    if (gr_adapter_open(&a, base, path, type, (uint64_t)1 << 30, NULL, &err)) {
        fail_msg("%s", err.message);
    }
    return a;
}

/* Rotary heads, and widths that are no multiples of 32. `factor`: on B, down to where the factors are no normal float16
 * any more. */
static void deltas_are_within_the_rounding(void **state) {
    (void)state;
    static const float factors[] = {1.0f, 0.01f, 4e-4f};
    uint64_t random = 99;
    gr_base_model *base = test_base_make("llama");
    for (size_t f = 0; f < sizeof factors / sizeof *factors; f++) {
        test_dir d = test_dir_make();
        test_adapter *t = test_adapter_make(GR_DTYPE_F32);
        for (int i = 0; i < t->n; i++) {
            t->t[i].factor = strstr(t->t[i].name, "lora_B") ? factors[f] : 0.1f;
        }
        test_write_peft(t, &d);
        gr_adapter *exact = load(base, d.path, GRAFT_TYPE_F32), *q = load(base, d.path, GRAFT_TYPE_Q8_0);
        const gr_kernels *sets[] = {gr_kernels_reference(), gr_kernels_best()};
        for (size_t i = 0; i < exact->n_modules; i++) {
            assert_int_equal(q->modules[i].type, GR_DTYPE_Q8_0);
            for (int s = 0; s < 2; s++) {
                double most = check_module(sets[s], &exact->modules[i], &q->modules[i], &random);
                assert_true(most > 0.05); /* it was rounded */
            }
        }
        gr_adapter_release(exact);
        gr_adapter_release(q);
        free(t);
        test_dir_remove(&d);
    }
    test_base_free(base);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(deltas_are_within_the_rounding)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
