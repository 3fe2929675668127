/*
 * graft demo: the same questions to every project of a folder and to the base alone, all in one batch, with
 * the answers side by side; then what the loader does when projects change. What `make demo` runs.
 *
 * The projects get names in a registry of this run alone. Two more names are made up: a second one for the first project's
 * adapter, so that there is one name more than room; and a copy of that adapter with a NaN in it, so that something fails.
 */
#include "bench.h"
#include "loader_report.h"

#include "base/clock.h"
#include "base/memory.h"

#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define AGAIN "again"   /* adapter: the second name for what the first project has */
#define BROKEN "broken" /* adapter: the copy with a NaN */

enum { MOST_SWITCHES = 64 };

/* One graft_switch_project, and what it did. */
typedef struct step {
    const char *project, *adapter;
    bool hit;
    double ms;
    char evicted[CLI_SHORT_NAME_SIZE]; /* "" = nothing */
} step;

typedef struct demo {
    cli_settings set;
    const char *projects, *questions_path;
    int max_tokens;
    cli_adapters adapters; /* one a project, by name; none is loaded by path */
    graft_registry *registry;
    graft *g;
    graft_error refused;   /* what the copy with a NaN got */
    step steps[MOST_SWITCHES];
    size_t n_steps;
    char **questions;
    size_t n_questions;
} demo;

