/*
 * One request and its reply: an exchange. Loop thread only.
 *
 * A handler either replies at once (srv_reply…), or keeps the exchange and replies later, or begins a stream. After the reply is
 * complete (srv_reply…, srv_stream_end) the exchange is gone. If the client leaves before, `gone` is called, once, and the
 * exchange is gone as well when it returns: the handler must forget it.
 */
#ifndef SRV_HTTP_H
#define SRV_HTTP_H

#include "internal.h"
#include "writer.h"

#include <event2/http.h>

typedef enum srv_stream { SRV_SSE, SRV_NDJSON } srv_stream;

typedef struct srv_exchange srv_exchange;
struct srv_exchange {
    server *s;
    struct evhttp_request *req;
    struct evhttp_connection *connection;
    char id[40];           /* x-request-id: the client's, if it is one, or ours */
    enum evhttp_cmd_type method;
    char path[1024];       /* as sent, without the query */
    char capture[1024];    /* what {} of the route stands for, decoded */
    const char *body;      /* NUL-terminated, within the request */
    size_t body_length;
    bool admin;            /* its key is for everything (auth.h); handlers ask srv_may */
    graft_key_list *key;   /* the registry's key that it came with, as it was then; NULL = none. Owned */
    int64_t start_us;
    int status;            /* of the reply; 0 = none yet */
    bool streaming;
    srv_stream kind;

    /* Set by a handler that keeps the exchange. */
    void (*gone)(srv_exchange *x, void *user);
    void (*drained)(srv_exchange *x, void *user); /* the client has read all that was written */
    void *user;
};

/* Makes the listener's evhttp; its requests go to srv_route_dispatch. */
int srv_http_init(server *s, graft_error *err);

const char *srv_request_header(const srv_exchange *x, const char *name);
/* A header of the reply; before it begins. */
void srv_header(srv_exchange *x, const char *name, const char *value);

/* The whole reply. */
void srv_reply(srv_exchange *x, int status, const char *type, const char *text, size_t length);
/* The same with JSON; 500 if the writer failed. Finishes the writer. */
void srv_reply_json(srv_exchange *x, int status, srv_writer *w);

void srv_stream_begin(srv_exchange *x, srv_stream kind);
/* One event or line of the stream: what the writer holds, which is cleared. */
void srv_stream_event(srv_exchange *x, srv_writer *w);
void srv_stream_text(srv_exchange *x, const char *text);
void srv_stream_bytes(srv_exchange *x, const char *bytes, size_t length);
/* Bytes that the client has not read yet. */
size_t srv_stream_backlog(const srv_exchange *x);
void srv_stream_end(srv_exchange *x);

#endif
