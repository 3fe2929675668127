/* The life of an answer. */
#include "answer.h"

#include "keep_alive.h"

#include "base/clock.h"
#include "base/memory.h"

#include <inttypes.h>
#include <string.h>
#include <time.h>
#include <utlist.h>

enum { JOBS_AT_ONCE = 64 /* of one answer; further ones are submitted as these end */, MOST_TEXT = 64 << 20 };

/* ---- its end ------------------------------------------------------------------------------------------ */

static void free_answer(srv_answer *a) {
    DL_DELETE(a->s->answers, a);
    for (size_t i = 0; i < a->r->n_requests; i++) {
        if (a->jobs && a->jobs[i]) {
            srv_job_leave(a->jobs[i]);
        }
        if (a->parts) {
            gr_buffer_finish(&a->parts[i].text);
            gr_buffer_finish(&a->parts[i].tokens);
            gr_free(a->parts[i].embedding);
        }
    }
    gr_free(a->parts);
    gr_free(a->jobs);
    srv_request_free(a->r);
    gr_free(a);
}

static void on_gone(srv_exchange *x, void *user) {
    srv_answer *a = user;
    a->s->count.cancelled += a->left;
    srv_keep_alive_note(x, a->r);
    free_answer(a);
}

/* One event: what the writer holds, if anything. */
static void send_event(srv_answer *a, srv_writer *w) {
    if (w->out.length) {
        srv_stream_event(a->x, w);
        a->sent_us = gr_now_us();
    }
}

static void fail(srv_answer *a, const srv_fault *f) {
    a->s->count.failed++;
    a->s->count.cancelled += a->left; /* the others of this answer end with it */
    srv_usage_failed(a->s, a->r->adapter, f->code);
    srv_keep_alive_note(a->x, a->r);
    if (a->started) {
        srv_writer w;
        srv_writer_init(&w);
        srv_fault_write(&w, a->x, f);
        send_event(a, &w);
        srv_writer_finish(&w);
        srv_stream_end(a->x);
    } else {
        srv_reply_fault(a->x, f);
    }
    free_answer(a);
}

void srv_header_adapter(srv_exchange *x, const char *generation, const graft_error *fallback) {
    if (fallback->code) {
        srv_header(x, "X-Graft-Fallback", graft_error_name(fallback->code));
    }
    if (*generation) {
        srv_header(x, "X-Graft-Adapter-Generation", generation);
    }
}

void srv_put_fallback(srv_writer *w, const graft_error *fallback) {
    srv_key(w, "fallback");
    if (!fallback->code) {
        srv_null(w);
        return;
    }
    srv_open(w, '{');
    srv_put_string(w, "code", graft_error_name(fallback->code));
    srv_put_string(w, "message", fallback->message);
    srv_close(w, '}');
}

void srv_write_embedding(srv_writer *w, const srv_part *p) {
    srv_open(w, '[');
    for (int i = 0; i < p->n_embd; i++) {
        srv_number(w, (double)p->embedding[i]);
    }
    srv_close(w, ']');
}

static void complete(srv_answer *a) {
    srv_writer w;
    srv_writer_init(&w);
    srv_keep_alive_note(a->x, a->r);
    if (!a->r->stream) {
        srv_header_adapter(a->x, a->generation, &a->fallback);
        a->format->whole(&w, a);
        srv_reply_json(a->x, 200, &w);
    } else {
        if (a->format->done) {
            a->format->done(&w, a);
            send_event(a, &w);
        }
        srv_writer_finish(&w);
        if (a->format->end) {
            srv_stream_text(a->x, a->format->end);
        }
        srv_stream_end(a->x);
    }
    free_answer(a);
}

/* ---- while it goes on --------------------------------------------------------------------------------- */

static void hold(srv_answer *a, bool held) {
    for (size_t i = 0; i < a->r->n_requests; i++) {
        if (a->jobs[i]) {
            srv_job_hold(a->jobs[i], held);
        }
    }
}

static void on_drained(srv_exchange *x, void *user) {
    (void)x;
    hold(user, false);
}

static void start_stream(srv_answer *a) {
    srv_writer w;
    if (a->started) {
        return;
    }
    a->started = true;
    a->sent_us = gr_now_us();
    srv_header_adapter(a->x, a->generation, &a->fallback);
    srv_stream_begin(a->x, a->format->kind);
    srv_writer_init(&w);
    for (size_t i = 0; a->format->begin && i < a->r->n_requests; i++) {
        a->format->begin(&w, a, i);
        send_event(a, &w);
    }
    srv_writer_finish(&w);
}

/* The first one named answers for all: one reply has one set of adapters. */
static void take_adapter(srv_answer *a, const char *generation, const graft_error *fallback) {
    if (!*a->generation) {
        snprintf(a->generation, sizeof a->generation, "%s", generation);
    }
    if (fallback->code) {
        a->fallback = *fallback;
    }
}

