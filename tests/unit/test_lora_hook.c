/*
 * The callback: what mixed batches give is compared, row by row, with each sequence alone through libllama's own
 * adapter path.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "lora_support.h"

/* Float32 all through: only the order of sums differs. */
static const double CLOSE = 3e-5;

/* ---- random traffic -------------------------------------------------------------------------------------- */

enum { TRACKS = 10, TRACK_MAX = 40, TRACK_ADAPTERS = 5 };

/* One sequence: its tokens so far, and what its output rows gave by rows. */
typedef struct track {
    int id;
    gr_adapter_set set;
    int n, token[TRACK_MAX];
    float *logits[TRACK_MAX]; /* NULL: no output asked for */
} track;

/* Random sets of up to 3 adapters, some scales negative. */
static gr_adapter_set random_set(gr_adapter *const *adapters, uint64_t *random) {
    gr_adapter_set set = {.n = 0};
    uint32_t members = gr_random(random) % 4 ? gr_random(random) % 8 : 0;
    for (int i = 0; i < TRACK_ADAPTERS; i++) { /* adapters[] is ascending */
        if (members >> i & 1) {
            set.adapters[set.n] = adapters[i];
            set.scales[set.n++] = (float)(gr_random(random) % 200 + 20) / 100.0f * (gr_random(random) % 3 ? 1 : -1);
        }
    }
    return set;
}

/* A batch of one to eight new rows for some of the tracks, dealt out at random so that they interleave. */
static void deal(test_bed *b, track *tracks, int *rows_track, uint64_t *random) {
    int left[TRACKS], total = 0;
    b->batch.n_tokens = 0;
    for (int t = 0; t < TRACKS; t++) {
        int want = gr_random(random) % 3 == 0 ? 0 : gr_random(random) % 2 ? 1 : 1 + (int)(gr_random(random) % 8);
        left[t] = want < TRACK_MAX - tracks[t].n ? want : TRACK_MAX - tracks[t].n;
        total += left[t];
    }
    while (total > 0) {
        int t = (int)(gr_random(random) % TRACKS);
        if (left[t] > 0) {
            track *k = tracks + t;
            rows_track[b->batch.n_tokens] = t;
            k->token[k->n] = (int)(gr_random(random) % (uint32_t)b->base->n_vocab);
            bed_row(b, k->id, k->n, k->token[k->n], gr_random(random) % 3 == 0, &k->set);
            k->n++;
            left[t]--;
            total--;
        }
    }
}

static void keep(const test_bed *b, track *tracks, const int *rows_track) {
    size_t size = (size_t)b->base->n_vocab * sizeof(float);
    for (int i = 0; i < b->batch.n_tokens; i++) {
        if (b->batch.logits[i]) {
            float *copy = malloc(size);
            memcpy(copy, llama_get_logits_ith(b->ctx, i), size);
            tracks[rows_track[i]].logits[b->batch.pos[i]] = copy;
        }
    }
}

/* The largest difference between what a track got and the track alone through libllama. */
static double check_track(test_bed *b, track *k) {
    double most = 0;
    bed_clear(b);
    b->batch.n_tokens = 0;
    for (int i = 0; i < k->n; i++) {
        bed_row(b, 0, i, k->token[i], true, NULL);
    }
    if (k->n > 0) {
        bed_decode_grouped(b, &k->set);
    }
    for (int i = 0; i < k->n; i++) {
        if (k->logits[i]) {
            most = fmax(most, bed_difference(k->logits[i], llama_get_logits_ith(b->ctx, i), b->base->n_vocab));
            free(k->logits[i]);
        }
    }
    return most;
}

static int by_address(const void *a, const void *b) {
    uintptr_t x = (uintptr_t)*(gr_adapter *const *)a, y = (uintptr_t)*(gr_adapter *const *)b;
    return (x > y) - (x < y);
}

