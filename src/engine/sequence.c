/* A job in a slot: its tokens so far, and what becomes of its logits. */
#include "sequence.h"

#include "base/clock.h"

#include <math.h>
#include <string.h>

void gr_sequence_start(gr_sequence *s, graft_job *job, int n_cached) {
    *s = (gr_sequence){.slot = s->slot, .tokens = s->tokens, .job = job, .age = job->age, .n_known = job->spec.n_tokens,
                       .n_past = n_cached};
    gr_activation_make(&s->active, &job->spec.adapters, job->starts);
    job->result.cached_tokens = n_cached;
    memcpy(s->tokens, job->spec.tokens, (size_t)job->spec.n_tokens * sizeof *s->tokens);
}

bool gr_sequence_generates(const gr_sequence *s) {
    return s->n_known > s->job->spec.n_tokens && s->n_past == s->n_known - 1;
}

gr_sched_item gr_sequence_item(const gr_sequence *s) {
    gr_sched_item item = {.age = s->age, .served = s->served, .want = s->n_known - s->n_past};
    item.generating = gr_sequence_generates(s);
    item.scoring = s->job->spec.kind != GR_JOB_GENERATE;
    return item;
}

gr_span gr_sequence_span(gr_sequence *s, int rows) {
    int end = s->n_past + rows;
    s->verdict = GR_NO_LOGITS;
    gr_span span = {.seq = s->slot, .start = s->n_past, .tokens = s->tokens + s->n_past, .n = rows,
                    .active = &s->active, .user = s};
    span.embed = s->job->spec.kind == GR_JOB_EMBED;
    if (s->job->spec.kind != GR_JOB_GENERATE) {
        int first = s->n_past > s->n_scored ? s->n_past : s->n_scored;
        span.n_outputs = end > first ? end - first : 0;
    } else {
        span.n_outputs = end == s->n_known;
    }
    return span;
}

/* ---- ends --------------------------------------------------------------------------------------------- */

/* Shows what is new to the caller; false if it wants no more. */
static bool show(gr_sequence *s) {
    graft_job *job = s->job;
    const char *text;
    size_t n = gr_text_take(&job->text, &text);
    return n == 0 || !job->spec.on_text || job->spec.on_text(text, n, job->spec.user);
}

void gr_sequence_end(gr_sequence *s, graft_finish finish, const graft_error *error) {
    if (s->ended) {
        return;
    }
    s->ended = true;
    s->ending.finish = finish;
    if (error) {
        s->ending.error = *error;
    }
    if (finish != GRAFT_FINISH_CANCELLED && s->job->spec.kind == GR_JOB_GENERATE) {
        gr_text_end(&s->job->text); /* out of memory here loses a few held bytes, as good as it gets */
        show(s);
    }
}

void gr_sequence_cancel(gr_sequence *s) {
    graft_error error;
    gr_fail(&error, GRAFT_E_CANCELLED, "the request was cancelled");
    gr_sequence_end(s, GRAFT_FINISH_CANCELLED, &error);
}

static void end_with_error(gr_sequence *s, const graft_error *error) {
    gr_sequence_end(s, GRAFT_FINISH_ERROR, error);
}

void gr_sequence_convict(gr_sequence *s) {
    graft_error error;
    gr_fail(&error, GRAFT_E_NON_FINITE_OUTPUT, "the logits hold NaN or infinity; %s",
            gr_activation_all(&s->active)->n ? "the adapter's values are too large for this base" : "the base alone does that");
    end_with_error(s, &error);
}

/* ---- generating --------------------------------------------------------------------------------------- */

static graft_token_choice choice(gr_draw *draw, llama_token token, const float *logits, double log_sum) {
    size_t at = draw->shown.length;
    gr_vocab_piece(draw->vocab, token, true, &draw->shown); /* without memory it has no text: room there is */
    return (graft_token_choice){token, draw->shown.data + at, draw->shown.length - at, (float)((double)logits[token] - log_sum)};
}

/* Shows the token and the likeliest ones to the caller. */
static void show_token(const gr_sequence *s, gr_draw *draw, llama_token token, const float *logits) {
    const gr_job_spec *spec = &s->job->spec;
    llama_token top[GR_MAX_TOP];
    graft_token_choice choices[GR_MAX_TOP];
    int n_vocab = draw->vocab->n_tokens;
    graft_token shown = {.top = choices, .n_top = spec->top_logprobs < n_vocab ? spec->top_logprobs : n_vocab};
    double log_sum = gr_log_sum(logits, n_vocab);
    gr_likeliest(logits, n_vocab, top, shown.n_top);
    gr_buffer_clear(&draw->shown);
    shown.chosen = choice(draw, token, logits, log_sum);
    shown.ends = gr_vocab_is_end(draw->vocab, token);
    for (int i = 0; i < shown.n_top; i++) {
        choices[i] = choice(draw, top[i], logits, log_sum);
    }
    spec->on_token(&shown, spec->user);
}

