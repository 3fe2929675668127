/* From a plan to matrices in memory: every number where it must be, nothing lost, nothing mixed. */
#include "format_helpers.h"
#include "make_adapter.h"

#include "model/adapter.h"
#include "model/convert.h"

#include <float.h>
#include <ggml.h>
#include <openssl/evp.h>

static const uint64_t plenty = (uint64_t)1 << 30;

/* ---- conversions ---------------------------------------------------------------------------------------- */

static void every_half_widens_exactly(void **state) {
    (void)state;
    static uint16_t halves[65536];
    static float wide[65536];
    for (int i = 0; i < 65536; i++) {
        halves[i] = (uint16_t)i;
    }
    gr_f16_to_f32(wide, halves, 65536);
    for (int i = 0; i < 65536; i++) {
        double wanted = test_half_value((uint16_t)i);
        assert_true(isnan(wanted) ? isnan(wide[i]) : wanted == (double)wide[i] && !signbit(wide[i]) == !(i & 0x8000));
    }
}

/* Around every half and every tie between two, and lengths that leave a tail behind the vectors. */
static void floats_round_to_the_nearest_even_half(void **state) {
    (void)state;
    float in[67];
    uint16_t out[67];
    for (uint32_t h = 0; h < 0x7c00; h++) {
        uint32_t here = test_bits((float)test_half_value((uint16_t)h));
        uint32_t next = h + 1 < 0x7c00 ? test_bits((float)test_half_value((uint16_t)(h + 1))) : test_bits(65536.0f);
        float tie = (test_float(here) + test_float(next)) / 2;
        uint32_t t = test_bits(tie);
        const uint32_t near[] = {here, here + 1, here ? here - 1 : 0, t, t + 1, t - 1, next};
        size_t n = 0;
        for (size_t i = 0; i < 7; i++) {
            in[n++] = test_float(near[i]);
            in[n++] = -test_float(near[i]);
        }
        n -= h % 14; /* 1 to 14 elements */
        gr_f32_to_f16(out, in, n);
        for (size_t i = 0; i < n; i++) {
            if (out[i] != test_half(in[i])) {
                fail_msg("%a became %04x, wanted %04x", (double)in[i], out[i], test_half(in[i]));
            }
        }
    }
    for (size_t n = 0; n <= 67; n++) {
        for (size_t i = 0; i < n; i++) {
            in[i] = test_value("tail", i) * 100;
        }
        memset(out, 0xee, sizeof out);
        gr_f32_to_f16(out, in, n);
        for (size_t i = 0; i < 67; i++) {
            assert_int_equal(out[i], i < n ? test_half(in[i]) : 0xeeee);
        }
    }
}

static void the_largest_is_found_anywhere(void **state) {
    (void)state;
    float x[40];
    uint16_t h[40];
    for (size_t at = 0; at < 40; at++) {
        for (size_t i = 0; i < 40; i++) {
            x[i] = test_value("largest", i);
            h[i] = test_half(x[i]);
        }
        x[at] = at % 2 ? -3.5f : 3.5f;
        h[at] = test_half(x[at]);
        assert_int_equal(gr_f32_largest(x, 40), test_bits(3.5f));
        assert_int_equal(gr_f16_largest(h, 40), test_half(3.5f));
        x[at] = at % 2 ? -INFINITY : NAN;
        h[at] = at % 2 ? 0xfc00 : 0xfe01;
        assert_true(gr_f32_largest(x, 40) >= GR_F32_INFINITY);
        assert_true(gr_f16_largest(h, 40) >= GR_F16_INFINITY);
    }
    float zeros[3] = {0.0f, -0.0f, 0.0f};
    assert_int_equal(gr_f32_largest(zeros, 3), 0);
    assert_int_equal(gr_f32_largest(NULL, 0), 0);
    assert_int_equal(test_bits(65504.0f), GR_F32_F16_MAX);
    assert_int_equal(test_bits(0x1p-14f), GR_F32_F16_NORMAL);
}

static void bfloat_widens(void **state) {
    (void)state;
    const uint16_t in[] = {0x3f80, 0xbf80, 0x0001, 0x7f7f, 0x8000};
    const uint32_t wanted[] = {0x3f800000, 0xbf800000, 0x00010000, 0x7f7f0000, 0x80000000};
    float out[5];
    gr_bf16_to_f32(out, in, 5);
    for (int i = 0; i < 5; i++) {
        assert_int_equal(test_bits(out[i]), wanted[i]);
    }
}

