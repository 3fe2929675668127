/*
 * graft run: one prompt, streamed, or a file of requests, all in one continuous batch and answered in order.
 * Everything that can be wrong about the command line and the file is found before the model is opened.
 */
#include "registry_cli.h"

#include "base/clock.h"
#include "base/memory.h"

#include <math.h>
#include <string.h>

enum { STOP_MAX = 16, USE_MAX = 8 };

/* An adapter by its registered name. */
typedef struct run_named {
    cli_name name;
    float scale;
} run_named;

typedef struct run_named_list {
    run_named *items;
    size_t n;
} run_named_list;

/* One adapter of a request: a position in run.named or in run.adapters. */
typedef struct run_use {
    bool named;
    size_t at;
} run_use;

/* What one request needs besides graft_request itself, which points in here. */
typedef struct run_item {
    json_t *line;             /* keeps the line's strings; NULL for -p */
    run_use uses[USE_MAX];
    size_t n_uses;
    graft_adapter_use use[USE_MAX];
    graft_message *messages;
    const char *stop[STOP_MAX];
    char *label;              /* "alder", "alder+birch", or NULL for the base */
} run_item;

typedef struct run {
    cli_settings set;
    cli_adapters adapters;    /* -a */
    run_named_list named;     /* --project, then those of lines */
    graft_registry *registry; /* opened when the first name is met */
    cli_list use, stop;
    const char *prompt, *file, *grammar_file;
    bool chat;
    int max_tokens, top_k;
    double temperature, seed, top_p, min_p, repeat_penalty;

    graft_request defaults; /* from the options above */
    gr_buffer grammar;
    run_item *items;
    graft_request *requests;
    size_t n;
    bool write_failed;      /* set by stream(), on the decode thread, read after the job's end */
} run;

/* ---- options ------------------------------------------------------------------------------------------ */

/* PROJECT[/ADAPTER][@SCALE]; no name holds '@' or '/'. */
static bool add_named(run_named_list *list, const char *text, char *why, size_t why_size) {
    char quoted[GR_QUOTE_SIZE];
    double scale = 1;
    char *copy = cli_strdup(text), *at = strchr(copy, '@');
    bool good = !at || (cli_parse_number(at + 1, &scale) && fabs(scale) <= 100);
    if (at) {
        *at = '\0';
    }
    cli_name name = cli_name_parse(copy);
    gr_free(copy);
    if (!good) {
        snprintf(why, why_size, "\"%s\": the scale after '@' must be a number from -100 to 100",
                 gr_quote(quoted, text, strlen(text)));
    } else if (!cli_name_valid(name.project) || (name.adapter && !cli_name_valid(name.adapter))) {
        snprintf(why, why_size, "\"%s\" is not PROJECT[/ADAPTER][@SCALE]; names are 1 to %d of A-Z a-z 0-9 . _ -",
                 gr_quote(quoted, text, strlen(text)), CLI_NAME_MAX);
        good = false;
    }
    if (!good) {
        cli_name_finish(&name);
        return false;
    }
    list->items = cli_grow(list->items, list->n, sizeof *list->items);
    list->items[list->n++] = (run_named){name, (float)scale};
    return true;
}

static bool take_project(const cli_option *o, const char *text, char *why, size_t why_size) {
    return add_named(o->target, text, why, why_size);
}

