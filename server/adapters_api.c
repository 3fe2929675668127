/*
 * Adapters over HTTP: vLLM's load and unload (its texts and codes), lists, pins; and /health.
 *
 * What changes something runs on the worker, one call at a time: between looking at a generation and acting on it nobody else
 * acts. Loading does not: it may wait for room, and the worker's next task may be what makes it. A change that loads has a second
 * step on the worker once that has ended. A client that leaves meanwhile does not undo what it asked for.
 */
#define _XOPEN_SOURCE 700 /* realpath */
#include "adapters_api.h"
#include "auth.h"
#include "load.h"
#include "ollama_load.h"
#include "request.h"
#include "route.h"

#include "base/file.h"
#include "base/memory.h"

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <utlist.h>

/* ---- one change --------------------------------------------------------------------------------------- */

typedef struct change change;
struct change {
    srv_task task; /* first */
    server *s;
    srv_exchange *x; /* NULL: the client left */
    void (*act)(change *c); /* on the worker */
    char text[2 * GRAFT_NAME_SIZE + 8]; /* the name as it was sent */
    srv_name name;
    char *path;
    char *replaced;         /* where the name led before, if this change leads it elsewhere; else NULL */
    char expected[65];      /* generation; "" = any */
    bool in_place, unregister, pinned, switched;
    /* what came of it */
    int status;
    const char *type, *code; /* of the error */
    char message[600];
    uint64_t freed, pending;
    /* while it loads; the loop's but for the first, which the worker sets */
    void (*after)(change *c); /* the next step, on the worker; NULL = none */
    srv_load *load;
    graft_error load_error;
    bool fresh;               /* the name is new */
    bool loads, counted;      /* it is one of those that load; it counts among SRV_LOADS_MOST */
    bool ran, loaded;         /* the first step, the load has ended */
    change *prev, *next;
};

static void free_change(change *c) {
    if (c->prev) { /* enlisted: the first one's is the last */
        DL_DELETE(c->s->changes, c);
    }
    if (c->counted) {
        c->s->n_loads--;
    }
    srv_load_leave(c->load);
    gr_free(c->replaced);
    gr_free(c->path);
    gr_free(c);
}

static void set(change *c, int status, const char *type, const char *code, const char *format, ...) GR_PRINTF(5, 6);

static void set(change *c, int status, const char *type, const char *code, const char *format, ...) {
    va_list args;
    va_start(args, format);
    vsnprintf(c->message, sizeof c->message, format, args);
    va_end(args);
    c->status = status;
    c->type = type;
    c->code = code;
}

static void reply_current(srv_exchange *x, const char *project, const char *adapter);

/* vLLM's error object has the status as its code; ours is beside it. */
static void write_error(srv_writer *w, const change *c) {
    srv_open(w, '{');
    srv_key(w, "error");
    srv_open(w, '{');
    srv_put_string(w, "message", c->message);
    srv_put_string(w, "type", c->type);
    srv_put_null(w, "param");
    srv_put_integer(w, "code", c->status);
    srv_put_string(w, "reason", c->code);
    srv_close(w, '}');
    srv_close(w, '}');
}

static void reply_change(srv_exchange *x, const change *c) {
    srv_writer w;
    char number[24];
    if (c->switched) {
        reply_current(x, c->name.project, c->name.adapter);
        return;
    }
    if (c->status == 200) {
        snprintf(number, sizeof number, "%" PRIu64, c->freed);
        srv_header(x, "X-Graft-Freed-Bytes", number);
        snprintf(number, sizeof number, "%" PRIu64, c->pending);
        srv_header(x, "X-Graft-Pending-Bytes", number);
        srv_reply(x, 200, "text/plain; charset=utf-8", c->message, strlen(c->message));
        return;
    }
    if (c->status == 409) {
        srv_header(x, "X-Should-Retry", "false"); /* clients try again after 409 by themselves, and it would not help */
    } else if (c->status == 429 || c->status == 503) {
        srv_header(x, "Retry-After", "1");
    }
    srv_writer_init(&w);
    write_error(&w, c);
    srv_reply_json(x, c->status, &w);
}