static void random_traffic(const char *base, int threads, const gr_kernels *kernels, uint64_t seed) {
    static track tracks[TRACKS];
    test_bed b;
    gr_adapter *adapters[TRACK_ADAPTERS];
    uint64_t random = seed;
    int rows_track[TEST_BATCH];
    graft_error err;
    bed_open(&b, (test_options){.path = tiny_base(base), .threads = threads, .kernels = kernels});
    for (int i = 0; i < TRACK_ADAPTERS; i++) {
        adapters[i] = bed_adapter(&b, 3 + 5 * i, GR_DTYPE_F32, 0.2f, (uint64_t)i + seed);
    }
    qsort(adapters, TRACK_ADAPTERS, sizeof *adapters, by_address);
    memset(tracks, 0, sizeof tracks);
    for (int t = 0; t < TRACKS; t++) {
        tracks[t].id = (t * 29 + 3) % TEST_SEQUENCES; /* gaps, and no order */
        tracks[t].set = random_set(adapters, &random);
    }
    for (int step = 0; step < 12; step++) {
        deal(&b, tracks, rows_track, &random);
        if (b.batch.n_tokens > 0) {
            if (bed_decode_rows(&b, NULL, &err) != 0) {
                fail_msg("%s", err.message);
            }
            keep(&b, tracks, rows_track);
        }
    }
    for (int t = 0; t < TRACKS; t++) {
        double difference = check_track(&b, tracks + t);
        if (!(difference < CLOSE)) {
            fail_msg("%s, track %d with %d adapters: differs by %g", base, t, tracks[t].set.n, difference);
        }
    }
    bed_close(&b);
    for (int i = 0; i < TRACK_ADAPTERS; i++) {
        gr_random_adapter_free(adapters[i]);
    }
}

static void test_random_traffic(void **state) {
    (void)state;
    for (uint64_t seed = 1; seed <= 4; seed++) {
        random_traffic("llama", 2, NULL, seed * 1000);
        random_traffic("qwen3", 1, NULL, seed * 1001);
        random_traffic("phi3", 2, gr_kernels_reference(), seed * 1002);
    }
}

/* ---- single situations ------------------------------------------------------------------------------------- */

/* One prompt row per sequence and adapter, 64 of each, and each adapter alone. */
static void test_64_adapters(void **state) {
    test_bed b;
    gr_adapter *adapters[64];
    gr_adapter_set sets[64];
    (void)state;
    bed_open(&b, (test_options){.path = tiny_base("llama")});
    size_t size = (size_t)b.base->n_vocab * sizeof(float);
    float *got = malloc(64 * size);
    for (int i = 0; i < 64; i++) {
        adapters[i] = bed_adapter(&b, 1 + i % 16, GR_DTYPE_F32, 0.3f, (uint64_t)i);
        sets[i] = bed_set(adapters[i], 1.0f, NULL, 0);
    }
    for (int p = 0; p < 2; p++) {
        for (int i = 0; i < 64; i++) {
            bed_row(&b, i, p, (i * 3 + p) % b.base->n_vocab, p == 1, &sets[i]);
        }
    }
    assert_int_equal(bed_decode_rows(&b, NULL, NULL), 0);
    for (int i = 0; i < 64; i++) {
        memcpy(got + i * b.base->n_vocab, llama_get_logits_ith(b.ctx, 64 + i), size);
    }
    for (int i = 0; i < 64; i++) {
        bed_clear(&b);
        b.batch.n_tokens = 0;
        bed_row(&b, 0, 0, (i * 3) % b.base->n_vocab, false, NULL);
        bed_row(&b, 0, 1, (i * 3 + 1) % b.base->n_vocab, true, NULL);
        bed_decode_grouped(&b, &sets[i]);
        const float *want = llama_get_logits_ith(b.ctx, 1);
        assert_true(bed_difference(got + i * b.base->n_vocab, want, b.base->n_vocab) < CLOSE);
    }
    bed_close(&b);
    for (int i = 0; i < 64; i++) {
        gr_random_adapter_free(adapters[i]);
    }
    free(got);
}

/* n rows of one sequence under one set by rows; the logits of the last one, to be freed. */
static float *by_rows(test_bed *b, int n, const gr_adapter_set *set) {
    float *copy = malloc((size_t)b->base->n_vocab * sizeof *copy);
    bed_clear(b);
    b->batch.n_tokens = 0;
    for (int i = 0; i < n; i++) {
        bed_row(b, 0, i, (i * 31 + 7) % b->base->n_vocab, i % 5 == 4 || i == n - 1, set);
    }
    assert_int_equal(bed_decode_rows(b, NULL, NULL), 0);
    memcpy(copy, llama_get_logits_ith(b->ctx, n - 1), (size_t)b->base->n_vocab * sizeof *copy);
    return copy;
}

