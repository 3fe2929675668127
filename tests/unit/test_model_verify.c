/* Does an adapter fit a base? Every reason why not, and what the plan says when it does. */
#include "format_helpers.h"
#include "make_adapter.h"

#include "model/verify.h"

/* Where an adapter lies while it is verified: opened, with its report. */
typedef struct opened {
    test_dir dir;
    gr_source *source;
    gr_report report;
    gr_plan *plan;
    graft_error err;
    int rc;
} opened;

static void verify_path(opened *o, const gr_base_model *base, const char *path) {
    o->plan = NULL;
    o->err.code = 0;
    gr_report_init(&o->report);
    o->rc = gr_source_open(&o->source, path, (gr_source_limits){(uint64_t)1 << 30, NULL}, &o->report, &o->err);
    if (o->rc) {
        fail_msg("opening: %s", o->err.message);
    }
    o->rc = gr_verify(&o->plan, base, o->source, &o->report, &o->err);
    assert_int_equal(o->rc, o->err.code);
    assert_true((o->rc == 0) == (o->plan != NULL));
    assert_true((o->rc == 0) == (o->report.n_errors == 0));
    for (size_t i = 0; i < o->report.n; i++) { /* the place is told once */
        const gr_reason *r = &o->report.reasons[i];
        assert_true(!r->where[0] || !strstr(r->error.message, r->where));
    }
}

static void verify(opened *o, const gr_base_model *base, const test_adapter *a) {
    o->dir = test_dir_make();
    test_write_peft(a, &o->dir);
    verify_path(o, base, o->dir.path);
}

static void verify_gguf(opened *o, const gr_base_model *base, const test_adapter *a, const char *architecture, float alpha,
                        bool alora) {
    o->dir = test_dir_make();
    test_write_gguf(a, &o->dir, "a.gguf", "adapter", architecture, alpha, alora);
    verify_path(o, base, test_path(&o->dir, "a.gguf"));
}

static void done(opened *o) {
    gr_plan_free(o->plan);
    gr_source_close(o->source);
    gr_report_finish(&o->report);
    test_dir_remove(&o->dir);
}

static const gr_reason *find_reason(const opened *o, int code, const char *where, const char *words) {
    for (size_t i = 0; i < o->report.n; i++) {
        const gr_reason *r = &o->report.reasons[i];
        if (r->error.code == code && strstr(r->where, where) && strstr(r->error.message, words)) {
            return r;
        }
    }
    return NULL;
}

/* One of the reasons has this code, place and these words. */
static void expect_reason(const opened *o, int code, const char *where, const char *words) {
    if (!find_reason(o, code, where, words)) {
        for (size_t i = 0; i < o->report.n; i++) {
            print_error("has %s at \"%s\": %s\n", graft_error_name(o->report.reasons[i].error.code), o->report.reasons[i].where,
                        o->report.reasons[i].error.message);
        }
        fail_msg("no %s at \"%s\" with \"%s\"", graft_error_name(code), where, words);
    }
}

static const gr_plan_entry *find_entry(const gr_plan *p, const char *weight) {
    for (size_t i = 0; i < p->n; i++) {
        if (strcmp(p->base->weights[p->entries[i].weight].name, weight) == 0) {
            return &p->entries[i];
        }
    }
    fail_msg("nothing for %s", weight);
    return NULL;
}

/* ---- what fits ------------------------------------------------------------------------------------------ */

static void a_plan_says_what_will_happen(void **state) {
    (void)state;
    gr_base_model *base = test_base_make("llama");
    test_adapter *a = test_adapter_make(GR_DTYPE_F32);
    opened o;
    verify(&o, base, a);
    assert_int_equal(o.rc, 0);
    assert_int_equal(o.plan->n, 6);
    assert_int_equal(o.plan->rank_min, 4);
    assert_int_equal(o.plan->rank_max, 4);
    for (size_t i = 0; i < o.plan->n; i++) {
        const gr_plan_entry *e = &o.plan->entries[i];
        assert_true(i == 0 || e->weight > o.plan->entries[i - 1].weight);
        assert_true(e->scale == 2.0);
        assert_int_equal(e->rank, 4);
    }
    assert_string_equal(find_entry(o.plan, "blk.1.attn_q.weight")->module, "model.layers.1.self_attn.q_proj");
    assert_int_equal(find_entry(o.plan, "blk.0.attn_q.weight")->rows.heads, TEST_HEADS);
    assert_int_equal(find_entry(o.plan, "blk.0.attn_k.weight")->rows.heads, TEST_HEADS_KV);
    assert_int_equal(find_entry(o.plan, "blk.0.ffn_down.weight")->rows.heads, 0);
    assert_string_equal(find_entry(o.plan, "blk.0.attn_k.weight")->a->name, TEST_K(0, "A"));
    assert_string_equal(find_entry(o.plan, "blk.0.attn_k.weight")->b->name, TEST_K(0, "B"));
    done(&o);
    test_base_free(base);
    free(a);
}

