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

/* The order of the rows of one weight: ROPE orders have this many heads. */
typedef struct gr_row_map {
    gr_row_order order;
    int heads;
} gr_row_map;

typedef struct gr_module_rule {
    const char *module;   /* path within a layer: "self_attn.q_proj" */
    const char *weight;   /* within blk.N.: "attn_q.weight" */
    gr_row_order order;
} gr_module_rule;

typedef struct gr_arch {
    const char *name;     /* general.architecture */
    const char *layers;   /* path of the layer list: "model.layers", gpt2: "transformer.h" */
    const char *const *also; /* other paths of it, as multimodal wrappers have; NULL-terminated, or NULL */
    bool conv1d;          /* Conv1D modules: fan_in_fan_out is allowed */
    const gr_module_rule *rules;
    size_t n_rules;
} gr_arch;

/* The table entry, or NULL. */
const gr_arch *gr_arch_find(const char *architecture);
/* All of them, for messages and docs. */
const gr_arch *gr_arch_list(size_t *n);

typedef enum gr_lora_part { GR_PART_A, GR_PART_B } gr_lora_part;

/* A tensor name of a PEFT file taken apart. */
typedef struct gr_module_name {
    char path[512];       /* module path without prefix: "model.layers.0.self_attn.q_proj" */
    gr_lora_part part;
    int layer;            /* canonical decimal, no leading zeros */
    const gr_module_rule *rule;
    char weight[64];      /* "blk.0.attn_q.weight" */
} gr_module_name;

/*
 * Takes apart "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight" (also without ".weight" or with
 * ".default." between, as hand-saved files have). Returns 0 or:
 *   UNSUPPORTED_ADAPTER  a name that PEFT uses for what graft does not apply (lora_magnitude_vector,
 *                        lora_embedding_A, lora_B.bias, trainable_tokens_delta, modules_to_save, experts, …)
 *   BASE_WEIGHTS_INCLUDED  ….base_layer.weight
 *   UNSUPPORTED_TARGET   a known module that is no plain product in a layer (embed_tokens, lm_head, norms, score)
 *   UNKNOWN_TARGET       looks like a LoRA tensor, but the architecture has no such module or layer path
 *   UNEXPECTED_TENSOR    no LoRA tensor at all
 * The message says which and, for UNKNOWN_TARGET, which modules the architecture has. `tensor` is a name out of a
 * gr_tensor_list, so printable. *out is set only on success.
 */
int gr_module_name_parse(gr_module_name *out, const gr_arch *arch, const char *tensor, graft_error *err);

/*
 * The same for a GGUF adapter's "blk.0.attn_q.weight.lora_a": checks form and part, gives weight and layer (path
 * is the weight's name, rule NULL unless the architecture's table has the weight; `arch` may be NULL). Rows of a
 * GGUF adapter are in the GGUF's order already: rule->order is not for it. Errors: UNEXPECTED_TENSOR,
 * UNKNOWN_TARGET (not a weight of a layer), UNSUPPORTED_TARGET (token_embd, output, norms, biases).
 */
int gr_gguf_name_parse(gr_module_name *out, const gr_arch *arch, const char *tensor, graft_error *err);

#endif
