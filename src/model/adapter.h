/*
 * An adapter in memory: immutable once built, shared by counting. Only a plan can build one.
 *
 * Packing. For each module A is stored as [rank][n_in] (row k is what x is multiplied with to give t[k]) and B
 * transposed as [rank][n_out] (row k is what t[k] spreads over y), so both kernels run along contiguous memory.
 * Rows are padded with zeros to a multiple of GR_PAD elements; each matrix starts 64-byte aligned, so its rows are
 * 64-byte aligned in float32 and float16. The scale is not folded in: it is applied in float32 to t, so float16 files
 * are stored exactly.
 *
 * Q8_0 is ggml's block form (convert.h): 32 neighbours in a packed row share a factor, 34 bytes instead of float16's 64.
 * Only the matrices are rounded: x and t stay float32, and every product is one of float32 numbers.
 */
#ifndef GR_ADAPTER_H
#define GR_ADAPTER_H

#include "model/verify.h"

#include <stdatomic.h>

#define GR_PAD 32 /* elements; rows of A and B^T are padded to it: GR_Q8_0_BLOCK, so that rows are whole blocks */

/* DoRA: what y is multiplied with, for any factor f: m / sqrt(ww + 2 c wba + c c bb), c = f * scale. Rows as in the GGUF. */
typedef struct gr_gain {
    const float *magnitude; /* [n_out] */
    const float *ww;        /* |row of W|^2 */
    const float *wba;       /* row of W times row of BA */
    const float *bb;        /* |row of BA|^2 */
} gr_gain;

/*
 * The same for one kind of change to one weight (gr_kind says what it computes). n_in and n_out are those of the operation:
 * for GR_OP_ROWS x is a one-hot vector of n_in tokens, and y an embedding of n_out numbers.
 *   LOW_RANK  a, b, scale; gain, shift or NULL. For GR_OP_ROWS a is [n_in][stride_rank]: column A[:, token] is contiguous
 *   WHOLE     a: [n_out][stride_in] for a product; [n_in][stride_out] for rows
 *   TOKENS    a: [n_tokens][stride], one row a token, and `tokens`
 *   NORM      factor: [n_out]: (v - w) / w
 *   BIAS      shift: [n_out]: v - w
 */
typedef struct gr_module {
    int weight;          /* id in the base's table */
    gr_kind kind;
    gr_op op;
    int rank;
    int n_in, n_out;     /* of the operation; n_out: rows that are changed */
    int first;           /* the first of them: y[first] to y[first + n_out - 1] */
    int stride_in;       /* n_in rounded up to GR_PAD: elements between rows of A */
    int stride_out;      /* n_out rounded up: elements between rows of B^T */
    float scale;
    gr_dtype type;       /* GR_DTYPE_F16, GR_DTYPE_F32 or GR_DTYPE_Q8_0 */
    const void *a;       /* [rank][stride_in] */
    const void *b;       /* [rank][stride_out]: B transposed, rows already permuted */
    int stride_rank;     /* LOW_RANK by rows: elements between columns of A; a multiple of GR_PAD */
    gr_gain gain;        /* magnitude NULL: no DoRA */
    const float *shift;  /* LOW_RANK: scale * bias of B, BIAS: the difference; or NULL */
    const float *factor; /* NORM */
    const int32_t *tokens; /* TOKENS, ascending */
    int n_tokens;
    bool zero;           /* contributes nothing (A or B is all zero, and there is neither gain nor shift) */
    void *own;           /* holds a and b if the module could not be stored as the others are; else NULL */
} gr_module;

typedef struct gr_adapter {
    atomic_int references;    /* gr_adapter_retain / _release */
    gr_module *modules;       /* sorted by weight id, op, first row */
    size_t n_modules;
    int32_t *by_weight;       /* [base->n_weights]: index of its first module, or -1; its others follow */
    size_t n_weights;
    void *block;              /* all matrices but those of modules with a block of their own */
    uint64_t bytes;           /* everything this object allocated */
    int rank_min, rank_max;
    bool no_effect;           /* every module is zero */
    bool by_rows_only;        /* something in it that libllama's own adapters cannot do: not for grouped mode */
    int32_t *invocation;      /* aLoRA: active from the last occurrence of these tokens on; NULL: always */
    int n_invocation;
    graft_adapter_type type;  /* as asked for; single modules may be of a wider one: see gr_adapter_build */
    char generation[65];      /* hex SHA-256 over config and weights file, as read */
    char *path;
    const char *format;       /* "peft", "gguf" */
    double load_ms;
} gr_adapter;

/* Bytes of n packed elements; n is a multiple of GR_PAD for Q8_0. */
size_t gr_packed_size(gr_dtype type, size_t n);

/* Bytes that gr_adapter_build will hold, known before reading any matrix. Modules that do not fit `type` add to it. */
uint64_t gr_adapter_size(const gr_plan *plan, graft_adapter_type type);

/*
 * Reads, converts, permutes and packs all matrices; hashes the whole weights file on the way, in one pass, so the
 * generation is that of the very bytes that were packed. Large files are hashed on a thread of the call's own.
 *
 * With F16 a module stays in F32 if a value of a BF16 or F32 file exceeds 65504, or if a whole matrix is so small
 * (below 2^-14) that float16 would lose its precision. With Q8_0 it stays in F16, or in F32 by the same rules, if a value
 * exceeds 65024 or a whole matrix is below 2^-14, where the blocks' float16 factors would have no more than three bits.
 * Small blocks in a matrix that is larger as a whole lose no more than they would in float16.
 * Errors: NON_FINITE (tensor and index), IO_ERROR, CHANGED_WHILE_READING, OUT_OF_MEMORY. No lock, any thread.
 * *out has one reference.
 */
int gr_adapter_build(gr_adapter **out, const gr_plan *plan, graft_adapter_type type, graft_error *err);

/* From path to adapter: open, verify, build. The whole of loading. Warnings go to `log` (may be NULL). Errors: those of
 * gr_source_open, gr_verify and gr_adapter_build. */
int gr_adapter_open(gr_adapter **out, const gr_base_model *base, const char *path, graft_adapter_type type,
                    uint64_t max_bytes, const gr_log *log, graft_error *err);

/* Of TOKENS: which row of `a` is the token's; -1: none. */
int gr_module_token(const gr_module *m, int64_t token);

gr_adapter *gr_adapter_retain(gr_adapter *a);
/* Frees at the last reference. NULL is fine. */
void gr_adapter_release(gr_adapter *a);

#endif
