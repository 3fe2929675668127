/* The self-test passes on every tiny base, and fails when something is planted that it is there to find. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "lora_support.h"
#include "lora/selftest.h"

static gr_selftest_result run(test_bed *b) {
    gr_selftest_result r;
    graft_error err;
    uint64_t blocks = gr_memory_blocks();
    int status = gr_selftest(&r, b->base, b->ctx, b->hook, b->grouped, &err);
    if (status) {
        fail_msg("%s", err.message);
    }
    assert_true(gr_memory_blocks() <= blocks + 1); /* grouped keeps its list */
    return r;
}

static void test_all_bases(void **state) {
    static const char *const bases[] = {"command-r", "gemma2", "gemma3", "gpt2", "gptneox", "granite", "llama",
                                        "llama-untied", "mistral", "olmo2", "phi3", "qwen2", "qwen3", "smollm3",
                                        "stablelm", "starcoder2"};
    (void)state;
    for (size_t i = 0; i < sizeof bases / sizeof *bases; i++) {
        for (int half_kv = 0; half_kv < 2; half_kv++) {
            test_bed b;
            bed_open(&b, (test_options){.path = tiny_base(bases[i]), .half_kv = half_kv});
            gr_selftest_result r = run(&b);
            if (b.base->arch ? !r.passed || r.difference > 0.02 : r.passed || !strstr(r.text, "no adapter table")) {
                fail_msg("%s: %s", bases[i], r.text);
            }
            bed_close(&b);
        }
    }
}

static void test_demo_model(void **state) {
    const char *path = getenv("GRAFT_TEST_MODEL");
    (void)state;
    if (!path) {
        skip();
    }
    test_bed b;
    bed_open(&b, (test_options){.path = path, .half_kv = true});
    gr_selftest_result r = run(&b);
    if (!r.passed) {
        fail_msg("%s", r.text);
    }
    bed_close(&b);
}

/* ---- planted faults: kernel sets that do what a mistake would do ------------------------------------------- */

static void wrong_row(float *t, const gr_module *m, const void *x, size_t stride, const int32_t *rows,
                      const float *scale, int n, int k0, int k1) {
    int32_t first[TEST_BATCH] = {0}; /* every row's x is row 0's */
    gr_kernels_best()->down(t, m, x, stride, n <= 1 ? rows : first, scale, n, k0, k1);
}

static void no_scale(float *t, const gr_module *m, const void *x, size_t stride, const int32_t *rows,
                     const float *scale, int n, int k0, int k1) {
    float ones[TEST_BATCH];
    (void)scale;
    for (int i = 0; i < n; i++) {
        ones[i] = 1.0f;
    }
    gr_kernels_best()->down(t, m, x, stride, rows, ones, n, k0, k1);
}

static void one_column_short(float *t, const gr_module *m, const void *x, size_t stride, const int32_t *rows,
                             const float *scale, int n, int k0, int k1) {
    gr_kernels_best()->down(t, m, x, stride, rows, scale, n, k0, k1);
    for (int i = 0; i < n && k1 == m->rank && k1 > k0; i++) {
        t[i * m->rank + k1 - 1] = 0.0f;
    }
}

static void nothing_added(void *y, size_t stride, const gr_module *m, const float *t, const int32_t *rows, int n,
                          int o0, int o1) {
    (void)y, (void)stride, (void)m, (void)t, (void)rows, (void)n, (void)o0, (void)o1;
}

static void swapped_rows(void *y, size_t stride, const gr_module *m, const float *t, const int32_t *rows, int n,
                         int o0, int o1) {
    int32_t reversed[TEST_BATCH];
    for (int i = 0; i < n; i++) {
        reversed[i] = rows[n - 1 - i];
    }
    gr_kernels_best()->up(y, stride, m, t, reversed, n, o0, o1);
}

static void expect_failure(const char *base, const gr_kernels *kernels) {
    test_bed b;
    bed_open(&b, (test_options){.path = tiny_base(base), .kernels = kernels});
    gr_selftest_result r = run(&b);
    if (r.passed || !strstr(r.text, "failed")) {
        fail_msg("%s: %s", kernels->name, r.text);
    }
    bed_close(&b);
}

static void test_planted(void **state) {
    const gr_kernels *best = gr_kernels_best();
    const gr_kernels sets[] = {{"wrong row", wrong_row, best->up},
                               {"no scale", no_scale, best->up},
                               {"one column short", one_column_short, best->up},
                               {"nothing added", best->down, nothing_added},
                               {"swapped rows", best->down, swapped_rows}};
    (void)state;
    for (size_t i = 0; i < sizeof sets / sizeof *sets; i++) {
        expect_failure("llama", &sets[i]);
        expect_failure("gpt2", &sets[i]);
    }
}

/* A graph that is not as expected is a failed test, not an error. */
static void test_unexpected_graph(void **state) {
    test_bed b;
    (void)state;
    bed_open(&b, (test_options){.path = tiny_base("llama"), .ubatch = 16});
    gr_selftest_result r = run(&b); /* 16 rows at once: prompts of four rows */
    assert_true(r.passed);
    bed_close(&b);
    bed_open(&b, (test_options){.path = tiny_base("llama"), .ubatch = 4});
    r = run(&b);
    assert_false(r.passed);
    assert_non_null(strstr(r.text, "too small"));
    bed_close(&b);
}

/* Whatever allocation fails, it is told, and nothing is lost. */
static void test_memory(void **state) {
    test_bed b;
    gr_selftest_result r;
    graft_error err;
    (void)state;
    bed_open(&b, (test_options){.path = tiny_base("llama")});
    run(&b); /* so that grouped has its list */
    uint64_t blocks = gr_memory_blocks(), n = 0;
    int status;
    do {
        gr_memory_fail_at(++n, 0);
        status = gr_selftest(&r, b.base, b.ctx, b.hook, b.grouped, &err);
        gr_memory_fail_at(0, 0);
        assert_true(status == 0 || status == GRAFT_E_OUT_OF_MEMORY);
        assert_int_equal(gr_memory_blocks(), blocks);
    } while (status);
    assert_true(n > 10);
    assert_true(r.passed);
    bed_close(&b);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_all_bases),        cmocka_unit_test(test_demo_model), cmocka_unit_test(test_planted),
        cmocka_unit_test(test_unexpected_graph), cmocka_unit_test(test_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
