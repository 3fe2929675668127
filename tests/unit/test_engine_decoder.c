/* Steps against the small base: what fails is repeated without the culprit, and the others do not notice. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <math.h>

#include "base/memory.h"
#include "engine/decoder.h"
#include "engine_helpers.h"
#include "lora/random_adapter.h"

enum { N_VOCAB = 264, SPANS = 4, ROWS = 8 };

typedef struct bed {
    gr_base_model *base;
    gr_decoder *d;
    llama_token tokens[SPANS][ROWS];
    gr_activation active[SPANS];
    float logits[SPANS][ROWS][N_VOCAB];
    int delivered[SPANS];
} bed;

static int open_decoder(bed *b, int context, graft_error *err) {
    gr_decoder_options options = {.slots = SPANS, .context = context, .batch = 64, .threads = 1,
                                  .kv_type = GRAFT_KV_F32};
    return gr_decoder_create(&b->d, b->base, &options, err);
}

static bed *bed_open(int context) {
    bed *b = calloc(1, sizeof *b);
    gr_base_options options = {.vocab_only = false};
    assert_int_equal(gr_base_model_open(&b->base, golden("bases/llama.gguf"), &options, NULL), 0);
    assert_int_equal(b->base->n_vocab, N_VOCAB);
    assert_int_equal(open_decoder(b, context, NULL), 0);
    for (int s = 0; s < SPANS; s++) {
        for (int i = 0; i < ROWS; i++) {
            b->tokens[s][i] = (s * 37 + i * 11 + 3) % 250;
        }
    }
    return b;
}

static void bed_close(bed *b) {
    gr_decoder_free(b->d);
    gr_base_model_close(b->base);
    free(b);
}

/* A span over all rows of sequence s, the last n_outputs with logits. */
static gr_span span_of(bed *b, int s, int n_outputs, const gr_adapter_set *set) {
    gr_span span = {.seq = s, .tokens = b->tokens[s], .n = ROWS, .n_outputs = n_outputs};
    if (set) {
        gr_activation_make(&b->active[s], set, NULL);
        span.active = &b->active[s];
    }
    return span;
}

static void keep(void *user, gr_span *span, int row, int count, const float *logits) {
    bed *b = user;
    assert_int_equal(row, span->n - span->n_outputs + b->delivered[span->seq]); /* in order, none twice */
    memcpy(b->logits[span->seq][span->start + row], logits, (size_t)count * sizeof b->logits[0][0]);
    b->delivered[span->seq] += count;
}

static void forget_all(bed *b) {
    memset(b->delivered, 0, sizeof b->delivered);
    for (int s = 0; s < SPANS; s++) {
        gr_decoder_forget_sequence(b->d, s);
    }
}

static double difference(float (*a)[N_VOCAB], float (*c)[N_VOCAB], int first) {
    double most = 0, size = 0;
    for (int i = first; i < ROWS; i++) {
        for (int j = 0; j < N_VOCAB; j++) {
            most = fmax(most, fabs((double)a[i][j] - c[i][j]));
            size = fmax(size, fabs((double)c[i][j]));
        }
    }
    return size > 0 ? most / size : 0;
}

/* Logits of each sequence alone into want. */
static void solo(bed *b, const gr_adapter_set *const *sets, bool rows, float (*want)[ROWS][N_VOCAB]) {
    for (int s = 0; s < SPANS; s++) {
        gr_span span = span_of(b, s, ROWS, sets ? sets[s] : NULL);
        forget_all(b);
        assert_true(gr_decoder_run(b->d, &span, 1, rows, keep, b));
        assert_int_equal(span.error.code, 0);
        memcpy(want[s], b->logits[s], sizeof b->logits[s]);
    }
    forget_all(b);
}

static void check_span(bed *b, const gr_span *span, float (*want)[ROWS][N_VOCAB]) {
    assert_int_equal(span->error.code, 0);
    assert_int_equal(b->delivered[span->seq], span->n_outputs);
    assert_true(difference(b->logits[span->seq], want[span->seq], ROWS - span->n_outputs) < 1e-5);
}

