/*
 * graft bench: decode speed of mixed adapters, against the base alone and against libllama's own adapters.
 *
 *   base     no adapter
 *   same     every sequence uses the first adapter, applied by rows
 *   rows     sequence i uses adapter i mod n, applied by rows: one decode for all of them
 *   grouped  the same mix, one decode per adapter
 *   native   every sequence uses the first adapter through libllama: one decode
 *
 * All modes run in one process in turn, in another order each round, so that a machine that slows down or
 * speeds up does so for all of them; ratios are taken within a round and only then reduced to their median.
 * Counted are decode steps alone, from the engine's own counters: no prompt, no queue, no tokeniser.
 */
#include "bench.h"

#include "base/memory.h"

#include <stdlib.h>
#include <string.h>

enum { N_MODES = 5, PROMPT_TOKENS = 8, WARM_UP_TOKENS = 4 };
enum { BASE, SAME, ROWS, GROUPED, NATIVE };

static const struct {
    const char *name;
    graft_apply apply;
    bool adapters, mixed;
} modes[N_MODES] = {
    {"base", GRAFT_APPLY_AUTO, false, false},   {"same", GRAFT_APPLY_ROWS, true, false},
    {"rows", GRAFT_APPLY_ROWS, true, true},     {"grouped", GRAFT_APPLY_GROUPED, true, true},
    {"native", GRAFT_APPLY_GROUPED, true, false},
};

static const struct {
    const char *name;
    int above, below;
} ratios[] = {{"rows/grouped", ROWS, GROUPED}, {"rows/base", ROWS, BASE}, {"same/native", SAME, NATIVE}};

typedef struct bench {
    cli_settings set;
    cli_adapters adapters;
    cli_ints sequences;
    int new_tokens, rounds;
    bool possible[N_MODES];
    double *speeds; /* tokens/s, [sequences][mode][round] */
    int done, total; /* runs, for the bar */
} bench;

static double *speeds_of(const bench *b, size_t s, int mode) {
    return &b->speeds[(s * N_MODES + (size_t)mode) * (size_t)b->rounds];
}

static int parse(bench *b, int argc, char **argv, int *rest) {
    const cli_option options[] = {
        {"adapter", 'a', "PATH",
         "an adapter, also ollama:NAME or hf:ORG/NAME; several as -a A -a B or -a A B\n"
         "(one is required)",
         cli_take_adapter, &b->adapters, 0, 0},
        {"sequences", 0, "N,N,...", "sequences at once, each number is measured (default 1,8,32)", cli_take_ints,
         &b->sequences, 1, 256},
        {"new-tokens", 0, "N", "new tokens per sequence", cli_take_int, &b->new_tokens, 2, 4096},
        {"rounds", 0, "N", "how often each mode runs", cli_take_int, &b->rounds, 1, 1000},
    };
    const cli_command command = {
        .usage = "graft bench -m MODEL -a PATH... [--sequences 1,8,32] [--new-tokens 48] [options]",
        .about = "Measures tokens per second of decode steps: base (no adapter); same (all sequences use the first\n"
                 "adapter, by rows); rows (sequence i uses adapter i mod n, by rows); grouped (the same mix, one\n"
                 "decode per adapter); native (all use the first adapter, libllama's own way). Modes take turns in\n"
                 "one process, in another order each round; shown are medians and the range. Ratios are medians of\n"
                 "the ratios within a round.",
        .examples = "  python3 bench/make_adapters.py base.gguf adapters --count 8 --rank 16\n"
                    "  graft bench -m base.gguf -a adapters/*\n"
                    "  graft bench -m base.gguf -a alder -a birch --sequences 8 --rounds 9 --json\n"
                    "\n"
                    "--json: {\"results\":[{\"mode\",\"sequences\",\"tokens_per_second\",\"min\",\"max\"}...],\n"
                    "  \"ratios\":{\"rows/grouped\":{\"8\":X...},\"rows/base\":{...},\"same/native\":{...}},\n"
                    "  \"machine\":{...},\"model\":{...},\"adapters\":[...],\"new_tokens\",\"rounds\"}\n",
        .failures = "the model or an adapter was refused, or a run failed",
        .options = options,
        .n_options = CLI_COUNT(options),
        .settings = &b->set,
        .uses = CLI_SET_MODEL,
    };
    return cli_parse(&command, argc, argv, rest);
}

static int most_sequences(const bench *b) {
    int most = 1;
    for (size_t i = 0; i < b->sequences.n; i++) {
        most = b->sequences.items[i] > most ? b->sequences.items[i] : most;
    }
    return most;
}

