/*
 * The one growable byte buffer. Each is born with the most it may ever hold. After a failed append it stays
 * valid and keeps what it had, and `failed` stays set, so a run of appends needs one check at the end.
 */
#ifndef GR_BUFFER_H
#define GR_BUFFER_H

#include "error.h"

#include <stdbool.h>
#include <stddef.h>

typedef struct gr_buffer {
    char *data;   /* NUL-terminated whenever not NULL */
    size_t length, capacity, max;
    bool failed;  /* an append did not fit or memory ran out */
} gr_buffer;

void gr_buffer_init(gr_buffer *b, size_t max);
void gr_buffer_finish(gr_buffer *b);
/* Empties it, keeps the memory, clears `failed`. */
void gr_buffer_clear(gr_buffer *b);
/* Return false (and set failed) if the result would exceed max or memory is out. */
bool gr_buffer_append(gr_buffer *b, const void *bytes, size_t length);
bool gr_buffer_puts(gr_buffer *b, const char *s);
bool gr_buffer_printf(gr_buffer *b, const char *format, ...) GR_PRINTF(2, 3);
/* Drops the first n bytes. */
void gr_buffer_drop(gr_buffer *b, size_t n);

#endif