/* L17, C06, C07: ranks and scales by module */
static void patterns_give_each_module_its_scale(void **state) {
    (void)state;
    gr_base_model *base = test_base_make("llama");
    test_adapter *a = test_adapter_make(GR_DTYPE_F32);
    test_config_add(a, ",\"use_rslora\":true,\"rank_pattern\":{\"k_proj\":9},\"alpha_pattern\":{\"layers.1.mlp.down_proj\":2,"
                       "\"down_proj\":6}");
    for (int layer = 0; layer < 2; layer++) {
        test_find(a, layer ? TEST_K(1, "A") : TEST_K(0, "A"))->shape[0] = 9;
        test_find(a, layer ? TEST_K(1, "B") : TEST_K(0, "B"))->shape[1] = 9;
    }
    opened o;
    verify(&o, base, a);
    assert_int_equal(o.rc, 0);
    assert_int_equal(find_entry(o.plan, "blk.0.attn_k.weight")->rank, 9);
    assert_true(fabs(find_entry(o.plan, "blk.0.attn_k.weight")->scale - 8.0 / 3.0) < 1e-12);
    assert_true(fabs(find_entry(o.plan, "blk.0.attn_q.weight")->scale - 4.0) < 1e-12);
    assert_true(fabs(find_entry(o.plan, "blk.0.ffn_down.weight")->scale - 3.0) < 1e-12);
    assert_true(fabs(find_entry(o.plan, "blk.1.ffn_down.weight")->scale - 1.0) < 1e-12);
    assert_int_equal(o.plan->rank_min, 4);
    assert_int_equal(o.plan->rank_max, 9);
    done(&o);
    test_base_free(base);
    free(a);
}

static void a_gguf_adapter_is_not_permuted_again(void **state) {
    (void)state;
    gr_base_model *base = test_base_make("llama");
    test_adapter *a = test_gguf_make(GR_DTYPE_F32);
    opened o;
    verify_gguf(&o, base, a, "llama", 8, false);
    assert_int_equal(o.rc, 0);
    assert_int_equal(o.plan->n, 2);
    assert_int_equal(find_entry(o.plan, "blk.0.attn_q.weight")->rows.heads, 0);
    assert_true(find_entry(o.plan, "blk.0.attn_q.weight")->scale == 2.0);
    assert_true(find_entry(o.plan, "blk.0.ffn_down.weight")->scale == 4.0); /* alpha / its own rank 2 */
    assert_string_equal(find_entry(o.plan, "blk.0.attn_q.weight")->module, "blk.0.attn_q.weight");
    done(&o);
    test_base_free(base);
    free(a);
}

/* ggml writes a matrix of one row as a vector. */
static void a_gguf_adapter_of_rank_1(void **state) {
    (void)state;
    gr_base_model *base = test_base_make("llama");
    test_adapter *a = test_gguf_make(GR_DTYPE_F32);
    test_find(a, "blk.0.attn_q.weight.lora_a")->shape[0] = 1;
    test_find(a, "blk.0.attn_q.weight.lora_b")->shape[1] = 1;
    opened o;
    verify_gguf(&o, base, a, "llama", 8, false);
    assert_int_equal(o.rc, 0);
    assert_int_equal(find_entry(o.plan, "blk.0.attn_q.weight")->rank, 1);
    done(&o);
    test_base_free(base);
    free(a);
}