static void run_change(srv_task *t) {
    change *c = (change *)(void *)t; /* its first member */
    c->act(c);
}

/* Both have to have come, in either order. */
static void go_on(change *c) {
    if (!c->ran || !c->loaded) {
        return;
    }
    srv_load_leave(c->load);
    c->load = NULL;
    c->act = c->after;
    c->after = NULL;
    if (c->s->work) {
        srv_work_go_on(c->s->work, &c->task);
    }
}

static void on_loaded(void *user, const graft_error *error) {
    change *c = user;
    c->load_error = *error;
    c->loaded = true;
    go_on(c);
}

static void change_done(srv_task *t) {
    change *c = (change *)(void *)t;
    if (c->after) {
        c->ran = true;
        go_on(c);
        return;
    }
    if (c->switched) {
        srv_default now = {.scale = 1};
        snprintf(now.project, sizeof now.project, "%s", c->name.project);
        snprintf(now.adapter, sizeof now.adapter, "%s", c->name.adapter);
        srv_defaults_set(c->s, &now, 1);
    }
    if (c->x) {
        reply_change(c->x, c);
    }
    free_change(c);
}

static void change_gone(srv_exchange *x, void *user) {
    (void)x;
    ((change *)user)->x = NULL;
}

void srv_changes_give_up(server *s) {
    for (change *c = s->changes, *next; c; c = next) {
        next = c->next;
        if (c->x && c->ran) {
            srv_exchange *x = c->x;
            c->x = NULL;
            srv_reply_shutting_down(x);
        }
    }
    ollama_loads_give_up(s);
}

void srv_changes_finish(server *s) {
    while (s->changes) {
        free_change(s->changes);
    }
    ollama_loads_finish(s);
}

/* Replies in any case, perhaps later. */
static void start_change(srv_exchange *x, change *c) {
    c->task.run = run_change;
    c->task.done = change_done;
    c->s = x->s;
    c->x = x;
    if (!x->s->registry) {
        set(c, 409, "Conflict", "no_registry", "this server has no registry");
    } else if (x->s->drain_until) {
        set(c, 503, "ServiceUnavailable", "shutting_down", "the server is shutting down");
    } else if (c->loads && x->s->n_loads >= SRV_LOADS_MOST) {
        set(c, 429, "TooManyRequests", "queue_full", "%d adapters are being loaded already", SRV_LOADS_MOST);
    } else {
        x->user = c;
        x->gone = change_gone;
        if (srv_work_add(x->s->work, &c->task)) {
            DL_PREPEND(x->s->changes, c);
            c->counted = c->loads;
            x->s->n_loads += c->loads;
            return;
        }
        x->gone = NULL;
        set(c, 429, "TooManyRequests", "queue_full", "too many changes of adapters are waiting");
    }
    reply_change(x, c);
    free_change(c);
}

/* ---- load and unload, on the worker ------------------------------------------------------------------- */

/* In memory, or on its way. */
static bool is_resident(const change *c) {
    graft_loaded_list *list = NULL;
    bool found = false;
    if (graft_loaded_adapters(&list, c->s->g, NULL) != 0) {
        return false;
    }
    for (size_t i = 0; i < list->n && !found; i++) {
        const graft_loaded *a = &list->items[i];
        found = strcmp(a->project, c->name.project) == 0 && strcmp(a->adapter, c->name.adapter) == 0 &&
                strcmp(a->state, "draining") != 0;
    }
    graft_loaded_list_free(list);
    return found;
}

static bool as_expected(change *c, const graft_registered_list *list) {
    const char *now = list ? list->items[0].generation : "";
    if (!*c->expected || strcmp(c->expected, now) == 0) {
        return true;
    }
    set(c, 409, "Conflict", "lora_generation_mismatch", "The lora adapter '%s' has the generation '%s', not '%s'.", c->text,
        now, c->expected);
    return false;
}

