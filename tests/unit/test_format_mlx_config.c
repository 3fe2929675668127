/* src/format/mlx_config: what of mlx-lm's settings says how an adapter is applied. */
#include "format_helpers.h"

#include "format/mlx_config.h"

#include <stdio.h>

#define COUNT(a) (sizeof(a) / sizeof *(a))

/* As mlx-lm's training writes it: mostly about the training. */
static const char plain[] =
    "{\"adapter_path\":\"adapters\",\"batch_size\":4,\"config\":null,\"data\":\"data\",\"fine_tune_type\":\"lora\","
    "\"grad_checkpoint\":false,\"iters\":600,\"learning_rate\":1e-05,\"lora_parameters\":{\"rank\":8,\"dropout\":0.0,"
    "\"scale\":20.0},\"lr_schedule\":null,\"mask_prompt\":false,\"max_seq_length\":2048,\"model\":\"mlx-community/some\","
    "\"num_layers\":16,\"optimizer\":\"adam\",\"seed\":0,\"train\":true}";

static int parse_copy(gr_mlx_config *c, const char *text, gr_report *report, graft_error *err) {
    char *copy = exact_copy(text, strlen(text));
    int code = gr_mlx_config_parse(c, copy, strlen(text), report, err);
    free(copy);
    return code;
}

static void good(gr_mlx_config *c, const char *text) {
    gr_report report;
    graft_error err = {0};
    gr_report_init(&report);
    expect_code(text, parse_copy(c, text, &report, &err), 0, &err);
    expect_code(text, gr_report_result(&report, &err), 0, &err);
    gr_report_finish(&report);
}

static void reads_a_plain_config(void **state) {
    (void)state;
    gr_mlx_config c;
    good(&c, plain);
    assert_false(c.dora);
    assert_int_equal(c.rank, 8);
    assert_true(c.scale == 20.0);
    assert_int_equal(c.num_layers, 16);
    assert_string_equal(c.base_model, "mlx-community/some");
    gr_mlx_config_finish(&c);
}

static void reads_the_rest(void **state) {
    (void)state;
    gr_mlx_config c;
    good(&c, "{\"fine_tune_type\":\"dora\",\"num_layers\":-1,\"lora_parameters\":{\"rank\":1,\"scale\":0.5,\"alpha\":16,"
             "\"keys\":[\"self_attn.q_proj\"]}}");
    assert_true(c.dora && c.rank == 1 && c.scale == 0.5 && c.num_layers == -1 && !c.base_model);
    gr_mlx_config_finish(&c);
    good(&c, "{\"use_dora\":true,\"lora_layers\":4,\"lora_parameters\":{\"rank\":1,\"scale\":2}}"); /* before 0.20 */
    assert_true(c.dora && c.num_layers == 4);
    gr_mlx_config_finish(&c);
    good(&c, "{\"fine_tune_type\":\"lora\",\"use_dora\":true,\"model\":null,\"lora_parameters\":{\"rank\":1,\"scale\":2}}");
    assert_true(!c.dora && c.num_layers == -1);
    gr_mlx_config_finish(&c);
}

typedef struct config_case {
    const char *text;
    int code;
    const char *where;
} config_case;

#define PARAMETERS(p) "{\"lora_parameters\":{" p "}}"

