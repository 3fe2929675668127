/* Which request may go on from which slot's part of the KV cache. Pure. */
#include "prefix_cache.h"

#include <stdlib.h>
#include <string.h>

/* ---- keys ---------------------------------------------------------------------------------------------- */

static int by_start(const void *a, const void *b) {
    const gr_prefix_use *x = a, *y = b;
    int order = (x->start > y->start) - (x->start < y->start);
    order = order ? order : strcmp(x->generation, y->generation);
    return order ? order : (x->scale > y->scale) - (x->scale < y->scale);
}

bool gr_prefix_key_make(gr_prefix_key *key, const gr_adapter_set *set, const int *starts, uint64_t domain) {
    memset(key, 0, sizeof *key);
    key->domain = domain;
    for (int i = 0; i < set->n; i++) {
        const char *generation = set->adapters[i]->generation;
        int start = starts ? starts[i] : 0;
        if (start == GR_NEVER) {
            continue;
        }
        if (!generation[0]) {
            return false;
        }
        gr_prefix_use *use = &key->uses[key->n++];
        memcpy(use->generation, generation, sizeof use->generation);
        use->scale = set->scales[i];
        use->start = start;
    }
    qsort(key->uses, (size_t)key->n, sizeof *key->uses, by_start);
    return true;
}

static int start_of(const gr_prefix_key *key, int i) {
    return i < key->n ? key->uses[i].start : GR_NEVER;
}

/* Both are sorted alike, so the first use that one has and the other has not is where they part. */
int gr_prefix_key_same_until(const gr_prefix_key *a, const gr_prefix_key *b) {
    if (a->domain != b->domain) {
        return 0;
    }
    int i = 0;
    while (i < a->n && i < b->n && by_start(&a->uses[i], &b->uses[i]) == 0) {
        i++;
    }
    int x = start_of(a, i), y = start_of(b, i);
    return x < y ? x : y;
}

/* ---- matching ------------------------------------------------------------------------------------------ */

static int min_int(int a, int b) {
    return a < b ? a : b;
}

/* So many of the request's tokens are what the slot has in the cache. */
static int common(const gr_prefix *p, const gr_prefix_key *key, const llama_token *tokens, int n_tokens, bool whole) {
    int most = min_int(min_int(p->n, n_tokens - 1), gr_prefix_key_same_until(&p->key, key)), n = 0;
    while (n < most && p->tokens[n] == tokens[n]) {
        n++;
    }
    return whole && n < p->n ? 0 : n;
}

/* Whether the slot can be continued after `n` tokens without losing much. */
static bool continues(const gr_prefix *p, int n) {
    return !p->busy && 2 * (int64_t)n >= p->n;
}

/* Index of the free slot that was left longest ago, empty ones first; -1 if all are busy. */
static int oldest_free(const gr_prefix *slots, int n_slots) {
    int found = -1;
    for (int i = 0; i < n_slots; i++) {
        const gr_prefix *p = &slots[i], *best = found < 0 ? NULL : &slots[found];
        if (!p->busy && (!best || (best->n > 0 && (p->n == 0 || p->used < best->used)))) {
            found = i;
        }
    }
    return found;
}

gr_placement gr_prefix_place(const gr_prefix *slots, int n_slots, const gr_prefix_key *key, const llama_token *tokens,
                             int n_tokens, bool whole) {
    int source = -1, n = 0;
    for (int i = 0; key && i < n_slots; i++) {
        int found = common(&slots[i], key, tokens, n_tokens, whole);
        bool better = found > n || (found == n && n > 0 && continues(&slots[i], n) && !continues(&slots[source], n));
        source = better ? i : source;
        n = better ? found : n;
    }
    gr_placement at = {oldest_free(slots, n_slots), source, n};
    if (n > 0 && continues(&slots[source], n)) {
        at.slot = source;
    }
    return at;
}
