/* The one growable buffer: growing by doubling up to the maximum it was born with. */
#include "buffer.h"

#include "memory.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

void gr_buffer_init(gr_buffer *b, size_t max) {
    memset(b, 0, sizeof *b);
    b->max = max;
}

void gr_buffer_finish(gr_buffer *b) {
    gr_free(b->data);
    gr_buffer_init(b, b->max);
}

void gr_buffer_clear(gr_buffer *b) {
    b->length = 0;
    b->failed = false;
    if (b->data) {
        b->data[0] = '\0';
    }
}

/* Room for `more` bytes and the final NUL. */
static bool reserve(gr_buffer *b, size_t more) {
    if (b->failed || more > b->max - b->length) {
        b->failed = true;
        return false;
    }
    size_t need = b->length + more + 1;
    if (need <= b->capacity) {
        return true;
    }
    size_t capacity = b->capacity ? b->capacity : 64;
    while (capacity < need) {
        capacity = capacity > SIZE_MAX / 2 ? need : capacity * 2;
    }
    char *grown = gr_realloc(b->data, capacity);
    if (!grown) {
        b->failed = true;
        return false;
    }
    b->data = grown;
    b->capacity = capacity;
    return true;
}

bool gr_buffer_append(gr_buffer *b, const void *bytes, size_t length) {
    if (!reserve(b, length)) {
        return false;
    }
    if (length) {
        memcpy(b->data + b->length, bytes, length);
    }
    b->length += length;
    b->data[b->length] = '\0';
    return true;
}

bool gr_buffer_puts(gr_buffer *b, const char *s) {
    return gr_buffer_append(b, s, strlen(s));
}

bool gr_buffer_printf(gr_buffer *b, const char *format, ...) {
    va_list args, again;
    va_start(args, format);
    va_copy(again, args);
    int length = vsnprintf(NULL, 0, format, args);
    va_end(args);
    bool ok = length >= 0 && reserve(b, (size_t)length);
    if (ok) {
        vsnprintf(b->data + b->length, (size_t)length + 1, format, again);
        b->length += (size_t)length;
    }
    va_end(again);
    return ok;
}

void gr_buffer_drop(gr_buffer *b, size_t n) {
    if (n > b->length) {
        n = b->length;
    }
    if (n) {
        memmove(b->data, b->data + n, b->length - n);
        b->length -= n;
        b->data[b->length] = '\0';
    }
}
