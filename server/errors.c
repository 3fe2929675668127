/* Errors as clients see them. */
#include "errors.h"

#include <stdarg.h>
#include <string.h>

static const char *type_of(int status) {
    switch (status) {
    case 401: return "authentication_error";
    case 403: return "permission_error";
    case 404: return "not_found_error";
    case 409: return "conflict_error";
    case 429: return "rate_limit_error";
    case 501: return "not_supported_error";
    case 503: return "unavailable_error";
    default: return status >= 500 ? "server_error" : "invalid_request_error";
    }
}

static void fill(srv_fault *f, int status, const char *code, const char *param, const char *format, va_list args) GR_PRINTF(5, 0);

static void fill(srv_fault *f, int status, const char *code, const char *param, const char *format, va_list args) {
    *f = (srv_fault){.status = status, .code = code};
    snprintf(f->param, sizeof f->param, "%s", param ? param : "");
    vsnprintf(f->message, sizeof f->message, format, args);
    f->retry_after = status == 429 || status == 503 ? 1 : 0;
}

bool srv_fault_set(srv_fault *f, int status, const char *code, const char *param, const char *format, ...) {
    va_list args;
    va_start(args, format);
    fill(f, status, code, param, format, args);
    va_end(args);
    return false;
}

bool srv_fault_from(srv_fault *f, const graft_error *err) {
    const char *code = graft_error_name(err->code);
    if (err->code == GRAFT_E_CONTEXT_LENGTH) { /* the code and the words that clients look for to cut their history */
        return srv_fault_set(f, graft_error_http(err->code), "context_length_exceeded", NULL,
                             "%s; the request exceeds the available context size", err->message);
    }
    if (err->code == GRAFT_E_NOT_FOUND) {
        code = "model_not_found";
    }
    return srv_fault_set(f, graft_error_http(err->code), code, NULL, "%s", err->message);
}

static bool is_ollama(const srv_exchange *x) {
    return strncmp(x->path, "/api/", 5) == 0;
}

bool srv_no_memory(srv_fault *f) {
    return srv_fault_set(f, 503, "out_of_memory", NULL, "memory is out");
}

bool srv_shutting_down(srv_fault *f) {
    return srv_fault_set(f, 503, "shutting_down", NULL, "the server is shutting down");
}

void srv_fault_write(srv_writer *w, const srv_exchange *x, const srv_fault *f) {
    srv_open(w, '{');
    if (is_ollama(x)) {
        srv_put_string(w, "error", f->message);
        srv_close(w, '}');
        return;
    }
    srv_key(w, "error");
    srv_open(w, '{');
    srv_put_string(w, "message", f->message);
    srv_put_string(w, "type", type_of(f->status));
    srv_put_string(w, "param", *f->param ? f->param : NULL);
    srv_put_string(w, "code", f->code);
    srv_close(w, '}');
    srv_close(w, '}');
}

void srv_reply_fault(srv_exchange *x, const srv_fault *f) {
    srv_writer w;
    srv_writer_init(&w);
    srv_fault_write(&w, x, f);
    if (f->retry_after) {
        char seconds[16];
        snprintf(seconds, sizeof seconds, "%d", f->retry_after);
        srv_header(x, "Retry-After", seconds);
    }
    if (f->no_retry) {
        srv_header(x, "X-Should-Retry", "false");
    }
    /* Ollama's clients know a full queue as 503. */
    srv_reply_json(x, f->status == 429 && is_ollama(x) ? 503 : f->status, &w);
}

void srv_reply_error(srv_exchange *x, int status, const char *code, const char *param, const char *format, ...) {
    srv_fault f;
    va_list args;
    va_start(args, format);
    fill(&f, status, code, param, format, args);
    va_end(args);
    srv_reply_fault(x, &f);
}

void srv_reply_no_memory(srv_exchange *x) {
    srv_fault f;
    srv_no_memory(&f);
    srv_reply_fault(x, &f);
}

void srv_reply_shutting_down(srv_exchange *x) {
    srv_fault f;
    srv_shutting_down(&f);
    srv_reply_fault(x, &f);
}
