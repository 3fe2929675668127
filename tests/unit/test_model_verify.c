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

/* A llama with norms, and biases on q and k. */
static gr_base_model *rich_base(void) {
    gr_base_model *base = test_base_make("llama");
    for (int layer = 0; layer < TEST_LAYERS; layer++) {
        test_base_vector(base, layer, "attn_norm.weight", TEST_EMBD);
        test_base_vector(base, layer, "ffn_norm.weight", TEST_EMBD);
        test_base_vector(base, layer, "attn_q.bias", TEST_EMBD);
        test_base_vector(base, layer, "attn_k.bias", TEST_KV);
    }
    test_base_vector(base, -1, "output_norm.weight", TEST_EMBD);
    test_base_sort(base);
    return base;
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

#define LAYER0 "base_model.model.model.layers.0."
#define EMBED "base_model.model.model.embed_tokens."

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
    test_add_vector(a, LAYER0 "self_attn.q_proj.lora_magnitude_vector", GR_DTYPE_F32, TEST_EMBD);
}
static void magnitudes_alone(test_adapter *a) {
    magnitudes(a);
    test_config_add(a, ",\"use_dora\":true");
    test_drop(a, TEST_Q(0, "A"));
    test_drop(a, TEST_Q(0, "B"));
}
static void no_magnitudes(test_adapter *a) {
    test_config_add(a, ",\"use_dora\":true");
}
static void short_magnitudes(test_adapter *a) {
    magnitudes(a);
    test_find(a, LAYER0 "self_attn.q_proj.lora_magnitude_vector")->shape[0]--;
    test_config_add(a, ",\"use_dora\":true");
}
static void matrix_of_magnitudes(test_adapter *a) {
    magnitudes(a);
    test_find(a, LAYER0 "self_attn.q_proj.lora_magnitude_vector")->n_dims = 2;
    test_config_add(a, ",\"use_dora\":true");
}
static void bias_of_b(test_adapter *a) {
    test_add_vector(a, LAYER0 "self_attn.q_proj.lora_B.bias", GR_DTYPE_F32, TEST_EMBD);
}
static void no_bias_of_b(test_adapter *a) {
    bias_of_b(a);
    test_config_add(a, ",\"lora_bias\":true");
}
static void trained_bias(test_adapter *a) {
    test_add_vector(a, LAYER0 "self_attn.k_proj.base_layer.bias", GR_DTYPE_F32, TEST_KV);
}
static void short_bias(test_adapter *a) {
    test_add_vector(a, LAYER0 "self_attn.k_proj.base_layer.bias", GR_DTYPE_F32, TEST_KV + 1);
    test_config_add(a, ",\"bias\":\"all\"");
}
static void bias_that_is_not(test_adapter *a) {
    test_add_vector(a, LAYER0 "mlp.up_proj.bias", GR_DTYPE_F32, TEST_FF);
    test_config_add(a, ",\"bias\":\"all\"");
}
static void saved_norm(test_adapter *a) {
    test_add_vector(a, LAYER0 "input_layernorm.weight", GR_DTYPE_F32, TEST_EMBD);
}
static void long_norm(test_adapter *a) {
    test_add_vector(a, LAYER0 "input_layernorm.weight", GR_DTYPE_F32, TEST_EMBD + 1);
    test_config_add(a, ",\"modules_to_save\":[\"input_layernorm\"]");
}
static void nothing_saved(test_adapter *a) {
    test_config_add(a, ",\"modules_to_save\":[\"lm_head\"]");
}
static void saved_head_of_more(test_adapter *a) {
    test_add(a, "base_model.model.lm_head.weight", GR_DTYPE_F32, TEST_VOCAB + 3, TEST_EMBD);
    test_config_add(a, ",\"modules_to_save\":[\"lm_head\"]");
}
static void saved_head_of_less(test_adapter *a) {
    test_add(a, "base_model.model.lm_head.weight", GR_DTYPE_F32, TEST_VOCAB - 1, TEST_EMBD);
    test_config_add(a, ",\"modules_to_save\":[\"lm_head\"]");
}
static void narrow_head(test_adapter *a) {
    test_add(a, "base_model.model.lm_head.weight", GR_DTYPE_F32, TEST_VOCAB, TEST_EMBD - 1);
    test_config_add(a, ",\"modules_to_save\":[\"lm_head\"]");
}
static void saved_embedding(test_adapter *a) {
    test_add(a, "base_model.model.model.embed_tokens.weight", GR_DTYPE_F32, TEST_VOCAB, TEST_EMBD);
}
static void grown_embedding(test_adapter *a) {
    test_add(a, "base_model.model.model.embed_tokens.weight", GR_DTYPE_F32, TEST_VOCAB + 8, TEST_EMBD);
}
static void copy_alone(test_adapter *a) {
    test_add(a, "base_model.model.model.embed_tokens.base_layer.weight", GR_DTYPE_F32, TEST_VOCAB, TEST_EMBD);
}
static void grown_copy(test_adapter *a) {
    test_add(a, EMBED "lora_embedding_A", GR_DTYPE_F32, 4, TEST_VOCAB);
    test_add(a, EMBED "lora_embedding_B", GR_DTYPE_F32, TEST_EMBD, 4);
    test_add(a, EMBED "base_layer.weight", GR_DTYPE_F32, TEST_VOCAB + 1, TEST_EMBD);
}
static void grown_embedding_pair(test_adapter *a) {
    test_add(a, EMBED "lora_embedding_A", GR_DTYPE_F32, 4, TEST_VOCAB + 5);
    test_add(a, EMBED "lora_embedding_B", GR_DTYPE_F32, TEST_EMBD, 4);
}
static void half_an_embedding(test_adapter *a) {
    test_add(a, EMBED "lora_embedding_B", GR_DTYPE_F32, TEST_EMBD, 4);
}
static void grown_head_pair(test_adapter *a) {
    test_add(a, "base_model.model.lm_head.lora_A.weight", GR_DTYPE_F32, 4, TEST_EMBD);
    test_add(a, "base_model.model.lm_head.lora_B.weight", GR_DTYPE_F32, TEST_VOCAB + 5, 4);
}
static void head_twice(test_adapter *a) {
    head(a);
    test_add(a, "base_model.model.lm_head.weight", GR_DTYPE_F32, TEST_VOCAB, TEST_EMBD);
    test_config_add(a, ",\"modules_to_save\":[\"lm_head\"]");
}
static void token_rows(test_adapter *a, int n) {
    test_add(a, EMBED "token_adapter.trainable_tokens_delta", GR_DTYPE_F32, (uint64_t)n, TEST_EMBD);
}
static void tokens_unlisted(test_adapter *a) {
    token_rows(a, 2);
}
static void tokens_missing(test_adapter *a) {
    test_config_add(a, ",\"trainable_token_indices\":[1,2]");
}
static void tokens_of_another(test_adapter *a) {
    token_rows(a, 2);
    test_config_add(a, ",\"trainable_token_indices\":{\"lm_head\":[1,2]}");
}
static void tokens_too_few(test_adapter *a) {
    token_rows(a, 2);
    test_config_add(a, ",\"trainable_token_indices\":[1,2,3]");
}
static void tokens_beyond(test_adapter *a) {
    token_rows(a, 2);
    test_config_add(a, ",\"trainable_token_indices\":[1,100]");
}
static void tokens_and_pair(test_adapter *a) {
    token_rows(a, 1);
    grown_embedding_pair(a);
    test_find(a, EMBED "lora_embedding_A")->shape[1] = TEST_VOCAB;
    test_config_add(a, ",\"trainable_token_indices\":[1]");
}
static void invocation_beyond(test_adapter *a) {
    test_config_add(a, ",\"alora_invocation_tokens\":[1,100]");
}
static void invocation_of_more(test_adapter *a) {
    saved_norm(a);
    test_config_add(a, ",\"alora_invocation_tokens\":[1],\"modules_to_save\":[\"input_layernorm\"]");
}
static void fused_and_split(test_adapter *a) {
    test_add(a, LAYER0 "self_attn.qkv_proj.lora_A.weight", GR_DTYPE_F32, 4, TEST_EMBD);
    test_add(a, LAYER0 "self_attn.qkv_proj.lora_B.weight", GR_DTYPE_F32, TEST_EMBD + 2 * TEST_KV, 4);
}
static void fused_of_another_size(test_adapter *a) {
    test_drop(a, TEST_Q(0, "A"));
    test_drop(a, TEST_Q(0, "B"));
    test_drop(a, TEST_K(0, "A"));
    test_drop(a, TEST_K(0, "B"));
    fused_and_split(a);
    test_find(a, LAYER0 "self_attn.qkv_proj.lora_B.weight")->shape[0] = 3 * TEST_EMBD;
}
static void another_path(test_adapter *a) {
    test_rename(a, TEST_Q(0, "B"), "base_model.model.language_model.model.layers.0.self_attn.q_proj.lora_B.weight");
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
        {some_foreign, GRAFT_E_UNMAPPED_TENSORS, "", "7 of 19 tensors belong to no weight"},       /* L08 */
        {all_foreign, GRAFT_E_ZERO_TARGETS, "", "12 of 12 tensors"},                               /* L08 */
        {same_twice, GRAFT_E_DUPLICATE_TARGET, "", "blk.0.attn_q.weight has"},                     /* L09 */
        {unknown_module, GRAFT_E_UNKNOWN_TARGET, "w_proj", "self_attn.q_proj"},
        {whole_base_weight, GRAFT_E_BASE_WEIGHTS_INCLUDED, "base_layer", ""},                      /* L25 */
        {magnitudes, GRAFT_E_UNEXPECTED_TENSOR, "lora_magnitude_vector", "no use_dora"},           /* C10 */
        {magnitudes_alone, GRAFT_E_MISSING_PAIR, "lora_magnitude_vector", "no LoRA matrices"},
        {no_magnitudes, GRAFT_E_MISSING_PAIR, TEST_Q(0, "A"), "use_dora is set"},                  /* C10 */
        {short_magnitudes, GRAFT_E_WRONG_SHAPE, "lora_magnitude_vector", "[40] needed"},
        {matrix_of_magnitudes, GRAFT_E_WRONG_SHAPE, "lora_magnitude_vector", "shape [40, 1]"},
        {bias_of_b, GRAFT_E_UNEXPECTED_TENSOR, "lora_B.bias", "no lora_bias"},                     /* C11 */
        {no_bias_of_b, GRAFT_E_MISSING_PAIR, TEST_K(0, "A"), "lora_bias is set"},                  /* C11 */
        {trained_bias, GRAFT_E_UNEXPECTED_TENSOR, "base_layer.bias", "bias"},                      /* C11 */
        {short_bias, GRAFT_E_WRONG_SHAPE, "base_layer.bias", "[20] needed"},
        {bias_that_is_not, GRAFT_E_UNKNOWN_TARGET, "up_proj.bias", "no blk.0.ffn_up.bias"},
        {saved_norm, GRAFT_E_UNEXPECTED_TENSOR, "input_layernorm", "modules_to_save"},             /* C12 */
        {long_norm, GRAFT_E_WRONG_SHAPE, "input_layernorm", "shape [41] does not fit blk.0.attn_norm.weight: [40]"},
        {nothing_saved, GRAFT_E_PATTERN_UNUSED, "modules_to_save", "\"lm_head\""},                 /* C12 */
        {saved_head_of_more, GRAFT_E_WRONG_SHAPE, "lm_head", "103 tokens, the base has 100: it adds 3 tokens"}, /* L21 */
        {saved_head_of_less, GRAFT_E_WRONG_SHAPE, "lm_head", "lacks 1 tokens"},
        {narrow_head, GRAFT_E_WRONG_SHAPE, "lm_head", "40 columns needed"},
        {saved_embedding, GRAFT_E_BASE_WEIGHTS_INCLUDED, "embed_tokens", "save_embedding_layers=False"}, /* L25 */
        {grown_embedding, GRAFT_E_WRONG_SHAPE, "embed_tokens", "adds 8 tokens"},                   /* L21 */
        {copy_alone, GRAFT_E_BASE_WEIGHTS_INCLUDED, "base_layer.weight", "save_embedding_layers=False"},
        {grown_copy, GRAFT_E_WRONG_SHAPE, "base_layer.weight", "adds 1 tokens"},
        {grown_embedding_pair, GRAFT_E_WRONG_SHAPE, "lora_embedding_A", "adds 5 tokens"},          /* L21 */
        {half_an_embedding, GRAFT_E_MISSING_PAIR, "lora_embedding_B", "no " EMBED "lora_embedding_A"},
        {grown_head_pair, GRAFT_E_WRONG_SHAPE, "lm_head.lora_B", "adds 5 tokens"},                 /* L21 */
        {head_twice, GRAFT_E_DUPLICATE_TARGET, "lm_head", "token_embd.weight is changed by"},
        {tokens_unlisted, GRAFT_E_UNEXPECTED_TENSOR, "trainable_tokens_delta", "trainable_token_indices"}, /* C13 */
        {tokens_missing, GRAFT_E_MISSING_PAIR, "trainable_token_indices", "the embedding"},        /* C13 */
        {tokens_of_another, GRAFT_E_UNEXPECTED_TENSOR, "trainable_tokens_delta", ""},
        {tokens_too_few, GRAFT_E_WRONG_SHAPE, "trainable_tokens_delta", "names 3 tokens"},
        {tokens_beyond, GRAFT_E_OUT_OF_RANGE, "trainable_token_indices", "token 100; the base has 100"},
        {tokens_and_pair, GRAFT_E_DUPLICATE_TARGET, "embed_tokens", "token_embd.weight is changed by"},
        {invocation_beyond, GRAFT_E_OUT_OF_RANGE, "alora_invocation_tokens", "token 100"},         /* C18 */
        {invocation_of_more, GRAFT_E_UNSUPPORTED_ADAPTER, "alora_invocation_tokens", "input_layernorm"},
        {fused_and_split, GRAFT_E_DUPLICATE_TARGET, "self_attn", "blk.0.attn_q.weight is changed by"},
        {fused_of_another_size, GRAFT_E_WRONG_SHAPE, "qkv_proj.lora_B", "80 rows needed"},         /* L10 */
        {another_path, GRAFT_E_DUPLICATE_TARGET, TEST_Q(0, "A"), "is language_model.model.layers.0.self_attn.q_proj already"},
        {stray, GRAFT_E_UNEXPECTED_TENSOR, "notes", ""},
        {vector, GRAFT_E_BAD_RANK, TEST_Q(0, "A"), "1 dimensions"},                                /* S17 */
        {cube, GRAFT_E_BAD_RANK, TEST_Q(0, "B"), "3 dimensions, [40, 4, 1]"},                      /* S17 */
        {rank_too_large, GRAFT_E_BAD_RANK, TEST_Q(0, "A"), "rank 1025, allowed are 1 to 1024"},    /* L16 */
        {pattern_for_nothing, GRAFT_E_PATTERN_UNUSED, "alpha_pattern", "v_proj"},                  /* C08 */
        {layers_without_tensors, GRAFT_E_PATTERN_UNUSED, "layers_to_transform", "layer 1"},        /* C15 */
        {tensors_outside_the_layers, GRAFT_E_UNEXPECTED_TENSOR, TEST_Q(0, "A"), "layer 0 is not among"}, /* C15 */
        {listed_layer_that_is_not, GRAFT_E_UNKNOWN_TARGET, "layers_to_transform", "layer 2"},      /* C15 */
    };
    gr_base_model *base = rich_base();
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
    test_config_add(a, ",\"use_qalora\":true,\"alpha_pattern\":{\"v_proj\":4}");
    opened o;
    verify(&o, base, a);
    assert_int_equal(o.report.n_errors, 6); /* the two halves of layer 40 count twice */
    expect_reason(&o, GRAFT_E_UNSUPPORTED_ADAPTER, "use_qalora", "");
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
    assert_int_equal(o.rc, 0);
    assert_int_equal(o.plan->n_invocation, 2);
    assert_int_equal(o.plan->invocation[1], 2);
    done(&o);
    base->n_vocab = 2;
    verify_gguf(&o, base, a, "llama", 8, true);
    expect_reason(&o, GRAFT_E_OUT_OF_RANGE, "adapter.alora.invocation_tokens", "token 2");
    base->n_vocab = TEST_VOCAB;
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
        {"blk.0.attn_q.weight.lora_a", "token_embd.weight.lora_a", GRAFT_E_MISSING_PAIR, "token_embd.weight.lora_b"},
        {"blk.0.attn_q.weight.lora_a", "output.weight.lora_a", GRAFT_E_UNKNOWN_TARGET, "no output.weight"},
        {"blk.0.attn_q.weight.lora_a", "blk.0.attn_qkv.weight.lora_a", GRAFT_E_UNKNOWN_TARGET, "no blk.0.attn_qkv"},
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

