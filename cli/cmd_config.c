/* graft config: the settings in force, and which source each came from. */
#include "cli.h"

#include <string.h>

static int parse(cli_settings *s, int argc, char **argv) {
    const cli_command command = {
        .usage = "graft config [any setting] [--json]",
        .about = "Shows every setting as a command given the same flags would see it, and where it comes from: default, "
                 "file and\n"
                 "line, environment or flag; the later of these beats the earlier. Needs no model.\n"
                 "\n"
                 "The settings file holds lines `key = value`; '#' and ';' at the beginning of a line, "
                 "and ';' after a blank, begin a\n"
                 "comment. Without --config it is $GRAFT_CONFIG, else the user's graft.ini if there is one; /dev/null is none.",
        .examples = "  graft config\n"
                    "  graft config --config server.ini --max-adapters 8\n"
                    "  GRAFT_POLICY=sieve graft config --json\n"
                    "\n"
                    "--json: {\"file\" (that was read, or null),\"settings\":[{\"name\",\"value\",\"from\" (default, file, "
                    "environment,\n"
                    "  flag),\"where\",\"default\",\"allowed\",\"flag\",\"environment\",\"help\"}...]}\n",
        .failures = "stdout could not be written",
        .settings = s,
        .uses = CLI_SET_ALL,
    };
    return cli_parse(&command, argc, argv, NULL);
}

static const char *source_name(cli_source source) {
    static const char *const names[] = {"default", "file", "environment", "flag"};
    return names[source];
}

/* "graft.ini:3", "GRAFT_SLOTS", "--slots"; empty for a default. */
static void print_where(gr_buffer *out, const cli_settings *s, int id) {
    const cli_setting *t = &cli_setting_table[id];
    char variable[CLI_VARIABLE_SIZE];
    switch (s->from[id].source) {
    case CLI_FROM_DEFAULT: break;
    case CLI_FROM_FILE: gr_buffer_printf(out, "%s:%d", s->file, s->from[id].line); break;
    case CLI_FROM_ENVIRONMENT: gr_buffer_puts(out, cli_setting_variable(variable, t)); break;
    case CLI_FROM_FLAG:
        /* The one that sets this value; --verbose is an other name for one of them. */
        gr_buffer_printf(out, "--%s%s", t->kind == CLI_BOOL && !*(const bool *)((const char *)s + t->at) ? "no-" : "", t->flag);
        break;
    }
    cli_buffer_check(out);
}

static json_t *value_json(const cli_settings *s, int id) {
    const cli_setting *t = &cli_setting_table[id];
    const void *at = (const char *)s + t->at;
    const char *start;
    size_t length;
    switch (t->kind) {
    case CLI_INT: return cli_json_integer(*(const int *)at);
    case CLI_BOOL: return json_boolean(*(const bool *)at);
    case CLI_CHOICE:
        return cli_choice_at(t->value, *(const int *)at, &start, &length) ? cli_json_text(start, length) : json_null();
    case CLI_STRING:
    case CLI_PATH: break;
    }
    return cli_json_string(*(const char *const *)at);
}

/* What may be given, in words. */
static void print_allowed(gr_buffer *out, const cli_setting *t) {
    if (t->kind == CLI_INT) {
        gr_buffer_printf(out, "%.0f to %.0f", t->min, t->max);
    } else if (t->kind == CLI_BOOL) {
        gr_buffer_puts(out, "true|false");
    } else {
        gr_buffer_puts(out, t->value);
    }
    cli_buffer_check(out);
}

static json_t *text_of(gr_buffer *b) {
    json_t *text = cli_json_string(b->data);
    gr_buffer_finish(b);
    return text;
}

static json_t *setting_json(const cli_settings *s, const cli_settings *defaults, int id) {
    const cli_setting *t = &cli_setting_table[id];
    char variable[CLI_VARIABLE_SIZE];
    gr_buffer where, allowed;
    gr_buffer_init(&where, 1 << 16);
    gr_buffer_init(&allowed, 1 << 10);
    print_where(&where, s, id);
    print_allowed(&allowed, t);
    json_t *o = cli_json_object();
    cli_json_set(o, "name", cli_json_string(t->key));
    cli_json_set(o, "value", value_json(s, id));
    cli_json_set(o, "from", cli_json_string(source_name(s->from[id].source)));
    cli_json_set(o, "where", text_of(&where));
    cli_json_set(o, "default", value_json(defaults, id));
    cli_json_set(o, "allowed", text_of(&allowed));
    cli_json_set(o, "flag", cli_json_string(t->flag));
    cli_json_set(o, "environment", cli_json_string(cli_setting_variable(variable, t)));
    cli_json_set(o, "help", cli_json_string(t->help));
    return o;
}

static void print_json(const cli_settings *s) {
    cli_settings defaults = cli_settings_default();
    json_t *o = cli_json_object(), *items = cli_json_array();
    for (int id = 0; id < CLI_N_SETTINGS; id++) {
        cli_json_append(items, setting_json(s, &defaults, id));
    }
    cli_json_set(o, "file", cli_json_string(s->file));
    cli_json_set(o, "settings", items);
    cli_json_print(o);
}

static void print_table(const cli_settings *s) {
    static const char *const heads[] = {"setting", "value", "from"};
    cli_table table;
    cli_table_init(&table, CLI_COUNT(heads), heads, 0);
    for (int id = 0; id < CLI_N_SETTINGS; id++) {
        gr_buffer where;
        gr_buffer_init(&where, 1 << 16);
        print_where(&where, s, id);
        json_t *value = value_json(s, id);
        cli_table_cell(&table, "%s", cli_setting_table[id].key);
        if (json_is_integer(value)) {
            cli_table_cell(&table, "%lld", (long long)json_integer_value(value));
        } else if (json_is_boolean(value)) {
            cli_table_cell(&table, "%s", json_is_true(value) ? "true" : "false");
        } else {
            cli_table_cell(&table, "%s", json_is_string(value) ? json_string_value(value) : "-");
        }
        cli_table_cell(&table, "%s", where.length ? where.data : source_name(CLI_FROM_DEFAULT));
        json_decref(value);
        gr_buffer_finish(&where);
    }
    cli_table_print(&table, 0);
    cli_table_finish(&table);
}

int cmd_config(int argc, char **argv) {
    cli_settings s = cli_settings_default();
    int status = parse(&s, argc, argv);
    if (status != CLI_GO) {
        return status;
    }
    if (cli_json()) {
        print_json(&s);
    } else {
        print_table(&s);
    }
    return CLI_OK;
}
