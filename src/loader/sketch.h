/*
 * How often each key was asked for lately, roughly and in a fixed 8 KB (a count-min sketch): four rows of 4-bit
 * counters; a key has one counter in each row and its estimate is the least of the four. Collisions can only
 * make it too high. Ageing: after `sample` additions all counters are halved, so that old fame fades.
 */
#ifndef GR_SKETCH_H
#define GR_SKETCH_H

#include <stdint.h>

#define GR_SKETCH_ROWS 4
#define GR_SKETCH_WIDTH 4096 /* counters a row; far above the number of adapters that people keep */
#define GR_SKETCH_MAX 15     /* of one counter */

typedef struct gr_sketch {
    uint64_t rows[GR_SKETCH_ROWS][GR_SKETCH_WIDTH / 16]; /* 16 counters in each word */
    uint64_t additions;                                  /* since the last halving, halved with it */
} gr_sketch;

/* A zeroed struct has counted nothing. */
void gr_sketch_add(gr_sketch *s, uint64_t key, uint64_t sample);
/* 0 to GR_SKETCH_MAX. */
unsigned gr_sketch_estimate(const gr_sketch *s, uint64_t key);

#endif
