/* JSON text. */
#include "writer.h"

#include "base/utf8.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

enum { MOST = 64 << 20 };

void srv_writer_init(srv_writer *w) {
    gr_buffer_init(&w->out, MOST);
    w->comma = false;
}

void srv_writer_finish(srv_writer *w) {
    gr_buffer_finish(&w->out);
}

void srv_writer_clear(srv_writer *w) {
    gr_buffer_clear(&w->out);
    w->comma = false;
}

static void begin(srv_writer *w) {
    if (w->comma) {
        gr_buffer_puts(&w->out, ",");
    }
    w->comma = true;
}

void srv_open(srv_writer *w, char bracket) {
    begin(w);
    gr_buffer_append(&w->out, &bracket, 1);
    w->comma = false;
}

void srv_close(srv_writer *w, char bracket) {
    gr_buffer_append(&w->out, &bracket, 1);
    w->comma = true;
}

void srv_key(srv_writer *w, const char *key) {
    srv_string(w, key);
    gr_buffer_puts(&w->out, ":");
    w->comma = false;
}

static void escape(gr_buffer *out, unsigned char c) {
    switch (c) {
    case '"': gr_buffer_puts(out, "\\\""); break;
    case '\\': gr_buffer_puts(out, "\\\\"); break;
    case '\n': gr_buffer_puts(out, "\\n"); break;
    case '\r': gr_buffer_puts(out, "\\r"); break;
    case '\t': gr_buffer_puts(out, "\\t"); break;
    default: gr_buffer_printf(out, "\\u%04x", c);
    }
}

static bool plain(unsigned char c) {
    return c >= 0x20 && c != '"' && c != '\\' && c < 0x7f;
}

void srv_text(srv_writer *w, const char *text, size_t length) {
    begin(w);
    gr_buffer_puts(&w->out, "\"");
    for (size_t i = 0; i < length;) {
        size_t n = 0;
        while (i + n < length && plain((unsigned char)text[i + n])) {
            n++;
        }
        if (n) {
            gr_buffer_append(&w->out, text + i, n);
        } else if ((unsigned char)text[i] < 0x80) {
            escape(&w->out, (unsigned char)text[i]);
            n = 1;
        } else if ((n = gr_utf8_char(text + i, length - i))) {
            gr_buffer_append(&w->out, text + i, n);
        } else {
            gr_buffer_puts(&w->out, "\xef\xbf\xbd");
            n = 1;
        }
        i += n;
    }
    gr_buffer_puts(&w->out, "\"");
}

void srv_string(srv_writer *w, const char *s) {
    if (s) {
        srv_text(w, s, strlen(s));
    } else {
        srv_null(w);
    }
}

void srv_integer(srv_writer *w, int64_t n) {
    begin(w);
    gr_buffer_printf(&w->out, "%" PRId64, n);
}

void srv_number(srv_writer *w, double n) {
    begin(w);
    if (isfinite(n)) {
        gr_buffer_printf(&w->out, "%.9g", n);
    } else {
        gr_buffer_puts(&w->out, "null");
    }
}

void srv_bool(srv_writer *w, bool b) {
    begin(w);
    gr_buffer_puts(&w->out, b ? "true" : "false");
}

void srv_null(srv_writer *w) {
    begin(w);
    gr_buffer_puts(&w->out, "null");
}

void srv_raw(srv_writer *w, const char *json, size_t length) {
    begin(w);
    gr_buffer_append(&w->out, json, length);
}

void srv_put_string(srv_writer *w, const char *key, const char *s) {
    srv_key(w, key);
    srv_string(w, s);
}

void srv_put_integer(srv_writer *w, const char *key, int64_t n) {
    srv_key(w, key);
    srv_integer(w, n);
}

void srv_put_number(srv_writer *w, const char *key, double n) {
    srv_key(w, key);
    srv_number(w, n);
}

void srv_put_bool(srv_writer *w, const char *key, bool b) {
    srv_key(w, key);
    srv_bool(w, b);
}

void srv_put_null(srv_writer *w, const char *key) {
    srv_key(w, key);
    srv_null(w);
}
