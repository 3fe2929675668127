#include "metrics.h"

void gr_histogram_add(gr_histogram *h, int64_t us) {
    uint64_t v = us > 0 ? (uint64_t)us : 0;
    int bucket = 0;
    while (bucket < GR_HISTOGRAM_BUCKETS - 1 && v >> bucket) {
        bucket++;
    }
    h->buckets[bucket]++;
    h->count++;
    h->sum_us += v;
    h->max_us = v > h->max_us ? v : h->max_us;
}

uint64_t gr_histogram_quantile(const gr_histogram *h, double q) {
    uint64_t wanted = (uint64_t)(q * (double)h->count), seen = 0;
    for (int i = 0; i < GR_HISTOGRAM_BUCKETS && h->count; i++) {
        seen += h->buckets[i];
        if (seen > wanted || seen == h->count) {
            uint64_t border = UINT64_C(1) << i;
            return border < h->max_us || i == GR_HISTOGRAM_BUCKETS - 1 ? border : h->max_us;
        }
    }
    return 0;
}

void gr_metrics_failure(gr_loader_metrics_snapshot *m, int code) {
    for (size_t i = 0; i < m->n_failures; i++) {
        if (m->failures[i].code == code) {
            m->failures[i].n++;
            return;
        }
    }
    if (m->n_failures == GR_METRIC_CODES) {
        code = 0;
        m->n_failures--; /* the last slot becomes "others" */
    }
    m->failures[m->n_failures].n = (code == 0 ? m->failures[m->n_failures].n : 0) + 1;
    m->failures[m->n_failures].code = code;
    m->n_failures++;
}
