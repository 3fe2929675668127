/*
 * What the commands of `graft` share. Each command is one file, cmd_NAME.c, with a table of its options (the
 * parser and --help are both made from it) and one function that does the work; the helpers below do what
 * every command needs. The command uses the library through graft.h alone, as any other program would.
 *
 * What people and scripts can rely on: results on stdout, everything else on stderr; an error is one line,
 * `graft: error: CODE: MESSAGE`, and with --json also an object {"error":{"code":…,"message":…}} on stdout.
 */
#ifndef GRAFT_CLI_H
#define GRAFT_CLI_H

#include "base/buffer.h"
#include "base/error.h"
#include "graft.h"
#include "settings.h"

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>

/* Exit codes; the same in every command. CLI_GO is none: it means "nothing wrong so far, go on". */
enum cli_status { CLI_GO = -1, CLI_OK = 0, CLI_FAILED = 1, CLI_USAGE = 2, CLI_INTERRUPTED = 130 };

/* ---- commands ----------------------------------------------------------------------------------------- */

/* argv[0] is the command's own name. Return an exit code. */
int cmd_run(int argc, char **argv);
int cmd_score(int argc, char **argv);
int cmd_inspect(int argc, char **argv);
int cmd_convert(int argc, char **argv);
int cmd_merge(int argc, char **argv);
int cmd_bench(int argc, char **argv);
int cmd_bench_loader(int argc, char **argv);
int cmd_bench_cache(int argc, char **argv);
int cmd_demo(int argc, char **argv);
int cmd_config(int argc, char **argv);
int cmd_serve(int argc, char **argv);
int cmd_ps(int argc, char **argv);
int cmd_load(int argc, char **argv);
int cmd_unload(int argc, char **argv);
int cmd_pin(int argc, char **argv);
int cmd_unpin(int argc, char **argv);
int cmd_switch(int argc, char **argv);
int cmd_chat(int argc, char **argv);
int cmd_key(int argc, char **argv);
int cmd_doctor(int argc, char **argv);

/* ---- errors and memory (output.c) --------------------------------------------------------------------- */

/* Whether --json was given: then errors are also written to stdout as JSON. */
void cli_set_json(bool on);
bool cli_json(void);

/* Print one error and return the exit code for it: CLI_FAILED, for cli_usage CLI_USAGE. */
int cli_error(const graft_error *err);
int cli_fail(int code, const char *format, ...) GR_PRINTF(2, 3);
int cli_usage(const char *format, ...) GR_PRINTF(1, 2);
/* The same with a code that is not graft.h's: a server's, or one of asking it. */
int cli_fail_as(const char *code, const char *format, ...) GR_PRINTF(2, 3);
/* Prints the error line on stderr only, where stdout tells the failure in its own way. */
void cli_error_line(const graft_error *err);

/* Zeroed memory, or the end of the program with an out_of_memory line: nothing here is worth unwinding.
 * Free with gr_free. cli_grow makes room for one more of `count` items. */
void *cli_alloc(size_t count, size_t size);
void *cli_grow(void *items, size_t count, size_t size);
char *cli_strdup(const char *s);
/* Owns `text` (gr_free) until the program ends; returns it. */
const char *cli_keep(char *text);
/* Ends the program if an append to b failed. */
void cli_buffer_check(const gr_buffer *b);
void cli_no_memory(void);

/* Flushes stdout; what could not be written turns a good status into CLI_FAILED. For main. */
int cli_finish(int status);

/* ---- text and JSON (output.c) ------------------------------------------------------------------------- */

/*
 * Appends text that a model or a file made up as a terminal may see it: control characters and direction marks
 * are left out, invalid UTF-8 becomes U+FFFD. Newlines and tabs stay with `lines`, else they become spaces.
 */
void cli_clean(gr_buffer *out, const char *text, size_t length, bool lines);
/* Writes it to stdout: cleaned if stdout is a terminal, as it is if not. False if writing failed. */
bool cli_write_text(const char *text, size_t length);

/* Never NULL. Invalid UTF-8 becomes U+FFFD; NaN and infinity become null. */
json_t *cli_json_text(const char *text, size_t length);
json_t *cli_json_string(const char *text);
json_t *cli_json_number(double value);
json_t *cli_json_integer(int64_t value);
json_t *cli_json_object(void);
json_t *cli_json_array(void);
/* Take over `value`. */
void cli_json_set(json_t *object, const char *key, json_t *value);
void cli_json_append(json_t *array, json_t *value);
/* {"code":…,"message":…} */
json_t *cli_json_error(const graft_error *err);
/* One line on stdout; takes over `value`. */
void cli_json_print(json_t *value);

/* "4.88 MiB" */
#define CLI_BYTES_SIZE 32
const char *cli_bytes(char out[CLI_BYTES_SIZE], uint64_t bytes);

/* ---- options (options.c) ------------------------------------------------------------------------------ */

typedef struct cli_option cli_option;

/* Checks an option's argument and stores it in *o->target. On a bad one returns false with a reason that can
 * follow "--name: ". */
