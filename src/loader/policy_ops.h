/*
 * Between policy.c, which counts, and policy_*.c, which choose: the table of functions that each policy fills
 * in, and the list and sums that they share.
 */
#ifndef GR_POLICY_OPS_H
#define GR_POLICY_OPS_H

#include "policy.h"

/* Doubly linked; newest at the head. `count` and `bytes` are those of the entries linked here. */
typedef struct gr_entry_list {
    gr_policy_entry *head, *tail;
    size_t count;
    uint64_t bytes;
} gr_entry_list;

void gr_entry_list_push(gr_entry_list *l, gr_policy_entry *e); /* at the head */
void gr_entry_list_unlink(gr_entry_list *l, gr_policy_entry *e);
/* Links and sums agree. Adds the number of held entries to *n_held. */
bool gr_entry_list_check(const gr_entry_list *l, size_t *n_held);

/*
 * Each takes its own struct, whose first member is gr_policy. policy.c has already done its counting, and calls
 * hold and unhold only when the first hold begins and the last one ends. None may be NULL.
 */
typedef struct gr_policy_ops {
    const char *name;
    size_t size;                  /* of the policy's struct, zeroed; then comes resize */
    void (*finish)(gr_policy *p); /* frees what it allocated besides its struct */
    void (*resize)(gr_policy *p); /* p->capacity or p->max_count is new */
    void (*miss)(gr_policy *p, gr_policy_entry *e);
    int (*insert)(gr_policy *p, gr_policy_entry *e, graft_error *err);
    void (*hit)(gr_policy *p, gr_policy_entry *e);
    void (*hold)(gr_policy *p, gr_policy_entry *e);
    void (*unhold)(gr_policy *p, gr_policy_entry *e);
    gr_policy_entry *(*evict)(gr_policy *p, uint64_t incoming); /* at least one entry is free to go */
    void (*remove)(gr_policy *p, gr_policy_entry *e);
    /* Own invariants. Adds what it has besides the parked entries: number, bytes, and how many of them are held. */
    bool (*check)(const gr_policy *p, size_t *count, uint64_t *bytes, size_t *n_held);
} gr_policy_ops;

struct gr_policy {
    const gr_policy_ops *ops;
    uint64_t capacity;
    size_t max_count; /* SIZE_MAX if only bytes are bounded */
    size_t count, n_held;
    uint64_t bytes;
    gr_entry_list parked; /* lru, wtinylfu, gdsf: held entries, out of eviction's sight */
};

/* `part` / `whole` of n, rounded down, without wrapping. */
uint64_t gr_share(uint64_t n, unsigned part, unsigned whole);

/* For policies with nothing to do there. */
void gr_policy_nothing(gr_policy *p);
void gr_policy_entry_nothing(gr_policy *p, gr_policy_entry *e);

extern const gr_policy_ops gr_policy_lru, gr_policy_sieve, gr_policy_s3fifo, gr_policy_wtinylfu, gr_policy_gdsf;

#endif
