/* Row plans: a table of small cases, and random batches against a plan made the slow and obvious way. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "base/memory.h"
#include "lora/random_adapter.h"
#include "lora/row_plan.h"

#include <string.h>

enum { MAX_ROWS = 96, ADAPTERS = 40 };

static gr_adapter adapters[ADAPTERS]; /* only their addresses matter */

static void add(gr_adapter_set *set, int adapter, float scale) {
    int at = set->n++;
    while (at > 0 && set->adapters[at - 1] > &adapters[adapter]) {
        set->adapters[at] = set->adapters[at - 1];
        set->scales[at] = set->scales[at - 1];
        at--;
    }
    set->adapters[at] = &adapters[adapter];
    set->scales[at] = scale;
}

static void check_group(const gr_row_group *g, int adapter, const char *rows, const char *out_rows) {
    assert_ptr_equal(g->adapter, &adapters[adapter]);
    assert_int_equal(g->n_rows, strlen(rows));
    assert_int_equal(g->n_out_rows, strlen(out_rows));
    for (int i = 0; i < g->n_rows; i++) {
        assert_int_equal(g->rows[i], rows[i] - '0');
    }
    for (int i = 0; i < g->n_out_rows; i++) {
        assert_int_equal(g->out_rows[i], out_rows[i] - '0');
    }
}

static void test_table(void **state) {
    gr_row_plan *p;
    gr_adapter_set a = {.n = 0}, b = {.n = 0}, ab = {.n = 0}, none = {.n = 0};
    (void)state;
    add(&a, 3, 1.0f);
    add(&b, 7, 0.5f);
    add(&ab, 7, -2.0f);
    add(&ab, 3, 0.25f);
    assert_int_equal(gr_row_plan_create(&p, 8, NULL), 0);
    const gr_adapter_set *sets[8] = {&b, NULL, &a, &ab, &none, &b, &a, &ab};
    int8_t output[8] = {0, 1, 0, 1, 0, 1, 1, 0};
    gr_row_plan_build(p, sets, output, 8);
    assert_int_equal(p->n_tokens, 8);
    assert_int_equal(p->n_outputs, 4);
    assert_int_equal(p->n_groups, 2);
    check_group(&p->groups[0], 3, "2367", "13"); /* outputs are rows 1, 3, 5, 6 */
    check_group(&p->groups[1], 7, "0357", "12");
    static const float scales_a[] = {1.0f, 0.25f, 1.0f, 0.25f}, scales_b[] = {0.5f, -2.0f, 0.5f, -2.0f};
    assert_memory_equal(p->groups[0].scales, scales_a, sizeof scales_a);
    assert_memory_equal(p->groups[1].scales, scales_b, sizeof scales_b);
    assert_true(p->groups[0].out_scales[0] == 0.25f && p->groups[0].out_scales[1] == 1.0f);
    assert_true(p->groups[1].out_scales[0] == -2.0f && p->groups[1].out_scales[1] == 0.5f);

    /* base rows only; no rows; then something again */
    gr_row_plan_build(p, (const gr_adapter_set *const[]){NULL, &none}, (int8_t[]){1, 0}, 2);
    assert_int_equal(p->n_groups, 0);
    assert_int_equal(p->n_tokens, 2);
    assert_int_equal(p->n_outputs, 1);
    gr_row_plan_build(p, sets, output, 0);
    assert_int_equal(p->n_groups + p->n_tokens + p->n_outputs, 0);
    gr_row_plan_build(p, sets, output, 1);
    assert_int_equal(p->n_groups, 1);
    check_group(&p->groups[0], 7, "0", "");
    gr_row_plan_free(p);
}

