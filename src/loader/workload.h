/* Traces for gr_replay, made from a seed: the same numbers each time. */
#ifndef GR_WORKLOAD_H
#define GR_WORKLOAD_H

#include "replay.h"

/* graft.h's kinds. "Now and then" there is: after each 20 requests for each object. */
typedef struct gr_workload {
    graft_workload_kind kind;
    size_t objects;   /* keys are 1 to objects */
    double skew;      /* zipf, scan: 0 (uniform) and up; what people do lies between 0.6 and 1.2 */
    bool equal_sizes; /* all of 1 MiB and 1 s; otherwise 2 to 128 MB, and 10 ms plus 0.5 to 1.5 s for each GB */
    uint64_t seed;
} gr_workload;

/* Fills trace[0..n). Errors: BAD_REQUEST (no objects), OUT_OF_MEMORY. */
int gr_workload_make(gr_request *trace, size_t n, const gr_workload *w, graft_error *err);

#endif
