/*
 * Every kind of change, from plans made by hand: matrices in their places for each row order, slice, orientation and type, and
 * the vectors that follow from the base's weights against plain sums in double.
 */
#include "format_helpers.h"
#include "make_base.h"

#include "model/adapter.h"
#include "model/adapter_layout.h"
#include "model/convert.h"

#include <openssl/evp.h>

static const uint64_t plenty = (uint64_t)1 << 30;

/* ---- a case: base, files, plan -------------------------------------------------------------------------- */

typedef struct bench {
    test_dir dir, base_dir;
    gr_base_model *base;
    test_adapter *files;
    gr_source *source;
    gr_plan plan;
    gr_plan_entry entries[16];
    const char *names[16][4]; /* of the tensors of each entry: a or value, b, magnitude, bias */
} bench;

static bench *begin(void) {
    bench *c = calloc(1, sizeof *c);
    c->dir = test_dir_make();
    c->base_dir = test_dir_make();
    c->base = test_base_make("llama");
    for (int i = 0; i < TEST_LAYERS; i++) {
        test_base_add(c->base, i, "attn_norm.weight", 1, TEST_EMBD);
        test_base_add(c->base, i, "attn_qkv.weight", 64, 3 * 64);
        test_base_add(c->base, i, "attn_qkv.bias", 1, 3 * 64);
    }
    for (size_t i = 0; i < c->base->n_weights; i++) {
        c->base->weights[i].vector = c->base->weights[i].n_in == 1;
    }
    qsort(c->base->weights, c->base->n_weights, sizeof *c->base->weights, test_weight_order);
    c->files = calloc(1, sizeof *c->files);
    snprintf(c->files->config, sizeof c->files->config, "{\"peft_type\":\"LORA\",\"r\":4,\"lora_alpha\":8}");
    c->plan.base = c->base;
    c->plan.entries = c->entries;
    return c;
}

static gr_weight *weight(bench *c, const char *name) {
    return &c->base->weights[test_base_id(c->base, name)];
}

static gr_plan_entry *add(bench *c, gr_kind kind, gr_op op, const char *name) {
    gr_plan_entry *e = &c->entries[c->plan.n++];
    const gr_weight *w = weight(c, name);
    *e = (gr_plan_entry){.kind = kind, .op = op, .weight = test_base_id(c->base, name), .scale = 2};
    e->n_rows = op == GR_OP_ROWS ? w->n_in : w->n_out;
    return e;
}

static void tensors(bench *c, const char *a, const char *b, const char *magnitude, const char *bias) {
    const char *names[4] = {a, b, magnitude, bias};
    memcpy(c->names[c->plan.n - 1], names, sizeof names);
}

static test_tensor *file(bench *c, const char *name, gr_dtype dtype, uint64_t rows, uint64_t columns) {
    test_tensor *t = test_add(c->files, name, dtype, rows, columns);
    if (columns == 0) {
        t->n_dims = 1;
    }
    return t;
}

/* Writes the files and resolves the names. Once more after a change: call it again. */
static void write_files(bench *c) {
    graft_error err;
    gr_report report;
    gr_source_close(c->source);
    c->source = NULL;
    test_write_peft(c->files, &c->dir);
    if (!c->base->parts) {
        test_base_write(c->base, &c->base_dir);
    }
    gr_report_init(&report);
    assert_int_equal(gr_source_open(&c->source, c->dir.path, (gr_source_limits){plenty, NULL}, &report, &err), 0);
    gr_report_finish(&report);
    c->plan.source = c->source;
    c->plan.rank_min = c->plan.rank_max = 0;
    for (size_t i = 0; i < c->plan.n; i++) {
        gr_plan_entry *e = &c->entries[i];
        const gr_tensor_info **to[4] = {e->kind == GR_LOW_RANK ? &e->a : &e->value, &e->b, &e->magnitude, &e->bias};
        for (int k = 0; k < 4; k++) {
            *to[k] = c->names[i][k] ? gr_tensor_list_find(&c->source->tensors, c->names[i][k]) : NULL;
            assert_true(*to[k] || !c->names[i][k]);
        }
    }
}

static gr_adapter *build(bench *c, graft_adapter_type type) {
    gr_adapter *a = NULL;
    graft_error err;
    uint64_t before = gr_memory_bytes(), size = gr_adapter_size(&c->plan, type);
    int rc = gr_adapter_build(&a, &c->plan, type, &err);
    if (rc) {
        fail_msg("building: %s", err.message);
    }
    assert_int_equal(gr_memory_bytes() - before, a->bytes);
    uint64_t widened = 0;
    for (size_t i = 0; i < a->n_modules; i++) {
        widened += a->modules[i].own ? gr_module_matrix_bytes(&a->modules[i]) : 0;
    }
    assert_int_equal(a->bytes, size + widened);
    return a;
}

static void refused(bench *c, int code, const char *words) {
    gr_adapter *a = NULL;
    graft_error err;
    uint64_t blocks = gr_memory_blocks();
    expect_code(words, gr_adapter_build(&a, &c->plan, GRAFT_TYPE_F16, &err), code, &err);
    if (!strstr(err.message, words)) {
        fail_msg("\"%s\" lacks \"%s\"", err.message, words);
    }
    assert_null(a);
    assert_int_equal(gr_memory_blocks(), blocks);
}

static void end(bench *c) {
    gr_source_close(c->source);
    test_base_close(c->base);
    test_base_free(c->base);
    test_dir_remove(&c->dir);
    test_dir_remove(&c->base_dir);
    free(c->files);
    free(c);
}

/* ---- what must be there --------------------------------------------------------------------------------- */

static float stored(bench *c, const char *name, size_t i) {
    return test_stored(test_find(c->files, name), i);
}

/* The file's row (of a module of n) that is row r of the GGUF, by the definition of each order. */
static size_t file_row(gr_row_map map, size_t n, size_t r) {
    size_t heads = (size_t)map.heads, dim;
    switch (map.order) {
    case GR_ROWS_AS_IS: return r;
    case GR_ROWS_NEOX_QKV:
        dim = n / heads / 3;
        return (r / dim % heads * 3 + r / dim / heads) * dim + r % dim;
    default:
        dim = n / heads;
        return r / dim * dim + r % dim % 2 * (dim / 2) + r % dim / 2;
    }
}

