/* One worker thread for calls that may take long: reading adapters, writing the registry. In order, one at a time. */
#ifndef SRV_WORK_H
#define SRV_WORK_H

#include "loop.h"

typedef struct srv_work srv_work;

/* Part of a larger object. `run` is called on the worker, then `done` on the loop, which frees the object. */
typedef struct srv_task srv_task;
struct srv_task {
    srv_post post;
    void (*run)(srv_task *t);
    void (*done)(srv_task *t);
    srv_task *next;
};

int srv_work_start(srv_work **out, srv_loop *loop, graft_error *err);
/* Finishes what waits. Every `done` has been posted when it returns. */
void srv_work_stop(srv_work *w);
/* False if too many wait already: nothing is called then. */
bool srv_work_add(srv_work *w, srv_task *t);
/* The next step of what was taken before; never refused. */
void srv_work_go_on(srv_work *w, srv_task *t);

#endif
