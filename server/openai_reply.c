/* OpenAI's answers as JSON. */
#include "openai_reply.h"

#include "logprobs.h"

#include "base/memory.h"
#include "base/utf8.h"

#include <openssl/evp.h>
#include <string.h>

/* ---- probabilities ------------------------------------------------------------------------------------ */

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
        srv_write_logprob(w, top.logprob);
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
        case LOGPROBS: srv_write_logprob(w, c.logprob); break;
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
static void write_text_logprobs(srv_writer *w, srv_part *c, const gr_buffer *tokens) {
    srv_open(w, '{');
    write_part(w, "tokens", TOKENS, tokens, 0);
    write_part(w, "token_logprobs", LOGPROBS, tokens, 0);
    write_part(w, "top_logprobs", TOPS, tokens, 0);
    write_part(w, "text_offset", OFFSETS, tokens, c->characters);
    srv_close(w, '}');
    c->characters += count_characters(tokens);
}

static void write_logprobs(srv_writer *w, const srv_answer *a, srv_part *p, const gr_buffer *tokens) {
    srv_key(w, "logprobs");
    if (a->r->logprobs < 0 || !tokens) {
        srv_null(w);
    } else if (!a->r->chat) {
        write_text_logprobs(w, p, tokens);
    } else {
        srv_open(w, '{');
        srv_key(w, "content");
        srv_write_logprobs(w, tokens);
        srv_put_null(w, "refusal");
        srv_close(w, '}');
    }
}

/* ---- what all have ------------------------------------------------------------------------------------ */

static void write_head(srv_writer *w, const srv_answer *a, const char *object) {
    srv_open(w, '{');
    srv_put_string(w, "id", a->id);
    srv_put_string(w, "object", object);
    srv_put_integer(w, "created", a->created);
    srv_put_string(w, "model", a->r->model);
    srv_put_string(w, "system_fingerprint", "graft-" GRAFT_VERSION);
    srv_key(w, "choices");
    srv_open(w, '[');
}

static const char *chunk_object(const srv_answer *a) {
    return a->r->chat ? "chat.completion.chunk" : "text_completion";
}

