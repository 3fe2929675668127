/* Requests: checked field by field, tokenised on the caller's thread, handed to the engine as jobs. */
#include "api.h"

#include "base/memory.h"
#include "base/utf8.h"
#include "engine/job.h"

#include <float.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#define MAX_REQUESTS 4096 /* of one graft_submit */
#define MAX_SCALE 100.0

graft_request graft_request_default(void) {
    return (graft_request){
        .size = sizeof(graft_request),
        .special = true,
        .max_tokens = 128,
        .cache_prompt = true,
        .adapter_wait_ms = -1,
        .sampling =
            {
                .top_k = 40,
                .top_p = 0.95f,
                .min_p = 0.05f,
                .seed = LLAMA_DEFAULT_SEED,
                .repeat_last_n = 64,
                .repeat_penalty = 1.0f,
            },
    };
}

graft_score_request graft_score_request_default(void) {
    return (graft_score_request){.size = sizeof(graft_score_request)};
}

/* ---- numbers ------------------------------------------------------------------------------------------- */

static int bad(graft_error *err, const char *field, const char *what) {
    return gr_fail(err, GRAFT_E_BAD_REQUEST, "%s: %s", field, what);
}

/* NaN is in no range. */
static int check_range(const char *field, double value, double min, double max, graft_error *err) {
    if (!(value >= min && value <= max)) {
        return gr_fail(err, GRAFT_E_BAD_REQUEST, "%s: %.10g is outside %.10g to %.10g", field, value, min, max);
    }
    return 0;
}

static int check_size(size_t size, size_t expected, graft_error *err) {
    if (size != expected) {
        return gr_fail(err, GRAFT_E_BAD_REQUEST, "size: %zu, must be %zu (the _default function sets it)", size,
                       expected);
    }
    return 0;
}

static int check_numbers(const graft_request *r, graft_error *err) {
    const graft_sampling *s = &r->sampling;
    const struct {
        const char *field;
        double value, min, max;
    } table[] = {
        {"max_tokens", r->max_tokens, 0, INT_MAX},
        {"temperature", s->temperature, 0, 100},
        {"top_k", s->top_k, 0, 1 << 24}, /* beyond the vocabulary means all of it */
        {"top_p", s->top_p, 0, 1},
        {"min_p", s->min_p, 0, 1},
        {"repeat_last_n", s->repeat_last_n, 0, 65536},
        /* the table's bound is what a caller can write, not float32's nearest to it */
        {"repeat_penalty", s->repeat_penalty, (double)0.01f, 100},
        {"frequency_penalty", s->frequency_penalty, -100, 100},
        {"presence_penalty", s->presence_penalty, -100, 100},
        {"n_stop", (double)r->n_stop, 0, GR_MAX_STOPS},
        {"n_logit_bias", (double)r->n_logit_bias, 0, GR_MAX_BIASES},
        {"top_logprobs", r->top_logprobs, 0, GR_MAX_TOP},
    };
    int rc = 0;
    for (size_t i = 0; i < sizeof table / sizeof *table && !rc; i++) {
        rc = check_range(table[i].field, table[i].value, table[i].min, table[i].max, err);
    }
    return rc;
}

/* ---- adapters ------------------------------------------------------------------------------------------ */

static void note_generation(gr_job_spec *spec, const char *generation) {
    snprintf(spec->generation, sizeof spec->generation, "%s", generation);
}

static int take_by_path(const graft *g, const graft_adapter_use *use, bool first, gr_job_spec *spec, graft_error *err) {
    if (use->adapter->g != g) {
        return bad(err, "adapters", "one was loaded for another instance");
    }
    gr_adapter *a = use->adapter->farewell.adapter;
    gr_adapter_set_add(&spec->adapters, a, use->scale);
    if (first) {
        note_generation(spec, a->generation);
    }
    return 0;
}