/* From the smallest numbers to the largest: within the bound that convert.h gives, and what ggml reads is the same. */
static void q8_0_rounds_to_half_a_factor(void **state) {
    (void)state;
    enum { N = 70 }; /* the last block has 6 */
    float x[N], back[96], theirs[96];
    gr_q8_0 blocks[4];
    double worst = 0;
    for (int step = 0; step < 3000; step++) {
        float size = ldexpf(1.3f, step % 46 - 30); /* 1e-9 to 43000 */
        for (int i = 0; i < N; i++) {
            x[i] = fminf(fmaxf(2 * size * test_value("q8_0", (size_t)(step * N + i)), -65024.0f), 65024.0f);
            x[i] = step % 7 == 0 && i >= 32 && i < 64 ? 0.0f : x[i];
        }
        memset(blocks, 0xee, sizeof blocks);
        gr_f32_to_q8_0(blocks, x, N);
        assert_int_equal(blocks[3].factor, 0xeeee);
        gr_q8_0_to_f32(back, blocks, 96);
        ggml_get_type_traits(GGML_TYPE_Q8_0)->to_float(blocks, theirs, 96);
        for (int i = 0; i < 96; i++) {
            double largest = 0, factor = test_half_value(blocks[i / 32].factor), value = i < N ? (double)x[i] : 0.0;
            for (int k = i / 32 * 32; k < i / 32 * 32 + 32 && k < N; k++) {
                largest = fmax(largest, fabs((double)x[k]));
            }
            assert_true(back[i] == theirs[i]);
            assert_true(factor * 127 <= 65024);
            assert_true(blocks[i / 32].q[i % 32] >= -127);
            assert_true(factor <= largest / 127 * (1 + 0x1p-11) + 0x1p-24);
            assert_true(fabs((double)back[i] - value) <= factor * 0.50002);
            assert_true(i < N || back[i] == 0.0f);
            worst = fmax(worst, factor > 0 ? fabs((double)back[i] - value) / factor : 0);
        }
    }
    assert_true(worst > 0.499); /* and the bound is met */
    float huge[32] = {FLT_MAX, -FLT_MAX}; /* not stored in Q8_0, but no harm */
    gr_f32_to_q8_0(blocks, huge, 32);
}

/* ---- packing -------------------------------------------------------------------------------------------- */

static const gr_module *find_module(const gr_adapter *a, const gr_base_model *base, const char *weight) {
    int id = gr_base_model_weight(base, weight);
    assert_true(id >= 0 && a->by_weight[id] >= 0);
    const gr_module *m = &a->modules[a->by_weight[id]];
    assert_int_equal(m->weight, id);
    return m;
}

/* Row k of A (part 'a') or of B transposed (part 'b'), bits as stored. */
static uint32_t element_bits(const gr_module *m, char part, int k, int j) {
    const void *matrix = part == 'a' ? m->a : m->b;
    size_t at = (size_t)k * (size_t)(part == 'a' ? m->stride_in : m->stride_out) + (size_t)j;
    return m->type == GR_DTYPE_F16 ? ((const uint16_t *)matrix)[at] : test_bits(((const float *)matrix)[at]);
}

/* Row k of a matrix, of which element j is x[at(j)] of the file, as blocks. */
static void check_q8_0_row(const gr_q8_0 *row, const test_tensor *t, int n, size_t first, size_t step, const int *from) {
    float *x = malloc((size_t)n * sizeof *x);
    size_t n_blocks = ((size_t)n + 31) / 32;
    gr_q8_0 *wanted = malloc(n_blocks * sizeof *wanted);
    for (int j = 0; j < n; j++) {
        x[j] = test_stored(t, first + step * (size_t)(from ? from[j] : j));
    }
    gr_f32_to_q8_0(wanted, x, (size_t)n);
    assert_memory_equal(row, wanted, n_blocks * sizeof *wanted);
    free(wanted);
    free(x);
}

static void check_q8_0(const gr_module *m, const test_tensor *a, const test_tensor *b, const int *from) {
    for (int k = 0; k < m->rank; k++) {
        check_q8_0_row((const gr_q8_0 *)m->a + k * (m->stride_in / 32), a, m->n_in, (size_t)k * (size_t)m->n_in, 1, NULL);
        check_q8_0_row((const gr_q8_0 *)m->b + k * (m->stride_out / 32), b, m->n_out, (size_t)k, (size_t)m->rank, from);
    }
}

static uint32_t wanted_bits(const gr_module *m, const test_tensor *t, size_t i) {
    float v = test_stored(t, i);
    return m->type == GR_DTYPE_F16 ? test_half(v) : test_bits(v);
}

/* HF's row of each row of the GGUF, by carrying the conversion out: heads x 2 x half becomes heads x half x 2. */
static void row_order(int *from, int n_out, int heads) {
    int half = heads ? n_out / heads / 2 : 0, n = 0;
    if (heads == 0) {
        for (int i = 0; i < n_out; i++) {
            from[i] = i;
        }
        return;
    }
    for (int h = 0; h < heads; h++) {
        for (int i = 0; i < half; i++) {
            for (int part = 0; part < 2; part++) {
                from[n++] = (h * 2 + part) * half + i;
            }
        }
    }
}

static void check_module(const gr_module *m, const test_tensor *a, const test_tensor *b, int heads) {
    int from[256];
    assert_true(m->n_out <= 256);
    assert_int_equal(m->n_in, a->shape[1]);
    assert_int_equal(m->n_out, b->shape[0]);
    assert_int_equal(m->rank, a->shape[0]);
    assert_int_equal(m->stride_in % GR_PAD, 0);
    assert_int_equal(m->stride_out % GR_PAD, 0);
    assert_true(m->stride_in >= m->n_in && m->stride_in < m->n_in + GR_PAD);
    assert_true(m->stride_out >= m->n_out && m->stride_out < m->n_out + GR_PAD);
    assert_int_equal((uintptr_t)m->a % 64, 0);
    assert_int_equal((uintptr_t)m->b % 64, 0);
    row_order(from, m->n_out, heads);
    if (m->type == GR_DTYPE_Q8_0) {
        check_q8_0(m, a, b, from);
        return;
    }
    for (int k = 0; k < m->rank; k++) {
        for (int j = 0; j < m->stride_in; j++) {
            uint32_t wanted = j < m->n_in ? wanted_bits(m, a, (size_t)(k * m->n_in + j)) : 0;
            assert_int_equal(element_bits(m, 'a', k, j), wanted);
        }
        for (int o = 0; o < m->stride_out; o++) {
            uint32_t wanted = o < m->n_out ? wanted_bits(m, b, (size_t)(from[o] * m->rank + k)) : 0;
            assert_int_equal(element_bits(m, 'b', k, o), wanted);
        }
    }
}

