/*
 * The tables that say which module of the Hugging Face model is which weight of the GGUF, and the taking apart
 * of tensor names. A row belongs here only if llama.cpp's conversion leaves the weight in one piece, with its
 * rows as they are or regrouped for NORM rope, and if libllama's graph uses it in a plain matrix product. That
 * is why some are missing: gptneox, falcon, bloom, baichuan, internlm2 and chatglm reorder or split fused
 * weights; glm4 has two row orders under one name; in mixtures of experts the experts are 3-D.
 */
#include "module_names.h"

#include <limits.h>
#include <stdio.h>
#include <string.h>

/* ---- tables ---------------------------------------------------------------------------------------------- */

#define Q(module, order) {module, "attn_q.weight", order}
#define K(module, order) {module, "attn_k.weight", order}
#define V(module) {module, "attn_v.weight", GR_ROWS_AS_IS}
#define QKV(module) {module, "attn_qkv.weight", GR_ROWS_AS_IS}
#define OUT(module) {module, "attn_output.weight", GR_ROWS_AS_IS}
#define GATE(module) {module, "ffn_gate.weight", GR_ROWS_AS_IS}
#define UP(module) {module, "ffn_up.weight", GR_ROWS_AS_IS}
#define DOWN(module) {module, "ffn_down.weight", GR_ROWS_AS_IS}

/* Rope as pairs (libllama's NORM): conversion regroups the rows of q and k. */
#define ATTENTION_ROPE                                                                                   \
    Q("self_attn.q_proj", GR_ROWS_ROPE_Q), K("self_attn.k_proj", GR_ROWS_ROPE_K), V("self_attn.v_proj"), \
        OUT("self_attn.o_proj")
/* Rope as halves (NEOX), or a checkpoint that has pairs already. */
#define ATTENTION_AS_IS                                                                                \
    Q("self_attn.q_proj", GR_ROWS_AS_IS), K("self_attn.k_proj", GR_ROWS_AS_IS), V("self_attn.v_proj"), \
        OUT("self_attn.o_proj")
#define GATED GATE("mlp.gate_proj"), UP("mlp.up_proj"), DOWN("mlp.down_proj")
#define UNGATED UP("mlp.up_proj"), DOWN("mlp.down_proj")

static const gr_module_rule rope_gated[] = {ATTENTION_ROPE, GATED};
static const gr_module_rule rope_ungated[] = {ATTENTION_ROPE, UNGATED};
static const gr_module_rule plain_gated[] = {ATTENTION_AS_IS, GATED};
static const gr_module_rule plain_ungated[] = {ATTENTION_AS_IS, UNGATED};
static const gr_module_rule phi2[] = {Q("self_attn.q_proj", GR_ROWS_AS_IS),
                                      K("self_attn.k_proj", GR_ROWS_AS_IS),
                                      V("self_attn.v_proj"),
                                      OUT("self_attn.dense"),
                                      UP("mlp.fc1"),
                                      DOWN("mlp.fc2")};
/* Fused weights keep their order: q, k, v; gate, up. */
static const gr_module_rule phi3[] = {QKV("self_attn.qkv_proj"), OUT("self_attn.o_proj"),
                                      UP("mlp.gate_up_proj"), DOWN("mlp.down_proj")};
static const gr_module_rule gpt2[] = {QKV("attn.c_attn"), OUT("attn.c_proj"), UP("mlp.c_fc"),
                                      DOWN("mlp.c_proj")};
static const gr_module_rule starcoder2[] = {ATTENTION_AS_IS, UP("mlp.c_fc"), DOWN("mlp.c_proj")};
static const gr_module_rule exaone[] = {Q("attn.attention.q_proj", GR_ROWS_AS_IS),
                                        K("attn.attention.k_proj", GR_ROWS_AS_IS),
                                        V("attn.attention.v_proj"),
                                        OUT("attn.attention.out_proj"),
                                        GATE("mlp.c_fc_0"),
                                        UP("mlp.c_fc_1"),
                                        DOWN("mlp.c_proj")};

/* The same text model inside a multimodal one, as older and newer transformers name it. */
static const char *const multimodal[] = {"model.language_model.layers", "language_model.model.layers",
                                         "model.text_model.layers", NULL};

#define ARCH(name, layers, also, conv1d, rules) \
    {name, layers, also, conv1d, rules, sizeof rules / sizeof *rules}

