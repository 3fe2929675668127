/*
 * Nodes of real graphs beside products: embeddings by rows, norms, biases, and a tied embedding as head. What an adapter does
 * to one node is undone at another, or is the same as other tokens with the base, so that the base itself is the reference.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "lora_support.h"

#include <ggml.h>
#include <gguf.h>

static const double CLOSE = 3e-5;
enum { MAX_MODULES = 64, MAX_WIDTH = 4096 };

static float zeros[MAX_WIDTH], ones[MAX_WIDTH], halves[MAX_WIDTH], minus_halves[MAX_WIDTH], thirds[MAX_WIDTH], minus_thirds[MAX_WIDTH];

static int fill_constants(void **state) {
    (void)state;
    for (int i = 0; i < MAX_WIDTH; i++) {
        ones[i] = 1.0f;
        halves[i] = 0.5f;
        minus_halves[i] = -0.5f;
        thirds[i] = 1.0f / 3.0f;
        minus_thirds[i] = -1.0f / 3.0f;
    }
    return 0;
}

/* An adapter by hand. Modules must be added in the order of weights and operations. */
typedef struct made {
    gr_adapter adapter;
    gr_module modules[MAX_MODULES];
    int32_t by_weight[1024];
} made;

static made *made_new(const gr_base_model *base) {
    made *m = calloc(1, sizeof *m);
    m->adapter.modules = m->modules;
    m->adapter.by_weight = m->by_weight;
    m->adapter.n_weights = base->n_weights;
    m->adapter.by_rows_only = true;
    assert_true(base->n_weights <= 1024);
    memset(m->by_weight, -1, sizeof m->by_weight);
    return m;
}

static gr_module *made_add(made *a, const gr_base_model *base, int weight, gr_kind kind, gr_op op) {
    const gr_weight *w = base->weights + weight;
    size_t at = a->adapter.n_modules++;
    assert_true(at < MAX_MODULES);
    gr_module *m = a->modules + at;
    *m = (gr_module){.weight = weight, .kind = kind, .op = op, .type = GR_DTYPE_F32, .scale = 1.0f};
    m->n_in = (int)(op == GR_OP_ROWS ? w->n_out : w->n_in);
    m->n_out = (int)(op == GR_OP_ROWS ? w->n_in : w->n_out);
    assert_true(m->n_out <= MAX_WIDTH);
    m->stride_in = (m->n_in + GR_PAD - 1) / GR_PAD * GR_PAD;
    m->stride_out = (m->n_out + GR_PAD - 1) / GR_PAD * GR_PAD;
    a->by_weight[weight] = a->by_weight[weight] < 0 ? (int32_t)at : a->by_weight[weight];
    return m;
}

static int weight_of(const gr_base_model *base, const char *name) {
    int weight = gr_base_model_weight(base, name);
    assert_true(weight >= 0);
    return weight;
}

static bool ends(const char *text, const char *with) {
    size_t n = strlen(text), k = strlen(with);
    return n >= k && !strcmp(text + n - k, with);
}

/* Three sequences of n rows, interleaved; the last row of each has output, and every third of those before with `some`. The middle
 * one has the base. */
static void fill(test_bed *b, int n, bool some, const gr_adapter_set *set, const int32_t *map) {
    bed_clear(b);
    b->batch.n_tokens = 0;
    for (int i = 0; i < n; i++) {
        for (int s = 0; s < 3; s++) {
            int token = (i * 31 + s * 17 + 7) % b->base->n_vocab;
            bed_row(b, s, i, map && s != 1 ? map[token] : token, i == n - 1 || (some && i % 3 == 0), s == 1 ? NULL : set);
        }
    }
}

/* All output rows of the batch, one after the other, to be freed. */
static float *outputs(const test_bed *b) {
    size_t n_vocab = (size_t)b->base->n_vocab, n = 0;
    float *all = malloc((size_t)b->batch.n_tokens * n_vocab * sizeof *all);
    for (int i = 0; i < b->batch.n_tokens; i++) {
        if (b->batch.logits[i]) {
            memcpy(all + n++ * n_vocab, llama_get_logits_ith(b->ctx, i), n_vocab * sizeof *all);
        }
    }
    return all;
}

static int n_outputs(const test_bed *b) {
    int n = 0;
    for (int i = 0; i < b->batch.n_tokens; i++) {
        n += b->batch.logits[i] != 0;
    }
    return n;
}

static void decode(test_bed *b) {
    graft_error err;
    if (bed_decode_rows(b, NULL, &err)) {
        fail_msg("%s", err.message);
    }
}

