/* Reading the base's numbers: every type of ggml that a GGUF can have, any rows, any part; and files that are not as they were. */
#include "format_helpers.h"
#include "make_base.h"

#include "model/base_weights.h"

static gr_base_model *one_weight(int type, int64_t n_in, int64_t n_out) {
    gr_base_model *m = test_base_make("llama");
    m->n_weights = 0;
    test_base_add(m, 0, "attn_q.weight", n_in, n_out);
    m->weights[0].type = type;
    m->weights[0].vector = n_in == 1;
    return m;
}

static void read_rows(const gr_base_model *m, int weight, const float *wanted, int64_t first, int64_t n) {
    const gr_weight *w = &m->weights[weight];
    size_t count = (size_t)(n * w->n_in);
    float *x = malloc((count + 1) * sizeof *x);
    x[count] = 4711.0f;
    graft_error err;
    expect_code(w->name, gr_base_weights_read(m, weight, first, n, x, &err), 0, &err);
    assert_memory_equal(x, wanted + first * w->n_in, count * sizeof *x);
    assert_true(x[count] == 4711.0f);
    free(x);
}

/* Whole, in the middle, at the end; rows so long and so many that several reads are needed. */
static void every_type_is_what_ggml_makes_of_it(void **state) {
    (void)state;
    int tried = 0;
    for (int type = 0; type < GGML_TYPE_COUNT; type++) {
        const struct ggml_type_traits *t = ggml_get_type_traits((enum ggml_type)type);
        if (!t || (type != GGML_TYPE_F32 && !t->to_float) || t->blck_size == 0 || ggml_quantize_requires_imatrix((enum ggml_type)type) ||
            (type != GGML_TYPE_F32 && type != GGML_TYPE_F16 && type != GGML_TYPE_BF16 && !t->is_quantized) || type == GGML_TYPE_Q8_1 ||
            type == GGML_TYPE_Q8_K) {
            continue;
        }
        test_dir d = test_dir_make();
        gr_base_model *m = one_weight(type, 512, 200);
        test_base_write(m, &d);
        float *wanted = test_base_floats(&m->weights[0]);
        const int64_t rows[][2] = {{0, 200}, {0, 1}, {199, 1}, {37, 120}, {200, 0}};
        for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
            read_rows(m, 0, wanted, rows[i][0], rows[i][1]);
        }
        free(wanted);
        test_base_close(m);
        test_base_free(m);
        test_dir_remove(&d);
        tried++;
    }
    assert_true(tried >= 15); /* F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K to Q6_K, some IQ, … */
}

static void vectors_are_read_by_element(void **state) {
    (void)state;
    const int types[] = {GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_BF16};
    for (int i = 0; i < 3; i++) {
        test_dir d = test_dir_make();
        gr_base_model *m = one_weight(types[i], 1, 77);
        test_base_write(m, &d);
        float *wanted = test_base_floats(&m->weights[0]);
        read_rows(m, 0, wanted, 0, 77);
        read_rows(m, 0, wanted, 40, 37);
        free(wanted);
        test_base_close(m);
        test_base_free(m);
        test_dir_remove(&d);
    }
}

static void each_weight_comes_from_its_part(void **state) {
    (void)state;
    test_dir d = test_dir_make();
    gr_base_model *m = test_base_make("llama");
    for (size_t i = 0; i < m->n_weights; i++) {
        m->weights[i].part = (int)i % 3;
        m->weights[i].type = i % 2 ? GGML_TYPE_F16 : GGML_TYPE_F32;
    }
    test_base_write(m, &d);
    assert_int_equal(m->n_parts, 3);
    for (size_t i = 0; i < m->n_weights; i++) {
        float *wanted = test_base_floats(&m->weights[i]);
        read_rows(m, (int)i, wanted, 0, m->weights[i].n_out);
        read_rows(m, (int)i, wanted, 3, 5);
        free(wanted);
    }
    test_base_close(m);
    test_base_free(m);
    test_dir_remove(&d);
}

static void what_cannot_be_read_is_told(void **state) {
    (void)state;
    test_dir d = test_dir_make();
    gr_base_model *m = one_weight(GGML_TYPE_Q4_0, 64, 10);
    test_base_write(m, &d);
    gr_weight *w = &m->weights[0];
    float x[640];
    graft_error err;
    uint64_t blocks = gr_memory_blocks();
    const int64_t rows[][2] = {{0, 11}, {10, 1}, {-1, 1}, {0, -1}, {INT64_MAX, 1}, {1, INT64_MAX}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        expect_code("rows", gr_base_weights_read(m, 0, rows[i][0], rows[i][1], x, &err), GRAFT_E_INTERNAL, &err);
    }
    const int types[] = {GGML_TYPE_I32, GGML_TYPE_I8, GGML_TYPE_COUNT, -1, 100000, GGML_TYPE_Q4_K /* blocks of 256 */};
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        w->type = types[i];
        expect_code("type", gr_base_weights_read(m, 0, 0, 1, x, &err), GRAFT_E_UNSUPPORTED_TARGET, &err);
        assert_non_null(strstr(err.message, "blk.0.attn_q.weight"));
    }
    w->type = GGML_TYPE_Q4_0;
    w->vector = true; /* of single elements there are no blocks */
    w->n_in = 1;
    expect_code("vector", gr_base_weights_read(m, 0, 0, 1, x, &err), GRAFT_E_UNSUPPORTED_TARGET, &err);
    w->vector = false;
    w->n_in = 64;
    w->part = 1;
    expect_code("part", gr_base_weights_read(m, 0, 0, 1, x, &err), GRAFT_E_IO_ERROR, &err);
    w->part = 0;
    w->offset = UINT64_MAX - 10;
    expect_code("offset", gr_base_weights_read(m, 0, 1, 1, x, &err), GRAFT_E_INTERNAL, &err);
    assert_int_equal(gr_memory_blocks(), blocks);
    test_base_close(m);
    test_base_free(m);
    test_dir_remove(&d);
}

