/* src/format/peft_config: options read, refused and ignored; patterns as PEFT matches them. */
#include "format_helpers.h"

#include "format/peft_config.h"

#include <math.h>
#include <stdio.h>

#define COUNT(a) (sizeof(a) / sizeof *(a))

/* As peft 0.21.2 writes it for a plain adapter. */
static const char plain[] =
    "{\"alora_invocation_tokens\":null,\"alpha_pattern\":{},\"arrow_config\":null,\"auto_mapping\":null,"
    "\"base_model_name_or_path\":\"org/base\",\"bias\":\"none\",\"corda_config\":null,\"ensure_weight_tying\":false,"
    "\"eva_config\":null,\"exclude_modules\":null,\"fan_in_fan_out\":false,\"inference_mode\":true,"
    "\"init_lora_weights\":true,\"kasa_config\":null,\"layer_replication\":null,\"layers_pattern\":null,"
    "\"layers_to_transform\":null,\"loftq_config\":{},\"lora_alpha\":16,\"lora_bias\":false,\"lora_dropout\":0.05,"
    "\"lora_ga_config\":null,\"megatron_config\":null,\"megatron_core\":\"megatron.core\",\"modules_to_save\":null,"
    "\"monteclora_config\":null,\"peft_type\":\"LORA\",\"peft_version\":\"0.21.2\",\"qalora_group_size\":16,\"r\":8,"
    "\"rank_pattern\":{},\"revision\":null,\"target_modules\":[\"q_proj\",\"v_proj\"],\"target_parameters\":null,"
    "\"task_type\":\"CAUSAL_LM\",\"trainable_token_indices\":null,\"use_bdlora\":null,\"use_dora\":false,"
    "\"use_qalora\":false,\"use_rslora\":false,\"velora_config\":null}";

/* A config with the three keys it must have and `more` ("" or ",\"key\":value"). */
static char *minimal(const char *more) {
    static char text[8192];
    snprintf(text, sizeof text, "{\"peft_type\":\"LORA\",\"r\":8,\"lora_alpha\":16%s}", more);
    return text;
}

static int parse_copy(gr_peft_config *c, const char *text, gr_report *report, graft_error *err) {
    char *copy = exact_copy(text, strlen(text));
    int code = gr_peft_config_parse(c, copy, strlen(text), report, err);
    free(copy);
    return code;
}

static void good(gr_peft_config *c, const char *text) {
    gr_report report;
    graft_error err = {0};
    gr_report_init(&report);
    expect_code(text, parse_copy(c, text, &report, &err), 0, &err);
    expect_code(text, gr_report_result(&report, &err), 0, &err);
    gr_report_finish(&report);
}

/* The first error in the report: its code, and its key in `where`. `wanted` 0: no errors. */
static void expect_reason(const char *text, int wanted, const char *where) {
    gr_report report;
    graft_error err = {0};
    gr_peft_config c;
    gr_report_init(&report);
    expect_code(text, parse_copy(&c, text, &report, &err), 0, &err);
    expect_code(text, gr_report_result(&report, &err), wanted, &err);
    if (wanted) {
        assert_int_equal(report.n_errors, 1);
        assert_string_equal(report.reasons[0].where, where);
    }
    gr_peft_config_finish(&c);
    gr_report_finish(&report);
}

static void expect_fault(const char *text, int wanted) {
    gr_report report;
    graft_error err = {0};
    gr_peft_config c;
    memset(&c, 0x55, sizeof c);
    gr_report_init(&report);
    expect_code(text, parse_copy(&c, text, &report, &err), wanted, &err);
    assert_int_equal(((uint8_t *)&c)[0], 0x55);
    gr_report_finish(&report);
}

/* ---- what is read ------------------------------------------------------------------------------------------- */

static void reads_a_plain_config(void **state) {
    (void)state;
    gr_peft_config c;
    good(&c, plain);
    assert_int_equal(c.r, 8);
    assert_true(c.lora_alpha == 16);
    assert_false(c.use_rslora);
    assert_false(c.fan_in_fan_out);
    assert_string_equal(c.base_model, "org/base");
    assert_string_equal(c.target_modules, "q_proj, v_proj");
    assert_int_equal(c.n_layers, 0);
    assert_null(c.layers);
    assert_int_equal(c.n_alpha_pattern + c.n_rank_pattern, 0);
    assert_true(gr_peft_config_alpha(&c, "model.layers.0.self_attn.q_proj") == 16);
    assert_int_equal(gr_peft_config_rank(&c, "model.layers.0.self_attn.q_proj"), 8);
    gr_peft_config_finish(&c);
    gr_peft_config_finish(&c); /* harmless */
}

static void reads_an_old_config(void **state) {
    (void)state;
    gr_peft_config c;
    good(&c, minimal("")); /* missing bias, task, patterns, … are their defaults */
    assert_null(c.base_model);
    assert_null(c.target_modules);
    gr_peft_config_finish(&c);
    good(&c, minimal(",\"bias\":\"none\",\"enable_lora\":null,\"fan_in_fan_out\":false,\"inference_mode\":true,"
                     "\"lora_dropout\":0.1,\"merge_weights\":false,\"modules_to_save\":null,\"task_type\":\"CAUSAL_LM\","
                     "\"target_modules\":[\"q_proj\"],\"base_model_name_or_path\":\"/home/x/llama\""));
    gr_peft_config_finish(&c);
}

