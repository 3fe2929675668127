/*
 * The SIMD kernels, written once over a vector of 8 floats that the including file defines:
 *
 *     v8                            the type
 *     v8_zero, v8_load, v8_load_f16, v8_load_part, v8_store, v8_store_part, v8_set1, v8_fma, v8_add, v8_sum
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

#define GR_UNROLL _Pragma("GCC unroll 8")

/* 8 elements of a packed row, widened. Rows are padded with zeros, so a read past n_in or n_out is harmless. */
GR_TILE v8 tile_load(const void *matrix, size_t at, bool half) {
    return half ? v8_load_f16((const uint16_t *)matrix + at) : v8_load((const float *)matrix + at);
}

/* t[i][k .. k + K) for R rows. */
GR_TILE void down_tile(float *t, const gr_module *m, const float *const *x, const float *scale, int k, int R, int K,
                       bool half) {
    size_t row = (size_t)k * (size_t)m->stride_in, stride = (size_t)m->stride_in;
    v8 sum[8];
    GR_UNROLL
    for (int n = 0; n < R * K; n++) {
        sum[n] = v8_zero();
    }
    int whole = m->n_in & ~7;
    for (int j = 0; j < whole; j += 8) {
        v8 xj[4];
        GR_UNROLL
        for (int r = 0; r < R; r++) {
            xj[r] = v8_load(x[r] + j);
        }
        GR_UNROLL
        for (int c = 0; c < K; c++) {
            v8 a = tile_load(m->a, row + (size_t)c * stride + (size_t)j, half);
            GR_UNROLL
            for (int r = 0; r < R; r++) {
                sum[c * R + r] = v8_fma(a, xj[r], sum[c * R + r]);
            }
        }
    }
    if (whole < m->n_in) { /* x ends here: the next row, or nothing, lies behind it */
        GR_UNROLL
        for (int c = 0; c < K; c++) {
            v8 a = tile_load(m->a, row + (size_t)c * stride + (size_t)whole, half);
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
                       const float *scale, int k0, int k1, int R, int K, bool half) {
    const float *xr[4];
    GR_UNROLL
    for (int r = 0; r < R; r++) {
        xr[r] = gr_row_in(x, x_stride, rows[r]);
    }
    int k = k0;
    for (; k + K <= k1; k += K) {
        down_tile(t, m, xr, scale, k, R, K, half);
    }
    for (; k < k1; k++) {
        down_tile(t, m, xr, scale, k, R, 1, half);
    }
}

GR_TILE void down_all(float *t, const gr_module *m, const void *x, size_t x_stride, const int32_t *rows,
                      const float *scale, int n_rows, int k0, int k1, bool half) {
    int i = 0;
    for (; i + 4 <= n_rows; i += 4) {
        down_rows(t + i * m->rank, m, x, x_stride, rows + i, scale + i, k0, k1, 4, 2, half);
    }
    for (; i + 2 <= n_rows; i += 2) {
        down_rows(t + i * m->rank, m, x, x_stride, rows + i, scale + i, k0, k1, 2, 4, half);
    }
    if (i < n_rows) {
        down_rows(t + i * m->rank, m, x, x_stride, rows + i, scale + i, k0, k1, 1, 8, half);
    }
}

GR_KERNEL static void down(float *t, const gr_module *m, const void *x, size_t x_stride, const int32_t *rows,
                           const float *scale, int n_rows, int k0, int k1) {
    if (m->type == GR_DTYPE_F16) {
        down_all(t, m, x, x_stride, rows, scale, n_rows, k0, k1, true);
    } else {
        down_all(t, m, x, x_stride, rows, scale, n_rows, k0, k1, false);
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
                     int R, int V, bool half) {
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
            const char *next = (const char *)m->b + (at + (size_t)(8 * V)) * (half ? 2 : 4);
            __builtin_prefetch(next);
            __builtin_prefetch(next + 64);
        }
        GR_UNROLL
        for (int v = 0; v < V; v++) {
            v8 b = tile_load(m->b, at + (size_t)(8 * v), half);
            GR_UNROLL
            for (int r = 0; r < R; r++) {
                sum[v * R + r] = v8_fma(b, tk[r], sum[v * R + r]);
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
                      int o, int o1, int V, bool half) {
    int i = 0;
    if (V == 2) {
        for (; i + 4 <= n_rows; i += 4) {
            up_tile(y, y_stride, m, t + i * m->rank, rows + i, o, o1, 4, 2, half);
        }
    }
    if (V <= 4) {
        for (; i + 2 <= n_rows; i += 2) {
            up_tile(y, y_stride, m, t + i * m->rank, rows + i, o, o1, 2, V, half);
        }
    }
    for (; i < n_rows; i++) {
        up_tile(y, y_stride, m, t + i * m->rank, rows + i, o, o1, 1, V, half);
    }
}

GR_TILE void up_all(void *y, size_t y_stride, const gr_module *m, const float *t, const int32_t *rows, int n_rows,
                    int o0, int o1, bool half) {
    int o = o0;
    if (n_rows == 1) { /* wide blocks: whole cache lines of B, and enough sums to hide the latency of an FMA */
        for (; o + 64 <= o1; o += 64) {
            up_block(y, y_stride, m, t, rows, n_rows, o, o1, 8, half);
        }
    } else if (n_rows < 4) {
        for (; o + 32 <= o1; o += 32) {
            up_block(y, y_stride, m, t, rows, n_rows, o, o1, 4, half);
        }
    }
    for (; o < o1; o += GR_PAD) {
        up_block(y, y_stride, m, t, rows, n_rows, o, o1, 2, half);
    }
}

GR_KERNEL static void up(void *y, size_t y_stride, const gr_module *m, const float *t, const int32_t *rows, int n_rows,
                         int o0, int o1) {
    if (m->type == GR_DTYPE_F16) {
        up_all(y, y_stride, m, t, rows, n_rows, o0, o1, true);
    } else {
        up_all(y, y_stride, m, t, rows, n_rows, o0, o1, false);
    }
}

#endif
