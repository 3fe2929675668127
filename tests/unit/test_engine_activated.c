/*
 * Activated adapters (aLoRA) in the engine: what is computed anew when requests over one context change adapters, and that
 * everybody gets the answer of a cold run alone, whatever was in the cache, in the slots or in the batch.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <math.h>
#include <stdio.h>

#include "base/memory.h"
#include "engine/engine.h"
#include "engine/job.h"
#include "engine/probe.h"
#include "engine_helpers.h"
#include "lora/random_adapter.h"

enum { CONTEXT = 96, SHARED = 60, ACTIVATED = 3, PLAIN = 2, ADAPTERS = ACTIVATED + PLAIN, LONGEST = 8 };

static gr_base_model *base;
static gr_adapter *adapters[ADAPTERS]; /* the activated ones first */
static int32_t invocations[ACTIVATED][2] = {{201, 202}, {203, 204}, {201, 205}};

static gr_adapter *random_adapter(float gain, uint64_t seed) {
    int weights[64];
    size_t n = 0;
    for (size_t i = 0; i < base->n_weights && n < 64; i++) {
        if (base->weights[i].layer >= 0 && !base->weights[i].vector) {
            weights[n++] = (int)i;
        }
    }
    gr_adapter *a;
    assert_int_equal(gr_random_adapter_create(&a, base, weights, n, 4, GR_DTYPE_F32, gain, seed, NULL), 0);
    snprintf(a->generation, sizeof a->generation, "seed %d", (int)seed);
    return a;
}

static int open_all(void **state) {
    (void)state;
    gr_base_options options = {.vocab_only = false};
    int rc = gr_base_model_open(&base, golden("bases/llama.gguf"), &options, NULL);
    for (int i = 0; i < ADAPTERS && !rc; i++) {
        adapters[i] = random_adapter(0.1f, 3 + (uint64_t)i);
        if (i < ACTIVATED) {
            adapters[i]->invocation = invocations[i];
            adapters[i]->n_invocation = 2;
        }
    }
    return rc;
}

static int close_all(void **state) {
    (void)state;
    for (int i = 0; i < ADAPTERS; i++) {
        gr_random_adapter_free(adapters[i]);
    }
    gr_base_model_close(base);
    return 0;
}

static gr_engine *open_engine(int slots, graft_apply apply) {
    gr_engine_options options = {.slots = slots, .context = CONTEXT, .batch = 32, .threads = 1, .kv_type = GRAFT_KV_F32};
    gr_engine *e;
    assert_int_equal(gr_engine_create(&e, base, &options, NULL), 0);
    assert_int_equal(gr_engine_set_apply(e, apply, NULL), 0);
    return e;
}

/* ---- questions and answers ----------------------------------------------------------------------------------- */

/* What somebody asks, and with whom. */
typedef struct question {
    llama_token tokens[CONTEXT];
    int n;
    int with[2]; /* indices of adapters; -1: none */
    float scale;
    uint64_t domain;
} question;

typedef struct answer {
    int32_t tokens[LONGEST];
    float logprobs[LONGEST];
    float margin[LONGEST]; /* to the second likeliest */
    int n;
} answer;

static void note_token(const graft_token *t, void *user) {
    answer *a = user;
    a->tokens[a->n] = t->chosen.token;
    a->logprobs[a->n] = t->chosen.logprob;
    a->margin[a->n++] = t->top[0].logprob - t->top[1].logprob;
}

/* The shared context, of which there are several. */
static question about(int context) {
    question q = {.with = {-1, -1}, .scale = 1};
    for (; q.n < SHARED; q.n++) {
        q.tokens[q.n] = (7 * q.n + 31 * context + 3) % 180;
    }
    return q;
}

static void add(question *q, llama_token token) {
    q->tokens[q->n++] = token;
}

static void add_invocation(question *q, int adapter) {
    add(q, invocations[adapter][0]);
    add(q, invocations[adapter][1]);
}