/* The largest difference of any output row of two runs over the same rows. */
static double most(const test_bed *b, const float *got, const float *want) {
    double found = 0;
    for (int i = 0; i < n_outputs(b); i++) {
        found = fmax(found, bed_difference(got + i * b->base->n_vocab, want + i * b->base->n_vocab, b->base->n_vocab));
    }
    return found;
}

/* The adapter's rows against the base's: how far they are apart. */
static double effect(test_bed *b, const made *a, int n, bool some) {
    gr_adapter_set set = bed_set(&a->adapter, 1.0f, NULL, 0);
    fill(b, n, some, &set, NULL);
    decode(b);
    assert_int_equal(gr_hook_products(b->hook), a->adapter.n_modules);
    float *got = outputs(b);
    fill(b, n, some, NULL, NULL);
    decode(b);
    float *want = outputs(b);
    double found = most(b, got, want);
    free(got);
    free(want);
    return found;
}

/* ---- all norms and biases of all architectures --------------------------------------------------------------- */

static const char *const bases[] = {"command-r", "gemma2", "gemma3", "gpt2", "gptneox", "granite", "llama", "llama-untied",
                                    "mistral", "olmo2", "phi3", "qwen2", "qwen3", "smollm3", "stablelm", "starcoder2"};

/* With the factors `norm` and `bias` for every vector that has such a name. */
static made *all_vectors(const gr_base_model *base, const float *norm, const float *bias) {
    made *a = made_new(base);
    for (int id = 0; id < (int)base->n_weights; id++) {
        const char *name = base->weights[id].name;
        if (base->weights[id].vector && ends(name, ".bias")) {
            made_add(a, base, id, GR_BIAS, GR_OP_ADD)->shift = bias;
        } else if (base->weights[id].vector && ends(name, "norm.weight")) {
            made_add(a, base, id, GR_NORM, GR_OP_MUL)->factor = norm;
        }
    }
    return a;
}

/* Each comes by once, as rows that can be changed; changed by nothing, nothing changes; changed, logits do. */
static void test_vectors(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof bases / sizeof *bases; i++) {
        test_bed b;
        bed_open(&b, (test_options){.path = tiny_base(bases[i])});
        made *nothing = all_vectors(b.base, zeros, zeros), *something = all_vectors(b.base, halves, halves);
        assert_true(nothing->adapter.n_modules >= 3);
        for (int n = 1; n <= 7; n += 3) {
            for (int some = 0; some < 2; some++) {
                assert_true(effect(&b, nothing, n, some) == 0);
                assert_true(effect(&b, something, n, some) > 0.01);
            }
        }
        free(nothing);
        free(something);
        bed_close(&b);
    }
}

/* A batch of one row: [n][1] and [n][heads] must not be mistaken for each other. */
static void test_one_row(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof bases / sizeof *bases; i++) {
        test_bed b;
        bed_open(&b, (test_options){.path = tiny_base(bases[i])});
        made *a = all_vectors(b.base, zeros, zeros);
        gr_adapter_set set = bed_set(&a->adapter, 1.0f, NULL, 0);
        float *got[2];
        for (int with = 0; with < 2; with++) {
            bed_clear(&b);
            b.batch.n_tokens = 0;
            bed_row(&b, 0, 0, 5, true, with ? &set : NULL);
            decode(&b);
            got[with] = outputs(&b);
        }
        assert_memory_equal(got[0], got[1], (size_t)b.base->n_vocab * sizeof(float));
        free(got[0]);
        free(got[1]);
        free(a);
        bed_close(&b);
    }
}

/* ---- undone elsewhere ------------------------------------------------------------------------------------------ */

/* A gain of one half and nothing else. */
static void half_gain(gr_module *m) {
    m->kind = GR_LOW_RANK;
    m->rank = 1;
    m->a = zeros;
    m->b = zeros;
    m->gain = (gr_gain){halves, ones, zeros, zeros};
}

/* A norm twice as large, and all that reads it half: powers of two, so that it is the base to the bit. */
static void test_norm_undone_by_gains(void **state) {
    (void)state;
    test_bed b;
    bed_open(&b, (test_options){.path = tiny_base("llama")});
    made *a = made_new(b.base), *half = made_new(b.base);
    static const char *const names[] = {"blk.1.attn_k.weight", "blk.1.attn_norm.weight", "blk.1.attn_q.weight",
                                        "blk.1.attn_v.weight"};
    for (int i = 0; i < 4; i++) {
        if (i == 1) {
            made_add(a, b.base, weight_of(b.base, names[i]), GR_NORM, GR_OP_MUL)->factor = ones; /* (2w - w) / w */
        } else {
            half_gain(made_add(a, b.base, weight_of(b.base, names[i]), GR_LOW_RANK, GR_OP_PRODUCT));
            half_gain(made_add(half, b.base, weight_of(b.base, names[i]), GR_LOW_RANK, GR_OP_PRODUCT));
        }
    }
    assert_true(effect(&b, a, 6, true) == 0);
    assert_true(effect(&b, half, 6, true) > 0.01);
    free(a);
    free(half);
    bed_close(&b);
}