static void reads_options(void **state) {
    (void)state;
    gr_peft_config c;
    good(&c, "{\"peft_type\":\"LORA\",\"r\":16,\"lora_alpha\":2.5,\"use_rslora\":true,\"fan_in_fan_out\":true,"
             "\"target_modules\":\".*\\\\.q_proj\",\"layers_to_transform\":[3,1,2],\"layers_pattern\":\"layers\","
             "\"rank_pattern\":{\"k_proj\":4},\"alpha_pattern\":{\"v_proj\":-1.5,\"k_proj\":7}}");
    assert_int_equal(c.r, 16);
    assert_true(c.lora_alpha == 2.5);
    assert_true(c.use_rslora);
    assert_true(c.fan_in_fan_out);
    assert_string_equal(c.target_modules, ".*\\.q_proj");
    assert_int_equal(c.n_layers, 3);
    assert_int_equal(c.layers[0], 1);
    assert_int_equal(c.layers[2], 3);
    assert_int_equal(c.n_rank_pattern, 1);
    assert_int_equal(c.n_alpha_pattern, 2);
    assert_string_equal(c.alpha_pattern[0].key, "v_proj"); /* file order */
    assert_true(gr_peft_config_alpha(&c, "model.layers.0.self_attn.v_proj") == -1.5);
    assert_true(gr_peft_config_alpha(&c, "model.layers.0.self_attn.k_proj") == 7);
    assert_true(gr_peft_config_alpha(&c, "model.layers.0.self_attn.q_proj") == 2.5);
    assert_int_equal(gr_peft_config_rank(&c, "model.layers.0.self_attn.k_proj"), 4);
    assert_int_equal(gr_peft_config_rank(&c, "model.layers.0.self_attn.q_proj"), 16);
    gr_peft_config_finish(&c);
    good(&c, minimal(",\"layers_to_transform\":5,\"target_modules\":[]"));
    assert_int_equal(c.n_layers, 1);
    assert_int_equal(c.layers[0], 5);
    assert_string_equal(c.target_modules, "");
    gr_peft_config_finish(&c);
    good(&c, minimal(",\"layers_to_transform\":[]"));
    assert_null(c.layers);
    gr_peft_config_finish(&c);
}

static void scales(void **state) {
    (void)state;
    gr_peft_config c = {.use_rslora = false};
    assert_true(gr_peft_config_scale(&c, 16, 8) == 2);
    assert_true(gr_peft_config_scale(&c, -3, 4) == -0.75);
    c.use_rslora = true;
    assert_true(gr_peft_config_scale(&c, 8, 16) == 2);
    assert_true(fabs(gr_peft_config_scale(&c, 1, 2) - 0.70710678118654752) < 1e-15);
}

static void cuts_long_target_lists(void **state) {
    (void)state;
    size_t n = 20000, at;
    char *text = malloc(n * 24);
    at = (size_t)sprintf(text, "{\"peft_type\":\"LORA\",\"r\":8,\"lora_alpha\":16,\"target_modules\":[");
    for (size_t i = 0; i < n; i++) {
        at += (size_t)sprintf(text + at, "%s\"module_%zu\"", i ? "," : "", i);
    }
    sprintf(text + at, "]}");
    gr_peft_config c;
    good(&c, text);
    assert_true(strlen(c.target_modules) > 3000 && strlen(c.target_modules) < 4200);
    assert_string_equal(c.target_modules + strlen(c.target_modules) - 3, "…");
    gr_peft_config_finish(&c);
    free(text);
}

/* ---- what is refused ------------------------------------------------------------------------------------------ */

typedef struct reason_case {
    const char *more;
    int code;
    const char *where;
} reason_case;

static void refuses_by_name(void **state) {
    (void)state;
    static const reason_case cases[] = {
        {",\"use_dora\":true,\"lora_bias\":true", GRAFT_E_UNSUPPORTED_ADAPTER, "lora_bias"},
        {",\"use_dora\":true,\"alora_invocation_tokens\":[1]", GRAFT_E_UNSUPPORTED_ADAPTER, "alora_invocation_tokens"},
        {",\"bias\":\"some\"", GRAFT_E_UNSUPPORTED_ADAPTER, "bias"},
        {",\"modules_to_save\":[\"\"]", GRAFT_E_OUT_OF_RANGE, "modules_to_save"},
        {",\"trainable_token_indices\":[-1]", GRAFT_E_OUT_OF_RANGE, "trainable_token_indices"},
        {",\"trainable_token_indices\":[2147483648]", GRAFT_E_OUT_OF_RANGE, "trainable_token_indices"},
        {",\"trainable_token_indices\":[3,4,3]", GRAFT_E_DUPLICATE_TARGET, "trainable_token_indices"},
        {",\"trainable_token_indices\":{\"embed_tokens\":[]}", GRAFT_E_OUT_OF_RANGE, "trainable_token_indices"},
        {",\"alora_invocation_tokens\":[]", GRAFT_E_OUT_OF_RANGE, "alora_invocation_tokens"},
        {",\"alora_invocation_tokens\":[1,-2]", GRAFT_E_OUT_OF_RANGE, "alora_invocation_tokens"},
        {",\"target_parameters\":[\"experts.w1\"]", GRAFT_E_UNSUPPORTED_ADAPTER, "target_parameters"},
        {",\"layer_replication\":[[0,4],[2,5]]", GRAFT_E_UNSUPPORTED_ADAPTER, "layer_replication"},
        {",\"use_qalora\":true", GRAFT_E_UNSUPPORTED_ADAPTER, "use_qalora"},
        {",\"use_bdlora\":{\"nblocks\":2}", GRAFT_E_UNSUPPORTED_ADAPTER, "use_bdlora"},
        {",\"use_bdlora\":{}", GRAFT_E_UNSUPPORTED_ADAPTER, "use_bdlora"},
        {",\"arrow_config\":{}", GRAFT_E_UNSUPPORTED_ADAPTER, "arrow_config"},
        {",\"kasa_config\":{\"beta\":0.1}", GRAFT_E_UNSUPPORTED_ADAPTER, "kasa_config"},
        {",\"monteclora_config\":{}", GRAFT_E_UNSUPPORTED_ADAPTER, "monteclora_config"},
        {",\"megatron_config\":{\"a\":1}", GRAFT_E_UNSUPPORTED_ADAPTER, "megatron_config"},
        {",\"loftq_config\":{\"loftq_bits\":4}", GRAFT_E_UNSUPPORTED_ADAPTER, "loftq_config"},
        {",\"task_type\":\"SEQ_CLS\"", GRAFT_E_UNSUPPORTED_ADAPTER, "task_type"},
        {",\"task_type\":\"TOKEN_CLS\"", GRAFT_E_UNSUPPORTED_ADAPTER, "task_type"},
        {",\"task_type\":\"FEATURE_EXTRACTION\"", GRAFT_E_UNSUPPORTED_ADAPTER, "task_type"},
        {",\"task_type\":\"QUESTION_ANS\"", GRAFT_E_UNSUPPORTED_ADAPTER, "task_type"},
        {",\"task_type\":\"SOMETHING\"", GRAFT_E_UNSUPPORTED_ADAPTER, "task_type"},
        {",\"init_lora_weights\":\"pissa\"", GRAFT_E_BASE_MODIFIED, "init_lora_weights"},
        {",\"init_lora_weights\":\"pissa_niter_16\"", GRAFT_E_BASE_MODIFIED, "init_lora_weights"},
        {",\"init_lora_weights\":\"olora\"", GRAFT_E_BASE_MODIFIED, "init_lora_weights"},
        {",\"init_lora_weights\":\"corda\"", GRAFT_E_BASE_MODIFIED, "init_lora_weights"},
        {",\"init_lora_weights\":\"loftq\"", GRAFT_E_BASE_MODIFIED, "init_lora_weights"},
        {",\"init_lora_weights\":\"lora_ga\"", GRAFT_E_BASE_MODIFIED, "init_lora_weights"},
        {",\"init_lora_weights\":\"new\"", GRAFT_E_UNKNOWN_OPTION, "init_lora_weights"},
        {",\"use_newlora\":true", GRAFT_E_UNKNOWN_OPTION, "use_newlora"}, /* C19 */
        {",\"new_config\":{\"a\":null}", GRAFT_E_UNKNOWN_OPTION, "new_config"},
        {",\"new_size\":0.5", GRAFT_E_UNKNOWN_OPTION, "new_size"},
        {",\"new_name\":\"x\"", GRAFT_E_UNKNOWN_OPTION, "new_name"},
        {",\"enable_lora\":[true,false,true]", GRAFT_E_UNKNOWN_OPTION, "enable_lora"},
        {",\"\\u001b[31m\":1", GRAFT_E_UNKNOWN_OPTION, "\\x1b[31m"},
        {",\"layers_to_transform\":[-1]", GRAFT_E_OUT_OF_RANGE, "layers_to_transform"},
        {",\"layers_to_transform\":4294967296", GRAFT_E_OUT_OF_RANGE, "layers_to_transform"},
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        expect_reason(minimal(cases[i].more), cases[i].code, cases[i].where);
    }
}

