/* The engine below the public API: faults that no file can bring about, endings, and failing allocations. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <math.h>

#include "base/memory.h"
#include "engine/engine.h"
#include "engine_helpers.h"
#include "lora/random_adapter.h"

/* The API's own files are linked in: the shared library hides the allocator that these tests make fail. */
#include "api.h"

static gr_base_model *base;

static int open_base_model(void **state) {
    (void)state;
    gr_base_options options = {.vocab_only = false};
    return gr_base_model_open(&base, golden("bases/llama.gguf"), &options, NULL);
}

static int close_base_model(void **state) {
    (void)state;
    gr_base_model_close(base);
    return 0;
}

static int open_engine_kv(gr_engine **e, int slots, graft_kv_type kv_type, graft_error *err) {
    gr_engine_options options = {.slots = slots, .context = 64, .batch = 32, .threads = 1, .kv_type = kv_type};
    return gr_engine_create(e, base, &options, err);
}

static int open_engine(gr_engine **e, int slots, graft_error *err) {
    return open_engine_kv(e, slots, GRAFT_KV_F32, err);
}

/* A greedy request over a few tokens, `first` and three more; `a` (may be NULL) with scale 1. */
static graft_job *make_job_from(gr_engine *e, const gr_adapter *a, int max_tokens, int first) {
    gr_job_spec spec = {.kind = GR_JOB_GENERATE, .max_tokens = max_tokens, .ignore_eos = true,
                        .cache_prompt = true, .sampling = {.top_p = 1, .repeat_penalty = 1}};
    spec.tokens = gr_calloc(4, sizeof *spec.tokens);
    spec.n_tokens = 4;
    for (int i = 0; i < 4; i++) {
        spec.tokens[i] = 10 * i + first;
    }
    if (a) {
        spec.adapters = (gr_adapter_set){.adapters = {gr_adapter_retain((gr_adapter *)a)}, .scales = {1}, .n = 1};
    }
    graft_job *job;
    assert_int_equal(gr_job_create(&job, e, &spec, NULL), 0);
    return job;
}

static graft_job *make_engine_job(gr_engine *e, const gr_adapter *a, int max_tokens) {
    return make_job_from(e, a, max_tokens, 5);
}

static gr_adapter *random_adapter(float gain) {
    int weights[64];
    size_t n = 0;
    for (size_t i = 0; i < base->n_weights && n < 64; i++) {
        if (base->weights[i].layer >= 0 && !base->weights[i].vector) {
            weights[n++] = (int)i;
        }
    }
    gr_adapter *a;
    assert_int_equal(gr_random_adapter_create(&a, base, weights, n, 4, GR_DTYPE_F32, gain, 9, NULL), 0);
    snprintf(a->generation, sizeof a->generation, "gain %g", gain);
    return a;
}

/* ---- faults ------------------------------------------------------------------------------------------------ */

/*
 * Four requests share batches: base, huge, good, huge. The huge adapter's values are finite, so loading accepts it;
 * what it computes is not. Whatever becomes of its requests, the others get the answers that they get alone.
 */
static void overflow_case(const gr_adapter *good, const gr_adapter *huge, graft_kv_type kv, graft_apply apply,
                          bool sure) {
    gr_engine *e;
    assert_int_equal(open_engine_kv(&e, 4, kv, NULL), 0);
    assert_int_equal(gr_engine_set_apply(e, apply, NULL), 0);
    graft_job *alone[2] = {make_engine_job(e, NULL, 12), make_engine_job(e, good, 12)};
    for (int i = 0; i < 2; i++) {
        assert_int_equal(gr_engine_submit(e, &alone[i], 1, NULL), 0);
        assert_int_equal(graft_job_wait(alone[i])->finish, GRAFT_FINISH_LENGTH);
    }
    graft_job *jobs[4] = {make_engine_job(e, NULL, 12), make_engine_job(e, huge, 12), make_engine_job(e, good, 12),
                          make_engine_job(e, huge, 12)};
    assert_int_equal(gr_engine_submit(e, jobs, 4, NULL), 0);
    for (int i = 0; i < 4; i++) {
        const graft_result *r = graft_job_wait(jobs[i]);
        if (i % 2 == 0) {
            assert_int_equal(r->error.code, 0);
            assert_string_equal(r->text, graft_job_wait(alone[i / 2])->text);
        } else if (sure || r->error.code) {
            assert_int_equal(r->finish, GRAFT_FINISH_ERROR);
            assert_int_equal(r->error.code, GRAFT_E_NON_FINITE_OUTPUT);
        }
    }
    for (int i = 0; i < 4; i++) {
        graft_job_free(jobs[i]);
    }
    graft_job_free(alone[0]);
    graft_job_free(alone[1]);
    gr_engine_free(e);
}

