/*
 * Keys over HTTP, for those whose key is for everything: list, make, remove. Changes run on the worker, as those of adapters
 * do: nobody else changes keys between looking and acting. Whoever asks for keys has one for everything: the first must be
 * such a one, and the last such one goes only when nobody is asked any more.
 */
#include "auth.h"
#include "request.h"
#include "route.h"

#include "base/memory.h"

#include <openssl/crypto.h>
#include <string.h>

typedef struct key_change {
    srv_task task; /* first */
    server *s;
    srv_exchange *x; /* NULL: the client left */
    bool add;
    json_t *body;    /* add: the next two are in it */
    const char *name;
    const char *projects[GRAFT_KEY_PROJECTS];
    size_t n_projects;
    char capture[GRAFT_NAME_SIZE]; /* remove: the name */
    /* what came of it */
    srv_fault fault; /* status 0 = it was done */
    char secret[GRAFT_KEY_SIZE];
    graft_key_list *made;
} key_change;

static void free_change(key_change *c) {
    OPENSSL_cleanse(c->secret, sizeof c->secret);
    graft_key_list_free(c->made);
    json_decref(c->body);
    gr_free(c);
}

/* ---- replies ------------------------------------------------------------------------------------------ */

/* Within the object. */
static void write_scope(srv_writer *w, const graft_key *k) {
    srv_put_bool(w, "admin", k->admin);
    srv_key(w, "projects");
    srv_open(w, '[');
    for (size_t i = 0; i < k->n_projects; i++) {
        srv_string(w, k->projects[i]);
    }
    srv_close(w, ']');
    srv_put_integer(w, "created", k->created);
}

void srv_get_keys(srv_exchange *x) {
    srv_writer w;
    graft_key_list *list = NULL;
    graft_error err = {0};
    if (x->s->registry && graft_registry_key_list(&list, x->s->registry, NULL, &err) != 0) {
        srv_reply_error(x, graft_error_http(err.code), graft_error_name(err.code), NULL, "%s", err.message);
        return;
    }
    srv_writer_init(&w);
    srv_open(&w, '{');
    srv_put_string(&w, "object", "list");
    srv_key(&w, "data");
    srv_open(&w, '[');
    for (size_t i = 0; list && i < list->n; i++) {
        srv_open(&w, '{');
        srv_put_string(&w, "id", list->items[i].name);
        srv_put_string(&w, "object", "key");
        write_scope(&w, &list->items[i]);
        srv_close(&w, '}');
    }
    srv_close(&w, ']');
    srv_close(&w, '}');
    graft_key_list_free(list);
    srv_reply_json(x, 200, &w);
}

static void reply_change(srv_exchange *x, key_change *c) {
    srv_writer w;
    if (c->fault.status) {
        srv_reply_fault(x, &c->fault);
        return;
    }
    srv_writer_init(&w);
    srv_open(&w, '{');
    srv_put_string(&w, "id", c->name);
    srv_put_string(&w, "object", "key");
    if (c->add) {
        srv_put_string(&w, "key", c->secret);
        write_scope(&w, &c->made->items[0]);
    } else {
        srv_put_bool(&w, "deleted", true);
    }
    srv_close(&w, '}');
    srv_header(x, "Cache-Control", "no-store");
    bool good = !w.out.failed;
    if (good) {
        srv_reply(x, 200, "application/json", w.out.data, w.out.length);
    } else {
        srv_reply_no_memory(x);
    }
    if (w.out.data) {
        OPENSSL_cleanse(w.out.data, w.out.capacity);
    }
    srv_writer_finish(&w);
}

/* ---- on the worker ------------------------------------------------------------------------------------ */

static void set_error(key_change *c, const graft_error *err) {
    char quoted[GR_QUOTE_SIZE];
    bool absent = err->code == GRAFT_E_NOT_FOUND || (!c->add && err->code == GRAFT_E_BAD_NAME);
    if (absent) {
        srv_fault_set(&c->fault, 404, "not_found", NULL, "There is no key `%s`.", gr_quote(quoted, c->name, strlen(c->name)));
    } else {
        srv_fault_from(&c->fault, err);
    }
    c->fault.no_retry = c->fault.status == 409; /* clients try again after 409 by themselves, and it would not help */
}

static void refuse(key_change *c, const char *code, const char *message) {
    srv_fault_set(&c->fault, 409, code, NULL, "%s", message);
    c->fault.no_retry = true;
}

/* How many of the registry's keys there are, and how many are for everything. False: the change has failed. */
static bool count_keys(key_change *c, size_t *all, size_t *admins, bool *is_admin) {
    graft_key_list *list;
    graft_error err = {0};
    if (graft_registry_key_list(&list, c->s->registry, NULL, &err) != 0) {
        set_error(c, &err);
        return false;
    }
    *all = list->n;
    *admins = 0;
    *is_admin = false;
    for (size_t i = 0; i < list->n; i++) {
        *admins += list->items[i].admin;
        *is_admin = *is_admin || (list->items[i].admin && strcmp(list->items[i].name, c->name) == 0);
    }
    graft_key_list_free(list);
    return true;
}

