/*
 * The server from open to close. The address is taken before the model is opened, so that a port in use is told at once; clients
 * that connect meanwhile wait in the system's queue.
 */
#define _XOPEN_SOURCE 700 /* realpath */
#include "adapters_api.h"
#include "answer.h"
#include "auth.h"
#include "http.h"
#include "names.h"
#include "notify.h"

#include "base/clock.h"
#include "base/memory.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <errno.h>
#include <event2/listener.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { TICK_MS = 200, BACKLOG = 512, OTHER_FILES = 128 /* descriptors for files, registry and the rest */ };

server_options server_options_default(void) {
    return (server_options){
        .host = "127.0.0.1",
        .port = 8080,
        .limits = {.body = 4 << 20,
                   .headers = 16 << 10,
                   .output = 256 << 10,
                   .held = 1 << 20,
                   .connections = 1024,
                   .request_ms = 10000,
                   .idle_ms = 75000,
                   .write_ms = 30000,
                   .queue = 256,
                   .deadline_ms = 600000,
                   .ping_ms = 15000,
                   .drain_ms = 30000,
                   .choices = 64},
    };
}

void srv_histogram_add(graft_histogram *h, int64_t us) {
    uint64_t n = us > 0 ? (uint64_t)us : 0;
    int bucket = 0;
    while (bucket < GRAFT_HISTOGRAM_BUCKETS - 1 && n >= UINT64_C(1) << bucket) {
        bucket++;
    }
    h->buckets[bucket]++;
    h->count++;
    h->sum_us += n;
    h->max_us = n > h->max_us ? n : h->max_us;
}

/* ---- opening ------------------------------------------------------------------------------------------ */

static int address_of(const server_options *o, struct sockaddr_storage *out, socklen_t *size, graft_error *err) {
    struct sockaddr_in *four = (struct sockaddr_in *)out;
    struct sockaddr_in6 *six = (struct sockaddr_in6 *)out;
    memset(out, 0, sizeof *out);
    if (inet_pton(AF_INET, o->host, &four->sin_addr) == 1) {
        four->sin_family = AF_INET;
        four->sin_port = htons((uint16_t)o->port);
        *size = sizeof *four;
        return 0;
    }
    if (inet_pton(AF_INET6, o->host, &six->sin6_addr) == 1) {
        six->sin6_family = AF_INET6;
        six->sin6_port = htons((uint16_t)o->port);
        *size = sizeof *six;
        return 0;
    }
    char quoted[GR_QUOTE_SIZE];
    return gr_fail(err, GRAFT_E_BAD_REQUEST, "host: \"%s\" is not a numeric address such as 127.0.0.1 or ::1",
                   gr_quote(quoted, o->host, strlen(o->host)));
}

static int take_address(server *s, graft_error *err) {
    struct sockaddr_storage address;
    socklen_t size;
    int code = address_of(&s->o, &address, &size, err);
    if (code) {
        return code;
    }
    s->listener = evconnlistener_new_bind(
        s->loop.base, NULL, NULL, LEV_OPT_REUSEABLE | LEV_OPT_CLOSE_ON_EXEC | LEV_OPT_CLOSE_ON_FREE | LEV_OPT_DISABLED,
        BACKLOG, (struct sockaddr *)&address, (int)size);
    if (!s->listener) {
        return gr_fail(err, GRAFT_E_NOT_READABLE, "%s port %d: %s", s->host, s->o.port, strerror(errno));
    }
    size = sizeof address;
    if (getsockname(evconnlistener_get_fd(s->listener), (struct sockaddr *)&address, &size) != 0) {
        return gr_fail(err, GRAFT_E_NOT_READABLE, "getsockname: %s", strerror(errno));
    }
    s->port = ntohs(address.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)&address)->sin6_port
                                                  : ((struct sockaddr_in *)&address)->sin_port);
    return 0;
}

static int take_root(server *s, graft_error *err) {
    if (!s->o.root) {
        return 0;
    }
    char *found = realpath(s->o.root, NULL);
    size_t n = found ? strlen(found) : 0;
    int code = n > 0 && n < sizeof s->root ? 0 : gr_fail(err, GRAFT_E_ADAPTER_FILE_MISSING, "root: %.240s: %s", s->o.root,
                                                        found ? "the path is too long" : strerror(errno));
    if (!code) {
        memcpy(s->root, found, n + 1);
    }
    free(found);
    return code;
}

