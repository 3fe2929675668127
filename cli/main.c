/* The `graft` command: finds the command that is asked for. What commands share is in cli.h. */
#include "cli.h"
#include "registry_cli.h"

#include <string.h>

static int cmd_version(int argc, char **argv);

static const struct {
    const char *name;
    int (*main)(int argc, char **argv);
    const char *about;
} commands[] = {
    {"run", cmd_run, "answer a prompt, or a file of them in one batch, each with its own adapter"},
    {"serve", cmd_serve, "answer OpenAI's API over HTTP, every registered adapter a model"},
    {"chat", cmd_chat, "talk with a model of a server that runs"},
    {"ps", cmd_ps, "what a server has in memory and does"},
    {"load", cmd_load, "bring an adapter into the memory of a server"},
    {"unload", cmd_unload, "take one out of it"},
    {"pin", cmd_pin, "keep one there whatever happens"},
    {"unpin", cmd_unpin, "let it be evicted again"},
    {"switch", cmd_switch, "which adapter a server answers with where none is named"},
    {"key", cmd_key, "the keys of a server: add, list, remove"},
    {"doctor", cmd_doctor, "whether machine, settings, model, registry and server are in order"},
    {"score", cmd_score, "log-probability of each token of a text, and its perplexity"},
    {"inspect", cmd_inspect, "what an adapter would change, or every reason why it cannot be loaded"},
    {"convert", cmd_convert, "an adapter in another form: PEFT folder to GGUF file, and back"},
    {"merge", cmd_merge, "a base model and adapters as one new model, in a type of choice"},
    {"bench", cmd_bench, "speed of mixed adapters against the base and libllama's own adapters"},
    {"bench-loader", cmd_bench_loader, "what loading, leasing and evicting adapters costs, beside libllama's own loading"},
    {"bench-cache", cmd_bench_cache, "which eviction policy suits a workload, or a trace of your own"},
    {"demo", cmd_demo, "the same questions to several projects' adapters and the base, side by side"},
    {"project", cmd_project, "the names that applications use: add, list, show, rename, rm"},
    {"adapter", cmd_adapter, "the adapters of projects: add, list, show, rm, pin, unpin, reload"},
    {"adapters", cmd_adapters, "many at once: scan"},
    {"registry", cmd_registry, "the file that keeps them: check, recover"},
    {"config", cmd_config, "the settings in force, and where each comes from"},
    {"version", cmd_version, "versions of graft and libllama"},
};

static void print_help(FILE *out) {
    fputs("graft: many LoRA adapters over one base model\n\nusage: graft COMMAND [options]\n\ncommands:\n", out);
    for (size_t i = 0; i < CLI_COUNT(commands); i++) {
        fprintf(out, "  %-12s %s\n", commands[i].name, commands[i].about);
    }
    fputs("\n`graft COMMAND --help` tells the options, examples and exit codes of a command.\n"
          "`graft --version` tells the versions.\n",
          out);
}

static int cmd_version(int argc, char **argv) {
    const cli_command command = {
        .usage = "graft version [--json]",
        .about = "Tells the versions of graft and of the libllama that it uses.",
        .examples = "  graft version --json\n",
        .failures = "stdout could not be written",
    };
    int status = cli_parse(&command, argc, argv, NULL);
    if (status != CLI_GO) {
        return status;
    }
    if (!cli_json()) {
        printf("graft %s\nlibllama %s\n", graft_version(), graft_llama_version());
        return CLI_OK;
    }
    json_t *o = cli_json_object();
    cli_json_set(o, "graft", cli_json_string(graft_version()));
    cli_json_set(o, "libllama", cli_json_string(graft_llama_version()));
    cli_json_print(o);
    return CLI_OK;
}

static int dispatch(int argc, char **argv) {
    for (size_t i = 0; i < CLI_COUNT(commands); i++) {
        if (strcmp(argv[0], commands[i].name) == 0) {
            return commands[i].main(argc, argv);
        }
    }
    char quoted[GR_QUOTE_SIZE];
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--json") == 0) {
            cli_set_json(true);
        }
    }
    return cli_usage("unknown command %s; `graft --help` lists them", gr_quote(quoted, argv[0], strlen(argv[0])));
}

static int run(int argc, char **argv) {
    if (argc < 2) {
        print_help(stderr);
        return CLI_USAGE;
    }
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0 || strcmp(argv[1], "help") == 0) {
        print_help(stdout);
        return CLI_OK;
    }
    if (strcmp(argv[1], "--version") == 0) {
        static char version[] = "version";
        argv[1] = version;
    }
    return dispatch(argc - 1, argv + 1);
}

int main(int argc, char **argv) {
    return cli_finish(run(argc, argv));
}