static void on_said(srv_job *j, void *owner) {
    srv_answer *a = owner;
    size_t index = (size_t)j->index;
    if (!a->r->stream) {
        gr_buffer_append(&a->parts[index].tokens, j->new_tokens.data, j->new_tokens.length);
        return;
    }
    srv_writer w;
    srv_writer_init(&w);
    take_adapter(a, j->generation, &j->fallback);
    start_stream(a);
    a->format->said(&w, a, index, &j->new_text, &j->new_tokens);
    send_event(a, &w);
    srv_writer_finish(&w);
    if (srv_stream_backlog(a->x) > a->s->o.limits.output) {
        hold(a, true);
    }
}

/* Why a job ended without an answer. */
static void fault_of(const srv_answer *a, const srv_job *j, const graft_result *result, srv_fault *f) {
    graft_error err = result->error;
    if (j->late) {
        gr_fail(&err, GRAFT_E_DEADLINE, "the answer was not complete after %d s", a->s->o.limits.deadline_ms / 1000);
    } else if (result->finish == GRAFT_FINISH_CANCELLED && a->s->drain_until) {
        gr_fail(&err, GRAFT_E_SHUTTING_DOWN, "the server is shutting down");
    } else if (result->finish == GRAFT_FINISH_CANCELLED) { /* only the relay cancels otherwise */
        gr_fail(&err, GRAFT_E_BUSY, "the answer was read too slowly");
    }
    srv_fault_from(f, &err);
    if (result->error.code == GRAFT_E_NOT_FOUND) {
        snprintf(f->param, sizeof f->param, "model");
    }
}

static bool take_embedding(srv_part *p, const srv_job *j) {
    const float *values = graft_job_embedding(j->job, &p->n_embd);
    p->embedding = values ? gr_calloc((size_t)p->n_embd, sizeof *values) : NULL;
    if (p->embedding) {
        memcpy(p->embedding, values, (size_t)p->n_embd * sizeof *values);
    }
    return p->embedding != NULL;
}

/* False if memory is out. */
static bool take_result(srv_answer *a, const srv_job *j, const graft_result *r) {
    srv_part *p = &a->parts[j->index];
    p->finish = r->finish == GRAFT_FINISH_LENGTH ? "length" : "stop";
    p->prompt_tokens = r->prompt_tokens;
    p->cached_tokens = r->cached_tokens;
    p->completion_tokens = r->completion_tokens;
    p->queue_ms = r->queue_ms;
    p->adapter_ms = r->adapter_ms;
    p->prompt_ms = r->prompt_ms;
    p->total_ms = r->total_ms;
    take_adapter(a, r->generation, &r->fallback);
    if (a->r->embeds) {
        return take_embedding(p, j);
    }
    return a->r->stream || gr_buffer_append(&p->text, r->text, r->text_length);
}

static void count_result(const srv_answer *a, const graft_result *r) {
    srv_counters *n = &a->s->count;
    srv_usage_count(a->s, a->r->adapter, r);
    n->answers++;
    n->prompt_tokens += (uint64_t)r->prompt_tokens;
    n->cached_tokens += (uint64_t)r->cached_tokens;
    n->completion_tokens += (uint64_t)r->completion_tokens;
    n->fallbacks += r->fallback.code != 0;
    if (!a->r->embeds) {
        srv_histogram_add(&n->first_token_us, (int64_t)((r->queue_ms + r->prompt_ms) * 1e3));
    }
    srv_histogram_add(&n->total_us, (int64_t)(r->total_ms * 1e3));
}

static bool submit(srv_answer *a, size_t n, srv_fault *f);

/* False: *f says why there will be no answer. */
static bool take_end(srv_answer *a, const srv_job *j, const graft_result *result, srv_fault *f) {
    if (result->finish == GRAFT_FINISH_ERROR || result->finish == GRAFT_FINISH_CANCELLED) {
        fault_of(a, j, result, f);
        return false;
    }
    count_result(a, result);
    return (take_result(a, j, result) || srv_no_memory(f)) && (a->submitted == a->r->n_requests || submit(a, 1, f));
}

static void on_ended(srv_job *j, const graft_result *result, void *owner) {
    srv_answer *a = owner;
    srv_fault f;
    a->jobs[j->index] = NULL;
    a->left--;
    if (!take_end(a, j, result, &f)) {
        fail(a, &f);
        return;
    }
    if (a->r->stream) {
        srv_writer w;
        srv_writer_init(&w);
        start_stream(a);
        if (a->format->finish) {
            a->format->finish(&w, a, (size_t)j->index);
            send_event(a, &w);
        }
        srv_writer_finish(&w);
    }
    if (a->left == 0) {
        complete(a);
    }
}

/* Comments are in SSE alone, and whoever has something to read yet needs none. */
static void ping(srv_answer *a, int64_t now) {
    if (a->started && a->format->kind == SRV_SSE && now - a->sent_us > (int64_t)a->s->o.limits.ping_ms * 1000 &&
        srv_stream_backlog(a->x) == 0) {
        srv_stream_text(a->x, ":\n\n");
        a->sent_us = now;
    }
}

