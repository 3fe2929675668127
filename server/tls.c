/* TLS by OpenSSL and libevent's bufferevent for it. */
#include "tls.h"

#include "base/error.h"
#include "base/memory.h"

#include <event2/bufferevent_ssl.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <string.h>

struct srv_tls {
    SSL_CTX *context;
    char *certificate, *key; /* paths */
};

/* Never asked at a terminal: a server starts without people. */
static int no_passphrase(char *out, int size, int writing, void *user) {
    (void)out;
    (void)size;
    (void)writing;
    (void)user;
    return -1;
}

static int refuse(const char *what, const char *path, graft_error *err) {
    char quoted[GR_QUOTE_SIZE], why[160] = "";
    unsigned long code = ERR_peek_last_error();
    if (code) {
        ERR_error_string_n(code, why, sizeof why);
    }
    ERR_clear_error();
    return gr_fail(err, GRAFT_E_NOT_READABLE, "%s %s: %s", what, gr_quote(quoted, path, strlen(path)),
                   *why ? why : "cannot be used");
}

/* HTTP/1.1 is all there is; a client that names others and not this one goes on without a name. */
static int choose_protocol(SSL *ssl, const unsigned char **out, unsigned char *length, const unsigned char *in,
                           unsigned int n, void *user) {
    static const unsigned char ours[] = "\x08http/1.1";
    unsigned char *chosen;
    (void)ssl;
    (void)user;
    if (SSL_select_next_proto(&chosen, length, ours, sizeof ours - 1, in, n) != OPENSSL_NPN_NEGOTIATED) {
        return SSL_TLSEXT_ERR_NOACK;
    }
    *out = chosen;
    return SSL_TLSEXT_ERR_OK;
}

static int read_files(SSL_CTX **out, const srv_tls *t, graft_error *err) {
    SSL_CTX *c = SSL_CTX_new(TLS_server_method());
    if (!c) {
        ERR_clear_error();
        return gr_fail_memory(err, 0);
    }
    SSL_CTX_set_min_proto_version(c, TLS1_2_VERSION);
    SSL_CTX_set_options(c, SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_COMPRESSION);
    SSL_CTX_set_session_cache_mode(c, SSL_SESS_CACHE_OFF);
    SSL_CTX_set_mode(c, SSL_MODE_RELEASE_BUFFERS); /* 34 KB for each idle connection otherwise */
    SSL_CTX_set_default_passwd_cb(c, no_passphrase);
    SSL_CTX_set_alpn_select_cb(c, choose_protocol, NULL);
    int code = 0;
    if (SSL_CTX_use_certificate_chain_file(c, t->certificate) != 1) {
        code = refuse("certificate", t->certificate, err);
    } else if (SSL_CTX_use_PrivateKey_file(c, t->key, SSL_FILETYPE_PEM) != 1 || SSL_CTX_check_private_key(c) != 1) {
        code = refuse("key", t->key, err);
    }
    if (code) {
        SSL_CTX_free(c);
        return code;
    }
    *out = c;
    return 0;
}

int srv_tls_open(srv_tls **out, const char *certificate, const char *key, graft_error *err) {
    srv_tls *t = gr_zalloc(sizeof *t);
    if (!t) {
        return gr_fail_memory(err, sizeof *t);
    }
    t->certificate = gr_strdup(certificate);
    t->key = gr_strdup(key);
    int code = t->certificate && t->key ? read_files(&t->context, t, err)
                                        : gr_fail_memory(err, strlen(certificate) + strlen(key));
    if (code) {
        srv_tls_close(t);
        return code;
    }
    *out = t;
    return 0;
}

void srv_tls_close(srv_tls *t) {
    if (t) {
        SSL_CTX_free(t->context);
        gr_free(t->certificate);
        gr_free(t->key);
        gr_free(t);
    }
}

int srv_tls_reload(srv_tls *t, graft_error *err) {
    SSL_CTX *context;
    int code = read_files(&context, t, err);
    if (!code) {
        SSL_CTX_free(t->context); /* connections that use it hold references */
        t->context = context;
    }
    return code;
}

struct bufferevent *srv_tls_bufferevent(srv_tls *t, struct event_base *base) {
    SSL *ssl = SSL_new(t->context);
    struct bufferevent *bev =
        ssl ? bufferevent_openssl_socket_new(base, -1, ssl, BUFFEREVENT_SSL_ACCEPTING, BEV_OPT_CLOSE_ON_FREE) : NULL;
    if (!bev) {
        SSL_free(ssl);
        ERR_clear_error();
        return NULL;
    }
    bufferevent_openssl_set_allow_dirty_shutdown(bev, 1); /* many clients just close */
    return bev;
}
