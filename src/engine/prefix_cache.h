/*
 * What each slot's part of the KV cache holds, and where a new request should go so that least is computed anew. Pure: a function
 * of its arguments, tested by tables.
 *
 * The cache depends on the tokens and on what was added to the base's products, so a prefix is good only as far as the same
 * adapters acted with the same scales. Those are told by generation, the hash of an adapter's files: names change their meaning,
 * and addresses are used again. Where an activated adapter does not act yet (activation.h) the cache is that of the others, or of
 * the base: what lies before the invocations is shared among all that are asked about it.
 */
#ifndef GR_PREFIX_CACHE_H
#define GR_PREFIX_CACHE_H

#include "engine/activation.h"

typedef struct gr_prefix_use {
    char generation[65];
    float scale;
    int start; /* the position from which it acts */
} gr_prefix_use;

/* What acts at which position. Sorted by start, generation, scale; without those that never act. */
typedef struct gr_prefix_key {
    gr_prefix_use uses[GR_MAX_USES];
    int n;
    uint64_t domain; /* graft_request.cache_domain */
} gr_prefix_key;

/* False if an adapter has no generation, so that nothing is known to be the same. `starts` as for gr_activation_make. */
bool gr_prefix_key_make(gr_prefix_key *key, const gr_adapter_set *set, const int *starts, uint64_t domain);
/* The first position at which not the same acts for both; GR_NEVER if the same acts throughout. */
int gr_prefix_key_same_until(const gr_prefix_key *a, const gr_prefix_key *b);

/* What one slot has in the cache. */
typedef struct gr_prefix {
    bool busy;                 /* a request runs in the slot */
    const llama_token *tokens; /* the slot's */
    int n;                     /* so many of them are in the cache and may be shared */
    uint64_t used;             /* when it was left; larger is later */
    gr_prefix_key key;
} gr_prefix;

typedef struct gr_placement {
    int slot;   /* a free one; -1 = there is none */
    int source; /* slot whose first `n` tokens are the request's; the same as `slot` if they are there already */
    int n;      /* 0 = nothing is shared */
} gr_placement;

/*
 * Where a request with these tokens goes. `key` NULL: it shares nothing. `whole`: a prefix is good only uncut.
 *
 * The longest common beginning wins, never all of the request's tokens: the last one must be computed, for its logits. A free
 * slot that loses less than half of what it holds by that is continued. Otherwise the beginning is shared with the slot that
 * was left longest ago, empty ones first, whose own content then goes; so one request of another kind does not cut a long
 * conversation down to the system prompt that all have.
 */
gr_placement gr_prefix_place(const gr_prefix *slots, int n_slots, const gr_prefix_key *key, const llama_token *tokens,
                             int n_tokens, bool whole);

#endif
