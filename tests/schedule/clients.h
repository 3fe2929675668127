/*
 * Clients of the loader for schedules: who asks, what he may expect of the answer, and the frame that a scene is played in. What
 * must hold always is checked after every unlock of the loader's mutex (`always`).
 */
#ifndef CLIENTS_H
#define CLIENTS_H

#include "world.h"

static gr_loader *L;

/* ---- what must hold at every step ------------------------------------------------------------------------- */

/* Two of these for one name and revision would read the same file twice. Not one whose name was unloaded meanwhile, or that
 * found no room and is about to say so; and not where a reload was asked for, which takes the name from the flight before it. */
static bool counts_as_flight(const gr_version *v) {
    return v->state == GR_LOADING && v->path && !v->unwanted && (!v->no_room || v->parked) && !W.names[w_index(v->slot->key)].reloaded;
}

static void check_flights(void) {
    for (const gr_version *v = L->table.versions; v; v = v->next) {
        for (const gr_version *w = v->next; w; w = w->next) {
            if (v->slot == w->slot && v->revision == w->revision && counts_as_flight(v) && counts_as_flight(w)) {
                sched_fail("two flights for %s, revision %" PRIu64, v->slot->key, v->revision);
            }
        }
    }
}

static void always(void) {
    if (!gr_table_check(&L->table)) {
        sched_fail("gr_table_check");
    }
    const gr_budget *b = &L->table.budget;
    if (b->fixed + b->resident + b->loading + b->draining > b->limit) {
        sched_fail("the budget is exceeded");
    }
    for (const gr_version *v = L->table.versions; v; v = v->next) {
        if (v->state == GR_RESIDENT && !((const w_adapter *)v->loaded.adapter)->alive) {
            sched_fail("%s is resident and freed", v->slot->key);
        }
    }
    check_flights();
}

/* ---- clients ---------------------------------------------------------------------------------------------- */

enum { FOREVER = 1000000000 };

static const char *project_of(int name) {
    static const char *const projects[] = {"p0", "p1", "p2", "p3", "p4"};
    return projects[name];
}

/* One who asks, and what he may expect. */
typedef struct ask {
    int name;
    int64_t patience_us; /* 0: no deadline */
    bool temporary, reload, fallback;
    /* filled in */
    int rc;
    gr_lease *lease;
    unsigned least;      /* an older generation than this would be stale */
    int64_t deadline_us;
} ask;

static gr_lease_request request_of(ask *a) {
    w_name *n = &W.names[a->name];
    n->reloaded = n->reloaded || a->reload;
    a->least = a->reload ? w_registered_content(n) : n->registered;
    a->deadline_us = a->patience_us ? gr_now_us() + a->patience_us : 0;
    return (gr_lease_request){.project = project_of(a->name), .temporary = a->temporary, .reload = a->reload,
                              .fallback = a->fallback ? GRAFT_FALLBACK_BASE : GRAFT_FALLBACK_ERROR, .deadline_us = a->deadline_us};
}

/* The memory behind a lease is there, is this name's, and is not older than what was asked for. */
static void use(const ask *a) {
    const w_adapter *w = gr_lease_adapter(a->lease);
    if (!w) {
        if (!a->fallback || gr_lease_fallback(a->lease)->code == 0) {
            sched_fail("p%d: the base, for no reason", a->name);
        }
        return;
    }
    if (!w->alive) {
        sched_fail("p%d is used after it was freed", a->name);
    }
    if (w->name != a->name || w->generation < a->least) {
        sched_fail("p%d, generation %u or later, was asked for: got p%d, generation %u", a->name, a->least, w->name, w->generation);
    }
    sched_point("uses the lease");
    if (!w->alive || gr_lease_loaded(a->lease)->adapter != w) {
        sched_fail("p%d was freed while it was used", a->name);
    }
}

static void check_answer(const ask *a) {
    bool late = a->rc == GRAFT_E_BUSY || a->rc == GRAFT_E_DEADLINE;
    if (a->rc == GRAFT_E_DEADLINE && !a->deadline_us) {
        sched_fail("p%d: a deadline that nobody set", a->name);
    }
    if (late && a->deadline_us && gr_now_us() < a->deadline_us) {
        sched_fail("p%d: given up before the deadline", a->name);
    }
    if (late && a->patience_us == FOREVER) {
        sched_fail("p%d: never answered, only the deadline ended it", a->name);
    }
    if ((a->rc == 0) != (a->lease != NULL)) {
        sched_fail("p%d: %s and %s lease", a->name, graft_error_name(a->rc), a->lease ? "a" : "no");
    }
}

/* Asks and waits. */
static ask lease(ask a) {
    graft_error err = {0};
    gr_lease_request r = request_of(&a);
    sched_note("asks for p", a.name);
    a.rc = gr_loader_lease(&a.lease, L, &r, &err);
    sched_note("answer", a.rc);
    if (a.rc != err.code && a.rc) {
        sched_fail("the code is %d, the error says %d", a.rc, err.code);
    }
    check_answer(&a);
    if (!a.rc) {
        use(&a);
    }
    return a;
}

static void release(ask *a) {
    if (a->lease) {
        use(a);
        sched_note("releases p", a->name);
        gr_lease_release(a->lease);
        a->lease = NULL;
    }
}

static int touch(ask a) {
    a = lease(a);
    release(&a);
    return a.rc;
}

static void must(int rc, int expected) {
    if (rc != expected) {
        sched_fail("answered %s instead of %s", rc ? graft_error_name(rc) : "a lease", expected ? graft_error_name(expected) : "a lease");
    }
}

