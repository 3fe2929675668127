/* Method and path to handler. */
#include "route.h"

#include "auth.h"
#include "cors.h"
#include "errors.h"

#include "base/utf8.h"

#include <stdlib.h>
#include <string.h>

static const srv_route routes[] = {
    {EVHTTP_REQ_GET, "/", srv_get_root, SRV_ANYONE},
    {EVHTTP_REQ_GET, "/dashboard/{}", srv_get_dashboard_file, SRV_ANYONE},
    {EVHTTP_REQ_GET, "/openapi.json", srv_get_openapi, SRV_ANYONE},
    {EVHTTP_REQ_GET, "/v1/models", srv_get_models, SRV_KEY},
    {EVHTTP_REQ_GET, "/v1/models/{}", srv_get_model, SRV_KEY},
    {EVHTTP_REQ_POST, "/v1/chat/completions", srv_post_chat, SRV_KEY},
    {EVHTTP_REQ_POST, "/v1/completions", srv_post_completions, SRV_KEY},
    {EVHTTP_REQ_POST, "/v1/embeddings", srv_post_embeddings, SRV_KEY},
    {EVHTTP_REQ_POST, "/v1/load_lora_adapter", srv_post_load, SRV_ADMIN},
    {EVHTTP_REQ_POST, "/v1/unload_lora_adapter", srv_post_unload, SRV_ADMIN},
    {EVHTTP_REQ_GET, "/v1/lora_adapters", srv_get_adapters, SRV_KEY},
    {EVHTTP_REQ_POST, "/v1/lora_adapters/{}/pin", srv_post_pin, SRV_ADMIN},
    {EVHTTP_REQ_POST, "/v1/lora_adapters/{}/unpin", srv_post_unpin, SRV_ADMIN},
    {EVHTTP_REQ_POST, "/v1/lora_adapters/{}/load", srv_post_load_named, SRV_ADMIN},
    {EVHTTP_REQ_POST, "/v1/lora_adapters/{}/unload", srv_post_unload_named, SRV_ADMIN},
    {EVHTTP_REQ_POST, "/v1/lora_adapters/scan", srv_post_scan, SRV_ADMIN},
    {EVHTTP_REQ_GET, "/v1/projects", srv_get_projects, SRV_KEY},
    {EVHTTP_REQ_GET, "/v1/projects/current", srv_get_current, SRV_KEY},
    {EVHTTP_REQ_POST, "/v1/projects/current", srv_post_current, SRV_ADMIN},
    {EVHTTP_REQ_GET, "/v1/keys", srv_get_keys, SRV_ADMIN},
    {EVHTTP_REQ_POST, "/v1/keys", srv_post_key, SRV_ADMIN},
    {EVHTTP_REQ_DELETE, "/v1/keys/{}", srv_delete_key, SRV_ADMIN},
    {EVHTTP_REQ_POST, "/api/chat", srv_post_ollama_chat, SRV_KEY},
    {EVHTTP_REQ_POST, "/api/generate", srv_post_ollama_generate, SRV_KEY},
    {EVHTTP_REQ_POST, "/api/embed", srv_post_ollama_embed, SRV_KEY},
    {EVHTTP_REQ_POST, "/api/embeddings", srv_post_ollama_embeddings, SRV_KEY},
    {EVHTTP_REQ_GET, "/api/tags", srv_get_ollama_tags, SRV_KEY},
    {EVHTTP_REQ_GET, "/api/ps", srv_get_ollama_ps, SRV_KEY},
    {EVHTTP_REQ_POST, "/api/show", srv_post_ollama_show, SRV_KEY},
    {EVHTTP_REQ_GET, "/api/version", srv_get_ollama_version, SRV_KEY},
    {EVHTTP_REQ_POST, "/api/create", srv_ollama_elsewhere, SRV_KEY},
    {EVHTTP_REQ_POST, "/api/pull", srv_ollama_elsewhere, SRV_KEY},
    {EVHTTP_REQ_POST, "/api/push", srv_ollama_elsewhere, SRV_KEY},
    {EVHTTP_REQ_POST, "/api/copy", srv_ollama_elsewhere, SRV_KEY},
    {EVHTTP_REQ_DELETE, "/api/delete", srv_ollama_elsewhere, SRV_KEY},
    {EVHTTP_REQ_GET, "/api/blobs/{}", srv_ollama_elsewhere, SRV_KEY},
    {EVHTTP_REQ_POST, "/api/blobs/{}", srv_ollama_elsewhere, SRV_KEY},
    {EVHTTP_REQ_GET, "/health", srv_get_health, SRV_ANYONE},
    {EVHTTP_REQ_GET, "/v1/health", srv_get_health, SRV_ANYONE},
    {EVHTTP_REQ_GET, "/metrics", srv_get_metrics, SRV_ADMIN},
    {EVHTTP_REQ_GET, "/v1/status", srv_get_status, SRV_KEY},
    {EVHTTP_REQ_GET, "/lora-adapters", srv_get_llama_adapters, SRV_KEY},
    {EVHTTP_REQ_POST, "/lora-adapters", srv_post_llama_adapters, SRV_ADMIN},
    {EVHTTP_REQ_GET, "/props", srv_get_props, SRV_KEY},
    {EVHTTP_REQ_GET, "/slots", srv_get_slots, SRV_KEY},
    {EVHTTP_REQ_POST, "/slots/{}", srv_post_slot, SRV_KEY},
    {EVHTTP_REQ_POST, "/tokenize", srv_post_tokenize, SRV_KEY},
    {EVHTTP_REQ_POST, "/detokenize", srv_post_detokenize, SRV_KEY},
    {EVHTTP_REQ_POST, "/apply-template", srv_post_template, SRV_KEY},
};