/* ---- every kind ----------------------------------------------------------------------------------------- */

static const gr_plan_entry *entry_of(const opened *o, const char *weight, gr_op op) {
    for (size_t i = 0; i < o->plan->n; i++) {
        const gr_plan_entry *e = &o->plan->entries[i];
        if (e->op == op && strcmp(o->plan->base->weights[e->weight].name, weight) == 0) {
            return e;
        }
    }
    fail_msg("nothing for %s", weight);
    return NULL;
}

static void expect_plan(opened *o, const gr_base_model *base, const test_adapter *a, size_t n) {
    verify(o, base, a);
    if (o->rc) {
        fail_msg("%s", o->err.message);
    }
    assert_int_equal(o->plan->n, n);
    for (size_t i = 0; i < n; i++) {
        const gr_plan_entry *e = &o->plan->entries[i];
        const gr_weight *w = &base->weights[e->weight];
        assert_true(e->first >= 0 && e->n_rows > 0);
        assert_true(e->op == GR_OP_ROWS ? e->n_rows == w->n_in && e->first == 0 : e->first + e->n_rows <= w->n_out);
        assert_non_null(e->module);
    }
}

static test_adapter *empty_adapter(const char *options) {
    test_adapter *a = calloc(1, sizeof *a);
    snprintf(a->config, sizeof a->config, "{\"peft_type\":\"LORA\",\"r\":4,\"lora_alpha\":8%s}", options);
    return a;
}