static int check_options(bench *b, int argc, char **argv, int rest) {
    char why[512];
    const cli_option adapter = {.name = "adapter", .target = &b->adapters};
    const cli_option sequences = {.name = "sequences", .target = &b->sequences, .min = 1, .max = 256};
    for (int i = rest; i < argc; i++) {
        if (!cli_take_adapter(&adapter, argv[i], why, sizeof why)) {
            return cli_usage("--adapter: %s", why);
        }
    }
    if (!b->set.model || b->adapters.n == 0) {
        return cli_usage("-m MODEL and at least one -a PATH are needed; see graft bench --help");
    }
    if (b->sequences.n == 0 && !cli_take_ints(&sequences, "1,8,32", why, sizeof why)) {
        return CLI_FAILED;
    }
    b->set.slots = most_sequences(b);
    b->set.context = (PROMPT_TOKENS + b->new_tokens + 63) / 64 * 64;
    b->speeds = cli_alloc(b->sequences.n * N_MODES * (size_t)b->rounds, sizeof *b->speeds);
    return CLI_GO;
}

/* ---- measuring ---------------------------------------------------------------------------------------- */

/* Any tokens do, as long as prompts have one length and none begins like another (a shared prefix could be
 * reused). */
static void fill_prompt(int32_t tokens[PROMPT_TOKENS], int sequence, int n_vocab) {
    for (int i = 0; i < PROMPT_TOKENS; i++) {
        tokens[i] = (int32_t)((17 + 31 * (int64_t)sequence + 7 * (int64_t)i) % n_vocab);
    }
}

static int wait_jobs(graft_job **jobs, int n) {
    int status = CLI_GO;
    for (int i = 0; i < n; i++) {
        const graft_result *result = graft_job_wait(jobs[i]);
        if (result->finish != GRAFT_FINISH_LENGTH && status == CLI_GO) {
            status = result->error.code ? cli_error(&result->error)
                                        : cli_fail(GRAFT_E_INTERNAL, "a sequence ended early: %s",
                                                   graft_finish_name(result->finish));
        }
        graft_job_free(jobs[i]);
    }
    return status;
}

/* One run: *speed = tokens/s of its decode steps. */
static int run_once(const bench *b, graft *g, int mode, int n, int new_tokens, double *speed) {
    enum { MOST = 256 };
    graft_request requests[MOST];
    graft_adapter_use uses[MOST];
    int32_t prompts[MOST][PROMPT_TOKENS];
    graft_job *jobs[MOST];
    graft_model_info info;
    graft_stats before, after;
    graft_error err = {0};
    graft_model_get_info(g, &info);
    if (graft_set_apply(g, modes[mode].apply, &err) != 0) {
        return cli_error(&err);
    }
    for (int i = 0; i < n; i++) {
        const cli_adapter *a = &b->adapters.items[modes[mode].mixed ? (size_t)i % b->adapters.n : 0];
        fill_prompt(prompts[i], i, info.n_vocab);
        uses[i] = (graft_adapter_use){.adapter = a->handle, .scale = a->scale};
        requests[i] = graft_request_default();
        requests[i].tokens = prompts[i];
        requests[i].n_tokens = PROMPT_TOKENS;
        requests[i].adapters = modes[mode].adapters ? &uses[i] : NULL;
        requests[i].n_adapters = modes[mode].adapters ? 1 : 0;
        requests[i].max_tokens = new_tokens;
        requests[i].ignore_eos = true;
        requests[i].sampling.temperature = 0;
        requests[i].cache_prompt = false; /* each run evaluates its prompts */
    }
    graft_get_stats(g, &before);
    if (graft_submit(jobs, g, requests, (size_t)n, &err) != 0) {
        return cli_error(&err);
    }
    int status = wait_jobs(jobs, n);
    graft_get_stats(g, &after);
    double ms = after.decode_ms - before.decode_ms;
    *speed = ms > 0 ? (double)(after.decode_tokens - before.decode_tokens) * 1000 / ms : 0;
    return status;
}

/* By rows may not be possible on this machine or model; then those modes are left out. */
static void find_possible(bench *b, graft *g) {
    graft_error err = {0};
    bool rows = graft_set_apply(g, GRAFT_APPLY_ROWS, &err) == 0;
    for (int m = 0; m < N_MODES; m++) {
        b->possible[m] = rows || modes[m].apply != GRAFT_APPLY_ROWS;
    }
    if (!rows) {
        cli_log_line(GRAFT_LOG_WARN, err.code, "without the modes same and rows: %s", err.message);
    }
}

