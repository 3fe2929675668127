/*
 * The engine: one decode thread that owns the libllama context. Requests come in through a queue, become
 * sequences, share batches, and leave; README.md in this folder is the thread map.
 */
#ifndef GR_ENGINE_H
#define GR_ENGINE_H

#include "base/buffer.h"
#include "base/log.h"
#include "base/thread.h"
#include "engine/vocab.h"
#include "lora/row_plan.h"
#include "model/base_model.h"

typedef struct gr_engine gr_engine;

typedef struct gr_engine_options {
    int slots, context, batch, threads; /* all resolved: no zeros; slots <= GR_MAX_SLOTS, batch >= 16 */
    graft_kv_type kv_type;
    graft_apply apply;
    bool self_test;
    const gr_log *log;
} gr_engine_options;

/*
 * Makes context, hook, thread pool and buffers, runs the self-test and starts the decode thread. `base` is
 * borrowed and must outlive the engine. Errors: OUT_OF_MEMORY, MODEL_INVALID (libllama refuses a context),
 * SELF_TEST_FAILED (apply = ROWS). *out: gr_engine_free.
 */
int gr_engine_create(gr_engine **out, gr_base_model *base, const gr_engine_options *options, graft_error *err);
/* Ends every job with SHUTTING_DOWN, joins the thread, frees. Jobs may be waited for and freed afterwards. */
void gr_engine_free(gr_engine *e);

/* What a job does with the logits. */
typedef enum gr_job_kind { GR_JOB_GENERATE, GR_JOB_SCORE } gr_job_kind;

/* A request, complete and owned: everything is checked and copied before it reaches the engine. */
typedef struct gr_job_spec {
    gr_job_kind kind;
    gr_adapter_set adapters;  /* each with a reference that the job owns */
    llama_token *tokens;      /* owned; all within the vocabulary */
    int n_tokens;             /* 1 to context (SCORE) or context - 1 */
    int max_tokens;           /* > 0; the context's end also ends it */
    bool ignore_eos;
    graft_sampling sampling;  /* grammar: owned copy or NULL */
    char **stop;              /* owned */
    size_t n_stop;
    graft_text_fn on_text;
    graft_logits_fn on_logits; /* SCORE */
    void *user;
} gr_job_spec;

/* Takes over everything in *spec in any case (frees it on failure). Errors: BAD_GRAMMAR, OUT_OF_MEMORY. */
int gr_job_create(graft_job **out, gr_engine *e, gr_job_spec *spec, graft_error *err);
void gr_job_spec_finish(gr_job_spec *spec);

/* At most this many jobs wait for a slot. */
#define GR_MAX_QUEUE 65536

/* Puts all jobs into the queue at once. Errors: SHUTTING_DOWN, OUT_OF_MEMORY (the queue is full). */
int gr_engine_submit(gr_engine *e, graft_job *const *jobs, size_t n, graft_error *err);
/* For SCORE jobs after the wait: [n_tokens] natural log-probabilities, [0] NaN. Borrowed from the job. */
const float *gr_job_logprobs(const graft_job *job);

/* From the next step on. Errors: SELF_TEST_FAILED. */
int gr_engine_set_apply(gr_engine *e, graft_apply apply, graft_error *err);
graft_apply gr_engine_apply(const gr_engine *e);
/* Why, in a few words. Valid until gr_engine_free. */
const char *gr_engine_apply_reason(const gr_engine *e);
const char *gr_engine_kernels(const gr_engine *e);
uint64_t gr_engine_context_bytes(const gr_engine *e);
void gr_engine_stats(const gr_engine *e, graft_stats *out);
/* Facts about the base's vocabulary. Valid until gr_engine_free. */
const gr_vocab *gr_engine_vocab(const gr_engine *e);

/* A block that begins with this can carry an adapter to its end. */
typedef struct gr_farewell {
    gr_adapter *adapter; /* the reference goes with it */
    struct gr_farewell *next;
} gr_farewell;

/*
 * Called on any thread when an adapter's last handle goes. Takes over `f` (from gr_alloc) and its reference, without
 * failing: if neither a request nor libllama has the adapter, both are freed at once; else the decode thread drops
 * libllama's twin of it (see grouped.h) and frees both when the last request that uses it has ended.
 */
void gr_engine_forget(gr_engine *e, gr_farewell *f);

#endif
