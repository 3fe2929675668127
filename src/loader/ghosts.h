/*
 * Keys of what was evicted lately, oldest first, bounded by the bytes that the objects had and by number. A ghost
 * is a hint: where memory is out, it is not remembered.
 */
#ifndef GR_GHOSTS_H
#define GR_GHOSTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct gr_ghosts {
    struct gr_ghost *table; /* uthash; iterates in order of insertion */
    uint64_t bytes, max_bytes;
    size_t max_count; /* at most GR_GHOSTS_MAX */
} gr_ghosts;

/* Whatever the objects' sizes, this is all the memory that ghosts may take: about 5 MB. */
#define GR_GHOSTS_MAX 65536

/* A zeroed struct is empty and may remember nothing. */
void gr_ghosts_resize(gr_ghosts *g, uint64_t max_bytes, size_t max_count);
void gr_ghosts_finish(gr_ghosts *g);
/* Makes it the newest, dropping the oldest until it fits. Does nothing if it is larger than all room. */
void gr_ghosts_add(gr_ghosts *g, uint64_t key, uint64_t bytes);
/* Forgets the key; whether it was there. */
bool gr_ghosts_take(gr_ghosts *g, uint64_t key);
bool gr_ghosts_check(const gr_ghosts *g);

#endif
