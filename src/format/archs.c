/*
 * The tables that say which module of the Hugging Face model is which weight of the GGUF. A row belongs here only if
 * llama.cpp's conversion leaves the weight in one piece, with its rows in an order that gr_row_order has, and if
 * libllama's graph uses it in a plain matrix product (linear layers, heads), by rows (embeddings) or as a norm's factors. That
 * is why some are missing: falcon, bloom, baichuan, internlm2 and chatglm reorder or split fused weights otherwise;
 * glm4 has two row orders under one name; in mixtures of experts the experts are 3-D.
 */
#include "module_names.h"

#include <string.h>

#define LINEAR(module, weight, order) {module, weight, order, GR_ROLE_LINEAR, GR_SHARE_ALL}
#define SHARED(module, weight, share) {module, weight, GR_ROWS_AS_IS, GR_ROLE_LINEAR, share}
#define NORM(module, weight) {module, weight, GR_ROWS_AS_IS, GR_ROLE_NORM, GR_SHARE_ALL}

#define Q(module, order) LINEAR(module, "attn_q.weight", order)
#define K(module, order) LINEAR(module, "attn_k.weight", order)
#define V(module) LINEAR(module, "attn_v.weight", GR_ROWS_AS_IS)
#define QKV(module) LINEAR(module, "attn_qkv.weight", GR_ROWS_AS_IS)
#define OUT(module) LINEAR(module, "attn_output.weight", GR_ROWS_AS_IS)
#define GATE(module) LINEAR(module, "ffn_gate.weight", GR_ROWS_AS_IS)
#define UP(module) LINEAR(module, "ffn_up.weight", GR_ROWS_AS_IS)
#define DOWN(module) LINEAR(module, "ffn_down.weight", GR_ROWS_AS_IS)

/* ---- linear layers -------------------------------------------------------------------------------------- */

/* Fused modules over split weights stand last: in checkpoints that others have fused, as Phi-3 is to Llama. */
#define ATTENTION(q, k) \
    Q("self_attn.q_proj", q), K("self_attn.k_proj", k), V("self_attn.v_proj"), OUT("self_attn.o_proj")
/* Rope as pairs (libllama's NORM): conversion regroups the rows of q and k. */
#define ATTENTION_ROPE ATTENTION(GR_ROWS_ROPE_Q, GR_ROWS_ROPE_K)
/* Rope as halves (NEOX), or a checkpoint that has pairs already. */
#define ATTENTION_AS_IS ATTENTION(GR_ROWS_AS_IS, GR_ROWS_AS_IS)
#define GATED GATE("mlp.gate_proj"), UP("mlp.up_proj"), DOWN("mlp.down_proj")
#define UNGATED UP("mlp.up_proj"), DOWN("mlp.down_proj")
#define FUSED_QKV QKV("self_attn.qkv_proj")
#define FUSED_GATE_UP SHARED("mlp.gate_up_proj", "ffn_gate.weight", GR_SHARE_GATE_UP)
/* What a mixture of experts has besides its experts. */
#define ROUTER LINEAR("mlp.gate", "ffn_gate_inp.weight", GR_ROWS_AS_IS)
#define SHARED_EXPERT                                                              \
    LINEAR("mlp.shared_expert.gate_proj", "ffn_gate_shexp.weight", GR_ROWS_AS_IS), \
        LINEAR("mlp.shared_expert.up_proj", "ffn_up_shexp.weight", GR_ROWS_AS_IS), \
        LINEAR("mlp.shared_expert.down_proj", "ffn_down_shexp.weight", GR_ROWS_AS_IS)