static graft_job *make_job(gr_engine *e, const question *q, bool cache, int max_tokens, answer *a) {
    gr_job_spec spec = {.kind = GR_JOB_GENERATE, .max_tokens = max_tokens, .ignore_eos = true, .cache_prompt = cache,
                        .cache_domain = q->domain, .sampling = {.top_p = 1, .repeat_penalty = 1}, .top_logprobs = 2,
                        .on_token = a ? note_token : NULL, .user = a};
    spec.tokens = gr_calloc((size_t)q->n, sizeof *spec.tokens);
    memcpy(spec.tokens, q->tokens, (size_t)q->n * sizeof *spec.tokens);
    spec.n_tokens = q->n;
    for (int i = 0; i < 2; i++) {
        if (q->with[i] >= 0) {
            gr_adapter_set_add(&spec.adapters, adapters[q->with[i]], q->scale);
        }
    }
    graft_job *job;
    assert_int_equal(gr_job_create(&job, e, &spec, NULL), 0);
    return job;
}

/* Runs it and tells how many tokens came from the cache. */
static int ask(gr_engine *e, const question *q, bool cache, answer *a) {
    a->n = 0;
    graft_job *job = make_job(e, q, cache, LONGEST, a);
    assert_int_equal(gr_engine_submit(e, &job, 1, NULL), 0);
    const graft_result *r = graft_job_wait(job);
    assert_int_equal(r->error.code, 0);
    assert_int_equal(r->prompt_tokens, q->n);
    int cached = r->cached_tokens;
    graft_job_free(job);
    return cached;
}

/* Equal up to the first place where two tokens are all but equally likely. */
static void check_answer(const answer *got, const answer *want) {
    assert_int_equal(got->n, want->n);
    for (int i = 0; i < want->n && want->margin[i] > 1e-3f; i++) {
        if (got->tokens[i] != want->tokens[i] || fabsf(got->logprobs[i] - want->logprobs[i]) > 1e-4f) {
            fail_msg("token %d: %d (%g), not %d (%g)", i, got->tokens[i], (double)got->logprobs[i], want->tokens[i],
                     (double)want->logprobs[i]);
        }
    }
}

static void check_differs(const answer *a, const answer *b) {
    assert_true(a->tokens[0] != b->tokens[0] || fabsf(a->logprobs[0] - b->logprobs[0]) > 1e-3f);
}

static uint64_t evaluated(gr_engine *e) {
    graft_stats stats;
    gr_engine_stats(e, &stats);
    return stats.prompt_tokens;
}

/* ---- tests --------------------------------------------------------------------------------------------------- */

/* Three activated adapters and the base take turns at one context. */
static void switching(int slots, graft_apply apply) {
    gr_engine *cold = open_engine(1, apply), *e = open_engine(slots, apply);
    answer want, got, of_base;
    question plain = about(1);
    add(&plain, 190);
    ask(cold, &plain, false, &of_base);
    for (int round = 0; round < 9; round++) {
        question q = about(1);
        q.with[0] = round % 3;
        add_invocation(&q, q.with[0]);
        add(&q, 190 + round);
        ask(cold, &q, false, &want);
        uint64_t before = evaluated(e);
        int cached = ask(e, &q, true, &got);
        assert_int_equal(cached, round ? SHARED : 0);
        assert_int_equal(evaluated(e) - before, q.n - cached);
        check_answer(&got, &want);
        check_differs(&got, &of_base);
    }
    assert_int_equal(ask(e, &plain, true, &got), SHARED);
    check_answer(&got, &of_base);
    gr_engine_free(cold);
    gr_engine_free(e);
}

static void test_switching(void **state) {
    (void)state;
    switching(1, GRAFT_APPLY_ROWS);
    switching(2, GRAFT_APPLY_ROWS);
    switching(4, GRAFT_APPLY_ROWS);
    switching(1, GRAFT_APPLY_GROUPED);
    switching(4, GRAFT_APPLY_GROUPED);
}

/* Nothing of the context has to be shared with a plain adapter, and nothing from after the invocation with anybody. */
static void test_not_shared(void **state) {
    (void)state;
    gr_engine *e = open_engine(4, GRAFT_APPLY_ROWS);
    answer got, want;
    question q = about(2), plain, other;
    add_invocation(&q, 0);
    add(&q, 11);
    add(&q, 12);
    plain = other = q;
    q.with[0] = 0;
    plain.with[0] = ACTIVATED;
    assert_int_equal(ask(e, &q, true, &got), 0);
    assert_int_equal(ask(e, &plain, true, &got), 0);
    assert_int_equal(ask(e, &q, true, &got), q.n - 1);
    assert_int_equal(ask(e, &other, true, &got), SHARED); /* the base, over the same tokens */
    ask(e, &other, false, &want);
    check_answer(&got, &want);
    question half = q;
    half.scale = 0.5f;
    assert_int_equal(ask(e, &half, true, &got), SHARED);
    ask(e, &half, false, &want);
    check_answer(&got, &want);
    question stranger = q;
    stranger.domain = 1;
    assert_int_equal(ask(e, &stranger, true, &got), 0);
    gr_engine_free(e);
}

