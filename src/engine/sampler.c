/* From logits to a token: libllama's chain of samplers, and our grammar in front of it. */
#include "sampler.h"

#include "base/memory.h"
#include "grammar.h"

#include <float.h>
#include <math.h>
#include <string.h>

struct gr_sampler {
    const gr_vocab *vocab;
    struct llama_sampler *chain;
    gr_grammar *grammar; /* NULL = free text */
    gr_buffer piece;
    int remember;        /* tokens that the penalties look at */
    bool ignore_eos;
    const graft_logit_bias *biases; /* borrowed */
    size_t n_biases;
};

bool gr_logits_usable(const float *logits, int n) {
    bool bad = false, some = false;
    for (int i = 0; i < n; i++) {
        bad |= !(logits[i] <= FLT_MAX); /* NaN or +infinity */
        some |= logits[i] >= -FLT_MAX;
    }
    return !bad && some;
}

static bool has_penalties(const graft_sampling *s) {
    return s->repeat_last_n > 0 &&
           (s->repeat_penalty != 1.0f || s->frequency_penalty != 0.0f || s->presence_penalty != 0.0f);
}

static struct llama_sampler *make_chain(const gr_vocab *v, const graft_sampling *s) {
    struct llama_sampler_chain_params params = llama_sampler_chain_default_params();
    params.no_perf = true;
    struct llama_sampler *chain = llama_sampler_chain_init(params);
    if (has_penalties(s)) {
        llama_sampler_chain_add(chain, llama_sampler_init_penalties(v->n_tokens, s->repeat_last_n, s->repeat_penalty,
                                                                    s->frequency_penalty, s->presence_penalty));
    }
    if (s->temperature < GR_GREEDY_TEMPERATURE) {
        llama_sampler_chain_add(chain, llama_sampler_init_greedy());
        return chain;
    }
    if (s->top_k > 0) {
        llama_sampler_chain_add(chain, llama_sampler_init_top_k(s->top_k));
    }
    if (s->top_p < 1.0f) {
        llama_sampler_chain_add(chain, llama_sampler_init_top_p(s->top_p, 1));
    }
    if (s->min_p > 0.0f) {
        llama_sampler_chain_add(chain, llama_sampler_init_min_p(s->min_p, 1));
    }
    llama_sampler_chain_add(chain, llama_sampler_init_temp(s->temperature));
    llama_sampler_chain_add(chain, llama_sampler_init_dist(s->seed));
    return chain;
}

int gr_sampler_create(gr_sampler **out, const gr_vocab *v, const graft_sampling *s, bool ignore_eos,
                      graft_error *err) {
    gr_sampler *sampler = gr_zalloc(sizeof *sampler);
    if (!sampler) {
        return gr_fail_memory(err, sizeof *sampler);
    }
    sampler->vocab = v;
    sampler->ignore_eos = ignore_eos;
    sampler->remember = has_penalties(s) ? s->repeat_last_n : 0;
    gr_buffer_init(&sampler->piece, (size_t)v->longest_piece + 1);
    int rc = s->grammar ? gr_grammar_create(&sampler->grammar, s->grammar, err) : 0;
    if (rc) {
        gr_sampler_free(sampler);
        return rc;
    }
    sampler->chain = make_chain(v, s);
    *out = sampler;
    return 0;
}

void gr_sampler_free(gr_sampler *s) {
    if (s) {
        if (s->chain) {
            llama_sampler_free(s->chain);
        }
        gr_grammar_free(s->grammar);
        gr_buffer_finish(&s->piece);
        gr_free(s);
    }
}

void gr_sampler_prompt(gr_sampler *s, const llama_token *tokens, int n) {
    for (int i = n > s->remember ? n - s->remember : 0; i < n; i++) {
        llama_sampler_accept(s->chain, tokens[i]);
    }
}

void gr_sampler_bias(gr_sampler *s, const graft_logit_bias *biases, size_t n) {
    s->biases = biases;
    s->n_biases = n;
}

/* Adds the biases. What cannot be drawn leaves the array: a probability of 0 would not keep a draw from ending on it. Returns how
 * many remain. */
static size_t apply_biases(const gr_sampler *s, llama_token_data *scratch) {
    for (size_t i = 0; i < s->n_biases; i++) {
        float bias = s->biases[i].bias;
        scratch[s->biases[i].token].logit += bias <= GR_BAN ? -INFINITY : fminf(bias, GR_MOST_BIAS);
    }
    size_t kept = 0;
    for (llama_token t = 0; t < s->vocab->n_tokens; t++) {
        if (scratch[t].logit >= -FLT_MAX) {
            scratch[kept++] = scratch[t];
        }
    }
    return kept;
}

