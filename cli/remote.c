/* Asking a server that runs. What comes back is a stranger's: its size, its lines and its times are bounded, and its text is
 * cleaned by whoever prints it. */
#include "remote.h"

#include "base/clock.h"
#include "base/memory.h"

#include <curl/curl.h>
#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

enum {
    CONNECT_S = 5,
    WHOLE_S = 60,              /* of a question */
    CHANGE_S = 1800,           /* of a change: an adapter may be large and the disk slow */
    SILENT_S = 900,            /* of a stream that says nothing: a long prompt on a slow machine */
    REPLY_MOST = 64 << 20,     /* a list of 100,000 adapters */
    TEXT_MOST = 64 << 10,      /* of a change's reply, and of the reply to a stream that is none */
    LINE_MOST = 1 << 20,
    STREAM_MOST = 256 << 20,
    HEADERS_MOST = 64 << 10,
    TICK_MS = 250
};

struct remote {
    char *url; /* without a slash at its end */
    CURL *easy;
    CURLM *multi;
    struct curl_slist *headers;
    const char *ca_file; /* or NULL */
    int stop_fd;
    char why[CURL_ERROR_SIZE];
};

/* One call that is under way. */
typedef struct transfer {
    remote *r;
    gr_buffer body; /* what is not given to fn */
    gr_buffer line;
    size_t headers, streamed;
    remote_line_fn *fn;
    void *user;
    const char *what; /* to show while waiting */
    bool stopped;     /* by fn */
    bool interrupted;
    const char *excess; /* what was too large, or NULL */
    remote_change change;
} transfer;

/* ---- errors ------------------------------------------------------------------------------------------- */

static int fail(remote_error *err, const char *code, const char *format, ...) GR_PRINTF(3, 4);

static int fail(remote_error *err, const char *code, const char *format, ...) {
    va_list args;
    va_start(args, format);
    vsnprintf(err->message, sizeof err->message, format, args);
    va_end(args);
    snprintf(err->code, sizeof err->code, "%s", code);
    return -1;
}

/* Codes are for scripts to compare: one that is no plain word does not become one. */
static bool is_code(const char *text) {
    size_t n = strlen(text);
    return n > 0 && n < sizeof((remote_error *)0)->code && strspn(text, "abcdefghijklmnopqrstuvwxyz0123456789_") == n;
}

bool remote_error_from(remote_error *err, const json_t *reply) {
    const json_t *e = json_object_get(reply, "error");
    const char *message = json_is_string(e) ? json_string_value(e) : remote_text(e, "message");
    const char *code = remote_text(e, "code");
    if (!e || json_is_null(e)) {
        return false;
    }
    code = is_code(code) ? code : remote_text(e, "reason"); /* vLLM's calls have the status as their code */
    fail(err, is_code(code) ? code : "server_error", "%s", *message ? message : "the server gives no reason");
    return true;
}

int remote_fail(const remote_error *err) {
    int status = cli_fail_as(err->code, "%s", err->message);
    return strcmp(err->code, "cancelled") == 0 && err->status == 0 ? CLI_INTERRUPTED : status;
}

/* What libcurl says, in our words. */
static int curl_failed(remote_error *err, const transfer *t, CURLcode code) {
    remote *r = t->r;
    curl_off_t connected = 0;
    const char *reason = *r->why ? r->why : curl_easy_strerror(code);
    curl_easy_getinfo(r->easy, CURLINFO_CONNECT_TIME_T, &connected);
    if (t->interrupted) {
        return fail(err, "cancelled", "interrupted");
    }
    if (t->excess) {
        return fail(err, "bad_reply", "%s: %s", r->url, t->excess);
    }
    switch (code) {
    case CURLE_COULDNT_CONNECT: return fail(err, "unreachable", "nothing answers at %s: is `graft serve` running?", r->url);
    case CURLE_COULDNT_RESOLVE_HOST: return fail(err, "unreachable", "%s: no such host", r->url);
    case CURLE_OPERATION_TIMEDOUT:
        return connected ? fail(err, "deadline", "%s does not answer in time: %s", r->url, reason)
                         : fail(err, "unreachable", "nothing answers at %s within %d s: is `graft serve` running?", r->url,
                                CONNECT_S);
    case CURLE_PEER_FAILED_VERIFICATION:
    case CURLE_SSL_CONNECT_ERROR:
    case CURLE_SSL_CACERT_BADFILE:
    case CURLE_SSL_ISSUER_ERROR:
        return fail(err, "tls_failed", "%s: %s; --ca-file names certificates to trust", r->url, reason);
    case CURLE_FILESIZE_EXCEEDED: return fail(err, "bad_reply", "%s: a reply larger than is taken", r->url);
    case CURLE_GOT_NOTHING:
    case CURLE_RECV_ERROR:
    case CURLE_SEND_ERROR:
    case CURLE_PARTIAL_FILE:
        return fail(err, "bad_reply", "%s: the connection ended before the reply did (%s)", r->url, reason);
    case CURLE_OUT_OF_MEMORY: return fail(err, "out_of_memory", "an allocation failed");
    default: return fail(err, "bad_reply", "%s: %s; is it graft that answers there?", r->url, reason);
    }
}

