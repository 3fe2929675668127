/* One line to whoever listens. */
#include "log.h"

#include <stdarg.h>
#include <stdio.h>

void gr_log_line(const gr_log *log, graft_log_level level, const char *format, ...) {
    if (!log || !log->fn) {
        return;
    }
    char line[1000];
    va_list args;
    va_start(args, format);
    vsnprintf(line, sizeof line, format, args);
    va_end(args);
    log->fn(level, line, log->user);
}
