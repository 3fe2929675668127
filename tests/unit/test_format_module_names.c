/* src/format/module_names: the tables, and names taken apart. */
#include "format_helpers.h"

#include "format/module_names.h"
#include "format/tensor_info.h"

#include <stdio.h>

#define COUNT(a) (sizeof(a) / sizeof *(a))
#define P "base_model.model."
#define L P "model.layers."

static const gr_arch *arch(const char *name) {
    const gr_arch *a = gr_arch_find(name);
    if (!a) {
        fail_msg("no architecture %s", name);
    }
    return a;
}

/* A module of layer 3 and what it must become. */
static void expect_module(const char *architecture, const char *path, const char *weight, gr_row_order order) {
    char tensor[512], full[512];
    graft_error err = {0};
    gr_module_name name;
    for (int part = 0; part < 2; part++) {
        snprintf(tensor, sizeof tensor, P "%s.lora_%c.weight", path, "AB"[part]);
        expect_code(tensor, gr_module_name_parse(&name, arch(architecture), tensor, &err), 0, &err);
        snprintf(full, sizeof full, "blk.%d.%s", name.layer, weight);
        assert_string_equal(name.path, path);
        assert_string_equal(name.weight, full);
        assert_int_equal(name.part, part == 0 ? GR_PART_A : GR_PART_B);
        assert_int_equal(name.rule->order, order);
    }
}

/* What llama.cpp's conversion makes of each module (tensor_mapping.py, modify_tensors). */
static void maps_modules(void **state) {
    (void)state;
    static const char *const roped[] = {"llama", "mistral3", "granite", "smollm3", "olmo", "minicpm"};
    static const char *const plain[] = {"qwen2",   "qwen3",     "gemma",   "gemma2",   "gemma3",        "olmo2",    "stablelm",
                                        "cohere2", "command-r", "exaone4", "seed_oss", "hunyuan-dense", "ernie4_5", "orion"};
    for (size_t i = 0; i < COUNT(roped) + COUNT(plain); i++) {
        bool rope = i < COUNT(roped);
        const char *a = rope ? roped[i] : plain[i - COUNT(roped)];
        expect_module(a, "model.layers.3.self_attn.q_proj", "attn_q.weight", rope ? GR_ROWS_ROPE_Q : GR_ROWS_AS_IS);
        expect_module(a, "model.layers.3.self_attn.k_proj", "attn_k.weight", rope ? GR_ROWS_ROPE_K : GR_ROWS_AS_IS);
        expect_module(a, "model.layers.3.self_attn.v_proj", "attn_v.weight", GR_ROWS_AS_IS);
        expect_module(a, "model.layers.3.self_attn.o_proj", "attn_output.weight", GR_ROWS_AS_IS);
        expect_module(a, "model.layers.3.mlp.gate_proj", "ffn_gate.weight", GR_ROWS_AS_IS);
        expect_module(a, "model.layers.3.mlp.up_proj", "ffn_up.weight", GR_ROWS_AS_IS);
        expect_module(a, "model.layers.3.mlp.down_proj", "ffn_down.weight", GR_ROWS_AS_IS);
    }
    expect_module("arcee", "model.layers.3.self_attn.q_proj", "attn_q.weight", GR_ROWS_ROPE_Q);
    expect_module("arcee", "model.layers.3.mlp.up_proj", "ffn_up.weight", GR_ROWS_AS_IS);
    expect_module("nemotron", "model.layers.3.self_attn.q_proj", "attn_q.weight", GR_ROWS_AS_IS);
    expect_module("nemotron", "model.layers.3.mlp.down_proj", "ffn_down.weight", GR_ROWS_AS_IS);
    expect_module("apertus", "model.layers.3.self_attn.k_proj", "attn_k.weight", GR_ROWS_AS_IS);
    expect_module("phi2", "model.layers.3.self_attn.dense", "attn_output.weight", GR_ROWS_AS_IS);
    expect_module("phi2", "model.layers.3.mlp.fc1", "ffn_up.weight", GR_ROWS_AS_IS);
    expect_module("phi2", "model.layers.3.mlp.fc2", "ffn_down.weight", GR_ROWS_AS_IS);
    expect_module("phi3", "model.layers.3.self_attn.qkv_proj", "attn_qkv.weight", GR_ROWS_AS_IS);
    expect_module("phi3", "model.layers.3.mlp.gate_up_proj", "ffn_up.weight", GR_ROWS_AS_IS);
    expect_module("phi3", "model.layers.3.mlp.down_proj", "ffn_down.weight", GR_ROWS_AS_IS);
    static const char *const gpt2[] = {"gpt2", "starcoder"};
    for (size_t i = 0; i < 2; i++) {
        expect_module(gpt2[i], "transformer.h.3.attn.c_attn", "attn_qkv.weight", GR_ROWS_AS_IS);
        expect_module(gpt2[i], "transformer.h.3.attn.c_proj", "attn_output.weight", GR_ROWS_AS_IS);
        expect_module(gpt2[i], "transformer.h.3.mlp.c_fc", "ffn_up.weight", GR_ROWS_AS_IS);
        expect_module(gpt2[i], "transformer.h.3.mlp.c_proj", "ffn_down.weight", GR_ROWS_AS_IS);
    }
    assert_true(arch("gpt2")->conv1d);
    assert_false(arch("starcoder")->conv1d);
    assert_false(arch("llama")->conv1d);
    expect_module("starcoder2", "model.layers.3.self_attn.q_proj", "attn_q.weight", GR_ROWS_AS_IS);
    expect_module("starcoder2", "model.layers.3.mlp.c_fc", "ffn_up.weight", GR_ROWS_AS_IS);
    expect_module("starcoder2", "model.layers.3.mlp.c_proj", "ffn_down.weight", GR_ROWS_AS_IS);
    expect_module("exaone", "transformer.h.3.attn.attention.q_proj", "attn_q.weight", GR_ROWS_AS_IS);
    expect_module("exaone", "transformer.h.3.attn.attention.out_proj", "attn_output.weight", GR_ROWS_AS_IS);
    expect_module("exaone", "transformer.h.3.mlp.c_fc_0", "ffn_gate.weight", GR_ROWS_AS_IS);
    expect_module("exaone", "transformer.h.3.mlp.c_fc_1", "ffn_up.weight", GR_ROWS_AS_IS);
    expect_module("exaone", "transformer.h.3.mlp.c_proj", "ffn_down.weight", GR_ROWS_AS_IS);
    expect_module("gemma3", "model.language_model.layers.3.mlp.up_proj", "ffn_up.weight", GR_ROWS_AS_IS);
    expect_module("gemma3", "language_model.model.layers.3.mlp.up_proj", "ffn_up.weight", GR_ROWS_AS_IS);
    expect_module("llama", "model.text_model.layers.3.self_attn.q_proj", "attn_q.weight", GR_ROWS_ROPE_Q);
}

