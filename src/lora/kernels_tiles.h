/*
 * The SIMD kernels, written once over a vector of 8 floats that the including file defines:
 *
 *     v8                            the type
 *     v8_zero, v8_load, v8_load_f16, v8_load_i8, v8_load_part, v8_store, v8_store_part, v8_set1, v8_set1_f16, v8_fma,
 *     v8_mul, v8_add, v8_sum
 *     GR_TILE                       attributes of an inlined helper
 *     GR_KERNEL                     attributes of a kernel
 *
 * Both kernels walk small tiles: `down` R rows of x by K rows of A, `up` R rows of y by V vectors of outputs, so
 * that a loaded (and widened) piece of A or B serves several rows, and all sums stay in registers. The tile
 * sizes are constants at each call and the loops over them unroll.
 *
 * Every element is summed in the same order in every tile (one accumulator vector over j, or over k), which is
 * what makes results independent of batch and split. Keep it so.
 */
#ifndef GR_KERNELS_TILES_H
#define GR_KERNELS_TILES_H

#include "model/convert.h"

#define GR_UNROLL _Pragma("GCC unroll 8")

/* Where element `at` of a packed matrix is; for Q8_0 where its block begins. */
GR_TILE const void *tile_address(const void *matrix, size_t at, gr_dtype type) {
    return type == GR_DTYPE_F16    ? (const void *)((const uint16_t *)matrix + at)
           : type == GR_DTYPE_Q8_0 ? (const void *)((const gr_q8_0 *)matrix + at / GR_Q8_0_BLOCK)
                                   : (const void *)((const float *)matrix + at);
}

/* W vectors (at most 4) of a packed row, widened; in Q8_0 all of one block, so that its factor is widened once. Rows
 * are padded with zeros, so a read past n_in or n_out is harmless. */
GR_TILE void tile_load(v8 *out, const void *matrix, size_t at, int W, gr_dtype type) {
    const void *from = tile_address(matrix, at, type);
    const gr_q8_0 *block = from;
    v8 factor = type == GR_DTYPE_Q8_0 ? v8_set1_f16(block->factor) : v8_zero();
    GR_UNROLL
    for (int w = 0; w < W; w++) {
        if (type == GR_DTYPE_Q8_0) {
            out[w] = v8_mul(factor, v8_load_i8(block->q + at % GR_Q8_0_BLOCK + 8 * w));
        } else if (type == GR_DTYPE_F16) {
            out[w] = v8_load_f16((const uint16_t *)from + 8 * w);
        } else {
            out[w] = v8_load((const float *)from + 8 * w);
        }
    }
}

/* What W vectors of A from column j on give to the sums of R rows by K. */
GR_TILE void down_vectors(v8 *sum, const gr_module *m, const float *const *x, int k, int j, int R, int K, int W,
                          gr_dtype type) {
    GR_UNROLL
    for (int c = 0; c < K; c++) {
        v8 a[4];
        tile_load(a, m->a, (size_t)(k + c) * (size_t)m->stride_in + (size_t)j, W, type);
        GR_UNROLL
        for (int w = 0; w < W; w++) {
            GR_UNROLL
            for (int r = 0; r < R; r++) {
                sum[c * R + r] = v8_fma(a[w], v8_load(x[r] + j + 8 * w), sum[c * R + r]);
            }
        }
    }
}

