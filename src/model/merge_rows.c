/* Loops along rows of A, which the compiler makes vectors of. */
#include "merge_rows.h"

#include "model/dora.h"

#include <math.h>
#include <string.h>

/* out += c x */
static void add(float *restrict out, const float *restrict x, float c, int64_t n) {
    for (int64_t j = 0; j < n; j++) {
        out[j] += c * x[j];
    }
}

/* out = (1 - f) out + f x */
static void blend(float *restrict out, const float *restrict x, float f, int64_t n) {
    for (int64_t j = 0; j < n; j++) {
        out[j] = f == 1.0f ? x[j] : (1.0f - f) * out[j] + f * x[j];
    }
}

/* ---- one row -------------------------------------------------------------------------------------------- */

/* Whether the module changes the weight's row `row`; *at is the row's number in the module. */
static bool covers(const gr_module *m, int64_t row, int64_t *at) {
    if (m->op == GR_OP_ROWS) {
        *at = row;
        return row < m->n_in;
    }
    *at = row - m->first;
    return *at >= 0 && *at < m->n_out;
}

/* delta[n_in] += c (B A)[row] */
static void low_rank_row(float *delta, const gr_module *m, float c, int64_t row) {
    const float *a = m->a, *b = m->b;
    int64_t at;
    if (!covers(m, row, &at)) {
        return;
    }
    for (int k = 0; k < m->rank; k++) {
        if (m->op == GR_OP_ROWS) {
            add(delta + m->first, b + (size_t)k * (size_t)m->stride_out, c * a[(size_t)at * (size_t)m->stride_rank + (size_t)k],
                m->n_out);
        } else {
            add(delta, a + (size_t)k * (size_t)m->stride_in, c * b[(size_t)k * (size_t)m->stride_out + (size_t)at], m->n_in);
        }
    }
}

static void whole_row(float *w, const gr_module *m, float f, int64_t row, int64_t n_in) {
    int64_t at;
    if (covers(m, row, &at)) {
        size_t stride = (size_t)(m->op == GR_OP_ROWS ? m->stride_out : m->stride_in);
        blend(w, (const float *)m->a + (size_t)at * stride, f, n_in);
    }
}

static void token_row(float *w, const gr_module *m, float f, int64_t row, int64_t n_in) {
    size_t stride = (size_t)(m->op == GR_OP_ROWS ? m->stride_out : m->stride_in);
    int i = gr_module_token(m, row);
    if (i >= 0) {
        blend(w, (const float *)m->a + (size_t)i * stride, f, n_in);
    }
}

/* Of a product magnitudes go by row: the weight's own, as it is here. */
static void scale_row(float *w, const gr_module *m, int64_t at, int64_t n_in) {
    double norm = 0;
    for (int64_t j = 0; j < n_in; j++) {
        norm += (double)w[j] * (double)w[j];
    }
    float gain = (float)((double)m->gain.magnitude[at] / sqrt(norm));
    for (int64_t j = 0; j < n_in; j++) {
        w[j] *= gain;
    }
}

/* Of an embedding they go by column, over all tokens: as measured when the adapter was built. */
static void scale_columns(float *w, const gr_module *m, float f) {
    for (int j = 0; j < m->n_out; j++) { /* not finite: told of the merged weight */
        w[j] *= (float)((double)m->gain.magnitude[j] / sqrt(gr_dora_square(m, j, (double)f)));
    }
}

static void dora_row(float *w, const gr_module *m, float f, int64_t row, int64_t n_in, float *scratch) {
    int64_t at;
    if (!covers(m, row, &at)) {
        return;
    }
    memset(scratch, 0, (size_t)n_in * sizeof *scratch);
    low_rank_row(scratch, m, f * m->scale, row);
    add(w, scratch, 1.0f, n_in);
    if (m->op == GR_OP_ROWS) {
        scale_columns(w, m, f);
    } else {
        scale_row(w, m, at, n_in);
    }
}

static void change_row(float *w, int64_t row, int64_t n_in, const gr_merge_change *changes, size_t n, float *scratch) {
    bool plain = false;
    for (size_t i = 0; i < n; i++) {
        if (changes[i].module->kind == GR_WHOLE) {
            whole_row(w, changes[i].module, changes[i].factor, row, n_in);
        } else if (changes[i].module->kind == GR_TOKENS) {
            token_row(w, changes[i].module, changes[i].factor, row, n_in);
        }
    }
    for (size_t i = 0; i < n; i++) {
        const gr_module *m = changes[i].module;
        if (m->kind == GR_LOW_RANK && m->gain.magnitude) {
            dora_row(w, m, changes[i].factor, row, n_in, scratch);
        }
        plain = plain || (m->kind == GR_LOW_RANK && !m->gain.magnitude);
    }
    if (!plain) {
        return;
    }
    memset(scratch, 0, (size_t)n_in * sizeof *scratch);
    for (size_t i = 0; i < n; i++) {
        const gr_module *m = changes[i].module;
        if (m->kind == GR_LOW_RANK && !m->gain.magnitude) {
            low_rank_row(scratch, m, changes[i].factor * m->scale, row);
        }
    }
    add(w, scratch, 1.0f, n_in);
}

void gr_merge_rows(float *w, int64_t first, int64_t n, int64_t n_in, const gr_merge_change *changes, size_t n_changes,
                   float *scratch) {
    for (int64_t r = 0; r < n && n_changes; r++) {
        change_row(w + r * n_in, first + r, n_in, changes, n_changes, scratch);
    }
}

/* ---- vectors -------------------------------------------------------------------------------------------- */

void gr_merge_vector(float *v, int64_t n, const gr_merge_change *changes, size_t n_changes) {
    for (size_t i = 0; i < n_changes; i++) {
        const gr_module *m = changes[i].module;
        for (int64_t j = m->first; j < n && j - m->first < m->n_out; j++) {
            if (m->kind == GR_NORM) {
                v[j] *= 1.0f + changes[i].factor * m->factor[j - m->first];
            } else {
                v[j] += changes[i].factor * m->shift[j - m->first];
            }
        }
    }
}
