/* graft merge: a base model and adapters as one new model. */
#include "cli.h"

#include "base/memory.h"

#include <signal.h>

#define TYPES "same|f32|f16|bf16|q8_0|q6_k|q5_k|q5_1|q5_0|q4_k|q4_1|q4_0|q3_k|q2_k"

typedef struct merge {
    cli_settings set;
    cli_adapters adapters;
    graft_merge_options options;
    int type;
} merge;

static int parse(merge *m, int argc, char **argv, int *rest) {
    const cli_option options[] = {
        {.name = "adapter", .letter = 'a', .value = "PATH[@FACTOR]", .take = cli_take_adapter, .target = &m->adapters,
         .help = "an adapter to merge; may be given again"},
        {.name = "type", .value = TYPES, .take = cli_take_choice, .target = &m->type,
         .help = "type of the weights; same keeps that of each"},
        {.name = "force", .take = cli_take_flag, .target = &m->options.replace, .help = "replace a file at OUT"},
    };
    const cli_command command = {
        .usage = "graft merge -m MODEL -a ADAPTER[@FACTOR] [-a ...] OUT.gguf [options]",
        .about = "Writes a new model: the base with the adapters' changes in its weights, for programs that take no adapters.\n"
                 "All of the base's keys stay, its tokenizer and chat template among them.",
        .examples = "  graft merge -m base.gguf -a projects/alder merged.gguf\n"
                    "  graft merge -m base-f16.gguf -a alder -a birch@0.5 merged.gguf --type q4_k\n"
                    "\n"
                    "--json: {\"out\"}\n",
        .failures = "the model or an adapter was refused, or OUT could not be written",
        .options = options,
        .n_options = CLI_COUNT(options),
        .settings = &m->set,
        .uses = CLI_SET(MODEL) | CLI_SET(THREADS) | CLI_SET(MAX_ADAPTER_MB) | CLI_SET_STORES | CLI_SET_LOG,
    };
    return cli_parse(&command, argc, argv, rest);
}

static bool show_writing(float fraction, void *user) {
    (void)user;
    cli_progress("merging", fraction, 1);
    return !cli_interrupted();
}

/* Paths of the adapters, found. */
static int find_all(merge *m, char **paths, graft_merge_use *uses, graft_error *err) {
    int code = 0;
    for (size_t i = 0; i < m->adapters.n && !code; i++) {
        code = cli_find_adapter(&paths[i], m->adapters.items[i].path, &m->set, err);
        uses[i] = (graft_merge_use){paths[i], m->adapters.items[i].scale};
    }
    return code;
}

static int run(merge *m, graft_error *err) {
    char *model = NULL;
    char **paths = cli_alloc(m->adapters.n, sizeof *paths);
    graft_merge_use *uses = cli_alloc(m->adapters.n, sizeof *uses);
    const char *start;
    size_t length;
    cli_choice_at(TYPES, m->type, &start, &length);
    char type[16];
    snprintf(type, sizeof type, "%.*s", (int)length, start);
    int code = cli_find_model(&model, m->set.model, &m->set, err);
    code = code ? code : find_all(m, paths, uses, err);
    if (!code) {
        m->options.model = model;
        m->options.adapters = uses;
        m->options.n_adapters = m->adapters.n;
        m->options.type = type;
        m->options.threads = m->set.threads;
        m->options.max_adapter_bytes = (uint64_t)m->set.max_adapter_mb << 20;
        m->options.log = cli_log;
        m->options.progress = show_writing;
        code = graft_model_merge(&m->options, err);
        cli_progress_end();
    }
    for (size_t i = 0; i < m->adapters.n; i++) {
        graft_string_free(paths[i]);
    }
    graft_string_free(model);
    gr_free(paths);
    gr_free(uses);
    return code;
}

int cmd_merge(int argc, char **argv) {
    merge m = {.set = cli_settings_default(), .options = graft_merge_options_default()};
    graft_error err = {0};
    int rest, status = parse(&m, argc, argv, &rest);
    if (status == CLI_GO && (!m.set.model || m.adapters.n == 0 || argc - rest != 1)) {
        status = cli_usage("-m MODEL, at least one -a ADAPTER and one OUT are needed; see graft merge --help");
    }
    if (status == CLI_GO) {
        cli_interrupt_start();
        signal(SIGXFSZ, SIG_IGN); /* a file over the limit for files is an error, not the end */
        m.options.out = argv[rest];
        status = CLI_OK;
        if (run(&m, &err)) {
            status = cli_error(&err);
            status = cli_interrupted() ? CLI_INTERRUPTED : status;
        } else if (cli_json()) {
            json_t *result = cli_json_object();
            cli_json_set(result, "out", cli_json_string(m.options.out));
            cli_json_print(result);
        }
    }
    cli_adapters_finish(&m.adapters);
    return status;
}
