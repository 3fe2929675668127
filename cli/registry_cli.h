/* What `graft project`, `graft adapter` and `graft adapters` share: verbs, the registry's path, rows as JSON. */
#ifndef GRAFT_REGISTRY_CLI_H
#define GRAFT_REGISTRY_CLI_H

#include "cli.h"

int cmd_project(int argc, char **argv);
int cmd_adapter(int argc, char **argv);
int cmd_adapters(int argc, char **argv);
int cmd_registry(int argc, char **argv);

/* ---- verbs (registry_cli.c) --------------------------------------------------------------------------- */

typedef struct cli_verb {
    const char *name; /* "project add": what the verb's own messages and help call it */
    int (*main)(int argc, char **argv);
    const char *about;
} cli_verb;

/* Runs the verb that argv[1] names, or prints the list of them for --help. */
int cli_verb_run(const cli_verb *verbs, size_t n, const char *about, int argc, char **argv);

/* ---- the registry ------------------------------------------------------------------------------------- */

/*
 * Opens the registry that the settings name; for writing it is made if there is none, its folder too. Errors as
 * graft_registry_open, BAD_REQUEST if nothing says where it is.
 */
int cli_registry_open(graft_registry **out, const cli_settings *s, bool read_only, graft_error *err);

/*
 * The same for who uses adapters: for writing, so that their history is kept, but without waiting; for reading only while
 * another process writes to it, or where it cannot be written to. One that is not there is not made.
 */
int cli_registry_open_to_use(graft_registry **out, const cli_settings *s, graft_error *err);

/*
 * How each verb begins: its options and settings are parsed, then the registry is opened. CLI_GO: *out is the caller's, and
 * there are `min` to `max` arguments besides, from argv[*rest] on (rest NULL: none are taken). Else an exit code, the error
 * or the help printed.
 */
int cli_verb_open(graft_registry **out, const cli_command *command, bool read_only, int argc, char **argv, int min, int max,
                  int *rest);

/* "PROJECT[/ADAPTER]", the second "default" if absent. Names are checked by whoever gets them. */
typedef struct cli_name {
    char *project;
    const char *adapter; /* within project's memory, or NULL */
} cli_name;

cli_name cli_name_parse(const char *text);
void cli_name_finish(cli_name *n);

/* ---- showing ------------------------------------------------------------------------------------------ */

/* "2026-01-31T12:00:00Z", or "-" for 0. */
#define CLI_TIME_SIZE 32
const char *cli_time(char out[CLI_TIME_SIZE], int64_t seconds);

json_t *cli_registered_json(const graft_registered *a);
json_t *cli_project_json(const graft_project_info *p);
/* The rows as a table; failed ones with their reason below. */
void cli_registered_print(const graft_registered_list *list);
/* Prints the adapter as it is now: as JSON, or `done` and its name. */
int cli_registered_tell(graft_registry *r, const char *project, const char *adapter, const char *done);

#endif