static void refuses_by_name(void **state) {
    (void)state;
    static const config_case cases[] = {
        {"{\"fine_tune_type\":\"full\"}", GRAFT_E_UNSUPPORTED_ADAPTER, "fine_tune_type"},
        {"{\"fine_tune_type\":\"\\u001b\"}", GRAFT_E_UNSUPPORTED_ADAPTER, "fine_tune_type"},
        {"{\"peft_type\":\"LORA\"}", GRAFT_E_UNSUPPORTED_ADAPTER, "peft_type"},
        {"{}", GRAFT_E_MISSING_FIELD, "lora_parameters"},
        {PARAMETERS("\"scale\":1"), GRAFT_E_BAD_RANK, "lora_parameters.rank"},
        {PARAMETERS("\"scale\":1,\"rank\":0"), GRAFT_E_BAD_RANK, "lora_parameters.rank"},
        {PARAMETERS("\"scale\":1,\"rank\":8.0"), GRAFT_E_BAD_RANK, "lora_parameters.rank"},
        {PARAMETERS("\"scale\":1,\"rank\":2147483648"), GRAFT_E_BAD_RANK, "lora_parameters.rank"},
        {PARAMETERS("\"rank\":8"), GRAFT_E_BAD_ALPHA, "lora_parameters.scale"},
        {PARAMETERS("\"rank\":8,\"scale\":0"), GRAFT_E_BAD_ALPHA, "lora_parameters.scale"},
        {PARAMETERS("\"rank\":8,\"scale\":1e300"), GRAFT_E_BAD_ALPHA, "lora_parameters.scale"},
        {PARAMETERS("\"rank\":8,\"scale\":\"2\""), GRAFT_E_BAD_ALPHA, "lora_parameters.scale"},
        {PARAMETERS("\"rank\":8,\"scale\":2,\"new\":1"), GRAFT_E_UNKNOWN_OPTION, "lora_parameters"},
        {"{\"num_layers\":0,\"lora_parameters\":{\"rank\":8,\"scale\":2}}", GRAFT_E_OUT_OF_RANGE, "num_layers"},
        {"{\"lora_layers\":-2,\"lora_parameters\":{\"rank\":8,\"scale\":2}}", GRAFT_E_OUT_OF_RANGE, "lora_layers"},
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        gr_report report;
        graft_error err = {0};
        gr_mlx_config c;
        gr_report_init(&report);
        expect_code(cases[i].text, parse_copy(&c, cases[i].text, &report, &err), 0, &err);
        expect_code(cases[i].text, gr_report_result(&report, &err), cases[i].code, &err);
        assert_int_equal(report.n_errors, 1);
        assert_string_equal(report.reasons[0].where, cases[i].where);
        gr_mlx_config_finish(&c);
        gr_report_finish(&report);
    }
}

static void returns_faults_at_once(void **state) {
    (void)state;
    static const config_case cases[] = {
        {"", GRAFT_E_JSON_SYNTAX, NULL},
        {"[]", GRAFT_E_BAD_TYPE, NULL},
        {"{\"fine_tune_type\":1}", GRAFT_E_BAD_TYPE, NULL},
        {"{\"use_dora\":1}", GRAFT_E_BAD_TYPE, NULL},
        {"{\"lora_parameters\":[]}", GRAFT_E_BAD_TYPE, NULL},
        {"{\"num_layers\":\"all\",\"lora_parameters\":{\"rank\":8,\"scale\":2}}", GRAFT_E_BAD_TYPE, NULL},
        {"{\"model\":[],\"lora_parameters\":{\"rank\":8,\"scale\":2}}", GRAFT_E_BAD_TYPE, NULL},
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        gr_report report;
        graft_error err = {0};
        gr_mlx_config c;
        gr_report_init(&report);
        expect_code(cases[i].text, parse_copy(&c, cases[i].text, &report, &err), cases[i].code, &err);
        gr_report_finish(&report);
    }
}

static void warns_of_a_negative_scale(void **state) {
    (void)state;
    gr_report report;
    graft_error err = {0};
    gr_mlx_config c;
    gr_report_init(&report);
    assert_int_equal(parse_copy(&c, PARAMETERS("\"rank\":8,\"scale\":-2"), &report, &err), 0);
    assert_int_equal(report.n, 1);
    assert_int_equal(report.n_errors, 0);
    assert_true(c.scale == -2);
    gr_mlx_config_finish(&c);
    gr_report_finish(&report);
}

static void every_truncation_fails(void **state) {
    (void)state;
    for (size_t n = 0; n < strlen(plain); n++) {
        gr_report report;
        graft_error err = {0};
        gr_mlx_config c;
        char *copy = exact_copy(plain, n);
        gr_report_init(&report);
        assert_true(gr_mlx_config_parse(&c, copy, n, &report, &err) != 0);
        gr_report_finish(&report);
        free(copy);
    }
}

static int attempt(void *data, graft_error *err) {
    gr_mlx_config c;
    gr_report report;
    gr_report_init(&report);
    int code = gr_mlx_config_parse(&c, data, strlen(data), &report, err);
    if (!code) {
        gr_mlx_config_finish(&c);
    }
    gr_report_finish(&report);
    return code;
}

static void every_allocation_may_fail(void **state) {
    (void)state;
    torture("mlx config", attempt, (void *)(uintptr_t)plain);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reads_a_plain_config),   cmocka_unit_test(reads_the_rest),
        cmocka_unit_test(refuses_by_name),        cmocka_unit_test(returns_faults_at_once),
        cmocka_unit_test(warns_of_a_negative_scale), cmocka_unit_test(every_truncation_fails),
        cmocka_unit_test(every_allocation_may_fail),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
