/* A binary heap of entries: least priority on top, and of equals the one with the least stamp. An entry knows its
 * place (heap_index), so it can be taken out or moved from anywhere. */
#ifndef GR_HEAP_H
#define GR_HEAP_H

#include "policy.h"

typedef struct gr_heap {
    gr_policy_entry **entries;
    size_t count, capacity;
} gr_heap;

/* A zeroed struct is empty. */
void gr_heap_finish(gr_heap *h);
/* Makes room for `count` entries in all, so that pushing that many cannot fail. False if memory is out. */
bool gr_heap_reserve(gr_heap *h, size_t count);
void gr_heap_push(gr_heap *h, gr_policy_entry *e);
void gr_heap_take(gr_heap *h, gr_policy_entry *e);
/* The entry's priority or stamp has changed. */
void gr_heap_moved(gr_heap *h, gr_policy_entry *e);
bool gr_heap_check(const gr_heap *h);

#endif
