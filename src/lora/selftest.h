/* Does the row-wise way work with this libllama on this model? Compared with libllama's own adapter path. */
#ifndef GR_SELFTEST_H
#define GR_SELFTEST_H

#include "lora/grouped.h"
#include "lora/hook.h"

typedef struct gr_selftest_result {
    bool passed;
    double difference;   /* largest relative difference of logits, rows against libllama */
    double effect;       /* smallest difference that a test adapter makes against the base: must be large */
    char text[160];      /* for people */
} gr_selftest_result;

/*
 * Makes two small random adapters over every kind of weight that the architecture's table has, in the first and
 * the last layer, decodes batches that mix both with base rows and with rows without output, and compares with
 * libllama's adapter path. Uses sequences 0 to 3 of ctx and clears its memory afterwards; at least 8 rows per batch
 * are needed. Takes a dozen decodes of some 26 rows. Decode thread only.
 * Returns 0 with the outcome in *out (not passed, with a text, where it cannot be run for lack of a table), or
 * OUT_OF_MEMORY / DECODE_FAILED when the test itself could not run.
 */
int gr_selftest(gr_selftest_result *out, const gr_base_model *base, struct llama_context *ctx, gr_hook *hook,
                gr_grouped *grouped, graft_error *err);

#endif
