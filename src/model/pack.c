/* Packing: rows to rows, rows to columns, and both in another order. */
#include "pack.h"

#include "model/adapter_layout.h"
#include "model/convert.h"
#include "model/row_map.h"

#include <string.h>

enum { TILE = 32 }; /* rows of B transposed at once: their source lines stay in the first-level cache */

_Static_assert(GR_PACK_CHUNK / GR_MAX_RANK >= TILE, "a chunk holds some rows of any B");
_Static_assert((int)GR_PACK_CHUNK % (int)GR_Q8_0_BLOCK == 0 && GR_PAD % GR_Q8_0_BLOCK == 0, "whole blocks");

/* ---- from an entry to pieces ---------------------------------------------------------------------------- */

/* Elements in a row of the tensor; ggml drops dimensions of 1, so of rank 1 it may be a vector. */
static size_t columns_of(const gr_tensor_info *t, size_t otherwise) {
    return t->n_dims == 2 ? (size_t)t->shape[1] : otherwise;
}

/* GGUF has A of an embedding transposed, and mlx-lm both A and B of everything. */
static bool transposed(const gr_plan *plan, const gr_plan_entry *e, bool is_a) {
    bool gguf = plan->source->format == GR_SOURCE_GGUF;
    return gguf ? is_a && e->op == GR_OP_ROWS : e->transposed;
}

static gr_piece piece_of_a(const gr_plan *plan, const gr_plan_entry *e, const gr_module *m, size_t index) {
    size_t in = (size_t)m->n_in, rank = (size_t)m->rank;
    bool turned = transposed(plan, e, true), by_token = m->op == GR_OP_ROWS; /* in memory: [n_in][rank] */
    return (gr_piece){.tensor = e->a,
                      .tensor_columns = turned ? rank : in,
                      .rows = turned ? in : rank,
                      .columns = turned ? rank : in,
                      .way = turned == by_token ? GR_PACK_ROWS : turned ? GR_PACK_TRANSPOSED : GR_PACK_COLUMNS,
                      .out = (void *)m->a,
                      .stride = gr_module_a(m).stride,
                      .type = m->type,
                      .module = index,
                      .matrix = true,
                      .factor = true};
}

static gr_piece piece_of_b(const gr_plan *plan, const gr_plan_entry *e, const gr_module *m, size_t index) {
    size_t out = (size_t)m->n_out, rank = (size_t)m->rank, first = (size_t)e->first_in_file;
    bool turned = transposed(plan, e, false);
    gr_piece p = {.tensor = e->b,
                  .out = (void *)m->b,
                  .stride = gr_module_b(m).stride,
                  .type = m->type,
                  .module = index,
                  .matrix = true,
                  .factor = true};
    if (turned) {
        p.tensor_columns = columns_of(e->b, out);
        p.first_column = first;
        p.rows = rank;
        p.columns = out;
        p.column_map = e->rows;
        p.way = GR_PACK_ROWS;
    } else {
        p.tensor_columns = rank;
        p.first_row = first;
        p.rows = out;
        p.columns = rank;
        p.row_map = e->rows;
        p.way = GR_PACK_TRANSPOSED;
    }
    return p;
}

static gr_piece piece_of_vector(const gr_plan_entry *e, const gr_module *m, const gr_tensor_info *t, const float *to,
                                size_t index) {
    return (gr_piece){.tensor = t,
                      .tensor_columns = (size_t)(t->size / gr_dtype_size(t->dtype)),
                      .first_column = (size_t)e->first_in_file,
                      .rows = 1,
                      .columns = (size_t)m->n_out,
                      .column_map = e->rows,
                      .way = GR_PACK_ROWS,
                      .out = (void *)to,
                      .type = GR_DTYPE_F32,
                      .module = index};
}

static gr_piece piece_of_value(const gr_plan_entry *e, const gr_module *m, size_t index) {
    gr_packed a = gr_module_a(m);
    bool tokens = e->kind == GR_TOKENS;
    return (gr_piece){.tensor = e->value,
                      .tensor_columns = a.used,
                      .first_row = tokens ? 0 : (size_t)e->first_in_file,
                      .rows = a.rows,
                      .columns = a.used,
                      .row_map = tokens || m->op == GR_OP_ROWS ? (gr_row_map){GR_ROWS_AS_IS, 0} : e->rows,
                      .file_tokens = tokens ? e->tokens : NULL,
                      .tokens = m->tokens,
                      .n_tokens = (size_t)m->n_tokens,
                      .way = GR_PACK_ROWS,
                      .out = (void *)m->a,
                      .stride = a.stride,
                      .type = m->type,
                      .module = index,
                      .matrix = true};
}

