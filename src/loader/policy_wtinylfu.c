/*
 * W-TinyLFU (Einziger et al., ACM ToS 2017): three lists in order of use, and a sketch of how often each key was
 * asked for, resident or not.
 *
 *   newcomer --> window (1 %) --> judged against probation's oldest: the one asked for less often goes
 *                                 probation (20 % of the rest) --hit--> protected (80 %)
 *                                 probation's head <--pushed out-- protected's tail
 *
 * Until the first eviction all are in the window; then those move to main (probation and protected) that it has
 * room for, without being judged. The window is at least one object: a loaded
 * adapter serves its request first, and is judged when the next one needs room. A tie goes against the newcomer,
 * so a pass over many objects that are each used once displaces nothing.
 *
 * Held: off its list, but still counted in its part's share; a hit on it counts and may move it to protected.
 * When the hold ends it goes to the head of its part, since it was in use until now.
 */
#include "policy_ops.h"
#include "sketch.h"

enum { WINDOW, PROBATION, PROTECTED, PARTS };

typedef struct amount {
    uint64_t bytes;
    size_t count;
} amount;

typedef struct wtinylfu {
    gr_policy base;
    gr_entry_list lists[PARTS];
    amount used[PARTS];                   /* by all entries of that part, held ones included */
    amount for_window, for_main;          /* shares of the cache … */
    amount for_protected;                 /* … and of main */
    gr_sketch sketch;
} wtinylfu;

/* Counters are halved after ten requests for each resident object, as the paper proposes; with very few objects
 * that would forget everything at once. */
#define SAMPLE_FACTOR 10
#define SAMPLE_OBJECTS_MIN 16

static void resize(gr_policy *p) {
    wtinylfu *w = (wtinylfu *)p;
    w->for_window.bytes = p->capacity / 100;
    w->for_window.count = p->max_count < 100 ? 1 : p->max_count / 100;
    w->for_main.bytes = p->capacity - w->for_window.bytes;
    w->for_main.count = p->max_count - w->for_window.count;
    w->for_protected.bytes = gr_share(w->for_main.bytes, 4, 5);
    w->for_protected.count = (size_t)gr_share(w->for_main.count, 4, 5);
}

static bool fits(amount used, amount share) {
    return used.bytes <= share.bytes && used.count <= share.count;
}

static void count_request(wtinylfu *w, uint64_t key) {
    uint64_t objects = w->base.count > SAMPLE_OBJECTS_MIN ? w->base.count : SAMPLE_OBJECTS_MIN;
    gr_sketch_add(&w->sketch, key, SAMPLE_FACTOR * objects);
}

static gr_entry_list *place(wtinylfu *w, const gr_policy_entry *e) {
    return e->held > 0 ? &w->base.parked : &w->lists[e->queue];
}

static void put(wtinylfu *w, gr_policy_entry *e, uint8_t part) {
    e->queue = part;
    w->used[part].bytes += e->bytes;
    w->used[part].count++;
    gr_entry_list_push(place(w, e), e);
}

static void take(wtinylfu *w, gr_policy_entry *e) {
    w->used[e->queue].bytes -= e->bytes;
    w->used[e->queue].count--;
    gr_entry_list_unlink(place(w, e), e);
}

static void move(wtinylfu *w, gr_policy_entry *e, uint8_t part) {
    take(w, e);
    put(w, e, part);
}

static void drop(gr_policy *p, gr_policy_entry *e) {
    take((wtinylfu *)p, e);
}

static void miss(gr_policy *p, gr_policy_entry *e) {
    count_request((wtinylfu *)p, e->key);
}

static int insert(gr_policy *p, gr_policy_entry *e, graft_error *err) {
    (void)err;
    put((wtinylfu *)p, e, WINDOW);
    return 0;
}

static void hit(gr_policy *p, gr_policy_entry *e) {
    wtinylfu *w = (wtinylfu *)p;
    count_request(w, e->key);
    move(w, e, e->queue == WINDOW ? WINDOW : PROTECTED);
    gr_policy_entry *oldest;
    while (!fits(w->used[PROTECTED], w->for_protected) && (oldest = w->lists[PROTECTED].tail) != NULL) {
        move(w, oldest, PROBATION);
    }
}

