/* Cross-origin requests. */
#include "cors.h"

#include <string.h>

/* Whether `origin` is one of the list's, which commas separate. Origins are compared as browsers send them: in lower case,
 * without a path. */
static bool is_listed(const char *list, const char *origin) {
    size_t length = strlen(origin);
    while (*list) {
        list += strspn(list, ", ");
        size_t n = strcspn(list, ", ");
        if (n == length && strncmp(list, origin, n) == 0) {
            return true;
        }
        list += n;
    }
    return false;
}

/* What Access-Control-Allow-Origin says; NULL: nothing. */
static const char *allowed(const srv_exchange *x) {
    const char *list = x->s->o.cors, *origin = srv_request_header(x, "Origin");
    if (!list || !origin) {
        return NULL;
    }
    return strcmp(list, "*") == 0 ? "*" : is_listed(list, origin) ? origin : NULL;
}

/* Whether the origin is this server itself, as the client calls it. */
static bool is_ours(const srv_exchange *x, const char *origin) {
    const char *host = srv_request_header(x, "Host"), *name = strstr(origin, "://");
    return host && name && evutil_ascii_strcasecmp(name + 3, host) == 0;
}

bool srv_cors_is_stranger(const srv_exchange *x) {
    const char *origin = srv_request_header(x, "Origin"), *site = srv_request_header(x, "Sec-Fetch-Site");
    if (origin) {
        return !is_ours(x, origin) && !allowed(x);
    }
    return site && strcmp(site, "same-origin") != 0 && strcmp(site, "none") != 0;
}

void srv_cors_headers(srv_exchange *x) {
    const char *origin = allowed(x);
    if (x->s->o.cors) {
        srv_header(x, "Vary", "Origin"); /* also where it is refused: a cache must not give one origin's reply to another */
    }
    if (origin) {
        srv_header(x, "Access-Control-Allow-Origin", origin);
        srv_header(x, "Access-Control-Expose-Headers",
                   "X-Request-Id, X-Graft-Fallback, X-Graft-Freed-Bytes, X-Graft-Pending-Bytes, Retry-After");
    }
}

void srv_cors_preflight(srv_exchange *x, const char *methods) {
    if (allowed(x) && srv_request_header(x, "Access-Control-Request-Method")) {
        srv_header(x, "Access-Control-Allow-Methods", methods);
        srv_header(x, "Access-Control-Allow-Headers", "Authorization, Content-Type, X-Api-Key, X-Request-Id");
        srv_header(x, "Access-Control-Max-Age", "600");
    }
}
