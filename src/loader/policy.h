/*
 * Which adapter goes when room is needed. Pure bookkeeping: no lock, no I/O, no clock, no randomness; the same
 * calls give the same victims. The cache (above) holds its own mutex around every call.
 *
 * A request is one of these, in this order:
 *   found         gr_policy_hit
 *   not found     gr_policy_miss on the entry to be loaded, gr_policy_evict until there is room, and, once the
 *                 load has succeeded, gr_policy_insert. A load that fails needs no call: drop the entry.
 *
 * Entries are embedded in the cache's own objects. A held entry (leased or pinned) can never be a victim. What
 * holding and releasing mean for each policy stands at the head of its file; common to all: holding is no use
 * of its own (a request calls hit as well), and an entry keeps its standing while it is held. lru, wtinylfu and
 * gdsf take held entries off their lists; sieve and s3fifo leave them in place and step over them, because
 * their order is that of arrival, and an entry put back after each lease would turn them into lru.
 */
#ifndef GR_POLICY_H
#define GR_POLICY_H

#include "base/error.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The kind of that name; false (and *out untouched) if there is none. */
bool gr_policy_parse(graft_policy *out, const char *name);

/*
 * What a policy keeps about an object. Zero it and set the first group before miss or insert; `held` may then
 * already count those who wait for the load. From insert until evict or remove it must not move, and its
 * contents belong to the policy.
 */
typedef struct gr_policy_entry {
    uint64_t key;      /* stable identity: survives eviction (ghosts remember it); a hash of project/adapter */
    uint64_t bytes;    /* > 0 */
    double cost;       /* what a miss costs: measured load time, seconds; > 0 (gdsf only) */
    uint32_t held;     /* leases and pins; > 0: cannot be a victim */

    bool returning;    /* s3fifo: its ghost was still there at the miss */
    bool visited;      /* sieve: hit since the hand passed */
    uint8_t queue;     /* s3fifo, wtinylfu: which part of the cache */
    uint32_t frequency; /* s3fifo, gdsf: hits */
    double priority;   /* heap: the least goes first … */
    uint64_t stamp;    /* … and of equals the one with the least stamp */
    size_t heap_index;
    struct gr_policy_entry *prev, *next; /* in one of the policy's lists; prev is towards the newest */
} gr_policy_entry;

typedef struct gr_policy gr_policy;

/* `capacity` in bytes sizes the queues of s3fifo and wtinylfu and the ghosts. *out: gr_policy_free.
 * Errors: OUT_OF_MEMORY. */
int gr_policy_create(gr_policy **out, graft_policy kind, uint64_t capacity, graft_error *err);
/* The entries inside are the caller's and stay as they are. */
void gr_policy_free(gr_policy *p);
/* The budget changed. Evicts nothing: the caller does, until it fits. */
void gr_policy_resize(gr_policy *p, uint64_t capacity);
/* Where the caller also bounds the number of entries (0: it does not): the shares then are shares of that number
 * as well. Without it a cache that is full at 3 of a possible 100 adapters would never see a queue over its share. */
void gr_policy_limit_count(gr_policy *p, size_t max);

/* A request did not find it: its load begins. Once for each load, before room is made; the entry is not in yet. */
void gr_policy_miss(gr_policy *p, gr_policy_entry *e);
/* The load succeeded: the entry becomes resident. Errors: OUT_OF_MEMORY (the entry is not in). */
int gr_policy_insert(gr_policy *p, gr_policy_entry *e, graft_error *err);
/* A request found it resident. */
void gr_policy_hit(gr_policy *p, gr_policy_entry *e);
/* One lease or pin more, one less. */
void gr_policy_hold(gr_policy *p, gr_policy_entry *e);
void gr_policy_unhold(gr_policy *p, gr_policy_entry *e);
/*
 * The entry to evict now, or NULL if every entry is held. It is out of the policy when this returns, and its
 * ghost is remembered where the policy has ghosts; so the caller must evict it. `incoming` is the size of what
 * room is made for (0: the budget shrank). A ghost that finds no memory is left out: it is only a hint.
 */
gr_policy_entry *gr_policy_evict(gr_policy *p, uint64_t incoming);
/* Leaves for another reason (unloaded, replaced), held or not: no ghost. */
void gr_policy_remove(gr_policy *p, gr_policy_entry *e);

/* Entries and their bytes, held ones included. */
size_t gr_policy_count(const gr_policy *p);
uint64_t gr_policy_bytes(const gr_policy *p);
/* Walks every invariant (each entry in exactly one list, sums, no held entry where victims are chosen): for tests. */
bool gr_policy_check(const gr_policy *p);

#endif
