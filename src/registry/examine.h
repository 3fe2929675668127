/* Looking at an adapter's files before they are registered: what they are, where they really lie, which generation. */
#ifndef GR_EXAMINE_H
#define GR_EXAMINE_H

#include "base/error.h"

#include <stdbool.h>
#include <stdint.h>

typedef struct gr_examined {
    char *path;          /* absolute; owned */
    const char *format;  /* "peft" or "gguf"; static. "" until the files could be opened */
    int rank;            /* the largest */
    uint64_t file_bytes; /* of the weights */
    char generation[65]; /* "" unless asked for */
} gr_examined;

/*
 * Gives *out its path (gr_examined_finish, also on failure), then opens and describes what lies there and, with `hash`,
 * reads it through. With `root` (absolute, resolved) a relative path starts there, and the adapter and its files must
 * lie below it once links are followed; the files that were opened are asked, so exchanging a link meanwhile does not help.
 * Errors: BAD_REQUEST (no path that could be), OUTSIDE_ROOT, those of gr_source_open.
 */
int gr_examine(gr_examined *out, const char *path, const char *root, uint64_t max_bytes, bool hash, graft_error *err);
void gr_examined_finish(gr_examined *e);

#endif
