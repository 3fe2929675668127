/* What all eviction policies share: names, creation, counting, and the list. Who goes is decided in policy_*.c. */
#include "policy_ops.h"

#include "base/memory.h"

#include <assert.h>
#include <string.h>

static const gr_policy_ops *const kinds[GRAFT_POLICIES] = {
    [GRAFT_POLICY_LRU] = &gr_policy_lru,           [GRAFT_POLICY_SIEVE] = &gr_policy_sieve,
    [GRAFT_POLICY_S3FIFO] = &gr_policy_s3fifo,     [GRAFT_POLICY_WTINYLFU] = &gr_policy_wtinylfu,
    [GRAFT_POLICY_GDSF] = &gr_policy_gdsf,
};

const char *graft_policy_name(graft_policy kind) {
    return (unsigned)kind < GRAFT_POLICIES ? kinds[kind]->name : NULL;
}

bool gr_policy_parse(graft_policy *out, const char *name) {
    for (int i = 0; i < GRAFT_POLICIES; i++) {
        if (strcmp(name, kinds[i]->name) == 0) {
            *out = (graft_policy)i;
            return true;
        }
    }
    return false;
}

int gr_policy_create(gr_policy **out, graft_policy kind, uint64_t capacity, graft_error *err) {
    if ((unsigned)kind >= GRAFT_POLICIES) {
        return gr_fail(err, GRAFT_E_BAD_REQUEST, "no eviction policy has the number %d", (int)kind);
    }
    const gr_policy_ops *ops = kinds[kind];
    gr_policy *p = gr_zalloc(ops->size);
    if (!p) {
        return gr_fail_memory(err, ops->size);
    }
    p->ops = ops;
    p->max_count = SIZE_MAX;
    gr_policy_resize(p, capacity);
    *out = p;
    return 0;
}

void gr_policy_free(gr_policy *p) {
    if (p) {
        p->ops->finish(p);
        gr_free(p);
    }
}

void gr_policy_resize(gr_policy *p, uint64_t capacity) {
    p->capacity = capacity;
    p->ops->resize(p);
}

void gr_policy_limit_count(gr_policy *p, size_t max) {
    p->max_count = max > 0 ? max : SIZE_MAX;
    p->ops->resize(p);
}

static void leave(gr_policy *p, const gr_policy_entry *e) {
    p->count--;
    p->n_held -= e->held > 0;
    p->bytes -= e->bytes;
}

void gr_policy_miss(gr_policy *p, gr_policy_entry *e) {
    p->ops->miss(p, e);
}

int gr_policy_insert(gr_policy *p, gr_policy_entry *e, graft_error *err) {
    assert(e->bytes > 0);
    int code = p->ops->insert(p, e, err);
    if (code == 0) {
        p->count++;
        p->n_held += e->held > 0;
        p->bytes += e->bytes;
    }
    return code;
}

void gr_policy_hit(gr_policy *p, gr_policy_entry *e) {
    p->ops->hit(p, e);
}

void gr_policy_hold(gr_policy *p, gr_policy_entry *e) {
    assert(e->held < UINT32_MAX);
    if (e->held++ == 0) {
        p->n_held++;
        p->ops->hold(p, e);
    }
}

void gr_policy_unhold(gr_policy *p, gr_policy_entry *e) {
    assert(e->held > 0);
    if (--e->held == 0) {
        p->n_held--;
        p->ops->unhold(p, e);
    }
}

gr_policy_entry *gr_policy_evict(gr_policy *p, uint64_t incoming) {
    if (p->count == p->n_held) {
        return NULL;
    }
    gr_policy_entry *victim = p->ops->evict(p, incoming);
    assert(victim && victim->held == 0);
    leave(p, victim);
    return victim;
}

void gr_policy_remove(gr_policy *p, gr_policy_entry *e) {
    p->ops->remove(p, e);
    leave(p, e);
}

size_t gr_policy_count(const gr_policy *p) {
    return p->count;
}

uint64_t gr_policy_bytes(const gr_policy *p) {
    return p->bytes;
}

bool gr_policy_check(const gr_policy *p) {
    size_t count = p->parked.count, n_held = 0;
    uint64_t bytes = p->parked.bytes;
    return gr_entry_list_check(&p->parked, &n_held) && n_held == count &&
           p->ops->check(p, &count, &bytes, &n_held) && count == p->count && bytes == p->bytes &&
           n_held == p->n_held;
}

uint64_t gr_share(uint64_t n, unsigned part, unsigned whole) {
    return n / whole * part + n % whole * part / whole;
}

void gr_policy_nothing(gr_policy *p) {
    (void)p;
}

void gr_policy_entry_nothing(gr_policy *p, gr_policy_entry *e) {
    (void)p;
    (void)e;
}

void gr_entry_list_push(gr_entry_list *l, gr_policy_entry *e) {
    e->prev = NULL;
    e->next = l->head;
    if (l->head) {
        l->head->prev = e;
    } else {
        l->tail = e;
    }
    l->head = e;
    l->count++;
    l->bytes += e->bytes;
}

void gr_entry_list_unlink(gr_entry_list *l, gr_policy_entry *e) {
    if (e->prev) {
        e->prev->next = e->next;
    } else {
        l->head = e->next;
    }
    if (e->next) {
        e->next->prev = e->prev;
    } else {
        l->tail = e->prev;
    }
    e->prev = e->next = NULL;
    l->count--;
    l->bytes -= e->bytes;
}

bool gr_entry_list_check(const gr_entry_list *l, size_t *n_held) {
    size_t count = 0;
    uint64_t bytes = 0;
    const gr_policy_entry *before = NULL;
    for (const gr_policy_entry *e = l->head; e; before = e, e = e->next) {
        if (e->prev != before || count == l->count) { /* the latter: a loop */
            return false;
        }
        count++;
        bytes += e->bytes;
        *n_held += e->held > 0;
    }
    return l->tail == before && count == l->count && bytes == l->bytes;
}