static int take_tls(server *s, graft_error *err) {
    const char *certificate = s->o.tls_cert, *key = s->o.tls_key;
    if (!certificate && !key) {
        return 0;
    }
    if (!certificate || !key) {
        return gr_fail(err, GRAFT_E_BAD_REQUEST, "tls_cert, tls_key: both are needed, or neither");
    }
    int code = srv_tls_open(&s->tls, certificate, key, err);
    s->connections.tls = s->tls;
    return code;
}

/* No more connections than there are descriptors for. */
static void bound_connections(server *s) {
    struct rlimit files;
    if (getrlimit(RLIMIT_NOFILE, &files) == 0 && files.rlim_cur != RLIM_INFINITY) {
        rlim_t room = files.rlim_cur > 2 * OTHER_FILES ? files.rlim_cur - OTHER_FILES : files.rlim_cur / 2;
        if ((rlim_t)s->o.limits.connections > room) {
            s->o.limits.connections = (int)room;
        }
    }
}

int server_open(server **out, const server_options *options, graft_error *err) {
    server *s = gr_zalloc(sizeof *s);
    if (!s) {
        return gr_fail_memory(err, sizeof *s);
    }
    s->o = *options;
    s->log = (gr_log){options->log, options->log_user};
    snprintf(s->host, sizeof s->host, "%s", options->host);
    bound_connections(s);
    int code = srv_loop_init(&s->loop, err);
    if (code) {
        gr_free(s);
        return code;
    }
    srv_connections_init(&s->connections, s->loop.base, &s->o.limits);
    srv_relay_init(&s->relay, &s->loop, s->o.limits.held);
    code = srv_auth_init(s, err);
    code = code ? code : take_root(s, err);
    code = code ? code : take_tls(s, err);
    code = code ? code : srv_http_init(s, err);
    code = code ? code : take_address(s, err);
    if (code) {
        server_close(s);
        return code;
    }
    *out = s;
    return 0;
}

void server_close(server *s) {
    if (!s) {
        return;
    }
    struct event *events[] = {s->tick, s->on_term, s->on_int, s->on_hup};
    for (size_t i = 0; i < sizeof events / sizeof events[0]; i++) {
        if (events[i]) {
            event_free(events[i]);
        }
    }
    if (s->listener && !s->bound) {
        evconnlistener_free(s->listener);
    }
    if (s->http) {
        evhttp_free(s->http); /* with the listener, once it is bound to it */
    }
    srv_connections_finish(&s->connections);
    srv_tls_close(s->tls);
    srv_loop_finish(&s->loop);
    srv_changes_finish(s);
    gr_free(s);
}

/* libevent has one log for the process, without a place for ours. */
static server *logging;

static void log_libevent(int severity, const char *text) {
    char quoted[GR_QUOTE_SIZE];
    if (logging && severity >= EVENT_LOG_WARN) {
        gr_log_line(&logging->log, GRAFT_LOG_WARN, "libevent: %s", gr_quote(quoted, text, strlen(text)));
    }
}

/* ---- running ------------------------------------------------------------------------------------------ */

static void stop_listening(server *s) {
    if (s->bound) {
        evhttp_del_accept_socket(s->http, s->bound);
        s->bound = NULL;
        s->listener = s->connections.listener = NULL;
    }
}

/* Ends when nothing runs any more, or at once. */
static void end_if_drained(server *s) {
    if (!s->drain_until) {
        return;
    }
    bool over = gr_now_us() >= s->drain_until;
    if (s->n_exchanges > 0 && over) {
        srv_relay_cancel_all(&s->relay);
        srv_changes_give_up(s);
        atomic_store(&s->stopping, true);
        return; /* the next tick looks again: replies must still go out */
    }
    if (s->n_exchanges == 0 && s->relay.n == 0 && (over || !srv_connections_unread(&s->connections))) {
        event_base_loopbreak(s->loop.base);
    }
}

static void on_signal(evutil_socket_t number, short what, void *user) {
    server *s = user;
    (void)what;
    if (s->drain_until) {
        gr_log_line(&s->log, GRAFT_LOG_WARN, "signal %d again: stopping now", (int)number);
        s->drain_until = 1;
        atomic_store(&s->stopping, true);
        srv_relay_cancel_all(&s->relay);
        end_if_drained(s);
        return;
    }
    gr_log_line(&s->log, GRAFT_LOG_INFO, "signal %d: %d requests may end within %d s", (int)number, s->n_exchanges,
                s->o.limits.drain_ms / 1000);
    s->drain_until = gr_now_us() + (int64_t)s->o.limits.drain_ms * 1000;
    srv_notify(s->o.notify, "STOPPING=1");
    stop_listening(s);
    srv_connections_close_idle(&s->connections);
    end_if_drained(s);
}

