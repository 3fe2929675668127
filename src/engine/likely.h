/* Probabilities from logits. Pure. */
#ifndef GR_LIKELY_H
#define GR_LIKELY_H

#include <llama.h>

#define GR_MAX_TOP 20

/* Logarithm of the sum of e to the power of each: a token's log-probability is its logit less this. The logits are finite or
 * -INFINITY, some finite. */
double gr_log_sum(const float *logits, int n);

/* The tokens with the k largest logits, best first, of equal ones the smaller token. k <= n and GR_MAX_TOP. */
void gr_likeliest(const float *logits, int n, llama_token *out, int k);

#endif