static int parse(run *r, int argc, char **argv) {
    const cli_option options[] = {
        {"adapter", 'a', "NAME=PATH[@SCALE]",
         "an adapter: a folder of PEFT or mlx-lm, a GGUF file, ollama:NAME or\n"
         "hf:ORG/NAME, and the NAME that lines of a file call it by; may be given many times.\n"
         "Text after the last '@' is a scale (-100 to 100) only if it is a number",
         cli_take_named_adapter, &r->adapters, 0, 0},
        {"project", 0, "PROJECT[/ADAPTER][@SCALE]",
         "a registered adapter for -p, with `graft project add` or the like;\n"
         "repeat it to add several up. It is loaded when the request needs it, and\n"
         "its use is counted in the registry, unless another process writes there",
         take_project, &r->named, 0, 0},
        {"prompt", 'p', "TEXT", "answer this one prompt, given to the model as it is", cli_take_string,
         &r->prompt, 0, 0},
        {"chat", 0, NULL, "take -p as a user's message, put into the model's chat template", cli_take_flag,
         &r->chat, 0, 0},
        {"use", 0, "NAME",
         "a -a's name for -p; repeat it to add several up. Not needed with one -a:\nthat one is used", cli_take_list,
         &r->use, 0, USE_MAX},
        {"file", 'f', "FILE", "answer every line of a JSON-lines file, - for stdin; see below", cli_take_string,
         &r->file, 0, 0},
        {"max-tokens", 'n', "N", "most new tokens per answer, 0 = up to the context's end", cli_take_int,
         &r->max_tokens, 0, 1 << 30},
        {"temp", 0, "T", "temperature, 0 = always the likeliest token", cli_take_number, &r->temperature, 0, 100},
        {"seed", 0, "S", "seed of sampling, -1 = a random one", cli_take_number, &r->seed, -1, 4294967295.0},
        {"top-k", 0, "N", "sample from the N likeliest tokens, 0 = off", cli_take_int, &r->top_k, 0, 1 << 30},
        {"top-p", 0, "P", "sample from the likeliest tokens that sum up to P, 1 = off", cli_take_number,
         &r->top_p, 0, 1},
        {"min-p", 0, "P", "drop tokens less likely than P times the likeliest, 0 = off", cli_take_number,
         &r->min_p, 0, 1},
        {"repeat-penalty", 0, "F", "divide the logits of recent tokens by F, 1 = off", cli_take_number,
         &r->repeat_penalty, 0.01, 100},
        {"stop", 0, "TEXT", "end an answer before this text; up to 16 times", cli_take_list, &r->stop, 0,
         STOP_MAX},
        {"grammar", 0, "FILE", "a GBNF grammar that every answer must follow", cli_take_string, &r->grammar_file,
         0, 0},
    };
    const cli_command command = {
        .usage = "graft run -m MODEL [-a NAME=PATH[@SCALE]]... [--project NAME]... (-p TEXT | -f FILE) [options]",
        .about = "Answers one prompt, printing it as it comes, or all lines of a file in one continuous batch in\n"
                 "which every sequence has its own adapter. Answers of a file are printed in its order.",
        .examples =
            "  graft run -m base.gguf -a alder=projects/alder --chat -p \"Which port does the server use?\"\n"
            "  graft run -m base.gguf -a a=alder -a b=birch@0.5 --use a --use b -p \"Once upon a time\"\n"
            "  graft run -m base.gguf -a alder=projects/alder -f requests.jsonl --json\n"
            "  graft run -m base.gguf --project alder --fallback error -p \"The server listens on port\"\n"
            "\n"
            "lines of a file: one object each, with \"prompt\" (raw text) or \"messages\" (chat), and if wanted\n"
            "  \"adapter\" (the NAME of a -a, else as --project; null or absent: the base), \"max_tokens\", \"temperature\",\n"
            "  \"seed\", \"stop\"\n"
            "  {\"adapter\":\"alder\",\"prompt\":\"The server listens on port\",\"max_tokens\":8}\n"
            "  {\"adapter\":null,\"messages\":[{\"role\":\"user\",\"content\":\"Who maintains this?\"}]}\n"
            "\n"
            "--json: one object per answer: adapter, text, prompt_tokens, completion_tokens, finish_reason (stop,\n"
            "  length, cancelled, error), generation (of the first adapter that answered; null: the base), fallback (null,\n"
            "  or why the base answered instead: {code,message}), ms, and error if there was one\n",
        .failures = "the model, an adapter or a line was refused (then nothing was run), or a request failed",
        .options = options,
        .n_options = CLI_COUNT(options),
        .settings = &r->set,
        .uses = CLI_SET_MODEL | CLI_SET(SLOTS) | CLI_SET(CONTEXT) | CLI_SET(APPLY) | CLI_SET_LOADER,
    };
    return cli_parse(&command, argc, argv, NULL);
}

