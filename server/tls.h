/* TLS: a certificate and its key from PEM files. Loop thread only. */
#ifndef SRV_TLS_H
#define SRV_TLS_H

#include "graft.h"

struct bufferevent;
struct event_base;
typedef struct srv_tls srv_tls;

/* Reads both files. Errors: NOT_READABLE (which file, and what OpenSSL says: also a key that is not the certificate's, or has a
 * passphrase), OUT_OF_MEMORY. *out: srv_tls_close. */
int srv_tls_open(srv_tls **out, const char *certificate, const char *key, graft_error *err);
void srv_tls_close(srv_tls *t);
/* Reads the files again for connections from now on. On an error those before stay. */
int srv_tls_reload(srv_tls *t, graft_error *err);

/* A bufferevent that accepts TLS, with BEV_OPT_CLOSE_ON_FREE; NULL if memory is out. */
struct bufferevent *srv_tls_bufferevent(srv_tls *t, struct event_base *base);
#endif
