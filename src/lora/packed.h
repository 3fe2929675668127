/* Numbers of a packed matrix as float32. */
#ifndef GR_PACKED_H
#define GR_PACKED_H

#include "model/adapter.h"
#include "model/convert.h"

#include <string.h>

/* n elements from element `at` on; for Q8_0 `at` is a multiple of GR_Q8_0_BLOCK. */
static inline void gr_packed_read(float *out, gr_dtype type, const void *matrix, size_t at, int n) {
    if (type == GR_DTYPE_F16) {
        gr_f16_to_f32(out, (const uint16_t *)matrix + at, (size_t)n);
    } else if (type == GR_DTYPE_Q8_0) {
        gr_q8_0_to_f32(out, (const gr_q8_0 *)matrix + at / GR_Q8_0_BLOCK, (size_t)n);
    } else {
        memcpy(out, (const float *)matrix + at, (size_t)n * sizeof *out);
    }
}

#endif