static void add_pair(test_adapter *a, const char *path, uint64_t n_in, uint64_t n_out) {
    char name[256];
    snprintf(name, sizeof name, "base_model.model.%s.lora_A.weight", path);
    test_add(a, name, GR_DTYPE_F32, 4, n_in);
    snprintf(name, sizeof name, "base_model.model.%s.lora_B.weight", path);
    test_add(a, name, GR_DTYPE_F32, n_out, 4);
}

static void dora_and_biases(void **state) {
    (void)state;
    gr_base_model *base = rich_base();
    opened o;
    test_adapter *a = empty_adapter(",\"use_dora\":true,\"bias\":\"lora_only\"");
    add_pair(a, "model.layers.0.self_attn.k_proj", TEST_EMBD, TEST_KV);
    test_add_vector(a, LAYER0 "self_attn.k_proj.lora_magnitude_vector", GR_DTYPE_F32, TEST_KV);
    test_add_vector(a, LAYER0 "self_attn.k_proj.base_layer.bias", GR_DTYPE_F32, TEST_KV);
    expect_plan(&o, base, a, 2);
    const gr_plan_entry *e = entry_of(&o, "blk.0.attn_k.weight", GR_OP_PRODUCT);
    assert_string_equal(e->magnitude->name, LAYER0 "self_attn.k_proj.lora_magnitude_vector");
    assert_null(e->bias);
    assert_string_equal(gr_plan_entry_kind(o.plan, e), "DoRA");
    e = entry_of(&o, "blk.0.attn_k.bias", GR_OP_ADD);
    assert_int_equal(e->kind, GR_BIAS);
    assert_int_equal(e->rows.order, GR_ROWS_ROPE_K); /* as the rows of its weight */
    assert_int_equal(e->rows.heads, TEST_HEADS_KV);
    assert_string_equal(gr_plan_entry_kind(o.plan, e), "bias");
    done(&o);
    free(a);

    a = empty_adapter(",\"lora_bias\":true,\"bias\":\"all\"");
    add_pair(a, "model.layers.0.self_attn.q_proj", TEST_EMBD, TEST_EMBD);
    test_add_vector(a, LAYER0 "self_attn.q_proj.lora_B.bias", GR_DTYPE_F32, TEST_EMBD);
    test_add_vector(a, "base_model.model.model.layers.1.self_attn.q_proj.bias", GR_DTYPE_F32, TEST_EMBD);
    expect_plan(&o, base, a, 2);
    e = entry_of(&o, "blk.0.attn_q.weight", GR_OP_PRODUCT);
    assert_string_equal(e->bias->name, LAYER0 "self_attn.q_proj.lora_B.bias");
    assert_string_equal(gr_plan_entry_kind(o.plan, e), "LoRA + bias");
    entry_of(&o, "blk.1.attn_q.bias", GR_OP_ADD);
    done(&o);
    free(a);
    test_base_free(base);
}