static const gr_arch archs[] = {
    ARCH("llama", "model.layers", multimodal, false,
         rope_gated), /* also Mistral, Mixtral's attention, InternLM3 */
    ARCH("mistral3", "model.layers", multimodal, false, rope_gated),
    ARCH("granite", "model.layers", multimodal, false, rope_gated),
    ARCH("smollm3", "model.layers", NULL, false, rope_gated),
    ARCH("olmo", "model.layers", NULL, false, rope_gated),
    ARCH("minicpm", "model.layers", NULL, false, rope_gated),
    ARCH("arcee", "model.layers", NULL, false, rope_ungated),
    ARCH("qwen2", "model.layers", multimodal, false, plain_gated),
    ARCH("qwen3", "model.layers", multimodal, false, plain_gated),
    ARCH("gemma", "model.layers", multimodal, false, plain_gated),
    ARCH("gemma2", "model.layers", multimodal, false, plain_gated),
    ARCH("gemma3", "model.layers", multimodal, false, plain_gated),
    ARCH("olmo2", "model.layers", NULL, false, plain_gated), /* also Olmo 3 */
    ARCH("stablelm", "model.layers", NULL, false, plain_gated),
    ARCH("command-r", "model.layers", NULL, false, plain_gated),
    ARCH("cohere2", "model.layers", multimodal, false, plain_gated),
    ARCH("exaone4", "model.layers", NULL, false, plain_gated),
    ARCH("seed_oss", "model.layers", NULL, false, plain_gated),
    ARCH("hunyuan-dense", "model.layers", NULL, false, plain_gated),
    ARCH("ernie4_5", "model.layers", NULL, false, plain_gated),
    ARCH("orion", "model.layers", NULL, false, plain_gated),
    ARCH("nemotron", "model.layers", NULL, false, plain_ungated),
    ARCH("apertus", "model.layers", NULL, false, plain_ungated),
    ARCH("phi2", "model.layers", NULL, false, phi2),
    ARCH("phi3", "model.layers", NULL, false, phi3), /* also Phi-4 */
    ARCH("gpt2", "transformer.h", NULL, true, gpt2),
    ARCH("starcoder", "transformer.h", NULL, false, gpt2), /* GPT-2's names on plain linear layers */
    ARCH("starcoder2", "model.layers", NULL, false, starcoder2),
    ARCH("exaone", "transformer.h", NULL, false, exaone),
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

/* ---- pieces of names ------------------------------------------------------------------------------------- */

static bool ends_with(const char *s, const char *end) {
    size_t n = strlen(s), m = strlen(end);
    return n >= m && memcmp(s + n - m, end, m) == 0;
}

/* Past `begin`, or NULL. */
static const char *after(const char *s, const char *begin) {
    size_t n = strlen(begin);
    return strncmp(s, begin, n) == 0 ? s + n : NULL;
}

/* Reads "12." and returns what follows the dot; NULL unless the number is written as a program would write it.
 */
static const char *layer_number(const char *s, int *layer) {
    int value = 0;
    const char *p = s;
    while (*p >= '0' && *p <= '9') {
        if (value > (INT_MAX - 9) / 10) {
            return NULL;
        }
        value = value * 10 + (*p++ - '0');
    }
    if (p == s || *p != '.' || (*s == '0' && p > s + 1)) {
        return NULL;
    }
    *layer = value;
    return p + 1;
}

/* Names are printable (gr_tensor_name_check), but may be longer than a message should be. */
#define NAME "\"%.160s\""

/* ---- names in PEFT files --------------------------------------------------------------------------------- */

static const char peft_prefix[] = "base_model.model.";

/* Texts in a name that mean something graft does not apply, most telling first. */
static int refuse_by_name(const char *tensor, graft_error *err) {
    static const struct {
        const char *text;
        const char *means;
    } marks[] = {
        {".lora_magnitude_vector", "DoRA's magnitudes"},
        {".lora_embedding_", "an adapter on an embedding"},
        {".trainable_tokens_", "trained tokens"},
        {".token_adapter.", "trained tokens"},
        {".modules_to_save.", "a module that was trained whole"},
        {".original_module.", "a module that was trained whole"},
        {".lora_A.bias", "a bias of the adapter"},
        {".lora_B.bias", "a bias of the adapter"},
        {".lora_A.default.bias", "a bias of the adapter"},
        {".lora_B.default.bias", "a bias of the adapter"},
        {".experts.", "an adapter on the experts of a mixture"},
        {".lora_diag", "KaSA's singular values"},
        {".lora_E", "an AdaLoRA adapter"},
        {".ranknum", "an AdaLoRA adapter"},
        {".vera_", "a VeRA adapter"},
        {".ia3_", "an IA3 adapter"},
        {".hada_", "a LoHa adapter"},
        {".lokr_", "a LoKr adapter"},
        {".oft_", "an OFT adapter"},
        {".boft_", "a BOFT adapter"},
        {".lora_up.", "an adapter in the layout of image models"},
        {".lora_down.", "an adapter in the layout of image models"},
        {"prompt_embeddings", "a prompt-tuning adapter"},
    };
    for (size_t i = 0; i < sizeof marks / sizeof *marks; i++) {
        if (strstr(tensor, marks[i].text)) {
            return gr_fail(err, GRAFT_E_UNSUPPORTED_ADAPTER,
                           "tensor " NAME " holds %s, which graft does not apply", tensor, marks[i].means);
        }
    }
    if (ends_with(tensor, ".alpha")) {
        return gr_fail(err, GRAFT_E_UNSUPPORTED_ADAPTER,
                       "tensor " NAME ": an adapter in the layout of image models", tensor);
    }
    if (ends_with(tensor, ".lora_a") || ends_with(tensor, ".lora_b")) {
        return gr_fail(err, GRAFT_E_UNSUPPORTED_ADAPTER,
                       "tensor " NAME ": the layout of mlx-lm; convert the adapter to PEFT's", tensor);
    }
    return 0;
}

/* A name without lora_A and lora_B: weights of the base, something trained whole, or nothing we know. */
static int refuse_other(const char *tensor, graft_error *err) {
    if (ends_with(tensor, ".base_layer.weight")) {
        return gr_fail(err, GRAFT_E_BASE_WEIGHTS_INCLUDED,
                       "tensor " NAME
                       " is a weight of the base: save the adapter with save_embedding_layers=False",
                       tensor);
    }
    if (after(tensor, peft_prefix) && ends_with(tensor, ".bias")) {
        return gr_fail(err, GRAFT_E_UNSUPPORTED_ADAPTER,
                       "tensor " NAME " is a trained bias, which graft does not apply", tensor);
    }
    if (after(tensor, peft_prefix) && ends_with(tensor, ".weight")) {
        return gr_fail(err, GRAFT_E_UNSUPPORTED_ADAPTER,
                       "tensor " NAME
                       " is a whole weight (modules_to_save, added tokens?), which graft does not apply",
                       tensor);
    }
    return gr_fail(err, GRAFT_E_UNEXPECTED_TENSOR,
                   "tensor " NAME " is no LoRA matrix (their names are base_model.model.….lora_A.weight)",
                   tensor);
}

/* Where ".lora_A" or ".lora_B" and what may follow it begins, or NULL. */
static const char *find_lora_suffix(const char *tensor, gr_lora_part *part) {
    static const char *const rests[] = {".weight", ".default.weight", ".default", ""};
    static const char *const marks[] = {".lora_A", ".lora_B"};
    for (size_t m = 0; m < 2; m++) {
        const char *mark = strstr(tensor, marks[m]);
        for (size_t r = 0; mark && r < sizeof rests / sizeof *rests; r++) {
            if (strcmp(mark + strlen(marks[m]), rests[r]) == 0) {
                *part = m == 0 ? GR_PART_A : GR_PART_B;
                return mark;
            }
        }
    }
    return NULL;
}

/* Past "LAYERS." if the path begins with one of the architecture's layer lists, or NULL. */
static const char *past_layers(const gr_arch *arch, const char *path) {
    const char *rest = after(path, arch->layers);
    for (size_t i = 0; !(rest && *rest == '.') && arch->also && arch->also[i]; i++) {
        rest = after(path, arch->also[i]);
    }
    return rest && *rest == '.' ? rest + 1 : NULL;
}

/* Modules that every architecture has somewhere and that are no product inside a layer. */
static bool is_other_module(const char *path) {
    static const char *const names[] = {
        "embed_tokens", "lm_head",  "wte",       "wpe",  "score",     "classifier", "ln_f",           "ln_1",
        "ln_2",         "embed_in", "embed_out", "norm", "layernorm", "rotary_emb", "embed_positions"};
    const char *dot = strrchr(path, '.');
    const char *last = dot ? dot + 1 : path;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        if (strcmp(last, names[i]) == 0) {
            return true;
        }
    }
    return ends_with(last, "_norm") || ends_with(last, "layernorm");
}

