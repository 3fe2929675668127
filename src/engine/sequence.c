/* A job in a slot: its tokens so far, and what becomes of its logits. */
#include "sequence.h"

#include "base/clock.h"

#include <math.h>
#include <string.h>

void gr_sequence_start(gr_sequence *s, graft_job *job, uint64_t age) {
    *s = (gr_sequence){.slot = s->slot, .tokens = s->tokens, .job = job, .age = age, .n_known = job->spec.n_tokens};
    memcpy(s->tokens, job->spec.tokens, (size_t)job->spec.n_tokens * sizeof *s->tokens);
}

bool gr_sequence_generates(const gr_sequence *s) {
    return s->n_known > s->job->spec.n_tokens && s->n_past == s->n_known - 1;
}

gr_sched_item gr_sequence_item(const gr_sequence *s) {
    gr_sched_item item = {.age = s->age, .served = s->served, .want = s->n_known - s->n_past};
    item.generating = gr_sequence_generates(s);
    item.scoring = s->job->spec.kind == GR_JOB_SCORE;
    return item;
}

gr_span gr_sequence_span(gr_sequence *s, int rows) {
    int end = s->n_past + rows;
    s->verdict = GR_NO_LOGITS;
    gr_span span = {.seq = s->slot, .start = s->n_past, .tokens = s->tokens + s->n_past, .n = rows,
                    .set = &s->job->spec.adapters, .user = s};
    if (s->job->spec.kind == GR_JOB_SCORE) {
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
            s->job->spec.adapters.n ? "the adapter's values are too large for this base" : "the base alone does that");
    end_with_error(s, &error);
}

/* ---- generating --------------------------------------------------------------------------------------- */

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
    if (gr_vocab_is_end(draw->vocab, token)) { /* never drawn with ignore_eos */
        gr_sequence_end(s, GRAFT_FINISH_STOP, NULL);
    } else if (add_text(s, draw, token) &&
               (n_new >= job->spec.max_tokens || s->n_known >= draw->context)) {
        gr_sequence_end(s, GRAFT_FINISH_LENGTH, NULL);
    }
}

/* ---- scoring ------------------------------------------------------------------------------------------ */

/* log of softmax(logits)[token] */
static float log_probability(const float *logits, int n, llama_token token) {
    float most = -INFINITY;
    for (int i = 0; i < n; i++) {
        most = logits[i] > most ? logits[i] : most;
    }
    double sum = 0;
    for (int i = 0; i < n; i++) {
        sum += exp((double)logits[i] - most);
    }
    return (float)((double)logits[token] - most - log(sum));
}

static void score(gr_sequence *s, const gr_draw *draw, int row, int count, const float *logits) {
    const gr_job_spec *spec = &s->job->spec;
    int n_vocab = draw->vocab->n_tokens, first = s->n_past + row;
    for (int i = 0; i < count && first + i + 1 < spec->n_tokens; i++) {
        llama_token next = spec->tokens[first + i + 1];
        s->job->logprobs[first + i + 1] = log_probability(logits + (size_t)i * (size_t)n_vocab, n_vocab, next);
    }
    if (spec->on_logits) {
        spec->on_logits(logits, (size_t)first, (size_t)count, n_vocab, spec->user);
    }
    s->n_scored = first + count;
    if (s->n_scored == spec->n_tokens) {
        gr_sequence_end(s, GRAFT_FINISH_STOP, NULL);
    }
}

void gr_sequence_logits(gr_sequence *s, gr_draw *draw, int row, int count, const float *logits) {
    int n_vocab = draw->vocab->n_tokens;
    for (int i = 0; i < count && s->verdict != GR_LOGITS_BAD; i++) {
        bool good = gr_logits_usable(logits + (size_t)i * (size_t)n_vocab, n_vocab);
        s->verdict = good ? GR_LOGITS_GOOD : GR_LOGITS_BAD;
    }
    if (s->ended || s->verdict == GR_LOGITS_BAD) {
        return;
    }
    if (s->job->spec.kind == GR_JOB_SCORE) {
        score(s, draw, row, count, logits);
    } else {
        generate(s, draw, logits);
    }
}
