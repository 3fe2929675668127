/* The offline simulator: see replay.h. One loop for all; Belady is one more way of choosing beside the policies. */
#include "replay.h"

#include "base/memory.h"
#include "heap.h"

#include <string.h>

#define HASH_NONFATAL_OOM 1
#define uthash_malloc(size) gr_alloc(size)
#define uthash_free(block, size) gr_free(block)
#include <uthash.h>

typedef struct object {
    gr_policy_entry entry; /* first: an entry is its object */
    bool resident;
    size_t next_use; /* Belady, while the future is worked out from the end */
    UT_hash_handle hh;
} object;

typedef struct objects {
    object *table;
} objects;

/* The object of that request, made at the first. NULL if memory is out. */
static object *object_of(objects *all, const gr_request *r) {
    object *o;
    HASH_FIND(hh, all->table, &r->key, sizeof r->key, o);
    if (o) {
        return o;
    }
    o = gr_zalloc(sizeof *o);
    if (!o) {
        return NULL;
    }
    o->entry.key = r->key;
    o->entry.bytes = r->bytes;
    o->entry.cost = r->cost;
    o->next_use = SIZE_MAX;
    HASH_ADD(hh, all->table, entry.key, sizeof r->key, o);
    if (!o->hh.tbl) { /* the table could not grow and did not take it */
        gr_free(o);
        return NULL;
    }
    return o;
}

static void objects_finish(objects *all) {
    object *o, *next;
    HASH_ITER(hh, all->table, o, next) {
        HASH_DEL(all->table, o);
        gr_free(o);
    }
}

/* Either a policy, or (policy == NULL) Belady: residents in a heap, the farthest next use on top. */
typedef struct chooser {
    gr_policy *policy;
    gr_heap heap;
    const size_t *next_use; /* of each request's object, as an index into the trace */
    uint64_t bytes;
} chooser;

static void see_future(chooser *c, gr_policy_entry *e, size_t at) {
    e->priority = -(double)c->next_use[at];
    e->stamp = at;
}

static void on_hit(chooser *c, gr_policy_entry *e, size_t at) {
    if (c->policy) {
        gr_policy_hit(c->policy, e);
    } else {
        see_future(c, e, at);
        gr_heap_moved(&c->heap, e);
    }
}

static int on_insert(chooser *c, gr_policy_entry *e, size_t at, graft_error *err) {
    if (c->policy) {
        return gr_policy_insert(c->policy, e, err);
    }
    if (!gr_heap_reserve(&c->heap, c->heap.count + 1)) {
        return gr_fail_memory(err, (c->heap.count + 1) * sizeof(void *));
    }
    see_future(c, e, at);
    gr_heap_push(&c->heap, e);
    c->bytes += e->bytes;
    return 0;
}

static gr_policy_entry *choose(chooser *c, uint64_t incoming) {
    if (c->policy) {
        return gr_policy_evict(c->policy, incoming);
    }
    gr_policy_entry *victim = c->heap.entries[0];
    gr_heap_take(&c->heap, victim);
    c->bytes -= victim->bytes;
    return victim;
}

static bool has_room(const chooser *c, const gr_replay_options *options, uint64_t incoming) {
    uint64_t bytes = c->policy ? gr_policy_bytes(c->policy) : c->bytes;
    size_t count = c->policy ? gr_policy_count(c->policy) : c->heap.count;
    return incoming <= options->capacity - bytes && (options->max_count == 0 || count < options->max_count);
}

static int on_miss(gr_replay_result *result, chooser *c, object *o, size_t at, const gr_replay_options *options,
                   graft_error *err) {
    result->misses++;
    result->cost_missed += o->entry.cost;
    if (c->policy) {
        gr_policy_miss(c->policy, &o->entry);
    }
    if (o->entry.bytes > options->capacity) {
        result->too_large++;
        return 0;
    }
    while (!has_room(c, options, o->entry.bytes)) {
        gr_policy_entry *victim = choose(c, o->entry.bytes);
        ((object *)victim)->resident = false;
        result->evictions++;
        if (options->evicted) {
            options->evicted(options->user, at, victim);
        }
    }
    int code = on_insert(c, &o->entry, at, err);
    o->resident = code == 0;
    return code;
}

static int replay(gr_replay_result *out, chooser *c, objects *all, const gr_request *trace, size_t n,
                  const gr_replay_options *options, graft_error *err) {
    gr_replay_result result = {.requests = n};
    for (size_t at = 0; at < n; at++) {
        if (trace[at].bytes == 0) {
            return gr_fail(err, GRAFT_E_BAD_REQUEST, "request %zu of the trace has no size", at);
        }
        object *o = object_of(all, &trace[at]);
        if (!o) {
            return gr_fail_memory(err, sizeof *o);
        }
        result.cost += o->entry.cost;
        if (o->resident) {
            result.hits++;
            on_hit(c, &o->entry, at);
            continue;
        }
        int code = on_miss(&result, c, o, at, options, err);
        if (code != 0) {
            return code;
        }
    }
    *out = result;
    return 0;
}

int gr_replay(gr_replay_result *out, const gr_request *trace, size_t n, graft_policy kind,
              const gr_replay_options *options, graft_error *err) {
    chooser c = {0};
    objects all = {0};
    int code = gr_policy_create(&c.policy, kind, options->capacity, err);
    if (code != 0) {
        return code;
    }
    gr_policy_limit_count(c.policy, options->max_count);
    code = replay(out, &c, &all, trace, n, options, err);
    gr_policy_free(c.policy);
    objects_finish(&all);
    return code;
}

/* For each request, when its object is asked for next; SIZE_MAX for never. NULL if memory is out. */
static size_t *work_out_future(objects *all, const gr_request *trace, size_t n) {
    size_t *next_use = gr_calloc(n, sizeof *next_use);
    for (size_t at = n; next_use && at-- > 0;) {
        object *o = object_of(all, &trace[at]);
        if (!o) {
            gr_free(next_use);
            return NULL;
        }
        next_use[at] = o->next_use;
        o->next_use = at;
    }
    return next_use;
}

int gr_replay_belady(gr_replay_result *out, const gr_request *trace, size_t n, const gr_replay_options *options,
                     graft_error *err) {
    objects all = {0};
    int code = 0;
    size_t *next_use = work_out_future(&all, trace, n);
    chooser c = {.next_use = next_use};
    if (next_use) {
        code = replay(out, &c, &all, trace, n, options, err);
    } else {
        code = gr_fail_memory(err, n);
    }
    gr_heap_finish(&c.heap);
    gr_free(next_use);
    objects_finish(&all);
    return code;
}
