/* The SIMD kernel sets, for kernels.c to choose from: NULL where this build or this processor has none. */
#ifndef GR_KERNELS_SIMD_H
#define GR_KERNELS_SIMD_H

#include "lora/kernels.h"

const gr_kernels *gr_kernels_avx2(void);
const gr_kernels *gr_kernels_neon(void);

/* Row r of a float32 matrix whose rows are `stride` bytes apart. */
static inline const float *gr_row_in(const void *x, size_t stride, int32_t r) {
    return (const float *)(const void *)((const char *)x + stride * (size_t)r);
}

static inline float *gr_row_inout(void *y, size_t stride, int32_t r) {
    return (float *)(void *)((char *)y + stride * (size_t)r);
}

#endif
