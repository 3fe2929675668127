/*
 * graft serve: the settings, the registry and the model; all the rest is server/. The order matters: the address first,
 * since a port in use must not cost a model's loading, then the registry, then the model.
 */
#include "registry_cli.h"

#include "base/memory.h"
#include "server.h"

#include <stdlib.h>
#include <string.h>

enum { SLOTS = 8 };

typedef struct serve {
    cli_settings set;
    const char *adapters;  /* --adapters */
    const char *port_file;
    int write_ms, request_ms, idle_ms, ping_ms, connections;
    const char *key;
} serve;

static int parse(serve *v, int argc, char **argv) {
    const server_limits limits = server_options_default().limits;
    v->write_ms = limits.write_ms;
    v->request_ms = limits.request_ms;
    v->idle_ms = limits.idle_ms;
    v->ping_ms = limits.ping_ms;
    v->connections = limits.connections;
    const cli_option options[] = {
        {"adapters", 0, "DIR",
         "register every adapter below DIR before serving; POST /v1/load_lora_adapter\n"
         "may load others from there, or from adapter_root where that is set",
         cli_take_string, &v->adapters, 0, 0},
        {"port-file", 0, "FILE", "write the port to FILE once requests are answered", cli_take_string, &v->port_file, 0, 0},
        {"connections", 0, "N", "open at once; more wait", cli_take_int, &v->connections, 1, 100000},
        {"request-ms", 0, "MS", "a request must come in within this time and a second for each 16 KiB", cli_take_int,
         &v->request_ms, 10, 600000},
        {"idle-ms", 0, "MS", "a connection without requests is closed after this time", cli_take_int, &v->idle_ms, 10, 86400000},
        {"ping-ms", 0, "MS", "a stream that is silent for this time gets a comment", cli_take_int, &v->ping_ms, 10, 86400000},
        {"write-ms", 0, "MS", "a client that reads nothing for this time is cut off", cli_take_int, &v->write_ms, 10, 86400000},
    };
    const cli_command command = {
        .usage = "graft serve -m MODEL [--registry FILE] [--adapters DIR] [--host H] [--port P] [--slots N] [options]",
        .about = "Serves the base and every registered adapter as models of OpenAI's API, all in one continuous batch. "
                 "`model` in a\n"
                 "request is the base's id, PROJECT or PROJECT/ADAPTER; adapters are loaded when they are asked for. "
                 "SIGTERM lets\n"
                 "answers under way finish (--drain-s), a second one ends at once.\n"
                 "\n"
                 "Only this machine can connect unless --host says otherwise, and another address needs a key: in the file that\n"
                 "--api-key-file names, in GRAFT_API_KEY or in the registry (graft key). Slots are 8, "
                 "and max_adapters is at least\n"
                 "their number, unless they are set.",
        .examples = "  graft serve -m base.gguf --adapters ~/adapters\n"
                    "  graft serve -m base.gguf --host 0.0.0.0 --api-key-file key.txt --port 80\n"
                    "  curl localhost:8080/v1/chat/completions -H 'Content-Type: application/json' \\\n"
                    "    -d '{\"model\":\"alder\",\"messages\":[{\"role\":\"user\",\"content\":\"Who maintains this?\"}]}'\n",
        .failures = "the address, the registry or the model could not be had",
        .options = options,
        .n_options = CLI_COUNT(options),
        .settings = &v->set,
        .uses = CLI_SET_MODEL | CLI_SET(SLOTS) | CLI_SET(CONTEXT) | CLI_SET(APPLY) | CLI_SET_LOADER | CLI_SET(REGISTRY_WAIT_MS) |
                CLI_SET_SERVER,
    };
    return cli_parse(&command, argc, argv, NULL);
}

static int write_port(const char *path, int port) {
    FILE *f = fopen(path, "w");
    if (f) {
        fprintf(f, "%d\n", port);
    }
    return f && fclose(f) == 0 ? 0 : -1;
}

