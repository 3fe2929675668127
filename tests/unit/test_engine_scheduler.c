/* Who gets rows: a table, and random workloads in which nobody may starve. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "engine/scheduler.h"

#define G(served_in) {.served = served_in, .want = 1, .generating = true}
#define P(rows) {.want = rows}
#define S(rows) {.want = rows, .scoring = true}

static void test_table(void **state) {
    (void)state;
    static const struct {
        const char *what;
        int capacity, outputs, n;
        gr_sched_item items[6];
        int rows[6];
    } table[] = {
        {"nothing but generating", 16, 16, 3, {G(0), G(0), G(0)}, {1, 1, 1}},
        {"one prompt takes all", 16, 16, 1, {P(100)}, {16}},
        {"a short prompt", 16, 16, 1, {P(3)}, {3}},
        {"generating first, the prompt gets the rest", 16, 16, 3, {G(0), P(100), G(0)}, {1, 14, 1}},
        {"half shared, the rest to the oldest", 16, 16, 2, {P(100), P(100)}, {12, 4}},
        {"what the oldest does not need goes on", 16, 16, 3, {P(4), P(100), P(100)}, {4, 10, 2}},
        {"a short prompt is not stuck behind a long one", 64, 64, 2, {P(4000), P(5)}, {59, 5}},
        {"more generating than rows: longest waiting", 3, 4, 4, {G(7), G(5), G(8), G(6)}, {1, 1, 0, 1}},
        {"prompts keep a quarter", 4, 5, 5, {G(1), G(2), G(3), G(4), P(9)}, {1, 1, 1, 0, 1}},
        {"but no more than they need", 8, 9, 5, {G(1), G(2), G(3), G(4), P(1)}, {1, 1, 1, 1, 1}},
        {"scoring is bounded by outputs", 64, 10, 1, {S(500)}, {10}},
        {"one output is left for the generating", 64, 10, 2, {G(0), S(500)}, {1, 9}},
        {"and one for a prompt that may end", 64, 10, 2, {P(500), S(500)}, {55, 9}},
        {"two scoring ones", 64, 4, 2, {S(500), S(500)}, {3, 1}},
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        gr_sched_item items[6];
        memcpy(items, table[i].items, sizeof items);
        for (int k = 0; k < table[i].n; k++) {
            items[k].age = (uint64_t)k + 1;
        }
        gr_schedule(items, table[i].n, table[i].capacity, table[i].outputs);
        for (int k = 0; k < table[i].n; k++) {
            if (items[k].rows != table[i].rows[k]) {
                fail_msg("%s: item %d got %d rows, not %d", table[i].what, k, items[k].rows, table[i].rows[k]);
            }
        }
    }
}

/* ---- a simulated engine -------------------------------------------------------------------------------- */

static uint32_t seed = 7;
static int roll(int n) {
    seed = seed * 1664525u + 1013904223u;
    return (int)((uint64_t)(seed >> 8) * (uint32_t)n >> 24);
}

typedef struct sim_job {
    bool here, scoring;
    int prompt, tokens; /* rows still to go */
    uint64_t age, served;
} sim_job;

typedef struct sim {
    sim_job slots[32];
    int n_slots, capacity, outputs;
    uint64_t age, step;
} sim;

static void check_sums(const sim *s, const gr_sched_item *items, int n) {
    int rows = 0, outputs = 0, wanted = 0;
    for (int i = 0; i < n; i++) {
        assert_true(items[i].rows >= 0 && items[i].rows <= items[i].want);
        rows += items[i].rows;
        wanted += items[i].want;
        outputs += items[i].scoring ? items[i].rows : items[i].rows > 0;
    }
    assert_true(rows <= s->capacity);
    assert_true(outputs <= s->outputs);
    if (n > 0) {
        assert_true(rows > 0);
    }
    bool scoring = false;
    for (int i = 0; i < n; i++) {
        scoring = scoring || items[i].scoring;
    }
    if (!scoring && wanted >= s->capacity) {
        /* Only generating ones, at one row each, may leave room. */
        int generating = 0;
        for (int i = 0; i < n; i++) {
            generating += items[i].generating;
        }
        assert_true(rows == s->capacity || generating == n);
    }
}

/* Nobody who generates waits for more than all the others' turns; the oldest prompt advances in every step. */
static void check_fair(const sim *s, const gr_sched_item *items, int n) {
    int oldest = -1;
    for (int i = 0; i < n; i++) {
        if (!items[i].generating && (oldest < 0 || items[i].age < items[oldest].age)) {
            oldest = i;
        }
    }
    if (oldest >= 0) {
        assert_true(items[oldest].rows > 0);
    }
    int share = s->capacity / 4 > 1 ? s->capacity / 4 : 1;
    uint64_t turns = (uint64_t)(s->n_slots / (s->capacity - share) + 2);
    for (int i = 0; i < n; i++) {
        if (items[i].generating && items[i].rows == 0) {
            assert_true(s->step - items[i].served <= turns);
        }
    }
}

static void sim_step(sim *s) {
    gr_sched_item items[32];
    sim_job *of[32];
    int n = 0;
    for (int i = 0; i < s->n_slots; i++) {
        sim_job *j = &s->slots[i];
        if (!j->here && roll(3) == 0) {
            *j = (sim_job){true, roll(6) == 0, 1 + roll(roll(2) ? 20 : 400), 1 + roll(30), ++s->age, s->step};
        }
        if (j->here) {
            of[n] = j;
            items[n] = (gr_sched_item){j->age, j->served, j->prompt ? j->prompt : 1, !j->prompt, j->scoring, 0};
            n++;
        }
    }
    s->step++;
    gr_schedule(items, n, s->capacity, s->outputs);
    check_sums(s, items, n);
    check_fair(s, items, n);
    for (int i = 0; i < n; i++) {
        if (items[i].rows > 0) {
            of[i]->served = s->step;
            *(of[i]->prompt ? &of[i]->prompt : &of[i]->tokens) -= items[i].rows;
        }
        if (of[i]->prompt == 0 && (of[i]->tokens == 0 || of[i]->scoring)) {
            of[i]->here = false;
        }
    }
}

static void test_random_workloads(void **state) {
    (void)state;
    for (int round = 0; round < 300; round++) {
        sim s = {.n_slots = 1 + roll(32), .capacity = 2 + roll(64)};
        s.outputs = s.n_slots + roll(64);
        for (int i = 0; i < 300; i++) {
            sim_step(&s);
        }
    }
}

/* A stream of short jobs must not keep a long prompt from its end. */
static void test_long_prompt_ends(void **state) {
    (void)state;
    int left = 3000, steps = 0;
    uint64_t age = 1;
    while (left > 0) {
        gr_sched_item items[3] = {
            {.age = 1, .want = left}, {.age = age + 1, .want = 500}, {.age = age + 2, .want = 500}};
        age += 2;
        gr_schedule(items, 3, 64, 64);
        left -= items[0].rows;
        assert_true(++steps < 3000 / 30);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_table),
        cmocka_unit_test(test_random_workloads),
        cmocka_unit_test(test_long_prompt_ends),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
