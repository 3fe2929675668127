/*
 * graft bench-loader: its options, and its figures shown beside what was aimed at. What is measured, and how, is in
 * bench_loader_measure.c.
 */
#include "bench_loader.h"

#include "base/memory.h"

#include <math.h>
#include <string.h>
#include <unistd.h>

enum { MB = 1000000 };

static const counts usual = {10000, 15, 60, 5, 20000, 10000}, few = {200, 3, 4, 2, 500, 300};

/* ---- options ------------------------------------------------------------------------------------------ */

static int parse(loader_bench *b, int argc, char **argv) {
    const cli_option options[] = {
        {"adapter", 'a', "PATH", "the PEFT folder to load, or hf:ORG/NAME (required)", cli_take_adapter, &b->adapters, 0, 0},
        {"hit-threads", 0, "N", "threads that take leases at once", cli_take_int, &b->threads, 1, BENCH_THREADS_MAX},
        {"rounds", 0, "N", "how often it is loaded each way", cli_take_int, &b->n.rounds, 1, 1000},
        {"names", 0, "N", "registered names", cli_take_int, &b->n.names, BENCH_ZIPF_NAMES, 90000},
        {"requests", 0, "N", "leases for each policy", cli_take_int, &b->n.requests, 1, 10000000},
        {"quick", 0, NULL, "few of all: shows that it works, not how fast", cli_take_flag, &b->quick, 0, 0},
    };
    const cli_command command = {
        .usage = "graft bench-loader -m MODEL -a PATH [--json] [options]",
        .about = "Measures the dynamic loader: leases of adapters in memory, loading (beside libllama's own way to load\n"
                 "the same matrices), eviction, switching, 10,000 registered names, and how often each eviction policy\n"
                 "finds an adapter in memory. Works in a temporary folder, which is removed.",
        .examples = "  python3 bench/make_adapters.py base.gguf adapters --count 1 --dtype F32\n"
                    "  graft bench-loader -m base.gguf -a adapters/adapter-1\n"
                    "\n"
                    "--json: one object, times in the unit that ends the key: hit_us_p50, hit_us_p99, hit_us_p50_1thread,\n"
                    "  evict_ms, load_ms, load_probe_ms, load_libllama_ms, load_ratio_libllama, switch_ms,\n"
                    "  overhead_mb_N and start_ms_N (N names), hit_rate_zipf_POLICY, and others\n",
        .failures = "the model or the adapter was refused, or a run failed",
        .options = options,
        .n_options = CLI_COUNT(options),
        .settings = &b->set,
        .uses = CLI_SET_MODEL | CLI_SET(LOADER_THREADS),
    };
    return cli_parse(&command, argc, argv, NULL);
}

static int check_options(loader_bench *b) {
    if (!b->set.model || b->adapters.n != 1) {
        return cli_usage("-m MODEL and one -a PATH are needed; see graft bench-loader --help");
    }
    if (b->quick) {
        b->n = few;
    }
    b->set.slots = 1;
    b->set.context = 256;
    b->load = cli_alloc((size_t)b->n.rounds, sizeof *b->load);
    b->load_probe = cli_alloc((size_t)b->n.rounds, sizeof *b->load_probe);
    b->load_llama = cli_alloc((size_t)b->n.rounds, sizeof *b->load_llama);
    b->ratio = cli_alloc((size_t)b->n.rounds, sizeof *b->ratio);
    b->unload = cli_alloc((size_t)b->n.rounds, sizeof *b->unload);
    b->start = cli_alloc((size_t)b->n.starts, sizeof *b->start);
    b->open = cli_alloc((size_t)b->n.starts, sizeof *b->open);
    b->start_one = cli_alloc((size_t)b->n.starts, sizeof *b->start_one);
    return CLI_GO;
}

/* ---- showing ------------------------------------------------------------------------------------------ */

/* One figure, and what was aimed at. */
typedef struct figure {
    char key[48];      /* of JSON */
    const char *text;  /* of the table */
    cli_spread value;
    bool single;       /* no spread */
    const char *unit;
    double target;     /* 0 = none */
    bool at_least;     /* else at most */
    bool applies;      /* the target is for what was measured */
} figure;

enum { FIGURES_MAX = 32 };

typedef struct figures {
    figure items[FIGURES_MAX];
    size_t n;
} figures;

static figure *add(figures *f, const char *key, const char *text, const char *unit, cli_spread value) {
    figure *added = &f->items[f->n++];
    *added = (figure){.text = text, .unit = unit, .value = value};
    snprintf(added->key, sizeof added->key, "%s", key);
    return added;
}

