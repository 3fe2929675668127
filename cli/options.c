/* Options: getopt_long fed from a command's table and that of the settings, and --help made from the same tables. */
#include "cli.h"

#include "base/memory.h"

#include <assert.h>
#include <getopt.h>
#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { OWN_MAX = 40, OPTION_MAX = OWN_MAX + 2 * CLI_N_SETTINGS + 4, LONG_BASE = 1000 /* above every letter */ };

/* ---- taking arguments --------------------------------------------------------------------------------- */

bool cli_parse_number(const char *text, double *out) {
    if (!*text || strspn(text, "0123456789+-.eE") != strlen(text)) {
        return false;
    }
    char *end;
    double value = strtod(text, &end);
    if (*end || end == text || !isfinite(value)) {
        return false;
    }
    *out = value;
    return true;
}

bool cli_take_flag(const cli_option *o, const char *text, char *why, size_t why_size) {
    (void)text;
    (void)why;
    (void)why_size;
    *(bool *)o->target = true;
    return true;
}

bool cli_take_number(const cli_option *o, const char *text, char *why, size_t why_size) {
    double value;
    if (!cli_parse_number(text, &value) || value < o->min || value > o->max) {
        char quoted[GR_QUOTE_SIZE];
        snprintf(why, why_size, "\"%s\" is not a number from %.10g to %.10g",
                 gr_quote(quoted, text, strlen(text)), o->min, o->max);
        return false;
    }
    *(double *)o->target = value;
    return true;
}

/* A whole number in `text` up to `stop` (its end, if NULL). */
static bool parse_int(const cli_option *o, const char *text, const char *stop, int *out, char *why,
                      size_t why_size) {
    size_t length = stop ? (size_t)(stop - text) : strlen(text);
    char digits[16] = "", *end = digits;
    long value = 0;
    bool fits = length < sizeof digits;
    if (fits) {
        memcpy(digits, text, length);
        value = strtol(digits, &end, 10);
    }
    if (length == 0 || !fits || end != digits + length || strspn(digits, "0123456789+-") != length || value < o->min ||
        value > o->max) {
        char quoted[GR_QUOTE_SIZE];
        snprintf(why, why_size, "\"%s\" is not a whole number from %.10g to %.10g",
                 gr_quote(quoted, text, length), o->min, o->max);
        return false;
    }
    *out = (int)value;
    return true;
}

bool cli_take_int(const cli_option *o, const char *text, char *why, size_t why_size) {
    return parse_int(o, text, NULL, o->target, why, why_size);
}

bool cli_take_ints(const cli_option *o, const char *text, char *why, size_t why_size) {
    cli_ints *list = o->target;
    list->n = 0;
    for (const char *at = text;;) {
        const char *comma = strchr(at, ',');
        int value;
        if (!parse_int(o, at, comma, &value, why, why_size)) {
            return false;
        }
        /* Given a second time the list starts anew, with whatever room it had: cli_grow counts from n. */
        int *grown = cli_alloc(list->n + 1, sizeof *grown);
        if (list->n) {
            memcpy(grown, list->items, list->n * sizeof *grown);
        }
        gr_free(list->items);
        list->items = grown;
        list->items[list->n++] = value;
        if (!comma) {
            return true;
        }
        at = comma + 1;
    }
}

bool cli_take_string(const cli_option *o, const char *text, char *why, size_t why_size) {
    (void)why;
    (void)why_size;
    *(const char **)o->target = text;
    return true;
}

bool cli_take_list(const cli_option *o, const char *text, char *why, size_t why_size) {
    cli_list *list = o->target;
    if ((double)list->n >= o->max) {
        snprintf(why, why_size, "given more than %.0f times", o->max);
        return false;
    }
    list->items = cli_grow(list->items, list->n, sizeof *list->items);
    list->items[list->n++] = text;
    return true;
}

bool cli_choice_at(const char *choices, int i, const char **start, size_t *length) {
    while (i-- > 0) {
        choices = strchr(choices, '|');
        if (!choices) {
            return false;
        }
        choices++;
    }
    *start = choices;
    *length = strcspn(choices, "|");
    return true;
}

bool cli_take_choice(const cli_option *o, const char *text, char *why, size_t why_size) {
    const char *start;
    size_t length;
    for (int i = 0; cli_choice_at(o->value, i, &start, &length); i++) {
        if (strlen(text) == length && memcmp(text, start, length) == 0) {
            *(int *)o->target = i;
            return true;
        }
    }
    char quoted[GR_QUOTE_SIZE];
    snprintf(why, why_size, "\"%s\" is not one of %s", gr_quote(quoted, text, strlen(text)), o->value);
    return false;
}

/* ---- the entries of one command ----------------------------------------------------------------------- */

/* A row of --help and of getopt's tables. */
typedef struct entry {
    cli_option o;
    enum { OWN, SETTING, SETTING_OFF, VERBOSE, CONFIG, JSON, HELP } kind;
    int id;      /* of a setting */
    bool hidden; /* not in --help: the opposite of one that is */
} entry;