static llama_token_data_array candidates(const gr_sampler *s, const float *logits, llama_token_data *scratch) {
    for (llama_token t = 0; t < s->vocab->n_tokens; t++) {
        scratch[t] = (llama_token_data){t, logits[t], 0.0f};
    }
    for (int i = 0; s->ignore_eos && i < s->vocab->n_end_tokens; i++) {
        scratch[s->vocab->end_tokens[i]].logit = -INFINITY;
    }
    size_t n = s->n_biases ? apply_biases(s, scratch) : (size_t)s->vocab->n_tokens;
    return (llama_token_data_array){scratch, n, -1, false};
}

static int exhausted(graft_error *err) {
    return gr_fail(err, GRAFT_E_BAD_GRAMMAR, "grammar: too ambiguous: more than %d ways to read the text so far",
                   GR_GRAMMAR_MAX_STACKS);
}

/* Whether the grammar lets the token come next. */
static int allowed(gr_sampler *s, llama_token token, bool *yes, graft_error *err) {
    if (gr_vocab_is_end(s->vocab, token)) {
        *yes = gr_grammar_complete(s->grammar);
        return 0;
    }
    gr_buffer_clear(&s->piece);
    if (!gr_vocab_piece(s->vocab, token, false, &s->piece)) {
        return gr_fail_memory(err, s->piece.max);
    }
    gr_grammar_answer answer = gr_grammar_accepts(s->grammar, s->piece.data, s->piece.length);
    *yes = answer == GR_GRAMMAR_YES;
    return answer == GR_GRAMMAR_EXHAUSTED ? exhausted(err) : 0;
}

/* Keeps the candidates that the grammar lets through. */
static int filter(gr_sampler *s, llama_token_data_array *c, graft_error *err) {
    size_t kept = 0;
    for (size_t i = 0; i < c->size; i++) {
        bool yes = false;
        int rc = c->data[i].logit >= -FLT_MAX ? allowed(s, c->data[i].id, &yes, err) : 0;
        if (rc) {
            return rc;
        }
        if (yes) {
            c->data[kept++] = c->data[i];
        }
    }
    c->size = kept;
    return 0;
}

static llama_token draw(gr_sampler *s, llama_token_data_array *c) {
    if (c->size == 0) {
        return LLAMA_TOKEN_NULL;
    }
    llama_sampler_apply(s->chain, c);
    return c->selected >= 0 && (size_t)c->selected < c->size ? c->data[c->selected].id : LLAMA_TOKEN_NULL;
}

/* Asking the grammar about every token of the vocabulary is slow, and mostly the model stays within it by itself: so
 * draw first, and only if that token does not fit draw again among those that do. */
static int draw_in_grammar(gr_sampler *s, const float *logits, llama_token_data *scratch, llama_token *out,
                           graft_error *err) {
    llama_token_data_array c = candidates(s, logits, scratch);
    llama_token token = draw(s, &c);
    bool fits = false;
    int rc = token == LLAMA_TOKEN_NULL ? 0 : allowed(s, token, &fits, err);
    if (rc || fits) {
        *out = token;
        return rc;
    }
    c = candidates(s, logits, scratch);
    rc = filter(s, &c, err);
    if (rc) {
        return rc;
    }
    if (c.size == 0 && !gr_grammar_complete(s->grammar)) {
        return gr_fail(err, GRAFT_E_BAD_GRAMMAR, "grammar: no token of the vocabulary can continue the text");
    }
    *out = c.size ? draw(s, &c) : LLAMA_TOKEN_NULL;
    return 0;
}

static int take(gr_sampler *s, llama_token token, graft_error *err) {
    llama_sampler_accept(s->chain, token);
    if (!s->grammar || gr_vocab_is_end(s->vocab, token)) {
        return 0;
    }
    gr_buffer_clear(&s->piece);
    if (!gr_vocab_piece(s->vocab, token, false, &s->piece)) {
        return gr_fail_memory(err, s->piece.max);
    }
    return gr_grammar_take(s->grammar, s->piece.data, s->piece.length) == GR_GRAMMAR_YES ? 0 : exhausted(err);
}

int gr_sampler_pick(gr_sampler *s, const float *logits, llama_token_data *scratch, llama_token *out,
                    graft_error *err) {
    llama_token token = LLAMA_TOKEN_NULL;
    int rc = 0;
    if (s->grammar) {
        rc = draw_in_grammar(s, logits, scratch, &token, err);
    } else {
        llama_token_data_array c = candidates(s, logits, scratch);
        token = draw(s, &c);
        rc = c.size ? 0 : gr_fail(err, GRAFT_E_BAD_REQUEST, "logit_bias: every token that could come is banned");
    }
    if (rc == 0 && token != LLAMA_TOKEN_NULL) {
        rc = take(s, token, err);
    }
    if (rc == 0) {
        *out = token;
    }
    return rc;
}
