/*
 * From the decode thread to the loop. A job here is a request of the library's with buffers for what it says: the decode thread
 * appends text and tokens, and the loop takes all that has come since it last looked, in one call. When nobody takes it (a slow
 * reader) the buffers fill to their limit, and then the request is cancelled: decoding never waits.
 *
 * Except `lock` and what it guards everything belongs to the loop.
 */
#ifndef SRV_RELAY_H
#define SRV_RELAY_H

#include "loop.h"

#include "base/buffer.h"
#include "graft.h"

typedef struct srv_job srv_job;

/* What came since the last time; either may be empty. Loop thread. */
typedef void srv_job_said(srv_job *j, void *owner);
/* The job has ended, and all it said was taken. The result is valid during the call only, and the job is gone after it. */
typedef void srv_job_ended(srv_job *j, const graft_result *result, void *owner);

struct srv_job {
    srv_post post; /* first: the post is the job */
    struct srv_relay *relay;
    graft_job *job;

    gr_mutex lock; /* the next five */
    gr_buffer text, tokens;
    bool full;     /* the buffers' limit was met: the request ends */
    char generation[65];  /* what it runs with, as in graft_result: set before the first `said`, and not changed after */
    graft_error fallback;

    srv_post end;  /* posted last of all by the decode thread */
    const graft_result *result; /* set before that */
    bool over;     /* `end` has come */
    void *owner;   /* NULL = left: nobody is told */
    srv_job_said *said;
    srv_job_ended *ended;
    int index;     /* the owner's */
    char project[GRAFT_NAME_SIZE], adapter[GRAFT_NAME_SIZE]; /* the request's first by name; "" = none */
    bool held;     /* the owner does not want to hear now */
    gr_buffer new_text, new_tokens; /* what `said` may look at */
    int64_t deadline_us;            /* 0 = none */
    bool late;
    srv_job *prev, *next;
};

typedef struct srv_relay {
    srv_loop *loop;
    size_t most; /* bytes of each buffer */
    srv_job *jobs;
    int n;
} srv_relay;

void srv_relay_init(srv_relay *r, srv_loop *loop, size_t most);

/* What is to be submitted, and who is told. */
typedef struct srv_order {
    graft_request *requests;     /* callbacks and `user` are set by the relay */
    graft_embed_request *embeds; /* instead; jobs of these say nothing */
    size_t n;
    int first;                   /* srv_job.index of the first one */
    bool tokens;                 /* each token with its probability is wanted */
    int64_t deadline_us;         /* as gr_now_us, 0 = none: the job is cancelled then, and srv_job.late is set */
    void *owner;
    srv_job_said *said;
    srv_job_ended *ended;
} srv_order;

/* Gives a job for each request. Errors as graft_submit. */
int srv_relay_submit(srv_relay *r, srv_job **jobs, graft *g, const srv_order *o, graft_error *err);
/* The owner goes: the job is cancelled and frees itself later. */
void srv_job_leave(srv_job *j);
/* Whether `said` is called; what came meanwhile comes then. May call it at once. */
void srv_job_hold(srv_job *j, bool held);
/* Cancels jobs whose deadline has passed. */
void srv_relay_tick(srv_relay *r);
void srv_relay_cancel_all(srv_relay *r);

/* One token out of new_tokens: its own choice, then its `n_top` alternatives. */
typedef struct srv_choice {
    int32_t token;
    float logprob;
    uint32_t length;
    uint32_t n_top; /* that follow; 0 for the alternatives themselves */
    const char *text;
} srv_choice;

/* The choice at *at, which moves on; false at the end. */
bool srv_choice_next(const gr_buffer *tokens, size_t *at, srv_choice *out);

#endif