static figure *add_one(figures *f, const char *key, const char *text, const char *unit, double value) {
    figure *added = add(f, key, text, unit, (cli_spread){value, value, value});
    added->single = true;
    return added;
}

static void aim(figure *f, double target, bool at_least, bool applies) {
    f->target = target;
    f->at_least = at_least;
    f->applies = applies;
}

/* The targets are for a folder of some 20 MB of float32. */
static bool is_20_mb(const loader_bench *b) {
    return b->file_bytes > 18 * (uint64_t)MB && b->file_bytes < 22 * (uint64_t)MB && strcmp(b->dtype, "F32") == 0;
}

static void loading_figures(figures *f, const loader_bench *b) {
    size_t n = (size_t)b->n.rounds;
    cli_spread unload = cli_spread_of(b->unload, n);
    aim(add(f, "load_ms", "load", "ms", cli_spread_of(b->load, n)), 25, false, is_20_mb(b));
    add(f, "load_probe_ms", "load, with the probe", "ms", cli_spread_of(b->load_probe, n));
    add(f, "load_libllama_ms", "libllama's load", "ms", cli_spread_of(b->load_llama, n));
    aim(add(f, "load_ratio_libllama", "libllama's load / load", "times", cli_spread_of(b->ratio, n)), 3, true, true);
    aim(add(f, "evict_ms", "unload an idle one", "ms", unload), 1, false, true);
    aim(add_one(f, "evict_ms_mean", "eviction, mean", "ms", b->evict_mean), 1, false, true);
    aim(add_one(f, "evict_ms_max", "eviction, longest", "ms", b->evict_max > unload.max ? b->evict_max : unload.max), 1,
        false, true);
}

static void collect(figures *f, const loader_bench *b) {
    static const char *const policy_texts[GRAFT_POLICIES] = {"hits, Zipf, lru", "hits, Zipf, sieve", "hits, Zipf, s3fifo",
                                                             "hits, Zipf, wtinylfu", "hits, Zipf, gdsf"};
    size_t n = (size_t)b->n.starts;
    bool all = b->n.names == usual.names;
    char key[48];
    f->n = 0;
    aim(add(f, "hit_us_p50", "hit, median", "us", b->hit_p50), 2, false, b->threads == 8);
    aim(add(f, "hit_us_p99", "hit, 99 of 100", "us", b->hit_p99), 20, false, b->threads == 8);
    aim(add(f, "hit_us_p50_1thread", "hit, median, 1 thread", "us", b->hit_p50_one), 2, false, true);
    add(f, "hits_per_second", "hits", "/s", b->hits_per_second);
    add(f, "switch_ms", "switch, resident", "ms", b->switching);
    loading_figures(f, b);
    snprintf(key, sizeof key, "start_ms_%d", b->n.names);
    aim(add(f, key, "start with all names", "ms", cli_spread_of(b->start, n)), 500, false, all);
    snprintf(key, sizeof key, "registry_open_ms_%d", b->n.names);
    add(f, key, "of which the registry", "ms", cli_spread_of(b->open, n));
    add(f, "start_ms_1", "start with one name", "ms", cli_spread_of(b->start_one, n));
    snprintf(key, sizeof key, "scan_ms_%d", b->n.names);
    add_one(f, key, "register all names", "ms", b->scan_ms);
    snprintf(key, sizeof key, "overhead_mb_%d", b->n.names);
    aim(add_one(f, key, "memory, all names used", "MB", b->overhead_bytes / MB), 5, false, all);
    snprintf(key, sizeof key, "overhead_mb_%d_unused", b->n.names);
    aim(add_one(f, key, "memory, none used yet", "MB", b->unused_bytes / MB), 5, false, all);
    snprintf(key, sizeof key, "overhead_mb_%d_burst", b->n.names);
    add_one(f, key, "with their last events", "MB", b->burst_bytes / MB);
    for (int i = 0; i < GRAFT_POLICIES; i++) {
        snprintf(key, sizeof key, "hit_rate_zipf_%s", graft_policy_name((graft_policy)i));
        add_one(f, key, policy_texts[i], "", b->hit_rate[i]);
    }
}

