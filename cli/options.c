/* Options: getopt_long fed from a command's table, and --help made from the same table. */
#include "cli.h"

#include "base/memory.h"

#include <getopt.h>
#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { OPTION_MAX = 48, LONG_BASE = 1000 /* above every letter */ };

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
    if (length < sizeof digits) {
        memcpy(digits, text, length);
        value = strtol(digits, &end, 10);
    }
    if (length == 0 || end != digits + length || strspn(digits, "0123456789+-") != length || value < o->min ||
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

/* The i-th of "a|b|c": its start and length; false past the last. */
static bool choice_at(const char *choices, int i, const char **start, size_t *length) {
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
    for (int i = 0; choice_at(o->value, i, &start, &length); i++) {
        if (strlen(text) == length && memcmp(text, start, length) == 0) {
            *(int *)o->target = i;
            return true;
        }
    }
    char quoted[GR_QUOTE_SIZE];
    snprintf(why, why_size, "\"%s\" is not one of %s", gr_quote(quoted, text, strlen(text)), o->value);
    return false;
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
    } else if (o->take == cli_take_choice && choice_at(o->value, *(int *)o->target, &start, &length)) {
        printf(" (default %.*s)", (int)length, start);
    }
}

static void print_option(const cli_option *o) {
    enum { COLUMN = 34 };
    char head[128];
    char letter[8] = "   ";
    if (o->letter) {
        snprintf(letter, sizeof letter, "-%c,", o->letter);
    }
    int width = snprintf(head, sizeof head, "  %s --%s%s%s", letter, o->name, o->value ? " " : "",
                         o->value ? o->value : "");
    printf("%s%*s", head, width < COLUMN ? COLUMN - width : 1, "");
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

static void print_help(const cli_command *c) {
    static const cli_option help = {"help", 'h', NULL, "this text", NULL, NULL, 0, 0};
    printf("usage: %s\n\n%s\n\noptions:\n", c->usage, c->about);
    for (size_t i = 0; i < c->n_options; i++) {
        print_option(&c->options[i]);
    }
    print_option(&help);
    printf("\nexamples:\n%s\nexit codes:\n  0    all went well\n  1    %s\n"
           "  2    wrong usage: an unknown option or a bad value; nothing was done\n"
           "  130  interrupted\n\n"
           "An error is one line on stderr, `graft: error: CODE: MESSAGE`; with --json it is also written to stdout\n"
           "as {\"error\":{\"code\":…,\"message\":…}}. Progress bars appear only where stderr is a terminal, and have\n"
           "no colours if NO_COLOR is set.\n",
           c->examples, c->failures);
}

/* ---- parsing ------------------------------------------------------------------------------------------ */

/* What getopt_long wants, made from the table. */
struct getopt_tables {
    struct option longs[OPTION_MAX + 2];
    char shorts[3 * OPTION_MAX];
};

static void fill_tables(struct getopt_tables *t, const cli_command *c) {
    char *s = t->shorts;
    memset(t, 0, sizeof *t);
    *s++ = ':'; /* a missing argument is told apart from an unknown option */
    for (size_t i = 0; i < c->n_options; i++) {
        const cli_option *o = &c->options[i];
        t->longs[i] = (struct option){o->name, o->value ? required_argument : no_argument, NULL, LONG_BASE + (int)i};
        if (o->letter) {
            *s++ = (char)o->letter;
            if (o->value) {
                *s++ = ':';
            }
        }
    }
    t->longs[c->n_options] = (struct option){"help", no_argument, NULL, 'h'};
    *s = 'h';
}

static const cli_option *option_of(const cli_command *c, int found) {
    if (found >= LONG_BASE) {
        return &c->options[found - LONG_BASE];
    }
    for (size_t i = 0; i < c->n_options; i++) {
        if (c->options[i].letter == found) {
            return &c->options[i];
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

int cli_parse(const cli_command *command, int argc, char **argv, int *rest) {
    struct getopt_tables tables;
    fill_tables(&tables, command);
    for (int i = 1; i < argc && strcmp(argv[i], "--") != 0; i++) {
        if (strcmp(argv[i], "--json") == 0) {
            cli_set_json(true); /* known before the first error */
        }
    }
    opterr = 0;
    int found;
    while (optopt = 0, (found = getopt_long(argc, argv, tables.shorts, tables.longs, NULL)) != -1) {
        if (found == 'h') {
            print_help(command);
            return CLI_OK;
        }
        const cli_option *o = found == '?' || found == ':' ? NULL : option_of(command, found);
        char why[512];
        if (!o) {
            return bad_option(found, argv[optind - 1], argv[0]);
        }
        if (!o->take(o, optarg, why, sizeof why)) {
            return cli_usage("--%s: %s", o->name, why);
        }
    }
    if (!rest && optind < argc) {
        char quoted[GR_QUOTE_SIZE];
        return cli_usage("unexpected argument %s; see graft %s --help",
                         gr_quote(quoted, argv[optind], strlen(argv[optind])), argv[0]);
    }
    if (rest) {
        *rest = optind;
    }
    return CLI_GO;
}
