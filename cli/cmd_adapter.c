/* graft adapter: the adapters of projects. PROJECT[/ADAPTER] names one; without ADAPTER it is the default one. */
#include "registry_cli.h"

#include "base/memory.h"

#include <string.h>

static int add(int argc, char **argv) {
    cli_settings settings = cli_settings_default();
    bool replace = false;
    const cli_option options[] = {
        {"replace", 0, NULL, "the name may stand for another adapter so far; requests that\nstill use that one end with it",
         cli_take_flag, &replace, 0, 0},
    };
    const cli_command command = {
        .usage = "graft adapter add PROJECT[/ADAPTER] PATH [options]",
        .about = "Registers the adapter at PATH, a folder of PEFT or mlx-lm or a GGUF file, for a project that exists. Its files\n"
                 "are opened and hashed now; whether they fit a base model comes out when they are first loaded, or with\n"
                 "graft inspect.",
        .examples = "  graft adapter add alder projects/alder\n"
                    "  graft adapter add alder/formal projects/alder-formal\n"
                    "  graft adapter add alder projects/alder-2 --replace\n"
                    "\n"
                    "--json: {\"adapter\":{...}} as graft adapter show\n",
        .failures = "there is no such project, the name is taken, the files are bad, or the registry cannot be written",
        .options = options,
        .n_options = CLI_COUNT(options),
        .settings = &settings,
        .uses = CLI_SET_REGISTRY | CLI_SET_STORES,
    };
    graft_registry *r = NULL;
    graft_error err = {0};
    int rest;
    int status = cli_verb_open(&r, &command, false, argc, argv, 2, 2, &rest);
    if (status != CLI_GO) {
        return status;
    }
    cli_name n = cli_name_parse(argv[rest]);
    char *path = NULL;
    int code = cli_find_adapter(&path, argv[rest + 1], &settings, &err);
    code = code ? code : graft_registry_adapter_add(r, n.project, n.adapter, path, replace ? GRAFT_ADD_REPLACE : 0, &err);
    graft_string_free(path);
    status = code ? cli_error(&err) : cli_registered_tell(r, n.project, n.adapter, "registered");
    cli_name_finish(&n);
    graft_registry_close(r);
    return status;
}

static int list(int argc, char **argv) {
    cli_settings settings = cli_settings_default();
    const cli_command command = {
        .usage = "graft adapter list [PROJECT] [options]",
        .about = "Lists all adapters, or a project's, with their state: registered (not loaded yet), ready (loaded when last\n"
                 "tried), failed, missing (files gone), changed (other files than were registered: graft adapter reload accepts\n"
                 "them). Reads only, so it works while a server has the registry open.",
        .examples = "  graft adapter list alder\n"
                    "\n"
                    "--json: {\"adapters\":[{\"project\",\"adapter\",\"state\",\"path\",\"generation\",\"format\",\"rank\","
                    "\"file_bytes\",\n"
                    "  \"bytes\" (in memory),\"base\",\"pinned\",\"error\",\"created\",\"changed\","
                    "\"history\":{\"requests\",\"tokens\",\"loads\",\n"
                    "  \"failures\",\"evictions\",\"unloads\",\"fallbacks\",\"load_ms\",\"last_loaded\","
                    "\"last_used\"}}...]}; null = not known\n",
        .failures = "there is no such project or no registry, or it cannot be read",
        .settings = &settings,
        .uses = CLI_SET_REGISTRY,
    };
    graft_registry *r = NULL;
    graft_registered_list *adapters = NULL;
    graft_error err = {0};
    int rest;
    int status = cli_verb_open(&r, &command, true, argc, argv, 0, 1, &rest);
    if (status != CLI_GO) {
        return status;
    }
    status = graft_registry_adapter_list(&adapters, r, rest < argc ? argv[rest] : NULL, NULL, &err) ? cli_error(&err) : CLI_OK;
    if (adapters && cli_json()) {
        json_t *o = cli_json_object(), *items = cli_json_array();
        for (size_t i = 0; i < adapters->n; i++) {
            cli_json_append(items, cli_registered_json(&adapters->items[i]));
        }
        cli_json_set(o, "adapters", items);
        cli_json_print(o);
    } else if (adapters) {
        cli_registered_print(adapters);
    }
    graft_registered_list_free(adapters);
    graft_registry_close(r);
    return status;
}

/* ---- show --------------------------------------------------------------------------------------------- */

