/* The copy beside the file: when it is made, what it survives, and going back to it. */
#include "registry_support.h"

#include "base/file.h"
#include "registry/state.h"

static void add(gr_registry *r, int from, int to) {
    for (int i = from; i < to; i++) {
        char name[16];
        snprintf(name, sizeof name, "p%03d", i);
        good(gr_registry_project_add(r, name, &err));
    }
}

/* 30 projects, one with an adapter. */
static void make_registry(const test_dir *d) {
    gr_registry *r = support_open(d);
    add(r, 0, 30);
    good(gr_registry_adapter_add(r, "p000", NULL, support_adapter(d, "a", 0), 0, &err));
    gr_registry_close(r);
}

static bool there(const test_dir *d, const char *name) {
    return access(test_path(d, name), F_OK) == 0;
}

static graft_registry_condition examine(const test_dir *d) {
    graft_registry_options o = support_options(d);
    graft_registry_condition c;
    good(gr_registry_examine(&c, &o, &err));
    return c;
}

static char *read_file(const test_dir *d, const char *name, size_t *n) {
    char *bytes;
    good(gr_file_read_all(&bytes, n, AT_FDCWD, test_path(d, name), 64 << 20, &err));
    return bytes;
}

static void when_it_is_made(void **state) {
    (void)state;
    test_dir d = test_dir_make();
    gr_registry_close(support_open(&d)); /* made, never changed */
    assert_false(there(&d, "registry.db.backup"));
    make_registry(&d);
    struct stat st;
    assert_int_equal(stat(test_path(&d, "registry.db.backup"), &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    assert_false(there(&d, "registry.db.backup-new"));
    graft_registry_condition c = examine(&d);
    assert_int_equal(c.registry.error.code, 0);
    assert_int_equal(c.backup.error.code, 0);
    assert_int_equal(c.backup.projects, 30);
    assert_int_equal(c.backup.adapters, 1);
    assert_true(c.backup.written > 1600000000);
    ino_t inode = st.st_ino;
    gr_registry_close(support_open(&d)); /* no change, no new one */
    gr_registry_close(support_open_read_only(&d));
    assert_int_equal(stat(test_path(&d, "registry.db.backup"), &st), 0);
    assert_int_equal(st.st_ino, inode);
    /* While it is open, after so many changes. */
    gr_registry *r = support_open(&d);
    add(r, 30, 30 + GR_BACKUP_EVERY - 1);
    assert_int_equal(examine(&d).backup.projects, 30);
    add(r, 29 + GR_BACKUP_EVERY, 30 + GR_BACKUP_EVERY);
    good(gr_registry_flush(r, &err)); /* whose turn comes after it */
    assert_int_equal(examine(&d).backup.projects, 30 + GR_BACKUP_EVERY);
    gr_registry_close(r);
    support_remove(&d);
}

/* A file that goes bad while it is open must not take the good copy with it. */
static void bad_is_not_copied(void **state) {
    (void)state;
    test_dir d = test_dir_make();
    make_registry(&d);
    gr_registry *r = support_open(&d);
    support_sql(&d, "DELETE FROM projects WHERE name > 'p005'"); /* behind our back */
    good(gr_registry_adapter_pin(r, "p000", NULL, true, &err));
    gr_registry_close(r);
    assert_int_equal(examine(&d).backup.projects, 30);
    assert_int_equal(examine(&d).registry.projects, 6);
    assert_false(there(&d, "registry.db.backup-new"));
    /* Nor may the file that somebody put in its place. */
    r = support_open(&d);
    good(gr_registry_project_add(r, "mine", &err));
    assert_int_equal(rename(test_path(&d, "registry.db.backup"), test_path(&d, "kept")), 0);
    unlink(test_path(&d, "registry.db"));
    gr_registry_close(r);
    assert_false(there(&d, "registry.db.backup"));
    support_remove(&d);
}

static void refused(const test_dir *d, const char *words) {
    support_no_open(d, false, GRAFT_E_REGISTRY_INVALID, words);
    support_no_open(d, true, GRAFT_E_REGISTRY_INVALID, words);
}

static graft_registry_condition recovered(const test_dir *d) {
    graft_registry_options o = support_options(d);
    graft_registry_condition c;
    uint64_t blocks = gr_memory_blocks();
    int fds = test_open_fds();
    good(gr_registry_recover(&c, &o, &err));
    assert_int_equal(gr_memory_blocks(), blocks);
    assert_int_equal(test_open_fds(), fds);
    gr_registry *r = support_open(d);
    assert_true(gr_registry_check(r));
    assert_int_equal(r->index.n, c.backup.projects);
    assert_int_equal(r->index.n_rows, c.backup.adapters);
    gr_registry_close(r);
    return c;
}

static void not_recovered(const test_dir *d, int code, const char *words) {
    graft_registry_options o = support_options(d);
    graft_registry_condition c = {.damaged = "untouched"};
    uint64_t blocks = gr_memory_blocks();
    int fds = test_open_fds();
    bad(code, words, gr_registry_recover(&c, &o, &err));
    assert_string_equal(c.damaged, "untouched");
    assert_int_equal(gr_memory_blocks(), blocks);
    assert_int_equal(test_open_fds(), fds);
}

/* Noise at all sorts of places: either refused, with the way out, or all that was there still is. */
static void damage_anywhere(void **state) {
    (void)state;
    enum { TRIES = 120, ROOM = 512 };
    test_dir d = test_dir_make();
    make_registry(&d);
    size_t n, found = 0;
    char *whole = read_file(&d, "registry.db", &n), *spoilt = gr_alloc(n);
    for (size_t i = 0; i < TRIES; i++) {
        size_t length = 1 + (size_t)((test_value("length", i) + 0.5F) * ROOM) % ROOM;
        size_t at = (size_t)((double)(test_value("at", i) + 0.5F) * (double)(n - ROOM)) % (n - ROOM);
        memcpy(spoilt, whole, n);
        for (size_t k = 0; k < length; k++) {
            spoilt[at + k] = (char)(test_value("noise", i * ROOM + k) * 1000);
        }
        test_write(&d, "registry.db", spoilt, n);
        graft_registry_condition c = examine(&d);
        assert_int_equal(c.backup.projects, 30);
        if (c.registry.error.code == 0) {
            assert_int_equal(c.registry.projects, 30);
            assert_int_equal(c.registry.adapters, 1);
            not_recovered(&d, GRAFT_E_CONFLICT, "nothing to recover");
            continue;
        }
        found++;
        if (c.registry.error.code != GRAFT_E_REGISTRY_INVALID) {
            fail_msg("%s: %s", graft_error_name(c.registry.error.code), c.registry.error.message);
        }
        if (strstr(c.registry.error.message, "is of version")) { /* the number itself was hit */
            continue;
        }
        refused(&d, "`graft registry recover` puts the backup of 20");
        refused(&d, "(30 projects, 1 adapters) in its place: registry.db.backup");
        c = recovered(&d);
        assert_int_equal(c.backup.projects, 30);
        size_t kept;
        char *aside = read_file(&d, c.damaged, &kept); /* nothing was thrown away */
        assert_int_equal(kept, n);
        assert_memory_equal(aside, spoilt, n);
        gr_free(aside);
        unlink(test_path(&d, c.damaged));
        unlink(test_path(&d, "registry.db-wal"));
        unlink(test_path(&d, "registry.db-shm"));
    }
    assert_true(found > TRIES / 10); /* the rest hit free space, which holds nothing */
    gr_free(spoilt);
    gr_free(whole);
    support_remove(&d);
}

static void cut_short_or_gone(void **state) {
    (void)state;
    test_dir d = test_dir_make();
    make_registry(&d);
    size_t n;
    char *whole = read_file(&d, "registry.db", &n);
    for (size_t length = 0; length <= n - 4096; length += n / 7) {
        test_write(&d, "registry.db", whole, length);
        refused(&d, "graft registry recover");
        recovered(&d);
    }
    /* Gone altogether: never an empty one in its place. */
    unlink(test_path(&d, "registry.db"));
    refused(&d, "is gone, but its backup is still there; nothing was changed; `graft registry recover`");
    assert_false(there(&d, "registry.db"));
    assert_string_equal(recovered(&d).damaged, "");
    /* A log of the damaged file is kept with it, and not poured into the new one. */
    test_write(&d, "registry.db", whole, n / 2);
    test_write_text(&d, "registry.db-wal", "some log");
    graft_registry_condition c = recovered(&d);
    char log[128];
    snprintf(log, sizeof log, "%s-wal", c.damaged);
    assert_true(there(&d, log));
    gr_free(whole);
    support_remove(&d);
}

static void no_way_back(void **state) {
    (void)state;
    test_dir d = test_dir_make();
    make_registry(&d);
    size_t n;
    char *whole = read_file(&d, "registry.db", &n);
    not_recovered(&d, GRAFT_E_CONFLICT, "the registry is whole (30 projects, 1 adapters)");
    /* Held by another. */
    gr_registry *r = support_open(&d);
    not_recovered(&d, GRAFT_E_REGISTRY_BUSY, "writes to the registry");
    gr_registry_close(r);
    /* A newer version is no damage. */
    support_sql(&d, "PRAGMA user_version=4");
    not_recovered(&d, GRAFT_E_REGISTRY_INVALID, "is of version 4");
    refused(&d, "put a good copy");
    /* The backup damaged too, then absent. */
    test_write(&d, "registry.db", whole, n / 2);
    test_write(&d, "registry.db.backup", whole, n / 3);
    refused(&d, "its backup is damaged too: put a good copy in its place, or move both away");
    not_recovered(&d, GRAFT_E_REGISTRY_INVALID, "damaged");
    assert_true(examine(&d).backup.error.code == GRAFT_E_REGISTRY_INVALID);
    unlink(test_path(&d, "registry.db.backup"));
    refused(&d, "there is no backup: put a good copy");
    not_recovered(&d, GRAFT_E_NOT_FOUND, "there is no backup");
    size_t now;
    char *left = read_file(&d, "registry.db", &now); /* and nothing was touched */
    assert_int_equal(now, n / 2);
    gr_free(left);
    /* Neither is there. */
    unlink(test_path(&d, "registry.db"));
    assert_int_equal(examine(&d).registry.error.code, GRAFT_E_NOT_FOUND);
    not_recovered(&d, GRAFT_E_NOT_FOUND, "there is no backup");
    gr_free(whole);
    support_remove(&d);
}

static void allocation_failures(void **state) {
    (void)state;
    test_dir d = test_dir_make();
    make_registry(&d);
    graft_registry_options o = support_options(&d);
    int rc = -1;
    for (uint64_t i = 1; rc != 0; i++) {
        graft_registry_condition c;
        graft_error err = {0};
        uint64_t blocks = gr_memory_blocks();
        int fds = test_open_fds();
        test_write(&d, "registry.db", "x", 1);
        gr_memory_fail_at(i, 0);
        rc = gr_registry_recover(&c, &o, &err);
        gr_memory_fail_at(0, 0);
        assert_true(i < 500 && (rc == 0 || rc == GRAFT_E_OUT_OF_MEMORY));
        assert_int_equal(gr_memory_blocks(), blocks);
        assert_int_equal(test_open_fds(), fds);
    }
    assert_int_equal(examine(&d).registry.projects, 30);
    support_remove(&d);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(when_it_is_made), cmocka_unit_test(bad_is_not_copied), cmocka_unit_test(damage_anywhere),
        cmocka_unit_test(cut_short_or_gone), cmocka_unit_test(no_way_back), cmocka_unit_test(allocation_failures),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
