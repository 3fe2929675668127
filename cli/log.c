/* What the library logs, and what the command has to say beside results, on stderr: lines for people or JSON for programs. */
#include "cli.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* Set once, before anything can log. */
static struct {
    graft_log_level level;
    bool json;
    bool answers_tell;
} chosen = {.level = GRAFT_LOG_WARN};

static const char *const level_names[] = {"debug", "info", "warning", "error"};

static const char *level_name(graft_log_level level) {
    return (unsigned)level < CLI_COUNT(level_names) ? level_names[level] : "log";
}

void cli_log_start(const cli_settings *s) {
    enum { AUTO, HUMAN, JSON }; /* log_format */
    chosen.level = (graft_log_level)s->log_level;
    chosen.json = s->log_format == JSON || (s->log_format == AUTO && !isatty(STDERR_FILENO));
    if (chosen.level <= GRAFT_LOG_INFO) {
        cli_progress_off();
    }
}

/* RFC 3339 with milliseconds, UTC. */
#define TIME_SIZE 40
static const char *time_now(char out[TIME_SIZE]) {
    struct timespec now;
    struct tm parts;
    char seconds[24] = "";
    clock_gettime(CLOCK_REALTIME, &now);
    if (gmtime_r(&now.tv_sec, &parts)) {
        strftime(seconds, sizeof seconds, "%Y-%m-%dT%H:%M:%S", &parts);
    }
    snprintf(out, TIME_SIZE, "%s.%03dZ", seconds, (int)(now.tv_nsec / 1000000));
    return out;
}

static void set_text(json_t *o, const char *key, const char *text) {
    if (*text) {
        cli_json_set(o, key, cli_json_string(text));
    }
}

static void json_line(gr_buffer *out, const graft_log_entry *e) {
    char time[TIME_SIZE];
    gr_buffer text;
    gr_buffer_init(&text, SIZE_MAX / 4);
    cli_clean(&text, e->text, strlen(e->text), false);
    json_t *o = cli_json_object();
    cli_json_set(o, "time", cli_json_string(time_now(time)));
    cli_json_set(o, "level", cli_json_string(level_name(e->level)));
    cli_json_set(o, "message", cli_json_string(text.data ? text.data : ""));
    set_text(o, "project", e->project);
    set_text(o, "adapter", e->adapter);
    set_text(o, "generation", e->generation);
    if (e->request) {
        cli_json_set(o, "request", cli_json_integer((int64_t)e->request));
    }
    if (e->code) {
        cli_json_set(o, "code", cli_json_string(graft_error_name(e->code)));
    }
    char *line = json_dumps(o, JSON_COMPACT);
    gr_buffer_puts(out, line ? line : "{}");
    free(line);
    json_decref(o);
    gr_buffer_finish(&text);
}

/* "graft: warning: TEXT". The library's texts name the adapter or request that they are about; those that do not get it. */
static void human_line(gr_buffer *out, const graft_log_entry *e) {
    char time[TIME_SIZE];
    gr_buffer_printf(out, "graft: %s: ", level_name(e->level));
    if (chosen.level == GRAFT_LOG_DEBUG) {
        gr_buffer_printf(out, "%s ", time_now(time));
    }
    if (e->request && !strstr(e->text, "request")) {
        gr_buffer_printf(out, "request %llu: ", (unsigned long long)e->request);
    }
    if (*e->project && !strstr(e->text, "adapter")) {
        gr_buffer_puts(out, "adapter ");
        cli_clean(out, e->project, strlen(e->project), false);
        gr_buffer_puts(out, *e->adapter ? "/" : "");
        cli_clean(out, e->adapter, strlen(e->adapter), false);
        gr_buffer_puts(out, ": ");
    }
    cli_clean(out, e->text, strlen(e->text), false);
}

static void write_line(const graft_log_entry *e, void (*form)(gr_buffer *, const graft_log_entry *)) {
    gr_buffer line;
    gr_buffer_init(&line, SIZE_MAX / 4);
    form(&line, e);
    gr_buffer_puts(&line, "\n");
    if (!line.failed) {
        cli_stderr(line.data, line.length); /* else the line is lost: a log must not end the program */
    }
    gr_buffer_finish(&line);
}

void cli_log_answers_tell(void) {
    chosen.answers_tell = true;
}

void cli_log(const graft_log_entry *entry, void *user) {
    (void)user;
    graft_log_entry e = *entry;
    /* What libllama warns of, graft says in its own words where it matters to an adapter's user; and why a model could not be
     * opened is in the error's message. */
    if (e.level > GRAFT_LOG_INFO && strncmp(e.text, "libllama: ", 10) == 0) {
        e.level = GRAFT_LOG_INFO;
    }
    if (chosen.answers_tell && e.level == GRAFT_LOG_WARN && *e.project && e.code) {
        e.level = GRAFT_LOG_INFO;
    }
    if (e.level >= chosen.level) {
        write_line(&e, chosen.json ? json_line : human_line);
    }
}

static void note_line(gr_buffer *out, const graft_log_entry *e) {
    gr_buffer_puts(out, "graft: ");
    cli_clean(out, e->text, strlen(e->text), false);
}

void cli_log_line(graft_log_level level, int code, const char *format, ...) {
    char text[1000];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    cli_log(&(graft_log_entry){.level = level, .text = text, .project = "", .adapter = "", .generation = "", .code = code}, NULL);
}

void cli_note(const graft_log_entry *about, const char *format, ...) {
    char text[4096]; /* a list of what is in memory may be long */
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    graft_log_entry entry = *about;
    entry.text = text;
    write_line(&entry, chosen.json ? json_line : note_line);
}
