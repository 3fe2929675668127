/*
 * graft chat: a talk with a model of a server that runs. The server keeps nothing: each turn sends all that was said, and
 * the server reuses the KV of what it has seen already.
 *
 * At a terminal lines are edited and Ctrl-C ends the answer; otherwise each line of stdin is one message.
 */
#include "line_editor.h"
#include "remote.h"

#include "base/clock.h"
#include "base/memory.h"

#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { LINE_MOST = 1 << 20, ANSWER_MOST = 16 << 20 };

/* Of one answer. */
typedef struct figures {
    int64_t prompt, cached, completion;
    double first_ms, per_second;
    bool known;
} figures;

typedef struct chat {
    cli_settings set;
    const char *system_option;
    int max_tokens;
    double temperature;

    remote *r;
    bool terminal;
    line_editor *editor;
    gr_buffer line;
    char *model;      /* NULL = what the server takes without a name */
    json_t *messages; /* without the system's */
    char *system;     /* or NULL */
    figures last;
    int64_t answers, tokens;
    bool failed;
    bool unwritable; /* nobody reads the answers any more */
} chat;

static int parse(chat *c, int argc, char **argv) {
    const cli_option options[] = {
        {"system", 0, "TEXT", "what the model is told before anything else", cli_take_string, &c->system_option, 0, 0},
        {"max-tokens", 'n', "N", "most new tokens per answer, 0 = up to the context's end", cli_take_int, &c->max_tokens, 0,
         1 << 30},
        {"temp", 0, "T", "temperature, 0 = always the likeliest token (default: the server's)", cli_take_number,
         &c->temperature, 0, 2},
    };
    const cli_command command = {
        .usage = "graft chat [NAME] [--system TEXT] [--server URL] [options]",
        .about = "Talks with a model of a server that runs: PROJECT, PROJECT/ADAPTER or the base's id; "
                 "without NAME the server's current\n"
                 "project, else its base. Answers are shown as they come, and all that was said is sent again with each "
                 "message.\n"
                 "\n"
                 "At a terminal Ctrl-C ends an answer, Ctrl-D the talk, and lines are kept in chat_history in the user's "
                 "folder for\n"
                 "what programs remember (~/.local/state/graft). Otherwise each line of stdin is a message. "
                 "/help tells the commands.",
        .examples = "  graft chat alder\n"
                    "  printf 'Who maintains this?\\nSince when?\\n' | graft chat alder\n"
                    "\n"
                    "--json: one object per answer: {\"text\",\"model\",\"adapter\",\"fallback\" (null, "
                    "or why the base answered instead),\n"
                    "  \"finish_reason\",\"prompt_tokens\",\"cached_tokens\",\"completion_tokens\",\"first_token_ms\","
                    "\"tokens_per_second\"}\n",
        .failures = "the server cannot be asked, or a message was not answered (at a terminal the talk goes on)",
        .options = options,
        .n_options = CLI_COUNT(options),
        .settings = &c->set,
        .uses = CLI_SET_REMOTE,
    };
    int rest, status = cli_parse(&command, argc, argv, &rest);
    if (status == CLI_GO && argc - rest > 1) {
        return cli_usage("one NAME at most; see graft chat --help");
    }
    if (status == CLI_GO && argc > rest) {
        c->model = cli_strdup(argv[rest]);
    }
    return status;
}

/* What the program says besides answers: beside them on a terminal, out of their way elsewhere. */
static void say(const chat *c, const char *text, size_t length) {
    gr_buffer clean;
    gr_buffer_init(&clean, SIZE_MAX / 4);
    cli_clean(&clean, text, length, true);
    cli_buffer_check(&clean);
    fflush(stdout);
    fwrite(clean.data ? clean.data : "", 1, clean.length, c->terminal && !cli_json() ? stdout : stderr);
    fflush(stdout);
    gr_buffer_finish(&clean);
}

static void sayf(const chat *c, const char *format, ...) GR_PRINTF(2, 3);

static void sayf(const chat *c, const char *format, ...) {
    char text[2048];
    va_list args;
    va_start(args, format);
    int n = vsnprintf(text, sizeof text, format, args);
    va_end(args);
    say(c, text, n < (int)sizeof text ? (size_t)n : sizeof text - 1);
}

