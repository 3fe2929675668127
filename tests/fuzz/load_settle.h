/* Makes a folder's config and header agree with each other and with the tiny llama base: then it is accepted, as a rule. */
#ifndef GR_FUZZ_LOAD_SETTLE_H
#define GR_FUZZ_LOAD_SETTLE_H

#include <jansson.h>
#include <stdint.h>

void fuzz_settle(json_t *config, json_t *header);
/* Numbers of one tensor that are small enough for any type. */
void fuzz_settle_values(uint8_t *data, size_t bytes, const char *dtype);

#endif
