/* Answers as JSON. */
#include "openai_reply.h"

#include "base/utf8.h"

#include <math.h>
#include <string.h>

/* ---- probabilities ------------------------------------------------------------------------------------ */

/* JSON has no -infinity, which a banned token has. */
static double finite(float logprob) {
    return isfinite(logprob) ? (double)logprob : -9999.0;
}

static void write_chat_choice(srv_writer *w, const srv_choice *c) {
    srv_key(w, "token");
    srv_text(w, c->text, c->length);
    srv_put_number(w, "logprob", finite(c->logprob));
    srv_key(w, "bytes");
    srv_open(w, '[');
    for (uint32_t i = 0; i < c->length; i++) {
        srv_integer(w, (unsigned char)c->text[i]);
    }
    srv_close(w, ']');
}

/* {"content":[{"token","logprob","bytes","top_logprobs":[…]}]} */
static void write_chat_logprobs(srv_writer *w, const gr_buffer *tokens) {
    srv_choice c, top;
    size_t at = 0;
    srv_open(w, '{');
    srv_key(w, "content");
    srv_open(w, '[');
    while (srv_choice_next(tokens, &at, &c)) {
        srv_open(w, '{');
        write_chat_choice(w, &c);
        srv_key(w, "top_logprobs");
        srv_open(w, '[');
        for (uint32_t i = 0; i < c.n_top && srv_choice_next(tokens, &at, &top); i++) {
            srv_open(w, '{');
            write_chat_choice(w, &top);
            srv_close(w, '}');
        }
        srv_close(w, ']');
        srv_close(w, '}');
    }
    srv_close(w, ']');
    srv_put_null(w, "refusal");
    srv_close(w, '}');
}

/* A token as the older call spells it: those that are no text as "bytes:\xf0\x9f". */
static void write_token_text(srv_writer *w, const srv_choice *c) {
    gr_buffer spelled;
    if (gr_utf8_valid(c->text, c->length)) {
        srv_text(w, c->text, c->length);
        return;
    }
    gr_buffer_init(&spelled, 4096);
    gr_buffer_puts(&spelled, "bytes:");
    for (uint32_t i = 0; i < c->length; i++) {
        gr_buffer_printf(&spelled, "\\x%02x", (unsigned char)c->text[i]);
    }
    srv_text(w, spelled.data ? spelled.data : "", spelled.length);
    gr_buffer_finish(&spelled);
}

static size_t characters(const char *text, size_t length) {
    size_t n = 0;
    for (size_t i = 0; i < length; i++) {
        n += ((unsigned char)text[i] & 0xc0) != 0x80;
    }
    return n;
}

static void write_top(srv_writer *w, const gr_buffer *tokens, size_t *at, uint32_t n) {
    srv_choice top;
    srv_open(w, '{');
    for (uint32_t i = 0; i < n && srv_choice_next(tokens, at, &top); i++) {
        write_token_text(w, &top);
        gr_buffer_puts(&w->out, ":"); /* the text was a key */
        w->comma = false;
        srv_number(w, finite(top.logprob));
    }
    srv_close(w, '}');
}

enum part { TOKENS, LOGPROBS, TOPS, OFFSETS };

static void write_part(srv_writer *w, const char *key, enum part part, const gr_buffer *tokens, size_t offset) {
    srv_choice c, top;
    size_t at = 0;
    srv_key(w, key);
    srv_open(w, '[');
    while (srv_choice_next(tokens, &at, &c)) {
        if (part == TOPS) {
            write_top(w, tokens, &at, c.n_top);
            continue;
        }
        for (uint32_t i = 0; i < c.n_top; i++) {
            srv_choice_next(tokens, &at, &top);
        }
        switch (part) {
        case TOKENS: write_token_text(w, &c); break;
        case LOGPROBS: srv_number(w, finite(c.logprob)); break;
        default: srv_integer(w, (int64_t)offset);
        }
        offset += characters(c.text, c.length);
    }
    srv_close(w, ']');
}

