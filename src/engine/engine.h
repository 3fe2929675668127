/*
 * The engine: one decode thread that owns the libllama context. Requests come in through a queue, become
 * sequences, share batches, and leave; README.md in this folder is the thread map.
 */
#ifndef GR_ENGINE_H
#define GR_ENGINE_H

#include "base/buffer.h"
#include "base/log.h"
#include "base/thread.h"
#include "engine/likely.h"
#include "engine/supply.h"
#include "engine/vocab.h"
#include "lora/row_plan.h"
#include "model/base_model.h"

typedef struct gr_engine gr_engine;

typedef struct gr_engine_options {
    int slots, context, batch, threads; /* all resolved: no zeros; slots <= GR_MAX_SLOTS, batch >= 16 */
    bool probe_slot; /* a further slot for GR_PROBE jobs, so that loading does not wait for answers to end */
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
/* Ends every job with SHUTTING_DOWN and joins the thread. A loader that jobs have adapters from must have been stopped. */
void gr_engine_stop(gr_engine *e);
/* Stops and frees. Jobs may be waited for and freed afterwards. */
void gr_engine_free(gr_engine *e);

/* What a job does with the logits, or (EMBED) with the last hidden states instead. */
typedef enum gr_job_kind { GR_JOB_GENERATE, GR_JOB_SCORE, GR_JOB_EMBED } gr_job_kind;

/* A request, complete and owned: everything is checked and copied before it reaches the engine. */
typedef struct gr_job_spec {
    gr_job_kind kind;
    bool probe;               /* at most GR_PROBE_TOKENS tokens; goes into the probe slot */
    gr_adapter_set adapters;  /* each with a reference that the job owns */
    gr_wants *wants;          /* adapters by name; owned, or NULL. With `adapters` at most GR_MAX_USES */
    gr_lease *leases[GR_MAX_USES]; /* owned; their adapters are in `adapters` */
    int n_leases;
    char generation[65];      /* of the first adapter, if it is none of `wants` */
    graft_error fallback;     /* a lease that is the base: why */
    llama_token *tokens;      /* owned; all within the vocabulary */
    int n_tokens;             /* 1 to context (SCORE, EMBED) or context - 1 */
    int max_tokens;           /* > 0; the context's end also ends it */
    bool ignore_eos;
    uint64_t cache_domain;    /* beginnings are shared within one */
    bool cache_prompt;        /* GENERATE: may go on from what is in the KV cache, and others from it */
    graft_sampling sampling;  /* grammar: owned copy or NULL */
    char **stop;              /* owned */
    size_t n_stop;
    graft_start_fn on_start;
    graft_text_fn on_text;
    graft_logit_bias *logit_bias; /* owned; tokens within the vocabulary, finite */
    size_t n_logit_bias;
    graft_token_fn on_token;
    int top_logprobs;         /* 0 to GR_MAX_TOP */
    graft_end_fn on_end;      /* or NULL, as the others */
    graft_logits_fn on_logits; /* SCORE */
    graft_pooling pooling;    /* EMBED */
    bool normalize;           /* EMBED */
    void *user;
} gr_job_spec;

/* Takes over everything in *spec in any case (frees it on failure). Errors: BAD_GRAMMAR, OUT_OF_MEMORY. */
int gr_job_create(graft_job **out, gr_engine *e, gr_job_spec *spec, graft_error *err);
/* The same, submitted and waited for. Errors: those, gr_engine_submit's, and what the job ended with. *out: graft_job_free. */
int gr_job_run(graft_job **out, gr_engine *e, gr_job_spec *spec, graft_error *err);
void gr_job_spec_finish(gr_job_spec *spec);

/* At most this many jobs wait for a slot. */
#define GR_MAX_QUEUE 65536

/* Puts all jobs into the queue at once. Errors: SHUTTING_DOWN, OUT_OF_MEMORY (the queue is full). */
int gr_engine_submit(gr_engine *e, graft_job *const *jobs, size_t n, graft_error *err);
/* For SCORE jobs after the wait: [n_tokens] natural log-probabilities, [0] NaN. Borrowed from the job. */
const float *gr_job_logprobs(const graft_job *job);

/* Values of an embedding. */
int gr_engine_n_embd(const gr_engine *e);

/* From the next step on. Errors: SELF_TEST_FAILED. */
int gr_engine_set_apply(gr_engine *e, graft_apply apply, graft_error *err);
graft_apply gr_engine_apply(const gr_engine *e);
/* Why, in a few words. Valid until gr_engine_free. */
const char *gr_engine_apply_reason(const gr_engine *e);
const char *gr_engine_kernels(const gr_engine *e);
uint64_t gr_engine_context_bytes(const gr_engine *e);
void gr_engine_stats(const gr_engine *e, graft_stats *out);
/* As graft_slots. */
int gr_engine_slots(graft_slot_list **out, const gr_engine *e, graft_error *err);
/* Facts about the base's vocabulary. Valid until gr_engine_free. */
const gr_vocab *gr_engine_vocab(const gr_engine *e);

/* A block that begins with this can carry an adapter to its end. */
typedef struct gr_farewell {
    gr_adapter *adapter; /* the reference goes with it */
    struct gr_farewell *next;
    bool awaited;        /* not from gr_alloc: somebody waits for `gone` and owns it */
    bool gone;           /* under the engine's mutex */
    void (*done)(struct gr_farewell *f); /* the adapter is freed: called without a lock, on any thread, to free `f`; NULL:
                                            gr_free */
} gr_farewell;

/*
 * Called on any thread when an adapter's last handle goes. Takes over `f` (from gr_alloc) and its reference, without
 * failing: if neither a request nor libllama has the adapter, both are freed at once; else the decode thread drops
 * libllama's twin of it (see grouped.h) and frees both when the last request that uses it has ended.
 */
void gr_engine_forget(gr_engine *e, gr_farewell *f);
/* The same for an adapter without a handle, and its memory is free when this returns. Takes over the reference. Not on the decode
 * thread; no job may be using the adapter. */
void gr_engine_drop(gr_engine *e, gr_adapter *adapter);

/* Bytes of libllama's copies of adapters (grouped). */
uint64_t gr_engine_twin_bytes(const gr_engine *e);
/* Microseconds since the decode thread last finished a step or found nothing to do; 0 while it is idle. */
int64_t gr_engine_stalled_us(const gr_engine *e);
/* Whether adapters can be applied by rows, as far as is known. */
bool gr_engine_rows_work(const gr_engine *e);
/* Requests that wait for a slot, and those in slots. */
void gr_engine_load(const gr_engine *e, size_t *waiting, size_t *active);
/* What jobs' supplies ring. Borrowed. */
void gr_engine_bell(gr_engine *e, gr_mutex **mutex, gr_cond **bell, bool **news);

#define GR_PROBE_TOKENS 16

#endif
