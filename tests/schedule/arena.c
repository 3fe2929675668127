/*
 * base/memory.h for one schedule: blocks come from one array in order and are never given out twice, so that a block used
 * after it was freed is seen: freed blocks are filled with 0xDD, a pointer read from one leads nowhere, and a write to one is
 * found at the end. Under AddressSanitizer it sees them itself.
 */
#include "schedule.h"

#include "base/memory.h"

#include <string.h>

#if defined(__SANITIZE_ADDRESS__)
#define ARENA_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define ARENA_ASAN 1
#endif
#endif
#ifdef ARENA_ASAN
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(p, n) ((void)(p), (void)(n))
#define ASAN_UNPOISON_MEMORY_REGION(p, n) ((void)(p), (void)(n))
#endif

enum { ARENA_SIZE = 8 << 20, GAP = 16 };
static const uint64_t LIVE = UINT64_C(0x6c6976652d626c6b), FREED = UINT64_C(0x66726565642d2d2d);

typedef struct header {
    uint64_t magic, size;
} header;

static _Alignas(64) unsigned char arena[ARENA_SIZE];
static size_t used;
static uint64_t bytes_held, blocks_held, calls, fail_at;
static int fail_forever;

static size_t rounded(size_t size) {
    return (size + GAP + 15) / 16 * 16;
}

void arena_reset(void) {
    ASAN_UNPOISON_MEMORY_REGION(arena, used);
    used = 0;
    bytes_held = blocks_held = calls = fail_at = 0;
    fail_forever = 0;
}

bool arena_check(void) {
#ifndef ARENA_ASAN
    for (size_t at = 0; at < used;) {
        const header *h = (const header *)(const void *)(arena + at);
        const unsigned char *block = arena + at + sizeof *h;
        if (h->magic == FREED && h->size > 0 && (block[0] != 0xdd || memcmp(block, block + 1, h->size - 1) != 0)) {
            return false;
        }
        at += sizeof *h + rounded(h->size);
    }
#endif
    return true;
}

uint64_t gr_memory_fail_at(uint64_t n, int forever) {
    uint64_t seen = calls;
    calls = 0;
    fail_at = n;
    fail_forever = forever;
    return seen;
}

void *gr_alloc(size_t size) {
    calls++;
    if (fail_at && (calls == fail_at || (calls > fail_at && fail_forever))) {
        return NULL;
    }
    if (size > ARENA_SIZE || used + sizeof(header) + rounded(size) > ARENA_SIZE) {
        sched_fail("the arena is full: a schedule that goes on and on");
    }
    header *h = (header *)(void *)(arena + used);
    *h = (header){LIVE, size};
    used += sizeof *h + rounded(size);
    ASAN_POISON_MEMORY_REGION((unsigned char *)(h + 1) + size, rounded(size) - size);
    memset(h + 1, 0xa5, size);
    bytes_held += size;
    blocks_held++;
    return h + 1;
}

void *gr_alloc_aligned(size_t size) {
    (void)size;
    return NULL; /* nothing in the loader asks for it */
}

void *gr_realloc(void *block, size_t size) {
    void *grown = gr_alloc(size);
    if (grown && block) {
        size_t old = (size_t)((header *)block - 1)->size;
        memcpy(grown, block, old < size ? old : size);
        gr_free(block);
    }
    return grown;
}

void gr_free(void *block) {
    if (!block) {
        return;
    }
    header *h = (header *)block - 1;
    if (h->magic != LIVE) {
        sched_fail(h->magic == FREED ? "a block is freed twice" : "what is freed is no block");
    }
    h->magic = FREED;
    bytes_held -= h->size;
    blocks_held--;
    memset(block, 0xdd, h->size);
    ASAN_POISON_MEMORY_REGION(block, h->size);
}

uint64_t gr_memory_bytes(void) {
    return bytes_held;
}

uint64_t gr_memory_blocks(void) {
    return blocks_held;
}
