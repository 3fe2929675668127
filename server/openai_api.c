/* OpenAI's calls: models, chat, completions, embeddings. */
#include "auth.h"
#include "openai_reply.h"
#include "openai_request.h"
#include "route.h"

void srv_post_chat(srv_exchange *x) {
    srv_answer_body(x, &openai_chat, openai_take_chat);
}

void srv_post_completions(srv_exchange *x) {
    srv_answer_body(x, &openai_completion, openai_take_completion);
}

void srv_post_embeddings(srv_exchange *x) {
    srv_answer_body(x, &openai_embeddings, openai_take_embeddings);
}

/* ---- models ------------------------------------------------------------------------------------------- */

static void write_base(srv_writer *w, const srv_exchange *x) {
    const server *s = x->s;
    srv_open(w, '{');
    srv_put_string(w, "id", s->base_id);
    srv_put_string(w, "object", "model");
    srv_put_integer(w, "created", s->started);
    srv_put_string(w, "owned_by", "graft");
    srv_put_string(w, "root", srv_path_shown(x, s->model.path));
    srv_put_null(w, "parent");
    srv_put_integer(w, "max_model_len", s->model.context);
    srv_put_string(w, "state", "resident");
    srv_close(w, '}');
}

static void write_adapter(srv_writer *w, const srv_exchange *x, const graft_registered *a) {
    const server *s = x->s;
    char id[SRV_ID_SIZE];
    srv_open(w, '{');
    srv_put_string(w, "id", srv_name_id(id, a->project, a->adapter));
    srv_put_string(w, "object", "model");
    srv_put_integer(w, "created", a->created);
    srv_put_string(w, "owned_by", "graft");
    srv_put_string(w, "root", srv_path_shown(x, a->path));
    srv_put_string(w, "parent", s->base_id);
    srv_put_integer(w, "max_model_len", s->model.context);
    srv_put_string(w, "state", graft_registered_state_name(a->state));
    srv_put_bool(w, "pinned", a->pinned);
    srv_put_string(w, "generation", *a->generation ? a->generation : NULL);
    srv_close(w, '}');
}

void srv_get_models(srv_exchange *x) {
    srv_writer w;
    graft_registered_list *list = srv_registered(x->s, NULL);
    srv_writer_init(&w);
    srv_open(&w, '{');
    srv_put_string(&w, "object", "list");
    srv_key(&w, "data");
    srv_open(&w, '[');
    write_base(&w, x);
    for (size_t i = 0; list && i < list->n; i++) {
        if (srv_may(x, list->items[i].project)) {
            write_adapter(&w, x, &list->items[i]);
        }
    }
    srv_close(&w, ']');
    srv_close(&w, '}');
    graft_registered_list_free(list);
    srv_reply_json(x, 200, &w);
}

void srv_get_model(srv_exchange *x) {
    srv_fault f;
    srv_name name;
    srv_writer w;
    if (!srv_name_find(x, &name, x->capture, "model", &f)) {
        srv_reply_fault(x, &f);
        return;
    }
    srv_writer_init(&w);
    if (name.base) {
        write_base(&w, x);
    } else {
        graft_registered_list *list = srv_registered(x->s, &name);
        if (!list) { /* removed just now */
            srv_writer_finish(&w);
            srv_reply_error(x, 404, "model_not_found", "model", "The model does not exist.");
            return;
        }
        write_adapter(&w, x, &list->items[0]);
        graft_registered_list_free(list);
    }
    srv_reply_json(x, 200, &w);
}