static void test_overflowing_adapter(void **state) {
    (void)state;
    static const float gains[] = {1e3f, 1e5f, 1e7f, 1e30f}; /* beyond float16's range, and beyond float32's */
    gr_adapter *good = random_adapter(0.05f);
    for (size_t i = 0; i < sizeof gains / sizeof *gains; i++) {
        gr_adapter *huge = random_adapter(gains[i]);
        /* The hook goes through adapters by address: the good one comes once before and once after the huge one. */
        gr_adapter *later = random_adapter(0.05f);
        for (int kv = GRAFT_KV_F16; kv <= GRAFT_KV_F32; kv++) {
            overflow_case(good, huge, (graft_kv_type)kv, GRAFT_APPLY_ROWS, gains[i] > 1e20f);
            overflow_case(later, huge, (graft_kv_type)kv, GRAFT_APPLY_ROWS, gains[i] > 1e20f);
            overflow_case(good, huge, (graft_kv_type)kv, GRAFT_APPLY_GROUPED, gains[i] > 1e20f);
        }
        gr_random_adapter_free(later);
        gr_random_adapter_free(huge);
    }
    gr_random_adapter_free(good);
}

/* The victim is the elder, so it is looked at first; the culprit has the first slot, so its rows come first. Only alone
 * can the victim be seen to be innocent. */
static void test_elder_victim(void **state) {
    (void)state;
    gr_adapter *huge = random_adapter(1e30f);
    gr_engine *e;
    assert_int_equal(open_engine(&e, 2, NULL), 0);
    assert_int_equal(gr_engine_set_apply(e, GRAFT_APPLY_GROUPED, NULL), 0);
    graft_job *alone = make_engine_job(e, NULL, 12);
    assert_int_equal(gr_engine_submit(e, &alone, 1, NULL), 0);
    graft_job_wait(alone);
    graft_job *jobs[3] = {make_engine_job(e, NULL, 1), make_engine_job(e, NULL, 12), make_engine_job(e, huge, 12)};
    assert_int_equal(gr_engine_submit(e, jobs, 3, NULL), 0);
    assert_int_equal(graft_job_wait(jobs[0])->error.code, 0);
    assert_int_equal(graft_job_wait(jobs[1])->error.code, 0);
    assert_string_equal(graft_job_wait(jobs[1])->text, graft_job_wait(alone)->text);
    assert_int_equal(graft_job_wait(jobs[2])->error.code, GRAFT_E_NON_FINITE_OUTPUT);
    graft_stats stats;
    gr_engine_stats(e, &stats);
    assert_true(stats.retried_steps > 0);
    for (int i = 0; i < 3; i++) {
        graft_job_free(jobs[i]);
    }
    graft_job_free(alone);
    gr_engine_free(e);
    gr_random_adapter_free(huge);
}

static int cached_again(gr_engine *e, const char *text) {
    graft_job *job = make_job_from(e, NULL, 12, 7);
    assert_int_equal(gr_engine_submit(e, &job, 1, NULL), 0);
    const graft_result *r = graft_job_wait(job);
    assert_int_equal(r->error.code, 0);
    assert_string_equal(r->text, text);
    int cached = r->cached_tokens;
    graft_job_free(job);
    return cached;
}

