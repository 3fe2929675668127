/*
 * graft bench-cache: which eviction policy suits a workload? Replays a trace, or workloads that are made up, through the
 * policies. Loads nothing and needs no model.
 */
#include "cli.h"

#include "base/memory.h"

#include <ctype.h>
#include <errno.h>
#include <string.h>

enum {
    COLUMNS = GRAFT_POLICIES + 1, /* Belady last */
    LINE_SIZE = 512,
    NAME_MAX_BYTES = 256,
    MAX_REQUESTS = 20000000
};

static const double max_bytes = 0x1p50, max_cost_ms = 1e9;

typedef struct bench_cache {
    const char *trace_path;
    int workload;        /* GRAFT_WORKLOADS = all */
    int policy;          /* 0 = all, else 1 + graft_policy */
    double skew;
    int objects, requests, capacity_mb, room, seed;
    bool equal_sizes;
} bench_cache;

/* One workload: a trace, what bounds the memory, and what came of it. */
typedef struct replayed {
    const char *name;
    graft_trace_request *trace;
    size_t n;
    size_t objects;
    uint64_t bytes, capacity; /* of all objects; capacity 0 = not bounded */
    graft_replay_result results[COLUMNS];
} replayed;

static int parse(bench_cache *b, int argc, char **argv) {
    const cli_option options[] = {
        {"trace", 0, "FILE", "replay this: a line `NAME BYTES MILLISECONDS` for each request, - for stdin", cli_take_string,
         &b->trace_path, 0, 0},
        {"workload", 0, "zipf|scan|loop|shift|all", "make requests up", cli_take_choice, &b->workload, 0, 0},
        {"skew", 0, "S", "zipf and scan: popularity is 1 / rank^S", cli_take_number, &b->skew, 0, 10},
        {"objects", 0, "N", "different adapters", cli_take_int, &b->objects, 1, 1000000},
        {"requests", 0, "N", "requests for each workload", cli_take_int, &b->requests, 1, MAX_REQUESTS},
        {"equal-sizes", 0, NULL, "adapters of one size instead of 2 to 128 MB", cli_take_flag, &b->equal_sizes, 0, 0},
        {"seed", 0, "N", "other numbers", cli_take_int, &b->seed, 0, 2147483647},
        {"room", 0, "N", "adapters in memory at once, 0 = bounded by bytes only", cli_take_int, &b->room, 0, 1000000},
        {"capacity-mb", 0, "MIB", "memory for adapters, 0 = not bounded; without --room, a fifth of all", cli_take_int,
         &b->capacity_mb, 0, 1 << 30},
        {"policy", 0, "all|lru|sieve|s3fifo|wtinylfu|gdsf", "replay this one alone (Belady is always beside it)", cli_take_choice,
         &b->policy, 0, 0},
    };
    const cli_command command = {
        .usage = "graft bench-cache [--trace FILE | --workload NAME] [options]",
        .about = "Replays requests for adapters through the eviction policies, loading nothing: for choosing --policy. "
                 "`hits` is\n"
                 "the share of requests that find their adapter in memory; `load time` is the load time of the misses, as a\n"
                 "share of what loading at each request would take. Belady knows the future; with adapters of equal size and\n"
                 "cost nothing hits more often, otherwise it is no bound.",
        .examples = "  graft bench-cache --workload all --room 3 --objects 30\n"
                    "  graft bench-cache --trace requests.txt --capacity-mb 2048 --json\n"
                    "\n"
                    "--json: {\"workloads\":[{\"workload\",\"requests\",\"objects\",\"bytes\",\"capacity_bytes\",\"room\","
                    "\"results\":[\n"
                    "  {\"policy\",\"hits\",\"misses\",\"evictions\",\"too_large\",\"hit_ratio\","
                    "\"load_time_ratio\"}...]}...]}\n",
        .failures = "the trace cannot be read, or a line of it is wrong",
        .options = options,
        .n_options = CLI_COUNT(options),
    };
    return cli_parse(&command, argc, argv, NULL);
}

/* ---- traces ------------------------------------------------------------------------------------------- */

typedef struct trace_file {
    FILE *file;
    const char *path;
    size_t line;
    json_t *keys; /* name -> key, from 0 up */
    graft_trace_request *objects; /* by key */
    size_t n_objects;
} trace_file;

static int bad_line(const trace_file *t, graft_error *err, const char *why) {
    return gr_fail(err, GRAFT_E_BAD_REQUEST, "%.*s: line %zu: %s", CLI_PATH_SHOWN, t->path, t->line, why);
}

