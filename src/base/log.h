/* Where library code says things: to the callback that the application gave, or to nobody. */
#ifndef GR_LOG_H
#define GR_LOG_H

#include "error.h"

typedef struct gr_log {
    graft_log_fn fn; /* NULL = silent */
    void *user;
} gr_log;

/* One line; cut at 1000 bytes. Any thread. Text from outside goes through gr_quote first. */
void gr_log_line(const gr_log *log, graft_log_level level, const char *format, ...) GR_PRINTF(3, 4);
/* The same about something: `about` gives all but the text; its NULL strings count as "". */
void gr_log_about(const gr_log *log, const graft_log_entry *about, const char *format, ...) GR_PRINTF(3, 4);

/* A line for each warning of the report, with `before` in front. */
void gr_log_warnings(const gr_log *log, const char *before, const gr_report *report);

#endif
