/* graft adapters scan: many at once. */
#include "registry_cli.h"

#include "base/memory.h"

#include <string.h>

/* One find: a line, or an item of the JSON object that comes at the end. */
typedef struct finds {
    json_t *items; /* NULL = as text */
} finds;

static json_t *item_json(const graft_scan_item *i) {
    json_t *o = cli_json_object();
    cli_json_set(o, "outcome", cli_json_string(graft_scan_outcome_name(i->outcome)));
    cli_json_set(o, "project", cli_json_string(*i->project ? i->project : NULL));
    cli_json_set(o, "adapter", cli_json_string(i->adapter));
    cli_json_set(o, "path", cli_json_string(i->path));
    json_t *error = json_null();
    if (i->code) {
        graft_error e = {.code = i->code};
        snprintf(e.message, sizeof e.message, "%s", i->message);
        error = cli_json_error(&e);
    }
    cli_json_set(o, "error", error);
    return o;
}

static bool take(const graft_scan_item *i, void *user) {
    finds *f = user;
    if (f->items) {
        cli_json_append(f->items, item_json(i));
        return true;
    }
    gr_buffer line;
    gr_buffer_init(&line, SIZE_MAX / 4);
    cli_clean(&line, i->path, strlen(i->path), false);
    if (i->code) {
        gr_buffer_printf(&line, ": %s: ", graft_error_name(i->code));
        cli_clean(&line, i->message, strlen(i->message), false);
    }
    cli_buffer_check(&line);
    printf("%-8s %s/%s  %s\n", graft_scan_outcome_name(i->outcome), *i->project ? i->project : "?", i->adapter, line.data);
    gr_buffer_finish(&line);
    return true;
}

static int report(const graft_scan_summary *s, finds *f, const char *path) {
    if (f->items) {
        json_t *o = cli_json_object();
        cli_json_set(o, "items", f->items);
        f->items = NULL;
        cli_json_set(o, "entries", cli_json_integer((int64_t)s->entries));
        cli_json_set(o, "added", cli_json_integer((int64_t)s->added));
        cli_json_set(o, "known", cli_json_integer((int64_t)s->known));
        cli_json_set(o, "broken", cli_json_integer((int64_t)s->broken));
        cli_json_set(o, "refused", cli_json_integer((int64_t)s->refused));
        cli_json_set(o, "skipped", cli_json_integer((int64_t)s->skipped));
        cli_json_set(o, "complete", json_boolean(s->complete));
        cli_json_print(o);
    } else {
        printf("%zu added, %zu known, %zu broken, %zu refused, %zu skipped; %zu files and folders looked at\n", s->added,
               s->known, s->broken, s->refused, s->skipped, s->entries);
    }
    if (s->complete) {
        return CLI_OK;
    }
    graft_error err = {.code = GRAFT_E_TOO_LARGE};
    snprintf(err.message, sizeof err.message,
             "%.*s: not all was looked at: a folder could not be read, or there are more than %d entries or %d levels",
             CLI_PATH_SHOWN, path, GRAFT_SCAN_ENTRIES, GRAFT_SCAN_DEPTH);
    cli_error_line(&err);
    return CLI_FAILED;
}

static int scan(int argc, char **argv) {
    cli_settings settings = cli_settings_default();
    const cli_command command = {
        .usage = "graft adapters scan DIR [options]",
        .about = "Registers every folder of PEFT or mlx-lm and every GGUF adapter below DIR, without reading weights or loading\n"
                 "anything. The folder's name becomes the project (spaces and punctuation as '-'), its adapter `default`. "
                 "Broken ones are registered as\n"
                 "failed, with the reason. What is registered already stays; names that stand for something else are refused.\n"
                 "Names that begin with '.' are passed over; links are followed only to adapters below DIR.",
        .examples = "  graft adapters scan ~/adapters\n"
                    "\n"
                    "--json: {\"items\":[{\"outcome\" (added, known, broken, refused, skipped),\"project\",\"adapter\","
                    "\"path\",\"error\"}...],\n"
                    "  \"entries\",\"added\",\"known\",\"broken\",\"refused\",\"skipped\",\"complete\"}\n",
        .failures = "DIR cannot be read or not all of it was looked at, or the registry cannot be written",
        .settings = &settings,
        .uses = CLI_SET_REGISTRY,
    };
    graft_registry *r = NULL;
    graft_scan_summary summary;
    graft_error err = {0};
    int rest;
    int status = cli_verb_open(&r, &command, false, argc, argv, 1, 1, &rest);
    if (status != CLI_GO) {
        return status;
    }
    finds f = {.items = cli_json() ? cli_json_array() : NULL};
    int code = graft_registry_scan(r, argv[rest], take, &f, &summary, &err);
    status = code ? cli_error(&err) : report(&summary, &f, argv[rest]);
    json_decref(f.items);
    graft_registry_close(r);
    return status;
}

int cmd_adapters(int argc, char **argv) {
    static const cli_verb verbs[] = {
        {"adapters scan", scan, "register every adapter below a folder"},
    };
    return cli_verb_run(verbs, CLI_COUNT(verbs), "Many adapters at once.", argc, argv);
}