static void add_embedding(test_adapter *a) {
    test_add(a, EMBED "lora_embedding_A", GR_DTYPE_F32, 4, TEST_VOCAB);
    test_add(a, EMBED "lora_embedding_B", GR_DTYPE_F32, TEST_EMBD, 4);
}

/* A tied base has one weight for both, with two operations; another a weight for each. */
static void embeddings_and_heads(void **state) {
    (void)state;
    for (int tied = 0; tied < 2; tied++) {
        gr_base_model *base = rich_base();
        if (!tied) {
            test_base_add(base, -1, "output.weight", TEST_EMBD, TEST_VOCAB);
            test_base_sort(base);
        }
        const char *head = tied ? "token_embd.weight" : "output.weight";
        opened o;
        test_adapter *a = empty_adapter("");
        add_embedding(a);
        add_pair(a, "lm_head", TEST_EMBD, TEST_VOCAB);
        test_add(a, EMBED "base_layer.weight", GR_DTYPE_F32, TEST_VOCAB, TEST_EMBD);
        expect_plan(&o, base, a, 2);
        const gr_plan_entry *e = entry_of(&o, "token_embd.weight", GR_OP_ROWS);
        assert_int_equal(e->kind, GR_LOW_RANK);
        assert_string_equal(e->a->name, EMBED "lora_embedding_A");
        assert_string_equal(gr_plan_entry_kind(o.plan, e), "embedding LoRA");
        assert_string_equal(gr_plan_entry_kind(o.plan, entry_of(&o, head, GR_OP_PRODUCT)), "head LoRA");
        assert_int_equal(o.report.n, 1); /* the copy is told */
        assert_int_equal(o.report.reasons[0].severity, GRAFT_LOG_WARN);
        assert_int_equal(o.report.reasons[0].error.code, GRAFT_E_BASE_WEIGHTS_INCLUDED);
        done(&o);
        free(a);

        a = empty_adapter(",\"modules_to_save\":[\"lm_head\",\"embed_tokens\"]");
        test_add(a, "base_model.model.lm_head.weight", GR_DTYPE_F32, TEST_VOCAB, TEST_EMBD);
        test_add(a, EMBED "weight", GR_DTYPE_F32, TEST_VOCAB, TEST_EMBD);
        test_add(a, EMBED "modules_to_save.weight", GR_DTYPE_F32, TEST_VOCAB, TEST_EMBD); /* with save_embedding_layers */
        test_add(a, EMBED "original_module.weight", GR_DTYPE_F32, TEST_VOCAB, TEST_EMBD);
        expect_plan(&o, base, a, 2);
        e = entry_of(&o, "token_embd.weight", GR_OP_ROWS);
        assert_int_equal(e->kind, GR_WHOLE);
        assert_string_equal(e->value->name, EMBED "weight");
        assert_string_equal(gr_plan_entry_kind(o.plan, e), "embedding");
        assert_string_equal(gr_plan_entry_kind(o.plan, entry_of(&o, head, GR_OP_PRODUCT)), "head");
        assert_int_equal(o.report.n, 2);
        assert_int_equal(o.plan->rank_max, 0);
        done(&o);
        free(a);

        a = empty_adapter(",\"modules_to_save\":[\"embed_tokens\"],\"ensure_weight_tying\":true");
        test_add(a, "base_model.model.lm_head.weight", GR_DTYPE_F32, TEST_VOCAB, TEST_EMBD);
        test_add(a, EMBED "modules_to_save.default.weight", GR_DTYPE_F32, TEST_VOCAB, TEST_EMBD);
        expect_plan(&o, base, a, 2);
        done(&o);
        free(a);
        test_base_free(base);
    }
}

