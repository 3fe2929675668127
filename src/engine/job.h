/*
 * A request and its result. Until it is submitted it belongs to the caller; from then on the decode thread alone
 * writes it, and when it has set `done` the caller alone reads it. In between others may only set `cancelled`.
 */
#ifndef GR_JOB_H
#define GR_JOB_H

#include "engine/activation.h"
#include "engine/engine.h"
#include "engine/supply.h"
#include "engine/sampler.h"
#include "engine/text.h"

#include <stdatomic.h>

#define GR_MAX_TEXT ((size_t)16 << 20) /* bytes of one answer */

struct graft_job {
    gr_engine *engine;     /* not touched any more once `done` */
    uint64_t id;
    gr_job_spec spec;
    gr_supply *supply;     /* adapters by name, or NULL; until it concludes */
    int starts[GR_MAX_USES]; /* where each of spec.adapters begins to act; once they are all there: gr_job_activate */
    int64_t equipped;      /* gr_now_us when its adapters were there; 0 = not yet */
    gr_sampler *sampler;   /* GENERATE */
    gr_text text;
    float *logprobs;       /* SCORE: [n_tokens] */
    float *embedding;      /* EMBED: [gr_engine_n_embd]; a sum until the last row has come */
    int n_embd;
    graft_result result;
    int64_t submitted, first_row, first_token; /* gr_now_us; 0 = not yet */
    atomic_bool cancelled;
    struct graft_job *next; /* in the queue; under the engine's mutex */
    struct graft_job *next_ask; /* decode thread */
    uint64_t age;          /* decode thread: the order in which jobs left the queue for slots */

    gr_mutex mutex;        /* GR_RANK_JOB: `done` */
    gr_cond ended;
    bool done;
};

/* Why a job ends. */
typedef struct gr_ending {
    graft_finish finish;
    graft_error error;     /* for ERROR and CANCELLED */
} gr_ending;

/* Adds an adapter to a set, which stays sorted by address; one that is there already adds up. Takes a reference. There must be
 * room. */
void gr_adapter_set_add(gr_adapter_set *set, gr_adapter *a, float scale);
/* Drops what has the scale 0. */
void gr_adapter_set_trim(gr_adapter_set *set);
/* Whether the adapters in the spec can act on one row together (lora/combine.h). `supply` tells their names, or is NULL: then they
 * are called by their paths. Errors: BAD_REQUEST, naming two. */
int gr_job_check_adapters(const gr_job_spec *spec, const gr_supply *supply, const gr_base_model *base, graft_error *err);

/* The supply is ready: puts its adapters into the spec's set, notes generation and fallback. */
void gr_job_equip(graft_job *job);
/* The adapters are there: looks in the prompt for where each begins to act. A probe's act at once: it is to show what they do. */
void gr_job_activate(graft_job *job);
/* The job is in a slot: says so to on_start. */
void gr_job_start(const graft_job *job);
/* Fills the result, releases adapters, leases and sampler. The decode thread's. */
void gr_job_conclude(graft_job *job, const gr_ending *ending);
/* Says so to who waits, and first to on_end. The job may be gone when this returns. */
void gr_job_announce(graft_job *job);

#endif
