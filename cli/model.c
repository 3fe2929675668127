/* Opening the model and loading adapters by path, with progress, for every command. */
#include "cli.h"

#include "base/memory.h"

#include <math.h>
#include <string.h>

/* ---- the model ---------------------------------------------------------------------------------------- */

/* A token is at least one byte of the text. What a chat template adds is not known: most add some tens, those
 * with a default system message a hundred or two. */
int cli_context_for(size_t bytes, int max_tokens) {
    enum { TEMPLATE = 256, ROUND = 64, MUCH = 1024 };
    if (max_tokens == 0 || max_tokens > MUCH || bytes > MUCH) {
        return 0;
    }
    int n = ((int)bytes + max_tokens + TEMPLATE + ROUND - 1) / ROUND * ROUND;
    return n <= MUCH ? n : 0;
}

static bool show_opening(float fraction, void *user) {
    (void)user;
    cli_progress("opening model", fraction, 1);
    return !cli_interrupted();
}

int cli_model_open(graft **out, const cli_settings *s, graft_registry *registry) {
    graft_options o = graft_options_default();
    graft_error err = {0};
    cli_settings_options(s, &o);
    char *path = NULL;
    if (o.model && cli_find_model(&path, o.model, s, &err)) {
        return cli_error(&err);
    }
    o.model = path;
    o.registry = registry;
    o.log = cli_log;
    o.progress = show_opening;
    int code = graft_open(out, &o, &err);
    graft_string_free(path);
    cli_progress_end();
    if (code == 0) {
        return CLI_GO;
    }
    /* The library speaks of its options; here they are flags. */
    int status = code == GRAFT_E_BUDGET_EXHAUSTED && strstr(err.message, "memory_limit")
                     ? cli_fail(code, "%s; the flag is --memory-limit-mb", err.message)
                     : cli_error(&err);
    return cli_interrupted() ? CLI_INTERRUPTED : status;
}

/* ---- adapters ----------------------------------------------------------------------------------------- */