static test_adapter *gpt2_adapter(const char *fan_in_fan_out) {
    test_adapter *a = calloc(1, sizeof *a);
    snprintf(a->config, sizeof a->config, "{\"peft_type\":\"LORA\",\"r\":4,\"lora_alpha\":8,\"fan_in_fan_out\":%s}",
             fan_in_fan_out);
    test_add(a, "base_model.model.transformer.h.0.attn.c_attn.lora_A.weight", GR_DTYPE_F32, 4, TEST_EMBD);
    test_add(a, "base_model.model.transformer.h.0.attn.c_attn.lora_B.weight", GR_DTYPE_F32, 3 * TEST_EMBD, 4);
    return a;
}

/* C14 */
static void fan_in_fan_out_is_for_conv1d(void **state) {
    (void)state;
    gr_base_model *gpt2 = test_base_make("gpt2"), *llama = test_base_make("llama");
    opened o;
    for (int i = 0; i < 2; i++) {
        test_adapter *a = gpt2_adapter(i ? "true" : "false");
        verify(&o, gpt2, a);
        assert_int_equal(o.rc, 0);
        assert_int_equal(o.plan->n, 1);
        done(&o);
        free(a);
    }
    test_adapter *a = test_adapter_make(GR_DTYPE_F32);
    test_config_add(a, ",\"fan_in_fan_out\":true");
    verify(&o, llama, a);
    assert_int_equal(o.rc, GRAFT_E_UNSUPPORTED_ADAPTER);
    expect_reason(&o, GRAFT_E_UNSUPPORTED_ADAPTER, "fan_in_fan_out", "Conv1D");
    done(&o);
    free(a);
    test_base_free(gpt2);
    test_base_free(llama);
}

/* ---- what does not -------------------------------------------------------------------------------------- */

static void one_half_is_missing(test_adapter *a) {
    test_drop(a, TEST_Q(0, "B"));
}
static void other_half_is_missing(test_adapter *a) {
    test_drop(a, TEST_K(1, "A"));
}
static void halves_disagree(test_adapter *a) {
    test_find(a, TEST_Q(0, "B"))->shape[1] = 5;
}
static void config_says_another_rank(test_adapter *a) {
    test_config_add(a, ",\"rank_pattern\":{\"q_proj\":8}");
}
static void wrong_input(test_adapter *a) {
    test_find(a, TEST_Q(0, "A"))->shape[1] = 64;
}
static void wrong_output(test_adapter *a) {
    test_find(a, TEST_K(0, "B"))->shape[0] = TEST_EMBD;
}
static void transposed(test_adapter *a) {
    test_tensor *t = test_find(a, TEST_DOWN(0, "A"));
    t->shape[0] = TEST_FF;
    t->shape[1] = 4;
    t = test_find(a, TEST_DOWN(0, "B"));
    t->shape[0] = 4;
    t->shape[1] = TEST_EMBD;
}
static void layer_that_is_not(test_adapter *a) {
    test_rename(a, TEST_Q(1, "A"), TEST_Q(40, "A"));
    test_rename(a, TEST_Q(1, "B"), TEST_Q(40, "B"));
}
static void layer_not_canonical(test_adapter *a) {
    test_rename(a, TEST_Q(1, "A"), TEST_Q(007, "A"));
}
static void negative_layer(test_adapter *a) {
    test_rename(a, TEST_Q(1, "A"), TEST_Q(-1, "A"));
}
static void norm(test_adapter *a) {
    test_rename(a, TEST_Q(1, "A"), "base_model.model.model.layers.1.input_layernorm.lora_A.weight");
}
static void head(test_adapter *a) {
    test_add(a, "base_model.model.lm_head.lora_A.weight", GR_DTYPE_F32, 4, TEST_EMBD);
    test_add(a, "base_model.model.lm_head.lora_B.weight", GR_DTYPE_F32, TEST_VOCAB, 4);
}
static void same_twice(test_adapter *a) {
    test_add(a, "base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight", GR_DTYPE_F32, 4, TEST_EMBD);
}
static void some_foreign(test_adapter *a) {
    for (int i = 0; i < 7; i++) {
        char name[128];
        snprintf(name, sizeof name, "base_model.model.vision_tower.layers.%d.self_attn.q_proj.lora_A.weight", i);
        test_add(a, name, GR_DTYPE_F32, 4, TEST_EMBD);
    }
}
static void all_foreign(test_adapter *a) {
    for (int i = 0; i < a->n; i++) {
        memmove(a->t[i].name, a->t[i].name + strlen("base_model.model."), strlen(a->t[i].name) - strlen("base_model.model.") + 1);
    }
}
static void unknown_module(test_adapter *a) {
    test_rename(a, TEST_Q(1, "A"), "base_model.model.model.layers.1.self_attn.w_proj.lora_A.weight");
}
static void whole_base_weight(test_adapter *a) {
    test_add(a, "base_model.model.model.layers.0.self_attn.q_proj.base_layer.weight", GR_DTYPE_F32, TEST_EMBD, TEST_EMBD);
}
static void magnitudes(test_adapter *a) {
    test_add(a, "base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector", GR_DTYPE_F32, TEST_EMBD, 1);
}
static void stray(test_adapter *a) {
    test_add(a, "notes", GR_DTYPE_F32, 2, 2);
}
static void vector(test_adapter *a) {
    test_find(a, TEST_Q(0, "A"))->n_dims = 1;
}
static void cube(test_adapter *a) {
    test_tensor *t = test_find(a, TEST_Q(0, "B"));
    t->n_dims = 3;
    t->shape[2] = 1;
}
static void rank_too_large(test_adapter *a) {
    test_find(a, TEST_Q(0, "A"))->shape[0] = 1025;
    test_find(a, TEST_Q(0, "B"))->shape[1] = 1025;
    test_config_add(a, ",\"rank_pattern\":{\"layers.0.self_attn.q_proj\":1025}");
}
static void pattern_for_nothing(test_adapter *a) {
    test_config_add(a, ",\"alpha_pattern\":{\"v_proj\":4}");
}
static void layers_without_tensors(test_adapter *a) {
    for (int i = 0; i < 6; i++) {
        test_drop(a, a->t[6].name);
    }
    test_config_add(a, ",\"layers_to_transform\":[0,1]");
}
static void tensors_outside_the_layers(test_adapter *a) {
    test_config_add(a, ",\"layers_to_transform\":[1]");
}
static void listed_layer_that_is_not(test_adapter *a) {
    test_config_add(a, ",\"layers_to_transform\":[0,1,2]");
}

