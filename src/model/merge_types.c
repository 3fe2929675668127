/* The list of types, and llama.cpp's rules in so far as they concern the architectures that graft knows. */
#include "merge_types.h"

#include <llama.h>
#include <string.h>

static const struct {
    const char *name;
    enum ggml_type type;
    uint32_t file_type;
} types[] = {
    {"same", GR_MERGE_SAME, 0},
    {"f32", GGML_TYPE_F32, LLAMA_FTYPE_ALL_F32},
    {"f16", GGML_TYPE_F16, LLAMA_FTYPE_MOSTLY_F16},
    {"bf16", GGML_TYPE_BF16, LLAMA_FTYPE_MOSTLY_BF16},
    {"q8_0", GGML_TYPE_Q8_0, LLAMA_FTYPE_MOSTLY_Q8_0},
    {"q6_k", GGML_TYPE_Q6_K, LLAMA_FTYPE_MOSTLY_Q6_K},
    {"q5_k", GGML_TYPE_Q5_K, LLAMA_FTYPE_MOSTLY_Q5_K_S},
    {"q5_1", GGML_TYPE_Q5_1, LLAMA_FTYPE_MOSTLY_Q5_1},
    {"q5_0", GGML_TYPE_Q5_0, LLAMA_FTYPE_MOSTLY_Q5_0},
    {"q4_k", GGML_TYPE_Q4_K, LLAMA_FTYPE_MOSTLY_Q4_K_S},
    {"q4_1", GGML_TYPE_Q4_1, LLAMA_FTYPE_MOSTLY_Q4_1},
    {"q4_0", GGML_TYPE_Q4_0, LLAMA_FTYPE_MOSTLY_Q4_0},
    {"q3_k", GGML_TYPE_Q3_K, LLAMA_FTYPE_MOSTLY_Q3_K_S},
    {"q2_k", GGML_TYPE_Q2_K, LLAMA_FTYPE_MOSTLY_Q2_K},
};

enum { N_TYPES = sizeof types / sizeof *types };

bool gr_merge_type_find(enum ggml_type *out, const char *name) {
    for (size_t i = 0; i < N_TYPES; i++) {
        if (strcmp(name, types[i].name) == 0) {
            *out = types[i].type;
            return true;
        }
    }
    return false;
}

uint32_t gr_merge_file_type(enum ggml_type type) {
    for (size_t i = 0; i < N_TYPES; i++) {
        if (types[i].type == type) {
            return types[i].file_type;
        }
    }
    return LLAMA_FTYPE_GUESSED;
}

/* What graphs use otherwise than in matrix products stays as it is. */
static bool is_product(const char *name, const int64_t ne[4]) {
    static const char *const others[] = {"_norm.weight", "position_embd", "token_types", "ffn_gate_inp", "rope_", "ssm_",
                                         "shortconv",    "time_mix"};
    size_t n = strlen(name);
    if (ne[1] * ne[2] * ne[3] <= 1 || n < 6 || strcmp(name + n - 6, "weight") != 0) {
        return false;
    }
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
        if (strstr(name, others[i])) {
            return false;
        }
    }
    return true;
}

/* Coarser than Q6_K. */
static bool is_coarse(enum ggml_type t) {
    return ggml_is_quantized(t) && t != GGML_TYPE_Q8_0 && t != GGML_TYPE_Q6_K;
}

static enum ggml_type next_type(enum ggml_type t) {
    switch (t) {
    case GGML_TYPE_Q6_K: return GGML_TYPE_Q8_0;
    case GGML_TYPE_Q5_K: return GGML_TYPE_Q5_1;
    case GGML_TYPE_Q4_K: return GGML_TYPE_Q5_0;
    case GGML_TYPE_Q3_K:
    case GGML_TYPE_Q2_K: return GGML_TYPE_Q4_0;
    default: return GGML_TYPE_F16;
    }
}

enum ggml_type gr_merge_type_of(enum ggml_type wanted, const char *name, bool head, enum ggml_type own, const int64_t ne[4]) {
    if (wanted == GR_MERGE_SAME || !is_product(name, ne) || !gr_merge_type_readable(own)) {
        return own;
    }
    enum ggml_type t = head && is_coarse(wanted) ? GGML_TYPE_Q6_K : wanted;
    while (ne[0] % ggml_blck_size(t) != 0) {
        t = next_type(t);
    }
    return t;
}

bool gr_merge_type_writable(enum ggml_type t) {
    switch (t) {
    case GGML_TYPE_IQ4_NL:
    case GGML_TYPE_IQ4_XS:
    case GGML_TYPE_IQ3_S:
    case GGML_TYPE_IQ3_XXS:
    case GGML_TYPE_MXFP4:
    case GGML_TYPE_TQ1_0:
    case GGML_TYPE_TQ2_0: return true;
    default: break;
    }
    for (size_t i = 1; i < N_TYPES; i++) {
        if (types[i].type == t) {
            return true;
        }
    }
    return false;
}

bool gr_merge_type_readable(enum ggml_type t) {
    return t == GGML_TYPE_F32 || ggml_get_type_traits(t)->to_float != NULL;
}
