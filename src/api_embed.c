/* Embeddings: requests checked, and handed to the engine as jobs. */
#include "api.h"

graft_embed_request graft_embed_request_default(void) {
    return (graft_embed_request){
        .size = sizeof(graft_embed_request),
        .pooling = GRAFT_POOL_MEAN,
        .normalize = true,
        .adapter_wait_ms = -1,
    };
}

static int check(const graft_embed_request *r, graft_error *err) {
    if (r->size != sizeof *r) {
        return gr_fail(err, GRAFT_E_BAD_REQUEST, "size: %zu, must be %zu (the _default function sets it)", r->size, sizeof *r);
    }
    if (r->pooling != GRAFT_POOL_MEAN && r->pooling != GRAFT_POOL_LAST) {
        return gr_fail(err, GRAFT_E_BAD_REQUEST, "pooling: %d is none", (int)r->pooling);
    }
    return 0;
}

static int make_job(graft_job **out, graft *g, const void *requests, size_t i, graft_error *err) {
    const graft_embed_request *r = (const graft_embed_request *)requests + i;
    int rc = check(r, err);
    if (rc) {
        return rc;
    }
    gr_job_spec spec = {.kind = GR_JOB_EMBED, .max_tokens = 1, .pooling = r->pooling, .normalize = r->normalize,
                        .on_end = r->on_end, .user = r->user};
    rc = gr_api_take_adapters(g, r->adapters, r->n_adapters, &spec, err);
    rc = rc ? rc : gr_api_take_patience(g, r->fallback, r->adapter_wait_ms, &spec, err);
    rc = rc ? rc : gr_api_take_whole_text(g, r->text, r->tokens, r->n_tokens, &spec, err);
    if (rc) {
        gr_job_spec_finish(&spec);
        return rc;
    }
    return gr_job_create(out, g->engine, &spec, err);
}

int graft_embed(graft_job **out, graft *g, const graft_embed_request *requests, size_t n, graft_error *err) {
    return gr_api_submit(out, g, requests, n, make_job, err);
}
