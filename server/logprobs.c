/* Probabilities of tokens as JSON. */
#include "logprobs.h"

#include <math.h>

void srv_write_logprob(srv_writer *w, float logprob) {
    srv_number(w, isfinite(logprob) ? (double)logprob : -9999.0);
}

static void write_choice(srv_writer *w, const srv_choice *c) {
    srv_key(w, "token");
    srv_text(w, c->text, c->length);
    srv_key(w, "logprob");
    srv_write_logprob(w, c->logprob);
    srv_key(w, "bytes");
    srv_open(w, '[');
    for (uint32_t i = 0; i < c->length; i++) {
        srv_integer(w, (unsigned char)c->text[i]);
    }
    srv_close(w, ']');
}

static void write_top(srv_writer *w, const gr_buffer *tokens, size_t *at, uint32_t n) {
    srv_choice top;
    srv_key(w, "top_logprobs");
    srv_open(w, '[');
    for (uint32_t i = 0; i < n && srv_choice_next(tokens, at, &top); i++) {
        srv_open(w, '{');
        write_choice(w, &top);
        srv_close(w, '}');
    }
    srv_close(w, ']');
}

void srv_write_logprobs(srv_writer *w, const gr_buffer *tokens) {
    srv_choice c;
    size_t at = 0;
    srv_open(w, '[');
    while (srv_choice_next(tokens, &at, &c)) {
        srv_open(w, '{');
        write_choice(w, &c);
        write_top(w, tokens, &at, c.n_top);
        srv_close(w, '}');
    }
    srv_close(w, ']');
}
