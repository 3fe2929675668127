/*
 * A JSON schema as a grammar (GBNF) whose texts are values of the schema: all that it produces is valid, though not every
 * valid value is produced (properties come in the schema's order, and only those that it names). Keywords that restrict
 * values and are not known here are refused, never ignored. The schema comes from a stranger: depth, size and references are
 * bounded here, what the grammar may cost is bounded by the library.
 */
#ifndef SRV_SCHEMA_H
#define SRV_SCHEMA_H

#include "errors.h"

#include <jansson.h>

/* Appends the rules, `root` among them. False: 400 with `param`, in *f. */
bool srv_schema_grammar(gr_buffer *out, json_t *schema, const char *param, srv_fault *f);

#endif