/* A packed matrix must be want[rows][used], row by row. */
static void check_packed(const void *matrix, gr_packed p, gr_dtype type, const float *want, size_t rows, size_t used) {
    assert_int_equal(p.rows, rows);
    assert_int_equal(p.used, used);
    assert_int_equal(p.stride % GR_PAD, 0);
    assert_true(p.stride >= used && p.stride < used + GR_PAD);
    assert_int_equal((uintptr_t)matrix % 64, 0);
    gr_q8_0 *blocks = malloc((used + 31) / 32 * sizeof *blocks);
    for (size_t r = 0; r < rows; r++) {
        const float *row = want + r * used;
        if (type == GR_DTYPE_Q8_0) {
            gr_f32_to_q8_0(blocks, row, used);
            assert_memory_equal((const gr_q8_0 *)matrix + r * p.stride / 32, blocks, (used + 31) / 32 * sizeof *blocks);
            continue;
        }
        for (size_t j = 0; j < p.stride; j++) {
            float value = j < used ? row[j] : 0;
            size_t at = r * p.stride + j;
            if (type == GR_DTYPE_F16) {
                assert_int_equal(((const uint16_t *)matrix)[at], test_half(value));
            } else {
                assert_int_equal(test_bits(((const float *)matrix)[at]), test_bits(value));
            }
        }
    }
    free(blocks);
}

/* Elements from(r, c) of a tensor of `columns` columns as a matrix: free. */
static float *gather(bench *c, const char *name, size_t columns, size_t first_row, size_t first_column, size_t rows, size_t used,
                     gr_row_map row_map, gr_row_map column_map, bool turned) {
    float *x = malloc(rows * used * sizeof *x);
    for (size_t r = 0; r < rows; r++) {
        for (size_t k = 0; k < used; k++) {
            size_t row = file_row(row_map, rows, r), column = file_row(column_map, used, k);
            size_t at = turned ? (first_column + column) * columns + first_row + row
                               : (first_row + row) * columns + first_column + column;
            x[r * used + k] = stored(c, name, at);
        }
    }
    return x;
}

static const gr_row_map as_is = {GR_ROWS_AS_IS, 0};
static const graft_adapter_type types[] = {GRAFT_TYPE_F32, GRAFT_TYPE_F16, GRAFT_TYPE_Q8_0};
static const gr_dtype dtypes[] = {GR_DTYPE_F32, GR_DTYPE_F16, GR_DTYPE_BF16};

/* Plain products: a slice of the file's B (rows from first_in_file on) to rows of a weight from `first` on. */
static void check_low_rank(bench *c, const gr_module *m, const gr_plan_entry *e, const char *a, const char *b) {
    const test_tensor *tb = test_find(c->files, b);
    size_t rank = (size_t)m->rank, in = (size_t)m->n_in, out = (size_t)m->n_out, skip = (size_t)e->first_in_file;
    float *want_a = gather(c, a, e->transposed ? rank : in, 0, 0, rank, in, as_is, as_is, e->transposed);
    float *want_b = e->transposed ? gather(c, b, (size_t)tb->shape[1], 0, skip, rank, out, as_is, e->rows, false)
                                  : gather(c, b, rank, 0, skip, rank, out, as_is, e->rows, true);
    check_packed(m->a, gr_module_a(m), m->type, want_a, rank, in);
    check_packed(m->b, gr_module_b(m), m->type, want_b, rank, out);
    free(want_a);
    free(want_b);
}

static void slices_orders_and_orientations(void **state) {
    (void)state;
    const struct { gr_row_map map; int64_t first_in_file, first, n_rows; } cases[] = {
        {{GR_ROWS_AS_IS, 0}, 0, 0, 192},    {{GR_ROWS_AS_IS, 0}, 64, 0, 192},   {{GR_ROWS_AS_IS, 0}, 7, 128, 33},
        {{GR_ROWS_ROPE_Q, 4}, 0, 0, 192},   {{GR_ROWS_ROPE_Q, 2}, 64, 0, 64},   {{GR_ROWS_ROPE_K, 10}, 100, 92, 100},
        {{GR_ROWS_NEOX_QKV, 4}, 0, 0, 192}, {{GR_ROWS_NEOX_QKV, 2}, 10, 50, 66}, {{GR_ROWS_ROPE_K, 3}, 30, 128, 30},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        for (int k = 0; k < 18; k++) {
            bench *c = begin();
            bool turned = k >= 9;
            gr_plan_entry *e = add(c, GR_LOW_RANK, GR_OP_PRODUCT, "blk.0.attn_qkv.weight");
            e->rank = 5;
            e->rows = cases[i].map;
            e->first_in_file = cases[i].first_in_file;
            e->first = cases[i].first;
            e->n_rows = cases[i].n_rows;
            e->transposed = turned;
            tensors(c, "x.A", "x.B", NULL, NULL);
            file(c, "x.A", dtypes[k % 3], turned ? 64 : 5, turned ? 5 : 64);
            file(c, "x.B", dtypes[k % 3], turned ? 5 : 300, turned ? 300 : 5);
            write_files(c);
            gr_adapter *a = build(c, types[k / 3 % 3]);
            const gr_module *m = &a->modules[0];
            bool neox = cases[i].map.order == GR_ROWS_NEOX_QKV;
            static const gr_dtype wanted[] = {GR_DTYPE_F32, GR_DTYPE_F16, GR_DTYPE_Q8_0};
            assert_int_equal(m->type, neox && k / 3 % 3 == 2 ? GR_DTYPE_F16 : wanted[k / 3 % 3]);
            assert_int_equal(m->first, cases[i].first);
            assert_int_equal(m->n_out, cases[i].n_rows);
            assert_int_equal(m->n_in, 64);
            assert_null(m->gain.magnitude);
            assert_null(m->shift);
            check_low_rank(c, m, e, "x.A", "x.B");
            assert_int_equal(a->by_rows_only, m->n_out != 192);
            gr_adapter_release(a);
            end(c);
        }
    }
}