static int load(gr_adapter **out, const gr_base_model *base, const char *path, graft_adapter_type type, graft_error *err) {
    *out = NULL;
    return gr_adapter_open(out, base, path, type, plenty, NULL, err);
}

static gr_adapter *must_load(const gr_base_model *base, const char *path, graft_adapter_type type) {
    gr_adapter *a;
    graft_error err;
    int rc = load(&a, base, path, type, &err);
    if (rc) {
        fail_msg("loading: %s", err.message);
    }
    return a;
}

static const gr_dtype stored_as[] = {[GRAFT_TYPE_F16] = GR_DTYPE_F16, [GRAFT_TYPE_F32] = GR_DTYPE_F32,
                                     [GRAFT_TYPE_Q8_0] = GR_DTYPE_Q8_0};

/* Each file type stored as each type: F16 in F16 and anything in F32 are bit-exact, the rest is rounded once. */
static void every_number_is_in_its_place(void **state) {
    (void)state;
    const gr_dtype dtypes[] = {GR_DTYPE_F32, GR_DTYPE_F16, GR_DTYPE_BF16};
    gr_base_model *base = test_base_make("llama");
    for (int i = 0; i < 9; i++) {
        graft_adapter_type type = (graft_adapter_type)(i % 3);
        test_dir d = test_dir_make();
        test_adapter *t = test_adapter_make(dtypes[i / 3]);
        test_write_peft(t, &d);
        test_write_safetensors(t, &d, "adapter_model.safetensors", i); /* data at odd offsets too */
        uint64_t before = gr_memory_bytes();
        gr_adapter *a = must_load(base, d.path, type);
        assert_int_equal(a->bytes, gr_memory_bytes() - before);
        assert_int_equal(a->n_modules, 6);
        assert_int_equal(a->type, type);
        assert_int_equal(a->rank_min, 4);
        assert_int_equal(a->rank_max, 4);
        assert_string_equal(a->format, "peft");
        assert_string_equal(a->path, d.path);
        assert_false(a->no_effect);
        assert_int_equal(a->n_weights, base->n_weights);
        for (size_t k = 0; k < a->n_modules; k++) {
            const gr_module *m = &a->modules[k];
            assert_true(k == 0 || m->weight > a->modules[k - 1].weight);
            assert_int_equal(m->type, stored_as[type]);
            assert_true(m->scale == 2.0f);
            assert_false(m->zero);
            assert_null(m->own);
        }
        check_module(find_module(a, base, "blk.0.attn_q.weight"), test_find(t, TEST_Q(0, "A")), test_find(t, TEST_Q(0, "B")),
                     TEST_HEADS);
        check_module(find_module(a, base, "blk.1.attn_k.weight"), test_find(t, TEST_K(1, "A")), test_find(t, TEST_K(1, "B")),
                     TEST_HEADS_KV);
        check_module(find_module(a, base, "blk.1.ffn_down.weight"), test_find(t, TEST_DOWN(1, "A")),
                     test_find(t, TEST_DOWN(1, "B")), 0);
        assert_int_equal(a->by_weight[gr_base_model_weight(base, "blk.0.attn_v.weight")], -1);
        assert_int_equal(a->by_weight[gr_base_model_weight(base, "token_embd.weight")], -1);
        gr_adapter_release(a);
        assert_int_equal(gr_memory_bytes(), before);
        free(t);
        test_dir_remove(&d);
    }
    test_base_free(base);
}

static void gguf_rows_stay_as_they_are(void **state) {
    (void)state;
    gr_base_model *base = test_base_make("llama");
    test_dir d = test_dir_make();
    test_adapter *t = test_gguf_make(GR_DTYPE_F32);
    test_find(t, "blk.0.ffn_down.weight.lora_a")->shape[0] = 1; /* a vector in the file */
    test_find(t, "blk.0.ffn_down.weight.lora_b")->shape[1] = 1;
    test_write_gguf(t, &d, "a.gguf", "adapter", "llama", 8, false);
    gr_adapter *a = must_load(base, test_path(&d, "a.gguf"), GRAFT_TYPE_F32);
    assert_string_equal(a->format, "gguf");
    check_module(find_module(a, base, "blk.0.attn_q.weight"), &t->t[0], &t->t[1], 0);
    check_module(find_module(a, base, "blk.0.ffn_down.weight"), &t->t[2], &t->t[3], 0);
    assert_true(find_module(a, base, "blk.0.ffn_down.weight")->scale == 8.0f);
    assert_int_equal(a->rank_min, 1);
    assert_int_equal(a->rank_max, 4);
    gr_adapter_release(a);
    free(t);
    test_dir_remove(&d);
    test_base_free(base);
}

static void generation_of(char out[65], const char *config, const char *weights);

/* Matrices larger than what is read at once, in a file large enough to be hashed on another thread. Of 4992 rows a
 * quarter, one head, makes whole blocks of Q8_0; of 5000 only all do. */