/* A certificate was renewed. */
static void on_hangup(evutil_socket_t number, short what, void *user) {
    server *s = user;
    graft_error err = {0};
    (void)number;
    (void)what;
    if (!s->tls) {
        gr_log_line(&s->log, GRAFT_LOG_INFO, "signal SIGHUP: there are no files to read again");
    } else if (srv_tls_reload(s->tls, &err) == 0) {
        gr_log_line(&s->log, GRAFT_LOG_INFO, "signal SIGHUP: certificate and key were read again");
    } else {
        gr_log_line(&s->log, GRAFT_LOG_ERROR, "signal SIGHUP: the certificate stays as it was: %s", err.message);
    }
}

static void on_tick(evutil_socket_t fd, short what, void *user) {
    server *s = user;
    (void)fd;
    (void)what;
    srv_connections_tick(&s->connections);
    srv_relay_tick(&s->relay);
    srv_rates_tick(&s->rates, s->g, gr_now_us());
    srv_answers_tick(s);
    srv_keep_alive_tick(s);
    if (s->drain_until) {
        srv_connections_close_idle(&s->connections);
    }
    end_if_drained(s);
}

/* Without descriptors accepting fails again at once: the next tick tries, and not this loop for ever. */
static void on_accept_error(struct evconnlistener *listener, void *user) {
    server *s = user;
    gr_log_line(&s->log, GRAFT_LOG_ERROR, "accepting a connection: %s", strerror(errno));
    evconnlistener_disable(listener);
}

static int start_events(server *s, graft_error *err) {
    struct timeval tick = {0, TICK_MS * 1000};
    s->tick = event_new(s->loop.base, -1, EV_PERSIST, on_tick, s);
    s->on_term = evsignal_new(s->loop.base, SIGTERM, on_signal, s);
    s->on_int = evsignal_new(s->loop.base, SIGINT, on_signal, s);
    s->on_hup = evsignal_new(s->loop.base, SIGHUP, on_hangup, s);
    if (!s->tick || !s->on_term || !s->on_int || !s->on_hup || event_add(s->tick, &tick) || event_add(s->on_term, NULL) ||
        event_add(s->on_int, NULL) || event_add(s->on_hup, NULL)) {
        return gr_fail(err, GRAFT_E_INTERNAL, "libevent: no events");
    }
    s->bound = evhttp_bind_listener(s->http, s->listener);
    if (!s->bound) {
        return gr_fail(err, GRAFT_E_INTERNAL, "libevent: no listener");
    }
    evconnlistener_set_error_cb(s->listener, on_accept_error);
    s->connections.listener = s->listener;
    evconnlistener_enable(s->listener);
    return 0;
}

int server_run(server *s, graft *g, graft_registry *registry, graft_error *err) {
    struct sigaction ignore = {.sa_handler = SIG_IGN}, before;
    s->g = g;
    s->registry = registry;
    s->started = (int64_t)time(NULL);
    graft_model_get_info(g, &s->model);
    srv_name_base(s);
    int code = server_check(s, registry, err);
    code = code ? code : srv_work_start(&s->work, &s->loop, err);
    if (code) {
        return code;
    }
    logging = s;
    event_set_log_callback(log_libevent);
    sigaction(SIGPIPE, &ignore, &before);
    code = start_events(s, err);
    if (!code) {
        srv_notify(s->o.notify, "READY=1");
        if (s->o.ready) {
            s->o.ready(s->host, s->port, s->o.ready_user);
        }
        event_base_dispatch(s->loop.base);
        event_del(s->on_term); /* closing may wait for an adapter that is being read: a further signal does not */
        event_del(s->on_int);
    }
    atomic_store(&s->stopping, true);
    srv_work_stop(s->work);
    s->work = NULL;
    srv_loop_flush(&s->loop); /* what the worker did last may have left leases to keep_alive */
    srv_keep_alive_finish(s);
    sigaction(SIGPIPE, &before, NULL);
    logging = NULL;
    return code;
}
