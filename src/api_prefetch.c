/* Loading without waiting: a callback, and a descriptor to poll. */
#include "api.h"

#include "base/clock.h"
#include "base/memory.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

struct graft_prefetch {
    graft_prefetch_fn fn;
    void *user;
    gr_mutex mutex;  /* rank API: the rest */
    gr_cond ended;
    int references;  /* the caller's, and the load's until it has ended */
    bool done;
    graft_error error;
    int pipe[2];     /* -1: nobody asked for a descriptor */
};

static void unref(graft_prefetch *p) {
    gr_mutex_lock(&p->mutex);
    bool last = --p->references == 0;
    gr_mutex_unlock(&p->mutex);
    if (last) {
        for (int i = 0; i < 2; i++) {
            if (p->pipe[i] >= 0) {
                close(p->pipe[i]);
            }
        }
        gr_cond_finish(&p->ended);
        gr_mutex_finish(&p->mutex);
        gr_free(p);
    }
}

/* One byte that is never read. The pipe is new and empty, so this does not block. */
static void make_readable(graft_prefetch *p) {
    while (p->pipe[1] >= 0 && write(p->pipe[1], "", 1) < 0 && errno == EINTR) {
    }
}

/* The loader's callback: the lease has done its work by being granted. */
static void arrived(gr_lease *lease, const graft_error *err, void *user) {
    graft_prefetch *p = user;
    graft_error error = lease ? (graft_error){0} : *err;
    gr_lease_release_later(lease);
    if (p->fn) {
        p->fn(&error, p->user);
    }
    gr_mutex_lock(&p->mutex);
    p->error = error;
    p->done = true;
    make_readable(p);
    gr_cond_broadcast(&p->ended);
    gr_mutex_unlock(&p->mutex);
    unref(p);
}

int graft_prefetch_start(graft_prefetch **out, graft *g, const char *project, const char *adapter, graft_prefetch_fn fn,
                         void *user, graft_error *err) {
    if (!out || !g) {
        return gr_fail(err, GRAFT_E_BAD_REQUEST, "graft_prefetch_start needs somewhere to put the handle, and an instance");
    }
    char names[2][GRAFT_NAME_SIZE];
    int rc = gr_api_resolve(g, project, adapter, names[0], names[1], err);
    if (rc) {
        return rc;
    }
    graft_prefetch *p = gr_zalloc(sizeof *p);
    if (!p) {
        return gr_fail_memory(err, sizeof *p);
    }
    *p = (graft_prefetch){.fn = fn, .user = user, .references = 2, .pipe = {-1, -1}};
    gr_mutex_init(&p->mutex, GR_RANK_API);
    gr_cond_init(&p->ended);
    const gr_lease_request request = {
        .project = names[0],
        .adapter = names[1],
        .fallback = GRAFT_FALLBACK_ERROR,
        .deadline_us = gr_api_deadline(g, -1),
    };
    *out = p; /* before the callback, which may come at once */
    gr_loader_lease_async(g->loader, &request, arrived, p);
    return 0;
}

static int open_pipe(graft_prefetch *p, graft_error *err) {
    if (pipe(p->pipe) != 0) {
        p->pipe[0] = p->pipe[1] = -1;
        return gr_fail(err, GRAFT_E_NOT_READABLE, "no descriptor: %s", strerror(errno));
    }
    for (int i = 0; i < 2; i++) {
        fcntl(p->pipe[i], F_SETFD, FD_CLOEXEC);
    }
    if (p->done) {
        make_readable(p);
    }
    return 0;
}

int graft_prefetch_fd(graft_prefetch *p, graft_error *err) {
    gr_mutex_lock(&p->mutex);
    int rc = p->pipe[0] < 0 ? open_pipe(p, err) : 0;
    rc = rc ? rc : p->pipe[0];
    gr_mutex_unlock(&p->mutex);
    return rc;
}

bool graft_prefetch_done(graft_prefetch *p) {
    gr_mutex_lock(&p->mutex);
    bool done = p->done;
    gr_mutex_unlock(&p->mutex);
    return done;
}

int graft_prefetch_wait(graft_prefetch *p, graft_error *err) {
    gr_mutex_lock(&p->mutex);
    while (!p->done) {
        gr_cond_wait(&p->ended, &p->mutex);
    }
    int rc = p->error.code;
    if (rc && err) {
        *err = p->error;
    }
    gr_mutex_unlock(&p->mutex);
    return rc;
}

void graft_prefetch_free(graft_prefetch *p) {
    if (p) {
        unref(p);
    }
}
