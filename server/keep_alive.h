/*
 * How long adapters stay in memory when nobody asks for them: Ollama's keep_alive, and the server's own `idle_unload_s`.
 * What a request said holds for that stay in memory, until another says otherwise. Whose time is up goes by the server's
 * tick: on the worker, and only if nobody uses it then. Loop thread, but where it says otherwise.
 *
 * For ever means that the time is never up; if an admin's key said so, eviction cannot take it either while the server
 * runs: a lease holds it.
 */
#ifndef SRV_KEEP_ALIVE_H
#define SRV_KEEP_ALIVE_H

#include "graft.h"

#include <jansson.h>

#define SRV_KEEP_FOREVER (-1)

struct server;
struct srv_exchange;
struct srv_fault;
struct srv_name;
struct srv_request;

typedef struct srv_kept srv_kept;

typedef struct srv_keep_alive {
    srv_kept *table;  /* by name: uthash, in the order in which they were first spoken of */
    bool busy;        /* the worker has something to do for it */
    int64_t next_us;  /* when to look again */
} srv_keep_alive;

/* Milliseconds out of Go's spelling ("5m", "1h30m", "300ms") or a number of seconds; SRV_KEEP_FOREVER if negative. False: 400. */
bool srv_keep_alive_take(json_t *v, int64_t *ms, struct srv_fault *f);
/* The request's adapters were used just now: what it said of them holds from here on. Nothing if it said nothing. */
void srv_keep_alive_note(const struct srv_exchange *x, const struct srv_request *r);
/* Milliseconds until it is unloaded if nobody asks for it; SRV_KEEP_FOREVER if it stays. */
int64_t srv_keep_alive_left(const struct server *s, const graft_loaded *l);
void srv_keep_alive_tick(struct server *s);
/* Releases what is held; nothing may be on the worker any more. */
void srv_keep_alive_finish(struct server *s);
/* Unloads it unless it is in use, pinned, or was used in the last `idle_ms`. Whether it did. The worker's. */
bool srv_unload_idle(struct server *s, const struct srv_name *name, int64_t idle_ms);

#endif
