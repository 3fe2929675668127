/* From token bytes to text that may be shown: stop strings and UTF-8. Pure. */
#include "text.h"

#include "base/utf8.h"

#include <string.h>

#define REPLACEMENT "\xEF\xBF\xBD" /* U+FFFD */

void gr_text_init(gr_text *t, char *const *stop, size_t n_stop, size_t max) {
    memset(t, 0, sizeof *t);
    gr_buffer_init(&t->out, max);
    gr_buffer_init(&t->held, max);
    t->stop = stop;
    t->n_stop = n_stop < GR_MAX_STOPS ? n_stop : GR_MAX_STOPS;
    for (size_t i = 0; i < t->n_stop; i++) {
        t->stop_length[i] = strlen(stop[i]);
    }
}

void gr_text_finish(gr_text *t) {
    gr_buffer_finish(&t->out);
    gr_buffer_finish(&t->held);
}

/* Moves the first n held bytes to the text, stray bytes replaced. */
static bool release(gr_text *t, size_t n) {
    const char *s = t->held.data;
    size_t run = 0, i = 0; /* s[run..i) is valid and not yet copied */
    while (i < n) {
        size_t width = gr_utf8_char(s + i, n - i);
        if (width == 0) {
            gr_buffer_append(&t->out, s + run, i - run);
            gr_buffer_puts(&t->out, REPLACEMENT);
            width = 1;
            run = i + 1;
        }
        i += width;
    }
    if (n > run) {
        gr_buffer_append(&t->out, s + run, n - run);
    }
    gr_buffer_drop(&t->held, n);
    return !t->out.failed;
}

/* Length of the longest stop string that ends at held[end), or 0. */
static size_t stop_ending_at(const gr_text *t, size_t end) {
    size_t longest = 0;
    for (size_t i = 0; i < t->n_stop; i++) {
        size_t length = t->stop_length[i];
        if (length > longest && length <= end && memcmp(t->held.data + end - length, t->stop[i], length) == 0) {
            longest = length;
        }
    }
    return longest;
}

/* Length of the longest tail of `held` that begins a stop string. */
static size_t tail_to_hold(const gr_text *t) {
    size_t longest = 0;
    for (size_t i = 0; i < t->n_stop; i++) {
        size_t length = t->stop_length[i] - 1;
        if (length > t->held.length) {
            length = t->held.length;
        }
        for (; length > longest; length--) {
            if (memcmp(t->held.data + t->held.length - length, t->stop[i], length) == 0) {
                longest = length;
            }
        }
    }
    return longest;
}

bool gr_text_add(gr_text *t, const char *bytes, size_t n) {
    if (t->stopped || n == 0) {
        return true;
    }
    size_t before = t->held.length;
    if (!gr_buffer_append(&t->held, bytes, n)) {
        return false;
    }
    for (size_t end = before + 1; end <= t->held.length; end++) {
        size_t length = stop_ending_at(t, end);
        if (length > 0) {
            bool ok = release(t, end - length);
            gr_buffer_clear(&t->held);
            t->stopped = true;
            return ok;
        }
    }
    return release(t, gr_utf8_complete(t->held.data, t->held.length - tail_to_hold(t)));
}

bool gr_text_end(gr_text *t) {
    return t->stopped || release(t, t->held.length);
}

size_t gr_text_take(gr_text *t, const char **text) {
    size_t n = t->out.length - t->taken;
    *text = t->out.data ? t->out.data + t->taken : "";
    t->taken = t->out.length;
    return n;
}