void srv_answers_tick(server *s) {
    int64_t now = gr_now_us();
    for (srv_answer *a = s->answers; a; a = a->next) {
        ping(a, now);
    }
}

/* ---- its beginning ------------------------------------------------------------------------------------ */

static size_t at_once(const srv_request *r) {
    return r->n_requests < JOBS_AT_ONCE ? r->n_requests : JOBS_AT_ONCE;
}

/* Answers of this request's adapter that are under way. */
static size_t under_way(const server *s, const srv_request *r) {
    size_t n = 0;
    for (const srv_answer *a = s->answers; a; a = a->next) {
        n += strcmp(a->r->adapter, r->adapter) == 0 ? a->left : 0;
    }
    return n;
}

/* When all places are taken, a quarter more is kept for adapters with little under way: a flood for one does not shut out
 * others. */
static bool has_room(const server *s, const srv_request *r) {
    size_t n = (size_t)s->relay.n + at_once(r), most = (size_t)s->model.slots + (size_t)s->o.limits.queue;
    return n <= most || (n <= most + most / 4 && under_way(s, r) + at_once(r) <= (size_t)s->model.slots);
}

static bool admit(server *s, const srv_request *r, srv_fault *f) {
    if (s->drain_until) {
        srv_shutting_down(f);
    } else if (!has_room(s, r)) {
        srv_fault_set(f, 429, "queue_full", NULL, "%d answers are under way or waiting; at most %d may", s->relay.n,
                      s->model.slots + s->o.limits.queue);
    } else {
        return true;
    }
    s->count.refused++;
    srv_usage_failed(s, r->adapter, f->code);
    return false;
}

static bool prepare(srv_answer *a, srv_fault *f) {
    size_t n = a->r->n_requests;
    a->created = (int64_t)time(NULL);
    a->left = 0;
    snprintf(a->id, sizeof a->id, "%s-%" PRIx64 "-%" PRIu64, a->format->id, (uint64_t)a->s->started, ++a->s->next_id);
    a->parts = gr_calloc(n, sizeof *a->parts);
    a->jobs = gr_calloc(n, sizeof(srv_job *));
    if (!a->parts || !a->jobs) {
        return srv_no_memory(f);
    }
    for (size_t i = 0; i < n; i++) {
        gr_buffer_init(&a->parts[i].text, MOST_TEXT);
        gr_buffer_init(&a->parts[i].tokens, MOST_TEXT);
    }
    return true;
}

/* The next `n` of the request. All of one answer have one deadline: from its beginning. */
static bool submit(srv_answer *a, size_t n, srv_fault *f) {
    graft_error err = {0};
    srv_order o = {.n = n, .first = (int)a->submitted, .tokens = a->r->logprobs >= 0, .deadline_us = a->deadline_us,
                   .owner = a, .said = on_said, .ended = on_ended};
    if (a->r->embeds) {
        o.embeds = a->r->embeds + a->submitted;
    } else {
        o.requests = a->r->requests + a->submitted;
    }
    if (srv_relay_submit(&a->s->relay, a->jobs + a->submitted, a->s->g, &o, &err) != 0) {
        return srv_fault_from(f, &err);
    }
    a->submitted += n;
    a->left += n;
    a->s->count.started += n;
    if (a->submitted == a->r->n_requests) {
        srv_request_trim(a->r);
    }
    return true;
}

static srv_answer *new_answer(srv_exchange *x, const srv_format *format, srv_request *r) {
    srv_answer *a = gr_zalloc(sizeof *a);
    if (a) {
        int64_t most = x->s->o.limits.deadline_ms;
        *a = (srv_answer){.s = x->s, .x = x, .format = format, .r = r};
        a->deadline_us = most ? gr_now_us() + most * 1000 : 0;
        DL_PREPEND(x->s->answers, a);
    }
    return a;
}

void srv_answer_begin(srv_exchange *x, const srv_format *format, srv_request *r) {
    srv_fault f;
    srv_answer *a = new_answer(x, format, r);
    if (!a) {
        srv_request_free(r);
        srv_reply_no_memory(x);
        return;
    }
    if (!prepare(a, &f) || !admit(x->s, r, &f) || !submit(a, at_once(r), &f)) {
        srv_reply_fault(x, &f);
        free_answer(a);
        return;
    }
    x->user = a;
    x->gone = on_gone;
    x->drained = on_drained;
}

void srv_answer_body(srv_exchange *x, const srv_format *format, bool (*take)(srv_request *r, srv_fault *f)) {
    srv_fault f;
    srv_request *r = srv_request_new(x, &f);
    if (r && take(r, &f)) {
        srv_answer_begin(x, format, r);
        return;
    }
    srv_request_free(r);
    srv_reply_fault(x, &f);
}