static void matrices_larger_than_a_chunk(void **state) {
    (void)state;
    enum { RANK = 100 };
    gr_base_model *base = test_base_make("llama");
    int q = gr_base_model_weight(base, "blk.0.attn_q.weight");
    for (int i = 0; i < 5; i++) {
        const int WIDE = i == 4 ? 4992 : 5000;
        base->weights[q].n_in = base->weights[q].n_out = WIDE;
        test_dir d = test_dir_make();
        test_adapter *t = calloc(1, sizeof *t);
        snprintf(t->config, sizeof t->config, "{\"peft_type\":\"LORA\",\"r\":%d,\"lora_alpha\":8}", RANK);
        test_tensor *ta = test_add(t, TEST_Q(0, "A"), i == 1 ? GR_DTYPE_F16 : GR_DTYPE_F32, RANK, WIDE);
        test_tensor *tb = test_add(t, TEST_Q(0, "B"), i == 1 ? GR_DTYPE_F16 : GR_DTYPE_BF16, WIDE, RANK);
        ta->has_special = i == 2; /* too large for float16, and not in the last chunk */
        ta->special = 70000.0f;
        test_write_peft(t, &d);
        gr_adapter *a = must_load(base, d.path, i == 0 ? GRAFT_TYPE_F32 : i < 3 ? GRAFT_TYPE_F16 : GRAFT_TYPE_Q8_0);
        const gr_module *m = find_module(a, base, "blk.0.attn_q.weight");
        assert_int_equal(m->type, i == 1 ? GR_DTYPE_F16 : i > 2 ? GR_DTYPE_Q8_0 : GR_DTYPE_F32);
        int *from = malloc((size_t)WIDE * sizeof *from);
        row_order(from, WIDE, TEST_HEADS);
        for (int k = 0; k < RANK && i < 3; k++) {
            for (int j = 0; j < WIDE; j++) {
                assert_int_equal(element_bits(m, 'a', k, j), wanted_bits(m, ta, (size_t)(k * WIDE + j)));
                assert_int_equal(element_bits(m, 'b', k, j), wanted_bits(m, tb, (size_t)(from[j] * RANK + k)));
            }
        }
        if (i >= 3) {
            check_q8_0(m, ta, tb, from);
        }
        free(from);
        char wanted[65];
        generation_of(wanted, test_path(&d, "adapter_config.json"), test_path(&d, "adapter_model.safetensors"));
        assert_string_equal(a->generation, wanted);
        gr_adapter_release(a);
        free(t);
        test_dir_remove(&d);
    }
    test_base_free(base);
}

/* One row of A is more than is read at once: pieces of it, and blocks must not be cut. */
static void rows_longer_than_a_chunk(void **state) {
    (void)state;
    enum { LONG = 70001, RANK = 3 };
    gr_base_model *base = test_base_make("llama");
    base->weights[gr_base_model_weight(base, "blk.0.ffn_down.weight")].n_in = LONG;
    test_dir d = test_dir_make();
    test_adapter *t = calloc(1, sizeof *t);
    snprintf(t->config, sizeof t->config, "{\"peft_type\":\"LORA\",\"r\":%d,\"lora_alpha\":8}", RANK);
    test_tensor *ta = test_add(t, TEST_DOWN(0, "A"), GR_DTYPE_F32, RANK, LONG);
    test_tensor *tb = test_add(t, TEST_DOWN(0, "B"), GR_DTYPE_F32, TEST_EMBD, RANK);
    test_write_peft(t, &d);
    for (int type = 0; type < 3; type++) {
        gr_adapter *a = must_load(base, d.path, (graft_adapter_type)type);
        check_module(find_module(a, base, "blk.0.ffn_down.weight"), ta, tb, 0);
        gr_adapter_release(a);
    }
    free(t);
    test_dir_remove(&d);
    test_base_free(base);
}

/* L15: a module that float16 cannot hold stays in float32, alone. */
static void what_does_not_fit_float16_stays_float32(void **state) {
    (void)state;
    const struct { float special, factor; const char *tensor; bool own; } cases[] = {
        {65504.0f, 1, TEST_Q(0, "A"), false}, {65505.0f, 1, TEST_Q(0, "A"), true},  {-1e38f, 1, TEST_Q(0, "B"), true},
        {0.0f, 1e-6f, TEST_Q(0, "B"), true},  {0.0f, 1e-30f, TEST_Q(0, "A"), true}, {0.0f, 1e-3f, TEST_Q(0, "B"), false},
    };
    gr_base_model *base = test_base_make("llama");
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        test_dir d = test_dir_make();
        test_adapter *t = test_adapter_make(i % 2 ? GR_DTYPE_F32 : GR_DTYPE_BF16);
        test_tensor *s = test_find(t, cases[i].tensor);
        s->factor = cases[i].factor;
        s->dtype = GR_DTYPE_F32;
        s->has_special = cases[i].special != 0;
        s->special = cases[i].special;
        s->special_at = 77;
        test_write_peft(t, &d);
        uint64_t before = gr_memory_bytes();
        gr_adapter *a = must_load(base, d.path, GRAFT_TYPE_F16);
        assert_int_equal(a->bytes, gr_memory_bytes() - before);
        const gr_module *m = find_module(a, base, "blk.0.attn_q.weight");
        assert_int_equal(m->type, cases[i].own ? GR_DTYPE_F32 : GR_DTYPE_F16);
        assert_int_equal(m->own != NULL, cases[i].own);
        check_module(m, test_find(t, TEST_Q(0, "A")), test_find(t, TEST_Q(0, "B")), TEST_HEADS);
        const gr_module *other = find_module(a, base, "blk.1.attn_q.weight");
        assert_int_equal(other->type, GR_DTYPE_F16);
        check_module(other, test_find(t, TEST_Q(1, "A")), test_find(t, TEST_Q(1, "B")), TEST_HEADS);
        assert_int_equal(a->type, GRAFT_TYPE_F16);
        gr_adapter_release(a);
        assert_int_equal(gr_memory_bytes(), before);
        free(t);
        test_dir_remove(&d);
    }
    test_base_free(base);
}