/* Queries twice as long and keys half: the scores stay. Norms over heads, [head][heads][rows]. */
static void test_head_norms(void **state) {
    (void)state;
    test_bed b;
    bed_open(&b, (test_options){.path = tiny_base("qwen3")});
    made *a = made_new(b.base), *half = made_new(b.base);
    made_add(a, b.base, weight_of(b.base, "blk.0.attn_k_norm.weight"), GR_NORM, GR_OP_MUL)->factor = minus_halves;
    made_add(a, b.base, weight_of(b.base, "blk.0.attn_q_norm.weight"), GR_NORM, GR_OP_MUL)->factor = ones;
    made_add(half, b.base, weight_of(b.base, "blk.0.attn_q_norm.weight"), GR_NORM, GR_OP_MUL)->factor = ones;
    for (int n = 1; n < 8; n++) { /* as many rows as heads, among others */
        assert_true(effect(&b, a, n, false) < CLOSE);
        assert_true(n == 1 || effect(&b, half, n, false) > 1e-3); /* alone with itself a row does not notice */
    }
    free(a);
    free(half);
    bed_close(&b);
}

/* What is added to a product is taken away where the bias is added. */
static void test_bias_undone_by_shift(void **state) {
    (void)state;
    test_bed b;
    bed_open(&b, (test_options){.path = tiny_base("qwen2")});
    made *a = made_new(b.base), *bias = made_new(b.base);
    made_add(a, b.base, weight_of(b.base, "blk.1.attn_v.bias"), GR_BIAS, GR_OP_ADD)->shift = minus_thirds;
    gr_module *m = made_add(a, b.base, weight_of(b.base, "blk.1.attn_v.weight"), GR_LOW_RANK, GR_OP_PRODUCT);
    m->rank = 1;
    m->a = m->b = zeros;
    m->shift = thirds;
    made_add(bias, b.base, weight_of(b.base, "blk.1.attn_v.bias"), GR_BIAS, GR_OP_ADD)->shift = minus_thirds;
    assert_true(effect(&b, a, 6, true) < CLOSE);
    assert_true(effect(&b, bias, 6, true) > 0.01);
    free(a);
    free(bias);
    bed_close(&b);
}

/* ---- other tokens ------------------------------------------------------------------------------------------------ */

/* The base's embeddings, rows padded; to be freed with gr_free. */
static float *embeddings_of(const gr_base_model *base, const int32_t *map) {
    struct ggml_context *ctx = NULL;
    struct gguf_context *gguf = gguf_init_from_file(base->path, (struct gguf_init_params){.no_alloc = false, .ctx = &ctx});
    assert_non_null(gguf);
    const struct ggml_tensor *t = ggml_get_tensor(ctx, "token_embd.weight");
    assert_true(t && t->type == GGML_TYPE_F32);
    size_t n = (size_t)t->ne[0], stride = (n + GR_PAD - 1) / GR_PAD * GR_PAD;
    float *out = gr_alloc_aligned((size_t)t->ne[1] * stride * sizeof *out);
    memset(out, 0, (size_t)t->ne[1] * stride * sizeof *out);
    for (int64_t i = 0; i < t->ne[1]; i++) {
        memcpy(out + (size_t)i * stride, (const float *)t->data + (size_t)map[i] * n, n * sizeof *out);
    }
    gguf_free(gguf);
    ggml_free(ctx);
    return out;
}

/* Row i of the other embedding is the base's row map[i]: the base must say to map[i] what the adapter says to i; and a head made
 * of them says of i what the base's says of map[i]. Both on one tied weight. `tokens`: not the whole, but those that differ. */
