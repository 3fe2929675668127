/*
 * Ollama's calls for answers. A request that asks nothing brings its adapter into memory, or with keep_alive 0 lets it go;
 * both on the worker.
 */
#include "ollama_reply.h"
#include "ollama_request.h"
#include "route.h"

#include "base/memory.h"

/* ---- nothing asked ------------------------------------------------------------------------------------- */

typedef struct loading {
    srv_task task; /* first */
    server *s;
    srv_exchange *x; /* NULL: the client left */
    srv_request *r;
    const srv_format *format;
    bool unload;
    int code;
    graft_error err;
} loading;

/* Loading never falls back, and unloading leaves alone what is in use: keep_alive's tick comes back to that. */
static void run_loading(srv_task *t) {
    loading *l = (loading *)(void *)t; /* its first member */
    for (size_t i = 0; i < l->r->n_uses && !l->code; i++) {
        const srv_name *name = &l->r->names[i];
        if (l->unload) {
            srv_unload_idle(l->s, name, 0);
        } else {
            l->code = graft_load_adapter(l->s->g, name->project, name->adapter, false, &l->err);
        }
    }
}

static void reply_nothing(srv_exchange *x, const srv_request *r, const srv_format *format) {
    srv_writer w;
    srv_writer_init(&w);
    ollama_write_nothing(&w, r, format, r->has_keep && r->keep_ms == 0 ? "unload" : "load");
    srv_reply_json(x, 200, &w);
}

static void loading_done(srv_task *t) {
    loading *l = (loading *)(void *)t;
    srv_fault f;
    if (l->x && l->code) {
        srv_fault_from(&f, &l->err);
        srv_reply_fault(l->x, &f);
    } else if (l->x) {
        srv_keep_alive_note(l->x, l->r);
        reply_nothing(l->x, l->r, l->format);
    }
    srv_request_free(l->r);
    gr_free(l);
}

static void loading_gone(srv_exchange *x, void *user) {
    (void)x;
    ((loading *)user)->x = NULL;
}

/* False: *f says why not. Takes over the request if it succeeds. */
static bool start_loading(srv_exchange *x, srv_request *r, const srv_format *format, srv_fault *f) {
    if (x->s->drain_until) {
        return srv_fault_set(f, 503, "shutting_down", NULL, "the server is shutting down");
    }
    loading *l = gr_zalloc(sizeof *l);
    if (!l) {
        return srv_no_memory(f);
    }
    *l = (loading){.task = {.run = run_loading, .done = loading_done}, .s = x->s, .x = x, .r = r, .format = format,
                   .unload = r->has_keep && r->keep_ms == 0};
    if (!srv_work_add(x->s->work, &l->task)) {
        gr_free(l);
        return srv_fault_set(f, 503, "queue_full", NULL, "too many changes of adapters are waiting");
    }
    x->user = l;
    x->gone = loading_gone;
    return true;
}

/* ---- the calls ----------------------------------------------------------------------------------------- */

static void answer_or_load(srv_exchange *x, const srv_format *format, bool (*take)(srv_request *r, srv_fault *f)) {
    srv_fault f;
    srv_request *r = srv_request_new(x, &f);
    bool good = r && take(r, &f);
    if (good && !r->load_only) {
        srv_answer_begin(x, format, r);
        return;
    }
    if (good && r->n_uses && start_loading(x, r, format, &f)) {
        return;
    }
    if (good && !r->n_uses) { /* the base is always there */
        reply_nothing(x, r, format);
    } else {
        srv_reply_fault(x, &f);
    }
    srv_request_free(r);
}

void srv_post_ollama_chat(srv_exchange *x) {
    answer_or_load(x, &ollama_chat, ollama_take_chat);
}

void srv_post_ollama_generate(srv_exchange *x) {
    answer_or_load(x, &ollama_generate, ollama_take_generate);
}

void srv_post_ollama_embed(srv_exchange *x) {
    answer_or_load(x, &ollama_embed, ollama_take_embed);
}

void srv_post_ollama_embeddings(srv_exchange *x) {
    answer_or_load(x, &ollama_embeddings, ollama_take_embeddings);
}
