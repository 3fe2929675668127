/*
 * GBNF text to rules: the grammar language of llama.cpp (its grammars/README.md), less token references (<…>).
 * A function of memory.
 *
 * Why not libllama's own parser: it prints what it refuses to stderr, recurses as deep as the text says, unfolds
 * repetitions without a bound that holds, and its matcher ends the process by an exception for some grammars. A
 * grammar comes with a request, from a stranger.
 */
#ifndef GR_GRAMMAR_RULES_H
#define GR_GRAMMAR_RULES_H

#include "base/error.h"

#include <stdbool.h>
#include <stdint.h>

#define GR_GRAMMAR_MAX_BYTES ((size_t)64 << 10)
#define GR_GRAMMAR_MAX_DEPTH 64        /* nested parentheses */
#define GR_GRAMMAR_MAX_REPEAT 2000     /* of x{m,n} */
#define GR_GRAMMAR_MAX_RULES 4096      /* also those made for groups and repetitions */
#define GR_GRAMMAR_MAX_ELEMENTS 32768

/* A rule is a run of elements: alternatives separated by ALT, closed by END. */
typedef enum gr_element_kind {
    GR_ELEMENT_END,
    GR_ELEMENT_ALT,
    GR_ELEMENT_RULE,
    GR_ELEMENT_CHAR,
    GR_ELEMENT_CLASS
} gr_element_kind;

typedef struct gr_element {
    gr_element_kind kind;
    uint32_t value; /* RULE: its id; CHAR: a code point; CLASS: its index */
} gr_element;

typedef struct gr_char_range {
    uint32_t low, high; /* inclusive */
} gr_char_range;

/* [a-z], [^a-z]; "." is the negated empty class. Ranges ascend and neither touch nor overlap. */
typedef struct gr_char_class {
    bool negated;
    uint32_t first, n; /* in `ranges` */
} gr_char_class;

typedef struct gr_rules {
    gr_element *elements;
    uint32_t n_elements;
    uint32_t *start; /* [n_rules]: first element */
    uint32_t n_rules;
    gr_char_class *classes;
    uint32_t n_classes;
    gr_char_range *ranges;
    uint32_t n_ranges;
    uint32_t root;
} gr_rules;

/* Errors: BAD_GRAMMAR with the line, OUT_OF_MEMORY. *out: gr_rules_finish. No rule can begin with itself. */
int gr_rules_parse(gr_rules *out, const char *text, graft_error *err);
void gr_rules_finish(gr_rules *r);

/* The end of an alternative. */
static inline bool gr_element_ends(const gr_element *e) {
    return e->kind == GR_ELEMENT_END || e->kind == GR_ELEMENT_ALT;
}

#endif