/* The same for Q8_0: in float16 if that can hold it, else in float32. */
static void what_does_not_fit_q8_0_stays_wider(void **state) {
    (void)state;
    const struct { float special, factor; gr_dtype file, stored; const char *tensor; } cases[] = {
        {65024.0f, 1, GR_DTYPE_F32, GR_DTYPE_Q8_0, TEST_Q(0, "A")}, {-65025.0f, 1, GR_DTYPE_F32, GR_DTYPE_F16, TEST_Q(0, "A")},
        {65504.0f, 1, GR_DTYPE_F16, GR_DTYPE_F16, TEST_Q(0, "B")},  {65505.0f, 1, GR_DTYPE_F32, GR_DTYPE_F32, TEST_Q(0, "B")},
        {-3e38f, 1, GR_DTYPE_BF16, GR_DTYPE_F32, TEST_Q(0, "A")},   {0, 1e-4f, GR_DTYPE_F32, GR_DTYPE_F32, TEST_Q(0, "A")},
        {0, 1e-4f, GR_DTYPE_F16, GR_DTYPE_F16, TEST_Q(0, "B")},     {0, 1e-4f, GR_DTYPE_BF16, GR_DTYPE_F32, TEST_Q(0, "B")},
        {0, 1e-3f, GR_DTYPE_F32, GR_DTYPE_Q8_0, TEST_Q(0, "B")},    {0, 0, GR_DTYPE_F32, GR_DTYPE_Q8_0, TEST_Q(0, "B")},
    };
    gr_base_model *base = test_base_make("llama");
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        test_dir d = test_dir_make();
        test_adapter *t = test_adapter_make(cases[i].file == GR_DTYPE_F16 ? GR_DTYPE_F16 : GR_DTYPE_F32);
        test_tensor *s = test_find(t, cases[i].tensor);
        s->factor = cases[i].factor;
        s->dtype = cases[i].file;
        s->has_special = cases[i].special != 0;
        s->special = cases[i].special;
        s->special_at = 77;
        test_write_peft(t, &d);
        uint64_t before = gr_memory_bytes();
        gr_adapter *a = must_load(base, d.path, GRAFT_TYPE_Q8_0);
        assert_int_equal(a->bytes, gr_memory_bytes() - before);
        const gr_module *m = find_module(a, base, "blk.0.attn_q.weight");
        if (m->type != cases[i].stored) {
            fail_msg("case %zu is stored as %s", i, gr_dtype_name(m->type));
        }
        assert_int_equal(m->own != NULL, m->type != GR_DTYPE_Q8_0);
        assert_int_equal(m->zero, cases[i].factor == 0);
        check_module(m, test_find(t, TEST_Q(0, "A")), test_find(t, TEST_Q(0, "B")), TEST_HEADS);
        const gr_module *other = find_module(a, base, "blk.1.attn_q.weight");
        assert_int_equal(other->type, GR_DTYPE_Q8_0);
        check_module(other, test_find(t, TEST_Q(1, "A")), test_find(t, TEST_Q(1, "B")), TEST_HEADS);
        assert_int_equal(a->type, GRAFT_TYPE_Q8_0);
        gr_adapter_release(a);
        assert_int_equal(gr_memory_bytes(), before);
        free(t);
        test_dir_remove(&d);
    }
    test_base_free(base);
}

/* L11 */
static void numbers_that_are_none_are_found(void **state) {
    (void)state;
    const struct { gr_dtype dtype; graft_adapter_type type; float special; const char *tensor, *words; size_t at; } cases[] = {
        {GR_DTYPE_F32, GRAFT_TYPE_F16, NAN, TEST_Q(1, "A"), "[1, 3] is NaN", 43},
        {GR_DTYPE_F32, GRAFT_TYPE_F32, -INFINITY, TEST_Q(1, "B"), "[10, 3] is infinite", 43},
        {GR_DTYPE_F16, GRAFT_TYPE_F16, INFINITY, TEST_DOWN(0, "A"), "[3, 55] is infinite", 4 * TEST_FF - 1},
        {GR_DTYPE_F16, GRAFT_TYPE_F16, NAN, TEST_DOWN(0, "B"), "[0, 0] is NaN", 0},
        {GR_DTYPE_F16, GRAFT_TYPE_F32, NAN, TEST_DOWN(0, "B"), "[0, 0] is NaN", 0},
        {GR_DTYPE_BF16, GRAFT_TYPE_F16, NAN, TEST_K(0, "B"), "[1, 1] is NaN", 5},
        {GR_DTYPE_BF16, GRAFT_TYPE_F32, INFINITY, TEST_K(0, "A"), "[0, 5] is infinite", 5},
        {GR_DTYPE_F16, GRAFT_TYPE_Q8_0, INFINITY, TEST_K(0, "A"), "[0, 5] is infinite", 5},
        {GR_DTYPE_F32, GRAFT_TYPE_Q8_0, NAN, TEST_Q(1, "B"), "[10, 3] is NaN", 43},
    };
    gr_base_model *base = test_base_make("llama");
    uint64_t blocks = gr_memory_blocks();
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        test_dir d = test_dir_make();
        test_adapter *t = test_adapter_make(cases[i].dtype);
        test_tensor *s = test_find(t, cases[i].tensor);
        s->has_special = true;
        s->special = cases[i].special;
        s->special_at = cases[i].at;
        test_write_peft(t, &d);
        gr_adapter *a;
        graft_error err;
        expect_code(cases[i].words, load(&a, base, d.path, cases[i].type, &err), GRAFT_E_NON_FINITE, &err);
        if (!strstr(err.message, cases[i].words) || !strstr(err.message, "lora_")) {
            fail_msg("\"%s\" lacks \"%s\"", err.message, cases[i].words);
        }
        assert_null(a);
        assert_int_equal(gr_memory_blocks(), blocks);
        free(t);
        test_dir_remove(&d);
    }
    test_base_free(base);
}