/* The path as the system resolves it, below the server's root. False: the change has failed. */
static bool resolve(change *c) {
    char found[PATH_MAX];
    if (!*c->s->root) {
        set(c, 403, "PermissionDenied", "outside_root",
            "adapters are not loaded by path here: the server was started without a folder for them");
        return false;
    }
    if (c->path[0] != '/') { /* as the registry has it: a relative path begins at the folder */
        char whole[PATH_MAX];
        if ((size_t)snprintf(whole, sizeof whole, "%s/%s", c->s->root, c->path) >= sizeof whole) {
            set(c, 404, "NotFoundError", "adapter_file_missing", "No adapter found for %s", c->text);
            return false;
        }
        gr_free(c->path);
        c->path = gr_strdup(whole);
    }
    if (!c->path || !realpath(c->path, found)) {
        bool absent = !c->path || errno == ENOENT || errno == ENOTDIR;
        set(c, absent ? 404 : 400, absent ? "NotFoundError" : "BadRequestError", absent ? "adapter_file_missing" : "not_readable",
            absent ? "No adapter found for %s" : "The path of '%s' cannot be followed", c->text);
        return false;
    }
    if (!gr_path_below(found, c->s->root)) {
        set(c, 403, "PermissionDenied", "outside_root",
            "the path of '%s' leads out of the folder that adapters may come from", c->text);
        return false;
    }
    gr_free(c->path);
    c->path = gr_strdup(found);
    if (!c->path) {
        set(c, 503, "InternalServerError", "out_of_memory", "memory is out");
    }
    return c->path != NULL;
}

static void set_not_found(change *c) {
    set(c, 404, "NotFoundError", "not_found", "The lora adapter '%s' cannot be found.", c->text);
}

static void set_error(change *c, const graft_error *err) {
    int http = graft_error_http(err->code);
    if (http == 404) {
        set(c, 404, "NotFoundError", graft_error_name(err->code), "No adapter found for %s: %s", c->text, err->message);
    } else if (http >= 500) {
        set(c, http, "InternalServerError", graft_error_name(err->code), "%s", err->message);
    } else {
        set(c, http == 409 ? 409 : 400, "BadRequestError", graft_error_name(err->code), "%s", err->message);
    }
}

/* The first step's last act: `after` runs once the load has ended. */
static void load(change *c, void (*after)(change *c)) {
    graft_error err = {0};
    c->after = after;
    if (srv_load_start(&c->load, &c->s->loop, c->s->g, c->name.project, c->name.adapter, on_loaded, c, &err) != 0) {
        c->after = NULL;
        c->load_error = err;
        after(c);
    }
}

/* ---- the second steps: their load has ended, well or not */

static void after_add(change *c) {
    if (c->load_error.code == 0) {
        set(c, 200, NULL, NULL, "Success: LoRA adapter '%s' added successfully.", c->text);
        return;
    }
    set_error(c, &c->load_error);
    graft_registered_list *list = srv_registered(c->s, &c->name);
    bool ours = list && strcmp(list->items[0].path, c->path) == 0;
    graft_registered_list_free(list);
    if (ours && c->fresh) { /* a name that has never worked is not kept */
        graft_registry_adapter_remove(c->s->registry, c->name.project, c->name.adapter, NULL);
    } else if (ours && c->replaced) { /* what it stood for goes on */
        graft_registry_adapter_add(c->s->registry, c->name.project, c->name.adapter, c->replaced, GRAFT_ADD_REPLACE, NULL);
    }
}

static void after_load(change *c) {
    if (c->load_error.code == GRAFT_E_NOT_FOUND || c->load_error.code == GRAFT_E_BAD_NAME) {
        set_not_found(c);
    } else if (c->load_error.code) {
        set_error(c, &c->load_error);
    } else {
        set(c, 200, NULL, NULL, "Success: LoRA adapter '%s' loaded successfully.", c->text);
    }
}

static void after_switch(change *c) {
    after_load(c);
    c->switched = c->status == 200;
}

/* ---- the first steps */

