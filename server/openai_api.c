/* OpenAI's calls: models, chat, completions. An answer lives from its request until its reply is complete or its client gone. */
#include "auth.h"
#include "openai_reply.h"
#include "openai_request.h"
#include "route.h"

#include "base/clock.h"
#include "base/memory.h"

#include <inttypes.h>
#include <string.h>
#include <time.h>

typedef struct answer {
    server *s;
    srv_exchange *x;
    openai_request r;
    openai_head head;
    srv_job **jobs; /* NULL where ended */
    size_t left;
    bool started; /* the stream has begun: errors are events from now on */
} answer;

/* ---- its end ------------------------------------------------------------------------------------------ */

static void free_answer(answer *a) {
    for (size_t i = 0; a->jobs && i < a->r.n_requests; i++) {
        if (a->jobs[i]) {
            srv_job_leave(a->jobs[i]);
        }
    }
    for (size_t i = 0; i < a->head.n; i++) {
        gr_buffer_finish(&a->head.choices[i].text);
        gr_buffer_finish(&a->head.choices[i].tokens);
    }
    gr_free(a->head.choices);
    gr_free(a->jobs);
    openai_request_finish(&a->r);
    gr_free(a);
}

static void on_gone(srv_exchange *x, void *user) {
    answer *a = user;
    (void)x;
    a->s->count.cancelled += a->left;
    free_answer(a);
}

static void fail(answer *a, const srv_fault *f) {
    a->s->count.failed++;
    srv_usage_failed(a->s, a->r.adapter, f->code);
    if (a->started) {
        srv_writer w;
        srv_writer_init(&w);
        srv_fault_write(&w, f);
        srv_stream_event(a->x, &w);
        srv_writer_finish(&w);
        srv_stream_end(a->x);
    } else {
        srv_reply_fault(a->x, f);
    }
    free_answer(a);
}

static void complete(answer *a) {
    srv_writer w;
    srv_writer_init(&w);
    if (!a->r.stream) {
        if (a->head.fallback.code) {
            srv_header(a->x, "X-Graft-Fallback", graft_error_name(a->head.fallback.code));
        }
        openai_write_answer(&w, &a->head);
        srv_reply_json(a->x, 200, &w);
    } else {
        if (a->r.usage) {
            openai_write_usage(&w, &a->head);
            srv_stream_event(a->x, &w);
        }
        srv_writer_finish(&w);
        srv_stream_text(a->x, "data: [DONE]\n\n");
        srv_stream_end(a->x);
    }
    free_answer(a);
}

/* ---- while it goes on --------------------------------------------------------------------------------- */

static void hold(answer *a, bool held) {
    for (size_t i = 0; i < a->r.n_requests; i++) {
        if (a->jobs[i]) {
            srv_job_hold(a->jobs[i], held);
        }
    }
}

static void on_drained(srv_exchange *x, void *user) {
    (void)x;
    hold(user, false);
}

static void start_stream(answer *a) {
    srv_writer w;
    if (a->started) {
        return;
    }
    a->started = true;
    if (a->head.fallback.code) { /* known already if nothing was said before the end */
        srv_header(a->x, "X-Graft-Fallback", graft_error_name(a->head.fallback.code));
    }
    srv_stream_begin(a->x, SRV_SSE);
    srv_writer_init(&w);
    for (size_t i = 0; a->r.chat && i < a->head.n; i++) {
        openai_write_role(&w, &a->head, i);
        srv_stream_event(a->x, &w);
    }
    srv_writer_finish(&w);
}

static void on_said(srv_job *j, void *owner) {
    answer *a = owner;
    size_t index = (size_t)j->index;
    if (!a->r.stream) {
        gr_buffer_append(&a->head.choices[index].tokens, j->new_tokens.data, j->new_tokens.length);
        return;
    }
    srv_writer w;
    srv_writer_init(&w);
    start_stream(a);
    openai_write_said(&w, &a->head, index, &j->new_text, &j->new_tokens);
    srv_stream_event(a->x, &w);
    srv_writer_finish(&w);
    if (srv_stream_backlog(a->x) > a->s->o.limits.output) {
        hold(a, true);
    }
}

