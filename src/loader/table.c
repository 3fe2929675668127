#include "table.h"

#include "base/mix.h"

#include <stdio.h>
#include <string.h>

const char *gr_state_name(gr_state s) {
    static const char *const names[] = {"absent", "loading", "resident", "draining", "failed"};
    return names[s];
}

static void key_of(char out[2 * GR_NAME_MAX + 2], const char *project, const char *adapter) {
    snprintf(out, 2 * GR_NAME_MAX + 2, "%s/%s", project, adapter);
}

gr_slot *gr_table_find(gr_table *t, const char *project, const char *adapter) {
    char key[2 * GR_NAME_MAX + 2];
    key_of(key, project, adapter);
    gr_slot *slot;
    HASH_FIND_STR(t->slots, key, slot);
    return slot;
}

gr_slot *gr_table_slot(gr_table *t, const char *project, const char *adapter) {
    gr_slot *slot = gr_table_find(t, project, adapter);
    if (slot) {
        return slot;
    }
    char key[2 * GR_NAME_MAX + 2];
    key_of(key, project, adapter);
    slot = gr_zalloc(sizeof *slot + strlen(key) + 1);
    if (!slot) {
        return NULL;
    }
    strcpy(slot->key, key);
    HASH_ADD_KEYPTR(hh, t->slots, slot->key, strlen(slot->key), slot);
    if (!slot->hh.tbl) { /* the hash table could not grow */
        gr_free(slot);
        return NULL;
    }
    return slot;
}

static void link_version(gr_table *t, gr_version *v) {
    v->prev = NULL;
    v->next = t->versions;
    if (t->versions) {
        t->versions->prev = v;
    }
    t->versions = v;
}

static void drop_version(gr_table *t, gr_version *v) {
    if (v->prev) {
        v->prev->next = v->next;
    } else {
        t->versions = v->next;
    }
    if (v->next) {
        v->next->prev = v->prev;
    }
    gr_free(v->path);
    gr_free(v);
}

gr_version *gr_table_begin(gr_table *t, gr_slot *slot, uint64_t revision) {
    gr_version *v = gr_zalloc(sizeof *v);
    if (!v) {
        return NULL;
    }
    v->slot = slot;
    v->state = GR_LOADING;
    v->serial = ++t->next_serial;
    v->revision = revision;
    v->policy.key = gr_hash_text(GR_HASH_BEGIN, slot->key); /* outlives versions */
    link_version(t, v);
    slot->flight = v;
    t->n_loading++;
    return v;
}

static void list_push(gr_version **list, gr_version *v) {
    v->queue_next = *list;
    *list = v;
}

static bool is_held(const gr_version *v) {
    return v->state == GR_RESIDENT && (v->leases > 0 || v->slot->pinned);
}

/* After a change to a version that was held or not: the sum of held bytes. */
static void count_held(gr_table *t, const gr_version *v, bool was) {
    bool is = is_held(v);
    t->held_bytes += is && !was ? v->loaded.bytes : 0;
    t->held_bytes -= was && !is ? v->loaded.bytes : 0;
}

/* Out of the policy's queues already. */
static void unreachable(gr_table *t, gr_version *v, gr_version **dead) {
    bool was = is_held(v);
    if (v->slot->resident == v) {
        v->slot->resident = NULL;
    }
    v->state = GR_DRAINING;
    count_held(t, v, was);
    t->n_resident--;
    t->n_draining++;
    gr_budget_drain(&t->budget, v->loaded.bytes);
    if (v->leases == 0) {
        list_push(dead, v);
    }
}

void gr_table_detach(gr_table *t, gr_version *v, gr_version **dead) {
    gr_policy_remove(t->policy, &v->policy);
    unreachable(t, v, dead);
}

void gr_table_evicted(gr_table *t, gr_version *v, gr_version **dead) {
    t->metrics.evictions++;
    unreachable(t, v, dead);
}

/* Those that hold a reservation will be resident soon. */
static bool over_count(const gr_table *t) {
    return t->max_adapters > 0 && t->n_resident + t->n_reserved >= (uint64_t)t->max_adapters;
}