/* ---- one answer --------------------------------------------------------------------------------------- */

typedef struct answer {
    chat *c;
    gr_buffer text;
    int64_t start_us, first_us, last_us;
    bool done, broken;
    char finish[32];
    json_t *last; /* the piece that says which adapter answered */
    figures f;
    remote_error err; /* of an event */
} answer;

static void take_text(answer *a, const char *text, size_t length) {
    if (length == 0) {
        return;
    }
    a->last_us = gr_now_us();
    if (!a->first_us) {
        a->first_us = a->last_us;
    }
    gr_buffer_append(&a->text, text, length);
    a->c->unwritable = !cli_json() && !cli_write_text(text, length);
}

static void take_piece(answer *a, json_t *piece) {
    json_t *choice = json_array_get(json_object_get(piece, "choices"), 0), *usage = json_object_get(piece, "usage");
    json_t *content = json_object_get(json_object_get(choice, "delta"), "content");
    if (json_is_string(content)) {
        take_text(a, json_string_value(content), json_string_length(content));
    }
    if (*remote_text(choice, "finish_reason")) {
        snprintf(a->finish, sizeof a->finish, "%s", remote_text(choice, "finish_reason"));
        json_decref(a->last);
        a->last = json_incref(piece);
        a->f.per_second = json_number_value(json_object_get(json_object_get(piece, "timings"), "predicted_per_second"));
    }
    if (json_is_object(usage)) {
        a->f.prompt = remote_integer(usage, "prompt_tokens");
        a->f.completion = remote_integer(usage, "completion_tokens");
        a->f.cached = remote_integer(json_object_get(usage, "prompt_tokens_details"), "cached_tokens");
        a->f.known = true;
    }
}

/* One line of an event stream. Others than "data:" are comments, and events here have one line each. */
static bool take_line(const char *line, size_t length, void *user) {
    answer *a = user;
    if (length < 5 || memcmp(line, "data:", 5) != 0) {
        return true;
    }
    const char *data = line + 5 + (length > 5 && line[5] == ' ');
    size_t n = length - (size_t)(data - line);
    if (n == 6 && memcmp(data, "[DONE]", 6) == 0) {
        a->done = true;
        return true;
    }
    json_t *piece = json_loadb(data, n, 0, NULL);
    a->broken = !json_is_object(piece);
    bool ended = a->broken || remote_error_from(&a->err, piece);
    if (!ended) {
        take_piece(a, piece);
    }
    json_decref(piece);
    return !ended && !a->text.failed && !a->c->unwritable;
}

static json_t *message_json(const char *role, const char *content) {
    json_t *m = cli_json_object();
    cli_json_set(m, "role", cli_json_string(role));
    cli_json_set(m, "content", cli_json_string(content));
    return m;
}

static json_t *request_json(const chat *c) {
    json_t *o = cli_json_object(), *options = cli_json_object(), *messages = cli_json_array();
    if (c->model) {
        cli_json_set(o, "model", cli_json_string(c->model));
    }
    if (c->system) {
        cli_json_append(messages, message_json("system", c->system));
    }
    json_array_extend(messages, c->messages);
    cli_json_set(o, "messages", messages);
    cli_json_set(o, "stream", json_true());
    cli_json_set(options, "include_usage", json_true());
    cli_json_set(o, "stream_options", options);
    if (c->max_tokens) {
        cli_json_set(o, "max_tokens", cli_json_integer(c->max_tokens));
    }
    if (c->temperature >= 0) {
        cli_json_set(o, "temperature", cli_json_number(c->temperature));
    }
    return o;
}

/* ---- what came of it ---------------------------------------------------------------------------------- */

