/*
 * The compute threads that libllama and the hook share.
 *
 * ggml without OpenMP makes a disposable pool for every graph it computes when none is attached: some 150 µs for
 * each piece into which the callback cuts a decode. And two pools that poll for work steal each other's cores.
 * So there is one pool: attached to the context, and borrowed by the callback while ggml waits for it.
 *
 * The pool's functions are found by name in ggml's CPU backend, which may be a library loaded at run time. A ggml
 * that lacks them gets no pool: gr_pool_run then works on the calling thread alone.
 */
#ifndef GR_POOL_H
#define GR_POOL_H

#include "base/error.h"

#include <llama.h>

typedef struct gr_pool gr_pool;

/* *out: gr_pool_free. All signals are blocked in its threads. Errors: OUT_OF_MEMORY. */
int gr_pool_create(gr_pool **out, int n_threads, graft_error *err);
/* After every context it was attached to. */
void gr_pool_free(gr_pool *p);

/* Makes libllama compute on this pool, with its number of threads. */
void gr_pool_attach(gr_pool *p, struct llama_context *ctx);

/* Threads that gr_pool_run uses. */
int gr_pool_threads(const gr_pool *p);

/* One thread's share of a piece of work. */
typedef void (*gr_pool_fn)(void *user, int thread, int n_threads);

/*
 * Runs `first` on all threads, and when all are done `second` (if not NULL), and returns when all are done with that. Only
 * while ggml is not computing on this pool: between decodes or inside the callback. Allocates nothing.
 * Returns false if ggml refused, with the work left undone.
 */
bool gr_pool_run(gr_pool *p, gr_pool_fn first, gr_pool_fn second, void *user);

#endif
