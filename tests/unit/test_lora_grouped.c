/* Twins: libllama's copies of our adapters. The hook, which has the scales as they are, says what they must do. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "lora_support.h"
#include "model/convert.h"

static void fill(test_bed *b, const gr_adapter_set *set) {
    bed_clear(b);
    b->batch.n_tokens = 0;
    for (int i = 0; i < 10; i++) {
        bed_row(b, 0, i, i * 11 % b->base->n_vocab, i == 9, set);
    }
}

static double difference(test_bed *b, const gr_adapter_set *set) {
    float *rows = malloc((size_t)b->base->n_vocab * sizeof *rows);
    fill(b, set);
    assert_int_equal(bed_decode_rows(b, NULL, NULL), 0);
    memcpy(rows, llama_get_logits_ith(b->ctx, 9), (size_t)b->base->n_vocab * sizeof *rows);
    fill(b, set);
    bed_decode_grouped(b, set);
    double d = bed_difference(rows, llama_get_logits_ith(b->ctx, 9), b->base->n_vocab);
    free(rows);
    return d;
}

/* Of Q8_0: factors that are not the same everywhere, and with full mantissas. */
static void vary_blocks(gr_adapter *a) {
    uint64_t state = 5;
    for (size_t i = 0; i < a->n_modules; i++) {
        gr_module *m = a->modules + i;
        gr_q8_0 *blocks[] = {(gr_q8_0 *)m->a, (gr_q8_0 *)m->b};
        int n[] = {m->rank * m->stride_in / 32, m->rank * m->stride_out / 32};
        for (int k = 0; k < 2 && m->type == GR_DTYPE_Q8_0; k++) {
            for (int j = 0; j < n[k]; j++) {
                float factor = 0.3f + (float)(gr_random(&state) % 1000) / 700.0f;
                blocks[k][j].factor = ggml_fp32_to_fp16(factor * ggml_fp16_to_fp32(blocks[k][j].factor));
            }
        }
    }
}

/* One scale for all modules (libllama's alpha), and a different one for each (multiplied into B); all storage
 * types. libllama rounds x to float16 before a float16 A, so that is all the agreement there is. */
static void test_scales(void **state) {
    test_bed b;
    (void)state;
    bed_open(&b, (test_options){.path = tiny_base("qwen3")});
    static const gr_dtype types[] = {GR_DTYPE_F32, GR_DTYPE_F16, GR_DTYPE_Q8_0};
    for (int i_type = 0; i_type < 3; i_type++) {
        for (int mixed = 0; mixed < 2; mixed++) {
            gr_adapter *a = bed_adapter(&b, 6, types[i_type], 0.2f, 3);
            vary_blocks(a);
            for (size_t i = 0; i < a->n_modules; i++) {
                a->modules[i].scale = mixed ? 0.3f + 0.2f * (float)i : 1.7f;
            }
            gr_adapter_set set = bed_set(a, 0.8f, NULL, 0);
            double d = difference(&b, &set);
            assert_true(d < (i_type ? 5e-3 : 3e-5));
            gr_grouped_forget(b.grouped, b.ctx, a);
            gr_random_adapter_free(a);
        }
    }
    bed_close(&b);
}

/* Adapters that are loaded long after the context was made, then selected in turn and several at once. */
static void test_many_later(void **state) {
    test_bed b;
    gr_adapter *a[20];
    (void)state;
    bed_open(&b, (test_options){.path = tiny_base("llama")});
    for (int i = 0; i < 20; i++) {
        a[i] = bed_adapter(&b, 4 + i, GR_DTYPE_F32, 0.2f, (uint64_t)i);
        gr_adapter_set set = bed_set(a[i], 1.0f, NULL, 0);
        assert_true(difference(&b, &set) < 3e-5);
    }
    gr_adapter_set eight = {.n = 0};
    for (int i = 0; i < GR_MAX_USES; i++) { /* order does not matter to libllama */
        eight.adapters[i] = a[i];
        eight.scales[i] = 0.5f;
        eight.n++;
    }
    fill(&b, &eight);
    bed_decode_grouped(&b, &eight);
    for (int i = 0; i < 20; i += 3) {
        gr_grouped_forget(b.grouped, b.ctx, a[i]); /* also of one that is selected */
    }
    gr_adapter_set set = bed_set(a[19], -1.0f, a[0], 0.5f);
    assert_true(difference(&b, &set) < 3e-5);
    bed_close(&b);
    for (int i = 0; i < 20; i++) {
        gr_random_adapter_free(a[i]);
    }
}