/* Rows longer than what is read at once, transposed and not, in orders that cross it. */
static void long_rows(void **state) {
    (void)state;
    enum { LONG = 70400, RANK = 3 };
    for (int k = 0; k < 12; k++) {
        bench *c = begin();
        bool turned = k >= 6;
        gr_weight *w = weight(c, "blk.0.attn_qkv.weight");
        w->n_out = LONG;
        w->n_in = 32;
        gr_plan_entry *e = add(c, GR_LOW_RANK, GR_OP_PRODUCT, "blk.0.attn_qkv.weight");
        e->rank = RANK;
        e->transposed = turned;
        e->rows = k % 2 ? (gr_row_map){GR_ROWS_ROPE_Q, 880} : as_is;
        tensors(c, "x.A", "x.B", NULL, NULL);
        file(c, "x.A", GR_DTYPE_F32, turned ? 32 : RANK, turned ? RANK : 32);
        file(c, "x.B", GR_DTYPE_F32, turned ? RANK : LONG, turned ? LONG : RANK);
        write_files(c);
        gr_adapter *a = build(c, types[k / 2 % 3]);
        check_low_rank(c, &a->modules[0], e, "x.A", "x.B");
        gr_adapter_release(a);
        end(c);
    }
}

/* An embedding's A: a column for each token, as PEFT has it, and as mlx-lm. */
static void embeddings(void **state) {
    (void)state;
    for (int k = 0; k < 18; k++) {
        for (int vocabulary = TEST_VOCAB; vocabulary <= 40000; vocabulary += 40000 - TEST_VOCAB) {
            bench *c = begin();
            bool turned = k >= 9;
            size_t n = (size_t)vocabulary;
            weight(c, "token_embd.weight")->n_out = vocabulary;
            gr_plan_entry *e = add(c, GR_LOW_RANK, GR_OP_ROWS, "token_embd.weight");
            e->rank = 5;
            e->transposed = turned;
            tensors(c, "e.A", "e.B", NULL, NULL);
            file(c, "e.A", dtypes[k % 3], turned ? n : 5, turned ? 5 : n);
            file(c, "e.B", dtypes[k % 3], turned ? 5 : TEST_EMBD, turned ? TEST_EMBD : 5);
            write_files(c);
            gr_adapter *a = build(c, types[k / 3 % 3]);
            const gr_module *m = &a->modules[0];
            assert_int_equal(m->type, k / 3 % 3 == 0 ? GR_DTYPE_F32 : GR_DTYPE_F16);
            assert_int_equal(m->n_in, vocabulary);
            assert_int_equal(m->n_out, TEST_EMBD);
            assert_int_equal(m->stride_rank, GR_PAD);
            assert_true(a->by_rows_only);
            float *want_a = gather(c, "e.A", turned ? 5 : n, 0, 0, n, 5, as_is, as_is, !turned);
            float *want_b = gather(c, "e.B", turned ? TEST_EMBD : 5, 0, 0, 5, TEST_EMBD, as_is, as_is, !turned);
            check_packed(m->a, gr_module_a(m), m->type, want_a, n, 5);
            check_packed(m->b, gr_module_b(m), m->type, want_b, 5, TEST_EMBD);
            free(want_a);
            free(want_b);
            gr_adapter_release(a);
            end(c);
        }
    }
}

static void whole_matrices(void **state) {
    (void)state;
    for (int k = 0; k < 9; k++) {
        bench *c = begin();
        gr_plan_entry *e = add(c, GR_WHOLE, GR_OP_PRODUCT, "blk.0.attn_q.weight");
        e->rows = (gr_row_map){GR_ROWS_ROPE_Q, TEST_HEADS};
        tensors(c, "q", NULL, NULL, NULL);
        add(c, GR_WHOLE, GR_OP_PRODUCT, "token_embd.weight");
        tensors(c, "t", NULL, NULL, NULL);
        add(c, GR_WHOLE, GR_OP_ROWS, "token_embd.weight");
        tensors(c, "t", NULL, NULL, NULL); /* the same tensor: its bytes are hashed once */
        gr_plan_entry *part = add(c, GR_WHOLE, GR_OP_PRODUCT, "blk.0.attn_qkv.weight");
        part->rows = (gr_row_map){GR_ROWS_NEOX_QKV, 2};
        part->first_in_file = 5;
        part->first = 64;
        part->n_rows = 66;
        tensors(c, "fused", NULL, NULL, NULL);
        file(c, "q", dtypes[k % 3], TEST_EMBD, TEST_EMBD);
        file(c, "t", dtypes[k % 3], TEST_VOCAB, TEST_EMBD);
        file(c, "fused", dtypes[k % 3], 100, 64);
        write_files(c);
        gr_adapter *a = build(c, types[k / 3]);
        float *q = gather(c, "q", TEST_EMBD, 0, 0, TEST_EMBD, TEST_EMBD, e->rows, as_is, false);
        float *t = gather(c, "t", TEST_EMBD, 0, 0, TEST_VOCAB, TEST_EMBD, as_is, as_is, false);
        const gr_module *m = a->modules;
        static const gr_dtype product[] = {GR_DTYPE_F32, GR_DTYPE_F16, GR_DTYPE_Q8_0};
        assert_int_equal(m[0].type, product[k / 3]);
        assert_int_equal(m[2].type, k < 3 ? GR_DTYPE_F32 : GR_DTYPE_F16);
        check_packed(m[0].a, gr_module_a(&m[0]), m[0].type, q, TEST_EMBD, TEST_EMBD);
        check_packed(m[1].a, gr_module_a(&m[1]), m[1].type, t, TEST_VOCAB, TEST_EMBD);
        check_packed(m[2].a, gr_module_a(&m[2]), m[2].type, t, TEST_VOCAB, TEST_EMBD);
        float *rows = gather(c, "fused", 64, 5, 0, 66, 64, part->rows, as_is, false);
        check_packed(m[3].a, gr_module_a(&m[3]), m[3].type, rows, 66, 64);
        assert_int_equal(m[3].first, 64);
        free(rows);
        assert_int_equal(m[2].n_in, TEST_VOCAB);
        assert_int_equal(m[2].n_out, TEST_EMBD);
        assert_null(m[0].b);
        assert_false(m[0].zero);
        assert_true(a->by_rows_only);
        assert_int_equal(a->by_weight[m[1].weight], 1); /* the first of two */
        free(q);
        free(t);
        gr_adapter_release(a);
        end(c);
    }
}