static int check_options(const run *r) {
    if (!r->set.model) {
        return cli_usage("-m MODEL (or the setting `model`) is needed; see graft run --help");
    }
    if (!r->prompt == !r->file) {
        return cli_usage("either -p TEXT or -f FILE is needed; see graft run --help");
    }
    if (r->file && (r->use.n || r->named.n || r->chat)) {
        return cli_usage("--%s goes with -p; lines of a file say it themselves", r->chat ? "chat" : r->use.n ? "use" : "project");
    }
    if (r->prompt && r->adapters.n > 1 && r->use.n == 0) {
        return cli_usage("several adapters are given: --use NAME tells which one answers -p");
    }
    if (r->named.n + (r->use.n ? r->use.n : r->adapters.n) > USE_MAX) {
        return cli_usage("--project, --use: at most %d adapters can be added up", USE_MAX);
    }
    if (r->seed != floor(r->seed)) {
        return cli_usage("--seed: a whole number from -1 to 4294967295 is needed");
    }
    for (size_t i = 0; i < r->use.n; i++) {
        if (!cli_adapters_find(&r->adapters, r->use.items[i])) {
            return cli_usage("--use: no -a has the name \"%s\"", r->use.items[i]);
        }
    }
    return CLI_GO;
}

static uint32_t seed_of(double seed) {
    return seed < 0 ? UINT32_MAX : (uint32_t)seed;
}

static int fill_defaults(run *r) {
    graft_request *d = &r->defaults;
    graft_error err = {0};
    d->max_tokens = r->max_tokens;
    d->sampling.temperature = (float)r->temperature;
    d->sampling.seed = seed_of(r->seed);
    d->sampling.top_k = r->top_k;
    d->sampling.top_p = (float)r->top_p;
    d->sampling.min_p = (float)r->min_p;
    d->sampling.repeat_penalty = (float)r->repeat_penalty;
    d->stop = r->stop.items;
    d->n_stop = r->stop.n;
    if (r->grammar_file) {
        if (cli_read(&r->grammar, r->grammar_file, &err) != 0) {
            return cli_error(&err);
        }
        d->sampling.grammar = r->grammar.data ? r->grammar.data : "";
    }
    return CLI_GO;
}

/* ---- requests ----------------------------------------------------------------------------------------- */

/* Makes room for one more request; pointers into r->items are made last, in point_requests. */
static run_item *add_item(run *r) {
    r->items = cli_grow(r->items, r->n, sizeof *r->items);
    r->requests = cli_grow(r->requests, r->n, sizeof *r->requests);
    memset(&r->items[r->n], 0, sizeof *r->items);
    r->requests[r->n] = r->defaults;
    return &r->items[r->n++];
}

static void add_use(run_item *item, const char *project, const char *adapter, run_use use) {
    gr_buffer label;
    gr_buffer_init(&label, 4096);
    gr_buffer_printf(&label, "%s%s%s%s%s", item->label ? item->label : "", item->label ? "+" : "", project, adapter ? "/" : "",
                     adapter ? adapter : "");
    cli_buffer_check(&label);
    gr_free(item->label);
    item->label = label.data;
    item->uses[item->n_uses++] = use;
}

static void add_path_use(run *r, run_item *item, const cli_adapter *adapter) {
    add_use(item, adapter->name, NULL, (run_use){false, (size_t)(adapter - r->adapters.items)});
}

static void add_named_use(run *r, run_item *item, size_t at) {
    add_use(item, r->named.items[at].name.project, r->named.items[at].name.adapter, (run_use){true, at});
}

/* Whether the registry has it: said before the model is opened. 0 or the error. */
static int check_named(run *r, const run_named *named, graft_error *err) {
    graft_registered_list *list = NULL;
    int code = r->registry ? 0 : cli_registry_open_to_use(&r->registry, &r->set, err);
    if (!code) {
        code = graft_registry_adapter_list(&list, r->registry, named->name.project,
                                           named->name.adapter ? named->name.adapter : "default", err);
    }
    graft_registered_list_free(list);
    return code;
}

static int check_projects(run *r) {
    graft_error err = {0};
    for (size_t i = 0; i < r->named.n; i++) {
        if (check_named(r, &r->named.items[i], &err) != 0) {
            return cli_fail(err.code, "--project: %.400s", err.message);
        }
    }
    return CLI_GO;
}

