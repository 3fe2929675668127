/* Ollama's answers as JSON. Durations are whole nanoseconds. */
#include "ollama_reply.h"

#include "logprobs.h"

#include "base/clock.h"

#include <time.h>

int64_t ollama_now(void) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (int64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

void ollama_put_time(srv_writer *w, const char *key, int64_t micros) {
    time_t seconds = (time_t)(micros / 1000000);
    struct tm t;
    char date[40], text[64];
    if (!gmtime_r(&seconds, &t) || strftime(date, sizeof date, "%Y-%m-%dT%H:%M:%S", &t) == 0) {
        srv_put_null(w, key);
        return;
    }
    snprintf(text, sizeof text, "%s.%06dZ", date, (int)(micros % 1000000));
    srv_put_string(w, key, text);
}

static void put_duration(srv_writer *w, const char *key, double ms) {
    srv_put_integer(w, key, (int64_t)(ms > 0 ? ms * 1e6 : 0));
}

/* ---- answers ------------------------------------------------------------------------------------------- */

/* {"model","created_at", and what was said: "message":{"role","content"} or "response" */
static void open_piece(srv_writer *w, const srv_request *r, const srv_format *format, const char *text, size_t length) {
    srv_open(w, '{');
    srv_put_string(w, "model", r->model);
    ollama_put_time(w, "created_at", ollama_now());
    srv_key(w, format == &ollama_chat ? "message" : "response");
    if (format == &ollama_chat) {
        srv_open(w, '{');
        srv_put_string(w, "role", "assistant");
        srv_key(w, "content");
    }
    srv_text(w, text, length);
    if (format == &ollama_chat) {
        srv_close(w, '}');
    }
}

static void put_logprobs(srv_writer *w, const srv_answer *a, const gr_buffer *tokens) {
    if (a->r->logprobs >= 0 && tokens->length) {
        srv_key(w, "logprobs");
        srv_write_logprobs(w, tokens);
    }
}

static void put_end(srv_writer *w, const srv_answer *a, const srv_part *p) {
    srv_put_bool(w, "done", true);
    srv_put_string(w, "done_reason", p->finish);
    put_duration(w, "total_duration", p->total_ms);
    put_duration(w, "load_duration", p->adapter_ms);
    srv_put_integer(w, "prompt_eval_count", p->prompt_tokens);
    put_duration(w, "prompt_eval_duration", p->prompt_ms);
    srv_put_integer(w, "eval_count", p->completion_tokens);
    put_duration(w, "eval_duration", p->total_ms - p->queue_ms - p->prompt_ms);
    srv_put_integer(w, "cached_tokens", p->cached_tokens);
    srv_put_string(w, "adapter", *a->r->adapter ? a->r->adapter : NULL);
    srv_put_string(w, "adapter_generation", *a->generation ? a->generation : NULL);
    srv_put_fallback(w, &a->fallback);
}

static void write_said(srv_writer *w, srv_answer *a, size_t part, const gr_buffer *text, const gr_buffer *tokens) {
    (void)part;
    open_piece(w, a->r, a->format, text->data ? text->data : "", text->length);
    srv_put_bool(w, "done", false);
    put_logprobs(w, a, tokens);
    srv_close(w, '}');
}

static void write_finish(srv_writer *w, const srv_answer *a, size_t part) {
    open_piece(w, a->r, a->format, "", 0);
    put_end(w, a, &a->parts[part]);
    srv_close(w, '}');
}

static void write_whole(srv_writer *w, srv_answer *a) {
    const srv_part *p = &a->parts[0];
    open_piece(w, a->r, a->format, p->text.data ? p->text.data : "", p->text.length);
    put_end(w, a, p);
    put_logprobs(w, a, &p->tokens);
    srv_close(w, '}');
}

/* ---- embeddings ---------------------------------------------------------------------------------------- */

static void write_embed(srv_writer *w, srv_answer *a) {
    int64_t tokens = 0;
    double load_ms = 0;
    srv_open(w, '{');
    srv_put_string(w, "model", a->r->model);
    srv_key(w, "embeddings");
    srv_open(w, '[');
    for (size_t i = 0; i < a->r->n_requests; i++) {
        const srv_part *p = &a->parts[i];
        srv_write_embedding(w, p);
        tokens += p->prompt_tokens;
        load_ms = p->adapter_ms > load_ms ? p->adapter_ms : load_ms;
    }
    srv_close(w, ']');
    put_duration(w, "total_duration", (double)(gr_now_us() - a->x->start_us) / 1e3);
    put_duration(w, "load_duration", load_ms);
    srv_put_integer(w, "prompt_eval_count", tokens);
    srv_put_fallback(w, &a->fallback);
    srv_close(w, '}');
}

static void write_embeddings(srv_writer *w, srv_answer *a) {
    srv_open(w, '{');
    srv_key(w, "embedding");
    srv_write_embedding(w, &a->parts[0]);
    srv_close(w, '}');
}

/* ---- nothing asked ------------------------------------------------------------------------------------- */

void ollama_write_nothing(srv_writer *w, const srv_request *r, const srv_format *format, const char *reason) {
    if (format == &ollama_embed || format == &ollama_embeddings) {
        srv_open(w, '{');
        srv_put_string(w, "model", r->model);
        srv_key(w, format == &ollama_embed ? "embeddings" : "embedding");
        srv_open(w, '[');
        srv_close(w, ']');
    } else {
        open_piece(w, r, format, "", 0);
        srv_put_bool(w, "done", true);
        srv_put_string(w, "done_reason", reason);
    }
    srv_close(w, '}');
}

const srv_format ollama_chat = {SRV_NDJSON, "ollama", NULL, write_said, write_finish, NULL, NULL, write_whole};
const srv_format ollama_generate = {SRV_NDJSON, "ollama", NULL, write_said, write_finish, NULL, NULL, write_whole};
const srv_format ollama_embed = {.id = "ollama", .whole = write_embed};
const srv_format ollama_embeddings = {.id = "ollama", .whole = write_embeddings};