static void tokens(void **state) {
    (void)state;
    static const struct { const char *option; bool head_tensor; size_t tied, untied; } cases[] = {
        {"[7,3]", false, 2, 1},
        {"{\"embed_tokens\":[7,3]}", false, 2, 1},
        {"{\"model.embed_tokens\":[7,3]}", false, 2, 1},
        {"{\"embed_tokens\":[7,3],\"lm_head\":[7,3]}", false, 2, 0},
        {"{\"embed_tokens\":[7,3],\"lm_head\":[1,2]}", true, 2, 2},
        {"{\"embed_tokens\":[7,3],\"lm_head\":[7,3]}", true, 0, 2},
    };
    for (size_t i = 0; i < 2 * sizeof cases / sizeof *cases; i++) {
        bool tied = i % 2;
        size_t n = tied ? cases[i / 2].tied : cases[i / 2].untied;
        gr_base_model *base = rich_base();
        if (!tied) {
            test_base_add(base, -1, "output.weight", TEST_EMBD, TEST_VOCAB);
            test_base_sort(base);
        }
        char option[128];
        snprintf(option, sizeof option, ",\"trainable_token_indices\":%s", cases[i / 2].option);
        test_adapter *a = empty_adapter(option);
        token_rows(a, 2);
        if (cases[i / 2].head_tensor) {
            test_add(a, "base_model.model.lm_head.token_adapter.trainable_tokens_delta", GR_DTYPE_F32, 2, TEST_EMBD);
        }
        opened o;
        if (n == 0) { /* the head's are missing, or there twice */
            verify(&o, base, a);
            assert_int_equal(o.rc, tied ? GRAFT_E_DUPLICATE_TARGET : GRAFT_E_MISSING_PAIR);
        } else {
            expect_plan(&o, base, a, n);
            const gr_plan_entry *e = entry_of(&o, "token_embd.weight", GR_OP_ROWS);
            assert_int_equal(e->kind, GR_TOKENS);
            assert_int_equal(e->n_tokens, 2);
            assert_int_equal(e->tokens[0], 7);
            assert_string_equal(gr_plan_entry_kind(o.plan, e), "embedding tokens");
            if (n == 2) {
                e = entry_of(&o, tied ? "token_embd.weight" : "output.weight", GR_OP_PRODUCT);
                assert_int_equal(e->tokens[0], strstr(option, "[1,2]") ? 1 : 7);
                assert_int_equal(e->n_rows, TEST_VOCAB);
                assert_string_equal(gr_plan_entry_kind(o.plan, e), "head tokens");
            }
        }
        done(&o);
        free(a);
        test_base_free(base);
    }
}

static void norms(void **state) {
    (void)state;
    static const char *const archs[] = {"llama", "gemma"};
    for (int i = 0; i < 2; i++) {
        gr_base_model *base = rich_base();
        base->arch = gr_arch_find(archs[i]);
        test_adapter *a = empty_adapter(",\"modules_to_save\":[\"norm\"]"); /* the end of all of them */
        test_add_vector(a, LAYER0 "input_layernorm.weight", GR_DTYPE_F32, TEST_EMBD);
        test_add_vector(a, LAYER0 "post_attention_layernorm.weight", GR_DTYPE_F32, TEST_EMBD);
        test_add_vector(a, "base_model.model.model.norm.weight", GR_DTYPE_F32, TEST_EMBD);
        opened o;
        expect_plan(&o, base, a, 3);
        const gr_plan_entry *e = entry_of(&o, "output_norm.weight", GR_OP_MUL);
        assert_int_equal(e->kind, GR_NORM);
        assert_true(e->added == (float)i);
        assert_string_equal(gr_plan_entry_kind(o.plan, e), "norm");
        entry_of(&o, "blk.0.attn_norm.weight", GR_OP_MUL);
        entry_of(&o, "blk.0.ffn_norm.weight", GR_OP_MUL);
        done(&o);
        free(a);
        test_base_free(base);
    }
}