typedef bool cli_take_fn(const cli_option *o, const char *text, char *why, size_t why_size);

struct cli_option {
    const char *name;  /* long form without dashes */
    int letter;        /* short form, or 0 */
    const char *value; /* the argument's name in --help; NULL for a flag; "a|b|c" for cli_take_choice */
    const char *help;  /* may hold newlines. The default is added from *target for numbers and choices */
    cli_take_fn *take;
    void *target;
    double min, max;   /* for numbers */
};

cli_take_fn cli_take_flag;   /* bool */
cli_take_fn cli_take_int;    /* int, min to max */
cli_take_fn cli_take_number; /* double, min to max, finite */
cli_take_fn cli_take_string; /* const char * */
cli_take_fn cli_take_choice; /* int: position in `value` */
cli_take_fn cli_take_list;   /* cli_list: each use adds one, at most max */
cli_take_fn cli_take_ints;   /* cli_ints: "1,8,32", each min to max */

typedef struct cli_list {
    const char **items;
    size_t n;
} cli_list;

typedef struct cli_ints {
    int *items;
    size_t n;
} cli_ints;

/* The whole text as a number; false for anything else, "nan", "inf" and hexadecimal included. */
bool cli_parse_number(const char *text, double *out);

typedef struct cli_command {
    const char *usage;    /* after "usage: " */
    const char *about;    /* what it does */
    const char *examples; /* and what else to tell, lines */
    const char *failures; /* what exit code 1 means here */
    const cli_option *options; /* its own */
    size_t n_options;
    cli_settings *settings; /* NULL = it has none, and reads neither file nor environment */
    uint64_t uses;          /* CLI_SET(…) of those that are flags here */
    graft_error *bad_settings; /* takes what is wrong with file and environment, and the command goes on; NULL = it fails */
} cli_command;

/*
 * Reads argv, with --json and --help for every command; then the settings file and the environment, and starts the log as
 * they say. CLI_GO: options and settings are stored, and argv[*rest] is the first argument that is none of them (NULL
 * `rest`: none are allowed). CLI_OK: --help was printed. CLI_USAGE: an error was printed.
 */
int cli_parse(const cli_command *command, int argc, char **argv, int *rest);

#define CLI_COUNT(array) (sizeof(array) / sizeof(array)[0])

/* The i-th of "a|b|c": its start and length; false past the last. */
bool cli_choice_at(const char *choices, int i, const char **start, size_t *length);

/* ---- log (log.c) -------------------------------------------------------------------------------------- */

/* Level and form of log lines from now on. */
void cli_log_start(const cli_settings *s);
/* A graft_log_fn. One line on stderr, written whole, from any thread: for people
 *   graft: warning: adapter alder/default: TEXT
 * or as JSON: {"time","level","message"} and, where known, "project","adapter","generation","request","code". */
void cli_log(const graft_log_entry *entry, void *user);
/* What the command itself has to say; code 0 = none. */
void cli_log_line(graft_log_level level, int code, const char *format, ...) GR_PRINTF(3, 4);
/* What belongs to the result: written at every log level, for people without one ("graft: TEXT"). `about` has no text; its
 * names are "" where there are none. */
void cli_note(const graft_log_entry *about, const char *format, ...) GR_PRINTF(2, 3);
/* From now on each answer says what went wrong with its adapter: the library's warnings of the same are for `info`. */
void cli_log_answers_tell(void);

/* ---- the model and its adapters (model.c) ------------------------------------------------------------- */

/* Tokens that a prompt of `bytes` bytes and its answer can need, for the default of --ctx: the KV cache is
 * slots times this. 0 (the model's own) if that cannot be told or is much. */
int cli_context_for(size_t bytes, int max_tokens);

/* graft_find_model and graft_find_adapter in the stores that the settings name (reference.c). *path: graft_string_free. */
int cli_find_model(char **path, const char *reference, const cli_settings *s, graft_error *err);
int cli_find_adapter(char **path, const char *reference, const cli_settings *s, graft_error *err);

/* CLI_GO or an exit code, the error printed. Shows a progress bar. `registry` may be NULL. */
int cli_model_open(graft **out, const cli_settings *s, graft_registry *registry);

#define CLI_NAME_MAX 128

/* One -a. `name` is empty where the command takes paths only. */
typedef struct cli_adapter {
    char name[CLI_NAME_MAX + 1];
    char *path;
    float scale;
    graft_adapter *handle;   /* set by cli_adapters_load */
    graft_adapter_info info; /* likewise */
} cli_adapter;

typedef struct cli_adapters {
    cli_adapter *items;
    size_t n;
} cli_adapters;

cli_take_fn cli_take_adapter;       /* cli_adapters: PATH[@SCALE] */
cli_take_fn cli_take_named_adapter; /* cli_adapters: NAME=PATH[@SCALE] */

