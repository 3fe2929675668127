/*
 * What may come next under a GBNF grammar: a set of pushdown stacks that advances character by character, bytes of
 * cut-off characters included. Pure; one owner at a time.
 */
#ifndef GR_GRAMMAR_H
#define GR_GRAMMAR_H

#include "base/error.h"

#include <stdbool.h>
#include <stddef.h>

/* A grammar so ambiguous that it needs more than these is given up (GR_GRAMMAR_EXHAUSTED), whoever sent it. */
#define GR_GRAMMAR_MAX_STACKS 256           /* ways to read what came so far */
#define GR_GRAMMAR_MAX_NODES (1u << 18)     /* of all stacks together */
#define GR_GRAMMAR_MAX_WORK 20000000u       /* moves of one stack by one character, between two gr_grammar_take */

typedef struct gr_grammar gr_grammar;

typedef enum gr_grammar_answer { GR_GRAMMAR_NO, GR_GRAMMAR_YES, GR_GRAMMAR_EXHAUSTED } gr_grammar_answer;

/* Errors: BAD_GRAMMAR, OUT_OF_MEMORY. *out: gr_grammar_free. */
int gr_grammar_create(gr_grammar **out, const char *text, graft_error *err);
void gr_grammar_free(gr_grammar *g);

/* Whether bytes[0..n) may come next. Nothing (n = 0) may not. */
gr_grammar_answer gr_grammar_accepts(gr_grammar *g, const char *bytes, size_t n);
/* Moves on over them. Unless the answer is YES the grammar stays where it was. */
gr_grammar_answer gr_grammar_take(gr_grammar *g, const char *bytes, size_t n);
/* Whether the text may end here. */
bool gr_grammar_complete(const gr_grammar *g);

#endif