int gr_pieces_of(gr_piece out[GR_PIECES_MAX], const gr_plan *plan, const gr_plan_entry *e, const gr_module *m, size_t index) {
    int n = 0;
    if (e->kind == GR_NORM || e->kind == GR_BIAS) {
        out[n++] = piece_of_vector(e, m, e->value, e->kind == GR_NORM ? m->factor : m->shift, index);
        return n;
    }
    if (e->kind != GR_LOW_RANK) {
        out[n++] = piece_of_value(e, m, index);
        return n;
    }
    out[n++] = piece_of_a(plan, e, m, index);
    out[n++] = piece_of_b(plan, e, m, index);
    if (e->magnitude) {
        out[n++] = piece_of_vector(e, m, e->magnitude, m->gain.magnitude, index);
    }
    if (e->bias) {
        out[n++] = piece_of_vector(e, m, e->bias, m->shift, index);
    }
    return n;
}

/* ---- steps ---------------------------------------------------------------------------------------------- */

/* Columns of the matrix that must be packed together: in Q8_0 whole blocks, of which each may take from all of a head. */
static size_t together(const gr_piece *p) {
    if (p->type != GR_DTYPE_Q8_0) {
        return 1;
    }
    return p->way == GR_PACK_TRANSPOSED ? gr_row_map_unit(p->row_map, p->rows, GR_Q8_0_BLOCK)
                                        : gr_row_map_unit(p->column_map, p->columns, GR_Q8_0_BLOCK);
}

/* Elements at once of a row that is longer than a chunk. */
static size_t part_of_row(const gr_piece *p) {
    size_t unit = together(p), n = GR_PACK_CHUNK / unit * unit;
    return n > 0 ? n : unit;
}

bool gr_piece_contiguous(const gr_piece *p) {
    return p->rows == 1 || p->columns == p->tensor_columns;
}

size_t gr_piece_step(const gr_piece *p, size_t first) {
    size_t total = p->rows * p->columns, step;
    if (p->way == GR_PACK_TRANSPOSED) {
        size_t unit = together(p), rows = GR_PACK_CHUNK / p->columns / unit * unit;
        step = (rows > 0 ? rows : unit) * p->columns;
    } else if (p->columns <= GR_PACK_CHUNK && gr_piece_contiguous(p)) {
        step = GR_PACK_CHUNK / p->columns * p->columns;
    } else {
        size_t left = p->columns - first % p->columns, most = part_of_row(p);
        step = left < most ? left : most;
    }
    return total - first < step ? total - first : step;
}

size_t gr_piece_longest(const gr_piece *p) {
    size_t longest = gr_piece_step(p, 0);
    return longest > GR_PACK_CHUNK ? longest : GR_PACK_CHUNK;
}

size_t gr_piece_element(const gr_piece *p, size_t i) {
    return (p->first_row + i / p->columns) * p->tensor_columns + p->first_column + i % p->columns;
}

/* ---- rows to rows --------------------------------------------------------------------------------------- */

