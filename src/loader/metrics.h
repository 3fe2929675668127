/* What the loader counts: graft_metrics of graft.h. Guarded by the loader's mutex; snapshots are copies. */
#ifndef GR_METRICS_H
#define GR_METRICS_H

#include "graft.h"

void gr_histogram_add(graft_histogram *h, int64_t us);
/* One more of this code. What comes after GRAFT_METRIC_CODES different ones is counted under code 0. */
void gr_count_code(struct graft_code_count counts[GRAFT_METRIC_CODES], size_t *n, int code);

#endif