/* t[i][k .. k + K) for R rows. */
GR_TILE void down_tile(float *t, const gr_module *m, const float *const *x, const float *scale, int k, int R, int K,
                       gr_dtype type) {
    v8 sum[8];
    GR_UNROLL
    for (int n = 0; n < R * K; n++) {
        sum[n] = v8_zero();
    }
    int whole = m->n_in & ~7, j = 0;
    for (; type == GR_DTYPE_Q8_0 && j + GR_Q8_0_BLOCK <= whole; j += GR_Q8_0_BLOCK) {
        down_vectors(sum, m, x, k, j, R, K, GR_Q8_0_BLOCK / 8, type);
    }
    for (; j < whole; j += 8) {
        down_vectors(sum, m, x, k, j, R, K, 1, type);
    }
    if (whole < m->n_in) { /* x ends here: the next row, or nothing, lies behind it */
        GR_UNROLL
        for (int c = 0; c < K; c++) {
            v8 a;
            tile_load(&a, m->a, (size_t)(k + c) * (size_t)m->stride_in + (size_t)whole, 1, type);
            GR_UNROLL
            for (int r = 0; r < R; r++) {
                sum[c * R + r] = v8_fma(a, v8_load_part(x[r] + whole, m->n_in - whole), sum[c * R + r]);
            }
        }
    }
    GR_UNROLL
    for (int c = 0; c < K; c++) {
        GR_UNROLL
        for (int r = 0; r < R; r++) {
            t[r * m->rank + k + c] = m->scale * scale[r] * v8_sum(sum[c * R + r]);
        }
    }
}

/* All of k0..k1 for R rows. */
GR_TILE void down_rows(float *t, const gr_module *m, const void *x, size_t x_stride, const int32_t *rows,
                       const float *scale, int k0, int k1, int R, int K, gr_dtype type) {
    const float *xr[8];
    GR_UNROLL
    for (int r = 0; r < R; r++) {
        xr[r] = gr_row_in(x, x_stride, rows[r]);
    }
    int k = k0;
    for (; k + K <= k1; k += K) {
        down_tile(t, m, xr, scale, k, R, K, type);
    }
    for (; k < k1; k++) {
        down_tile(t, m, xr, scale, k, R, 1, type);
    }
}

GR_TILE void down_all(float *t, const gr_module *m, const void *x, size_t x_stride, const int32_t *rows,
                      const float *scale, int n_rows, int k0, int k1, gr_dtype type) {
    int i = 0;
    for (; type == GR_DTYPE_Q8_0 && i + 8 <= n_rows; i += 8) { /* widening costs more than loading x once more */
        down_rows(t + i * m->rank, m, x, x_stride, rows + i, scale + i, k0, k1, 8, 1, type);
    }
    for (; i + 4 <= n_rows; i += 4) {
        down_rows(t + i * m->rank, m, x, x_stride, rows + i, scale + i, k0, k1, 4, 2, type);
    }
    for (; i + 2 <= n_rows; i += 2) {
        down_rows(t + i * m->rank, m, x, x_stride, rows + i, scale + i, k0, k1, 2, 4, type);
    }
    if (i < n_rows) {
        down_rows(t + i * m->rank, m, x, x_stride, rows + i, scale + i, k0, k1, 1, 8, type);
    }
}

GR_KERNEL static void down(float *t, const gr_module *m, const void *x, size_t x_stride, const int32_t *rows,
                           const float *scale, int n_rows, int k0, int k1) {
    if (m->type == GR_DTYPE_F16) {
        down_all(t, m, x, x_stride, rows, scale, n_rows, k0, k1, GR_DTYPE_F16);
    } else if (m->type == GR_DTYPE_Q8_0) {
        down_all(t, m, x, x_stride, rows, scale, n_rows, k0, k1, GR_DTYPE_Q8_0);
    } else {
        down_all(t, m, x, x_stride, rows, scale, n_rows, k0, k1, GR_DTYPE_F32);
    }
}

/* Adds to one vector of y, of which only `left` elements may exist. */
GR_TILE void add_to(float *y, v8 sum, int left) {
    if (left >= 8) {
        v8_store(y, v8_add(v8_load(y), sum));
    } else if (left > 0) {
        v8_store_part(y, v8_add(v8_load_part(y, left), sum), left);
    }
}