/* Values of tokens in any order are found in ascending order. */
static void some_tokens(void **state) {
    (void)state;
    static const int32_t ids[] = {70, 3, 99, 0, 12};
    static const size_t order[] = {3, 1, 4, 0, 2};
    for (int k = 0; k < 9; k++) {
        bench *c = begin();
        for (int op = 0; op < 2; op++) {
            gr_plan_entry *e = add(c, GR_TOKENS, op ? GR_OP_ROWS : GR_OP_PRODUCT, "token_embd.weight");
            e->tokens = ids;
            e->n_tokens = 5;
            e->n_rows = 5;
            tensors(c, "delta", NULL, NULL, NULL);
        }
        file(c, "delta", dtypes[k % 3], 5, TEST_EMBD);
        write_files(c);
        gr_adapter *a = build(c, types[k / 3]);
        float want[5 * TEST_EMBD];
        for (int op = 0; op < 2; op++) {
            const gr_module *m = &a->modules[op];
            assert_int_equal(m->op, op ? GR_OP_ROWS : GR_OP_PRODUCT);
            assert_int_equal(m->type, k < 3 ? GR_DTYPE_F32 : GR_DTYPE_F16);
            assert_int_equal(m->n_tokens, 5);
            assert_int_equal(m->n_in, op ? TEST_VOCAB : TEST_EMBD);
            assert_int_equal(m->n_out, op ? TEST_EMBD : TEST_VOCAB);
            for (size_t i = 0; i < 5; i++) {
                assert_int_equal(m->tokens[i], ids[order[i]]);
                for (size_t j = 0; j < TEST_EMBD; j++) {
                    want[i * TEST_EMBD + j] = stored(c, "delta", order[i] * TEST_EMBD + j);
                }
            }
            check_packed(m->a, gr_module_a(m), m->type, want, 5, TEST_EMBD);
        }
        gr_adapter_release(a);
        end(c);
    }
}

/* A fused module over split weights: one A for all, B in slices; and the generation is that of the file. */
static void one_tensor_for_several_weights(void **state) {
    (void)state;
    bench *c = begin();
    const char *const names[] = {"blk.0.attn_k.weight", "blk.0.attn_q.weight", "blk.0.attn_v.weight"};
    const int64_t first[] = {TEST_EMBD, 0, TEST_EMBD + TEST_KV};
    for (int i = 0; i < 3; i++) {
        gr_plan_entry *e = add(c, GR_LOW_RANK, GR_OP_PRODUCT, names[i]);
        e->rank = 4;
        e->first_in_file = first[i];
        e->rows = i < 2 ? (gr_row_map){GR_ROWS_ROPE_K, i ? TEST_HEADS : TEST_HEADS_KV} : as_is;
        tensors(c, "qkv.A", "qkv.B", NULL, NULL);
    }
    file(c, "other", GR_DTYPE_F32, 40, 1000); /* belongs to no entry */
    file(c, "qkv.B", GR_DTYPE_F32, TEST_EMBD + 2 * TEST_KV, 4);
    file(c, "qkv.A", GR_DTYPE_F32, 4, TEST_EMBD);
    for (int turned = 0; turned < 2; turned++) {
        if (turned) {
            test_tensor *a = test_find(c->files, "qkv.A"), *b = test_find(c->files, "qkv.B");
            *a = (test_tensor){.name = "qkv.A", .n_dims = 2, .shape = {TEST_EMBD, 4}, .factor = 1};
            *b = (test_tensor){.name = "qkv.B", .n_dims = 2, .shape = {4, TEST_EMBD + 2 * TEST_KV}, .factor = 1};
            for (int i = 0; i < 3; i++) {
                c->entries[i].transposed = true;
            }
        }
        write_files(c);
        char wanted[65];
        graft_error err;
        assert_int_equal(gr_source_generation(c->source, wanted, &err), 0);
        for (int type = 0; type < 3; type++) {
            gr_adapter *a = build(c, types[type]);
            for (int i = 0; i < 3; i++) {
                check_low_rank(c, &a->modules[i], &c->entries[i], "qkv.A", "qkv.B");
            }
            assert_string_equal(a->generation, wanted);
            assert_false(a->by_rows_only);
            gr_adapter_release(a);
        }
    }
    end(c);
}

/* ---- vectors -------------------------------------------------------------------------------------------- */

/* A or B as the module has it: element j of row k. */
static double packed_value(const gr_module *m, const void *matrix, size_t stride, size_t k, size_t j) {
    size_t at = k * stride + j;
    if (m->type == GR_DTYPE_F16) {
        return test_half_value(((const uint16_t *)matrix)[at]);
    }
    if (m->type == GR_DTYPE_F32) {
        return (double)((const float *)matrix)[at];
    }
    const gr_q8_0 *block = (const gr_q8_0 *)matrix + at / 32;
    return test_half_value(block->factor) * block->q[at % 32];
}

static void near(double got, double wanted, double size, const char *what) {
    if (!(fabs(got - wanted) <= 3e-7 * size)) {
        fail_msg("%s is %.9g, wanted %.9g", what, got, wanted);
    }
}

/* The three sums of output o, in double, from W (of the operation) and BA formed element by element. */
static void check_gain_row(const gr_module *m, const float *w, int64_t w_in, size_t o) {
    double ww = 0, wba = 0, bb = 0, sizes = 0;
    bool rows = m->op == GR_OP_ROWS;
    for (size_t j = 0; j < (size_t)m->n_in; j++) {
        double ba = 0, base = (double)(rows ? w[j * (size_t)w_in + o] : w[((size_t)m->first + o) * (size_t)w_in + j]);
        for (size_t k = 0; k < (size_t)m->rank; k++) {
            double a = rows ? packed_value(m, m->a, (size_t)m->stride_rank, j, k)
                            : packed_value(m, m->a, (size_t)m->stride_in, k, j);
            ba += packed_value(m, m->b, (size_t)m->stride_out, k, o) * a;
        }
        ww += base * base;
        wba += base * ba;
        bb += ba * ba;
        sizes += fabs(base * ba);
    }
    near((double)m->gain.ww[o], ww, ww, "ww");
    near((double)m->gain.wba[o], wba, sizes, "wba");
    near((double)m->gain.bb[o], bb, bb + 1e-30, "bb");
}

