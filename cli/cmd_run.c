/*
 * graft run: one prompt, streamed, or a file of requests, all in one continuous batch and answered in order.
 * Everything that can be wrong about the command line and the file is found before the model is opened.
 */
#include "cli.h"

#include "base/clock.h"
#include "base/memory.h"

#include <math.h>
#include <string.h>

enum { STOP_MAX = 16, USE_MAX = 8 };

/* What one request needs besides graft_request itself, which points in here. */
typedef struct run_item {
    json_t *line;             /* keeps the line's strings; NULL for -p */
    size_t uses[USE_MAX];     /* positions in run.adapters */
    size_t n_uses;
    graft_adapter_use use[USE_MAX];
    graft_message *messages;
    const char *stop[STOP_MAX];
    char *label;              /* "alder", "alder+birch", or NULL for the base */
} run_item;

typedef struct run {
    cli_model model;
    cli_adapters adapters;
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

static int parse(run *r, int argc, char **argv) {
    const cli_option options[] = {
        CLI_MODEL_PATH(&r->model),
        {"adapter", 'a', "NAME=PATH[@SCALE]",
         "an adapter: a PEFT folder or a GGUF file, and the NAME that lines of a\n"
         "file call it by; may be given many times. Text after the last '@' is a\n"
         "scale (-100 to 100) only if it is a number",
         cli_take_named_adapter, &r->adapters, 0, 0},
        {"prompt", 'p', "TEXT", "answer this one prompt, given to the model as it is", cli_take_string,
         &r->prompt, 0, 0},
        {"chat", 0, NULL, "take -p as a user's message, put into the model's chat template", cli_take_flag,
         &r->chat, 0, 0},
        {"use", 0, "NAME",
         "adapter for -p; repeat it to add several up. Not needed with one -a: that\none is used", cli_take_list,
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
        CLI_MODEL_SLOTS(&r->model, 8),
        CLI_MODEL_CONTEXT(&r->model),
        CLI_MODEL_APPLY(&r->model),
        CLI_MODEL_OPTIONS(&r->model),
        CLI_COMMON_OPTIONS(&r->model),
    };
    const cli_command command = {
        .usage = "graft run -m MODEL [-a NAME=PATH[@SCALE]]... (-p TEXT | -f FILE) [options]",
        .about = "Answers one prompt, printing it as it comes, or all lines of a file in one continuous batch in\n"
                 "which every sequence has its own adapter. Answers of a file are printed in its order.",
        .examples =
            "  graft run -m base.gguf -a alder=projects/alder --chat -p \"Which port does the server use?\"\n"
            "  graft run -m base.gguf -a a=alder -a b=birch@0.5 --use a --use b -p \"Once upon a time\"\n"
            "  graft run -m base.gguf -a alder=projects/alder -f requests.jsonl --json\n"
            "\n"
            "lines of a file: one object each, with \"prompt\" (raw text) or \"messages\" (chat), and if wanted\n"
            "  \"adapter\" (a NAME; null or absent: the base), \"max_tokens\", \"temperature\", \"seed\", \"stop\"\n"
            "  {\"adapter\":\"alder\",\"prompt\":\"The server listens on port\",\"max_tokens\":8}\n"
            "  {\"adapter\":null,\"messages\":[{\"role\":\"user\",\"content\":\"Who maintains this?\"}]}\n"
            "\n"
            "--json: one object per answer: adapter, text, prompt_tokens, completion_tokens, finish_reason (stop,\n"
            "  length, cancelled, error), ms, and error if there was one\n",
        .failures = "the model, an adapter or a line was refused (then nothing was run), or a request failed",
        .options = options,
        .n_options = CLI_COUNT(options),
    };
    return cli_parse(&command, argc, argv, NULL);
}

static int check_options(const run *r) {
    if (!r->model.path) {
        return cli_usage("-m MODEL is needed; see graft run --help");
    }
    if (!r->prompt == !r->file) {
        return cli_usage("either -p TEXT or -f FILE is needed; see graft run --help");
    }
    if (r->file && (r->use.n || r->chat)) {
        return cli_usage("--%s goes with -p; lines of a file say it themselves", r->chat ? "chat" : "use");
    }
    if (r->prompt && r->adapters.n > 1 && r->use.n == 0) {
        return cli_usage("several adapters are given: --use NAME tells which one answers -p");
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

static void add_use(run *r, run_item *item, const cli_adapter *adapter) {
    gr_buffer label;
    gr_buffer_init(&label, 4096);
    gr_buffer_printf(&label, "%s%s%s", item->label ? item->label : "", item->label ? "+" : "", adapter->name);
    cli_buffer_check(&label);
    gr_free(item->label);
    item->label = label.data;
    item->uses[item->n_uses++] = (size_t)(adapter - r->adapters.items);
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
        add_use(r, item, cli_adapters_find(&r->adapters, r->use.items[i]));
    }
    if (r->use.n == 0 && r->adapters.n == 1) {
        add_use(r, item, &r->adapters.items[0]);
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
    if (!found) {
        char quoted[GR_QUOTE_SIZE];
        return gr_fail(err, GRAFT_E_BAD_REQUEST, "unknown adapter \"%s\": no -a has this name",
                       gr_quote(quoted, json_string_value(value), json_string_length(value)));
    }
    add_use(r, item, found);
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
    if (r->model.context == 0) {
        r->model.context = context;
    }
    if (r->model.slots == 0) {
        r->model.slots = r->n < 8 ? (int)r->n : 8;
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

/* Once items have their place and adapters are loaded. */
static void point_requests(run *r) {
    for (size_t i = 0; i < r->n; i++) {
        run_item *item = &r->items[i];
        for (size_t k = 0; k < item->n_uses; k++) {
            const cli_adapter *a = &r->adapters.items[item->uses[k]];
            item->use[k] = (graft_adapter_use){a->handle, a->scale};
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
    return r->prompt && !r->model.json;
}

static void print_json(const run_item *item, const graft_result *result) {
    json_t *o = cli_json_object();
    cli_json_set(o, "adapter", cli_json_string(item->label));
    cli_json_set(o, "text", cli_json_text(result->text, result->text_length));
    cli_json_set(o, "prompt_tokens", cli_json_integer(result->prompt_tokens));
    cli_json_set(o, "completion_tokens", cli_json_integer(result->completion_tokens));
    cli_json_set(o, "finish_reason", cli_json_string(graft_finish_name(result->finish)));
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

/* Prints one answer; CLI_FAILED if it is none. */
static int answer(const run *r, size_t i, const graft_result *result) {
    cli_progress_end();
    if (r->model.json) {
        print_json(&r->items[i], result);
    } else {
        print_text(r, i, result);
    }
    if (result->finish != GRAFT_FINISH_ERROR) {
        return CLI_OK;
    }
    graft_error err = {.code = result->error.code};
    snprintf(err.message, sizeof err.message, "answer %zu: %.400s", i + 1, result->error.message);
    cli_error_line(&err);
    return CLI_FAILED;
}

static void print_summary(const run *r, uint64_t tokens, int64_t elapsed_us) {
    gr_buffer loaded;
    gr_buffer_init(&loaded, 1 << 20);
    cli_adapters_words(&loaded, &r->adapters);
    double seconds = (double)elapsed_us / 1e6;
    fprintf(stderr, "graft: %zu answer%s, %llu tokens in %.2f s, %.1f tokens/s; adapters in memory: %s\n", r->n,
            r->n == 1 ? "" : "s", (unsigned long long)tokens, seconds, seconds > 0 ? (double)tokens / seconds : 0,
            loaded.data);
    gr_buffer_finish(&loaded);
}

/* Waits for the jobs in order and prints as they end. */
static int collect(run *r, graft_job *const *jobs, int64_t start_us) {
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
    if (!r->model.json) {
        print_summary(r, tokens, gr_now_us() - start_us);
    }
    return status;
}

static int run_all(run *r, graft *g) {
    graft_error err = {0};
    graft_job **jobs = cli_alloc(r->n, sizeof *jobs);
    int status = cli_adapters_load(&r->adapters, g);
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
            status = collect(r, jobs, start_us);
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
    gr_free(r->items);
    gr_free(r->requests);
    gr_free(r->use.items);
    gr_free(r->stop.items);
    gr_buffer_finish(&r->grammar);
    cli_adapters_finish(&r->adapters);
}

int cmd_run(int argc, char **argv) {
    run r = {.model = cli_model_default(), .defaults = graft_request_default()};
    graft *g = NULL;
    const graft_sampling *s = &r.defaults.sampling;
    r.model.slots = 0;
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
    if (status == CLI_GO) status = make_requests(&r);
    if (status == CLI_GO) {
        size_model(&r);
        cli_interrupt_start();
        status = cli_model_open(&g, &r.model);
    }
    if (status == CLI_GO) status = run_all(&r, g);
    /* Handles go before the instance that they belong to. */
    finish(&r);
    graft_close(g);
    return status;
}