static float want[SPANS][ROWS][N_VOCAB];

static void test_mixed_outputs(void **state) {
    (void)state;
    bed *b = bed_open(64);
    solo(b, NULL, true, want);
    gr_span spans[] = {span_of(b, 0, 1, NULL), span_of(b, 1, 0, NULL), span_of(b, 2, ROWS, NULL),
                       span_of(b, 3, 3, NULL)};
    assert_true(gr_decoder_run(b->d, spans, 4, true, keep, b));
    for (int s = 0; s < SPANS; s++) {
        check_span(b, &spans[s], want);
    }
    assert_int_equal(gr_decoder_get_stats(b->d).largest_batch, SPANS * ROWS);
    assert_int_equal(gr_decoder_get_stats(b->d).retried_steps, 0);
    bed_close(b);
}

static void test_invalid_token_fails_alone(void **state) {
    (void)state;
    bed *b = bed_open(64);
    solo(b, NULL, true, want);
    for (int rows = 0; rows < 2; rows++) {
        forget_all(b);
        gr_span spans[] = {span_of(b, 0, 1, NULL), span_of(b, 1, 2, NULL), span_of(b, 2, ROWS, NULL)};
        llama_token good = b->tokens[1][4];
        b->tokens[1][4] = N_VOCAB + 5;
        assert_true(gr_decoder_run(b->d, spans, 3, rows, keep, b));
        b->tokens[1][4] = good;
        assert_int_equal(spans[1].error.code, GRAFT_E_DECODE_FAILED);
        assert_int_equal(b->delivered[1], 0);
        check_span(b, &spans[0], want);
        check_span(b, &spans[2], want);
        assert_true(gr_decoder_get_stats(b->d).retried_steps > 0);
        /* And its sequence is as before: the same again, now right. */
        gr_span again = span_of(b, 1, ROWS, NULL);
        assert_true(gr_decoder_run(b->d, &again, 1, rows, keep, b));
        check_span(b, &again, want);
    }
    bed_close(b);
}

/* libllama rounds the cells up to 256. Four sequences of 62 leave 8: of two spans of 6 the first goes through, and
 * the second, which finds too few, fails by itself. */
static void test_too_few_cells(void **state) {
    (void)state;
    bed *b = bed_open(16);
    llama_token filler[62];
    for (int i = 0; i < 62; i++) {
        filler[i] = i + 1;
    }
    for (int s = 0; s < SPANS; s++) {
        gr_span span = {.seq = s, .start = 0, .tokens = filler, .n = 62, .n_outputs = 0};
        assert_true(gr_decoder_run(b->d, &span, 1, true, keep, b));
        assert_int_equal(span.error.code, 0);
    }
    gr_span spans[2] = {{.seq = 0, .start = 62, .tokens = filler, .n = 6, .n_outputs = 0},
                        {.seq = 1, .start = 62, .tokens = filler, .n = 6, .n_outputs = 0}};
    assert_true(gr_decoder_run(b->d, spans, 2, true, keep, b));
    assert_int_equal(spans[0].error.code, 0);
    assert_int_equal(spans[1].error.code, GRAFT_E_DECODE_FAILED);
    /* With room again, the rest of the first one's sequence works as if nothing had been. */
    gr_decoder_forget_sequence(b->d, 3);
    gr_span next = {.seq = 0, .start = 68, .tokens = filler, .n = 4, .n_outputs = 0};
    assert_true(gr_decoder_run(b->d, &next, 1, true, keep, b));
    assert_int_equal(next.error.code, 0);
    bed_close(b);
}

/* ---- adapters ------------------------------------------------------------------------------------------- */

static gr_adapter *make_adapter(const bed *b, float size, uint64_t seed) {
    int weights[64];
    size_t n = 0;
    for (size_t i = 0; i < b->base->n_weights && n < 64; i++) {
        if (b->base->weights[i].layer >= 0 && !b->base->weights[i].vector) {
            weights[n++] = (int)i;
        }
    }
    gr_adapter *a;
    assert_int_equal(gr_random_adapter_create(&a, b->base, weights, n, 4, GR_DTYPE_F32, size, seed, NULL), 0);
    return a;
}