static void check_gain(bench *c, const gr_module *m, const gr_plan_entry *e, const char *magnitude) {
    const gr_weight *w = &c->base->weights[m->weight];
    float *base = test_base_floats(w);
    for (size_t o = 0; o < (size_t)m->n_out; o++) {
        float wanted = stored(c, magnitude, (size_t)e->first_in_file + file_row(e->rows, (size_t)m->n_out, o));
        assert_int_equal(test_bits(m->gain.magnitude[o]), test_bits(wanted));
        check_gain_row(m, base, w->n_in, o);
    }
    free(base);
}

static void dora(void **state) {
    (void)state;
    const struct { gr_row_map map; int64_t first_in_file, first, n_rows; int rank, base; } cases[] = {
        {{GR_ROWS_AS_IS, 0}, 0, 0, 192, 4, GGML_TYPE_F32},      {{GR_ROWS_ROPE_Q, 2}, 64, 128, 64, 7, GGML_TYPE_Q8_0},
        {{GR_ROWS_ROPE_K, 3}, 0, 9, 30, 1, GGML_TYPE_Q4_0},     {{GR_ROWS_NEOX_QKV, 4}, 0, 0, 192, 16, GGML_TYPE_F16},
        {{GR_ROWS_NEOX_QKV, 2}, 12, 100, 66, 3, GGML_TYPE_BF16}, {{GR_ROWS_AS_IS, 0}, 0, 0, 192, 40, GGML_TYPE_Q5_1},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        for (int k = 0; k < 12; k++) {
            bench *c = begin();
            bool turned = k % 2;
            weight(c, "blk.0.attn_qkv.weight")->type = cases[i].base;
            gr_plan_entry *e = add(c, GR_LOW_RANK, GR_OP_PRODUCT, "blk.0.attn_qkv.weight");
            uint64_t rank = (uint64_t)cases[i].rank;
            e->rank = cases[i].rank;
            e->rows = cases[i].map;
            e->first_in_file = cases[i].first_in_file;
            e->first = cases[i].first;
            e->n_rows = cases[i].n_rows;
            e->transposed = turned;
            tensors(c, "x.A", "x.B", "x.m", NULL);
            file(c, "x.m", dtypes[k / 2 % 3], 300, 0);
            file(c, "x.A", GR_DTYPE_F32, turned ? 64 : rank, turned ? rank : 64);
            file(c, "x.B", GR_DTYPE_F32, turned ? rank : 300, turned ? 300 : rank)->factor = k < 3 ? 0 : k < 6 ? 5 : 0.1f;
            write_files(c);
            gr_adapter *a = build(c, types[k / 4]);
            check_gain(c, &a->modules[0], e, "x.m");
            assert_null(a->modules[0].shift);
            assert_false(a->modules[0].zero); /* also where B is */
            assert_false(a->no_effect);
            assert_true(a->by_rows_only);
            gr_adapter_release(a);
            end(c);
        }
    }
}

/* Rows of several blocks and steps, and a rank that tiles do not divide. */
static void dora_of_larger_weights(void **state) {
    (void)state;
    const struct { int64_t n_in, n_out; int rank, type; } cases[] = {
        {1408, 150, 33, GGML_TYPE_Q4_K}, {2000, 75, 16, GGML_TYPE_F16}, {70000, 9, 2, GGML_TYPE_F32}, {517, 301, 5, GGML_TYPE_F32}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        bench *c = begin();
        gr_weight *w = weight(c, "blk.0.attn_qkv.weight");
        w->n_in = cases[i].type == GGML_TYPE_Q4_K ? 1536 : cases[i].n_in;
        w->n_out = cases[i].n_out;
        w->type = cases[i].type;
        uint64_t rank = (uint64_t)cases[i].rank;
        gr_plan_entry *e = add(c, GR_LOW_RANK, GR_OP_PRODUCT, "blk.0.attn_qkv.weight");
        e->rank = cases[i].rank;
        tensors(c, "x.A", "x.B", "x.m", NULL);
        file(c, "x.A", GR_DTYPE_F32, rank, (uint64_t)w->n_in);
        file(c, "x.B", GR_DTYPE_F32, (uint64_t)w->n_out, rank);
        file(c, "x.m", GR_DTYPE_F32, (uint64_t)w->n_out, 0);
        write_files(c);
        gr_adapter *a = build(c, GRAFT_TYPE_F32);
        check_gain(c, &a->modules[0], e, "x.m");
        gr_adapter_release(a);
        end(c);
    }
}

/* PEFT's norms of an embedding run over the tokens: there is one for each number of an embedding. */
static void dora_of_an_embedding(void **state) {
    (void)state;
    for (int k = 0; k < 6; k++) {
        bench *c = begin();
        gr_weight *w = weight(c, "token_embd.weight");
        w->n_out = k % 2 ? 5000 : TEST_VOCAB;
        w->type = k % 2 ? GGML_TYPE_F16 : GGML_TYPE_F32;
        gr_plan_entry *e = add(c, GR_LOW_RANK, GR_OP_ROWS, "token_embd.weight");
        e->rank = 3;
        tensors(c, "e.A", "e.B", "e.m", NULL);
        file(c, "e.A", GR_DTYPE_F32, 3, (uint64_t)w->n_out);
        file(c, "e.B", GR_DTYPE_F32, TEST_EMBD, 3);
        file(c, "e.m", GR_DTYPE_BF16, TEST_EMBD, 0);
        write_files(c);
        gr_adapter *a = build(c, types[k / 2]);
        check_gain(c, &a->modules[0], e, "e.m");
        gr_adapter_release(a);
        end(c);
    }
}

