/*
 * S3-FIFO (Yang et al., SOSP 2023): two queues in order of arrival and a list of ghosts.
 *
 *   newcomer ---> small (10 %) --not hit twice--> evicted; its key becomes a ghost
 *                   \--hit at least twice--> main (90 %) --not hit--> evicted, no ghost
 *   newcomer whose ghost is still there ------> main        \--hit--> back to main's head, frequency - 1
 *
 * Main gives the victim while it is over its share, otherwise small does. Until the first eviction newcomers
 * that find small full go to main, so that a cache that has never been full needs no proof from anybody. The
 * details are those of libCacheSim's S3FIFO (tests/loader/compare_libcachesim.py), with one exception: an object
 * larger than small's share is taken in like any other. With a budget of three adapters all of them are.
 *
 * Held: stays in its queue and is stepped over, frequency untouched; when the hold ends it is still the oldest,
 * and next to be judged by its hits. A queue in which everything is held leaves the choice to the other one.
 */
#include "ghosts.h"
#include "policy_ops.h"

typedef struct s3fifo {
    gr_policy base;
    gr_entry_list small, main;
    gr_ghosts ghosts;
    uint64_t small_share, main_share; /* bytes */
    size_t small_count, main_count;   /* the same of the number of entries */
    bool has_evicted;
} s3fifo;

enum { IN_SMALL, IN_MAIN };

#define HITS_FOR_MAIN 2
#define FREQUENCY_MAX 3 /* what main honours: a hit object goes round at most three times without a new hit */

static void resize(gr_policy *p) {
    s3fifo *s = (s3fifo *)p;
    s->small_share = gr_share(p->capacity, 1, 10);
    s->main_share = p->capacity - s->small_share;
    s->small_count = p->max_count < 10 ? 1 : p->max_count / 10;
    s->main_count = p->max_count - s->small_count;
    size_t ghosts = s->main_count > 0 ? s->main_count : 1;
    gr_ghosts_resize(&s->ghosts, gr_share(p->capacity, 9, 10), ghosts);
}

static void finish(gr_policy *p) {
    gr_ghosts_finish(&((s3fifo *)p)->ghosts);
}

static gr_entry_list *queue_of(s3fifo *s, const gr_policy_entry *e) {
    return e->queue == IN_SMALL ? &s->small : &s->main;
}

static void enqueue(s3fifo *s, gr_policy_entry *e, uint8_t queue, uint32_t frequency) {
    e->queue = queue;
    e->frequency = frequency;
    gr_entry_list_push(queue_of(s, e), e);
}

static void drop(gr_policy *p, gr_policy_entry *e) {
    gr_entry_list_unlink(queue_of((s3fifo *)p, e), e);
}

static void miss(gr_policy *p, gr_policy_entry *e) {
    e->returning = gr_ghosts_take(&((s3fifo *)p)->ghosts, e->key);
}

static int insert(gr_policy *p, gr_policy_entry *e, graft_error *err) {
    (void)err;
    s3fifo *s = (s3fifo *)p;
    bool small_is_full = s->small.bytes >= s->small_share || s->small.count >= s->small_count;
    enqueue(s, e, e->returning || (!s->has_evicted && small_is_full) ? IN_MAIN : IN_SMALL, 0);
    return 0;
}

static void hit(gr_policy *p, gr_policy_entry *e) {
    (void)p;
    if (e->frequency < UINT32_MAX) {
        e->frequency++;
    }
}

static gr_policy_entry *oldest_free(const gr_entry_list *queue) {
    gr_policy_entry *e = queue->tail;
    while (e && e->held > 0) {
        e = e->prev;
    }
    return e;
}

/* NULL if all that could go has moved to main, or is held. */
static gr_policy_entry *evict_small(s3fifo *s) {
    gr_policy_entry *e;
    while ((e = oldest_free(&s->small)) != NULL) {
        gr_entry_list_unlink(&s->small, e);
        if (e->frequency < HITS_FOR_MAIN) {
            gr_ghosts_add(&s->ghosts, e->key, e->bytes);
            return e;
        }
        enqueue(s, e, IN_MAIN, 0);
    }
    return NULL;
}

/* NULL if all are held. Ends: each round takes one hit from each. */
static gr_policy_entry *evict_main(s3fifo *s) {
    gr_policy_entry *e;
    while ((e = oldest_free(&s->main)) != NULL) {
        gr_entry_list_unlink(&s->main, e);
        if (e->frequency == 0) {
            return e;
        }
        enqueue(s, e, IN_MAIN, (e->frequency < FREQUENCY_MAX ? e->frequency : FREQUENCY_MAX) - 1);
    }
    return NULL;
}

static gr_policy_entry *evict(gr_policy *p, uint64_t incoming) {
    (void)incoming;
    s3fifo *s = (s3fifo *)p;
    s->has_evicted = true;
    bool main_is_over = s->main.bytes > s->main_share || s->main.count > s->main_count;
    gr_policy_entry *victim = main_is_over ? evict_main(s) : NULL;
    if (!victim) {
        victim = evict_small(s);
    }
    return victim ? victim : evict_main(s);
}

static bool queue_check(const gr_entry_list *l, uint8_t queue, size_t *n_held) {
    if (!gr_entry_list_check(l, n_held)) {
        return false;
    }
    const gr_policy_entry *e = l->head;
    while (e && e->queue == queue) {
        e = e->next;
    }
    return e == NULL;
}

static bool check(const gr_policy *p, size_t *count, uint64_t *bytes, size_t *n_held) {
    const s3fifo *s = (const s3fifo *)p;
    *count += s->small.count + s->main.count;
    *bytes += s->small.bytes + s->main.bytes;
    return p->parked.count == 0 && queue_check(&s->small, IN_SMALL, n_held) &&
           queue_check(&s->main, IN_MAIN, n_held) && gr_ghosts_check(&s->ghosts);
}

const gr_policy_ops gr_policy_s3fifo = {
    .name = "s3fifo",
    .size = sizeof(s3fifo),
    .finish = finish,
    .resize = resize,
    .miss = miss,
    .insert = insert,
    .hit = hit,
    .hold = gr_policy_entry_nothing,
    .unhold = gr_policy_entry_nothing,
    .evict = evict,
    .remove = drop,
    .check = check,
};