static json_t *event_json(const graft_registry_event *e) {
    char time[CLI_TIME_SIZE];
    json_t *o = cli_json_object();
    cli_json_set(o, "at", cli_json_string(cli_time(time, e->at)));
    cli_json_set(o, "kind", cli_json_string(e->kind));
    cli_json_set(o, "code", cli_json_string(e->code ? graft_error_name(e->code) : NULL));
    cli_json_set(o, "generation", cli_json_string(*e->generation ? e->generation : NULL));
    cli_json_set(o, "bytes", cli_json_integer((int64_t)e->bytes));
    cli_json_set(o, "ms", cli_json_number(e->ms));
    cli_json_set(o, "message", cli_json_string(*e->message ? e->message : NULL));
    return o;
}

static void print_events(const graft_event_list *events) {
    static const char *const heads[] = {"when", "what", "bytes", "ms", "why"};
    cli_table table;
    cli_table_init(&table, CLI_COUNT(heads), heads, 0xc);
    for (size_t i = 0; i < events->n; i++) {
        const graft_registry_event *e = &events->items[i];
        char time[CLI_TIME_SIZE], bytes[CLI_BYTES_SIZE];
        cli_table_cell(&table, "%s", cli_time(time, e->at));
        cli_table_cell(&table, "%s", e->kind);
        cli_table_cell(&table, "%s", e->bytes ? cli_bytes(bytes, e->bytes) : "-");
        cli_table_cell(&table, "%.1f", e->ms);
        cli_table_cell(&table, "%s%s%s", e->code ? graft_error_name(e->code) : "", e->code ? ": " : "", e->message);
    }
    putchar('\n');
    cli_table_print(&table, 0);
    cli_table_finish(&table);
}

/* A path comes from the registry, which anybody may have filled: cleaned, as everything else in tables. */
static void print_line(const char *what, const char *text) {
    gr_buffer clean;
    gr_buffer_init(&clean, SIZE_MAX / 4);
    cli_clean(&clean, text, strlen(text), false);
    cli_buffer_check(&clean);
    printf("%-11s %s\n", what, clean.length ? clean.data : "-");
    gr_buffer_finish(&clean);
}

static void show_text(const graft_registered *a, const graft_registered_list *list, const graft_event_list *events) {
    char time[CLI_TIME_SIZE];
    const graft_history *h = &a->history;
    cli_registered_print(list);
    putchar('\n');
    print_line("path", a->path);
    print_line("generation", a->generation);
    print_line("base", a->base);
    print_line("created", cli_time(time, a->created));
    print_line("changed", cli_time(time, a->changed));
    print_line("last loaded", cli_time(time, h->last_loaded));
    printf("%-11s %llu requests, %llu tokens, %llu loads in %.1f ms, %llu evictions, %llu unloads, %llu failures, "
           "%llu fallbacks\n",
           "history", (unsigned long long)h->requests, (unsigned long long)h->tokens, (unsigned long long)h->loads,
           h->load_ms, (unsigned long long)h->evictions, (unsigned long long)h->unloads, (unsigned long long)h->failures,
           (unsigned long long)h->fallbacks);
    if (events->n) {
        print_events(events);
    }
}

static void show_json(const graft_registered *a, const graft_event_list *events) {
    json_t *o = cli_json_object(), *items = cli_json_array();
    for (size_t i = 0; i < events->n; i++) {
        cli_json_append(items, event_json(&events->items[i]));
    }
    cli_json_set(o, "adapter", cli_registered_json(a));
    cli_json_set(o, "events", items);
    cli_json_print(o);
}

static int show(int argc, char **argv) {
    cli_settings settings = cli_settings_default();
    int most = 10;
    const cli_option options[] = {
        {"events", 'n', "N", "how many of the newest events to show", cli_take_int, &most, 0, 10000},
    };
    const cli_command command = {
        .usage = "graft adapter show PROJECT[/ADAPTER] [options]",
        .about = "Shows all that is known of an adapter, and what happened to it last.",
        .examples = "  graft adapter show alder\n"
                    "  graft adapter show alder/formal --json\n"
                    "\n"
                    "--json: {\"adapter\":{...} as in graft adapter list,\n"
                    "  \"events\":[{\"at\",\"kind\",\"code\",\"generation\",\"bytes\",\"ms\",\"message\"}...]}\n",
        .failures = "there is no such adapter, or the registry cannot be read",
        .options = options,
        .n_options = CLI_COUNT(options),
        .settings = &settings,
        .uses = CLI_SET_REGISTRY,
    };
    graft_registry *r = NULL;
    graft_registered_list *adapter = NULL;
    graft_event_list *events = NULL;
    graft_error err = {0};
    int rest;
    int status = cli_verb_open(&r, &command, true, argc, argv, 1, 1, &rest);
    if (status != CLI_GO) {
        return status;
    }
    cli_name n = cli_name_parse(argv[rest]);
    const char *name = n.adapter ? n.adapter : "default";
    int code = graft_registry_adapter_list(&adapter, r, n.project, name, &err);
    code = code ? code : graft_registry_event_list(&events, r, n.project, name, (size_t)most, &err);
    if (code) {
        status = cli_error(&err);
    } else if (cli_json()) {
        show_json(&adapter->items[0], events);
        status = CLI_OK;
    } else {
        show_text(&adapter->items[0], adapter, events);
        status = CLI_OK;
    }
    graft_event_list_free(events);
    graft_registered_list_free(adapter);
    cli_name_finish(&n);
    graft_registry_close(r);
    return status;
}

