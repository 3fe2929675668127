/* How long adapters stay in memory when nobody asks for them. */
#include "keep_alive.h"

#include "request.h"

#include "base/clock.h"
#include "base/memory.h"

#define uthash_malloc(n) gr_alloc(n)
#define uthash_free(p, n) gr_free(p)
#define HASH_NONFATAL_OOM 1
#include <uthash.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { KEPT_MOST = 1024, CHORES_MOST = 16, LOOK_MS = 200 };

struct srv_kept {
    char id[SRV_ID_SIZE]; /* PROJECT/ADAPTER */
    int64_t keep_ms;      /* or SRV_KEEP_FOREVER */
    int64_t since_us;     /* when it was said */
    bool pin;             /* a lease shall hold it */
    graft_lease *lease;   /* does */
    UT_hash_handle hh;
};

/* ---- what was said ------------------------------------------------------------------------------------- */

static const struct unit {
    const char *name;
    double ms;
} units[] = {{"ns", 1e-6}, {"us", 1e-3}, {"\xc2\xb5s", 1e-3}, {"\xce\xbcs", 1e-3},
             {"ms", 1},    {"s", 1e3},   {"m", 6e4},           {"h", 3.6e6}};

/* One number with its unit, as "1.5h": how many bytes, 0 if it is none. */
static size_t take_part(const char *text, double *ms) {
    size_t whole = strspn(text, "0123456789"), dot = text[whole] == '.', best = 0;
    size_t fraction = dot ? strspn(text + whole + 1, "0123456789") : 0, digits = whole + dot + fraction;
    if (whole + fraction == 0) {
        return 0;
    }
    for (size_t i = 0; i < sizeof units / sizeof units[0]; i++) {
        size_t n = strlen(units[i].name);
        if (strncmp(text + digits, units[i].name, n) == 0 && n > best) { /* "ms" before "m" */
            best = n;
            *ms = strtod(text, NULL) * units[i].ms;
        }
    }
    return best ? digits + best : 0;
}

/* NaN if it is no duration. */
static double parse_duration(const char *text) {
    double sign = *text == '-' ? -1 : 1, sum = 0, part = 0;
    text += *text == '-' || *text == '+';
    if (strcmp(text, "0") == 0) {
        return 0;
    }
    size_t n = take_part(text, &part);
    for (; n; n = *text ? take_part(text, &part) : 0) {
        sum += part;
        text += n;
        if (!*text) {
            return sign * sum;
        }
    }
    return (double)NAN;
}

bool srv_keep_alive_take(json_t *v, int64_t *ms, srv_fault *f) {
    double n = json_is_number(v)   ? json_number_value(v) * 1e3
               : json_is_string(v) ? parse_duration(json_string_value(v))
                                   : (double)NAN;
    if (!(fabs(n) <= 9e15)) { /* some 292,000 years, and exact as a double */
        return srv_bad(f, "keep_alive", "a duration such as \"5m\", or a number of seconds is needed");
    }
    *ms = n < 0 ? SRV_KEEP_FOREVER : (int64_t)ceil(n);
    return true;
}

/* ---- the table ----------------------------------------------------------------------------------------- */

static const char *id_of(char out[SRV_ID_SIZE], const char *project, const char *adapter) {
    snprintf(out, SRV_ID_SIZE, "%s/%s", project, adapter);
    return out;
}

static srv_kept *find(const server *s, const char *id) {
    srv_kept *k;
    HASH_FIND_STR(s->keep_alive.table, id, k);
    return k;
}

static void drop(server *s, srv_kept *k) {
    HASH_DEL(s->keep_alive.table, k);
    gr_free(k);
}

/* Makes room: who was spoken of first is forgotten, unless a lease is behind it. False if there is none. */
static bool make_room(server *s) {
    srv_kept *k, *next;
    if (HASH_COUNT(s->keep_alive.table) < KEPT_MOST) {
        return true;
    }
    HASH_ITER(hh, s->keep_alive.table, k, next) {
        if (!k->pin && !k->lease) {
            drop(s, k);
            return true;
        }
    }
    return false;
}

static srv_kept *find_or_add(server *s, const char *id) {
    srv_kept *k = find(s, id);
    if (k || !make_room(s)) {
        return k;
    }
    k = gr_zalloc(sizeof *k);
    if (k) {
        snprintf(k->id, sizeof k->id, "%s", id);
        HASH_ADD_STR(s->keep_alive.table, id, k);
        if (!k->hh.tbl) { /* memory is out */
            gr_free(k);
            k = NULL;
        }
    }
    return k;
}