bool gr_table_eviction_helps(const gr_table *t, uint64_t bytes) {
    return bytes <= gr_budget_free(&t->budget) + (t->budget.resident - t->held_bytes);
}

/* Whether waiting can help: memory is on its way back, or a load will end. */
static bool something_moves(const gr_table *t, const gr_version *except) {
    for (const gr_version *v = t->versions; v; v = v->next) {
        if (v != except && ((v->state == GR_LOADING && v->reserved > 0) || (v->state == GR_DRAINING && v->leases == 0))) {
            return true;
        }
    }
    return false;
}

gr_room gr_table_make_room(gr_table *t, gr_version *v, uint64_t bytes, gr_version **evicted) {
    if (bytes > gr_budget_capacity(&t->budget)) {
        return GR_ROOM_NEVER;
    }
    if (!v->announced) { /* the policy hears of each load once, before it is asked for victims */
        v->announced = true;
        v->policy.bytes = bytes ? bytes : 1;
        v->policy.cost = 1e-6;
        gr_policy_miss(t->policy, &v->policy);
    }
    /* What is evicted here keeps its bytes until it is freed; count them as good as free to know when to stop. */
    uint64_t coming = 0;
    bool helps = gr_table_eviction_helps(t, bytes);
    while (helps && (over_count(t) || gr_budget_free(&t->budget) + coming < bytes)) {
        gr_policy_entry *victim = gr_policy_evict(t->policy, bytes);
        if (!victim) {
            break;
        }
        gr_version *old = GR_VERSION_OF(victim);
        coming += old->loaded.bytes;
        gr_table_evicted(t, old, evicted);
    }
    if (!over_count(t) && gr_budget_reserve(&t->budget, bytes)) {
        v->reserved = bytes;
        t->n_reserved++;
        return GR_ROOM_MADE;
    }
    return coming > 0 || something_moves(t, v) ? GR_ROOM_WAIT : GR_ROOM_NONE;
}

void gr_table_unreserve(gr_table *t, gr_version *v) {
    t->n_reserved -= v->reserved > 0;
    gr_budget_commit(&t->budget, v->reserved, 0);
    v->reserved = 0;
}

bool gr_table_reserve_more(gr_table *t, gr_version *v, uint64_t bytes) {
    bool fits = gr_budget_reserve(&t->budget, bytes - v->reserved);
    v->reserved = fits ? bytes : v->reserved;
    return fits;
}

void gr_table_hold(gr_table *t, gr_version *v, int64_t now) {
    bool was = is_held(v);
    v->leases++;
    count_held(t, v, was);
    t->n_leases++;
    v->last_used = now;
    if (v->state == GR_RESIDENT) {
        gr_policy_hold(t->policy, &v->policy);
    }
}

void gr_table_unhold(gr_table *t, gr_version *v, int64_t now, gr_version **dead) {
    bool was = is_held(v);
    v->leases--;
    count_held(t, v, was);
    t->n_leases--;
    v->last_used = now;
    if (v->state == GR_RESIDENT) {
        gr_policy_unhold(t->policy, &v->policy);
    } else if (v->leases == 0) {
        list_push(dead, v);
    }
}

void gr_table_pin(gr_table *t, gr_slot *slot, bool pinned) {
    if (slot->pinned == pinned) {
        return;
    }
    bool was = slot->resident && is_held(slot->resident);
    slot->pinned = pinned;
    if (slot->resident) {
        count_held(t, slot->resident, was);
        (pinned ? gr_policy_hold : gr_policy_unhold)(t->policy, &slot->resident->policy);
    }
}

static void leave_flight(gr_table *t, gr_version *v) {
    t->n_loading--;
    if (v->slot->flight == v) {
        v->slot->flight = NULL;
    }
}

