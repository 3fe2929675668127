/* From the decode thread to the loop. */
#include "relay.h"

#include "base/clock.h"
#include "base/memory.h"

#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <utlist.h>

/* ---- on the decode thread ----------------------------------------------------------------------------- */

static void append_choice(gr_buffer *b, const graft_token_choice *c, int n_top) {
    srv_choice head = {.token = c->token, .logprob = c->logprob, .length = (uint32_t)c->length, .n_top = (uint32_t)n_top};
    gr_buffer_append(b, &head, sizeof head);
    gr_buffer_append(b, c->text, c->length);
}

static void on_token(const graft_token *token, void *user) {
    srv_job *j = user;
    gr_mutex_lock(&j->lock);
    size_t before = j->tokens.length;
    append_choice(&j->tokens, &token->chosen, token->n_top);
    for (int i = 0; i < token->n_top; i++) {
        append_choice(&j->tokens, &token->top[i], 0);
    }
    if (j->tokens.failed) { /* no half tokens; on_text ends the request */
        j->tokens.length = before;
        j->full = true;
    }
    gr_mutex_unlock(&j->lock);
}

/* Not posted: who is told of text learns it with that, and who is not, from the result. */
static void on_start(const graft_start *start, void *user) {
    srv_job *j = user;
    gr_mutex_lock(&j->lock);
    snprintf(j->generation, sizeof j->generation, "%s", start->generation);
    j->fallback = *start->fallback;
    gr_mutex_unlock(&j->lock);
}

static bool on_text(const char *text, size_t length, void *user) {
    srv_job *j = user;
    gr_mutex_lock(&j->lock);
    if (!j->full && !gr_buffer_append(&j->text, text, length)) {
        j->full = true;
    }
    bool go_on = !j->full;
    gr_mutex_unlock(&j->lock);
    srv_loop_post(j->relay->loop, &j->post);
    return go_on;
}

static void on_end(graft_job *job, const graft_result *result, void *user) {
    srv_job *j = user;
    (void)job;
    j->result = result;
    srv_loop_post(j->relay->loop, &j->end); /* the job may be gone when this returns */
}

/* ---- on the loop -------------------------------------------------------------------------------------- */

static void free_job(srv_job *j) {
    DL_DELETE(j->relay->jobs, j);
    graft_job_free(j->job);
    gr_buffer_finish(&j->text);
    gr_buffer_finish(&j->tokens);
    gr_buffer_finish(&j->new_text);
    gr_buffer_finish(&j->new_tokens);
    gr_mutex_finish(&j->lock);
    j->relay->n--;
    gr_free(j);
}

/* Moves what came into the new_ buffers, by exchanging them with the empty ones there. */
static bool take(srv_job *j) {
    gr_buffer text = j->new_text, tokens = j->new_tokens;
    gr_buffer_clear(&text);
    gr_buffer_clear(&tokens);
    gr_mutex_lock(&j->lock);
    j->new_text = j->text;
    j->new_tokens = j->tokens;
    j->text = text;
    j->tokens = tokens;
    gr_mutex_unlock(&j->lock);
    return j->new_text.length || j->new_tokens.length;
}

static void attend(srv_job *j) {
    if (j->held && j->owner) {
        return; /* srv_job_hold comes back to it */
    }
    if (j->owner && take(j)) {
        j->said(j, j->owner);
    }
    /* If the owner left or held it just now its post is queued, or will be, and does the rest. */
    if (!j->over || (j->held && j->owner) || srv_loop_queued(j->relay->loop, &j->post)) {
        return;
    }
    if (j->owner) {
        j->ended(j, j->result, j->owner);
    }
    free_job(j);
}

static void on_post(srv_post *post) {
    attend((srv_job *)(void *)post); /* its first member */
}

static void on_end_post(srv_post *end) {
    srv_job *j = (srv_job *)(void *)((char *)end - offsetof(srv_job, end));
    j->over = true;
    attend(j);
}

void srv_relay_init(srv_relay *r, srv_loop *loop, size_t most) {
    *r = (srv_relay){.loop = loop, .most = most};
}

