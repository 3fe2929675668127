/*
 * Greedy-Dual-Size-Frequency (Cherkasova 1998) with the measured load time as cost:
 *
 *   priority = clock at last use + requests * cost / bytes
 *
 * The least goes first: what was asked for seldom, loads fast, and frees much. The clock is the priority of the
 * last victim, so it only grows, and old popularity is overtaken by it in the end. Of equals the one used longest ago
 * goes.
 *
 * Held: off the heap. When the hold ends the priority is reckoned anew with the clock of that moment, since it was
 * in use until now; the frequency counts requests only.
 */
#include "heap.h"
#include "policy_ops.h"

#include <float.h>

typedef struct gdsf {
    gr_policy base;
    gr_heap heap; /* with room for all entries, the held ones too: only insert may need memory */
    double clock;
    uint64_t uses;
} gdsf;

static void finish(gr_policy *p) {
    gr_heap_finish(&((gdsf *)p)->heap);
}

/* A cost that is no positive number (a broken measurement) counts as next to nothing. */
static double worth(const gr_policy_entry *e) {
    bool sane = e->cost > 0 && e->cost <= DBL_MAX;
    return (sane ? e->cost : 1e-9) / (double)e->bytes;
}

static void touch(gdsf *g, gr_policy_entry *e) {
    e->priority = g->clock + e->frequency * worth(e);
    e->stamp = ++g->uses;
}

static int insert(gr_policy *p, gr_policy_entry *e, graft_error *err) {
    gdsf *g = (gdsf *)p;
    if (!gr_heap_reserve(&g->heap, p->count + 1)) {
        return gr_fail_memory(err, (p->count + 1) * sizeof(void *));
    }
    e->frequency = 1;
    touch(g, e);
    if (e->held > 0) {
        gr_entry_list_push(&p->parked, e);
    } else {
        gr_heap_push(&g->heap, e);
    }
    return 0;
}

static void hit(gr_policy *p, gr_policy_entry *e) {
    gdsf *g = (gdsf *)p;
    if (e->frequency < UINT32_MAX) {
        e->frequency++;
    }
    touch(g, e);
    if (e->held == 0) {
        gr_heap_moved(&g->heap, e);
    }
}

static void hold(gr_policy *p, gr_policy_entry *e) {
    gr_heap_take(&((gdsf *)p)->heap, e);
    gr_entry_list_push(&p->parked, e);
}

static void unhold(gr_policy *p, gr_policy_entry *e) {
    gdsf *g = (gdsf *)p;
    gr_entry_list_unlink(&p->parked, e);
    touch(g, e);
    gr_heap_push(&g->heap, e);
}

static void drop(gr_policy *p, gr_policy_entry *e) {
    if (e->held > 0) {
        gr_entry_list_unlink(&p->parked, e);
    } else {
        gr_heap_take(&((gdsf *)p)->heap, e);
    }
}

static gr_policy_entry *evict(gr_policy *p, uint64_t incoming) {
    (void)incoming;
    gdsf *g = (gdsf *)p;
    gr_policy_entry *victim = g->heap.entries[0];
    g->clock = victim->priority;
    gr_heap_take(&g->heap, victim);
    return victim;
}

static bool check(const gr_policy *p, size_t *count, uint64_t *bytes, size_t *n_held) {
    const gdsf *g = (const gdsf *)p;
    (void)n_held; /* all held ones are parked */
    for (size_t i = 0; i < g->heap.count; i++) {
        const gr_policy_entry *e = g->heap.entries[i];
        if (e->held > 0 || e->priority < g->clock) {
            return false;
        }
        *bytes += e->bytes;
    }
    *count += g->heap.count;
    return gr_heap_check(&g->heap) && g->heap.capacity >= p->count;
}

const gr_policy_ops gr_policy_gdsf = {
    .name = "gdsf",
    .size = sizeof(gdsf),
    .finish = finish,
    .resize = gr_policy_nothing,
    .miss = gr_policy_entry_nothing,
    .insert = insert,
    .hit = hit,
    .hold = hold,
    .unhold = unhold,
    .evict = evict,
    .remove = drop,
    .check = check,
};