/* Without its tokens in the prompt the adapter is the base, also when they are generated. */
static void test_not_invoked(void **state) {
    (void)state;
    gr_engine *e = open_engine(2, GRAFT_APPLY_ROWS);
    answer of_base, got;
    question q = about(3);
    add(&q, invocations[0][0]);
    ask(e, &q, false, &of_base);
    int32_t second = invocations[0][1];
    invocations[0][1] = of_base.tokens[0]; /* what is generated first completes the invocation */
    q.with[0] = 0;
    assert_int_equal(ask(e, &q, true, &got), 0);
    check_answer(&got, &of_base);
    assert_true(got.logprobs[1] == of_base.logprobs[1]);
    q.with[0] = -1;
    assert_int_equal(ask(e, &q, true, &got), q.n - 1); /* and so its cache is the base's, the answer's part too */
    add(&q, of_base.tokens[0]);
    add(&q, of_base.tokens[1]);
    assert_int_equal(ask(e, &q, true, &got), q.n - 1);
    invocations[0][1] = second;
    gr_engine_free(e);
}

/* In the next turn the last invocation is another, and what came before it is the base's again. */
static void test_next_turn(void **state) {
    (void)state;
    gr_engine *e = open_engine(2, GRAFT_APPLY_ROWS);
    answer first, got, want;
    question q = about(4);
    q.with[0] = 1;
    add_invocation(&q, 1);
    ask(e, &q, true, &first);
    for (int i = 0; i < 4; i++) {
        add(&q, first.tokens[i]);
    }
    question more = q; /* not invoked again: goes on to the end */
    add(&more, 13);
    assert_int_equal(ask(e, &more, true, &got), q.n);
    ask(e, &more, false, &want);
    check_answer(&got, &want);
    add_invocation(&q, 1);
    assert_int_equal(ask(e, &q, true, &got), SHARED);
    ask(e, &q, false, &want);
    check_answer(&got, &want);
    gr_engine_free(e);
}

/* Scoring knows where an adapter begins as well: rows before are the base's, and after it they are not. */
typedef struct scored {
    float logits[CONTEXT][264];
} scored;

static void note_logits(const float *logits, size_t first, size_t count, int n_vocab, void *user) {
    memcpy(((scored *)user)->logits[first], logits, count * (size_t)n_vocab * sizeof *logits);
}

static void score(gr_engine *e, const question *q, scored *out) {
    gr_job_spec spec = {.kind = GR_JOB_SCORE, .max_tokens = 1, .on_logits = note_logits, .user = out, .n_tokens = q->n};
    spec.tokens = gr_calloc((size_t)q->n, sizeof *spec.tokens);
    memcpy(spec.tokens, q->tokens, (size_t)q->n * sizeof *spec.tokens);
    if (q->with[0] >= 0) {
        gr_adapter_set_add(&spec.adapters, adapters[q->with[0]], 1);
    }
    graft_job *job;
    assert_int_equal(gr_job_run(&job, e, &spec, NULL), 0);
    graft_job_free(job);
}

static float distance(const float *a, const float *b) {
    float most = 0;
    for (int i = 0; i < 264; i++) {
        most = fabsf(a[i] - b[i]) > most ? fabsf(a[i] - b[i]) : most;
    }
    return most;
}

static void test_score(void **state) {
    (void)state;
    static scored of_base, with;
    question q = about(5);
    add_invocation(&q, 2);
    add(&q, 14);
    assert_int_equal(base->n_vocab, 264);
    for (int apply = GRAFT_APPLY_ROWS; apply <= GRAFT_APPLY_GROUPED; apply++) {
        gr_engine *e = open_engine(2, (graft_apply)apply);
        q.with[0] = -1;
        score(e, &q, &of_base);
        q.with[0] = 2;
        score(e, &q, &with);
        for (int i = 0; i < q.n; i++) {
            float far = distance(with.logits[i], of_base.logits[i]);
            assert_true(i < SHARED ? far < 1e-4f : far > 1e-2f);
        }
        gr_engine_free(e);
    }
}

