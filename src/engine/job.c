/* A request and its result, from submission to freeing; the part of graft.h that works on jobs. */
#include "job.h"

#include "base/clock.h"
#include "base/memory.h"
#include "lora/combine.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static void release_adapters(gr_adapter_set *set) {
    for (int i = 0; i < set->n; i++) {
        gr_adapter_release((gr_adapter *)set->adapters[i]);
    }
    set->n = 0;
}

void gr_adapter_set_add(gr_adapter_set *set, gr_adapter *a, float scale) {
    int at = 0;
    while (at < set->n && set->adapters[at] < a) {
        at++;
    }
    if (at < set->n && set->adapters[at] == a) {
        set->scales[at] += scale;
        return;
    }
    for (int i = set->n; i > at; i--) {
        set->adapters[i] = set->adapters[i - 1];
        set->scales[i] = set->scales[i - 1];
    }
    set->adapters[at] = gr_adapter_retain(a);
    set->scales[at] = scale;
    set->n++;
}

void gr_adapter_set_trim(gr_adapter_set *set) {
    int kept = 0;
    for (int i = 0; i < set->n; i++) {
        if (set->scales[i] == 0.0f) {
            gr_adapter_release((gr_adapter *)set->adapters[i]);
        } else {
            set->adapters[kept] = set->adapters[i];
            set->scales[kept++] = set->scales[i];
        }
    }
    set->n = kept;
}

/* As the request has it. */
static void name_adapter(char out[GR_QUOTE_PATH_SIZE], const gr_adapter *a, const gr_supply *supply) {
    for (int i = 0; supply && i < gr_supply_count(supply); i++) {
        if (gr_lease_adapter(gr_supply_lease(supply, i)) == a) {
            const gr_want *want = gr_supply_want(supply, i);
            snprintf(out, GR_QUOTE_PATH_SIZE, "%s/%s", want->project, want->adapter);
            return;
        }
    }
    gr_quote_path(out, a->path ? a->path : "");
}

int gr_job_check_adapters(const gr_job_spec *spec, const gr_supply *supply, const gr_base_model *base, graft_error *err) {
    const gr_adapter *one, *other;
    int weight;
    if (gr_adapters_combine(&spec->adapters, &one, &other, &weight)) {
        return 0;
    }
    char first[GR_QUOTE_PATH_SIZE], second[GR_QUOTE_PATH_SIZE];
    name_adapter(first, one, supply);
    name_adapter(second, other, supply);
    return gr_fail(err, GRAFT_E_BAD_REQUEST,
                   "adapters: of those that replace or scale (DoRA) the outputs of %s a request can have one, as the result "
                   "would depend on their order: %s and %s do",
                   base->weights[weight].name, first, second);
}

/* Adapters first: a version that its last lease leaves is then free to go. */
static void release_leases(gr_job_spec *spec) {
    for (int i = 0; i < spec->n_leases; i++) {
        gr_lease_release_later(spec->leases[i]);
    }
    spec->n_leases = 0;
}

void gr_job_spec_finish(gr_job_spec *spec) {
    release_adapters(&spec->adapters);
    release_leases(spec);
    gr_free(spec->wants);
    gr_free(spec->tokens);
    gr_free((char *)spec->sampling.grammar);
    gr_free(spec->logit_bias);
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
    if (job->spec.kind == GR_JOB_EMBED) {
        job->n_embd = gr_engine_n_embd(job->engine);
        job->embedding = gr_calloc((size_t)job->n_embd, sizeof *job->embedding);
        return job->embedding ? 0 : gr_fail_memory(err, (size_t)job->n_embd * sizeof *job->embedding);
    }
    gr_text_init(&job->text, job->spec.stop, job->spec.n_stop, GR_MAX_TEXT);
    return gr_sampler_create(&job->sampler, gr_engine_vocab(job->engine), &job->spec.sampling, job->spec.ignore_eos,
                             err);
}

static int make_supply(graft_job *job, graft_error *err) {
    if (!job->spec.wants) {
        return 0;
    }
    gr_mutex *mutex;
    gr_cond *bell;
    bool *news;
    gr_engine_bell(job->engine, &mutex, &bell, &news);
    int rc = gr_supply_create(&job->supply, job->spec.wants, mutex, bell, news, err);
    if (!rc) {
        job->spec.wants = NULL; /* the supply's now */
    }
    return rc;
}

static void destroy(graft_job *job) {
    gr_supply_leave(job->supply);
    gr_sampler_free(job->sampler);
    gr_text_finish(&job->text);
    gr_free(job->logprobs);
    gr_free(job->embedding);
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
    static atomic_uint_fast64_t next_id = 1;
    job->engine = e;
    job->id = atomic_fetch_add(&next_id, 1);
    job->spec = *spec;
    memset(spec, 0, sizeof *spec);
    atomic_init(&job->cancelled, false);
    gr_mutex_init(&job->mutex, GR_RANK_JOB);
    gr_cond_init(&job->ended);
    int rc = make_supply(job, err);
    rc = rc ? rc : make_parts(job, err);
    if (rc) {
        destroy(job);
        return rc;
    }
    if (job->sampler) {
        gr_sampler_bias(job->sampler, job->spec.logit_bias, job->spec.n_logit_bias);
        gr_sampler_prompt(job->sampler, job->spec.tokens, job->spec.n_tokens);
    }
    job->result.text = "";
    job->result.prompt_tokens = job->spec.n_tokens;
    job->done = true; /* until it is submitted: freeing it then needs no engine */
    *out = job;
    return 0;
}

