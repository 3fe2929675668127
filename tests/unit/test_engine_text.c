/* Streaming: stop strings and UTF-8, whatever the pieces. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/memory.h"
#include "base/utf8.h"
#include "engine/text.h"

#define MAX 4096

typedef struct stream {
    char text[MAX];
    size_t length;
} stream;

/* Takes what is new. Every delivery must be whole characters. */
static void take(gr_text *t, stream *s) {
    const char *text;
    size_t n = gr_text_take(t, &text);
    assert_true(gr_utf8_valid(text, n));
    assert_true(s->length + n < MAX);
    memcpy(s->text + s->length, text, n);
    s->length += n;
    s->text[s->length] = '\0';
}

/* Pieces separated by '|' in `pieces`. */
static void run_pieces(const char *pieces, char *const *stop, size_t n_stop, stream *s, bool *stopped) {
    gr_text t;
    gr_text_init(&t, stop, n_stop, MAX);
    s->length = 0;
    while (*pieces) {
        size_t n = strcspn(pieces, "|");
        assert_true(gr_text_add(&t, pieces, n));
        take(&t, s);
        pieces += n + (pieces[n] == '|');
    }
    assert_true(gr_text_end(&t));
    take(&t, s);
    *stopped = t.stopped;
    assert_int_equal(t.out.length, s->length);
    gr_text_finish(&t);
}

static void test_table(void **state) {
    (void)state;
    static const struct {
        const char *pieces, *stop[3], *text;
        bool stopped;
    } table[] = {
        {"Hello| world", {NULL}, "Hello world", false},
        {"", {NULL}, "", false},
        {"a|b|c|d", {"bc"}, "a", true},
        {"abc|STOP|def", {"STOP"}, "abc", true},
        {"abcSTOPdef", {"STOP"}, "abc", true},
        {"abcST|OP", {"STOP"}, "abc", true},
        {"abcST|O", {"STOP"}, "abcSTO", false},      /* never completed: it is text after all */
        {"abcSTSTOP", {"STOP"}, "abcST", true},
        {"aaab", {"aab"}, "a", true},                /* the prefix overlaps itself */
        {"STOP", {"STOP"}, "", true},
        {"xyab", {"y", "xyab"}, "x", true},          /* the one complete first */
        {"abc", {"c", "bc"}, "a", true},             /* both complete at c: the longest */
        {"\xE2\x82|\xAC!", {NULL}, "\xE2\x82\xAC!", false},
        {"\xE2|\x82|\xAC", {"\xE2\x82\xAC"}, "", true},
        {"\xE2\x82|A", {NULL}, "\xEF\xBF\xBD\xEF\xBF\xBD" "A", false},
        {"\xE2\x82", {NULL}, "\xEF\xBF\xBD\xEF\xBF\xBD", false},  /* cut off at the end */
        {"a\xFFz", {NULL}, "a\xEF\xBF\xBDz", false},
        {"\xF0\x9F|\x98\x80", {"x"}, "\xF0\x9F\x98\x80", false},
        {"one\n\nUser|:", {"\nUser:", "###"}, "one\n", true},
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        size_t n_stop = 0;
        while (n_stop < 3 && table[i].stop[n_stop]) {
            n_stop++;
        }
        stream s;
        bool stopped;
        run_pieces(table[i].pieces, (char *const *)table[i].stop, n_stop, &s, &stopped);
        assert_string_equal(s.text, table[i].text);
        assert_int_equal(stopped, table[i].stopped);
    }
}

/* Nothing that could begin a stop string is shown early. */
static void test_held_back(void **state) {
    (void)state;
    char end[] = "END", *stop[] = {end};
    const char *text;
    gr_text t;
    gr_text_init(&t, stop, 1, MAX);
    assert_true(gr_text_add(&t, "abE", 3));
    assert_int_equal(gr_text_take(&t, &text), 2);
    assert_true(gr_text_add(&t, "N", 1));
    assert_int_equal(gr_text_take(&t, &text), 0);
    assert_true(gr_text_add(&t, "x", 1));
    assert_int_equal(gr_text_take(&t, &text), 3);
    assert_memory_equal(text, "ENx", 3);
    gr_text_finish(&t);
}

