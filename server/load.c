/* Loads that nobody waits for. */
#include "load.h"

#include "base/memory.h"

struct srv_load {
    srv_post post; /* first */
    srv_load_done *done;
    void *user;
    graft_error error;
    gr_mutex lock;   /* the next two */
    srv_loop *loop;  /* NULL: nobody listens */
    int references;  /* the owner's; the library's, which becomes the post's */
};

static void unref(srv_load *l) {
    gr_mutex_lock(&l->lock);
    bool last = --l->references == 0;
    gr_mutex_unlock(&l->lock);
    if (last) {
        gr_mutex_finish(&l->lock);
        gr_free(l);
    }
}

/* On any thread, perhaps within graft_prefetch_start. The lock keeps the loop alive: leaving takes it too. */
static void on_loaded(const graft_error *error, void *user) {
    srv_load *l = user;
    l->error = *error;
    gr_mutex_lock(&l->lock);
    bool listens = l->loop != NULL;
    if (listens) {
        srv_loop_post(l->loop, &l->post);
    }
    gr_mutex_unlock(&l->lock);
    if (!listens) {
        unref(l);
    }
}

static void on_post(srv_post *post) {
    srv_load *l = (srv_load *)(void *)post; /* its first member */
    gr_mutex_lock(&l->lock);
    bool listens = l->loop != NULL;
    gr_mutex_unlock(&l->lock);
    if (listens) {
        l->done(l->user, &l->error);
    }
    unref(l);
}

int srv_load_start(srv_load **out, srv_loop *loop, graft *g, const char *project, const char *adapter, srv_load_done *done,
                   void *user, graft_error *err) {
    graft_prefetch *prefetch = NULL;
    srv_load *l = gr_zalloc(sizeof *l);
    if (!l) {
        return gr_fail_memory(err, sizeof *l);
    }
    *l = (srv_load){.post.fn = on_post, .done = done, .user = user, .loop = loop, .references = 2};
    gr_mutex_init(&l->lock, SRV_RANK_JOB);
    *out = l; /* before it starts: `done` may come at once */
    int code = graft_prefetch_start(&prefetch, g, project, adapter, on_loaded, l, err);
    if (code) {
        *out = NULL;
        gr_mutex_finish(&l->lock);
        gr_free(l);
        return code;
    }
    graft_prefetch_free(prefetch);
    return 0;
}

void srv_load_leave(srv_load *l) {
    if (l) {
        gr_mutex_lock(&l->lock);
        l->loop = NULL;
        gr_mutex_unlock(&l->lock);
        unref(l);
    }
}
