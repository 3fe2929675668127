/* Each block carries a 16-byte header in front of what the caller sees: its size, and how far back malloc's own
 * pointer lies. That makes counting exact and frees callers from remembering sizes. */
#include "memory.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

typedef struct header {
    uint64_t size;
    uint64_t back; /* from the caller's pointer to malloc's */
} header;

_Static_assert(sizeof(header) == 16, "the caller's block must stay 16-byte aligned");

/* Statistics only: nothing is ordered by them, so relaxed access is enough. */
static _Atomic uint64_t bytes_held, blocks_held, calls, fail_at;
static _Atomic int fail_forever;

static int told_to_fail(void) {
    uint64_t call = atomic_fetch_add_explicit(&calls, 1, memory_order_relaxed) + 1;
    uint64_t at = atomic_load_explicit(&fail_at, memory_order_relaxed);
    if (at == 0) {
        return 0;
    }
    return call == at || (call > at && atomic_load_explicit(&fail_forever, memory_order_relaxed));
}

uint64_t gr_memory_fail_at(uint64_t n, int forever) {
    uint64_t seen = atomic_exchange(&calls, 0);
    atomic_store(&fail_forever, forever);
    atomic_store(&fail_at, n);
    return seen;
}

static header *header_of(void *block) {
    return (header *)block - 1;
}

static void *allocate(size_t size, size_t align) {
    if (size > SIZE_MAX - align - sizeof(header) || told_to_fail()) {
        return NULL;
    }
    char *raw = malloc(size + sizeof(header) + (align > 16 ? align : 0));
    if (!raw) {
        return NULL;
    }
    char *block = raw + sizeof(header);
    if (align > 16) {
        block += (align - (uintptr_t)block % align) % align;
    }
    header_of(block)->size = size;
    header_of(block)->back = (uint64_t)(block - raw);
    atomic_fetch_add_explicit(&bytes_held, size, memory_order_relaxed);
    atomic_fetch_add_explicit(&blocks_held, 1, memory_order_relaxed);
    return block;
}

void *gr_alloc(size_t size) {
    return allocate(size, 16);
}

void *gr_alloc_aligned(size_t size) {
    return allocate(size, 64);
}

void *gr_realloc(void *block, size_t size) {
    void *grown = gr_alloc(size);
    if (grown && block) {
        size_t old = (size_t)header_of(block)->size;
        memcpy(grown, block, old < size ? old : size);
        gr_free(block);
    }
    return grown;
}

void gr_free(void *block) {
    if (block) {
        header *h = header_of(block);
        atomic_fetch_sub_explicit(&bytes_held, h->size, memory_order_relaxed);
        atomic_fetch_sub_explicit(&blocks_held, 1, memory_order_relaxed);
        free((char *)block - h->back);
    }
}

uint64_t gr_memory_bytes(void) {
    return atomic_load_explicit(&bytes_held, memory_order_relaxed);
}

uint64_t gr_memory_blocks(void) {
    return atomic_load_explicit(&blocks_held, memory_order_relaxed);
}