/* A fixed sequence of orders, so that two benches compare. */
static void shuffle(int order[N_MODES], uint32_t *state) {
    for (int i = 0; i < N_MODES; i++) {
        order[i] = i;
    }
    for (int i = N_MODES - 1; i > 0; i--) {
        *state = *state * 1664525u + 1013904223u;
        int k = (int)((*state >> 16) % (uint32_t)(i + 1));
        int kept = order[i];
        order[i] = order[k];
        order[k] = kept;
    }
}

/* Each mode once, in the given order. Round -1 warms up: caches, and libllama's copies of the adapters. */
static int one_round(bench *b, graft *g, size_t s, int round, const int order[N_MODES]) {
    for (int i = 0; i < N_MODES; i++) {
        int mode = order[i];
        double speed = 0;
        cli_progress("measuring", b->done++, b->total);
        if (!b->possible[mode]) {
            continue;
        }
        int status = run_once(b, g, mode, b->sequences.items[s], round < 0 ? WARM_UP_TOKENS : b->new_tokens,
                              &speed);
        if (status != CLI_GO) {
            return status;
        }
        if (round >= 0) {
            speeds_of(b, s, mode)[round] = speed;
        }
    }
    return CLI_GO;
}

static int measure(bench *b, graft *g) {
    uint32_t state = 1;
    find_possible(b, g);
    b->total = (int)b->sequences.n * (b->rounds + 1) * N_MODES;
    for (size_t s = 0; s < b->sequences.n; s++) {
        for (int round = -1; round < b->rounds; round++) {
            int order[N_MODES];
            shuffle(order, &state);
            int status = one_round(b, g, s, round, order);
            if (status != CLI_GO) {
                return status;
            }
        }
    }
    cli_progress_end();
    return CLI_GO;
}

/* ---- figures ------------------------------------------------------------------------------------------ */

/* False if one of the two modes was left out. */
static bool ratio_of(const bench *b, size_t s, size_t ratio, cli_spread *out) {
    int above = ratios[ratio].above, below = ratios[ratio].below;
    if (!b->possible[above] || !b->possible[below]) {
        return false;
    }
    double *values = cli_alloc((size_t)b->rounds, sizeof *values);
    for (int i = 0; i < b->rounds; i++) {
        double divisor = speeds_of(b, s, below)[i];
        values[i] = divisor > 0 ? speeds_of(b, s, above)[i] / divisor : 0;
    }
    *out = cli_spread_of(values, (size_t)b->rounds);
    gr_free(values);
    return true;
}

/* ---- showing ------------------------------------------------------------------------------------------ */

static json_t *results_json(const bench *b) {
    json_t *list = cli_json_array();
    for (size_t s = 0; s < b->sequences.n; s++) {
        for (int m = 0; m < N_MODES; m++) {
            if (!b->possible[m]) {
                continue;
            }
            cli_spread v = cli_spread_of(speeds_of(b, s, m), (size_t)b->rounds);
            json_t *o = cli_json_object();
            cli_json_set(o, "mode", cli_json_string(modes[m].name));
            cli_json_set(o, "sequences", cli_json_integer(b->sequences.items[s]));
            cli_json_set(o, "tokens_per_second", cli_json_number(v.median));
            cli_json_set(o, "min", cli_json_number(v.min));
            cli_json_set(o, "max", cli_json_number(v.max));
            cli_json_append(list, o);
        }
    }
    return list;
}

static json_t *ratios_json(const bench *b) {
    json_t *all = cli_json_object();
    for (size_t r = 0; r < CLI_COUNT(ratios); r++) {
        json_t *o = cli_json_object();
        for (size_t s = 0; s < b->sequences.n; s++) {
            char key[16];
            cli_spread v;
            snprintf(key, sizeof key, "%d", b->sequences.items[s]);
            if (ratio_of(b, s, r, &v)) {
                cli_json_set(o, key, cli_json_number(v.median));
            }
        }
        cli_json_set(all, ratios[r].name, o);
    }
    return all;
}

static void print_json(const bench *b, const graft_model_info *info, const char *cpu) {
    json_t *o = cli_json_object(), *machine = cli_json_object(), *model = cli_json_object();
    cli_json_set(o, "results", results_json(b));
    cli_json_set(o, "ratios", ratios_json(b));
    cli_json_set(machine, "cpu", cli_json_string(cpu));
    cli_json_set(machine, "threads", cli_json_integer(info->threads));
    cli_json_set(machine, "kernels", cli_json_string(info->kernels));
    cli_json_set(machine, "graft", cli_json_string(graft_version()));
    cli_json_set(machine, "libllama", cli_json_string(graft_llama_version()));
    cli_json_set(o, "machine", machine);
    cli_json_set(model, "description", cli_json_string(info->description));
    cli_json_set(model, "weight_bytes", cli_json_integer((int64_t)info->weight_bytes));
    cli_json_set(model, "context_bytes", cli_json_integer((int64_t)info->context_bytes));
    cli_json_set(o, "model", model);
    cli_json_set(o, "adapters", cli_adapters_json(&b->adapters));
    cli_json_set(o, "new_tokens", cli_json_integer(b->new_tokens));
    cli_json_set(o, "rounds", cli_json_integer(b->rounds));
    cli_json_print(o);
}

