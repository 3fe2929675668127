/* src/format/json: which texts are JSON, and which code the others get. */
#include "format_helpers.h"

#include "format/json.h"

#include <locale.h>

typedef struct text_case {
    const char *text;
    size_t length; /* 0 = strlen */
    int code;
} text_case;

static int parse_copy(json_t **out, const char *text, size_t length, graft_error *err) {
    char *copy = exact_copy(text, length);
    int code = gr_json_parse(out, copy, length, "test.json", err);
    free(copy);
    return code;
}

static void run(const text_case *cases, size_t n) {
    for (size_t i = 0; i < n; i++) {
        graft_error err = {0};
        json_t *untouched = (void *)&err, *v = untouched;
        size_t length = cases[i].length ? cases[i].length : strlen(cases[i].text);
        int code = parse_copy(&v, cases[i].text, length, &err);
        expect_code(cases[i].text, code, cases[i].code, &err);
        if (code) {
            assert_ptr_equal(v, untouched);
        } else {
            json_decref(v);
        }
    }
}

#define COUNT(a) (sizeof(a) / sizeof *(a))

static void accepts(void **state) {
    (void)state;
    static const text_case cases[] = {
        {"{}", 0, 0},
        {"[]", 0, 0},
        {" \t\r\n[1 , 2]\n ", 0, 0},
        {"null", 0, 0},
        {"-0", 0, 0},
        {"\"a\"", 0, 0},
        {"1e3", 0, 0},
        {"1E-7", 0, 0},
        {"0.1", 0, 0},
        {"9223372036854775807", 0, 0},
        {"-9223372036854775808", 0, 0},
        {"1e308", 0, 0},
        {"\"\\u0041\\ud83d\\ude00 \\\\ \\\" \\/ \\b\\f\\n\\r\\t\"", 0, 0},
        {"\"\xf4\x8f\xbf\xbf\xc3\xa9\x7f\"", 0, 0},
        {"{\"\":1,\"a\":{\"a\":1}}", 0, 0},
        {"\"[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[\"", 0, 0},
        {"{\"a\":\"\\\\\",\"b\":[\"{\"]}", 0, 0},
        {"[\"\\ud83d\\ude00\",\"[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[\"]", 0, 0},
        {"[\"\\u00e9\",\"[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[\"]", 0, 0},
    };
    run(cases, COUNT(cases));
}

static void rejects_syntax(void **state) {
    (void)state;
    static const char *const texts[] = {
        "",          " ",          "{",          "[",           "[1",         "[1,",         "[1,]",        "{\"a\":1,}",
        "{\"a\"}",   "{\"a\":}",   "{a:1}",      "{'a':1}",     "[1 2]",      "{\"a\" 1}",   "01",          "+1",
        ".5",        "1.",         "1e",         "1e+",         "-",          "0x1",         "NaN",         "Infinity",
        "-Infinity", "nan",        "tru",        "True",        "nulll",      "\"a",         "\"\\\"",      "\"\\x41\"",
        "\"\\u12\"", "\"\\u12g4\"", "\"\\",      "\"\\u",       "\"a\nb\"",   "\"\tb\"",     "// c\n1",     "/* c */ 1",
        "{} {}",     "1 1",        "[]]",        "]",           "}",          "[}",          "{]",          "\xef\xbb\xbf{}",
        "[1]x",      ",",          "[,1]",       "{,}",         ":",          "{1:1}",       "\"\\u00\"",   "[1,,2]",
        "{\"a\":1 \"b\":2}",
    };
    for (size_t i = 0; i < COUNT(texts); i++) {
        text_case c = {texts[i], 0, GRAFT_E_JSON_SYNTAX};
        run(&c, 1);
    }
    static const text_case with_nul[] = {
        {"{}\0", 3, GRAFT_E_JSON_SYNTAX},
        {"\0{}", 3, GRAFT_E_JSON_SYNTAX},
        {"\"a\0b\"", 5, GRAFT_E_JSON_SYNTAX},
        {"1\0", 2, GRAFT_E_JSON_SYNTAX},
    };
    run(with_nul, COUNT(with_nul));
}

