/* Which adapters may be on one row together. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "lora/combine.h"

#include <string.h>

enum { N = 4 };

static gr_adapter adapters[N];
static gr_module modules[N][4];
static const float some[1];

static void start(void) {
    memset(adapters, 0, sizeof adapters);
    memset(modules, 0, sizeof modules);
    for (int i = 0; i < N; i++) {
        adapters[i].modules = modules[i];
        adapters[i].by_rows_only = true;
    }
}

static gr_module *add(int adapter, int weight, gr_kind kind, gr_op op, int first, int n_out) {
    gr_module *m = &modules[adapter][adapters[adapter].n_modules++];
    *m = (gr_module){.weight = weight, .kind = kind, .op = op, .first = first, .n_out = n_out};
    return m;
}

static gr_module *add_dora(int adapter, int weight, int first, int n_out) {
    gr_module *m = add(adapter, weight, GR_LOW_RANK, GR_OP_PRODUCT, first, n_out);
    m->gain.magnitude = some;
    return m;
}

/* The weight over which the first n adapters quarrel, or -1. */
static int quarrel(int n) {
    gr_adapter_set set = {.n = n};
    const gr_adapter *one, *other;
    int weight;
    for (int i = 0; i < n; i++) {
        set.adapters[i] = &adapters[i];
        set.scales[i] = 1;
    }
    if (gr_adapters_combine(&set, &one, &other, &weight)) {
        return -1;
    }
    assert_true(one >= adapters && one < other && other < adapters + n);
    return weight;
}

static void test_deltas_add_up(void **state) {
    (void)state;
    start();
    for (int i = 0; i < N; i++) {
        add(i, 1, GR_LOW_RANK, GR_OP_PRODUCT, 0, 8);
        add(i, 2, GR_BIAS, GR_OP_ADD, 0, 8);
    }
    assert_int_equal(quarrel(N), -1);
    assert_int_equal(quarrel(0), -1);
    start();
    add_dora(0, 3, 0, 8); /* one DoRA beside plain ones */
    add(1, 3, GR_LOW_RANK, GR_OP_PRODUCT, 0, 8);
    add(2, 3, GR_LOW_RANK, GR_OP_PRODUCT, 0, 8);
    assert_int_equal(quarrel(3), -1);
}

static void test_two_of_one_weight(void **state) {
    (void)state;
    start();
    add(0, 0, GR_LOW_RANK, GR_OP_PRODUCT, 0, 8);
    add_dora(0, 3, 0, 8);
    add(1, 3, GR_LOW_RANK, GR_OP_PRODUCT, 0, 8);
    add_dora(2, 1, 0, 8);
    add_dora(2, 3, 0, 8);
    assert_int_equal(quarrel(2), -1);
    assert_int_equal(quarrel(3), 3);
    modules[2][1].zero = true;
    assert_int_equal(quarrel(3), -1);

    static const gr_kind kinds[] = {GR_WHOLE, GR_TOKENS};
    for (int k = 0; k < 2; k++) {
        start();
        add(0, 5, GR_WHOLE, GR_OP_PRODUCT, 0, 8);
        add(1, 5, kinds[k], GR_OP_PRODUCT, 0, 8);
        assert_int_equal(quarrel(2), 5);
    }
    start();
    add(0, 7, GR_NORM, GR_OP_MUL, 0, 8);
    add(1, 7, GR_NORM, GR_OP_MUL, 0, 8);
    assert_int_equal(quarrel(2), 7);
}

/* The same weight is another thing as embedding and as head, and a fused weight's parts are others too. */
static void test_elsewhere(void **state) {
    (void)state;
    start();
    add(0, 5, GR_WHOLE, GR_OP_PRODUCT, 0, 8);
    add(1, 5, GR_WHOLE, GR_OP_ROWS, 0, 8);
    assert_int_equal(quarrel(2), -1);
    start();
    add_dora(0, 2, 0, 8);
    add_dora(0, 2, 8, 8);
    add_dora(1, 2, 16, 8);
    assert_int_equal(quarrel(2), -1);
    modules[1][0].first = 15;
    assert_int_equal(quarrel(2), 2);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_deltas_add_up), cmocka_unit_test(test_two_of_one_weight), cmocka_unit_test(test_elsewhere),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
