/* graft project: the names that an application uses. */
#include "registry_cli.h"

#include "base/memory.h"

#include <string.h>

static int tell(const char *what, const char *name, const char *key) {
    if (cli_json()) {
        json_t *o = cli_json_object();
        cli_json_set(o, key, cli_json_string(name));
        cli_json_print(o);
    } else {
        printf("%s project %s\n", what, name);
    }
    return CLI_OK;
}

static int add(int argc, char **argv) {
    cli_settings settings = cli_settings_default();
    const cli_command command = {
        .usage = "graft project add PROJECT [PATH] [options]",
        .about = "Adds a project; with PATH, a folder of PEFT or mlx-lm or a GGUF file, that is its default adapter. Its files\n"
                 "are opened and hashed now; whether they fit a base model comes out when they are first loaded, or with\n"
                 "graft inspect.",
        .examples = "  graft project add alder projects/alder\n"
                    "\n"
                    "--json: {\"project\"}, with PATH {\"adapter\":{...}} as graft adapter show\n",
        .failures = "the name is taken, the adapter's files are bad, or the registry cannot be written",
        .settings = &settings,
        .uses = CLI_SET_REGISTRY | CLI_SET_STORES,
    };
    graft_registry *r = NULL;
    graft_error err = {0};
    int rest;
    int status = cli_verb_open(&r, &command, false, argc, argv, 1, 2, &rest);
    if (status != CLI_GO) {
        return status;
    }
    const char *name = argv[rest], *path = argc - rest > 1 ? argv[rest + 1] : NULL;
    char *found = NULL;
    int code = path ? cli_find_adapter(&found, path, &settings, &err) : 0;
    code = code   ? code
           : path ? graft_registry_adapter_add(r, name, NULL, found, GRAFT_ADD_NEW_PROJECT, &err)
                  : graft_registry_project_add(r, name, &err);
    graft_string_free(found);
    status = code ? cli_error(&err) : path ? cli_registered_tell(r, name, NULL, "added") : tell("added", name, "project");
    graft_registry_close(r);
    return status;
}

static void print_projects(const graft_project_list *list) {
    static const char *const heads[] = {"project", "adapters", "files", "requests", "tokens", "loads", "last used"};
    cli_table table;
    cli_table_init(&table, CLI_COUNT(heads), heads, 0x3e);
    for (size_t i = 0; i < list->n; i++) {
        const graft_project_info *p = &list->items[i];
        char bytes[CLI_BYTES_SIZE], time[CLI_TIME_SIZE];
        cli_table_cell(&table, "%s", p->name);
        cli_table_cell(&table, "%zu", p->n_adapters);
        cli_table_cell(&table, "%s", cli_bytes(bytes, p->file_bytes));
        cli_table_cell(&table, "%llu", (unsigned long long)p->history.requests);
        cli_table_cell(&table, "%llu", (unsigned long long)p->history.tokens);
        cli_table_cell(&table, "%llu", (unsigned long long)p->history.loads);
        cli_table_cell(&table, "%s", cli_time(time, p->history.last_used));
    }
    cli_table_print(&table, 0);
    cli_table_finish(&table);
}

static int list(int argc, char **argv) {
    cli_settings settings = cli_settings_default();
    const cli_command command = {
        .usage = "graft project list [options]",
        .about = "Lists the projects. Reads only, so it works while a server has the registry open.",
        .examples = "  graft project list --json\n"
                    "\n"
                    "--json: {\"projects\":[{\"project\",\"adapters\",\"file_bytes\",\"created\",\"changed\","
                    "\"history\":{...}}...]}\n",
        .failures = "there is no registry, or it cannot be read",
        .settings = &settings,
        .uses = CLI_SET_REGISTRY,
    };
    graft_registry *r = NULL;
    graft_project_list *projects = NULL;
    graft_error err = {0};
    int status = cli_verb_open(&r, &command, true, argc, argv, 0, 0, NULL);
    if (status != CLI_GO) {
        return status;
    }
    status = graft_registry_project_list(&projects, r, NULL, &err) ? cli_error(&err) : CLI_OK;
    if (projects && cli_json()) {
        json_t *o = cli_json_object(), *items = cli_json_array();
        for (size_t i = 0; i < projects->n; i++) {
            cli_json_append(items, cli_project_json(&projects->items[i]));
        }
        cli_json_set(o, "projects", items);
        cli_json_print(o);
    } else if (projects) {
        print_projects(projects);
    }
    graft_project_list_free(projects);
    graft_registry_close(r);
    return status;
}

