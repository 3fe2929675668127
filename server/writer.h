/* JSON text, written from left to right into a bounded buffer. Commas come by themselves; what did not fit or found no
 * memory shows once, at the end, in `out.failed`. */
#ifndef SRV_WRITER_H
#define SRV_WRITER_H

#include "base/buffer.h"

#include <stdint.h>

typedef struct srv_writer {
    gr_buffer out;
    bool comma; /* one is due before the next value or key */
} srv_writer;

void srv_writer_init(srv_writer *w);
void srv_writer_finish(srv_writer *w);
void srv_writer_clear(srv_writer *w);

/* '{' '}' '[' ']' */
void srv_open(srv_writer *w, char bracket);
void srv_close(srv_writer *w, char bracket);
void srv_key(srv_writer *w, const char *key);

/* Values. Invalid UTF-8 becomes U+FFFD, NaN and infinity become null, and so does a NULL string. */
void srv_text(srv_writer *w, const char *text, size_t length);
void srv_string(srv_writer *w, const char *s);
void srv_integer(srv_writer *w, int64_t n);
void srv_number(srv_writer *w, double n);
void srv_bool(srv_writer *w, bool b);
void srv_null(srv_writer *w);
/* A value that is JSON already. */
void srv_raw(srv_writer *w, const char *json, size_t length);

/* "key": value */
void srv_put_string(srv_writer *w, const char *key, const char *s);
void srv_put_integer(srv_writer *w, const char *key, int64_t n);
void srv_put_number(srv_writer *w, const char *key, double n);
void srv_put_bool(srv_writer *w, const char *key, bool b);
void srv_put_null(srv_writer *w, const char *key);

#endif