typedef struct lines {
    int n;
    char last[256];
} lines;

static void on_line(const graft_log_entry *entry, void *user) {
    lines *l = user;
    l->n += entry->level == GRAFT_LOG_WARN;
    snprintf(l->last, sizeof l->last, "%s", entry->text);
}

/* L12 */
static void untrained_adapters_are_noted(void **state) {
    (void)state;
    gr_base_model *base = test_base_make("llama");
    test_dir d = test_dir_make();
    test_adapter *t = test_adapter_make(GR_DTYPE_F32);
    for (int i = 0; i < t->n; i++) {
        t->t[i].zero = strstr(t->t[i].name, "lora_B") != NULL;
    }
    test_write_peft(t, &d);
    lines said = {0};
    gr_log log = {on_line, &said};
    gr_adapter *a;
    graft_error err;
    assert_int_equal(gr_adapter_open(&a, base, d.path, GRAFT_TYPE_F16, plenty, &log, &err), 0);
    assert_true(a->no_effect);
    assert_true(a->modules[0].zero);
    assert_int_equal(said.n, 1);
    assert_non_null(strstr(said.last, "zero"));
    gr_adapter_release(a);
    test_find(t, TEST_Q(1, "B"))->zero = false;
    for (int i = 0; i < t->n / 2; i++) { /* the file's order does not matter */
        test_tensor swapped = t->t[i];
        t->t[i] = t->t[t->n - 1 - i];
        t->t[t->n - 1 - i] = swapped;
    }
    test_write_peft(t, &d);
    a = must_load(base, d.path, GRAFT_TYPE_F16);
    assert_false(a->no_effect);
    assert_true(find_module(a, base, "blk.0.attn_q.weight")->zero);
    assert_false(find_module(a, base, "blk.1.attn_q.weight")->zero);
    check_module(find_module(a, base, "blk.1.attn_k.weight"), test_find(t, TEST_K(1, "A")), test_find(t, TEST_K(1, "B")),
                 TEST_HEADS_KV);
    gr_adapter_release(a);
    free(t);
    test_dir_remove(&d);
    test_base_free(base);
}

/* ---- identity ------------------------------------------------------------------------------------------- */

static size_t read_file(uint8_t *out, size_t max, const char *path) {
    FILE *f = fopen(path, "rb");
    assert_non_null(f);
    size_t n = fread(out, 1, max, f);
    assert_true(n < max);
    fclose(f);
    return n;
}

/* SHA-256 over SHA-256(config) and the weights file, computed from the files themselves. */
static void generation_of(char out[65], const char *config, const char *weights) {
    static uint8_t bytes[1 << 23];
    uint8_t all[32], final[32];
    size_t n = config ? read_file(bytes, sizeof bytes, config) : 0;
    assert_int_equal(EVP_Digest(bytes, n, all, NULL, EVP_sha256(), NULL), 1);
    EVP_MD_CTX *h = EVP_MD_CTX_new();
    EVP_DigestInit_ex(h, EVP_sha256(), NULL);
    EVP_DigestUpdate(h, all, 32);
    n = read_file(bytes, sizeof bytes, weights);
    EVP_DigestUpdate(h, bytes, n);
    EVP_DigestFinal_ex(h, final, NULL);
    EVP_MD_CTX_free(h);
    for (int i = 0; i < 32; i++) {
        snprintf(out + 2 * i, 3, "%02x", final[i]);
    }
}

static void the_generation_is_the_hash_of_both_files(void **state) {
    (void)state;
    gr_base_model *base = test_base_make("llama");
    test_dir d = test_dir_make();
    test_adapter *t = test_adapter_make(GR_DTYPE_F32), *g = test_gguf_make(GR_DTYPE_F16);
    test_find(g, "blk.0.ffn_down.weight.lora_a")->shape[0] = 3; /* sizes that the GGUF pads, the last one too */
    test_find(g, "blk.0.ffn_down.weight.lora_b")->shape[1] = 3;
    test_write_peft(t, &d);
    test_write_gguf(g, &d, "a.gguf", "adapter", "llama", 8, false);
    char wanted[65];
    for (int type = 0; type < 3; type++) {
        generation_of(wanted, test_path(&d, "adapter_config.json"), test_path(&d, "adapter_model.safetensors"));
        gr_adapter *a = must_load(base, d.path, (graft_adapter_type)type);
        assert_string_equal(a->generation, wanted);
        gr_adapter_release(a);
        generation_of(wanted, NULL, test_path(&d, "a.gguf")); /* with padding between its tensors */
        a = must_load(base, test_path(&d, "a.gguf"), (graft_adapter_type)type);
        assert_string_equal(a->generation, wanted);
        gr_adapter_release(a);
    }
    free(t);
    free(g);
    test_dir_remove(&d);
    test_base_free(base);
}