static double against_libllama(test_bed *b, const float *got, int n, const gr_adapter_set *set) {
    bed_clear(b); /* the batch is still that of by_rows */
    bed_decode_grouped(b, set);
    return bed_difference(got, llama_get_logits_ith(b->ctx, n - 1), b->base->n_vocab);
}

/* Work large enough for the pool and for several waves: full rank, all rows, more groups than a wave has parts. */
static void test_large_work(void **state) {
    test_bed b;
    (void)state;
    bed_open(&b, (test_options){.path = tiny_base("llama"), .threads = 2});
    gr_adapter *big = bed_adapter(&b, GR_MAX_RANK, GR_DTYPE_F32, 0.2f, 1);
    gr_adapter *big2 = bed_adapter(&b, GR_MAX_RANK, GR_DTYPE_F32, 0.2f, 2);
    gr_adapter_set both = bed_set(big, 1.0f, big2, 0.5f);
    float *got = by_rows(&b, TEST_BATCH, &both);
    assert_true(against_libllama(&b, got, TEST_BATCH, &both) < CLOSE);
    free(got);

    gr_adapter *many[96];
    gr_adapter_set sets[48];
    for (int i = 0; i < 96; i++) {
        many[i] = bed_adapter(&b, 2, GR_DTYPE_F32, 0.2f, 10 + (uint64_t)i);
    }
    bed_clear(&b);
    b.batch.n_tokens = 0;
    for (int i = 0; i < 48; i++) {
        sets[i] = bed_set(many[2 * i], 1.0f, many[2 * i + 1], -1.0f);
        bed_row(&b, i, 0, i, true, &sets[i]);
    }
    assert_int_equal(bed_decode_rows(&b, NULL, NULL), 0);
    got = malloc((size_t)(48 * b.base->n_vocab) * sizeof *got);
    for (int i = 0; i < 48; i++) {
        memcpy(got + i * b.base->n_vocab, llama_get_logits_ith(b.ctx, i), (size_t)b.base->n_vocab * sizeof *got);
    }
    for (int i = 0; i < 48; i++) {
        bed_clear(&b);
        b.batch.n_tokens = 0;
        bed_row(&b, 0, 0, i, true, NULL);
        bed_decode_grouped(&b, &sets[i]);
        const float *want = llama_get_logits_ith(b.ctx, 0);
        assert_true(bed_difference(got + i * b.base->n_vocab, want, b.base->n_vocab) < CLOSE);
    }
    free(got);
    bed_close(&b);
    gr_random_adapter_free(big);
    gr_random_adapter_free(big2);
    for (int i = 0; i < 96; i++) {
        gr_random_adapter_free(many[i]);
    }
}

/*
 * Large adapters with a row or two each, so that whole parts are dealt out to the threads; in the second round one
 * adapter has most of the rows, so that they are split instead. Row i uses adapter i mod n, or in the second round mostly the first.
 */
static void test_dealt_out(void **state) {
    enum { ADAPTERS = 5, ROWS = 12 };
    test_bed b;
    (void)state;
    bed_open(&b, (test_options){.path = tiny_base("llama"), .threads = 3});
    gr_adapter *a[ADAPTERS];
    gr_adapter_set sets[ADAPTERS];
    for (int i = 0; i < ADAPTERS; i++) {
        a[i] = bed_adapter(&b, 256, GR_DTYPE_F32, 0.2f, 40 + (uint64_t)i);
        sets[i] = bed_set(a[i], 1.0f, NULL, 0);
    }
    size_t n_vocab = (size_t)b.base->n_vocab;
    float *got = malloc(ROWS * n_vocab * sizeof *got);
    for (int round = 0; round < 2; round++) {
        bed_clear(&b);
        b.batch.n_tokens = 0;
        for (int i = 0; i < ROWS; i++) {
            bed_row(&b, i, 0, i, true, &sets[round && i < 8 ? 0 : i % ADAPTERS]);
        }
        assert_int_equal(bed_decode_rows(&b, NULL, NULL), 0);
        for (size_t i = 0; i < ROWS; i++) {
            memcpy(got + i * n_vocab, llama_get_logits_ith(b.ctx, (int32_t)i), n_vocab * sizeof *got);
        }
        for (int i = 0; i < ROWS; i++) {
            bed_clear(&b);
            b.batch.n_tokens = 0;
            bed_row(&b, 0, 0, i, true, NULL);
            bed_decode_grouped(&b, &sets[round && i < 8 ? 0 : i % ADAPTERS]);
            assert_true(bed_difference(got + (size_t)i * n_vocab, llama_get_logits_ith(b.ctx, 0), (int)n_vocab) < CLOSE);
        }
    }
    free(got);
    bed_close(&b);
    for (int i = 0; i < ADAPTERS; i++) {
        gr_random_adapter_free(a[i]);
    }
}