/* q, k and v of their own on a base that has them fused, and the reverse. */
static void fused_and_split_modules(void **state) {
    (void)state;
    gr_base_model *base = calloc(1, sizeof *base);
    *base = (gr_base_model){.n_layer = 1, .n_head = TEST_HEADS, .n_head_kv = TEST_HEADS_KV, .n_vocab = TEST_VOCAB,
                            .architecture = "phi3", .arch = gr_arch_find("phi3"), .weights = calloc(8, sizeof(gr_weight))};
    test_base_add(base, 0, "attn_qkv.weight", TEST_EMBD, TEST_EMBD + 2 * TEST_KV);
    test_base_add(base, 0, "ffn_up.weight", TEST_EMBD, 2 * TEST_FF);
    test_base_sort(base);
    test_adapter *a = empty_adapter("");
    add_pair(a, "model.layers.0.self_attn.q_proj", TEST_EMBD, TEST_EMBD);
    add_pair(a, "model.layers.0.self_attn.k_proj", TEST_EMBD, TEST_KV);
    add_pair(a, "model.layers.0.self_attn.v_proj", TEST_EMBD, TEST_KV);
    add_pair(a, "model.layers.0.mlp.up_proj", TEST_EMBD, TEST_FF);
    add_pair(a, "model.layers.0.mlp.gate_proj", TEST_EMBD, TEST_FF);
    opened o;
    expect_plan(&o, base, a, 5);
    const struct { const char *module; int64_t first, n; } wanted[] = {{"self_attn.q_proj", 0, TEST_EMBD},
                                                                      {"self_attn.k_proj", TEST_EMBD, TEST_KV},
                                                                      {"self_attn.v_proj", TEST_EMBD + TEST_KV, TEST_KV},
                                                                      {"mlp.gate_proj", 0, TEST_FF},
                                                                      {"mlp.up_proj", TEST_FF, TEST_FF}};
    for (int i = 0; i < 5; i++) {
        const gr_plan_entry *e = &o.plan->entries[i];
        assert_non_null(strstr(e->module, wanted[i].module));
        assert_int_equal(e->first, wanted[i].first);
        assert_int_equal(e->n_rows, wanted[i].n);
        assert_int_equal(e->first_in_file, 0);
        assert_int_equal(e->rows.order, GR_ROWS_AS_IS);
    }
    done(&o);
    base->n_head = 7; /* 11 heads do not divide 80 rows */
    verify(&o, base, a);
    expect_reason(&o, GRAFT_E_UNSUPPORTED_TARGET, "q_proj.lora_B", "11 heads");
    done(&o);
    free(a);
    test_base_free(base);

    base = test_base_make("llama");
    a = empty_adapter(",\"use_dora\":true");
    add_pair(a, "model.layers.0.self_attn.qkv_proj", TEST_EMBD, TEST_EMBD + 2 * TEST_KV);
    add_pair(a, "model.layers.0.mlp.gate_up_proj", TEST_EMBD, 2 * TEST_FF);
    test_add_vector(a, LAYER0 "self_attn.qkv_proj.lora_magnitude_vector", GR_DTYPE_F32, TEST_EMBD + 2 * TEST_KV);
    test_add_vector(a, LAYER0 "mlp.gate_up_proj.lora_magnitude_vector", GR_DTYPE_F32, 2 * TEST_FF);
    expect_plan(&o, base, a, 5);
    const struct { const char *weight; int64_t first_in_file, n; gr_row_order order; } parts[] = {
        {"blk.0.attn_q.weight", 0, TEST_EMBD, GR_ROWS_ROPE_Q},
        {"blk.0.attn_k.weight", TEST_EMBD, TEST_KV, GR_ROWS_ROPE_K},
        {"blk.0.attn_v.weight", TEST_EMBD + TEST_KV, TEST_KV, GR_ROWS_AS_IS},
        {"blk.0.ffn_gate.weight", 0, TEST_FF, GR_ROWS_AS_IS},
        {"blk.0.ffn_up.weight", TEST_FF, TEST_FF, GR_ROWS_AS_IS},
    };
    for (int i = 0; i < 5; i++) {
        const gr_plan_entry *e = entry_of(&o, parts[i].weight, GR_OP_PRODUCT);
        assert_int_equal(e->first_in_file, parts[i].first_in_file);
        assert_int_equal(e->first, 0);
        assert_int_equal(e->n_rows, parts[i].n);
        assert_int_equal(e->rows.order, parts[i].order);
        assert_non_null(e->magnitude);
    }
    done(&o);
    base->n_head_kv = 3;
    verify(&o, base, a);
    expect_reason(&o, GRAFT_E_UNSUPPORTED_TARGET, "qkv_proj.lora_B", "attn_k.weight cannot be divided among 3 heads");
    done(&o);
    free(a);
    test_base_free(base);
}

/* Any architecture's GGUF may have q, k and v fused; where rows were regrouped, nobody says how. */
static void a_base_that_was_fused(void **state) {
    (void)state;
    for (int i = 0; i < 2; i++) {
        gr_base_model *base = calloc(1, sizeof *base);
        *base = (gr_base_model){.n_layer = 1, .n_head = TEST_HEADS, .n_head_kv = TEST_HEADS_KV, .n_vocab = TEST_VOCAB,
                                .arch = gr_arch_find(i ? "llama" : "qwen2"), .weights = calloc(8, sizeof(gr_weight))};
        test_base_add(base, 0, "attn_qkv.weight", TEST_EMBD, TEST_EMBD + 2 * TEST_KV);
        test_adapter *a = empty_adapter("");
        add_pair(a, "model.layers.0.self_attn.k_proj", TEST_EMBD, TEST_KV);
        opened o;
        if (i == 0) {
            expect_plan(&o, base, a, 1);
            assert_int_equal(o.plan->entries[0].first, TEST_EMBD);
        } else {
            verify(&o, base, a);
            expect_reason(&o, GRAFT_E_UNKNOWN_TARGET, "k_proj.lora_B", "no blk.0.attn_k.weight");
        }
        done(&o);
        free(a);
        test_base_free(base);
    }
}

