/* Norms of rows of W + c BA without ever forming BA: through W A^T, rank numbers a row, and A A^T. */
#include "dora.h"

#include "base/memory.h"
#include "model/base_weights.h"
#include "model/convert.h"
#include "model/products.h"

#include <math.h>
#include <string.h>

/* What one module needs while it is measured. */
typedef struct measure {
    const gr_base_model *base;
    gr_module *m;
    size_t rank, n_in, n_out;
    const float *a, *b;      /* in float32: of the module, or wide_a and wide_b */
    float *wide_a, *wide_b;
    double *gram;            /* A A^T */
    float *w;                /* some rows of W */
    double *wa;              /* W A^T: of those rows; for an embedding [rank][n_out], of all */
    double *column;          /* one row of B, and as many numbers for sums */
} measure;

static int64_t step_of(const measure *s) {
    return gr_base_weights_step(&s->base->weights[s->m->weight]);
}

static size_t elements_of_a(const gr_module *m) {
    return m->op == GR_OP_ROWS ? (size_t)m->n_in * (size_t)m->stride_rank : (size_t)m->rank * (size_t)m->stride_in;
}

static int prepare(measure *s, graft_error *err) {
    const gr_module *m = s->m;
    bool rows = m->op == GR_OP_ROWS, wide = m->type == GR_DTYPE_F32;
    size_t n_a = elements_of_a(m), n_b = s->rank * (size_t)m->stride_out, step = (size_t)step_of(s);
    s->wide_a = wide ? NULL : gr_alloc_aligned(n_a * sizeof *s->wide_a);
    s->wide_b = wide ? NULL : gr_alloc_aligned(n_b * sizeof *s->wide_b);
    s->gram = gr_calloc(s->rank * s->rank, sizeof *s->gram);
    s->w = gr_alloc_aligned(step * (rows ? s->n_out : s->n_in) * sizeof *s->w);
    s->wa = gr_calloc((rows ? s->n_out : step) * s->rank, sizeof *s->wa);
    s->column = gr_calloc(2 * s->rank, sizeof *s->column);
    if ((!wide && (!s->wide_a || !s->wide_b)) || !s->gram || !s->w || !s->wa || !s->column) {
        return gr_fail_memory(err, (n_a + n_b) * sizeof *s->wide_a);
    }
    if (!wide) {
        gr_to_f32(s->wide_a, m->type, m->a, n_a);
        gr_to_f32(s->wide_b, m->type, m->b, n_b);
    }
    s->a = wide ? m->a : s->wide_a;
    s->b = wide ? m->b : s->wide_b;
    return 0;
}

static void finish(measure *s) {
    gr_free(s->column);
    gr_free(s->wa);
    gr_free(s->w);
    gr_free(s->gram);
    gr_free(s->wide_b);
    gr_free(s->wide_a);
}

/* Row o of wba and bb; wa[k * stride] is its part of W A^T. */
static void finish_row(measure *s, size_t o, const double *wa, size_t stride) {
    double *b = s->column, wba = 0;
    for (size_t k = 0; k < s->rank; k++) {
        b[k] = (double)s->b[k * (size_t)s->m->stride_out + o];
        wba += b[k] * wa[k * stride];
    }
    ((float *)s->m->gain.wba)[o] = (float)wba;
    ((float *)s->m->gain.bb)[o] = (float)gr_quadratic_form(s->gram, b, b + s->rank, s->rank);
}

static int measure_product(measure *s, graft_error *err) {
    const gr_module *m = s->m;
    int64_t step = step_of(s);
    gr_products(s->gram, s->rank, s->a, (size_t)m->stride_in, s->rank, s->a, (size_t)m->stride_in, s->rank, s->n_in);
    for (int64_t o = 0; o < m->n_out; o += step) {
        int64_t n = m->n_out - o < step ? m->n_out - o : step;
        int rc = gr_base_weights_read(s->base, m->weight, m->first + o, n, s->w, err);
        if (rc) {
            return rc;
        }
        gr_products(s->wa, s->rank, s->w, s->n_in, (size_t)n, s->a, (size_t)m->stride_in, s->rank, s->n_in);
        for (size_t i = 0; i < (size_t)n; i++) {
            ((float *)m->gain.ww)[(size_t)o + i] = (float)gr_square_sum(s->w + i * s->n_in, s->n_in);
            finish_row(s, (size_t)o + i, s->wa + i * s->rank, 1);
        }
    }
    return 0;
}

/* One token's embedding w and its column a of A. Sums over tokens are in double: there may be a quarter of a million. */
static void add_token(measure *s, double *ww, const float *w, const float *a) {
    for (size_t j = 0; j < s->n_out; j++) {
        ww[j] += (double)w[j] * (double)w[j];
    }
    for (size_t k = 0; k < s->rank; k++) {
        double factor = (double)a[k], *to = s->wa + k * s->n_out;
        for (size_t j = 0; j < s->n_out; j++) {
            to[j] += factor * (double)w[j];
        }
        for (size_t l = 0; l < s->rank; l++) {
            s->gram[k * s->rank + l] += factor * (double)a[l];
        }
    }
}

/* An embedding maps one-hot vectors of tokens: its W is the table transposed, and a row of that runs over all tokens. */
static int measure_rows(measure *s, double *ww, graft_error *err) {
    const gr_module *m = s->m;
    int64_t step = step_of(s);
    for (int64_t t = 0; t < m->n_in; t += step) {
        int64_t n = m->n_in - t < step ? m->n_in - t : step;
        int rc = gr_base_weights_read(s->base, m->weight, t, n, s->w, err);
        if (rc) {
            return rc;
        }
        for (size_t i = 0; i < (size_t)n; i++) {
            add_token(s, ww, s->w + i * s->n_out, s->a + ((size_t)t + i) * (size_t)m->stride_rank);
        }
    }
    for (size_t j = 0; j < s->n_out; j++) {
        ((float *)m->gain.ww)[j] = (float)ww[j];
        finish_row(s, j, s->wa + j, s->n_out);
    }
    return 0;
}

int gr_dora_measure(const gr_base_model *base, gr_module *m, graft_error *err) {
    measure s = {.base = base, .m = m, .rank = (size_t)m->rank, .n_in = (size_t)m->n_in, .n_out = (size_t)m->n_out};
    bool rows = m->op == GR_OP_ROWS;
    double *ww = rows ? gr_calloc(s.n_out, sizeof *ww) : NULL;
    int rc = rows && !ww ? gr_fail_memory(err, s.n_out * sizeof *ww) : prepare(&s, err);
    if (!rc) {
        rc = rows ? measure_rows(&s, ww, err) : measure_product(&s, err);
    }
    finish(&s);
    gr_free(ww);
    return rc ? rc : gr_base_weights_unchanged(base, m->weight, err);
}

double gr_dora_square(const gr_module *m, int o, double f) {
    double c = f * (double)m->scale;
    return (double)m->gain.ww[o] + 2 * c * (double)m->gain.wba[o] + c * c * (double)m->gain.bb[o];
}

int gr_dora_check(const gr_module *m) {
    for (int o = 0; o < m->n_out; o++) {
        double square = gr_dora_square(m, o, 1);
        float gain = (float)((double)m->gain.magnitude[o] / sqrt(square));
        if (!(square > 0) || !isfinite(gain)) {
            return o;
        }
    }
    return m->n_out;
}
