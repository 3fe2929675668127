/*
 * llama-server's own calls (0.5.0), in its shapes: global scales of adapters, properties, slots; text_api.c has tokens and
 * the chat template. What it can do and graft cannot (saving a slot's cache) is said with 501; its /completion is not here,
 * OpenAI's calls are.
 *
 * Ids of adapters are the indexes of /v1/lora_adapters, which count what the key may see: they shift when adapters are added or
 * removed. Scales that are set are kept by name.
 */
#include "auth.h"
#include "defaults.h"
#include "names.h"
#include "route.h"

#include "base/memory.h"

#include <event2/keyvalq_struct.h>
#include <jansson.h>
#include <math.h>
#include <string.h>

/* ---- global scales ------------------------------------------------------------------------------------ */

static float default_scale(const server *s, const graft_registered *a) {
    const srv_defaults *d = srv_defaults_get(s);
    for (size_t i = 0; i < d->n; i++) {
        if (strcmp(d->items[i].project, a->project) == 0 && strcmp(d->items[i].adapter, a->adapter) == 0) {
            return d->items[i].scale;
        }
    }
    return 0;
}

void srv_get_llama_adapters(srv_exchange *x) {
    graft_registered_list *list = srv_registered(x->s, NULL);
    int64_t id = 0;
    srv_writer w;
    srv_writer_init(&w);
    srv_open(&w, '[');
    for (size_t i = 0; list && i < list->n; i++) {
        const graft_registered *a = &list->items[i];
        if (srv_may(x, a->project)) {
            srv_open(&w, '{');
            srv_put_integer(&w, "id", id++);
            srv_put_string(&w, "path", x->admin ? a->path : "");
            srv_put_number(&w, "scale", (double)default_scale(x->s, a));
            srv_put_string(&w, "task_name", "");
            srv_put_string(&w, "prompt_prefix", "");
            srv_close(&w, '}');
        }
    }
    srv_close(&w, ']');
    graft_registered_list_free(list);
    srv_reply_json(x, 200, &w);
}

static bool take_name(srv_default *d, const graft_registered *a) {
    size_t project = strlen(a->project), adapter = strlen(a->adapter);
    if (project >= sizeof d->project || adapter >= sizeof d->adapter) {
        return false;
    }
    memcpy(d->project, a->project, project + 1);
    memcpy(d->adapter, a->adapter, adapter + 1);
    return true;
}

/* One item of the body into scales[n]. */
static bool take_scale(json_t *item, float *scales, size_t n, srv_fault *f) {
    json_t *id = json_object_get(item, "id"), *scale = json_object_get(item, "scale");
    double factor = json_is_number(scale) ? json_number_value(scale) : (double)NAN;
    if (!json_is_integer(id) || !(fabs(factor) <= 100)) {
        return srv_fault_set(f, 400, "invalid_value", NULL,
                             "a list of objects with \"id\" and a \"scale\" from -100 to 100 is needed");
    }
    json_int_t index = json_integer_value(id);
    if (index < 0 || (uint64_t)index >= n) {
        return srv_fault_set(f, 404, "model_not_found", "id", "no adapter has the id %lld", (long long)index);
    }
    scales[index] = (float)factor; /* the last one counts, as with llama-server */
    return true;
}

static bool collect(srv_defaults *out, const float *scales, const graft_registered_list *list, srv_fault *f) {
    for (size_t i = 0; list && i < list->n; i++) {
        if (scales[i] == 0.0f) {
            continue;
        }
        if (out->n == SRV_DEFAULTS) {
            return srv_fault_set(f, 400, "invalid_value", "scale", "at most %d adapters can be added up", SRV_DEFAULTS);
        }
        if (take_name(&out->items[out->n], &list->items[i])) {
            out->items[out->n++].scale = scales[i];
        }
    }
    return true;
}