static void each_fault_has_its_code_and_words(void **state) {
    (void)state;
    const struct {
        void (*spoil)(test_adapter *a);
        int code;
        const char *where, *words;
    } cases[] = {
        {one_half_is_missing, GRAFT_E_MISSING_PAIR, TEST_Q(0, "A"), TEST_Q(0, "B")},              /* L01 */
        {other_half_is_missing, GRAFT_E_MISSING_PAIR, TEST_K(1, "B"), TEST_K(1, "A")},            /* L01 */
        {halves_disagree, GRAFT_E_RANK_MISMATCH, TEST_Q(0, "A"), "rank 4, but the other half has rank 5"}, /* L02 */
        {config_says_another_rank, GRAFT_E_RANK_MISMATCH, TEST_Q(0, "A"), "adapter_config.json says 8"}, /* C04 */
        {wrong_input, GRAFT_E_WRONG_SHAPE, TEST_Q(0, "A"),
         "shape [4, 64] does not fit blk.0.attn_q.weight: 40 columns needed (wrong base model?)"}, /* L03 */
        {wrong_output, GRAFT_E_WRONG_SHAPE, TEST_K(0, "B"),
         "shape [40, 4] does not fit blk.0.attn_k.weight: 20 rows needed (wrong base model?)"},   /* L03 */
        {transposed, GRAFT_E_WRONG_SHAPE, TEST_DOWN(0, "A"), "transposed"},                        /* L04 */
        {layer_that_is_not, GRAFT_E_UNKNOWN_TARGET, TEST_Q(40, "A"),
         "the base has no blk.40.attn_q.weight; it has layers 0 to 1"},                            /* L06 */
        {layer_not_canonical, GRAFT_E_UNKNOWN_TARGET, TEST_Q(007, "A"), ""},                       /* L06 */
        {negative_layer, GRAFT_E_UNKNOWN_TARGET, TEST_Q(-1, "A"), ""},                             /* L06 */
        {norm, GRAFT_E_UNSUPPORTED_TARGET, "input_layernorm", "norms"},                            /* L07 */
        {head, GRAFT_E_UNSUPPORTED_TARGET, "lm_head", "heads"},                                    /* L07 */
        {some_foreign, GRAFT_E_UNMAPPED_TENSORS, "", "7 of 19 tensors belong to no weight"},       /* L08 */
        {all_foreign, GRAFT_E_ZERO_TARGETS, "", "12 of 12 tensors"},                               /* L08 */
        {same_twice, GRAFT_E_DUPLICATE_TARGET, "", "blk.0.attn_q.weight has"},                     /* L09 */
        {unknown_module, GRAFT_E_UNKNOWN_TARGET, "w_proj", "self_attn.q_proj"},
        {whole_base_weight, GRAFT_E_BASE_WEIGHTS_INCLUDED, "base_layer", ""},                      /* L25 */
        {magnitudes, GRAFT_E_UNSUPPORTED_ADAPTER, "lora_magnitude_vector", "DoRA"},                /* L20 */
        {stray, GRAFT_E_UNEXPECTED_TENSOR, "notes", ""},
        {vector, GRAFT_E_BAD_RANK, TEST_Q(0, "A"), "1 dimensions"},                                /* S17 */
        {cube, GRAFT_E_BAD_RANK, TEST_Q(0, "B"), "3 dimensions, [40, 4, 1]"},                      /* S17 */
        {rank_too_large, GRAFT_E_BAD_RANK, TEST_Q(0, "A"), "rank 1025, allowed are 1 to 1024"},    /* L16 */
        {pattern_for_nothing, GRAFT_E_PATTERN_UNUSED, "alpha_pattern", "v_proj"},                  /* C08 */
        {layers_without_tensors, GRAFT_E_PATTERN_UNUSED, "layers_to_transform", "layer 1"},        /* C15 */
        {tensors_outside_the_layers, GRAFT_E_UNEXPECTED_TENSOR, TEST_Q(0, "A"), "layer 0 is not among"}, /* C15 */
        {listed_layer_that_is_not, GRAFT_E_UNKNOWN_TARGET, "layers_to_transform", "layer 2"},      /* C15 */
    };
    gr_base_model *base = test_base_make("llama");
    uint64_t blocks = gr_memory_blocks();
    int fds = test_open_fds();
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        test_adapter *a = test_adapter_make(GR_DTYPE_F32);
        cases[i].spoil(a);
        opened o;
        verify(&o, base, a);
        if (o.rc != cases[i].code) {
            fail_msg("case %zu: wanted %s, got %s: %s", i, graft_error_name(cases[i].code), graft_error_name(o.rc),
                     o.rc ? o.err.message : "");
        }
        expect_reason(&o, cases[i].code, cases[i].where, cases[i].words);
        done(&o);
        free(a);
    }
    assert_int_equal(gr_memory_blocks(), blocks);
    assert_int_equal(test_open_fds(), fds);
    test_base_free(base);
}