/* NAME BYTES MILLISECONDS, cut at blanks. */
static int parse_line(trace_file *t, char *line, graft_trace_request *out, graft_error *err) {
    char *at = NULL, *name = strtok_r(line, " \t\r\n", &at), *size = strtok_r(NULL, " \t\r\n", &at),
         *cost = strtok_r(NULL, " \t\r\n", &at);
    double bytes, ms;
    if (!name || !size || !cost || strtok_r(NULL, " \t\r\n", &at)) {
        return bad_line(t, err, "is not NAME BYTES MILLISECONDS");
    }
    if (!cli_parse_number(size, &bytes) || bytes < 1 || bytes > max_bytes || bytes != (double)(uint64_t)bytes) {
        return bad_line(t, err, "bytes must be a whole number from 1 to 2^50");
    }
    if (!cli_parse_number(cost, &ms) || ms < 0 || ms > max_cost_ms) {
        return bad_line(t, err, "milliseconds must be from 0 to 1e9");
    }
    if (strlen(name) > NAME_MAX_BYTES) {
        return bad_line(t, err, "the name is longer than 256 bytes");
    }
    *out = (graft_trace_request){.bytes = (uint64_t)bytes, .cost = ms / 1000};
    json_t *key = json_object_get(t->keys, name);
    if (key) {
        out->key = (uint64_t)json_integer_value(key);
        const graft_trace_request *first = &t->objects[out->key];
        return first->bytes == out->bytes && first->cost == out->cost
                   ? 0
                   : bad_line(t, err, "the name had other bytes or milliseconds before");
    }
    if (json_object_set_new(t->keys, name, json_integer((json_int_t)t->n_objects)) != 0) {
        return bad_line(t, err, "the name is not valid UTF-8");
    }
    out->key = t->n_objects;
    t->objects = cli_grow(t->objects, t->n_objects, sizeof *t->objects);
    t->objects[t->n_objects++] = *out;
    return 0;
}

static int read_lines(trace_file *t, replayed *r, graft_error *err) {
    char line[LINE_SIZE];
    while (fgets(line, sizeof line, t->file)) {
        const char *c = line;
        size_t n = strlen(line);
        t->line++;
        if (n == 0 || (line[n - 1] != '\n' && !feof(t->file))) {
            return bad_line(t, err, "is longer than 510 bytes, or holds a NUL");
        }
        while (isspace((unsigned char)*c)) {
            c++;
        }
        if (*c == '\0' || *c == '#') {
            continue;
        }
        if (r->n == MAX_REQUESTS) {
            return bad_line(t, err, "there are more than 20000000 requests");
        }
        r->trace = cli_grow(r->trace, r->n, sizeof *r->trace);
        int rc = parse_line(t, line, &r->trace[r->n], err);
        if (rc) {
            return rc;
        }
        r->n++;
    }
    if (ferror(t->file)) {
        return gr_fail(err, GRAFT_E_IO_ERROR, "%.*s: %s", CLI_PATH_SHOWN, t->path, strerror(errno));
    }
    return r->n ? 0 : gr_fail(err, GRAFT_E_BAD_REQUEST, "%.*s: holds no requests", CLI_PATH_SHOWN, t->path);
}

static int read_trace(replayed *r, const char *path, graft_error *err) {
    bool standard = strcmp(path, "-") == 0;
    trace_file t = {.path = path, .keys = cli_json_object(), .file = standard ? stdin : fopen(path, "r")};
    int rc = t.file ? read_lines(&t, r, err)
                    : gr_fail(err, GRAFT_E_NOT_READABLE, "%.*s: %s", CLI_PATH_SHOWN, path, strerror(errno));
    if (t.file && !standard) {
        fclose(t.file);
    }
    r->name = "trace";
    r->objects = t.n_objects;
    for (size_t i = 0; i < t.n_objects; i++) {
        r->bytes += t.objects[i].bytes; /* MAX_REQUESTS times max_bytes is over 64 bits; only a lie of a trace gets there */
    }
    gr_free(t.objects);
    json_decref(t.keys);
    return rc;
}

static int make_workload(replayed *r, const bench_cache *b, graft_workload_kind kind, graft_error *err) {
    graft_workload w = graft_workload_default();
    w.kind = kind;
    w.objects = (size_t)b->objects;
    w.skew = b->skew;
    w.equal_sizes = b->equal_sizes;
    w.seed = (uint64_t)b->seed;
    r->name = graft_workload_name(kind);
    r->n = (size_t)b->requests;
    r->trace = cli_alloc(r->n, sizeof *r->trace);
    int rc = graft_workload_make(r->trace, r->n, &w, err);
    bool *seen = cli_alloc(w.objects + 1, sizeof *seen);
    for (size_t i = 0; i < r->n && !rc; i++) {
        r->objects += !seen[r->trace[i].key];
        r->bytes += seen[r->trace[i].key] ? 0 : r->trace[i].bytes;
        seen[r->trace[i].key] = true;
    }
    gr_free(seen);
    return rc;
}

/* ---- replaying ---------------------------------------------------------------------------------------- */

static bool is_wanted(const bench_cache *b, int column) {
    return b->policy == 0 || column == GRAFT_POLICIES || column == b->policy - 1;
}

static const char *column_name(int column) {
    return column == GRAFT_POLICIES ? "belady" : graft_policy_name((graft_policy)column);
}

