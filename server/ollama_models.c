/* What Ollama's calls tell of models: the base and the adapters, each as a model of its own, and what is in memory. */
#include "auth.h"
#include "ollama_reply.h"
#include "ollama_request.h"
#include "route.h"

#include <string.h>
#include <sys/stat.h>

#define NEVER "9999-12-31T23:59:59Z"
/* For a digest that is not known: clients cut pieces out of it without looking. */
#define UNKNOWN_DIGEST "0000000000000000000000000000000000000000000000000000000000000000"

/* ---- one model ----------------------------------------------------------------------------------------- */

/* Ollama's names have a tag always. */
static void put_name(srv_writer *w, const char *id) {
    char name[SRV_ID_SIZE + 8];
    snprintf(name, sizeof name, "%s:latest", id);
    srv_put_string(w, "name", name);
    srv_put_string(w, "model", name);
}

static const char *digest_of(const char *generation) {
    return *generation ? generation : UNKNOWN_DIGEST;
}

/* "llama 135M Q4_1": the second word, and the rest. */
static void put_size(srv_writer *w, const server *s) {
    const char *size = strchr(s->model.description, ' ');
    size = size ? size + 1 : "";
    size_t n = strcspn(size, " ");
    srv_key(w, "parameter_size");
    srv_text(w, size, n);
    srv_put_string(w, "quantization_level", size[n] ? size + n + 1 : "");
}

/* `a` NULL: of the base. */
static void put_details(srv_writer *w, const server *s, const graft_registered *a) {
    srv_key(w, "details");
    srv_open(w, '{');
    srv_put_string(w, "parent_model", a ? s->base_id : "");
    srv_put_string(w, "format", a ? a->format : "gguf");
    srv_put_string(w, "family", s->model.architecture);
    srv_key(w, "families");
    srv_open(w, '[');
    srv_string(w, s->model.architecture);
    srv_close(w, ']');
    if (a) { /* how many parameters it has is known to nobody before it is read */
        srv_put_string(w, "parameter_size", "");
        srv_put_string(w, "quantization_level", "");
    } else {
        put_size(w, s);
    }
    srv_close(w, '}');
}

typedef struct base_file {
    int64_t bytes, changed; /* microseconds since 1970 */
} base_file;

static base_file look_at_base(const server *s) {
    struct stat st;
    if (stat(s->model.path, &st) != 0) { /* gone meanwhile */
        return (base_file){(int64_t)s->model.weight_bytes, s->started * 1000000};
    }
    return (base_file){(int64_t)st.st_size, (int64_t)st.st_mtime * 1000000};
}

/* ---- lists --------------------------------------------------------------------------------------------- */

static void write_base_tag(srv_writer *w, const server *s) {
    base_file file = look_at_base(s);
    srv_open(w, '{');
    put_name(w, s->base_id);
    ollama_put_time(w, "modified_at", file.changed);
    srv_put_integer(w, "size", file.bytes);
    srv_put_string(w, "digest", s->model.fingerprint);
    put_details(w, s, NULL);
    srv_close(w, '}');
}

static void write_tag(srv_writer *w, const server *s, const graft_registered *a) {
    char id[SRV_ID_SIZE];
    srv_open(w, '{');
    put_name(w, srv_name_id(id, a->project, a->adapter));
    ollama_put_time(w, "modified_at", a->changed * 1000000);
    srv_put_integer(w, "size", (int64_t)a->file_bytes);
    srv_put_string(w, "digest", digest_of(a->generation));
    put_details(w, s, a);
    srv_close(w, '}');
}

static void open_models(srv_writer *w) {
    srv_writer_init(w);
    srv_open(w, '{');
    srv_key(w, "models");
    srv_open(w, '[');
}

static void reply_models(srv_exchange *x, srv_writer *w) {
    srv_close(w, ']');
    srv_close(w, '}');
    srv_reply_json(x, 200, w);
}

void srv_get_ollama_tags(srv_exchange *x) {
    srv_writer w;
    graft_registered_list *list = srv_registered(x->s, NULL);
    open_models(&w);
    write_base_tag(&w, x->s);
    for (size_t i = 0; list && i < list->n; i++) {
        if (srv_may(x, list->items[i].project)) {
            write_tag(&w, x->s, &list->items[i]);
        }
    }
    graft_registered_list_free(list);
    reply_models(x, &w);
}

/* What of a model is in memory, and until when: ms from now, or SRV_KEEP_FOREVER. */
static void put_memory(srv_writer *w, const server *s, uint64_t bytes, int64_t left_ms) {
    srv_put_integer(w, "size", (int64_t)bytes);
    srv_put_integer(w, "size_vram", (int64_t)bytes);
    srv_put_integer(w, "context_length", s->model.context);
    if (left_ms == SRV_KEEP_FOREVER || left_ms > INT64_MAX / 4000) {
        srv_put_string(w, "expires_at", NEVER);
    } else {
        ollama_put_time(w, "expires_at", ollama_now() + left_ms * 1000);
    }
}

static void write_base_memory(srv_writer *w, const server *s) {
    srv_open(w, '{');
    put_name(w, s->base_id);
    srv_put_string(w, "digest", s->model.fingerprint);
    put_details(w, s, NULL);
    put_memory(w, s, s->model.weight_bytes + s->model.context_bytes, SRV_KEEP_FOREVER);
    srv_close(w, '}');
}