/* No two modules of an architecture are one weight, but for those that share it, and no name is longer than its place. */
static void tables_are_sound(void **state) {
    (void)state;
    size_t n;
    const gr_arch *all = gr_arch_list(&n);
    assert_true(n >= 35);
    for (size_t i = 0; i < n; i++) {
        assert_ptr_equal(gr_arch_find(all[i].name), &all[i]);
        size_t index = 0;
        for (int kind = 0; kind < GR_RULE_KINDS; kind++) {
            for (size_t r = 0; r < all[i].rules[kind].n; r++, index++) {
                const gr_module_rule *rule = &all[i].rules[kind].list[r];
                assert_int_equal(gr_arch_rule_index(&all[i], rule), index);
                assert_true(strlen(rule->weight) + sizeof "blk.2147483647." <= sizeof((gr_module_name *)0)->weight);
                assert_true(strstr(rule->weight, ".weight") && !strstr(rule->weight, ".weight.weight"));
                for (size_t q = 0; q < r; q++) {
                    const gr_module_rule *other = &all[i].rules[kind].list[q];
                    assert_string_not_equal(rule->module, other->module);
                    if (rule->share == GR_SHARE_ALL && other->share == GR_SHARE_ALL && rule->role != GR_ROLE_HEAD) {
                        assert_string_not_equal(rule->weight, other->weight);
                    }
                }
            }
        }
        assert_int_equal(gr_arch_n_rules(&all[i]), index);
        assert_int_equal(gr_arch_rule_index(&all[i], NULL), index);
    }
    assert_string_equal(gr_arch_rule_of(arch("phi3"), "ffn_up.weight")->module, "mlp.gate_up_proj");
    assert_string_equal(gr_arch_rule_of(arch("llama"), "ffn_gate.weight")->module, "mlp.gate_proj");
    assert_null(gr_arch_rule_of(arch("llama"), "ffn_norm"));
    assert_null(gr_arch_find("falcon"));
    assert_null(gr_arch_find("Llama"));
    assert_null(gr_arch_find(""));
}