static size_t count_characters(const gr_buffer *tokens) {
    srv_choice c, top;
    size_t at = 0, n = 0;
    while (srv_choice_next(tokens, &at, &c)) {
        n += characters(c.text, c.length);
        for (uint32_t i = 0; i < c.n_top; i++) {
            srv_choice_next(tokens, &at, &top);
        }
    }
    return n;
}

/* {"tokens","token_logprobs","top_logprobs","text_offset"} */
static void write_text_logprobs(srv_writer *w, openai_choice *c, const gr_buffer *tokens) {
    srv_open(w, '{');
    write_part(w, "tokens", TOKENS, tokens, 0);
    write_part(w, "token_logprobs", LOGPROBS, tokens, 0);
    write_part(w, "top_logprobs", TOPS, tokens, 0);
    write_part(w, "text_offset", OFFSETS, tokens, c->characters);
    srv_close(w, '}');
    c->characters += count_characters(tokens);
}

static void write_logprobs(srv_writer *w, const openai_head *h, openai_choice *c, const gr_buffer *tokens) {
    srv_key(w, "logprobs");
    if (!h->logprobs || !tokens) {
        srv_null(w);
    } else if (h->chat) {
        write_chat_logprobs(w, tokens);
    } else {
        write_text_logprobs(w, c, tokens);
    }
}

/* ---- what all have ------------------------------------------------------------------------------------ */

static void write_head(srv_writer *w, const openai_head *h, const char *object) {
    srv_open(w, '{');
    srv_put_string(w, "id", h->id);
    srv_put_string(w, "object", object);
    srv_put_integer(w, "created", h->created);
    srv_put_string(w, "model", h->model);
    srv_put_string(w, "system_fingerprint", "graft-" GRAFT_VERSION);
    srv_key(w, "choices");
    srv_open(w, '[');
}

static const char *chunk_object(const openai_head *h) {
    return h->chat ? "chat.completion.chunk" : "text_completion";
}

static void write_usage(srv_writer *w, const openai_head *h) {
    int64_t prompt = 0, cached = 0, completion = 0;
    for (size_t i = 0; i < h->n; i++) {
        if (i % (size_t)h->per_prompt == 0) { /* several answers to one prompt count it once */
            prompt += h->choices[i].prompt_tokens;
            cached += h->choices[i].cached_tokens;
        }
        completion += h->choices[i].completion_tokens;
    }
    srv_key(w, "usage");
    srv_open(w, '{');
    srv_put_integer(w, "prompt_tokens", prompt);
    srv_put_integer(w, "completion_tokens", completion);
    srv_put_integer(w, "total_tokens", prompt + completion);
    srv_key(w, "prompt_tokens_details");
    srv_open(w, '{');
    srv_put_integer(w, "cached_tokens", cached);
    srv_close(w, '}');
    srv_close(w, '}');
}

static double each(double total, double n) {
    return n > 0 ? total / n : 0;
}

/* Of one answer. The first token comes out of the prompt's last row, so the others share the time after it. */
static void write_timings(srv_writer *w, const openai_choice *c) {
    int prompt_n = c->prompt_tokens - c->cached_tokens;
    double predicted_ms = c->total_ms - c->queue_ms - c->prompt_ms;
    predicted_ms = predicted_ms > 0 ? predicted_ms : 0;
    srv_key(w, "timings");
    srv_open(w, '{');
    srv_put_integer(w, "cache_n", c->cached_tokens);
    srv_put_integer(w, "prompt_n", prompt_n);
    srv_put_number(w, "prompt_ms", c->prompt_ms);
    srv_put_number(w, "prompt_per_token_ms", each(c->prompt_ms, prompt_n));
    srv_put_number(w, "prompt_per_second", each(prompt_n * 1e3, c->prompt_ms));
    srv_put_integer(w, "predicted_n", c->completion_tokens);
    srv_put_number(w, "predicted_ms", predicted_ms);
    srv_put_number(w, "predicted_per_token_ms", each(predicted_ms, c->completion_tokens));
    srv_put_number(w, "predicted_per_second", each(c->completion_tokens * 1e3, predicted_ms));
    srv_put_number(w, "queue_ms", c->queue_ms);
    srv_put_number(w, "adapter_ms", c->adapter_ms);
    srv_close(w, '}');
}