/* ---- what comes in ------------------------------------------------------------------------------------ */

static size_t excess(transfer *t, const char *what) {
    t->excess = what;
    return 0; /* ends the transfer */
}

/* "X-Graft-Freed-Bytes: 123" */
static bool number_header(const char *line, size_t length, const char *name, uint64_t *out) {
    char text[64];
    size_t n = strlen(name);
    if (length <= n || length >= sizeof text || strncasecmp(line, name, n) != 0) {
        return false;
    }
    memcpy(text, line, length);
    text[length] = '\0';
    *out = strtoull(text + n, NULL, 10);
    return true;
}

static size_t take_header(char *bytes, size_t size, size_t count, void *user) {
    transfer *t = user;
    size_t length = size * count;
    t->headers += length;
    if (t->headers > HEADERS_MOST) {
        return excess(t, "its headers do not end");
    }
    t->change.told |= number_header(bytes, length, "X-Graft-Freed-Bytes:", &t->change.freed);
    number_header(bytes, length, "X-Graft-Pending-Bytes:", &t->change.pending);
    return length;
}

static size_t take_lines(transfer *t, const char *bytes, size_t length) {
    size_t at = 0;
    t->streamed += length;
    if (t->streamed > STREAM_MOST) {
        return excess(t, "its answer does not end");
    }
    while (at < length && !t->stopped) {
        const char *end = memchr(bytes + at, '\n', length - at);
        size_t n = end ? (size_t)(end - bytes) - at : length - at;
        if (!gr_buffer_append(&t->line, bytes + at, n)) {
            return excess(t, "a line that does not end");
        }
        at += n + (end ? 1 : 0);
        if (end) {
            size_t whole = t->line.length;
            whole -= whole > 0 && t->line.data[whole - 1] == '\r';
            t->stopped = !t->fn(whole ? t->line.data : "", whole, t->user);
            gr_buffer_clear(&t->line);
        }
    }
    return t->stopped ? 0 : length;
}

static size_t take_body(char *bytes, size_t size, size_t count, void *user) {
    transfer *t = user;
    size_t length = size * count;
    long status = 0;
    curl_easy_getinfo(t->r->easy, CURLINFO_RESPONSE_CODE, &status);
    if (t->fn && status == 200) {
        return take_lines(t, bytes, length);
    }
    return gr_buffer_append(&t->body, bytes, length) ? length : excess(t, "a reply larger than is taken");
}

/* ---- one call ----------------------------------------------------------------------------------------- */

/* Until it is over or interrupted. */
static CURLcode wait_for(transfer *t) {
    remote *r = t->r;
    CURLcode result = CURLE_FAILED_INIT;
    int64_t start = gr_now_us();
    int running = 1, left;
    while (running) {
        struct curl_waitfd stop = {.fd = r->stop_fd, .events = CURL_WAIT_POLLIN};
        if (curl_multi_perform(r->multi, &running) != CURLM_OK) {
            return CURLE_OUT_OF_MEMORY;
        }
        if (running) {
            curl_multi_poll(r->multi, &stop, r->stop_fd >= 0 ? 1 : 0, TICK_MS, NULL);
            t->interrupted = r->stop_fd >= 0 && cli_interrupt_taken();
        }
        if (t->interrupted) {
            return CURLE_ABORTED_BY_CALLBACK;
        }
        int seconds = (int)((gr_now_us() - start) / 1000000);
        if (t->what && seconds > 0) {
            cli_waiting(t->what, seconds);
        }
    }
    for (CURLMsg *m; (m = curl_multi_info_read(r->multi, &left));) {
        result = m->msg == CURLMSG_DONE ? m->data.result : result;
    }
    return result;
}