/* A whole module of layer 3 or of none, and what it becomes. */
static void expect_whole(const char *architecture, const char *path, const char *weight, gr_role role) {
    char tensor[512], full[512];
    graft_error err = {0};
    gr_module_name name;
    snprintf(tensor, sizeof tensor, P "%s.weight", path);
    expect_code(tensor, gr_module_name_parse(&name, arch(architecture), tensor, &err), 0, &err);
    snprintf(full, sizeof full, name.layer < 0 ? "%s" : "blk.3.%s", weight);
    assert_string_equal(name.weight, full);
    assert_int_equal(name.part, GR_PART_VALUE);
    assert_int_equal(name.rule->role, role);
}

/* What llama.cpp's conversion makes of embeddings, heads and norms (tensor_mapping.py). */
static void maps_what_is_no_product_in_a_layer(void **state) {
    (void)state;
#define N(m) "model.layers.3." m
#define H(m) "transformer.h.3." m
    static const struct { const char *arch, *path, *weight; } norms[] = {
        {"llama", N("input_layernorm"), "attn_norm.weight"},
        {"llama", N("post_attention_layernorm"), "ffn_norm.weight"},
        {"llama", "model.norm", "output_norm.weight"},
        {"llama", "model.language_model.norm", "output_norm.weight"},
        {"llama", "language_model.model.norm", "output_norm.weight"},
        {"qwen3", N("self_attn.q_norm"), "attn_q_norm.weight"},
        {"qwen3", N("self_attn.k_norm"), "attn_k_norm.weight"},
        {"hunyuan-dense", N("self_attn.query_layernorm"), "attn_q_norm.weight"},
        {"gemma", N("post_attention_layernorm"), "ffn_norm.weight"},
        {"gemma2", N("input_layernorm"), "attn_norm.weight"},
        {"gemma2", N("post_attention_layernorm"), "post_attention_norm.weight"},
        {"gemma2", N("pre_feedforward_layernorm"), "ffn_norm.weight"},
        {"gemma2", N("post_feedforward_layernorm"), "post_ffw_norm.weight"},
        {"gemma3", N("self_attn.k_norm"), "attn_k_norm.weight"},
        {"olmo2", N("post_attention_layernorm"), "post_attention_norm.weight"},
        {"seed_oss", N("post_attention_layernorm"), "post_attention_norm.weight"},
        {"apertus", N("feedforward_layernorm"), "ffn_norm.weight"},
        {"phi2", "model.final_layernorm", "output_norm.weight"},
        {"gpt2", H("ln_1"), "attn_norm.weight"},
        {"gpt2", H("ln_2"), "ffn_norm.weight"},
        {"gpt2", "transformer.ln_f", "output_norm.weight"},
        {"gptneox", "gpt_neox.layers.3.post_attention_layernorm", "ffn_norm.weight"},
        {"gptneox", "gpt_neox.final_layer_norm", "output_norm.weight"},
    };
    for (size_t i = 0; i < COUNT(norms); i++) {
        expect_whole(norms[i].arch, norms[i].path, norms[i].weight, GR_ROLE_NORM);
    }
    static const struct { const char *arch, *path; } embeddings[] = {{"llama", "model.embed_tokens"},
                                                                     {"gemma3", "model.language_model.embed_tokens"},
                                                                     {"gpt2", "transformer.wte"},
                                                                     {"gptneox", "gpt_neox.embed_in"}};
    for (size_t i = 0; i < COUNT(embeddings); i++) {
        expect_whole(embeddings[i].arch, embeddings[i].path, "token_embd.weight", GR_ROLE_EMBEDDING);
    }
    expect_whole("llama", "lm_head", "output.weight", GR_ROLE_HEAD);
    expect_whole("gptneox", "embed_out", "output.weight", GR_ROLE_HEAD);
    expect_whole("gemma3", "language_model.lm_head", "output.weight", GR_ROLE_HEAD);
    assert_true(arch("gemma2")->norm_added == 1 && arch("nemotron")->norm_added == 1 && arch("llama")->norm_added == 0);
    expect_module("gptneox", "gpt_neox.layers.3.attention.query_key_value", "attn_qkv.weight", GR_ROWS_NEOX_QKV);
    expect_module("gptneox", "gpt_neox.layers.3.mlp.dense_4h_to_h", "ffn_down.weight", GR_ROWS_AS_IS);
    expect_module("qwen", "transformer.h.3.mlp.w2", "ffn_gate.weight", GR_ROWS_AS_IS);
    expect_module("qwen2moe", "model.layers.3.mlp.shared_expert.up_proj", "ffn_up_shexp.weight", GR_ROWS_AS_IS);
    expect_module("qwen3moe", "model.layers.3.self_attn.o_proj", "attn_output.weight", GR_ROWS_AS_IS);
    expect_module("phi3", "model.layers.3.self_attn.q_proj", "attn_q.weight", GR_ROWS_AS_IS);
    expect_module("llama", "model.layers.3.mlp.gate_up_proj", "ffn_gate.weight", GR_ROWS_AS_IS);
}