static bool take_scales(server *s, json_t *body, srv_fault *f) {
    graft_registered_list *list = srv_registered(s, NULL);
    size_t n = list ? list->n : 0;
    float *scales = gr_calloc(n ? n : 1, sizeof *scales); /* who is not named gets 0 */
    srv_defaults fresh = {.n = 0};
    bool good = scales || srv_no_memory(f);
    for (size_t i = 0; good && i < json_array_size(body); i++) {
        good = take_scale(json_array_get(body, i), scales, n, f);
    }
    good = good && collect(&fresh, scales, list, f);
    if (good) {
        srv_defaults_set(s, fresh.items, fresh.n);
    }
    gr_free(scales);
    graft_registered_list_free(list);
    return good;
}

static void reply_success(srv_exchange *x) {
    srv_writer w;
    srv_writer_init(&w);
    srv_open(&w, '{');
    srv_put_bool(&w, "success", true);
    srv_close(&w, '}');
    srv_reply_json(x, 200, &w);
}

void srv_post_llama_adapters(srv_exchange *x) {
    srv_fault f;
    json_error_t e;
    json_t *body = json_loadb(x->body, x->body_length, JSON_REJECT_DUPLICATES, &e);
    if (!json_is_array(body)) {
        srv_reply_error(x, 400, "bad_type", NULL, "Request body must be an array");
    } else if (!take_scales(x->s, body, &f)) {
        srv_reply_fault(x, &f);
    } else {
        reply_success(x);
    }
    json_decref(body);
}

/* ---- properties --------------------------------------------------------------------------------------- */

/* A token as text; "" for none. */
static void put_token(srv_writer *w, const char *key, const server *s, int32_t token) {
    char *text = NULL;
    size_t length = 0;
    if (token >= 0) {
        graft_token_text(&text, &length, s->g, token, NULL);
    }
    srv_key(w, key);
    srv_text(w, text ? text : "", length);
    graft_free(text);
}

/* What a request without fields gets. */
static void write_defaults(srv_writer *w, const server *s) {
    graft_request r = graft_request_default();
    srv_key(w, "default_generation_settings");
    srv_open(w, '{');
    srv_key(w, "params");
    srv_open(w, '{');
    srv_put_integer(w, "n_predict", -1);
    srv_put_integer(w, "max_tokens", -1);
    srv_put_integer(w, "seed", UINT32_MAX);
    srv_put_number(w, "temperature", 1); /* OpenAI's, as in its calls; what it has no field for is the library's */
    srv_put_number(w, "top_p", 1);
    srv_put_integer(w, "top_k", r.sampling.top_k);
    srv_put_number(w, "min_p", (double)r.sampling.min_p);
    srv_put_integer(w, "repeat_last_n", r.sampling.repeat_last_n);
    srv_put_number(w, "repeat_penalty", (double)r.sampling.repeat_penalty);
    srv_put_number(w, "presence_penalty", 0);
    srv_put_number(w, "frequency_penalty", 0);
    srv_put_bool(w, "ignore_eos", false);
    srv_put_bool(w, "stream", false);
    srv_put_integer(w, "n_probs", 0);
    srv_put_string(w, "grammar", "");
    srv_close(w, '}');
    srv_put_integer(w, "n_ctx", s->model.context);
    srv_close(w, '}');
}

static void write_kinds(srv_writer *w) {
    srv_key(w, "modalities");
    srv_open(w, '{');
    srv_put_bool(w, "vision", false);
    srv_put_bool(w, "video", false);
    srv_put_bool(w, "audio", false);
    srv_close(w, '}');
}

