/*
 * x86-64 with AVX2, FMA and F16C: compiled in always, by function attributes, and chosen at run time, so that
 * one binary serves every processor.
 */
#include "lora/kernels_simd.h"

#if defined(__x86_64__) && defined(__GNUC__)

#include <cpuid.h>
#include <immintrin.h>

#define GR_AVX2 target("avx2,fma,f16c")
#define GR_TILE __attribute__((GR_AVX2, always_inline)) static inline
#define GR_KERNEL __attribute__((GR_AVX2))

typedef __m256 v8;

GR_TILE v8 v8_zero(void) {
    return _mm256_setzero_ps();
}

GR_TILE v8 v8_set1(float f) {
    return _mm256_set1_ps(f);
}

GR_TILE v8 v8_load(const float *p) {
    return _mm256_loadu_ps(p);
}

GR_TILE v8 v8_load_f16(const uint16_t *p) {
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)p));
}

GR_TILE v8 v8_load_i8(const int8_t *p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)p)));
}

GR_TILE v8 v8_set1_f16(uint16_t half) {
    return _mm256_cvtph_ps(_mm_set1_epi16((short)half));
}

GR_TILE void v8_store(float *p, v8 v) {
    _mm256_storeu_ps(p, v);
}

/* The first n lanes. */
GR_TILE __m256i part_mask(int n) {
    static const int32_t lanes[16] = {-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0};
    return _mm256_loadu_si256((const __m256i *)(const void *)(lanes + 8 - n));
}

GR_TILE v8 v8_load_part(const float *p, int n) {
    return _mm256_maskload_ps(p, part_mask(n));
}

GR_TILE void v8_store_part(float *p, v8 v, int n) {
    _mm256_maskstore_ps(p, part_mask(n), v);
}

GR_TILE v8 v8_fma(v8 a, v8 b, v8 c) {
    return _mm256_fmadd_ps(a, b, c);
}

GR_TILE v8 v8_mul(v8 a, v8 b) {
    return _mm256_mul_ps(a, b);
}

GR_TILE v8 v8_add(v8 a, v8 b) {
    return _mm256_add_ps(a, b);
}

GR_TILE float v8_sum(v8 v) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

#include "lora/kernels_tiles.h"

/* Clang 14's __builtin_cpu_supports does not know "f16c". That the system saves the wide registers is what the
 * check for AVX2 covers. */
static bool has_f16c(void) {
    unsigned a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}

const gr_kernels *gr_kernels_avx2(void) {
    static const gr_kernels set = {"avx2+f16c", down, up};
    bool can = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
    return can ? &set : NULL;
}

#else

const gr_kernels *gr_kernels_avx2(void) {
    return NULL;
}

#endif