/* What each spelling is to its module. */
static void knows_the_parts(void **state) {
    (void)state;
#define QP L "0.self_attn.q_proj"
#define EMB P "model.embed_tokens"
    static const struct { const char *tensor; gr_name_part part; bool embedding, wrapped; } cases[] = {
        {QP ".lora_magnitude_vector", GR_PART_MAGNITUDE, false, false},
        {QP ".lora_magnitude_vector.weight", GR_PART_MAGNITUDE, false, false},
        {QP ".lora_magnitude_vector.default.weight", GR_PART_MAGNITUDE, false, false},
        {QP ".lora_B.bias", GR_PART_B_BIAS, false, false},
        {QP ".lora_B.default.bias", GR_PART_B_BIAS, false, false},
        {QP ".bias", GR_PART_BIAS, false, false},
        {QP ".base_layer.bias", GR_PART_BIAS, false, true},
        {EMB ".lora_embedding_A", GR_PART_A, true, false},
        {EMB ".lora_embedding_B.default", GR_PART_B, true, false},
        {EMB ".lora_magnitude_vector", GR_PART_MAGNITUDE, false, false},
        {EMB ".token_adapter.trainable_tokens_delta", GR_PART_TOKENS, false, true},
        {EMB ".token_adapter.base_layer.weight", GR_PART_COPY, false, true},
        {EMB ".base_layer.weight", GR_PART_COPY, false, true},
        {EMB ".original_module.weight", GR_PART_COPY, false, true},
        {EMB ".weight", GR_PART_VALUE, false, false},
        {EMB ".modules_to_save.weight", GR_PART_VALUE, false, true},
        {P "lm_head.modules_to_save.default.weight", GR_PART_VALUE, false, true},
        {P "lm_head.modules_to_save.bias", GR_PART_BIAS, false, true},
        {P "lm_head.lora_A.weight", GR_PART_A, false, false},
        {L "0.input_layernorm.bias", GR_PART_BIAS, false, false},
        {L "0.input_layernorm.original_module.bias", GR_PART_COPY, false, true},
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        graft_error err = {0};
        gr_module_name name;
        expect_code(cases[i].tensor, gr_module_name_parse(&name, arch("llama"), cases[i].tensor, &err), 0, &err);
        if (name.part != cases[i].part || name.embedding != cases[i].embedding || name.wrapped != cases[i].wrapped) {
            fail_msg("%s: part %d", cases[i].tensor, (int)name.part);
        }
    }
}

