/* From which token on each adapter of a request acts. Pure. */
#include "activation.h"

#include <string.h>

int gr_activation_start(const gr_adapter *a, const llama_token *prompt, int n) {
    if (!a->invocation) {
        return 0;
    }
    int at = n - a->n_invocation;
    while (at >= 0 && memcmp(prompt + at, a->invocation, (size_t)a->n_invocation * sizeof *prompt) != 0) {
        at--;
    }
    return at >= 0 ? at : GR_NEVER;
}

static int start_of(const int *starts, int i) {
    return starts ? starts[i] : 0;
}

/* The next position after `from` at which some adapter begins. */
static int next_start(const gr_adapter_set *set, const int *starts, int from) {
    int next = GR_NEVER;
    for (int i = 0; i < set->n; i++) {
        int start = start_of(starts, i);
        next = start > from && start < next ? start : next;
    }
    return next;
}

void gr_activation_make(gr_activation *out, const gr_adapter_set *set, const int *starts) {
    out->n = 0;
    for (int from = 0; from != GR_NEVER; from = next_start(set, starts, from)) {
        gr_adapter_set *now = &out->sets[out->n];
        out->from[out->n++] = from;
        now->n = 0;
        for (int i = 0; i < set->n; i++) { /* stays sorted by address */
            if (start_of(starts, i) <= from) {
                now->adapters[now->n] = set->adapters[i];
                now->scales[now->n++] = set->scales[i];
            }
        }
    }
}

static int range_of(const gr_activation *a, int position) {
    int i = a->n - 1;
    while (i > 0 && a->from[i] > position) {
        i--;
    }
    return i;
}

const gr_adapter_set *gr_activation_at(const gr_activation *a, int position) {
    return &a->sets[range_of(a, position)];
}

int gr_activation_until(const gr_activation *a, int position) {
    int next = range_of(a, position) + 1;
    return next < a->n ? a->from[next] : GR_NEVER;
}

const gr_adapter_set *gr_activation_all(const gr_activation *a) {
    return &a->sets[a->n - 1];
}