static gr_adapter_set set_of(gr_adapter *a, gr_adapter *c) {
    gr_adapter_set set = {.adapters = {a}, .scales = {1.0f}, .n = 1};
    if (c) {
        set.adapters[0] = a < c ? a : c;
        set.adapters[1] = a < c ? c : a;
        set.scales[1] = 1.0f;
        set.n = 2;
    }
    return set;
}

static void test_mixed_adapters(void **state) {
    (void)state;
    bed *b = bed_open(64);
    gr_adapter *a = make_adapter(b, 0.05f, 1), *c = make_adapter(b, 0.05f, 2);
    gr_adapter_set one = set_of(a, NULL), two = set_of(c, NULL), both = set_of(a, c);
    const gr_adapter_set *sets[SPANS] = {NULL, &one, &two, &both};
    static float base[SPANS][ROWS][N_VOCAB];
    solo(b, NULL, true, base);
    solo(b, sets, false, want);
    for (int rows = 0; rows < 2; rows++) {
        forget_all(b);
        gr_span spans[SPANS];
        for (int s = 0; s < SPANS; s++) {
            spans[s] = span_of(b, s, s == 1 ? 1 : ROWS, sets[s]);
        }
        assert_true(gr_decoder_run(b->d, spans, SPANS, rows, keep, b));
        for (int s = 0; s < SPANS; s++) {
            check_span(b, &spans[s], want);
        }
        /* grouped is one decode for each set, rows one for all */
        assert_int_equal(gr_decoder_get_stats(b->d).largest_batch, rows ? SPANS * ROWS : ROWS);
    }
    for (int s = 1; s < SPANS; s++) { /* and the adapters matter */
        assert_true(difference(base[s], want[s], 0) > 0.01);
    }
    assert_int_equal(gr_decoder_get_stats(b->d).most_adapters, 2);
    gr_decoder_forget_adapter(b->d, a);
    gr_decoder_forget_adapter(b->d, c);
    gr_random_adapter_free(a);
    gr_random_adapter_free(c);
    bed_close(b);
}

/* A prompt's earlier rows have no outputs at all: the last layers then see no rows. */
static void test_adapter_without_outputs(void **state) {
    (void)state;
    bed *b = bed_open(64);
    gr_adapter *a = make_adapter(b, 0.05f, 1);
    gr_adapter_set one = set_of(a, NULL);
    const gr_adapter_set *sets[SPANS] = {&one, &one, &one, &one};
    solo(b, sets, true, want);
    gr_span first = span_of(b, 0, 0, &one), second = span_of(b, 0, 1, &one);
    first.n = 5;
    second.start = 5;
    second.tokens += 5;
    second.n = 3;
    assert_true(gr_decoder_run(b->d, &first, 1, true, keep, b));
    assert_int_equal(first.error.code, 0);
    assert_true(gr_decoder_run(b->d, &second, 1, true, keep, b));
    assert_int_equal(second.error.code, 0);
    for (int j = 0; j < N_VOCAB; j++) {
        assert_true(fabsf(b->logits[0][7][j] - want[0][7][j]) < 1e-4f);
    }
    gr_random_adapter_free(a);
    bed_close(b);
}

