/* The table of paths. A pattern holds at most one {}, which stands for one or more characters, '/' among them: names of adapters
 * may be sent with it or percent-encoded. */
#ifndef SRV_ROUTE_H
#define SRV_ROUTE_H

#include "http.h"

typedef enum srv_access {
    SRV_ANYONE, /* without a key */
    SRV_KEY,    /* any key: the handler shows and does only what srv_may allows */
    SRV_ADMIN
} srv_access;

typedef struct srv_route {
    enum evhttp_cmd_type method;
    const char *pattern;
    void (*handler)(srv_exchange *x);
    srv_access access;
} srv_route;

/* Finds the handler and calls it; HEAD goes to GET's. 404, 405 with Allow, 401, 403, 415 (a body that is not JSON) come from
 * here. */
void srv_route_dispatch(srv_exchange *x);

/* openai_api.c */
void srv_get_models(srv_exchange *x);
void srv_get_model(srv_exchange *x);
void srv_post_chat(srv_exchange *x);
void srv_post_completions(srv_exchange *x);
void srv_post_embeddings(srv_exchange *x);
/* ollama_api.c */
void srv_post_ollama_chat(srv_exchange *x);
void srv_post_ollama_generate(srv_exchange *x);
void srv_post_ollama_embed(srv_exchange *x);
void srv_post_ollama_embeddings(srv_exchange *x);
/* ollama_models.c */
void srv_get_ollama_tags(srv_exchange *x);
void srv_get_ollama_ps(srv_exchange *x);
void srv_post_ollama_show(srv_exchange *x);
void srv_get_ollama_version(srv_exchange *x);
void srv_ollama_elsewhere(srv_exchange *x);
/* adapters_api.c */
void srv_post_load(srv_exchange *x);
void srv_post_unload(srv_exchange *x);
void srv_get_adapters(srv_exchange *x);
void srv_post_pin(srv_exchange *x);
void srv_post_unpin(srv_exchange *x);
void srv_post_load_named(srv_exchange *x);
void srv_post_unload_named(srv_exchange *x);
void srv_get_projects(srv_exchange *x);
void srv_get_current(srv_exchange *x);
void srv_post_current(srv_exchange *x);
void srv_get_health(srv_exchange *x);
/* scan_api.c */
void srv_post_scan(srv_exchange *x);
/* keys_api.c */
void srv_get_keys(srv_exchange *x);
void srv_post_key(srv_exchange *x);
void srv_delete_key(srv_exchange *x);
/* metrics_page.c */
void srv_get_metrics(srv_exchange *x);
/* llama_api.c */
void srv_get_llama_adapters(srv_exchange *x);
void srv_post_llama_adapters(srv_exchange *x);
void srv_get_props(srv_exchange *x);
void srv_get_slots(srv_exchange *x);
void srv_post_slot(srv_exchange *x);
/* text_api.c */
void srv_post_tokenize(srv_exchange *x);
void srv_post_detokenize(srv_exchange *x);
void srv_post_template(srv_exchange *x);
/* status_api.c */
void srv_get_status(srv_exchange *x);
/* dashboard.c */
void srv_get_root(srv_exchange *x);
void srv_get_dashboard_file(srv_exchange *x);
void srv_get_openapi(srv_exchange *x);

#endif