static void act_load(change *c) {
    graft_error err = {0};
    if (!resolve(c)) {
        return;
    }
    if (strcmp(c->name.project, c->s->base_id) == 0) { /* `model` would stand for two things */
        set(c, 400, "InvalidUserInput", "bad_name", "'%s' is what the base is called here", c->text);
        return;
    }
    graft_registered_list *list = srv_registered(c->s, &c->name);
    bool known = list != NULL, same = known && strcmp(list->items[0].path, c->path) == 0;
    bool good = as_expected(c, list);
    c->replaced = known && !same ? gr_strdup(list->items[0].path) : NULL;
    graft_registered_list_free(list);
    if (!good) {
        return;
    }
    if (known && !c->in_place && (!same || is_resident(c))) {
        set(c, 400, "InvalidUserInput", "conflict",
            "The lora adapter '%s' has already been loaded. If you want to load the adapter in place, "
            "set 'load_inplace' to True.", c->text);
        return;
    }
    unsigned flags = GRAFT_ADD_PROJECT | (c->in_place ? GRAFT_ADD_REPLACE : 0);
    int code = graft_registry_adapter_add_below(c->s->registry, c->s->root, c->name.project, c->name.adapter, c->path, flags,
                                                &err);
    if (!code && same && c->in_place) { /* the same place: its files may be others now */
        code = graft_registry_adapter_reload(c->s->registry, c->name.project, c->name.adapter, NULL, &err);
    }
    c->fresh = !known;
    c->load_error = err;
    if (code) {
        after_add(c);
    } else {
        load(c, after_add);
    }
}

static void act_unload(change *c) {
    graft_error err = {0};
    graft_registered_list *list = srv_registered(c->s, &c->name);
    bool known = list != NULL;
    bool good = as_expected(c, list);
    graft_registered_list_free(list);
    if (!good) {
        return;
    }
    int code = known ? graft_unload_adapter(c->s->g, c->name.project, c->name.adapter, &c->freed, &c->pending, &err)
                     : GRAFT_E_NOT_FOUND;
    if (known && c->unregister) {
        code = graft_registry_adapter_remove(c->s->registry, c->name.project, c->name.adapter, &err);
    }
    if (code == GRAFT_E_NOT_FOUND) {
        set_not_found(c);
    } else if (code) {
        set_error(c, &err);
    } else {
        set(c, 200, NULL, NULL, "Success: LoRA adapter '%s' removed successfully.", c->text);
    }
}

/* A registered adapter by its name. With in_place its files may be others than those that were registered. */
static void act_load_named(change *c) {
    if (c->in_place &&
        graft_registry_adapter_reload(c->s->registry, c->name.project, c->name.adapter, NULL, &c->load_error) != 0) {
        after_load(c);
    } else {
        load(c, after_load);
    }
}

/* Loads it, too: whoever switches means to use it, and learns at once if that cannot be. */
static void act_switch(change *c) {
    load(c, after_switch);
}

static void act_pin(change *c) {
    graft_error err = {0};
    if (graft_pin_adapter(c->s->g, c->name.project, c->name.adapter, c->pinned, &err) == 0) {
        set(c, 200, NULL, NULL, "Success: LoRA adapter '%s' %s.", c->text, c->pinned ? "pinned" : "unpinned");
    } else if (err.code == GRAFT_E_NOT_FOUND || err.code == GRAFT_E_BAD_NAME) {
        set_not_found(c);
    } else {
        set_error(c, &err);
    }
}

/* ---- their requests ----------------------------------------------------------------------------------- */

/* A string field; "" if absent or null. NULL: of another type or longer than `most`. */
static const char *text_field(json_t *body, const char *key, size_t most) {
    json_t *v = json_object_get(body, key);
    if (!v || json_is_null(v)) {
        return "";
    }
    return json_is_string(v) && json_string_length(v) <= most ? json_string_value(v) : NULL;
}

static bool bad_field(srv_fault *f, const char *key) {
    return srv_fault_set(f, 400, "invalid_value", key, "%s: a value of another type or size is needed", key);
}

/* The name that a change is about; whether it can be one is the registry's to say. */
static bool take_name(change *c, const char *text) {
    snprintf(c->text, sizeof c->text, "%.*s", (int)sizeof c->text - 1, text); /* for messages */
    return srv_name_split(&c->name, text);
}