static void test_overflowing_adapter_fails_alone(void **state) {
    (void)state;
    bed *b = bed_open(64);
    gr_adapter *good = make_adapter(b, 0.05f, 1), *huge = make_adapter(b, 1e25f, 2);
    gr_adapter_set one = set_of(good, NULL), bad = set_of(huge, NULL), both = set_of(good, huge);
    const gr_adapter_set *sets[SPANS] = {NULL, &one, NULL, NULL};
    solo(b, sets, true, want);
    gr_span spans[SPANS] = {span_of(b, 0, ROWS, NULL), span_of(b, 1, ROWS, &one), span_of(b, 2, ROWS, &bad),
                            span_of(b, 3, 1, &both)};
    assert_true(gr_decoder_run(b->d, spans, SPANS, true, keep, b));
    check_span(b, &spans[0], want);
    check_span(b, &spans[1], want);
    assert_int_equal(spans[2].error.code, GRAFT_E_NON_FINITE_OUTPUT);
    assert_int_equal(spans[3].error.code, GRAFT_E_NON_FINITE_OUTPUT);
    assert_int_equal(b->delivered[2] + b->delivered[3], 0);
    assert_int_equal(gr_decoder_get_stats(b->d).retried_steps, 1);
    gr_random_adapter_free(good);
    gr_random_adapter_free(huge);
    bed_close(b);
}

/* Where rows cannot be, or turn out not to be, who needs them fails and nobody else does. */
static void test_adapter_that_needs_rows(void **state) {
    (void)state;
    for (int breaks = 0; breaks < 2; breaks++) {
        bed *b = bed_open(64);
        gr_adapter *plain = make_adapter(b, 0.05f, 1), *special = make_adapter(b, 0.05f, 2);
        gr_adapter_set one = set_of(plain, NULL), needy = set_of(special, NULL), both = set_of(plain, special);
        const gr_adapter_set *sets[SPANS] = {NULL, &one, NULL, NULL};
        solo(b, sets, false, want);
        special->by_rows_only = true;
        gr_weight *w = &b->base->weights[special->modules[0].weight];
        w->n_out += breaks; /* the hook finds another matrix than the table says */
        gr_span spans[SPANS] = {span_of(b, 0, ROWS, NULL), span_of(b, 1, ROWS, &one), span_of(b, 2, ROWS, &needy),
                                span_of(b, 3, 1, &both)};
        assert_int_equal(gr_decoder_run(b->d, spans, SPANS, breaks, keep, b), !breaks);
        check_span(b, &spans[0], want);
        check_span(b, &spans[1], want);
        assert_int_equal(spans[2].error.code, GRAFT_E_UNSUPPORTED_ADAPTER);
        assert_int_equal(spans[3].error.code, GRAFT_E_UNSUPPORTED_ADAPTER);
        assert_int_equal(b->delivered[2] + b->delivered[3], 0);
        w->n_out -= breaks;
        gr_decoder_forget_adapter(b->d, plain);
        gr_random_adapter_free(plain);
        gr_random_adapter_free(special);
        bed_close(b);
    }
}

/* Rows of one span with different sets: as if they came one after the other in spans of their own. */
static void test_sets_by_position(void **state) {
    (void)state;
    bed *b = bed_open(64);
    gr_adapter *a = make_adapter(b, 0.05f, 1), *c = make_adapter(b, 0.05f, 2);
    gr_adapter_set one = set_of(a, NULL), both = set_of(a, c);
    static const int starts[SPANS][2] = {{0, 5}, {3, 3}, {1, 6}, {7, GR_NEVER}};
    forget_all(b);
    for (int s = 0; s < SPANS; s++) {
        for (int i = 0; i < ROWS; i++) {
            gr_span span = {.seq = s, .start = i, .tokens = b->tokens[s] + i, .n = 1, .n_outputs = 1};
            gr_activation now;
            gr_adapter_set set = {.n = 0};
            for (int u = 0; u < both.n; u++) {
                if (starts[s][u] <= i) {
                    set.adapters[set.n] = both.adapters[u];
                    set.scales[set.n++] = both.scales[u];
                }
            }
            gr_activation_make(&now, &set, NULL);
            span.active = &now;
            b->delivered[s] = 0;
            assert_true(gr_decoder_run(b->d, &span, 1, true, keep, b));
            memcpy(want[s][i], b->logits[s][i], sizeof want[s][i]);
        }
    }
    for (int rows = 0; rows < 2; rows++) {
        forget_all(b);
        gr_span spans[SPANS + 1];
        for (int s = 0; s < SPANS; s++) {
            spans[s] = span_of(b, s, s == 1 ? 3 : ROWS, &both);
            gr_activation_make(&b->active[s], &both, starts[s]);
        }
        /* One that has `one` from the beginning comes first: the others' rows with that set must wait for their earlier ones. */
        gr_span first = spans[3];
        gr_activation_make(&b->active[3], &one, (int[]){0});
        first.n_outputs = 0;
        spans[3] = spans[0];
        spans[0] = first;
        assert_true(gr_decoder_run(b->d, spans, SPANS, rows, keep, b));
        for (int s = 1; s < SPANS; s++) {
            check_span(b, &spans[s], want);
        }
        spans[0] = span_of(b, 3, ROWS, &both);
        gr_activation_make(&b->active[3], &both, starts[3]);
        gr_decoder_forget_sequence(b->d, 3);
        assert_true(gr_decoder_run(b->d, spans, 1, rows, keep, b));
        check_span(b, &spans[0], want);
        assert_int_equal(gr_decoder_get_stats(b->d).retried_steps, 0);
    }
    gr_decoder_forget_adapter(b->d, a);
    gr_decoder_forget_adapter(b->d, c);
    gr_random_adapter_free(a);
    gr_random_adapter_free(c);
    bed_close(b);
}