static void gptneox(void **state) {
    (void)state;
    gr_base_model *base = calloc(1, sizeof *base);
    *base = (gr_base_model){.n_layer = 1, .n_head = TEST_HEADS, .n_head_kv = TEST_HEADS, .n_vocab = TEST_VOCAB,
                            .arch = gr_arch_find("gptneox"), .weights = calloc(8, sizeof(gr_weight))};
    test_base_vector(base, 0, "attn_qkv.bias", 3 * TEST_EMBD);
    test_base_add(base, 0, "attn_qkv.weight", TEST_EMBD, 3 * TEST_EMBD);
    test_adapter *a = empty_adapter(",\"bias\":\"all\"");
    add_pair(a, "gpt_neox.layers.0.attention.query_key_value", TEST_EMBD, 3 * TEST_EMBD);
    test_add_vector(a, "base_model.model.gpt_neox.layers.0.attention.query_key_value.base_layer.bias", GR_DTYPE_F32, 3 * TEST_EMBD);
    opened o;
    expect_plan(&o, base, a, 2);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(o.plan->entries[i].rows.order, GR_ROWS_NEOX_QKV);
        assert_int_equal(o.plan->entries[i].rows.heads, TEST_HEADS);
    }
    done(&o);
    base->n_head = 7;
    verify(&o, base, a);
    expect_reason(&o, GRAFT_E_UNSUPPORTED_TARGET, "query_key_value.lora_B", "7 heads");
    expect_reason(&o, GRAFT_E_UNSUPPORTED_TARGET, "query_key_value.base_layer.bias", "7 heads");
    done(&o);
    free(a);
    test_base_free(base);
}

static void invocation(void **state) {
    (void)state;
    gr_base_model *base = test_base_make("llama");
    test_adapter *a = test_adapter_make(GR_DTYPE_F32);
    test_config_add(a, ",\"alora_invocation_tokens\":[5,9,5]");
    opened o;
    expect_plan(&o, base, a, 6);
    assert_int_equal(o.plan->n_invocation, 3);
    assert_int_equal(o.plan->invocation[1], 9);
    done(&o);
    free(a);
    test_base_free(base);
}

/* ---- mlx-lm ---------------------------------------------------------------------------------------------- */

static test_adapter *mlx_adapter(const char *type, int num_layers) {
    test_adapter *a = calloc(1, sizeof *a);
    snprintf(a->config, sizeof a->config,
             "{\"fine_tune_type\":\"%s\",\"num_layers\":%d,\"lora_parameters\":{\"rank\":4,\"scale\":20.0,\"dropout\":0.0}}",
             type, num_layers);
    test_add(a, "model.layers.1.self_attn.k_proj.lora_a", GR_DTYPE_F32, TEST_EMBD, 4);
    test_add(a, "model.layers.1.self_attn.k_proj.lora_b", GR_DTYPE_F32, 4, TEST_KV);
    return a;
}

static void verify_mlx(opened *o, const gr_base_model *base, const test_adapter *a) {
    o->dir = test_dir_make();
    test_write_mlx(a, &o->dir);
    verify_path(o, base, o->dir.path);
}

static void mlx_adapters(void **state) {
    (void)state;
    gr_base_model *base = test_base_make("llama");
    opened o;
    test_adapter *a = mlx_adapter("lora", 1);
    verify_mlx(&o, base, a);
    assert_int_equal(o.rc, 0);
    assert_int_equal(o.source->format, GR_SOURCE_MLX);
    const gr_plan_entry *e = find_entry(o.plan, "blk.1.attn_k.weight");
    assert_true(e->transposed && e->rank == 4 && e->scale == 20.0);
    assert_int_equal(e->rows.order, GR_ROWS_ROPE_K);
    done(&o);

    test_add(a, "model.embed_tokens.lora_a", GR_DTYPE_F32, TEST_VOCAB, 4); /* tied: its head is changed as well */
    test_add(a, "model.embed_tokens.lora_b", GR_DTYPE_F32, 4, TEST_EMBD);
    verify_mlx(&o, base, a);
    assert_int_equal(o.rc, 0);
    assert_int_equal(o.plan->n, 3);
    e = entry_of(&o, "token_embd.weight", GR_OP_ROWS);
    assert_true(e->transposed && strcmp(e->a->name, "model.embed_tokens.lora_a") == 0);
    e = entry_of(&o, "token_embd.weight", GR_OP_PRODUCT);
    assert_true(!e->transposed && strcmp(e->a->name, "model.embed_tokens.lora_b") == 0);
    done(&o);
    test_base_add(base, -1, "output.weight", TEST_EMBD, TEST_VOCAB);
    test_base_sort(base);
    verify_mlx(&o, base, a);
    assert_int_equal(o.plan->n, 2);
    done(&o);
    free(a);

    a = mlx_adapter("dora", -1);
    test_add_vector(a, "model.layers.1.self_attn.k_proj.m", GR_DTYPE_F32, TEST_KV);
    verify_mlx(&o, base, a);
    assert_int_equal(o.rc, 0);
    assert_non_null(o.plan->entries[0].magnitude);
    done(&o);
    free(a);
    test_base_free(base);
}