/* ---- the same by the definition, slowly ---------------------------------------------------------------- */

static void replace_invalid(const char *s, size_t n, stream *out) {
    out->length = 0;
    for (size_t i = 0; i < n;) {
        size_t width = gr_utf8_char(s + i, n - i);
        const char *from = width ? s + i : "\xEF\xBF\xBD";
        memcpy(out->text + out->length, from, width ? width : 3);
        out->length += width ? width : 3;
        i += width ? width : 1;
    }
    out->text[out->length] = '\0';
}

static bool expected(const char *s, size_t n, char *const *stop, size_t n_stop, stream *out) {
    for (size_t end = 1; end <= n; end++) {
        size_t longest = 0;
        for (size_t i = 0; i < n_stop; i++) {
            size_t length = strlen(stop[i]);
            if (length <= end && length > longest && memcmp(s + end - length, stop[i], length) == 0) {
                longest = length;
            }
        }
        if (longest) {
            replace_invalid(s, end - longest, out);
            return true;
        }
    }
    replace_invalid(s, n, out);
    return false;
}

static uint32_t seed = 1;
static uint32_t roll(uint32_t n) {
    seed = seed * 1664525u + 1013904223u;
    return (uint32_t)((uint64_t)(seed >> 8) * n >> 24);
}

static void random_case(void) {
    static const char alphabet[] = "ab\xE2\x82\xAC\xC3\xA9";
    char text[64], stops[3][8], *stop[3];
    size_t n = roll(60), n_stop = roll(4);
    for (size_t i = 0; i < n; i++) {
        text[i] = alphabet[roll(sizeof alphabet - 1)];
    }
    for (size_t i = 0; i < n_stop; i++) {
        static const char *const valid[] = {"a", "b", "\xE2\x82\xAC", "\xC3\xA9"};
        stop[i] = stops[i];
        stops[i][0] = '\0';
        for (uint32_t left = 1 + roll(2); left > 0; left--) {
            strcat(stops[i], valid[roll(4)]);
        }
    }
    stream want, got = {.length = 0};
    bool stopped = expected(text, n, stop, n_stop, &want);
    gr_text t;
    gr_text_init(&t, stop, n_stop, MAX);
    for (size_t at = 0; at < n;) {
        size_t piece = 1 + roll(5);
        piece = piece < n - at ? piece : n - at;
        assert_true(gr_text_add(&t, text + at, piece));
        take(&t, &got);
        at += piece;
    }
    assert_true(gr_text_end(&t));
    take(&t, &got);
    assert_int_equal(t.stopped, stopped);
    assert_int_equal(got.length, want.length);
    assert_memory_equal(got.text, want.text, want.length);
    gr_text_finish(&t);
}

static void test_any_cut_gives_the_same(void **state) {
    (void)state;
    for (int i = 0; i < 20000; i++) {
        random_case();
    }
}

static void test_bounds(void **state) {
    (void)state;
    uint64_t blocks = gr_memory_blocks();
    gr_text t;
    gr_text_init(&t, NULL, 0, 8);
    assert_true(gr_text_add(&t, "12345678", 8));
    assert_false(gr_text_add(&t, "9", 1));
    gr_text_finish(&t);
    for (uint64_t n = 1; n < 20; n++) {
        gr_text_init(&t, NULL, 0, MAX);
        gr_memory_fail_at(n, 1);
        bool ok = gr_text_add(&t, "abc", 3) && gr_text_add(&t, "\xFF\xFF", 2) && gr_text_end(&t);
        gr_memory_fail_at(0, 0);
        assert_int_equal(ok, n > 2);
        gr_text_finish(&t);
    }
    assert_int_equal(gr_memory_blocks(), blocks);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_table),
        cmocka_unit_test(test_held_back),
        cmocka_unit_test(test_any_cut_gives_the_same),
        cmocka_unit_test(test_bounds),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
