/* The worker thread. */
#include "work.h"

#include "base/memory.h"

#include <limits.h>

enum { WAITING_MOST = 256 };

struct srv_work {
    srv_loop *loop;
    pthread_t thread;
    gr_mutex lock; /* all below */
    gr_cond changed;
    srv_task *first, **last;
    int n;
    bool stop;
};

static void run_done(srv_post *post) {
    srv_task *t = (srv_task *)(void *)post; /* its first member */
    t->done(t);
}

static srv_task *next_task(srv_work *w) {
    gr_mutex_lock(&w->lock);
    while (!w->first && !w->stop) {
        gr_cond_wait(&w->changed, &w->lock);
    }
    srv_task *t = w->first;
    if (t) {
        w->first = t->next;
        if (!w->first) {
            w->last = &w->first;
        }
        w->n--;
    }
    gr_mutex_unlock(&w->lock);
    return t;
}

static void *work(void *user) {
    srv_work *w = user;
    srv_task *t;
    while ((t = next_task(w))) {
        t->run(t);
        t->post.fn = run_done;
        srv_loop_post(w->loop, &t->post);
    }
    return NULL;
}

int srv_work_start(srv_work **out, srv_loop *loop, graft_error *err) {
    srv_work *w = gr_zalloc(sizeof *w);
    if (!w) {
        return gr_fail_memory(err, sizeof *w);
    }
    w->loop = loop;
    w->last = &w->first;
    gr_mutex_init(&w->lock, SRV_RANK_WORK);
    gr_cond_init(&w->changed);
    if (gr_thread_start(&w->thread, work, w) != 0) {
        gr_cond_finish(&w->changed);
        gr_mutex_finish(&w->lock);
        gr_free(w);
        return gr_fail(err, GRAFT_E_INTERNAL, "no thread could be started");
    }
    *out = w;
    return 0;
}

void srv_work_stop(srv_work *w) {
    if (!w) {
        return;
    }
    gr_mutex_lock(&w->lock);
    w->stop = true;
    gr_cond_broadcast(&w->changed);
    gr_mutex_unlock(&w->lock);
    gr_thread_join(w->thread);
    gr_cond_finish(&w->changed);
    gr_mutex_finish(&w->lock);
    gr_free(w);
}

static bool add(srv_work *w, srv_task *t, int most) {
    gr_mutex_lock(&w->lock);
    bool room = w->n < most && !w->stop;
    if (room) {
        t->next = NULL;
        t->post.queued = false;
        *w->last = t;
        w->last = &t->next;
        w->n++;
        gr_cond_signal(&w->changed);
    }
    gr_mutex_unlock(&w->lock);
    return room;
}

bool srv_work_add(srv_work *w, srv_task *t) {
    return add(w, t, WAITING_MOST);
}

void srv_work_go_on(srv_work *w, srv_task *t) {
    add(w, t, INT_MAX);
}
