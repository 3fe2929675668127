/* Ollama's calls for answers. */
#include "ollama_load.h"
#include "ollama_reply.h"
#include "ollama_request.h"
#include "route.h"

static void reply_nothing(srv_exchange *x, const srv_request *r, const srv_format *format) {
    srv_writer w;
    srv_writer_init(&w);
    ollama_write_nothing(&w, r, format, r->has_keep && r->keep_ms == 0 ? "unload" : "load");
    srv_reply_json(x, 200, &w);
}

static void answer_or_load(srv_exchange *x, const srv_format *format, bool (*take)(srv_request *r, srv_fault *f)) {
    srv_fault f;
    srv_request *r = srv_request_new(x, &f);
    bool good = r && take(r, &f);
    if (good && !r->load_only) {
        srv_answer_begin(x, format, r);
        return;
    }
    if (good && r->n_uses && ollama_load_start(x, r, format, &f)) {
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
