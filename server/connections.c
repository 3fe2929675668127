/* The table of connections and their deadlines. */
#include "connections.h"

#include "tls.h"

#include "base/clock.h"
#include "base/memory.h"

#include <event2/buffer.h>

#define HASH_NONFATAL_OOM 1
#define uthash_malloc(size) gr_alloc(size)
#define uthash_free(p, size) gr_free(p)
#include <uthash.h>

/* A request must come in within request_ms and a second for each so many bytes. */
enum { SLOWEST = 16 << 10 };
/* What a client may send ahead while its request is being answered. */
enum { AHEAD = 64 << 10 };

struct srv_connection {
    struct bufferevent *bev; /* one reference is ours */
    bool busy;               /* a request is being answered */
    int64_t idle_since;      /* the last request's end, or the beginning */
    int64_t reading_since;   /* first byte of a request that is not complete; 0 = none has come */
    uint64_t received;       /* since then */
    int64_t stuck_since;     /* output waits and nothing was taken since; 0 = nothing waits */
    UT_hash_handle hh;
};

static size_t most_input(const server_limits *l) {
    return l->body + l->headers + AHEAD;
}

void srv_connections_init(srv_connections *c, struct event_base *base, const server_limits *limits) {
    *c = (srv_connections){.limits = limits, .base = base};
}

static void input_changed(struct evbuffer *b, const struct evbuffer_cb_info *info, void *user) {
    srv_connection *n = user;
    (void)b;
    if (info->n_added && !n->busy) {
        n->reading_since = n->reading_since ? n->reading_since : gr_now_us();
        n->received += info->n_added;
    }
}

static void output_changed(struct evbuffer *b, const struct evbuffer_cb_info *info, void *user) {
    srv_connection *n = user;
    if (evbuffer_get_length(b) == 0) {
        n->stuck_since = 0;
        n->idle_since = gr_now_us(); /* not before the last reply was read */
    } else if (info->n_deleted || n->stuck_since == 0) {
        n->stuck_since = gr_now_us();
    }
}

struct bufferevent *srv_connections_new(struct event_base *base, void *connections) {
    srv_connections *c = connections;
    struct bufferevent *bev =
        c->tls ? srv_tls_bufferevent(c->tls, base) : bufferevent_socket_new(base, -1, BEV_OPT_CLOSE_ON_FREE);
    srv_connection *n = bev ? gr_zalloc(sizeof *n) : NULL;
    if (!n) {
        return bev; /* NULL makes libevent try; without an entry only its own timeouts guard the connection */
    }
    n->bev = bev;
    n->idle_since = gr_now_us();
    srv_connection *added = n;
    HASH_ADD_PTR(c->table, bev, added);
    if (!added) {
        gr_free(n);
        return bev;
    }
    bufferevent_incref(bev);
    bufferevent_setwatermark(bev, EV_READ, 0, most_input(c->limits));
    evbuffer_add_cb(bufferevent_get_input(bev), input_changed, n);
    evbuffer_add_cb(bufferevent_get_output(bev), output_changed, n);
    /* At the limit others wait in the system's queue: nothing is refused, and no loop is busy. */
    if (++c->n >= c->limits->connections && c->listener) {
        evconnlistener_disable(c->listener);
    }
    return bev;
}

static void forget(srv_connections *c, srv_connection *n) {
    HASH_DEL(c->table, n);
    evbuffer_remove_cb(bufferevent_get_input(n->bev), input_changed, n);
    evbuffer_remove_cb(bufferevent_get_output(n->bev), output_changed, n);
    bufferevent_decref(n->bev); /* the last: closes the socket */
    gr_free(n);
    c->n--;
}

void srv_connections_finish(srv_connections *c) {
    srv_connection *n, *next;
    HASH_ITER(hh, c->table, n, next) {
        forget(c, n);
    }
}

/* Once a request is complete libevent stops reading until its reply begins, and so would not see the client leave meanwhile. Its
 * callback for data must not be called in that state, though. */
static void watch_for_end(struct bufferevent *bev) {
    bufferevent_data_cb on_write;
    bufferevent_event_cb on_event;
    void *user;
    bufferevent_getcb(bev, NULL, &on_write, &on_event, &user);
    bufferevent_setcb(bev, NULL, on_write, on_event, user);
    bufferevent_enable(bev, EV_READ);
}

void srv_connections_busy(srv_connections *c, struct bufferevent *bev, bool busy) {
    srv_connection *n;
    if (busy) {
        watch_for_end(bev);
    }
    HASH_FIND_PTR(c->table, &bev, n);
    if (!n) {
        return;
    }
    n->busy = busy;
    n->idle_since = gr_now_us();
    n->received = evbuffer_get_length(bufferevent_get_input(bev));
    n->reading_since = !busy && n->received ? n->idle_since : 0; /* a request that was sent ahead */
    /* While an answer goes out libevent goes on reading to see the end, and keeps what it reads. */
    bufferevent_setwatermark(bev, EV_READ, 0, busy ? AHEAD : most_input(c->limits));
}

/* libevent has closed the connection. */
static bool is_over(const srv_connection *n) {
    bufferevent_event_cb on_event = NULL;
    bufferevent_getcb(n->bev, NULL, NULL, &on_event, NULL);
    return !on_event;
}

static bool is_late(const server_limits *l, const srv_connection *n, int64_t now) {
    if (n->stuck_since) {
        return now - n->stuck_since > (int64_t)l->write_ms * 1000;
    }
    if (n->busy) {
        return false;
    }
    if (n->reading_since) {
        return now - n->reading_since > (int64_t)l->request_ms * 1000 + (int64_t)(n->received / SLOWEST) * 1000000;
    }
    return now - n->idle_since > (int64_t)l->idle_ms * 1000;
}

/* As a timeout of libevent's own would: it closes the connection and tells whoever answers on it. */
static void cut(srv_connection *n) {
    bufferevent_trigger_event(n->bev, BEV_EVENT_READING | BEV_EVENT_TIMEOUT, 0);
}

void srv_connections_tick(srv_connections *c) {
    srv_connection *n, *next;
    int64_t now = gr_now_us();
    HASH_ITER(hh, c->table, n, next) {
        if (!is_over(n) && is_late(c->limits, n, now)) {
            c->timeouts++;
            cut(n);
        }
        if (is_over(n)) {
            forget(c, n);
        }
    }
    if (c->n < c->limits->connections && c->listener) {
        evconnlistener_enable(c->listener);
    }
}

void srv_connections_close_idle(srv_connections *c) {
    srv_connection *n, *next;
    HASH_ITER(hh, c->table, n, next) {
        if (!n->busy && !n->stuck_since && !is_over(n)) {
            cut(n);
        }
    }
}

bool srv_connections_unread(const srv_connections *c) {
    for (const srv_connection *n = c->table; n; n = n->hh.next) {
        if (n->stuck_since && !is_over(n)) {
            return true;
        }
    }
    return false;
}