static void write_memory(srv_writer *w, const server *s, const graft_loaded *l) {
    char id[SRV_ID_SIZE];
    srv_name name;
    srv_name_set(&name, l->project, l->adapter);
    graft_registered_list *list = srv_registered(s, &name);
    srv_open(w, '{');
    put_name(w, srv_name_id(id, l->project, l->adapter));
    srv_put_string(w, "digest", digest_of(l->generation));
    if (list) { /* else its name is gone, and it will be as well */
        put_details(w, s, &list->items[0]);
    }
    put_memory(w, s, l->bytes, srv_keep_alive_left(s, l));
    srv_close(w, '}');
    graft_registered_list_free(list);
}

void srv_get_ollama_ps(srv_exchange *x) {
    srv_writer w;
    graft_loaded_list *list = NULL;
    if (x->s->registry) {
        graft_loaded_adapters(&list, x->s->g, NULL);
    }
    open_models(&w);
    write_base_memory(&w, x->s);
    for (size_t i = 0; list && i < list->n; i++) {
        if (srv_may(x, list->items[i].project) && strcmp(list->items[i].state, "resident") == 0) {
            write_memory(&w, x->s, &list->items[i]);
        }
    }
    graft_loaded_list_free(list);
    reply_models(x, &w);
}

/* ---- one of them --------------------------------------------------------------------------------------- */

static void put_info(srv_writer *w, const char *architecture, const char *key, int64_t n) {
    char name[160];
    snprintf(name, sizeof name, "%.100s.%s", architecture, key);
    srv_put_integer(w, name, n);
}

/* Keys as in a GGUF, as far as they are known. */
static void put_model_info(srv_writer *w, const server *s, const graft_registered *a) {
    const graft_model_info *m = &s->model;
    srv_key(w, "model_info");
    srv_open(w, '{');
    srv_put_string(w, "general.architecture", m->architecture);
    srv_put_string(w, "general.type", a ? "adapter" : "model");
    put_info(w, m->architecture, "context_length", m->context);
    put_info(w, m->architecture, "embedding_length", m->n_embd);
    put_info(w, m->architecture, "block_count", m->n_layer);
    put_info(w, m->architecture, "vocab_size", m->n_vocab);
    if (a) {
        srv_put_string(w, "adapter.type", "lora");
        srv_put_integer(w, "graft.adapter.rank", a->rank);
        srv_put_string(w, "graft.adapter.state", graft_registered_state_name(a->state));
        srv_put_bool(w, "graft.adapter.pinned", a->pinned);
    }
    srv_close(w, '}');
}

static void put_capabilities(srv_writer *w) {
    srv_key(w, "capabilities");
    srv_open(w, '[');
    srv_string(w, "completion");
    srv_string(w, "embedding");
    srv_close(w, ']');
}

static void put_modelfile(srv_writer *w, const server *s, const graft_registered *a) {
    char text[sizeof s->base_id + SRV_ID_SIZE + 32], id[SRV_ID_SIZE];
    snprintf(text, sizeof text, "FROM %s\n%s%s%s", s->base_id, a ? "ADAPTER " : "",
             a ? srv_name_id(id, a->project, a->adapter) : "", a ? "\n" : "");
    srv_put_string(w, "modelfile", text);
}

static void reply_show(srv_exchange *x, const graft_registered *a) {
    srv_writer w;
    srv_writer_init(&w);
    srv_open(&w, '{');
    srv_put_string(&w, "license", "");
    put_modelfile(&w, x->s, a);
    srv_put_string(&w, "parameters", "");
    srv_put_string(&w, "template", "");
    put_details(&w, x->s, a);
    put_model_info(&w, x->s, a);
    put_capabilities(&w);
    ollama_put_time(&w, "modified_at", a ? a->changed * 1000000 : look_at_base(x->s).changed);
    srv_close(&w, '}');
    srv_reply_json(x, 200, &w);
}

void srv_post_ollama_show(srv_exchange *x) {
    srv_fault f;
    srv_request *r = srv_request_new(x, &f);
    bool good = r && ollama_take_model(r, &f);
    graft_registered_list *list = good && r->n_uses ? srv_registered(x->s, &r->names[0]) : NULL;
    if (!good) {
        srv_reply_fault(x, &f);
    } else if (r->n_uses && !list) { /* removed just now */
        srv_reply_error(x, 404, "model_not_found", "model", "model not found");
    } else {
        reply_show(x, list ? &list->items[0] : NULL);
    }
    graft_registered_list_free(list);
    srv_request_free(r);
}

void srv_get_ollama_version(srv_exchange *x) {
    srv_writer w;
    srv_writer_init(&w);
    srv_open(&w, '{');
    srv_put_string(&w, "version", graft_version());
    srv_close(&w, '}');
    srv_reply_json(x, 200, &w);
}

/* ---- what graft does otherwise -------------------------------------------------------------------------- */

void srv_ollama_elsewhere(srv_exchange *x) {
    static const struct {
        const char *path, *instead;
    } table[] = {
        {"/api/create", "graft makes no models: register an adapter with POST /v1/load_lora_adapter"},
        {"/api/pull", "graft downloads nothing: put the adapter below the adapters' folder and POST /v1/lora_adapters/scan"},
        {"/api/push", "graft uploads nothing"},
        {"/api/copy", "graft copies no models: register the same path under another name with POST /v1/load_lora_adapter"},
        {"/api/delete", "graft deletes no files: POST /v1/unload_lora_adapter with \"unregister\": true takes the name away"},
    };
    const char *instead = "graft takes no blobs: put files below the adapters' folder";
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++) {
        if (strcmp(x->path, table[i].path) == 0) {
            instead = table[i].instead;
        }
    }
    srv_reply_error(x, 501, "not_supported", NULL, "%s", instead);
}