typedef struct entries {
    entry items[OPTION_MAX];
    size_t n, n_own; /* n_own: those before the settings */
    char off[CLI_N_SETTINGS][32]; /* "no-gpu" */
} entries;

static entry *add(entries *e, int kind, cli_option o) {
    entry *added = &e->items[e->n++];
    *added = (entry){.o = o, .kind = (unsigned)kind};
    return added;
}

/* A flag, or for a bool two, of which --help shows the one that changes the default. */
static void add_setting(entries *e, cli_settings *s, int id) {
    const cli_setting *t = &cli_setting_table[id];
    static cli_take_fn *const takes[] = {cli_take_int, cli_take_flag, cli_take_choice, cli_take_string, cli_take_string};
    void *target = (char *)s + t->at;
    add(e, SETTING, (cli_option){t->flag, t->letter, t->value, t->help, takes[t->kind], target, t->min, t->max})->id = id;
    if (t->kind != CLI_BOOL) {
        return;
    }
    bool on = *(bool *)target;
    e->items[e->n - 1].hidden = on;
    snprintf(e->off[id], sizeof e->off[id], "no-%s", t->flag);
    entry *off = add(e, SETTING_OFF, (cli_option){e->off[id], 0, NULL, t->help, cli_take_flag, target, 0, 0});
    off->id = id;
    off->hidden = !on;
}

static void collect(entries *e, const cli_command *c) {
    e->n = 0;
    assert(c->n_options <= OWN_MAX);
    for (size_t i = 0; i < c->n_options; i++) {
        add(e, OWN, c->options[i]);
    }
    add(e, JSON, (cli_option){"json", 0, NULL, "results (and errors) as JSON on stdout", cli_take_flag, NULL, 0, 0});
    add(e, HELP, (cli_option){"help", 'h', NULL, "this text", cli_take_flag, NULL, 0, 0});
    e->n_own = e->n;
    for (int id = 0; c->settings && id < CLI_N_SETTINGS; id++) {
        if (c->uses >> id & 1) {
            add_setting(e, c->settings, id);
        }
    }
    if (c->settings && (c->uses & CLI_SET(LOG_LEVEL))) {
        add(e, VERBOSE, (cli_option){"verbose", 'v', NULL, "as --log-level debug", cli_take_flag, NULL, 0, 0});
    }
    if (c->settings) {
        add(e, CONFIG, (cli_option){"config", 0, "FILE",
                                    "the settings file (default: $GRAFT_CONFIG, else graft.ini in the user's\n"
                                    "folder for graft's settings, if there is one)",
                                    cli_take_string, NULL, 0, 0});
    }
}

/* ---- help --------------------------------------------------------------------------------------------- */

static void print_default(const cli_option *o) {
    const char *start;
    size_t length;
    if (strstr(o->help, "(default") || strstr(o->help, "(required")) {
        return;
    }
    if (o->take == cli_take_int) {
        printf(" (default %d)", *(int *)o->target);
    } else if (o->take == cli_take_number) {
        printf(" (default %.6g)", *(double *)o->target);
    } else if (o->take == cli_take_choice && cli_choice_at(o->value, *(int *)o->target, &start, &length)) {
        printf(" (default %.*s)", (int)length, start);
    }
}

static void print_option(const entry *e) {
    enum { COLUMN = 34 };
    const cli_option *o = &e->o;
    char head[128];
    char letter[8] = "   ";
    if (o->letter) {
        snprintf(letter, sizeof letter, "-%c,", o->letter);
    }
    int width = snprintf(head, sizeof head, "  %s --%s%s%s", letter, o->name, o->value ? " " : "",
                         o->value ? o->value : "");
    if (width < COLUMN) {
        printf("%s%*s", head, COLUMN - width, "");
    } else {
        printf("%s\n%*s", head, COLUMN, "");
    }
    fputs(e->kind == SETTING_OFF ? "do not " : "", stdout);
    for (const char *line = o->help;;) {
        int length = (int)strcspn(line, "\n");
        printf("%.*s", length, line);
        if (!line[length]) {
            break;
        }
        printf("\n%*s", COLUMN, "");
        line += length + 1;
    }
    print_default(o);
    putchar('\n');
}

static void print_help(const cli_command *c, const entries *e) {
    printf("usage: %s\n\n%s\n\noptions:\n", c->usage, c->about);
    for (size_t i = 0; i < e->n; i++) {
        if (i == e->n_own) {
            char variable[CLI_VARIABLE_SIZE];
            printf("\nsettings, which may also come from a file and the environment (%s …; see graft config):\n",
                   cli_setting_variable(variable, &cli_setting_table[e->items[i].id]));
        }
        if (!e->items[i].hidden) {
            print_option(&e->items[i]);
        }
    }
    printf("\nexamples:\n%s\nexit codes:\n  0    all went well\n  1    %s\n"
           "  2    wrong usage: an unknown option or a bad value; nothing was done\n"
           "  130  interrupted\n\n"
           "An error is one line on stderr, `graft: error: CODE: MESSAGE`; with --json it is also written to stdout\n"
           "as {\"error\":{\"code\":…,\"message\":…}}. Progress bars appear only where stderr is a terminal, and have\n"
           "no colours if NO_COLOR is set.\n",
           c->examples, c->failures);
}