void srv_keep_alive_note(const srv_exchange *x, const srv_request *r) {
    char id[SRV_ID_SIZE];
    for (size_t i = 0; r->has_keep && i < r->n_uses; i++) {
        srv_kept *k = find_or_add(x->s, id_of(id, r->names[i].project, r->names[i].adapter));
        if (!k || (k->pin && !x->admin)) {
            continue; /* without memory it is as if nothing had been said; an admin's word is not for a project to take back */
        }
        k->keep_ms = r->keep_ms;
        k->since_us = gr_now_us();
        k->pin = r->keep_ms == SRV_KEEP_FOREVER && x->admin;
    }
}

/* ---- the worker's part --------------------------------------------------------------------------------- */

typedef struct chore {
    srv_task task; /* first */
    server *s;
    struct item {
        srv_name name;
        enum { UNLOAD, PIN, RELEASE } what;
        int64_t idle_ms;
        graft_lease *lease; /* RELEASE: this one. PIN: the one it got, or NULL */
        bool unloaded;
    } items[CHORES_MOST];
    int n;
} chore;

static bool is_idle(const graft_loaded *l, int64_t idle_ms) {
    return strcmp(l->state, "resident") == 0 && l->leases == 0 && !l->pinned && l->idle_ms >= (double)idle_ms;
}

bool srv_unload_idle(server *s, const srv_name *name, int64_t idle_ms) {
    graft_loaded_list *list = NULL;
    bool idle = false;
    if (graft_loaded_adapters(&list, s->g, NULL) != 0) {
        return false;
    }
    for (size_t i = 0; i < list->n && !idle; i++) {
        const graft_loaded *l = &list->items[i];
        idle = strcmp(l->project, name->project) == 0 && strcmp(l->adapter, name->adapter) == 0 && is_idle(l, idle_ms);
    }
    graft_loaded_list_free(list);
    return idle && graft_unload_adapter(s->g, name->project, name->adapter, NULL, NULL, NULL) == 0;
}

static graft_lease *take_lease(server *s, const srv_name *name) {
    graft_lease_options o = graft_lease_options_default();
    graft_lease *lease = NULL;
    graft_error err;
    o.project = name->project;
    o.adapter = name->adapter;
    o.fallback = GRAFT_FALLBACK_ERROR;
    o.wait_ms = 0;
    if (graft_lease_take(&lease, s->g, &o, &err) != 0) {
        gr_log_line(&s->log, GRAFT_LOG_WARN, "%s/%s is not kept in memory: %s", name->project, name->adapter, err.message);
    }
    return lease;
}

static void run_chore(srv_task *t) {
    chore *c = (chore *)(void *)t; /* its first member */
    for (int i = 0; i < c->n; i++) {
        struct item *item = &c->items[i];
        switch (item->what) {
        case UNLOAD: item->unloaded = srv_unload_idle(c->s, &item->name, item->idle_ms); break;
        case PIN: item->lease = take_lease(c->s, &item->name); break;
        case RELEASE: graft_lease_release(item->lease); break;
        }
    }
}

/* Somebody may have said something else meanwhile: then the next tick gives the lease back. */
static void chore_done(srv_task *t) {
    chore *c = (chore *)(void *)t;
    char id[SRV_ID_SIZE];
    for (int i = 0; i < c->n; i++) {
        struct item *item = &c->items[i];
        srv_kept *k = find(c->s, id_of(id, item->name.project, item->name.adapter));
        if (item->what == PIN && k) {
            k->lease = item->lease;
            k->pin = k->pin && item->lease;
        } else if (item->what == PIN) {
            graft_lease_release(item->lease);
        } else if (item->unloaded && k) {
            drop(c->s, k);
        }
    }
    c->s->keep_alive.busy = false;
    gr_free(c);
}

/* ---- whose time is up ---------------------------------------------------------------------------------- */

static int64_t keep_ms(const server *s, const srv_kept *k) {
    return k ? k->keep_ms : s->o.limits.idle_unload_ms ? s->o.limits.idle_unload_ms : SRV_KEEP_FOREVER;
}

