/* A request and its result, from submission to freeing; the part of graft.h that works on jobs. */
#include "job.h"

#include "base/clock.h"
#include "base/memory.h"

#include <math.h>
#include <string.h>

static void release_adapters(gr_adapter_set *set) {
    for (int i = 0; i < set->n; i++) {
        gr_adapter_release((gr_adapter *)set->adapters[i]);
    }
    set->n = 0;
}

void gr_job_spec_finish(gr_job_spec *spec) {
    release_adapters(&spec->adapters);
    gr_free(spec->tokens);
    gr_free((char *)spec->sampling.grammar);
    for (size_t i = 0; i < spec->n_stop; i++) {
        gr_free(spec->stop[i]);
    }
    gr_free(spec->stop);
    memset(spec, 0, sizeof *spec);
}

static int make_parts(graft_job *job, graft_error *err) {
    if (job->spec.kind == GR_JOB_SCORE) {
        job->logprobs = gr_calloc((size_t)job->spec.n_tokens, sizeof *job->logprobs);
        if (!job->logprobs) {
            return gr_fail_memory(err, (size_t)job->spec.n_tokens * sizeof *job->logprobs);
        }
        job->logprobs[0] = NAN;
        return 0;
    }
    gr_text_init(&job->text, job->spec.stop, job->spec.n_stop, GR_MAX_TEXT);
    return gr_sampler_create(&job->sampler, gr_engine_vocab(job->engine), &job->spec.sampling, job->spec.ignore_eos,
                             err);
}

static void destroy(graft_job *job) {
    gr_sampler_free(job->sampler);
    gr_text_finish(&job->text);
    gr_free(job->logprobs);
    gr_job_spec_finish(&job->spec);
    gr_cond_finish(&job->ended);
    gr_mutex_finish(&job->mutex);
    gr_free(job);
}

int gr_job_create(graft_job **out, gr_engine *e, gr_job_spec *spec, graft_error *err) {
    graft_job *job = gr_zalloc(sizeof *job);
    if (!job) {
        gr_job_spec_finish(spec);
        return gr_fail_memory(err, sizeof *job);
    }
    job->engine = e;
    job->spec = *spec;
    memset(spec, 0, sizeof *spec);
    atomic_init(&job->cancelled, false);
    gr_mutex_init(&job->mutex, GR_RANK_JOB);
    gr_cond_init(&job->ended);
    int rc = make_parts(job, err);
    if (rc) {
        destroy(job);
        return rc;
    }
    if (job->sampler) {
        gr_sampler_prompt(job->sampler, job->spec.tokens, job->spec.n_tokens);
    }
    job->result.text = "";
    job->result.prompt_tokens = job->spec.n_tokens;
    job->done = true; /* until it is submitted: freeing it then needs no engine */
    *out = job;
    return 0;
}

const float *gr_job_logprobs(const graft_job *job) {
    return job->logprobs;
}

void gr_job_conclude(graft_job *job, const gr_ending *ending) {
    graft_result *r = &job->result;
    int64_t now = gr_now_us();
    int64_t first_row = job->first_row ? job->first_row : now;
    int64_t first_token = job->first_token ? job->first_token : now;
    r->finish = ending->finish;
    if (ending->finish == GRAFT_FINISH_ERROR || ending->finish == GRAFT_FINISH_CANCELLED) {
        r->error = ending->error;
    }
    r->text = job->text.out.data ? job->text.out.data : "";
    r->text_length = job->text.out.length;
    r->queue_ms = (double)(first_row - job->submitted) / 1e3;
    r->prompt_ms = (double)(first_token - first_row) / 1e3;
    r->total_ms = (double)(now - job->submitted) / 1e3;
    gr_sampler_free(job->sampler);
    job->sampler = NULL;
    release_adapters(&job->spec.adapters);
}

void gr_job_announce(graft_job *job) {
    gr_mutex_lock(&job->mutex);
    job->done = true;
    gr_cond_broadcast(&job->ended); /* while locked: once it is unlocked, whoever waited may free the job */
    gr_mutex_unlock(&job->mutex);
}

/* ---- graft.h ------------------------------------------------------------------------------------------ */

const graft_result *graft_job_wait(graft_job *job) {
    gr_mutex_lock(&job->mutex);
    while (!job->done) {
        gr_cond_wait(&job->ended, &job->mutex);
    }
    gr_mutex_unlock(&job->mutex);
    return &job->result;
}

/* The decode thread looks at the flag before every step, and does not sleep while it has jobs: no wake-up needed. */
void graft_job_cancel(graft_job *job) {
    atomic_store(&job->cancelled, true);
}

void graft_job_free(graft_job *job) {
    if (job) {
        graft_job_cancel(job);
        graft_job_wait(job);
        destroy(job);
    }
}

const char *graft_finish_name(graft_finish f) {
    switch (f) {
    case GRAFT_FINISH_STOP: return "stop";
    case GRAFT_FINISH_LENGTH: return "length";
    case GRAFT_FINISH_CANCELLED: return "cancelled";
    case GRAFT_FINISH_ERROR: return "error";
    }
    return "unknown";
}
