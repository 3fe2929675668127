/* From logits to a token: one sampler per sequence, over libllama's sampler chain and our own grammar. */
#ifndef GR_SAMPLER_H
#define GR_SAMPLER_H

#include "vocab.h"

typedef struct gr_sampler gr_sampler;

/*
 * biases, penalties, top-k, top-p, min-p, temperature, random draw; greedy below GR_GREEDY_TEMPERATURE (penalties and grammar
 * still count). With ignore_eos, tokens that end a generation are never drawn. `v` and the grammar's text are only
 * borrowed: v until gr_sampler_free, the text during the call. Errors: BAD_GRAMMAR, OUT_OF_MEMORY.
 */
int gr_sampler_create(gr_sampler **out, const gr_vocab *v, const graft_sampling *s, bool ignore_eos,
                      graft_error *err);
void gr_sampler_free(gr_sampler *s);

#define GR_MAX_BIASES 1024
#define GR_BAN (-100.0f)      /* and below: the token is never drawn */
#define GR_MOST_BIAS 1000.0f  /* more adds nothing, and would overflow */

/* Added to logits before anything else; a token may come several times. Tokens within the vocabulary, biases finite.
 * Borrowed until gr_sampler_free. */
void gr_sampler_bias(gr_sampler *s, const graft_logit_bias *biases, size_t n);

/* Dividing by less would overflow float32 logits. */
#define GR_GREEDY_TEMPERATURE 1e-4f

/* Shows the prompt to the penalties (not to the grammar). */
void gr_sampler_prompt(gr_sampler *s, const llama_token *tokens, int n);

/*
 * Draws the next token and takes it into account. `logits` has n_tokens finite or -INFINITY values, at least one
 * finite; `scratch` room for n_tokens. *out is LLAMA_TOKEN_NULL when the grammar allows nothing more and the text is
 * complete. Errors: BAD_GRAMMAR when it is not complete, or the grammar is too ambiguous; BAD_REQUEST when biases ban all
 * that could come; OUT_OF_MEMORY.
 */
int gr_sampler_pick(gr_sampler *s, const float *logits, llama_token_data *scratch, llama_token *out, graft_error *err);

/* Whether all values are finite or -INFINITY, and some finite. */
bool gr_logits_usable(const float *logits, int n);

#endif
