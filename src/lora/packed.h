/* Numbers of a packed matrix as float32. */
#ifndef GR_PACKED_H
#define GR_PACKED_H

#include "model/adapter.h"
#include "model/convert.h"

/* n elements from element `at` on; for Q8_0 `at` is a multiple of GR_Q8_0_BLOCK. */
static inline void gr_packed_read(float *out, gr_dtype type, const void *matrix, size_t at, int n) {
    size_t before = type == GR_DTYPE_Q8_0 ? at / GR_Q8_0_BLOCK * sizeof(gr_q8_0) : at * gr_dtype_size(type);
    gr_to_f32(out, type, (const char *)matrix + before, (size_t)n);
}

#endif