static void biases(void **state) {
    (void)state;
    for (int k = 0; k < 3; k++) {
        bench *c = begin();
        gr_row_map map = {GR_ROWS_ROPE_Q, 2};
        gr_plan_entry *e = add(c, GR_BIAS, GR_OP_ADD, "blk.0.attn_qkv.bias");
        e->rows = map;
        e->first_in_file = 10;
        e->first = 64;
        e->n_rows = 64;
        tensors(c, "bias", NULL, NULL, NULL);
        e = add(c, GR_LOW_RANK, GR_OP_PRODUCT, "blk.0.attn_qkv.weight");
        e->rank = 4;
        e->rows = map;
        e->first_in_file = 32;
        e->first = 128;
        e->n_rows = 64;
        e->scale = 0.3;
        tensors(c, "x.A", "x.B", k == 2 ? "x.m" : NULL, "x.bias");
        weight(c, "blk.0.attn_qkv.bias")->type = k ? GGML_TYPE_F32 : GGML_TYPE_F16;
        file(c, "bias", dtypes[k], 100, 0);
        file(c, "x.A", dtypes[k], 4, 64);
        file(c, "x.B", dtypes[k], 96, 4)->zero = k == 1; /* a shift has its effect without them */
        file(c, "x.bias", dtypes[k], 96, 0);
        file(c, "x.m", dtypes[k], 96, 0);
        write_files(c);
        float *base = test_base_floats(weight(c, "blk.0.attn_qkv.bias"));
        for (int type = 0; type < 3; type++) {
            gr_adapter *a = build(c, types[type]);
            const gr_module *bias = &a->modules[0], *low = &a->modules[1];
            assert_int_equal(bias->kind, GR_BIAS);
            assert_int_equal(bias->first, 64);
            assert_int_equal(bias->n_out, 64);
            assert_int_equal((uintptr_t)bias->shift % 64, 0);
            for (size_t o = 0; o < 64; o++) {
                float wanted = stored(c, "bias", 10 + file_row(map, 64, o)) - base[64 + o];
                assert_int_equal(test_bits(bias->shift[o]), test_bits(wanted));
                wanted = (float)0.3 * stored(c, "x.bias", 32 + file_row(map, 64, o));
                assert_int_equal(test_bits(low->shift[o]), test_bits(wanted));
            }
            assert_false(low->zero);
            assert_false(bias->zero);
            assert_int_equal(low->gain.magnitude != NULL, k == 2);
            if (k == 2) {
                check_gain(c, low, &c->entries[1], "x.m");
            }
            assert_true(a->by_rows_only);
            gr_adapter_release(a);
        }
        free(base);
        end(c);
    }
}

/* What a file of a base that was not trained has: the base's own numbers. */
static void vectors_like_the_base_have_no_effect(void **state) {
    (void)state;
    bench *c = begin();
    add(c, GR_NORM, GR_OP_MUL, "blk.0.attn_norm.weight");
    tensors(c, "blk.0.attn_norm.weight", NULL, NULL, NULL);
    add(c, GR_BIAS, GR_OP_ADD, "blk.0.attn_qkv.bias");
    tensors(c, "blk.0.attn_qkv.bias", NULL, NULL, NULL);
    file(c, "blk.0.attn_norm.weight", GR_DTYPE_F32, TEST_EMBD, 0)->factor = 2; /* named alike: the same numbers */
    file(c, "blk.0.attn_qkv.bias", GR_DTYPE_F32, 192, 0)->factor = 2;
    write_files(c);
    gr_adapter *a = build(c, GRAFT_TYPE_F16);
    assert_true(a->modules[0].zero);
    assert_true(a->modules[1].zero);
    assert_true(a->no_effect);
    gr_adapter_release(a);
    end(c);
}

static void norms(void **state) {
    (void)state;
    for (int k = 0; k < 6; k++) {
        bench *c = begin();
        gr_plan_entry *e = add(c, GR_NORM, GR_OP_MUL, "blk.1.attn_norm.weight");
        e->added = k % 2 ? 1.0f : 0.0f;
        tensors(c, "norm", NULL, NULL, NULL);
        test_tensor *t = file(c, "norm", dtypes[k / 2], TEST_EMBD, 0);
        write_files(c);
        float *base = test_base_floats(weight(c, "blk.1.attn_norm.weight"));
        gr_adapter *a = build(c, GRAFT_TYPE_Q8_0);
        const gr_module *m = &a->modules[0];
        assert_int_equal(m->n_out, TEST_EMBD);
        for (size_t o = 0; o < TEST_EMBD; o++) {
            double value = (double)(test_stored(t, o) + e->added), w = (double)base[o];
            near((double)m->factor[o], (value - w) / w, fabs((value - w) / w), "factor");
        }
        assert_false(m->zero);
        assert_true(a->by_rows_only);
        gr_adapter_release(a);
        /* 11000 times the base's is too much, 9000 times is not. */
        t->has_special = true;
        t->special_at = 7;
        t->dtype = GR_DTYPE_F32;
        t->special = 9000 * base[7];
        write_files(c);
        gr_adapter_release(build(c, GRAFT_TYPE_F16));
        t->special = 11000 * base[7];
        write_files(c);
        refused(c, GRAFT_E_UNSUPPORTED_TARGET, "norm: element [7] cannot be applied: the base's blk.1.attn_norm.weight has ");
        free(base);
        end(c);
    }
}

/* Overwrites element i of a float32 weight of the base. */
static void poke(bench *c, const char *name, size_t i, float value) {
    gr_weight *w = weight(c, name);
    int fd = open(test_path(&c->base_dir, "part0"), O_WRONLY);
    assert_int_equal(pwrite(fd, &value, sizeof value, (off_t)(w->offset + i * sizeof value)), sizeof value);
    close(fd);
    graft_error err;
    gr_file_close(&c->base->parts[0]);
    assert_int_equal(gr_file_open(&c->base->parts[0], AT_FDCWD, test_path(&c->base_dir, "part0"), &err), 0);
}