static void ignores_what_is_off_or_harmless(void **state) {
    (void)state;
    static const char *const cases[] = {
        ",\"use_dora\":null",
        ",\"lora_bias\":0",
        ",\"bias\":null",
        ",\"modules_to_save\":[]",
        ",\"trainable_token_indices\":[]",
        ",\"use_bdlora\":false",
        ",\"megatron_config\":{}",
        ",\"task_type\":null",
        ",\"task_type\":\"SEQ_2_SEQ_LM\"",
        ",\"init_lora_weights\":false",
        ",\"init_lora_weights\":null",
        ",\"init_lora_weights\":\"gaussian\"",
        ",\"init_lora_weights\":\"orthogonal\"",
        ",\"init_lora_weights\":\"eva\",\"eva_config\":{\"rho\":2.0}",
        ",\"init_lora_weights\":\"mica\"",
        ",\"corda_config\":{\"corda_method\":\"ipm\"}",
        ",\"lora_ga_config\":{\"scale\":\"stable\"}",
        ",\"velora_config\":{\"num_groups\":32}",
        ",\"auto_mapping\":{\"base_model_class\":\"X\",\"unsloth_fixed\":true}",
        ",\"revision\":\"../../etc/passwd\"", /* C23: data */
        ",\"peft_version\":\"99.0\",\"inference_mode\":false,\"lora_dropout\":0.9",
        ",\"exclude_modules\":\"(a+)+$\",\"layers_pattern\":[\"layers\"]",
        ",\"target_modules\":\"(a+)+$\"", /* C09: never executed */
        ",\"target_modules\":\"all-linear\"",
        ",\"target_modules\":null",
        ",\"new\":null,\"new2\":false,\"new3\":0,\"new4\":\"\",\"new5\":[],\"new6\":{},\"new7\":0.0",
        ",\"lorap_lr_ratio\":16.0,\"lorap_emb_lr\":1e-06,\"lora_dtype\":\"float32\",\"model_key_mapping\":null",
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        expect_reason(minimal(cases[i]), 0, "");
    }
}

static void refuses_other_kinds(void **state) {
    (void)state;
    static const char *const kinds[] = {"\"LOHA\"", "\"IA3\"", "\"ADALORA\"", "\"PROMPT_TUNING\"", "\"lora\"", "\"\"", "null"};
    char text[256];
    for (size_t i = 0; i < COUNT(kinds); i++) {
        sprintf(text, "{\"peft_type\":%s,\"r\":8,\"lora_alpha\":16}", kinds[i]);
        expect_reason(text, GRAFT_E_UNSUPPORTED_ADAPTER, "peft_type");
    }
    expect_reason("{\"r\":8,\"lora_alpha\":16}", GRAFT_E_UNSUPPORTED_ADAPTER, "peft_type");
    /* The keys of other kinds are not worth more reasons. */
    expect_reason("{\"peft_type\":\"IA3\",\"feedforward_modules\":[\"down_proj\"],\"bias\":\"all\"}", GRAFT_E_UNSUPPORTED_ADAPTER,
                  "peft_type");
}

