/* From where on an adapter acts: tables, and random starts against one position at a time. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "engine/activation.h"

/* Letters as tokens. */
static int to_tokens(const char *s, int32_t *out) {
    int n = 0;
    for (; s[n]; n++) {
        out[n] = s[n];
    }
    return n;
}

static void test_start(void **state) {
    (void)state;
    static const struct {
        const char *invocation, *prompt;
        int start;
    } table[] = {
        {NULL, "abc", 0},
        {"b", "abc", 1},
        {"bc", "abcd", 1},
        {"bc", "abcbcd", 3},          /* the last one */
        {"bc", "abc", 1},             /* at the very end */
        {"bcd", "abc", GR_NEVER},     /* what is generated does not complete it */
        {"x", "abc", GR_NEVER},
        {"abc", "abc", 0},
        {"abcd", "abc", GR_NEVER},    /* longer than the prompt */
        {"aa", "aaaa", 2},            /* overlapping: the last */
        {"aab", "aaaab", 2},
        {"ab", "abab", 2},
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        int32_t invocation[8], prompt[8];
        gr_adapter a = {.references = 1};
        if (table[i].invocation) {
            a.n_invocation = to_tokens(table[i].invocation, invocation);
            a.invocation = invocation;
        }
        int start = gr_activation_start(&a, prompt, to_tokens(table[i].prompt, prompt));
        if (start != table[i].start) {
            fail_msg("%s in %s: %d", table[i].invocation, table[i].prompt, start);
        }
    }
}

static uint32_t seed = 7;
static int roll(int n) {
    seed = seed * 1664525u + 1013904223u;
    return (int)((uint64_t)(seed >> 8) * (uint32_t)n >> 24);
}

static bool same_sets(const gr_adapter_set *a, const gr_adapter_set *b) {
    bool same = a->n == b->n;
    for (int i = 0; i < a->n && same; i++) {
        same = a->adapters[i] == b->adapters[i] && a->scales[i] == b->scales[i];
    }
    return same;
}

static void test_random_sets(void **state) {
    (void)state;
    static gr_adapter adapters[GR_MAX_USES];
    for (int round = 0; round < 5000; round++) {
        gr_adapter_set set = {.n = roll(GR_MAX_USES + 1)};
        int starts[GR_MAX_USES];
        for (int i = 0; i < set.n; i++) {
            set.adapters[i] = &adapters[i];
            set.scales[i] = (float)(1 + roll(9));
            starts[i] = roll(4) ? roll(12) : GR_NEVER;
        }
        gr_activation active;
        gr_activation_make(&active, &set, starts);
        assert_in_range(active.n, 1, GR_MAX_USES + 1);
        for (int at = 0; at < 14; at++) {
            gr_adapter_set want = {.n = 0};
            for (int i = 0; i < set.n; i++) {
                if (starts[i] <= at) {
                    want.adapters[want.n] = set.adapters[i];
                    want.scales[want.n++] = set.scales[i];
                }
            }
            const gr_adapter_set *now = gr_activation_at(&active, at);
            assert_true(same_sets(now, &want));
            int until = gr_activation_until(&active, at);
            assert_true(until > at && (until == GR_NEVER || gr_activation_at(&active, until - 1) == now));
            assert_true(until == GR_NEVER || gr_activation_at(&active, until)->n > now->n);
            assert_true(until != GR_NEVER || now == gr_activation_all(&active));
        }
    }
}

static void test_from_the_beginning(void **state) {
    (void)state;
    static gr_adapter adapters[2];
    gr_adapter_set set = {.adapters = {&adapters[0], &adapters[1]}, .scales = {1, 2}, .n = 2};
    gr_activation active;
    gr_activation_make(&active, &set, NULL);
    assert_int_equal(active.n, 1);
    assert_true(same_sets(gr_activation_at(&active, 0), &set) && gr_activation_until(&active, 0) == GR_NEVER);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_start),
        cmocka_unit_test(test_random_sets),
        cmocka_unit_test(test_from_the_beginning),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