static void all_reasons_are_told(void **state) {
    (void)state;
    gr_base_model *base = test_base_make("llama");
    test_adapter *a = test_adapter_make(GR_DTYPE_F32);
    one_half_is_missing(a);
    wrong_output(a);
    transposed(a);
    layer_that_is_not(a);
    test_config_add(a, ",\"use_dora\":true,\"alpha_pattern\":{\"v_proj\":4}");
    opened o;
    verify(&o, base, a);
    assert_int_equal(o.report.n_errors, 6); /* the two halves of layer 40 count twice */
    expect_reason(&o, GRAFT_E_UNSUPPORTED_ADAPTER, "use_dora", "");
    expect_reason(&o, GRAFT_E_MISSING_PAIR, TEST_Q(0, "A"), "");
    expect_reason(&o, GRAFT_E_WRONG_SHAPE, TEST_K(0, "B"), "");
    expect_reason(&o, GRAFT_E_WRONG_SHAPE, TEST_DOWN(0, "A"), "transposed");
    expect_reason(&o, GRAFT_E_UNKNOWN_TARGET, TEST_Q(40, "B"), "");
    /* unused patterns only follow from tensors that were not understood */
    assert_null(find_reason(&o, GRAFT_E_PATTERN_UNUSED, "", ""));
    assert_non_null(strstr(o.err.message, "(and 5 more)"));
    done(&o);
    free(a);
    test_base_free(base);
}

