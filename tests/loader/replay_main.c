/*
 * The simulator as a program, for tests/loader/compare_libcachesim.py and for the table in bench/RESULTS.md.
 *
 *   loader_replay make zipf|scan|loop|shift OBJECTS REQUESTS SKEW SEED equal|mixed    a trace: key bytes cost
 *   loader_replay evictions POLICY CAPACITY <TRACE                                    request-index key
 *   loader_replay summary POLICY|belady CAPACITY <TRACE                               hits misses evictions
 *   loader_replay table                                                               all policies, as Markdown
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
    w.kind = (gr_workload_kind)kind;
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
    gr_policy_kind kind = GR_POLICY_LRU;
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

/* ---- the table ---- */

#define TABLE_REQUESTS 500000
#define COLUMNS (GR_POLICY_KINDS + 1) /* Belady last */

typedef struct row {
    gr_workload workload;
    size_t max_count;
    gr_replay_result results[COLUMNS];
} row;

/* A fifth of the bytes of all objects that occur. */
static uint64_t fifth_of_all(const gr_request *trace, size_t n, size_t objects) {
    bool *seen = gr_calloc(objects + 1, sizeof *seen);
    uint64_t sum = 0;
    for (size_t i = 0; seen && i < n; i++) {
        sum += seen[trace[i].key] ? 0 : trace[i].bytes;
        seen[trace[i].key] = true;
    }
    gr_free(seen);
    return sum / 5;
}

static int fill_row(row *r, gr_request *trace, graft_error *err) {
    int code = gr_workload_make(trace, TABLE_REQUESTS, &r->workload, err);
    gr_replay_options options = {.max_count = r->max_count, .capacity = UINT64_C(1) << 50};
    if (code == 0 && r->max_count == 0) {
        options.capacity = fifth_of_all(trace, TABLE_REQUESTS, r->workload.objects);
    }
    for (int i = 0; code == 0 && i < COLUMNS; i++) {
        code = i == GR_POLICY_KINDS
                   ? gr_replay_belady(&r->results[i], trace, TABLE_REQUESTS, &options, err)
                   : gr_replay(&r->results[i], trace, TABLE_REQUESTS, (gr_policy_kind)i, &options, err);
    }
    return code;
}

static void print_row(const row *r, bool cost) {
    double figures[COLUMNS], best = -1;
    for (int i = 0; i < COLUMNS; i++) {
        const gr_replay_result *x = &r->results[i];
        figures[i] = cost ? 100 * x->cost_missed / x->cost : 100 * (double)x->hits / (double)x->requests;
        bool better = best < 0 || (cost ? figures[i] < best : figures[i] > best);
        best = i < GR_POLICY_KINDS && better ? figures[i] : best;
    }
    printf("| %s", workload_names[r->workload.kind]);
    if (r->workload.kind == GR_WORKLOAD_ZIPF || r->workload.kind == GR_WORKLOAD_SCAN) {
        printf(" %.1f", r->workload.skew);
    }
    printf(" | %zu |", r->workload.objects);
    for (int i = 0; i < COLUMNS; i++) {
        const char *mark = i < GR_POLICY_KINDS && figures[i] == best ? "**" : "";
        printf(" %s%.1f%s |", mark, figures[i], mark);
    }
    printf("\n");
}

static int print_table(const char *title, const size_t *objects, size_t n_objects, bool equal, size_t max_count,
                       gr_request *trace) {
    static const struct { gr_workload_kind kind; double skew; } workloads[] = {
        {GR_WORKLOAD_ZIPF, 0.6}, {GR_WORKLOAD_ZIPF, 0.8}, {GR_WORKLOAD_ZIPF, 1.0}, {GR_WORKLOAD_ZIPF, 1.2},
        {GR_WORKLOAD_SCAN, 1.0}, {GR_WORKLOAD_LOOP, 0},   {GR_WORKLOAD_SHIFT, 0},
    };
    enum { N = sizeof workloads / sizeof *workloads };
    for (int cost = 0; cost <= !equal; cost++) {
        printf("%s: %s\n\n| workload | objects |", title,
               cost ? "load time of the misses, % of what loading at each request would take (less is better)"
                    : "hits, % of requests");
        for (int i = 0; i < GR_POLICY_KINDS; i++) {
            printf(" %s |", gr_policy_name((gr_policy_kind)i));
        }
        printf(" Belady |\n| --- | --- |");
        for (int i = 0; i < COLUMNS; i++) {
            printf(" --- |");
        }
        printf("\n");
        for (size_t i = 0; i < N * n_objects; i++) {
            graft_error err = {0};
            row r = {.workload = {.kind = workloads[i % N].kind, .skew = workloads[i % N].skew, .seed = 1,
                                  .objects = objects[i / N], .equal_sizes = equal}, .max_count = max_count};
            if (fill_row(&r, trace, &err) != 0) {
                return complain(&err);
            }
            print_row(&r, cost);
        }
        printf("\n");
    }
    return 0;
}

static int table(void) {
    const size_t many[] = {100, 300, 1000}, few[] = {6, 15, 30};
    gr_request *trace = gr_calloc(TABLE_REQUESTS, sizeof *trace);
    int code = trace ? 0 : 1;
    code = code ? code : print_table("Equal sizes, room for a fifth of the objects", many, 3, true, 0, trace);
    code = code ? code : print_table("Different sizes, room for a fifth of all bytes", many, 3, false, 0, trace);
    code = code ? code : print_table("Three places (max_adapters 3), bytes not the limit", few, 3, false, 3, trace);
    gr_free(trace);
    return code;
}

int main(int argc, char **argv) {
    if (argc == 8 && strcmp(argv[1], "make") == 0) {
        return make(argv + 2);
    }
    if (argc == 4 && (strcmp(argv[1], "evictions") == 0 || strcmp(argv[1], "summary") == 0)) {
        return replay_stdin(argv + 2, argv[1][0] == 's');
    }
    return argc == 2 && strcmp(argv[1], "table") == 0 ? table() : usage();
}