static void check_other_tokens(const char *name, bool tokens) {
    test_bed b;
    bed_open(&b, (test_options){.path = tiny_base(name)});
    int n_vocab = b.base->n_vocab, weight = weight_of(b.base, "token_embd.weight"), n_differ = 0;
    int32_t *map = calloc((size_t)n_vocab, sizeof *map), *differ = calloc((size_t)n_vocab, sizeof *differ);
    for (int i = 0; i < n_vocab; i++) {
        map[i] = i % 4 == 3 ? i : (i * 7 + 1) % n_vocab;
        if (map[i] != i) {
            differ[n_differ++] = i;
        }
    }
    float *other = embeddings_of(b.base, map), *picked = other;
    made *a = made_new(b.base);
    for (gr_op op = GR_OP_PRODUCT; op <= GR_OP_ROWS; op++) {
        gr_module *m = made_add(a, b.base, weight, tokens ? GR_TOKENS : GR_WHOLE, op);
        m->a = other;
        if (tokens) {
            int stride = op == GR_OP_ROWS ? m->stride_out : m->stride_in;
            picked = gr_alloc_aligned((size_t)n_differ * (size_t)stride * sizeof *picked);
            for (int i = 0; i < n_differ; i++) {
                memcpy(picked + i * stride, other + differ[i] * stride, (size_t)stride * sizeof *picked);
            }
            m->a = picked;
            m->tokens = differ;
            m->n_tokens = n_differ;
        }
    }
    gr_adapter_set set = bed_set(&a->adapter, 1.0f, NULL, 0);
    for (int n = 1; n <= 9; n += 4) {
        fill(&b, n, true, &set, NULL);
        decode(&b);
        assert_int_equal(gr_hook_products(b.hook), 2);
        float *got = outputs(&b);
        fill(&b, n, true, NULL, map);
        decode(&b);
        float *want = outputs(&b), *mapped = malloc((size_t)n_vocab * sizeof *mapped);
        for (int i = 0, out = 0; i < b.batch.n_tokens; i++) {
            if (!b.batch.logits[i]) {
                continue;
            }
            for (int t = 0; t < n_vocab; t++) {
                mapped[t] = want[out * n_vocab + (i % 3 == 1 ? t : map[t])];
            }
            assert_true(bed_difference(got + out * n_vocab, mapped, n_vocab) < CLOSE);
            out++;
        }
        free(got);
        free(want);
        free(mapped);
    }
    if (tokens) {
        gr_free((void *)(uintptr_t)a->modules[0].a);
        gr_free((void *)(uintptr_t)a->modules[1].a);
    }
    gr_free(other);
    free(map);
    free(differ);
    free(a);
    bed_close(&b);
}

static void test_other_tokens(void **state) {
    (void)state;
    check_other_tokens("llama", false);
    check_other_tokens("llama", true);
    check_other_tokens("gpt2", true);
    check_other_tokens("gemma3", false); /* which scales its embeddings after they are read */
}

/* ---- faults --------------------------------------------------------------------------------------------------------- */

static void expect(test_bed *b, const made *a, const char *text) {
    graft_error err;
    gr_adapter_set set = bed_set(&a->adapter, 1.0f, NULL, 0);
    fill(b, 4, false, &set, NULL);
    assert_int_equal(bed_decode_rows(b, NULL, &err), GRAFT_E_INTERNAL);
    if (!strstr(err.message, text)) {
        fail_msg("%s", err.message);
    }
}

static void test_faults(void **state) {
    (void)state;
    test_bed b;
    bed_open(&b, (test_options){.path = tiny_base("qwen2")});
    int norm = weight_of(b.base, "blk.0.attn_norm.weight"), bias = weight_of(b.base, "blk.0.attn_q.bias");
    made *a = made_new(b.base);
    made_add(a, b.base, norm, GR_BIAS, GR_OP_ADD)->shift = zeros; /* never added */
    expect(&b, a, "blk.0.attn_norm.weight never came by");
    free(a);
    a = all_vectors(b.base, zeros, zeros);
    b.base->weights[norm].n_out--;
    expect(&b, a, "blk.0.attn_norm.weight does not multiply plain rows here");
    b.base->weights[norm].n_out++;
    b.base->weights[bias].n_out--;
    expect(&b, a, "blk.0.attn_q.bias is not added to plain rows here");
    b.base->weights[bias].n_out++;
    free(a);
    a = made_new(b.base);
    int embeddings = weight_of(b.base, "token_embd.weight");
    gr_module *m = made_add(a, b.base, embeddings, GR_TOKENS, GR_OP_ROWS); /* of no token */
    m->tokens = (const int32_t[]){0};
    b.base->weights[embeddings].n_in++;
    expect(&b, a, "token_embd.weight is not read by plain rows here");
    b.base->weights[embeddings].n_in--;
    int64_t n_out = b.base->weights[embeddings].n_out;
    b.base->weights[embeddings].n_out = 3; /* tokens beyond it */
    expect(&b, a, "token_embd.weight is not read by plain rows here");
    b.base->weights[embeddings].n_out = n_out;
    free(a);
    bed_close(&b);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_vectors),    cmocka_unit_test(test_one_row),
        cmocka_unit_test(test_head_norms), cmocka_unit_test(test_norm_undone_by_gains),
        cmocka_unit_test(test_bias_undone_by_shift), cmocka_unit_test(test_other_tokens),
        cmocka_unit_test(test_faults),
    };
    return cmocka_run_group_tests(tests, fill_constants, NULL);
}