/* ---- parsing ------------------------------------------------------------------------------------------ */

/* What getopt_long wants, made from the entries. */
struct getopt_tables {
    struct option longs[OPTION_MAX + 1];
    char shorts[3 * OPTION_MAX];
};

static void fill_tables(struct getopt_tables *t, const entries *e) {
    char *s = t->shorts;
    memset(t, 0, sizeof *t);
    *s++ = ':'; /* a missing argument is told apart from an unknown option */
    for (size_t i = 0; i < e->n; i++) {
        const cli_option *o = &e->items[i].o;
        t->longs[i] = (struct option){o->name, o->value ? required_argument : no_argument, NULL, LONG_BASE + (int)i};
        if (o->letter) {
            *s++ = (char)o->letter;
            if (o->value) {
                *s++ = ':';
            }
        }
    }
}

static const entry *entry_of(const entries *e, int found) {
    if (found >= LONG_BASE) {
        return &e->items[found - LONG_BASE];
    }
    for (size_t i = 0; i < e->n; i++) {
        if (e->items[i].o.letter == found) {
            return &e->items[i];
        }
    }
    return NULL;
}

static int bad_option(int found, const char *word, const char *command) {
    char quoted[GR_QUOTE_SIZE];
    gr_quote(quoted, word, strlen(word));
    if (found == ':') {
        return cli_usage("%s needs an argument; see graft %s --help", quoted, command);
    }
    /* Inside a cluster of letters optind has not moved on yet, so `word` may be the one before. */
    if (optopt > 0 && optopt < LONG_BASE) {
        return cli_usage("unknown option -%c; see graft %s --help", optopt, command);
    }
    return cli_usage("unknown option %s; see graft %s --help", quoted, command);
}

static bool take_entry(const entry *e, cli_settings *s, const char *text, char *why, size_t why_size) {
    switch (e->kind) {
    case OWN: return e->o.take(&e->o, text, why, why_size);
    case SETTING: return cli_settings_put(s, e->id, CLI_FROM_FLAG, 0, e->o.value ? text : "true", why, why_size);
    case SETTING_OFF: return cli_settings_put(s, e->id, CLI_FROM_FLAG, 0, "false", why, why_size);
    case VERBOSE: return cli_settings_put(s, CLI_ID_LOG_LEVEL, CLI_FROM_FLAG, 0, "debug", why, why_size);
    case CONFIG: s->config = text; break;
    case JSON: cli_set_json(true); break;
    case HELP: break;
    }
    return true;
}

/* Reads all options; flags of settings beat whatever the file and the environment will say. */
static int parse_flags(const cli_command *command, int argc, char **argv, const entries *e) {
    struct getopt_tables tables;
    fill_tables(&tables, e);
    opterr = 0;
    int found;
    while (optopt = 0, (found = getopt_long(argc, argv, tables.shorts, tables.longs, NULL)) != -1) {
        const entry *given = found == '?' || found == ':' ? NULL : entry_of(e, found);
        char why[512];
        if (!given) {
            return bad_option(found, argv[optind - 1], argv[0]);
        }
        if (given->kind == HELP) {
            print_help(command, e);
            return CLI_OK;
        }
        if (!take_entry(given, command->settings, optarg, why, sizeof why)) {
            return cli_usage("--%s: %s", given->o.name, why);
        }
    }
    return CLI_GO;
}

static int load_settings(cli_settings *s, graft_error *bad) {
    graft_error err = {0};
    if (cli_settings_load(s, bad ? bad : &err) != 0 && !bad) {
        cli_error(&err);
        return CLI_USAGE;
    }
    cli_log_start(s);
    cli_settings_strangers();
    return CLI_GO;
}

int cli_parse(const cli_command *command, int argc, char **argv, int *rest) {
    entries e;
    collect(&e, command);
    for (int i = 1; i < argc && strcmp(argv[i], "--") != 0; i++) {
        if (strcmp(argv[i], "--json") == 0) {
            cli_set_json(true); /* known before the first error */
        }
    }
    int status = parse_flags(command, argc, argv, &e);
    if (status != CLI_GO) {
        return status;
    }
    if (!rest && optind < argc) {
        char quoted[GR_QUOTE_SIZE];
        return cli_usage("unexpected argument %s; see graft %s --help",
                         gr_quote(quoted, argv[optind], strlen(argv[optind])), argv[0]);
    }
    if (rest) {
        *rest = optind;
    }
    return command->settings ? load_settings(command->settings, command->bad_settings) : CLI_GO;
}