/* What comes in as NaN (here as the embedding; in life through the cache of a neighbour) is not the adapter's doing: it
 * is not blamed, and the row stays NaN, so that its logits tell. */
static void test_not_blamed_for_what_came_in(void **state) {
    test_bed b;
    (void)state;
    bed_open(&b, (test_options){.path = tiny_base("llama"), .threads = 1});
    gr_adapter *a = bed_adapter(&b, 4, GR_DTYPE_F32, 0.2f, 7);
    gr_adapter_set set = bed_set(a, 1.0f, NULL, 0);
    struct llama_batch batch = llama_batch_init(1, b.base->n_embd, 1);
    batch.n_tokens = 1;
    for (int i = 0; i < b.base->n_embd; i++) {
        batch.embd[i] = NAN;
    }
    batch.pos[0] = 0;
    batch.n_seq_id[0] = 1;
    batch.seq_id[0][0] = 0;
    batch.logits[0] = 1;
    const gr_adapter_set *sets[1] = {&set};
    const gr_adapter *bad = NULL;
    gr_row_plan_build(b.plan, sets, batch.logits, 1);
    gr_hook_begin(b.hook, b.plan);
    assert_int_equal(llama_decode(b.ctx, batch), 0);
    assert_int_equal(gr_hook_end(b.hook, &bad, NULL), 0);
    assert_null(bad);
    assert_true(isnan(llama_get_logits_ith(b.ctx, 0)[0]));
    llama_batch_free(batch);
    bed_close(&b);
    gr_random_adapter_free(a);
}

/* The number of threads must not change a bit. */
static void test_threads(void **state) {
    float *got[3];
    (void)state;
    for (int threads = 1; threads <= 3; threads++) {
        test_bed b;
        bed_open(&b, (test_options){.path = tiny_base("llama"), .threads = threads});
        gr_adapter *a = bed_adapter(&b, 29, GR_DTYPE_F16, 0.3f, 5);
        gr_adapter_set set = bed_set(a, 1.0f, NULL, 0);
        got[threads - 1] = by_rows(&b, 100, &set);
        if (threads > 1) {
            assert_memory_equal(got[threads - 1], got[0], (size_t)b.base->n_vocab * sizeof(float));
        }
        bed_close(&b);
        gr_random_adapter_free(a);
    }
    free(got[0]);
    free(got[1]);
    free(got[2]);
}

/* A prompt without any output row, then one that reads what the first left in the KV cache. */
static void test_no_output(void **state) {
    test_bed b;
    (void)state;
    bed_open(&b, (test_options){.path = tiny_base("llama")});
    gr_adapter *a = bed_adapter(&b, 8, GR_DTYPE_F32, 0.3f, 5);
    gr_adapter_set set = bed_set(a, 1.5f, NULL, 0);
    int products = 0, n_vocab = b.base->n_vocab;
    float *logits[2];
    for (int way = 0; way < 2; way++) {
        bed_clear(&b);
        for (int part = 0; part < 2; part++) {
            b.batch.n_tokens = 0;
            for (int i = 0; i < 6; i++) {
                bed_row(&b, 0, part * 6 + i, 20 + i + part, part == 1 && i == 5, &set);
            }
            if (way == 0) {
                assert_int_equal(bed_decode_rows(&b, NULL, NULL), 0);
                products += gr_hook_products(b.hook);
            } else {
                bed_decode_grouped(&b, &set);
            }
        }
        logits[way] = malloc((size_t)n_vocab * sizeof(float));
        memcpy(logits[way], llama_get_logits_ith(b.ctx, 5), (size_t)n_vocab * sizeof(float));
    }
    assert_int_equal(products, 2 * a->n_modules);
    assert_true(bed_difference(logits[0], logits[1], n_vocab) < CLOSE);
    free(logits[0]);
    free(logits[1]);
    bed_close(&b);
    gr_random_adapter_free(a);
}