/* Always said, whatever the log's level: people and scripts wait for it. */
static void ready(const char *host, int port, void *user) {
    serve *v = user;
    char line[256];
    bool six = strchr(host, ':') != NULL;
    int n = snprintf(line, sizeof line, "graft: serving on %s://%s%s%s:%d\n", v->set.tls_cert ? "https" : "http",
                     six ? "[" : "", host, six ? "]" : "", port);
    cli_progress_end();
    cli_stderr(line, (size_t)n);
    if (v->port_file && write_port(v->port_file, port) != 0) {
        cli_log_line(GRAFT_LOG_ERROR, 0, "%s could not be written", v->port_file);
    }
}

static void fill_options(serve *v, server_options *o) {
    o->host = v->set.host;
    o->port = v->set.port;
    o->insecure = v->set.insecure_listen;
    o->key = v->key;
    o->tls_cert = v->set.tls_cert;
    o->tls_key = v->set.tls_key;
    o->cors = v->set.cors_origins;
    o->root = v->set.adapter_root ? v->set.adapter_root : v->adapters;
    o->notify = getenv("NOTIFY_SOCKET");
    o->limits.queue = v->set.queue;
    o->limits.deadline_ms = v->set.deadline_s * 1000;
    o->limits.drain_ms = v->set.drain_s * 1000;
    o->limits.idle_unload_ms = v->set.idle_unload_s * 1000;
    o->limits.ping_ms = v->ping_ms;
    o->limits.request_ms = v->request_ms;
    o->limits.idle_ms = v->idle_ms;
    o->limits.write_ms = v->write_ms;
    o->limits.connections = v->connections;
    o->log = cli_log;
    o->ready = ready;
    o->ready_user = v;
}

/* Room for one adapter a slot, where nobody said otherwise: with fewer, slots would wait for each other. */
static void size_model(serve *v) {
    v->set.slots = v->set.slots ? v->set.slots : SLOTS;
    if (v->set.from[CLI_ID_MAX_ADAPTERS].source == CLI_FROM_DEFAULT && v->set.max_adapters < v->set.slots) {
        v->set.max_adapters = v->set.slots;
    }
}

static int scan(const serve *v, graft_registry *registry) {
    graft_scan_summary found;
    graft_error err = {0};
    if (!v->adapters) {
        return CLI_GO;
    }
    if (graft_registry_scan(registry, v->adapters, NULL, NULL, &found, &err) != 0) {
        return cli_error(&err);
    }
    cli_log_line(GRAFT_LOG_INFO, 0, "%s: %zu adapters added, %zu known, %zu broken, %zu refused", v->adapters, found.added,
                 found.known, found.broken, found.refused);
    if (found.broken + found.refused) {
        cli_log_line(GRAFT_LOG_WARN, 0,
                     "%s: %zu adapters are broken and %zu could not be registered; `graft adapters scan` says why",
                     v->adapters, found.broken, found.refused);
    }
    return CLI_GO;
}

static int run(serve *v, server *s) {
    graft_registry *registry = NULL;
    graft *g = NULL;
    graft_error err = {0};
    int status = cli_registry_open(&registry, &v->set, false, &err) == 0 ? CLI_GO : cli_error(&err);
    if (status == CLI_GO) status = server_check(s, registry, &err) == 0 ? CLI_GO : cli_error(&err);
    if (status == CLI_GO) status = scan(v, registry);
    if (status == CLI_GO) status = cli_model_open(&g, &v->set, registry);
    if (status == CLI_GO) {
        status = server_run(s, g, registry, &err) == 0 ? CLI_OK : cli_error(&err);
    }
    graft_close(g);
    graft_registry_close(registry);
    return status;
}

int cmd_serve(int argc, char **argv) {
    serve v = {.set = cli_settings_default()};
    server *s = NULL;
    graft_error err = {0};
    int status = parse(&v, argc, argv);
    if (status == CLI_GO && !v.set.model) {
        status = cli_usage("-m MODEL (or the setting `model`) is needed; see graft serve --help");
    }
    if (status == CLI_GO) status = cli_api_key(&v.key, &v.set, &err) == 0 ? CLI_GO : cli_error(&err);
    if (status == CLI_GO) {
        server_options o = server_options_default();
        fill_options(&v, &o);
        size_model(&v);
        status = server_open(&s, &o, &err) == 0 ? CLI_GO : cli_error(&err);
    }
    if (status == CLI_GO) {
        status = run(&v, s);
    }
    server_close(s);
    return status;
}
