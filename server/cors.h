/* Cross-origin requests: a page of another origin may read answers only if its origin was configured. */
#ifndef SRV_CORS_H
#define SRV_CORS_H

#include "http.h"

/* Adds the headers that let the request's origin read the reply, if it may. Before the reply begins; once. */
void srv_cors_headers(srv_exchange *x);
/* Whether a page of another origin, one that was not configured, sends this: browsers say so in each request that can change
 * something. */
bool srv_cors_is_stranger(const srv_exchange *x);
/* Adds what a preflight asks for, if the origin may. */
void srv_cors_preflight(srv_exchange *x, const char *methods);

#endif
