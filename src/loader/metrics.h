/* What the loader counts. Guarded by the loader's mutex; snapshots are copies. */
#ifndef GR_METRICS_H
#define GR_METRICS_H

#include <stddef.h>
#include <stdint.h>

/* Durations in buckets by powers of two: bucket i counts what took less than 2^i microseconds (and not less than
 * 2^(i-1)); the last takes all above. 28 buckets reach 67 s. */
#define GR_HISTOGRAM_BUCKETS 28

typedef struct gr_histogram {
    uint64_t buckets[GR_HISTOGRAM_BUCKETS];
    uint64_t count, sum_us, max_us;
} gr_histogram;

void gr_histogram_add(gr_histogram *h, int64_t us);
/* Upper border in microseconds of the bucket that holds the q-th part (0 to 1) of the counts; 0 if empty. */
uint64_t gr_histogram_quantile(const gr_histogram *h, double q);

#define GR_METRIC_CODES 24 /* different error codes kept apart; further ones are counted under code 0 */

typedef struct gr_code_count {
    int code;
    uint64_t n;
} gr_code_count;

typedef struct gr_loader_metrics_snapshot {
    uint64_t hits;        /* leases of a resident adapter */
    uint64_t misses;      /* leases that waited for a load */
    uint64_t loads;       /* loads that succeeded */
    uint64_t load_bytes;
    uint64_t evictions, unloads, replacements;
    uint64_t retries, fallbacks, busy;
    uint64_t negative_hits; /* failures answered from memory */
    gr_code_count failures[GR_METRIC_CODES]; /* loads that failed, by code */
    size_t n_failures;
    gr_histogram hit_us, load_us, wait_us, evict_us;
    /* gauges */
    uint64_t limit, fixed, resident, loading, draining;
    uint64_t n_resident, n_loading, n_draining, n_leases;
} gr_loader_metrics_snapshot;

void gr_metrics_failure(gr_loader_metrics_snapshot *m, int code);

#endif
