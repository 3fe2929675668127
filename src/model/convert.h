/* Rows of numbers from one floating-point format to another, and what is the largest of them. */
#ifndef GR_CONVERT_H
#define GR_CONVERT_H

#include <stddef.h>
#include <stdint.h>

/* Bit patterns without the sign compare as magnitudes do: below GR_F32_INFINITY is finite, above is NaN. */
#define GR_F32_INFINITY 0x7f800000u
#define GR_F32_F16_MAX 0x477fe000u    /* 65504, the largest float16 */
#define GR_F32_F16_NORMAL 0x38800000u /* 2^-14, the smallest float16 with full precision */
#define GR_F16_INFINITY 0x7c00u

/* The largest bit pattern without sign; 0 if all are zero. */
uint32_t gr_f32_largest(const float *x, size_t n);
uint32_t gr_f16_largest(const uint16_t *x, size_t n);

/* Rounds to nearest, ties to even; too large becomes infinity. */
void gr_f32_to_f16(uint16_t *out, const float *x, size_t n);
/* Exact. */
void gr_f16_to_f32(float *out, const uint16_t *x, size_t n);
void gr_bf16_to_f32(float *out, const uint16_t *x, size_t n);

#endif
