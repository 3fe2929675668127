/* Small arithmetic on bits: numbers that look random, and hashes of text. Neither is for secrets. */
#ifndef GR_MIX_H
#define GR_MIX_H

#include <stdint.h>

/* The next of a sequence that its seed alone determines (splitmix64). */
static inline uint64_t gr_mix_next(uint64_t *state) {
    uint64_t z = *state += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return z ^ z >> 31;
}

#define GR_HASH_BEGIN UINT64_C(14695981039346656037)

/* Goes on with a hash (FNV-1a) over the bytes of `s`. */
static inline uint64_t gr_hash_text(uint64_t hash, const char *s) {
    for (; *s; s++) {
        hash = (hash ^ (unsigned char)*s) * UINT64_C(1099511628211);
    }
    return hash;
}

#endif