/* The same inode is read whatever becomes of the path; what is done to that inode is noticed. */
static void files_that_change(void **state) {
    (void)state;
    for (int type = 0; type < 2; type++) {
        test_dir d = test_dir_make();
        gr_base_model *m = one_weight(type ? GGML_TYPE_Q8_0 : GGML_TYPE_F32, 64, 10);
        test_base_write(m, &d);
        float *wanted = test_base_floats(&m->weights[0]), x[640];
        graft_error err;
        assert_int_equal(unlink(test_path(&d, "part0")), 0);
        test_write_text(&d, "part0", "something else");
        read_rows(m, 0, wanted, 0, 10);
        assert_int_equal(gr_base_weights_unchanged(m, 0, &err), 0);
        test_base_close(m);

        test_base_write(m, &d);
        FILE *f = fopen(test_path(&d, "part0"), "ab");
        fputc('x', f);
        fclose(f);
        read_rows(m, 0, wanted, 0, 10);
        expect_code("grown", gr_base_weights_unchanged(m, 0, &err), GRAFT_E_CHANGED_WHILE_READING, &err);
        assert_int_equal(truncate(test_path(&d, "part0"), 100), 0);
        expect_code("cut", gr_base_weights_read(m, 0, 0, 10, x, &err), GRAFT_E_CHANGED_WHILE_READING, &err);
        assert_non_null(strstr(err.message, "part0"));
        close(m->parts[0].fd);
        m->parts[0].fd = -1;
        expect_code("closed", gr_base_weights_read(m, 0, 0, 10, x, &err), GRAFT_E_IO_ERROR, &err);
        free(wanted);
        test_base_close(m);
        test_base_free(m);
        test_dir_remove(&d);
    }
}

static int read_once(void *data, graft_error *err) {
    float x[640];
    return gr_base_weights_read(data, 0, 0, 10, x, err);
}

static void every_allocation_may_fail(void **state) {
    (void)state;
    test_dir d = test_dir_make();
    gr_base_model *m = one_weight(GGML_TYPE_Q8_0, 64, 10);
    test_base_write(m, &d);
    torture("Q8_0", read_once, m);
    test_base_close(m);
    test_base_free(m);
    test_dir_remove(&d);
}

static void steps_are_bounded(void **state) {
    (void)state;
    assert_int_equal(gr_base_weights_step(&(gr_weight){.n_in = 1}), 65536);
    assert_int_equal(gr_base_weights_step(&(gr_weight){.n_in = 4096}), 16);
    assert_int_equal(gr_base_weights_step(&(gr_weight){.n_in = 1 << 30}), 1);
}

/* A real file by way of libllama: the norms of a model are what they are. */
static void a_model_of_the_oracle(void **state) {
    (void)state;
    const char *path = GRAFT_TEST_DATA "/oracle/golden/bases/llama.gguf";
    if (access(path, R_OK) != 0) {
        skip();
    }
    gr_base_model *m = NULL;
    graft_error err;
    assert_int_equal(gr_base_model_open(&m, path, &(gr_base_options){0}, &err), 0);
    assert_int_equal(m->n_parts, 1);
    struct ggml_context *c = NULL;
    struct gguf_context *g = gguf_init_from_file(path, (struct gguf_init_params){.no_alloc = false, .ctx = &c});
    for (size_t i = 0; i < m->n_weights; i++) {
        const gr_weight *w = &m->weights[i];
        struct ggml_tensor *t = ggml_get_tensor(c, w->name);
        assert_int_equal(t->type, GGML_TYPE_F32);
        read_rows(m, (int)i, t->data, 0, w->n_out);
    }
    gguf_free(g);
    ggml_free(c);
    gr_base_model_close(m);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_type_is_what_ggml_makes_of_it),
        cmocka_unit_test(vectors_are_read_by_element),
        cmocka_unit_test(each_weight_comes_from_its_part),
        cmocka_unit_test(what_cannot_be_read_is_told),
        cmocka_unit_test(files_that_change),
        cmocka_unit_test(every_allocation_may_fail),
        cmocka_unit_test(steps_are_bounded),
        cmocka_unit_test(a_model_of_the_oracle),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