static void takes_mlx_names_apart(void **state) {
    (void)state;
    static const struct { const char *tensor; int code; } cases[] = {
        {"model.layers.0.self_attn.q_proj.lora_a", 0},
        {"model.layers.0.self_attn.q_proj.lora_b", 0},
        {"model.layers.0.self_attn.q_proj.m", 0},
        {"language_model.model.layers.0.self_attn.q_proj.m", 0},
        {"model.embed_tokens.lora_a", 0},
        {"lm_head.lora_b", 0},
        {"model.norm.lora_a", GRAFT_E_UNSUPPORTED_TARGET},
        {"model.layers.0.mlp.switch_mlp.up_proj.lora_a", GRAFT_E_UNSUPPORTED_ADAPTER},
        {"model.layers.0.self_attn.w_proj.lora_a", GRAFT_E_UNKNOWN_TARGET},
        {"layers.0.self_attn.q_proj.lora_a", GRAFT_E_UNKNOWN_TARGET},
        {"model.layers.0.self_attn.q_proj.lora_A.weight", GRAFT_E_UNEXPECTED_TENSOR},
        {"model.layers.0.self_attn.q_proj.weight", GRAFT_E_UNEXPECTED_TENSOR},
        {".lora_a", GRAFT_E_UNKNOWN_TARGET},
        {"m", GRAFT_E_UNEXPECTED_TENSOR},
    };
    gr_module_name name;
    graft_error err = {0};
    for (size_t i = 0; i < COUNT(cases); i++) {
        char *tensor = exact_copy(cases[i].tensor, strlen(cases[i].tensor) + 1);
        int code = gr_mlx_name_parse(&name, arch("llama"), tensor, &err);
        free(tensor);
        expect_code(cases[i].tensor, code, cases[i].code, &err);
    }
    assert_int_equal(gr_mlx_name_parse(&name, arch("llama"), "model.layers.7.mlp.up_proj.m", &err), 0);
    assert_int_equal(name.part, GR_PART_MAGNITUDE);
    assert_int_equal(name.layer, 7);
    assert_string_equal(name.path, "model.layers.7.mlp.up_proj");
    assert_string_equal(name.weight, "blk.7.ffn_up.weight");
}

typedef struct name_case {
    const char *tensor;
    int code;
} name_case;

