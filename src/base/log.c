/* One line to whoever listens. */
#include "log.h"

#include <stdarg.h>
#include <stdio.h>

static const char *or_empty(const char *s) {
    return s ? s : "";
}

static void GR_PRINTF(3, 0) say(const gr_log *log, const graft_log_entry *about, const char *format, va_list args) {
    char text[1000];
    vsnprintf(text, sizeof text, format, args);
    const graft_log_entry entry = {
        .level = about->level,
        .text = text,
        .project = or_empty(about->project),
        .adapter = or_empty(about->adapter),
        .generation = or_empty(about->generation),
        .request = about->request,
        .code = about->code,
    };
    log->fn(&entry, log->user);
}

void gr_log_line(const gr_log *log, graft_log_level level, const char *format, ...) {
    if (log && log->fn) {
        va_list args;
        va_start(args, format);
        say(log, &(graft_log_entry){.level = level}, format, args);
        va_end(args);
    }
}

void gr_log_about(const gr_log *log, const graft_log_entry *about, const char *format, ...) {
    if (log && log->fn) {
        va_list args;
        va_start(args, format);
        say(log, about, format, args);
        va_end(args);
    }
}

void gr_log_warnings(const gr_log *log, const char *before, const gr_report *report) {
    for (size_t i = 0; i < report->n; i++) {
        const gr_reason *r = &report->reasons[i];
        if (r->severity == GRAFT_LOG_WARN) {
            gr_log_line(log, GRAFT_LOG_WARN, "%s%s%s%s", before, r->where, r->where[0] ? ": " : "", r->error.message);
        }
    }
}