/* From one set straight to another of the same size, and to nothing by forgetting. */
static void test_switch(void **state) {
    test_bed b;
    float *logits[4];
    (void)state;
    bed_open(&b, (test_options){.path = tiny_base("llama")});
    size_t size = (size_t)b.base->n_vocab * sizeof(float);
    gr_adapter *a[2];
    for (int i = 0; i < 2; i++) {
        a[i] = bed_adapter(&b, 4, GR_DTYPE_F32, 0.3f, (uint64_t)i);
    }
    for (int i = 0; i < 4; i++) { /* none, a[0], a[1], a[1] forgotten */
        gr_adapter_set set = bed_set(i == 0 || i == 3 ? NULL : a[i - 1], 1.0f, NULL, 0);
        fill(&b, NULL);
        if (i == 3) {
            gr_grouped_forget(b.grouped, b.ctx, a[1]);
        } else {
            assert_int_equal(gr_grouped_select(b.grouped, b.ctx, &set, NULL), 0);
        }
        assert_int_equal(llama_decode(b.ctx, b.batch), 0);
        logits[i] = malloc(size);
        memcpy(logits[i], llama_get_logits_ith(b.ctx, 9), size);
    }
    assert_true(bed_difference(logits[1], logits[0], b.base->n_vocab) > 0.1);
    assert_true(bed_difference(logits[2], logits[0], b.base->n_vocab) > 0.1);
    assert_true(bed_difference(logits[2], logits[1], b.base->n_vocab) > 0.1);
    assert_memory_equal(logits[3], logits[0], size);
    for (int i = 0; i < 4; i++) {
        free(logits[i]);
    }
    bed_close(&b);
    gr_random_adapter_free(a[0]);
    gr_random_adapter_free(a[1]);
}

/* An adapter without effect has no twin, one that is not known is nothing to forget. */
static void test_nothing(void **state) {
    test_bed b;
    (void)state;
    bed_open(&b, (test_options){.path = tiny_base("llama")});
    gr_adapter *a = bed_adapter(&b, 4, GR_DTYPE_F32, 0.2f, 1);
    gr_adapter_set set = bed_set(a, 1.0f, NULL, 0);
    gr_grouped_forget(b.grouped, b.ctx, a);
    fill(&b, NULL);
    bed_decode_grouped(&b, NULL);
    float *plain = malloc((size_t)b.base->n_vocab * sizeof *plain);
    memcpy(plain, llama_get_logits_ith(b.ctx, 9), (size_t)b.base->n_vocab * sizeof *plain);
    a->no_effect = true;
    uint64_t blocks = gr_memory_blocks();
    fill(&b, &set);
    bed_decode_grouped(&b, &set);
    assert_int_equal(gr_memory_blocks(), blocks);
    assert_memory_equal(plain, llama_get_logits_ith(b.ctx, 9), (size_t)b.base->n_vocab * sizeof *plain);
    free(plain);
    bed_close(&b);
    gr_random_adapter_free(a);
}

