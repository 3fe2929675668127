/* What the files of server/ know of one server. Loop thread only, but where it says otherwise. */
#ifndef SRV_INTERNAL_H
#define SRV_INTERNAL_H

#include "connections.h"
#include "defaults.h"
#include "keep_alive.h"
#include "loop.h"
#include "rates.h"
#include "relay.h"
#include "server.h"
#include "tls.h"
#include "usage.h"
#include "work.h"

#include "base/log.h"

#include <stdatomic.h>

struct evhttp;
struct evconnlistener;
struct evhttp_bound_socket;

/* Counted since the start, for /metrics. */
typedef struct srv_counters {
    uint64_t requests[6];   /* by status / 100 */
    uint64_t started; /* once none runs: answers + cancelled + failed */
    uint64_t answers, cancelled, failed, refused, fallbacks; /* of generation: ended well, … */
    uint64_t prompt_tokens, completion_tokens, cached_tokens;
    graft_histogram first_token_us, total_us;
    uint64_t disconnects;   /* clients that left before their reply was complete */
    uint64_t unauthorized;  /* requests without a key where one is asked for, or with one that is none */
} srv_counters;

struct server {
    server_options o;
    char host[64];
    int port;
    gr_log log;
    unsigned char key_hash[32];
    char root[4096]; /* resolved; "" = none */

    graft *g;
    graft_registry *registry;
    graft_model_info model;
    char base_id[256]; /* what /v1/models calls the base */
    int64_t started;   /* seconds since 1970 */

    srv_loop loop;
    srv_tls *tls; /* NULL = none */
    srv_connections connections;
    srv_relay relay;
    srv_work *work;
    struct change *changes; /* of adapters, under way: adapters_api.c */
    struct ollama_load *ollama_loads; /* requests for no more than a load: ollama_load.c */
    int n_loads;            /* of both that load an adapter */
    struct evhttp *http;
    struct evconnlistener *listener;
    struct evhttp_bound_socket *bound;
    struct event *tick, *on_term, *on_int, *on_hup;
    atomic_bool stopping; /* the loop has ended or is about to: the worker need not go on with what can be left. Any thread */
    int64_t drain_until; /* gr_now_us; 0 = not draining */
    struct srv_answer *answers; /* under way (answer.c) */
    srv_keep_alive keep_alive;
    int n_exchanges;
    uint64_t next_id;
    srv_counters count;
    srv_defaults defaults;
    srv_rates rates;
    srv_usage usage;
};

void srv_histogram_add(graft_histogram *h, int64_t us);

#endif
