/* Conversions: plain loops and ggml's, and the two that are worth vectors. */
#include "convert.h"

#include <ggml.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#if defined(__x86_64__)
/* In one of 16 lanes of *most at a time. 20 MB take 0.6 ms with this, 1.6 to 3 without: compilers make little of the
 * plain loop, as SSE2 has no maximum of 32-bit integers. */
__attribute__((target("avx2"))) static size_t largest_avx2(int32_t *most, const float *x, size_t n) {
    const __m256i no_sign = _mm256_set1_epi32(0x7fffffff);
    __m256i a = _mm256_setzero_si256(), b = a;
    size_t i = 0;
    for (; i + 16 <= n; i += 16) {
        const __m256i *from = (const __m256i *)(const void *)(x + i);
        a = _mm256_max_epi32(a, _mm256_and_si256(_mm256_loadu_si256(from), no_sign));
        b = _mm256_max_epi32(b, _mm256_and_si256(_mm256_loadu_si256(from + 1), no_sign));
    }
    int32_t lanes[8];
    _mm256_storeu_si256((__m256i *)(void *)lanes, _mm256_max_epi32(a, b));
    for (int lane = 0; lane < 8; lane++) {
        *most = lanes[lane] > *most ? lanes[lane] : *most;
    }
    return i;
}
#endif

uint32_t gr_f32_largest(const float *x, size_t n) {
    int32_t largest = 0; /* signed: so do vectors compare, and without sign bits it is the same */
    size_t i = 0;
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2")) {
        i = largest_avx2(&largest, x, n);
    }
#endif
    for (; i < n; i++) {
        int32_t bits;
        memcpy(&bits, &x[i], sizeof bits);
        bits &= 0x7fffffff;
        largest = bits > largest ? bits : largest;
    }
    return (uint32_t)largest;
}

uint32_t gr_f16_largest(const uint16_t *x, size_t n) {
    int16_t largest = 0;
    for (size_t i = 0; i < n; i++) {
        int16_t bits = (int16_t)(x[i] & 0x7fff);
        largest = bits > largest ? bits : largest;
    }
    return (uint32_t)largest;
}

#if defined(__x86_64__)
/* ggml's own rows are scalar: 12 ms for a 20 MB adapter, against 1.5 with this. */
__attribute__((target("avx,f16c"))) static size_t narrow_f16c(uint16_t *out, const float *x, size_t n) {
    size_t i = 0;
    for (; i + 8 <= n; i += 8) {
        __m128i half = _mm256_cvtps_ph(_mm256_loadu_ps(x + i), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
        _mm_storeu_si128((__m128i *)(void *)(out + i), half);
    }
    return i;
}
#endif

void gr_f32_to_f16(uint16_t *out, const float *x, size_t n) {
    size_t i = 0;
#if defined(__x86_64__)
    /* Clang cannot be asked for f16c, but no processor has AVX2 without it. */
    if (__builtin_cpu_supports("avx2")) {
        i = narrow_f16c(out, x, n);
    }
#endif
    ggml_fp32_to_fp16_row(x + i, out + i, (int64_t)(n - i));
}

void gr_f16_to_f32(float *out, const uint16_t *x, size_t n) {
    ggml_fp16_to_fp32_row(x, out, (int64_t)n);
}

/* The float16 nearest to largest / 127, or the next one if with that the largest would become more than 127. */
static uint16_t factor_for(float largest) {
    uint16_t f = ggml_fp32_to_fp16(largest / 127.0f);
    return f + (ggml_fp16_to_fp32(f) * 127.49f < largest);
}

/* Rounding by addition: the sum's last bit is worth 1, and its low byte is the integer. A loop that compilers turn
 * into vectors, which they do not with rintf. */
static void round_block(int8_t *out, const float *x, float inverse) {
    const float shift = 12582912.0f; /* 1.5 * 2^23 */
    for (int i = 0; i < GR_Q8_0_BLOCK; i++) {
        float sum = x[i] * inverse + shift;
        int32_t bits;
        memcpy(&bits, &sum, sizeof bits);
        out[i] = (int8_t)(bits & 0xff);
    }
}

void gr_f32_to_q8_0(gr_q8_0 *out, const float *x, size_t n) {
    float last[GR_Q8_0_BLOCK] = {0};
    for (size_t i = 0; i < n; i += GR_Q8_0_BLOCK, out++) {
        const float *from = x + i;
        if (n - i < GR_Q8_0_BLOCK) {
            memcpy(last, from, (n - i) * sizeof *last);
            from = last;
        }
        uint32_t bits = gr_f32_largest(from, GR_Q8_0_BLOCK);
        float largest;
        memcpy(&largest, &bits, sizeof largest);
        out->factor = factor_for(largest);
        round_block(out->q, from, out->factor ? 1.0f / ggml_fp16_to_fp32(out->factor) : 0.0f);
    }
}

void gr_q8_0_to_f32(float *out, const gr_q8_0 *x, size_t n) {
    for (size_t i = 0; i < n; i++) {
        const gr_q8_0 *block = x + i / GR_Q8_0_BLOCK;
        out[i] = ggml_fp16_to_fp32(block->factor) * (float)block->q[i % GR_Q8_0_BLOCK];
    }
}

void gr_bf16_to_f32(float *out, const uint16_t *x, size_t n) {
    for (size_t i = 0; i < n; i++) {
        uint32_t bits = (uint32_t)x[i] << 16;
        memcpy(&out[i], &bits, sizeof bits);
    }
}

void gr_to_f32(float *out, gr_dtype type, const void *x, size_t n) {
    switch (type) {
    case GR_DTYPE_F32: memcpy(out, x, n * sizeof *out); break;
    case GR_DTYPE_F16: gr_f16_to_f32(out, x, n); break;
    case GR_DTYPE_BF16: gr_bf16_to_f32(out, x, n); break;
    case GR_DTYPE_Q8_0: gr_q8_0_to_f32(out, x, n); break;
    }
}
