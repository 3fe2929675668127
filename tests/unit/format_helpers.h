/* What the tests of src/format share: comparing codes with a useful message, and failing every allocation in turn. */
#ifndef FORMAT_HELPERS_H
#define FORMAT_HELPERS_H

#include "base/error.h"
#include "base/memory.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* Fails with the case's name and both codes as words. On failure of the code under test the message must be there. */
static inline void expect_code(const char *name, int got, int wanted, const graft_error *err) {
    if (got != wanted) {
        print_error("%s: got %s (%s), wanted %s\n", name, graft_error_name(got), got ? err->message : "",
                    graft_error_name(wanted));
        fail();
    }
    if (got && (err->code != got || !err->message[0])) {
        print_error("%s: returned %s, but err holds %s \"%s\"\n", name, graft_error_name(got),
                    graft_error_name(err->code), err->message);
        fail();
    }
}

/* A copy of exactly this size, so that the sanitizers see a read past its end. */
static inline void *exact_copy(const void *bytes, size_t length) {
    void *copy = malloc(length ? length : 1);
    assert_non_null(copy);
    memcpy(copy, bytes, length);
    return copy;
}

/*
 * Runs `attempt` with its 1st, 2nd, … allocation failing (once, and then all from there on) until it succeeds. It returns
 * a code and must free what it made; each failure must be OUT_OF_MEMORY and leave no block behind.
 */
static inline void torture(const char *name, int (*attempt)(void *data, graft_error *err), void *data) {
    for (int forever = 0; forever < 2; forever++) {
        uint64_t before = gr_memory_blocks();
        for (uint64_t n = 1;; n++) {
            assert_true(n < 100000);
            graft_error err = {0};
            gr_memory_fail_at(n, forever);
            int code = attempt(data, &err);
            uint64_t asked = gr_memory_fail_at(0, 0);
            assert_int_equal(gr_memory_blocks(), before);
            if (asked < n) {
                expect_code(name, code, 0, &err);
                break;
            }
            expect_code(name, code, GRAFT_E_OUT_OF_MEMORY, &err);
        }
    }
}

#endif
