/*
 * Which rows of the coming decode use which adapter: built before the decode, read by the callback, never
 * changed in between.
 *
 * Two row numberings exist in one graph. Up to the last layer's attention, row i is token i of the batch.
 * After it libllama keeps only the rows whose logits are wanted, in batch order. A matrix product has
 * n_tokens or n_outputs rows; when the numbers are equal the two numberings are the same, so the count decides.
 */
#ifndef GR_ROW_PLAN_H
#define GR_ROW_PLAN_H

#include "base/error.h"
#include "model/adapter.h"

#define GR_MAX_USES 8 /* adapters per sequence */

/* The adapters of one sequence, with scales; sorted by address, scales not 0, no adapter twice. */
typedef struct gr_adapter_set {
    const gr_adapter *adapters[GR_MAX_USES];
    float scales[GR_MAX_USES];
    int n;
} gr_adapter_set;

/* Rows that share one adapter. */
typedef struct gr_row_group {
    const gr_adapter *adapter;
    int32_t *rows;   /* token numbering, ascending */
    float *scales;   /* per row */
    int n_rows;
    int32_t *out_rows; /* output numbering: only rows with logits */
    float *out_scales;
    int n_out_rows;
} gr_row_group;

typedef struct gr_row_plan {
    gr_row_group *groups;
    int n_groups;
    int n_tokens, n_outputs;
    bool disjoint; /* no row is in two groups */
    /* storage, sized at creation */
    int max_rows, max_groups;
    void *storage;
} gr_row_plan;

/* For up to max_rows rows with up to GR_MAX_USES adapters each. *out: gr_row_plan_free. */
int gr_row_plan_create(gr_row_plan **out, int max_rows, graft_error *err);
void gr_row_plan_free(gr_row_plan *p);

/*
 * Fills the plan: sets[i] is row i's adapter set (NULL or n = 0: base), output[i] whether its logits are wanted.
 * Allocates nothing. n_rows <= max_rows.
 */
void gr_row_plan_build(gr_row_plan *p, const gr_adapter_set *const *sets, const int8_t *output, int n_rows);

#endif