static const gr_module_rule rope_gated[] = {ATTENTION_ROPE, GATED, FUSED_QKV, FUSED_GATE_UP};
static const gr_module_rule rope_ungated[] = {ATTENTION_ROPE, UNGATED, FUSED_QKV};
static const gr_module_rule plain_gated[] = {ATTENTION_AS_IS, GATED, FUSED_QKV, FUSED_GATE_UP};
static const gr_module_rule plain_ungated[] = {ATTENTION_AS_IS, UNGATED, FUSED_QKV};
static const gr_module_rule qwen2moe[] = {ATTENTION_AS_IS, ROUTER, SHARED_EXPERT, FUSED_QKV};
/* The first layers of some have a feed-forward part in place of experts. */
static const gr_module_rule qwen3moe[] = {ATTENTION_AS_IS, GATED, ROUTER, FUSED_QKV, FUSED_GATE_UP};
static const gr_module_rule phi2[] = {Q("self_attn.q_proj", GR_ROWS_AS_IS),
                                      K("self_attn.k_proj", GR_ROWS_AS_IS),
                                      V("self_attn.v_proj"),
                                      OUT("self_attn.dense"),
                                      UP("mlp.fc1"),
                                      DOWN("mlp.fc2")};
/* Fused weights keep their order: q, k, v; gate, up. Split modules are those of checkpoints made Llama's. */
static const gr_module_rule phi3[] = {QKV("self_attn.qkv_proj"),
                                      OUT("self_attn.o_proj"),
                                      UP("mlp.gate_up_proj"),
                                      DOWN("mlp.down_proj"),
                                      Q("self_attn.q_proj", GR_ROWS_AS_IS),
                                      K("self_attn.k_proj", GR_ROWS_AS_IS),
                                      V("self_attn.v_proj"),
                                      SHARED("mlp.gate_proj", "ffn_up.weight", GR_SHARE_GATE),
                                      SHARED("mlp.up_proj", "ffn_up.weight", GR_SHARE_UP)};
static const gr_module_rule gpt2[] = {QKV("attn.c_attn"), OUT("attn.c_proj"), UP("mlp.c_fc"),
                                      DOWN("mlp.c_proj")};
/* Its gate is the second of the two. */
static const gr_module_rule qwen[] = {QKV("attn.c_attn"), OUT("attn.c_proj"), UP("mlp.w1"), GATE("mlp.w2"),
                                      DOWN("mlp.c_proj")};
static const gr_module_rule gptneox[] = {
    LINEAR("attention.query_key_value", "attn_qkv.weight", GR_ROWS_NEOX_QKV), OUT("attention.dense"),
    UP("mlp.dense_h_to_4h"), DOWN("mlp.dense_4h_to_h")};
static const gr_module_rule starcoder2[] = {ATTENTION_AS_IS, UP("mlp.c_fc"), DOWN("mlp.c_proj")};
static const gr_module_rule exaone[] = {Q("attn.attention.q_proj", GR_ROWS_AS_IS),
                                        K("attn.attention.k_proj", GR_ROWS_AS_IS),
                                        V("attn.attention.v_proj"),
                                        OUT("attn.attention.out_proj"),
                                        GATE("mlp.c_fc_0"),
                                        UP("mlp.c_fc_1"),
                                        DOWN("mlp.c_proj")};

/* ---- norms ---------------------------------------------------------------------------------------------- */

#define NORMS_BEFORE \
    NORM("input_layernorm", "attn_norm.weight"), NORM("post_attention_layernorm", "ffn_norm.weight")
#define NORMS_AFTER                                                     \
    NORM("post_attention_layernorm", "post_attention_norm.weight"),     \
        NORM("post_feedforward_layernorm", "post_ffw_norm.weight")
#define NORMS_QK(q, k) NORM("self_attn." q, "attn_q_norm.weight"), NORM("self_attn." k, "attn_k_norm.weight")
#define NORMS_AROUND                                                                                      \
    NORM("input_layernorm", "attn_norm.weight"), NORM("pre_feedforward_layernorm", "ffn_norm.weight"), NORMS_AFTER

