/* Adapters through graft.h: memory, inspection, and that each row gets its own delta whatever the company. */
#include "api_helpers.h"

#include <math.h>

enum { KINDS = 6 };

/* What requests of these tests use: nothing, one of three adapters, two together, one with another scale. */
typedef struct kinds {
    graft_adapter *plain, *qv, *rslora;
    graft_adapter_use uses[KINDS][2];
    size_t n[KINDS];
} kinds;

static void load_kinds(kinds *k, graft *g) {
    k->plain = load_or_fail(g, "adapters/llama/plain");
    k->qv = load_or_fail(g, "adapters/llama/qv");
    k->rslora = load_or_fail(g, "adapters/llama/rslora");
    const graft_adapter_use uses[KINDS][2] = {
        {{.adapter = NULL, .scale = 0}},        {{.adapter = k->plain, .scale = 1}}, {{.adapter = k->qv, .scale = 1}},
        {{.adapter = k->rslora, .scale = 1}}, {{.adapter = k->qv, .scale = 1}, {.adapter = k->plain, .scale = 0.5f}}, {{.adapter = k->plain, .scale = -0.7f}}};
    memcpy(k->uses, uses, sizeof uses);
    for (int i = 0; i < KINDS; i++) {
        k->n[i] = i == 0 ? 0 : i == 4 ? 2 : 1;
    }
}

static void free_kinds(kinds *k) {
    graft_adapter_free(k->plain);
    graft_adapter_free(k->qv);
    graft_adapter_free(k->rslora);
}

static graft_request kind_request(const kinds *k, int kind, const char *prompt, int max_tokens) {
    graft_request r = request(prompt, max_tokens);
    r.adapters = k->uses[kind];
    r.n_adapters = k->n[kind];
    return r;
}

/* ---- loading ----------------------------------------------------------------------------------------------- */

static void test_memory(void **state) {
    (void)state;
    graft *g = open_small();
    uint64_t before = graft_own_bytes();
    graft_adapter *a = load_or_fail(g, "adapters/llama/plain");
    graft_adapter_info info;
    graft_adapter_get_info(a, &info);
    assert_string_equal(info.format, "peft");
    assert_int_equal(strlen(info.generation), 64);
    assert_string_equal(info.path, golden("adapters/llama/plain"));
    assert_true(info.n_modules > 0 && info.rank_min > 0 && info.rank_min <= info.rank_max);
    assert_int_equal(info.type, GRAFT_TYPE_F32);
    assert_false(info.no_effect);
    uint64_t held = graft_own_bytes() - before;
    assert_true(info.bytes <= held && held <= info.bytes + 256); /* the handle itself is all that comes on top */
    graft_request r = request("hello", 4);
    graft_adapter_use use = {.adapter = a, .scale = 1};
    r.adapters = &use;
    r.n_adapters = 1;
    run(g, &r);
    graft_adapter_free(a);
    assert_true(graft_own_bytes() == before); /* at once */
    graft_close(g);
}

static void test_load_errors(void **state) {
    (void)state;
    graft *g = open_small();
    uint64_t before = graft_own_bytes();
    static const struct {
        const char *name;
        int code;
    } table[] = {
        {"adapters/llama/nothing-here", GRAFT_E_ADAPTER_FILE_MISSING},
        {"adapters/llama/loha", GRAFT_E_UNSUPPORTED_ADAPTER},
        {"adapters/qwen3/plain", GRAFT_E_WRONG_SHAPE},
        {"adapters/llama", GRAFT_E_MISSING_FILE},
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        graft_adapter *a = NULL;
        graft_error err = {0};
        int rc = graft_adapter_open(&a, g, golden(table[i].name), &err);
        assert_true(rc < 0);
        if (i == 0) {
            assert_int_equal(rc, table[i].code);
        }
        assert_int_equal(err.code, rc);
        assert_null(a);
        /* Inspecting says the same, and does not fail. */
        graft_inspection *in = NULL;
        assert_int_equal(graft_inspect(&in, g, golden(table[i].name), &err), 0);
        assert_false(in->loadable);
        assert_int_equal(in->n_modules, 0);
        assert_true(in->n_reasons > 0);
        size_t first = 0;
        while (in->reasons[first].severity != GRAFT_LOG_ERROR) {
            first++;
        }
        assert_int_equal(in->reasons[first].code, rc);
        assert_string_not_equal(in->reasons[first].message, "");
        graft_inspection_free(in);
    }
    graft_adapter *a = NULL;
    assert_int_equal(graft_adapter_open(&a, g, NULL, NULL), GRAFT_E_BAD_REQUEST);
    assert_true(graft_own_bytes() == before);
    graft_close(g);
}

