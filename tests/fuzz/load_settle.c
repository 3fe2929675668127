/*
 * For each known module whose A is in the header: A and B in the base's shapes with A's rank, that rank in rank_pattern, the magnitude if
 * the config says DoRA, the bias if it says lora_bias. Every other tensor goes, and so do options that need other ones.
 */
#include "load_settle.h"

#include <stdio.h>
#include <string.h>

static const char prefix[] = "base_model.model.";

/* Of bases/llama.gguf. */
static const struct {
    const char *name;
    int in, out;
} modules[] = {
    {"self_attn.q_proj", 64, 64}, {"self_attn.k_proj", 64, 32}, {"self_attn.v_proj", 64, 32}, {"self_attn.o_proj", 64, 64},
    {"mlp.gate_proj", 64, 96},    {"mlp.up_proj", 64, 96},      {"mlp.down_proj", 96, 64},
};

static void put(json_t *header, const char *path, const char *part, const char *dtype, json_t *shape) {
    char name[200];
    snprintf(name, sizeof name, "%s%s.%s", prefix, path, part);
    json_object_set_new(header, name, json_pack("{s:s,s:o,s:[i,i]}", "dtype", dtype, "shape", shape, "data_offsets", 0, 0));
}

static void settle_module(json_t *config, json_t *out, json_t *ranks, const char *path, const json_t *a, int in, int width) {
    const char *dtype = json_string_value(json_object_get(a, "dtype"));
    json_int_t rank = json_integer_value(json_array_get(json_object_get(a, "shape"), 0));
    rank = rank >= 1 && rank <= 24 ? rank : 1;
    dtype = dtype && (strcmp(dtype, "F16") == 0 || strcmp(dtype, "BF16") == 0) ? dtype : "F32";
    put(out, path, "lora_A.weight", dtype, json_pack("[I,i]", rank, in));
    put(out, path, "lora_B.weight", dtype, json_pack("[i,I]", width, rank));
    if (json_is_true(json_object_get(config, "use_dora"))) {
        put(out, path, "lora_magnitude_vector", dtype, json_pack("[i]", width));
    }
    if (json_is_true(json_object_get(config, "lora_bias"))) {
        put(out, path, "lora_B.bias", dtype, json_pack("[i]", width));
    }
    json_object_set_new(ranks, path, json_integer(rank));
}

void fuzz_settle(json_t *config, json_t *header) {
    static const char *const off[] = {"modules_to_save", "trainable_token_indices", "alora_invocation_tokens", "target_parameters",
                                      "layer_replication", "layers_to_transform", "alpha_pattern", "init_lora_weights"};
    json_t *out = json_object(), *ranks = json_object();
    for (int layer = 0; layer < 2; layer++) {
        for (size_t i = 0; i < sizeof modules / sizeof *modules; i++) {
            char path[100], name[200];
            snprintf(path, sizeof path, "model.layers.%d.%s", layer, modules[i].name);
            snprintf(name, sizeof name, "%s%s.lora_A.weight", prefix, path);
            const json_t *a = json_object_get(header, name);
            if (a) {
                settle_module(config, out, ranks, path, a, modules[i].in, modules[i].out);
            }
        }
    }
    if (json_object_size(out) == 0) {
        settle_module(config, out, ranks, "model.layers.0.self_attn.q_proj", NULL, 64, 64);
    }
    json_object_clear(header);
    json_object_update(header, out);
    json_decref(out);
    json_object_set_new(config, "rank_pattern", ranks);
    for (size_t i = 0; i < sizeof off / sizeof *off; i++) {
        json_object_del(config, off[i]);
    }
    json_object_set_new(config, "peft_type", json_string("LORA"));
    json_object_set_new(config, "bias", json_string("none"));
    json_object_set_new(config, "fan_in_fan_out", json_false());
}

void fuzz_settle_values(uint8_t *data, size_t bytes, const char *dtype) {
    size_t width = strcmp(dtype, "F32") == 0 ? 4 : 2, exponent = strcmp(dtype, "F16") == 0 ? 0x7c : 0x7f;
    for (size_t i = width - 1; i < bytes; i += width) {
        /* The exponent's upper bits lie in the last byte: below 2, whatever the type. */
        if ((data[i] & exponent) >= 0x40) {
            data[i] &= 0xbf;
        }
    }
}
