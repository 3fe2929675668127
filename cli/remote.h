/*
 * Asking a server that runs (remote.c): HTTP over libcurl, with a bound to everything that comes back. The address, the key
 * and the certificates to trust are settings. Redirects are not followed, no proxy is asked, and nothing but http and https
 * is spoken.
 */
#ifndef GRAFT_REMOTE_H
#define GRAFT_REMOTE_H

#include "cli.h"

/* What went wrong: the server's own error, or ours: unreachable, tls_failed, bad_reply, deadline, cancelled, out_of_memory. */
typedef struct remote_error {
    char code[48];
    int status; /* of HTTP; 0 = there was no reply */
    char message[900];
} remote_error;

typedef struct remote remote;

/* CLI_GO or an exit code, the error printed. Asks nothing yet. *out: remote_close. One thread. */
int remote_open(remote **out, const cli_settings *s);
void remote_close(remote *r);
/* "http://127.0.0.1:8080" */
const char *remote_url(const remote *r);
/* Whether `server` can be an address. Errors: BAD_SETTING. */
int remote_check(const cli_settings *s, graft_error *err);
/* Replies end with "cancelled" as soon as cli_interrupt_fd is readable. */
void remote_heed_interrupt(remote *r, int fd);

/* "/v1/lora_adapters/alder%2Fv2/pin"; gr_free. */
char *remote_path(remote *r, const char *before, const char *name, const char *after);

/* All return 0, or -1 with *err filled. `body` is borrowed, NULL = none. */

/* A call whose reply is a JSON object, within 60 s. *out: json_decref. */
int remote_ask(json_t **out, remote *r, const char *method, const char *path, const json_t *body, remote_error *err);

/* One that changes adapters: its reply is a text, and may take as long as reading a large adapter does. Shows `what` on a
 * terminal while it waits. */
typedef struct remote_change {
    char text[600];
    bool told; /* the two below */
    uint64_t freed, pending;
} remote_change;
int remote_do(remote_change *out, remote *r, const char *path, const json_t *body, const char *what, remote_error *err);

/* One line of a stream, without its end. False: no more is wanted, which is no error. */
typedef bool remote_line_fn(const char *line, size_t length, void *user);
int remote_stream(remote *r, const char *path, const json_t *body, remote_line_fn *fn, void *user, remote_error *err);

/* The error object of a reply or of an event; false if `reply` holds none. */
bool remote_error_from(remote_error *err, const json_t *reply);
/* Prints it; CLI_FAILED, or CLI_INTERRUPTED. */
int remote_fail(const remote_error *err);

/* Of a reply: what is not there or of another type is "", 0, false. */
const char *remote_text(const json_t *o, const char *key);
int64_t remote_integer(const json_t *o, const char *key);

#endif