int gr_job_run(graft_job **out, gr_engine *e, gr_job_spec *spec, graft_error *err) {
    graft_job *job;
    int rc = gr_job_create(&job, e, spec, err);
    if (rc) {
        return rc;
    }
    rc = gr_engine_submit(e, &job, 1, err);
    if (!rc) {
        const graft_result *result = graft_job_wait(job);
        rc = result->error.code;
        if (rc && err) {
            *err = result->error;
        }
    }
    if (rc) {
        graft_job_free(job);
        return rc;
    }
    *out = job;
    return 0;
}

const float *gr_job_logprobs(const graft_job *job) {
    return job->logprobs;
}

void gr_job_equip(graft_job *job) {
    gr_job_spec *spec = &job->spec;
    for (int i = 0; i < gr_supply_count(job->supply); i++) {
        const gr_lease *lease = gr_supply_lease(job->supply, i);
        if (gr_lease_adapter(lease)) {
            gr_adapter_set_add(&spec->adapters, gr_lease_adapter(lease), gr_supply_want(job->supply, i)->scale);
        } else if (spec->fallback.code == 0) {
            spec->fallback = *gr_lease_fallback(lease);
        }
        if (i == 0 && !spec->generation[0]) {
            snprintf(spec->generation, sizeof spec->generation, "%s", gr_lease_generation(lease));
        }
    }
    gr_adapter_set_trim(&spec->adapters);
    job->equipped = gr_now_us();
}

void gr_job_activate(graft_job *job) {
    const gr_job_spec *spec = &job->spec;
    for (int i = 0; i < spec->adapters.n; i++) {
        job->starts[i] = spec->probe ? 0 : gr_activation_start(spec->adapters.adapters[i], spec->tokens, spec->n_tokens);
    }
}

void gr_job_start(const graft_job *job) {
    const gr_want *want = job->supply ? gr_supply_want(job->supply, 0) : NULL;
    graft_start start = {.project = want ? want->project : "",
                         .adapter = want ? want->adapter : "",
                         .generation = job->spec.generation,
                         .fallback = &job->spec.fallback,
                         .cached_tokens = job->result.cached_tokens};
    if (job->spec.on_start) {
        job->spec.on_start(&start, job->spec.user);
    }
}

/* For the history of each adapter that was leased. */
static void note_use(const graft_job *job, double ms) {
    uint64_t tokens = (uint64_t)job->result.prompt_tokens + (uint64_t)job->result.completion_tokens;
    for (int i = 0; i < job->spec.n_leases; i++) {
        gr_lease_used(job->spec.leases[i], tokens, ms);
    }
    for (int i = 0; job->equipped && job->supply && i < gr_supply_count(job->supply); i++) {
        gr_lease_used(gr_supply_lease(job->supply, i), tokens, ms);
    }
}

void gr_job_conclude(graft_job *job, const gr_ending *ending) {
    graft_result *r = &job->result;
    int64_t now = gr_now_us();
    int64_t equipped = job->equipped ? job->equipped : now;
    int64_t first_row = job->first_row ? job->first_row : now;
    int64_t first_token = job->first_token ? job->first_token : now;
    r->finish = ending->finish;
    if (ending->finish == GRAFT_FINISH_ERROR || ending->finish == GRAFT_FINISH_CANCELLED) {
        r->error = ending->error;
    }
    r->text = job->text.out.data ? job->text.out.data : "";
    r->text_length = job->text.out.length;
    r->id = job->id;
    r->generation = job->spec.generation;
    r->fallback = job->spec.fallback;
    r->adapter_ms = job->supply ? (double)(equipped - job->submitted) / 1e3 : 0;
    r->queue_ms = (double)(first_row - job->submitted) / 1e3;
    r->prompt_ms = (double)(first_token - first_row) / 1e3;
    r->total_ms = (double)(now - job->submitted) / 1e3;
    gr_sampler_free(job->sampler);
    job->sampler = NULL;
    if (job->first_row) {
        note_use(job, r->total_ms);
    }
    release_adapters(&job->spec.adapters);
    release_leases(&job->spec);
    gr_supply_leave(job->supply);
    job->supply = NULL;
}

void gr_job_announce(graft_job *job) {
    if (job->spec.on_end) { /* before `done`: who is told may let another thread free the job, and that one waits for `done` */
        job->spec.on_end(job, &job->result, job->spec.user);
    }
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

const float *graft_job_embedding(const graft_job *job, int *n) {
    bool has = job->embedding && job->result.finish == GRAFT_FINISH_STOP && !job->result.error.code;
    if (n) {
        *n = has ? job->n_embd : 0;
    }
    return has ? job->embedding : NULL;
}

uint64_t graft_job_id(const graft_job *job) {
    return job->id;
}

/* The decode thread looks at the flag before every step, and never sleeps for long while it has jobs: no wake-up needed. */
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
