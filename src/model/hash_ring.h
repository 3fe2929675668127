/*
 * SHA-256 of a stream on a second thread, while the first one works on the same bytes: hashing takes about as long
 * as all else that loading an adapter does, so it is done beside it. The buffers that the reader fills are the very
 * ones that are hashed; nothing is copied or read twice.
 *
 * One reader: take a buffer, fill it, put it; its bytes may be read until the next take. When all buffers wait to
 * be hashed, take waits.
 */
#ifndef GR_HASH_RING_H
#define GR_HASH_RING_H

#include "base/thread.h"
#include "model/sha256.h"

#include <stdbool.h>

enum { GR_HASH_RING = 16 }; /* buffers */

typedef struct gr_hash_ring {
    gr_sha256 hash;
    char *memory;
    size_t buffer_size;
    size_t length[GR_HASH_RING]; /* of what is in each */
    bool threaded;
    pthread_t thread;
    /* Under the lock. Buffers hashed .. filled - 1, modulo GR_HASH_RING, belong to the thread. */
    gr_mutex lock;
    gr_cond more, room;
    uint64_t filled, hashed;
    uint64_t wanted; /* the reader sleeps until `hashed` is this; 0: it does not */
    bool end;
} gr_hash_ring;

/*
 * Begins a hash over buffers of `buffer_size` bytes. `threaded`: on a second thread, for streams long enough to be
 * worth one. If none can be started the bytes are hashed where they are put; the result is the same.
 * gr_hash_ring_finish in any case. Errors: OUT_OF_MEMORY.
 */
int gr_hash_ring_start(gr_hash_ring *r, size_t buffer_size, bool threaded, graft_error *err);
/* A 64-byte aligned buffer to fill. One that was taken and not put is given again. */
void *gr_hash_ring_take(gr_hash_ring *r);
/* The first `length` bytes of the buffer last taken are the next of the stream. */
void gr_hash_ring_put(gr_hash_ring *r, size_t length);
/* Waits until all is hashed. After it only gr_hash_ring_finish. Errors: OUT_OF_MEMORY. */
int gr_hash_ring_result(gr_hash_ring *r, uint8_t out[GR_SHA256_SIZE], graft_error *err);
/* Ends the thread, also in the middle of a stream, and frees everything. */
void gr_hash_ring_finish(gr_hash_ring *r);

#endif