static void takes_names_apart(void **state) {
    (void)state;
    static const name_case cases[] = {
        {L "0.self_attn.q_proj.lora_A.weight", 0},
        {L "0.self_attn.q_proj.lora_A", 0},
        {L "0.self_attn.q_proj.lora_B.default.weight", 0},
        {L "0.self_attn.q_proj.lora_B.default", 0},
        {L "2147483.self_attn.q_proj.lora_B.weight", 0},
        {L "0.self_attn.q_proj.lora_A.other.weight", GRAFT_E_UNKNOWN_TARGET},
        {L "0.self_attn.q_proj.lora_A.weight.weight", GRAFT_E_UNKNOWN_TARGET},
        {L "0.self_attn.q_proj.lora_AA.weight", GRAFT_E_UNKNOWN_TARGET},
        {L "0.self_attn.q_proj.lora_C", GRAFT_E_UNEXPECTED_TENSOR},
        /* L06: layers written otherwise than a program writes them, or that cannot be */
        {L "007.self_attn.q_proj.lora_A.weight", GRAFT_E_UNKNOWN_TARGET},
        {L "00.self_attn.q_proj.lora_A.weight", GRAFT_E_UNKNOWN_TARGET},
        {L "-1.self_attn.q_proj.lora_A.weight", GRAFT_E_UNKNOWN_TARGET},
        {L "+1.self_attn.q_proj.lora_A.weight", GRAFT_E_UNKNOWN_TARGET},
        {L "1e1.self_attn.q_proj.lora_A.weight", GRAFT_E_UNKNOWN_TARGET},
        {L "0x1.self_attn.q_proj.lora_A.weight", GRAFT_E_UNKNOWN_TARGET},
        {L ".self_attn.q_proj.lora_A.weight", GRAFT_E_UNKNOWN_TARGET},
        {L "99999999999999999999.self_attn.q_proj.lora_A.weight", GRAFT_E_UNKNOWN_TARGET},
        {L "4294967296.self_attn.q_proj.lora_A.weight", GRAFT_E_UNKNOWN_TARGET},
        {L "0.lora_A.weight", GRAFT_E_UNKNOWN_TARGET},
        {L "0..lora_A.weight", GRAFT_E_UNKNOWN_TARGET},
        {L "0.q_proj.lora_A.weight", GRAFT_E_UNKNOWN_TARGET},
        {L "0.self_attn.qkv_proj.lora_A.weight", 0}, /* L10: split, where the base is */
        {L "0.attn.c_attn.lora_A.weight", GRAFT_E_UNSUPPORTED_TARGET},
        {L "0.self_attn.q_proj.x.lora_A.weight", GRAFT_E_UNKNOWN_TARGET},
        {P "model.layers0.self_attn.q_proj.lora_A.weight", GRAFT_E_UNKNOWN_TARGET},
        {P "model.layers_0.self_attn.q_proj.lora_A.weight", GRAFT_E_UNKNOWN_TARGET},
        {P "transformer.h.0.attn.c_attn.lora_A.weight", GRAFT_E_UNKNOWN_TARGET},
        {P "layers.0.self_attn.q_proj.lora_A.weight", GRAFT_E_UNKNOWN_TARGET},
        {P "lora_A.weight", GRAFT_E_UNKNOWN_TARGET},
        {P ".lora_A.weight", GRAFT_E_UNKNOWN_TARGET},
        {"model.layers.0.self_attn.q_proj.lora_A.weight", GRAFT_E_UNKNOWN_TARGET}, /* L08 */
        {"base_model.model.lora_A.weight", GRAFT_E_UNKNOWN_TARGET},
        {".lora_A.weight", GRAFT_E_UNKNOWN_TARGET},
        /* L07, L20 and the rest of what PEFT may write */
        {P "model.embed_tokens.lora_A.weight", GRAFT_E_UNEXPECTED_TENSOR},
        {P "lm_head.lora_embedding_A", GRAFT_E_UNEXPECTED_TENSOR},
        {P "score.lora_B.weight", GRAFT_E_UNSUPPORTED_TARGET},
        {P "transformer.wte.lora_B.weight", GRAFT_E_UNSUPPORTED_TARGET},
        {L "0.input_layernorm.lora_A.weight", GRAFT_E_UNSUPPORTED_TARGET},
        {L "0.self_attn.q_norm.lora_A.weight", GRAFT_E_UNSUPPORTED_TARGET},
        {P "model.norm.lora_A.weight", GRAFT_E_UNSUPPORTED_TARGET},
        {L "0.self_attn.q_proj.lora_magnitude_vector.other", GRAFT_E_UNEXPECTED_TENSOR},
        {L "0.self_attn.q_proj.lora_A.bias", GRAFT_E_UNSUPPORTED_ADAPTER},
        {L "0.self_attn.q_proj.token_adapter.trainable_tokens_delta", GRAFT_E_UNEXPECTED_TENSOR},
        {L "0.self_attn.q_proj.lora_embedding_B", GRAFT_E_UNEXPECTED_TENSOR},
        {L "0.self_attn.q_proj.weight", GRAFT_E_UNSUPPORTED_TARGET},
        {L "0.self_attn.q_proj.modules_to_save.weight", GRAFT_E_UNSUPPORTED_TARGET},
        {P "score.modules_to_save.default.weight", GRAFT_E_UNSUPPORTED_TARGET},
        {P "score.weight", GRAFT_E_UNSUPPORTED_TARGET},
        {P "transformer.wpe.weight", GRAFT_E_UNSUPPORTED_TARGET},
        {L "0.pre_feedforward_layernorm.weight", GRAFT_E_UNSUPPORTED_TARGET},
        {L "0.mlp.experts.lora_A.weight", GRAFT_E_UNSUPPORTED_ADAPTER},
        {L "0.mlp.experts.base_layer.lora_A.weight", GRAFT_E_UNSUPPORTED_ADAPTER},
        {L "0.mlp.experts.7.gate_proj.lora_A.weight", GRAFT_E_UNSUPPORTED_ADAPTER},
        {L "0.mlp.up_proj.lora_diag", GRAFT_E_UNSUPPORTED_ADAPTER},
        {L "0.mlp.up_proj.lora_E", GRAFT_E_UNSUPPORTED_ADAPTER},
        {L "0.mlp.up_proj.ia3_l", GRAFT_E_UNSUPPORTED_ADAPTER},
        {L "0.mlp.up_proj.hada_w1_a", GRAFT_E_UNSUPPORTED_ADAPTER},
        {L "0.mlp.up_proj.lokr_w1", GRAFT_E_UNSUPPORTED_ADAPTER},
        {"lora_unet_down_blocks_0.lora_up.weight", GRAFT_E_UNSUPPORTED_ADAPTER},
        {"model.layers.0.self_attn.q_proj.lora_a", GRAFT_E_UNSUPPORTED_ADAPTER}, /* mlx-lm */
        {L "0.self_attn.q_proj.base_layer.weight", GRAFT_E_BASE_WEIGHTS_INCLUDED}, /* L25 */
        {"model.layers.0.self_attn.q_proj.weight", GRAFT_E_UNEXPECTED_TENSOR},
        {"x", GRAFT_E_UNEXPECTED_TENSOR},
        {"lora_A", GRAFT_E_UNEXPECTED_TENSOR},
        {P "model.layers.0.self_attn.q_proj.alpha", GRAFT_E_UNSUPPORTED_ADAPTER},
        {"lora_te_text_model_q_proj.alpha", GRAFT_E_UNSUPPORTED_ADAPTER},
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        graft_error err = {0};
        gr_module_name name;
        memset(&name, 0x55, sizeof name);
        char *tensor = exact_copy(cases[i].tensor, strlen(cases[i].tensor) + 1);
        int code = gr_module_name_parse(&name, arch("llama"), tensor, &err);
        free(tensor);
        expect_code(cases[i].tensor, code, cases[i].code, &err);
        assert_true(code == 0 || name.path[0] == 0x55);
    }
}

