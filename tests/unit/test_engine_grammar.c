/* GBNF: what is refused, what matches, and that libllama's own matcher agrees. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <math.h>

#include "base/memory.h"
#include "base/utf8.h"
#include "engine/grammar.h"
#include "engine/vocab.h"
#include "engine_helpers.h"
#include "model/base_model.h"

static void test_refused(void **state) {
    (void)state;
    static const struct {
        const char *grammar, *part_of_message;
    } table[] = {
        {"", "no rule named root"},
        {"rot ::= \"a\"", "no rule named root"},
        {"root ::= \"a", "unexpected end"},
        {"root ::= [a-", "unexpected end"},
        {"root ::= []", "empty character class"},
        {"root ::= [z-a]", "runs backwards"},
        {"root ::= foo", "not defined"},
        {"root := \"a\"", "expected ::="},
        {"root ::= (\"a\"", "expected )"},
        {"root ::= \"a\")", "end of the line"},
        {"root ::= *", "nothing to repeat"},
        {"root ::= \"\"*", "nothing to repeat"},
        {"root ::= \"a\"{2001}", "above 2000"},
        {"root ::= \"a\"{3,2}", "below its least"},
        {"root ::= \"a\"{x}", "expected a number"},
        {"root ::= \"a\"{2", "expected }"},
        {"root ::= \"\\q\"", "unknown escape"},
        {"root ::= \"\\xg0\"", "hexadecimal"},
        {"root ::= \"\\UFFFFFFFF\"", "no such character"},
        {"root ::= root \"a\"", "left recursion"},
        {"root ::= a\na ::= b\nb ::= \"x\"? a \"y\"", "left recursion"},
        {"root ::= (\"a\"?)*", "left recursion"},
        {"root ::= \"a\"\nroot ::= \"b\"", "defined twice"},
        {"root ::= <think>", "token references"},
        {"root ::= [a-z] <[5]>", "token references"},
        {"root ::= !<[5]>", "token references"},
        {"root ::= \"\xFF\"", "UTF-8"},
        {"root ::= \"a\"\n| \"b\"", "rule's name"},
        {"\x1b[31mroot", "\\x1b"},
    };
    uint64_t blocks = gr_memory_blocks();
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        gr_grammar *g = NULL;
        graft_error err = {0};
        assert_int_equal(gr_grammar_create(&g, table[i].grammar, &err), GRAFT_E_BAD_GRAMMAR);
        if (!strstr(err.message, table[i].part_of_message)) {
            fail_msg("%s: message is '%s', not '…%s…'", table[i].grammar, err.message, table[i].part_of_message);
        }
        assert_null(g);
    }
    assert_int_equal(gr_memory_blocks(), blocks);
}

static void refuse(const char *grammar) {
    gr_grammar *g = NULL;
    assert_int_equal(gr_grammar_create(&g, grammar, NULL), GRAFT_E_BAD_GRAMMAR);
    assert_null(g);
}

static char *repeated(const char *begin, const char *unit, size_t n, const char *end) {
    char *text = calloc(1, strlen(begin) + n * strlen(unit) + strlen(end) + 1);
    assert_non_null(text);
    char *at = text + sprintf(text, "%s", begin);
    for (size_t i = 0; i < n; i++) {
        at += sprintf(at, "%s", unit);
    }
    strcpy(at, end);
    return text;
}

/* Small texts that would unfold to gigabytes, or recurse without end. */
static void test_bombs(void **state) {
    (void)state;
    static const struct {
        const char *begin, *unit;
        size_t n;
        const char *end;
    } table[] = {
        {"root ::= ", "(", 60000, "\"a\""},
        {"root ::= ", "\"a\"", 30000, ""},              /* over 64 KiB */
        {"root ::= ", "\"a\"{2000}", 2000, ""},
        {"root ::= ", "\"a\"{0,2000}", 2000, ""},
        {"root ::= \"", "a", 30000, "\"{2000}"},
        {"root ::= ", "(\"a\"{999} ", 60, "\"b\""},
        {"root ::= ", "a", 60000, " \"a\""},            /* a long name, not defined */
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        char *text = repeated(table[i].begin, table[i].unit, table[i].n, table[i].end);
        refuse(text);
        free(text);
    }
    /* A long chain of rules is fine: nothing recurses along it. */
    char *chain = calloc(1, 65536);
    char *at = chain + sprintf(chain, "root ::= r0\n");
    for (int i = 0; i < 2500; i++) {
        at += sprintf(at, "r%d ::= r%d\n", i, i + 1);
    }
    sprintf(at, "r2500 ::= \"x\"\n");
    gr_grammar *g;
    assert_int_equal(gr_grammar_create(&g, chain, NULL), 0);
    assert_int_equal(gr_grammar_take(g, "x", 1), GR_GRAMMAR_YES);
    assert_true(gr_grammar_complete(g));
    gr_grammar_free(g);
    free(chain);
}