/* Who has an adapter that overflows, but not yet in this step, is not blamed. */
static void test_not_yet_guilty(void **state) {
    (void)state;
    bed *b = bed_open(64);
    gr_adapter *huge = make_adapter(b, 1e25f, 2);
    gr_adapter_set bad = set_of(huge, NULL);
    solo(b, NULL, true, want);
    for (int rows = 0; rows < 2; rows++) {
        forget_all(b);
        gr_span spans[2] = {span_of(b, 0, ROWS, &bad), span_of(b, 1, 1, &bad)};
        gr_activation_make(&b->active[0], &bad, (int[]){ROWS}); /* with the first token of the next step */
        gr_activation_make(&b->active[1], &bad, (int[]){ROWS - 1});
        assert_true(gr_decoder_run(b->d, spans, rows ? 2 : 1, rows, keep, b)); /* grouped, only its logits tell */
        check_span(b, &spans[0], want);
        if (rows) {
            assert_int_equal(spans[1].error.code, GRAFT_E_NON_FINITE_OUTPUT);
            assert_int_equal(b->delivered[1], 0);
        }
    }
    gr_decoder_forget_adapter(b->d, huge);
    gr_random_adapter_free(huge);
    bed_close(b);
}

/* ---- making it ------------------------------------------------------------------------------------------ */

static void test_memory_failures(void **state) {
    (void)state;
    bed *b = bed_open(64);
    gr_decoder_free(b->d);
    uint64_t blocks = gr_memory_blocks();
    for (int forever = 0; forever < 2; forever++) {
        int rc = -1;
        for (uint64_t n = 1; rc != 0; n++) {
            graft_error err = {0};
            assert_true(n < 200);
            b->d = NULL;
            gr_memory_fail_at(n, forever);
            rc = open_decoder(b, 16, &err);
            gr_memory_fail_at(0, 0);
            assert_true(rc == 0 || rc == GRAFT_E_OUT_OF_MEMORY);
            assert_int_equal(err.code, rc);
            gr_decoder_free(b->d);
            assert_int_equal(gr_memory_blocks(), blocks);
        }
    }
    b->d = NULL;
    bed_close(b);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_mixed_outputs),
        cmocka_unit_test(test_invalid_token_fails_alone),
        cmocka_unit_test(test_too_few_cells),
        cmocka_unit_test(test_mixed_adapters),
        cmocka_unit_test(test_adapter_without_outputs),
        cmocka_unit_test(test_overflowing_adapter_fails_alone),
        cmocka_unit_test(test_adapter_that_needs_rows),
        cmocka_unit_test(test_sets_by_position),
        cmocka_unit_test(test_not_yet_guilty),
        cmocka_unit_test(test_memory_failures),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