static void print_json(const loader_bench *b, const figures *f, const char *cpu) {
    json_t *o = cli_json_object();
    for (size_t i = 0; i < f->n; i++) {
        const figure *x = &f->items[i];
        char key[64];
        cli_json_set(o, x->key, cli_json_number(x->value.median));
        if (!x->single) {
            snprintf(key, sizeof key, "%s_min", x->key);
            cli_json_set(o, key, cli_json_number(x->value.min));
            snprintf(key, sizeof key, "%s_max", x->key);
            cli_json_set(o, key, cli_json_number(x->value.max));
        }
    }
    cli_json_set(o, "bytes", cli_json_integer((int64_t)b->bytes));
    cli_json_set(o, "file_bytes", cli_json_integer((int64_t)b->file_bytes));
    cli_json_set(o, "rank", cli_json_integer(b->rank));
    cli_json_set(o, "dtype", cli_json_string(b->dtype));
    cli_json_set(o, "modules", cli_json_integer((int64_t)b->n_modules));
    cli_json_set(o, "loads", cli_json_integer((int64_t)b->loads));
    cli_json_set(o, "names", cli_json_integer(b->n.names));
    cli_json_set(o, "rounds", cli_json_integer(b->n.rounds));
    cli_json_set(o, "requests", cli_json_integer(b->n.requests));
    cli_json_set(o, "hit_threads", cli_json_integer(b->threads));
    cli_json_set(o, "cpus", cli_json_integer((int)sysconf(_SC_NPROCESSORS_ONLN)));
    cli_json_set(o, "cpu", cli_json_string(cpu));
    cli_json_set(o, "model", cli_json_string(b->description));
    cli_json_set(o, "graft", cli_json_string(graft_version()));
    cli_json_set(o, "libllama", cli_json_string(graft_llama_version()));
    cli_json_print(o);
}

/* Four digits tell all that a shared machine can. */
static void number_cell(cli_table *t, double value, const char *unit) {
    int digits = fabs(value) < 10 ? 3 : fabs(value) < 100 ? 1 : 0;
    cli_table_cell(t, "%.*f%s%s", digits, value, *unit ? " " : "", unit);
}

static void print_text(const loader_bench *b, const figures *f, const char *cpu) {
    static const char *const heads[] = {"figure", "median", "min", "max", "target", ""};
    cli_table table;
    char file[CLI_BYTES_SIZE], memory[CLI_BYTES_SIZE];
    cli_table_init(&table, CLI_COUNT(heads), heads, 0x1e);
    for (size_t i = 0; i < f->n; i++) {
        const figure *x = &f->items[i];
        bool met = x->at_least ? x->value.median >= x->target : x->value.median <= x->target;
        cli_table_cell(&table, "%s", x->text);
        number_cell(&table, x->value.median, x->unit);
        for (int k = 0; k < 2; k++) {
            if (x->single) {
                cli_table_cell(&table, "%s", "");
            } else {
                number_cell(&table, k ? x->value.max : x->value.min, "");
            }
        }
        if (x->target > 0) {
            cli_table_cell(&table, "%s %g", x->at_least ? ">=" : "<=", x->target);
        } else {
            cli_table_cell(&table, "%s", "");
        }
        cli_table_cell(&table, "%s", x->target <= 0 ? "" : !x->applies ? "not measured" : met ? "met" : "MISSED");
    }
    cli_table_print(&table, 0);
    cli_table_finish(&table);
    printf("\n%s, %d CPUs; libllama %s; base %s\n", cpu, (int)sysconf(_SC_NPROCESSORS_ONLN), graft_llama_version(),
           b->description);
    printf("adapter: %zu modules of rank %d, %s of %s, %s in memory; %d names, %d threads take leases\n", b->n_modules,
           b->rank, cli_bytes(file, b->file_bytes), b->dtype, cli_bytes(memory, b->bytes),
           b->n.names, b->threads);
}

static void finish(loader_bench *b) {
    double *const all[] = {b->load, b->load_probe, b->load_llama, b->ratio, b->unload, b->start, b->open, b->start_one};
    char *const texts[] = {b->big, b->gguf, b->model, b->description};
    for (size_t i = 0; i < CLI_COUNT(all); i++) {
        gr_free(all[i]);
    }
    for (size_t i = 0; i < CLI_COUNT(texts); i++) {
        gr_free(texts[i]);
    }
    bench_peft_finish(&b->small);
    cli_adapters_finish(&b->adapters);
    cli_temp_remove();
}

int cmd_bench_loader(int argc, char **argv) {
    loader_bench b = {.set = cli_settings_default(), .n = usual, .threads = 8};
    int status = parse(&b, argc, argv);
    if (status == CLI_GO) status = check_options(&b);
    if (status == CLI_GO) {
        cli_interrupt_start();
        status = bench_loader_measure(&b);
    }
    if (status == CLI_GO) {
        figures f;
        char cpu[128];
        cli_cpu_name(cpu, sizeof cpu);
        collect(&f, &b);
        if (cli_json()) {
            print_json(&b, &f, cpu);
        } else {
            print_text(&b, &f, cpu);
        }
        status = CLI_OK;
    } else if (cli_interrupted()) {
        cli_progress_end();
        status = CLI_INTERRUPTED;
    }
    finish(&b);
    return status;
}
