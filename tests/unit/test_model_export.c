/*
 * Exports as libllama itself reads them; modules that share a weight; what has no place in a form. And the arithmetic of merges
 * for every kind of change, against plain sums in double.
 */
#include "make_adapter.h"

#include "model/export.h"
#include "model/merge_rows.h"
#include "model/merge_types.h"

#include <llama.h>

#define GOLDEN GRAFT_TEST_DATA "/oracle/golden/"

/* ---- files ---------------------------------------------------------------------------------------------- */

typedef struct opened {
    gr_base_model *base;
    gr_source *source;
    gr_plan *plan;
} opened;

static opened open_plan(const char *adapter) {
    opened o = {NULL, NULL, NULL};
    graft_error err;
    gr_report report;
    gr_report_init(&report);
    assert_int_equal(gr_base_model_open(&o.base, GOLDEN "bases/llama.gguf", &(gr_base_options){0}, &err), 0);
    assert_int_equal(gr_source_open(&o.source, adapter, (gr_source_limits){1 << 30, NULL}, &report, &err), 0);
    if (gr_verify(&o.plan, o.base, o.source, &report, &err) != 0) {
        fail_msg("%s", err.message);
    }
    gr_report_finish(&report);
    return o;
}

static void close_plan(opened *o) {
    gr_plan_free(o->plan);
    gr_source_close(o->source);
    gr_base_model_close(o->base);
}

static void test_libllama_reads_it(void **state) {
    (void)state;
    static const char *const cases[] = {"plain", "rslora", "patterns-rslora", "bf16", "f16", "rank1"};
    test_dir dir = test_dir_make();
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char path[512];
        graft_error err;
        snprintf(path, sizeof path, GOLDEN "adapters/llama/%s", cases[i]);
        opened o = open_plan(path);
        const char *out = test_path(&dir, "a.gguf");
        gr_export_options options = {.to = GRAFT_FORMAT_GGUF, .replace = true};
        assert_int_equal(gr_export(o.plan, out, &options, &err), 0);
        struct llama_adapter_lora *lora = llama_adapter_lora_init(o.base->llama, out);
        assert_non_null(lora);
        llama_adapter_lora_free(lora);
        close_plan(&o);
    }
    test_dir_remove(&dir);
}

static void test_nothing_leaks_and_nothing_stays_without_memory(void **state) {
    (void)state;
    test_dir dir = test_dir_make();
    opened o = open_plan(GOLDEN "adapters/llama/patterns");
    uint64_t blocks = gr_memory_blocks();
    for (int form = GRAFT_FORMAT_GGUF; form <= GRAFT_FORMAT_PEFT; form++) {
        gr_export_options options = {.to = (graft_adapter_format)form};
        graft_error err;
        int rc;
        for (uint64_t n = 1; (gr_memory_fail_at(n, 1), rc = gr_export(o.plan, test_path(&dir, "out"), &options, &err)) != 0; n++) {
            gr_memory_fail_at(0, 0);
            assert_int_equal(rc, GRAFT_E_OUT_OF_MEMORY);
            assert_int_equal(gr_memory_blocks(), blocks);
            assert_int_equal(rmdir(dir.path), 0); /* empty */
            assert_int_equal(mkdir(dir.path, 0700), 0);
        }
        gr_memory_fail_at(0, 0);
        assert_int_equal(gr_memory_blocks(), blocks);
        if (form == GRAFT_FORMAT_GGUF) {
            assert_int_equal(unlink(test_path(&dir, "out")), 0);
        } else {
            assert_int_equal(unlink(test_path(&dir, "out/adapter_config.json")), 0);
            assert_int_equal(unlink(test_path(&dir, "out/adapter_model.safetensors")), 0);
        }
    }
    close_plan(&o);
    test_dir_remove(&dir);
}

static bool stop(float fraction, void *user) {
    (void)user;
    return fraction < 0.5f;
}

static void test_cancelled(void **state) {
    (void)state;
    test_dir dir = test_dir_make();
    opened o = open_plan(GOLDEN "adapters/llama/plain");
    for (int form = GRAFT_FORMAT_GGUF; form <= GRAFT_FORMAT_PEFT; form++) {
        graft_error err;
        gr_export_options options = {.to = (graft_adapter_format)form, .progress = stop};
        assert_int_equal(gr_export(o.plan, test_path(&dir, "out"), &options, &err), GRAFT_E_CANCELLED);
        assert_int_not_equal(access(test_path(&dir, "out"), F_OK), 0);
    }
    close_plan(&o);
    test_dir_remove(&dir);
}

