/* graft inspect: what loading an adapter would do, or every reason why it cannot be done. */
#include "cli.h"

#include "base/memory.h"

#include <string.h>

static int parse(cli_settings *s, int argc, char **argv, int *rest) {
    const cli_command command = {
        .usage = "graft inspect -m MODEL PATH [options]",
        .about = "Verifies the adapter at PATH, a folder of PEFT or mlx-lm or a GGUF file, against the base model\n"
                 "without loading it, and prints each weight that it would change: how, rank, scale and bytes in memory; warnings;\n"
                 "and, if it cannot be loaded, every reason, not only the first.",
        .examples = "  graft inspect -m base.gguf projects/alder\n"
                    "  graft inspect -m base.gguf adapter.gguf --json\n"
                    "\n"
                    "--json: {\"loadable\",\"path\",\"format\",\"bytes\",\"error\" (first code or null),\n"
                    "  \"modules\":[{\"module\",\"weight\",\"kind\",\"rank\",\"scale\",\"n_in\",\"n_out\",\"dtype\",\"bytes\"}...],\n"
                    "  \"reasons\":[{\"severity\",\"code\",\"where\",\"message\"}...]}\n",
        .failures = "the adapter cannot be loaded, or the model cannot be opened",
        .settings = s,
        .uses = CLI_SET(MODEL) | CLI_SET(ADAPTER_TYPE) | CLI_SET(MAX_ADAPTER_MB) | CLI_SET(MEMORY_LIMIT_MB) |
                CLI_SET_STORES | CLI_SET_LOG,
    };
    return cli_parse(&command, argc, argv, rest);
}

static const graft_reason *first_error(const graft_inspection *i, size_t *n_errors) {
    const graft_reason *first = NULL;
    *n_errors = 0;
    for (size_t k = 0; k < i->n_reasons; k++) {
        if (i->reasons[k].severity == GRAFT_LOG_ERROR) {
            first = first ? first : &i->reasons[k];
            ++*n_errors;
        }
    }
    return first;
}

static const char *severity_name(const graft_reason *r) {
    return r->severity == GRAFT_LOG_ERROR ? "error" : "warning";
}

static json_t *modules_json(const graft_inspection *i) {
    json_t *list = cli_json_array();
    for (size_t k = 0; k < i->n_modules; k++) {
        const graft_module_info *m = &i->modules[k];
        json_t *o = cli_json_object();
        cli_json_set(o, "module", cli_json_string(m->module));
        cli_json_set(o, "weight", cli_json_string(m->weight));
        cli_json_set(o, "kind", cli_json_string(m->kind));
        cli_json_set(o, "rank", cli_json_integer(m->rank));
        cli_json_set(o, "scale", cli_json_number(m->scale));
        cli_json_set(o, "n_in", cli_json_integer(m->n_in));
        cli_json_set(o, "n_out", cli_json_integer(m->n_out));
        cli_json_set(o, "dtype", cli_json_string(m->dtype));
        cli_json_set(o, "bytes", cli_json_integer((int64_t)m->bytes));
        cli_json_append(list, o);
    }
    return list;
}

static json_t *reasons_json(const graft_inspection *i) {
    json_t *list = cli_json_array();
    for (size_t k = 0; k < i->n_reasons; k++) {
        const graft_reason *r = &i->reasons[k];
        json_t *o = cli_json_object();
        cli_json_set(o, "severity", cli_json_string(severity_name(r)));
        cli_json_set(o, "code", cli_json_string(graft_error_name(r->code)));
        cli_json_set(o, "where", cli_json_string(r->where));
        cli_json_set(o, "message", cli_json_string(r->message));
        cli_json_append(list, o);
    }
    return list;
}

static void print_json(const graft_inspection *i, const graft_reason *error) {
    json_t *o = cli_json_object();
    cli_json_set(o, "loadable", i->loadable ? json_true() : json_false());
    cli_json_set(o, "path", cli_json_string(i->path));
    cli_json_set(o, "format", cli_json_string(i->format));
    cli_json_set(o, "bytes", cli_json_integer((int64_t)i->bytes));
    cli_json_set(o, "error", cli_json_string(error ? graft_error_name(error->code) : NULL));
    cli_json_set(o, "modules", modules_json(i));
    cli_json_set(o, "reasons", reasons_json(i));
    cli_json_print(o);
}