enum { N_ROUTES = sizeof routes / sizeof routes[0] };

/* Whether the path is the pattern's; *at and *length: what {} stands for, length 0 without one. */
static bool matches(const char *pattern, const char *path, const char **at, size_t *length) {
    const char *hole = strstr(pattern, "{}");
    size_t n = strlen(path);
    *length = 0;
    if (!hole) {
        return strcmp(pattern, path) == 0;
    }
    size_t before = (size_t)(hole - pattern), after = strlen(hole + 2);
    if (n <= before + after || strncmp(path, pattern, before) != 0 || strcmp(path + n - after, hole + 2) != 0) {
        return false;
    }
    *at = path + before;
    *length = n - before - after;
    return true;
}

/* Into x->capture. False if it is no text. */
static bool decode(srv_exchange *x, const char *at, size_t length) {
    char raw[sizeof x->capture];
    size_t size = 0;
    memcpy(raw, at, length); /* shorter than the path, and that is no longer than this */
    raw[length] = '\0';
    char *text = evhttp_uridecode(raw, 0, &size);
    bool good = text && size < sizeof x->capture && strlen(text) == size && gr_utf8_valid(text, size);
    if (good) {
        memcpy(x->capture, text, size + 1);
    }
    free(text);
    return good;
}

static enum evhttp_cmd_type wanted(const srv_exchange *x) {
    return x->method == EVHTTP_REQ_HEAD ? EVHTTP_REQ_GET : x->method;
}

/* "GET, HEAD, OPTIONS"; "" if no route has the path. */
static void allowed(const char *path, char out[64]) {
    const char *at;
    size_t length;
    bool get = false, post = false, delete = false;
    for (int i = 0; i < N_ROUTES; i++) {
        if (matches(routes[i].pattern, path, &at, &length)) {
            get = get || routes[i].method == EVHTTP_REQ_GET;
            post = post || routes[i].method == EVHTTP_REQ_POST;
            delete = delete || routes[i].method == EVHTTP_REQ_DELETE;
        }
    }
    snprintf(out, 64, "%s%s%s%s", get ? "GET, HEAD, " : "", post ? "POST, " : "", delete ? "DELETE, " : "",
             get || post || delete ? "OPTIONS" : "");
}

/* Browsers send a form, plain text or bytes without a type to another site without asking it first, but JSON only after
 * that. Programs that send no type (litellm to Ollama's calls) do not say which page they come from, as browsers do. */
static bool is_json(const srv_exchange *x) {
    const char *type = srv_request_header(x, "Content-Type");
    size_t n = strlen("application/json");
    if (!type) {
        return !srv_request_header(x, "Origin") && !srv_request_header(x, "Sec-Fetch-Site");
    }
    return evutil_ascii_strncasecmp(type, "application/json", n) == 0 && strchr(" ;\t", type[n]);
}

static void call(srv_exchange *x, const srv_route *r) {
    if (r->access != SRV_ANYONE && !srv_auth_check(x)) {
        return;
    }
    if (r->access == SRV_ADMIN && !x->admin) {
        srv_reply_error(x, 403, "admin_key_needed", NULL, "this call needs a key for all projects");
        return;
    }
    /* Without a key nothing else tells the dashboard from any page that the user has open. */
    if (r->method != EVHTTP_REQ_GET && !srv_auth_asks(x->s) && srv_cors_is_stranger(x)) {
        srv_reply_error(x, 403, "origin_refused", NULL,
                        "pages of other origins may not ask this server; cors_origins lists those that may");
        return;
    }
    if (x->body_length && srv_request_header(x, "Content-Encoding")) {
        srv_reply_error(x, 415, "unsupported_media_type", NULL, "bodies are taken as they are: no Content-Encoding");
        return;
    }
    if (r->method == EVHTTP_REQ_POST && x->body_length && !is_json(x)) {
        srv_reply_error(x, 415, "unsupported_media_type", NULL, "Content-Type must be application/json");
        return;
    }
    r->handler(x);
}

static void no_route(srv_exchange *x) {
    char allow[64];
    allowed(x->path, allow);
    if (!*allow) {
        srv_reply_error(x, 404, "not_found", NULL, "no such path; /v1/models lists the models");
        return;
    }
    srv_header(x, "Allow", allow);
    if (x->method == EVHTTP_REQ_OPTIONS) {
        srv_cors_preflight(x, allow);
        srv_reply(x, 204, "text/plain", "", 0);
    } else {
        srv_reply_error(x, 405, "method_not_allowed", NULL, "this path takes %s", allow);
    }
}

void srv_route_dispatch(srv_exchange *x) {
    for (int i = 0; i < N_ROUTES; i++) {
        const char *at = "";
        size_t length = 0;
        if (routes[i].method != wanted(x) || !matches(routes[i].pattern, x->path, &at, &length)) {
            continue;
        }
        if (length && !decode(x, at, length)) {
            srv_reply_error(x, 400, "bad_request", NULL, "the path is not percent-encoded UTF-8");
            return;
        }
        call(x, &routes[i]);
        return;
    }
    no_route(x);
}