static void prompt_item(run *r) {
    run_item *item = add_item(r);
    graft_request *request = &r->requests[r->n - 1];
    if (r->chat) {
        item->messages = cli_alloc(1, sizeof *item->messages);
        item->messages[0] = (graft_message){"user", r->prompt};
        request->n_messages = 1;
    } else {
        request->prompt = r->prompt;
    }
    for (size_t i = 0; i < r->use.n; i++) {
        add_path_use(r, item, cli_adapters_find(&r->adapters, r->use.items[i]));
    }
    if (r->use.n == 0 && r->adapters.n == 1) {
        add_path_use(r, item, &r->adapters.items[0]);
    }
    for (size_t i = 0; i < r->named.n; i++) {
        add_named_use(r, item, i);
    }
}

static int line_adapter(run *r, run_item *item, json_t *value, graft_error *err) {
    if (!value || json_is_null(value)) {
        return 0;
    }
    if (!json_is_string(value)) {
        return gr_fail(err, GRAFT_E_BAD_TYPE, "\"adapter\" must be a string or null");
    }
    const cli_adapter *found = cli_adapters_find(&r->adapters, json_string_value(value));
    if (found) {
        add_path_use(r, item, found);
        return 0;
    }
    char why[512];
    graft_error inner = {0};
    if (!add_named(&r->named, json_string_value(value), why, sizeof why)) {
        return gr_fail(err, GRAFT_E_BAD_REQUEST, "adapter %s", why);
    }
    size_t at = r->named.n - 1;
    if (check_named(r, &r->named.items[at], &inner) != 0) {
        char quoted[GR_QUOTE_SIZE];
        return gr_fail(err, inner.code, "adapter \"%s\" is the name of no -a, and by the registry: %.250s",
                       gr_quote(quoted, json_string_value(value), json_string_length(value)), inner.message);
    }
    add_named_use(r, item, at);
    return 0;
}

static int line_messages(run_item *item, graft_request *request, json_t *list, graft_error *err) {
    static const char *const known[] = {"role", "content", NULL};
    size_t n = json_array_size(list);
    if (n == 0) {
        return gr_fail(err, GRAFT_E_BAD_TYPE, "\"messages\" must be a list that is not empty");
    }
    item->messages = cli_alloc(n, sizeof *item->messages);
    for (size_t i = 0; i < n; i++) {
        json_t *m = json_array_get(list, i);
        const char *role = json_string_value(json_object_get(m, "role"));
        const char *content = json_string_value(json_object_get(m, "content"));
        if (!role || !content) {
            return gr_fail(err, GRAFT_E_BAD_TYPE, "\"messages\"[%zu] must be {\"role\":TEXT,\"content\":TEXT}", i);
        }
        if (cli_check_keys(m, known, err) != 0) {
            return err->code;
        }
        item->messages[i] = (graft_message){role, content};
    }
    request->n_messages = n;
    return 0;
}

static int line_text(run_item *item, graft_request *request, json_t *line, graft_error *err) {
    json_t *prompt = json_object_get(line, "prompt"), *messages = json_object_get(line, "messages");
    if (!prompt == !messages) {
        return gr_fail(err, GRAFT_E_BAD_REQUEST, "either \"prompt\" or \"messages\" is needed");
    }
    if (messages) {
        return line_messages(item, request, messages, err);
    }
    request->prompt = json_string_value(prompt);
    return request->prompt ? 0 : gr_fail(err, GRAFT_E_BAD_TYPE, "\"prompt\" must be a string");
}

static int line_number(json_t *line, const char *key, bool whole, double min, double max, double *out,
                       graft_error *err) {
    json_t *value = json_object_get(line, key);
    if (!value) {
        return 0;
    }
    if (!(whole ? json_is_integer(value) : json_is_number(value))) {
        return gr_fail(err, GRAFT_E_BAD_TYPE, "\"%s\" must be a %snumber", key, whole ? "whole " : "");
    }
    double number = json_number_value(value);
    if (number < min || number > max) {
        return gr_fail(err, GRAFT_E_OUT_OF_RANGE, "\"%s\" is %.10g, allowed are %.10g to %.10g", key, number, min,
                       max);
    }
    *out = number;
    return 0;
}

