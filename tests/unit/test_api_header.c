/* The public header alone, first and as C, is enough to use the library; docs of its defaults hold. */
#include "graft.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

static void test_versions(void **state) {
    (void)state;
    char numbers[32];
    snprintf(numbers, sizeof numbers, "%d.%d.%d", GRAFT_VERSION_MAJOR, GRAFT_VERSION_MINOR, GRAFT_VERSION_PATCH);
    assert_string_equal(numbers, GRAFT_VERSION);
    assert_string_equal(graft_version(), GRAFT_VERSION);
    assert_non_null(graft_llama_version());
    assert_string_not_equal(graft_llama_version(), "");
}

static void test_errors_are_exported(void **state) {
    (void)state;
    assert_string_equal(graft_error_name(GRAFT_E_CONTEXT_LENGTH), "context_length");
    assert_int_equal(graft_error_http(GRAFT_E_CONTEXT_LENGTH), 400);
    assert_non_null(graft_error_text(GRAFT_E_CONTEXT_LENGTH));
    assert_string_equal(graft_finish_name(GRAFT_FINISH_LENGTH), "length");
}

/* The figures in brackets in the header. */
static void test_defaults(void **state) {
    (void)state;
    graft_options o = graft_options_default();
    assert_int_equal(o.size, sizeof o);
    assert_int_equal(o.slots, 8);
    assert_int_equal(o.context, 0);
    assert_int_equal(o.batch, 512);
    assert_int_equal(o.threads, 0);
    assert_int_equal(o.kv_type, GRAFT_KV_F16);
    assert_int_equal(o.apply, GRAFT_APPLY_AUTO);
    assert_int_equal(o.adapter_type, GRAFT_TYPE_F16);
    assert_false(o.gpu);
    assert_true(o.self_test);
    assert_true(o.max_adapter_bytes == (uint64_t)4 << 30);
    graft_request r = graft_request_default();
    assert_int_equal(r.size, sizeof r);
    assert_true(r.special);
    assert_int_equal(r.max_tokens, 128);
    assert_true(r.cache_prompt);
    assert_int_equal(r.top_logprobs, 0);
    assert_true(r.sampling.temperature == 0.0f);
    assert_int_equal(r.sampling.top_k, 40);
    assert_true(r.sampling.top_p == 0.95f && r.sampling.min_p == 0.05f);
    assert_true(r.sampling.seed == 0xFFFFFFFF);
    assert_int_equal(r.sampling.repeat_last_n, 64);
    assert_true(r.sampling.repeat_penalty == 1.0f && r.sampling.frequency_penalty == 0.0f);
    assert_int_equal(graft_score_request_default().size, sizeof(graft_score_request));
    graft_embed_request e = graft_embed_request_default();
    assert_int_equal(e.size, sizeof e);
    assert_int_equal(e.pooling, GRAFT_POOL_MEAN);
    assert_true(e.normalize);
    assert_int_equal(e.adapter_wait_ms, -1);
}

static void test_null_is_fine_to_free(void **state) {
    (void)state;
    graft_close(NULL);
    graft_adapter_free(NULL);
    graft_inspection_free(NULL);
    graft_job_free(NULL);
    graft_score_result_free(NULL);
    graft_free(NULL);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_versions),
        cmocka_unit_test(test_errors_are_exported),
        cmocka_unit_test(test_defaults),
        cmocka_unit_test(test_null_is_fine_to_free),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