static void write_usage(srv_writer *w, const srv_answer *a) {
    int64_t prompt = 0, cached = 0, completion = 0;
    for (size_t i = 0; i < a->r->n_requests; i++) {
        if (i % (size_t)a->r->n == 0) { /* several answers to one prompt count it once */
            prompt += a->parts[i].prompt_tokens;
            cached += a->parts[i].cached_tokens;
        }
        completion += a->parts[i].completion_tokens;
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
static void write_timings(srv_writer *w, const srv_part *c) {
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
static void write_adapter(srv_writer *w, const srv_answer *a) {
    srv_put_string(w, "adapter", *a->r->adapter ? a->r->adapter : NULL);
    srv_put_string(w, "adapter_generation", *a->generation ? a->generation : NULL);
    srv_put_fallback(w, &a->fallback);
}

/* ---- answers whole and in pieces ------------------------------------------------------------------------ */

static void write_choice(srv_writer *w, const srv_answer *a, size_t index) {
    srv_part *p = &a->parts[index];
    const char *text = p->text.data ? p->text.data : "";
    srv_open(w, '{');
    srv_put_integer(w, "index", (int64_t)index);
    if (a->r->chat) {
        srv_key(w, "message");
        srv_open(w, '{');
        srv_put_string(w, "role", "assistant");
        srv_key(w, "content");
        srv_text(w, text, p->text.length);
        srv_put_null(w, "refusal");
        srv_close(w, '}');
    } else {
        srv_key(w, "text");
        srv_text(w, text, p->text.length);
    }
    write_logprobs(w, a, p, &p->tokens);
    srv_put_string(w, "finish_reason", p->finish);
    srv_close(w, '}');
}

static void write_whole(srv_writer *w, srv_answer *a) {
    write_head(w, a, a->r->chat ? "chat.completion" : "text_completion");
    for (size_t i = 0; i < a->r->n_requests; i++) {
        write_choice(w, a, i);
    }
    srv_close(w, ']');
    write_usage(w, a);
    write_adapter(w, a);
    write_timings(w, &a->parts[0]);
    srv_close(w, '}');
}

/* Up to and with the delta; `text` NULL: an empty one. */
static void open_piece(srv_writer *w, const srv_answer *a, size_t index, const gr_buffer *text, bool role) {
    const char *bytes = text && text->data ? text->data : "";
    write_head(w, a, chunk_object(a));
    srv_open(w, '{');
    srv_put_integer(w, "index", (int64_t)index);
    srv_key(w, a->r->chat ? "delta" : "text");
    if (!a->r->chat) {
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

static void write_role(srv_writer *w, const srv_answer *a, size_t index) {
    open_piece(w, a, index, NULL, true);
    srv_put_null(w, "logprobs");
    close_piece(w, NULL);
    write_adapter(w, a);
    srv_close(w, '}');
}

static void write_said(srv_writer *w, srv_answer *a, size_t index, const gr_buffer *text, const gr_buffer *tokens) {
    open_piece(w, a, index, text, false);
    write_logprobs(w, a, &a->parts[index], tokens);
    close_piece(w, NULL);
    srv_close(w, '}');
}

static void write_finish(srv_writer *w, const srv_answer *a, size_t index) {
    open_piece(w, a, index, NULL, false);
    srv_put_null(w, "logprobs");
    close_piece(w, a->parts[index].finish);
    write_adapter(w, a);
    write_timings(w, &a->parts[index]);
    srv_close(w, '}');
}

static void write_done(srv_writer *w, const srv_answer *a) {
    if (!a->r->usage) {
        return;
    }
    write_head(w, a, chunk_object(a));
    srv_close(w, ']');
    write_usage(w, a);
    srv_close(w, '}');
}

/* ---- embeddings ---------------------------------------------------------------------------------------- */

/* Little-endian float32, whatever the machine. */
static bool put_base64(srv_writer *w, const srv_part *p) {
    size_t n = (size_t)p->n_embd * 4;
    unsigned char *bytes = gr_alloc(n);
    char *text = gr_alloc(4 * ((n + 2) / 3) + 1);
    for (int i = 0; bytes && i < p->n_embd; i++) {
        uint32_t bits;
        memcpy(&bits, &p->embedding[i], sizeof bits);
        for (int k = 0; k < 4; k++) {
            bytes[4 * i + k] = (unsigned char)(bits >> 8 * k);
        }
    }
    bool good = bytes && text;
    if (good) {
        srv_text(w, text, (size_t)EVP_EncodeBlock((unsigned char *)text, bytes, (int)n));
    }
    gr_free(bytes);
    gr_free(text);
    return good;
}

static void write_embedding(srv_writer *w, const srv_answer *a, size_t index) {
    const srv_part *p = &a->parts[index];
    srv_open(w, '{');
    srv_put_string(w, "object", "embedding");
    srv_put_integer(w, "index", (int64_t)index);
    srv_key(w, "embedding");
    if (!a->r->base64) {
        srv_write_embedding(w, p);
    } else if (!put_base64(w, p)) {
        w->out.failed = true;
    }
    srv_close(w, '}');
}

static void write_embeddings(srv_writer *w, srv_answer *a) {
    int64_t tokens = 0;
    srv_open(w, '{');
    srv_put_string(w, "object", "list");
    srv_key(w, "data");
    srv_open(w, '[');
    for (size_t i = 0; i < a->r->n_requests; i++) {
        write_embedding(w, a, i);
        tokens += a->parts[i].prompt_tokens;
    }
    srv_close(w, ']');
    srv_put_string(w, "model", a->r->model);
    srv_key(w, "usage");
    srv_open(w, '{');
    srv_put_integer(w, "prompt_tokens", tokens);
    srv_put_integer(w, "total_tokens", tokens);
    srv_close(w, '}');
    write_adapter(w, a);
    srv_close(w, '}');
}

/* ---- the formats --------------------------------------------------------------------------------------- */

#define DONE "data: [DONE]\n\n"

const srv_format openai_chat = {SRV_SSE, "chatcmpl", write_role, write_said, write_finish, write_done, DONE, write_whole};
const srv_format openai_completion = {SRV_SSE, "cmpl", NULL, write_said, write_finish, write_done, DONE, write_whole};
const srv_format openai_embeddings = {.id = "embd", .whole = write_embeddings};