/* The job gets a lease of its own. */
static int take_lease(const graft *g, const graft_adapter_use *use, bool first, gr_job_spec *spec, graft_error *err) {
    if (use->lease->g != g) {
        return bad(err, "adapters", "a lease is another instance's");
    }
    gr_lease *lease = gr_lease_copy(use->lease->lease);
    if (!lease) {
        return gr_fail_memory(err, sizeof *use->lease);
    }
    spec->leases[spec->n_leases++] = lease;
    if (gr_lease_adapter(lease)) {
        gr_adapter_set_add(&spec->adapters, gr_lease_adapter(lease), use->scale);
    } else if (!spec->fallback.code) {
        spec->fallback = *gr_lease_fallback(lease);
    }
    if (first) {
        note_generation(spec, gr_lease_generation(lease));
    }
    return 0;
}

static int take_name(graft *g, const graft_adapter_use *use, gr_job_spec *spec, graft_error *err) {
    gr_want want = {.scale = use->scale};
    int rc = gr_api_resolve(g, use->project, use->name, want.project, want.adapter, err);
    if (rc || use->scale == 0.0f) {
        return rc;
    }
    if (!spec->wants) {
        spec->wants = gr_zalloc(sizeof *spec->wants);
        if (!spec->wants) {
            return gr_fail_memory(err, sizeof *spec->wants);
        }
        spec->wants->loader = g->loader;
    }
    spec->wants->items[spec->wants->n++] = want;
    return 0;
}

/* More different adapters by name than may be in memory together: waiting would not help. */
static int check_count(const graft *g, const gr_wants *wants, graft_error *err) {
    int different = 0;
    for (int i = 0; wants && i < wants->n; i++) {
        bool again = false;
        for (int k = 0; k < i && !again; k++) {
            again = strcmp(wants->items[k].project, wants->items[i].project) == 0 &&
                    strcmp(wants->items[k].adapter, wants->items[i].adapter) == 0;
        }
        different += !again;
    }
    return g->max_adapters == 0 || different <= g->max_adapters
               ? 0
               : gr_fail(err, GRAFT_E_BAD_REQUEST,
                         "adapters: %d different ones by name, and at most %d may be in memory (max_adapters)", different,
                         g->max_adapters);
}

int gr_api_take_adapters(graft *g, const graft_adapter_use *uses, size_t n, gr_job_spec *spec, graft_error *err) {
    int rc = check_range("n_adapters", (double)n, 0, GR_MAX_USES, err);
    if (!rc && n > 0 && !uses) {
        return bad(err, "adapters", "NULL, though n_adapters is not 0");
    }
    for (size_t i = 0; i < n && !rc; i++) {
        const graft_adapter_use *use = &uses[i];
        if ((use->adapter != NULL) + (use->lease != NULL) + (use->project != NULL || use->name != NULL) > 1) {
            return bad(err, "adapters", "one of adapter, lease and a name is needed, not several");
        }
        rc = check_range("adapters.scale", use->scale, -MAX_SCALE, MAX_SCALE, err);
        if (!rc && use->adapter) {
            rc = take_by_path(g, use, i == 0, spec, err);
        } else if (!rc && use->lease) {
            rc = take_lease(g, use, i == 0, spec, err);
        } else if (!rc) {
            rc = take_name(g, use, spec, err);
        }
    }
    gr_adapter_set_trim(&spec->adapters);
    rc = rc ? rc : gr_job_check_adapters(spec, NULL, g->base, err); /* those by name: once they are in memory */
    return rc ? rc : check_count(g, spec->wants, err);
}

int gr_api_take_patience(const graft *g, graft_fallback fallback, int wait_ms, gr_job_spec *spec, graft_error *err) {
    int rc = check_range("fallback", (double)fallback, GRAFT_FALLBACK_DEFAULT, GRAFT_FALLBACK_ERROR, err);
    rc = rc ? rc : check_range("adapter_wait_ms", wait_ms, -1, GR_MAX_WAIT_MS, err);
    if (!rc && spec->wants) {
        spec->wants->fallback = gr_api_fallback(g, fallback);
        spec->wants->wait_us = 1000 * (int64_t)(wait_ms < 0 ? g->adapter_wait_ms : wait_ms);
    }
    return rc;
}

/* ---- tokens -------------------------------------------------------------------------------------------- */

static int tokenize(const graft *g, const char *text, size_t length, bool special, int most, gr_job_spec *spec,
                    graft_error *err) {
    return gr_vocab_tokenize(gr_engine_vocab(g->engine), text, length, true, special, most, &spec->tokens,
                             &spec->n_tokens, err);
}