static void norms_over_zero(void **state) {
    (void)state;
    bench *c = begin();
    gr_plan_entry *e = add(c, GR_NORM, GR_OP_MUL, "blk.1.attn_norm.weight");
    e->added = 1;
    tensors(c, "norm", NULL, NULL, NULL);
    test_tensor *t = file(c, "norm", GR_DTYPE_F32, TEST_EMBD, 0);
    t->has_special = true;
    t->special_at = 5;
    t->special = -1; /* plus 1 is 0, too: nothing changes there */
    write_files(c);
    poke(c, "blk.1.attn_norm.weight", 5, 0);
    gr_adapter *a = build(c, GRAFT_TYPE_F16);
    assert_true(a->modules[0].factor[5] == 0);
    gr_adapter_release(a);
    t->special = -0.5f;
    write_files(c);
    refused(c, GRAFT_E_UNSUPPORTED_TARGET, "element [5]");
    poke(c, "blk.1.attn_norm.weight", 5, NAN);
    refused(c, GRAFT_E_UNSUPPORTED_TARGET, "element [5]");
    end(c);
}

/* A row of W + BA that is zero cannot be scaled to any length. */
static void gains_that_are_no_numbers(void **state) {
    (void)state;
    bench *c = begin();
    gr_plan_entry *e = add(c, GR_LOW_RANK, GR_OP_PRODUCT, "blk.0.attn_q.weight");
    e->rank = 2;
    e->rows = (gr_row_map){GR_ROWS_ROPE_Q, TEST_HEADS};
    tensors(c, "x.A", "x.B", "x.m", NULL);
    file(c, "x.A", GR_DTYPE_F32, 2, TEST_EMBD);
    file(c, "x.B", GR_DTYPE_F32, TEST_EMBD, 2)->zero = true;
    file(c, "x.m", GR_DTYPE_F32, TEST_EMBD, 0);
    write_files(c);
    for (size_t j = 0; j < TEST_EMBD; j++) {
        poke(c, "blk.0.attn_q.weight", 13 * TEST_EMBD + j, 0);
    }
    refused(c, GRAFT_E_NON_FINITE, "x.m: element [16]"); /* heads of 10: row 13 is 10 + 2 * 1 + 1, so 10 + 5 + 1 */
    poke(c, "blk.0.attn_q.weight", 13 * TEST_EMBD, INFINITY);
    refused(c, GRAFT_E_NON_FINITE, "element [16]");
    poke(c, "blk.0.attn_q.weight", 13 * TEST_EMBD, 1e-30f);
    refused(c, GRAFT_E_NON_FINITE, "element [16]");
    end(c);
}

/* ---- what holds for all kinds --------------------------------------------------------------------------- */

/* One of each. */
static bench *all_kinds(void) {
    static const int32_t ids[] = {9, 4};
    bench *c = begin();
    add(c, GR_NORM, GR_OP_MUL, "blk.0.attn_norm.weight");
    tensors(c, "norm", NULL, NULL, NULL);
    gr_plan_entry *e = add(c, GR_LOW_RANK, GR_OP_PRODUCT, "blk.0.attn_q.weight");
    e->rank = 4;
    tensors(c, "x.A", "x.B", "x.m", "x.bias");
    add(c, GR_BIAS, GR_OP_ADD, "blk.0.attn_qkv.bias");
    tensors(c, "bias", NULL, NULL, NULL);
    add(c, GR_WHOLE, GR_OP_PRODUCT, "blk.0.ffn_up.weight");
    tensors(c, "whole", NULL, NULL, NULL);
    e = add(c, GR_TOKENS, GR_OP_PRODUCT, "token_embd.weight");
    e->tokens = ids;
    e->n_tokens = 2;
    tensors(c, "delta", NULL, NULL, NULL);
    e = add(c, GR_LOW_RANK, GR_OP_ROWS, "token_embd.weight");
    e->rank = 3;
    tensors(c, "e.A", "e.B", "e.m", NULL);
    file(c, "norm", GR_DTYPE_F32, TEST_EMBD, 0);
    file(c, "x.A", GR_DTYPE_F32, 4, TEST_EMBD);
    file(c, "x.B", GR_DTYPE_F32, TEST_EMBD, 4);
    file(c, "x.m", GR_DTYPE_F32, TEST_EMBD, 0);
    file(c, "x.bias", GR_DTYPE_F32, TEST_EMBD, 0);
    file(c, "bias", GR_DTYPE_F32, 192, 0);
    file(c, "whole", GR_DTYPE_F32, TEST_FF, TEST_EMBD);
    file(c, "delta", GR_DTYPE_F32, 2, TEST_EMBD);
    file(c, "e.A", GR_DTYPE_F32, 3, TEST_VOCAB);
    file(c, "e.B", GR_DTYPE_F32, TEST_EMBD, 3);
    file(c, "e.m", GR_DTYPE_F32, TEST_EMBD, 0);
    static const int32_t invocation[] = {5, 6, 7};
    c->plan.invocation = invocation;
    c->plan.n_invocation = 3;
    return c;
}

static void numbers_that_are_none_are_found(void **state) {
    (void)state;
    const struct { const char *tensor, *index; size_t at; } cases[] = {
        {"norm", "[39]", 39}, {"x.m", "[0]", 0},     {"x.bias", "[12]", 12}, {"bias", "[191]", 191},
        {"whole", "[1, 2]", TEST_EMBD + 2},          {"delta", "[1, 0]", TEST_EMBD},
        {"e.A", "[2, 99]", 3 * TEST_VOCAB - 1},      {"e.B", "[0, 1]", 1},   {"e.m", "[3]", 3},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        for (int k = 0; k < 6; k++) {
            bench *c = all_kinds();
            test_tensor *t = test_find(c->files, cases[i].tensor);
            t->dtype = dtypes[k % 3];
            t->has_special = true;
            t->special_at = cases[i].at;
            t->special = k < 3 ? NAN : -INFINITY;
            write_files(c);
            char words[64];
            snprintf(words, sizeof words, "%s: element %s is %s", cases[i].tensor, cases[i].index, k < 3 ? "NaN" : "infinite");
            refused(c, GRAFT_E_NON_FINITE, words);
            end(c);
        }
    }
}

