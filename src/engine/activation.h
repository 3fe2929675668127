/*
 * From which token on each adapter of a request acts. Pure.
 *
 * An activated LoRA (aLoRA) has invocation tokens. It acts from the first of their last occurrence in the prompt to the end of the
 * answer, and nowhere if the prompt does not have them, whatever is generated: PEFT 0.21.2's rule. What comes before is the other
 * adapters' or the base's, and so is its part of the KV cache. Any other adapter acts from the first token on.
 */
#ifndef GR_ACTIVATION_H
#define GR_ACTIVATION_H

#include "lora/row_plan.h"

#include <limits.h>
#include <llama.h>

#define GR_NEVER INT_MAX

/* Position of the first token with which the adapter acts, or GR_NEVER. */
int gr_activation_start(const gr_adapter *a, const llama_token *prompt, int n);

/* The sets of a sequence: sets[i] acts from position from[i] on, up to from[i + 1]. Each contains those before it. from[0] is 0. */
typedef struct gr_activation {
    gr_adapter_set sets[GR_MAX_USES + 1];
    int from[GR_MAX_USES + 1];
    int n; /* at least 1 */
} gr_activation;

/* starts[i] is where set->adapters[i] begins; NULL: all at 0. Borrows the adapters. */
void gr_activation_make(gr_activation *out, const gr_adapter_set *set, const int *starts);
/* The set that acts at this position. */
const gr_adapter_set *gr_activation_at(const gr_activation *a, int position);
/* The first position after this one with another set, or GR_NEVER. */
int gr_activation_until(const gr_activation *a, int position);
/* All that ever act. */
const gr_adapter_set *gr_activation_all(const gr_activation *a);

#endif
