/* Seeded request traces: see workload.h. */
#include "workload.h"

#include "base/memory.h"
#include "base/mix.h"

#include <math.h>

#define EPOCH 20 /* requests for each object between scans or shifts */

/* [0, 1) */
static double next_fraction(uint64_t *state) {
    return (double)(gr_mix_next(state) >> 11) * 0x1p-53;
}

/* Adapters of ranks 4 to 64 on more or fewer modules, from disks that are sometimes cached and sometimes not. */
static void make_object(gr_request *r, uint64_t key, bool equal, uint64_t *random) {
    *r = (gr_request){.key = key, .bytes = 1 << 20, .cost = 1};
    if (!equal) {
        r->bytes = UINT64_C(2000000) << gr_mix_next(random) % 5;
        r->bytes += (uint64_t)((double)r->bytes * 3 * next_fraction(random));
        r->cost = 0.010 + (double)r->bytes / 1e9 * (0.5 + next_fraction(random));
    }
}

/* cumulative[i]: the share of requests for the objects of ranks 0 to i. */
static void make_cumulative(double *cumulative, size_t n, double skew) {
    double sum = 0;
    for (size_t i = 0; i < n; i++) {
        sum += pow((double)(i + 1), -skew);
        cumulative[i] = sum;
    }
    for (size_t i = 0; i < n; i++) {
        cumulative[i] /= sum;
    }
}

static size_t pick_zipf(const double *cumulative, size_t n, uint64_t *random) {
    double u = next_fraction(random);
    size_t low = 0, high = n - 1;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (cumulative[middle] > u) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    return low;
}

static size_t pick_scan(const double *cumulative, size_t n, size_t at, uint64_t *random) {
    size_t place = at % ((EPOCH + 1) * n);
    return place < EPOCH * n ? pick_zipf(cumulative, n, random) : place - EPOCH * n;
}

static size_t pick_shift(size_t n, size_t at, uint64_t *random) {
    size_t hot = n < 10 ? 1 : n / 10, shift = at / (EPOCH * n) * hot;
    if (gr_mix_next(random) % 10 == 0) {
        return gr_mix_next(random) % n;
    }
    return (shift + gr_mix_next(random) % hot) % n;
}

int gr_workload_make(gr_request *trace, size_t n, const gr_workload *w, graft_error *err) {
    if (w->objects == 0 || w->objects > SIZE_MAX / 64) {
        return gr_fail(err, GRAFT_E_BAD_REQUEST, "a workload needs objects");
    }
    gr_request *objects = gr_calloc(w->objects, sizeof *objects);
    double *cumulative = gr_calloc(w->objects, sizeof *cumulative);
    int code = 0;
    if (!objects || !cumulative) {
        code = gr_fail_memory(err, w->objects * sizeof *objects);
        goto done;
    }
    uint64_t random = w->seed;
    for (size_t i = 0; i < w->objects; i++) {
        make_object(&objects[i], i + 1, w->equal_sizes, &random);
    }
    make_cumulative(cumulative, w->objects, w->skew);
    for (size_t at = 0; at < n; at++) {
        size_t i = w->kind == GRAFT_WORKLOAD_ZIPF    ? pick_zipf(cumulative, w->objects, &random)
                   : w->kind == GRAFT_WORKLOAD_SCAN  ? pick_scan(cumulative, w->objects, at, &random)
                   : w->kind == GRAFT_WORKLOAD_SHIFT ? pick_shift(w->objects, at, &random)
                                                  : at % w->objects;
        trace[at] = objects[i];
    }
done:
    gr_free(cumulative);
    gr_free(objects);
    return code;
}