static void hold(gr_policy *p, gr_policy_entry *e) {
    gr_entry_list_unlink(&((wtinylfu *)p)->lists[e->queue], e);
    gr_entry_list_push(&p->parked, e);
}

static void unhold(gr_policy *p, gr_policy_entry *e) {
    gr_entry_list_unlink(&p->parked, e);
    gr_entry_list_push(&((wtinylfu *)p)->lists[e->queue], e);
}

static gr_policy_entry *main_oldest(const wtinylfu *w) {
    gr_policy_entry *e = w->lists[PROBATION].tail;
    return e ? e : w->lists[PROTECTED].tail;
}

/* The window's oldest, if the window must give one up for what comes in. */
static gr_policy_entry *candidate(const wtinylfu *w, uint64_t incoming) {
    amount used = w->used[WINDOW];
    if (incoming > 0) {
        used.bytes += incoming;
        used.count++;
    }
    return fits(used, w->for_window) ? NULL : w->lists[WINDOW].tail;
}

/* With few objects the window, at least one of them, takes more than its share: what comes in now. Main must leave
 * it that, or each newcomer would slip in unjudged whenever a large object had been followed by a smaller one. */
static bool main_has_room(const wtinylfu *w, const gr_policy_entry *e, uint64_t incoming) {
    amount used = {
        .bytes = w->used[PROBATION].bytes + w->used[PROTECTED].bytes + e->bytes,
        .count = w->used[PROBATION].count + w->used[PROTECTED].count + 1,
    };
    return fits(used, w->for_main) && used.bytes + incoming <= w->base.capacity;
}

static gr_policy_entry *choose(wtinylfu *w, uint64_t incoming) {
    gr_policy_entry *newcomer = candidate(w, incoming);
    /* Those that main has room for move there; but somebody must go, so the last is judged all the same. */
    while (newcomer && newcomer->prev && main_has_room(w, newcomer, incoming)) {
        move(w, newcomer, PROBATION);
        newcomer = candidate(w, incoming);
    }
    gr_policy_entry *victim = main_oldest(w);
    if (!victim) {
        return w->lists[WINDOW].tail;
    }
    if (!newcomer) {
        return victim;
    }
    if (gr_sketch_estimate(&w->sketch, newcomer->key) <= gr_sketch_estimate(&w->sketch, victim->key)) {
        return newcomer;
    }
    move(w, newcomer, PROBATION);
    return victim;
}

static gr_policy_entry *evict(gr_policy *p, uint64_t incoming) {
    gr_policy_entry *victim = choose((wtinylfu *)p, incoming);
    take((wtinylfu *)p, victim);
    return victim;
}

static bool check(const gr_policy *p, size_t *count, uint64_t *bytes, size_t *n_held) {
    const wtinylfu *w = (const wtinylfu *)p;
    amount parked[PARTS] = {0};
    size_t n_listed_held = 0;
    (void)n_held; /* all held ones are parked */
    for (const gr_policy_entry *e = p->parked.head; e; e = e->next) {
        parked[e->queue].bytes += e->bytes;
        parked[e->queue].count++;
    }
    for (uint8_t part = 0; part < PARTS; part++) {
        const gr_entry_list *l = &w->lists[part];
        if (!gr_entry_list_check(l, &n_listed_held) || parked[part].bytes + l->bytes != w->used[part].bytes ||
            parked[part].count + l->count != w->used[part].count) {
            return false;
        }
        for (const gr_policy_entry *e = l->head; e; e = e->next) {
            if (e->queue != part) {
                return false;
            }
        }
        *count += l->count;
        *bytes += l->bytes;
    }
    return n_listed_held == 0;
}

const gr_policy_ops gr_policy_wtinylfu = {
    .name = "wtinylfu",
    .size = sizeof(wtinylfu),
    .finish = gr_policy_nothing,
    .resize = resize,
    .miss = miss,
    .insert = insert,
    .hit = hit,
    .hold = hold,
    .unhold = unhold,
    .evict = evict,
    .remove = drop,
    .check = check,
};
