/* Choosing a policy, as an application sees it. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "graft.h"

enum { N = 20000 };

static graft_trace_request trace[N];

static void refused(int rc, const graft_error *err, const char *words) {
    assert_int_equal(rc, GRAFT_E_BAD_REQUEST);
    if (!strstr(err->message, words)) {
        fail_msg("wanted \"%s\", got \"%s\"", words, err->message);
    }
}

static void workloads(void **state) {
    (void)state;
    static graft_trace_request again[N];
    graft_workload w = graft_workload_default();
    for (int kind = 0; kind < GRAFT_WORKLOADS; kind++) {
        w.kind = (graft_workload_kind)kind;
        assert_non_null(graft_workload_name(w.kind));
        assert_int_equal(graft_workload_make(trace, N, &w, NULL), 0);
        assert_int_equal(graft_workload_make(again, N, &w, NULL), 0);
        assert_memory_equal(trace, again, sizeof trace);
        for (size_t i = 0; i < N; i++) {
            assert_in_range(trace[i].key, 1, w.objects);
            assert_true(trace[i].bytes > 0 && trace[i].cost > 0);
        }
        w.seed++;
        if (w.kind != GRAFT_WORKLOAD_LOOP) {
            assert_int_equal(graft_workload_make(again, N, &w, NULL), 0);
            assert_memory_not_equal(trace, again, sizeof trace);
        }
    }
    assert_null(graft_workload_name((graft_workload_kind)GRAFT_WORKLOADS));
    assert_null(graft_workload_name((graft_workload_kind)-1));
}

/* Figures that can be worked out: one key after another, 4 keys, 3 places. */
static void known_figures(void **state) {
    (void)state;
    graft_replay_options o = graft_replay_options_default();
    graft_replay_result r;
    for (size_t i = 0; i < 40; i++) {
        trace[i] = (graft_trace_request){.key = i % 4, .bytes = 10, .cost = 0.5};
    }
    assert_int_equal(graft_replay(&r, trace, 40, &o, NULL), 0);
    assert_int_equal(r.hits, 0);
    assert_int_equal(r.evictions, 37);
    assert_float_equal(r.cost, 20, 1e-9);
    assert_float_equal(r.cost_missed, 20, 1e-9);
    o.belady = true; /* of each three after the first round one misses */
    assert_int_equal(graft_replay(&r, trace, 40, &o, NULL), 0);
    assert_int_equal(r.misses, 4 + 12);
    o.max_adapters = 0; /* neither bound: all stay */
    o.belady = false;
    for (int p = 0; p < GRAFT_POLICIES; p++) {
        o.policy = (graft_policy)p;
        assert_int_equal(graft_replay(&r, trace, 40, &o, NULL), 0);
        assert_int_equal(r.misses, 4);
        assert_int_equal(r.evictions, 0);
    }
    o.capacity = 9; /* nothing fits */
    assert_int_equal(graft_replay(&r, trace, 40, &o, NULL), 0);
    assert_int_equal(r.too_large, 40);
    assert_int_equal(graft_replay(&r, NULL, 0, &o, NULL), 0);
    assert_int_equal(r.requests, 0);
}

static void bad_arguments(void **state) {
    (void)state;
    graft_replay_options o = graft_replay_options_default();
    graft_replay_result r = {.hits = 77};
    graft_workload w = graft_workload_default();
    graft_error err;
    trace[0] = trace[1] = (graft_trace_request){.key = 1, .bytes = 1};
    trace[1].bytes = 0;
    refused(graft_replay(&r, trace, 2, &o, &err), &err, "request 1 of the trace has no bytes");
    const double costs[] = {NAN, INFINITY, -1};
    for (size_t i = 0; i < 3; i++) {
        trace[1] = (graft_trace_request){.key = 1, .bytes = 1, .cost = costs[i]};
        refused(graft_replay(&r, trace, 2, &o, &err), &err, "request 1 of the trace: cost");
    }
    o.policy = (graft_policy)GRAFT_POLICIES;
    refused(graft_replay(&r, trace, 1, &o, &err), &err, "policy");
    o = graft_replay_options_default();
    o.size--;
    refused(graft_replay(&r, trace, 1, &o, &err), &err, "size");
    o.size++;
    refused(graft_replay(NULL, trace, 1, &o, &err), &err, "needs");
    refused(graft_replay(&r, NULL, 1, &o, &err), &err, "needs");
    refused(graft_replay(&r, trace, 1, NULL, &err), &err, "needs");
    assert_int_equal(r.hits, 77);
    w.objects = 0;
    refused(graft_workload_make(trace, N, &w, &err), &err, "0 objects");
    w.objects = 10000001;
    refused(graft_workload_make(trace, N, &w, &err), &err, "objects");
    w = graft_workload_default();
    w.skew = NAN;
    refused(graft_workload_make(trace, N, &w, &err), &err, "skew");
    w.skew = 1;
    w.kind = (graft_workload_kind)9;
    refused(graft_workload_make(trace, N, &w, &err), &err, "kind");
    w.kind = GRAFT_WORKLOAD_ZIPF;
    w.size = 0;
    refused(graft_workload_make(trace, N, &w, &err), &err, "size");
    refused(graft_workload_make(NULL, 1, &w, &err), &err, "needs");
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(workloads), cmocka_unit_test(known_figures), cmocka_unit_test(bad_arguments)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
