/* Every kind's last step. */
#include "adapter_finish.h"

#include "base/memory.h"
#include "model/base_weights.h"
#include "model/convert.h"
#include "model/dora.h"
#include "model/row_map.h"

#include <math.h>
#include <string.h>

/* Beyond it a norm's factor would amplify rounding of y more than float32 can bear. */
static const double FACTOR_LIMIT = 1e4;

static bool all_zero(const float *x, size_t n) {
    return gr_f32_largest(x, n) == 0;
}

/* The element of the file's tensor that row `row` of the module came from. */
static size_t element_of(const gr_plan_entry *e, const gr_module *m, size_t row) {
    return (size_t)e->first_in_file + gr_row_map_from(e->rows, (size_t)m->n_out, row);
}

/* The base's numbers that a vector stands beside: gr_free. */
static int base_vector(float **out, const gr_plan *plan, const gr_module *m, graft_error *err) {
    float *w = gr_alloc((size_t)m->n_out * sizeof *w);
    if (!w) {
        return gr_fail_memory(err, (size_t)m->n_out * sizeof *w);
    }
    int rc = gr_base_weights_read(plan->base, m->weight, m->first, m->n_out, w, err);
    rc = rc ? rc : gr_base_weights_unchanged(plan->base, m->weight, err);
    if (rc) {
        gr_free(w);
        return rc;
    }
    *out = w;
    return 0;
}

static int finish_bias(gr_module *m, const gr_plan *plan, graft_error *err) {
    float *base = NULL, *shift = (float *)m->shift;
    int rc = base_vector(&base, plan, m, err);
    if (rc) {
        return rc;
    }
    for (int o = 0; o < m->n_out; o++) {
        shift[o] -= base[o];
    }
    gr_free(base);
    m->zero = all_zero(shift, (size_t)m->n_out);
    return 0;
}

static int unusable_norm(const gr_plan *plan, const gr_plan_entry *e, const gr_module *m, size_t row, float base,
                         graft_error *err) {
    char q[GR_QUOTE_SIZE];
    return gr_fail(err, GRAFT_E_UNSUPPORTED_TARGET, "%s: element [%zu] cannot be applied: the base's %s has %g there",
                   gr_quote(q, e->value->name, strlen(e->value->name)), element_of(e, m, row),
                   plan->base->weights[e->weight].name, (double)base);
}

static int finish_norm(gr_module *m, const gr_plan *plan, const gr_plan_entry *e, graft_error *err) {
    float *base = NULL, *factor = (float *)m->factor;
    int rc = base_vector(&base, plan, m, err);
    for (size_t o = 0; !rc && o < (size_t)m->n_out; o++) {
        float value = factor[o] + e->added; /* in float32, as the conversion added it */
        double quotient = value == base[o] ? 0 : ((double)value - (double)base[o]) / (double)base[o];
        if (!(fabs(quotient) <= FACTOR_LIMIT)) {
            rc = unusable_norm(plan, e, m, o, base[o], err);
        }
        factor[o] = (float)quotient;
    }
    gr_free(base);
    m->zero = all_zero(factor, (size_t)m->n_out);
    return rc;
}

static int unusable_gain(const gr_plan_entry *e, const gr_module *m, size_t row, graft_error *err) {
    char q[GR_QUOTE_SIZE];
    return gr_fail(err, GRAFT_E_NON_FINITE, "%s: element [%zu]: the row that it scales, of W + BA, has no length",
                   gr_quote(q, e->magnitude->name, strlen(e->magnitude->name)), element_of(e, m, row));
}

static int finish_low_rank(gr_module *m, const gr_plan *plan, const gr_plan_entry *e, graft_error *err) {
    if (m->shift) {
        float *shift = (float *)m->shift;
        for (int o = 0; o < m->n_out; o++) {
            shift[o] *= m->scale;
        }
        m->zero = m->zero && all_zero(shift, (size_t)m->n_out);
    }
    if (!e->magnitude) {
        return 0;
    }
    m->zero = false;
    int rc = gr_dora_measure(plan->base, m, err);
    int row = rc ? m->n_out : gr_dora_check(m);
    return row < m->n_out ? unusable_gain(e, m, (size_t)row, err) : rc;
}

int gr_module_finish(gr_module *m, const gr_plan *plan, size_t index, graft_error *err) {
    const gr_plan_entry *e = &plan->entries[index];
    switch (m->kind) {
    case GR_LOW_RANK: return finish_low_rank(m, plan, e, err);
    case GR_NORM: return finish_norm(m, plan, e, err);
    case GR_BIAS: return finish_bias(m, plan, err);
    default: return 0;
    }
}