/* "stop": a string or a list of strings, instead of --stop. */
static int line_stop(run_item *item, graft_request *request, json_t *value, graft_error *err) {
    if (!value) {
        return 0;
    }
    size_t n = json_is_array(value) ? json_array_size(value) : 1;
    if (n > STOP_MAX) {
        return gr_fail(err, GRAFT_E_OUT_OF_RANGE, "\"stop\" holds %zu texts, at most %d are allowed", n, STOP_MAX);
    }
    for (size_t i = 0; i < n; i++) {
        item->stop[i] = json_string_value(json_is_array(value) ? json_array_get(value, i) : value);
        if (!item->stop[i]) {
            return gr_fail(err, GRAFT_E_BAD_TYPE, "\"stop\" must be a string or a list of strings");
        }
    }
    request->stop = NULL; /* point_requests: the item may still move */
    request->n_stop = n;
    return 0;
}

static int line_item(json_t *line, void *user, graft_error *err) {
    static const char *const known[] = {"adapter",     "prompt", "messages", "max_tokens",
                                        "temperature", "seed",   "stop",     NULL};
    run *r = user;
    run_item *item = add_item(r);
    graft_request *request = &r->requests[r->n - 1];
    double max_tokens = r->max_tokens, temperature = r->temperature, seed = r->seed;
    item->line = json_incref(line);
    if (cli_check_keys(line, known, err) != 0 ||
        line_adapter(r, item, json_object_get(line, "adapter"), err) != 0 ||
        line_text(item, request, line, err) != 0 ||
        line_number(line, "max_tokens", true, 0, 1 << 30, &max_tokens, err) != 0 ||
        line_number(line, "temperature", false, 0, 100, &temperature, err) != 0 ||
        line_number(line, "seed", true, -1, UINT32_MAX, &seed, err) != 0 ||
        line_stop(item, request, json_object_get(line, "stop"), err) != 0) {
        return err->code;
    }
    request->max_tokens = (int)max_tokens;
    request->sampling.temperature = (float)temperature;
    request->sampling.seed = seed_of(seed);
    return 0;
}

/* Slots and context where they are left to us: what the requests need. */
static void size_model(run *r) {
    int context = 0;
    for (size_t i = 0; i < r->n; i++) {
        const graft_request *request = &r->requests[i];
        size_t bytes = request->prompt ? strlen(request->prompt) : 0;
        for (size_t k = 0; k < request->n_messages; k++) {
            enum { MARKS = 32 }; /* role and special tokens around a message */
            bytes += strlen(r->items[i].messages[k].content) + MARKS;
        }
        int need = cli_context_for(bytes, request->max_tokens);
        if (need == 0) {
            context = 0;
            break;
        }
        context = need > context ? need : context;
    }
    if (r->set.context == 0) {
        r->set.context = context;
    }
    if (r->set.slots == 0) {
        r->set.slots = r->n < 8 ? (int)r->n : 8;
    }
}

static int make_requests(run *r) {
    graft_error err = {0};
    if (r->prompt) {
        prompt_item(r);
        return CLI_GO;
    }
    return cli_read_lines(r->file, line_item, r, &err) == 0 ? CLI_GO : cli_error(&err);
}

static graft_adapter_use use_of(const run *r, run_use use) {
    if (use.named) {
        const run_named *named = &r->named.items[use.at];
        return (graft_adapter_use){.project = named->name.project, .name = named->name.adapter, .scale = named->scale};
    }
    const cli_adapter *a = &r->adapters.items[use.at];
    return (graft_adapter_use){.adapter = a->handle, .scale = a->scale};
}

/* Once items have their place and adapters are loaded. */
static void point_requests(run *r) {
    for (size_t i = 0; i < r->n; i++) {
        run_item *item = &r->items[i];
        for (size_t k = 0; k < item->n_uses; k++) {
            item->use[k] = use_of(r, item->uses[k]);
        }
        r->requests[i].adapters = item->n_uses ? item->use : NULL;
        r->requests[i].n_adapters = item->n_uses;
        r->requests[i].messages = item->messages;
        if (!r->requests[i].stop) {
            r->requests[i].stop = item->stop;
        }
    }
}