/* ---- files that move under us --------------------------------------------------------------------------- */

typedef struct opened {
    gr_source *source;
    gr_plan *plan;
    gr_report report;
} opened;

static void open_plan(opened *o, const gr_base_model *base, const char *path) {
    graft_error err;
    gr_report_init(&o->report);
    assert_int_equal(gr_source_open(&o->source, path, (gr_source_limits){plenty, NULL}, &o->report, &err), 0);
    assert_int_equal(gr_verify(&o->plan, base, o->source, &o->report, &err), 0);
}

static void close_plan(opened *o) {
    gr_plan_free(o->plan);
    gr_source_close(o->source);
    gr_report_finish(&o->report);
}

/* F15, F16, F17 */
static void files_that_change_while_they_are_read(void **state) {
    (void)state;
    gr_base_model *base = test_base_make("llama");
    test_dir d = test_dir_make();
    test_adapter *t = test_adapter_make(GR_DTYPE_F32);
    test_write_peft(t, &d);
    char weights[256];
    snprintf(weights, sizeof weights, "%s/adapter_model.safetensors", d.path);
    opened o;
    gr_adapter *a = NULL;
    graft_error err;
    uint64_t blocks = gr_memory_blocks();

    open_plan(&o, base, d.path);
    struct stat st;
    assert_int_equal(stat(weights, &st), 0);
    assert_int_equal(truncate(weights, st.st_size - 100), 0);
    expect_code("cut", gr_adapter_build(&a, o.plan, GRAFT_TYPE_F16, &err), GRAFT_E_CHANGED_WHILE_READING, &err);
    close_plan(&o);

    test_write_peft(t, &d);
    open_plan(&o, base, d.path);
    FILE *f = fopen(weights, "ab");
    fputc('x', f);
    fclose(f);
    expect_code("grown", gr_adapter_build(&a, o.plan, GRAFT_TYPE_F16, &err), GRAFT_E_CHANGED_WHILE_READING, &err);
    close_plan(&o);

    test_write_peft(t, &d);
    open_plan(&o, base, d.path);
    int fd = open(weights, O_WRONLY);
    assert_int_equal(pwrite(fd, "xyz", 3, st.st_size - 3), 3);
    const struct timespec later[2] = {{.tv_nsec = UTIME_OMIT}, {.tv_sec = st.st_mtime + 10}};
    assert_int_equal(futimens(fd, later), 0); /* whatever the clock's grain */
    close(fd);
    expect_code("rewritten", gr_adapter_build(&a, o.plan, GRAFT_TYPE_F16, &err), GRAFT_E_CHANGED_WHILE_READING, &err);
    close_plan(&o);
    assert_null(a);
    assert_int_equal(gr_memory_blocks(), blocks);

    /* Replaced by rename: what was opened is read to its end. */
    test_write_peft(t, &d);
    char wanted[65];
    generation_of(wanted, test_path(&d, "adapter_config.json"), weights);
    open_plan(&o, base, d.path);
    test_write_text(&d, "new", "something else");
    assert_int_equal(rename(test_path(&d, "new"), test_path(&d, "adapter_model.safetensors")), 0);
    assert_int_equal(gr_adapter_build(&a, o.plan, GRAFT_TYPE_F16, &err), 0);
    assert_string_equal(a->generation, wanted);
    gr_adapter_release(a);
    close_plan(&o);
    free(t);
    test_dir_remove(&d);
    test_base_free(base);
}

typedef struct attempt {
    const gr_base_model *base;
    const char *path;
    graft_adapter_type type;
} attempt;

static int load_and_free(void *data, graft_error *err) {
    const attempt *t = data;
    gr_adapter *a = NULL;
    int rc = load(&a, t->base, t->path, t->type, err);
    gr_adapter_release(a);
    return rc;
}

/* With a thread that hashes: errors in the middle, and every allocation. */
static void large_files_fail_cleanly(void **state) {
    (void)state;
    enum { WIDE = 6000, RANK = 64 };
    gr_base_model *base = test_base_make("llama");
    int q = gr_base_model_weight(base, "blk.0.attn_q.weight");
    base->weights[q].n_in = base->weights[q].n_out = WIDE;
    test_dir d = test_dir_make();
    test_adapter *t = calloc(1, sizeof *t);
    snprintf(t->config, sizeof t->config, "{\"peft_type\":\"LORA\",\"r\":%d,\"lora_alpha\":8}", RANK);
    test_tensor *ta = test_add(t, TEST_Q(0, "A"), GR_DTYPE_F32, RANK, WIDE);
    test_add(t, TEST_Q(0, "B"), GR_DTYPE_F32, WIDE, RANK);
    test_write_peft(t, &d);
    opened o;
    gr_adapter *a = NULL;
    graft_error err;
    uint64_t blocks = gr_memory_blocks();
    torture("large", load_and_free, &(attempt){base, d.path, GRAFT_TYPE_Q8_0});

    open_plan(&o, base, d.path);
    assert_int_equal(truncate(test_path(&d, "adapter_model.safetensors"), 2000000), 0);
    expect_code("cut", gr_adapter_build(&a, o.plan, GRAFT_TYPE_F16, &err), GRAFT_E_CHANGED_WHILE_READING, &err);
    close_plan(&o);

    ta->has_special = true;
    ta->special = NAN;
    ta->special_at = WIDE * RANK - 100;
    test_write_peft(t, &d);
    expect_code("NaN", load(&a, base, d.path, GRAFT_TYPE_F16, &err), GRAFT_E_NON_FINITE, &err);
    assert_non_null(strstr(err.message, "[63, 5900] is NaN"));
    assert_null(a);
    assert_int_equal(gr_memory_blocks(), blocks);
    free(t);
    test_dir_remove(&d);
    test_base_free(base);
}