static const gr_module_rule norms_before[] = {NORMS_BEFORE};
static const gr_module_rule norms_before_qk[] = {NORMS_BEFORE, NORMS_QK("q_norm", "k_norm")};
static const gr_module_rule norms_hunyuan[] = {NORMS_BEFORE, NORMS_QK("query_layernorm", "key_layernorm")};
static const gr_module_rule norms_after_qk[] = {NORMS_AFTER, NORMS_QK("q_norm", "k_norm")};
static const gr_module_rule norms_around[] = {NORMS_AROUND};
static const gr_module_rule norms_around_qk[] = {NORMS_AROUND, NORMS_QK("q_norm", "k_norm")};
/* Attention and feed-forward part side by side behind one norm. */
static const gr_module_rule norms_one[] = {NORM("input_layernorm", "attn_norm.weight")};
static const gr_module_rule norms_seed_oss[] = {NORM("input_layernorm", "attn_norm.weight"),
                                                NORM("post_attention_layernorm", "post_attention_norm.weight")};
static const gr_module_rule norms_apertus[] = {NORM("attention_layernorm", "attn_norm.weight"),
                                               NORM("feedforward_layernorm", "ffn_norm.weight"),
                                               NORMS_QK("q_norm", "k_norm")};
static const gr_module_rule norms_gpt2[] = {NORM("ln_1", "attn_norm.weight"), NORM("ln_2", "ffn_norm.weight")};

/* ---- outside of layers ---------------------------------------------------------------------------------- */

#define EMBEDDING(module) {module, "token_embd.weight", GR_ROWS_AS_IS, GR_ROLE_EMBEDDING, GR_SHARE_ALL}
#define HEAD(module) {module, "output.weight", GR_ROWS_AS_IS, GR_ROLE_HEAD, GR_SHARE_ALL}

static const gr_module_rule outer[] = {EMBEDDING("embed_tokens"), NORM("norm", "output_norm.weight")};
static const gr_module_rule outer_bare[] = {EMBEDDING("embed_tokens")}; /* its norms have no weights */
static const gr_module_rule outer_phi2[] = {EMBEDDING("embed_tokens"),
                                            NORM("final_layernorm", "output_norm.weight")};
static const gr_module_rule outer_gpt2[] = {EMBEDDING("wte"), NORM("ln_f", "output_norm.weight")};
static const gr_module_rule outer_gptneox[] = {EMBEDDING("embed_in"),
                                               NORM("final_layer_norm", "output_norm.weight")};
static const gr_module_rule heads[] = {HEAD("lm_head"), HEAD("embed_out"), HEAD("language_model.lm_head")};

/* ---- architectures -------------------------------------------------------------------------------------- */

/* The same text model inside a multimodal one, as older and newer transformers name it. */
static const char *const multimodal[] = {"model.language_model.layers", "language_model.model.layers",
                                         "model.text_model.layers", NULL};

#define RULES(a) {a, sizeof a / sizeof *a}
#define NONE {NULL, 0}
#define TABLE(linear, norms, outside) {RULES(linear), norms, RULES(outside), RULES(heads)}
/* With "model.layers", the usual names outside of them, and nothing else that is special. */
#define USUAL(name, also, linear, norms) \
    {name, "model.layers", also, false, 0, TABLE(linear, RULES(norms), outer)}
/* Norms of which the checkpoint holds the difference from 1. */
#define PLUS_1(name, also, linear, norms) \
    {name, "model.layers", also, false, 1, TABLE(linear, RULES(norms), outer)}
#define GPT2_LIKE(name, conv1d, linear) \
    {name, "transformer.h", NULL, conv1d, 0, TABLE(linear, RULES(norms_gpt2), outer_gpt2)}