/* Where the token is among those of the module. */
static size_t find_token(const gr_piece *p, int32_t token) {
    size_t low = 0, high = p->n_tokens;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (p->tokens[middle] < token) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

static size_t row_to(const gr_piece *p, size_t row) {
    return p->file_tokens ? find_token(p, p->file_tokens[row]) : gr_row_map_to(p->row_map, p->rows, row);
}

/* n elements of one row from `column` on, in the file's order. */
static void put_run(const gr_piece *p, size_t row, size_t column, const char *x, size_t n) {
    size_t at = row * p->stride + column;
    if (p->type == GR_DTYPE_Q8_0) {
        gr_f32_to_q8_0((gr_q8_0 *)p->out + at / GR_Q8_0_BLOCK, (const float *)(const void *)x, n);
    } else {
        size_t size = gr_dtype_size(p->type);
        memcpy((char *)p->out + at * size, x, n * size);
    }
}

/* The same in another order; in Q8_0 what becomes whole blocks. */
static void put_mapped_run(const gr_piece *p, size_t row, size_t column, const char *x, size_t n) {
    size_t size = p->type == GR_DTYPE_Q8_0 ? sizeof(float) : gr_dtype_size(p->type);
    if (p->type != GR_DTYPE_Q8_0) {
        for (size_t i = 0; i < n; i++) {
            size_t at = row * p->stride + gr_row_map_to(p->column_map, p->columns, column + i);
            memcpy((char *)p->out + at * size, x + i * size, size);
        }
        return;
    }
    for (size_t c = 0; c < n; c += GR_Q8_0_BLOCK) {
        float block[GR_Q8_0_BLOCK];
        size_t m = n - c < GR_Q8_0_BLOCK ? n - c : GR_Q8_0_BLOCK;
        for (size_t i = 0; i < m; i++) {
            size_t from = gr_row_map_from(p->column_map, p->columns, column + c + i) - column;
            memcpy(&block[i], x + from * size, size);
        }
        put_run(p, row, column + c, (const char *)block, m);
    }
}

static void put_rows(const gr_piece *p, const char *x, size_t first, size_t n) {
    size_t size = p->type == GR_DTYPE_Q8_0 ? sizeof(float) : gr_dtype_size(p->type);
    bool mapped = p->column_map.order != GR_ROWS_AS_IS;
    while (n > 0) {
        size_t row = row_to(p, first / p->columns), column = first % p->columns;
        size_t run = p->columns - column < n ? p->columns - column : n;
        if (mapped) {
            put_mapped_run(p, row, column, x, run);
        } else {
            put_run(p, row, column, x, run);
        }
        x += run * size;
        first += run;
        n -= run;
    }
}

/* ---- rows to columns ------------------------------------------------------------------------------------ */

static void transpose_16(uint16_t *out, size_t stride, const uint16_t *x, size_t rank, const size_t *to, size_t n_rows) {
    for (size_t k = 0; k < rank; k++) {
        for (size_t r = 0; r < n_rows; r++) {
            out[k * stride + to[r]] = x[r * rank + k];
        }
    }
}

static void transpose_32(float *out, size_t stride, const float *x, size_t rank, const size_t *to, size_t n_rows) {
    for (size_t k = 0; k < rank; k++) {
        for (size_t r = 0; r < n_rows; r++) {
            out[k * stride + to[r]] = x[r * rank + k];
        }
    }
}

/* Rows of the file whose columns are whole blocks, to those. */
static void transpose_q8_0(const gr_piece *p, const float *x, size_t first, size_t n_rows) {
    size_t rank = p->columns;
    for (size_t c = 0; c < n_rows; c += GR_Q8_0_BLOCK) {
        size_t n = n_rows - c < GR_Q8_0_BLOCK ? n_rows - c : GR_Q8_0_BLOCK;
        const float *from[GR_Q8_0_BLOCK];
        float block[GR_Q8_0_BLOCK];
        for (size_t i = 0; i < n; i++) {
            from[i] = x + (gr_row_map_from(p->row_map, p->rows, first + c + i) - first) * rank;
        }
        for (size_t k = 0; k < rank; k++) {
            for (size_t i = 0; i < n; i++) {
                block[i] = from[i][k];
            }
            gr_f32_to_q8_0((gr_q8_0 *)p->out + (k * p->stride + first + c) / GR_Q8_0_BLOCK, block, n);
        }
    }
}

/* Whole rows, from `first` on, to columns. */
static void put_transposed(const gr_piece *p, const void *x, size_t first, size_t n_rows) {
    size_t rank = p->columns;
    if (p->type == GR_DTYPE_Q8_0) {
        transpose_q8_0(p, x, first, n_rows);
        return;
    }
    for (size_t r = 0; r < n_rows; r += TILE) {
        size_t n = n_rows - r < TILE ? n_rows - r : TILE;
        size_t to[TILE];
        for (size_t i = 0; i < n; i++) {
            to[i] = gr_row_map_to(p->row_map, p->rows, first + r + i);
        }
        if (p->type == GR_DTYPE_F16) {
            transpose_16(p->out, p->stride, (const uint16_t *)x + r * rank, rank, to, n);
        } else {
            transpose_32(p->out, p->stride, (const float *)x + r * rank, rank, to, n);
        }
    }
}

/* Each element to a row of its own: an embedding's A, whose rows are as long as the vocabulary. */
static void put_columns(const gr_piece *p, const void *x, size_t first, size_t n) {
    for (size_t i = 0; i < n; i++) {
        size_t at = (first + i) % p->columns * p->stride + (first + i) / p->columns;
        if (p->type == GR_DTYPE_F16) {
            ((uint16_t *)p->out)[at] = ((const uint16_t *)x)[i];
        } else {
            ((float *)p->out)[at] = ((const float *)x)[i];
        }
    }
}

void gr_piece_put(const gr_piece *p, const void *x, size_t first, size_t n) {
    switch (p->way) {
    case GR_PACK_ROWS: put_rows(p, x, first, n); break;
    case GR_PACK_TRANSPOSED: put_transposed(p, x, first / p->columns, n / p->columns); break;
    case GR_PACK_COLUMNS: put_columns(p, x, first, n); break;
    }
}
