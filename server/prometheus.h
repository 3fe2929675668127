/* Prometheus' text format, version 0.0.4, written into a buffer. A family's samples follow its head at once, and no two have
 * the same labels: that is up to the caller. */
#ifndef SRV_PROMETHEUS_H
#define SRV_PROMETHEUS_H

#include "base/buffer.h"

#include <stdint.h>

/* Values may hold anything: they are escaped, and what is not UTF-8 becomes '?'. */
typedef struct srv_label {
    const char *name, *value; /* name NULL = the end of a list */
} srv_label;

enum { SRV_SPREAD_BORDERS = 13 };

/* Durations in a few buckets: few enough to have for each adapter. */
typedef struct srv_spread {
    uint64_t buckets[SRV_SPREAD_BORDERS + 1]; /* not above border i; the last: above all */
    uint64_t count;
    double sum; /* seconds */
} srv_spread;

/* Ascending, in seconds. */
typedef struct srv_borders {
    double at[SRV_SPREAD_BORDERS];
    int n;
} srv_borders;

void srv_spread_add(srv_spread *s, const srv_borders *b, double seconds);

/* "# HELP" and "# TYPE". */
void srv_prom_family(gr_buffer *b, const char *name, const char *type, const char *help);
/* One line. `labels` may be NULL. */
void srv_prom_count(gr_buffer *b, const char *name, const srv_label *labels, uint64_t n);
void srv_prom_value(gr_buffer *b, const char *name, const srv_label *labels, double value);
/* The lines of one histogram with this label (name NULL = none). buckets[i] counts what is not above borders[i], and
 * buckets[n] what is above all. */
void srv_prom_histogram(gr_buffer *b, const char *name, srv_label label, const double *borders,
                        const uint64_t *buckets, int n, double sum);

#endif