static int copy_tokens(const graft *g, const int32_t *tokens, size_t n, int most, gr_job_spec *spec, graft_error *err) {
    if (n > (size_t)most) {
        return gr_fail(err, GRAFT_E_CONTEXT_LENGTH, "the prompt has %zu tokens, at most %d fit", n, most);
    }
    int rc = gr_api_check_tokens(g, tokens, n, err);
    if (rc) {
        return rc;
    }
    spec->tokens = gr_calloc(n + 1, sizeof *spec->tokens);
    if (!spec->tokens) {
        return gr_fail_memory(err, (n + 1) * sizeof *spec->tokens);
    }
    memcpy(spec->tokens, tokens, n * sizeof *tokens);
    spec->n_tokens = (int)n;
    return 0;
}

/* Generation needs a token to begin with: for an empty prompt that is the one which begins texts. */
static int fill_empty(const graft *g, gr_job_spec *spec, graft_error *err) {
    if (spec->n_tokens > 0) {
        return 0;
    }
    llama_token begin = llama_vocab_bos(g->base->vocab);
    if (begin == LLAMA_TOKEN_NULL) {
        return bad(err, "prompt", "empty, and the model has no token that begins a text");
    }
    spec->tokens[0] = begin; /* there is always room for one */
    spec->n_tokens = 1;
    return 0;
}

static int tokenize_messages(const graft *g, const graft_request *r, int most, gr_job_spec *spec, graft_error *err) {
    char *text = NULL;
    size_t length = 0;
    int rc = gr_api_template(g, r->messages, r->n_messages, most, &text, &length, err);
    /* The template's own markers must become special tokens. That a message can spell them too is libllama's way as
     * well; who must keep users from it removes them from the content. */
    rc = rc ? rc : tokenize(g, text, length, true, most, spec, err);
    gr_free(text);
    return rc;
}

static int take_prompt(const graft *g, const graft_request *r, gr_job_spec *spec, graft_error *err) {
    int most = g->context - 1; /* one place for an answer */
    if ((r->prompt != NULL) + (r->messages != NULL) + (r->tokens != NULL) != 1) {
        return bad(err, "prompt", "exactly one of prompt, messages and tokens is needed");
    }
    int rc;
    if (r->prompt) {
        rc = gr_api_check_text("prompt", r->prompt, err);
        rc = rc ? rc : tokenize(g, r->prompt, strlen(r->prompt), r->special, most, spec, err);
    } else if (r->messages) {
        rc = tokenize_messages(g, r, most, spec, err);
    } else {
        rc = copy_tokens(g, r->tokens, r->n_tokens, most, spec, err);
    }
    return rc ? rc : fill_empty(g, spec, err);
}

/* ---- the rest of a request ------------------------------------------------------------------------------ */

static int copy_stops(const graft_request *r, gr_job_spec *spec, graft_error *err) {
    if (r->n_stop == 0) {
        return 0;
    }
    if (!r->stop) {
        return bad(err, "stop", "NULL, though n_stop is not 0");
    }
    spec->stop = gr_calloc(r->n_stop, sizeof *spec->stop);
    if (!spec->stop) {
        return gr_fail_memory(err, r->n_stop * sizeof *spec->stop);
    }
    for (; spec->n_stop < r->n_stop; spec->n_stop++) {
        const char *s = r->stop[spec->n_stop];
        size_t length = s ? strnlen(s, GR_MAX_STOP_BYTES + 1) : 0;
        if (length < 1 || length > GR_MAX_STOP_BYTES || !gr_utf8_valid(s, length)) {
            return bad(err, "stop", "a stop string must have 1 to 256 bytes of valid UTF-8");
        }
        spec->stop[spec->n_stop] = gr_strndup(s, length);
        if (!spec->stop[spec->n_stop]) {
            return gr_fail_memory(err, length);
        }
    }
    return 0;
}

