/* Rows of numbers from one floating-point format to another, and what is the largest of them. */
#ifndef GR_CONVERT_H
#define GR_CONVERT_H

#include "format/tensor_info.h"

#include <stddef.h>
#include <stdint.h>

/* Bit patterns without the sign compare as magnitudes do: below GR_F32_INFINITY is finite, above is NaN. */
#define GR_F32_INFINITY 0x7f800000u
#define GR_F32_F16_MAX 0x477fe000u    /* 65504, the largest float16 */
#define GR_F32_F16_NORMAL 0x38800000u /* 2^-14, the smallest float16 with full precision */
#define GR_F32_Q8_0_MAX 0x477e0000u   /* 65024 = 127 * 512, see gr_f32_to_q8_0 */
#define GR_F16_INFINITY 0x7c00u

/*
 * ggml's Q8_0 (block_q8_0 in ggml/src/ggml-common.h): 32 numbers as integers of -127 to 127 and one float16 factor
 * that they are multiplied with.
 */
enum { GR_Q8_0_BLOCK = 32 };

typedef struct gr_q8_0 {
    uint16_t factor;
    int8_t q[GR_Q8_0_BLOCK];
} gr_q8_0;

_Static_assert(sizeof(gr_q8_0) == 34, "as ggml has it");

/* The largest bit pattern without sign; 0 if all are zero. */
uint32_t gr_f32_largest(const float *x, size_t n);
uint32_t gr_f16_largest(const uint16_t *x, size_t n);

/* Rounds to nearest, ties to even; too large becomes infinity. */
void gr_f32_to_f16(uint16_t *out, const float *x, size_t n);
/*
 * n finite numbers of magnitudes up to GR_F32_Q8_0_MAX to (n + 31) / 32 blocks; what the last one lacks is zero. In
 * each block every number is off by at most half its factor f (and what float32 makes of the division, 2e-5 f), where
 * with `largest` the largest magnitude of the block
 *     f <= largest / 127 * (1 + 2^-11) + 2^-24.
 * The last term counts where the factor is no normal float16 (largest below 0.0078); it is float16's own spacing there.
 * ggml divides by the factor before it rounds that to float16, which makes the error larger by up to an eighth, and
 * lets small factors become zero; here it is rounded first, and upwards where a number would not fit otherwise. What
 * is stored is at most 127 * 512 in magnitude, so that it does not overflow in float16 either. Of larger numbers the
 * block is of no use, but they do no harm.
 */
void gr_f32_to_q8_0(gr_q8_0 *out, const float *x, size_t n);
/* Exact. */
void gr_q8_0_to_f32(float *out, const gr_q8_0 *x, size_t n);
void gr_f16_to_f32(float *out, const uint16_t *x, size_t n);
void gr_bf16_to_f32(float *out, const uint16_t *x, size_t n);
/* n numbers of any type, exactly; of Q8_0 from a block's beginning on. F32 is copied. */
void gr_to_f32(float *out, gr_dtype type, const void *x, size_t n);

#endif
