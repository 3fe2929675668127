/*
 * An adapter in memory: immutable once built, shared by counting. Only a plan can build one.
 *
 * Packing. For each module A is stored as [rank][n_in] (row k is what x is multiplied with to give t[k]) and B
 * transposed as [rank][n_out] (row k is what t[k] spreads over y), so both kernels run along contiguous memory.
 * Rows are padded with zeros to a multiple of GR_PAD elements; each matrix starts 64-byte aligned, so its rows are
 * 64-byte aligned in float32 and 32-byte aligned in float16. The scale is not folded in: it is applied in float32 to
 * t, so float16 files are stored exactly.
 */
#ifndef GR_ADAPTER_H
#define GR_ADAPTER_H

#include "model/verify.h"

#include <stdatomic.h>

#define GR_PAD 16 /* elements; rows of A and B^T are padded to it */

typedef struct gr_module {
    int weight;          /* id in the base's table */
    int rank;
    int n_in, n_out;     /* as in the base */
    int stride_in;       /* n_in rounded up to GR_PAD: elements between rows of A */
    int stride_out;      /* n_out rounded up: elements between rows of B^T */
    float scale;
    gr_dtype type;       /* GR_DTYPE_F16 or GR_DTYPE_F32 */
    const void *a;       /* [rank][stride_in] */
    const void *b;       /* [rank][stride_out]: B transposed, rows already permuted */
    bool zero;           /* B is all zero: contributes nothing */
    void *own;           /* holds a and b if the module had to stay in F32 among F16 ones; else NULL */
} gr_module;

typedef struct gr_adapter {
    atomic_int references;    /* gr_adapter_retain / _release */
    gr_module *modules;       /* sorted by weight id */
    size_t n_modules;
    int32_t *by_weight;       /* [base->n_weights]: index into modules, or -1 */
    size_t n_weights;
    void *block;              /* all matrices but those of modules with a block of their own */
    uint64_t bytes;           /* everything this object allocated */
    int rank_min, rank_max;
    bool no_effect;           /* every module is zero */
    graft_adapter_type type;  /* as asked for; single modules may be F32 where F16 would overflow */
    char generation[65];      /* hex SHA-256 over config and weights file, as read */
    char *path;
    const char *format;       /* "peft", "gguf" */
    double load_ms;
} gr_adapter;

/* Bytes that gr_adapter_build will hold, known before reading any matrix. Modules that do not fit float16 add to it. */
uint64_t gr_adapter_size(const gr_plan *plan, graft_adapter_type type);

/*
 * Reads, converts, permutes and packs all matrices; hashes the whole weights file on the way, in one pass, so the
 * generation is that of the very bytes that were packed. With F16 a module stays in F32 if a value of a BF16 or F32
 * file exceeds 65504, or if a whole matrix is so small (below 2^-14) that float16 would lose its precision.
 * Errors: NON_FINITE (tensor and index), IO_ERROR, CHANGED_WHILE_READING, OUT_OF_MEMORY. No lock, any thread.
 * *out has one reference.
 */
int gr_adapter_build(gr_adapter **out, const gr_plan *plan, graft_adapter_type type, graft_error *err);

/* From path to adapter: open, verify, build. The whole of loading. Warnings go to `log` (may be NULL). Errors: those of
 * gr_source_open, gr_verify and gr_adapter_build. */
int gr_adapter_open(gr_adapter **out, const gr_base_model *base, const char *path, graft_adapter_type type,
                    uint64_t max_bytes, const gr_log *log, graft_error *err);

gr_adapter *gr_adapter_retain(gr_adapter *a);
/* Frees at the last reference. NULL is fine. */
void gr_adapter_release(gr_adapter *a);

#endif
