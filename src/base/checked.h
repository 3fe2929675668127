/* Arithmetic on numbers from outside: each returns false instead of wrapping, and then leaves *out alone. */
#ifndef GR_CHECKED_H
#define GR_CHECKED_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

static inline bool gr_add_u64(uint64_t *out, uint64_t a, uint64_t b) {
    if (a > UINT64_MAX - b) {
        return false;
    }
    *out = a + b;
    return true;
}

static inline bool gr_mul_u64(uint64_t *out, uint64_t a, uint64_t b) {
    if (a != 0 && b > UINT64_MAX / a) {
        return false;
    }
    *out = a * b;
    return true;
}

static inline bool gr_mul_size(size_t *out, size_t a, size_t b) {
    if (a != 0 && b > SIZE_MAX / a) {
        return false;
    }
    *out = a * b;
    return true;
}

/* Rounds up to a multiple of `align`, a power of two. */
static inline bool gr_pad_u64(uint64_t *out, uint64_t n, uint64_t align) {
    uint64_t sum;
    if (!gr_add_u64(&sum, n, align - 1)) {
        return false;
    }
    *out = sum & ~(align - 1);
    return true;
}

#endif