/* Each a has many continuations that differ, so the ways to read the text double with each: must be given up. */
static void test_ambiguity_is_bounded(void **state) {
    (void)state;
    gr_grammar *g;
    assert_int_equal(gr_grammar_create(&g, "root ::= x\nx ::= \"a\" x \"b\" | \"a\" x \"c\" | \"a\"", NULL), 0);
    gr_grammar_answer answer = GR_GRAMMAR_YES;
    int n = 0;
    while (answer == GR_GRAMMAR_YES && n < 100) {
        answer = gr_grammar_take(g, "a", 1);
        n++;
    }
    assert_int_equal(answer, GR_GRAMMAR_EXHAUSTED);
    assert_true(n > 5 && n < 12);
    gr_grammar_free(g);
}

/* `pieces` separated by '|' are taken one after the other; '.' at the end says that the text may end there. */
static void test_matching(void **state) {
    (void)state;
    static const struct {
        const char *grammar, *pieces;
        bool accepted, complete;
    } table[] = {
        {"root ::= \"yes\" | \"no\"", "yes", true, true},
        {"root ::= \"yes\" | \"no\"", "y|e", true, false},
        {"root ::= \"yes\" | \"no\"", "nope", false, false},
        {"root ::= \"yes\" | \"no\"", "no|x", false, false},
        {"root ::= [a-c]+ \"!\"?", "ab|c", true, true},
        {"root ::= [a-c]+ \"!\"?", "abc!", true, true},
        {"root ::= [a-c]+ \"!\"?", "!", false, false},
        {"root ::= [^a-c]*", "xyz", true, true},
        {"root ::= [^a-c]*", "xbz", false, false},
        {"root ::= .{2}", "\xC3\xA9x", true, true},
        {"root ::= .{2}", "\xC3|\xA9", true, false},
        {"root ::= .{2}", "abc", false, false},
        {"root ::= \"a\"{2,4}", "aa", true, true},
        {"root ::= \"a\"{2,4}", "a", true, false},
        {"root ::= \"a\"{2,4}", "aaaaa", false, false},
        {"root ::= \"a\"{2,}", "aaaaaaa", true, true},
        {"root ::= \"a\"{0,2}", "aa", true, true},
        {"root ::= \"a\"{0} \"b\"", "b", true, true},
        {"root ::= \"a\"{0} \"b\"", "a", false, false},
        {"root ::= (\"ab\" | \"cd\")* # a comment\n", "ab|cd|ab", true, true},
        {"root ::= item (\",\" item)*\nitem ::= [0-9]+", "1,22,333", true, true},
        {"root ::= item (\",\" item)*\nitem ::= [0-9]+", "1,", true, false},
        {"root ::= item (\",\" item)*\nitem ::= [0-9]+", "1,,", false, false},
        {"root ::= \"(\" root \")\" | \"x\"", "((x))", true, true},
        {"root ::= \"(\" root \")\" | \"x\"", "((x)", true, false},
        {"root ::= \"(\" root \")\" | \"x\"", "((x)))", false, false},
        {"root ::= \"\\n\\t\\\"\\\\\\x41\\u00e9\"", "\n\t\"\\A\xC3\xA9", true, true},
        {"root ::= [\\]\\-a]+", "]-a", true, true},
        {"root ::= [a-]+", "-a", true, true},
        {"root ::= (\n \"a\" |\n \"b\"\n)", "b", true, true},
        {"root ::= |\"a\"", "a", true, true},
        {"root ::= [\xC3\xA9]", "\xC3", true, false},
        {"root ::= [\xC3\xA9]", "\xC3|\xA8", false, false},
        {"root ::= [\xC3\xA9]", "\xE2", false, false},
        {"root ::= [^\xC3\xA9]", "\xC3", true, false},
        {"root ::= [^\xC3\xA9]", "\xC3|\xA9", false, false},
        {"root ::= [a-z\xE2\x82\xAC]", "\xE2|\x82|\xAC", true, true},
        {"root ::= .*", "\xFF", false, false},
        {"root ::= .*", "\xED|\xA0", true, false}, /* a surrogate in the making: the next byte settles it */
        {"root ::= .*", "\xED\xA0\x80", false, false},
        {"root ::= .*", "\xC0\x80", false, false},
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        gr_grammar *g;
        graft_error err = {0};
        if (gr_grammar_create(&g, table[i].grammar, &err)) {
            fail_msg("%s: %s", table[i].grammar, err.message);
        }
        bool accepted = true;
        for (const char *p = table[i].pieces; *p && accepted;) {
            size_t n = strcspn(p, "|");
            gr_grammar_answer asked = gr_grammar_accepts(g, p, n), took = gr_grammar_take(g, p, n);
            assert_int_equal(asked, took);
            accepted = took == GR_GRAMMAR_YES;
            p += n + (p[n] == '|');
        }
        if (accepted != table[i].accepted || (accepted && gr_grammar_complete(g) != table[i].complete)) {
            fail_msg("%s on %s: accepted %d complete %d", table[i].grammar, table[i].pieces, accepted,
                     gr_grammar_complete(g));
        }
        gr_grammar_free(g);
    }
}

