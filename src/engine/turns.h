/*
 * Whose turn it is when a slot is free: the adapters that have fewest requests in slots, among those the one whose last
 * request began longest ago, and of one adapter's requests the oldest. A stream of requests to one adapter can so not keep
 * another waiting for more than a slot. Pure; the decode thread's.
 */
#ifndef GR_TURNS_H
#define GR_TURNS_H

#include "scheduler.h"

#define GR_TURNS_KEPT 64 /* adapters whose last beginning is remembered; others count as never */

typedef struct gr_turns {
    struct gr_turn {
        uint64_t key;
        uint64_t began; /* 0 = free */
    } last[GR_TURNS_KEPT];
    uint64_t n_began;
    uint64_t running[GR_MAX_SLOTS]; /* a key for each request in a slot */
    int n_running;
} gr_turns;

/* What is in slots is said anew from here on. What began when stays. */
void gr_turns_look(gr_turns *t);
void gr_turns_running(gr_turns *t, uint64_t key);
/* The smaller, the sooner; 0: nothing can be before it. */
uint64_t gr_turns_rank(const gr_turns *t, uint64_t key);
/* A request of this key begins. */
void gr_turns_began(gr_turns *t, uint64_t key);

#endif
