/* graft doctor: does a server answer at the address that commands ask, or could one listen there? */
#include "doctor.h"
#include "remote.h"

#include <errno.h>
#include <netdb.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* 0 if this machine could listen there now, else errno. */
static int try_listening(const char *host, int port) {
    struct addrinfo hints = {.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV, .ai_socktype = SOCK_STREAM}, *found;
    char service[16];
    int on = 1, why = 0;
    snprintf(service, sizeof service, "%d", port);
    if (getaddrinfo(host, service, &hints, &found) != 0) {
        return EADDRNOTAVAIL;
    }
    int fd = socket(found->ai_family, SOCK_STREAM, 0);
    if (fd >= 0) {
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on); /* as the server does */
    }
    if (fd < 0 || bind(fd, found->ai_addr, found->ai_addrlen) != 0 || listen(fd, 1) != 0) {
        why = errno;
    }
    if (fd >= 0) {
        close(fd);
    }
    freeaddrinfo(found);
    return why;
}

/* Nothing answers: may `graft serve` take the place? */
static void check_place(doctor *d, const remote_error *err) {
    if (d->set.server) {
        doctor_say(d, DOCTOR_FAIL, "server", "start it, or correct the setting `server`", "%s", err->message);
        return;
    }
    int why = try_listening(d->set.host, d->set.port);
    if (why) {
        doctor_say(d, DOCTOR_FAIL, "server", why == EADDRINUSE ? "another --port" : "another --host or --port",
                   "nothing answers, and %.64s port %d cannot be listened on: %s", d->set.host, d->set.port, strerror(why));
    } else {
        doctor_say(d, DOCTOR_OK, "server", NULL, "none runs; %.64s port %d is free", d->set.host, d->set.port);
    }
}

static void check_key(doctor *d, remote *r) {
    remote_error err;
    json_t *status = NULL;
    if (remote_ask(&status, r, "GET", "/v1/status", NULL, &err) == 0) {
        bool all = json_is_true(json_object_get(status, "admin"));
        doctor_say(d, DOCTOR_OK, "server's answer", NULL, "graft %.40s, model %.100s; %s", remote_text(status, "version"),
                   remote_text(json_object_get(status, "model"), "id"),
                   all ? "all projects may be seen and changed" : "the key is for some projects");
    } else {
        doctor_say(d, DOCTOR_WARN, "server's answer",
                   err.status == 401 ? "GRAFT_API_KEY or --api-key-file" : "is it an older graft?",
                   "%s", err.message);
    }
    json_decref(status);
}

static void check_health(doctor *d, remote *r, const json_t *health) {
    const char *status = remote_text(health, "status"), *state = remote_text(health, "state");
    bool well = strcmp(status, "ok") == 0 && strcmp(state, "healthy") == 0;
    if (!*status || !*state) {
        doctor_say(d, DOCTOR_FAIL, "server", "another --port, or correct the setting `server`",
                   "%s is answered by something else than graft",
                   remote_url(r));
        return;
    }
    doctor_say(d, well ? DOCTOR_OK : DOCTOR_WARN, "server", well ? NULL : "`graft ps` tells more",
               "%s answers: %.40s, %.40s", remote_url(r),
               status, state);
    check_key(d, r);
}

static bool is_this_machine(const char *host) {
    return strncmp(host, "127.", 4) == 0 || strncmp(host, "localhost", 9) == 0 || strncmp(host, "[::1]", 5) == 0;
}

/* A key that goes over a network in the open. */
static void check_clear(doctor *d) {
    const char *key = NULL, *url = d->set.server;
    graft_error err;
    bool open = url && strncmp(url, "http://", 7) == 0 && !is_this_machine(url + 7);
    if (open && cli_api_key(&key, &d->set, &err) == 0 && key) {
        doctor_say(d, DOCTOR_WARN, "key's way", "https://, with tls_cert and tls_key on the server",
                   "the key goes to %.200s unencrypted", url);
    }
}

void doctor_server(doctor *d) {
    remote *r = NULL;
    remote_error err;
    json_t *health = NULL;
    graft_error bad = {0};
    const char *key;
    if (cli_api_key(&key, &d->set, &bad) != 0) {
        doctor_say(d, DOCTOR_WARN, "server", "the key comes first", "not asked");
        return;
    }
    if (remote_check(&d->set, &bad) != 0) {
        doctor_say(d, DOCTOR_FAIL, "server", "`server = http://HOST:PORT`", "%s", bad.message);
        return;
    }
    if (remote_open(&r, &d->set) != CLI_GO) {
        return;
    }
    check_clear(d);
    int failed = remote_ask(&health, r, "GET", "/health", NULL, &err);
    if (!failed) {
        check_health(d, r, health);
    } else if (err.status == 503) {
        doctor_say(d, DOCTOR_WARN, "server", "`graft ps` tells more", "%s answers, and is ending or unwell", remote_url(r));
    } else if (strcmp(err.code, "unreachable") == 0) {
        check_place(d, &err);
    } else {
        bool trust = strcmp(err.code, "tls_failed") == 0;
        doctor_say(d, DOCTOR_FAIL, "server", trust ? "--ca-file" : "another --port, or correct the setting `server`", "%s",
                   err.message);
    }
    json_decref(health);
    remote_close(r);
}
