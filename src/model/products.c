/*
 * Tiles of 4 rows by 2, over GCC's vectors: 8 sums stay in registers, 6 loads serve 8 multiplications. The same source is
 * compiled for what every processor has and for AVX2, and chosen at run time.
 */
#include "products.h"

#include <stdbool.h>

enum {
    LANES = 8,
    BLOCK = 512, /* elements whose products are summed in float32: 64 in each lane */
    ROWS = 4,
    RANKS = 2
};

typedef float v8 __attribute__((vector_size(32)));
typedef float v8_anywhere __attribute__((vector_size(32), aligned(4), may_alias));
typedef double d8 __attribute__((vector_size(64)));
typedef double d8_anywhere __attribute__((vector_size(64), aligned(8), may_alias));

#define TILE __attribute__((always_inline)) static inline
#define UNROLL _Pragma("GCC unroll 8")

TILE double lanes_sum(const v8 *v) {
    double sum = 0;
    UNROLL
    for (int i = 0; i < LANES; i++) {
        sum += (double)(*v)[i];
    }
    return sum;
}

/* R rows by K, elements j to end of at most BLOCK, added to what is there. */
TILE void block(double *out, size_t out_stride, const float *x, size_t x_stride, const float *y, size_t y_stride, size_t j,
                size_t end, int R, int K) {
    v8 sum[ROWS * RANKS] = {{0}};
    for (; j + LANES <= end; j += LANES) {
        UNROLL
        for (int k = 0; k < K; k++) {
            v8 b = *(const v8_anywhere *)(y + (size_t)k * y_stride + j);
            UNROLL
            for (int r = 0; r < R; r++) {
                sum[r * RANKS + k] += *(const v8_anywhere *)(x + (size_t)r * x_stride + j) * b;
            }
        }
    }
    UNROLL
    for (int r = 0; r < R; r++) {
        UNROLL
        for (int k = 0; k < K; k++) {
            double rest = lanes_sum(&sum[r * RANKS + k]);
            for (size_t i = j; i < end; i++) {
                rest += (double)x[(size_t)r * x_stride + i] * (double)y[(size_t)k * y_stride + i];
            }
            out[(size_t)r * out_stride + (size_t)k] += rest;
        }
    }
}

TILE void tile(double *out, size_t out_stride, const float *x, size_t x_stride, const float *y, size_t y_stride, size_t n, int R,
               int K) {
    for (int r = 0; r < R; r++) {
        for (int k = 0; k < K; k++) {
            out[(size_t)r * out_stride + (size_t)k] = 0;
        }
    }
    for (size_t j = 0; j < n; j += BLOCK) {
        block(out, out_stride, x, x_stride, y, y_stride, j, n - j < BLOCK ? n : j + BLOCK, R, K);
    }
}

TILE void some_rows(double *out, size_t out_stride, const float *x, size_t x_stride, const float *y, size_t y_stride, size_t ranks,
                    size_t n, int R) {
    size_t k = 0;
    for (; k + RANKS <= ranks; k += RANKS) {
        tile(out + k, out_stride, x, x_stride, y + k * y_stride, y_stride, n, R, RANKS);
    }
    for (; k < ranks; k++) {
        tile(out + k, out_stride, x, x_stride, y + k * y_stride, y_stride, n, R, 1);
    }
}

TILE void all_rows(double *out, size_t out_stride, const float *x, size_t x_stride, size_t rows, const float *y, size_t y_stride,
                   size_t ranks, size_t n) {
    size_t r = 0;
    for (; r + ROWS <= rows; r += ROWS) {
        some_rows(out + r * out_stride, out_stride, x + r * x_stride, x_stride, y, y_stride, ranks, n, ROWS);
    }
    for (; r < rows; r++) {
        some_rows(out + r * out_stride, out_stride, x + r * x_stride, x_stride, y, y_stride, ranks, n, 1);
    }
}

/* Four sums: one alone would wait for its last addition each time. */
TILE double squares(const float *x, size_t n) {
    enum { CHAINS = 4 };
    d8 sum[CHAINS] = {{0}};
    size_t i = 0;
    for (; i + CHAINS * LANES <= n; i += CHAINS * LANES) {
        UNROLL
        for (int c = 0; c < CHAINS; c++) {
            d8 v = __builtin_convertvector(*(const v8_anywhere *)(x + i + (size_t)c * LANES), d8);
            sum[c] += v * v;
        }
    }
    d8 all = sum[0] + sum[1] + (sum[2] + sum[3]);
    double total = 0;
    for (int lane = 0; lane < LANES; lane++) {
        total += all[lane];
    }
    for (; i < n; i++) {
        total += (double)x[i] * (double)x[i];
    }
    return total;
}

/* b^T M b: rows of M added up first, as that needs no sum across lanes. */
TILE double form(const double *m, const double *b, double *scratch, size_t n) {
    for (size_t l = 0; l < n; l++) {
        scratch[l] = 0;
    }
    for (size_t k = 0; k < n; k++) {
        size_t l = 0;
        for (; l + LANES <= n; l += LANES) {
            *(d8_anywhere *)(scratch + l) += b[k] * *(const d8_anywhere *)(m + k * n + l);
        }
        for (; l < n; l++) {
            scratch[l] += b[k] * m[k * n + l];
        }
    }
    double total = 0;
    for (size_t l = 0; l < n; l++) {
        total += scratch[l] * b[l];
    }
    return total;
}

#if defined(__x86_64__)
#define AVX2 __attribute__((target("avx2,fma")))

AVX2 static void products_avx2(double *out, size_t out_stride, const float *x, size_t x_stride, size_t rows, const float *y,
                               size_t y_stride, size_t ranks, size_t n) {
    all_rows(out, out_stride, x, x_stride, rows, y, y_stride, ranks, n);
}

AVX2 static double squares_avx2(const float *x, size_t n) {
    return squares(x, n);
}

AVX2 static double form_avx2(const double *m, const double *b, double *scratch, size_t n) {
    return form(m, b, scratch, n);
}

static bool have_avx2(void) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}
#endif

void gr_products(double *out, size_t out_stride, const float *x, size_t x_stride, size_t rows, const float *y, size_t y_stride,
                 size_t ranks, size_t n) {
#if defined(__x86_64__)
    if (have_avx2()) {
        products_avx2(out, out_stride, x, x_stride, rows, y, y_stride, ranks, n);
        return;
    }
#endif
    all_rows(out, out_stride, x, x_stride, rows, y, y_stride, ranks, n);
}

double gr_square_sum(const float *x, size_t n) {
#if defined(__x86_64__)
    if (have_avx2()) {
        return squares_avx2(x, n);
    }
#endif
    return squares(x, n);
}

double gr_quadratic_form(const double *m, const double *b, double *scratch, size_t n) {
#if defined(__x86_64__)
    if (have_avx2()) {
        return form_avx2(m, b, scratch, n);
    }
#endif
    return form(m, b, scratch, n);
}
