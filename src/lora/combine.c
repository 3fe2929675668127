/* Adapters against each other: their modules are sorted alike, so that one walk over both finds what they share. */
#include "lora/combine.h"

#include "lora/apply.h"

/* Order of (weight, op) in an adapter's list. */
static int order_of(const gr_module *m, const gr_module *n) {
    int by_weight = (m->weight > n->weight) - (m->weight < n->weight);
    return by_weight ? by_weight : (m->op > n->op) - (m->op < n->op);
}

static bool is_alone(const gr_module *m) {
    return !m->zero && gr_turn_of(m) != GR_ADDS;
}

static bool overlap(const gr_module *m, const gr_module *n) {
    return m->first < n->first + n->n_out && n->first < m->first + m->n_out;
}

/* A module of `a` from `at` on with m's weight and operation that cannot be beside it, or NULL. */
static const gr_module *rival_of(const gr_module *m, const gr_adapter *a, size_t at) {
    for (; at < a->n_modules && order_of(a->modules + at, m) == 0; at++) {
        if (is_alone(a->modules + at) && overlap(a->modules + at, m)) {
            return a->modules + at;
        }
    }
    return NULL;
}

static bool pair_combines(const gr_adapter *a, const gr_adapter *b, int *weight) {
    size_t at = 0;
    for (size_t i = 0; a->by_rows_only && b->by_rows_only && i < a->n_modules; i++) {
        const gr_module *m = a->modules + i;
        while (at < b->n_modules && order_of(b->modules + at, m) < 0) {
            at++;
        }
        if (is_alone(m) && rival_of(m, b, at)) {
            *weight = m->weight;
            return false;
        }
    }
    return true;
}

bool gr_adapters_combine(const gr_adapter_set *set, const gr_adapter **one, const gr_adapter **other, int *weight) {
    for (int i = 0; i < set->n; i++) {
        for (int k = i + 1; k < set->n; k++) {
            if (!pair_combines(set->adapters[i], set->adapters[k], weight)) {
                *one = set->adapters[i];
                *other = set->adapters[k];
                return false;
            }
        }
    }
    return true;
}