static double fastest(const bench *b) {
    double most = 1e-9;
    for (size_t s = 0; s < b->sequences.n; s++) {
        for (int m = 0; m < N_MODES; m++) {
            double median = cli_spread_of(speeds_of(b, s, m), (size_t)b->rounds).median;
            most = median > most ? median : most;
        }
    }
    return most;
}

static void print_speeds(const bench *b) {
    enum { BAR = 30 };
    static const char bar[BAR + 1] = "##############################";
    static const char *const heads[] = {"sequences", "mode", "tokens/s", "min", "max", ""};
    double most = fastest(b);
    cli_table table;
    cli_table_init(&table, CLI_COUNT(heads), heads, 0x1d);
    for (size_t s = 0; s < b->sequences.n; s++) {
        for (int m = 0; m < N_MODES; m++) {
            if (!b->possible[m]) {
                continue;
            }
            cli_spread v = cli_spread_of(speeds_of(b, s, m), (size_t)b->rounds);
            cli_table_cell(&table, "%d", b->sequences.items[s]);
            cli_table_cell(&table, "%s", modes[m].name);
            cli_table_cell(&table, "%.1f", v.median);
            cli_table_cell(&table, "%.1f", v.min);
            cli_table_cell(&table, "%.1f", v.max);
            cli_table_cell(&table, "%.*s", (int)(v.median / most * BAR + 0.5), bar);
        }
    }
    cli_table_print(&table, 0);
    cli_table_finish(&table);
}

static void print_ratios(const bench *b) {
    static const char *const heads[] = {"sequences", "ratio", "median", "min", "max"};
    cli_table table;
    cli_table_init(&table, CLI_COUNT(heads), heads, 0x1d);
    for (size_t s = 0; s < b->sequences.n; s++) {
        for (size_t r = 0; r < CLI_COUNT(ratios); r++) {
            cli_spread v;
            if (!ratio_of(b, s, r, &v)) {
                continue;
            }
            cli_table_cell(&table, "%d", b->sequences.items[s]);
            cli_table_cell(&table, "%s", ratios[r].name);
            cli_table_cell(&table, "%.3f", v.median);
            cli_table_cell(&table, "%.3f", v.min);
            cli_table_cell(&table, "%.3f", v.max);
        }
    }
    if (table.n_cells > CLI_COUNT(heads)) {
        cli_table_print(&table, 0);
        putchar('\n');
    }
    cli_table_finish(&table);
}

static void print_text(const bench *b, const graft_model_info *info, const char *cpu) {
    uint64_t total = 0;
    char bytes[CLI_BYTES_SIZE];
    for (size_t i = 0; i < b->adapters.n; i++) {
        total += b->adapters.items[i].info.bytes;
    }
    print_speeds(b);
    putchar('\n');
    print_ratios(b);
    printf("%s, %d threads, kernels %s; libllama %s\n", cpu, info->threads, info->kernels, graft_llama_version());
    printf("%s; %zu adapter%s, %s in memory; %d new tokens, %d rounds\n", info->description, b->adapters.n,
           b->adapters.n == 1 ? "" : "s", cli_bytes(bytes, total), b->new_tokens, b->rounds);
}

int cmd_bench(int argc, char **argv) {
    bench b = {.set = cli_settings_default(), .new_tokens = 48, .rounds = 5};
    graft *g = NULL;
    int rest = 0;
    int status = parse(&b, argc, argv, &rest);
    if (status == CLI_GO) status = check_options(&b, argc, argv, rest);
    if (status == CLI_GO) status = cli_model_open(&g, &b.set, NULL);
    if (status == CLI_GO) status = cli_adapters_load(&b.adapters, g, &b.set);
    if (status == CLI_GO) status = measure(&b, g);
    if (status == CLI_GO) {
        graft_model_info info;
        char cpu[128];
        graft_model_get_info(g, &info);
        cli_cpu_name(cpu, sizeof cpu);
        if (cli_json()) {
            print_json(&b, &info, cpu);
        } else {
            print_text(&b, &info, cpu);
        }
        status = CLI_OK;
    }
    cli_adapters_finish(&b.adapters);
    graft_close(g);
    gr_free(b.sequences.items);
    gr_free(b.speeds);
    return status;
}