static void checks_rank_and_alpha(void **state) {
    (void)state;
    static const char *const ranks[] = {"0", "-1", "2147483648", "\"8\"", "8.0", "true", "null", "[8]", "1e2"};
    static const char *const alphas[] = {"0", "0.0", "-0.0", "1e30", "-1e30", "\"16\"", "true", "null", "[16]"};
    char text[256];
    for (size_t i = 0; i < COUNT(ranks); i++) { /* C03 */
        sprintf(text, "{\"peft_type\":\"LORA\",\"r\":%s,\"lora_alpha\":16}", ranks[i]);
        expect_reason(text, GRAFT_E_BAD_RANK, "r");
    }
    for (size_t i = 0; i < COUNT(alphas); i++) { /* C05 */
        sprintf(text, "{\"peft_type\":\"LORA\",\"r\":8,\"lora_alpha\":%s}", alphas[i]);
        expect_reason(text, GRAFT_E_BAD_ALPHA, "lora_alpha");
    }
    expect_reason("{\"peft_type\":\"LORA\",\"lora_alpha\":16}", GRAFT_E_BAD_RANK, "r");
    expect_reason("{\"peft_type\":\"LORA\",\"r\":8}", GRAFT_E_BAD_ALPHA, "lora_alpha");
    expect_reason(minimal(",\"rank_pattern\":{\"a\":0}"), GRAFT_E_BAD_RANK, "rank_pattern");
    expect_reason(minimal(",\"rank_pattern\":{\"a\":4.0}"), GRAFT_E_BAD_RANK, "rank_pattern");
    expect_reason(minimal(",\"rank_pattern\":{\"a\":null}"), GRAFT_E_BAD_RANK, "rank_pattern");
    expect_reason(minimal(",\"alpha_pattern\":{\"a\":0}"), GRAFT_E_BAD_ALPHA, "alpha_pattern");
    expect_reason(minimal(",\"alpha_pattern\":{\"a\":\"4\"}"), GRAFT_E_BAD_ALPHA, "alpha_pattern");
}

static void warns_of_a_negative_alpha(void **state) {
    (void)state;
    gr_report report;
    graft_error err = {0};
    gr_peft_config c;
    gr_report_init(&report);
    const char *text = "{\"peft_type\":\"LORA\",\"r\":8,\"lora_alpha\":-16,\"alpha_pattern\":{\"a\":-1}}";
    assert_int_equal(parse_copy(&c, text, &report, &err), 0);
    assert_int_equal(report.n_errors, 0);
    assert_int_equal(report.n, 2);
    assert_int_equal(report.reasons[0].severity, GRAFT_LOG_WARN);
    assert_string_equal(report.reasons[1].where, "alpha_pattern");
    assert_true(c.lora_alpha == -16);
    gr_peft_config_finish(&c);
    gr_report_finish(&report);
}

static void returns_faults_at_once(void **state) {
    (void)state;
    static const struct {
        const char *more;
        int code;
    } cases[] = {
        {",\"use_rslora\":1", GRAFT_E_BAD_TYPE},
        {",\"use_rslora\":\"true\"", GRAFT_E_BAD_TYPE},
        {",\"fan_in_fan_out\":\"no\"", GRAFT_E_BAD_TYPE},
        {",\"bias\":false", GRAFT_E_BAD_TYPE},
        {",\"use_dora\":\"yes\"", GRAFT_E_BAD_TYPE},
        {",\"lora_bias\":1", GRAFT_E_BAD_TYPE},
        {",\"modules_to_save\":\"lm_head\"", GRAFT_E_BAD_TYPE},
        {",\"modules_to_save\":[1]", GRAFT_E_BAD_TYPE},
        {",\"trainable_token_indices\":1", GRAFT_E_BAD_TYPE},
        {",\"trainable_token_indices\":[1,\"2\"]", GRAFT_E_BAD_TYPE},
        {",\"trainable_token_indices\":{\"embed_tokens\":5}", GRAFT_E_BAD_TYPE},
        {",\"alora_invocation_tokens\":\"text\"", GRAFT_E_BAD_TYPE},
        {",\"alora_invocation_tokens\":[1.0]", GRAFT_E_BAD_TYPE},
        {",\"task_type\":1", GRAFT_E_BAD_TYPE},
        {",\"init_lora_weights\":1", GRAFT_E_BAD_TYPE},
        {",\"base_model_name_or_path\":7", GRAFT_E_BAD_TYPE},
        {",\"target_modules\":7", GRAFT_E_BAD_TYPE},
        {",\"target_modules\":{\"a\":1}", GRAFT_E_BAD_TYPE},
        {",\"target_modules\":[\"a\",1]", GRAFT_E_BAD_TYPE},
        {",\"layers_to_transform\":\"1\"", GRAFT_E_BAD_TYPE},
        {",\"layers_to_transform\":[1.0]", GRAFT_E_BAD_TYPE},
        {",\"layers_to_transform\":[true]", GRAFT_E_BAD_TYPE},
        {",\"rank_pattern\":[]", GRAFT_E_BAD_TYPE},
        {",\"alpha_pattern\":\"a\"", GRAFT_E_BAD_TYPE},
        {",\"x\":NaN", GRAFT_E_JSON_SYNTAX},
        {",\"x\":1e999", GRAFT_E_OUT_OF_RANGE},
        {",\"r\":8", GRAFT_E_JSON_DUPLICATE_KEY},
        {",\"\\u0072\":8", GRAFT_E_JSON_DUPLICATE_KEY},
        {",\"x\":\"\xff\"", GRAFT_E_JSON_ENCODING},
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        expect_fault(minimal(cases[i].more), cases[i].code);
    }
    expect_fault("", GRAFT_E_JSON_SYNTAX); /* C01 */
    expect_fault("[]", GRAFT_E_BAD_TYPE);
    expect_fault("null", GRAFT_E_BAD_TYPE);
    expect_fault("{\"peft_type\":1,\"r\":8,\"lora_alpha\":16}", GRAFT_E_BAD_TYPE);
}

