/* Sampling from made-up logits over the small base's vocabulary: its 256 bytes and a few more. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <math.h>

#include "base/memory.h"
#include "engine/likely.h"
#include "engine/sampler.h"
#include "engine_helpers.h"
#include "model/base_model.h"

enum { N_VOCAB = 264 };

static gr_base_model *base;
static gr_vocab vocab;
static float logits[N_VOCAB];
static llama_token_data scratch[N_VOCAB];

static int open_vocab(void **state) {
    (void)state;
    gr_base_options options = {.vocab_only = true};
    return gr_base_model_open(&base, golden("bases/llama.gguf"), &options, NULL) ||
           gr_vocab_init(&vocab, base->vocab, NULL) || vocab.n_tokens != N_VOCAB;
}

static int close_vocab(void **state) {
    (void)state;
    gr_vocab_finish(&vocab);
    gr_base_model_close(base);
    return 0;
}

/* Flat, but for one or two tokens. */
static void set_logits(llama_token best, llama_token second) {
    for (int i = 0; i < N_VOCAB; i++) {
        logits[i] = 0.01f * (float)(i % 7);
    }
    logits[best] = 5.0f;
    logits[second] = 4.5f;
}

static graft_sampling greedy(void) {
    return (graft_sampling){.top_p = 1.0f, .repeat_last_n = 64, .repeat_penalty = 1.0f};
}

static graft_sampling random_draws(uint32_t seed) {
    graft_sampling s = greedy();
    s.temperature = 1.0f;
    s.seed = seed;
    return s;
}

static gr_sampler *make(graft_sampling s, bool ignore_eos) {
    gr_sampler *sampler;
    graft_error err;
    if (gr_sampler_create(&sampler, &vocab, &s, ignore_eos, &err)) {
        fail_msg("%s", err.message);
    }
    return sampler;
}

static llama_token pick(gr_sampler *s) {
    llama_token t;
    assert_int_equal(gr_sampler_pick(s, logits, scratch, &t, NULL), 0);
    return t;
}

/* The token whose text is one byte. */
static llama_token byte_token(char c) {
    llama_token tokens[8];
    char text[2] = {c, '\0'};
    int n = llama_tokenize(base->vocab, text, 1, tokens, 8, false, false);
    assert_int_equal(n, 1);
    return tokens[0];
}

static void test_greedy_takes_the_largest(void **state) {
    (void)state;
    gr_sampler *s = make(greedy(), false);
    for (llama_token t = 0; t < N_VOCAB; t++) {
        set_logits(t, (t + 1) % N_VOCAB);
        assert_int_equal(pick(s), t);
    }
    gr_sampler_free(s);
    graft_sampling tiny = random_draws(1);
    tiny.temperature = 1e-39f; /* would overflow as a divisor */
    s = make(tiny, false);
    set_logits(7, 8);
    assert_int_equal(pick(s), 7);
    gr_sampler_free(s);
}

static void draw_many(graft_sampling sampling, llama_token *out, int n) {
    gr_sampler *s = make(sampling, false);
    set_logits(3, 4);
    for (int i = 0; i < n; i++) {
        out[i] = pick(s);
    }
    gr_sampler_free(s);
}

static void test_seeds(void **state) {
    (void)state;
    llama_token a[64], b[64], c[64], d[64];
    draw_many(random_draws(42), a, 64);
    draw_many(random_draws(42), b, 64);
    draw_many(random_draws(43), c, 64);
    assert_memory_equal(a, b, sizeof a);
    assert_memory_not_equal(a, c, sizeof a);
    draw_many(random_draws(LLAMA_DEFAULT_SEED), c, 64);
    draw_many(random_draws(LLAMA_DEFAULT_SEED), d, 64);
    assert_memory_not_equal(c, d, sizeof c); /* a random seed each time */
}

static int different(const llama_token *t, int n) {
    bool seen[N_VOCAB] = {false};
    int count = 0;
    for (int i = 0; i < n; i++) {
        count += !seen[t[i]];
        seen[t[i]] = true;
    }
    return count;
}

/* Tokens 3 and 4 stand out; the filters must cut the rest off, and nothing but them. */
static void test_filters(void **state) {
    (void)state;
    llama_token t[400];
    graft_sampling s = random_draws(1);
    draw_many(s, t, 400);
    assert_true(different(t, 400) > 20);
    s.top_k = 2;
    draw_many(s, t, 400);
    assert_int_equal(different(t, 400), 2);
    s = random_draws(1);
    s.min_p = 0.5f;
    draw_many(s, t, 400);
    assert_int_equal(different(t, 400), 2);
    s = random_draws(1);
    s.top_p = 0.0f;
    draw_many(s, t, 400);
    assert_int_equal(different(t, 400), 1);
    s = random_draws(1);
    s.temperature = 0.05f;
    draw_many(s, t, 400);
    assert_true(different(t, 400) <= 2);
    s.temperature = 100.0f;
    draw_many(s, t, 400);
    assert_true(different(t, 400) > 150);
}

