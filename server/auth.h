/* Who may ask. With a key every request must bring it, but for /health. Without one the server listens on the loopback only, and
 * refuses what a page of another site could send there under a name of its own. */
#ifndef SRV_AUTH_H
#define SRV_AUTH_H

#include "http.h"

/* Checks the options: fills s->key_hash. Errors: BAD_REQUEST (an address that needs a key, a key that is none). */
int srv_auth_init(server *s, graft_error *err);
/* False if the request was refused; it is answered then. */
bool srv_auth_check(srv_exchange *x);
/* Whether the request may use, list and see this project's adapters. Others do not exist for it: 404, not 403. The base is
 * everybody's. Only after srv_auth_check. */
bool srv_may(const srv_exchange *x, const char *project);

#endif
