/*
 * From token bytes to text that may be shown: whole UTF-8 characters only, stop strings never. Pure; no libllama.
 *
 * Bytes wait in `held` while they could be the beginning of a stop string or of a character. What leaves is valid
 * UTF-8 whatever the model produced (a stray byte becomes U+FFFD), and does not depend on how the bytes were cut
 * into tokens.
 */
#ifndef GR_TEXT_H
#define GR_TEXT_H

#include "base/buffer.h"

#define GR_MAX_STOPS 16
#define GR_MAX_STOP_BYTES 256

typedef struct gr_text {
    gr_buffer out;      /* finished text */
    gr_buffer held;     /* bytes that may still change meaning */
    size_t taken;       /* of `out`: handed on by gr_text_take */
    char *const *stop;  /* borrowed */
    size_t stop_length[GR_MAX_STOPS];
    size_t n_stop;
    bool stopped;       /* a stop string came; nothing is added any more */
} gr_text;

/* `stop`: n_stop <= GR_MAX_STOPS strings of 1 to GR_MAX_STOP_BYTES bytes of UTF-8, borrowed until finish. `max`
 * bounds the whole text in bytes. */
void gr_text_init(gr_text *t, char *const *stop, size_t n_stop, size_t max);
void gr_text_finish(gr_text *t);

/*
 * Adds bytes. If several stop strings occur, the one that is complete first counts; of those complete at the same
 * byte, the longest. Returns false if the text would exceed its bound or memory is out.
 */
bool gr_text_add(gr_text *t, const char *bytes, size_t n);
/* Nothing follows: what was held back becomes text, unless a stop string came. Returns as gr_text_add. */
bool gr_text_end(gr_text *t);

/* The finished text since the last call; returns its length. Valid until the next add. */
size_t gr_text_take(gr_text *t, const char **text);

#endif
