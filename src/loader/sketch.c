/* The frequency sketch of wtinylfu: see sketch.h. */
#include "sketch.h"

/* Spreads a key's bits so that each row may take its own 12 of the 64 (finaliser of splitmix64). */
static uint64_t mix(uint64_t x) {
    x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ x >> 27) * UINT64_C(0x94d049bb133111eb);
    return x ^ x >> 31;
}

static unsigned column(uint64_t hash, int row) {
    return (unsigned)(hash >> 12 * row) % GR_SKETCH_WIDTH;
}

static unsigned counter(const gr_sketch *s, int row, unsigned column) {
    return s->rows[row][column / 16] >> column % 16 * 4 & GR_SKETCH_MAX;
}

static void halve(gr_sketch *s) {
    for (int row = 0; row < GR_SKETCH_ROWS; row++) {
        for (int i = 0; i < GR_SKETCH_WIDTH / 16; i++) {
            s->rows[row][i] = s->rows[row][i] >> 1 & UINT64_C(0x7777777777777777);
        }
    }
    s->additions /= 2;
}

void gr_sketch_add(gr_sketch *s, uint64_t key, uint64_t sample) {
    uint64_t hash = mix(key);
    for (int row = 0; row < GR_SKETCH_ROWS; row++) {
        unsigned c = column(hash, row);
        if (counter(s, row, c) < GR_SKETCH_MAX) {
            s->rows[row][c / 16] += UINT64_C(1) << c % 16 * 4;
        }
    }
    if (++s->additions >= sample) {
        halve(s);
    }
}

unsigned gr_sketch_estimate(const gr_sketch *s, uint64_t key) {
    uint64_t hash = mix(key);
    unsigned least = GR_SKETCH_MAX;
    for (int row = 0; row < GR_SKETCH_ROWS; row++) {
        unsigned n = counter(s, row, column(hash, row));
        least = n < least ? n : least;
    }
    return least;
}
