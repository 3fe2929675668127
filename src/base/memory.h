/*
 * The one allocator of graft's own code: it counts every byte, and in tests any call can be made to fail.
 * Memory of libllama, jansson and others is theirs and not counted. Thread-safe.
 */
#ifndef GR_MEMORY_H
#define GR_MEMORY_H

#include <stddef.h>
#include <stdint.h>

/* All return NULL when memory is out. Size 0 gives a unique pointer. Blocks are 16-byte aligned. */
void *gr_alloc(size_t size);
void *gr_zalloc(size_t size);
/* Zeroed array; NULL also if count * size wraps. */
void *gr_calloc(size_t count, size_t size);
/* As realloc: NULL `block` allocates; on failure the old block stays valid. */
void *gr_realloc(void *block, size_t size);
/* 64-byte aligned, for matrices that SIMD kernels read. Free with gr_free. Not for gr_realloc. */
void *gr_alloc_aligned(size_t size);
void gr_free(void *block);

/* Copies of strings, NUL-terminated. `s` may be NULL for gr_strdup (gives NULL). */
char *gr_strdup(const char *s);
char *gr_strndup(const char *s, size_t length);

/* Bytes now held, as asked for (without headers). */
uint64_t gr_memory_bytes(void);
/* Blocks now held. */
uint64_t gr_memory_blocks(void);

/*
 * For tests: the n-th allocation from now (1 = the next) fails, and with `forever` every one after it.
 * 0 turns it off. Returns how many allocations were asked for since the last call.
 */
uint64_t gr_memory_fail_at(uint64_t n, int forever);

#endif
