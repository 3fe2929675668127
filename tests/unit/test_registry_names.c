/* What may be a name, and what a file's name becomes. */
#include "registry_support.h"

#include "registry/names.h"

#define LONG_127 \
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaabbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"

static void names_that_are_allowed(void **state) {
    (void)state;
    static const char *const names[] = {"a", "Z", "0", "_", "-", "alder", "Alder", "a.b", ".a", "..a", "a..", "...", "v1.2_x-y",
                                        LONG_127, LONG_127 "c", "CON", "default"};
    assert_int_equal(strlen(LONG_127), 127);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        good(gr_name_check(names[i], "project", &err));
    }
}

static void names_that_are_not(void **state) {
    (void)state;
    static const char *const names[] = {
        "", ".", "..", "/", "a/b", "../a", "/etc/passwd", "a\\b", "..\\a", "%2e%2e", "%2e%2e%2f", "a b", " a", "a ", "a\n", "\na",
        "a\tb", "\x1b[31mred\x1b[0m", "\x7f", "\x01", "a:b", "a@b", "a*", "a?", "a|b", "a;rm -rf", "$HOME", "`id`", "a'b", "a\"b",
        "caf\xc3\xa9", "\xe2\x80\xae" "abc", "\xef\xbb\xbf" "a", "\xc0\xae\xc0\xae", "\xed\xa0\x80", "\xff", "\xf0\x9f\x8c\xb3",
        "\xd0\xb0lder" /* Cyrillic a */, "a\xcc\x81", LONG_127 "cd", LONG_127 LONG_127 LONG_127};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        bad(GRAFT_E_BAD_NAME, "a name is 1 to 128", gr_name_check(names[i], "project", &err));
        graft_error err;
        gr_name_check(names[i], "project", &err);
        for (const char *c = err.message; *c; c++) {
            assert_true((unsigned char)*c >= 0x20 && *c != 0x7f);
        }
        assert_null(strstr(err.message, "\xe2\x80\xae"));
    }
    bad(GRAFT_E_BAD_NAME, "", gr_name_check(NULL, "adapter", &err));
    /* A NUL ends a C string, but where a length is given it is just one more byte that is not allowed. */
    assert_false(gr_name_valid("a\0b", 3));
    assert_true(gr_name_valid("a\0b", 1));
}

/* The byte table as a whole: exactly 65 bytes are allowed. */
static void each_byte(void **state) {
    (void)state;
    int n = 0;
    for (int c = 0; c < 256; c++) {
        char name[2] = {'x', (char)c};
        n += gr_name_valid(name, 2);
    }
    assert_int_equal(n, 26 + 26 + 10 + 3);
}

static void names_from_files(void **state) {
    (void)state;
    static const struct {
        const char *file, *name;
    } table[] = {
        {"alder", "alder"},      {"my project", "my-project"}, {"a:b@c", "a-b-c"}, {"(x)", "-x-"}, {"v1.2", "v1.2"},
        {"a/b", "a-b"},          {"caf\xc3\xa9", NULL},        {"a\nb", NULL},     {"", NULL},     {".", NULL},
        {"..", NULL},            {"   ", NULL},                {"...", NULL},      {"\x1b[1m", NULL},
        {LONG_127 "cd", NULL},   {LONG_127 "c", LONG_127 "c"}, {"\xe2\x80\xae" "a", NULL},
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        char out[GR_NAME_MAX + 1] = "untouched";
        if (table[i].name) {
            good(gr_name_from_file(out, table[i].file, strlen(table[i].file), &err));
            assert_string_equal(out, table[i].name);
            good(gr_name_check(out, "project", &err));
        } else {
            bad(GRAFT_E_BAD_NAME, "", gr_name_from_file(out, table[i].file, strlen(table[i].file), &err));
            assert_string_equal(out, "untouched");
        }
    }
}

/* Every door refuses a hostile name with the same code, and before any file is looked at. */
static void every_door(void **state) {
    (void)state;
    test_dir d = test_dir_make();
    gr_registry *r = support_open(&d);
    const char *path = support_adapter(&d, "a", 0);
    gr_catalog c = gr_registry_catalog(r);
    gr_catalog_entry e;
    graft_registered_list *rows;
    graft_project_list *projects;
    graft_event_list *events;
    static const char *const names[] = {"", "..", "../x", "a\n", "%2e", "\xff"};
    good(gr_registry_project_add(r, "good", &err));
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        const char *n = names[i];
        bad(GRAFT_E_BAD_NAME, "", gr_registry_project_add(r, n, &err));
        bad(GRAFT_E_BAD_NAME, "", gr_registry_project_rename(r, n, "x", &err));
        bad(GRAFT_E_BAD_NAME, "", gr_registry_project_rename(r, "good", n, &err));
        bad(GRAFT_E_BAD_NAME, "", gr_registry_project_remove(r, n, &err));
        bad(GRAFT_E_BAD_NAME, "", gr_registry_adapter_add(r, n, NULL, path, GRAFT_ADD_PROJECT, &err));
        bad(GRAFT_E_BAD_NAME, "", gr_registry_adapter_add(r, "good", n, "/nowhere", 0, &err));
        bad(GRAFT_E_BAD_NAME, "", gr_registry_adapter_remove(r, n, "x", &err));
        bad(GRAFT_E_BAD_NAME, "", gr_registry_adapter_remove(r, "good", n, &err));
        bad(GRAFT_E_BAD_NAME, "", gr_registry_adapter_pin(r, "good", n, true, &err));
        bad(GRAFT_E_BAD_NAME, "", gr_registry_adapter_reload(r, "good", n, NULL, &err));
        bad(GRAFT_E_BAD_NAME, "", gr_registry_adapter_list(&rows, r, n, NULL, &err));
        bad(GRAFT_E_BAD_NAME, "", gr_registry_project_list(&projects, r, n, &err));
        bad(GRAFT_E_BAD_NAME, "", gr_registry_event_list(&events, r, "good", n, 1, &err));
        bad(GRAFT_E_BAD_NAME, "", c.find(c.self, n, "default", true, &e, &err));
        bad(GRAFT_E_BAD_NAME, "", c.find(c.self, "good", n, true, &e, &err));
    }
    assert_int_equal(support_count(r), 0);
    gr_registry_close(r);
    support_remove(&d);
}

/* Names that differ in case only are two, and never one for the other. */
static void case_matters(void **state) {
    (void)state;
    test_dir d = test_dir_make();
    gr_registry *r = support_open(&d);
    good(gr_registry_adapter_add(r, "alder", NULL, support_adapter(&d, "a", 0), GRAFT_ADD_PROJECT, &err));
    good(gr_registry_adapter_add(r, "Alder", NULL, support_adapter(&d, "b", 1), GRAFT_ADD_PROJECT, &err));
    gr_catalog_entry small = support_find(r, "alder", "default"), large = support_find(r, "Alder", "default");
    assert_string_not_equal(small.generation, large.generation);
    gr_registry_close(r);
    r = support_open(&d);
    assert_string_equal(support_find(r, "alder", "default").generation, small.generation);
    bad(GRAFT_E_NOT_FOUND, "", gr_registry_project_remove(r, "ALDER", &err));
    gr_registry_close(r);
    support_remove(&d);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(names_that_are_allowed), cmocka_unit_test(names_that_are_not), cmocka_unit_test(each_byte),
        cmocka_unit_test(names_from_files),       cmocka_unit_test(every_door),         cmocka_unit_test(case_matters),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
