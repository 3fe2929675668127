/* For targets that need an open base: how the tiny one is opened. GRAFT_FUZZ_BASE is its path. */
#ifndef GR_FUZZ_TINY_BASE_H
#define GR_FUZZ_TINY_BASE_H

#include "fuzz.h"
#include "graft.h"

static inline graft *fuzz_open_base(void) {
    graft_options o = graft_options_default();
    graft_error err;
    graft *g = NULL;
    o.model = GRAFT_FUZZ_BASE;
    o.slots = 1;
    o.context = 64;
    o.batch = 32;
    o.threads = 1;
    o.self_test = false;
    if (graft_open(&g, &o, &err)) {
        fuzz_broken(__FILE__, __LINE__, err.message);
    }
    return g;
}

#endif