static int copy_biases(const graft *g, const graft_request *r, gr_job_spec *spec, graft_error *err) {
    if (r->n_logit_bias == 0) {
        return 0;
    }
    if (!r->logit_bias) {
        return bad(err, "logit_bias", "NULL, though n_logit_bias is not 0");
    }
    for (size_t i = 0; i < r->n_logit_bias; i++) {
        int rc = check_range("logit_bias.token", r->logit_bias[i].token, 0, g->base->n_vocab - 1, err);
        rc = rc ? rc : check_range("logit_bias.bias", (double)r->logit_bias[i].bias, -FLT_MAX, FLT_MAX, err);
        if (rc) {
            return rc;
        }
    }
    spec->logit_bias = gr_calloc(r->n_logit_bias, sizeof *spec->logit_bias);
    if (!spec->logit_bias) {
        return gr_fail_memory(err, r->n_logit_bias * sizeof *spec->logit_bias);
    }
    memcpy(spec->logit_bias, r->logit_bias, r->n_logit_bias * sizeof *spec->logit_bias);
    spec->n_logit_bias = r->n_logit_bias;
    return 0;
}

static int copy_sampling(const graft_request *r, gr_job_spec *spec, graft_error *err) {
    spec->sampling = r->sampling;
    spec->sampling.grammar = NULL;
    if (r->sampling.grammar) {
        spec->sampling.grammar = gr_strdup(r->sampling.grammar);
        if (!spec->sampling.grammar) {
            return gr_fail_memory(err, strlen(r->sampling.grammar));
        }
    }
    return 0;
}

static int make_job(graft_job **out, graft *g, const void *requests, size_t i, graft_error *err) {
    const graft_request *r = (const graft_request *)requests + i;
    gr_job_spec spec = {.kind = GR_JOB_GENERATE, .ignore_eos = r->ignore_eos, .on_start = r->on_start, .on_text = r->on_text,
                        .on_token = r->on_token, .on_end = r->on_end, .top_logprobs = r->top_logprobs,
                        .cache_prompt = r->cache_prompt, .cache_domain = r->cache_domain, .user = r->user};
    int rc = check_size(r->size, sizeof *r, err);
    rc = rc ? rc : check_numbers(r, err);
    rc = rc ? rc : gr_api_take_adapters(g, r->adapters, r->n_adapters, &spec, err);
    rc = rc ? rc : gr_api_take_patience(g, r->fallback, r->adapter_wait_ms, &spec, err);
    rc = rc ? rc : copy_sampling(r, &spec, err);
    rc = rc ? rc : copy_stops(r, &spec, err);
    rc = rc ? rc : copy_biases(g, r, &spec, err);
    rc = rc ? rc : take_prompt(g, r, &spec, err);
    if (rc) {
        gr_job_spec_finish(&spec);
        return rc;
    }
    spec.max_tokens = r->max_tokens ? r->max_tokens : INT_MAX;
    return gr_job_create(out, g->engine, &spec, err);
}

static void free_jobs(graft_job **jobs, size_t n) {
    for (size_t i = 0; i < n; i++) {
        graft_job_free(jobs[i]);
    }
}

/* Says which request of several is meant. */
static int name_request(graft_error *err, size_t i, size_t n) {
    if (n > 1) {
        graft_error plain = *err;
        gr_fail(err, plain.code, "request %zu: %.440s", i, plain.message);
    }
    return err->code;
}

int gr_api_submit(graft_job **out, graft *g, const void *requests, size_t n, gr_api_maker *make, graft_error *err) {
    graft_error ignored;
    err = err ? err : &ignored;
    if (!out || !g || !requests) {
        return bad(err, "requests", "an argument is NULL");
    }
    int rc = check_range("n", (double)n, 1, MAX_REQUESTS, err);
    if (rc) {
        return rc;
    }
    graft_job **jobs = gr_calloc(n, sizeof *jobs);
    if (!jobs) {
        return gr_fail_memory(err, n * sizeof *jobs);
    }
    size_t made = 0;
    while (made < n && !rc) {
        rc = make(&jobs[made], g, requests, made, err);
        if (rc) {
            name_request(err, made, n);
        } else {
            made++;
        }
    }
    rc = rc ? rc : gr_engine_submit(g->engine, jobs, n, err);
    if (rc) {
        free_jobs(jobs, made);
    } else {
        memcpy(out, jobs, n * sizeof *jobs);
    }
    gr_free(jobs);
    return rc;
}