static bool take_change(change *c, json_t *body, srv_fault *f) {
    const char *name = text_field(body, "lora_name", 2 * GRAFT_NAME_SIZE), *path = text_field(body, "lora_path", 4000);
    const char *expected = text_field(body, "expected_generation", 64);
    json_t *in_place = json_object_get(body, "load_inplace"), *unregister = json_object_get(body, "unregister");
    if (!name || !path || !expected) {
        return bad_field(f, !name ? "lora_name" : !path ? "lora_path" : "expected_generation");
    }
    if ((in_place && !json_is_boolean(in_place)) || (unregister && !json_is_boolean(unregister))) {
        return bad_field(f, in_place && !json_is_boolean(in_place) ? "load_inplace" : "unregister");
    }
    c->in_place = json_is_true(in_place);
    c->unregister = json_is_true(unregister);
    snprintf(c->expected, sizeof c->expected, "%s", expected);
    c->path = gr_strdup(path);
    c->status = *name && !take_name(c, name) ? 404 : 0;
    return c->path || srv_no_memory(f);
}

static change *new_change(srv_exchange *x, void (*act)(change *c)) {
    change *c = gr_zalloc(sizeof *c);
    if (!c) {
        srv_reply_no_memory(x);
        return NULL;
    }
    c->act = act;
    c->loads = act == act_load || act == act_load_named || act == act_switch;
    return c;
}

/* NULL: it was answered. */
static change *parse_change(srv_exchange *x, void (*act)(change *c)) {
    srv_fault f;
    json_t *body = srv_parse_body(x, &f);
    change *c = body ? new_change(x, act) : NULL;
    if (!body) {
        srv_reply_fault(x, &f);
    } else if (c && !take_change(c, body, &f)) {
        srv_reply_fault(x, &f);
        free_change(c);
        c = NULL;
    }
    json_decref(body);
    return c;
}

static void refuse_change(srv_exchange *x, change *c) {
    reply_change(x, c);
    free_change(c);
}

void srv_post_load(srv_exchange *x) {
    change *c = parse_change(x, act_load);
    if (!c) {
        return;
    }
    if (!*c->text || !*c->path) {
        set(c, 400, "InvalidUserInput", "missing_field", "Both 'lora_name' and 'lora_path' must be provided.");
        refuse_change(x, c);
    } else if (c->status) {
        set(c, 400, "InvalidUserInput", "bad_name",
            "'lora_name' must be PROJECT or PROJECT/ADAPTER, each of 1 to 128 of A-Z a-z 0-9 . _ -");
        refuse_change(x, c);
    } else {
        start_change(x, c);
    }
}

void srv_post_unload(srv_exchange *x) {
    change *c = parse_change(x, act_unload);
    if (!c) {
        return;
    }
    if (!*c->text) {
        set(c, 400, "InvalidUserInput", "missing_field", "'lora_name' needs to be provided to unload a LoRA adapter.");
        refuse_change(x, c);
    } else if (c->status) {
        set_not_found(c);
        refuse_change(x, c);
    } else {
        start_change(x, c);
    }
}

/* A change of what the path names. */
static void start_named(srv_exchange *x, change *c, const char *name) {
    if (take_name(c, name)) {
        start_change(x, c);
        return;
    }
    set_not_found(c);
    refuse_change(x, c);
}

static void start_pin(srv_exchange *x, bool pinned) {
    change *c = new_change(x, act_pin);
    if (c) {
        c->pinned = pinned;
        start_named(x, c, x->capture);
    }
}

void srv_post_pin(srv_exchange *x) {
    start_pin(x, true);
}

void srv_post_unpin(srv_exchange *x) {
    start_pin(x, false);
}

/* A body with one flag, or none at all. False: it was answered. */
static bool take_flag(srv_exchange *x, const char *key, bool *out) {
    srv_fault f;
    *out = false;
    if (x->body_length == 0) {
        return true;
    }
    json_t *body = srv_parse_body(x, &f);
    json_t *v = json_object_get(body, key);
    bool good = body && (!v || json_is_boolean(v) || bad_field(&f, key));
    *out = json_is_true(v);
    json_decref(body);
    if (!good) {
        srv_reply_fault(x, &f);
    }
    return good;
}

