/*
 * The one file that owns the trick: adding each row's delta inside libllama's evaluation callback
 * (llama_context_params.cb_eval). ggml documents that callback as observation; docs/libllama.md says what we
 * rely on beyond that, and selftest.h checks it on the open model.
 *
 * Decode thread only. The callback takes no lock of ours, allocates nothing and makes no system call of ours
 * (large deltas are computed on ggml's threads, which it may have to wake). Large deltas
 * are shared out over libllama's own compute threads, which wait at that moment; see pool.h.
 */
#ifndef GR_HOOK_H
#define GR_HOOK_H

#include "lora/kernels.h"
#include "lora/row_plan.h"

#include <ggml-backend.h>
#include <llama.h>

typedef struct gr_hook gr_hook;

/*
 * A hook for contexts over `base` that decode at most max_rows rows at once, with n_threads compute threads.
 * Creates the thread pool that libllama and the hook share. *out: gr_hook_free, after the context.
 */
int gr_hook_create(gr_hook **out, const gr_base_model *base, int max_rows, int n_threads, const gr_kernels *kernels,
                   graft_error *err);
void gr_hook_free(gr_hook *h);

/* Put these into llama_context_params, then call gr_hook_attach once the context exists. */
ggml_backend_sched_eval_callback gr_hook_callback(void);
/* Attaches the shared thread pool to the context. */
void gr_hook_attach(gr_hook *h, struct llama_context *ctx);

/*
 * Announces the plan for the next llama_decode; NULL or an empty plan: nothing is asked for and the graph runs in
 * one piece. The plan must stay as it is until gr_hook_end.
 */
void gr_hook_begin(gr_hook *h, const gr_row_plan *plan);
/*
 * After llama_decode, also after one that failed (whose error then comes first; ignore the one from here): 0, or
 * what the callback noticed. Errors: INTERNAL (a graph that is not what we rely on: a product with an unexpected
 * shape, an adapter's weight that never came by or came twice); NON_FINITE_OUTPUT with *bad_adapter set to an
 * adapter whose delta overflowed or came near it (limits: hook.c).
 *
 * Rows that overflow in an adapter's own arithmetic are set to zero there, so that the other rows of the decode
 * stay right. What the base makes of huge but finite values is beyond us: a float16 KV cache turns 70000 into
 * infinity, and where attention masks after multiplying, an infinite or NaN cell spoils every sequence of the
 * cache, even once it is removed but not overwritten. So whoever reads logits must check them; if any are not
 * finite, end the sequences to blame, clear the cache with its data, and decode the others anew.
 */
int gr_hook_end(gr_hook *h, const gr_adapter **bad_adapter, graft_error *err);

/* Nodes that were given a delta in the last decode, for tests and docs. */
int gr_hook_products(const gr_hook *h);

#endif