/* ---- changing one ------------------------------------------------------------------------------------- */

static int rm_one(graft_registry *r, const cli_name *n) {
    graft_error err = {0};
    const char *adapter = n->adapter ? n->adapter : "default";
    if (graft_registry_adapter_remove(r, n->project, adapter, &err)) {
        return cli_error(&err);
    }
    if (cli_json()) {
        json_t *o = cli_json_object();
        cli_json_set(o, "removed", json_pack("{s:s, s:s}", "project", n->project, "adapter", adapter));
        cli_json_print(o);
    } else {
        printf("removed %s/%s\n", n->project, adapter);
    }
    return CLI_OK;
}

static int pin_to(graft_registry *r, const cli_name *n, bool pinned) {
    graft_error err = {0};
    int code = graft_registry_adapter_pin(r, n->project, n->adapter, pinned, &err);
    return code ? cli_error(&err) : cli_registered_tell(r, n->project, n->adapter, pinned ? "pinned" : "unpinned");
}

static int pin_one(graft_registry *r, const cli_name *n) {
    return pin_to(r, n, true);
}

static int unpin_one(graft_registry *r, const cli_name *n) {
    return pin_to(r, n, false);
}

static int reload_one(graft_registry *r, const cli_name *n) {
    graft_error err = {0};
    bool changed;
    int code = graft_registry_adapter_reload(r, n->project, n->adapter, &changed, &err);
    return code ? cli_error(&err)
                : cli_registered_tell(r, n->project, n->adapter, changed ? "registered anew, with other content," : "unchanged:");
}

/* A verb on one adapter, without options of its own. */
static int change(int argc, char **argv, const char *usage, const char *about, int (*one)(graft_registry *, const cli_name *)) {
    cli_settings settings = cli_settings_default();
    char examples[256];
    snprintf(examples, sizeof examples, "  graft %s alder\n  graft %s alder/formal\n\n--json: %s\n", argv[0], argv[0],
             one == rm_one ? "{\"removed\":{\"project\",\"adapter\"}}" : "{\"adapter\":{...}} as graft adapter show");
    const cli_command command = {
        .usage = usage,
        .about = about,
        .examples = examples,
        .failures = "there is no such adapter, or the registry cannot be written",
        .settings = &settings,
        .uses = CLI_SET_REGISTRY,
    };
    graft_registry *r = NULL;
    int rest;
    int status = cli_verb_open(&r, &command, false, argc, argv, 1, 1, &rest);
    if (status != CLI_GO) {
        return status;
    }
    cli_name n = cli_name_parse(argv[rest]);
    status = one(r, &n);
    cli_name_finish(&n);
    graft_registry_close(r);
    return status;
}

static int rm(int argc, char **argv) {
    return change(argc, argv, "graft adapter rm PROJECT[/ADAPTER] [options]",
                  "Removes an adapter's entry. Its files are not touched.", rm_one);
}

static int pin(int argc, char **argv) {
    return change(argc, argv, "graft adapter pin PROJECT[/ADAPTER] [options]",
                  "Keeps an adapter in memory once it is loaded: it is never evicted.", pin_one);
}

static int unpin(int argc, char **argv) {
    return change(argc, argv, "graft adapter unpin PROJECT[/ADAPTER] [options]", "Lets an adapter be evicted again.", unpin_one);
}

static int reload(int argc, char **argv) {
    return change(argc, argv, "graft adapter reload PROJECT[/ADAPTER] [options]",
                  "Looks at an adapter's files again and registers them as they are now. If they are bad, "
                  "the entry stays as it was.",
                  reload_one);
}

int cmd_adapter(int argc, char **argv) {
    static const cli_verb verbs[] = {
        {"adapter add", add, "register an adapter for a project"},
        {"adapter list", list, "list all adapters, or a project's"},
        {"adapter show", show, "show one with its history"},
        {"adapter rm", rm, "remove one's entry"},
        {"adapter pin", pin, "never evict one"},
        {"adapter unpin", unpin, "let one be evicted again"},
        {"adapter reload", reload, "register one's files as they are now"},
    };
    return cli_verb_run(verbs, CLI_COUNT(verbs),
                        "The adapters of projects. PROJECT[/ADAPTER] names one; without ADAPTER the default one.", argc,
                        argv);
}
