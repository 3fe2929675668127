/* graft load, unload, pin, unpin, switch: one adapter of a server that runs, each a call of one path. */
#include "remote.h"

#include "base/memory.h"

#include <stdarg.h>
#include <string.h>

/* What a command asks for. */
typedef struct change {
    const char *verb;   /* the path's end; NULL = switch */
    const char *doing;  /* while it waits: "loading" */
    const char *done;   /* "loaded" */
    const char *about, *failures, *examples;
    cli_settings set;
    bool reload;
} change;

static int parse(change *c, const cli_option *options, size_t n, int argc, char **argv, const char **name) {
    char usage[160];
    int rest;
    const char *more = n ? options[0].name : NULL;
    snprintf(usage, sizeof usage, "graft %s PROJECT[/ADAPTER]%s%s%s [--server URL] [options]", argv[0], more ? " [--" : "",
             more ? more : "",
             more ? "]" : "");
    const cli_command command = {
        .usage = usage,
        .about = c->about,
        .examples = c->examples,
        .failures = c->failures,
        .options = options,
        .n_options = n,
        .settings = &c->set,
        .uses = CLI_SET_REMOTE,
    };
    int status = cli_parse(&command, argc, argv, &rest);
    if (status != CLI_GO) {
        return status;
    }
    if (argc - rest != 1 || !*argv[rest]) {
        return cli_usage("one PROJECT or PROJECT/ADAPTER is needed; see graft %s --help", argv[0]);
    }
    *name = argv[rest];
    return CLI_GO;
}

/* ---- what came of it ---------------------------------------------------------------------------------- */

static void tell(const change *c, const char *name, const remote_change *made) {
    char freed[CLI_BYTES_SIZE], pending[CLI_BYTES_SIZE];
    if (cli_json()) {
        json_t *o = cli_json_object();
        cli_json_set(o, "adapter", cli_json_string(name));
        cli_json_set(o, "done", cli_json_string(c->done));
        cli_json_set(o, "freed_bytes", made->told ? cli_json_integer((int64_t)made->freed) : json_null());
        cli_json_set(o, "pending_bytes", made->told ? cli_json_integer((int64_t)made->pending) : json_null());
        cli_json_print(o);
        return;
    }
    gr_buffer clean;
    gr_buffer_init(&clean, 1 << 16);
    cli_clean(&clean, name, strlen(name), false);
    cli_buffer_check(&clean);
    printf("%s %s", c->done, clean.data ? clean.data : "");
    gr_buffer_finish(&clean);
    if (made->freed) {
        printf(", %s freed", cli_bytes(freed, made->freed));
    }
    if (made->pending) {
        printf(", %s more when the answers that use it have ended", cli_bytes(pending, made->pending));
    }
    putchar('\n');
}

/* {"project","adapter"} */
static json_t *name_json(const char *name) {
    json_t *o = cli_json_object();
    const char *slash = strchr(name, '/');
    cli_json_set(o, "project", cli_json_text(name, slash ? (size_t)(slash - name) : strlen(name)));
    if (slash) {
        cli_json_set(o, "adapter", cli_json_string(slash + 1));
    }
    return o;
}

static int ask(remote *r, const change *c, const char *name, json_t *body) {
    char what[96], after[16];
    remote_error err;
    remote_change made = {0};
    snprintf(what, sizeof what, "%s %.64s", c->doing, name);
    snprintf(after, sizeof after, "/%s", c->verb ? c->verb : "");
    char *path = c->verb ? remote_path(r, "/v1/lora_adapters/", name, after) : cli_strdup("/v1/projects/current");
    int failed = remote_do(&made, r, path, body, what, &err);
    gr_free(path);
    if (failed) {
        return remote_fail(&err);
    }
    tell(c, name, &made);
    return CLI_OK;
}

static int run(change *c, const cli_option *options, size_t n, int argc, char **argv) {
    const char *name = NULL;
    remote *r = NULL;
    json_t *body = NULL;
    int status = parse(c, options, n, argc, argv, &name);
    if (status == CLI_GO) status = remote_open(&r, &c->set);
    if (status == CLI_GO) {
        if (!c->verb) {
            body = name_json(name);
        } else if (c->reload) {
            body = cli_json_object();
            cli_json_set(body, "reload", json_true());
        }
        status = ask(r, c, name, body);
    }
    json_decref(body);
    remote_close(r);
    return status;
}

/* ---- the commands ------------------------------------------------------------------------------------- */

#define JSON_HELP                                                                   \
    "\n--json: {\"adapter\",\"done\",\"freed_bytes\",\"pending_bytes\"}, "          \
    "the last two null where the server does not say\n"
#define FAILS "the server cannot be asked, has no adapter of that name, or could not do it"

int cmd_load(int argc, char **argv) {
    change c = {
        .set = cli_settings_default(),
        .verb = "load",
        .doing = "loading",
        .done = "loaded",
        .about = "Brings a registered adapter into the memory of a server that runs, before a request asks for it. "
                 "One that is there\n"
                 "already stays as it is, unless its files are to be read again (--reload): "
                 "then running answers end with the version\n"
                 "they began with.",
        .examples = "  graft load alder\n  graft load alder/v2 --reload\n" JSON_HELP,
        .failures = FAILS,
    };
    const cli_option options[] = {
        {"reload", 0, NULL, "read its files again, and accept that they have changed", cli_take_flag, &c.reload, 0, 0},
    };
    return run(&c, options, CLI_COUNT(options), argc, argv);
}

int cmd_unload(int argc, char **argv) {
    change c = {
        .set = cli_settings_default(),
        .verb = "unload",
        .doing = "unloading",
        .done = "unloaded",
        .about = "Takes an adapter out of the memory of a server that runs. It stays registered: "
                 "the next request for it loads it again.\n"
                 "Answers that use it end as they began, and its memory goes with the last of them.",
        .examples = "  graft unload alder\n" JSON_HELP,
        .failures = FAILS,
    };
    return run(&c, NULL, 0, argc, argv);
}

static int pin(bool off, int argc, char **argv) {
    change c = {
        .set = cli_settings_default(),
        .verb = off ? "unpin" : "pin",
        .doing = off ? "unpinning" : "pinning",
        .done = off ? "unpinned" : "pinned",
        .about = off ? "Lets an adapter of a server that runs be evicted again when room is needed."
                     : "Keeps an adapter in the memory of a server that runs once it is there: it is never evicted. "
                       "graft unpin undoes it.\n"
                       "The pin is kept in the registry. (graft adapter pin does the same to a registry that no server has "
                       "open.)",
        .examples = off ? "  graft unpin alder\n" JSON_HELP : "  graft pin alder\n" JSON_HELP,
        .failures = FAILS,
    };
    return run(&c, NULL, 0, argc, argv);
}

int cmd_pin(int argc, char **argv) {
    return pin(false, argc, argv);
}

int cmd_unpin(int argc, char **argv) {
    return pin(true, argc, argv);
}

int cmd_switch(int argc, char **argv) {
    change c = {
        .set = cli_settings_default(),
        .doing = "switching to",
        .done = "switched to",
        .about = "Makes an adapter what a server that runs answers with where a request names no model. It is loaded first: "
                 "until then, and\n"
                 "if that fails, the one before stays.",
        .examples = "  graft switch alder\n" JSON_HELP,
        .failures = FAILS,
    };
    return run(&c, NULL, 0, argc, argv);
}
