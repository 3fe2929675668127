/*
 * What would a policy have done? Replays a trace of requests through it, with nothing loaded and nobody holding
 * anything: for choosing a policy and for tests.
 */
#ifndef GR_REPLAY_H
#define GR_REPLAY_H

#include "policy.h"

typedef graft_trace_request gr_request;

typedef struct gr_replay_options {
    uint64_t capacity; /* bytes */
    size_t max_count;  /* entries; 0: only bytes are bounded */
    /* May be NULL. `at` is the index of the request that made room. */
    void (*evicted)(void *user, size_t at, const gr_policy_entry *e);
    void *user;
} gr_replay_options;

typedef graft_replay_result gr_replay_result;

/* Errors: OUT_OF_MEMORY, BAD_REQUEST (a size of 0). */
int gr_replay(gr_replay_result *out, const gr_request *trace, size_t n, graft_policy kind,
              const gr_replay_options *options, graft_error *err);

/*
 * The same with Belady's choice, which knows the future: the one whose next use is farthest away goes. With equal
 * sizes no policy that must take in each object can miss less often. With different sizes, or when misses differ in
 * cost, it is neither a bound nor the best: a large object that is used soon may be worth less than many small ones.
 */
int gr_replay_belady(gr_replay_result *out, const gr_request *trace, size_t n, const gr_replay_options *options,
                     graft_error *err);

#endif
