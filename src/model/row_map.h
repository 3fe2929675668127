/*
 * Where the rows of a module of the checkpoint lie in the GGUF. Conversion reorders the rows of some weights
 * (gr_row_order); everything that an adapter has by output row - B, magnitudes, biases, whole matrices - follows.
 */
#ifndef GR_ROW_MAP_H
#define GR_ROW_MAP_H

#include "format/module_names.h"

/* False if n rows cannot be ordered so: then the heads do not divide them. The functions below need true. */
bool gr_row_map_fits(gr_row_map map, size_t n);
/* The row of the GGUF that row `row` of the file's n becomes; and back. */
size_t gr_row_map_to(gr_row_map map, size_t n, size_t row);
size_t gr_row_map_from(gr_row_map map, size_t n, size_t row);
/*
 * The least multiple of `block` rows, or n, such that any so many, from a multiple of it on, are the same rows in the file
 * as in the GGUF, in another order.
 */
size_t gr_row_map_unit(gr_row_map map, size_t n, size_t block);

#endif