static void rejects_encoding(void **state) {
    (void)state;
    static const text_case cases[] = {
        {"\"\xff\"", 0, GRAFT_E_JSON_ENCODING},
        {"\"\xc3\"", 0, GRAFT_E_JSON_ENCODING},
        {"\"\xc0\xaf\"", 0, GRAFT_E_JSON_ENCODING},
        {"\"\xed\xa0\x80\"", 0, GRAFT_E_JSON_ENCODING},
        {"\"\xf4\x90\x80\x80\"", 0, GRAFT_E_JSON_ENCODING},
        {"\"\xe2\x82", 0, GRAFT_E_JSON_ENCODING},
        {"\"\\ud800\"", 0, GRAFT_E_JSON_ENCODING},
        {"\"\\udc00\"", 0, GRAFT_E_JSON_ENCODING},
        {"\"\\ud800\\ud800\"", 0, GRAFT_E_JSON_ENCODING},
        {"\"\\ud800x\"", 0, GRAFT_E_JSON_ENCODING},
        {"\"\\ud800\\ue000\"", 0, GRAFT_E_JSON_ENCODING},
        {"\"\\ud800\\udbff\"", 0, GRAFT_E_JSON_ENCODING},
        {"\"\\ud800\\n\"", 0, GRAFT_E_JSON_ENCODING},
        {"\"\\uD83D\\", 0, GRAFT_E_JSON_ENCODING},
        {"\"\\u0000\"", 0, GRAFT_E_JSON_ENCODING},
        {"{\"a\\u0000\":1}", 0, GRAFT_E_JSON_ENCODING},
    };
    run(cases, COUNT(cases));
}

static void rejects_ranges_and_duplicates(void **state) {
    (void)state;
    static const text_case cases[] = {
        {"1e400", 0, GRAFT_E_OUT_OF_RANGE},
        {"-1e400", 0, GRAFT_E_OUT_OF_RANGE},
        {"9223372036854775808", 0, GRAFT_E_OUT_OF_RANGE},
        {"-9223372036854775809", 0, GRAFT_E_OUT_OF_RANGE},
        {"18446744073709551616", 0, GRAFT_E_OUT_OF_RANGE},
        {"{\"a\":1,\"a\":1}", 0, GRAFT_E_JSON_DUPLICATE_KEY},
        {"{\"a\":1,\"\\u0061\":1}", 0, GRAFT_E_JSON_DUPLICATE_KEY},
        {"[{\"x\":{\"b\":1,\"c\":2,\"b\":3}}]", 0, GRAFT_E_JSON_DUPLICATE_KEY},
    };
    run(cases, COUNT(cases));
    char digits[5001];
    memset(digits, '7', 5000);
    digits[5000] = '\0';
    text_case huge = {digits, 0, GRAFT_E_OUT_OF_RANGE};
    run(&huge, 1);
}

static char *repeat(const char *unit, size_t times, const char *tail) {
    size_t n = strlen(unit), m = strlen(tail);
    char *text = malloc(n * times + m + 1);
    assert_non_null(text);
    for (size_t i = 0; i < times; i++) {
        memcpy(text + i * n, unit, n);
    }
    memcpy(text + n * times, tail, m + 1);
    return text;
}

static void expect_repeat(const char *unit, size_t times, const char *tail, int wanted) {
    char *text = repeat(unit, times, tail);
    graft_error err = {0};
    json_t *v = NULL;
    int code = parse_copy(&v, text, strlen(text), &err);
    expect_code(unit, code, wanted, &err);
    json_decref(v);
    free(text);
}

static void bounds_depth(void **state) {
    (void)state;
    char *close = repeat("]", 64, ""), *more = repeat("]", 65, "");
    expect_repeat("[", 64, close, 0);
    expect_repeat("[", 65, more, GRAFT_E_JSON_TOO_DEEP);
    expect_repeat("[", 100000, "", GRAFT_E_JSON_TOO_DEEP);
    expect_repeat("{\"a\":", 100000, "", GRAFT_E_JSON_TOO_DEEP);
    expect_repeat("[],", 1000, "1", GRAFT_E_JSON_SYNTAX); /* wide is not deep */
    free(close);
    free(more);
}

static void bounds_size(void **state) {
    (void)state;
    char *arrays = repeat("[],", GR_JSON_MAX_CONTAINERS - 2, "[]]"), *text = repeat("[", 1, arrays);
    graft_error err = {0};
    json_t *v = NULL;
    expect_code("just enough arrays", gr_json_parse(&v, text, strlen(text), "t", &err), 0, &err);
    json_decref(v);
    free(text);
    free(arrays);
    expect_repeat("[],", GR_JSON_MAX_CONTAINERS + 1, "", GRAFT_E_JSON_TOO_LARGE);
    expect_repeat("{},", GR_JSON_MAX_CONTAINERS + 1, "", GRAFT_E_JSON_TOO_LARGE);
    expect_repeat("1,", GR_JSON_MAX_VALUES + 1, "", GRAFT_E_JSON_TOO_LARGE);
    expect_repeat(" ", GR_JSON_MAX_BYTES, "1", GRAFT_E_JSON_TOO_LARGE);
    expect_repeat(" ", GR_JSON_MAX_BYTES - 1, "1", 0);
}