static srv_job *new_job(srv_relay *r) {
    srv_job *j = gr_zalloc(sizeof *j);
    if (j) {
        j->post.fn = on_post;
        j->end.fn = on_end_post;
        j->relay = r;
        gr_mutex_init(&j->lock, SRV_RANK_JOB);
        gr_buffer_init(&j->text, r->most);
        gr_buffer_init(&j->new_text, r->most);
        gr_buffer_init(&j->tokens, 4 * r->most);
        gr_buffer_init(&j->new_tokens, 4 * r->most);
        DL_PREPEND(r->jobs, j);
        r->n++;
    }
    return j;
}

static void note_adapter(srv_job *j, const graft_adapter_use *uses, size_t n) {
    if (n > 0 && uses[0].project) {
        snprintf(j->project, sizeof j->project, "%s", uses[0].project);
        snprintf(j->adapter, sizeof j->adapter, "%s", uses[0].name ? uses[0].name : "default");
    }
}

/* The request's callbacks come to the job. */
static void connect_job(const srv_order *o, size_t i, srv_job *j) {
    if (o->embeds) {
        note_adapter(j, o->embeds[i].adapters, o->embeds[i].n_adapters);
        o->embeds[i].on_end = on_end;
        o->embeds[i].user = j;
        return;
    }
    note_adapter(j, o->requests[i].adapters, o->requests[i].n_adapters);
    o->requests[i].on_start = on_start;
    o->requests[i].on_text = on_text;
    o->requests[i].on_token = o->tokens ? on_token : NULL;
    o->requests[i].on_end = on_end;
    o->requests[i].user = j;
}

/* Returns how many were made. */
static size_t make_jobs(srv_relay *r, srv_job **jobs, const srv_order *o) {
    size_t made = 0;
    for (srv_job *j; made < o->n && (j = new_job(r)); made++) {
        j->owner = o->owner;
        j->said = o->said;
        j->ended = o->ended;
        j->index = o->first + (int)made;
        j->deadline_us = o->deadline_us;
        jobs[made] = j;
        connect_job(o, made, j);
    }
    return made;
}

int srv_relay_submit(srv_relay *r, srv_job **jobs, graft *g, const srv_order *o, graft_error *err) {
    graft_job **submitted = gr_calloc(o->n, sizeof *submitted);
    size_t made = submitted ? make_jobs(r, jobs, o) : 0;
    int code = made == o->n ? 0 : gr_fail_memory(err, o->n * sizeof **jobs);
    if (!code) {
        code = o->embeds ? graft_embed(submitted, g, o->embeds, o->n, err) : graft_submit(submitted, g, o->requests, o->n, err);
    }
    for (size_t i = 0; i < made; i++) {
        if (code) {
            free_job(jobs[i]);
            jobs[i] = NULL;
        } else {
            jobs[i]->job = submitted[i]; /* on_end may have come, but its post runs on this thread, later */
        }
    }
    gr_free(submitted);
    return code;
}

void srv_job_leave(srv_job *j) {
    j->owner = NULL;
    graft_job_cancel(j->job);
    srv_loop_post(j->relay->loop, &j->post); /* it may be over already and held back */
}

void srv_job_hold(srv_job *j, bool held) {
    if (j->held && !held) {
        srv_loop_post(j->relay->loop, &j->post);
    }
    j->held = held;
}

void srv_relay_tick(srv_relay *r) {
    int64_t now = gr_now_us();
    for (srv_job *j = r->jobs; j; j = j->next) {
        if (j->deadline_us && now > j->deadline_us && !j->late) {
            j->late = true;
            graft_job_cancel(j->job);
        }
    }
}

void srv_relay_cancel_all(srv_relay *r) {
    for (srv_job *j = r->jobs; j; j = j->next) {
        graft_job_cancel(j->job);
    }
}

bool srv_choice_next(const gr_buffer *tokens, size_t *at, srv_choice *out) {
    if (*at >= tokens->length) {
        return false;
    }
    memcpy(out, tokens->data + *at, sizeof *out);
    out->text = tokens->data + *at + sizeof *out;
    *at += sizeof *out + out->length;
    return true;
}