/* Adds the token's text; false if the sequence ended by that. */
static bool add_text(gr_sequence *s, gr_draw *draw, llama_token token) {
    graft_job *job = s->job;
    gr_buffer_clear(&draw->piece);
    if (!gr_vocab_piece(draw->vocab, token, false, &draw->piece) ||
        !gr_text_add(&job->text, draw->piece.data, draw->piece.length)) {
        graft_error error;
        gr_fail(&error, GRAFT_E_OUT_OF_MEMORY, "the answer's text needs more memory than there is");
        end_with_error(s, &error);
        return false;
    }
    if (job->text.stopped) {
        gr_sequence_end(s, GRAFT_FINISH_STOP, NULL);
    } else if (!show(s)) {
        gr_sequence_cancel(s);
    }
    return !s->ended;
}

static void generate(gr_sequence *s, gr_draw *draw, const float *logits) {
    graft_job *job = s->job;
    graft_error error;
    llama_token token;
    if (gr_sampler_pick(job->sampler, logits, draw->scratch, &token, &error)) {
        end_with_error(s, &error);
        return;
    }
    if (job->first_token == 0) {
        job->first_token = gr_now_us();
    }
    if (token == LLAMA_TOKEN_NULL) {
        gr_sequence_end(s, GRAFT_FINISH_STOP, NULL);
        return;
    }
    s->tokens[s->n_known++] = token; /* there is room: at the context's end it stops */
    int n_new = ++job->result.completion_tokens;
    if (job->spec.on_token) {
        show_token(s, draw, token, logits);
    }
    if (gr_vocab_is_end(draw->vocab, token)) { /* never drawn with ignore_eos */
        gr_sequence_end(s, GRAFT_FINISH_STOP, NULL);
    } else if (add_text(s, draw, token) &&
               (n_new >= job->spec.max_tokens || s->n_known >= draw->context)) {
        gr_sequence_end(s, GRAFT_FINISH_LENGTH, NULL);
    }
}

/* ---- scoring ------------------------------------------------------------------------------------------ */

static void score(gr_sequence *s, const gr_draw *draw, int row, int count, const float *logits) {
    const gr_job_spec *spec = &s->job->spec;
    int n_vocab = draw->vocab->n_tokens, first = s->n_past + row;
    for (int i = 0; i < count && first + i + 1 < spec->n_tokens; i++) {
        llama_token next = spec->tokens[first + i + 1];
        const float *of_token = logits + (size_t)i * (size_t)n_vocab;
        s->job->logprobs[first + i + 1] = (float)((double)of_token[next] - gr_log_sum(of_token, n_vocab));
    }
    if (spec->on_logits) {
        spec->on_logits(logits, (size_t)first, (size_t)count, n_vocab, spec->user);
    }
    s->n_scored = first + count;
    if (s->n_scored == spec->n_tokens) {
        gr_sequence_end(s, GRAFT_FINISH_STOP, NULL);
    }
}

/* ---- embedding ---------------------------------------------------------------------------------------- */

static bool all_finite(const float *values, int n) {
    bool finite = true;
    for (int i = 0; i < n; i++) {
        finite = finite && isfinite(values[i]);
    }
    return finite;
}

/* From the sum, or the last state, to what was asked for. */
static void complete_embedding(graft_job *job) {
    double square = 0, by = job->spec.pooling == GRAFT_POOL_MEAN ? 1.0 / job->spec.n_tokens : 1;
    for (int i = 0; i < job->n_embd; i++) {
        square += (double)job->embedding[i] * (double)job->embedding[i];
    }
    if (job->spec.normalize) {
        by = square > 0 ? 1 / sqrt(square) : 0;
    }
    for (int i = 0; i < job->n_embd; i++) {
        job->embedding[i] = (float)(job->embedding[i] * by);
    }
}

static void embed(gr_sequence *s, int row, int count, const float *states) {
    graft_job *job = s->job;
    bool mean = job->spec.pooling == GRAFT_POOL_MEAN;
    for (int k = 0; k < count; k++) {
        for (int i = 0; i < job->n_embd; i++) {
            float x = states[(size_t)k * (size_t)job->n_embd + (size_t)i];
            job->embedding[i] = mean ? job->embedding[i] + x : x;
        }
    }
    s->n_scored = s->n_past + row + count;
    if (s->n_scored == job->spec.n_tokens) {
        complete_embedding(job);
        gr_sequence_end(s, GRAFT_FINISH_STOP, NULL);
    }
}

void gr_sequence_logits(gr_sequence *s, gr_draw *draw, int row, int count, const float *logits) {
    gr_job_kind kind = s->job->spec.kind;
    int width = kind == GR_JOB_EMBED ? draw->n_embd : draw->vocab->n_tokens;
    for (int i = 0; i < count && s->verdict != GR_LOGITS_BAD; i++) {
        const float *values = logits + (size_t)i * (size_t)width;
        bool good = kind == GR_JOB_EMBED ? all_finite(values, width) : gr_logits_usable(values, width);
        s->verdict = good ? GR_LOGITS_GOOD : GR_LOGITS_BAD;
    }
    if (s->ended || s->verdict == GR_LOGITS_BAD) {
        return;
    }
    if (kind == GR_JOB_EMBED) {
        embed(s, row, count, logits);
    } else if (kind == GR_JOB_SCORE) {
        score(s, draw, row, count, logits);
    } else {
        generate(s, draw, logits);
    }
}