/* `code`: UNKNOWN_TARGET, or UNSUPPORTED_TARGET for a module that this architecture keeps in another form. */
static int no_such_module(int code, const gr_arch *arch, const char *tensor, graft_error *err) {
    char modules[280] = "";
    size_t at = 0;
    for (size_t i = 0; i < arch->n_rules && at < sizeof modules; i++) {
        at += (size_t)snprintf(modules + at, sizeof modules - at, "%s%s", i ? ", " : "", arch->rules[i].module);
    }
    return gr_fail(err, code, "tensor " NAME ": %s has no such module%s (it has %s.N. with %s)", tensor, arch->name,
                   code == GRAFT_E_UNSUPPORTED_TARGET ? ", it is fused or split otherwise" : "", arch->layers, modules);
}

/* Whether some architecture has a module of that name: then this one has it too, but fused or split otherwise. */
static bool known_elsewhere(const char *module) {
    size_t n;
    const gr_arch *list = gr_arch_list(&n);
    for (size_t i = 0; i < n; i++) {
        for (size_t j = 0; j < list[i].n_rules; j++) {
            if (strcmp(module, list[i].rules[j].module) == 0) {
                return true;
            }
        }
    }
    return false;
}

static int find_target(gr_module_name *out, const gr_arch *arch, const char *tensor, graft_error *err) {
    const char *module = past_layers(arch, out->path);
    module = module ? layer_number(module, &out->layer) : NULL;
    for (size_t i = 0; module && i < arch->n_rules; i++) {
        if (strcmp(module, arch->rules[i].module) == 0) {
            out->rule = &arch->rules[i];
            snprintf(out->weight, sizeof out->weight, "blk.%d.%s", out->layer, out->rule->weight);
            return 0;
        }
    }
    if (is_other_module(out->path)) {
        return gr_fail(err, GRAFT_E_UNSUPPORTED_TARGET,
                       "tensor " NAME ": adapters on embeddings, heads and norms are not supported", tensor);
    }
    bool other_form = module && known_elsewhere(module);
    return no_such_module(other_form ? GRAFT_E_UNSUPPORTED_TARGET : GRAFT_E_UNKNOWN_TARGET, arch, tensor, err);
}

