/* Whose turn it is when a slot is free. */
#include "engine/turns.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <cmocka.h>

/* The key that would be taken of these. */
static uint64_t turn(gr_turns *t, const uint64_t *keys, int n) {
    int best = 0;
    for (int i = 1; i < n; i++) {
        best = gr_turns_rank(t, keys[i]) < gr_turns_rank(t, keys[best]) ? i : best;
    }
    gr_turns_began(t, keys[best]);
    return keys[best];
}

static void fewest_in_slots_first(void **state) {
    (void)state;
    gr_turns t;
    memset(&t, 0, sizeof t);
    gr_turns_look(&t);
    for (int i = 0; i < 7; i++) {
        gr_turns_running(&t, 1);
    }
    gr_turns_running(&t, 2);
    assert_int_equal(gr_turns_rank(&t, 3), 0);
    assert_true(gr_turns_rank(&t, 2) < gr_turns_rank(&t, 1));
    assert_int_equal(turn(&t, (uint64_t[]){1, 2, 3}, 3), 3);
    gr_turns_look(&t); /* all have left: what began longest ago */
    assert_int_equal(turn(&t, (uint64_t[]){3, 1}, 2), 1);
}

static void one_slot_goes_round(void **state) {
    (void)state;
    gr_turns t;
    memset(&t, 0, sizeof t);
    for (int i = 0; i < 300; i++) { /* 0 is the base, a key like others */
        gr_turns_look(&t);
        assert_int_equal(turn(&t, (uint64_t[]){0, 1, 2}, 3), i % 3);
    }
}

/* More keys than are remembered: all get their turn. */
static void many_keys(void **state) {
    (void)state;
    enum { KEYS = 3 * GR_TURNS_KEPT };
    gr_turns t;
    uint64_t keys[KEYS];
    int began[KEYS] = {0};
    memset(&t, 0, sizeof t);
    for (int round = 0; round < 2; round++) {
        for (int i = 0; i < KEYS; i++) { /* who had a turn goes to the end, as a queue does it */
            keys[i] = 1 + (uint64_t)i;
        }
        for (int i = 0; i < KEYS; i++) {
            gr_turns_look(&t);
            uint64_t key = turn(&t, keys + i, KEYS - i);
            began[key - 1]++;
            for (int j = i; j < KEYS; j++) {
                if (keys[j] == key) {
                    keys[j] = keys[i];
                    keys[i] = key;
                }
            }
        }
    }
    for (int i = 0; i < KEYS; i++) {
        assert_int_equal(began[i], 2);
    }
}

static void more_runs_than_slots_is_no_overflow(void **state) {
    (void)state;
    gr_turns t;
    memset(&t, 0, sizeof t);
    for (int i = 0; i < 2 * GR_MAX_SLOTS; i++) {
        gr_turns_running(&t, 1);
    }
    assert_int_equal(t.n_running, GR_MAX_SLOTS);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(fewest_in_slots_first),
        cmocka_unit_test(one_slot_goes_round),
        cmocka_unit_test(many_keys),
        cmocka_unit_test(more_runs_than_slots_is_no_overflow),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