/* Looking for the culprit empties the cache: nothing of it may be taken for cached afterwards, neither what lay idle nor what those
 * that run had taken over. */
static void test_overflow_drops_prefixes(void **state) {
    (void)state;
    gr_adapter *huge = random_adapter(1e30f);
    gr_engine *e;
    assert_int_equal(open_engine(&e, 4, NULL), 0);
    assert_int_equal(gr_engine_set_apply(e, GRAFT_APPLY_GROUPED, NULL), 0);
    graft_job *first = make_job_from(e, NULL, 12, 7);
    assert_int_equal(gr_engine_submit(e, &first, 1, NULL), 0);
    const char *text = graft_job_wait(first)->text;
    assert_int_equal(cached_again(e, text), 3);
    graft_job *jobs[3] = {make_job_from(e, NULL, 12, 7), make_engine_job(e, NULL, 12), make_engine_job(e, huge, 12)};
    assert_int_equal(gr_engine_submit(e, jobs, 3, NULL), 0);
    assert_string_equal(graft_job_wait(jobs[0])->text, text);
    assert_int_equal(graft_job_wait(jobs[0])->cached_tokens, 0); /* it began with three */
    assert_int_equal(graft_job_wait(jobs[1])->error.code, 0);
    assert_int_equal(graft_job_wait(jobs[2])->error.code, GRAFT_E_NON_FINITE_OUTPUT);
    graft_job *again[2] = {make_engine_job(e, huge, 12), make_job_from(e, huge, 12, 3)};
    assert_int_equal(gr_engine_submit(e, again, 2, NULL), 0);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(graft_job_wait(again[i])->error.code, GRAFT_E_NON_FINITE_OUTPUT);
        assert_int_equal(graft_job_wait(again[i])->cached_tokens, 0);
        graft_job_free(again[i]);
    }
    assert_int_equal(cached_again(e, text), 0); /* idle when it was cleared */
    assert_int_equal(cached_again(e, text), 3);
    for (int i = 0; i < 3; i++) {
        graft_job_free(jobs[i]);
    }
    graft_job_free(first);
    gr_engine_free(e);
    gr_random_adapter_free(huge);
}

static graft_job *make_embed_job(gr_engine *e, const gr_adapter *a, int n_tokens) {
    gr_job_spec spec = {.kind = GR_JOB_EMBED, .max_tokens = 1, .n_tokens = n_tokens};
    spec.tokens = gr_calloc((size_t)n_tokens, sizeof *spec.tokens);
    for (int i = 0; i < n_tokens; i++) {
        spec.tokens[i] = 7 * i % 250;
    }
    if (a) {
        spec.adapters = (gr_adapter_set){.adapters = {gr_adapter_retain((gr_adapter *)a)}, .scales = {1}, .n = 1};
    }
    graft_job *job;
    assert_int_equal(gr_job_create(&job, e, &spec, NULL), 0);
    return job;
}

enum { EMBEDDED = 60 };

/* The mean hidden state by libllama alone, in a context of its own. */
static void mean_state(double *mean, int n_embd) {
    struct llama_context_params p = llama_context_default_params();
    p.n_ctx = p.n_batch = p.n_ubatch = 64;
    p.embeddings = true;
    p.pooling_type = LLAMA_POOLING_TYPE_NONE;
    p.type_k = p.type_v = GGML_TYPE_F32;
    p.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
    p.n_threads = p.n_threads_batch = 1;
    struct llama_context *ctx = llama_init_from_model(base->llama, p);
    llama_token tokens[EMBEDDED];
    for (int i = 0; i < EMBEDDED; i++) {
        tokens[i] = 7 * i % 250;
    }
    assert_int_equal(llama_decode(ctx, llama_batch_get_one(tokens, EMBEDDED)), 0);
    for (int i = 0; i < EMBEDDED; i++) {
        for (int k = 0; k < n_embd; k++) {
            mean[k] += (double)llama_get_embeddings_ith(ctx, i)[k] / EMBEDDED;
        }
    }
    llama_free(ctx);
}