static void test_nothing_is_never_next(void **state) {
    (void)state;
    gr_grammar *g;
    assert_int_equal(gr_grammar_create(&g, "root ::= \"a\"*", NULL), 0);
    assert_true(gr_grammar_complete(g));
    assert_int_equal(gr_grammar_accepts(g, "", 0), GR_GRAMMAR_NO);
    gr_grammar_free(g);
}

/* ---- against libllama ---------------------------------------------------------------------------------- */

static const char *const shared_grammars[] = {
    "root ::= \"yes\" | \"no\"",
    "root ::= [a-z]+ (\" \" [a-z]+)*",
    ("root ::= obj\nobj ::= \"{\" (pair (\",\" pair)*)? \"}\"\n"
     "pair ::= str \":\" val\nstr ::= \"\\\"\" [^\"]* \"\\\"\"\n"
     "val ::= obj | str | num | \"[\" (val (\",\" val)*)? \"]\"\nnum ::= \"-\"? [0-9]{1,5} (\".\" [0-9]+)?"),
    "root ::= (\"a\" | \"b\" \"c\"?){2,5} .{0,3}",
    "root ::= \"(\" root \")\" root | [\xC3\xA0-\xC3\xBF] | \"\xE2\x82\xAC\"",
    "root ::= x x x\nx ::= \"a\"? \"b\"*",
};

static uint32_t seed = 3;
static uint32_t roll(uint32_t n) {
    seed = seed * 1664525u + 1013904223u;
    return (uint32_t)((uint64_t)(seed >> 8) * n >> 24);
}

typedef struct both {
    const gr_vocab *vocab;
    gr_grammar *ours;
    struct llama_sampler *theirs;
    gr_buffer piece, text; /* text: all that was taken */
} both;

/* Whether text and piece together can still become UTF-8. libllama does not look that closely. */
static bool is_utf8_so_far(both *b) {
    size_t before = b->text.length;
    assert_true(gr_buffer_append(&b->text, b->piece.data, b->piece.length));
    bool valid = gr_utf8_valid(b->text.data, gr_utf8_complete(b->text.data, b->text.length));
    b->text.length = before;
    return valid;
}

/* Both must say the same about every token. Returns one that may come next, at random, or LLAMA_TOKEN_NULL. */
static llama_token compare(both *b) {
    llama_token pick = LLAMA_TOKEN_NULL;
    uint32_t n_allowed = 0;
    for (llama_token t = 0; t < b->vocab->n_tokens; t++) {
        llama_token_data one = {t, 1.0f, 0.0f};
        llama_token_data_array array = {&one, 1, -1, false};
        llama_sampler_apply(b->theirs, &array);
        bool theirs = one.logit != -INFINITY, ours;
        if (llama_vocab_is_control(b->vocab->llama, t) && !gr_vocab_is_end(b->vocab, t)) {
            continue; /* libllama matches their names; they give no text, so graft never allows them */
        }
        gr_buffer_clear(&b->piece);
        assert_true(gr_vocab_piece(b->vocab, t, false, &b->piece));
        if (gr_vocab_is_end(b->vocab, t)) {
            ours = gr_grammar_complete(b->ours);
        } else {
            ours = gr_grammar_accepts(b->ours, b->piece.data, b->piece.length) == GR_GRAMMAR_YES;
        }
        if (ours != theirs && (ours || is_utf8_so_far(b))) {
            fail_msg("token %d: graft says %d, libllama %d", t, ours, theirs);
        }
        if (ours && !gr_vocab_is_end(b->vocab, t) && roll(++n_allowed) == 0) {
            pick = t;
        }
    }
    return pick;
}

