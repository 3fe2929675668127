/*
 * The arithmetic of a LoRA delta for some rows that share a module:
 *     t[i] = module scale * scale[i] * A x[i]   (down)
 *     y[i] += B t[i]                            (up)
 * A plain C reference and SIMD versions of the same; the best one is chosen at run time.
 *
 * Within one kernel set a row's result does not depend on the rows beside it, nor on how k and o are split into
 * calls: every element is summed in one fixed order whatever tile it falls into. Threads may therefore share a
 * product as they like, and a sequence gets the same delta alone and in company.
 */
#ifndef GR_KERNELS_H
#define GR_KERNELS_H

#include "model/adapter.h"

typedef struct gr_kernels {
    const char *name; /* "reference", "avx2+f16c", "neon" */

    /*
     * For each i of n_rows: t[i * rank + k] = m->scale * scale[i] * sum_j A[k][j] * x[rows[i]][j], for
     * k0 <= k < k1. x: float32, x[r] starts at (char *)x + r * x_stride bytes; nothing past its n_in values is
     * read. float32 accumulation. Reads each row of A once per small tile of rows.
     */
    void (*down)(float *t, const gr_module *m, const void *x, size_t x_stride, const int32_t *rows,
                 const float *scale, int n_rows, int k0, int k1);
    /*
     * For each i: y[rows[i]][o] += sum_k B[o][k] * t[i * rank + k], for o0 <= o < o1. o0 is a multiple of GR_PAD,
     * o1 too unless it is n_out. Reads and writes nothing outside y[..][o0..o1).
     */
    void (*up)(void *y, size_t y_stride, const gr_module *m, const float *t, const int32_t *rows, int n_rows,
               int o0, int o1);
} gr_kernels;

const gr_kernels *gr_kernels_reference(void);
/* The fastest this processor can run. */
const gr_kernels *gr_kernels_best(void);

#endif