static void set_up(transfer *t, const char *method, const char *url, const char *body, int seconds, long most) {
    CURL *e = t->r->easy;
    curl_easy_reset(e); /* connections stay */
    curl_easy_setopt(e, CURLOPT_URL, url);
#if LIBCURL_VERSION_NUM >= 0x075500
    curl_easy_setopt(e, CURLOPT_PROTOCOLS_STR, "http,https");
#else
    curl_easy_setopt(e, CURLOPT_PROTOCOLS, (long)(CURLPROTO_HTTP | CURLPROTO_HTTPS));
#endif
    curl_easy_setopt(e, CURLOPT_PROXY, ""); /* not the environment's either: the key is for the server alone */
    curl_easy_setopt(e, CURLOPT_FOLLOWLOCATION, 0L);
    curl_easy_setopt(e, CURLOPT_HTTP_VERSION, (long)CURL_HTTP_VERSION_1_1);
    curl_easy_setopt(e, CURLOPT_CONNECTTIMEOUT, (long)CONNECT_S);
    curl_easy_setopt(e, CURLOPT_TIMEOUT, (long)seconds);
    curl_easy_setopt(e, CURLOPT_MAXFILESIZE, most);
    curl_easy_setopt(e, CURLOPT_HTTPHEADER, t->r->headers);
    curl_easy_setopt(e, CURLOPT_ERRORBUFFER, t->r->why);
    curl_easy_setopt(e, CURLOPT_HEADERFUNCTION, take_header);
    curl_easy_setopt(e, CURLOPT_HEADERDATA, t);
    curl_easy_setopt(e, CURLOPT_WRITEFUNCTION, take_body);
    curl_easy_setopt(e, CURLOPT_WRITEDATA, t);
    if (t->r->ca_file) {
        curl_easy_setopt(e, CURLOPT_CAINFO, t->r->ca_file);
        curl_easy_setopt(e, CURLOPT_CAPATH, NULL); /* these and no others */
    }
    if (seconds == 0) {
        curl_easy_setopt(e, CURLOPT_LOW_SPEED_LIMIT, 1L);
        curl_easy_setopt(e, CURLOPT_LOW_SPEED_TIME, (long)SILENT_S);
    }
    if (body) {
        curl_easy_setopt(e, CURLOPT_POSTFIELDSIZE, (long)strlen(body));
        curl_easy_setopt(e, CURLOPT_POSTFIELDS, body);
    } else if (strcmp(method, "GET") != 0) {
        curl_easy_setopt(e, CURLOPT_POSTFIELDSIZE, 0L);
        curl_easy_setopt(e, CURLOPT_POSTFIELDS, "");
    }
    if (strcmp(method, "DELETE") == 0) {
        curl_easy_setopt(e, CURLOPT_HTTPGET, 1L); /* no body */
        curl_easy_setopt(e, CURLOPT_CUSTOMREQUEST, method);
    }
}

static json_t *parse(const gr_buffer *body) {
    return json_loadb(body->data ? body->data : "", body->length, 0, NULL);
}

/* A reply that is none of 2xx. */
static int status_failed(remote_error *err, const transfer *t, int status) {
    json_t *reply = parse(&t->body);
    err->status = status;
    if (status >= 300 && status < 400) {
        fail(err, "bad_reply", "%s sends elsewhere (HTTP %d), which is not followed", t->r->url, status);
    } else if (!json_is_object(reply) || !remote_error_from(err, reply)) {
        fail(err, "bad_reply", "%s: HTTP %d without a reason; is it graft that answers there?", t->r->url, status);
    } else if (status == 401) {
        size_t n = strlen(err->message);
        snprintf(err->message + n, sizeof err->message - n, "%s", "; commands take it from GRAFT_API_KEY or --api-key-file");
    }
    json_decref(reply);
    return -1;
}

