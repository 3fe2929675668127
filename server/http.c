/* Exchanges over libevent's evhttp. */
#include "http.h"

#include "cors.h"
#include "errors.h"

#include "base/clock.h"
#include "base/memory.h"
#include "route.h"

#include <ctype.h>
#include <event2/buffer.h>
#include <inttypes.h>
#include <string.h>
#include <sys/queue.h>

#include <event2/keyvalq_struct.h> /* after sys/queue.h, whose macros it would half define */

const char *srv_request_header(const srv_exchange *x, const char *name) {
    return evhttp_find_header(evhttp_request_get_input_headers(x->req), name);
}

void srv_header(srv_exchange *x, const char *name, const char *value) {
    /* libevent refuses values that hold a line's end. */
    evhttp_add_header(evhttp_request_get_output_headers(x->req), name, value);
}

/* ---- beginning and end -------------------------------------------------------------------------------- */

static void log_exchange(const srv_exchange *x, bool left) {
    char path[GR_QUOTE_SIZE];
    gr_log_line(&x->s->log, GRAFT_LOG_INFO, "http %s: %s %d, %.1f ms%s", x->id, gr_quote(path, x->path, strlen(x->path)),
                x->status, (double)(gr_now_us() - x->start_us) / 1e3, left ? ", the client left" : "");
}

static void free_exchange(srv_exchange *x) {
    x->s->n_exchanges--;
    graft_key_list_free(x->key);
    gr_free(x);
}

/* libevent is closing the connection. */
static void on_close(struct evhttp_connection *connection, void *user) {
    srv_exchange *x = user;
    struct evhttp_request *req = x->req;
    (void)connection;
    x->s->count.disconnects++;
    log_exchange(x, true);
    if (x->gone) {
        x->gone(x, x->user);
    }
    free_exchange(x);
    /* A request that libevent took off its connection already is ours to free; ending the reply does so. */
    if (!evhttp_request_get_connection(req)) {
        evhttp_send_reply_end(req);
    }
}

/* The last moment at which libevent's objects may be touched. */
static void finish(srv_exchange *x) {
    evhttp_connection_set_closecb(x->connection, NULL, NULL);
    srv_connections_busy(&x->s->connections, evhttp_connection_get_bufferevent(x->connection), false);
    int kind = x->status / 100;
    x->s->count.requests[kind >= 1 && kind <= 5 ? kind : 0]++;
    log_exchange(x, false);
}

static bool id_is_good(const char *id) {
    size_t n = id ? strlen(id) : 0;
    for (size_t i = 0; i < n; i++) {
        if (!isalnum((unsigned char)id[i]) && !strchr("-_.", id[i])) {
            return false;
        }
    }
    return n >= 1 && n < sizeof((srv_exchange *)0)->id;
}

static void name_exchange(srv_exchange *x) {
    const char *given = srv_request_header(x, "X-Request-Id");
    if (id_is_good(given)) {
        snprintf(x->id, sizeof x->id, "%s", given);
    } else {
        snprintf(x->id, sizeof x->id, "req-%" PRIx64 "-%" PRIu64, (uint64_t)x->s->started, ++x->s->next_id);
    }
    srv_header(x, "X-Request-Id", x->id);
}

/* The body as one string, in place. False if memory is out. */
static bool take_body(srv_exchange *x) {
    struct evbuffer *in = evhttp_request_get_input_buffer(x->req);
    x->body_length = evbuffer_get_length(in);
    if (evbuffer_add(in, "", 1) != 0) {
        return false;
    }
    x->body = (const char *)evbuffer_pullup(in, -1);
    return x->body != NULL;
}