static void needs_the_whole_layer_path(void **state) {
    (void)state;
    graft_error err = {0};
    gr_module_name name;
    expect_code("gpt2", gr_module_name_parse(&name, arch("gpt2"), P "transformer.h_0.attn.c_attn.lora_A.weight", &err),
                GRAFT_E_UNKNOWN_TARGET, &err);
}

static void says_what_there_is(void **state) {
    (void)state;
    graft_error err = {0};
    gr_module_name name;
    gr_module_name_parse(&name, arch("phi3"), L "0.self_attn.w_proj.lora_A.weight", &err);
    assert_non_null(strstr(err.message, "phi3"));
    assert_non_null(strstr(err.message, "self_attn.qkv_proj"));
    assert_non_null(strstr(err.message, "model.layers"));
}

static void survives_long_names(void **state) {
    (void)state;
    char tensor[GR_MAX_TENSOR_NAME + 1];
    for (size_t n = 20; n <= GR_MAX_TENSOR_NAME; n++) {
        memset(tensor, 'x', n);
        tensor[n] = '\0';
        memcpy(tensor, P, strlen(P));
        if (n > 40) {
            memcpy(tensor + n - 14, ".lora_A.weight", 14);
        }
        char *copy = exact_copy(tensor, n + 1);
        graft_error err = {0};
        gr_module_name name;
        int code = gr_module_name_parse(&name, arch("llama"), copy, &err);
        expect_code("long", code, n > 40 ? GRAFT_E_UNKNOWN_TARGET : GRAFT_E_UNEXPECTED_TENSOR, &err);
        free(copy);
    }
}