static void test_embedding_is_libllamas(void **state) {
    (void)state;
    gr_engine *e;
    double mean[512] = {0};
    int n;
    assert_int_equal(open_engine(&e, 2, NULL), 0);
    graft_job *job = make_embed_job(e, NULL, EMBEDDED); /* in two steps: a batch has 32 rows */
    assert_int_equal(gr_engine_submit(e, &job, 1, NULL), 0);
    assert_int_equal(graft_job_wait(job)->error.code, 0);
    const float *found = graft_job_embedding(job, &n);
    assert_int_equal(n, llama_model_n_embd(base->llama));
    mean_state(mean, n);
    for (int k = 0; k < n; k++) {
        assert_true(fabs((double)found[k] - mean[k]) < 1e-4);
    }
    graft_job_free(job);
    gr_engine_free(e);
}

/* An adapter that overflows fails its own embeddings; those of the others are what they are alone. */
static void test_overflowing_embedding(void **state) {
    (void)state;
    gr_adapter *huge = random_adapter(1e30f);
    gr_engine *e;
    int n;
    assert_int_equal(open_engine(&e, 4, NULL), 0);
    graft_job *alone = make_embed_job(e, NULL, EMBEDDED);
    assert_int_equal(gr_engine_submit(e, &alone, 1, NULL), 0);
    graft_job_wait(alone);
    const float *expected = graft_job_embedding(alone, &n);
    for (int apply = GRAFT_APPLY_ROWS; apply <= GRAFT_APPLY_GROUPED; apply++) {
        assert_int_equal(gr_engine_set_apply(e, (graft_apply)apply, NULL), 0);
        graft_job *jobs[4] = {make_embed_job(e, huge, EMBEDDED), make_embed_job(e, NULL, EMBEDDED),
                              make_engine_job(e, NULL, 30), make_embed_job(e, huge, 3)};
        assert_int_equal(gr_engine_submit(e, jobs, 4, NULL), 0);
        for (int i = 0; i < 4; i++) {
            assert_int_equal(graft_job_wait(jobs[i])->error.code, i % 3 ? 0 : GRAFT_E_NON_FINITE_OUTPUT);
        }
        assert_null(graft_job_embedding(jobs[0], NULL));
        const float *found = graft_job_embedding(jobs[1], NULL);
        for (int k = 0; k < n; k++) {
            assert_true(fabsf(found[k] - expected[k]) < 1e-4f);
        }
        for (int i = 0; i < 4; i++) {
            graft_job_free(jobs[i]);
        }
    }
    graft_job_free(alone);
    gr_engine_free(e);
    gr_random_adapter_free(huge);
}

static void test_full_queue(void **state) {
    (void)state;
    gr_engine *e;
    graft_error err;
    assert_int_equal(open_engine(&e, 1, NULL), 0);
    graft_job *job = make_engine_job(e, NULL, 4);
    graft_job **many = calloc(GR_MAX_QUEUE + 1, sizeof *many);
    for (int i = 0; i <= GR_MAX_QUEUE; i++) {
        many[i] = job;
    }
    assert_int_equal(gr_engine_submit(e, many, GR_MAX_QUEUE + 1, &err), GRAFT_E_OUT_OF_MEMORY);
    assert_non_null(strstr(err.message, "queue is full"));
    free(many);
    assert_int_equal(gr_engine_submit(e, &job, 1, NULL), 0);
    graft_job_free(job);
    gr_engine_free(e);
}