static void print_json(const chat *c, const answer *a) {
    const json_t *fallback = json_object_get(a->last, "fallback"), *adapter = json_object_get(a->last, "adapter");
    json_t *o = cli_json_object();
    cli_json_set(o, "text", cli_json_text(a->text.data ? a->text.data : "", a->text.length));
    cli_json_set(o, "model", cli_json_string(c->model));
    cli_json_set(o, "adapter", adapter ? json_deep_copy(adapter) : json_null());
    cli_json_set(o, "fallback", fallback ? json_deep_copy(fallback) : json_null());
    cli_json_set(o, "finish_reason", cli_json_string(a->finish));
    cli_json_set(o, "prompt_tokens", cli_json_integer(a->f.prompt));
    cli_json_set(o, "cached_tokens", cli_json_integer(a->f.cached));
    cli_json_set(o, "completion_tokens", cli_json_integer(a->f.completion));
    cli_json_set(o, "first_token_ms", cli_json_number(a->f.first_ms));
    cli_json_set(o, "tokens_per_second", cli_json_number(a->f.per_second));
    cli_json_print(o);
}

static void tell_fallback(const answer *a) {
    const json_t *fallback = json_object_get(a->last, "fallback");
    static const graft_log_entry about = {.level = GRAFT_LOG_WARN, .project = "", .adapter = "", .generation = ""};
    if (json_is_object(fallback)) {
        cli_note(&about, "the base answered instead: %.100s: %.400s", remote_text(fallback, "code"),
                 remote_text(fallback, "message"));
    }
}

static void end_line(const answer *a) {
    if (!cli_json() && a->text.length) {
        putchar('\n');
        fflush(stdout);
    }
}

static void tell_error(chat *c, const remote_error *err) {
    c->failed = true;
    if (strcmp(err->code, "context_length_exceeded") == 0) {
        cli_fail_as(err->code, "%s; /reset begins anew, and `graft serve --ctx N` gives each talk more room", err->message);
    } else {
        remote_fail(err);
    }
}

/* The stream is over without an error of the connection: is the answer whole? */
static int check(answer *a, remote_error *err) {
    if (*a->err.code) {
        *err = a->err;
    } else if (a->broken || a->text.failed) {
        snprintf(err->code, sizeof err->code, "bad_reply");
        snprintf(err->message, sizeof err->message, "%s: %s", remote_url(a->c->r),
                 a->broken ? "an event that is no JSON object" : "an answer that does not end");
    } else if (!a->done) {
        snprintf(err->code, sizeof err->code, "bad_reply");
        snprintf(err->message, sizeof err->message, "%s: the answer was cut off", remote_url(a->c->r));
    } else {
        return 0;
    }
    return -1;
}

/* What was said stays part of the talk, also of an answer that was interrupted. */
static void keep(chat *c, const answer *a) {
    cli_json_append(c->messages, message_json("assistant", a->text.data ? a->text.data : ""));
    c->answers++;
    c->tokens += a->f.completion;
}

static void count(answer *a) {
    if (a->first_us) {
        a->f.first_ms = (double)(a->first_us - a->start_us) / 1000;
    }
    a->c->last = a->f;
}

static void finish_answer(answer *a, int failed, remote_error *err) {
    chat *c = a->c;
    bool interrupted = failed && strcmp(err->code, "cancelled") == 0 && err->status == 0;
    if (!failed) {
        failed = check(a, err);
    }
    end_line(a);
    count(a);
    if (!failed || (interrupted && a->text.length)) {
        keep(c, a);
    } else {
        json_array_remove(c->messages, json_array_size(c->messages) - 1); /* as if it had not been asked */
    }
    if (interrupted) {
        sayf(c, "(interrupted)\n");
    } else if (c->unwritable) {
        c->failed = true; /* cli_finish says why */
    } else if (failed) {
        tell_error(c, err);
    } else if (cli_json()) {
        print_json(c, a);
    } else {
        tell_fallback(a);
    }
}

static void answer_to(chat *c, const char *text) {
    answer a = {.c = c, .start_us = gr_now_us()};
    remote_error err;
    gr_buffer_init(&a.text, ANSWER_MOST);
    cli_json_append(c->messages, message_json("user", text));
    json_t *body = request_json(c);
    cli_interrupt_taken(); /* one from before does not count */
    int failed = remote_stream(c->r, "/v1/chat/completions", body, take_line, &a, &err);
    json_decref(body);
    finish_answer(&a, failed, &err);
    json_decref(a.last);
    gr_buffer_finish(&a.text);
}