/* Why a job ended without an answer. */
static void fault_of(const answer *a, const srv_job *j, const graft_result *result, srv_fault *f) {
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

static void take_result(answer *a, size_t index, const graft_result *r) {
    openai_choice *c = &a->head.choices[index];
    c->finish = r->finish == GRAFT_FINISH_LENGTH ? "length" : "stop";
    c->prompt_tokens = r->prompt_tokens;
    c->cached_tokens = r->cached_tokens;
    c->completion_tokens = r->completion_tokens;
    c->queue_ms = r->queue_ms;
    c->adapter_ms = r->adapter_ms;
    c->prompt_ms = r->prompt_ms;
    c->total_ms = r->total_ms;
    if (!a->r.stream) {
        gr_buffer_append(&c->text, r->text, r->text_length);
    }
    if (index == 0 || !*a->head.generation) {
        snprintf(a->head.generation, sizeof a->head.generation, "%s", r->generation);
    }
    if (r->fallback.code) {
        a->head.fallback = r->fallback;
    }
}

static void count_result(server *s, const char *id, const graft_result *r) {
    srv_counters *n = &s->count;
    srv_usage_count(s, id, r);
    n->answers++;
    n->prompt_tokens += (uint64_t)r->prompt_tokens;
    n->cached_tokens += (uint64_t)r->cached_tokens;
    n->completion_tokens += (uint64_t)r->completion_tokens;
    n->fallbacks += r->fallback.code != 0;
    srv_histogram_add(&n->first_token_us, (int64_t)((r->queue_ms + r->prompt_ms) * 1e3));
    srv_histogram_add(&n->total_us, (int64_t)(r->total_ms * 1e3));
}

static void on_ended(srv_job *j, const graft_result *result, void *owner) {
    answer *a = owner;
    size_t index = (size_t)j->index;
    a->jobs[index] = NULL;
    a->left--;
    if (result->finish == GRAFT_FINISH_ERROR || result->finish == GRAFT_FINISH_CANCELLED) {
        srv_fault f;
        fault_of(a, j, result, &f);
        fail(a, &f);
        return;
    }
    count_result(a->s, a->r.adapter, result);
    take_result(a, index, result);
    if (a->r.stream) {
        srv_writer w;
        srv_writer_init(&w);
        start_stream(a);
        openai_write_finish(&w, &a->head, index);
        srv_stream_event(a->x, &w);
        srv_writer_finish(&w);
    }
    if (a->left == 0) {
        complete(a);
    }
}

/* ---- its beginning ------------------------------------------------------------------------------------ */

static bool admit(const server *s, size_t n, srv_fault *f) {
    if (s->drain_until) {
        return srv_fault_set(f, 503, "shutting_down", NULL, "the server is shutting down");
    }
    if ((size_t)s->relay.n + n > (size_t)s->model.slots + (size_t)s->o.limits.queue) {
        return srv_fault_set(f, 429, "queue_full", NULL, "%d answers are under way or waiting; at most %d may", s->relay.n,
                             s->model.slots + s->o.limits.queue);
    }
    return true;
}

static bool fill_head(answer *a, srv_fault *f) {
    openai_head *h = &a->head;
    h->chat = a->r.chat;
    h->created = (int64_t)time(NULL);
    h->model = a->r.model;
    h->adapter = a->r.adapter;
    h->logprobs = a->r.logprobs >= 0;
    h->per_prompt = a->r.n;
    snprintf(h->id, sizeof h->id, "%s-%" PRIx64 "-%" PRIu64, h->chat ? "chatcmpl" : "cmpl", (uint64_t)a->s->started, ++a->s->next_id);
    h->choices = gr_calloc(a->r.n_requests, sizeof *h->choices);
    a->jobs = gr_calloc(a->r.n_requests, sizeof(srv_job *));
    if (!h->choices || !a->jobs) {
        return srv_fault_set(f, 503, "out_of_memory", NULL, "memory is out");
    }
    for (h->n = 0; h->n < a->r.n_requests; h->n++) {
        gr_buffer_init(&h->choices[h->n].text, 64 << 20);
        gr_buffer_init(&h->choices[h->n].tokens, 64 << 20);
    }
    return true;
}

static bool submit(answer *a, srv_fault *f) {
    graft_error err = {0};
    const server_limits *l = &a->s->o.limits;
    int64_t deadline = l->deadline_ms ? gr_now_us() + (int64_t)l->deadline_ms * 1000 : 0;
    if (srv_relay_submit(&a->s->relay, a->jobs, a->s->g, a->r.requests, a->r.n_requests, a->r.logprobs >= 0, deadline, a, on_said,
                         on_ended, &err) != 0) {
        return srv_fault_from(f, &err);
    }
    a->left = a->r.n_requests;
    return true;
}

static void begin(srv_exchange *x, bool chat) {
    srv_fault f;
    answer *a = gr_zalloc(sizeof *a);
    if (!a) {
        srv_reply_error(x, 503, "out_of_memory", NULL, "memory is out");
        return;
    }
    a->s = x->s;
    a->x = x;
    bool good = openai_request_parse(&a->r, x, chat, &f) && fill_head(a, &f);
    if (good && !admit(x->s, a->r.n_requests, &f)) {
        x->s->count.refused++;
        srv_usage_failed(x->s, a->r.adapter, f.code);
        good = false;
    }
    if (!good || !submit(a, &f)) {
        srv_reply_fault(x, &f);
        free_answer(a);
        return;
    }
    x->user = a;
    x->gone = on_gone;
    x->drained = on_drained;
}

void srv_post_chat(srv_exchange *x) {
    begin(x, true);
}

void srv_post_completions(srv_exchange *x) {
    begin(x, false);
}

/* ---- models ------------------------------------------------------------------------------------------- */

static void write_base(srv_writer *w, const server *s) {
    srv_open(w, '{');
    srv_put_string(w, "id", s->base_id);
    srv_put_string(w, "object", "model");
    srv_put_integer(w, "created", s->started);
    srv_put_string(w, "owned_by", "graft");
    srv_put_string(w, "root", s->model.path);
    srv_put_null(w, "parent");
    srv_put_integer(w, "max_model_len", s->model.context);
    srv_put_string(w, "state", "resident");
    srv_close(w, '}');
}

static void write_adapter(srv_writer *w, const server *s, const graft_registered *a) {
    char id[SRV_ID_SIZE];
    srv_open(w, '{');
    srv_put_string(w, "id", srv_name_id(id, a->project, a->adapter));
    srv_put_string(w, "object", "model");
    srv_put_integer(w, "created", a->created);
    srv_put_string(w, "owned_by", "graft");
    srv_put_string(w, "root", a->path);
    srv_put_string(w, "parent", s->base_id);
    srv_put_integer(w, "max_model_len", s->model.context);
    srv_put_string(w, "state", graft_registered_state_name(a->state));
    srv_put_bool(w, "pinned", a->pinned);
    srv_put_string(w, "generation", *a->generation ? a->generation : NULL);
    srv_close(w, '}');
}

/* NULL also without a registry: then there are none. */
static graft_registered_list *registered(const server *s, const srv_name *name) {
    graft_registered_list *list = NULL;
    if (s->registry) {
        graft_registry_adapter_list(&list, s->registry, name ? name->project : NULL, name ? name->adapter : NULL, NULL);
    }
    return list;
}

void srv_get_models(srv_exchange *x) {
    srv_writer w;
    graft_registered_list *list = registered(x->s, NULL);
    srv_writer_init(&w);
    srv_open(&w, '{');
    srv_put_string(&w, "object", "list");
    srv_key(&w, "data");
    srv_open(&w, '[');
    write_base(&w, x->s);
    for (size_t i = 0; list && i < list->n; i++) {
        if (srv_may(x, list->items[i].project)) {
            write_adapter(&w, x->s, &list->items[i]);
        }
    }
    srv_close(&w, ']');
    srv_close(&w, '}');
    graft_registered_list_free(list);
    srv_reply_json(x, 200, &w);
}

void srv_get_model(srv_exchange *x) {
    srv_fault f;
    srv_name name;
    srv_writer w;
    if (!srv_name_find(x, &name, x->capture, "model", &f)) {
        srv_reply_fault(x, &f);
        return;
    }
    srv_writer_init(&w);
    if (name.base) {
        write_base(&w, x->s);
    } else {
        graft_registered_list *list = registered(x->s, &name);
        if (!list) { /* removed just now */
            srv_writer_finish(&w);
            srv_reply_error(x, 404, "model_not_found", "model", "The model does not exist.");
            return;
        }
        write_adapter(&w, x->s, &list->items[0]);
        graft_registered_list_free(list);
    }
    srv_reply_json(x, 200, &w);
}