static const gr_arch archs[] = {
    USUAL("llama", multimodal, rope_gated, norms_before), /* also Mistral, Mixtral's attention, InternLM3 */
    USUAL("mistral3", multimodal, rope_gated, norms_before),
    USUAL("granite", multimodal, rope_gated, norms_before),
    USUAL("smollm3", NULL, rope_gated, norms_before),
    {"olmo", "model.layers", NULL, false, 0, TABLE(rope_gated, NONE, outer_bare)},
    USUAL("minicpm", NULL, rope_gated, norms_before),
    USUAL("arcee", NULL, rope_ungated, norms_before),
    USUAL("qwen2", multimodal, plain_gated, norms_before),
    USUAL("qwen3", multimodal, plain_gated, norms_before_qk),
    USUAL("qwen2vl", multimodal, plain_gated, norms_before),
    USUAL("qwen3vl", multimodal, plain_gated, norms_before_qk),
    USUAL("qwen2moe", NULL, qwen2moe, norms_before),
    USUAL("qwen3moe", NULL, qwen3moe, norms_before_qk),
    PLUS_1("gemma", multimodal, plain_gated, norms_before),
    PLUS_1("gemma2", multimodal, plain_gated, norms_around),
    PLUS_1("gemma3", multimodal, plain_gated, norms_around_qk),
    USUAL("olmo2", NULL, plain_gated, norms_after_qk), /* also Olmo 3 */
    USUAL("stablelm", NULL, plain_gated, norms_before),
    USUAL("command-r", NULL, plain_gated, norms_one),
    USUAL("cohere2", multimodal, plain_gated, norms_one),
    USUAL("exaone4", NULL, plain_gated, norms_after_qk),
    USUAL("seed_oss", NULL, plain_gated, norms_seed_oss),
    USUAL("hunyuan-dense", NULL, plain_gated, norms_hunyuan),
    USUAL("ernie4_5", NULL, plain_gated, norms_before),
    USUAL("orion", NULL, plain_gated, norms_before),
    PLUS_1("nemotron", NULL, plain_ungated, norms_before),
    USUAL("apertus", NULL, plain_ungated, norms_apertus),
    {"phi2", "model.layers", NULL, false, 0, TABLE(phi2, RULES(norms_one), outer_phi2)},
    USUAL("phi3", NULL, phi3, norms_before), /* also Phi-4 */
    GPT2_LIKE("gpt2", true, gpt2),
    GPT2_LIKE("starcoder", false, gpt2), /* GPT-2's names on plain linear layers */
    GPT2_LIKE("qwen", false, qwen),
    GPT2_LIKE("exaone", false, exaone),
    {"gptneox", "gpt_neox.layers", NULL, false, 0, TABLE(gptneox, RULES(norms_before), outer_gptneox)},
    USUAL("starcoder2", NULL, starcoder2, norms_before),
};

const gr_arch *gr_arch_list(size_t *n) {
    *n = sizeof archs / sizeof *archs;
    return archs;
}

const gr_arch *gr_arch_find(const char *architecture) {
    for (size_t i = 0; i < sizeof archs / sizeof *archs; i++) {
        if (strcmp(archs[i].name, architecture) == 0) {
            return &archs[i];
        }
    }
    return NULL;
}

size_t gr_arch_n_rules(const gr_arch *arch) {
    size_t n = 0;
    for (int kind = 0; kind < GR_RULE_KINDS; kind++) {
        n += arch->rules[kind].n;
    }
    return n;
}

size_t gr_arch_rule_index(const gr_arch *arch, const gr_module_rule *rule) {
    size_t before = 0;
    for (int kind = 0; kind < GR_RULE_KINDS; kind++) {
        const gr_rules *rules = &arch->rules[kind];
        for (size_t i = 0; i < rules->n; i++) {
            if (rule == &rules->list[i]) {
                return before + i;
            }
        }
        before += rules->n;
    }
    return before;
}

const gr_module_rule *gr_arch_rule_of(const gr_arch *arch, const char *weight) {
    for (int kind = 0; kind < GR_RULE_KINDS; kind++) {
        const gr_rules *rules = &arch->rules[kind];
        for (size_t i = 0; i < rules->n; i++) {
            if (rules->list[i].share == GR_SHARE_ALL && strcmp(rules->list[i].weight, weight) == 0) {
                return &rules->list[i];
            }
        }
    }
    return NULL;
}