/* 0, the reply in t, or -1. */
static int run(transfer *t, const char *method, const char *path, const json_t *body, int seconds, long most, remote_error *err) {
    remote *r = t->r;
    long status = 0;
    gr_buffer url;
    gr_buffer_init(&url, 1 << 16);
    gr_buffer_init(&t->body, (size_t)most);
    gr_buffer_init(&t->line, LINE_MOST);
    gr_buffer_printf(&url, "%s%s", r->url, path);
    cli_buffer_check(&url);
    char *text = body ? json_dumps(body, JSON_COMPACT) : NULL;
    if (body && !text) {
        cli_no_memory();
    }
    *err = (remote_error){0};
    *r->why = '\0';
    set_up(t, method, url.data, text, seconds, most);
    curl_multi_add_handle(r->multi, r->easy);
    CURLcode code = wait_for(t);
    curl_easy_getinfo(r->easy, CURLINFO_RESPONSE_CODE, &status);
    if (t->what) {
        cli_progress_end();
    }
    int failed = 0;
    if (code != CURLE_OK && !t->stopped) {
        failed = curl_failed(err, t, code);
    } else if (status < 200 || status > 299) {
        failed = status_failed(err, t, (int)status);
    }
    curl_multi_remove_handle(r->multi, r->easy);
    free(text);
    gr_buffer_finish(&url);
    return failed;
}

static void finish(transfer *t) {
    gr_buffer_finish(&t->body);
    gr_buffer_finish(&t->line);
}

int remote_ask(json_t **out, remote *r, const char *method, const char *path, const json_t *body, remote_error *err) {
    transfer t = {.r = r};
    int failed = run(&t, method, path, body, WHOLE_S, REPLY_MOST, err);
    json_t *reply = failed ? NULL : parse(&t.body);
    if (!failed && !json_is_object(reply)) {
        failed = fail(err, "bad_reply", "%s%s: the reply is no JSON object; is it graft that answers there?", r->url, path);
        json_decref(reply);
    } else if (!failed) {
        *out = reply;
    }
    finish(&t);
    return failed;
}

int remote_do(remote_change *out, remote *r, const char *path, const json_t *body, const char *what, remote_error *err) {
    transfer t = {.r = r, .what = what};
    int failed = run(&t, "POST", path, body, CHANGE_S, TEXT_MOST, err);
    if (!failed) {
        *out = t.change;
        snprintf(out->text, sizeof out->text, "%s", t.body.data ? t.body.data : "");
    }
    finish(&t);
    return failed;
}

int remote_stream(remote *r, const char *path, const json_t *body, remote_line_fn *fn, void *user, remote_error *err) {
    transfer t = {.r = r, .fn = fn, .user = user};
    int failed = run(&t, "POST", path, body, 0, TEXT_MOST, err);
    finish(&t);
    return failed;
}

/* ---- opening ------------------------------------------------------------------------------------------ */

/* Where `graft serve` with the same settings listens, as far as one can ask there. */
static void default_url(gr_buffer *out, const cli_settings *s) {
    const char *host = s->host;
    if (strcmp(host, "0.0.0.0") == 0) {
        host = "127.0.0.1";
    } else if (strcmp(host, "::") == 0) {
        host = "::1";
    }
    bool six = strchr(host, ':') != NULL;
    gr_buffer_printf(out, "%s://%s%s%s:%d", s->tls_cert ? "https" : "http", six ? "[" : "", host, six ? "]" : "",
                     s->port ? s->port : 8080);
}

static bool has_part(CURLU *u, CURLUPart part) {
    char *text = NULL;
    bool found = curl_url_get(u, part, &text, 0) == CURLUE_OK;
    curl_free(text);
    return found;
}

/* NULL, or what is wrong with it. */
static const char *check_url(const char *url) {
    CURLU *u = curl_url();
    char *scheme = NULL;
    const char *wrong = NULL;
    if (!u || curl_url_set(u, CURLUPART_URL, url, 0) != CURLUE_OK || curl_url_get(u, CURLUPART_SCHEME, &scheme, 0) != CURLUE_OK ||
        (strcmp(scheme, "http") != 0 && strcmp(scheme, "https") != 0)) {
        wrong = "is not http://HOST[:PORT] or https://HOST[:PORT]";
    } else if (has_part(u, CURLUPART_USER) || has_part(u, CURLUPART_PASSWORD)) {
        wrong = "holds a user or password; keys come from GRAFT_API_KEY or --api-key-file";
    } else if (has_part(u, CURLUPART_QUERY) || has_part(u, CURLUPART_FRAGMENT)) {
        wrong = "must end with the host, the port or a folder";
    }
    curl_free(scheme);
    curl_url_cleanup(u);
    return wrong;
}