static void test_inspect(void **state) {
    (void)state;
    graft *g = open_small();
    graft_inspection *in = NULL;
    graft_error err;
    assert_int_equal(graft_inspect(&in, g, golden("adapters/llama/rslora"), &err), 0);
    assert_true(in->loadable);
    assert_string_equal(in->format, "peft");
    graft_adapter *a = load_or_fail(g, "adapters/llama/rslora");
    graft_adapter_info info;
    graft_adapter_get_info(a, &info);
    assert_int_equal(in->n_modules, info.n_modules);
    assert_int_equal(in->bytes, info.bytes);
    uint64_t sum = 0;
    for (size_t i = 0; i < in->n_modules; i++) {
        const graft_module_info *m = &in->modules[i];
        assert_true(m->rank >= info.rank_min && m->rank <= info.rank_max);
        assert_true(m->scale > 0 && m->n_in > 0 && m->n_out > 0);
        assert_non_null(strstr(m->weight, "blk."));
        assert_string_equal(m->dtype, "F32");
        sum += m->bytes;
    }
    assert_true(sum > 0 && sum < in->bytes);
    graft_adapter_free(a);
    graft_inspection_free(in);
    graft_close(g);
}

/* ---- requests ------------------------------------------------------------------------------------------------ */

static void expect_refused(graft *g, const graft_adapter_use *uses, size_t n, const char *part) {
    graft_request r = request("hi", 2);
    graft_job *job = NULL;
    graft_error err;
    r.adapters = uses;
    r.n_adapters = n;
    assert_int_equal(graft_submit(&job, g, &r, 1, &err), GRAFT_E_BAD_REQUEST);
    assert_non_null(strstr(err.message, part));
}

static void test_uses_are_checked(void **state) {
    (void)state;
    graft *g = open_small(), *other = open_small();
    graft_adapter *a = load_or_fail(g, "adapters/llama/qv"), *foreign = load_or_fail(other, "adapters/llama/qv");
    uint64_t before = graft_own_bytes();
    expect_refused(g, &(graft_adapter_use){.adapter = a, .scale = NAN}, 1, "adapters.scale");
    expect_refused(g, &(graft_adapter_use){.adapter = a, .scale = 100.5f}, 1, "adapters.scale: 100.5 is outside -100 to 100");
    expect_refused(g, &(graft_adapter_use){.adapter = a, .scale = -INFINITY}, 1, "adapters.scale");
    expect_refused(g, &(graft_adapter_use){.adapter = foreign, .scale = 1}, 1, "another instance");
    expect_refused(g, (graft_adapter_use[]){{.adapter = a, .scale = 1}, {.adapter = NULL, .scale = 1}}, 2, "NULL");
    assert_true(graft_own_bytes() == before);
    graft_adapter_free(foreign);
    graft_adapter_free(a);
    graft_close(other);
    graft_close(g);
}

static void test_scales(void **state) {
    (void)state;
    graft *g = open_small();
    graft_adapter *a = load_or_fail(g, "adapters/llama/plain"), *b = load_or_fail(g, "adapters/llama/qv");
    graft_request r = request("the scale of things", 24);
    answer base = run(g, &r);
    graft_adapter_use one[] = {{.adapter = a, .scale = 1}}, zero[] = {{.adapter = a, .scale = 0}}, halves[] = {{.adapter = a, .scale = 0.5f}, {.adapter = a, .scale = 0.5f}};
    graft_adapter_use none[] = {{.adapter = a, .scale = 2}, {.adapter = a, .scale = -2}};
    graft_adapter_use ab[] = {{.adapter = a, .scale = 1}, {.adapter = b, .scale = 1}}, ba[] = {{.adapter = b, .scale = 1}, {.adapter = a, .scale = 1}};
#define RUN(set) (r.adapters = set, r.n_adapters = sizeof set / sizeof *set, run(g, &r))
    answer without = RUN(zero), cancelled = RUN(none);
    graft_stats s;
    graft_get_stats(g, &s);
    assert_int_equal(s.most_adapters, 0); /* not even looked at */
    answer with = RUN(one), twice = RUN(halves);
    answer first = RUN(ab), second = RUN(ba);
#undef RUN
    assert_string_not_equal(base.text, with.text);
    assert_same_answer(&base, &without);
    assert_same_answer(&with, &twice);
    assert_same_answer(&base, &cancelled);
    assert_same_answer(&first, &second);
    assert_string_not_equal(first.text, with.text);
    graft_adapter_free(a);
    graft_adapter_free(b);
    graft_close(g);
}

/* ---- mixed batches --------------------------------------------------------------------------------------------- */

enum { MIXED = 30 };

