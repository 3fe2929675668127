/* For tests of the engine and the API: small models, and adapters for them, that lie in the repository. */
#ifndef ENGINE_HELPERS_H
#define ENGINE_HELPERS_H

#include <stdio.h>
#include <stdlib.h>

/* Path below tests/oracle/golden/, in one of a few static buffers. */
static inline const char *golden(const char *name) {
    static char paths[4][512];
    static int next;
    char *path = paths[next++ % 4];
    snprintf(path, sizeof paths[0], "%s/oracle/golden/%s", GRAFT_TEST_DATA, name);
    return path;
}

#endif