static void other_models_names_make_one_reason(void **state) {
    (void)state;
    gr_base_model *base = test_base_make("llama");
    test_adapter *a = test_adapter_make(GR_DTYPE_F32);
    all_foreign(a);
    opened o;
    verify(&o, base, a);
    assert_int_equal(o.report.n_errors, 1);
    assert_non_null(strstr(o.err.message, "model.layers.0.mlp.down_proj.lora_A.weight"));
    assert_non_null(strstr(o.err.message, "…"));
    done(&o);
    free(a);
    test_base_free(base);
}

static void a_model_without_a_table(void **state) {
    (void)state;
    gr_base_model *base = test_base_make("llama");
    snprintf(base->architecture, sizeof base->architecture, "strange");
    base->arch = NULL;
    test_adapter *a = test_adapter_make(GR_DTYPE_F32);
    opened o;
    verify(&o, base, a);
    assert_int_equal(o.rc, GRAFT_E_UNSUPPORTED_MODEL);
    assert_non_null(strstr(o.err.message, "\"strange\""));
    assert_non_null(strstr(o.err.message, "qwen3"));
    done(&o);
    free(a);
    test_base_free(base);
}

/* A base whose head count does not divide its rows: the row order cannot be known. */
static void heads_that_do_not_divide(void **state) {
    (void)state;
    gr_base_model *base = test_base_make("llama");
    base->n_head_kv = 3;
    test_adapter *a = test_adapter_make(GR_DTYPE_F32);
    opened o;
    verify(&o, base, a);
    assert_int_equal(o.rc, GRAFT_E_UNSUPPORTED_TARGET);
    expect_reason(&o, GRAFT_E_UNSUPPORTED_TARGET, TEST_K(0, "B"), "3 heads");
    done(&o);
    free(a);
    test_base_free(base);
}

/* ---- GGUF ----------------------------------------------------------------------------------------------- */

static void gguf_faults(void **state) {
    (void)state;
    gr_base_model *base = test_base_make("llama");
    opened o;
    test_adapter *a = test_gguf_make(GR_DTYPE_F32);
    verify_gguf(&o, base, a, "qwen2", 8, false); /* G08 */
    assert_int_equal(o.rc, GRAFT_E_WRONG_BASE);
    assert_non_null(strstr(o.err.message, "qwen2"));
    done(&o);
    verify_gguf(&o, base, a, "llama", 8, true);
    assert_int_equal(o.rc, GRAFT_E_UNSUPPORTED_ADAPTER);
    expect_reason(&o, GRAFT_E_UNSUPPORTED_ADAPTER, "alora", "");
    done(&o);
    free(a);

    const struct {
        const char *from, *to;
        int code;
        const char *words;
    } names[] = {
        {"blk.0.attn_q.weight.lora_a", "blk.9.attn_q.weight.lora_a", GRAFT_E_UNKNOWN_TARGET, "layers 0 to 1"},
        {"blk.0.attn_q.weight.lora_a", "blk.0.ffn_gate_inp.weight.lora_a", GRAFT_E_UNKNOWN_TARGET, "no blk.0.ffn_gate_inp"},
        {"blk.0.attn_q.weight.lora_a", "blk.0.attn_norm.weight.lora_a", GRAFT_E_UNSUPPORTED_TARGET, "norms"},
        {"blk.0.attn_q.weight.lora_a", "token_embd.weight.lora_a", GRAFT_E_UNSUPPORTED_TARGET, "embeddings"},
        {"blk.0.attn_q.weight.lora_a", "blk.0.attn_q.weight", GRAFT_E_UNEXPECTED_TENSOR, ""},
        {"blk.0.attn_q.weight.lora_a", "enc.0.attn_q.weight.lora_a", GRAFT_E_UNMAPPED_TENSORS, "1 of 4"},
    };
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        a = test_gguf_make(GR_DTYPE_F32);
        test_rename(a, names[i].from, names[i].to);
        verify_gguf(&o, base, a, "llama", 8, false);
        expect_reason(&o, names[i].code, "", names[i].words);
        done(&o);
        free(a);
    }

    a = test_gguf_make(GR_DTYPE_F32);
    test_tensor *t = test_find(a, "blk.0.attn_q.weight.lora_b");
    t->n_dims = 3;
    t->shape[0] = 2;
    t->shape[1] = TEST_EMBD;
    t->shape[2] = 4;
    verify_gguf(&o, base, a, "llama", 8, false); /* G21 */
    assert_int_equal(o.rc, GRAFT_E_WRONG_SHAPE);
    expect_reason(&o, GRAFT_E_WRONG_SHAPE, "lora_b", "3 dimensions");
    done(&o);
    free(a);

    a = test_gguf_make(GR_DTYPE_F32);
    test_find(a, "blk.0.attn_q.weight.lora_b")->shape[1] = 2;
    verify_gguf(&o, base, a, "llama", 8, false);
    assert_int_equal(o.rc, GRAFT_E_RANK_MISMATCH);
    done(&o);
    free(a);
    test_base_free(base);
}

