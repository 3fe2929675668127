/* The tools at the bottom: errors, UTF-8, buffers, the counting allocator, checked arithmetic, files, lock ranks. */
#define _XOPEN_SOURCE 700 /* realpath */
#include "base/buffer.h"
#include "base/checked.h"
#include "base/error.h"
#include "base/file.h"
#include "base/memory.h"
#include "base/thread.h"
#include "base/utf8.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static void error_codes_are_unique_and_named(void **state) {
    (void)state;
    const int codes[] = {
#define X(number, id, name, http, text) number,
        GRAFT_ERRORS(X)
#undef X
    };
    size_t n = sizeof codes / sizeof *codes;
    for (size_t i = 0; i < n; i++) {
        assert_true(codes[i] < 0);
        assert_string_not_equal(graft_error_name(codes[i]), "unknown");
        assert_in_range(graft_error_http(codes[i]), 400, 599);
        for (size_t j = 0; j < i; j++) {
            assert_int_not_equal(codes[i], codes[j]);
            assert_string_not_equal(graft_error_name(codes[i]), graft_error_name(codes[j]));
        }
    }
    assert_string_equal(graft_error_name(-9999), "unknown");
    assert_int_equal(graft_error_http(-9999), 500);
}

static void messages_hold_one_printable_line(void **state) {
    (void)state;
    graft_error err;
    assert_int_equal(gr_fail(&err, GRAFT_E_HOLE, "a\nb\x1b[31m%s", "c\r"), GRAFT_E_HOLE);
    assert_string_equal(err.message, "a?b?[31mc?");
    assert_int_equal(gr_fail(NULL, GRAFT_E_HOLE, "nobody listens"), GRAFT_E_HOLE);
}

/* What is longer than its place is cut between characters: it is shown as JSON, which has to be UTF-8. */
static void what_is_too_long_ends_with_a_whole_character(void **state) {
    (void)state;
    graft_error err;
    gr_report r;
    gr_report_init(&r);
    char text[2000];
    for (size_t shift = 0; shift < 3; shift++) {
        memset(text, 'a', shift);
        for (size_t at = shift; at + 4 < sizeof text; at += 3) {
            memcpy(text + at, "\xe2\x82\xac", 4);
        }
        gr_fail(&err, GRAFT_E_HOLE, "%s", text);
        gr_report_error(&r, GRAFT_E_HOLE, text, "%s", text);
        assert_true(gr_utf8_valid(err.message, strlen(err.message)));
        assert_true(strlen(err.message) > sizeof err.message - 4);
        assert_true(gr_utf8_valid(r.reasons[shift].where, strlen(r.reasons[shift].where)));
        assert_true(strlen(r.reasons[shift].where) > sizeof r.reasons[shift].where - 4);
    }
    gr_report_finish(&r);
}

static void quoting_disarms_what_terminals_obey(void **state) {
    (void)state;
    const struct { const char *in; size_t length; const char *out; } cases[] = {
        {"plain", 5, "plain"},
        {"gr\xc3\xbc\xc3\x9f", 6, "gr\xc3\xbc\xc3\x9f"},
        {"\x1b[2J", 4, "\\x1b[2J"},
        {"a\0b", 3, "a\\x00b"},
        {"\xff\xfe", 2, "\\xff\\xfe"},
        {"\xc2\x9b", 2, "\\xc2\\x9b"},             /* C1: one-byte CSI */
        {"\xe2\x80\xae", 3, "\\xe2\\x80\\xae"},     /* right-to-left override */
        {"\xe2\x82", 2, "\\xe2\\x82"},             /* cut off */
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char out[GR_QUOTE_SIZE];
        assert_string_equal(gr_quote(out, cases[i].in, cases[i].length), cases[i].out);
    }
    char longest[100], out[GR_QUOTE_SIZE];
    memset(longest, '\x01', sizeof longest);
    gr_quote(out, longest, sizeof longest);
    assert_true(strlen(out) < GR_QUOTE_SIZE);
    assert_string_equal(out + strlen(out) - strlen("…"), "…");
}

