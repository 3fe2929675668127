/*
 * The simulator as a program, for tests/loader/compare_libcachesim.py. For people there is `graft bench-cache`.
 *
 *   loader_replay make zipf|scan|loop|shift OBJECTS REQUESTS SKEW SEED equal|mixed    a trace: key bytes cost
 *   loader_replay evictions POLICY CAPACITY <TRACE                                    request-index key
 *   loader_replay summary POLICY|belady CAPACITY <TRACE                               hits misses evictions
 */
#include "base/memory.h"
#include "loader/replay.h"
#include "loader/workload.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const workload_names[] = {"zipf", "scan", "loop", "shift"};

static int complain(const graft_error *err) {
    fprintf(stderr, "loader_replay: %s\n", err->message);
    return 1;
}

static int usage(void) {
    fprintf(stderr, "usage: see the head of tests/loader/replay_main.c\n");
    return 2;
}

static int make(char **args) {
    gr_workload w = {.objects = strtoull(args[1], NULL, 10), .skew = strtod(args[3], NULL),
                     .seed = strtoull(args[4], NULL, 10), .equal_sizes = strcmp(args[5], "equal") == 0};
    size_t kind = 0, n = strtoull(args[2], NULL, 10);
    while (kind < 4 && strcmp(args[0], workload_names[kind]) != 0) {
        kind++;
    }
    if (kind == 4) {
        return usage();
    }
    w.kind = (graft_workload_kind)kind;
    graft_error err = {0};
    gr_request *trace = gr_calloc(n, sizeof *trace);
    int code = trace ? gr_workload_make(trace, n, &w, &err) : gr_fail_memory(&err, n * sizeof *trace);
    for (size_t i = 0; code == 0 && i < n; i++) {
        printf("%" PRIu64 " %" PRIu64 " %.9g\n", trace[i].key, trace[i].bytes, trace[i].cost);
    }
    gr_free(trace);
    return code ? complain(&err) : 0;
}

/* Returns NULL if memory is out. */
static gr_request *read_trace(size_t *n) {
    size_t capacity = 1 << 20;
    gr_request *trace = gr_alloc(capacity * sizeof *trace), r;
    for (*n = 0; trace && scanf("%" SCNu64 "%" SCNu64 "%lf", &r.key, &r.bytes, &r.cost) == 3; (*n)++) {
        if (*n == capacity) {
            capacity *= 2;
            gr_request *larger = gr_realloc(trace, capacity * sizeof *trace);
            if (!larger) {
                gr_free(trace);
                return NULL;
            }
            trace = larger;
        }
        trace[*n] = r;
    }
    return trace;
}

static void print_eviction(void *user, size_t at, const gr_policy_entry *e) {
    (void)user;
    printf("%zu %" PRIu64 "\n", at, e->key);
}

static int replay_stdin(char **args, bool summary) {
    gr_replay_options options = {.capacity = strtoull(args[1], NULL, 10), .evicted = summary ? NULL : print_eviction};
    graft_policy kind = GRAFT_POLICY_LRU;
    bool belady = strcmp(args[0], "belady") == 0;
    if (!belady && !gr_policy_parse(&kind, args[0])) {
        return usage();
    }
    graft_error err = {0};
    gr_replay_result r = {0};
    size_t n;
    gr_request *trace = read_trace(&n);
    int code = !trace    ? gr_fail_memory(&err, n)
               : belady  ? gr_replay_belady(&r, trace, n, &options, &err)
                         : gr_replay(&r, trace, n, kind, &options, &err);
    gr_free(trace);
    if (code == 0 && summary) {
        printf("%" PRIu64 " %" PRIu64 " %" PRIu64 "\n", r.hits, r.misses, r.evictions);
    }
    return code ? complain(&err) : 0;
}

int main(int argc, char **argv) {
    if (argc == 8 && strcmp(argv[1], "make") == 0) {
        return make(argv + 2);
    }
    if (argc == 4 && (strcmp(argv[1], "evictions") == 0 || strcmp(argv[1], "summary") == 0)) {
        return replay_stdin(argv + 2, argv[1][0] == 's');
    }
    return usage();
}