/* Without adapters nothing is asked for and nothing changes; neither for base rows beside others. */
static void test_base_rows(void **state) {
    test_bed b;
    (void)state;
    bed_open(&b, (test_options){.path = tiny_base("llama")});
    gr_adapter *a = bed_adapter(&b, 8, GR_DTYPE_F16, 0.3f, 5);
    gr_adapter_set set = bed_set(a, 1.0f, NULL, 0), none = {.n = 0};
    float *plain = by_rows(&b, 20, NULL), *empty = by_rows(&b, 20, &none);
    size_t size = (size_t)b.base->n_vocab * sizeof *plain;
    assert_int_equal(gr_hook_products(b.hook), 0);
    assert_memory_equal(plain, empty, size);

    bed_clear(&b);
    b.batch.n_tokens = 0;
    for (int i = 0; i < 20; i++) {
        bed_row(&b, 0, i, (i * 31 + 7) % b.base->n_vocab, i % 5 == 4 || i == 19, NULL);
        bed_row(&b, 1, i, (i * 31 + 7) % b.base->n_vocab, i % 5 == 4 || i == 19, &set);
    }
    assert_int_equal(bed_decode_rows(&b, NULL, NULL), 0);
    assert_int_equal(gr_hook_products(b.hook), a->n_modules);
    assert_true(bed_difference(llama_get_logits_ith(b.ctx, 38), plain, b.base->n_vocab) < CLOSE);
    assert_true(bed_difference(llama_get_logits_ith(b.ctx, 39), plain, b.base->n_vocab) > 0.05);
    free(plain);
    free(empty);
    bed_close(&b);
    gr_random_adapter_free(a);
}

/* The output head is a product over output rows only. (No PEFT folder gets this far yet; the hook can.) */
static void test_head(void **state) {
    test_bed b;
    gr_adapter *a;
    (void)state;
    bed_open(&b, (test_options){.path = tiny_base("llama-untied")});
    int head = gr_base_model_weight(b.base, "output.weight");
    assert_true(head >= 0);
    assert_int_equal(gr_random_adapter_create(&a, b.base, &head, 1, 4, GR_DTYPE_F32, 0.5f, 3, NULL), 0);
    gr_adapter_set set = bed_set(a, 1.0f, NULL, 0);
    float *got = by_rows(&b, 12, &set), *plain = by_rows(&b, 12, NULL);
    assert_true(bed_difference(got, plain, b.base->n_vocab) > 0.05);
    free(by_rows(&b, 12, NULL)); /* for its batch */
    assert_true(against_libllama(&b, got, 12, &set) < CLOSE);
    bed_close(&b);
    gr_random_adapter_free(a);

    bed_open(&b, (test_options){.path = tiny_base("llama")}); /* tied: the product is on token_embd.weight */
    head = gr_base_model_weight(b.base, "token_embd.weight");
    assert_int_equal(gr_random_adapter_create(&a, b.base, &head, 1, 4, GR_DTYPE_F32, 0.5f, 3, NULL), 0);
    set = bed_set(a, 1.0f, NULL, 0);
    free(by_rows(&b, 12, &set));
    assert_int_equal(gr_hook_products(b.hook), 1);
    bed_close(&b);
    gr_random_adapter_free(a);
    free(got);
    free(plain);
}

/* ---- what goes wrong ------------------------------------------------------------------------------------- */

/* Overflow in A x is told, names the adapter, and leaves the other rows right. */
static void non_finite(gr_dtype type, float value, bool in_a) {
    test_bed b;
    const gr_adapter *bad = NULL;
    graft_error err;
    bed_open(&b, (test_options){.path = tiny_base("llama")});
    gr_adapter *good = bed_adapter(&b, 8, GR_DTYPE_F32, 0.3f, 5), *evil = bed_adapter(&b, 8, type, 0.3f, 6);
    gr_adapter_set good_set = bed_set(good, 1.0f, NULL, 0), evil_set = bed_set(evil, 1.0f, NULL, 0);
    float *want = by_rows(&b, 10, &good_set);
    void *matrix = (void *)(uintptr_t)(in_a ? evil->modules[0].a : evil->modules[0].b);
    if (type == GR_DTYPE_F16) {
        ((ggml_fp16_t *)matrix)[3] = ggml_fp32_to_fp16(value);
    } else {
        ((float *)matrix)[3] = value;
    }
    bed_clear(&b);
    b.batch.n_tokens = 0;
    for (int i = 0; i < 10; i++) {
        bed_row(&b, 1, i, i, i == 9, &evil_set);
        bed_row(&b, 0, i, (i * 31 + 7) % b.base->n_vocab, i == 9, &good_set);
    }
    assert_int_equal(bed_decode_rows(&b, &bad, &err), GRAFT_E_NON_FINITE_OUTPUT);
    assert_ptr_equal(bad, evil);
    assert_true(bed_difference(llama_get_logits_ith(b.ctx, 19), want, b.base->n_vocab) < CLOSE);
    bed_clear(&b);
    free(want);
    want = by_rows(&b, 10, &good_set); /* and the next decode knows nothing of it */
    free(want);
    bed_close(&b);
    gr_random_adapter_free(good);
    gr_random_adapter_free(evil);
}