static void paths_are_quoted_whole_or_from_their_end(void **state) {
    (void)state;
    char out[GR_QUOTE_PATH_SIZE], path[1000] = "/a/b\x1b/c";
    assert_string_equal(gr_quote_path(out, path), "/a/b\\x1b/c");
    memset(path, 'd', GR_QUOTE_PATH_SHOWN);
    assert_string_equal(gr_quote_path(out, path), path);
    memset(path, 'd', sizeof path - 1);
    memcpy(path + sizeof path - 5, "/end", 5);
    gr_quote_path(out, path);
    assert_int_equal(strlen(out), strlen("…") + GR_QUOTE_PATH_SHOWN);
    assert_string_equal(out + strlen(out) - 6, "dd/end");
    for (size_t n = 0; n < sizeof path - 2; n++) { /* characters are not cut, and there is room for a reason */
        snprintf(path, sizeof path, "%.*s", (int)n, "");
        for (size_t i = 0; i + 2 < n; i += 2) {
            memcpy(path + i, n % 2 ? "ä" : "\x01\x02", 3);
        }
        gr_quote_path(out, path);
        assert_true(strlen(out) <= GR_QUOTE_PATH_SHOWN + 8);
        assert_true(gr_utf8_valid(out, strlen(out)));
        assert_null(strstr(out, "\\xc3"));
    }
}

static void reports_keep_all_and_count_what_is_beyond(void **state) {
    (void)state;
    gr_report r;
    graft_error err;
    gr_report_init(&r);
    gr_report_warn(&r, GRAFT_E_BAD_ALPHA, "lora_alpha", "is negative");
    assert_int_equal(gr_report_result(&r, &err), 0);
    for (int i = 0; i < GR_REPORT_MAX + 5; i++) {
        gr_report_error(&r, GRAFT_E_WRONG_SHAPE, "t", "number %d", i);
    }
    assert_int_equal(r.n, GR_REPORT_MAX);
    assert_int_equal(gr_report_result(&r, &err), GRAFT_E_WRONG_SHAPE);
    assert_string_equal(err.message, "t: number 0 (and 1004 more)");
    gr_report_finish(&r);
}