static void show_text(const graft_project_info *p, const graft_registered_list *adapters) {
    char created[CLI_TIME_SIZE], changed[CLI_TIME_SIZE], used[CLI_TIME_SIZE], bytes[CLI_BYTES_SIZE];
    const graft_history *h = &p->history;
    printf("project %s: created %s, changed %s, last used %s\n", p->name, cli_time(created, p->created),
           cli_time(changed, p->changed), cli_time(used, h->last_used));
    printf("%zu adapter%s, %s of files; %llu requests, %llu tokens, %llu loads, %llu evictions, %llu failures, "
           "%llu fallbacks\n\n",
           p->n_adapters, p->n_adapters == 1 ? "" : "s", cli_bytes(bytes, p->file_bytes), (unsigned long long)h->requests,
           (unsigned long long)h->tokens, (unsigned long long)h->loads, (unsigned long long)h->evictions,
           (unsigned long long)h->failures, (unsigned long long)h->fallbacks);
    cli_registered_print(adapters);
}

static void show_json(const graft_project_info *p, const graft_registered_list *adapters) {
    json_t *o = cli_json_object(), *items = cli_json_array();
    for (size_t i = 0; i < adapters->n; i++) {
        cli_json_append(items, cli_registered_json(&adapters->items[i]));
    }
    cli_json_set(o, "project", cli_project_json(p));
    cli_json_set(o, "adapters", items);
    cli_json_print(o);
}

static int show(int argc, char **argv) {
    cli_settings settings = cli_settings_default();
    const cli_command command = {
        .usage = "graft project show PROJECT [options]",
        .about = "Shows a project, its adapters and what happened to them.",
        .examples = "  graft project show alder\n"
                    "\n"
                    "--json: {\"project\":{...} as in graft project list,\"adapters\":[{...}...] as in graft adapter list}\n",
        .failures = "there is no such project, or the registry cannot be read",
        .settings = &settings,
        .uses = CLI_SET_REGISTRY,
    };
    graft_registry *r = NULL;
    graft_project_list *project = NULL;
    graft_registered_list *adapters = NULL;
    graft_error err = {0};
    int rest;
    int status = cli_verb_open(&r, &command, true, argc, argv, 1, 1, &rest);
    if (status != CLI_GO) {
        return status;
    }
    int code = graft_registry_project_list(&project, r, argv[rest], &err);
    code = code ? code : graft_registry_adapter_list(&adapters, r, argv[rest], NULL, &err);
    if (code) {
        status = cli_error(&err);
    } else {
        (cli_json() ? show_json : show_text)(&project->items[0], adapters);
        status = CLI_OK;
    }
    graft_registered_list_free(adapters);
    graft_project_list_free(project);
    graft_registry_close(r);
    return status;
}

static int rename_project(int argc, char **argv) {
    cli_settings settings = cli_settings_default();
    const cli_command command = {
        .usage = "graft project rename FROM TO [options]",
        .about = "Gives a project another name. Its adapters and its history stay with it.",
        .examples = "  graft project rename alder elder\n"
                    "\n"
                    "--json: {\"project\"}\n",
        .failures = "there is no project FROM, there is a project TO, or the registry cannot be written",
        .settings = &settings,
        .uses = CLI_SET_REGISTRY,
    };
    graft_registry *r = NULL;
    graft_error err = {0};
    int rest;
    int status = cli_verb_open(&r, &command, false, argc, argv, 2, 2, &rest);
    if (status != CLI_GO) {
        return status;
    }
    int code = graft_registry_project_rename(r, argv[rest], argv[rest + 1], &err);
    status = code ? cli_error(&err) : tell("renamed: now it is", argv[rest + 1], "project");
    graft_registry_close(r);
    return status;
}

static int rm(int argc, char **argv) {
    cli_settings settings = cli_settings_default();
    const cli_command command = {
        .usage = "graft project rm PROJECT [options]",
        .about = "Removes a project with the entries of its adapters. The adapters' files are not touched.",
        .examples = "  graft project rm alder\n"
                    "\n"
                    "--json: {\"removed\"}\n",
        .failures = "there is no such project, or the registry cannot be written",
        .settings = &settings,
        .uses = CLI_SET_REGISTRY,
    };
    graft_registry *r = NULL;
    graft_error err = {0};
    int rest;
    int status = cli_verb_open(&r, &command, false, argc, argv, 1, 1, &rest);
    if (status != CLI_GO) {
        return status;
    }
    int code = graft_registry_project_remove(r, argv[rest], &err);
    status = code ? cli_error(&err) : tell("removed", argv[rest], "removed");
    graft_registry_close(r);
    return status;
}

int cmd_project(int argc, char **argv) {
    static const cli_verb verbs[] = {
        {"project add", add, "add a project, with its default adapter if a path is given"},
        {"project list", list, "list the projects"},
        {"project show", show, "show one with its adapters and history"},
        {"project rename", rename_project, "give one another name"},
        {"project rm", rm, "remove one with its adapters' entries"},
    };
    return cli_verb_run(verbs, CLI_COUNT(verbs),
                        "Projects are the names that applications use; each has one or more adapters.", argc, argv);
}
