/*
 * graft demo: the same questions to every project of a folder and to the base alone, all in one batch, with
 * the answers side by side. What `make demo` runs.
 */
#include "cli.h"

#include "base/clock.h"
#include "base/memory.h"

#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

typedef struct demo {
    cli_model model;
    const char *projects, *questions_path;
    int max_tokens;
    cli_adapters adapters; /* one a project, by name */
    char **questions;
    size_t n_questions;
} demo;

static int parse(demo *d, int argc, char **argv) {
    const cli_option options[] = {
        CLI_MODEL_PATH(&d->model),
        {"projects", 0, "DIR", "folder with one PEFT folder for each project (required)", cli_take_string,
         &d->projects, 0, 0},
        {"questions", 0, "FILE", "JSON-lines file of {\"question\":TEXT}, - for stdin (required)",
         cli_take_string, &d->questions_path, 0, 0},
        {"max-tokens", 'n', "N", "most new tokens per answer, 0 = up to the context's end", cli_take_int,
         &d->max_tokens, 0, 1 << 30},
        CLI_MODEL_SLOTS(&d->model, 16),
        CLI_MODEL_CONTEXT(&d->model),
        CLI_MODEL_APPLY(&d->model),
        CLI_MODEL_OPTIONS(&d->model),
        CLI_COMMON_OPTIONS(&d->model),
    };
    const cli_command command = {
        .usage = "graft demo -m MODEL --projects DIR --questions FILE [options]",
        .about = "Loads the adapter of every project below DIR (each folder that holds an adapter_config.json) and\n"
                 "asks each of them, and the base alone, every question as a chat message at temperature 0: all in\n"
                 "one batch. A table shows the answers side by side, or below each other where the terminal is\n"
                 "narrow.",
        .examples = "  graft demo -m base.gguf --projects examples/projects --questions examples/questions.jsonl\n"
                    "\n"
                    "--json: {\"questions\":[{\"question\",\"answers\":[{\"adapter\",\"text\",\"prompt_tokens\",\n"
                    "  \"completion_tokens\",\"finish_reason\",\"ms\"}...]}...],\"adapters\":[{\"name\",\"bytes\"...}...],\n"
                    "  \"tokens_per_second\"}; adapter null is the base\n",
        .failures = "the model, an adapter or a question was refused, or an answer failed",
        .options = options,
        .n_options = CLI_COUNT(options),
    };
    return cli_parse(&command, argc, argv, NULL);
}

/* ---- projects and questions --------------------------------------------------------------------------- */

static bool is_project(const char *path) {
    struct stat st;
    gr_buffer config;
    gr_buffer_init(&config, 1 << 16);
    gr_buffer_printf(&config, "%s/adapter_config.json", path);
    cli_buffer_check(&config);
    bool found = stat(config.data, &st) == 0;
    gr_buffer_finish(&config);
    return found;
}

static int by_name(const void *a, const void *b) {
    return strcmp(((const cli_adapter *)a)->name, ((const cli_adapter *)b)->name);
}

static int find_projects(demo *d) {
    DIR *dir = opendir(d->projects);
    if (!dir) {
        return cli_fail(GRAFT_E_NOT_READABLE, "%.*s: %s", CLI_PATH_SHOWN, d->projects, strerror(errno));
    }
    for (struct dirent *entry; (entry = readdir(dir));) {
        gr_buffer path;
        if (entry->d_name[0] == '.' || !cli_name_valid(entry->d_name)) {
            continue;
        }
        gr_buffer_init(&path, 1 << 16);
        gr_buffer_printf(&path, "%s/%s", d->projects, entry->d_name);
        cli_buffer_check(&path);
        if (is_project(path.data)) {
            cli_adapters_add(&d->adapters, entry->d_name, path.data);
        }
        gr_buffer_finish(&path);
    }
    closedir(dir);
    if (d->adapters.n == 0) {
        return cli_fail(GRAFT_E_MISSING_FILE, "%.*s: no folder in it holds an adapter_config.json", CLI_PATH_SHOWN,
                        d->projects);
    }
    qsort(d->adapters.items, d->adapters.n, sizeof *d->adapters.items, by_name);
    return CLI_GO;
}

/* Other keys (an expected answer, say) are the file's own business here. */
static int add_question(json_t *line, void *user, graft_error *err) {
    demo *d = user;
    const char *question = json_string_value(json_object_get(line, "question"));
    if (!question) {
        return gr_fail(err, GRAFT_E_BAD_TYPE, "{\"question\":TEXT} is needed");
    }
    d->questions = cli_grow(d->questions, d->n_questions, sizeof *d->questions);
    d->questions[d->n_questions++] = cli_strdup(question);
    return 0;
}

static int prepare(demo *d) {
    graft_error err = {0};
    if (!d->model.path || !d->projects || !d->questions_path) {
        return cli_usage("-m MODEL, --projects DIR and --questions FILE are needed; see graft demo --help");
    }
    if (cli_read_lines(d->questions_path, add_question, d, &err) != 0) {
        return cli_error(&err);
    }
    return find_projects(d);
}

