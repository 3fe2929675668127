/*
 * An adapter written in another form, from its plan: what is written computes what the plan says, or it is refused.
 *
 * GGUF   only low-rank changes of products over weights that the base has as they are (and of the embedding's rows). Each
 *        weight gets one pair of matrices; several modules on one weight (q, k and v on a fused one) are stacked. There is one
 *        alpha for all; where a module's scale is not alpha / rank, the difference is multiplied into its B, in float32.
 * PEFT   low-rank changes, with DoRA's magnitudes and lora_bias where the source has them. Rows are put back into the checkpoint's
 *        order; ranks and alphas that differ become patterns.
 */
#ifndef GR_EXPORT_H
#define GR_EXPORT_H

#include "base/log.h"
#include "base/progress.h"
#include "base/target.h"
#include "model/verify.h"

typedef struct gr_export_options {
    graft_adapter_format to;  /* GGUF or PEFT */
    graft_export_type type;   /* KEEP, F32 or F16 */
    bool replace;
    graft_progress_fn progress; /* NULL = none */
    void *progress_user;
    const gr_log *log;          /* gets warnings; may be NULL */
} gr_export_options;

/*
 * Writes the adapter to `path`: a GGUF file, or a folder. Nothing is left there on failure.
 * Errors: UNSUPPORTED_ADAPTER (what it does has no place in that form; named), UNSUPPORTED_TARGET (the same of a weight), NON_FINITE,
 * OUT_OF_RANGE (a number that float16 cannot hold), CANCELLED, those of reading, of gr_target_open and gr_target_write.
 */
int gr_export(const gr_plan *plan, const char *path, const gr_export_options *options, graft_error *err);

/* ---- for export_gguf.c and export_peft.c ---------------------------------------------------------------- */

/* Of `total` numbers or bytes that are to be written. */
gr_progress gr_export_progress(const gr_export_options *options, uint64_t total);
/* So many more were written. Errors: CANCELLED. */
int gr_export_step(gr_progress *p, uint64_t n, graft_error *err);

/* The type to write, for matrices of this type. */
gr_dtype gr_export_dtype(graft_export_type type, gr_dtype from);

/* Whether the tensor is stored the other way round than PEFT has it: all of mlx-lm's, and A of a GGUF adapter's embedding. */
bool gr_export_transposed(const gr_plan *plan, const gr_plan_entry *e, const gr_tensor_info *t);

/* Fails with UNSUPPORTED_ADAPTER: what about this module cannot be written. */
int gr_export_refuse(const gr_plan_entry *e, const char *what, const char *form, graft_error *err);
/* The same unless it is a low-rank change. */
int gr_export_low_rank(const gr_plan_entry *e, const char *form, graft_error *err);

int gr_export_gguf(const gr_plan *plan, gr_target *target, const gr_export_options *options, graft_error *err);
int gr_export_peft(const gr_plan *plan, gr_target *target, const gr_export_options *options, graft_error *err);

#endif
