/*
 * graft serve as a library: open (the address is taken), run (until a signal), close. The program reads flags and environment and
 * opens the model; what the server needs of them is in server_options.
 */
#ifndef SRV_SERVER_H
#define SRV_SERVER_H

#include "graft.h"

/* Every limit of the server, in one place. Defaults in brackets. */
typedef struct server_limits {
    size_t body;          /* bytes of a request's body (4 MiB) */
    size_t headers;       /* bytes of its request line and headers (16 KiB) */
    size_t output;        /* bytes that may wait for a client to read them; more is held back (256 KiB) */
    size_t held;          /* bytes of one answer that are held back; more ends the request (1 MiB) */
    int connections;      /* open at once; more wait in the system's queue (1024, less if descriptors are few) */
    int request_ms;       /* a request must come in within this and a second for each 16 KiB (10000) */
    int idle_ms;          /* a connection without a request is closed (75000) */
    int write_ms;         /* a client that reads nothing of what waits for it is cut off (30000) */
    int queue;            /* answers that wait for a slot; more are refused with 429, but for a quarter more that is kept for
                             adapters with no more under way than there are slots (256) */
    int deadline_ms;      /* most time for one request, 0 = no limit (600000) */
    int ping_ms;          /* a stream that has been silent for so long gets a comment (15000) */
    int drain_ms;         /* after SIGTERM answers may go on for this long (30000) */
    int idle_unload_ms;   /* adapters that nobody asked for in this time leave memory, 0 = never (0) */
    int choices;          /* most answers to one request: n times prompts (64) */
} server_limits;

typedef struct server_options {
    const char *host;     /* a numeric address (127.0.0.1) */
    int port;             /* 0 = any free one (8080) */
    bool insecure;        /* another address than the loopback's without a key */
    const char *key;      /* for everything; NULL = nobody is asked for one, unless the registry has keys */
    const char *tls_cert, *tls_key; /* PEM files: both or neither. NULL = no TLS. Read again at SIGHUP */
    const char *cors;     /* origins whose pages may read replies, separated by commas, or "*"; NULL = none */
    const char *root;     /* adapters may be loaded by a path below this folder; NULL = not by path */
    const char *notify;   /* systemd's notification socket, or NULL */
    server_limits limits;
    graft_log_fn log;     /* NULL = silent */
    void *log_user;
    void (*ready)(const char *host, int port, void *user); /* once requests are answered; NULL = nobody is told */
    void *ready_user;
} server_options;

server_options server_options_default(void);

typedef struct server server;

/* Takes the address; nobody is answered yet. Errors: BAD_REQUEST (an option), NOT_READABLE (the address cannot be had),
 * OUT_OF_MEMORY. *out: server_close. */
int server_open(server **out, const server_options *options, graft_error *err);
/* Whether the address may be served: another than the loopback's needs a key, in the options or in the registry (may be NULL).
 * server_run looks as well; this tells it before a model is loaded. Errors: BAD_REQUEST. */
int server_check(server *s, graft_registry *registry, graft_error *err);

/* Answers requests until SIGTERM or SIGINT: then nothing new is accepted and what runs may end within drain_ms; a second signal
 * ends it at once. `registry` may be NULL. Both are borrowed. Call once. */
int server_run(server *s, graft *g, graft_registry *registry, graft_error *err);
void server_close(server *s);

#endif