static void one_of(int rc, int a, int b, int c) {
    if (rc && rc != a && rc != b && rc != c) {
        sched_fail("answered %s", graft_error_name(rc));
    }
}

static void unload(int name) {
    graft_error err;
    uint64_t freed, pending;
    sched_note("unloads p", name);
    one_of(gr_loader_unload(L, project_of(name), "default", &freed, &pending, &err), GRAFT_E_NOT_FOUND, 0, 0);
}

static int pin(int name, bool pinned) {
    graft_error err;
    sched_note(pinned ? "pins p" : "unpins p", name);
    return gr_loader_pin(L, project_of(name), "default", pinned, &err);
}

/* ---- asking without waiting ------------------------------------------------------------------------------- */

enum { KEEP, RELEASE, RELEASE_LATER };

typedef struct async {
    ask a;
    int then;    /* what the callback does with the lease */
    int calls, answers; /* begun, and done with the lease */
} async;

enum { ASYNCS = 48 };
static async asyncs[ASYNCS];
static int n_asyncs;
static gr_mutex answered_mutex; /* guards nothing that needs it: a way to wait that a lost answer turns into a deadlock */
static gr_cond answered;

static void on_answer(gr_lease *given, const graft_error *err, void *user) {
    async *x = user;
    if (sched_holds_lock()) {
        sched_fail("a callback is called with a lock held");
    }
    sched_point("callback");
    if (x->calls++) {
        sched_fail("p%d: answered twice", x->a.name);
    }
    x->a.lease = given;
    x->a.rc = given ? 0 : err->code;
    sched_note("callback: answer", x->a.rc);
    check_answer(&x->a);
    if (given) {
        use(&x->a);
        if (x->then == RELEASE) {
            gr_lease_release(given);
        } else if (x->then == RELEASE_LATER) {
            gr_lease_release_later(given);
        }
    }
    gr_mutex_lock(&answered_mutex);
    x->answers++;
    gr_cond_broadcast(&answered);
    gr_mutex_unlock(&answered_mutex);
}

static async *ask_async(ask a, int then) {
    if (n_asyncs == ASYNCS) {
        sched_fail("more than %d questions", ASYNCS);
    }
    async *x = &asyncs[n_asyncs++];
    *x = (async){.a = a, .then = then};
    gr_lease_request r = request_of(&x->a);
    sched_note("asks without waiting for p", a.name);
    gr_loader_lease_async(L, &r, on_answer, x);
    return x;
}

static void await_answer(async *x) {
    gr_mutex_lock(&answered_mutex);
    while (!x->answers) {
        gr_cond_wait(&answered, &answered_mutex);
    }
    gr_mutex_unlock(&answered_mutex);
}

/* The answer, and the lease (if kept) given back. */
static int finish_async(async *x) {
    await_answer(x);
    if (x->a.lease && x->then == KEEP) {
        use(&x->a);
        if (sched_draw(2)) {
            gr_lease_release(x->a.lease);
        } else {
            gr_lease_release_later(x->a.lease);
        }
    }
    return x->a.rc;
}

/* ---- the frame of a scene --------------------------------------------------------------------------------- */

typedef void (*client_fn)(int me);

enum { CLIENTS = 4 };
static pthread_t threads[CLIENTS];
static client_fn bodies[CLIENTS];

static void *client_main(void *arg) {
    int me = (int)(intptr_t)arg;
    bodies[me](me);
    return NULL;
}

static bool open_loader(const gr_loader_options *o) {
    graft_error err;
    L = NULL;
    n_asyncs = 0;
    gr_mutex_init(&answered_mutex, GR_RANK_JOB);
    gr_cond_init(&answered);
    gr_loader *made = NULL;
    int rc = gr_loader_create(&made, o, &err);
    if (rc) {
        must(rc, GRAFT_E_OUT_OF_MEMORY);
        return false;
    }
    L = made;
    sched_on_unlock(GR_RANK_LOADER, always);
    return true;
}

static void start_clients(client_fn a, client_fn b, client_fn c, client_fn d) {
    client_fn all[CLIENTS] = {a, b, c, d};
    for (int i = 0; i < CLIENTS; i++) {
        bodies[i] = all[i];
        if (all[i] && gr_thread_start(&threads[i], client_main, (void *)(intptr_t)i) != 0) {
            sched_fail("a client did not start");
        }
    }
}

static void join_clients(void) {
    for (int i = 0; i < CLIENTS; i++) {
        if (bodies[i]) {
            gr_thread_join(threads[i]);
        }
    }
}

static void no_leases_left(void) {
    graft_metrics m;
    gr_loader_metrics(L, &m);
    if (m.n_leases != 0) {
        sched_fail("%" PRIu64 " leases are left", (uint64_t)m.n_leases);
    }
    if (!gr_loader_check(L)) {
        sched_fail("gr_loader_check");
    }
}

static void close_loader(void) {
    if (L) {
        for (int i = 0; i < n_asyncs; i++) {
            if (asyncs[i].answers != 1) {
                await_answer(&asyncs[i]);
            }
        }
        no_leases_left();
        sched_on_unlock(0, NULL); /* with the loader goes what it would look at */
        gr_loader_free(L);
        L = NULL;
    }
    gr_cond_finish(&answered);
    gr_mutex_finish(&answered_mutex);
    if (W.alive != 0 || W.live_bytes != 0) {
        sched_fail("%d adapters, %" PRIu64 " bytes are left behind", W.alive, W.live_bytes);
    }
}

static void scene(const gr_loader_options *o, client_fn a, client_fn b, client_fn c, client_fn d) {
    if (open_loader(o)) {
        start_clients(a, b, c, d);
        join_clients();
    }
}

#endif
