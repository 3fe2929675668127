/* Keys and addresses. */
#include "auth.h"

#include "errors.h"

#include "base/buffer.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <openssl/crypto.h>
#include <openssl/sha.h>
#include <stdlib.h>
#include <string.h>

enum { KEY_LEAST = 8, KEY_MOST = 512 };

static bool is_loopback(const char *host) {
    struct in_addr four;
    struct in6_addr six;
    if (inet_pton(AF_INET, host, &four) == 1) {
        return (ntohl(four.s_addr) >> 24) == 127;
    }
    return inet_pton(AF_INET6, host, &six) == 1 && IN6_IS_ADDR_LOOPBACK(&six);
}

int srv_auth_init(server *s, graft_error *err) {
    const char *key = s->o.key;
    size_t n = key ? strlen(key) : 0;
    if (key && (n < KEY_LEAST || n > KEY_MOST)) {
        return gr_fail(err, GRAFT_E_BAD_REQUEST, "key: %d to %d characters are needed", KEY_LEAST, KEY_MOST);
    }
    if (key) {
        SHA256((const unsigned char *)key, n, s->key_hash);
    }
    return 0;
}

bool srv_auth_may_be_open(const server *s) {
    return is_loopback(s->o.host) || s->o.insecure;
}

int server_check(server *s, graft_registry *registry, graft_error *err) {
    if (s->o.key || graft_registry_key_count(registry) || srv_auth_may_be_open(s)) {
        return 0;
    }
    return gr_fail(err, GRAFT_E_BAD_REQUEST,
                   "host: %.64s can be reached from elsewhere, and there is no key; give one, or allow it (insecure)",
                   s->o.host);
}

/* Also where the last key went while the address is everybody's: then nobody is let in, rather than everybody. */
bool srv_auth_asks(const server *s) {
    return s->o.key || graft_registry_key_count(s->registry) || !srv_auth_may_be_open(s);
}

/* Hashes are compared, which have one length, in a time that does not depend on where they differ. */
static bool is_key(const server *s, const char *text) {
    unsigned char hash[32];
    SHA256((const unsigned char *)text, strlen(text), hash);
    return CRYPTO_memcmp(hash, s->key_hash, sizeof hash) == 0;
}

static const char *sent_key(const srv_exchange *x) {
    const char *bearer = srv_request_header(x, "Authorization");
    if (bearer && evutil_ascii_strncasecmp(bearer, "Bearer ", 7) == 0) {
        return bearer + 7 + strspn(bearer + 7, " ");
    }
    const char *key = srv_request_header(x, "X-Api-Key");
    return key ? key : "";
}

/* A name that an attacker's DNS may point at 127.0.0.1 is not one of ours. */
static bool is_our_host(const srv_exchange *x) {
    char host[64];
    const char *sent = srv_request_header(x, "Host");
    struct in_addr four;
    if (!sent || x->s->o.insecure || *sent == '[') {
        return true;
    }
    size_t n = strcspn(sent, ":");
    if (n >= sizeof host) {
        return false;
    }
    memcpy(host, sent, n);
    host[n] = '\0';
    return evutil_ascii_strcasecmp(host, "localhost") == 0 || inet_pton(AF_INET, host, &four) == 1;
}

/* Both kinds are always looked at, so that the time does not tell which it was. 0, NOT_FOUND, or why it is not known. */
static int identify(srv_exchange *x, const char *key, graft_error *err) {
    const server *s = x->s;
    bool own = s->o.key && is_key(s, key);
    int code = s->registry ? graft_registry_key_find(&x->key, s->registry, key, err) : GRAFT_E_NOT_FOUND;
    x->admin = own || (x->key && x->key->items[0].admin);
    return own ? 0 : code;
}

bool srv_auth_check(srv_exchange *x) {
    if (!srv_auth_asks(x->s)) {
        if (is_our_host(x)) {
            x->admin = true;
            return true;
        }
        srv_reply_error(x, 403, "host_refused", NULL, "without a key only localhost and numeric addresses are answered as Host");
        return false;
    }
    const char *key = sent_key(x);
    graft_error err = {0};
    int code = identify(x, key, &err);
    if (code == 0) {
        return true;
    }
    if (code != GRAFT_E_NOT_FOUND) {
        srv_reply_error(x, graft_error_http(code), graft_error_name(code), NULL, "%s", err.message);
        return false;
    }
    x->s->count.unauthorized++;
    srv_header(x, "WWW-Authenticate", "Bearer");
    srv_reply_error(x, 401, "invalid_api_key", NULL,
                    *key ? "the key is not valid" : "a key is needed: Authorization: Bearer KEY");
    return false;
}

static int by_text(const void *name, const void *item) {
    return strcmp(name, *(const char *const *)item);
}

bool srv_may(const srv_exchange *x, const char *project) {
    if (x->admin || !x->key) {
        return x->admin;
    }
    const graft_key *k = &x->key->items[0];
    return bsearch(project, k->projects, k->n_projects, sizeof *k->projects, by_text) != NULL;
}

uint64_t srv_auth_domain(const srv_exchange *x) {
    unsigned char hash[SHA256_DIGEST_LENGTH];
    gr_buffer names;
    uint64_t domain = 1;
    if (x->admin || !x->key) {
        return 0;
    }
    const graft_key *k = &x->key->items[0]; /* at most 256 names of 128 characters, sorted */
    gr_buffer_init(&names, 64 << 10);
    for (size_t i = 0; i < k->n_projects; i++) {
        gr_buffer_append(&names, k->projects[i], strlen(k->projects[i]) + 1);
    }
    if (!names.failed && names.data) {
        SHA256((const unsigned char *)names.data, names.length, hash);
        memcpy(&domain, hash, sizeof domain);
    }
    gr_buffer_finish(&names);
    return domain ? domain : 1;
}

const char *srv_path_shown(const srv_exchange *x, const char *path) {
    const char *slash = strrchr(path, '/');
    return x->admin || !slash ? path : slash + 1;
}
