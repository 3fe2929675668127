/*
 * The second way: libllama's own adapter path, fed from our verified adapter through a GGUF made in memory, so
 * that libllama never parses a stranger's file. Used where rows cannot be (GPU, failed self-test) and as the
 * baseline in benchmarks. Decode thread only: libllama keeps its list of adapters without a lock.
 */
#ifndef GR_GROUPED_H
#define GR_GROUPED_H

#include "lora/row_plan.h"

#include <llama.h>

typedef struct gr_grouped gr_grouped;

/* Keeps libllama's twin of each adapter that was used, until gr_grouped_forget. A twin is a second copy of the
 * matrices, in libllama's memory. For one context. */
int gr_grouped_create(gr_grouped **out, const gr_base_model *base, graft_error *err);
/* Frees all twins: after the context, before the model. */
void gr_grouped_free(gr_grouped *g);

/* Whether libllama's adapters can do what this one does. Errors: UNSUPPORTED_ADAPTER. Any thread. */
int gr_grouped_check(const gr_adapter *a, graft_error *err);

/* Sets the context's adapters to `set` (NULL or empty: none), making twins as needed. Cheap if already set; else
 * libllama reserves its graph anew in the next decode. Call with NULL before decoding by rows.
 * Errors: OUT_OF_MEMORY, UNSUPPORTED_ADAPTER (gr_grouped_check), INTERNAL (libllama refused); the context's adapters are then as before. */
int gr_grouped_select(gr_grouped *g, struct llama_context *ctx, const gr_adapter_set *set, graft_error *err);

/* Bytes of all twins, as large as the GGUF files that they were made from. Any thread. */
uint64_t gr_grouped_bytes(const gr_grouped *g);

/* At least what the twin of this adapter takes, and little more. */
uint64_t gr_grouped_size(const gr_adapter *a);
/* The same from what is known before an adapter is built; not less, perhaps twice as much or more. */
uint64_t gr_grouped_most(uint64_t adapter_bytes, size_t n_modules, graft_adapter_type type);

/* Frees the twin of an adapter that is going away, if there is one, and first deselects it in the context. */
void gr_grouped_forget(gr_grouped *g, struct llama_context *ctx, const gr_adapter *adapter);

#endif
