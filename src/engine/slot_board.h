/*
 * What other threads may see of the slots. The decode thread writes a copy before and after each step; who asks reads the
 * copy, and neither waits for the other for longer than copying takes.
 */
#ifndef GR_SLOT_BOARD_H
#define GR_SLOT_BOARD_H

#include "engine/sequence.h"

typedef struct gr_slot_board gr_slot_board;

/* For slots 0 to n - 1. Errors: OUT_OF_MEMORY. *out: gr_slot_board_free. */
int gr_slot_board_create(gr_slot_board **out, int n, graft_error *err);
void gr_slot_board_free(gr_slot_board *b);

/* Decode thread: `slots` holds at least n. */
void gr_slot_board_post(gr_slot_board *b, const gr_sequence *slots);
/* Any thread; as graft_slots. */
int gr_slot_board_read(graft_slot_list **out, gr_slot_board *b, graft_error *err);

#endif
