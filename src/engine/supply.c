/* Leases for a job: asked for together, collected as they come. */
#include "supply.h"

#include "base/clock.h"
#include "base/memory.h"
#include "base/mix.h"

typedef struct part {
    struct gr_supply *supply;
    gr_lease *lease;
} part;

struct gr_supply {
    gr_wants *wants;
    uint64_t key;     /* of the wants' names */
    part parts[GR_MAX_USES];
    gr_mutex *mutex;
    gr_cond *bell;
    bool *news;
    int64_t asked_at; /* 0 = not now */
    int64_t since;    /* when it was first asked for: what is waited for counts from there */
    int pending;      /* leases that have not come */
    bool gave_way;    /* since it last asked */
    bool yields;      /* what comes goes back at once, and then it is as if nothing had been asked for */
    bool left;        /* the job is gone: who brings the last lease frees this */
    graft_error error;
};

/* Over all names and what is between them. */
static uint64_t key_of(const gr_wants *wants) {
    uint64_t h = GR_HASH_BEGIN;
    for (int i = 0; i < wants->n; i++) {
        const char *names[] = {wants->items[i].project, wants->items[i].adapter};
        for (int k = 0; k < 2; k++) {
            h = gr_hash_text(gr_hash_text(h, names[k]), "/");
        }
    }
    return h;
}

int gr_supply_create(gr_supply **out, gr_wants *wants, gr_mutex *mutex, gr_cond *bell, bool *news, graft_error *err) {
    gr_supply *s = gr_zalloc(sizeof *s);
    if (!s) {
        return gr_fail_memory(err, sizeof *s);
    }
    s->wants = wants;
    s->key = key_of(wants);
    s->mutex = mutex;
    s->bell = bell;
    s->news = news;
    for (int i = 0; i < wants->n; i++) {
        s->parts[i].supply = s;
    }
    *out = s;
    return 0;
}

static void destroy(gr_supply *s) {
    gr_free(s->wants);
    gr_free(s);
}

/* The loader's callback: any thread, also ours while we ask. */
static void arrived(gr_lease *lease, const graft_error *err, void *user) {
    part *p = user;
    gr_supply *s = p->supply;
    gr_mutex_lock(s->mutex);
    bool left = s->left, keep = !left && !s->yields, last = --s->pending == 0;
    if (keep) {
        p->lease = lease;
    }
    if (!left && !lease && s->error.code == 0) {
        s->error = *err;
    }
    if (!left && last) {
        s->asked_at = s->yields && s->error.code == 0 ? 0 : s->asked_at;
        s->yields = false;
        *s->news = true;
        gr_cond_signal(s->bell);
    }
    gr_mutex_unlock(s->mutex);
    if (!keep) {
        gr_lease_release_later(lease);
    }
    if (left && last) {
        destroy(s);
    }
}

void gr_supply_mark(gr_supply *s, int64_t now) {
    s->asked_at = now;
    s->since = s->since ? s->since : now;
    s->pending = s->wants->n;
    s->gave_way = false;
}

bool gr_supply_gave_way(const gr_supply *s) {
    return s->gave_way;
}

bool gr_supply_holds(const gr_supply *s) {
    bool holds = false;
    for (int i = 0; i < s->wants->n; i++) {
        holds |= s->parts[i].lease != NULL;
    }
    return holds;
}

/* Takes the leases that have come. Under the mutex. */
static void take_leases(gr_supply *s, gr_lease *leases[GR_MAX_USES]) {
    for (int i = 0; i < s->wants->n; i++) {
        leases[i] = s->parts[i].lease;
        s->parts[i].lease = NULL;
    }
}

static void give_back(gr_lease *const *leases, int n) {
    for (int i = 0; i < n; i++) {
        gr_lease_release_later(leases[i]);
    }
}

void gr_supply_yield(gr_supply *s) {
    gr_lease *leases[GR_MAX_USES] = {NULL};
    gr_mutex_lock(s->mutex);
    if (s->pending > 0) {
        s->yields = s->gave_way = true;
        take_leases(s, leases);
    }
    gr_mutex_unlock(s->mutex);
    give_back(leases, s->wants->n);
}

void gr_supply_ask(gr_supply *s) {
    /* The job cannot leave meanwhile: that is the decode thread's to do, and we are it. */
    for (int i = 0; i < s->wants->n; i++) {
        const gr_want *w = &s->wants->items[i];
        const gr_lease_request request = {
            .project = w->project,
            .adapter = w->adapter,
            .fallback = s->wants->fallback,
            .deadline_us = s->wants->wait_us ? s->since + s->wants->wait_us : 0,
        };
        gr_loader_lease_async(s->wants->loader, &request, arrived, &s->parts[i]);
    }
}

bool gr_supply_asked(const gr_supply *s) {
    return s->asked_at != 0;
}

bool gr_supply_ready(const gr_supply *s) {
    return s->asked_at != 0 && s->pending == 0;
}

uint64_t gr_supply_key(const gr_supply *s) {
    return s->key;
}

int64_t gr_supply_starved_us(const gr_supply *s) {
    return gr_loader_starved_us(s->wants->loader);
}

const graft_error *gr_supply_error(const gr_supply *s) {
    return &s->error;
}

const gr_lease *gr_supply_lease(const gr_supply *s, int i) {
    return s->parts[i].lease;
}

const gr_want *gr_supply_want(const gr_supply *s, int i) {
    return &s->wants->items[i];
}

int gr_supply_count(const gr_supply *s) {
    return s->wants->n;
}

void gr_supply_leave(gr_supply *s) {
    if (!s) {
        return;
    }
    gr_lease *leases[GR_MAX_USES];
    int n = s->wants->n;
    gr_mutex_lock(s->mutex);
    bool pending = s->pending > 0;
    s->left = true;
    take_leases(s, leases);
    gr_mutex_unlock(s->mutex);
    give_back(leases, n); /* s may be gone, if something was pending */
    if (!pending) {
        destroy(s);
    }
}