void srv_post_load_named(srv_exchange *x) {
    bool reload;
    change *c = take_flag(x, "reload", &reload) ? new_change(x, act_load_named) : NULL;
    if (c) {
        c->in_place = reload;
        start_named(x, c, x->capture);
    }
}

void srv_post_unload_named(srv_exchange *x) {
    bool unregister;
    change *c = take_flag(x, "unregister", &unregister) ? new_change(x, act_unload) : NULL;
    if (c) {
        c->unregister = unregister;
        start_named(x, c, x->capture);
    }
}

/* ---- the current project ------------------------------------------------------------------------------ */

static void reply_current(srv_exchange *x, const char *project, const char *adapter) {
    srv_writer w;
    char id[SRV_ID_SIZE];
    srv_writer_init(&w);
    srv_open(&w, '{');
    srv_put_string(&w, "id", srv_name_id(id, project, adapter));
    srv_put_string(&w, "project", project);
    srv_put_string(&w, "adapter", adapter);
    srv_close(&w, '}');
    srv_reply_json(x, 200, &w);
}

void srv_get_current(srv_exchange *x) {
    const srv_default *d = srv_defaults_current(x->s);
    if (d && srv_may(x, d->project)) {
        reply_current(x, d->project, d->adapter);
    } else {
        srv_reply_error(x, 404, "not_found", NULL, "no project is the current one: requests without `model` get the base");
    }
}

void srv_post_current(srv_exchange *x) {
    srv_fault f;
    json_t *body = srv_parse_body(x, &f);
    const char *project = text_field(body, "project", GRAFT_NAME_SIZE - 1),
               *adapter = text_field(body, "adapter", GRAFT_NAME_SIZE - 1);
    bool good = body && ((project && *project) || bad_field(&f, "project")) && (adapter || bad_field(&f, "adapter"));
    change *c = good ? new_change(x, act_switch) : NULL;
    if (!good) {
        srv_reply_fault(x, &f);
    } else if (c) {
        char name[SRV_ID_SIZE];
        snprintf(name, sizeof name, "%s%s%s", project, *adapter ? "/" : "", adapter);
        start_named(x, c, name);
    }
    json_decref(body);
}

/* ---- lists -------------------------------------------------------------------------------------------- */

static void put_known(srv_writer *w, const char *key, const char *text) {
    srv_put_string(w, key, *text ? text : NULL);
}

/* The version in memory: the one that new requests get, before one that is on its way out. */
static const graft_loaded *in_memory(const graft_loaded_list *list, const graft_registered *a) {
    const graft_loaded *found = NULL;
    for (size_t i = 0; list && i < list->n; i++) {
        const graft_loaded *l = &list->items[i];
        if (strcmp(l->project, a->project) == 0 && strcmp(l->adapter, a->adapter) == 0 &&
            (!found || strcmp(found->state, "draining") == 0)) {
            found = l;
        }
    }
    return found;
}

static void write_row(srv_writer *w, const srv_exchange *x, const graft_registered *a, const graft_loaded *l, size_t index) {
    char id[SRV_ID_SIZE];
    srv_open(w, '{');
    srv_put_string(w, "id", srv_name_id(id, a->project, a->adapter));
    srv_put_string(w, "object", "lora_adapter");
    srv_put_integer(w, "index", (int64_t)index);
    srv_put_string(w, "project", a->project);
    srv_put_string(w, "adapter", a->adapter);
    srv_put_string(w, "source", srv_path_shown(x, a->path));
    put_known(w, "generation", a->generation);
    put_known(w, "format", a->format);
    srv_put_integer(w, "rank", a->rank);
    srv_put_string(w, "state", graft_registered_state_name(a->state));
    srv_put_string(w, "memory", l ? l->state : "absent");
    put_known(w, "loaded_generation", l ? l->generation : "");
    srv_put_integer(w, "bytes", l ? (int64_t)l->bytes : 0);
    srv_put_integer(w, "file_bytes", (int64_t)a->file_bytes);
    srv_put_integer(w, "leases", l ? (int64_t)l->leases : 0);
    srv_put_bool(w, "pinned", a->pinned);
    srv_put_integer(w, "requests", (int64_t)a->history.requests);
    srv_put_integer(w, "last_used", a->history.last_used);
    srv_key(w, "error");
    if (a->error_code) {
        srv_open(w, '{');
        srv_put_string(w, "code", graft_error_name(a->error_code));
        srv_put_string(w, "message", a->error);
        srv_close(w, '}');
    } else {
        srv_null(w);
    }
    srv_close(w, '}');
}