/* Fails allocation after allocation; the context's adapters stay what they were. */
static void test_memory(void **state) {
    test_bed b;
    graft_error err;
    (void)state;
    bed_open(&b, (test_options){.path = tiny_base("llama")});
    gr_adapter *a = bed_adapter(&b, 4, GR_DTYPE_F32, 0.2f, 1);
    gr_adapter_set set = bed_set(a, 1.0f, NULL, 0);
    uint64_t blocks = gr_memory_blocks(), n = 0;
    int status;
    do {
        gr_memory_fail_at(++n, 0);
        status = gr_grouped_select(b.grouped, b.ctx, &set, &err);
        gr_memory_fail_at(0, 0);
        assert_true(status == 0 || status == GRAFT_E_OUT_OF_MEMORY);
        assert_true(gr_memory_blocks() <= blocks + 1); /* the list of twins */
    } while (status);
    assert_true(n == 3);
    gr_memory_fail_at(1, 1); /* nothing is allocated for a set that is selected already */
    assert_int_equal(gr_grouped_select(b.grouped, b.ctx, &set, &err), 0);
    gr_memory_fail_at(0, 0);
    assert_true(difference(&b, &set) < 3e-5);
    bed_close(&b);
    gr_random_adapter_free(a);

    gr_grouped *g = NULL;
    gr_memory_fail_at(1, 0);
    assert_int_equal(gr_grouped_create(&g, NULL, &err), GRAFT_E_OUT_OF_MEMORY);
    gr_memory_fail_at(0, 0);
    assert_null(g);
    gr_grouped_free(NULL);
}

/* libllama refuses (here: a name that the model does not have): an error, and the old selection. */
static void test_refused(void **state) {
    test_bed b;
    graft_error err;
    (void)state;
    bed_open(&b, (test_options){.path = tiny_base("llama")});
    gr_adapter *a = bed_adapter(&b, 4, GR_DTYPE_F32, 0.2f, 1);
    gr_adapter_set set = bed_set(a, 1.0f, NULL, 0);
    char *name = b.base->weights[a->modules[0].weight].name, first = name[0];
    name[0] = 'x';
    assert_int_equal(gr_grouped_select(b.grouped, b.ctx, &set, &err), GRAFT_E_INTERNAL);
    name[0] = first;
    assert_true(difference(&b, &set) < 3e-5);
    bed_close(&b);
    gr_random_adapter_free(a);
}

/* What libllama cannot do is refused and leaves the context as it was. */
static void test_by_rows_only(void **state) {
    test_bed b;
    graft_error err;
    (void)state;
    bed_open(&b, (test_options){.path = tiny_base("llama")});
    gr_adapter *a = bed_adapter(&b, 4, GR_DTYPE_F32, 0.2f, 1), *other = bed_adapter(&b, 4, GR_DTYPE_F32, 0.2f, 2);
    gr_adapter_set set = bed_set(a, 1.0f, NULL, 0), both = bed_set(a, 1.0f, other, 1.0f);
    assert_int_equal(gr_grouped_select(b.grouped, b.ctx, &set, &err), 0);
    other->by_rows_only = true;
    assert_int_equal(gr_grouped_check(a, &err), 0);
    assert_int_equal(gr_grouped_check(other, &err), GRAFT_E_UNSUPPORTED_ADAPTER);
    assert_int_equal(gr_grouped_select(b.grouped, b.ctx, &both, &err), GRAFT_E_UNSUPPORTED_ADAPTER);
    assert_non_null(strstr(err.message, "by rows"));
    assert_int_equal(gr_grouped_size(other), 0);
    uint64_t bytes = gr_grouped_bytes(b.grouped);
    other->no_effect = true; /* nothing need be done */
    assert_int_equal(gr_grouped_select(b.grouped, b.ctx, &both, &err), 0);
    assert_true(gr_grouped_bytes(b.grouped) == bytes);
    assert_true(difference(&b, &set) < 3e-5);
    bed_close(&b);
    gr_random_adapter_free(a);
    gr_random_adapter_free(other);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_scales), cmocka_unit_test(test_many_later), cmocka_unit_test(test_switch),
        cmocka_unit_test(test_nothing), cmocka_unit_test(test_memory), cmocka_unit_test(test_refused),
        cmocka_unit_test(test_by_rows_only),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