static void utf8_follows_the_rfc(void **state) {
    (void)state;
    const struct { const char *s; size_t width; } cases[] = {
        {"a", 1}, {"\xc3\xa9", 2}, {"\xe2\x82\xac", 3}, {"\xf0\x9f\x98\x80", 4},
        {"\x80", 0}, {"\xc0\xaf", 0}, {"\xc1\xbf", 0}, {"\xe0\x80\xaf", 0}, {"\xed\xa0\x80", 0},
        {"\xf0\x80\x80\x80", 0}, {"\xf4\x90\x80\x80", 0}, {"\xf5\x80\x80\x80", 0}, {"\xe2\x82", 0}, {"\xe2(\xa1", 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        assert_int_equal(gr_utf8_char(cases[i].s, strlen(cases[i].s)), cases[i].width);
    }
    assert_int_equal(gr_utf8_char("", 0), 0);
    assert_true(gr_utf8_valid("a\xc3\xa9z", 4));
    assert_false(gr_utf8_valid("a\xc3", 2));
}

/* Streaming: whatever the cut, the parts put together give the whole, and no part ends inside a character. */
static void utf8_complete_never_splits_a_character(void **state) {
    (void)state;
    const char text[] = "a\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80z";
    size_t length = sizeof text - 1;
    for (size_t cut = 0; cut <= length; cut++) {
        size_t sent = gr_utf8_complete(text, cut);
        assert_true(sent <= cut && cut - sent < 4);
        assert_true(gr_utf8_valid(text, sent));
    }
    assert_int_equal(gr_utf8_complete("\xff\xff", 2), 2);     /* invalid is not incomplete */
    assert_int_equal(gr_utf8_complete("\x80\x80\x80\x80", 4), 4);
    assert_int_equal(gr_utf8_complete("a\xed\xa0", 3), 3);    /* can never become a character */
}

static void buffer_keeps_to_its_maximum(void **state) {
    (void)state;
    gr_buffer b;
    gr_buffer_init(&b, 10);
    assert_true(gr_buffer_puts(&b, "hello"));
    assert_true(gr_buffer_printf(&b, "%d", 12345));
    assert_false(gr_buffer_append(&b, "x", 1));
    assert_true(b.failed);
    assert_string_equal(b.data, "hello12345");
    assert_false(gr_buffer_append(&b, "", 0));
    gr_buffer_clear(&b);
    assert_true(gr_buffer_puts(&b, "abcdef"));
    gr_buffer_drop(&b, 2);
    assert_string_equal(b.data, "cdef");
    gr_buffer_drop(&b, 99);
    assert_string_equal(b.data, "");
    gr_buffer_finish(&b);
}

static void memory_counts_and_fails_on_demand(void **state) {
    (void)state;
    uint64_t bytes = gr_memory_bytes(), blocks = gr_memory_blocks();
    char *p = gr_alloc(100);
    void *q = gr_alloc_aligned(1000);
    assert_int_equal((uintptr_t)q % 64, 0);
    assert_int_equal(gr_memory_bytes(), bytes + 1100);
    memset(p, 7, 100);
    p = gr_realloc(p, 200);
    assert_int_equal(p[99], 7);
    assert_int_equal(gr_memory_bytes(), bytes + 1200);
    assert_null(gr_calloc(SIZE_MAX / 2, 3));
    assert_null(gr_alloc(SIZE_MAX - 8));

    gr_memory_fail_at(2, 0);
    void *first = gr_alloc(1), *second = gr_alloc(1), *third = gr_alloc(1);
    assert_non_null(first);
    assert_null(second);
    assert_non_null(third);
    assert_int_equal(gr_memory_fail_at(1, 1), 3);
    assert_null(gr_alloc(1));
    assert_null(gr_realloc(p, 300));
    gr_memory_fail_at(0, 0);

    gr_free(first);
    gr_free(third);
    gr_free(p);
    gr_free(q);
    gr_free(NULL);
    assert_int_equal(gr_memory_bytes(), bytes);
    assert_int_equal(gr_memory_blocks(), blocks);
}

static void checked_arithmetic_refuses_to_wrap(void **state) {
    (void)state;
    uint64_t u = 1;
    assert_true(gr_add_u64(&u, UINT64_MAX - 1, 1));
    assert_int_equal(u, UINT64_MAX);
    assert_false(gr_add_u64(&u, UINT64_MAX, 1));
    assert_false(gr_mul_u64(&u, UINT64_C(1) << 32, UINT64_C(1) << 32));
    assert_true(gr_mul_u64(&u, 0, UINT64_MAX));
    assert_int_equal(u, 0);
    assert_true(gr_pad_u64(&u, 33, 32));
    assert_int_equal(u, 64);
    assert_false(gr_pad_u64(&u, UINT64_MAX - 3, 32));
}

static char folder[] = "/tmp/graft-test-XXXXXX";

static int make_folder(void **state) {
    (void)state;
    return mkdtemp(folder) ? 0 : -1;
}

static int remove_folder(void **state) {
    (void)state;
    return rmdir(folder);
}

static const char *inside(const char *name) {
    static char path[256];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return path;
}

static void write_file(const char *path, const char *text, size_t length) {
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(text, 1, length, f), length);
    fclose(f);
}

