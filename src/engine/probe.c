/* A few tokens through the decode thread, with an adapter and without. */
#include "probe.h"

#include "base/memory.h"
#include "engine/job.h"

#include <math.h>
#include <string.h>

#define TEXT "What is this project about?"

struct gr_probe {
    gr_engine *engine;
    gr_adapter_set none;
    llama_token tokens[GR_PROBE_TOKENS];
    int n_tokens;
    int n_vocab;
    gr_mutex mutex; /* rank PROBE: `base` */
    float *base;    /* [n_vocab]: logits of the last token without adapter; NULL = not evaluated yet */
};

int gr_probe_create(gr_probe **out, gr_engine *e, graft_error *err) {
    gr_probe *p = gr_zalloc(sizeof *p);
    llama_token *tokens = NULL;
    int n = 0;
    if (!p) {
        return gr_fail_memory(err, sizeof *p);
    }
    const gr_vocab *vocab = gr_engine_vocab(e);
    gr_mutex_init(&p->mutex, GR_RANK_PROBE);
    p->engine = e;
    p->n_vocab = vocab->n_tokens;
    int rc = gr_vocab_tokenize(vocab, TEXT, strlen(TEXT), true, false, 4096, &tokens, &n, err);
    if (rc) {
        gr_probe_free(p);
        return rc;
    }
    p->n_tokens = n < GR_PROBE_TOKENS ? n : GR_PROBE_TOKENS;
    memcpy(p->tokens, tokens, (size_t)p->n_tokens * sizeof *tokens);
    p->n_tokens = p->n_tokens > 0 ? p->n_tokens : 1; /* a vocabulary without these characters: token 0 will do */
    gr_free(tokens);
    *out = p;
    return 0;
}

void gr_probe_free(gr_probe *p) {
    if (p) {
        gr_free(p->base);
        gr_mutex_finish(&p->mutex);
        gr_free(p);
    }
}

/* Keeps the last row: calls come in the tokens' order. On the decode thread. */
static void keep_last(const float *logits, size_t first, size_t count, int n_vocab, void *user) {
    (void)first;
    memcpy(user, logits + (count - 1) * (size_t)n_vocab, (size_t)n_vocab * sizeof *logits);
}

/* Logits of the last token into `out`, with `a` or (NULL) the base. */
static int evaluate(const gr_probe *p, gr_adapter *a, float *out, graft_error *err) {
    gr_job_spec spec = {.kind = GR_JOB_SCORE, .probe = true, .max_tokens = 1, .on_logits = keep_last, .user = out};
    graft_job *job;
    spec.tokens = gr_calloc((size_t)p->n_tokens, sizeof *spec.tokens);
    if (!spec.tokens) {
        return gr_fail_memory(err, (size_t)p->n_tokens * sizeof *spec.tokens);
    }
    memcpy(spec.tokens, p->tokens, (size_t)p->n_tokens * sizeof *spec.tokens);
    spec.n_tokens = p->n_tokens;
    if (a) {
        gr_adapter_set_add(&spec.adapters, a, 1);
    }
    int rc = gr_job_run(&job, p->engine, &spec, err);
    if (!rc) {
        graft_job_free(job);
    }
    return rc;
}

/* The base's logits, evaluated once. Two who come first together both do it, and get the same. */
static int base_logits(gr_probe *p, const float **out, graft_error *err) {
    gr_mutex_lock(&p->mutex);
    const float *known = p->base;
    gr_mutex_unlock(&p->mutex);
    if (!known) {
        float *made = gr_calloc((size_t)p->n_vocab, sizeof *made);
        int rc = made ? evaluate(p, NULL, made, err) : gr_fail_memory(err, (size_t)p->n_vocab * sizeof *made);
        if (rc) {
            gr_free(made);
            return rc;
        }
        gr_mutex_lock(&p->mutex);
        if (!p->base) {
            p->base = made;
            made = NULL;
        }
        known = p->base;
        gr_mutex_unlock(&p->mutex);
        gr_free(made);
    }
    *out = known;
    return 0;
}

static bool differ(const float *a, const float *b, int n) {
    float size = 0, most = 0;
    for (int i = 0; i < n; i++) {
        float d = fabsf(a[i] - b[i]);
        most = d > most ? d : most;
        size = fabsf(a[i]) > size ? fabsf(a[i]) : size;
    }
    return most > GR_PROBE_NOISE * size;
}

int gr_probe_run(gr_probe *p, gr_adapter *a, bool *no_effect, graft_error *err) {
    const float *base;
    int rc = base_logits(p, &base, err);
    if (rc) {
        return rc;
    }
    float *logits = gr_calloc((size_t)p->n_vocab, sizeof *logits);
    rc = logits ? evaluate(p, a, logits, err) : gr_fail_memory(err, (size_t)p->n_vocab * sizeof *logits);
    if (!rc) {
        *no_effect = !differ(logits, base, p->n_vocab);
    }
    gr_free(logits);
    return rc;
}