/* y[rows[..]][o .. o + 8 V) for R rows; outputs from o1 on are left alone. */
GR_TILE void up_tile(void *y, size_t y_stride, const gr_module *m, const float *t, const int32_t *rows, int o, int o1,
                     int R, int V, gr_dtype type) {
    v8 sum[8];
    GR_UNROLL
    for (int n = 0; n < R * V; n++) {
        sum[n] = v8_zero();
    }
    for (int k = 0; k < m->rank; k++) {
        size_t at = (size_t)k * (size_t)m->stride_out + (size_t)o;
        v8 tk[4];
        GR_UNROLL
        for (int r = 0; r < R; r++) {
            tk[r] = v8_set1(t[r * m->rank + k]);
        }
        if (R == 1) { /* this row's next block: rows lie too far apart for the hardware to guess */
            const char *next = tile_address(m->b, at + (size_t)(8 * V), type);
            __builtin_prefetch(next);
            __builtin_prefetch(next + 64);
        }
        GR_UNROLL
        for (int v = 0; v < V; v += V < 4 ? V : 4) {
            v8 b[4];
            tile_load(b, m->b, at + (size_t)(8 * v), V < 4 ? V : 4, type);
            GR_UNROLL
            for (int w = 0; w < (V < 4 ? V : 4); w++) {
                GR_UNROLL
                for (int r = 0; r < R; r++) {
                    sum[(v + w) * R + r] = v8_fma(b[w], tk[r], sum[(v + w) * R + r]);
                }
            }
        }
    }
    GR_UNROLL
    for (int r = 0; r < R; r++) {
        float *yr = gr_row_inout(y, y_stride, rows[r]) + o;
        GR_UNROLL
        for (int v = 0; v < V; v++) {
            add_to(yr + 8 * v, sum[v * R + r], o1 - o - 8 * v);
        }
    }
}

/* 8 V outputs of all rows: the piece of B stays in the first-level cache while the rows pass. */
GR_TILE void up_block(void *y, size_t y_stride, const gr_module *m, const float *t, const int32_t *rows, int n_rows,
                      int o, int o1, int V, gr_dtype type) {
    int i = 0;
    if (V == 2) {
        for (; i + 4 <= n_rows; i += 4) {
            up_tile(y, y_stride, m, t + i * m->rank, rows + i, o, o1, 4, 2, type);
        }
    }
    if (V <= 4) {
        for (; i + 2 <= n_rows; i += 2) {
            up_tile(y, y_stride, m, t + i * m->rank, rows + i, o, o1, 2, V, type);
        }
    }
    for (; i < n_rows; i++) {
        up_tile(y, y_stride, m, t + i * m->rank, rows + i, o, o1, 1, V, type);
    }
}

GR_TILE void up_all(void *y, size_t y_stride, const gr_module *m, const float *t, const int32_t *rows, int n_rows,
                    int o0, int o1, gr_dtype type) {
    int o = o0;
    if (n_rows == 1) { /* wide blocks: whole cache lines of B, and enough sums to hide the latency of an FMA */
        for (; o + 64 <= o1; o += 64) {
            up_block(y, y_stride, m, t, rows, n_rows, o, o1, 8, type);
        }
    } else if (n_rows < 4) {
        for (; o + 32 <= o1; o += 32) {
            up_block(y, y_stride, m, t, rows, n_rows, o, o1, 4, type);
        }
    }
    for (; o < o1; o += 16) {
        up_block(y, y_stride, m, t, rows, n_rows, o, o1, 2, type);
    }
}

GR_KERNEL static void up(void *y, size_t y_stride, const gr_module *m, const float *t, const int32_t *rows, int n_rows,
                         int o0, int o1) {
    if (m->type == GR_DTYPE_F16) {
        up_all(y, y_stride, m, t, rows, n_rows, o0, o1, GR_DTYPE_F16);
    } else if (m->type == GR_DTYPE_Q8_0) {
        up_all(y, y_stride, m, t, rows, n_rows, o0, o1, GR_DTYPE_Q8_0);
    } else {
        up_all(y, y_stride, m, t, rows, n_rows, o0, o1, GR_DTYPE_F32);
    }
}

#endif