/* Closing ends what runs and what waits; the jobs outlive the engine. */
static void test_free_with_jobs(void **state) {
    (void)state;
    uint64_t blocks = gr_memory_blocks();
    for (int round = 0; round < 20; round++) {
        gr_engine *e;
        assert_int_equal(open_engine(&e, 2, NULL), 0);
        graft_job *jobs[6];
        for (int i = 0; i < 6; i++) {
            jobs[i] = make_engine_job(e, NULL, 60);
        }
        assert_int_equal(gr_engine_submit(e, jobs, 6, NULL), 0);
        if (round % 2) {
            graft_job_cancel(jobs[5]);
        }
        gr_engine_free(e);
        for (int i = 0; i < 6; i++) {
            const graft_result *r = graft_job_wait(jobs[i]);
            assert_true(r->finish == GRAFT_FINISH_LENGTH || r->error.code == GRAFT_E_SHUTTING_DOWN ||
                        r->error.code == GRAFT_E_CANCELLED);
            graft_job_free(jobs[i]);
        }
    }
    assert_int_equal(gr_memory_blocks(), blocks);
}

/* ---- failing allocations ------------------------------------------------------------------------------------- */

static void test_engine_memory_failures(void **state) {
    (void)state;
    uint64_t blocks = gr_memory_blocks();
    for (int forever = 0; forever < 2; forever++) {
        int rc = -1;
        for (uint64_t n = 1; rc != 0; n++) {
            gr_engine *e = NULL;
            graft_error err = {0};
            assert_true(n < 300);
            gr_memory_fail_at(n, forever);
            rc = open_engine(&e, 2, &err);
            gr_memory_fail_at(0, 0);
            assert_true(rc == 0 || rc == GRAFT_E_OUT_OF_MEMORY);
            assert_int_equal(err.code, rc);
            gr_engine_free(e);
            assert_int_equal(gr_memory_blocks(), blocks);
        }
    }
}

static graft *open_instance(void) {
    graft_options o = graft_options_default();
    o.model = golden("bases/llama.gguf");
    o.slots = 2;
    o.context = 64;
    o.batch = 32;
    o.threads = 1;
    graft *g;
    assert_int_equal(graft_open(&g, &o, NULL), 0);
    return g;
}

/* Everything that a client does, over and over, with the n-th allocation failing. */
static int whole_round(graft *g, graft_error *err) {
    graft_adapter *a = NULL;
    graft_inspection *in = NULL;
    graft_job *jobs[2] = {NULL, NULL};
    graft_score_result *score = NULL;
    const char *const stops[] = {"never this"};
    const graft_message messages[] = {{"user", "hello"}};
    const graft_logit_bias bias = {9, 0.5f};
    int rc = graft_inspect(&in, g, golden("adapters/llama/qv"), err);
    rc = rc ? rc : graft_adapter_open(&a, g, golden("adapters/llama/qv"), err);
    graft_adapter_use use = {.adapter = a, .scale = 1};
    graft_request r[2] = {graft_request_default(), graft_request_default()};
    r[0].prompt = "hello";
    r[0].stop = stops;
    r[0].n_stop = 1;
    r[1].messages = messages;
    r[1].n_messages = 1;
    r[1].sampling.grammar = "root ::= [a-z]{3,5}";
    for (int i = 0; i < 2; i++) {
        r[i].max_tokens = 6;
        r[i].ignore_eos = true;
        r[i].logit_bias = &bias;
        r[i].n_logit_bias = 1;
        r[i].adapters = &use;
        r[i].n_adapters = 1;
    }
    rc = rc ? rc : graft_submit(jobs, g, r, 2, err);
    for (int i = 0; i < 2 && jobs[i]; i++) {
        const graft_result *result = graft_job_wait(jobs[i]);
        if (result->error.code && !rc) {
            rc = result->error.code;
            *err = result->error;
        }
    }
    graft_score_request s = graft_score_request_default();
    s.text = "some text";
    rc = rc ? rc : graft_score(&score, g, &s, err);
    int32_t *tokens = NULL;
    size_t n = 0;
    char *text = NULL, *prompt = NULL;
    rc = rc ? rc : graft_tokenize(&tokens, &n, g, "some text", true, true, err);
    rc = rc ? rc : graft_detokenize(&text, NULL, g, tokens, n, err);
    rc = rc ? rc : graft_apply_template(&prompt, g, messages, 1, err);
    graft_embed_request of_text = graft_embed_request_default();
    graft_job *embedding = NULL;
    of_text.text = "some text";
    of_text.adapters = &use;
    of_text.n_adapters = 1;
    rc = rc ? rc : graft_embed(&embedding, g, &of_text, 1, err);
    if (embedding && graft_job_wait(embedding)->error.code && !rc) {
        rc = graft_job_wait(embedding)->error.code;
        *err = graft_job_wait(embedding)->error;
    }
    graft_job_free(embedding);
    graft_free(tokens);
    graft_free(text);
    graft_free(prompt);
    graft_score_result_free(score);
    graft_job_free(jobs[0]);
    graft_job_free(jobs[1]);
    graft_adapter_free(a);
    graft_inspection_free(in);
    return rc;
}