int64_t srv_keep_alive_left(const server *s, const graft_loaded *l) {
    char id[SRV_ID_SIZE];
    const srv_kept *k = find(s, id_of(id, l->project, l->adapter));
    int64_t keep = keep_ms(s, k);
    if (l->pinned || keep == SRV_KEEP_FOREVER) {
        return SRV_KEEP_FOREVER;
    }
    int64_t said_ms = k ? (gr_now_us() - k->since_us) / 1000 : INT64_MAX;
    int64_t idle = (int64_t)l->idle_ms < said_ms ? (int64_t)l->idle_ms : said_ms;
    return keep > idle ? keep - idle : 0;
}

static struct item *add_item(chore *c, const char *project, const char *adapter, int what) {
    struct item *item = &c->items[c->n++];
    item->what = what;
    srv_name_set(&item->name, project, adapter);
    return item;
}

/* Others may hold the version before: that is no reason to let go of the new one. */
static bool is_lease_of(const graft_lease *lease, const graft_loaded *l) {
    graft_lease_info info;
    graft_lease_get_info(lease, &info);
    return strcmp(info.generation, l->generation) == 0;
}

/* What is to be done for one version in memory. */
static void consider(server *s, chore *c, const graft_loaded *l) {
    char id[SRV_ID_SIZE];
    srv_kept *k = find(s, id_of(id, l->project, l->adapter));
    bool resident = strcmp(l->state, "resident") == 0;
    /* What is held is not what the name stands for any more: it was unloaded, or reloaded, and then the new version is taken. */
    bool outdated = k && k->lease && strcmp(l->state, "draining") == 0 && is_lease_of(k->lease, l);
    if (c->n == CHORES_MOST) {
        return;
    }
    if (k && k->lease && (!k->pin || outdated)) {
        add_item(c, l->project, l->adapter, RELEASE)->lease = k->lease;
        k->lease = NULL;
    } else if (k && k->pin && !k->lease && resident) {
        add_item(c, l->project, l->adapter, PIN);
    } else if (is_idle(l, 0) && srv_keep_alive_left(s, l) == 0) {
        add_item(c, l->project, l->adapter, UNLOAD)->idle_ms = (int64_t)l->idle_ms; /* less, if it was used meanwhile */
    }
}

static bool is_loaded(const graft_loaded_list *list, const char *id) {
    char other[SRV_ID_SIZE];
    bool found = false;
    for (size_t i = 0; i < list->n && !found; i++) {
        found = strcmp(list->items[i].state, "draining") != 0 &&
                strcmp(id_of(other, list->items[i].project, list->items[i].adapter), id) == 0;
    }
    return found;
}

/* What was said of adapters that have left memory otherwise. */
static void forget(server *s, const graft_loaded_list *list) {
    srv_kept *k, *next;
    HASH_ITER(hh, s->keep_alive.table, k, next) {
        if (!k->lease && !is_loaded(list, k->id)) {
            drop(s, k);
        }
    }
}

static void start(server *s, chore *c) {
    c->task.run = run_chore;
    c->task.done = chore_done;
    c->s = s;
    s->keep_alive.busy = true;
    if (!srv_work_add(s->work, &c->task)) { /* the worker is overrun: leases that were to go are given back here */
        for (int i = 0; i < c->n; i++) {
            graft_lease_release(c->items[i].lease);
        }
        s->keep_alive.busy = false;
        gr_free(c);
    }
}

void srv_keep_alive_tick(server *s) {
    srv_keep_alive *ka = &s->keep_alive;
    graft_loaded_list *list = NULL;
    int64_t now = gr_now_us();
    bool wanted = ka->table || s->o.limits.idle_unload_ms;
    if (!wanted || ka->busy || now < ka->next_us || graft_loaded_adapters(&list, s->g, NULL) != 0) {
        return;
    }
    ka->next_us = now + (LOOK_MS + (int64_t)list->n) * 1000; /* the more there are, the rarer they are looked at */
    chore *c = gr_zalloc(sizeof *c);
    for (size_t i = 0; c && i < list->n; i++) {
        consider(s, c, &list->items[i]);
    }
    forget(s, list);
    graft_loaded_list_free(list);
    if (c && c->n) {
        start(s, c);
    } else {
        gr_free(c);
    }
}

void srv_keep_alive_finish(server *s) {
    srv_kept *k, *next;
    HASH_ITER(hh, s->keep_alive.table, k, next) {
        graft_lease_release(k->lease);
        drop(s, k);
    }
}
