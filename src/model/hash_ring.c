/* Buffers in a ring between the thread that reads a file and the one that hashes it. */
#include "hash_ring.h"

#include "base/memory.h"

static char *buffer(const gr_hash_ring *r, uint64_t i) {
    return r->memory + (size_t)(i % GR_HASH_RING) * r->buffer_size;
}

/* Hashes buffers in order until the end is told; the lock is not held meanwhile. */
static void *hash_all(void *ring) {
    gr_hash_ring *r = ring;
    gr_mutex_lock(&r->lock);
    for (;;) {
        while (r->hashed == r->filled && !r->end) {
            gr_cond_wait(&r->more, &r->lock);
        }
        if (r->hashed == r->filled) {
            break;
        }
        uint64_t i = r->hashed;
        gr_mutex_unlock(&r->lock);
        gr_sha256_add(&r->hash, buffer(r, i), r->length[i % GR_HASH_RING]);
        gr_mutex_lock(&r->lock);
        if (++r->hashed == r->wanted) {
            r->wanted = 0;
            gr_cond_signal(&r->room);
        }
    }
    gr_mutex_unlock(&r->lock);
    return NULL;
}

int gr_hash_ring_start(gr_hash_ring *r, size_t buffer_size, bool threaded, graft_error *err) {
    *r = (gr_hash_ring){.buffer_size = (buffer_size + 63) & ~(size_t)63};
    gr_sha256_init(&r->hash);
    gr_mutex_init(&r->lock, GR_RANK_HASH);
    gr_cond_init(&r->more);
    gr_cond_init(&r->room);
    size_t size = r->buffer_size * (threaded ? GR_HASH_RING : 1);
    r->memory = gr_alloc_aligned(size);
    if (!r->memory) {
        return gr_fail_memory(err, size);
    }
    r->threaded = threaded && gr_thread_start(&r->thread, hash_all, r) == 0;
    return 0;
}

void *gr_hash_ring_take(gr_hash_ring *r) {
    if (!r->threaded) {
        return r->memory;
    }
    gr_mutex_lock(&r->lock);
    if (r->filled - r->hashed == GR_HASH_RING) {
        /* Half of them at once: to be woken for each would cost the hashing thread more than its lead is worth. */
        uint64_t wanted = r->hashed + GR_HASH_RING / 2;
        r->wanted = wanted;
        while (r->hashed < wanted) {
            gr_cond_wait(&r->room, &r->lock);
        }
    }
    gr_mutex_unlock(&r->lock);
    return buffer(r, r->filled); /* only this thread changes `filled` */
}

void gr_hash_ring_put(gr_hash_ring *r, size_t length) {
    if (!r->threaded) {
        gr_sha256_add(&r->hash, r->memory, length);
        return;
    }
    r->length[r->filled % GR_HASH_RING] = length;
    gr_mutex_lock(&r->lock);
    r->filled++;
    gr_cond_signal(&r->more);
    gr_mutex_unlock(&r->lock);
}

static void join(gr_hash_ring *r) {
    if (r->threaded) {
        gr_mutex_lock(&r->lock);
        r->end = true;
        gr_cond_signal(&r->more);
        gr_mutex_unlock(&r->lock);
        gr_thread_join(r->thread);
        r->threaded = false;
    }
}

int gr_hash_ring_result(gr_hash_ring *r, uint8_t out[GR_SHA256_SIZE], graft_error *err) {
    join(r);
    return gr_sha256_result(&r->hash, out, err);
}

void gr_hash_ring_finish(gr_hash_ring *r) {
    join(r);
    gr_cond_finish(&r->room);
    gr_cond_finish(&r->more);
    gr_mutex_finish(&r->lock);
    gr_free(r->memory);
    gr_sha256_finish(&r->hash);
}