/* Two lengths, or a length and chunks: what one server takes for the body is another's next request. */
static bool is_ambiguous(srv_exchange *x) {
    struct evkeyval *h;
    int lengths = 0, codings = 0;
    TAILQ_FOREACH(h, evhttp_request_get_input_headers(x->req), next) {
        lengths += evutil_ascii_strcasecmp(h->key, "Content-Length") == 0;
        codings += evutil_ascii_strcasecmp(h->key, "Transfer-Encoding") == 0;
    }
    return lengths + codings > 1;
}

/* libevent does not read what follows the headers of these two: it would be the connection's next request. */
static bool leaves_a_body(const srv_exchange *x) {
    const char *length = srv_request_header(x, "Content-Length");
    return (x->method == EVHTTP_REQ_HEAD || x->method == EVHTTP_REQ_TRACE) &&
           (length || srv_request_header(x, "Transfer-Encoding"));
}

static void plain_error(struct evhttp_request *req, int status) {
    evhttp_send_error(req, status, NULL);
}

/* The path as it was sent; of an absolute URI, which proxies send, what follows the host. False if it is too long. */
static bool take_path(srv_exchange *x) {
    const char *uri = evhttp_request_get_uri(x->req);
    if (*uri != '/') {
        uri = evhttp_uri_get_path(evhttp_request_get_evhttp_uri(x->req));
        uri = uri && *uri ? uri : "/";
    }
    size_t n = strcspn(uri, "?#");
    if (n >= sizeof x->path) {
        return false;
    }
    memcpy(x->path, uri, n); /* the exchange was zeroed */
    return true;
}

static void answer(srv_exchange *x) {
    if (leaves_a_body(x)) {
        srv_header(x, "Connection", "close");
    }
    if (!take_path(x)) {
        srv_reply_error(x, 414, "uri_too_long", NULL, "the path is longer than %zu bytes", sizeof x->path - 1);
    } else if (!take_body(x)) {
        srv_reply_no_memory(x);
    } else if (is_ambiguous(x)) {
        srv_header(x, "Connection", "close");
        srv_reply_error(x, 400, "bad_request", NULL, "one Content-Length or one Transfer-Encoding is needed");
    } else {
        srv_route_dispatch(x);
    }
}

static void on_request(struct evhttp_request *req, void *user) {
    server *s = user;
    srv_exchange *x = gr_zalloc(sizeof *x);
    struct evhttp_connection *connection = evhttp_request_get_connection(req);
    if (!x || !connection) {
        gr_free(x);
        plain_error(req, 503);
        return;
    }
    *x = (srv_exchange){.s = s, .req = req, .connection = connection, .method = evhttp_request_get_command(req),
                        .start_us = gr_now_us()};
    s->n_exchanges++;
    evhttp_connection_set_timeout(connection, 0); /* it would end silent streams; connections.c has better ones */
    bufferevent_set_timeouts(evhttp_connection_get_bufferevent(connection), NULL, NULL);
    evhttp_connection_set_closecb(connection, on_close, x);
    srv_connections_busy(&s->connections, evhttp_connection_get_bufferevent(connection), true);
    name_exchange(x);
    answer(x);
}

int srv_http_init(server *s, graft_error *err) {
    s->http = evhttp_new(s->loop.base);
    if (!s->http) {
        return gr_fail_memory(err, 0);
    }
    evhttp_set_max_body_size(s->http, (ev_ssize_t)s->o.limits.body);
    evhttp_set_max_headers_size(s->http, (ev_ssize_t)s->o.limits.headers);
    /* Those that no path takes too: they get our 405, not libevent's 501 in HTML. */
    evhttp_set_allowed_methods(s->http, EVHTTP_REQ_GET | EVHTTP_REQ_POST | EVHTTP_REQ_HEAD | EVHTTP_REQ_PUT | EVHTTP_REQ_DELETE |
                                            EVHTTP_REQ_OPTIONS | EVHTTP_REQ_PATCH | EVHTTP_REQ_TRACE);
    evhttp_set_timeout(s->http, 600); /* for a connection that is missing in connections.c */
    evhttp_set_default_content_type(s->http, NULL);
    evhttp_set_bevcb(s->http, srv_connections_new, &s->connections);
    evhttp_set_gencb(s->http, on_request, s);
    return 0;
}

