/* graft key: the keys of a server, through the server or, with --registry, in the registry's file. */
#include "registry_cli.h"
#include "remote.h"

#include "base/memory.h"

#include <string.h>

/* ---- showing ------------------------------------------------------------------------------------------ */

/* A key as GET /v1/keys has it. */
static void add_row(cli_table *t, const json_t *key) {
    char time[CLI_TIME_SIZE];
    gr_buffer projects;
    size_t i;
    json_t *p;
    gr_buffer_init(&projects, 1 << 20);
    json_array_foreach(json_object_get(key, "projects"), i, p) {
        gr_buffer_printf(&projects, "%s%s", i ? ", " : "", json_is_string(p) ? json_string_value(p) : "?");
    }
    if (json_is_true(json_object_get(key, "admin"))) {
        gr_buffer_clear(&projects);
        gr_buffer_puts(&projects, "all (admin)");
    }
    cli_buffer_check(&projects);
    cli_table_text(t, remote_text(key, "id"), strlen(remote_text(key, "id")));
    cli_table_text(t, projects.data ? projects.data : "", projects.length);
    cli_table_cell(t, "%s", cli_time(time, remote_integer(key, "created")));
    gr_buffer_finish(&projects);
}

static void print_keys(const json_t *keys) {
    static const char *const heads[] = {"key", "projects", "created"};
    cli_table table;
    size_t i;
    json_t *key;
    if (cli_json()) {
        json_t *o = cli_json_object();
        cli_json_set(o, "keys", json_is_array(keys) ? json_deep_copy(keys) : cli_json_array());
        cli_json_print(o);
        return;
    }
    cli_table_init(&table, CLI_COUNT(heads), heads, 0);
    json_array_foreach(keys, i, key) {
        add_row(&table, key);
    }
    cli_table_print(&table, 60);
    cli_table_finish(&table);
}

/* The secret alone on stdout, so that it can go into a file; all else on stderr. */
static int print_secret(const json_t *key) {
    const char *secret = remote_text(key, "key");
    gr_buffer line;
    if (!*secret) {
        return cli_fail_as("bad_reply", "the reply has no key in it; is it graft that answers there?");
    }
    if (cli_json()) {
        cli_json_print(json_deep_copy(key));
        return CLI_OK;
    }
    gr_buffer_init(&line, 1 << 16);
    gr_buffer_puts(&line, "graft: the key ");
    cli_clean(&line, remote_text(key, "id"), strlen(remote_text(key, "id")), false);
    gr_buffer_puts(&line, json_is_true(json_object_get(key, "admin")) ? ", for all projects and for changing the server"
                                                                        : ", for the projects that were named");
    gr_buffer_puts(&line, ". It is shown this once and kept nowhere:\n");
    cli_buffer_check(&line);
    cli_stderr(line.data, line.length);
    gr_buffer_clear(&line);
    cli_clean(&line, secret, strlen(secret), false);
    printf("%s\n", line.data ? line.data : "");
    gr_buffer_finish(&line);
    return CLI_OK;
}

static int print_removed(const char *name) {
    if (cli_json()) {
        json_t *o = cli_json_object();
        cli_json_set(o, "removed", cli_json_string(name));
        cli_json_print(o);
    } else {
        printf("removed %s\n", name);
    }
    return CLI_OK;
}

/* ---- beginning ---------------------------------------------------------------------------------------- */

typedef struct key_call {
    cli_settings set;
    cli_list projects;
    const char *name;
    graft_registry *registry; /* NULL: the server is asked */
    remote *server;
} key_call;

static int begin(key_call *k, cli_command *command, bool named, bool read_only, int argc, char **argv) {
    graft_error err = {0};
    int rest, n = named ? 1 : 0;
    k->set = cli_settings_default();
    command->settings = &k->set;
    command->uses = CLI_SET_REMOTE | CLI_SET(REGISTRY) | CLI_SET(REGISTRY_WAIT_MS);
    int status = cli_parse(command, argc, argv, &rest);
    if (status != CLI_GO) {
        return status;
    }
    if (argc - rest != n) {
        return cli_usage("%s arguments; see graft %s --help", argc - rest < n ? "too few" : "too many", argv[0]);
    }
    k->name = named ? argv[rest] : NULL;
    if (k->set.from[CLI_ID_REGISTRY].source != CLI_FROM_FLAG) { /* a setting alone is the server's business */
        return remote_open(&k->server, &k->set);
    }
    return cli_registry_open(&k->registry, &k->set, read_only, &err) == 0 ? CLI_GO : cli_error(&err);
}

static void end(key_call *k) {
    remote_close(k->server);
    graft_registry_close(k->registry);
    gr_free(k->projects.items);
}

#define WHERE                                                                                                                   \
    "A server that runs is asked; --registry FILE, given as a flag, means the file itself, for before the first start.\n"

/* ---- add ---------------------------------------------------------------------------------------------- */

static json_t *projects_json(const cli_list *projects) {
    json_t *list = cli_json_array();
    for (size_t i = 0; i < projects->n; i++) {
        cli_json_append(list, cli_json_string(projects->items[i]));
    }
    return list;
}

static int add_remote(key_call *k) {
    remote_error err;
    json_t *reply = NULL, *body = cli_json_object();
    cli_json_set(body, "name", cli_json_string(k->name));
    if (k->projects.n) {
        cli_json_set(body, "projects", projects_json(&k->projects));
    }
    int status = remote_ask(&reply, k->server, "POST", "/v1/keys", body, &err) == 0 ? print_secret(reply) : remote_fail(&err);
    json_decref(reply);
    json_decref(body);
    return status;
}

