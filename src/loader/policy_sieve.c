/*
 * SIEVE (Zhang et al., NSDI 2024): one queue in order of arrival, newest at the head, that a hit never reorders;
 * it only sets the entry's `visited`. A hand walks from the tail towards the head, clears `visited` where it is
 * set, evicts the first entry where it is not, and stays there. Past the head it starts again at the tail.
 *
 * Held: stays in the queue; the hand steps over it without clearing `visited`. When the hold ends it is simply
 * where it was, and safe until the hand comes round again.
 */
#include "policy_ops.h"

typedef struct sieve {
    gr_policy base;
    gr_entry_list queue;
    gr_policy_entry *hand; /* where the next search begins; NULL: at the tail */
} sieve;

static int insert(gr_policy *p, gr_policy_entry *e, graft_error *err) {
    (void)err;
    e->visited = false;
    gr_entry_list_push(&((sieve *)p)->queue, e);
    return 0;
}

static void hit(gr_policy *p, gr_policy_entry *e) {
    (void)p;
    e->visited = true;
}

static void drop(gr_policy *p, gr_policy_entry *e) {
    sieve *s = (sieve *)p;
    if (s->hand == e) {
        s->hand = e->prev;
    }
    gr_entry_list_unlink(&s->queue, e);
}

/* Ends after two rounds at most: the caller has seen an entry that is not held, and the first round clears it. */
static gr_policy_entry *evict(gr_policy *p, uint64_t incoming) {
    (void)incoming;
    sieve *s = (sieve *)p;
    gr_policy_entry *e = s->hand ? s->hand : s->queue.tail;
    while (e->held > 0 || e->visited) {
        if (e->held == 0) {
            e->visited = false;
        }
        e = e->prev ? e->prev : s->queue.tail;
    }
    s->hand = e;
    drop(p, e);
    return e;
}

static bool check(const gr_policy *p, size_t *count, uint64_t *bytes, size_t *n_held) {
    const sieve *s = (const sieve *)p;
    if (p->parked.count > 0 || !gr_entry_list_check(&s->queue, n_held)) {
        return false;
    }
    const gr_policy_entry *e = s->queue.head;
    while (e && e != s->hand) {
        e = e->next;
    }
    *count += s->queue.count;
    *bytes += s->queue.bytes;
    return e == s->hand; /* in the queue, or NULL */
}

const gr_policy_ops gr_policy_sieve = {
    .name = "sieve",
    .size = sizeof(sieve),
    .finish = gr_policy_nothing,
    .resize = gr_policy_nothing,
    .miss = gr_policy_entry_nothing,
    .insert = insert,
    .hit = hit,
    .hold = gr_policy_entry_nothing,
    .unhold = gr_policy_entry_nothing,
    .evict = evict,
    .remove = drop,
    .check = check,
};
