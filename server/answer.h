/*
 * The life of an answer, for all APIs: its jobs, its stream, holding back for a slow reader, failing, ending. What it
 * looks like on the wire is a srv_format: pure functions from an answer to JSON text. Errors have the shape of the path
 * that they came by (errors.h).
 */
#ifndef SRV_ANSWER_H
#define SRV_ANSWER_H

#include "request.h"

/* The answer to one of the request's prompts, as far as it has come. */
typedef struct srv_part {
    gr_buffer text, tokens; /* all of it; empty in streams, which show and forget */
    size_t characters;      /* of the tokens shown so far */
    const char *finish;     /* "stop", "length"; NULL = goes on */
    int prompt_tokens, cached_tokens, completion_tokens;
    double queue_ms, adapter_ms, prompt_ms, total_ms;
    float *embedding;       /* of a request for embeddings */
    int n_embd;
} srv_part;

typedef struct srv_answer srv_answer;

typedef struct srv_format {
    srv_stream kind;
    const char *id; /* what ids begin with */
    /* One event each, in this order; one that writes nothing is none. `begin`, `finish` and `done` may be NULL. */
    void (*begin)(srv_writer *w, const srv_answer *a, size_t part); /* for every part, once any has something to say */
    void (*said)(srv_writer *w, srv_answer *a, size_t part, const gr_buffer *text, const gr_buffer *tokens);
    void (*finish)(srv_writer *w, const srv_answer *a, size_t part);
    void (*done)(srv_writer *w, const srv_answer *a);
    const char *end; /* literally, at the very end; NULL = nothing */
    /* Instead of all these where no stream was asked for. */
    void (*whole)(srv_writer *w, srv_answer *a);
} srv_format;

struct srv_answer {
    server *s;
    srv_exchange *x;
    const srv_format *format;
    srv_request *r;
    char id[48];
    int64_t created; /* seconds since 1970 */
    char generation[65];  /* of what answers; "" = the base, or not known yet */
    graft_error fallback; /* code 0 = none */
    srv_part *parts; /* one for each of the request's */

    srv_job **jobs;   /* NULL where ended, or not submitted yet */
    size_t submitted, left; /* left: of those submitted */
    int64_t deadline_us;
    bool started;     /* the stream has begun: errors are events from now on */
    int64_t sent_us;  /* when it last got something */
    srv_answer *prev, *next;
};

/* Answers the request, which it takes over. */
void srv_answer_begin(srv_exchange *x, const srv_format *format, srv_request *r);
/* The usual way there: `take` reads the body. */
void srv_answer_body(srv_exchange *x, const srv_format *format, bool (*take)(srv_request *r, srv_fault *f));
/* Shows streams that are silent that the server is alive. */
void srv_answers_tick(server *s);
/* X-Graft-Fallback and X-Graft-Adapter-Generation, before the reply begins. */
void srv_header_adapter(srv_exchange *x, const char *generation, const graft_error *fallback);

/* [number,…] */
void srv_write_embedding(srv_writer *w, const srv_part *p);
/* "fallback": null or {"code","message"} */
void srv_put_fallback(srv_writer *w, const graft_error *fallback);

#endif
