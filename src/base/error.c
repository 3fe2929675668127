/* Error texts. The table is GRAFT_ERRORS in graft.h: one list for codes, names, HTTP statuses and meanings. */
#include "error.h"

#include "memory.h"
#include "utf8.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

const char *graft_error_name(int code) {
    switch (code) {
    case 0: return "ok";
#define X(number, id, name, http, text) case number: return name;
    GRAFT_ERRORS(X)
#undef X
    }
    return "unknown";
}

int graft_error_http(int code) {
    switch (code) {
    case 0: return 200;
#define X(number, id, name, http, text) case number: return http;
    GRAFT_ERRORS(X)
#undef X
    }
    return 500;
}

const char *graft_error_text(int code) {
    switch (code) {
    case 0: return "no error";
#define X(number, id, name, http, text) case number: return text;
    GRAFT_ERRORS(X)
#undef X
    }
    return "an unknown error";
}

/* What was too long ends with a whole character. */
static void end_whole(char *text) {
    text[gr_utf8_complete(text, strlen(text))] = '\0';
}

static void fill(graft_error *err, int code, const char *format, va_list args) GR_PRINTF(3, 0);

static void fill(graft_error *err, int code, const char *format, va_list args) {
    err->code = code;
    vsnprintf(err->message, sizeof err->message, format, args);
    end_whole(err->message);
    for (char *p = err->message; *p; p++) {
        if ((unsigned char)*p < 0x20 || *p == 0x7f) {
            *p = '?';
        }
    }
}

int gr_fail(graft_error *err, int code, const char *format, ...) {
    if (err) {
        va_list args;
        va_start(args, format);
        fill(err, code, format, args);
        va_end(args);
    }
    return code;
}

int gr_fail_memory(graft_error *err, size_t bytes) {
    return gr_fail(err, GRAFT_E_OUT_OF_MEMORY, "could not allocate %zu bytes", bytes);
}

/* Up to the first character that ends at or after `n`. Returns where writing ended. */
static char *quote(char *out, const char *text, size_t n, size_t length) {
    size_t i = 0;
    while (i < n) {
        unsigned char c = (unsigned char)text[i];
        size_t width = c < 0x80 ? 1 : gr_utf8_char(text + i, length - i);
        bool printable = width > 1 || (c >= 0x20 && c < 0x7f);
        /* C1 controls (U+0080 to U+009F) and bidi overrides can steer a terminal too. */
        if (width == 2 && c == 0xc2 && (unsigned char)text[i + 1] < 0xa0) {
            printable = false;
        }
        if (width == 3 && c == 0xe2 && ((unsigned char)text[i + 1] == 0x80 || (unsigned char)text[i + 1] == 0x81)) {
            printable = false;
        }
        if (printable) {
            memcpy(out, text + i, width);
            out += width;
            i += width;
        } else {
            out += snprintf(out, 5, "\\x%02x", c);
            i += 1;
        }
    }
    return out;
}

const char *gr_quote(char out[GR_QUOTE_SIZE], const char *text, size_t length) {
    enum { SHOWN = 64 };
    size_t n = length < SHOWN ? length : SHOWN;
    char *end = quote(out, text, n, length);
    memcpy(end, length > n ? "…" : "", length > n ? 4 : 1);
    return out;
}

const char *gr_quote_path(char out[GR_QUOTE_PATH_SIZE], const char *path) {
    size_t length = strlen(path);
    size_t skip = length > GR_QUOTE_PATH_SHOWN ? length - GR_QUOTE_PATH_SHOWN : 0;
    for (char *end = NULL; !end || end - out > GR_QUOTE_PATH_SHOWN + 8; skip += 8) {
        while (skip && ((unsigned char)path[skip] & 0xc0) == 0x80) { /* not within a character */
            skip++;
        }
        const char *dots = skip ? "…" : "";
        memcpy(out, dots, strlen(dots));
        end = quote(out + strlen(dots), path + skip, length - skip, length - skip);
        *end = '\0';
    }
    return out;
}

void gr_report_init(gr_report *r) {
    memset(r, 0, sizeof *r);
}

void gr_report_finish(gr_report *r) {
    gr_free(r->reasons);
    gr_report_init(r);
}

static gr_reason *report_slot(gr_report *r) {
    if (r->n == GR_REPORT_MAX) {
        return NULL;
    }
    if (r->n == r->capacity) {
        size_t capacity = r->capacity ? r->capacity * 2 : 8;
        gr_reason *grown = gr_realloc(r->reasons, capacity * sizeof *grown);
        if (!grown) {
            r->lost = true;
            return NULL;
        }
        r->reasons = grown;
        r->capacity = capacity;
    }
    return &r->reasons[r->n++];
}

static void report_add(gr_report *r, graft_log_level severity, int code, const char *where, const char *format,
                       va_list args) GR_PRINTF(5, 0);

static void report_add(gr_report *r, graft_log_level severity, int code, const char *where, const char *format,
                       va_list args) {
    gr_reason *reason = report_slot(r);
    if (reason) {
        reason->severity = severity;
        fill(&reason->error, code, format, args);
        snprintf(reason->where, sizeof reason->where, "%s", where ? where : "");
        end_whole(reason->where);
    }
}

int gr_report_error(gr_report *r, int code, const char *where, const char *format, ...) {
    va_list args;
    va_start(args, format);
    report_add(r, GRAFT_LOG_ERROR, code, where, format, args);
    va_end(args);
    r->n_errors++;
    return code;
}

void gr_report_warn(gr_report *r, int code, const char *where, const char *format, ...) {
    va_list args;
    va_start(args, format);
    report_add(r, GRAFT_LOG_WARN, code, where, format, args);
    va_end(args);
}

int gr_report_result(const gr_report *r, graft_error *err) {
    for (size_t i = 0; i < r->n; i++) {
        const gr_reason *reason = &r->reasons[i];
        if (reason->severity != GRAFT_LOG_ERROR) {
            continue;
        }
        char more[48] = "";
        if (r->n_errors > 1) {
            snprintf(more, sizeof more, " (and %zu more)", r->n_errors - 1);
        }
        return gr_fail(err, reason->error.code, "%s%s%s%s", reason->where, reason->where[0] ? ": " : "",
                       reason->error.message, more);
    }
    if (r->n_errors || r->lost) {
        return gr_fail_memory(err, sizeof(gr_reason));
    }
    return 0;
}

int gr_report_end(gr_report *r, const graft_error *why, graft_error *err) {
    bool passes = why->code == GRAFT_E_OUT_OF_MEMORY || why->code == GRAFT_E_IO_ERROR || why->code == GRAFT_E_CHANGED_WHILE_READING;
    if (r->n_errors == 0 || passes) {
        return gr_fail(err, why->code, "%s", why->message);
    }
    gr_report_error(r, why->code, NULL, "%s", why->message);
    return gr_report_result(r, err);
}
