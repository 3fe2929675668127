/* graft ps: what a server has in memory and does. */
#include "registry_cli.h"
#include "remote.h"

#include <string.h>

typedef struct ps {
    cli_settings set;
    bool all;
} ps;

static int parse(ps *p, int argc, char **argv) {
    const cli_option options[] = {
        {"all", 0, NULL, "also adapters that are registered and not in memory", cli_take_flag, &p->all, 0, 0},
    };
    const cli_command command = {
        .usage = "graft ps [--all] [--server URL] [options]",
        .about = "Shows what a server that runs has in memory and does: its model, memory, slots, and adapters with state, "
                 "bytes, leases\n"
                 "(who uses them now), pin and last use. A key that is not for all projects sees those it is for.",
        .examples = "  graft ps\n"
                    "  graft ps --all --server https://models.example:8443 --api-key-file key.txt\n"
                    "\n"
                    "--json: {\"status\":{...} of GET /v1/status,\"adapters\":[{...} of GET /v1/lora_adapters...]}\n",
        .failures = "the server cannot be asked, or refused",
        .options = options,
        .n_options = CLI_COUNT(options),
        .settings = &p->set,
        .uses = CLI_SET_REMOTE,
    };
    return cli_parse(&command, argc, argv, NULL);
}

static bool in_memory(const json_t *adapter) {
    const char *memory = remote_text(adapter, "memory");
    return *memory && strcmp(memory, "absent") != 0;
}

/* Strangers' text on a line of ours. */
static void put(gr_buffer *out, const char *text) {
    cli_clean(out, text, strlen(text), false);
}

static void put_bytes(gr_buffer *out, const json_t *o, const char *key, const char *words) {
    char text[CLI_BYTES_SIZE];
    int64_t bytes = remote_integer(o, key);
    if (bytes > 0) {
        gr_buffer_printf(out, "%s%s", words, cli_bytes(text, (uint64_t)bytes));
    }
}

static void put_model(gr_buffer *out, const json_t *status) {
    const json_t *m = json_object_get(status, "model");
    const char *apply = remote_text(m, "apply"), *version = remote_text(status, "version");
    gr_buffer_puts(out, "model    ");
    put(out, *remote_text(m, "id") ? remote_text(m, "id") : "?");
    gr_buffer_printf(out, ", context %lld, %lld slots", (long long)remote_integer(m, "context"),
                     (long long)remote_integer(m, "slots"));
    gr_buffer_puts(out, *apply ? ", adapters by " : "");
    put(out, apply);
    gr_buffer_puts(out, "; graft ");
    put(out, version);
    gr_buffer_printf(out, ", up %lld s%s\n", (long long)remote_integer(status, "uptime_s"),
                     json_is_true(json_object_get(status, "draining")) ? ", ending" : "");
}

static void put_health(gr_buffer *out, const json_t *status) {
    const json_t *h = json_object_get(status, "health");
    const char *state = remote_text(h, "state");
    size_t i;
    json_t *reason;
    if (!*state || strcmp(state, "healthy") == 0) {
        return;
    }
    gr_buffer_puts(out, "health   ");
    put(out, state);
    json_array_foreach(json_object_get(h, "reasons"), i, reason) {
        const char *text = remote_text(reason, "text");
        gr_buffer_puts(out, i ? "; " : ": ");
        put(out, *text ? text : remote_text(reason, "name"));
    }
    gr_buffer_puts(out, "\n");
}

static void put_memory(gr_buffer *out, const json_t *status) {
    const json_t *m = json_object_get(status, "memory");
    char counted[CLI_BYTES_SIZE], limit[CLI_BYTES_SIZE];
    int64_t most = remote_integer(m, "max_adapters");
    gr_buffer_printf(out, "memory   %s of %s", cli_bytes(counted, (uint64_t)remote_integer(m, "counted")),
                     cli_bytes(limit, (uint64_t)remote_integer(m, "limit")));
    put_bytes(out, m, "weights", "; base ");
    put_bytes(out, m, "context", ", caches ");
    put_bytes(out, m, "resident", ", adapters ");
    gr_buffer_printf(out, " (%lld", (long long)remote_integer(m, "n_resident"));
    if (most > 0) {
        gr_buffer_printf(out, " of at most %lld", (long long)most);
    }
    gr_buffer_puts(out, ")");
    put_bytes(out, m, "loading", ", loading ");
    put_bytes(out, m, "draining", ", on their way out ");
    put_bytes(out, m, "process", "; process ");
    gr_buffer_puts(out, "\n");
}