static void test_penalties(void **state) {
    (void)state;
    static const struct {
        float repeat, frequency, presence;
    } table[] = {{2.0f, 0, 0}, {1.0f, 1.0f, 0}, {1.0f, 0, 1.0f}};
    for (size_t i = 0; i < 3; i++) {
        graft_sampling s = greedy();
        s.repeat_penalty = table[i].repeat;
        s.frequency_penalty = table[i].frequency;
        s.presence_penalty = table[i].presence;
        gr_sampler *sampler = make(s, false);
        set_logits(3, 4);
        assert_int_equal(pick(sampler), 3);
        assert_int_equal(pick(sampler), 4); /* 3 was there already */
        gr_sampler_free(sampler);
        /* The prompt counts, its last repeat_last_n tokens only. */
        llama_token prompt[] = {3, 10, 11, 12};
        sampler = make(s, false);
        gr_sampler_prompt(sampler, prompt, 4);
        assert_int_equal(pick(sampler), 4);
        gr_sampler_free(sampler);
        s.repeat_last_n = 3;
        sampler = make(s, false);
        gr_sampler_prompt(sampler, prompt, 4);
        assert_int_equal(pick(sampler), 3);
        gr_sampler_free(sampler);
    }
}

static void test_ignore_eos(void **state) {
    (void)state;
    assert_true(vocab.n_end_tokens > 0);
    llama_token end = vocab.end_tokens[0];
    gr_sampler *s = make(greedy(), false);
    set_logits(end, 4);
    assert_int_equal(pick(s), end);
    gr_sampler_free(s);
    s = make(greedy(), true);
    assert_int_equal(pick(s), 4);
    gr_sampler_free(s);
}

/* ---- grammars ------------------------------------------------------------------------------------------- */

static gr_sampler *with_grammar(const char *grammar, bool ignore_eos) {
    graft_sampling s = greedy();
    s.grammar = grammar;
    return make(s, ignore_eos);
}

/* ---- biases ---------------------------------------------------------------------------------------------- */

static llama_token pick_with(graft_sampling sampling, bool ignore_eos, const graft_logit_bias *biases, size_t n) {
    gr_sampler *s = make(sampling, ignore_eos);
    gr_sampler_bias(s, biases, n);
    llama_token t = pick(s);
    gr_sampler_free(s);
    return t;
}

static void test_biases(void **state) {
    (void)state;
    static const struct {
        const char *what;
        graft_logit_bias biases[3];
        size_t n;
        llama_token expected;
    } table[] = {
        {"none", {{0, 0}}, 0, 3},
        {"too little", {{4, 0.4f}}, 1, 3},
        {"enough", {{4, 0.6f}}, 1, 4},
        {"less for the best", {{3, -0.6f}}, 1, 4},
        {"as good as chosen", {{200, 100}}, 1, 200},
        {"beyond what can be added", {{200, 3e38f}}, 1, 200},
        {"banned", {{3, -100}}, 1, 4},
        {"far below", {{3, -3e38f}}, 1, 4},
        {"just above a ban is none", {{3, -99.9f}, {3, 99.9f}}, 2, 3},
        {"a ban stays", {{3, 100}, {3, -100}, {3, 100}}, 3, 4},
        {"twice adds up", {{4, 0.3f}, {4, 0.3f}}, 2, 4},
        {"the last token", {{N_VOCAB - 1, 50}}, 1, N_VOCAB - 1},
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        set_logits(3, 4);
        llama_token t = pick_with(greedy(), false, table[i].biases, table[i].n);
        if (t != table[i].expected) {
            fail_msg("%s: %d", table[i].what, t);
        }
    }
    set_logits(3, 4); /* logits that are as large as can be stay numbers */
    logits[5] = 3.4e38f;
    for (uint32_t seed = 0; seed < 20; seed++) {
        assert_int_equal(pick_with(random_draws(seed), false, &(graft_logit_bias){5, 3.4e38f}, 1), 5);
    }
}

