/*
 * What an adapter may do to a row before the row is given up: |t| and |y| above these or NaN.
 *
 * Real values are below 1e6. B of a float16 or Q8_0 module is at most 65504 and the rank at most 1024, so that t below its
 * limit keeps B t below 1e17, whose square float32 still holds: the norms that follow cannot overflow. What has factors in
 * float32 can come to anything, so there y is looked at as well.
 *
 * A row that is given up becomes zero in this node, since NaN and infinity would spread: where attention runs over all cells
 * of the KV cache and masks afterwards, one NaN in a cell reaches every sequence. What came in spoilt, through the cache or by
 * the base, is left as it is, so that its logits tell the engine, and the adapter is not blamed.
 */
#ifndef GR_SANE_H
#define GR_SANE_H

#include "lora/apply.h"

#include <float.h>
#include <stdint.h>
#include <string.h>

static const float GR_T_LIMIT = 1e9f, GR_Y_LIMIT = 1e17f;

/* Whether all of v is within +-limit, and no NaN. On bit patterns, which compilers vectorise. */
static inline bool gr_is_sane(const float *v, int n, float limit) {
    uint32_t bits, limit_bits, bad = 0;
    memcpy(&limit_bits, &limit, sizeof limit_bits);
    for (int i = 0; i < n; i++) {
        memcpy(&bits, v + i, sizeof bits);
        bad |= (bits & 0x7fffffffu) > limit_bits;
    }
    return !bad;
}

/* Whether what came in for row i of the part was a number: the operand of a product; the base's embeddings always are. */
static inline bool gr_came_in_sane(const gr_apply *a, const gr_part *p, int i) {
    const char *x = (const char *)a->node.x + a->node.x_stride * (size_t)p->rows[i];
    return a->node.op != GR_OP_PRODUCT || gr_is_sane((const float *)(const void *)x, a->node.n_in, FLT_MAX);
}

/* n numbers of y that came out wrong, and not because they came in so. */
static inline void gr_spoilt(gr_apply *a, int part, float *y, int n) {
    memset(y, 0, (size_t)n * sizeof *y);
    atomic_store_explicit(&a->bad_part, part, memory_order_relaxed);
}

#endif
