/* For peft_config.c: the options of adapter_config.json that are lists of modules or of tokens. */
#ifndef GR_PEFT_LISTS_H
#define GR_PEFT_LISTS_H

#include "format/json.h"
#include "format/peft_config.h"

/* Reads modules_to_save, trainable_token_indices and alora_invocation_tokens into *c. Wrong types and OUT_OF_MEMORY are returned,
 * numbers and lengths outside their range reported. */
int gr_peft_lists_read(gr_peft_config *c, const json_t *root, gr_report *report, graft_error *err);
void gr_peft_lists_finish(gr_peft_config *c);

#endif
