/* Ghosts in a hash table of uthash, whose own order of insertion serves as the queue. */
#include "ghosts.h"

#include "base/memory.h"

#define HASH_NONFATAL_OOM 1
#define uthash_malloc(size) gr_alloc(size)
#define uthash_free(block, size) gr_free(block)
#define uthash_nonfatal_oom(ghost) gr_free(ghost)
#include <uthash.h>

typedef struct gr_ghost {
    uint64_t key, bytes;
    UT_hash_handle hh;
} ghost;

static void drop(gr_ghosts *g, ghost *old) {
    HASH_DEL(g->table, old);
    g->bytes -= old->bytes;
    gr_free(old);
}

static void shrink(gr_ghosts *g, uint64_t bytes, size_t count) {
    while (g->table && (g->bytes > bytes || HASH_COUNT(g->table) > count)) {
        drop(g, g->table);
    }
}

void gr_ghosts_resize(gr_ghosts *g, uint64_t max_bytes, size_t max_count) {
    g->max_bytes = max_bytes;
    g->max_count = max_count < GR_GHOSTS_MAX ? max_count : GR_GHOSTS_MAX;
    shrink(g, g->max_bytes, g->max_count);
}

void gr_ghosts_finish(gr_ghosts *g) {
    shrink(g, 0, 0);
}

void gr_ghosts_add(gr_ghosts *g, uint64_t key, uint64_t bytes) {
    if (bytes > g->max_bytes || g->max_count == 0) {
        return;
    }
    gr_ghosts_take(g, key);
    shrink(g, g->max_bytes - bytes, g->max_count - 1);
    ghost *new = gr_zalloc(sizeof *new);
    if (!new) {
        return;
    }
    new->key = key;
    new->bytes = bytes;
    unsigned before = HASH_COUNT(g->table);
    HASH_ADD(hh, g->table, key, sizeof new->key, new); /* frees `new` if the table cannot grow */
    if (HASH_COUNT(g->table) > before) {
        g->bytes += bytes;
    }
}

static ghost *find(const gr_ghosts *g, uint64_t key) {
    ghost *found;
    HASH_FIND(hh, g->table, &key, sizeof key, found);
    return found;
}

bool gr_ghosts_take(gr_ghosts *g, uint64_t key) {
    ghost *old = find(g, key);
    if (old) {
        drop(g, old);
    }
    return old != NULL;
}

bool gr_ghosts_check(const gr_ghosts *g) {
    uint64_t bytes = 0;
    size_t count = 0;
    for (const ghost *each = g->table; each; each = each->hh.next) {
        if (find(g, each->key) != each) {
            return false;
        }
        bytes += each->bytes;
        count++;
    }
    return bytes == g->bytes && bytes <= g->max_bytes && count == HASH_COUNT(g->table) && count <= g->max_count;
}
