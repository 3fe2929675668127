/* graft registry: is the registry's file whole, and what to do if it is not. */
#include "registry_cli.h"

#include <string.h>

static json_t *file_json(const graft_registry_file *f) {
    char time[CLI_TIME_SIZE];
    json_t *o = cli_json_object();
    bool whole = f->error.code == 0;
    cli_json_set(o, "whole", json_boolean(whole));
    cli_json_set(o, "projects", whole ? cli_json_integer((int64_t)f->projects) : json_null());
    cli_json_set(o, "adapters", whole ? cli_json_integer((int64_t)f->adapters) : json_null());
    cli_json_set(o, "written", f->written ? cli_json_string(cli_time(time, f->written)) : json_null());
    cli_json_set(o, "error", whole ? json_null() : cli_json_error(&f->error));
    return o;
}

static void print_file(const char *what, const graft_registry_file *f) {
    char time[CLI_TIME_SIZE];
    if (f->error.code == 0) {
        printf("%-9s whole: %zu projects, %zu adapters; written %s\n", what, f->projects, f->adapters,
               cli_time(time, f->written));
        return;
    }
    gr_buffer line;
    gr_buffer_init(&line, 4096);
    cli_clean(&line, f->error.message, strlen(f->error.message), false);
    printf("%-9s %s: %s\n", what, graft_error_name(f->error.code), line.data ? line.data : "");
    gr_buffer_finish(&line);
}

/* Options parsed and the path known; CLI_GO or an exit code. */
static int begin(graft_registry_options *o, const cli_command *command, int argc, char **argv) {
    int status = cli_parse(command, argc, argv, NULL);
    if (status != CLI_GO) {
        return status;
    }
    *o = graft_registry_options_default();
    cli_settings_registry_options(command->settings, o);
    return o->path ? CLI_GO : cli_usage("where is the registry? give --registry FILE, or set GRAFT_REGISTRY or HOME");
}

static int check(int argc, char **argv) {
    cli_settings settings = cli_settings_default();
    const cli_command command = {
        .usage = "graft registry check [options]",
        .about = "Reads all of the registry and of its backup, and says whether they are whole. Changes nothing, "
                 "and works while a\n"
                 "server has the registry open.",
        .examples = "  graft registry check\n"
                    "\n"
                    "--json: {\"registry\":{\"whole\",\"projects\",\"adapters\",\"written\",\"error\"},\"backup\":{...} "
                    "likewise}\n",
        .failures = "the registry is damaged, or there is none",
        .settings = &settings,
        .uses = CLI_SET_REGISTRY,
    };
    graft_registry_options o;
    graft_registry_condition c;
    graft_error err = {0};
    int status = begin(&o, &command, argc, argv);
    if (status != CLI_GO) {
        return status;
    }
    if (graft_registry_examine(&c, &o, &err)) {
        return cli_error(&err);
    }
    if (cli_json()) {
        json_t *all = cli_json_object();
        cli_json_set(all, "registry", file_json(&c.registry));
        cli_json_set(all, "backup", file_json(&c.backup));
        cli_json_print(all);
    } else {
        print_file("registry", &c.registry);
        print_file("backup", &c.backup);
    }
    if (c.registry.error.code) {
        cli_error_line(&c.registry.error);
        return CLI_FAILED;
    }
    return CLI_OK;
}

static int recover(int argc, char **argv) {
    cli_settings settings = cli_settings_default();
    const cli_command command = {
        .usage = "graft registry recover [options]",
        .about = "Puts the backup in the place of a damaged registry. The damaged file is kept beside it, "
                 "as FILE.damaged-TIME. A\n"
                 "registry that is whole is left alone. What changed since the backup was made is lost; it is made whenever a\n"
                 "registry that was changed is closed, and after each 256 changes.",
        .examples = "  graft registry recover\n"
                    "\n"
                    "--json: {\"backup\":{...} as in graft registry check,\"damaged\":the damaged file's name now or null}\n",
        .failures = "the registry is whole, another process has it open, or there is no good backup",
        .settings = &settings,
        .uses = CLI_SET_REGISTRY,
    };
    graft_registry_options o;
    graft_registry_condition c;
    graft_error err = {0};
    char time[CLI_TIME_SIZE];
    int status = begin(&o, &command, argc, argv);
    if (status != CLI_GO) {
        return status;
    }
    if (graft_registry_recover(&c, &o, &err)) {
        return cli_error(&err);
    }
    if (cli_json()) {
        json_t *all = cli_json_object();
        cli_json_set(all, "backup", file_json(&c.backup));
        cli_json_set(all, "damaged", cli_json_string(*c.damaged ? c.damaged : NULL));
        cli_json_print(all);
        return CLI_OK;
    }
    printf("recovered %zu projects, %zu adapters, as of %s\n", c.backup.projects, c.backup.adapters,
           cli_time(time, c.backup.written));
    if (*c.damaged) {
        printf("the damaged file is %s now\n", c.damaged);
    }
    return CLI_OK;
}

int cmd_registry(int argc, char **argv) {
    static const cli_verb verbs[] = {
        {"registry check", check, "is the registry's file whole, and its backup?"},
        {"registry recover", recover, "put the backup in the place of a damaged registry"},
    };
    return cli_verb_run(verbs, CLI_COUNT(verbs), "The registry's file.", argc, argv);
}