void srv_get_props(srv_exchange *x) {
    const server *s = x->s;
    char build[128];
    srv_writer w;
    snprintf(build, sizeof build, "graft %s, libllama %s", graft_version(), graft_llama_version());
    srv_writer_init(&w);
    srv_open(&w, '{');
    write_defaults(&w, s);
    srv_put_integer(&w, "total_slots", s->model.slots);
    srv_put_string(&w, "model_alias", s->base_id);
    srv_put_string(&w, "model_path", x->admin ? s->model.path : "");
    write_kinds(&w);
    srv_put_bool(&w, "endpoint_slots", true);
    srv_put_bool(&w, "endpoint_props", false);
    srv_put_bool(&w, "endpoint_metrics", true);
    srv_put_string(&w, "chat_template", s->model.chat_template);
    srv_key(&w, "chat_template_caps");
    srv_open(&w, '{');
    srv_close(&w, '}');
    put_token(&w, "bos_token", s, s->model.bos);
    put_token(&w, "eos_token", s, s->model.eos);
    srv_put_string(&w, "build_info", build);
    srv_put_bool(&w, "is_sleeping", false);
    srv_close(&w, '}');
    srv_reply_json(x, 200, &w);
}

/* ---- slots -------------------------------------------------------------------------------------------- */

/* Whether the query has the parameter, with a value. */
static bool has_query(const srv_exchange *x, const char *name) {
    const char *query = evhttp_uri_get_query(evhttp_request_get_evhttp_uri(x->req));
    struct evkeyvalq found;
    if (!query || evhttp_parse_query_str(query, &found) != 0) {
        return false;
    }
    const char *value = evhttp_find_header(&found, name);
    bool has = value && *value;
    evhttp_clear_headers(&found);
    return has;
}

static void write_next(srv_writer *w, const graft_slot *t) {
    srv_key(w, "next_token");
    srv_open(w, '[');
    srv_open(w, '{');
    srv_put_bool(w, "has_next_token", true);
    srv_put_bool(w, "has_new_line", false);
    srv_put_integer(w, "n_remain", -1);
    srv_put_integer(w, "n_decoded", t->completion_tokens);
    srv_close(w, '}');
    srv_close(w, ']');
}

/* Of what the key must not see only that it is busy. */
static void write_slot(srv_writer *w, const srv_exchange *x, const graft_slot *t) {
    char id[SRV_ID_SIZE];
    bool busy = t->job != 0, hidden = *t->project && !srv_may(x, t->project);
    srv_open(w, '{');
    srv_put_integer(w, "id", t->slot);
    srv_put_integer(w, "n_ctx", x->s->model.context);
    srv_put_bool(w, "speculative", false);
    srv_put_bool(w, "is_processing", busy);
    if (busy && hidden) {
        srv_put_null(w, "adapter");
    } else if (busy) {
        srv_put_integer(w, "id_task", (int64_t)t->job);
        srv_put_integer(w, "n_prompt_tokens", t->prompt_tokens);
        srv_put_integer(w, "n_prompt_tokens_processed", t->evaluated_tokens);
        srv_put_integer(w, "n_prompt_tokens_cache", t->cached_tokens);
        srv_put_string(w, "adapter", *t->project ? srv_name_id(id, t->project, t->adapter) : NULL);
        write_next(w, t);
    }
    srv_close(w, '}');
}

void srv_get_slots(srv_exchange *x) {
    graft_slot_list *list = NULL;
    graft_error err;
    srv_fault f;
    srv_writer w;
    size_t idle = 0;
    if (graft_slots(&list, x->s->g, &err) != 0) {
        srv_fault_from(&f, &err);
        srv_reply_fault(x, &f);
        return;
    }
    srv_writer_init(&w);
    srv_open(&w, '[');
    for (size_t i = 0; i < list->n; i++) {
        idle += list->items[i].job == 0;
        write_slot(&w, x, &list->items[i]);
    }
    srv_close(&w, ']');
    graft_slot_list_free(list);
    if (idle == 0 && has_query(x, "fail_on_no_slot")) {
        srv_writer_finish(&w);
        srv_reply_error(x, 503, "no_slot", NULL, "no slot available");
        return;
    }
    srv_reply_json(x, 200, &w);
}

void srv_post_slot(srv_exchange *x) {
    srv_reply_error(x, 501, "not_supported", NULL,
                    "slots cannot be saved, restored or erased: what they hold is reused by itself");
}