/* A weight that the base has, as a matrix, but that the architecture's table does not know. */
static void gguf_weights_outside_the_table(void **state) {
    (void)state;
    gr_base_model *base = test_base_make("llama");
    test_base_add(base, 0, "ffn_gate_inp.weight", TEST_EMBD, 8);
    qsort(base->weights, base->n_weights, sizeof *base->weights, test_weight_order);
    test_adapter *a = test_gguf_make(GR_DTYPE_F32);
    test_add(a, "blk.0.ffn_gate_inp.weight.lora_a", GR_DTYPE_F32, 4, TEST_EMBD);
    test_add(a, "blk.0.ffn_gate_inp.weight.lora_b", GR_DTYPE_F32, 8, 4);
    opened o;
    verify_gguf(&o, base, a, "llama", 8, false);
    assert_int_equal(o.rc, GRAFT_E_UNSUPPORTED_TARGET);
    done(&o);
    free(a);
    test_base_free(base);
}

/* ---- memory --------------------------------------------------------------------------------------------- */

typedef struct attempt {
    const gr_base_model *base;
    const char *path;
} attempt;

static int verify_once(void *data, graft_error *err) {
    const attempt *t = data;
    gr_source *source = NULL;
    gr_plan *plan = NULL;
    gr_report report;
    gr_report_init(&report);
    int rc = gr_source_open(&source, t->path, (gr_source_limits){(uint64_t)1 << 30, NULL}, &report, err);
    if (!rc) {
        rc = gr_verify(&plan, t->base, source, &report, err);
    }
    gr_plan_free(plan);
    gr_source_close(source);
    gr_report_finish(&report);
    return rc;
}

static void every_allocation_may_fail(void **state) {
    (void)state;
    gr_base_model *base = test_base_make("llama");
    test_dir d = test_dir_make();
    test_adapter *a = test_adapter_make(GR_DTYPE_F32);
    test_config_add(a, ",\"alpha_pattern\":{\"q_proj\":4},\"layers_to_transform\":[0,1]");
    test_write_peft(a, &d);
    attempt t = {base, d.path};
    torture("verify", verify_once, &t);
    free(a);
    test_dir_remove(&d);
    test_base_free(base);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_plan_says_what_will_happen),
        cmocka_unit_test(patterns_give_each_module_its_scale),
        cmocka_unit_test(a_gguf_adapter_is_not_permuted_again),
        cmocka_unit_test(a_gguf_adapter_of_rank_1),
        cmocka_unit_test(fan_in_fan_out_is_for_conv1d),
        cmocka_unit_test(each_fault_has_its_code_and_words),
        cmocka_unit_test(all_reasons_are_told),
        cmocka_unit_test(other_models_names_make_one_reason),
        cmocka_unit_test(a_model_without_a_table),
        cmocka_unit_test(heads_that_do_not_divide),
        cmocka_unit_test(gguf_faults),
        cmocka_unit_test(gguf_weights_outside_the_table),
        cmocka_unit_test(every_allocation_may_fail),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