/* ---- answers ------------------------------------------------------------------------------------------ */

/* On the decode thread. A reader that is slow slows decoding, which here serves nobody else. */
static bool stream(const char *text, size_t length, void *user) {
    run *r = user;
    if (!cli_write_text(text, length)) {
        r->write_failed = true;
        return false;
    }
    return true;
}

static bool streams(const run *r) {
    return r->prompt && !cli_json();
}

static void print_json(const run_item *item, const graft_result *result) {
    json_t *o = cli_json_object();
    cli_json_set(o, "adapter", cli_json_string(item->label));
    cli_json_set(o, "text", cli_json_text(result->text, result->text_length));
    cli_json_set(o, "prompt_tokens", cli_json_integer(result->prompt_tokens));
    cli_json_set(o, "completion_tokens", cli_json_integer(result->completion_tokens));
    cli_json_set(o, "finish_reason", cli_json_string(graft_finish_name(result->finish)));
    cli_json_set(o, "generation", cli_json_string(*result->generation ? result->generation : NULL));
    cli_json_set(o, "fallback", result->fallback.code ? cli_json_error(&result->fallback) : json_null());
    cli_json_set(o, "ms", cli_json_number(result->total_ms));
    if (result->finish == GRAFT_FINISH_ERROR) {
        cli_json_set(o, "error", cli_json_error(&result->error));
    }
    cli_json_print(o);
}

static void print_text(const run *r, size_t i, const graft_result *result) {
    if (!streams(r)) {
        printf("%s[%zu] %s\n", i ? "\n" : "", i + 1, r->items[i].label ? r->items[i].label : "(base)");
        cli_write_text(result->text, result->text_length);
    }
    putchar('\n');
    fflush(stdout);
}

/* That the base answered, and why: never left unsaid. */
static void print_fallback(const run *r, size_t i, const graft_error *why) {
    graft_log_entry about = {.level = GRAFT_LOG_WARN, .code = why->code, .project = "", .adapter = "", .generation = ""};
    for (size_t k = 0; k < r->items[i].n_uses && !*about.project; k++) {
        if (r->items[i].uses[k].named) {
            const cli_name *name = &r->named.items[r->items[i].uses[k].at].name;
            about.project = name->project;
            about.adapter = name->adapter ? name->adapter : "default";
        }
    }
    cli_note(&about, "answer %zu: the base answered instead of %s: %s: %s", i + 1, r->items[i].label,
             graft_error_name(why->code), why->message);
}

/* Prints one answer; CLI_FAILED if it is none. */
static int answer(const run *r, size_t i, const graft_result *result) {
    cli_progress_end();
    if (cli_json()) {
        print_json(&r->items[i], result);
    } else {
        print_text(r, i, result);
    }
    if (result->fallback.code) {
        print_fallback(r, i, &result->fallback);
    }
    if (result->finish != GRAFT_FINISH_ERROR) {
        return CLI_OK;
    }
    graft_error err = {.code = result->error.code};
    snprintf(err.message, sizeof err.message, "answer %zu: %.400s", i + 1, result->error.message);
    cli_error_line(&err);
    return CLI_FAILED;
}

/* Registered adapters that are in memory at the end, after those of -a. */
static void loaded_words(gr_buffer *out, const run *r, graft *g) {
    graft_loaded_list *list = NULL;
    if (r->registry && graft_loaded_adapters(&list, g, NULL) == 0) {
        for (size_t i = 0; i < list->n; i++) {
            const graft_loaded *a = &list->items[i];
            char bytes[CLI_BYTES_SIZE];
            gr_buffer_printf(out, "%s%s/%s %s", out->length ? ", " : "", a->project, a->adapter, cli_bytes(bytes, a->bytes));
        }
        cli_buffer_check(out);
    }
    graft_loaded_list_free(list);
}

