/* Filling in graft_error, and the list of reasons that verification collects. Internal side of graft.h. */
#ifndef GR_ERROR_H
#define GR_ERROR_H

#include "graft.h"

#if defined(__GNUC__)
#define GR_PRINTF(fmt, args) __attribute__((format(printf, fmt, args)))
#else
#define GR_PRINTF(fmt, args)
#endif

/*
 * Sets *err (may be NULL) and returns `code`, so that a failing function can end with
 * `return gr_fail(err, GRAFT_E_HOLE, "…", …)`. The message is one line: file, tensor or key, found, allowed;
 * text from outside must go through gr_quote. Control characters are replaced by '?'.
 */
int gr_fail(graft_error *err, int code, const char *format, ...) GR_PRINTF(3, 4);

/* The usual out-of-memory failure; allocates nothing. */
int gr_fail_memory(graft_error *err, size_t bytes);

/*
 * Writes `text` (any bytes, `length` of them) as a short printable quotation into `out`: control bytes and
 * invalid UTF-8 become \xNN, at most 64 source bytes are shown, then "…". Returns `out`, so it can stand in an
 * argument list. For text from files and requests, which may hold terminal escapes.
 */
#define GR_QUOTE_SIZE 272
const char *gr_quote(char out[GR_QUOTE_SIZE], const char *text, size_t length);

/* The same for a path that a person has to find: of a long one the end is shown, after "…". Of 240 bytes all, of what has
 * to be escaped less: so much that a reason still fits beside it. */
#define GR_QUOTE_PATH_SHOWN 240
#define GR_QUOTE_PATH_SIZE (4 * GR_QUOTE_PATH_SHOWN + 8)
const char *gr_quote_path(char out[GR_QUOTE_PATH_SIZE], const char *path);

/* Errors and warnings about one adapter, in the order found. Owned by whoever called gr_report_init. */
typedef struct gr_reason {
    graft_log_level severity; /* GRAFT_LOG_ERROR or GRAFT_LOG_WARN */
    graft_error error;
    char where[160];          /* tensor, key or file; may be empty */
} gr_reason;

typedef struct gr_report {
    gr_reason *reasons;
    size_t n, capacity;
    size_t n_errors;  /* counts also those beyond the limit */
    bool lost;        /* memory ran out while adding */
} gr_report;

#define GR_REPORT_MAX 1000 /* kept; the rest is only counted */

void gr_report_init(gr_report *r);
void gr_report_finish(gr_report *r);
/* Adds an error. Returns code, as gr_fail. `where` may be NULL. */
int gr_report_error(gr_report *r, int code, const char *where, const char *format, ...) GR_PRINTF(4, 5);
/* Adds a warning. */
void gr_report_warn(gr_report *r, int code, const char *where, const char *format, ...) GR_PRINTF(4, 5);
/* 0 without errors; else the first error's code, with "where: message" (and "(and N more)") in *err. */
int gr_report_result(const gr_report *r, graft_error *err);
/* For a step that failed with *why, perhaps after it had reported errors: those come first, so the failure is added to them and
 * the first is the result, as above. Only what may pass and says nothing about the files (OUT_OF_MEMORY, IO_ERROR,
 * CHANGED_WHILE_READING) stays the result. */
int gr_report_end(gr_report *r, const graft_error *why, graft_error *err);

#endif
