/* What the registry commands share: opening it, tables, times, errors. */
#include "registry_cli.h"

#include "base/memory.h"

#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

/* ---- verbs -------------------------------------------------------------------------------------------- */

/* "add" of "project add". */
static const char *short_name(const cli_verb *v) {
    return strchr(v->name, ' ') + 1;
}

static void print_verbs(const cli_verb *verbs, size_t n, const char *about, const char *group) {
    printf("usage: graft %s VERB [arguments] [options]\n\n%s\n\nverbs:\n", group, about);
    for (size_t i = 0; i < n; i++) {
        printf("  %-7s %s\n", short_name(&verbs[i]), verbs[i].about);
    }
    printf("\n`graft %s VERB --help` tells the arguments, options, examples and exit codes of a verb.\n", group);
}

int cli_verb_run(const cli_verb *verbs, size_t n, const char *about, int argc, char **argv) {
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--json") == 0) {
            cli_set_json(true);
        }
    }
    if (argc > 1 && (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0 || strcmp(argv[1], "help") == 0)) {
        print_verbs(verbs, n, about, argv[0]);
        return CLI_OK;
    }
    if (argc < 2 || *argv[1] == '-') {
        return cli_usage("a verb is needed; see graft %s --help", argv[0]);
    }
    for (size_t i = 0; i < n; i++) {
        if (strcmp(argv[1], short_name(&verbs[i])) == 0) {
            char *name = cli_strdup(verbs[i].name);
            argv[1] = name; /* what its messages call it */
            int status = verbs[i].main(argc - 1, argv + 1);
            gr_free(name);
            return status;
        }
    }
    char q[GR_QUOTE_SIZE];
    return cli_usage("unknown verb %s; see graft %s --help", gr_quote(q, argv[1], strlen(argv[1])), argv[0]);
}

static int verb_parse(const cli_command *command, int argc, char **argv, int min, int max, int *rest) {
    int status = cli_parse(command, argc, argv, rest);
    if (status == CLI_GO && rest && (argc - *rest < min || argc - *rest > max)) {
        return cli_usage("%s arguments; see graft %s --help", argc - *rest < min ? "too few" : "too many", argv[0]);
    }
    return status;
}

/* ---- the registry ------------------------------------------------------------------------------------- */

