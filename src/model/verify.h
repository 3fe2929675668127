/*
 * Does this adapter fit this base? The answer is a plan, from which alone an adapter can be built, or every
 * reason why not.
 */
#ifndef GR_VERIFY_H
#define GR_VERIFY_H

#include "model/base_model.h"
#include "model/source.h"

#define GR_MAX_RANK 1024

/*
 * What the adapter does to one weight of the base, or to some rows of it. With f, the factor that a request gives the
 * adapter, and y what libllama computed:
 *   LOW_RANK  y += f s B (A x), with DoRA y = g(f) (y + f s B A x), and y += f s bias
 *   WHOLE     y = (1 - f) y + f W x, for another W
 *   TOKENS    the same for some rows of an embedding or a head
 *   NORM      y *= 1 + f (v - w) / w for another v than the base's w
 *   BIAS      y += f (v - w)
 */
typedef enum gr_kind { GR_LOW_RANK, GR_WHOLE, GR_TOKENS, GR_NORM, GR_BIAS } gr_kind;

/* The node of libllama's graph in which that happens: a tied embedding is one weight, but has a product and rows. */
typedef enum gr_op {
    GR_OP_PRODUCT, /* MUL_MAT with the weight */
    GR_OP_ROWS,    /* GET_ROWS of it: x is the one-hot vector of a token */
    GR_OP_MUL,     /* a norm's MUL with it */
    GR_OP_ADD,     /* ADD of it */
    GR_OPS
} gr_op;

typedef struct gr_plan_entry {
    gr_kind kind;
    gr_op op;
    int weight;               /* id in the base's table */
    char *module;             /* name for people: the module's path, or the GGUF weight's name */
    /* LOW_RANK; tensors are borrowed from the source. Several entries may share one: a fused module over split weights */
    const gr_tensor_info *a;  /* [rank][n_in]; for rows n_in is the number of tokens */
    const gr_tensor_info *b;  /* [rows of the module][rank] */
    const gr_tensor_info *magnitude; /* DoRA: [rows of the module], or NULL */
    const gr_tensor_info *bias;      /* lora_bias: [rows of the module], or NULL */
    bool transposed;          /* as mlx-lm has them: a is [n_in][rank], b [rank][rows of the module]. (Of a GGUF adapter's
                               * token_embd only a is so, whatever this says.) */
    int rank;                 /* from the shapes */
    double scale;             /* alpha, patterns and rsLoRA applied */
    /* WHOLE, TOKENS, NORM, BIAS */
    const gr_tensor_info *value; /* [rows of the module][n_in], [n_tokens][n_in], [rows of the module] */
    const int32_t *tokens;    /* TOKENS: value's row i is that of token tokens[i]; borrowed from the source */
    size_t n_tokens;
    float added;              /* NORM: what conversion to GGUF added to the values of the checkpoint (gemma: 1) */
    /* which rows */
    gr_row_map rows;          /* how the file's rows lie in the GGUF */
    int64_t first_in_file;    /* the module's first row that belongs to this weight (a fused module over split weights) */
    int64_t first;            /* the weight's first row that is changed (a split module on a fused weight) */
    int64_t n_rows;           /* GR_OP_ROWS: first 0, all numbers of an embedding; TOKENS of a head: all tokens */
} gr_plan_entry;

typedef struct gr_plan {
    const gr_base_model *base;
    const gr_source *source;  /* must outlive the plan */
    gr_plan_entry *entries;   /* sorted by weight id, op, first row */
    size_t n;
    int rank_min, rank_max;   /* of LOW_RANK; 0 if there is none */
    const int32_t *invocation; /* aLoRA: active from the last occurrence of these tokens on; borrowed. NULL: always */
    size_t n_invocation;
} gr_plan;

/*
 * Checks every tensor of the source against the base: bound to a weight, in pairs, ranks equal and 1 to GR_MAX_RANK
 * and in agreement with the config, shapes as the base's, no rows of a weight twice; config options against the tensors, both
 * ways, and against the architecture. A plan exists only if every tensor was bound, or told in a warning (copies of the base's own
 * weights), and report has no error. Reasons go to `report`; returns gr_report_result's code then (with the first in err).
 * OUT_OF_MEMORY may come without a reason.
 *
 * Codes, one reason per tensor: MISSING_PAIR (also: DoRA without a magnitude, lora_bias without a bias), RANK_MISMATCH, WRONG_SHAPE
 * (also: another vocabulary), UNKNOWN_TARGET (a layer or module that the base lacks), UNSUPPORTED_TARGET, DUPLICATE_TARGET,
 * BAD_RANK, BAD_ALPHA, BASE_WEIGHTS_INCLUDED, UNSUPPORTED_ADAPTER, UNEXPECTED_TENSOR (one that the config says is not there). One
 * for all: ZERO_TARGETS when every tensor lies outside of the base's paths, UNMAPPED_TENSORS when some do. By key:
 * UNSUPPORTED_ADAPTER (fan_in_fan_out, aLoRA with more than products), WRONG_BASE (GGUF's architecture), UNKNOWN_TARGET and
 * PATTERN_UNUSED for a layer in layers_to_transform that the base lacks or that has no tensors, PATTERN_UNUSED for patterns and
 * modules_to_save, MISSING_PAIR for trainable_token_indices, OUT_OF_RANGE for token ids. UNSUPPORTED_MODEL alone.
 * *out: gr_plan_free.
 */
int gr_verify(gr_plan **out, const gr_base_model *base, gr_source *source, gr_report *report, graft_error *err);
void gr_plan_free(gr_plan *p);

/* What an entry is, in a word for people: "LoRA", "DoRA", "LoRA + bias", the same with "head" or "embedding" before it, "head",
 * "embedding", "head tokens", "embedding tokens", "norm", "bias". Static storage. */
const char *gr_plan_entry_kind(const gr_plan *p, const gr_plan_entry *e);

#endif