/* What float16 cannot hold is float32, alone; vectors stay where they were. */
static void modules_widen(void **state) {
    (void)state;
    static const char *const names[] = {"x.B", "whole", "delta", "e.A"};
    const int modules[] = {1, 3, 4, 5};
    for (int i = 0; i < 4; i++) {
        for (int k = 0; k < 2; k++) {
            bench *c = all_kinds();
            test_tensor *t = test_find(c->files, names[i]);
            t->has_special = true;
            t->special = k ? 70000 : 65100;
            write_files(c);
            gr_adapter *a = build(c, GRAFT_TYPE_Q8_0);
            const gr_module *m = &a->modules[modules[i]];
            bool own = k || m->op == GR_OP_PRODUCT;
            assert_int_equal(m->type, k ? GR_DTYPE_F32 : GR_DTYPE_F16);
            assert_int_equal(m->own != NULL, own && !(m->kind == GR_TOKENS && !k));
            if (modules[i] == 1 || modules[i] == 5) {
                check_gain(c, m, &c->entries[modules[i]], modules[i] == 1 ? "x.m" : "e.m");
            }
            gr_adapter_release(a);
            end(c);
        }
    }
}

static void the_whole_is_put_together(void **state) {
    (void)state;
    bench *c = all_kinds();
    write_files(c);
    char wanted[65];
    graft_error err;
    assert_int_equal(gr_source_generation(c->source, wanted, &err), 0);
    gr_adapter *a = build(c, GRAFT_TYPE_F16);
    assert_string_equal(a->generation, wanted);
    assert_int_equal(a->n_modules, 6);
    assert_int_equal(a->n_invocation, 3);
    assert_int_equal(a->invocation[2], 7);
    assert_true(a->invocation != c->plan.invocation); /* a copy: the plan goes */
    for (size_t i = 0; i < a->n_modules; i++) {
        assert_int_equal(a->modules[i].weight, c->entries[i].weight);
        assert_int_equal(a->modules[i].kind, c->entries[i].kind);
        assert_int_equal(a->modules[i].op, c->entries[i].op);
    }
    assert_int_equal(a->by_weight[c->entries[4].weight], 4);
    assert_int_equal(a->by_weight[test_base_id(c->base, "blk.1.attn_q.weight")], -1);
    gr_adapter_release(a);
    end(c);
}

/* Plain products can go by libllama's adapters; the same with invocation tokens, or with a tied head, cannot. */
static void what_only_goes_by_rows(void **state) {
    (void)state;
    static const int32_t invocation[] = {5};
    for (int k = 0; k < 3; k++) {
        bench *c = begin();
        const char *name = k == 2 ? "token_embd.weight" : "blk.0.ffn_up.weight";
        gr_plan_entry *e = add(c, GR_LOW_RANK, GR_OP_PRODUCT, name);
        e->rank = 4;
        tensors(c, "x.A", "x.B", NULL, NULL);
        file(c, "x.A", GR_DTYPE_F32, 4, TEST_EMBD);
        file(c, "x.B", GR_DTYPE_F32, k == 2 ? TEST_VOCAB : TEST_FF, 4);
        c->plan.invocation = k == 1 ? invocation : NULL;
        c->plan.n_invocation = k == 1;
        write_files(c);
        gr_adapter *a = build(c, GRAFT_TYPE_F16);
        assert_int_equal(a->by_rows_only, k == 2); /* activated ones are decoded in two steps where adapters are applied grouped */
        gr_adapter_release(a);
        end(c);
    }
}

static void files_that_change_while_they_are_read(void **state) {
    (void)state;
    bench *c = all_kinds();
    write_files(c);
    assert_int_equal(truncate(test_path(&c->dir, "adapter_model.safetensors"), (off_t)c->source->weights.size - 50), 0);
    refused(c, GRAFT_E_CHANGED_WHILE_READING, "adapter_model.safetensors");
    write_files(c);
    FILE *f = fopen(test_path(&c->base_dir, "part0"), "ab"); /* the base's */
    fputc('x', f);
    fclose(f);
    refused(c, GRAFT_E_CHANGED_WHILE_READING, "part0");
    for (int k = 0; k < 6; k++) { /* each kind that needs the base notices it, the others do not care */
        gr_plan one = c->plan;
        one.entries = &c->entries[k];
        one.n = 1;
        gr_adapter *a = NULL;
        graft_error err;
        int rc = gr_adapter_build(&a, &one, GRAFT_TYPE_F16, &err);
        bool needs = k != 3 && k != 4;
        expect_code("base", rc, needs ? GRAFT_E_CHANGED_WHILE_READING : 0, &err);
        gr_adapter_release(a);
    }
    end(c);
}

static int build_and_free(void *data, graft_error *err) {
    bench *c = data;
    gr_adapter *a = NULL;
    int rc = gr_adapter_build(&a, &c->plan, GRAFT_TYPE_Q8_0, err);
    gr_adapter_release(a);
    return rc;
}

static void every_allocation_may_fail(void **state) {
    (void)state;
    bench *c = all_kinds();
    weight(c, "blk.0.attn_q.weight")->type = GGML_TYPE_F16; /* rows by way of a buffer */
    test_find(c->files, "whole")->has_special = true; /* a block of its own */
    test_find(c->files, "whole")->special = 1e6f;
    write_files(c);
    int fds = test_open_fds();
    torture("all kinds", build_and_free, c);
    assert_int_equal(test_open_fds(), fds);
    end(c);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(slices_orders_and_orientations),
        cmocka_unit_test(long_rows),
        cmocka_unit_test(embeddings),
        cmocka_unit_test(whole_matrices),
        cmocka_unit_test(some_tokens),
        cmocka_unit_test(one_tensor_for_several_weights),
        cmocka_unit_test(dora),
        cmocka_unit_test(dora_of_larger_weights),
        cmocka_unit_test(dora_of_an_embedding),
        cmocka_unit_test(biases),
        cmocka_unit_test(vectors_like_the_base_have_no_effect),
        cmocka_unit_test(norms),
        cmocka_unit_test(norms_over_zero),
        cmocka_unit_test(gains_that_are_no_numbers),
        cmocka_unit_test(numbers_that_are_none_are_found),
        cmocka_unit_test(modules_widen),
        cmocka_unit_test(the_whole_is_put_together),
        cmocka_unit_test(what_only_goes_by_rows),
        cmocka_unit_test(files_that_change_while_they_are_read),
        cmocka_unit_test(every_allocation_may_fail),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