/* Every folder on the way that is not there. Opening tells what could not be made. */
static void make_folders(const char *file) {
    char *path = cli_strdup(file);
    for (char *slash = strchr(path + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        mkdir(path, 0700);
        *slash = '/';
    }
    gr_free(path);
}

static int open_registry(graft_registry **out, const cli_settings *s, bool read_only, bool wait, graft_error *err) {
    graft_registry_options o = graft_registry_options_default();
    if (!s->registry) {
        return gr_fail(err, GRAFT_E_BAD_REQUEST, "where is the registry? give --registry FILE, or set GRAFT_REGISTRY or HOME");
    }
    if (!read_only && s->from[CLI_ID_REGISTRY].source == CLI_FROM_DEFAULT) {
        make_folders(s->registry); /* graft's own place; elsewhere a folder that is not there is a typing error */
    }
    cli_settings_registry_options(s, &o);
    o.read_only = read_only;
    o.log = cli_log;
    o.wait_ms = wait ? o.wait_ms : 0;
    return graft_registry_open(out, &o, err);
}

int cli_registry_open(graft_registry **out, const cli_settings *s, bool read_only, graft_error *err) {
    return open_registry(out, s, read_only, true, err);
}

int cli_registry_open_to_use(graft_registry **out, const cli_settings *s, graft_error *err) {
    graft_error why = {0};
    if (!s->registry || access(s->registry, W_OK) != 0) {
        return open_registry(out, s, true, true, err); /* what is not there, it says so */
    }
    int code = open_registry(out, s, false, false, &why);
    if (code == GRAFT_E_REGISTRY_BUSY || code == GRAFT_E_STORAGE_FULL) {
        cli_log_line(GRAFT_LOG_INFO, code, "uses are not counted: %s", why.message);
        return open_registry(out, s, true, true, err);
    }
    if (code) {
        *err = why;
    }
    return code;
}

int cli_verb_open(graft_registry **out, const cli_command *command, bool read_only, int argc, char **argv, int min, int max,
                  int *rest) {
    graft_error err = {0};
    int status = verb_parse(command, argc, argv, min, max, rest);
    if (status != CLI_GO) {
        return status;
    }
    int code = cli_registry_open(out, command->settings, read_only, &err);
    if (code == GRAFT_E_NOT_FOUND && read_only) {
        return cli_fail(code, "%s; `graft project add` makes one", err.message);
    }
    return code ? cli_error(&err) : CLI_GO;
}

cli_name cli_name_parse(const char *text) {
    cli_name n = {.project = cli_strdup(text)};
    char *slash = strchr(n.project, '/');
    if (slash) {
        *slash = '\0';
        n.adapter = slash + 1;
    }
    return n;
}

void cli_name_finish(cli_name *n) {
    gr_free(n->project);
}

/* ---- showing ------------------------------------------------------------------------------------------ */

const char *cli_time(char out[CLI_TIME_SIZE], int64_t seconds) {
    time_t t = (time_t)seconds;
    struct tm parts;
    if (seconds == 0 || !gmtime_r(&t, &parts) || strftime(out, CLI_TIME_SIZE, "%Y-%m-%dT%H:%M:%SZ", &parts) == 0) {
        snprintf(out, CLI_TIME_SIZE, "-");
    }
    return out;
}

static json_t *time_json(int64_t seconds) {
    char text[CLI_TIME_SIZE];
    return seconds ? cli_json_string(cli_time(text, seconds)) : json_null();
}

static json_t *text_json(const char *text) {
    return cli_json_string(*text ? text : NULL);
}

static json_t *history_json(const graft_history *h) {
    json_t *o = cli_json_object();
    cli_json_set(o, "requests", cli_json_integer((int64_t)h->requests));
    cli_json_set(o, "tokens", cli_json_integer((int64_t)h->tokens));
    cli_json_set(o, "loads", cli_json_integer((int64_t)h->loads));
    cli_json_set(o, "failures", cli_json_integer((int64_t)h->failures));
    cli_json_set(o, "evictions", cli_json_integer((int64_t)h->evictions));
    cli_json_set(o, "unloads", cli_json_integer((int64_t)h->unloads));
    cli_json_set(o, "fallbacks", cli_json_integer((int64_t)h->fallbacks));
    cli_json_set(o, "load_ms", cli_json_number(h->load_ms));
    cli_json_set(o, "last_loaded", time_json(h->last_loaded));
    cli_json_set(o, "last_used", time_json(h->last_used));
    return o;
}

json_t *cli_registered_json(const graft_registered *a) {
    json_t *o = cli_json_object();
    cli_json_set(o, "project", cli_json_string(a->project));
    cli_json_set(o, "adapter", cli_json_string(a->adapter));
    cli_json_set(o, "state", cli_json_string(graft_registered_state_name(a->state)));
    cli_json_set(o, "path", cli_json_string(a->path));
    cli_json_set(o, "generation", text_json(a->generation));
    cli_json_set(o, "format", text_json(a->format));
    cli_json_set(o, "rank", a->rank ? cli_json_integer(a->rank) : json_null());
    cli_json_set(o, "file_bytes", a->file_bytes ? cli_json_integer((int64_t)a->file_bytes) : json_null());
    cli_json_set(o, "bytes", a->bytes ? cli_json_integer((int64_t)a->bytes) : json_null());
    cli_json_set(o, "base", text_json(a->base));
    cli_json_set(o, "pinned", json_boolean(a->pinned));
    json_t *error = json_null();
    if (a->error_code) {
        graft_error e = {.code = a->error_code};
        snprintf(e.message, sizeof e.message, "%s", a->error);
        error = cli_json_error(&e);
    }
    cli_json_set(o, "error", error);
    cli_json_set(o, "created", time_json(a->created));
    cli_json_set(o, "changed", time_json(a->changed));
    cli_json_set(o, "history", history_json(&a->history));
    return o;
}

json_t *cli_project_json(const graft_project_info *p) {
    json_t *o = cli_json_object();
    cli_json_set(o, "project", cli_json_string(p->name));
    cli_json_set(o, "adapters", cli_json_integer((int64_t)p->n_adapters));
    cli_json_set(o, "file_bytes", cli_json_integer((int64_t)p->file_bytes));
    cli_json_set(o, "created", time_json(p->created));
    cli_json_set(o, "changed", time_json(p->changed));
    cli_json_set(o, "history", history_json(&p->history));
    return o;
}

static void bytes_cell(cli_table *t, uint64_t bytes) {
    char text[CLI_BYTES_SIZE];
    cli_table_cell(t, "%s", bytes ? cli_bytes(text, bytes) : "-");
}

static void print_row(cli_table *t, const graft_registered *a) {
    char time[CLI_TIME_SIZE];
    cli_table_cell(t, "%s", a->project);
    cli_table_cell(t, "%s", a->adapter);
    cli_table_cell(t, "%s%s", graft_registered_state_name(a->state), a->pinned ? ", pinned" : "");
    cli_table_cell(t, "%s", *a->format ? a->format : "-");
    if (a->rank) {
        cli_table_cell(t, "%d", a->rank);
    } else {
        cli_table_cell(t, "-");
    }
    bytes_cell(t, a->file_bytes);
    bytes_cell(t, a->bytes);
    cli_table_cell(t, "%llu", (unsigned long long)a->history.requests);
    cli_table_cell(t, "%s", cli_time(time, a->history.last_used));
    if (a->error_code) {
        char line[1024];
        snprintf(line, sizeof line, "  %s: %s", graft_error_name(a->error_code), a->error);
        cli_table_span(t, line);
    }
}

void cli_registered_print(const graft_registered_list *list) {
    static const char *const heads[] = {"project", "adapter", "state", "format", "rank", "file", "memory", "requests",
                                        "last used"};
    cli_table table;
    cli_table_init(&table, CLI_COUNT(heads), heads, 0xf0);
    for (size_t i = 0; i < list->n; i++) {
        print_row(&table, &list->items[i]);
    }
    cli_table_print(&table, 0);
    cli_table_finish(&table);
}

int cli_registered_tell(graft_registry *r, const char *project, const char *adapter, const char *done) {
    graft_registered_list *list;
    graft_error err = {0};
    if (graft_registry_adapter_list(&list, r, project, adapter ? adapter : "default", &err)) {
        return cli_error(&err);
    }
    const graft_registered *a = &list->items[0];
    if (cli_json()) {
        json_t *o = cli_json_object();
        cli_json_set(o, "adapter", cli_registered_json(a));
        cli_json_print(o);
    } else {
        printf("%s %s/%s: %s\n", done, a->project, a->adapter, a->path);
    }
    graft_registered_list_free(list);
    return CLI_OK;
}