bool cli_name_valid(const char *name) {
    static const char allowed[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-";
    size_t length = strlen(name);
    return length >= 1 && length <= CLI_NAME_MAX && strspn(name, allowed) == length;
}

const cli_adapter *cli_adapters_find(const cli_adapters *a, const char *name) {
    for (size_t i = 0; i < a->n; i++) {
        if (strcmp(a->items[i].name, name) == 0) {
            return &a->items[i];
        }
    }
    return NULL;
}

void cli_adapters_add(cli_adapters *a, const char *name, const char *path) {
    a->items = cli_grow(a->items, a->n, sizeof *a->items);
    cli_adapter *added = &a->items[a->n++];
    memset(added, 0, sizeof *added);
    snprintf(added->name, sizeof added->name, "%s", name);
    added->path = cli_strdup(path);
    added->scale = 1;
}

/* PATH[@SCALE]: only a number after the last '@' is a scale, so paths may hold '@'. */
static bool add_path(cli_adapters *a, const char *name, const char *text, char *why, size_t why_size) {
    const char *at = strrchr(text, '@');
    double scale = 1;
    size_t length = at && cli_parse_number(at + 1, &scale) ? (size_t)(at - text) : strlen(text);
    if (length == 0) {
        snprintf(why, why_size, "the path is empty");
        return false;
    }
    if (fabs(scale) > 100) {
        snprintf(why, why_size, "scale %.6g is not from -100 to 100 (if it belongs to the path, add @1)", scale);
        return false;
    }
    cli_adapters_add(a, name, text);
    cli_adapter *added = &a->items[a->n - 1];
    added->path[length] = '\0';
    added->scale = (float)scale;
    return true;
}

bool cli_take_adapter(const cli_option *o, const char *text, char *why, size_t why_size) {
    return add_path(o->target, "", text, why, why_size);
}

bool cli_take_named_adapter(const cli_option *o, const char *text, char *why, size_t why_size) {
    cli_adapters *a = o->target;
    char quoted[GR_QUOTE_SIZE], name[CLI_NAME_MAX + 2];
    const char *equals = strchr(text, '=');
    size_t length = equals ? (size_t)(equals - text) : 0;
    gr_quote(quoted, text, equals ? length : strlen(text));
    if (!equals) {
        snprintf(why, why_size, "\"%s\" is not NAME=PATH or NAME=PATH@SCALE", quoted);
        return false;
    }
    snprintf(name, sizeof name, "%.*s", (int)(length < sizeof name ? length : sizeof name - 1), text);
    if (!cli_name_valid(name)) {
        snprintf(why, why_size, "name \"%s\": 1 to %d of A-Z a-z 0-9 . _ - are allowed", quoted, CLI_NAME_MAX);
        return false;
    }
    if (cli_adapters_find(a, name)) {
        snprintf(why, why_size, "name \"%s\" is given twice", quoted);
        return false;
    }
    return add_path(a, name, equals + 1, why, why_size);
}

void cli_path_error(graft_error *out, int code, const char *path, const char *where, const char *message) {
    char q[GR_QUOTE_PATH_SIZE];
    gr_quote_path(q, path);
    bool told = strncmp(message, q, strlen(q)) == 0; /* the library says it by itself, where the path itself is at fault */
    gr_fail(out, code, "%s%s%s%s%s", told ? "" : q, told ? "" : ": ", where, *where ? ": " : "", message);
}

int cli_adapters_load(cli_adapters *a, graft *g, const cli_settings *s) {
    for (size_t i = 0; i < a->n; i++) {
        cli_adapter *item = &a->items[i];
        graft_error err = {0};
        cli_progress("loading adapters", (double)i, (double)a->n);
        if (cli_interrupted()) {
            cli_fail(GRAFT_E_CANCELLED, "interrupted");
            return CLI_INTERRUPTED;
        }
        char *path = NULL;
        int code = cli_find_adapter(&path, item->path, s, &err);
        code = code ? code : graft_adapter_open(&item->handle, g, path, &err);
        graft_string_free(path);
        if (code) {
            if (item->name[0]) {
                return cli_fail(err.code, "%s: %s", item->name, err.message);
            }
            graft_error told;
            cli_path_error(&told, err.code, item->path, "", err.message);
            return cli_error(&told);
        }
        graft_adapter_get_info(item->handle, &item->info);
    }
    cli_progress_end();
    return CLI_GO;
}

void cli_adapters_finish(cli_adapters *a) {
    for (size_t i = 0; i < a->n; i++) {
        graft_adapter_free(a->items[i].handle);
        gr_free(a->items[i].path);
    }
    gr_free(a->items);
    memset(a, 0, sizeof *a);
}

json_t *cli_adapters_json(const cli_adapters *a) {
    json_t *list = cli_json_array();
    for (size_t i = 0; i < a->n; i++) {
        const cli_adapter *item = &a->items[i];
        json_t *o = cli_json_object();
        if (item->name[0]) {
            cli_json_set(o, "name", cli_json_string(item->name));
        }
        cli_json_set(o, "path", cli_json_string(item->path));
        cli_json_set(o, "scale", cli_json_number((double)item->scale));
        cli_json_set(o, "format", cli_json_string(item->info.format));
        cli_json_set(o, "generation", cli_json_string(item->info.generation));
        cli_json_set(o, "modules", cli_json_integer(item->info.n_modules));
        cli_json_set(o, "rank_min", cli_json_integer(item->info.rank_min));
        cli_json_set(o, "rank_max", cli_json_integer(item->info.rank_max));
        cli_json_set(o, "bytes", cli_json_integer((int64_t)item->info.bytes));
        cli_json_set(o, "load_ms", cli_json_number(item->info.load_ms));
        cli_json_append(list, o);
    }
    return list;
}

void cli_adapters_words(gr_buffer *out, const cli_adapters *a) {
    for (size_t i = 0; i < a->n; i++) {
        char bytes[CLI_BYTES_SIZE];
        gr_buffer_printf(out, "%s%s %s", i ? ", " : "", a->items[i].name,
                         cli_bytes(bytes, a->items[i].info.bytes));
    }
    if (a->n == 0) {
        gr_buffer_puts(out, "none");
    }
    cli_buffer_check(out);
}