/* Whether `name` is 1 to 128 of A-Z a-z 0-9 . _ - */
bool cli_name_valid(const char *name);
/* The adapter of that name, or NULL. */
const cli_adapter *cli_adapters_find(const cli_adapters *a, const char *name);
/* Adds one with scale 1. */
void cli_adapters_add(cli_adapters *a, const char *name, const char *path);
/* Loads all. CLI_GO or an exit code, the error printed. */
int cli_adapters_load(cli_adapters *a, graft *g, const cli_settings *s);
void cli_adapters_finish(cli_adapters *a);
/* "PATH: WHERE: MESSAGE", the path once even if the message begins with it. `where` may be "". */
void cli_path_error(graft_error *out, int code, const char *path, const char *where, const char *message);
/* [{"name":…,"path":…,"scale":…,"bytes":…,…}] of loaded adapters. */
json_t *cli_adapters_json(const cli_adapters *a);
/* "alder 4.66 MiB, birch 4.66 MiB" */
void cli_adapters_words(gr_buffer *out, const cli_adapters *a);

/* Most characters of a path from the command line in a message: such paths are the user's own, shown as they
 * are (gr_quote would cut them at 64), but must leave room for the reason. */
#define CLI_PATH_SHOWN 240

/* ---- files (lines.c) ---------------------------------------------------------------------------------- */

/* Reads all of a file, or of stdin for "-", pipes included, into *out (the caller finishes it). 0 or a code. */
int cli_read(gr_buffer *out, const char *path, graft_error *err);

/* Called for each line that is not blank; `line` is a JSON object, borrowed (json_incref to keep it). */
typedef int cli_line_fn(json_t *line, void *user, graft_error *err);

/* Calls fn for every line of a JSON-lines file. Errors, fn's included, get the file and line in front;
 * BAD_REQUEST if no line holds anything. */
int cli_read_lines(const char *path, cli_line_fn *fn, void *user, graft_error *err);

/* Fails with BAD_REQUEST if `object` has a key that is not in `known` (ended by NULL). */
int cli_check_keys(json_t *object, const char *const *known, graft_error *err);

/* ---- temporary files (temp.c) ------------------------------------------------------------------------- */

/* Makes a folder below $TMPDIR or /tmp, with `what` in its name. It goes with cli_temp_remove, or at the latest when the
 * program ends. */
int cli_temp_make(const char *what, graft_error *err);
void cli_temp_remove(void);
/* A path below it; gr_free. */
char *cli_temp_path(const char *format, ...) GR_PRINTF(1, 2);
/* Makes one folder, for this user alone. */
int cli_make_folder(const char *path, graft_error *err);

/* ---- the key of a server (api_key.c) ------------------------------------------------------------------ */

/* The first line of the file that the settings name, else GRAFT_API_KEY; NULL without either. Lives until the program ends. */
int cli_api_key(const char **key, const cli_settings *s, graft_error *err);

/* ---- the terminal (terminal.c) ------------------------------------------------------------------------ */

/* A bar on stderr if that is a terminal. `what` is a short word or two. */
void cli_progress(const char *what, double done, double total);
/* The same for work whose end is not known: "loading alder … 3 s". */
void cli_waiting(const char *what, int seconds);
/* Wipes the bar; harmless without one. To be called before anything else is written. */
void cli_progress_end(void);
/* No bars any more: many log lines are to come. */
void cli_progress_off(void);
/* Writes whole lines to stderr, the bar wiped. Any thread. */
void cli_stderr(const char *text, size_t length);
/* Columns of the terminal that stdout is, else $COLUMNS, else 100. */
size_t cli_width(void);

/* A table whose cells are cleaned text. Cells are added in reading order. */
typedef struct cli_table {
    size_t n_columns;
    unsigned right; /* bit i: column i is aligned right */
    char **cells;   /* n_columns a row, the head first; in a row that spans all columns the others are NULL */
    size_t n_cells;
} cli_table;

void cli_table_init(cli_table *t, size_t n_columns, const char *const *heads, unsigned right);
void cli_table_cell(cli_table *t, const char *format, ...) GR_PRINTF(2, 3);
void cli_table_text(cli_table *t, const char *text, size_t length);
/* A row of one text across all columns. Only where a row begins. */
void cli_table_span(cli_table *t, const char *text);
/* Cells wider than `widest` characters are wrapped (0: never). */
void cli_table_print(const cli_table *t, size_t widest);
void cli_table_finish(cli_table *t);

/* ---- Ctrl-C (interrupt.c) ----------------------------------------------------------------------------- */

/* From now on SIGINT and SIGTERM cancel jobs instead of ending the process; a second one ends it at once.
 * Call before graft_open, so that every thread of the library has them blocked. */
void cli_interrupt_start(void);
bool cli_interrupted(void);
/* The jobs to cancel: until cli_interrupt_watch(NULL, 0), which must come before they are freed. */
void cli_interrupt_watch(graft_job *const *jobs, size_t n);

/* Another way, for a program that goes on after Ctrl-C: SIGINT does nothing but make this descriptor readable (-1: there is
 * none, and SIGINT ends the process), until cli_interrupt_taken, which tells whether there was one. Not with the above. */
int cli_interrupt_fd(void);
bool cli_interrupt_taken(void);

#endif