static void reads_what_was_trained(void **state) {
    (void)state;
    gr_peft_config c;
    good(&c, minimal(",\"use_dora\":true,\"bias\":\"all\",\"modules_to_save\":[\"lm_head\",\"norm\"],\"ensure_weight_tying\":true,"
                     "\"trainable_token_indices\":[7,3]"));
    assert_true(c.use_dora && c.ties_weights && !c.lora_bias);
    assert_int_equal(c.biases, GR_BIASES_ALL);
    assert_int_equal(c.n_saved_modules, 2);
    assert_true(gr_peft_config_saves(&c, "lm_head") && gr_peft_config_saves(&c, "model.layers.0.post_attention_layernorm"));
    assert_false(gr_peft_config_saves(&c, "model.embed_tokens") || gr_peft_config_saves(&c, "head"));
    assert_int_equal(c.n_tokens, 1);
    assert_null(c.tokens[0].module);
    assert_int_equal(c.tokens[0].n, 2);
    assert_int_equal(c.tokens[0].ids[0], 7);
    assert_int_equal(c.tokens[0].ids[1], 3);
    gr_peft_config_finish(&c);

    good(&c, minimal(",\"lora_bias\":true,\"bias\":\"lora_only\",\"alora_invocation_tokens\":[5,5,9],"
                     "\"trainable_token_indices\":{\"embed_tokens\":[1],\"lm_head\":[2,0]}"));
    assert_true(c.lora_bias);
    assert_int_equal(c.biases, GR_BIASES_LORA_ONLY);
    assert_int_equal(c.n_invocation, 3);
    assert_int_equal(c.invocation[2], 9);
    assert_int_equal(c.n_tokens, 2);
    assert_string_equal(c.tokens[1].module, "lm_head");
    assert_int_equal(c.tokens[1].ids[0], 2);
    gr_peft_config_finish(&c);

    good(&c, minimal(",\"modules_to_save\":\"\",\"trainable_token_indices\":{},\"alora_invocation_tokens\":false"));
    assert_true(!c.n_saved_modules && !c.n_tokens && !c.invocation && c.biases == GR_BIASES_NONE);
    gr_peft_config_finish(&c);
}

/* "[1,1,…]" with n entries, or n different ones. */
static char *long_list(const char *key, int n, const char *entry) {
    static char text[1 << 20];
    size_t o = (size_t)snprintf(text, sizeof text, "{\"peft_type\":\"LORA\",\"r\":8,\"lora_alpha\":16,\"%s\":[", key);
    for (int i = 0; i < n; i++) {
        o += (size_t)snprintf(text + o, sizeof text - o, i ? ",%s" : "%s", entry);
        if (!*entry) {
            o += (size_t)snprintf(text + o, sizeof text - o, "%d", i);
        }
    }
    snprintf(text + o, sizeof text - o, "]}");
    return text;
}

static void bounds_lists(void **state) {
    (void)state;
    expect_reason(long_list("alora_invocation_tokens", 4096, "1"), 0, "");
    expect_reason(long_list("alora_invocation_tokens", 4097, "1"), GRAFT_E_OUT_OF_RANGE, "alora_invocation_tokens");
    expect_reason(long_list("modules_to_save", 1024, "\"a\""), 0, "");
    expect_reason(long_list("modules_to_save", 1025, "\"a\""), GRAFT_E_OUT_OF_RANGE, "modules_to_save");
    expect_reason(long_list("trainable_token_indices", 65536, ""), 0, "");
    expect_reason(long_list("trainable_token_indices", 65537, ""), GRAFT_E_OUT_OF_RANGE, "trainable_token_indices");
    char many[1024] = ",\"trainable_token_indices\":{", name[600];
    for (int i = 0; i < 17; i++) {
        snprintf(many + strlen(many), sizeof many - strlen(many), "%s\"m%d\":[1]", i ? "," : "", i);
    }
    strcat(many, "}");
    expect_reason(minimal(many), GRAFT_E_OUT_OF_RANGE, "trainable_token_indices");
    snprintf(name, sizeof name, ",\"modules_to_save\":[\"%0513d\"]", 0);
    expect_reason(minimal(name), GRAFT_E_OUT_OF_RANGE, "modules_to_save");
}

/* All findings at once, not only the first. */
static void reports_everything(void **state) {
    (void)state;
    gr_report report;
    graft_error err = {0};
    gr_peft_config c;
    gr_report_init(&report);
    const char *text = "{\"peft_type\":\"LORA\",\"r\":0,\"use_dora\":true,\"lora_bias\":true,\"bias\":\"some\",\"modules_to_save\":[\"\"],\"new\":1}";
    assert_int_equal(parse_copy(&c, text, &report, &err), 0);
    assert_int_equal(report.n_errors, 6);
    gr_peft_config_finish(&c);
    gr_report_finish(&report);
}

/* ---- patterns ------------------------------------------------------------------------------------------------- */

/* Which key of a pattern peft's get_pattern_key chooses for each path: computed with peft 0.21.2. */
static const char *const paths[] = {"model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj",
                                    "model.layers.10.self_attn.k_proj", "model.layers.1.mlp.down_proj",
                                    "transformer.h.1.attn.c_attn"};