void gr_table_ready(gr_table *t, gr_version *v, const gr_loaded *loaded, double load_ms, int64_t now, gr_version **dead) {
    gr_slot *slot = v->slot;
    bool overtaken = slot->resident && slot->resident->serial > v->serial;
    leave_flight(t, v);
    v->loaded = *loaded;
    v->load_ms = load_ms;
    v->last_used = now;
    gr_budget_commit(&t->budget, v->reserved, loaded->bytes);
    t->n_reserved -= v->reserved > 0;
    v->reserved = 0;
    gr_free(slot->failure);
    slot->failure = NULL;
    t->metrics.loads++;
    t->metrics.load_bytes += loaded->bytes;
    t->metrics.no_effect += loaded->no_effect;

    v->policy.bytes = loaded->bytes ? loaded->bytes : 1;
    double cost_ms = loaded->cost_ms > 0 ? loaded->cost_ms : load_ms;
    v->policy.cost = cost_ms > 0 ? cost_ms / 1000 : 1e-6;
    bool reachable = !v->unwanted && !overtaken && gr_policy_insert(t->policy, &v->policy, NULL) == 0;
    if (reachable) {
        if (slot->resident) {
            t->metrics.replacements++;
            gr_table_detach(t, slot->resident, dead);
        }
        v->state = GR_RESIDENT;
        count_held(t, v, false);
        t->n_resident++;
        slot->resident = v;
        if (slot->pinned) {
            gr_policy_hold(t->policy, &v->policy);
        }
    } else {
        v->state = GR_DRAINING;
        t->n_draining++;
        gr_budget_drain(&t->budget, loaded->bytes);
    }
    for (gr_waiter *w = v->waiters; w; w = w->next) {
        gr_table_hold(t, v, now);
    }
    if (!reachable && v->leases == 0) {
        list_push(dead, v);
    }
}

void gr_table_fail(gr_table *t, gr_version *v, const graft_error *err, int64_t remember_until) {
    leave_flight(t, v);
    v->state = GR_FAILED;
    gr_table_unreserve(t, v);
    if (!v->remembered) {
        gr_count_code(t->metrics.failures, &t->metrics.n_failures, err->code);
    }
    if (remember_until > 0) {
        gr_failure *f = v->slot->failure ? v->slot->failure : gr_alloc(sizeof *f);
        if (f) { /* else it is not remembered: no harm */
            *f = (gr_failure){*err, v->identity, v->revision, remember_until};
        }
        v->slot->failure = f;
    }
    drop_version(t, v);
}

void gr_table_freed(gr_table *t, gr_version *v) {
    gr_budget_freed(&t->budget, v->loaded.bytes);
    t->n_draining--;
    drop_version(t, v);
}

void gr_table_finish(gr_table *t) {
    gr_slot *slot, *next;
    HASH_ITER(hh, t->slots, slot, next) {
        HASH_DEL(t->slots, slot);
        gr_free(slot->failure);
        gr_free(slot);
    }
    gr_policy_free(t->policy);
    t->policy = NULL;
}

bool gr_table_check(const gr_table *t) {
    uint64_t resident = 0, draining = 0, loading = 0, n_resident = 0, n_draining = 0, n_loading = 0, leases = 0;
    uint64_t held = 0, n_reserved = 0;
    for (const gr_version *v = t->versions; v; v = v->next) {
        leases += v->leases;
        held += is_held(v) ? v->loaded.bytes : 0;
        n_reserved += v->reserved > 0;
        switch (v->state) {
        case GR_LOADING:
            n_loading++;
            loading += v->reserved;
            if (v->leases != 0) {
                return false;
            }
            break;
        case GR_RESIDENT:
            n_resident++;
            resident += v->loaded.bytes;
            if (v->slot->resident != v || v->policy.held != v->leases + v->slot->pinned) {
                return false;
            }
            break;
        case GR_DRAINING:
            n_draining++;
            draining += v->loaded.bytes;
            if (v->slot->resident == v || v->slot->flight == v) {
                return false;
            }
            break;
        default:
            return false;
        }
    }
    const gr_budget *b = &t->budget;
    return resident == b->resident && draining == b->draining && loading == b->loading && n_resident == t->n_resident &&
           n_draining == t->n_draining && n_loading == t->n_loading && leases == t->n_leases &&
           held == t->held_bytes && n_reserved == t->n_reserved &&
           b->fixed + b->resident + b->loading + b->draining <= b->limit &&
           (t->max_adapters == 0 || n_resident <= (uint64_t)t->max_adapters) &&
           gr_policy_count(t->policy) == n_resident && gr_policy_check(t->policy);
}
