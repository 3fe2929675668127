/* Adapters of random numbers, packed like real ones: for the self-test, the unit tests and benchmarks. */
#ifndef GR_RANDOM_ADAPTER_H
#define GR_RANDOM_ADAPTER_H

#include "model/adapter.h"

/* A small generator of our own, so that the self-test's adapters are the same everywhere. State: any but 0. */
static inline uint32_t gr_random(uint64_t *state) {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return (uint32_t)(*state >> 32);
}

/*
 * Changes the weights[0..n) (ids of the base's table, ascending) with the given rank and scale 1. Values are such
 * that A x has about the size of x's elements, and B A x about `gain` times that. type: GR_DTYPE_F16, GR_DTYPE_F32 or
 * GR_DTYPE_Q8_0; the values are the same numbers in all of them, such as even Q8_0 holds exactly. *out:
 * gr_random_adapter_free (not gr_adapter_release). Errors: OUT_OF_MEMORY.
 */
int gr_random_adapter_create(gr_adapter **out, const gr_base_model *base, const int *weights, size_t n, int rank,
                             gr_dtype type, float gain, uint64_t seed, graft_error *err);
void gr_random_adapter_free(gr_adapter *a);

#endif