/* ---- commands ----------------------------------------------------------------------------------------- */

static void do_help(chat *c, const char *argument);

static const char *who(const chat *c) {
    return c->model ? c->model : "the server's current project, else its base";
}

static void replace(char **field, const char *text) {
    gr_free(*field);
    *field = *text ? cli_strdup(text) : NULL;
}

static void do_switch(chat *c, const char *argument) {
    remote_error err;
    json_t *model = NULL;
    if (!*argument) {
        sayf(c, "answers come from %.300s\n", who(c));
        return;
    }
    char *path = remote_path(c->r, "/v1/models/", argument, "");
    if (remote_ask(&model, c->r, "GET", path, NULL, &err) != 0) {
        tell_error(c, &err);
    } else {
        replace(&c->model, argument);
        sayf(c, "answers come from %.300s now; what was said stays\n", argument);
    }
    json_decref(model);
    gr_free(path);
}

static void do_models(chat *c, const char *argument) {
    remote_error err;
    json_t *models = NULL, *model;
    size_t i;
    (void)argument;
    if (remote_ask(&models, c->r, "GET", "/v1/models", NULL, &err) != 0) {
        tell_error(c, &err);
    }
    json_array_foreach(json_object_get(models, "data"), i, model) {
        const char *state = remote_text(model, "state");
        sayf(c, "  %.300s%s%.40s%s\n", remote_text(model, "id"), *state ? " (" : "", state, *state ? ")" : "");
    }
    json_decref(models);
}

static void do_system(chat *c, const char *argument) {
    replace(&c->system, argument);
    sayf(c, *argument ? "the model is told so from now on\n" : "the model is told nothing beforehand now\n");
}

static void do_reset(chat *c, const char *argument) {
    (void)argument;
    json_array_clear(c->messages);
    sayf(c, "what was said is forgotten\n");
}

static void do_stats(chat *c, const char *argument) {
    const figures *f = &c->last;
    (void)argument;
    if (f->known) {
        sayf(c,
             "last answer: %lld tokens at %.1f tokens/s, the first after %.0f ms; %lld tokens of prompt, "
             "%lld of them from the cache\n",
             (long long)f->completion, f->per_second, f->first_ms, (long long)f->prompt, (long long)f->cached);
    }
    sayf(c, "this talk: %lld answers, %lld tokens; %zu messages are sent with the next\n", (long long)c->answers,
         (long long)c->tokens, json_array_size(c->messages) + (c->system ? 1 : 0));
}

static const struct {
    const char *name, *argument, *about;
    void (*run)(chat *c, const char *argument); /* NULL: the end */
} commands[] = {
    {"help", "", "this list", do_help},
    {"switch", " [NAME]", "answers come from NAME from now on; alone: who answers", do_switch},
    {"model", " [NAME]", "the same", do_switch},
    {"models", "", "all that the server has", do_models},
    {"system", " [TEXT]", "what the model is told before anything else; alone: nothing", do_system},
    {"reset", "", "forget what was said", do_reset},
    {"stats", "", "speed and tokens of the last answer", do_stats},
    {"quit", "", "the end; as Ctrl-D", NULL},
    {"exit", "", "the same", NULL},
};

static void do_help(chat *c, const char *argument) {
    (void)argument;
    for (size_t i = 0; i < CLI_COUNT(commands); i++) {
        sayf(c, "  /%s%s%*s%s\n", commands[i].name, commands[i].argument,
             (int)(20 - strlen(commands[i].name) - strlen(commands[i].argument)), "", commands[i].about);
    }
    sayf(c, "A message that begins with / is written with two. Ctrl-C ends an answer.\n");
}

/* "/switch alder". False: the talk is over. */
static bool command(chat *c, const char *text) {
    size_t n = strcspn(text, " \t");
    for (size_t i = 0; i < CLI_COUNT(commands); i++) {
        if (strlen(commands[i].name) == n && memcmp(commands[i].name, text, n) == 0) {
            if (!commands[i].run) {
                return false;
            }
            commands[i].run(c, text + n + strspn(text + n, " \t"));
            return true;
        }
    }
    char quoted[GR_QUOTE_SIZE];
    sayf(c, "/%s is no command; /help lists them, and a message that begins with / is written with two\n",
         gr_quote(quoted, text, n));
    return true;
}

