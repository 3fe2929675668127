/* What `graft project`, `graft adapter` and `graft adapters` share: verbs, the registry's path, rows as JSON. */
#ifndef GRAFT_REGISTRY_CLI_H
#define GRAFT_REGISTRY_CLI_H

#include "cli.h"

int cmd_project(int argc, char **argv);
int cmd_adapter(int argc, char **argv);
int cmd_adapters(int argc, char **argv);

/* ---- verbs (registry_cli.c) --------------------------------------------------------------------------- */

typedef struct cli_verb {
    const char *name; /* "project add": what the verb's own messages and help call it */
    int (*main)(int argc, char **argv);
    const char *about;
} cli_verb;

/* Runs the verb that argv[1] names, or prints the list of them for --help. */
int cli_verb_run(const cli_verb *verbs, size_t n, const char *about, int argc, char **argv);

/* ---- the registry ------------------------------------------------------------------------------------- */

/* The options that every verb has. */
typedef struct cli_registry {
    const char *path; /* --registry, or NULL */
    bool json;
} cli_registry;

#define CLI_REGISTRY_OPTIONS(c)                                                                                  \
    {"registry", 0, "FILE",                                                                                     \
     "the registry (default: $GRAFT_REGISTRY, else registry.db in the\nuser's data folder for graft)",          \
     cli_take_string, &(c)->path, 0, 0},                                                                        \
    {"json", 0, NULL, "results (and errors) as JSON on stdout", cli_take_flag, &(c)->json, 0, 0}

/*
 * Where the registry lies: `option` if given, else GRAFT_REGISTRY, else in the user's data folder, which is made if
 * `make` (registry_path.c). *out: gr_free. 0, or BAD_REQUEST if the environment names no folder.
 */
int cli_registry_path(char **out, const char *option, bool make, graft_error *err);

/*
 * How each verb begins: its options are parsed (`c` is among what they fill), then the registry is opened. CLI_GO: *out is the caller's, and there are `min` to `max` arguments besides, from argv[*rest] on (rest NULL: none are
 * taken). Else an exit
 * code, the error or the help printed.
 */
int cli_verb_open(graft_registry **out, const cli_registry *c, bool read_only, const cli_command *command, int argc,
                  char **argv, int min, int max, int *rest);

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