static void takes_gguf_names_apart(void **state) {
    (void)state;
    static const name_case cases[] = {
        {"blk.0.attn_q.weight.lora_a", 0},
        {"blk.31.ffn_down.weight.lora_b", 0},
        {"blk.31.ffn_gate_exps.weight.lora_b", 0}, /* in no table: the base's shapes decide */
        {"blk.0.attn_q.weight", GRAFT_E_UNEXPECTED_TENSOR}, /* G19 */
        {"blk.0.attn_norm.weight", 0},
        {"output_norm.weight", 0},
        {"_norm.weight", GRAFT_E_UNKNOWN_TARGET},
        {"blk.0.attn_q.weight.lora_a.lora_b", GRAFT_E_UNEXPECTED_TENSOR},
        {"blk.0.lora_b.weight.lora_a", GRAFT_E_UNEXPECTED_TENSOR},
        {".lora_a", GRAFT_E_UNEXPECTED_TENSOR},
        {"lora_a", GRAFT_E_UNEXPECTED_TENSOR},
        {"blk.0.attn_q.weight.lora_A", GRAFT_E_UNEXPECTED_TENSOR},
        {"token_embd.weight.lora_a", 0},
        {"output.weight.lora_b", 0},
        {"position_embd.weight.lora_b", GRAFT_E_UNSUPPORTED_TARGET},
        {"output_norm.weight.lora_b", GRAFT_E_UNSUPPORTED_TARGET},
        {"blk.0.attn_norm.weight.lora_a", GRAFT_E_UNSUPPORTED_TARGET},
        {"blk.0.attn_q.bias.lora_a", GRAFT_E_UNSUPPORTED_TARGET},
        {"rope_freqs.weight.lora_a", GRAFT_E_UNSUPPORTED_TARGET},
        {"blk.-1.attn_q.weight.lora_a", GRAFT_E_UNKNOWN_TARGET}, /* L06 */
        {"blk.007.attn_q.weight.lora_a", GRAFT_E_UNKNOWN_TARGET},
        {"blk.1e1.attn_q.weight.lora_a", GRAFT_E_UNKNOWN_TARGET},
        {"blk..attn_q.weight.lora_a", GRAFT_E_UNKNOWN_TARGET},
        {"blk.99999999999.attn_q.weight.lora_a", GRAFT_E_UNKNOWN_TARGET},
        {"enc.blk.0.attn_q.weight.lora_a", GRAFT_E_UNKNOWN_TARGET},
        {"x.weight.lora_a", GRAFT_E_UNKNOWN_TARGET},
        {"blk.0.1234567890123456789012345678901234567890123456789012.weight.lora_a", GRAFT_E_UNEXPECTED_TENSOR},
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        graft_error err = {0};
        gr_module_name name;
        char *tensor = exact_copy(cases[i].tensor, strlen(cases[i].tensor) + 1);
        int code = gr_gguf_name_parse(&name, arch("llama"), tensor, &err);
        free(tensor);
        expect_code(cases[i].tensor, code, cases[i].code, &err);
    }
    graft_error err = {0};
    gr_module_name name;
    assert_int_equal(gr_gguf_name_parse(&name, arch("llama"), "blk.12.attn_k.weight.lora_b", &err), 0);
    assert_int_equal(name.layer, 12);
    assert_int_equal(name.part, GR_PART_B);
    assert_string_equal(name.weight, "blk.12.attn_k.weight");
    assert_string_equal(name.path, "blk.12.attn_k.weight");
    assert_string_equal(name.rule->module, "self_attn.k_proj");
    assert_int_equal(gr_gguf_name_parse(&name, NULL, "blk.12.attn_k.weight.lora_b", &err), 0);
    assert_null(name.rule);
    assert_int_equal(gr_gguf_name_parse(&name, arch("llama"), "blk.0.attn_rel_b.weight.lora_a", &err), 0);
    assert_null(name.rule);
    assert_int_equal(gr_gguf_name_parse(&name, arch("llama"), "token_embd.weight.lora_a", &err), 0);
    assert_int_equal(name.rule->role, GR_ROLE_EMBEDDING);
    assert_int_equal(name.layer, -1);
    assert_int_equal(gr_gguf_name_parse(&name, arch("llama"), "blk.1.attn_norm.weight", &err), 0);
    assert_int_equal(name.part, GR_PART_VALUE);
    assert_int_equal(name.rule->role, GR_ROLE_NORM);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(maps_modules),
        cmocka_unit_test(tables_are_sound),
        cmocka_unit_test(maps_what_is_no_product_in_a_layer),
        cmocka_unit_test(knows_the_parts),
        cmocka_unit_test(takes_mlx_names_apart),
        cmocka_unit_test(takes_names_apart),
        cmocka_unit_test(needs_the_whole_layer_path),
        cmocka_unit_test(says_what_there_is),
        cmocka_unit_test(survives_long_names),
        cmocka_unit_test(takes_gguf_names_apart),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
