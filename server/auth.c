/* Keys and addresses. */
#include "auth.h"

#include "errors.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <openssl/crypto.h>
#include <openssl/sha.h>
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
    if (!key) {
        return is_loopback(s->o.host) || s->o.insecure
                   ? 0
                   : gr_fail(err, GRAFT_E_BAD_REQUEST,
                             "host: %.64s can be reached from elsewhere, and there is no key; give one, or allow it (insecure)", s->o.host);
    }
    size_t n = strlen(key);
    if (n < KEY_LEAST || n > KEY_MOST) {
        return gr_fail(err, GRAFT_E_BAD_REQUEST, "key: %d to %d characters are needed", KEY_LEAST, KEY_MOST);
    }
    SHA256((const unsigned char *)key, n, s->key_hash);
    return 0;
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

bool srv_auth_check(srv_exchange *x) {
    if (!x->s->o.key) {
        if (is_our_host(x)) {
            x->admin = true;
            return true;
        }
        srv_reply_error(x, 403, "host_refused", NULL, "without a key only localhost and numeric addresses are answered as Host");
        return false;
    }
    const char *key = sent_key(x);
    if (is_key(x->s, key)) {
        x->admin = true;
        return true;
    }
    srv_header(x, "WWW-Authenticate", "Bearer");
    srv_reply_error(x, 401, "invalid_api_key", NULL, *key ? "the key is not valid" : "a key is needed: Authorization: Bearer KEY");
    return false;
}

bool srv_may(const srv_exchange *x, const char *project) {
    (void)project;
    return x->admin;
}