int gr_module_name_parse(gr_module_name *out, const gr_arch *arch, const char *tensor, graft_error *err) {
    int code = refuse_by_name(tensor, err);
    if (code) {
        return code;
    }
    gr_module_name name = {.layer = -1};
    const char *suffix = find_lora_suffix(tensor, &name.part);
    if (!suffix) {
        return refuse_other(tensor, err);
    }
    const char *path = after(tensor, peft_prefix);
    if (!path || path >= suffix) {
        return gr_fail(err, GRAFT_E_UNKNOWN_TARGET, "tensor " NAME " does not begin with base_model.model.",
                       tensor);
    }
    size_t length = (size_t)(suffix - path);
    if (length >= sizeof name.path) {
        return no_such_module(GRAFT_E_UNKNOWN_TARGET, arch, tensor, err);
    }
    memcpy(name.path, path, length);
    code = find_target(&name, arch, tensor, err);
    if (!code) {
        *out = name;
    }
    return code;
}

/* ---- names in GGUF adapters ------------------------------------------------------------------------------ */

static int check_gguf_weight(gr_module_name *name, const gr_arch *arch, const char *tensor, graft_error *err) {
    static const char *const no_products[] = {"token_embd.weight", "output.weight", "position_embd.weight",
                                              "rope_freqs.weight"};
    bool product = ends_with(name->weight, ".weight") && !ends_with(name->weight, "_norm.weight");
    for (size_t i = 0; i < sizeof no_products / sizeof *no_products; i++) {
        product = product && strcmp(name->weight, no_products[i]) != 0;
    }
    if (!product) {
        return gr_fail(err, GRAFT_E_UNSUPPORTED_TARGET,
                       "tensor " NAME ": adapters on embeddings, heads, norms and biases are not supported",
                       tensor);
    }
    const char *within = after(name->weight, "blk.");
    within = within ? layer_number(within, &name->layer) : NULL;
    if (!within || !*within) {
        return gr_fail(err, GRAFT_E_UNKNOWN_TARGET,
                       "tensor " NAME " belongs to no layer (their names begin with blk.N.)", tensor);
    }
    for (size_t i = 0; arch && i < arch->n_rules; i++) {
        if (strcmp(within, arch->rules[i].weight) == 0) {
            name->rule = &arch->rules[i];
        }
    }
    return 0;
}

int gr_gguf_name_parse(gr_module_name *out, const gr_arch *arch, const char *tensor, graft_error *err) {
    static const size_t suffix = sizeof ".lora_a" - 1;
    gr_module_name name = {.layer = -1};
    size_t length = strlen(tensor);
    bool a = ends_with(tensor, ".lora_a"), b = ends_with(tensor, ".lora_b");
    /* A second suffix inside: whoever strips suffixes by replacing text would see another weight than we do. */
    bool twice = length > suffix && (strstr(tensor, ".lora_a.") || strstr(tensor, ".lora_b."));
    if ((!a && !b) || twice || length == suffix || length - suffix >= sizeof name.weight) {
        return gr_fail(err, GRAFT_E_UNEXPECTED_TENSOR,
                       "tensor " NAME " is no LoRA matrix (their names are blk.N.….weight.lora_a and .lora_b)",
                       tensor);
    }
    name.part = a ? GR_PART_A : GR_PART_B;
    memcpy(name.weight, tensor, length - suffix);
    memcpy(name.path, tensor, length - suffix);
    int code = check_gguf_weight(&name, arch, tensor, err);
    if (!code) {
        *out = name;
    }
    return code;
}