/* Columns of the table, and jobs per question: 0 is the base, then the projects. */
static size_t columns(const demo *d) {
    return d->adapters.n + 1;
}

/* Slots and context where they are left to us: what the questions need. */
static void size_model(demo *d) {
    size_t n = d->n_questions * columns(d), longest = 0;
    for (size_t i = 0; i < d->n_questions; i++) {
        size_t length = strlen(d->questions[i]);
        longest = length > longest ? length : longest;
    }
    if (d->model.context == 0) {
        d->model.context = cli_context_for(longest, d->max_tokens);
    }
    if (d->model.slots == 0) {
        d->model.slots = n < 16 ? (int)n : 16;
    }
}

/* ---- asking ------------------------------------------------------------------------------------------- */

static const char *column_name(const demo *d, size_t c) {
    return c ? d->adapters.items[c - 1].name : "base";
}

static int submit(const demo *d, graft *g, graft_job **jobs) {
    size_t n = d->n_questions * columns(d);
    graft_error err = {0};
    graft_request *requests = cli_alloc(n, sizeof *requests);
    graft_message *messages = cli_alloc(d->n_questions, sizeof *messages);
    graft_adapter_use *uses = cli_alloc(d->adapters.n, sizeof *uses);
    for (size_t i = 0; i < d->adapters.n; i++) {
        uses[i] = (graft_adapter_use){d->adapters.items[i].handle, 1};
    }
    for (size_t i = 0; i < n; i++) {
        size_t q = i / columns(d), c = i % columns(d);
        messages[q] = (graft_message){"user", d->questions[q]};
        requests[i] = graft_request_default();
        requests[i].messages = &messages[q];
        requests[i].n_messages = 1;
        requests[i].max_tokens = d->max_tokens;
        requests[i].sampling.temperature = 0;
        requests[i].adapters = c ? &uses[c - 1] : NULL;
        requests[i].n_adapters = c ? 1 : 0;
    }
    int code = graft_submit(jobs, g, requests, n, &err);
    gr_free(uses);
    gr_free(messages);
    gr_free(requests);
    return code ? cli_error(&err) : CLI_GO;
}

/* Waits for all; tells failed answers on stderr. */
static int wait_all(const demo *d, graft_job *const *jobs, uint64_t *tokens) {
    size_t n = d->n_questions * columns(d);
    int status = CLI_OK;
    for (size_t i = 0; i < n; i++) {
        cli_progress("answering", (double)i, (double)n);
        const graft_result *result = graft_job_wait(jobs[i]);
        *tokens += (uint64_t)result->completion_tokens;
        if (result->finish == GRAFT_FINISH_ERROR) {
            graft_error err = {.code = result->error.code};
            snprintf(err.message, sizeof err.message, "%s, question %zu: %.300s", column_name(d, i % columns(d)),
                     i / columns(d) + 1, result->error.message);
            cli_error_line(&err);
            status = CLI_FAILED;
        }
    }
    cli_progress_end();
    return status;
}

/* ---- showing ------------------------------------------------------------------------------------------ */

static void add_answer(cli_table *table, const graft_result *result) {
    const char *text = result->text;
    size_t length = result->text_length;
    while (length > 0 && (text[0] == ' ' || text[0] == '\n')) {
        text++;
        length--;
    }
    cli_table_text(table, text, length);
}

/* One column an adapter, the question across them. */
static void print_wide(const demo *d, graft_job *const *jobs, size_t cell) {
    const char **heads = cli_alloc(columns(d), sizeof *heads);
    cli_table table;
    for (size_t c = 0; c < columns(d); c++) {
        heads[c] = column_name(d, c);
    }
    cli_table_init(&table, columns(d), heads, 0);
    for (size_t q = 0; q < d->n_questions; q++) {
        cli_table_span(&table, "");
        cli_table_span(&table, d->questions[q]);
        for (size_t c = 0; c < columns(d); c++) {
            add_answer(&table, graft_job_wait(jobs[q * columns(d) + c]));
        }
    }
    cli_table_print(&table, cell);
    cli_table_finish(&table);
    gr_free(heads);
}

/* One row an adapter, for narrow terminals or many projects. */
static void print_stacked(const demo *d, graft_job *const *jobs, size_t width) {
    static const char *const heads[] = {"adapter", "answer"};
    size_t longest = strlen(heads[0]);
    cli_table table;
    cli_table_init(&table, CLI_COUNT(heads), heads, 0);
    for (size_t q = 0; q < d->n_questions; q++) {
        cli_table_span(&table, "");
        cli_table_span(&table, d->questions[q]);
        for (size_t c = 0; c < columns(d); c++) {
            size_t length = strlen(column_name(d, c));
            longest = length > longest ? length : longest;
            cli_table_cell(&table, "%s", column_name(d, c));
            add_answer(&table, graft_job_wait(jobs[q * columns(d) + c]));
        }
    }
    cli_table_print(&table, width > longest + 2 + 16 ? width - longest - 2 : 16);
    cli_table_finish(&table);
}