/* A banned token is never drawn, whatever the draw; all others still can be. */
static void test_banned_is_never_drawn(void **state) {
    (void)state;
    graft_logit_bias bans[N_VOCAB];
    size_t n = 0;
    for (llama_token t = 0; t < N_VOCAB; t++) {
        if (t != 9 && t != 250) {
            bans[n++] = (graft_logit_bias){t, GR_BAN};
        }
    }
    set_logits(9, 250);
    graft_sampling flat = random_draws(1);
    flat.temperature = 50;
    int seen[N_VOCAB] = {0};
    for (uint32_t seed = 0; seed < 200; seed++) {
        flat.seed = seed;
        flat.repeat_penalty = seed % 2 ? 1.5f : 1.0f;
        seen[pick_with(flat, true, bans, n)]++;
    }
    assert_int_equal(seen[9] + seen[250], 200);
    assert_true(seen[9] > 20 && seen[250] > 20);
}

static void test_all_banned(void **state) {
    (void)state;
    graft_logit_bias bans[N_VOCAB];
    for (llama_token t = 0; t < N_VOCAB; t++) {
        bans[t] = (graft_logit_bias){t, -1000};
    }
    set_logits(3, 4);
    for (int random = 0; random < 2; random++) {
        gr_sampler *s = make(random ? random_draws(1) : greedy(), false);
        llama_token t = 77;
        graft_error err;
        gr_sampler_bias(s, bans, N_VOCAB);
        assert_int_equal(gr_sampler_pick(s, logits, scratch, &t, &err), GRAFT_E_BAD_REQUEST);
        assert_int_equal(t, 77);
        gr_sampler_free(s);
    }
}

static void test_biases_with_a_grammar(void **state) {
    (void)state;
    gr_sampler *s = with_grammar("root ::= \"yes\" | \"no\"", false);
    graft_logit_bias bias[] = {{byte_token('n'), -100}, {byte_token('x'), 100}}; /* x does not fit, whatever its bias */
    set_logits(byte_token('n'), byte_token('x'));
    gr_sampler_bias(s, bias, 2);
    static const char text[] = "yes";
    for (size_t i = 0; i < 3; i++) {
        assert_int_equal(pick(s), byte_token(text[i]));
    }
    gr_sampler_free(s);
    s = with_grammar("root ::= \"no\"", false); /* nothing is left that fits */
    gr_sampler_bias(s, bias, 2);
    llama_token t;
    assert_int_equal(gr_sampler_pick(s, logits, scratch, &t, NULL), GRAFT_E_BAD_GRAMMAR);
    gr_sampler_free(s);
}

/* ---- probabilities --------------------------------------------------------------------------------------- */

static void test_likeliest(void **state) {
    (void)state;
    float some[] = {1, 5, -INFINITY, 5, 3, 4, -2};
    llama_token top[7];
    static const llama_token order[] = {1, 3, 5, 4, 0, 6, 2};
    for (int k = 0; k <= 7; k++) {
        gr_likeliest(some, 7, top, k);
        assert_memory_equal(top, order, (size_t)k * sizeof *top);
    }
    double sum = 0;
    for (int i = 0; i < 7; i++) {
        sum += exp((double)some[i]);
    }
    assert_true(fabs(gr_log_sum(some, 7) - log(sum)) < 1e-9);
    float large[] = {1e5f, 1e5f, -3e38f};
    assert_true(fabs(gr_log_sum(large, 3) - (1e5 + log(2))) < 1e-6);
}

static void test_grammar_forces(void **state) {
    (void)state;
    gr_sampler *s = with_grammar("root ::= \"yes\" | \"no\"", false);
    set_logits(byte_token('n'), byte_token('x'));
    static const char text[] = "no";
    for (size_t i = 0; i < 2; i++) {
        assert_int_equal(pick(s), byte_token(text[i]));
    }
    assert_true(gr_vocab_is_end(&vocab, pick(s))); /* nothing else may follow */
    gr_sampler_free(s);
}

static void test_grammar_keeps_what_fits(void **state) {
    (void)state;
    gr_sampler *s = with_grammar("root ::= [a-z]+", false);
    set_logits(byte_token('q'), byte_token('A'));
    assert_int_equal(pick(s), byte_token('q'));
    set_logits(byte_token('A'), byte_token('q'));
    assert_int_equal(pick(s), byte_token('q'));
    gr_sampler_free(s);
}

static void test_complete_without_an_end_token(void **state) {
    (void)state;
    gr_sampler *s = with_grammar("root ::= \"a\"", true);
    set_logits(3, 4);
    assert_int_equal(pick(s), byte_token('a'));
    assert_int_equal(pick(s), LLAMA_TOKEN_NULL);
    gr_sampler_free(s);
}

/* An end token may not come before the grammar is complete, however much the model wants it. */
static void test_end_token_waits(void **state) {
    (void)state;
    gr_sampler *s = with_grammar("root ::= \"ab\"", false);
    set_logits(vocab.end_tokens[0], 4);
    assert_int_equal(pick(s), byte_token('a'));
    assert_int_equal(pick(s), byte_token('b'));
    assert_int_equal(pick(s), vocab.end_tokens[0]);
    gr_sampler_free(s);
}

