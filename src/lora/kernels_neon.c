/* 64-bit ARM: NEON and the float16 conversion are part of the base instruction set, so nothing is chosen. */
#include "lora/kernels_simd.h"

#if defined(__aarch64__)

#include <arm_neon.h>

#define GR_TILE __attribute__((always_inline)) static inline
#define GR_KERNEL

typedef float32x4x2_t v8;

GR_TILE v8 v8_zero(void) {
    v8 v = {{vdupq_n_f32(0.0f), vdupq_n_f32(0.0f)}};
    return v;
}

GR_TILE v8 v8_set1(float f) {
    v8 v = {{vdupq_n_f32(f), vdupq_n_f32(f)}};
    return v;
}

GR_TILE v8 v8_load(const float *p) {
    v8 v = {{vld1q_f32(p), vld1q_f32(p + 4)}};
    return v;
}

GR_TILE v8 v8_load_f16(const uint16_t *p) {
    float16x8_t h = vreinterpretq_f16_u16(vld1q_u16(p));
    v8 v = {{vcvt_f32_f16(vget_low_f16(h)), vcvt_high_f32_f16(h)}};
    return v;
}

GR_TILE v8 v8_load_i8(const int8_t *p) {
    int16x8_t i = vmovl_s8(vld1_s8(p));
    v8 v = {{vcvtq_f32_s32(vmovl_s16(vget_low_s16(i))), vcvtq_f32_s32(vmovl_high_s16(i))}};
    return v;
}

GR_TILE v8 v8_set1_f16(uint16_t half) {
    float32x4_t f = vcvt_f32_f16(vreinterpret_f16_u16(vdup_n_u16(half)));
    v8 v = {{f, f}};
    return v;
}

GR_TILE void v8_store(float *p, v8 v) {
    vst1q_f32(p, v.val[0]);
    vst1q_f32(p + 4, v.val[1]);
}

GR_TILE v8 v8_load_part(const float *p, int n) {
    float whole[8] = {0};
    for (int i = 0; i < n; i++) {
        whole[i] = p[i];
    }
    return v8_load(whole);
}

GR_TILE void v8_store_part(float *p, v8 v, int n) {
    float whole[8];
    v8_store(whole, v);
    for (int i = 0; i < n; i++) {
        p[i] = whole[i];
    }
}

GR_TILE v8 v8_fma(v8 a, v8 b, v8 c) {
    v8 v = {{vfmaq_f32(c.val[0], a.val[0], b.val[0]), vfmaq_f32(c.val[1], a.val[1], b.val[1])}};
    return v;
}

GR_TILE v8 v8_mul(v8 a, v8 b) {
    v8 v = {{vmulq_f32(a.val[0], b.val[0]), vmulq_f32(a.val[1], b.val[1])}};
    return v;
}

GR_TILE v8 v8_add(v8 a, v8 b) {
    v8 v = {{vaddq_f32(a.val[0], b.val[0]), vaddq_f32(a.val[1], b.val[1])}};
    return v;
}

GR_TILE float v8_sum(v8 v) {
    return vaddvq_f32(vaddq_f32(v.val[0], v.val[1]));
}

#include "lora/kernels_tiles.h"

const gr_kernels *gr_kernels_neon(void) {
    static const gr_kernels set = {"neon", down, up};
    return &set;
}

#else

const gr_kernels *gr_kernels_neon(void) {
    return NULL;
}

#endif