static const struct {
    const char *keys[3];
    int chosen[COUNT(paths)];
} matches[] = {
    {{"q_proj"}, {0, 0, -1, -1, -1}},
    {{"proj"}, {-1, -1, -1, -1, -1}},
    {{"self_attn.q_proj"}, {0, 0, -1, -1, -1}},
    {{"layers.1.self_attn.q_proj"}, {-1, 0, -1, -1, -1}},
    {{"1.self_attn.q_proj"}, {-1, 0, -1, -1, -1}},
    {{"model.layers.0.self_attn.q_proj"}, {0, -1, -1, -1, -1}},
    {{"^model.layers.0.self_attn.q_proj"}, {0, -1, -1, -1, -1}},
    {{"^layers.0.self_attn.q_proj"}, {-1, -1, -1, -1, -1}},
    {{"odel.layers.0.self_attn.q_proj"}, {-1, -1, -1, -1, -1}},
    {{"self_attnXq_proj"}, {-1, -1, -1, -1, -1}},
    {{"self.attn.q.proj"}, {0, 0, -1, -1, -1}},
    {{"q.proj"}, {0, 0, -1, -1, -1}},
    {{"q_proj$"}, {0, 0, -1, -1, -1}},
    {{"^q_proj"}, {-1, -1, -1, -1, -1}},
    {{"self_attn\\.q_proj"}, {0, 0, -1, -1, -1}},
    {{"self_attn\\.q\\_proj"}, {0, 0, -1, -1, -1}},
    {{"q_proj", "self_attn.q_proj"}, {0, 0, -1, -1, -1}},
    {{"layers.1.self_attn.q_proj", "q_proj"}, {1, 0, -1, -1, -1}},
    {{"q_proj|k_proj"}, {0, 0, 0, -1, -1}},
    {{"q_proj|down"}, {0, 0, -1, -1, -1}},
    {{"(q|k)_proj"}, {0, 0, 0, -1, -1}},
    {{"[qk]_proj"}, {0, 0, 0, -1, -1}},
    {{"[^qk]_proj"}, {-1, -1, -1, -1, -1}},
    {{".*_proj"}, {0, 0, 0, 0, -1}},
    {{".*"}, {0, 0, 0, 0, 0}},
    {{".+\\.q_proj"}, {0, 0, -1, -1, -1}},
    {{"layers\\.[0-4]\\..*"}, {0, 0, -1, 0, -1}},
    {{"layers\\.\\d\\.mlp.*"}, {-1, -1, -1, 0, -1}},
    {{"layers\\.\\d+\\..*q_proj"}, {0, 0, -1, -1, -1}},
    {{"layers.1.*"}, {-1, 0, 0, 0, -1}},
    {{"layers\\.1\\..*"}, {-1, 0, -1, 0, -1}},
    {{"model"}, {-1, -1, -1, -1, -1}},
    {{"model.*"}, {0, 0, 0, 0, -1}},
    {{"h\\.1\\.attn\\.c_attn"}, {-1, -1, -1, -1, 0}},
    {{"c_attn"}, {-1, -1, -1, -1, 0}},
    {{"\\w+_attn"}, {-1, -1, -1, -1, 0}},
    {{"attn.c_attn"}, {-1, -1, -1, -1, 0}},
    {{"(?:q|k|v)_proj"}, {0, 0, 0, -1, -1}},
    {{"\\w{6}"}, {0, 0, 0, -1, 0}},
    {{"\\w{3,5}_proj"}, {-1, -1, -1, 0, -1}},
    {{".{2}_proj"}, {-1, -1, -1, -1, -1}},
    {{"down_proj{1}"}, {-1, -1, -1, 0, -1}},
    {{"do?wn_proj"}, {-1, -1, -1, 0, -1}},
    {{"down+_proj"}, {-1, -1, -1, 0, -1}},
    {{"q_proj.*"}, {0, 0, -1, -1, -1}},
    {{"q_proj()"}, {0, 0, -1, -1, -1}},
    {{"()"}, {-1, -1, -1, -1, -1}},
    {{""}, {-1, -1, -1, -1, -1}},
    {{"a^"}, {-1, -1, -1, -1, -1}},
    {{"$"}, {-1, -1, -1, -1, -1}},
    {{"mlp.(down|up)_proj"}, {-1, -1, -1, 0, -1}},
    {{"layers\\.(0|1)\\.self_attn\\.(q|v)_proj"}, {0, 0, -1, -1, -1}},
    {{"l.*?proj"}, {0, 0, 0, 0, -1}},
    {{"k_proj)|(q_proj"}, {-1, -1, 0, -1, -1}},
    {{"model.layers.0.self_attn.q_proj", "^model.layers.1.self_attn.q_proj", ".*"}, {0, 1, 2, 2, 2}},
    {{"[\\w.]+proj"}, {0, 0, 0, 0, -1}},
    {{"\\bq_proj"}, {0, 0, -1, -1, -1}},
    {{"attn\\b.q_proj"}, {-1, -1, -1, -1, -1}},
    {{"Q_PROJ"}, {-1, -1, -1, -1, -1}},
    {{"q-proj"}, {-1, -1, -1, -1, -1}},
    {{"layers.[01].*_proj"}, {0, 0, 0, 0, -1}},
    {{"model\\.layers\\.10\\.\\S+"}, {-1, -1, 0, -1, -1}},
};

/* {"key": 101, …} as JSON. */
static void pattern_json(char *out, const char *const *keys) {
    char *p = out + sprintf(out, "{");
    for (size_t i = 0; i < 3 && keys[i]; i++) {
        p += sprintf(p, "%s\"", i ? "," : "");
        for (const char *s = keys[i]; *s; s++) {
            p += sprintf(p, "%s%c", *s == '\\' || *s == '"' ? "\\" : "", *s);
        }
        p += sprintf(p, "\":%zu", 101 + i);
    }
    sprintf(p, "}");
}

static void matches_as_peft_does(void **state) {
    (void)state;
    char pattern[1024], more[2100];
    for (size_t m = 0; m < COUNT(matches); m++) {
        pattern_json(pattern, matches[m].keys);
        sprintf(more, ",\"alpha_pattern\":%s,\"rank_pattern\":%s", pattern, pattern);
        gr_peft_config c;
        good(&c, minimal(more));
        bool used[3] = {false};
        for (size_t i = 0; i < COUNT(paths); i++) {
            int want = matches[m].chosen[i];
            double alpha = gr_peft_config_alpha(&c, paths[i]);
            int rank = gr_peft_config_rank(&c, paths[i]);
            if (alpha != (want < 0 ? 16 : 101 + want) || rank != (want < 0 ? 8 : 101 + want)) {
                fail_msg("%s on %s: alpha %g, rank %d, wanted key %d", pattern, paths[i], alpha, rank, want);
            }
            if (want >= 0) {
                used[want] = true;
            }
        }
        for (size_t k = 0; k < c.n_alpha_pattern; k++) {
            assert_true(c.alpha_pattern[k].used || !used[k]);
        }
        gr_peft_config_finish(&c);
    }
}

