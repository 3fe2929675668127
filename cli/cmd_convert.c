/* graft convert: an adapter in another form that computes the same. */
#include "cli.h"

#include "base/memory.h"

#include <signal.h>
#include <string.h>

static int parse(cli_settings *s, graft_convert_options *o, int argc, char **argv, int *rest) {
    int to = 0, type = 0;
    const cli_option options[] = {
        {.name = "to", .value = "other|gguf|peft", .take = cli_take_choice, .target = &to,
         .help = "form to write: other turns a folder into a GGUF file, and back"},
        {.name = "type", .value = "keep|f32|f16", .take = cli_take_choice, .target = &type, .help = "type of the matrices"},
        {.name = "force", .take = cli_take_flag, .target = &o->replace, .help = "replace what is at OUT"},
    };
    const cli_command command = {
        .usage = "graft convert -m MODEL ADAPTER OUT [options]",
        .about = "Writes the adapter in another form: a folder of PEFT or mlx-lm as a GGUF file that llama.cpp reads, a GGUF\n"
                 "adapter (or, with --to peft, a folder of mlx-lm) as a PEFT folder. What is written computes the same; what has no\n"
                 "place in the other form is refused.",
        .examples = "  graft convert -m base.gguf projects/alder alder.gguf\n"
                    "  graft convert -m base.gguf alder.gguf folder --type f16\n"
                    "\n"
                    "--json: {\"out\"}\n",
        .failures = "the adapter was refused, or OUT could not be written",
        .options = options,
        .n_options = CLI_COUNT(options),
        .settings = s,
        .uses = CLI_SET(MODEL) | CLI_SET(MAX_ADAPTER_MB) | CLI_SET_STORES | CLI_SET_LOG,
    };
    int status = cli_parse(&command, argc, argv, rest);
    o->to = (graft_adapter_format)to;
    o->type = (graft_export_type)type;
    return status;
}

static bool show_writing(float fraction, void *user) {
    (void)user;
    cli_progress("writing", fraction, 1);
    return !cli_interrupted();
}

static int convert(graft_convert_options *o, const cli_settings *s, const char *adapter, graft_error *err) {
    char *model_path = NULL, *adapter_path = NULL;
    int code = cli_find_model(&model_path, s->model, s, err);
    code = code ? code : cli_find_adapter(&adapter_path, adapter, s, err);
    if (!code) {
        o->model = model_path;
        o->adapter = adapter_path;
        o->max_adapter_bytes = (uint64_t)s->max_adapter_mb << 20;
        o->log = cli_log;
        o->progress = show_writing;
        code = graft_adapter_convert(o, err);
        cli_progress_end();
    }
    graft_string_free(adapter_path);
    graft_string_free(model_path);
    return code;
}

int cmd_convert(int argc, char **argv) {
    cli_settings s = cli_settings_default();
    graft_convert_options o = graft_convert_options_default();
    graft_error err = {0};
    int rest, status = parse(&s, &o, argc, argv, &rest);
    if (status != CLI_GO) {
        return status;
    }
    if (!s.model || argc - rest != 2) {
        return cli_usage("-m MODEL, an ADAPTER and one OUT are needed; see graft convert --help");
    }
    cli_interrupt_start();
    signal(SIGXFSZ, SIG_IGN); /* a file over the limit for files is an error, not the end */
    o.out = argv[rest + 1];
    if (convert(&o, &s, argv[rest], &err)) {
        status = cli_error(&err);
        return cli_interrupted() ? CLI_INTERRUPTED : status;
    }
    if (cli_json()) {
        json_t *result = cli_json_object();
        cli_json_set(result, "out", cli_json_string(o.out));
        cli_json_print(result);
    }
    return CLI_OK;
}
