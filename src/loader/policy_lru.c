/*
 * Least recently used: one list, newest use at the head, victim at the tail.
 *
 * Held: off the list. When the last hold ends the entry goes to the head, since it was in use until now.
 */
#include "policy_ops.h"

typedef struct lru {
    gr_policy base;
    gr_entry_list list;
} lru;

static gr_entry_list *place(gr_policy *p, const gr_policy_entry *e) {
    return e->held > 0 ? &p->parked : &((lru *)p)->list;
}

static int insert(gr_policy *p, gr_policy_entry *e, graft_error *err) {
    (void)err;
    gr_entry_list_push(place(p, e), e);
    return 0;
}

static void hit(gr_policy *p, gr_policy_entry *e) {
    gr_entry_list_unlink(place(p, e), e);
    gr_entry_list_push(place(p, e), e);
}

static void hold(gr_policy *p, gr_policy_entry *e) {
    gr_entry_list_unlink(&((lru *)p)->list, e);
    gr_entry_list_push(&p->parked, e);
}

static void unhold(gr_policy *p, gr_policy_entry *e) {
    gr_entry_list_unlink(&p->parked, e);
    gr_entry_list_push(&((lru *)p)->list, e);
}

static gr_policy_entry *evict(gr_policy *p, uint64_t incoming) {
    (void)incoming;
    gr_policy_entry *victim = ((lru *)p)->list.tail;
    gr_entry_list_unlink(&((lru *)p)->list, victim);
    return victim;
}

static void drop(gr_policy *p, gr_policy_entry *e) {
    gr_entry_list_unlink(place(p, e), e);
}

static bool check(const gr_policy *p, size_t *count, uint64_t *bytes, size_t *n_held) {
    const gr_entry_list *list = &((const lru *)p)->list;
    size_t n_listed_held = 0;
    *count += list->count;
    *bytes += list->bytes;
    (void)n_held; /* all held ones are parked */
    return gr_entry_list_check(list, &n_listed_held) && n_listed_held == 0;
}

const gr_policy_ops gr_policy_lru = {
    .name = "lru",
    .size = sizeof(lru),
    .finish = gr_policy_nothing,
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
