/*
 * Which sequences get how many rows of the next step. Pure: a function of its arguments, tested by tables.
 *
 * Generating sequences come first, with one row each. What is left goes to prompts: half of it in equal shares, so
 * that a short prompt is not stuck behind a long one, the rest to the oldest, so that prompts end one after the
 * other and not all at the end. When there are more generating sequences than rows, they take turns and a quarter
 * of the rows stays for prompts. Nobody starves: turns go to whoever waited longest, and the oldest prompt always
 * advances.
 */
#ifndef GR_SCHEDULER_H
#define GR_SCHEDULER_H

#include <stdbool.h>
#include <stdint.h>

#define GR_MAX_SLOTS 256

typedef struct gr_sched_item {
    uint64_t age;     /* smaller came earlier; unique */
    uint64_t served;  /* step in which it last got rows */
    int want;         /* rows it could use, at least 1; 1 if generating */
    bool generating;
    bool scoring;     /* wants the logits of every row */
    int rows;         /* the answer */
} gr_sched_item;

/*
 * Sets `rows` of n <= GR_MAX_SLOTS items. The sum is at most `capacity` (>= 1) and the rows with logits (one per
 * item, all of a scoring one) are at most `max_outputs`, which must be at least n.
 */
void gr_schedule(gr_sched_item *items, int n, int capacity, int max_outputs);

#endif