static void run_mixed(graft *g, const kinds *k, answer *out) {
    static const char *const prompts[] = {"a", "some more words here", "the quick brown fox jumps over the dog"};
    graft_request r[MIXED];
    graft_job *jobs[MIXED];
    graft_error err;
    for (int i = 0; i < MIXED; i++) {
        r[i] = kind_request(k, i % KINDS, prompts[i / KINDS % 3], 10 + i % 7);
    }
    assert_int_equal(graft_submit(jobs, g, r, MIXED, &err), 0);
    for (int i = 0; i < MIXED; i++) {
        out[i] = take_answer(jobs[i]);
        assert_int_equal(out[i].error.code, 0);
    }
}

static void test_mixed_like_alone(void **state) {
    (void)state;
    graft_options o = small_options();
    o.slots = 6;
    o.batch = 32;
    graft *g = open_or_fail(&o);
    kinds k;
    load_kinds(&k, g);
    static answer mixed[MIXED], grouped[MIXED];
    run_mixed(g, &k, mixed);
    static const char *const prompts[] = {"a", "some more words here", "the quick brown fox jumps over the dog"};
    for (int i = 0; i < MIXED; i++) {
        graft_request r = kind_request(&k, i % KINDS, prompts[i / KINDS % 3], 10 + i % 7);
        answer alone = run(g, &r);
        assert_same_answer(&alone, &mixed[i]);
    }
    graft_stats s;
    graft_get_stats(g, &s);
    assert_true(s.most_adapters >= 3); /* they did share batches */
    for (int kind = 1; kind < KINDS; kind++) {
        assert_string_not_equal(mixed[12 + kind].text, mixed[12].text);
    }
    /* And libllama's own way says the same. */
    graft_error err;
    assert_int_equal(graft_set_apply(g, GRAFT_APPLY_GROUPED, &err), 0);
    graft_model_info info;
    graft_model_get_info(g, &info);
    assert_int_equal(info.apply, GRAFT_APPLY_GROUPED);
    run_mixed(g, &k, grouped);
    for (int i = 0; i < MIXED; i++) {
        assert_same_answer(&grouped[i], &mixed[i]);
    }
    assert_int_equal(graft_set_apply(g, GRAFT_APPLY_AUTO, &err), 0);
    graft_model_get_info(g, &info);
    assert_int_equal(info.apply, GRAFT_APPLY_ROWS);
    assert_int_equal(graft_set_apply(g, (graft_apply)9, &err), GRAFT_E_BAD_REQUEST);
    free_kinds(&k);
    graft_close(g);
}

/* Prompts longer than a batch: pieces of them have no output rows. */
static void test_chunked_prompt(void **state) {
    (void)state;
    graft_options o = small_options();
    graft *g = open_or_fail(&o);
    o.batch = 16;
    graft *small_batch = open_or_fail(&o);
    kinds k, l;
    load_kinds(&k, g);
    load_kinds(&l, small_batch);
    const char *prompt = "a prompt of some sixty tokens, which takes several batches of sixteen";
    for (int kind = 0; kind < KINDS; kind++) {
        graft_request r = kind_request(&k, kind, prompt, 20), s = kind_request(&l, kind, prompt, 20);
        answer a = run(g, &r), b = run(small_batch, &s);
        assert_same_answer(&a, &b);
    }
    graft_model_info info;
    graft_model_get_info(small_batch, &info);
    assert_int_equal(info.apply, GRAFT_APPLY_ROWS); /* nothing went wrong on the way */
    free_kinds(&k);
    free_kinds(&l);
    graft_close(g);
    graft_close(small_batch);
}

/* ---- lifetimes --------------------------------------------------------------------------------------------------- */

static void test_free_while_in_use(void **state) {
    (void)state;
    for (int grouped = 0; grouped < 2; grouped++) {
        graft_options o = small_options();
        o.apply = grouped ? GRAFT_APPLY_GROUPED : GRAFT_APPLY_AUTO;
        graft *g = open_or_fail(&o);
        uint64_t before = graft_own_bytes();
        graft_adapter *a = load_or_fail(g, "adapters/llama/plain");
        graft_adapter_use use = {.adapter = a, .scale = 1};
        graft_request r = request("as long as it is needed", 90);
        r.adapters = &use;
        r.n_adapters = 1;
        answer expected = run(g, &r);
        graft_job *jobs[6];
        for (int i = 0; i < 6; i++) { /* two of them wait for a slot */
            jobs[i] = submit_or_fail(g, &r);
        }
        graft_adapter_free(a);
        for (int i = 0; i < 6; i++) {
            answer got = take_answer(jobs[i]);
            assert_same_answer(&expected, &got);
        }
        assert_true(graft_own_bytes() == before);
        graft_close(g);
    }
}

