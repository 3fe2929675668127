/*
 * Does this adapter fit this base? The answer is a plan, from which alone an adapter can be built, or every
 * reason why not.
 */
#ifndef GR_VERIFY_H
#define GR_VERIFY_H

#include "model/base_model.h"
#include "model/source.h"

#define GR_MAX_RANK 1024

/* One weight of the base that the adapter changes: y += scale * B (A x). */
typedef struct gr_plan_entry {
    int weight;               /* id in the base's table */
    const gr_tensor_info *a;  /* [rank][n_in], borrowed from the source */
    const gr_tensor_info *b;  /* [n_out][rank] */
    char *module;             /* name for people: the module's path, or the GGUF weight's name */
    int rank;                 /* from the shapes */
    double scale;             /* alpha, patterns and rsLoRA applied */
    int permute_heads;        /* 0, or number of heads by which B's rows are reordered (see gr_row_order) */
} gr_plan_entry;

typedef struct gr_plan {
    const gr_base_model *base;
    const gr_source *source;  /* must outlive the plan */
    gr_plan_entry *entries;   /* sorted by weight id */
    size_t n;
    int rank_min, rank_max;
} gr_plan;

/*
 * Checks every tensor of the source against the base: bound to a weight, in pairs, ranks equal and 1 to GR_MAX_RANK
 * and in agreement with the config, shapes as the base's, no weight twice; config options against the
 * architecture. A plan exists only if every tensor was bound and report has no error. Reasons go to `report`;
 * returns gr_report_result's code then (with the first in err). OUT_OF_MEMORY may come without a reason.
 *
 * Codes, one reason per tensor: MISSING_PAIR, RANK_MISMATCH, WRONG_SHAPE, UNKNOWN_TARGET (a layer or module that the
 * base lacks), UNSUPPORTED_TARGET, DUPLICATE_TARGET, BAD_RANK, BAD_ALPHA, BASE_WEIGHTS_INCLUDED, UNSUPPORTED_ADAPTER,
 * UNEXPECTED_TENSOR (also: of a layer that layers_to_transform does not list). One for all: ZERO_TARGETS when every
 * LoRA tensor lies outside of the base's layer paths, UNMAPPED_TENSORS when some do. By key: UNSUPPORTED_ADAPTER
 * (fan_in_fan_out, aLoRA), WRONG_BASE (GGUF's architecture), UNKNOWN_TARGET and PATTERN_UNUSED for a layer in
 * layers_to_transform that the base lacks or that has no tensors, PATTERN_UNUSED for patterns. UNSUPPORTED_MODEL alone.
 * *out: gr_plan_free.
 */
int gr_verify(gr_plan **out, const gr_base_model *base, gr_source *source, gr_report *report, graft_error *err);
void gr_plan_free(gr_plan *p);

#endif