static void test_ambiguous_grammar_ends_with_an_error(void **state) {
    (void)state;
    gr_sampler *s = with_grammar("root ::= x\nx ::= \"a\" x \"b\" | \"a\" x \"c\" | \"a\"", false);
    set_logits(byte_token('a'), 4);
    int rc = 0, n = 0;
    graft_error err = {0};
    for (llama_token t; rc == 0 && n < 50; n++) {
        rc = gr_sampler_pick(s, logits, scratch, &t, &err);
    }
    assert_int_equal(rc, GRAFT_E_BAD_GRAMMAR);
    assert_non_null(strstr(err.message, "ambiguous"));
    gr_sampler_free(s);
}

/* ---- logits that are no numbers --------------------------------------------------------------------------- */

static void test_usable(void **state) {
    (void)state;
    set_logits(3, 4);
    assert_true(gr_logits_usable(logits, N_VOCAB));
    logits[17] = -INFINITY;
    assert_true(gr_logits_usable(logits, N_VOCAB));
    for (int i = 0; i < N_VOCAB; i++) {
        float before = logits[i];
        logits[i] = NAN;
        assert_false(gr_logits_usable(logits, N_VOCAB));
        logits[i] = INFINITY;
        assert_false(gr_logits_usable(logits, N_VOCAB));
        logits[i] = before;
    }
    for (int i = 0; i < N_VOCAB; i++) {
        logits[i] = -INFINITY;
    }
    assert_false(gr_logits_usable(logits, N_VOCAB));
}

static void test_tokenize(void **state) {
    (void)state;
    llama_token *tokens;
    int n;
    graft_error err;
    assert_int_equal(gr_vocab_tokenize(&vocab, "abc", 3, true, true, 100, &tokens, &n, &err), 0);
    assert_true(n >= 3);
    gr_free(tokens);
    assert_int_equal(gr_vocab_tokenize(&vocab, "abcdefgh", 8, true, true, 4, &tokens, &n, &err), GRAFT_E_CONTEXT_LENGTH);
    char *huge = calloc(1, 1 << 20);
    memset(huge, 'a', (1 << 20) - 1);
    assert_int_equal(gr_vocab_tokenize(&vocab, huge, (1 << 20) - 1, true, true, 4, &tokens, &n, &err),
                     GRAFT_E_CONTEXT_LENGTH);
    assert_non_null(strstr(err.message, "1048575 bytes"));
    free(huge);
}

static void test_memory_failures(void **state) {
    (void)state;
    uint64_t blocks = gr_memory_blocks();
    int rc = -1;
    for (uint64_t n = 1; rc != 0; n++) {
        graft_sampling s = greedy();
        s.grammar = "root ::= [0-9]+";
        gr_sampler *sampler = NULL;
        llama_token t;
        set_logits(3, 4);
        gr_memory_fail_at(n, 1);
        rc = gr_sampler_create(&sampler, &vocab, &s, false, NULL);
        int picked = rc ? 0 : gr_sampler_pick(sampler, logits, scratch, &t, NULL);
        gr_memory_fail_at(0, 0);
        assert_true(rc == 0 || rc == GRAFT_E_OUT_OF_MEMORY);
        assert_true(picked == 0 || picked == GRAFT_E_OUT_OF_MEMORY);
        rc = rc ? rc : picked;
        gr_sampler_free(sampler);
        assert_true(n < 100);
    }
    assert_int_equal(gr_memory_blocks(), blocks);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_greedy_takes_the_largest),
        cmocka_unit_test(test_seeds),
        cmocka_unit_test(test_filters),
        cmocka_unit_test(test_penalties),
        cmocka_unit_test(test_ignore_eos),
        cmocka_unit_test(test_biases),
        cmocka_unit_test(test_banned_is_never_drawn),
        cmocka_unit_test(test_all_banned),
        cmocka_unit_test(test_biases_with_a_grammar),
        cmocka_unit_test(test_likeliest),
        cmocka_unit_test(test_grammar_forces),
        cmocka_unit_test(test_grammar_keeps_what_fits),
        cmocka_unit_test(test_complete_without_an_end_token),
        cmocka_unit_test(test_end_token_waits),
        cmocka_unit_test(test_ambiguous_grammar_ends_with_an_error),
        cmocka_unit_test(test_usable),
        cmocka_unit_test(test_tokenize),
        cmocka_unit_test(test_memory_failures),
    };
    return cmocka_run_group_tests(tests, open_vocab, close_vocab);
}