static void run_add(srv_task *t) {
    key_change *c = (key_change *)(void *)t; /* its first member */
    graft_error err = {0};
    size_t all, admins;
    bool is_admin;
    if (!count_keys(c, &all, &admins, &is_admin)) {
        return;
    }
    if (!c->s->o.key && admins == 0 && c->n_projects) {
        refuse(c, "admin_key_first",
               "the first key must be for everything, without projects: from then on keys are asked for, also by this call");
        return;
    }
    int code = graft_registry_key_add(c->secret, c->s->registry, c->name, c->n_projects ? c->projects : NULL, c->n_projects,
                                      &err);
    if (!code && (code = graft_registry_key_list(&c->made, c->s->registry, c->name, &err)) != 0) {
        graft_registry_key_remove(c->s->registry, c->name, NULL); /* nobody would ever hear its secret */
    }
    if (code) {
        set_error(c, &err);
    }
}

static void run_remove(srv_task *t) {
    key_change *c = (key_change *)(void *)t;
    graft_error err = {0};
    size_t all, admins;
    bool is_admin;
    if (!count_keys(c, &all, &admins, &is_admin)) {
        return;
    }
    if (!c->s->o.key && is_admin && admins == 1 && (all > 1 || !srv_auth_may_be_open(c->s))) {
        refuse(c, "last_admin_key", "this is the last key for everything, and others would be asked for one: make another first");
    } else if (graft_registry_key_remove(c->s->registry, c->name, &err) != 0) {
        set_error(c, &err);
    }
}

static void change_done(srv_task *t) {
    key_change *c = (key_change *)(void *)t;
    if (c->x) {
        reply_change(c->x, c);
    }
    free_change(c);
}

static void change_gone(srv_exchange *x, void *user) {
    (void)x;
    ((key_change *)user)->x = NULL;
}

/* ---- their requests ----------------------------------------------------------------------------------- */

/* NULL: it was answered. */
static key_change *new_change(srv_exchange *x, void (*run)(srv_task *t)) {
    key_change *c = gr_zalloc(sizeof *c);
    if (!c) {
        srv_reply_no_memory(x);
        return NULL;
    }
    c->task.run = run;
    c->task.done = change_done;
    c->s = x->s;
    c->x = x;
    return c;
}

/* Replies in any case, perhaps later. */
static void start_change(srv_exchange *x, key_change *c) {
    if (!x->s->registry) {
        refuse(c, "no_registry", "this server has no registry");
    } else if (x->s->drain_until) {
        srv_shutting_down(&c->fault);
    } else {
        x->user = c;
        x->gone = change_gone;
        if (srv_work_add(x->s->work, &c->task)) {
            return;
        }
        x->gone = NULL;
        srv_fault_set(&c->fault, 429, "queue_full", NULL, "too many changes are waiting");
    }
    reply_change(x, c);
    free_change(c);
}

/* A list that is there must name something: who meant no project did not mean everything. */
static bool take_projects(key_change *c, json_t *list) {
    size_t n = json_array_size(list);
    if (!json_is_array(list) || n < 1 || n > GRAFT_KEY_PROJECTS) {
        return srv_fault_set(&c->fault, 400, "invalid_value", "projects", "projects: a list of 1 to %d names is needed",
                             GRAFT_KEY_PROJECTS);
    }
    for (size_t i = 0; i < n; i++) {
        c->projects[i] = json_string_value(json_array_get(list, i));
        if (!c->projects[i]) {
            return srv_fault_set(&c->fault, 400, "invalid_value", "projects", "projects: names are strings");
        }
    }
    c->n_projects = n;
    return true;
}

/* Unknown fields are refused: with a misspelt `projects` the key would be for everything. */
static bool take_body(key_change *c) {
    const char *key;
    json_t *value;
    char quoted[GR_QUOTE_SIZE];
    json_object_foreach(c->body, key, value) {
        if (strcmp(key, "name") != 0 && strcmp(key, "projects") != 0) {
            return srv_fault_set(&c->fault, 400, "unknown_field", NULL, "%s: not a field of a key",
                                 gr_quote(quoted, key, strlen(key)));
        }
    }
    c->name = json_string_value(json_object_get(c->body, "name"));
    if (!c->name) {
        return srv_fault_set(&c->fault, 400, "invalid_value", "name", "name: a string is needed");
    }
    json_t *projects = json_object_get(c->body, "projects");
    return !projects || take_projects(c, projects);
}

void srv_post_key(srv_exchange *x) {
    key_change *c = new_change(x, run_add);
    if (!c) {
        return;
    }
    c->add = true;
    c->body = srv_parse_body(x, &c->fault);
    if (c->body && take_body(c)) {
        start_change(x, c);
        return;
    }
    srv_reply_fault(x, &c->fault);
    free_change(c);
}

void srv_delete_key(srv_exchange *x) {
    char quoted[GR_QUOTE_SIZE];
    key_change *c = new_change(x, run_remove);
    if (!c) {
        return;
    }
    c->name = c->capture;
    if (strlen(x->capture) >= sizeof c->capture) {
        srv_reply_error(x, 404, "not_found", NULL, "There is no key `%s`.", gr_quote(quoted, x->capture, strlen(x->capture)));
        free_change(c);
        return;
    }
    strcpy(c->capture, x->capture);
    start_change(x, c);
}