static void test_non_finite(void **state) {
    (void)state;
    non_finite(GR_DTYPE_F16, INFINITY, true);
    non_finite(GR_DTYPE_F32, INFINITY, true);
    non_finite(GR_DTYPE_F32, NAN, true);
    non_finite(GR_DTYPE_F32, 1e38f, true);
    non_finite(GR_DTYPE_F32, 1e38f, false); /* t is sane, B t is not */
}

static void expect_internal(test_bed *b, const gr_adapter_set *set, bool first_half, const char *text) {
    graft_error err = {0};
    bed_clear(b);
    b->batch.n_tokens = 0;
    for (int i = 0; i < 12; i++) {
        bed_row(b, 0, i, i, (i < 6) == first_half, set);
    }
    assert_int_equal(bed_decode_rows(b, NULL, &err), GRAFT_E_INTERNAL);
    if (!strstr(err.message, text)) {
        fail_msg("%s", err.message);
    }
}

/* Graphs that are not what we rely on. */
static void test_faults(void **state) {
    test_bed b;
    gr_adapter *a;
    (void)state;
    bed_open(&b, (test_options){.path = tiny_base("llama-untied")});
    int embeddings = gr_base_model_weight(b.base, "token_embd.weight"); /* read by rows, not multiplied */
    assert_int_equal(gr_random_adapter_create(&a, b.base, &embeddings, 1, 4, GR_DTYPE_F32, 0.5f, 3, NULL), 0);
    gr_adapter_set set = bed_set(a, 1.0f, NULL, 0);
    expect_internal(&b, &set, false, "token_embd.weight never came by");
    gr_random_adapter_free(a);

    a = bed_adapter(&b, 4, GR_DTYPE_F32, 0.1f, 1);
    set = bed_set(a, 1.0f, NULL, 0);
    int q = gr_base_model_weight(b.base, "blk.1.attn_q.weight");
    b.base->weights[q].n_out--; /* the table and libllama disagree */
    expect_internal(&b, &set, false, "blk.1.attn_q.weight is not a plain matrix product here");
    b.base->weights[q].n_out++;
    b.base->weights[q].n_in++;
    expect_internal(&b, &set, false, "blk.1.attn_q.weight is not a plain matrix product here");
    b.base->weights[q].n_in--;
    bed_close(&b);
    gr_random_adapter_free(a);

    bed_open(&b, (test_options){.path = tiny_base("llama"), .ubatch = 8}); /* 12 rows: libllama cuts */
    a = bed_adapter(&b, 4, GR_DTYPE_F32, 0.1f, 1);
    set = bed_set(a, 1.0f, NULL, 0);
    expect_internal(&b, &set, false, "was given an unexpected number of rows");
    bed_close(&b);
    gr_random_adapter_free(a);

    bed_open(&b, (test_options){.path = tiny_base("llama"), .ubatch = 6}); /* the pieces have n_outputs rows */
    a = bed_adapter(&b, 4, GR_DTYPE_F32, 0.1f, 1);
    set = bed_set(a, 1.0f, NULL, 0);
    expect_internal(&b, &set, true, "came by twice");
    bed_close(&b);
    gr_random_adapter_free(a);
}

