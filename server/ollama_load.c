/*
 * Requests of Ollama's that ask nothing. Loading goes adapter by adapter and never on the worker: it may wait for room, and who
 * makes that room must not wait behind it. Letting go is quick, and the worker's. What has begun to load is loaded also if the
 * client leaves; it counts among the server's loads until then.
 */
#include "ollama_load.h"

#include "load.h"
#include "ollama_reply.h"

#include "base/memory.h"

#include <utlist.h>

typedef struct ollama_load loading;
struct ollama_load {
    srv_task task; /* first */
    server *s;
    srv_exchange *x; /* NULL: the client left, or was given up */
    srv_request *r;
    const srv_format *format;
    bool unload;
    srv_load *load; /* of names[at]; NULL = none is under way */
    size_t at;
    loading *prev, *next; /* those that load */
};

static void free_loading(loading *l) {
    if (!l->unload) {
        DL_DELETE(l->s->ollama_loads, l);
        l->s->n_loads--;
    }
    srv_load_leave(l->load);
    srv_request_free(l->r);
    gr_free(l);
}

/* ---- the ends ------------------------------------------------------------------------------------------ */

static void end_well(loading *l) {
    srv_writer w;
    if (l->x) {
        srv_keep_alive_note(l->x, l->r);
        srv_writer_init(&w);
        ollama_write_nothing(&w, l->r, l->format, l->unload ? "unload" : "load");
        srv_reply_json(l->x, 200, &w);
    }
    free_loading(l);
}

static void end_badly(loading *l, const graft_error *err) {
    srv_fault f;
    if (l->x) {
        srv_fault_from(&f, err);
        srv_reply_fault(l->x, &f);
    }
    free_loading(l);
}

static void gone(srv_exchange *x, void *user) {
    (void)x;
    ((loading *)user)->x = NULL;
}

void ollama_loads_give_up(server *s) {
    for (loading *l = s->ollama_loads; l; l = l->next) {
        srv_exchange *x = l->x;
        l->x = NULL;
        if (x) {
            srv_reply_shutting_down(x);
        }
    }
}

void ollama_loads_finish(server *s) {
    while (s->ollama_loads) {
        free_loading(s->ollama_loads);
    }
}

/* ---- loading ------------------------------------------------------------------------------------------- */

static void on_loaded(void *user, const graft_error *error);

/* The next adapter; none for a client that has left. */
static void load_next(loading *l) {
    graft_error err = {0};
    if (l->at == l->r->n_uses || !l->x) {
        end_well(l);
        return;
    }
    const srv_name *name = &l->r->names[l->at];
    if (srv_load_start(&l->load, &l->s->loop, l->s->g, name->project, name->adapter, on_loaded, l, &err) != 0) {
        end_badly(l, &err);
    }
}

static void on_loaded(void *user, const graft_error *error) {
    loading *l = user;
    srv_load_leave(l->load);
    l->load = NULL;
    if (error->code) { /* it never falls back */
        end_badly(l, error);
    } else {
        l->at++;
        load_next(l);
    }
}

/* ---- letting go ---------------------------------------------------------------------------------------- */

/* What is in use is left alone: keep_alive's tick comes back to that. */
static void run_unload(srv_task *t) {
    loading *l = (loading *)(void *)t; /* its first member */
    for (size_t i = 0; i < l->r->n_uses; i++) {
        srv_unload_idle(l->s, &l->r->names[i], 0);
    }
}

static void unload_done(srv_task *t) {
    end_well((loading *)(void *)t);
}

/* ---- the start ----------------------------------------------------------------------------------------- */

bool ollama_load_start(srv_exchange *x, srv_request *r, const srv_format *format, srv_fault *f) {
    server *s = x->s;
    bool unload = r->has_keep && r->keep_ms == 0;
    if (s->drain_until) {
        return srv_shutting_down(f);
    }
    if (!unload && s->n_loads >= SRV_LOADS_MOST) {
        return srv_fault_set(f, 429, "queue_full", NULL, "%d adapters are being loaded already", SRV_LOADS_MOST);
    }
    loading *l = gr_zalloc(sizeof *l);
    if (!l) {
        return srv_no_memory(f);
    }
    *l = (loading){.task = {.run = run_unload, .done = unload_done}, .s = s, .x = x, .r = r, .format = format, .unload = unload};
    if (unload && !srv_work_add(s->work, &l->task)) {
        gr_free(l);
        return srv_fault_set(f, 503, "queue_full", NULL, "too many changes of adapters are waiting");
    }
    x->user = l;
    x->gone = gone;
    if (!unload) {
        DL_PREPEND(s->ollama_loads, l);
        s->n_loads++;
        load_next(l);
    }
    return true;
}