static int replay(replayed *r, const bench_cache *b, graft_error *err) {
    graft_replay_options o = graft_replay_options_default();
    int rc = 0;
    r->capacity = b->capacity_mb ? (uint64_t)b->capacity_mb << 20 : b->room ? 0 : r->bytes / 5 ? r->bytes / 5 : 1;
    o.capacity = r->capacity;
    o.max_adapters = (size_t)b->room;
    for (int i = 0; i < COLUMNS && !rc; i++) {
        o.belady = i == GRAFT_POLICIES;
        o.policy = o.belady ? GRAFT_POLICY_LRU : (graft_policy)i;
        rc = is_wanted(b, i) ? graft_replay(&r->results[i], r->trace, r->n, &o, err) : 0;
    }
    return rc;
}

static double hit_ratio(const graft_replay_result *x) {
    return (double)x->hits / (double)x->requests;
}

static double load_time_ratio(const graft_replay_result *x) {
    return x->cost > 0 ? x->cost_missed / x->cost : 0;
}

static json_t *workload_json(const replayed *r, const bench_cache *b) {
    json_t *o = cli_json_object(), *results = cli_json_array();
    cli_json_set(o, "workload", cli_json_string(r->name));
    cli_json_set(o, "requests", cli_json_integer((int64_t)r->n));
    cli_json_set(o, "objects", cli_json_integer((int64_t)r->objects));
    cli_json_set(o, "bytes", cli_json_integer((int64_t)r->bytes));
    cli_json_set(o, "capacity_bytes", r->capacity ? cli_json_integer((int64_t)r->capacity) : json_null());
    cli_json_set(o, "room", b->room ? cli_json_integer(b->room) : json_null());
    for (int i = 0; i < COLUMNS; i++) {
        const graft_replay_result *x = &r->results[i];
        if (!is_wanted(b, i)) {
            continue;
        }
        json_t *one = cli_json_object();
        cli_json_set(one, "policy", cli_json_string(column_name(i)));
        cli_json_set(one, "hits", cli_json_integer((int64_t)x->hits));
        cli_json_set(one, "misses", cli_json_integer((int64_t)x->misses));
        cli_json_set(one, "evictions", cli_json_integer((int64_t)x->evictions));
        cli_json_set(one, "too_large", cli_json_integer((int64_t)x->too_large));
        cli_json_set(one, "hit_ratio", cli_json_number(hit_ratio(x)));
        cli_json_set(one, "load_time_ratio", cli_json_number(load_time_ratio(x)));
        cli_json_append(results, one);
    }
    cli_json_set(o, "results", results);
    return o;
}

static void print_heading(const replayed *r, const bench_cache *b) {
    char bytes[CLI_BYTES_SIZE], capacity[CLI_BYTES_SIZE];
    printf("%s: %zu requests for %zu adapters of %s together; ", r->name, r->n, r->objects, cli_bytes(bytes, r->bytes));
    if (b->room) {
        printf("%d at once%s", b->room, r->capacity ? ", " : "");
    }
    printf("%s\n", r->capacity ? cli_bytes(capacity, r->capacity) : "");
}

static void print_text(const replayed *all, size_t n, const bench_cache *b) {
    static const char *const heads[] = {"workload", "policy", "hits", "load time", "evictions"};
    cli_table table;
    cli_table_init(&table, CLI_COUNT(heads), heads, 0x1c);
    for (size_t k = 0; k < n; k++) {
        print_heading(&all[k], b);
        for (int i = 0; i < COLUMNS; i++) {
            const graft_replay_result *x = &all[k].results[i];
            if (is_wanted(b, i)) {
                cli_table_cell(&table, "%s", all[k].name);
                cli_table_cell(&table, "%s", column_name(i));
                cli_table_cell(&table, "%.1f %%", 100 * hit_ratio(x));
                cli_table_cell(&table, "%.1f %%", 100 * load_time_ratio(x));
                cli_table_cell(&table, "%llu", (unsigned long long)x->evictions);
            }
        }
    }
    putchar('\n');
    cli_table_print(&table, 0);
    cli_table_finish(&table);
}

int cmd_bench_cache(int argc, char **argv) {
    bench_cache b = {.workload = GRAFT_WORKLOADS, .skew = 1, .objects = 100, .requests = 100000, .seed = 1};
    replayed all[GRAFT_WORKLOADS] = {{0}};
    graft_error err = {0};
    size_t n = 0;
    int status = parse(&b, argc, argv);
    if (status != CLI_GO) {
        return status;
    }
    int rc = 0;
    for (int kind = 0; kind < GRAFT_WORKLOADS && !rc; kind++) {
        if (b.trace_path ? kind > 0 : b.workload != GRAFT_WORKLOADS && b.workload != kind) {
            continue;
        }
        replayed *r = &all[n++];
        rc = b.trace_path ? read_trace(r, b.trace_path, &err) : make_workload(r, &b, (graft_workload_kind)kind, &err);
        rc = rc ? rc : replay(r, &b, &err);
        gr_free(r->trace);
        r->trace = NULL;
    }
    if (rc) {
        return cli_error(&err);
    }
    if (!cli_json()) {
        print_text(all, n, &b);
        return CLI_OK;
    }
    json_t *o = cli_json_object(), *workloads = cli_json_array();
    for (size_t k = 0; k < n; k++) {
        cli_json_append(workloads, workload_json(&all[k], &b));
    }
    cli_json_set(o, "workloads", workloads);
    cli_json_print(o);
    return CLI_OK;
}