int graft_submit(graft_job **out, graft *g, const graft_request *requests, size_t n, graft_error *err) {
    return gr_api_submit(out, g, requests, n, make_job, err);
}

/* ---- scoring ------------------------------------------------------------------------------------------- */

typedef struct score_result {
    graft_score_result info; /* first: what the caller has */
    graft_job *job;          /* holds tokens and log-probabilities */
    gr_buffer text;          /* the pieces, each with its NUL */
    const char **pieces;
} score_result;

void graft_score_result_free(graft_score_result *r) {
    if (r) {
        score_result *s = (score_result *)r;
        graft_job_free(s->job);
        gr_buffer_finish(&s->text);
        gr_free(s->pieces);
        gr_free(s);
    }
}

int gr_api_take_whole_text(const graft *g, const char *text, const int32_t *tokens, size_t n_tokens, gr_job_spec *spec,
                           graft_error *err) {
    if ((text != NULL) + (tokens != NULL) != 1) {
        return bad(err, "text", "exactly one of text and tokens is needed");
    }
    int rc;
    if (text) {
        rc = gr_api_check_text("text", text, err);
        rc = rc ? rc : tokenize(g, text, strlen(text), true, g->context, spec, err);
    } else {
        rc = copy_tokens(g, tokens, n_tokens, g->context, spec, err);
    }
    return rc ? rc : fill_empty(g, spec, err);
}

static int run_score(graft_job **out, graft *g, const graft_score_request *r, graft_error *err) {
    gr_job_spec spec = {.kind = GR_JOB_SCORE, .max_tokens = 1, .on_logits = r->on_logits, .user = r->user};
    int rc = check_size(r->size, sizeof *r, err);
    rc = rc ? rc : gr_api_take_adapters(g, r->adapters, r->n_adapters, &spec, err);
    /* A measurement of another model than the one that was asked for is worth nothing. */
    rc = rc ? rc : gr_api_take_patience(g, GRAFT_FALLBACK_ERROR, -1, &spec, err);
    rc = rc ? rc : gr_api_take_whole_text(g, r->text, r->tokens, r->n_tokens, &spec, err);
    if (rc) {
        gr_job_spec_finish(&spec);
        return rc;
    }
    return gr_job_run(out, g->engine, &spec, err);
}

static int list_pieces(score_result *s, const graft *g, graft_error *err) {
    const gr_job_spec *spec = &s->job->spec;
    size_t n = (size_t)spec->n_tokens;
    size_t *at = gr_calloc(n, sizeof *at);
    s->pieces = gr_calloc(n, sizeof *s->pieces);
    bool ok = at && s->pieces;
    for (size_t i = 0; i < n && ok; i++) {
        at[i] = s->text.length;
        ok = gr_vocab_piece(gr_engine_vocab(g->engine), spec->tokens[i], true, &s->text) &&
             gr_buffer_append(&s->text, "", 1);
    }
    for (size_t i = 0; i < n && ok; i++) {
        s->pieces[i] = s->text.data + at[i];
    }
    gr_free(at);
    return ok ? 0 : gr_fail_memory(err, n * sizeof *s->pieces);
}

static double perplexity(const float *logprobs, size_t n) {
    double sum = 0;
    for (size_t i = 1; i < n; i++) {
        sum += logprobs[i];
    }
    return n > 1 ? exp(-sum / (double)(n - 1)) : (double)NAN;
}

int graft_score(graft_score_result **out, graft *g, const graft_score_request *request, graft_error *err) {
    if (!out || !g || !request) {
        return bad(err, "graft_score", "an argument is NULL");
    }
    score_result *s = gr_zalloc(sizeof *s);
    if (!s) {
        return gr_fail_memory(err, sizeof *s);
    }
    gr_buffer_init(&s->text, GR_MAX_TEXT);
    int rc = run_score(&s->job, g, request, err);
    rc = rc ? rc : list_pieces(s, g, err);
    if (rc) {
        graft_score_result_free(&s->info);
        return rc;
    }
    size_t n = (size_t)s->job->spec.n_tokens;
    s->info = (graft_score_result){n, s->job->spec.tokens, s->pieces, gr_job_logprobs(s->job), 0};
    s->info.perplexity = perplexity(s->info.logprobs, n);
    *out = &s->info;
    return 0;
}
