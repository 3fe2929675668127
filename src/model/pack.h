/* One tensor of the file on its way into its module: which of its elements, in which order, to where. */
#ifndef GR_PACK_H
#define GR_PACK_H

#include "model/adapter.h"

enum { GR_PACK_CHUNK = 32768 }; /* elements at once: raw, widened and narrowed copies stay in the second-level cache */

typedef enum gr_pack_way {
    GR_PACK_ROWS,       /* a row of the file is a row of the matrix */
    GR_PACK_TRANSPOSED, /* a row of the file, of at most GR_MAX_RANK elements, is a column of it */
    GR_PACK_COLUMNS     /* the same with rows of any length, for matrices that are not Q8_0 */
} gr_pack_way;

/*
 * The region of the tensor that is taken: `rows` by `columns` from (first_row, first_column) on. `row_map` says where its rows
 * go, `column_map` its columns; at most one of them is not as-is. A vector is a region of one row, with a column map.
 */
typedef struct gr_piece {
    const gr_tensor_info *tensor;
    size_t tensor_columns; /* elements from row to row of the file */
    size_t first_row, first_column, rows, columns;
    gr_row_map row_map, column_map;
    const int32_t *file_tokens, *tokens; /* TOKENS: row r goes where file_tokens[r] is in `tokens`, ascending; else NULL */
    size_t n_tokens;
    gr_pack_way way;
    void *out;             /* the matrix or vector in memory */
    size_t stride;
    gr_dtype type;         /* of it */
    size_t module;         /* its index */
    bool matrix;           /* its largest number says of which type the module can be */
    bool factor;           /* A or B: if it is zero the product is */
} gr_piece;

enum { GR_PIECES_MAX = 4 }; /* tensors of one entry */

/* The tensors of module number `index`, made for `e`, as pieces. Returns how many. */
int gr_pieces_of(gr_piece out[GR_PIECES_MAX], const gr_plan *plan, const gr_plan_entry *e, const gr_module *m, size_t index);

/* How many elements of the region are read and packed at once, from element `first` on (where a step ended). */
size_t gr_piece_step(const gr_piece *p, size_t first);
/* No step of it is longer; GR_PACK_CHUNK at least. */
size_t gr_piece_longest(const gr_piece *p);
/* The index in the tensor of element `i` of the region. */
size_t gr_piece_element(const gr_piece *p, size_t i);
/* Whether the region's elements follow each other in the file. */
bool gr_piece_contiguous(const gr_piece *p);
/* Elements first .. first + n - 1, a step, to their places. They are of p->type; float32 for Q8_0. */
void gr_piece_put(const gr_piece *p, const void *x, size_t first, size_t n);

#endif