/* Adapters that come and go, likely at the same addresses: none may meet what another left behind. */
static void test_come_and_go(void **state) {
    (void)state;
    static const char *const names[] = {"adapters/llama/plain", "adapters/llama/qv", "adapters/llama/rslora"};
    graft *g = open_small();
    answer expected[3];
    for (int round = 0; round < 60; round++) {
        graft_error err;
        assert_int_equal(graft_set_apply(g, round % 2 ? GRAFT_APPLY_GROUPED : GRAFT_APPLY_ROWS, &err), 0);
        graft_adapter *a = load_or_fail(g, names[round % 3]);
        graft_adapter_use use = {.adapter = a, .scale = 1};
        graft_request r = request("who is it this time?", 24);
        r.sampling.temperature = 1;
        r.sampling.seed = 1;
        r.adapters = &use;
        r.n_adapters = 1;
        answer got = run(g, &r);
        if (round < 3) {
            expected[round] = got;
        } else {
            assert_same_answer(&expected[round % 3], &got);
        }
        graft_adapter_free(a);
    }
    assert_string_not_equal(expected[0].text, expected[1].text);
    assert_string_not_equal(expected[0].text, expected[2].text);
    graft_close(g);
}

/* The same while requests are still at it: the handle goes first, then the request ends, then the next one comes. */
static void test_come_and_go_in_use(void **state) {
    (void)state;
    static const char *const names[] = {"adapters/llama/plain", "adapters/llama/qv", "adapters/llama/rslora"};
    graft *g = open_small();
    answer expected[3];
    for (int round = 0; round < 60; round++) {
        assert_int_equal(graft_set_apply(g, GRAFT_APPLY_GROUPED, NULL), 0);
        graft_adapter *a = load_or_fail(g, names[round % 3]);
        graft_adapter_use use = {.adapter = a, .scale = 1};
        graft_request r = request("who is it this time?", 24);
        r.sampling.temperature = 1;
        r.sampling.seed = 1;
        r.adapters = &use;
        r.n_adapters = 1;
        graft_job *job = submit_or_fail(g, &r);
        graft_adapter_free(a);
        answer got = take_answer(job);
        if (round < 3) {
            expected[round] = got;
        } else {
            assert_same_answer(&expected[round % 3], &got);
        }
    }
    graft_close(g);
}

static void test_score_with_adapter(void **state) {
    (void)state;
    graft *g = open_small();
    graft_adapter *a = load_or_fail(g, "adapters/llama/plain");
    graft_adapter_use use = {.adapter = a, .scale = 1};
    graft_score_request r = graft_score_request_default();
    r.text = "what would it have said?";
    graft_score_result *base, *with;
    assert_int_equal(graft_score(&base, g, &r, NULL), 0);
    r.adapters = &use;
    r.n_adapters = 1;
    assert_int_equal(graft_score(&with, g, &r, NULL), 0);
    assert_true(fabs(base->perplexity - with->perplexity) > 1e-3);
    graft_score_result_free(base);
    graft_score_result_free(with);
    graft_adapter_free(a);
    graft_close(g);
}

/* Without rows in the beginning, and without the test, the choice is as documented. */
static void test_apply_options(void **state) {
    (void)state;
    static const struct {
        graft_apply apply;
        bool self_test;
        graft_apply expected;
    } table[] = {
        {GRAFT_APPLY_AUTO, true, GRAFT_APPLY_ROWS},
        {GRAFT_APPLY_AUTO, false, GRAFT_APPLY_ROWS},
        {GRAFT_APPLY_ROWS, true, GRAFT_APPLY_ROWS},
        {GRAFT_APPLY_GROUPED, true, GRAFT_APPLY_GROUPED},
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        graft_options o = small_options();
        o.apply = table[i].apply;
        o.self_test = table[i].self_test;
        graft *g = open_or_fail(&o);
        graft_model_info info;
        graft_model_get_info(g, &info);
        assert_int_equal(info.apply, table[i].expected);
        graft_close(g);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_memory),
        cmocka_unit_test(test_load_errors),
        cmocka_unit_test(test_inspect),
        cmocka_unit_test(test_uses_are_checked),
        cmocka_unit_test(test_scales),
        cmocka_unit_test(test_mixed_like_alone),
        cmocka_unit_test(test_chunked_prompt),
        cmocka_unit_test(test_free_while_in_use),
        cmocka_unit_test(test_come_and_go),
        cmocka_unit_test(test_come_and_go_in_use),
        cmocka_unit_test(test_score_with_adapter),
        cmocka_unit_test(test_apply_options),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
