/*
 * The reference kernels: plain C that says what the SIMD sets must compute, and what runs on processors that
 * have none. A and B are widened to float32 in strips on the stack, one row of a strip at a time.
 */
#include "lora/kernels.h"

#include "lora/kernels_simd.h"
#include "lora/packed.h"

enum { STRIP = 256 }; /* whole blocks of Q8_0 */

/* Elements [start, start + n) of row k of a packed matrix, as float32. `start` is a multiple of GR_PAD. */
static void widen(float *out, const gr_module *m, const void *matrix, int stride, int k, int start, int n) {
    gr_packed_read(out, m->type, matrix, (size_t)k * (size_t)stride + (size_t)start, n);
}

static void down(float *t, const gr_module *m, const void *x, size_t x_stride, const int32_t *rows,
                 const float *scale, int n_rows, int k0, int k1) {
    float a[STRIP];
    for (int k = k0; k < k1; k++) {
        for (int i = 0; i < n_rows; i++) {
            t[i * m->rank + k] = 0.0f;
        }
        for (int j0 = 0; j0 < m->n_in; j0 += STRIP) {
            int n = m->n_in - j0 < STRIP ? m->n_in - j0 : STRIP;
            widen(a, m, m->a, m->stride_in, k, j0, n);
            for (int i = 0; i < n_rows; i++) {
                const float *xi = gr_row_in(x, x_stride, rows[i]) + j0;
                float sum = t[i * m->rank + k];
                for (int j = 0; j < n; j++) {
                    sum += a[j] * xi[j];
                }
                t[i * m->rank + k] = sum;
            }
        }
        for (int i = 0; i < n_rows; i++) {
            t[i * m->rank + k] *= m->scale * scale[i];
        }
    }
}

/* y[rows[i]][o0..o0+n) += the delta, for n <= STRIP outputs. */
static void up_strip(void *y, size_t y_stride, const gr_module *m, const float *t, int32_t row, int o0, int n) {
    float b[STRIP], sum[STRIP] = {0};
    for (int k = 0; k < m->rank; k++) {
        widen(b, m, m->b, m->stride_out, k, o0, n);
        for (int o = 0; o < n; o++) {
            sum[o] += b[o] * t[k];
        }
    }
    float *yi = gr_row_inout(y, y_stride, row) + o0;
    for (int o = 0; o < n; o++) {
        yi[o] += sum[o];
    }
}

static void up(void *y, size_t y_stride, const gr_module *m, const float *t, const int32_t *rows, int n_rows,
               int o0, int o1) {
    for (int o = o0; o < o1; o += STRIP) {
        int n = o1 - o < STRIP ? o1 - o : STRIP;
        for (int i = 0; i < n_rows; i++) {
            up_strip(y, y_stride, m, t + (size_t)i * (size_t)m->rank, rows[i], o, n);
        }
    }
}

const gr_kernels *gr_kernels_reference(void) {
    static const gr_kernels set = {"reference", down, up};
    return &set;
}
