/*
 * The dashboard's page and files. They hold no data, so no key is asked for: the page asks the API for data, with the key that
 * the user gives it.
 *
 * The policy lets the page load and call this server only, and run no script or style of its own text; nobody may frame it.
 */
#include "dashboard.h"

#include "errors.h"
#include "route.h"

#include <string.h>

static const char policy[] =
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'";

static const srv_asset *find(const char *name) {
    for (size_t i = 0; i < srv_n_assets; i++) {
        if (strcmp(srv_assets[i].name, name) == 0) {
            return &srv_assets[i];
        }
    }
    return NULL;
}

/* Whether the client has this file already. Tags are quoted, so one that is found in the list is whole. */
static bool is_held(const srv_exchange *x, const srv_asset *a) {
    const char *held = srv_request_header(x, "If-None-Match");
    return held && (strcmp(held, "*") == 0 || strstr(held, a->etag));
}

static void reply_asset(srv_exchange *x, const srv_asset *a) {
    srv_header(x, "Content-Security-Policy", policy);
    srv_header(x, "X-Frame-Options", "DENY"); /* for browsers that do not know frame-ancestors */
    srv_header(x, "Referrer-Policy", "no-referrer");
    srv_header(x, "Cross-Origin-Resource-Policy", "same-origin");
    /* Asked for again each time, answered with 304: files of two versions never mix. */
    srv_header(x, "Cache-Control", "no-cache");
    srv_header(x, "ETag", a->etag);
    if (is_held(x, a)) {
        srv_reply(x, 304, a->type, "", 0);
    } else {
        srv_reply(x, 200, a->type, (const char *)a->data, a->length);
    }
}

/* Whether the client is one that shows pages; "anything", as curl says, does not count. */
static bool wants_html(const srv_exchange *x) {
    const char *accept = srv_request_header(x, "Accept");
    return accept && strstr(accept, "text/html");
}

/* Ollama's clients ask here whether a server is there. */
void srv_get_root(srv_exchange *x) {
    static const char text[] = "graft is running\n";
    const srv_asset *page = find("index.html");
    srv_header(x, "Vary", "Accept");
    if (page && wants_html(x)) {
        reply_asset(x, page);
    } else {
        srv_reply(x, 200, "text/plain; charset=utf-8", text, sizeof text - 1);
    }
}

/* docs/openapi.json, for those who make clients from it. */
void srv_get_openapi(srv_exchange *x) {
    reply_asset(x, find("openapi.json"));
}

void srv_get_dashboard_file(srv_exchange *x) {
    const srv_asset *a = find(x->capture);
    if (a) {
        reply_asset(x, a);
    } else {
        srv_reply_error(x, 404, "not_found", NULL, "no such file");
    }
}
