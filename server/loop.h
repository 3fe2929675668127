/*
 * The event loop and its post box: other threads hand the loop a post, and its function runs on the loop's thread. A post that
 * waits already is not queued twice, so a thread may post for every token and the loop wakes once for many.
 */
#ifndef SRV_LOOP_H
#define SRV_LOOP_H

#include "base/error.h"
#include "base/thread.h"

#include <event2/event.h>
#include <stdbool.h>

enum { SRV_RANK_JOB = 54, SRV_RANK_LOOP = 55, SRV_RANK_WORK = 53 }; /* below the log's: all are leaves */

typedef struct srv_post srv_post;

/* Part of a larger object, which must live until fn has run; fn may free it. */
struct srv_post {
    void (*fn)(srv_post *post);
    srv_post *next; /* under the loop's lock, as is the next */
    bool queued;
};

typedef struct srv_loop {
    struct event_base *base;
    struct event *wake;
    int pipe[2];
    gr_mutex lock;
    srv_post *first, **last;
} srv_loop;

int srv_loop_init(srv_loop *l, graft_error *err);
/* Runs the posts that wait. */
void srv_loop_flush(srv_loop *l);
/* Posts that wait are run, so that they can free themselves. */
void srv_loop_finish(srv_loop *l);
/* Any thread; never blocks. */
void srv_loop_post(srv_loop *l, srv_post *post);

/* Whether it waits to be run. */
bool srv_loop_queued(srv_loop *l, const srv_post *post);

#endif