static void messages_say_where(void **state) {
    (void)state;
    graft_error err = {0};
    json_t *v;
    gr_json_parse(&v, "{\"a\":1,\n\"b\": tru}", 17, "adapter_config.json", &err);
    assert_non_null(strstr(err.message, "adapter_config.json: byte 16"));
    gr_json_parse(&v, "{\"x\":1,\"key\":1,\"key\":2}", 23, "t", &err);
    assert_non_null(strstr(err.message, "\"key\""));
    assert_non_null(strstr(err.message, "byte 16"));
    gr_json_parse(&v, "[\"\x1b[31m\",\xff]", 10, "t", &err);
    assert_null(strchr(err.message, 0x1b));
}

static void locates_the_second_key(void **state) {
    (void)state;
    const char *text = "{\"a\":{\"b\":[{}]},\"c\\\"d\":1,\"c\\\"d\":2}";
    gr_json_fault fault;
    graft_error err;
    json_t *v;
    int code = gr_json_parse_with_fault(&v, text, strlen(text), "t", &fault, &err);
    assert_int_equal(code, GRAFT_E_JSON_DUPLICATE_KEY);
    assert_int_equal(fault.depth, 1);
    assert_int_equal(fault.key_length, 4);
    assert_ptr_equal(text + fault.key, strstr(text, ",\"c\\\"d\":2") + 2);
    const char *inner = "{\"\xc3\xa9\":{\"b\":1,\"b\":2}}";
    code = gr_json_parse_with_fault(&v, inner, strlen(inner), "t", &fault, &err);
    assert_int_equal(code, GRAFT_E_JSON_DUPLICATE_KEY);
    assert_int_equal(fault.depth, 2);
    assert_int_equal(fault.key_length, 1);
}

static void keeps_key_order(void **state) {
    (void)state;
    graft_error err;
    json_t *v, *item;
    const char *key;
    char seen[64] = "";
    const char *text = "{\"zeta\":1,\"a\":2,\"mid\":3,\"b\":4,\"q\":5,\"w\":6,\"e\":7,\"r\":8,\"t\":9}";
    assert_int_equal(gr_json_parse(&v, text, strlen(text), "t", &err), 0);
    json_object_foreach(v, key, item) {
        strcat(seen, key);
    }
    assert_string_equal(seen, "zetaamidbqwert");
    json_decref(v);
}

/* Every prefix of a valid text is an error, and reading it touches nothing behind it. */
static void truncations(void **state) {
    (void)state;
    const char *text = "{\"a\\u00e9\":[1,-2.5e3,true,null,\"\\ud83d\\ude00\xc3\xa9\"],\"b\":{}}";
    for (size_t n = 0; n < strlen(text); n++) {
        graft_error err = {0};
        json_t *v;
        assert_int_not_equal(parse_copy(&v, text, n, &err), 0);
    }
}

static void numbers_ignore_the_locale(void **state) {
    (void)state;
    const char *old = setlocale(LC_NUMERIC, NULL);
    char keep[32];
    strcpy(keep, old ? old : "C");
    if (!setlocale(LC_NUMERIC, "de_DE.UTF-8") && !setlocale(LC_NUMERIC, "fr_FR.UTF-8")) {
        skip();
    }
    graft_error err;
    json_t *v;
    assert_int_equal(gr_json_parse(&v, "1.5", 3, "t", &err), 0);
    assert_true(json_real_value(v) == 1.5);
    json_decref(v);
    setlocale(LC_NUMERIC, keep);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(accepts),
        cmocka_unit_test(rejects_syntax),
        cmocka_unit_test(rejects_encoding),
        cmocka_unit_test(rejects_ranges_and_duplicates),
        cmocka_unit_test(bounds_depth),
        cmocka_unit_test(bounds_size),
        cmocka_unit_test(messages_say_where),
        cmocka_unit_test(locates_the_second_key),
        cmocka_unit_test(keeps_key_order),
        cmocka_unit_test(truncations),
        cmocka_unit_test(numbers_ignore_the_locale),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
