/*
 * A request and its result. Until it is submitted it belongs to the caller; from then on the decode thread alone
 * writes it, and when it has set `done` the caller alone reads it. In between others may only set `cancelled`.
 */
#ifndef GR_JOB_H
#define GR_JOB_H

#include "engine/engine.h"
#include "engine/sampler.h"
#include "engine/text.h"

#include <stdatomic.h>

#define GR_MAX_TEXT ((size_t)16 << 20) /* bytes of one answer */

struct graft_job {
    gr_engine *engine;     /* not touched any more once `done` */
    gr_job_spec spec;
    gr_sampler *sampler;   /* GENERATE */
    gr_text text;
    float *logprobs;       /* SCORE: [n_tokens] */
    graft_result result;
    int64_t submitted, first_row, first_token; /* gr_now_us; 0 = not yet */
    atomic_bool cancelled;
    struct graft_job *next; /* in the queue; under the engine's mutex */

    gr_mutex mutex;        /* GR_RANK_JOB: `done` */
    gr_cond ended;
    bool done;
};

/* Why a job ends. */
typedef struct gr_ending {
    graft_finish finish;
    graft_error error;     /* for ERROR and CANCELLED */
} gr_ending;

/* Fills the result, releases adapters and sampler. The decode thread's. */
void gr_job_conclude(graft_job *job, const gr_ending *ending);
/* Says so to who waits. The job may be gone when this returns. */
void gr_job_announce(graft_job *job);

#endif