static int parse(demo *d, int argc, char **argv) {
    const cli_option options[] = {
        {"projects", 0, "DIR", "folder with one PEFT folder for each project (required)", cli_take_string,
         &d->projects, 0, 0},
        {"questions", 0, "FILE", "JSON-lines file of {\"question\":TEXT}, - for stdin (required)",
         cli_take_string, &d->questions_path, 0, 0},
        {"max-tokens", 'n', "N", "most new tokens per answer, 0 = up to the context's end", cli_take_int,
         &d->max_tokens, 0, 1 << 30},
    };
    const cli_command command = {
        .usage = "graft demo -m MODEL --projects DIR --questions FILE [options]",
        .about = "Registers every project below DIR (each folder that holds an adapter_config.json) in a registry of\n"
                 "this run and asks each by its name, and the base alone, every question as a chat message at\n"
                 "temperature 0: all in one batch. A table shows the answers side by side, or below each other where\n"
                 "the terminal is narrow. Also asked is a copy of an adapter with a NaN in it, which the base must answer.\n"
                 "Then it switches between projects with one name more than there is room for, and shows what the\n"
                 "loader did and where the memory is. Warnings are not logged unless --log-level says so.",
        .examples = "  graft demo -m base.gguf --projects examples/projects --questions examples/questions.jsonl\n"
                    "\n"
                    "--json: {\"questions\":[{\"question\",\"answers\":[{\"adapter\",\"text\",\"prompt_tokens\",\n"
                    "  \"completion_tokens\",\"finish_reason\",\"ms\"}...]}...],\"tokens_per_second\","
                    "\"refused\":{\"code\"...},\n"
                    "  \"switches\":[{\"project\",\"adapter\",\"hit\",\"ms\",\"evicted\"}...],\"adapters\":[{\"project\","
                    "\"adapter\",\n"
                    "  \"state\",\"bytes\",\"requests\",\"hits\"...}...],\"loader\":{\"hits\",\"misses\"...},\"memory\":{...},\n"
                    "  \"health\":{\"state\",\"reasons\"}}; adapter null is the base\n",
        .failures = "the model, an adapter or a question was refused, or an answer failed",
        .options = options,
        .n_options = CLI_COUNT(options),
        .settings = &d->set,
        .uses = CLI_SET_MODEL | CLI_SET(SLOTS) | CLI_SET(CONTEXT) | CLI_SET(APPLY) | CLI_SET(MAX_ADAPTERS) | CLI_SET(POLICY) |
                CLI_SET(ADAPTER_WAIT_MS) | CLI_SET(LOADER_THREADS) | CLI_SET(PROBE),
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
    if (!d->set.model || !d->projects || !d->questions_path) {
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
    if (d->set.context == 0) {
        d->set.context = cli_context_for(longest, d->max_tokens);
    }
    if (d->set.slots == 0) {
        d->set.slots = n < 16 ? (int)n : 16;
    }
}

/* ---- asking ------------------------------------------------------------------------------------------- */

static const char *column_name(const demo *d, size_t c) {
    return c ? d->adapters.items[c - 1].name : "base";
}

static int submit(const demo *d, graft_job **jobs) {
    size_t n = d->n_questions * columns(d);
    graft_error err = {0};
    graft_request *requests = cli_alloc(n, sizeof *requests);
    graft_message *messages = cli_alloc(d->n_questions, sizeof *messages);
    graft_adapter_use *uses = cli_alloc(d->adapters.n, sizeof *uses);
    for (size_t i = 0; i < d->adapters.n; i++) {
        uses[i] = (graft_adapter_use){.project = d->adapters.items[i].name, .scale = 1};
    }
    for (size_t i = 0; i < n; i++) {
        size_t q = i / columns(d), c = i % columns(d);
        messages[q] = (graft_message){"user", d->questions[q]};
        requests[i] = graft_request_default();
        requests[i].messages = &messages[q];
        requests[i].n_messages = 1;
        requests[i].max_tokens = d->max_tokens;
        requests[i].sampling.temperature = 0;
        requests[i].fallback = GRAFT_FALLBACK_ERROR; /* each column is what its head says, or nothing */
        requests[i].adapters = c ? &uses[c - 1] : NULL;
        requests[i].n_adapters = c ? 1 : 0;
    }
    int code = graft_submit(jobs, d->g, requests, n, &err);
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

/* ---- names -------------------------------------------------------------------------------------------- */

static int open_registry(demo *d, graft_error *err) {
    graft_registry_options o = graft_registry_options_default();
    char *path = cli_temp_path("registry.db");
    cli_settings_registry_options(&d->set, &o);
    o.path = path;
    o.root = NULL;
    o.log = cli_log;
    int code = graft_registry_open(&d->registry, &o, err);
    gr_free(path);
    return code;
}

/* A copy of the first project's adapter whose last number is a NaN, whatever its type. */
static int make_broken(const demo *d, const char *folder, graft_error *err) {
    bench_peft p;
    int code = bench_peft_read(&p, d->adapters.items[0].path, err);
    if (!code && p.n_data >= 4) {
        memset(p.weights.data + p.weights.length - 4, 0xff, 4);
    }
    code = code ? code : bench_peft_copy(&p, folder, err);
    bench_peft_finish(&p);
    return code;
}

static int register_all(demo *d) {
    graft_error err = {0};
    const char *first = d->adapters.items[0].name;
    int code = cli_temp_make("demo", &err);
    code = code ? code : open_registry(d, &err);
    for (size_t i = 0; !code && i < d->adapters.n; i++) {
        const cli_adapter *a = &d->adapters.items[i];
        code = graft_registry_adapter_add(d->registry, a->name, NULL, a->path, GRAFT_ADD_PROJECT, &err);
    }
    if (!code) {
        char *broken = cli_temp_path("%s", BROKEN);
        code = graft_registry_adapter_add(d->registry, first, AGAIN, d->adapters.items[0].path, 0, &err);
        code = code ? code : make_broken(d, broken, &err);
        code = code ? code : graft_registry_adapter_add(d->registry, first, BROKEN, broken, 0, &err);
        gr_free(broken);
    }
    return code ? cli_error(&err) : CLI_GO;
}

/* ---- what the loader does ----------------------------------------------------------------------------- */

/* Asks for the copy with a NaN: the base must answer, and the result must say why. Before all else, while there is room: how
 * bad it is shows only when its numbers are read, and room is made before. */
static int ask_broken(demo *d) {
    graft_error err = {0};
    const graft_message message = {"user", d->questions[0]};
    const graft_adapter_use use = {.project = d->adapters.items[0].name, .name = BROKEN, .scale = 1};
    graft_request request = graft_request_default();
    graft_job *job;
    request.messages = &message;
    request.n_messages = 1;
    request.max_tokens = 1;
    request.sampling.temperature = 0;
    request.adapters = &use;
    request.n_adapters = 1;
    request.fallback = GRAFT_FALLBACK_BASE;
    if (graft_submit(&job, d->g, &request, 1, &err) != 0) {
        return cli_error(&err);
    }
    const graft_result *result = graft_job_wait(job);
    d->refused = result->fallback;
    int status = result->finish == GRAFT_FINISH_ERROR ? cli_error(&result->error) : CLI_GO;
    graft_job_free(job);
    return status;
}

static bool is_loaded(const graft_loaded_list *list, const graft_loaded *wanted) {
    for (size_t i = 0; i < list->n; i++) {
        if (strcmp(list->items[i].project, wanted->project) == 0 && strcmp(list->items[i].adapter, wanted->adapter) == 0) {
            return true;
        }
    }
    return false;
}

static int switch_to(demo *d, const char *project, const char *adapter) {
    graft_loaded_list *before = NULL, *after = NULL;
    graft_metrics was, is;
    graft_error err = {0};
    step *s = &d->steps[d->n_steps];
    *s = (step){.project = project, .adapter = adapter};
    int code = graft_loaded_adapters(&before, d->g, &err);
    graft_get_metrics(d->g, &was);
    double start = bench_now_ms();
    code = code ? code : graft_switch_project(d->g, project, adapter, &err);
    s->ms = bench_now_ms() - start;
    graft_get_metrics(d->g, &is);
    code = code ? code : graft_loaded_adapters(&after, d->g, &err);
    s->hit = is.misses == was.misses;
    for (size_t i = 0; !code && is.evictions > was.evictions && i < before->n; i++) {
        if (!is_loaded(after, &before->items[i])) {
            cli_short_name(s->evicted, before->items[i].project, before->items[i].adapter);
        }
    }
    d->n_steps++;
    graft_loaded_list_free(before);
    graft_loaded_list_free(after);
    return code ? cli_error(&err) : CLI_GO;
}

/* Around once; then to one name more than there is room for (with as many projects as room); then back. */
static int switch_around(demo *d) {
    size_t n = d->adapters.n < MOST_SWITCHES - 3 ? d->adapters.n : MOST_SWITCHES - 3;
    const char *first = d->adapters.items[0].name, *last = d->adapters.items[n - 1].name;
    int status = CLI_GO;
    for (size_t i = 0; status == CLI_GO && i < n; i++) {
        status = switch_to(d, d->adapters.items[i].name, "default");
    }
    if (status == CLI_GO) status = switch_to(d, first, AGAIN);
    if (status == CLI_GO) status = switch_to(d, first, "default");
    if (status == CLI_GO && n > 1) status = switch_to(d, last, "default");
    return status;
}

/* ---- showing it --------------------------------------------------------------------------------------- */

static void print_switches(const demo *d) {
    static const char *const heads[] = {"switch to", "it was", "took", "evicted for it"};
    cli_table table;
    cli_table_init(&table, CLI_COUNT(heads), heads, 4);
    for (size_t i = 0; i < d->n_steps; i++) {
        const step *s = &d->steps[i];
        char name[CLI_SHORT_NAME_SIZE];
        cli_table_cell(&table, "%s", cli_short_name(name, s->project, s->adapter));
        cli_table_cell(&table, "%s", s->hit ? "in memory" : "on disk");
        cli_table_cell(&table, s->ms < 1 ? "%.3f ms" : "%.1f ms", s->ms);
        cli_table_cell(&table, "%s", s->evicted);
    }
    cli_table_print(&table, 0);
    cli_table_finish(&table);
}

static void print_batch(const demo *d, uint64_t tokens, double seconds) {
    graft_model_info info;
    graft_stats stats;
    graft_model_get_info(d->g, &info);
    graft_get_stats(d->g, &stats);
    printf("\n%zu answers, %llu tokens in %.2f s with loading: %.1f tokens/s,\n"
           "up to %llu rows and %llu adapters in one decode; base: %s\n",
           d->n_questions * columns(d), (unsigned long long)tokens, seconds, (double)tokens / seconds,
           (unsigned long long)stats.largest_batch, (unsigned long long)stats.most_adapters, info.description);
}

static void print_refused(const demo *d) {
    const char *first = d->adapters.items[0].name;
    gr_buffer line;
    gr_buffer_init(&line, 1 << 16);
    cli_clean(&line, d->refused.message, strlen(d->refused.message), false);
    cli_buffer_check(&line);
    printf("\n%s/%s, a copy of %s with a NaN in it: ", first, BROKEN, first);
    if (d->refused.code) {
        printf("the base answered,\nand the result says why: %s: %s\n", graft_error_name(d->refused.code), line.data);
    } else {
        printf("it was NOT noticed\n");
    }
    gr_buffer_finish(&line);
}

static int print_loader(const demo *d) {
    graft_memory m;
    graft_memory_report(d->g, &m);
    print_refused(d);
    if (m.max_adapters) {
        printf("\nswitching, with room for %llu adapters:\n\n", (unsigned long long)m.max_adapters);
    } else {
        printf("\nswitching:\n\n");
    }
    print_switches(d);
    putchar('\n');
    return cli_loader_print(d->g, d->registry);
}

static json_t *switches_json(const demo *d) {
    json_t *list = cli_json_array();
    for (size_t i = 0; i < d->n_steps; i++) {
        const step *s = &d->steps[i];
        json_t *o = cli_json_object();
        cli_json_set(o, "project", cli_json_string(s->project));
        cli_json_set(o, "adapter", cli_json_string(s->adapter));
        cli_json_set(o, "hit", json_boolean(s->hit));
        cli_json_set(o, "ms", cli_json_number(s->ms));
        cli_json_set(o, "evicted", cli_json_string(*s->evicted ? s->evicted : NULL));
        cli_json_append(list, o);
    }
    return list;
}

static json_t *questions_json(const demo *d, graft_job *const *jobs) {
    json_t *questions = cli_json_array();
    for (size_t q = 0; q < d->n_questions; q++) {
        json_t *answers = cli_json_array(), *question = cli_json_object();
        for (size_t c = 0; c < columns(d); c++) {
            cli_json_append(answers, answer_json(d, c, graft_job_wait(jobs[q * columns(d) + c])));
        }
        cli_json_set(question, "question", cli_json_string(d->questions[q]));
        cli_json_set(question, "answers", answers);
        cli_json_append(questions, question);
    }
    return questions;
}

static int print_json(const demo *d, graft_job *const *jobs, uint64_t tokens, double seconds) {
    json_t *o = cli_json_object();
    cli_json_set(o, "questions", questions_json(d, jobs));
    cli_json_set(o, "tokens_per_second", cli_json_number((double)tokens / seconds));
    cli_json_set(o, "refused", d->refused.code ? cli_json_error(&d->refused) : json_null());
    cli_json_set(o, "switches", switches_json(d));
    int status = cli_loader_json(o, d->g, d->registry);
    if (status == CLI_GO) {
        cli_json_print(o);
    } else {
        json_decref(o);
    }
    return status;
}

/* ---- the command -------------------------------------------------------------------------------------- */

/* All has been answered: the rest is shown as it happens to be, whether or not an answer failed. */
static int show(demo *d, graft_job *const *jobs, uint64_t tokens, double seconds) {
    if (!cli_json()) {
        print_answers(d, jobs);
        print_batch(d, tokens, seconds);
    }
    int status = switch_around(d);
    if (status == CLI_GO) status = cli_json() ? print_json(d, jobs, tokens, seconds) : print_loader(d);
    return status;
}

static int run(demo *d) {
    size_t n = d->n_questions * columns(d);
    uint64_t tokens = 0;
    graft_job **jobs = cli_alloc(n, sizeof *jobs);
    int64_t start_us = gr_now_us();
    int status = submit(d, jobs);
    if (status == CLI_GO) {
        cli_interrupt_watch(jobs, n);
        status = wait_all(d, jobs, &tokens);
        double seconds = (double)(gr_now_us() - start_us) / 1e6;
        if (cli_interrupted()) {
            cli_error_line(&(graft_error){GRAFT_E_CANCELLED, "interrupted"});
            status = CLI_INTERRUPTED;
        } else {
            int shown = show(d, jobs, tokens, seconds);
            status = shown == CLI_GO ? status : shown;
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
    graft_close(d->g);
    graft_registry_close(d->registry);
    cli_temp_remove();
}

int cmd_demo(int argc, char **argv) {
    demo d = {.set = cli_settings_default(), .max_tokens = 32};
    d.set.log_level = GRAFT_LOG_ERROR; /* the warnings about the copy with a NaN are shown in another way */
    int status = parse(&d, argc, argv);
    if (status == CLI_GO) status = prepare(&d);
    if (status == CLI_GO) status = register_all(&d);
    if (status == CLI_GO) {
        size_model(&d);
        cli_interrupt_start();
        status = cli_model_open(&d.g, &d.set, d.registry);
    }
    if (status == CLI_GO) status = ask_broken(&d);
    if (status == CLI_GO) status = run(&d);
    finish(&d);
    return status;
}