/* ---- lines -------------------------------------------------------------------------------------------- */

/* Without blanks at either end. False: the talk is over. */
static bool take(chat *c, char *line) {
    size_t n = strlen(line);
    while (n > 0 && isspace((unsigned char)line[n - 1])) {
        line[--n] = '\0';
    }
    line += strspn(line, " \t");
    if (*line == '/' && line[1] != '/') {
        return command(c, line + 1);
    }
    if (*line) {
        answer_to(c, *line == '/' ? line + 1 : line);
    }
    return true;
}

/* One line of stdin into c->line. False at its end. */
static bool read_plain(chat *c) {
    int byte;
    gr_buffer_clear(&c->line);
    while ((byte = getchar()) != EOF && byte != '\n') {
        char b = (char)byte;
        if (!gr_buffer_append(&c->line, &b, 1)) {
            cli_fail(GRAFT_E_TOO_LARGE, "standard input: a line of more than %d bytes", LINE_MOST);
            c->failed = true;
            return false;
        }
    }
    return c->line.length > 0 || byte == '\n';
}

static bool read_edited(chat *c) {
    gr_buffer prompt;
    gr_buffer_init(&prompt, 4096);
    cli_clean(&prompt, c->model ? c->model : "graft", c->model ? strlen(c->model) : 5, false);
    gr_buffer_puts(&prompt, "> ");
    line_end end = line_editor_read(c->editor, prompt.data ? prompt.data : "> ", &c->line);
    gr_buffer_finish(&prompt);
    if (end == LINE_DISCARDED) {
        gr_buffer_clear(&c->line);
        puts("^C");
    } else if (end == LINE_EOF) {
        putchar('\n');
    }
    fflush(stdout);
    return end != LINE_EOF;
}

static int talk(chat *c) {
    char empty[1] = "";
    bool more = true;
    while (more && !c->unwritable && (c->editor ? read_edited(c) : read_plain(c))) {
        more = take(c, c->line.length ? c->line.data : empty);
    }
    return c->failed && !c->editor ? CLI_FAILED : CLI_OK;
}

/* Every folder on the way; the last for this user alone. */
static char *history_file(void) {
    char *path = NULL;
    cli_place_state(&path);
    for (char *slash = path ? strchr(path + 1, '/') : NULL; slash; slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        mkdir(path, 0700);
        *slash = '/';
    }
    return path;
}

/* Before the first prompt, so that nobody writes a message to nobody. */
static int greet(chat *c) {
    json_t *models = NULL;
    remote_error err;
    char *path = c->model ? remote_path(c->r, "/v1/models/", c->model, "") : cli_strdup("/v1/models");
    int failed = remote_ask(&models, c->r, "GET", path, NULL, &err);
    gr_free(path);
    json_decref(models);
    if (failed) {
        return remote_fail(&err);
    }
    char *history = history_file();
    c->editor = line_editor_open(history);
    gr_free(history);
    remote_heed_interrupt(c->r, cli_interrupt_fd());
    sayf(c, "talking with %.300s at %.300s; /help tells the commands\n", who(c), remote_url(c->r));
    return CLI_GO;
}

int cmd_chat(int argc, char **argv) {
    chat c = {.set = cli_settings_default(), .temperature = -1};
    gr_buffer_init(&c.line, LINE_MOST);
    int status = parse(&c, argc, argv);
    if (status == CLI_GO) status = remote_open(&c.r, &c.set);
    if (status == CLI_GO) {
        c.messages = cli_json_array();
        c.terminal = isatty(STDIN_FILENO) && isatty(STDOUT_FILENO);
        c.system = c.system_option ? cli_strdup(c.system_option) : NULL;
        status = c.terminal ? greet(&c) : CLI_GO;
    }
    if (status == CLI_GO) status = talk(&c);
    line_editor_close(c.editor);
    remote_close(c.r);
    json_decref(c.messages);
    gr_buffer_finish(&c.line);
    gr_free(c.system);
    gr_free(c.model);
    return status;
}