/* Two modules on one weight's rows: one pair of the summed rank, with zeros where they do not meet. */
static void test_stacked(void **state) {
    (void)state;
    test_dir dir = test_dir_make();
    opened o = open_plan(GOLDEN "adapters/llama/plain");
    opened back = {o.base, NULL, NULL};
    graft_error err;
    gr_plan_entry pair[2] = {o.plan->entries[0], o.plan->entries[0]};
    gr_plan split = *o.plan;
    int64_t half = pair[0].n_rows / 2;
    for (int i = 0; i < 2; i++) {
        pair[i].rows = (gr_row_map){GR_ROWS_AS_IS, 0};
        pair[i].first = pair[i].first_in_file = i * half;
        pair[i].n_rows = half;
    }
    split.entries = pair;
    split.n = 2;
    const char *out = test_path(&dir, "a.gguf");
    gr_report report;
    gr_report_init(&report);
    assert_int_equal(gr_export(&split, out, &(gr_export_options){.to = GRAFT_FORMAT_GGUF}, &err), 0);
    assert_int_equal(gr_source_open(&back.source, out, (gr_source_limits){1 << 30, NULL}, &report, &err), 0);
    assert_int_equal(gr_verify(&back.plan, o.base, back.source, &report, &err), 0);
    assert_int_equal(back.plan->n, 1);
    assert_int_equal(back.plan->entries[0].rank, 2 * pair[0].rank);
    assert_float_equal(back.plan->entries[0].scale, pair[0].scale, 1e-7);
    gr_plan_free(back.plan);
    gr_source_close(back.source);
    gr_report_finish(&report);
    close_plan(&o);
    test_dir_remove(&dir);
}