/* A probe has no invocation in its text, and must see the adapter all the same. */
static void test_probe(void **state) {
    (void)state;
    gr_engine *e = open_engine(1, GRAFT_APPLY_ROWS);
    gr_probe *p;
    bool no_effect = true;
    graft_error err;
    assert_int_equal(gr_probe_create(&p, e, NULL), 0);
    assert_int_equal(gr_probe_run(p, adapters[0], &no_effect, NULL), 0);
    assert_false(no_effect);
    gr_adapter *huge = random_adapter(1e30f, 1);
    huge->invocation = invocations[0];
    huge->n_invocation = 2;
    assert_int_equal(gr_probe_run(p, huge, &no_effect, &err), GRAFT_E_NON_FINITE_OUTPUT);
    gr_random_adapter_free(huge);
    gr_probe_free(p);
    gr_engine_free(e);
}

/* ---- everything at once -------------------------------------------------------------------------------------- */

static uint32_t seed = 11;
static int roll(int n) {
    seed = seed * 1664525u + 1013904223u;
    return (int)((uint64_t)(seed >> 8) * (uint32_t)n >> 24);
}

/* Somebody asks about one of three contexts, or some of its beginning: base, activated, plain, or two of them together. */
static question random_question(void) {
    question q = about(roll(3));
    q.n -= roll(3) ? 0 : roll(SHARED - 1);
    q.with[0] = roll(ADAPTERS + 1) - 1;
    q.with[1] = roll(3) ? -1 : roll(ADAPTERS);
    q.scale = roll(4) ? 1.0f : 0.5f;
    for (int parts = 1 + roll(3); parts > 0; parts--) {
        if (roll(4)) {
            add_invocation(&q, roll(ACTIVATED));
        }
        for (int n = roll(3); n > 0; n--) {
            add(&q, 181 + roll(3));
        }
    }
    return q;
}

/* As many as there are slots and more wait at once; some are given up half way. */
static uint64_t wave(gr_engine *cold, gr_engine *e, int n) {
    question questions[12];
    answer want[12], got[12];
    graft_job *jobs[12] = {NULL};
    uint64_t cached = 0;
    for (int i = 0; i < n; i++) {
        questions[i] = random_question();
        ask(cold, &questions[i], false, &want[i]);
        got[i].n = 0;
        jobs[i] = make_job(e, &questions[i], roll(8) > 0, LONGEST, &got[i]);
    }
    assert_int_equal(gr_engine_submit(e, jobs, (size_t)n, NULL), 0);
    for (int i = 0; i < n; i++) {
        bool cancelled = roll(8) == 0;
        if (cancelled) {
            graft_job_cancel(jobs[i]);
        }
        const graft_result *r = graft_job_wait(jobs[i]);
        assert_int_equal(r->error.code, r->finish == GRAFT_FINISH_CANCELLED ? GRAFT_E_CANCELLED : 0);
        if (r->finish != GRAFT_FINISH_CANCELLED) {
            check_answer(&got[i], &want[i]);
        }
        cached += (uint64_t)r->cached_tokens;
    }
    for (int i = 0; i < n; i++) {
        graft_job_free(jobs[i]);
    }
    return cached;
}

static void company(graft_apply apply, int waves) {
    gr_engine *cold = open_engine(1, apply);
    uint64_t cached = 0;
    for (int slots = 1; slots <= 5; slots += 2) {
        gr_engine *e = open_engine(slots, apply);
        for (int i = 0; i < waves; i++) {
            cached += wave(cold, e, 1 + roll(12));
        }
        gr_engine_free(e);
    }
    assert_true(cached > 0);
    gr_engine_free(cold);
}

static void test_company(void **state) {
    (void)state;
    company(GRAFT_APPLY_ROWS, 12);
    company(GRAFT_APPLY_GROUPED, 6);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_switching, open_all, close_all),
        cmocka_unit_test_setup_teardown(test_not_shared, open_all, close_all),
        cmocka_unit_test_setup_teardown(test_not_invoked, open_all, close_all),
        cmocka_unit_test_setup_teardown(test_next_turn, open_all, close_all),
        cmocka_unit_test_setup_teardown(test_score, open_all, close_all),
        cmocka_unit_test_setup_teardown(test_probe, open_all, close_all),
        cmocka_unit_test_setup_teardown(test_company, open_all, close_all),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
