/*
 * WHOLE and TOKENS: y = (1 - f) y + f times what another matrix gives: all of it, or its rows of some tokens. With f = 1, as
 * requests have it by default, that is the other's result exactly.
 */
#include "lora/apply.h"
#include "lora/packed.h"
#include "lora/sane.h"

/* A piece of a product: its results wait on the stack, and the matrix's rows stay in the second-level cache while rows of x pass. */
enum { OUTPUTS = 32, ROWS = 32 };

/* An overflow of f times a float32 number counts as one of the product. */
static void replace(float *y, const float *by, int n, float f) {
    float keep = 1.0f - f;
    for (int j = 0; j < n; j++) {
        y[j] = keep * y[j] + f * by[j];
    }
}

/* ---- by product ------------------------------------------------------------------------------------------ */

/* Rows [begin, begin + n) of the matrix as the A of a module, for `down`. */
static gr_module piece_of(const gr_module *m, int begin, int n) {
    gr_module piece = *m;
    piece.a = (const char *)m->a + gr_packed_size(m->type, (size_t)begin * (size_t)m->stride_in);
    piece.rank = n;
    piece.scale = 1.0f;
    return piece;
}

/* Results of matrix rows [begin, begin + n) for row i of the part into y. */
static void put(const gr_apply *a, const gr_part *p, int i, const float *result, int begin, int n) {
    if (p->module->kind == GR_WHOLE) {
        replace(gr_part_y(a, p, i, begin), result, n, p->factors[i]);
        return;
    }
    for (int k = 0; k < n; k++) {
        replace(gr_part_y(a, p, i, p->module->tokens[begin + k]), result + k, 1, p->factors[i]);
    }
}

static void check(gr_apply *a, int part, int i, int begin, int n) {
    const gr_part *p = a->parts + part;
    bool whole = p->module->kind == GR_WHOLE;
    for (int k = 0; k < n; k += whole ? n : 1) {
        float *y = gr_part_y(a, p, i, whole ? begin : p->module->tokens[begin + k]);
        int count = whole ? n : 1;
        if (!gr_is_sane(y, count, GR_Y_LIMIT) && gr_came_in_sane(a, p, i)) {
            gr_spoilt(a, part, y, count);
        }
    }
}

static void product_piece(gr_apply *a, int part, int first_row, int n_rows, int begin, int n) {
    static const float ones[ROWS] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,
                                     1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
    const gr_part *p = a->parts + part;
    float result[ROWS * OUTPUTS];
    gr_module piece = piece_of(p->module, begin, n);
    a->kernels->down(result, &piece, a->node.x, a->node.x_stride, p->rows + first_row, ones, n_rows, 0, n);
    for (int i = 0; i < n_rows; i++) {
        put(a, p, first_row + i, result + i * n, begin, n);
        check(a, part, first_row + i, begin, n);
    }
}

static void product_second(gr_apply *a, int part, int begin, int end) {
    int n_rows = a->parts[part].n_rows;
    for (int o = begin; o < end; o += OUTPUTS) {
        for (int i = 0; i < n_rows; i += ROWS) {
            product_piece(a, part, i, n_rows - i < ROWS ? n_rows - i : ROWS, o, end - o < OUTPUTS ? end - o : OUTPUTS);
        }
    }
}

static int64_t product_work(const gr_part *p) {
    const gr_module *m = p->module;
    return (int64_t)p->n_rows * m->n_in * (m->kind == GR_TOKENS ? m->n_tokens : m->n_out);
}

const gr_way gr_way_dense_product = {NULL, product_second, product_work};

/* ---- by rows --------------------------------------------------------------------------------------------- */

/* Which row of the matrix is the token's; -1: none. */
static int64_t row_of(const gr_module *m, int32_t token) {
    return m->kind == GR_WHOLE ? token : gr_module_token(m, token);
}

static void rows_second(gr_apply *a, int part, int begin, int end) {
    const gr_part *p = a->parts + part;
    const gr_module *m = p->module;
    float by[8 * GR_PAD];
    for (int i = 0; i < p->n_rows; i++) {
        int64_t row = row_of(m, a->node.ids[p->rows[i]]);
        for (int o = begin; row >= 0 && o < end; o += 8 * GR_PAD) {
            int n = end - o < 8 * GR_PAD ? end - o : 8 * GR_PAD;
            float *y = gr_part_y(a, p, i, o);
            gr_packed_read(by, m->type, m->a, (size_t)row * (size_t)m->stride_out + (size_t)o, n);
            replace(y, by, n, p->factors[i]);
            if (!gr_is_sane(y, n, GR_Y_LIMIT)) {
                gr_spoilt(a, part, y, n);
            }
        }
    }
}

static int64_t rows_work(const gr_part *p) {
    return (int64_t)p->n_rows * p->module->n_out;
}

const gr_way gr_way_dense_rows = {NULL, rows_second, rows_work};