static void test_api_memory_failures(void **state) {
    (void)state;
    graft *g = open_instance();
    graft_error err;
    assert_int_equal(whole_round(g, &err), 0);
    uint64_t blocks = gr_memory_blocks(), bytes = gr_memory_bytes();
    for (int forever = 0; forever < 2; forever++) {
        int rc = -1;
        uint64_t n = 1;
        for (; rc != 0; n++) {
            assert_true(n < 2000);
            err = (graft_error){0};
            gr_memory_fail_at(n, forever);
            rc = whole_round(g, &err);
            gr_memory_fail_at(0, 0);
            if (rc != 0 && rc != GRAFT_E_OUT_OF_MEMORY) {
                fail_msg("allocation %d: %s: %s", (int)n, graft_error_name(rc), err.message);
            }
            assert_int_equal(err.code, rc);
            assert_int_equal(gr_memory_blocks(), blocks);
        }
        assert_true(n > 50);
    }
    assert_true(gr_memory_bytes() == bytes);
    assert_int_equal(whole_round(g, &err), 0);
    graft_close(g);
}

static void test_open_memory_failures(void **state) {
    (void)state;
    uint64_t blocks = gr_memory_blocks();
    graft_options o = graft_options_default();
    o.model = golden("bases/llama.gguf");
    o.context = 16;
    o.slots = 1;
    o.batch = 16;
    o.threads = 1;
    int rc = -1;
    for (uint64_t n = 1; rc != 0; n++) {
        graft *g = NULL;
        graft_error err = {0};
        assert_true(n < 2000);
        gr_memory_fail_at(n, 1);
        rc = graft_open(&g, &o, &err);
        gr_memory_fail_at(0, 0);
        if (rc != 0 && rc != GRAFT_E_OUT_OF_MEMORY) {
            fail_msg("allocation %d: %s: %s", (int)n, graft_error_name(rc), err.message);
        }
        graft_close(g);
        assert_int_equal(gr_memory_blocks(), blocks);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_overflowing_adapter, open_base_model, close_base_model),
        cmocka_unit_test_setup_teardown(test_elder_victim, open_base_model, close_base_model),
        cmocka_unit_test_setup_teardown(test_overflow_drops_prefixes, open_base_model, close_base_model),
        cmocka_unit_test_setup_teardown(test_embedding_is_libllamas, open_base_model, close_base_model),
        cmocka_unit_test_setup_teardown(test_overflowing_embedding, open_base_model, close_base_model),
        cmocka_unit_test_setup_teardown(test_full_queue, open_base_model, close_base_model),
        cmocka_unit_test_setup_teardown(test_free_with_jobs, open_base_model, close_base_model),
        cmocka_unit_test_setup_teardown(test_engine_memory_failures, open_base_model, close_base_model),
        cmocka_unit_test(test_api_memory_failures),
        cmocka_unit_test(test_open_memory_failures),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