static void files_are_read_whole_or_refused(void **state) {
    (void)state;
    graft_error err;
    char *data = NULL;
    size_t length = 0;
    write_file(inside("f"), "abc", 3);
    assert_int_equal(gr_file_read_all(&data, &length, AT_FDCWD, inside("f"), 3, &err), 0);
    assert_int_equal(length, 3);
    assert_string_equal(data, "abc");
    gr_free(data);
    assert_int_equal(gr_file_read_all(&data, &length, AT_FDCWD, inside("f"), 2, &err), GRAFT_E_TOO_LARGE);
    unlink(inside("f"));
    assert_int_equal(gr_file_read_all(&data, &length, AT_FDCWD, inside("f"), 2, &err), GRAFT_E_ADAPTER_FILE_MISSING);
    assert_int_equal(gr_file_read_all(&data, &length, AT_FDCWD, folder, 2, &err), GRAFT_E_NOT_REGULAR_FILE);
    assert_int_equal(gr_file_read_all(&data, &length, AT_FDCWD, "/dev/zero", 2, &err), GRAFT_E_NOT_REGULAR_FILE);
    assert_int_equal(mkfifo(inside("fifo"), 0600), 0); /* must not wait for a writer */
    assert_int_equal(gr_file_read_all(&data, &length, AT_FDCWD, inside("fifo"), 2, &err), GRAFT_E_NOT_REGULAR_FILE);
    unlink(inside("fifo"));
}

/* Whatever the path said when it was looked at: the file that is open decides. */
static void an_open_file_knows_where_it_lies(void **state) {
    (void)state;
    graft_error err;
    gr_file f;
    char root[PATH_MAX], below[PATH_MAX + 4], beside[PATH_MAX + 4];
    assert_non_null(realpath(folder, root));
    snprintf(below, sizeof below, "%s/in", root);
    snprintf(beside, sizeof beside, "%s-x", root); /* begins as the root does */
    assert_int_equal(mkdir(below, 0700), 0);
    assert_int_equal(mkdir(beside, 0700), 0);
    write_file(inside("in/f"), "abc", 3);
    write_file(inside("out"), "abc", 3);
    assert_int_equal(symlink("in/f", inside("to-in")), 0);
    assert_int_equal(symlink("../out", inside("in/to-out")), 0);
    const struct {
        const char *path, *root;
        int code;
    } cases[] = {{"in/f", root, 0}, {"in/f", below, 0}, {"to-in", below, 0}, {"in/f", "/", 0},
                 {"out", below, GRAFT_E_OUTSIDE_ROOT}, {"in/to-out", below, GRAFT_E_OUTSIDE_ROOT}, {"in/f", beside, GRAFT_E_OUTSIDE_ROOT}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        assert_int_equal(gr_file_open(&f, AT_FDCWD, inside(cases[i].path), &err), 0);
        assert_int_equal(gr_file_below(&f, cases[i].root, &err), cases[i].code);
        gr_file_close(&f);
    }
    rmdir(beside);
    unlink(inside("in/to-out"));
    unlink(inside("to-in"));
    unlink(inside("out"));
    unlink(inside("in/f"));
    rmdir(below);
}

/* What may pass is not said to be the file's fault: the loader tries again then. */
static void files_that_cannot_be_opened_now(void **state) {
    (void)state;
    const struct {
        int why, code;
    } cases[] = {{ENOENT, GRAFT_E_ADAPTER_FILE_MISSING}, {ENOTDIR, GRAFT_E_ADAPTER_FILE_MISSING}, {EACCES, GRAFT_E_NOT_READABLE},
                 {ELOOP, GRAFT_E_NOT_READABLE}, {ENXIO, GRAFT_E_NOT_REGULAR_FILE}, {EIO, GRAFT_E_IO_ERROR}, {ENFILE, GRAFT_E_IO_ERROR},
                 {EAGAIN, GRAFT_E_IO_ERROR}, {ENOMEM, GRAFT_E_OUT_OF_MEMORY}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        assert_int_equal(gr_open_code(cases[i].why), cases[i].code);
    }
    graft_error err;
    gr_file f;
    struct rlimit before, none;
    char words[300];
    write_file(inside("f"), "abc", 3);
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &before), 0);
    none = (struct rlimit){.rlim_cur = 0, .rlim_max = before.rlim_max};
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &none), 0);
    int rc = gr_file_open(&f, AT_FDCWD, inside("f"), &err);
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &before), 0);
    assert_int_equal(rc, GRAFT_E_IO_ERROR);
    snprintf(words, sizeof words, "%s: cannot be opened: ", inside("f"));
    assert_ptr_equal(strstr(err.message, words), err.message);
    unlink(inside("f"));
    assert_int_equal(gr_file_open(&f, AT_FDCWD, inside("f"), &err), GRAFT_E_ADAPTER_FILE_MISSING);
    snprintf(words, sizeof words, "%s: does not exist", inside("f"));
    assert_string_equal(err.message, words);
}

