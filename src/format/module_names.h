/*
 * Architectures: which module of the Hugging Face model is which weight of the GGUF, and how its rows were
 * reordered on conversion. One table row per module; adding an architecture is adding rows.
 */
#ifndef GR_MODULE_NAMES_H
#define GR_MODULE_NAMES_H

#include "base/error.h"

#include <stdbool.h>
#include <stddef.h>

/* Row order of a weight in the GGUF relative to the Hugging Face checkpoint. For ROPE_Q and ROPE_K rows are
 * regrouped per head from (2, half) to (half, 2) (llama.cpp's LlamaModel.permute); B follows, A does not. For NEOX_QKV, q, k and v
 * of a head, one head after another, become q of all heads, k of all, v of all. */
typedef enum gr_row_order { GR_ROWS_AS_IS, GR_ROWS_ROPE_Q, GR_ROWS_ROPE_K, GR_ROWS_NEOX_QKV } gr_row_order;

/* The order of the rows of one weight: all orders but AS_IS have this many heads. */
typedef struct gr_row_map {
    gr_row_order order;
    int heads;
} gr_row_map;

/* What a module does with its weight, and so what of an adapter can change it. */
typedef enum gr_role { GR_ROLE_LINEAR, GR_ROLE_EMBEDDING, GR_ROLE_HEAD, GR_ROLE_NORM } gr_role;

/* How much of the weight is the module: the GGUF fuses the gate and the up projection, or the module does. (Of q, k and v
 * either may do so; which, the base's weights say.) */
typedef enum gr_share {
    GR_SHARE_ALL,
    GR_SHARE_GATE,   /* the first half of the rows of a ffn_up that has the gate in front */
    GR_SHARE_UP,     /* the second half of them */
    GR_SHARE_GATE_UP /* ffn_gate, and ffn_up after it */
} gr_share;

typedef struct gr_module_rule {
    const char *module;   /* path within a layer: "self_attn.q_proj"; outside of layers, below what has the layers: "embed_tokens" */
    const char *weight;   /* within blk.N.: "attn_q.weight"; outside "token_embd.weight" */
    gr_row_order order;
    gr_role role;
    gr_share share;
} gr_module_rule;

typedef struct gr_rules {
    const gr_module_rule *list;
    size_t n;
} gr_rules;

/* Matrices of a layer, norms of a layer, what is outside of layers but for the head, heads. */
enum { GR_RULES_LINEAR, GR_RULES_NORMS, GR_RULES_OUTER, GR_RULES_HEADS, GR_RULE_KINDS };

typedef struct gr_arch {
    const char *name;     /* general.architecture */
    const char *layers;   /* path of the layer list: "model.layers", gpt2: "transformer.h" */
    const char *const *also; /* other paths of it, as multimodal wrappers have; NULL-terminated, or NULL */
    bool conv1d;          /* Conv1D modules: fan_in_fan_out is allowed */
    float norm_added;     /* what conversion to GGUF added to the weights of norms */
    gr_rules rules[GR_RULE_KINDS];
} gr_arch;

/* The table entry, or NULL. */
const gr_arch *gr_arch_find(const char *architecture);
/* All of them, for messages and docs. */
const gr_arch *gr_arch_list(size_t *n);
/* Of all kinds together, and which of them a rule is: 0 to n - 1. */
size_t gr_arch_n_rules(const gr_arch *arch);
size_t gr_arch_rule_index(const gr_arch *arch, const gr_module_rule *rule);
/* The rule that has all of this weight ("attn_q.weight"; without "blk.N."), or NULL. */
const gr_module_rule *gr_arch_rule_of(const gr_arch *arch, const char *weight);

/* What a tensor is to its module. */
typedef enum gr_name_part {
    GR_PART_A,
    GR_PART_B,
    GR_PART_MAGNITUDE, /* of DoRA */
    GR_PART_B_BIAS,    /* of lora_bias */
    GR_PART_VALUE,     /* the whole weight, of modules_to_save */
    GR_PART_BIAS,      /* the module's own bias, trained */
    GR_PART_TOKENS,    /* the rows of trainable_token_indices */
    GR_PART_COPY,      /* of the base's own weights, that rides along: of no effect on what an adapter computes */
    GR_PARTS
} gr_name_part;

/* A tensor name taken apart. */
typedef struct gr_module_name {
    char path[512];       /* module path without prefix: "model.layers.0.self_attn.q_proj" */
    gr_name_part part;
    bool embedding;       /* A and B are written as those of embeddings are: lora_embedding_A */
    bool wrapped;         /* written with what PEFT wraps the module in: X.base_layer.bias, X.modules_to_save.weight */
    int layer;            /* canonical decimal, no leading zeros; -1 outside of layers */
    const gr_module_rule *rule;
    char weight[64];      /* "blk.0.attn_q.weight" */
} gr_module_name;

/*
 * Takes apart "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight" (also without ".weight" or with
 * ".default." between, as hand-saved files have), and the other names that PEFT writes (gr_name_part). Returns 0 or:
 *   UNSUPPORTED_ADAPTER  a name that belongs to what graft does not apply (experts, KaSA, other methods)
 *   BASE_WEIGHTS_INCLUDED  ….base_layer.weight of a linear layer
 *   UNSUPPORTED_TARGET   a module that every architecture has and that adapters cannot change (positions, score), or
 *                        that this one has fused or split otherwise
 *   UNKNOWN_TARGET       looks like a PEFT tensor, but the architecture has no such module or layer path
 *   UNEXPECTED_TENSOR    no tensor of an adapter at all, or of another kind of module
 * The message says which and, for UNKNOWN_TARGET, which modules the architecture has. `tensor` is a name out of a
 * gr_tensor_list, so printable. *out is set only on success.
 */
int gr_module_name_parse(gr_module_name *out, const gr_arch *arch, const char *tensor, graft_error *err);

/* The same for mlx-lm's "model.layers.0.self_attn.q_proj.lora_a", ".lora_b" and DoRA's ".m". */
int gr_mlx_name_parse(gr_module_name *out, const gr_arch *arch, const char *tensor, graft_error *err);

/*
 * The same for a GGUF adapter's "blk.0.attn_q.weight.lora_a": checks form and part, gives weight and layer (path
 * is the weight's name, rule NULL unless the architecture's table has the weight; `arch` may be NULL), and for whole norms,
 * "blk.0.attn_norm.weight". Rows of a GGUF adapter are in the GGUF's order already: rule->order is not for it. Errors:
 * UNEXPECTED_TENSOR, UNKNOWN_TARGET (not a weight of a layer), UNSUPPORTED_TARGET (low-rank changes of norms and
 * biases, positions).
 */
int gr_gguf_name_parse(gr_module_name *out, const gr_arch *arch, const char *tensor, graft_error *err);

#endif