/* Which adapter answered, and whether it was the one that was asked for. */
static void write_adapter(srv_writer *w, const openai_head *h) {
    srv_put_string(w, "adapter", *h->adapter ? h->adapter : NULL);
    srv_put_string(w, "adapter_generation", *h->generation ? h->generation : NULL);
    srv_key(w, "fallback");
    if (!h->fallback.code) {
        srv_null(w);
        return;
    }
    srv_open(w, '{');
    srv_put_string(w, "code", graft_error_name(h->fallback.code));
    srv_put_string(w, "message", h->fallback.message);
    srv_close(w, '}');
}

/* ---- whole and in pieces ------------------------------------------------------------------------------ */

static void write_choice(srv_writer *w, const openai_head *h, size_t index) {
    openai_choice *c = &h->choices[index];
    const char *text = c->text.data ? c->text.data : "";
    srv_open(w, '{');
    srv_put_integer(w, "index", (int64_t)index);
    if (h->chat) {
        srv_key(w, "message");
        srv_open(w, '{');
        srv_put_string(w, "role", "assistant");
        srv_key(w, "content");
        srv_text(w, text, c->text.length);
        srv_put_null(w, "refusal");
        srv_close(w, '}');
    } else {
        srv_key(w, "text");
        srv_text(w, text, c->text.length);
    }
    write_logprobs(w, h, c, &c->tokens);
    srv_put_string(w, "finish_reason", c->finish);
    srv_close(w, '}');
}

void openai_write_answer(srv_writer *w, openai_head *h) {
    write_head(w, h, h->chat ? "chat.completion" : "text_completion");
    for (size_t i = 0; i < h->n; i++) {
        write_choice(w, h, i);
    }
    srv_close(w, ']');
    write_usage(w, h);
    write_adapter(w, h);
    write_timings(w, &h->choices[0]);
    srv_close(w, '}');
}

/* Up to and with the delta; `text` NULL: an empty one. */
static void open_piece(srv_writer *w, const openai_head *h, size_t index, const gr_buffer *text, bool role) {
    const char *bytes = text && text->data ? text->data : "";
    write_head(w, h, chunk_object(h));
    srv_open(w, '{');
    srv_put_integer(w, "index", (int64_t)index);
    srv_key(w, h->chat ? "delta" : "text");
    if (!h->chat) {
        srv_text(w, bytes, text ? text->length : 0);
        return;
    }
    srv_open(w, '{');
    if (role) {
        srv_put_string(w, "role", "assistant");
    }
    if (role || text) {
        srv_key(w, "content");
        srv_text(w, bytes, text ? text->length : 0);
    }
    srv_close(w, '}');
}

static void close_piece(srv_writer *w, const char *finish) {
    srv_put_string(w, "finish_reason", finish);
    srv_close(w, '}');
    srv_close(w, ']');
}

void openai_write_role(srv_writer *w, openai_head *h, size_t index) {
    open_piece(w, h, index, NULL, true);
    srv_put_null(w, "logprobs");
    close_piece(w, NULL);
    srv_put_string(w, "adapter", *h->adapter ? h->adapter : NULL);
    srv_close(w, '}');
}

void openai_write_said(srv_writer *w, openai_head *h, size_t index, const gr_buffer *text, const gr_buffer *tokens) {
    open_piece(w, h, index, text, false);
    write_logprobs(w, h, &h->choices[index], tokens);
    close_piece(w, NULL);
    srv_close(w, '}');
}

void openai_write_finish(srv_writer *w, openai_head *h, size_t index) {
    open_piece(w, h, index, NULL, false);
    srv_put_null(w, "logprobs");
    close_piece(w, h->choices[index].finish);
    write_adapter(w, h);
    write_timings(w, &h->choices[index]);
    srv_close(w, '}');
}

void openai_write_usage(srv_writer *w, openai_head *h) {
    write_head(w, h, chunk_object(h));
    srv_close(w, ']');
    write_usage(w, h);
    srv_close(w, '}');
}
