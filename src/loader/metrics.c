#include "metrics.h"

void gr_histogram_add(graft_histogram *h, int64_t us) {
    uint64_t v = us > 0 ? (uint64_t)us : 0;
    int bucket = 0;
    while (bucket < GRAFT_HISTOGRAM_BUCKETS - 1 && v >> bucket) {
        bucket++;
    }
    h->buckets[bucket]++;
    h->count++;
    h->sum_us += v;
    h->max_us = v > h->max_us ? v : h->max_us;
}

uint64_t graft_histogram_quantile(const graft_histogram *h, double q) {
    uint64_t wanted = (uint64_t)(q * (double)h->count), seen = 0;
    for (int i = 0; i < GRAFT_HISTOGRAM_BUCKETS && h->count; i++) {
        seen += h->buckets[i];
        if (seen > wanted || seen == h->count) {
            uint64_t border = UINT64_C(1) << i;
            /* The last bucket has no upper border. */
            return border < h->max_us && i < GRAFT_HISTOGRAM_BUCKETS - 1 ? border : h->max_us;
        }
    }
    return 0;
}

void gr_count_code(struct graft_code_count counts[GRAFT_METRIC_CODES], size_t *n, int code) {
    size_t i = 0;
    while (i < *n && counts[i].code != code) {
        i++;
    }
    if (i == GRAFT_METRIC_CODES) { /* the last place becomes "others" */
        i--;
        counts[i].code = 0;
    } else if (i == *n) {
        counts[i] = (struct graft_code_count){code, 0};
        ++*n;
    }
    counts[i].n++;
}