static void test_memory(void **state) {
    gr_base_model *base;
    gr_hook *h = NULL;
    graft_error err;
    gr_base_options options = {.log = NULL};
    (void)state;
    assert_int_equal(gr_base_model_open(&base, tiny_base("llama"), &options, &err), 0);
    uint64_t blocks = gr_memory_blocks(), n = 0;
    int status;
    do {
        gr_memory_fail_at(++n, 0);
        status = gr_hook_create(&h, base, 16, 2, gr_kernels_best(), &err);
        gr_memory_fail_at(0, 0);
        assert_true(status == 0 || (status == GRAFT_E_OUT_OF_MEMORY && !h && gr_memory_blocks() == blocks));
    } while (status);
    assert_true(n > 5);
    gr_hook_free(h);
    gr_hook_free(NULL);
    assert_int_equal(gr_memory_blocks(), blocks);
    gr_base_model_close(base);
}

/* The callback of a decode allocates nothing of ours: every allocation would fail. */
static void test_allocates_nothing(void **state) {
    test_bed b;
    (void)state;
    bed_open(&b, (test_options){.path = tiny_base("llama")});
    gr_adapter *a = bed_adapter(&b, 16, GR_DTYPE_F16, 0.3f, 5);
    gr_adapter_set set = bed_set(a, 1.0f, NULL, 0);
    gr_memory_fail_at(1, 1);
    float *first = by_rows(&b, 100, &set);
    gr_memory_fail_at(0, 0);
    float *second = by_rows(&b, 100, &set);
    assert_memory_equal(first, second, (size_t)b.base->n_vocab * sizeof *first);
    free(first);
    free(second);
    bed_close(&b);
    gr_random_adapter_free(a);
}

/*
 * The demo model as people run it: quantised, float16 KV cache, flash attention. A mixed batch by rows against the
 * same batch with every row under one adapter: rows that have it must be near (tipped roundings: about 0.05), rows
 * that have the other one far (about 0.4 and more).
 */
static void test_demo_model(void **state) {
    test_bed b;
    const char *path = getenv("GRAFT_TEST_MODEL");
    (void)state;
    if (!path) {
        skip();
    }
    bed_open(&b, (test_options){.path = path, .half_kv = true});
    gr_adapter *a[2];
    gr_adapter_set sets[2];
    double near[8], far[8];
    int n_vocab = b.base->n_vocab;
    float *got = malloc((size_t)(8 * n_vocab) * sizeof *got);
    for (int i = 0; i < 2; i++) {
        a[i] = bed_adapter(&b, 16, GR_DTYPE_F32, 0.3f, (uint64_t)i + 1);
        sets[i] = bed_set(a[i], 1.0f, NULL, 0);
    }
    for (int way = 0; way < 3; way++) { /* by rows; all rows sets[0]; all rows sets[1] */
        bed_clear(&b);
        b.batch.n_tokens = 0;
        for (int p = 0; p < 10; p++) {
            for (int s = 0; s < 8; s++) {
                bed_row(&b, s, p, 1000 + 97 * p + 13 * s, p == 9, &sets[s % 2]);
            }
        }
        if (way == 0) {
            assert_int_equal(bed_decode_rows(&b, NULL, NULL), 0);
            assert_int_equal(gr_hook_products(b.hook), a[0]->n_modules);
        } else {
            bed_decode_grouped(&b, &sets[way - 1]);
        }
        for (int s = 0; s < 8; s++) {
            const float *row = llama_get_logits_ith(b.ctx, 72 + s);
            if (way == 0) {
                memcpy(got + s * n_vocab, row, (size_t)n_vocab * sizeof *row);
            } else {
                *(s % 2 == way - 1 ? &near[s] : &far[s]) = bed_difference(got + s * n_vocab, row, n_vocab);
            }
        }
    }
    for (int s = 0; s < 8; s++) {
        assert_true(near[s] < 0.5 * far[s]);
    }
    free(got);
    bed_close(&b);
    gr_random_adapter_free(a[0]);
    gr_random_adapter_free(a[1]);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_random_traffic),
        cmocka_unit_test(test_64_adapters),
        cmocka_unit_test(test_large_work),
        cmocka_unit_test(test_dealt_out),
        cmocka_unit_test(test_not_blamed_for_what_came_in),
        cmocka_unit_test(test_threads),
        cmocka_unit_test(test_no_output),
        cmocka_unit_test(test_base_rows),
        cmocka_unit_test(test_head),
        cmocka_unit_test(test_non_finite),
        cmocka_unit_test(test_faults),
        cmocka_unit_test(test_memory),
        cmocka_unit_test(test_allocates_nothing),
        cmocka_unit_test(test_demo_model),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
