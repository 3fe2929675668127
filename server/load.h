/* Bringing an adapter into memory while loop and worker go on: it may wait for room, and who makes that room must not wait
 * behind it. */
#ifndef SRV_LOAD_H
#define SRV_LOAD_H

#include "loop.h"

#include "graft.h"

/* Adapters that are being loaded at once because somebody asked for no more than that: server.n_loads. */
enum { SRV_LOADS_MOST = 64 };

typedef struct srv_load srv_load;

/* The load has ended; code 0: it is in memory. Loop thread, once, unless srv_load_leave came before. */
typedef void srv_load_done(void *user, const graft_error *error);

/* Starts; any thread. Errors: those of names, OUT_OF_MEMORY; loading's come to `done`. *out: srv_load_leave. */
int srv_load_start(srv_load **out, srv_loop *loop, graft *g, const char *project, const char *adapter, srv_load_done *done,
                   void *user, graft_error *err);
/* Nobody listens any more, and the load goes on. Loop thread, also in `done`. NULL is fine. The loop may end after it. */
void srv_load_leave(srv_load *l);

#endif
