/* Which adapters can act on one row together. */
#ifndef GR_COMBINE_H
#define GR_COMBINE_H

#include "lora/row_plan.h"

/*
 * Deltas add up, in any order. But of what replaces a weight or scales its outputs (DoRA, a whole head or embedding, tokens of
 * them, a norm) a row can have one for each weight: two would give a result that depends on their order, as it does in PEFT
 * itself. False: there are two, and *one, *other (in the set's order) and *weight say which.
 */
bool gr_adapters_combine(const gr_adapter_set *set, const gr_adapter **one, const gr_adapter **other, int *weight);

#endif
