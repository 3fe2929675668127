/*
 * A base model and adapters as one new model: every weight that an adapter changes becomes W' (merge_rows.h), in the type that it
 * had or in another. Weights pass through memory in pieces of some MiB; beside those only the adapters, in float32, are held.
 */
#ifndef GR_MERGE_H
#define GR_MERGE_H

#include "base/log.h"
#include "model/adapter.h"
#include "model/merge_types.h"

typedef struct gr_merge_use {
    const gr_adapter *adapter; /* built as F32 */
    float factor;
    const char *name;          /* what to call it in the new model's keys */
} gr_merge_use;

typedef struct gr_merge_options {
    enum ggml_type type;        /* or GR_MERGE_SAME */
    int threads;                /* at least 1 */
    bool replace;
    graft_progress_fn progress; /* NULL = none */
    void *progress_user;
} gr_merge_options;

/*
 * Writes the merged model to `path`, one file also where the base is split, and has libllama look at it before it gets its name.
 * A head or embedding that is changed where the base has one weight for both becomes two weights.
 * Errors: UNSUPPORTED_ADAPTER (aLoRA; two DoRA adapters on one weight; a bias where the base has none), UNSUPPORTED_MODEL (libllama would
 * not open the result: a head of its own that the architecture does not have), BAD_REQUEST (a type that cannot be written; `path`
 * is the base), NON_FINITE, OUT_OF_RANGE (a number that the type cannot hold), MODEL_INVALID (the base, on reading), CANCELLED, STORAGE_FULL, CONFLICT,
 * CHANGED_WHILE_READING, OUT_OF_MEMORY.
 */
int gr_merge(const gr_base_model *base, const gr_merge_use *uses, size_t n_uses, const char *path,
             const gr_merge_options *options, graft_error *err);

#endif