/* Looks at every (group, row) on its own. */
static void check_against_naive(const gr_row_plan *p, const gr_adapter_set *const *sets, const int8_t *output,
                                int n) {
    int pairs = 0, out_pairs = 0, found = 0, found_out = 0;
    for (int i = 0, out = 0; i < n; out += output[i] != 0, i++) {
        for (int u = 0; sets[i] && u < sets[i]->n; u++) {
            pairs++;
            out_pairs += output[i] != 0;
            for (int g = 0; g < p->n_groups; g++) {
                const gr_row_group *group = p->groups + g;
                for (int r = 0; r < group->n_rows && group->adapter == sets[i]->adapters[u]; r++) {
                    found += group->rows[r] == i && group->scales[r] == sets[i]->scales[u];
                }
                for (int r = 0; r < group->n_out_rows && group->adapter == sets[i]->adapters[u]; r++) {
                    found_out += output[i] && group->out_rows[r] == out && group->out_scales[r] == sets[i]->scales[u];
                }
            }
        }
    }
    assert_int_equal(found, pairs);
    assert_int_equal(found_out, out_pairs);
    for (int g = 0; g < p->n_groups; g++) {
        const gr_row_group *group = p->groups + g;
        assert_true(g == 0 || p->groups[g - 1].adapter < group->adapter);
        assert_true(group->n_rows > 0);
        for (int r = 0; r < group->n_rows; r++, pairs--) {
            assert_true(r == 0 || group->rows[r - 1] < group->rows[r]);
        }
        for (int r = 0; r < group->n_out_rows; r++, out_pairs--) {
            assert_true(r == 0 || group->out_rows[r - 1] < group->out_rows[r]);
        }
    }
    assert_int_equal(pairs, 0); /* nothing in the groups beyond what was found */
    assert_int_equal(out_pairs, 0);
}

static void test_random(void **state) {
    static gr_adapter_set sets[16];
    const gr_adapter_set *row_sets[MAX_ROWS];
    int8_t output[MAX_ROWS];
    gr_row_plan *p;
    uint64_t random = 42;
    (void)state;
    assert_int_equal(gr_row_plan_create(&p, MAX_ROWS, NULL), 0);
    for (int round = 0; round < 500; round++) {
        for (int s = 0; s < 16; s++) {
            int uses = (int)(gr_random(&random) % (GR_MAX_USES + 1)), first = (int)(gr_random(&random) % ADAPTERS);
            sets[s].n = 0;
            for (int u = 0; u < uses; u++) {
                add(&sets[s], (first + 7 * u) % ADAPTERS, (float)(1 + gr_random(&random) % 1000));
            }
        }
        int n = 1 + (int)(gr_random(&random) % MAX_ROWS), in_a_row = 1 + (int)(gr_random(&random) % 5);
        for (int i = 0; i < n; i++) {
            uint32_t r = gr_random(&random);
            row_sets[i] = i % in_a_row ? row_sets[i - 1] : r % 5 == 0 ? NULL : &sets[r % 16];
            output[i] = (int8_t)(gr_random(&random) % (uint32_t)(1 + round % 3) == 0);
        }
        gr_row_plan_build(p, row_sets, output, n);
        int outputs = 0;
        for (int i = 0; i < n; i++) {
            outputs += output[i] != 0;
        }
        assert_int_equal(p->n_tokens, n);
        assert_int_equal(p->n_outputs, outputs);
        check_against_naive(p, row_sets, output, n);
    }
    gr_row_plan_free(p);
}

/* As full as it gets: every row with GR_MAX_USES adapters that no other row has. Guarded by ASan. */
static void test_full(void **state) {
    static gr_adapter_set sets[4];
    const gr_adapter_set *row_sets[4];
    int8_t output[4] = {1, 1, 1, 1};
    gr_row_plan *p;
    (void)state;
    assert_int_equal(gr_row_plan_create(&p, 4, NULL), 0);
    for (int s = 0; s < 4; s++) {
        for (int u = 0; u < GR_MAX_USES; u++) {
            add(&sets[s], 4 * u + s, 1.0f);
        }
        row_sets[s] = &sets[s];
    }
    gr_row_plan_build(p, row_sets, output, 4);
    assert_int_equal(p->n_groups, 4 * GR_MAX_USES);
    check_against_naive(p, row_sets, output, 4);
    gr_row_plan_free(p);
}

static void test_memory(void **state) {
    uint64_t blocks = gr_memory_blocks();
    gr_row_plan *untouched = NULL, *p = NULL;
    graft_error err;
    (void)state;
    for (uint64_t n = 1; n <= 2; n++) {
        gr_memory_fail_at(n, 0);
        assert_int_equal(gr_row_plan_create(&untouched, 100, &err), GRAFT_E_OUT_OF_MEMORY);
        assert_null(untouched);
        assert_int_equal(gr_memory_blocks(), blocks);
    }
    gr_memory_fail_at(3, 0);
    assert_int_equal(gr_row_plan_create(&p, 100, &err), 0);
    gr_memory_fail_at(0, 0);
    gr_row_plan_free(p);
    gr_row_plan_free(NULL);
    assert_int_equal(gr_memory_blocks(), blocks);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_table),
        cmocka_unit_test(test_random),
        cmocka_unit_test(test_full),
        cmocka_unit_test(test_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