static void mlx_faults(void **state) {
    (void)state;
    static const struct { const char *add; uint64_t rows, columns; const char *type; int layers, code; const char *where, *words; } cases[] = {
        {NULL, 0, 0, "dora", -1, GRAFT_E_MISSING_PAIR, "k_proj.lora_a", "vector m"},
        {"model.layers.1.self_attn.k_proj.m", TEST_KV, 0, "lora", -1, GRAFT_E_UNEXPECTED_TENSOR, "k_proj.m", "dora"},
        {"model.embed_tokens.m", TEST_VOCAB, 0, "dora", -1, GRAFT_E_UNSUPPORTED_ADAPTER, "embed_tokens.m", "DoRA of an embedding"},
        {"model.layers.1.mlp.up_proj.lora_a", TEST_EMBD, 4, "lora", -1, GRAFT_E_MISSING_PAIR, "up_proj.lora_a", "up_proj.lora_b"},
        {"model.layers.0.mlp.up_proj.lora_a", TEST_EMBD, 4, "lora", 1, GRAFT_E_UNEXPECTED_TENSOR, "up_proj.lora_a", "the last 1"},
        {"model.layers.1.self_attn.k_proj.lora_c", 2, 2, "lora", -1, GRAFT_E_UNEXPECTED_TENSOR, "lora_c", ""},
        {"vision.layers.1.self_attn.k_proj.lora_a", 2, 2, "lora", -1, GRAFT_E_UNMAPPED_TENSORS, "", "1 of 3"},
        {NULL, 0, 0, "full", -1, GRAFT_E_UNSUPPORTED_ADAPTER, "fine_tune_type", "full"},
    };
    gr_base_model *base = test_base_make("llama");
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        test_adapter *a = mlx_adapter(cases[i].type, cases[i].layers);
        if (cases[i].add && cases[i].columns) {
            test_add(a, cases[i].add, GR_DTYPE_F32, cases[i].rows, cases[i].columns);
        } else if (cases[i].add) {
            test_add_vector(a, cases[i].add, GR_DTYPE_F32, cases[i].rows);
        }
        opened o;
        verify_mlx(&o, base, a);
        expect_reason(&o, cases[i].code, cases[i].where, cases[i].words);
        done(&o);
        free(a);
    }
    test_adapter *a = mlx_adapter("lora", -1);
    test_find(a, "model.layers.1.self_attn.k_proj.lora_a")->shape[0] = 4; /* as PEFT has it */
    test_find(a, "model.layers.1.self_attn.k_proj.lora_a")->shape[1] = TEST_EMBD;
    opened o;
    verify_mlx(&o, base, a);
    expect_reason(&o, GRAFT_E_WRONG_SHAPE, "lora_a", "40 columns needed");
    done(&o);
    free(a);
    test_base_free(base);
}

/* ---- GGUF, more ------------------------------------------------------------------------------------------ */

static void gguf_of_every_kind(void **state) {
    (void)state;
    gr_base_model *base = rich_base();
    test_base_add(base, -1, "output.weight", TEST_EMBD, TEST_VOCAB);
    test_base_sort(base);
    base->arch = gr_arch_find("gemma"); /* its norms are in a GGUF adapter as they are in the base */
    test_adapter *a = test_gguf_make(GR_DTYPE_F32);
    test_add(a, "token_embd.weight.lora_a", GR_DTYPE_F32, TEST_VOCAB, 4); /* transposed, by llama.cpp's converter */
    test_add(a, "token_embd.weight.lora_b", GR_DTYPE_F32, TEST_EMBD, 4);
    test_add(a, "output.weight.lora_a", GR_DTYPE_F32, 4, TEST_EMBD);
    test_add(a, "output.weight.lora_b", GR_DTYPE_F32, TEST_VOCAB, 4);
    test_add_vector(a, "blk.1.attn_norm.weight", GR_DTYPE_F32, TEST_EMBD);
    test_add_vector(a, "output_norm.weight", GR_DTYPE_F32, TEST_EMBD);
    opened o;
    verify_gguf(&o, base, a, "llama", 8, false);
    if (o.rc) {
        fail_msg("%s", o.err.message);
    }
    assert_int_equal(o.plan->n, 6);
    assert_int_equal(entry_of(&o, "token_embd.weight", GR_OP_ROWS)->rank, 4);
    assert_int_equal(entry_of(&o, "output.weight", GR_OP_PRODUCT)->rank, 4);
    assert_true(entry_of(&o, "output_norm.weight", GR_OP_MUL)->added == 0);
    done(&o);
    test_find(a, "token_embd.weight.lora_a")->shape[0] = TEST_VOCAB + 1;
    verify_gguf(&o, base, a, "llama", 8, false);
    expect_reason(&o, GRAFT_E_WRONG_SHAPE, "token_embd.weight.lora_a", "adds 1 tokens");
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
    gr_base_model *base = rich_base();
    test_dir d = test_dir_make();
    test_adapter *a = test_adapter_make(GR_DTYPE_F32);
    test_config_add(a, ",\"alpha_pattern\":{\"q_proj\":4},\"layers_to_transform\":[0,1],\"modules_to_save\":[\"input_layernorm\"],"
                       "\"trainable_token_indices\":[1],\"bias\":\"all\"");
    test_add_vector(a, LAYER0 "input_layernorm.weight", GR_DTYPE_F32, TEST_EMBD);
    test_add_vector(a, LAYER0 "self_attn.q_proj.base_layer.bias", GR_DTYPE_F32, TEST_EMBD);
    token_rows(a, 1);
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
        cmocka_unit_test(dora_and_biases),
        cmocka_unit_test(embeddings_and_heads),
        cmocka_unit_test(tokens),
        cmocka_unit_test(norms),
        cmocka_unit_test(fused_and_split_modules),
        cmocka_unit_test(a_base_that_was_fused),
        cmocka_unit_test(gptneox),
        cmocka_unit_test(invocation),
        cmocka_unit_test(mlx_adapters),
        cmocka_unit_test(mlx_faults),
        cmocka_unit_test(gguf_of_every_kind),
        cmocka_unit_test(every_allocation_may_fail),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
