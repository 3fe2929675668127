/*
 * What a connection may cost. libevent's own timeouts restart with every byte and go on during silent answers, so a slow
 * sender would hold a connection for ever and a slow model would lose its reader; here each connection has the time since
 * which it is idle, reads or has unread output, and a tick of the server compares them with the limits.
 *
 * libevent does not tell when it closes a connection that no request is on. The table therefore keeps a reference to each
 * bufferevent: libevent tells the client (shutdown) and takes its callbacks away, by which the tick knows that the rest can
 * go. The socket must not be closed before (BEV_OPT_CLOSE_ON_FREE): its number would be the next client's, while this
 * bufferevent, which goes on reading, would take that client's bytes.
 */
#ifndef SRV_CONNECTIONS_H
#define SRV_CONNECTIONS_H

#include "server.h"

#include <event2/bufferevent.h>
#include <event2/listener.h>
#include <stdbool.h>
#include <stdint.h>

typedef struct srv_connection srv_connection;

typedef struct srv_connections {
    const server_limits *limits;
    struct srv_tls *tls;   /* NULL = connections are plain */
    srv_connection *table; /* by bufferevent: uthash */
    struct event_base *base;
    struct evconnlistener *listener; /* off while there are too many; NULL = none yet */
    int n;
    uint64_t timeouts;     /* connections that were cut off, since the start */
} srv_connections;

void srv_connections_init(srv_connections *c, struct event_base *base, const server_limits *limits);
void srv_connections_finish(srv_connections *c);

/* For evhttp_set_bevcb: the bufferevent of a new connection. */
struct bufferevent *srv_connections_new(struct event_base *base, void *connections);

/* A request of this connection is being answered from now on, or no more. */
void srv_connections_busy(srv_connections *c, struct bufferevent *bev, bool busy);

/* Cuts off who is over a limit; several times a second. */
void srv_connections_tick(srv_connections *c);
/* Closes connections that no request is on and whose last reply was read. */
void srv_connections_close_idle(srv_connections *c);
/* Whether any client has yet to read what was sent. */
bool srv_connections_unread(const srv_connections *c);

#endif