static void walk(const gr_vocab *v, const char *grammar, int most) {
    both b = {.vocab = v};
    gr_buffer_init(&b.piece, 1024);
    gr_buffer_init(&b.text, 65536);
    assert_int_equal(gr_grammar_create(&b.ours, grammar, NULL), 0);
    b.theirs = llama_sampler_init_grammar(v->llama, grammar, "root");
    assert_non_null(b.theirs);
    for (int i = 0; i < most; i++) {
        llama_token t = compare(&b);
        if (t == LLAMA_TOKEN_NULL) {
            break;
        }
        gr_buffer_clear(&b.piece);
        assert_true(gr_vocab_piece(v, t, false, &b.piece));
        assert_int_equal(gr_grammar_take(b.ours, b.piece.data, b.piece.length), GR_GRAMMAR_YES);
        llama_sampler_accept(b.theirs, t);
        assert_true(gr_buffer_append(&b.text, b.piece.data, b.piece.length));
    }
    llama_sampler_free(b.theirs);
    gr_grammar_free(b.ours);
    gr_buffer_finish(&b.piece);
    gr_buffer_finish(&b.text);
}

/* Sanitizers make a look at a token some twenty times slower: they get a sample of the walks. */
#if defined(__SANITIZE_ADDRESS__)
enum { WALKS = 8, DEMO_WALKS = 1, DEMO_STEPS = 1 };
#else
enum { WALKS = 40, DEMO_WALKS = 2, DEMO_STEPS = 5 };
#endif

static void walk_all(const char *model, int walks, int most) {
    gr_base_options options = {.vocab_only = false};
    gr_base_model *base;
    gr_vocab v;
    assert_int_equal(gr_base_model_open(&base, model, &options, NULL), 0);
    assert_int_equal(gr_vocab_init(&v, base->vocab, NULL), 0);
    for (size_t i = 0; i < sizeof shared_grammars / sizeof *shared_grammars; i++) {
        for (int k = 0; k < walks; k++) {
            walk(&v, shared_grammars[i], most);
        }
    }
    gr_vocab_finish(&v);
    gr_base_model_close(base);
}

static void test_agrees_with_libllama(void **state) {
    (void)state;
    walk_all(golden("bases/llama.gguf"), WALKS, 25);
}

static void test_agrees_with_libllama_on_the_demo_model(void **state) {
    (void)state;
    const char *model = getenv("GRAFT_TEST_MODEL");
    if (!model) {
        skip();
    }
    walk_all(model, DEMO_WALKS, DEMO_STEPS);
}

static void test_memory_failures(void **state) {
    (void)state;
    uint64_t blocks = gr_memory_blocks();
    for (int forever = 0; forever < 2; forever++) {
        int rc = GRAFT_E_OUT_OF_MEMORY;
        for (uint64_t n = 1; rc != 0; n++) {
            gr_grammar *g = NULL;
            assert_true(n < 100);
            gr_memory_fail_at(n, forever);
            rc = gr_grammar_create(&g, shared_grammars[2], NULL);
            bool took = !rc && gr_grammar_take(g, "{\"a\":[1,2", 9) == GR_GRAMMAR_YES;
            gr_memory_fail_at(0, 0);
            assert_true(rc == 0 || rc == GRAFT_E_OUT_OF_MEMORY);
            assert_true(rc != 0 || took);
            gr_grammar_free(g);
        }
    }
    assert_int_equal(gr_memory_blocks(), blocks);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_bombs),
        cmocka_unit_test(test_ambiguity_is_bounded),
        cmocka_unit_test(test_matching),
        cmocka_unit_test(test_nothing_is_never_next),
        cmocka_unit_test(test_agrees_with_libllama),
        cmocka_unit_test(test_agrees_with_libllama_on_the_demo_model),
        cmocka_unit_test(test_memory_failures),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