/* ---- size, sharing, memory ------------------------------------------------------------------------------ */

static void the_size_is_known_before_reading(void **state) {
    (void)state;
    gr_base_model *base = test_base_make("llama");
    test_dir d = test_dir_make();
    test_adapter *t = test_adapter_make(GR_DTYPE_BF16);
    test_write_peft(t, &d);
    for (int type = 0; type < 3; type++) {
        opened o;
        open_plan(&o, base, d.path);
        uint64_t said = gr_adapter_size(o.plan, (graft_adapter_type)type), before = gr_memory_bytes();
        gr_adapter *a;
        graft_error err;
        assert_int_equal(gr_adapter_build(&a, o.plan, (graft_adapter_type)type, &err), 0);
        assert_int_equal(gr_memory_bytes() - before, said);
        assert_int_equal(a->bytes, said);
        uint64_t blocks = 0; /* of 32 elements, in matrices that begin 64 bytes aligned */
        const uint64_t block_size = type == GRAFT_TYPE_F32 ? 128 : type == GRAFT_TYPE_F16 ? 64 : 34;
        for (size_t i = 0; i < a->n_modules; i++) {
            const gr_module *m = &a->modules[i];
            const int widths[] = {m->n_in, m->n_out};
            for (int k = 0; k < 2; k++) {
                uint64_t size = (uint64_t)m->rank * (uint64_t)((widths[k] + 31) / 32) * block_size;
                blocks += (size + 63) / 64 * 64;
            }
        }
        assert_int_equal(said, sizeof *a + a->n_modules * sizeof *a->modules + a->n_weights * sizeof *a->by_weight +
                         strlen(d.path) + 1 + blocks);
        close_plan(&o);
        gr_adapter_release(a);
    }
    free(t);
    test_dir_remove(&d);
    test_base_free(base);
}

static void the_last_reference_frees(void **state) {
    (void)state;
    gr_base_model *base = test_base_make("llama");
    test_dir d = test_dir_make();
    test_adapter *t = test_adapter_make(GR_DTYPE_F32);
    test_write_peft(t, &d);
    uint64_t blocks = gr_memory_blocks();
    gr_adapter *a = must_load(base, d.path, GRAFT_TYPE_F16);
    assert_ptr_equal(gr_adapter_retain(a), a);
    gr_adapter_release(a);
    assert_true(gr_memory_blocks() > blocks);
    assert_int_equal(a->n_modules, 6);
    gr_adapter_release(a);
    assert_int_equal(gr_memory_blocks(), blocks);
    gr_adapter_release(NULL);
    assert_null(gr_adapter_retain(NULL));
    free(t);
    test_dir_remove(&d);
    test_base_free(base);
}

static void every_allocation_may_fail(void **state) {
    (void)state;
    gr_base_model *base = test_base_make("llama");
    test_dir d = test_dir_make();
    test_adapter *t = test_adapter_make(GR_DTYPE_F32), *g = test_gguf_make(GR_DTYPE_F32);
    test_find(t, TEST_Q(0, "A"))->has_special = true; /* one module in a block of its own */
    test_find(t, TEST_Q(0, "A"))->special = 1e6f;
    test_write_peft(t, &d);
    test_write_gguf(g, &d, "a.gguf", "adapter", "llama", 8, false);
    int fds = test_open_fds();
    torture("folder", load_and_free, &(attempt){base, d.path, GRAFT_TYPE_F16});
    torture("Q8_0", load_and_free, &(attempt){base, d.path, GRAFT_TYPE_Q8_0});
    torture("GGUF", load_and_free, &(attempt){base, test_path(&d, "a.gguf"), GRAFT_TYPE_F16});
    assert_int_equal(test_open_fds(), fds);
    free(t);
    free(g);
    test_dir_remove(&d);
    test_base_free(base);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_half_widens_exactly),
        cmocka_unit_test(floats_round_to_the_nearest_even_half),
        cmocka_unit_test(the_largest_is_found_anywhere),
        cmocka_unit_test(bfloat_widens),
        cmocka_unit_test(q8_0_rounds_to_half_a_factor),
        cmocka_unit_test(every_number_is_in_its_place),
        cmocka_unit_test(gguf_rows_stay_as_they_are),
        cmocka_unit_test(matrices_larger_than_a_chunk),
        cmocka_unit_test(rows_longer_than_a_chunk),
        cmocka_unit_test(what_does_not_fit_float16_stays_float32),
        cmocka_unit_test(what_does_not_fit_q8_0_stays_wider),
        cmocka_unit_test(numbers_that_are_none_are_found),
        cmocka_unit_test(untrained_adapters_are_noted),
        cmocka_unit_test(the_generation_is_the_hash_of_both_files),
        cmocka_unit_test(files_that_change_while_they_are_read),
        cmocka_unit_test(large_files_fail_cleanly),
        cmocka_unit_test(the_size_is_known_before_reading),
        cmocka_unit_test(the_last_reference_frees),
        cmocka_unit_test(every_allocation_may_fail),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