static void refuses_other_expressions(void **state) {
    (void)state;
    static const char *const keys[] = {
        "(?i)q_proj", "(?=a)b",  "(?!a)b",  "(?P<n>a)", "(a)\\\\1", "a++",        "a*+",       "a?+",     "a{2}+",
        "a{,2}",      "a{b}",    "a{",      "{",        "[[:alpha:]]", "[a",      "a\\\\",     "\\\\Z",   "\\\\A",
        "\\\\x41",    "\\\\n",   "a b",     "a,b",      "a/b",      "q_proj#",    "~",         "a\\u00e9", "(*ACCEPT)",
        "*F)",        "?R",      "?:a",     "(",        ")",        "a**",        "[z-a]",     "a@b",     "a\\nb",
        "a!",         "\\\\p{L}", "[\\\\b]", "%", "a\\u0001b", "\\\\Qa\\\\E", "a{99999}",
    };
    char more[256];
    for (size_t i = 0; i < COUNT(keys); i++) {
        sprintf(more, ",\"rank_pattern\":{\"%s\":4}", keys[i]);
        expect_reason(minimal(more), GRAFT_E_UNSUPPORTED_PATTERN, "rank_pattern");
    }
}

static char *pattern_of(size_t n, const char *format) {
    char *text = malloc(n * 32 + 128);
    size_t at = (size_t)sprintf(text, "{\"peft_type\":\"LORA\",\"r\":8,\"lora_alpha\":16,\"alpha_pattern\":{");
    for (size_t i = 0; i < n; i++) {
        at += (size_t)sprintf(text + at, "%s\"", i ? "," : "");
        for (const char *f = format; *f; f++) {
            at += *f == '#' ? (size_t)sprintf(text + at, "%zu", i) : (size_t)sprintf(text + at, "%c", *f);
        }
        at += (size_t)sprintf(text + at, "\":%zu", i + 1);
    }
    sprintf(text + at, "}}");
    return text;
}

static void bounds_patterns(void **state) {
    (void)state;
    gr_peft_config c;
    char *text = pattern_of(GR_MAX_PATTERNS, "layers.#.q_proj");
    good(&c, text);
    assert_true(gr_peft_config_alpha(&c, "model.layers.9999.q_proj") == 10000);
    gr_peft_config_finish(&c);
    free(text);
    text = pattern_of(GR_MAX_PATTERNS + 1, "layers.#.q_proj");
    expect_reason(text, GRAFT_E_UNSUPPORTED_PATTERN, "alpha_pattern");
    free(text);
    text = pattern_of(GR_MAX_REGEXES, "(layers|h).#.q_proj");
    good(&c, text);
    assert_true(gr_peft_config_alpha(&c, "model.layers.255.q_proj") == 256);
    gr_peft_config_finish(&c);
    free(text);
    text = pattern_of(GR_MAX_REGEXES + 1, "(layers|h).#.q_proj");
    expect_reason(text, GRAFT_E_UNSUPPORTED_PATTERN, "alpha_pattern");
    free(text);
    for (size_t n = GR_MAX_PATTERN_KEY; n <= GR_MAX_PATTERN_KEY + 1; n++) {
        char key[GR_MAX_PATTERN_KEY + 2], more[1024];
        memset(key, 'k', n);
        key[n] = '\0';
        sprintf(more, ",\"rank_pattern\":{\"%s\":4}", key);
        expect_reason(minimal(more), n > GR_MAX_PATTERN_KEY ? GRAFT_E_UNSUPPORTED_PATTERN : 0, "rank_pattern");
        memcpy(key, "(a|", 3);
        key[n - 1] = ')';
        sprintf(more, ",\"rank_pattern\":{\"%s\":4}", key);
        expect_reason(minimal(more), n > GR_MAX_PATTERN_KEY ? GRAFT_E_UNSUPPORTED_PATTERN : 0, "rank_pattern");
    }
}

/* Expressions that would take for ever end, count as no match, and are told. */
static void gives_up_on_catastrophic_patterns(void **state) {
    (void)state;
    gr_peft_config c;
    gr_report report;
    graft_error err;
    gr_report_init(&report);
    good(&c, minimal(",\"alpha_pattern\":{\"(\\\\w+\\\\w+)+X\":3,\"(.*.*)*Y\":4,\"q_proj\":5}"));
    assert_true(gr_peft_config_alpha(&c, "X.Y.0.a_long_name_of_a_module_that_goes_on_and_on.q_proj") == 5);
    assert_true(gr_peft_config_alpha(&c, "X.Y.0.a_long_name_of_a_module_that_goes_on_and_on.k_proj") == 16);
    gr_peft_config_report_unused(&c, &report);
    assert_int_equal(report.n_errors, 2);
    assert_int_equal(gr_report_result(&report, &err), GRAFT_E_UNSUPPORTED_PATTERN);
    gr_report_finish(&report);
    gr_peft_config_finish(&c);
}

/* The limit is graft's own, far below pcre2's: this one would end without it, and match nothing. */
static void the_limit_is_low(void **state) {
    (void)state;
    gr_peft_config c;
    good(&c, minimal(",\"alpha_pattern\":{\"(a+)+X\":3}"));
    assert_true(gr_peft_config_alpha(&c, "X.aaaaaaaa") == 16);
    assert_int_equal(c.alpha_pattern[0].failed, 0);
    assert_true(gr_peft_config_alpha(&c, "X.aaaaaaaaaaaaaaaa") == 16);
    assert_int_equal(c.alpha_pattern[0].failed, GRAFT_E_UNSUPPORTED_PATTERN);
    gr_peft_config_finish(&c);
}