static void files_that_change_are_noticed(void **state) {
    (void)state;
    graft_error err;
    gr_file f;
    char bytes[3];
    write_file(inside("f"), "abc", 3);
    assert_int_equal(gr_file_open(&f, AT_FDCWD, inside("f"), &err), 0);
    assert_int_equal(gr_file_read(&f, bytes, 3, 0, &err), 0);
    assert_int_equal(gr_file_unchanged(&f, &err), 0);
    assert_int_equal(truncate(inside("f"), 2), 0);
    assert_int_equal(gr_file_read(&f, bytes, 3, 0, &err), GRAFT_E_CHANGED_WHILE_READING);
    assert_int_equal(gr_file_unchanged(&f, &err), GRAFT_E_CHANGED_WHILE_READING);
    gr_file_close(&f);
    gr_file_close(&f);
    unlink(inside("f"));
}

#ifndef NDEBUG
static void wrong_lock_order_aborts(void **state) {
    (void)state;
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        int null = open("/dev/null", O_WRONLY);
        dup2(null, 2);
        signal(SIGABRT, SIG_DFL);
        gr_mutex low, high;
        gr_mutex_init(&low, GR_RANK_ENGINE_QUEUE);
        gr_mutex_init(&high, GR_RANK_JOB);
        gr_mutex_lock(&high);
        gr_mutex_lock(&low);
        _exit(0);
    }
    int status;
    waitpid(child, &status, 0);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
}
#endif

static void cores_are_counted(void **state) {
    (void)state;
    assert_in_range(gr_physical_cores(), 1, sysconf(_SC_NPROCESSORS_CONF));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(error_codes_are_unique_and_named),
        cmocka_unit_test(messages_hold_one_printable_line),
        cmocka_unit_test(what_is_too_long_ends_with_a_whole_character),
        cmocka_unit_test(quoting_disarms_what_terminals_obey),
        cmocka_unit_test(paths_are_quoted_whole_or_from_their_end),
        cmocka_unit_test(reports_keep_all_and_count_what_is_beyond),
        cmocka_unit_test(utf8_follows_the_rfc),
        cmocka_unit_test(utf8_complete_never_splits_a_character),
        cmocka_unit_test(buffer_keeps_to_its_maximum),
        cmocka_unit_test(memory_counts_and_fails_on_demand),
        cmocka_unit_test(checked_arithmetic_refuses_to_wrap),
        cmocka_unit_test_setup_teardown(files_are_read_whole_or_refused, make_folder, NULL),
        cmocka_unit_test(an_open_file_knows_where_it_lies),
        cmocka_unit_test(files_that_cannot_be_opened_now),
        cmocka_unit_test_setup_teardown(files_that_change_are_noticed, NULL, remove_folder),
#ifndef NDEBUG
        cmocka_unit_test(wrong_lock_order_aborts),
#endif
        cmocka_unit_test(cores_are_counted),
    };
    return cmocka_run_group_tests_name("base", tests, NULL, NULL);
}
