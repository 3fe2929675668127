/* Choosing a policy, in graft.h: arguments are checked here, the work is in src/loader/replay.c and workload.c. */
#include "base/error.h"
#include "loader/replay.h"
#include "loader/workload.h"

#include <math.h>

enum { MAX_OBJECTS = 10000000, MAX_SKEW = 10 };

const char *graft_workload_name(graft_workload_kind kind) {
    static const char *const names[GRAFT_WORKLOADS] = {"zipf", "scan", "loop", "shift"};
    return (size_t)kind < GRAFT_WORKLOADS ? names[kind] : NULL;
}

graft_replay_options graft_replay_options_default(void) {
    return (graft_replay_options){.size = sizeof(graft_replay_options), .policy = GRAFT_POLICY_LRU, .max_adapters = 3};
}

graft_workload graft_workload_default(void) {
    return (graft_workload){.size = sizeof(graft_workload), .kind = GRAFT_WORKLOAD_ZIPF, .objects = 100, .skew = 1, .seed = 1};
}

static int check_trace(const graft_trace_request *trace, size_t n, graft_error *err) {
    for (size_t i = 0; i < n; i++) {
        if (trace[i].bytes == 0) {
            return gr_fail(err, GRAFT_E_BAD_REQUEST, "request %zu of the trace has no bytes", i);
        }
        if (!isfinite(trace[i].cost) || trace[i].cost < 0) {
            return gr_fail(err, GRAFT_E_BAD_REQUEST, "request %zu of the trace: cost %g is no time", i, trace[i].cost);
        }
    }
    return 0;
}

int graft_replay(graft_replay_result *out, const graft_trace_request *trace, size_t n, const graft_replay_options *o,
                 graft_error *err) {
    if (!out || !o || (!trace && n > 0)) {
        return gr_fail(err, GRAFT_E_BAD_REQUEST, "graft_replay needs somewhere to put the result, a trace and options");
    }
    if (o->size != sizeof *o) {
        return gr_fail(err, GRAFT_E_BAD_REQUEST, "option size: %zu, must be %zu (graft_replay_options_default sets it)", o->size,
                       sizeof *o);
    }
    if (!o->belady && !graft_policy_name(o->policy)) {
        return gr_fail(err, GRAFT_E_BAD_REQUEST, "option policy: %d is none", (int)o->policy);
    }
    int rc = check_trace(trace, n, err);
    if (rc) {
        return rc;
    }
    /* Without a bound everything fits: 2^62 leaves the sums room. */
    const gr_replay_options options = {.capacity = o->capacity ? o->capacity : UINT64_C(1) << 62, .max_count = o->max_adapters};
    return o->belady ? gr_replay_belady(out, trace, n, &options, err) : gr_replay(out, trace, n, o->policy, &options, err);
}

int graft_workload_make(graft_trace_request *trace, size_t n, const graft_workload *w, graft_error *err) {
    if (!w || (!trace && n > 0)) {
        return gr_fail(err, GRAFT_E_BAD_REQUEST, "graft_workload_make needs room for a trace, and a workload");
    }
    if (w->size != sizeof *w) {
        return gr_fail(err, GRAFT_E_BAD_REQUEST, "workload size: %zu, must be %zu (graft_workload_default sets it)", w->size,
                       sizeof *w);
    }
    if (!graft_workload_name(w->kind) || w->objects < 1 || w->objects > MAX_OBJECTS || !(w->skew >= 0 && w->skew <= MAX_SKEW)) {
        return gr_fail(err, GRAFT_E_BAD_REQUEST, "workload: kind %d, %zu objects (1 to %d), skew %g (0 to %d)", (int)w->kind,
                       w->objects, (int)MAX_OBJECTS, w->skew, (int)MAX_SKEW);
    }
    const gr_workload made = {.kind = w->kind, .objects = w->objects, .skew = w->skew, .equal_sizes = w->equal_sizes,
                              .seed = w->seed};
    return gr_workload_make(trace, n, &made, err);
}