static void reports_unused_patterns(void **state) {
    (void)state;
    gr_peft_config c;
    gr_report report;
    gr_report_init(&report);
    good(&c, minimal(",\"alpha_pattern\":{\"q_proj\":3,\"q_porj\":4},\"rank_pattern\":{\"(k|v)_proj\":2,\"(x|y)_proj\":2}"));
    gr_peft_config_alpha(&c, "model.layers.0.self_attn.q_proj");
    gr_peft_config_rank(&c, "model.layers.0.self_attn.v_proj");
    gr_peft_config_report_unused(&c, &report); /* C08 */
    assert_int_equal(report.n_errors, 2);
    for (size_t i = 0; i < 2; i++) {
        assert_int_equal(report.reasons[i].error.code, GRAFT_E_PATTERN_UNUSED);
    }
    assert_string_equal(report.reasons[0].where, "rank_pattern");
    assert_non_null(strstr(report.reasons[0].error.message, "(x|y)_proj"));
    assert_string_equal(report.reasons[1].where, "alpha_pattern");
    assert_non_null(strstr(report.reasons[1].error.message, "q_porj"));
    gr_report_finish(&report);
    gr_peft_config_finish(&c);
}

/* A key that an earlier one always beats decides nothing, but it names a module: no typing error. */
static void beaten_patterns_are_used(void **state) {
    (void)state;
    gr_peft_config c;
    gr_report report;
    gr_report_init(&report);
    good(&c, minimal(",\"alpha_pattern\":{\"q_proj\":3,\"layers.0.self_attn.q_proj\":4,\"(q|k)_proj\":5}"));
    assert_true(gr_peft_config_alpha(&c, "model.layers.0.self_attn.q_proj") == 3);
    gr_peft_config_report_unused(&c, &report);
    assert_int_equal(report.n_errors, 0);
    gr_report_finish(&report);
    gr_peft_config_finish(&c);
}

/* ---- every cut, every allocation -------------------------------------------------------------------------------- */

static void every_truncation_fails(void **state) {
    (void)state;
    char text[sizeof plain];
    for (size_t n = 0; n < strlen(plain); n++) {
        memcpy(text, plain, n);
        text[n] = '\0';
        gr_report report;
        graft_error err = {0};
        gr_peft_config c;
        gr_report_init(&report);
        assert_int_equal(parse_copy(&c, text, &report, &err), GRAFT_E_JSON_SYNTAX);
        gr_report_finish(&report);
    }
}

static void no_bit_flip_harms(void **state) {
    (void)state;
    char text[1024];
    strcpy(text, minimal(",\"alpha_pattern\":{\"(q|k)_proj\":3,\"v.proj\":4},\"layers_to_transform\":[1,2]"));
    for (size_t bit = 0; bit < strlen(text) * 8; bit++) {
        text[bit / 8] = (char)(text[bit / 8] ^ (1 << (bit % 8)));
        if (text[bit / 8]) {
            gr_report report;
            graft_error err = {0};
            gr_peft_config c;
            gr_report_init(&report);
            if (parse_copy(&c, text, &report, &err) == 0) {
                gr_peft_config_alpha(&c, "model.layers.0.self_attn.q_proj");
                gr_peft_config_report_unused(&c, &report);
                gr_peft_config_finish(&c);
            }
            gr_report_finish(&report);
        }
        text[bit / 8] = (char)(text[bit / 8] ^ (1 << (bit % 8)));
    }
}

static int attempt(void *data, graft_error *err) {
    gr_report report;
    gr_peft_config c = {0};
    gr_report_init(&report);
    int code = parse_copy(&c, data, &report, err);
    if (!code) {
        gr_peft_config_alpha(&c, "model.layers.0.self_attn.q_proj");
        gr_peft_config_rank(&c, "model.layers.0.mlp.up_proj");
        gr_peft_config_report_unused(&c, &report);
        code = gr_report_result(&report, err);
    }
    gr_peft_config_finish(&c);
    gr_report_finish(&report);
    return code;
}

static void every_allocation_may_fail(void **state) {
    (void)state;
    torture("config", attempt,
            minimal(",\"base_model_name_or_path\":\"b\",\"target_modules\":[\"a\",\"b\"],\"layers_to_transform\":[2,1],"
                    "\"modules_to_save\":[\"a\",\"b\"],\"alora_invocation_tokens\":[1],"
                    "\"trainable_token_indices\":{\"a\":[1,2],\"b\":[3]},"
                    "\"alpha_pattern\":{\"(q|k)_proj\":3},\"rank_pattern\":{\"^model.layers.0.mlp.up_proj\":2}"));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reads_a_plain_config),
        cmocka_unit_test(reads_an_old_config),
        cmocka_unit_test(reads_options),
        cmocka_unit_test(reads_what_was_trained),
        cmocka_unit_test(bounds_lists),
        cmocka_unit_test(scales),
        cmocka_unit_test(cuts_long_target_lists),
        cmocka_unit_test(refuses_by_name),
        cmocka_unit_test(ignores_what_is_off_or_harmless),
        cmocka_unit_test(refuses_other_kinds),
        cmocka_unit_test(checks_rank_and_alpha),
        cmocka_unit_test(warns_of_a_negative_alpha),
        cmocka_unit_test(returns_faults_at_once),
        cmocka_unit_test(reports_everything),
        cmocka_unit_test(matches_as_peft_does),
        cmocka_unit_test(refuses_other_expressions),
        cmocka_unit_test(bounds_patterns),
        cmocka_unit_test(gives_up_on_catastrophic_patterns),
        cmocka_unit_test(the_limit_is_low),
        cmocka_unit_test(reports_unused_patterns),
        cmocka_unit_test(beaten_patterns_are_used),
        cmocka_unit_test(every_truncation_fails),
        cmocka_unit_test(no_bit_flip_harms),
        cmocka_unit_test(every_allocation_may_fail),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