/* The address that the settings name, without slashes at its end. Errors: BAD_SETTING. *url: gr_free. */
static int find_url(char **url, const cli_settings *s, graft_error *err) {
    gr_buffer b;
    char quoted[GR_QUOTE_SIZE];
    gr_buffer_init(&b, 1 << 16);
    if (s->server) {
        gr_buffer_puts(&b, s->server);
    } else {
        default_url(&b, s);
    }
    cli_buffer_check(&b);
    while (b.length && b.data[b.length - 1] == '/') {
        b.data[--b.length] = '\0';
    }
    const char *wrong = check_url(b.data);
    if (wrong) {
        gr_quote(quoted, b.data, b.length);
        gr_buffer_finish(&b);
        return gr_fail(err, GRAFT_E_BAD_SETTING, "server: \"%s\" %s", quoted, wrong);
    }
    *url = b.data;
    return 0;
}

int remote_check(const cli_settings *s, graft_error *err) {
    char *url = NULL;
    int code = find_url(&url, s, err);
    gr_free(url);
    return code;
}

static void add_header(remote *r, const char *format, ...) GR_PRINTF(2, 3);

static void add_header(remote *r, const char *format, ...) {
    char line[8192];
    va_list args;
    va_start(args, format);
    vsnprintf(line, sizeof line, format, args);
    va_end(args);
    struct curl_slist *more = curl_slist_append(r->headers, line);
    if (!more) {
        cli_no_memory();
    }
    r->headers = more;
}

static int find_key(remote *r, const cli_settings *s) {
    const char *key;
    graft_error err = {0};
    if (cli_api_key(&key, s, &err) != 0) {
        return cli_error(&err);
    }
    add_header(r, "Content-Type: application/json");
    add_header(r, "User-Agent: graft/%s", graft_version());
    add_header(r, "Expect:"); /* no asking before a large body */
    if (key) {
        add_header(r, "Authorization: Bearer %s", key);
    }
    return CLI_GO;
}

int remote_open(remote **out, const cli_settings *s) {
    graft_error err = {0};
    remote *r = cli_alloc(1, sizeof *r);
    r->stop_fd = -1;
    if (curl_global_init(CURL_GLOBAL_DEFAULT) != CURLE_OK || !(r->easy = curl_easy_init()) || !(r->multi = curl_multi_init())) {
        cli_no_memory();
    }
    int status = CLI_GO;
    if (find_url(&r->url, s, &err) != 0) {
        cli_error(&err);
        status = CLI_USAGE;
    }
    if (status == CLI_GO) status = find_key(r, s);
    if (status == CLI_GO) {
        r->ca_file = s->ca_file;
        *out = r;
    } else {
        remote_close(r);
    }
    return status;
}

void remote_close(remote *r) {
    if (!r) {
        return;
    }
    curl_easy_cleanup(r->easy);
    curl_multi_cleanup(r->multi);
    curl_slist_free_all(r->headers);
    curl_global_cleanup();
    gr_free(r->url);
    gr_free(r);
}

const char *remote_url(const remote *r) {
    return r->url;
}

void remote_heed_interrupt(remote *r, int fd) {
    r->stop_fd = fd;
}

char *remote_path(remote *r, const char *before, const char *name, const char *after) {
    gr_buffer path;
    char *escaped = curl_easy_escape(r->easy, name, (int)strnlen(name, 4096));
    if (!escaped) {
        cli_no_memory();
    }
    gr_buffer_init(&path, 1 << 15);
    gr_buffer_printf(&path, "%s%s%s", before, escaped, after);
    cli_buffer_check(&path);
    curl_free(escaped);
    return path.data;
}

/* ---- replies ------------------------------------------------------------------------------------------ */

const char *remote_text(const json_t *o, const char *key) {
    const char *text = json_string_value(json_object_get(o, key));
    return text ? text : "";
}

int64_t remote_integer(const json_t *o, const char *key) {
    return json_integer_value(json_object_get(o, key));
}