/* "slots    2 of 8 busy: decode alder (12 + 5 tokens), prompt the base (40 + 0 tokens)" */
static void put_slots(gr_buffer *out, const json_t *status) {
    const json_t *slots = json_object_get(status, "slots"), *answers = json_object_get(status, "answers");
    size_t i, busy = 0;
    json_t *slot;
    gr_buffer words;
    gr_buffer_init(&words, 1 << 20);
    json_array_foreach(slots, i, slot) {
        const char *state = remote_text(slot, "state"), *adapter = remote_text(slot, "adapter");
        if (!*state || strcmp(state, "idle") == 0) {
            continue;
        }
        gr_buffer_puts(&words, busy++ ? ", " : ": ");
        put(&words, state);
        gr_buffer_puts(&words, " ");
        if (json_is_true(json_object_get(slot, "hidden"))) { /* of which nothing is told */
            put(&words, "another's");
            continue;
        }
        put(&words, *adapter ? adapter : "the base");
        gr_buffer_printf(&words, " (%lld + %lld tokens)", (long long)remote_integer(slot, "prompt_tokens"),
                         (long long)remote_integer(slot, "completion_tokens"));
    }
    cli_buffer_check(&words);
    gr_buffer_printf(out, "slots    %zu of %zu busy%s; %lld answers wait, %lld in all\n", busy, json_array_size(slots),
                     words.data ? words.data : "", (long long)remote_integer(answers, "waiting"),
                     (long long)remote_integer(answers, "total"));
    gr_buffer_finish(&words);
}

static void print_status(const json_t *status) {
    gr_buffer out;
    gr_buffer_init(&out, 1 << 22);
    put_model(&out, status);
    put_health(&out, status);
    put_memory(&out, status);
    put_slots(&out, status);
    if (*remote_text(status, "current")) {
        gr_buffer_puts(&out, "current  ");
        put(&out, remote_text(status, "current"));
        gr_buffer_puts(&out, "\n");
    }
    cli_buffer_check(&out);
    fwrite(out.data, 1, out.length, stdout);
    gr_buffer_finish(&out);
}

static void add_text(cli_table *t, const char *text) {
    cli_table_text(t, text, strlen(text));
}

static void add_row(cli_table *t, const json_t *a) {
    char bytes[CLI_BYTES_SIZE], time[CLI_TIME_SIZE];
    const json_t *error = json_object_get(a, "error");
    int64_t held = remote_integer(a, "bytes");
    add_text(t, remote_text(a, "id"));
    add_text(t, in_memory(a) ? remote_text(a, "memory") : remote_text(a, "state"));
    add_text(t, held > 0 ? cli_bytes(bytes, (uint64_t)held) : "-");
    cli_table_cell(t, "%lld", (long long)remote_integer(a, "leases"));
    add_text(t, json_is_true(json_object_get(a, "pinned")) ? "pinned" : "-");
    cli_table_cell(t, "%lld", (long long)remote_integer(a, "requests"));
    add_text(t, cli_time(time, remote_integer(a, "last_used")));
    if (json_is_object(error)) {
        char line[1024];
        snprintf(line, sizeof line, "  %s: %s", remote_text(error, "code"), remote_text(error, "message"));
        cli_table_span(t, line);
    }
}

static void print_adapters(const json_t *list, size_t n_absent) {
    static const char *const heads[] = {"adapter", "state", "memory", "leases", "pinned", "requests", "last used"};
    cli_table table;
    size_t i;
    json_t *a;
    putchar('\n');
    if (json_array_size(list)) {
        cli_table_init(&table, CLI_COUNT(heads), heads, 0x2c);
        json_array_foreach(list, i, a) {
            add_row(&table, a);
        }
        cli_table_print(&table, 0);
        cli_table_finish(&table);
    } else {
        puts(n_absent ? "no adapter is in memory" : "no adapters are registered");
    }
    if (n_absent) {
        printf("%zu more %s registered (--all)\n", n_absent, n_absent == 1 ? "is" : "are");
    }
}

/* Those to show; *n_absent: how many are left out. */
static json_t *choose(const json_t *adapters, bool all, size_t *n_absent) {
    json_t *chosen = cli_json_array();
    size_t i;
    json_t *a;
    *n_absent = 0;
    json_array_foreach(json_object_get(adapters, "data"), i, a) {
        if (all || in_memory(a)) {
            cli_json_append(chosen, json_incref(a));
        } else {
            (*n_absent)++;
        }
    }
    return chosen;
}

static void print(json_t *status, const json_t *adapters, bool all) {
    size_t n_absent;
    json_t *chosen = choose(adapters, all, &n_absent);
    if (cli_json()) {
        json_t *o = cli_json_object();
        cli_json_set(o, "status", json_incref(status));
        cli_json_set(o, "adapters", json_incref(chosen));
        cli_json_print(o);
    } else {
        print_status(status);
        print_adapters(chosen, n_absent);
    }
    json_decref(chosen);
}

int cmd_ps(int argc, char **argv) {
    ps p = {.set = cli_settings_default()};
    remote *r = NULL;
    remote_error err;
    json_t *status = NULL, *adapters = NULL;
    int exit_code = parse(&p, argc, argv);
    if (exit_code == CLI_GO) exit_code = remote_open(&r, &p.set);
    if (exit_code != CLI_GO) {
        return exit_code;
    }
    if (remote_ask(&status, r, "GET", "/v1/status", NULL, &err) ||
        remote_ask(&adapters, r, "GET", "/v1/lora_adapters", NULL, &err)) {
        exit_code = remote_fail(&err);
    } else {
        print(status, adapters, p.all);
        exit_code = CLI_OK;
    }
    json_decref(status);
    json_decref(adapters);
    remote_close(r);
    return exit_code;
}