static int add_local(key_call *k) {
    char secret[GRAFT_KEY_SIZE];
    graft_error err = {0};
    if (graft_registry_key_add(secret, k->registry, k->name, k->projects.items, k->projects.n, &err) != 0) {
        return cli_error(&err);
    }
    json_t *key = cli_json_object();
    cli_json_set(key, "id", cli_json_string(k->name));
    cli_json_set(key, "object", cli_json_string("key"));
    cli_json_set(key, "key", cli_json_string(secret));
    cli_json_set(key, "admin", json_boolean(k->projects.n == 0));
    cli_json_set(key, "projects", projects_json(&k->projects));
    int status = print_secret(key);
    json_decref(key);
    return status;
}

static int add(int argc, char **argv) {
    key_call k = {0};
    const cli_option options[] = {
        {"project", 0, "PROJECT",
         "what the key is for; repeat it for several. Without: for all, and for\nchanging the server (admin)",
         cli_take_list, &k.projects, 0, GRAFT_KEY_PROJECTS},
    };
    cli_command command = {
        .usage = "graft key add NAME [--project PROJECT]... [--server URL | --registry FILE] [options]",
        .about = "Makes a key and shows it, this once: only its hash is kept. The key alone goes to stdout. "
                 "Once there is a key every\n"
                 "request must bring one, so the first must be for all projects.\n" WHERE,
        .examples = "  graft key add admin --registry ~/.local/share/graft/registry.db > admin.key\n"
                    "  graft key add alder-app --project alder --api-key-file admin.key\n"
                    "\n"
                    "--json: {\"id\",\"object\",\"key\",\"admin\",\"projects\"} and, from a server, \"created\"\n",
        .failures = "the name is taken or cannot be, the server cannot be asked or refused, the registry cannot be written",
        .options = options,
        .n_options = CLI_COUNT(options),
    };
    int status = begin(&k, &command, true, false, argc, argv);
    if (status == CLI_GO) {
        status = k.registry ? add_local(&k) : add_remote(&k);
    }
    end(&k);
    return status;
}

/* ---- list --------------------------------------------------------------------------------------------- */

static int list_remote(key_call *k) {
    remote_error err;
    json_t *reply = NULL;
    if (remote_ask(&reply, k->server, "GET", "/v1/keys", NULL, &err) != 0) {
        return remote_fail(&err);
    }
    print_keys(json_object_get(reply, "data"));
    json_decref(reply);
    return CLI_OK;
}

static json_t *key_json(const graft_key *key) {
    const cli_list projects = {.items = (const char **)key->projects, .n = key->n_projects};
    json_t *o = cli_json_object();
    cli_json_set(o, "id", cli_json_string(key->name));
    cli_json_set(o, "object", cli_json_string("key"));
    cli_json_set(o, "admin", json_boolean(key->admin));
    cli_json_set(o, "projects", projects_json(&projects));
    cli_json_set(o, "created", cli_json_integer(key->created));
    return o;
}

static int list_local(key_call *k) {
    graft_key_list *list = NULL;
    graft_error err = {0};
    if (graft_registry_key_list(&list, k->registry, NULL, &err) != 0) {
        return cli_error(&err);
    }
    json_t *keys = cli_json_array();
    for (size_t i = 0; i < list->n; i++) {
        cli_json_append(keys, key_json(&list->items[i]));
    }
    print_keys(keys);
    json_decref(keys);
    graft_key_list_free(list);
    return CLI_OK;
}

static int list(int argc, char **argv) {
    key_call k = {0};
    cli_command command = {
        .usage = "graft key list [--server URL | --registry FILE] [options]",
        .about = "Names, projects and times of the keys; the keys themselves are kept nowhere.\n" WHERE,
        .examples = "  graft key list\n"
                    "\n"
                    "--json: {\"keys\":[{\"id\",\"object\",\"admin\",\"projects\",\"created\"}...]}\n",
        .failures = "the server cannot be asked or refused, the registry cannot be read",
    };
    int status = begin(&k, &command, false, true, argc, argv);
    if (status == CLI_GO) {
        status = k.registry ? list_local(&k) : list_remote(&k);
    }
    end(&k);
    return status;
}

/* ---- remove ------------------------------------------------------------------------------------------- */

static int remove_remote(key_call *k) {
    remote_error err;
    json_t *reply = NULL;
    char *path = remote_path(k->server, "/v1/keys/", k->name, "");
    int status = remote_ask(&reply, k->server, "DELETE", path, NULL, &err) == 0 ? print_removed(k->name) : remote_fail(&err);
    json_decref(reply);
    gr_free(path);
    return status;
}

static int remove_local(key_call *k) {
    graft_error err = {0};
    return graft_registry_key_remove(k->registry, k->name, &err) == 0 ? print_removed(k->name) : cli_error(&err);
}

static int remove_verb(int argc, char **argv) {
    key_call k = {0};
    cli_command command = {
        .usage = "graft key remove NAME [--server URL | --registry FILE] [options]",
        .about = "Removes a key: requests that bring it are refused from then on.\n" WHERE,
        .examples = "  graft key remove alder-app\n"
                    "\n"
                    "--json: {\"removed\":NAME}\n",
        .failures = "there is no such key, the server cannot be asked or refused, the registry cannot be written",
    };
    int status = begin(&k, &command, true, false, argc, argv);
    if (status == CLI_GO) {
        status = k.registry ? remove_local(&k) : remove_remote(&k);
    }
    end(&k);
    return status;
}

int cmd_key(int argc, char **argv) {
    static const cli_verb verbs[] = {
        {"key add", add, "make a key, and show it this once"},
        {"key list", list, "names, projects and times"},
        {"key remove", remove_verb, "requests that bring it are refused from then on"},
    };
    return cli_verb_run(verbs, CLI_COUNT(verbs), "The keys of a server.", argc, argv);
}