static void print_summary(const run *r, graft *g, uint64_t tokens, int64_t elapsed_us) {
    gr_buffer loaded;
    gr_buffer_init(&loaded, 1 << 20);
    if (r->adapters.n) {
        cli_adapters_words(&loaded, &r->adapters);
    }
    loaded_words(&loaded, r, g);
    double seconds = (double)elapsed_us / 1e6;
    const graft_log_entry about = {.level = GRAFT_LOG_INFO, .project = "", .adapter = "", .generation = ""};
    cli_note(&about, "%zu answer%s, %llu tokens in %.2f s, %.1f tokens/s; adapters in memory: %s", r->n,
             r->n == 1 ? "" : "s", (unsigned long long)tokens, seconds, seconds > 0 ? (double)tokens / seconds : 0,
             loaded.length ? loaded.data : "none");
    gr_buffer_finish(&loaded);
}

/* Waits for the jobs in order and prints as they end. */
static int collect(run *r, graft *g, graft_job *const *jobs, int64_t start_us) {
    int status = CLI_OK;
    uint64_t tokens = 0;
    for (size_t i = 0; i < r->n; i++) {
        if (!streams(r)) {
            cli_progress("answering", (double)i, (double)r->n);
        }
        const graft_result *result = graft_job_wait(jobs[i]);
        tokens += (uint64_t)result->completion_tokens;
        if (answer(r, i, result) != CLI_OK) {
            status = CLI_FAILED;
        }
    }
    if (cli_interrupted()) {
        cli_error_line(&(graft_error){GRAFT_E_CANCELLED, "interrupted"});
        return CLI_INTERRUPTED;
    }
    if (r->write_failed) {
        return CLI_FAILED; /* main tells why */
    }
    if (!cli_json()) {
        print_summary(r, g, tokens, gr_now_us() - start_us);
    }
    return status;
}

static int run_all(run *r, graft *g) {
    graft_error err = {0};
    graft_job **jobs = cli_alloc(r->n, sizeof *jobs);
    int status = cli_adapters_load(&r->adapters, g, &r->set);
    if (status == CLI_GO) {
        point_requests(r);
        if (streams(r)) {
            r->requests[0].on_text = stream;
            r->requests[0].user = r;
        }
        int64_t start_us = gr_now_us();
        if (graft_submit(jobs, g, r->requests, r->n, &err) != 0) {
            status = cli_error(&err);
        } else {
            cli_interrupt_watch(jobs, r->n);
            status = collect(r, g, jobs, start_us);
            cli_interrupt_watch(NULL, 0);
            for (size_t i = 0; i < r->n; i++) {
                graft_job_free(jobs[i]);
            }
        }
    }
    gr_free(jobs);
    return status;
}

static void finish(run *r) {
    for (size_t i = 0; i < r->n; i++) {
        json_decref(r->items[i].line);
        gr_free(r->items[i].messages);
        gr_free(r->items[i].label);
    }
    for (size_t i = 0; i < r->named.n; i++) {
        cli_name_finish(&r->named.items[i].name);
    }
    gr_free(r->named.items);
    gr_free(r->items);
    gr_free(r->requests);
    gr_free(r->use.items);
    gr_free(r->stop.items);
    gr_buffer_finish(&r->grammar);
    cli_adapters_finish(&r->adapters);
}

int cmd_run(int argc, char **argv) {
    run r = {.set = cli_settings_default(), .defaults = graft_request_default()};
    graft *g = NULL;
    const graft_sampling *s = &r.defaults.sampling;
    r.max_tokens = r.defaults.max_tokens;
    r.temperature = (double)s->temperature;
    r.seed = s->seed == UINT32_MAX ? -1 : (double)s->seed;
    r.top_k = s->top_k;
    r.top_p = (double)s->top_p;
    r.min_p = (double)s->min_p;
    r.repeat_penalty = (double)s->repeat_penalty;
    int status = parse(&r, argc, argv);
    if (status == CLI_GO) status = check_options(&r);
    if (status == CLI_GO) status = fill_defaults(&r);
    if (status == CLI_GO) status = check_projects(&r);
    if (status == CLI_GO) status = make_requests(&r);
    if (status == CLI_GO) {
        size_model(&r);
        cli_interrupt_start();
        cli_log_answers_tell();
        status = cli_model_open(&g, &r.set, r.registry);
    }
    if (status == CLI_GO) status = run_all(&r, g);
    /* Handles go before the instance that they belong to. */
    finish(&r);
    graft_close(g);
    graft_registry_close(r.registry);
    return status;
}