static void test_refused(void **state) {
    (void)state;
    test_dir dir = test_dir_make();
    opened o = open_plan(GOLDEN "adapters/llama/plain");
    graft_error err;
    gr_plan_entry e = o.plan->entries[0];
    gr_plan one = *o.plan;
    one.entries = &e;
    one.n = 1;
    const struct {
        gr_kind kind;
        bool magnitude, bias;
        const char *says;
    } cases[] = {{GR_WHOLE, false, false, "whole weight"}, {GR_TOKENS, false, false, "token"},     {GR_NORM, false, false, "norm"},
                 {GR_BIAS, false, false, "bias"},          {GR_LOW_RANK, true, false, "magnitude"}, {GR_LOW_RANK, false, true, "lora_bias"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        e.kind = cases[i].kind;
        e.magnitude = cases[i].magnitude ? e.b : NULL;
        e.bias = cases[i].bias ? e.b : NULL;
        int rc = gr_export(&one, test_path(&dir, "out"), &(gr_export_options){.to = GRAFT_FORMAT_GGUF}, &err);
        assert_int_equal(rc, GRAFT_E_UNSUPPORTED_ADAPTER);
        assert_non_null(strstr(err.message, cases[i].says));
    }
    close_plan(&o);
    test_dir_remove(&dir);
}

/* ---- the arithmetic of merges --------------------------------------------------------------------------- */

enum { ROWS = 4, COLUMNS = 6, RANK = 2, STRIDE = 32 };

static float number(size_t i) {
    return (float)((double)(i * 7919 % 101) / 50.0 - 1.0);
}

static void fill(float *x, size_t n, size_t seed) {
    for (size_t i = 0; i < n; i++) {
        x[i] = number(i + seed);
    }
}

/* (B A)[row][column] as the module's fields say. */
static double product(const gr_module *m, int64_t row, int64_t column) {
    double sum = 0;
    const float *a = m->a, *b = m->b;
    for (int k = 0; k < m->rank; k++) {
        sum += m->op == GR_OP_ROWS ? (double)a[row * m->stride_rank + k] * (double)b[k * m->stride_out + column]
                                   : (double)b[k * m->stride_out + row] * (double)a[k * m->stride_in + column];
    }
    return sum;
}

typedef struct setup {
    float w[ROWS * COLUMNS], a[STRIDE * STRIDE], b[STRIDE * STRIDE], magnitude[ROWS], scratch[COLUMNS];
    gr_module module;
} setup;

static setup make(gr_op op) {
    setup s;
    fill(s.w, ROWS * COLUMNS, 3);
    fill(s.a, STRIDE * STRIDE, 11);
    fill(s.b, STRIDE * STRIDE, 29);
    fill(s.magnitude, ROWS, 5);
    s.module = (gr_module){.kind = GR_LOW_RANK, .op = op, .rank = RANK, .n_in = op == GR_OP_ROWS ? ROWS : COLUMNS,
                           .n_out = op == GR_OP_ROWS ? COLUMNS : ROWS, .stride_in = STRIDE, .stride_out = STRIDE,
                           .stride_rank = STRIDE, .scale = 1.5f};
    return s;
}

static void test_low_rank(void **state) {
    (void)state;
    for (int op = GR_OP_PRODUCT; op <= GR_OP_ROWS; op++) {
        setup s = make((gr_op)op);
        s.module.a = s.a;
        s.module.b = s.b;
        float before[ROWS * COLUMNS];
        memcpy(before, s.w, sizeof before);
        gr_merge_change c = {&s.module, 0.5f};
        gr_merge_rows(s.w, 0, 2, COLUMNS, &c, 1, s.scratch);
        gr_merge_rows(s.w + 2 * COLUMNS, 2, 2, COLUMNS, &c, 1, s.scratch);
        for (int i = 0; i < ROWS * COLUMNS; i++) {
            double want = (double)before[i] + 0.75 * product(&s.module, i / COLUMNS, i % COLUMNS);
            assert_float_equal(s.w[i], want, 1e-6);
        }
    }
}

static void test_only_some_rows(void **state) {
    (void)state;
    setup s = make(GR_OP_PRODUCT);
    s.module.a = s.a;
    s.module.b = s.b;
    s.module.first = 1;
    s.module.n_out = 2;
    float before[ROWS * COLUMNS];
    memcpy(before, s.w, sizeof before);
    gr_merge_rows(s.w, 0, ROWS, COLUMNS, &(gr_merge_change){&s.module, 1}, 1, s.scratch);
    for (int i = 0; i < ROWS * COLUMNS; i++) {
        int row = i / COLUMNS - 1;
        double delta = row >= 0 && row < 2 ? 1.5 * product(&s.module, row, i % COLUMNS) : 0;
        assert_float_equal(s.w[i], (double)before[i] + delta, 1e-6);
    }
}

/* DoRA first, whatever the order in which they are named; the plain one is added to what it gave. */
static void test_dora_and_plain(void **state) {
    (void)state;
    for (int order = 0; order < 2; order++) {
        setup s = make(GR_OP_PRODUCT), other = make(GR_OP_PRODUCT);
        s.module.a = s.a;
        s.module.b = s.b;
        s.module.gain.magnitude = s.magnitude;
        fill(other.a, STRIDE * STRIDE, 77);
        other.module.a = other.a;
        other.module.b = other.b;
        gr_merge_change c[2];
        c[order] = (gr_merge_change){&s.module, 0.5f};
        c[1 - order] = (gr_merge_change){&other.module, 1};
        gr_merge_rows(s.w, 0, ROWS, COLUMNS, c, 2, s.scratch);
        for (int r = 0; r < ROWS; r++) {
            double v[COLUMNS], norm = 0;
            for (int j = 0; j < COLUMNS; j++) {
                v[j] = (double)other.w[r * COLUMNS + j] + 0.75 * product(&s.module, r, j);
                norm += v[j] * v[j];
            }
            for (int j = 0; j < COLUMNS; j++) {
                double want = v[j] * (double)s.magnitude[r] / sqrt(norm) + 1.5 * product(&other.module, r, j);
                assert_float_equal(s.w[r * COLUMNS + j], want, 2e-6);
            }
        }
    }
}

static void test_whole_and_tokens(void **state) {
    (void)state;
    static const int32_t tokens[] = {1, 3};
    for (int op = GR_OP_PRODUCT; op <= GR_OP_ROWS; op++) {
        for (int kind = GR_WHOLE; kind <= GR_TOKENS; kind++) {
            setup s = make((gr_op)op);
            s.module.kind = (gr_kind)kind;
            s.module.a = s.a;
            s.module.tokens = tokens;
            s.module.n_tokens = 2;
            float before[ROWS * COLUMNS];
            memcpy(before, s.w, sizeof before);
            gr_merge_rows(s.w, 0, ROWS, COLUMNS, &(gr_merge_change){&s.module, 0.25f}, 1, s.scratch);
            for (int i = 0; i < ROWS * COLUMNS; i++) {
                int row = i / COLUMNS, at = kind == GR_WHOLE ? row : row == 1 ? 0 : row == 3 ? 1 : -1;
                double want = at < 0 ? (double)before[i]
                                     : 0.75 * (double)before[i] + 0.25 * (double)s.a[at * STRIDE + i % COLUMNS];
                assert_float_equal(s.w[i], want, 1e-6);
            }
        }
    }
}

static void test_vectors(void **state) {
    (void)state;
    float v[4] = {1, 2, 3, 4}, factor[4] = {1, 0, -1, 0.5f}, shift[2] = {10, 20};
    gr_module norm = {.kind = GR_NORM, .n_out = 4, .factor = factor}, bias = {.kind = GR_BIAS, .n_out = 2, .first = 1, .shift = shift};
    gr_merge_vector(v, 4, &(gr_merge_change){&norm, 0.5f}, 1);
    assert_float_equal(v[0], 1.5, 1e-6);
    assert_float_equal(v[2], 1.5, 1e-6);
    gr_merge_vector(v, 4, &(gr_merge_change){&bias, 2}, 1);
    assert_float_equal(v[0], 1.5, 1e-6);
    assert_float_equal(v[1], 22, 1e-6);
    assert_float_equal(v[2], 41.5, 1e-6);
    assert_float_equal(v[3], 5, 1e-6);
}

static void test_types(void **state) {
    (void)state;
    const int64_t wide[4] = {512, 64, 1, 1}, narrow[4] = {96, 64, 1, 1}, odd[4] = {50, 64, 1, 1}, vector[4] = {512, 1, 1, 1};
    const enum ggml_type f = GGML_TYPE_F32;
    assert_int_equal(gr_merge_type_of(GGML_TYPE_Q4_K, "blk.0.attn_q.weight", false, f, wide), GGML_TYPE_Q4_K);
    assert_int_equal(gr_merge_type_of(GGML_TYPE_Q4_K, "blk.0.attn_q.weight", false, f, narrow), GGML_TYPE_Q5_0);
    assert_int_equal(gr_merge_type_of(GGML_TYPE_Q4_K, "blk.0.attn_q.weight", false, f, odd), GGML_TYPE_F16);
    assert_int_equal(gr_merge_type_of(GGML_TYPE_Q4_0, "output.weight", true, f, wide), GGML_TYPE_Q6_K);
    assert_int_equal(gr_merge_type_of(GGML_TYPE_Q8_0, "output.weight", true, f, wide), GGML_TYPE_Q8_0);
    assert_int_equal(gr_merge_type_of(GGML_TYPE_Q4_0, "blk.0.attn_norm.weight", false, f, vector), f);
    assert_int_equal(gr_merge_type_of(GGML_TYPE_Q4_0, "position_embd.weight", false, f, wide), f);
    assert_int_equal(gr_merge_type_of(GGML_TYPE_Q4_0, "blk.0.attn_q.bias", false, f, vector), f);
    assert_int_equal(gr_merge_type_of(GR_MERGE_SAME, "blk.0.attn_q.weight", false, GGML_TYPE_Q5_1, wide), GGML_TYPE_Q5_1);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_libllama_reads_it),
        cmocka_unit_test(test_nothing_leaks_and_nothing_stays_without_memory),
        cmocka_unit_test(test_cancelled),
        cmocka_unit_test(test_stacked),
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_low_rank),
        cmocka_unit_test(test_only_some_rows),
        cmocka_unit_test(test_dora_and_plain),
        cmocka_unit_test(test_whole_and_tokens),
        cmocka_unit_test(test_vectors),
        cmocka_unit_test(test_types),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