/* ---- whole replies ------------------------------------------------------------------------------------ */

static void common_headers(srv_exchange *x, const char *type) {
    srv_header(x, "Content-Type", type);
    srv_header(x, "X-Content-Type-Options", "nosniff");
    srv_cors_headers(x);
    if (x->s->drain_until) {
        srv_header(x, "Connection", "close");
    }
}

void srv_reply(srv_exchange *x, int status, const char *type, const char *text, size_t length) {
    struct evbuffer *out = evbuffer_new();
    bool head = x->method == EVHTTP_REQ_HEAD;
    x->status = out ? status : 503;
    common_headers(x, type);
    if (head) { /* the headers of the whole, and nothing of it */
        char n[24];
        snprintf(n, sizeof n, "%zu", length);
        srv_header(x, "Content-Length", n);
    } else if (out) {
        evbuffer_add(out, text, length);
    }
    finish(x);
    evhttp_send_reply(x->req, x->status, NULL, out);
    if (out) {
        evbuffer_free(out);
    }
    free_exchange(x);
}

void srv_reply_json(srv_exchange *x, int status, srv_writer *w) {
    static const char lost[] =
        "{\"error\":{\"message\":\"memory is out\",\"type\":\"server_error\",\"param\":null,\"code\":\"out_of_memory\"}}";
    gr_buffer_puts(&w->out, "\n");
    if (w->out.failed) {
        srv_reply(x, 503, "application/json", lost, sizeof lost - 1);
    } else {
        srv_reply(x, status, "application/json", w->out.data, w->out.length);
    }
    srv_writer_finish(w);
}

/* ---- streams ------------------------------------------------------------------------------------------ */

void srv_stream_begin(srv_exchange *x, srv_stream kind) {
    x->status = 200;
    x->streaming = true;
    x->kind = kind;
    common_headers(x, kind == SRV_SSE ? "text/event-stream" : "application/x-ndjson");
    srv_header(x, "Cache-Control", "no-cache");
    srv_header(x, "X-Accel-Buffering", "no"); /* for nginx */
    evhttp_send_reply_start(x->req, 200, NULL);
}

static void on_drained(struct evhttp_connection *connection, void *user) {
    srv_exchange *x = user;
    (void)connection;
    if (x->drained) {
        x->drained(x, x->user);
    }
}

static void send_piece(srv_exchange *x, const char *a, const char *text, size_t length, const char *b) {
    struct evbuffer *out = evbuffer_new();
    if (out) { /* else the piece is lost, as everything soon will be */
        evbuffer_add(out, a, strlen(a));
        evbuffer_add(out, text, length);
        evbuffer_add(out, b, strlen(b));
        evhttp_send_reply_chunk_with_cb(x->req, out, on_drained, x);
        evbuffer_free(out);
    }
}

void srv_stream_text(srv_exchange *x, const char *text) {
    send_piece(x, "", text, strlen(text), "");
}

void srv_stream_bytes(srv_exchange *x, const char *bytes, size_t length) {
    send_piece(x, "", bytes, length, "");
}

void srv_stream_event(srv_exchange *x, srv_writer *w) {
    if (!w->out.failed && w->out.length) {
        bool sse = x->kind == SRV_SSE;
        send_piece(x, sse ? "data: " : "", w->out.data, w->out.length, sse ? "\n\n" : "\n");
    }
    srv_writer_clear(w);
}

size_t srv_stream_backlog(const srv_exchange *x) {
    return evbuffer_get_length(bufferevent_get_output(evhttp_connection_get_bufferevent(x->connection)));
}

void srv_stream_end(srv_exchange *x) {
    finish(x);
    evhttp_send_reply_end(x->req);
    free_exchange(x);
}