static void print_answers(const demo *d, graft_job *const *jobs) {
    enum { GAP = 2, NARROWEST = 16 };
    size_t width = cli_width();
    size_t gaps = GAP * (columns(d) - 1);
    size_t cell = width > gaps ? (width - gaps) / columns(d) : 0;
    if (cell >= NARROWEST) {
        print_wide(d, jobs, cell);
    } else {
        print_stacked(d, jobs, width);
    }
}

static void print_text(const demo *d, graft *g, graft_job *const *jobs, uint64_t tokens, double seconds) {
    char bytes[CLI_BYTES_SIZE];
    gr_buffer loaded;
    graft_model_info info;
    graft_stats stats;
    graft_model_get_info(g, &info);
    graft_get_stats(g, &stats);
    gr_buffer_init(&loaded, 1 << 20);
    cli_adapters_words(&loaded, &d->adapters);
    print_answers(d, jobs);
    printf("\n%zu answers, %llu tokens in %.2f s: %.1f tokens/s, up to %llu rows and %llu adapters in one decode\n",
           d->n_questions * columns(d), (unsigned long long)tokens, seconds, (double)tokens / seconds,
           (unsigned long long)stats.largest_batch, (unsigned long long)stats.most_adapters);
    printf("base: %s, %s of weights", info.description, cli_bytes(bytes, info.weight_bytes));
    printf(", %s of KV cache and buffers\n", cli_bytes(bytes, info.context_bytes));
    printf("adapters in memory, measured: %s\n", loaded.data);
    gr_buffer_finish(&loaded);
}

static json_t *answer_json(const demo *d, size_t c, const graft_result *result) {
    json_t *o = cli_json_object();
    cli_json_set(o, "adapter", cli_json_string(c ? column_name(d, c) : NULL));
    cli_json_set(o, "text", cli_json_text(result->text, result->text_length));
    cli_json_set(o, "prompt_tokens", cli_json_integer(result->prompt_tokens));
    cli_json_set(o, "completion_tokens", cli_json_integer(result->completion_tokens));
    cli_json_set(o, "finish_reason", cli_json_string(graft_finish_name(result->finish)));
    cli_json_set(o, "ms", cli_json_number(result->total_ms));
    if (result->finish == GRAFT_FINISH_ERROR) {
        cli_json_set(o, "error", cli_json_error(&result->error));
    }
    return o;
}

static void print_json(const demo *d, graft_job *const *jobs, uint64_t tokens, double seconds) {
    json_t *questions = cli_json_array(), *o = cli_json_object();
    for (size_t q = 0; q < d->n_questions; q++) {
        json_t *answers = cli_json_array(), *question = cli_json_object();
        for (size_t c = 0; c < columns(d); c++) {
            cli_json_append(answers, answer_json(d, c, graft_job_wait(jobs[q * columns(d) + c])));
        }
        cli_json_set(question, "question", cli_json_string(d->questions[q]));
        cli_json_set(question, "answers", answers);
        cli_json_append(questions, question);
    }
    cli_json_set(o, "questions", questions);
    cli_json_set(o, "adapters", cli_adapters_json(&d->adapters));
    cli_json_set(o, "tokens_per_second", cli_json_number((double)tokens / seconds));
    cli_json_print(o);
}

static int show_all(const demo *d, graft *g) {
    size_t n = d->n_questions * columns(d);
    uint64_t tokens = 0;
    graft_job **jobs = cli_alloc(n, sizeof *jobs);
    int64_t start_us = gr_now_us();
    int status = submit(d, g, jobs);
    if (status == CLI_GO) {
        cli_interrupt_watch(jobs, n);
        status = wait_all(d, jobs, &tokens);
        double seconds = (double)(gr_now_us() - start_us) / 1e6;
        if (cli_interrupted()) {
            cli_error_line(&(graft_error){GRAFT_E_CANCELLED, "interrupted"});
            status = CLI_INTERRUPTED;
        } else if (d->model.json) {
            print_json(d, jobs, tokens, seconds);
        } else {
            print_text(d, g, jobs, tokens, seconds);
        }
        cli_interrupt_watch(NULL, 0);
        for (size_t i = 0; i < n; i++) {
            graft_job_free(jobs[i]);
        }
    }
    gr_free(jobs);
    return status;
}

static void finish(demo *d) {
    for (size_t i = 0; i < d->n_questions; i++) {
        gr_free(d->questions[i]);
    }
    gr_free(d->questions);
    cli_adapters_finish(&d->adapters);
}

int cmd_demo(int argc, char **argv) {
    demo d = {.model = cli_model_default(), .max_tokens = 32};
    graft *g = NULL;
    d.model.slots = 0;
    int status = parse(&d, argc, argv);
    if (status == CLI_GO) status = prepare(&d);
    if (status == CLI_GO) {
        size_model(&d);
        cli_interrupt_start();
        status = cli_model_open(&g, &d.model);
    }
    if (status == CLI_GO) status = cli_adapters_load(&d.adapters, g);
    if (status == CLI_GO) status = show_all(&d, g);
    finish(&d);
    graft_close(g);
    return status;
}