static void write_adapters(srv_writer *w, const srv_exchange *x) {
    const server *s = x->s;
    graft_registered_list *all = srv_registered(s, NULL);
    graft_loaded_list *loaded = NULL;
    if (s->registry) {
        graft_loaded_adapters(&loaded, s->g, NULL);
    }
    size_t index = 0; /* among those that the key may see: the others' number is not its business */
    for (size_t i = 0; all && i < all->n; i++) {
        if (srv_may(x, all->items[i].project)) {
            write_row(w, x, &all->items[i], in_memory(loaded, &all->items[i]), index++);
        }
    }
    graft_registered_list_free(all);
    graft_loaded_list_free(loaded);
}

static void write_projects(srv_writer *w, const srv_exchange *x) {
    const server *s = x->s;
    graft_project_list *list = NULL;
    if (s->registry) {
        graft_registry_project_list(&list, s->registry, NULL, NULL);
    }
    for (size_t i = 0; list && i < list->n; i++) {
        const graft_project_info *p = &list->items[i];
        if (!srv_may(x, p->name)) {
            continue;
        }
        srv_open(w, '{');
        srv_put_string(w, "id", p->name);
        srv_put_string(w, "object", "project");
        srv_put_integer(w, "created", p->created);
        srv_put_integer(w, "adapters", (int64_t)p->n_adapters);
        srv_put_integer(w, "file_bytes", (int64_t)p->file_bytes);
        srv_put_integer(w, "requests", (int64_t)p->history.requests);
        srv_put_integer(w, "tokens", (int64_t)p->history.tokens);
        srv_put_integer(w, "last_used", p->history.last_used);
        srv_close(w, '}');
    }
    graft_project_list_free(list);
}

static void reply_list(srv_exchange *x, void (*write)(srv_writer *w, const srv_exchange *x)) {
    srv_writer w;
    srv_writer_init(&w);
    srv_open(&w, '{');
    srv_put_string(&w, "object", "list");
    srv_key(&w, "data");
    srv_open(&w, '[');
    write(&w, x);
    srv_close(&w, ']');
    srv_close(&w, '}');
    srv_reply_json(x, 200, &w);
}

void srv_get_adapters(srv_exchange *x) {
    reply_list(x, write_adapters);
}

void srv_get_projects(srv_exchange *x) {
    reply_list(x, write_projects);
}

/* ---- health ------------------------------------------------------------------------------------------- */

/* 200 while requests are answered. Reasons are for those with a key: they hold numbers and names. */
void srv_get_health(srv_exchange *x) {
    graft_health h;
    srv_writer w;
    graft_health_check(x->s->g, &h);
    bool draining = x->s->drain_until != 0, good = h.state != GRAFT_UNHEALTHY && !draining;
    srv_writer_init(&w);
    srv_open(&w, '{');
    srv_put_string(&w, "status", draining ? "draining" : good ? "ok" : "unhealthy");
    srv_put_string(&w, "state", graft_health_name(h.state));
    srv_key(&w, "reasons");
    srv_open(&w, '[');
    for (size_t i = 0; i < h.n_reasons; i++) {
        srv_string(&w, h.reasons[i].name);
    }
    srv_close(&w, ']');
    srv_close(&w, '}');
    srv_reply_json(x, good ? 200 : 503, &w);
}
