/* The event loop and its post box. */
#include "loop.h"

#include <fcntl.h>
#include <stdint.h>
#include <errno.h>
#include <string.h>
#include <unistd.h>

/* Posts that run in one go before sockets get their turn. */
enum { BATCH = 256 };

static void poke(srv_loop *l) {
    /* A full pipe wakes the loop just as well, so the result does not matter. */
    ssize_t n = write(l->pipe[1], "", 1);
    (void)n;
}

static srv_post *pop(srv_loop *l) {
    gr_mutex_lock(&l->lock);
    srv_post *p = l->first;
    if (p) {
        l->first = p->next;
        if (!l->first) {
            l->last = &l->first;
        }
        p->queued = false;
    }
    gr_mutex_unlock(&l->lock);
    return p;
}

static void run_posts(evutil_socket_t fd, short what, void *user) {
    srv_loop *l = user;
    char sink[64];
    (void)what;
    while (read(fd, sink, sizeof sink) > 0) {
    }
    srv_post *p;
    for (int i = 0; i < BATCH && (p = pop(l)); i++) {
        p->fn(p);
    }
    gr_mutex_lock(&l->lock);
    bool more = l->first;
    gr_mutex_unlock(&l->lock);
    if (more) {
        poke(l);
    }
}

static int make_pipe(int fd[2]) {
    if (pipe(fd) != 0) {
        return -1;
    }
    for (int i = 0; i < 2; i++) {
        fcntl(fd[i], F_SETFL, O_NONBLOCK);
        fcntl(fd[i], F_SETFD, FD_CLOEXEC);
    }
    return 0;
}

int srv_loop_init(srv_loop *l, graft_error *err) {
    memset(l, 0, sizeof *l);
    l->last = &l->first;
    if (make_pipe(l->pipe) != 0) {
        return gr_fail(err, GRAFT_E_INTERNAL, "pipe: %s", strerror(errno));
    }
    gr_mutex_init(&l->lock, SRV_RANK_LOOP);
    l->base = event_base_new();
    l->wake = l->base ? event_new(l->base, l->pipe[0], EV_READ | EV_PERSIST, run_posts, l) : NULL;
    if (!l->wake || event_add(l->wake, NULL) != 0) {
        srv_loop_finish(l);
        return gr_fail(err, GRAFT_E_INTERNAL, "libevent: no event loop");
    }
    return 0;
}

void srv_loop_flush(srv_loop *l) {
    srv_post *p;
    while ((p = pop(l))) {
        p->fn(p);
    }
}

void srv_loop_finish(srv_loop *l) {
    srv_loop_flush(l);
    if (l->wake) {
        event_free(l->wake);
    }
    if (l->base) {
        event_base_free(l->base);
    }
    close(l->pipe[0]);
    close(l->pipe[1]);
    gr_mutex_finish(&l->lock);
}

void srv_loop_post(srv_loop *l, srv_post *post) {
    gr_mutex_lock(&l->lock);
    bool first = !l->first && !post->queued;
    if (!post->queued) {
        post->queued = true;
        post->next = NULL;
        *l->last = post;
        l->last = &post->next;
    }
    gr_mutex_unlock(&l->lock);
    if (first) {
        poke(l);
    }
}

bool srv_loop_queued(srv_loop *l, const srv_post *post) {
    gr_mutex_lock(&l->lock);
    bool queued = post->queued;
    gr_mutex_unlock(&l->lock);
    return queued;
}
