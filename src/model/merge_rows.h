/* What adapters do to the base's own numbers: the arithmetic of a merge, row by row, one function for each kind of change. */
#ifndef GR_MERGE_ROWS_H
#define GR_MERGE_ROWS_H

#include "model/adapter.h"

/* One module of an adapter in float32, with the adapter's factor. */
typedef struct gr_merge_change {
    const gr_module *module;
    float factor;
} gr_merge_change;

/*
 * Changes rows first to first + n of a weight, w[n][n_in], as gr_kind says with f = factor: whole and single rows are replaced
 * first, then DoRA's W' = m / |W + f s BA| (W + f s BA), then the other low-rank changes are added. Sums are of float32 numbers;
 * all changes of a row are summed before they are added to it, so W is rounded once. DoRA's norms are sums in double.
 * Changes must all be of one operation (gr_op). `scratch`: n_in numbers.
 */
void gr_merge_rows(float *w, int64_t first, int64_t n, int64_t n_in, const gr_merge_change *changes, size_t n_changes,
                   float *scratch);

/* The same for a vector v[n]: a norm's factors, a bias; and a bias that gets what an adapter adds to the product. */
void gr_merge_vector(float *v, int64_t n, const gr_merge_change *changes, size_t n_changes);

#endif