static void print_modules(const graft_inspection *i) {
    static const char *const heads[] = {"module", "weight", "kind", "rank", "scale", "in", "out", "type", "bytes"};
    cli_table table;
    cli_table_init(&table, CLI_COUNT(heads), heads, 0x178);
    for (size_t k = 0; k < i->n_modules; k++) {
        const graft_module_info *m = &i->modules[k];
        cli_table_cell(&table, "%s", m->module);
        cli_table_cell(&table, "%s", m->weight);
        cli_table_cell(&table, "%s", m->kind);
        cli_table_cell(&table, "%d", m->rank);
        cli_table_cell(&table, "%.6g", m->scale);
        cli_table_cell(&table, "%lld", (long long)m->n_in);
        cli_table_cell(&table, "%lld", (long long)m->n_out);
        cli_table_cell(&table, "%s", m->dtype ? m->dtype : "");
        cli_table_cell(&table, "%llu", (unsigned long long)m->bytes);
    }
    cli_table_print(&table, 0);
    cli_table_finish(&table);
    putchar('\n');
}

static void print_reasons(const graft_inspection *i) {
    static const char *const heads[] = {"severity", "code", "where", "message"};
    cli_table table;
    cli_table_init(&table, CLI_COUNT(heads), heads, 0);
    for (size_t k = 0; k < i->n_reasons; k++) {
        const graft_reason *r = &i->reasons[k];
        cli_table_cell(&table, "%s", severity_name(r));
        cli_table_cell(&table, "%s", graft_error_name(r->code));
        cli_table_cell(&table, "%s", r->where ? r->where : "");
        cli_table_cell(&table, "%s", r->message ? r->message : "");
    }
    cli_table_print(&table, 0);
    cli_table_finish(&table);
    putchar('\n');
}

static void print_text(const graft_inspection *i, size_t n_errors) {
    char bytes[CLI_BYTES_SIZE];
    if (i->n_modules) {
        print_modules(i);
    }
    if (i->n_reasons) {
        print_reasons(i);
    }
    if (i->loadable) {
        printf("loadable: %s adapter, %zu modules, %s (%llu bytes) in memory\n", i->format ? i->format : "unknown",
               i->n_modules, cli_bytes(bytes, i->bytes), (unsigned long long)i->bytes);
    } else {
        printf("not loadable: %zu reason%s\n", n_errors, n_errors == 1 ? "" : "s");
    }
}

static int report(const graft_inspection *i, const char *path) {
    size_t n_errors;
    const graft_reason *first = first_error(i, &n_errors);
    if (cli_json()) {
        print_json(i, first);
    } else {
        print_text(i, n_errors);
    }
    if (i->loadable) {
        return CLI_OK;
    }
    graft_error err;
    char message[sizeof err.message];
    snprintf(message, sizeof message, "%.400s", first ? first->message : "no reason given");
    if (n_errors > 1) {
        size_t n = strlen(message);
        snprintf(message + n, sizeof message - n, " (and %zu more)", n_errors - 1);
    }
    cli_path_error(&err, first ? first->code : GRAFT_E_INTERNAL, path, first && first->where ? first->where : "", message);
    cli_error_line(&err);
    return CLI_FAILED;
}

int cmd_inspect(int argc, char **argv) {
    enum { CONTEXT = 64 /* nothing will be decoded */ };
    cli_settings s = cli_settings_default();
    graft *g = NULL;
    graft_inspection *inspection = NULL;
    graft_error err = {0};
    int rest;
    int status = parse(&s, argc, argv, &rest);
    if (status != CLI_GO) {
        return status;
    }
    if (!s.model || argc - rest != 1) {
        return cli_usage("-m MODEL and one PATH are needed; see graft inspect --help");
    }
    s.slots = 1;
    s.context = CONTEXT;
    s.batch = CONTEXT;
    s.self_test = false;
    status = cli_model_open(&g, &s, NULL);
    if (status == CLI_GO) {
        char *path = NULL;
        int code = cli_find_adapter(&path, argv[rest], &s, &err);
        code = code ? code : graft_inspect(&inspection, g, path, &err);
        graft_string_free(path);
        status = code ? cli_error(&err) : report(inspection, argv[rest]);
    }
    graft_inspection_free(inspection);
    graft_close(g);
    return status;
}
