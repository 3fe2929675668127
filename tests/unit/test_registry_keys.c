/* Keys: made, removed, found; what of them is in the file; registries from before there were any. */
#include "registry_support.h"

#include "base/file.h"
#include "registry/state.h"

#include <sys/resource.h>

static const char *const alder[] = {"alder"};
static const char *const both[] = {"birch", "alder", "birch"};

static char *read_file(const test_dir *d, const char *name, size_t *n) {
    char *bytes;
    good(gr_file_read_all(&bytes, n, AT_FDCWD, test_path(d, name), 64 << 20, &err));
    return bytes;
}

/* Whether the file holds the text; false if it is not there. */
static bool holds(const test_dir *d, const char *name, const char *text) {
    size_t n;
    if (access(test_path(d, name), F_OK) != 0) {
        return false;
    }
    char *bytes = read_file(d, name, &n);
    bool found = memmem(bytes, n, text, strlen(text)) != NULL;
    gr_free(bytes);
    return found;
}

static void finds(gr_registry *r, const char *secret, const char *name) {
    graft_key_list *l = NULL;
    good(gr_registry_key_find(&l, r, secret, &err));
    assert_int_equal(l->n, 1);
    assert_string_equal(l->items[0].name, name);
    graft_key_list_free(l);
}

static void finds_not(gr_registry *r, const char *secret) {
    graft_key_list *l = NULL;
    bad(GRAFT_E_NOT_FOUND, "there is no such key", gr_registry_key_find(&l, r, secret, &err));
    assert_null(l);
}

static void made_found_removed(void **state) {
    (void)state;
    test_dir d = test_dir_make();
    uint64_t blocks = gr_memory_blocks();
    gr_registry *r = support_open(&d);
    char root[GRAFT_KEY_SIZE], one[GRAFT_KEY_SIZE], two[GRAFT_KEY_SIZE], not_made[GRAFT_KEY_SIZE];
    finds_not(r, "");
    good(gr_registry_key_add(two, r, "two", both, 3, &err));
    good(gr_registry_key_add(root, r, "root", NULL, 0, &err));
    good(gr_registry_key_add(one, r, "one", alder, 1, &err));
    bad(GRAFT_E_CONFLICT, "key \"one\"", gr_registry_key_add(not_made, r, "one", NULL, 0, &err));
    for (int round = 0; round < 3; round++) { /* in memory, opened again, opened for reading */
        assert_true(gr_registry_check(r));
        assert_int_equal(gr_registry_key_count(r), 3);
        graft_key_list *l;
        good(gr_registry_key_list(&l, r, NULL, &err));
        assert_int_equal(l->n, 3);
        assert_string_equal(l->items[0].name, "one");
        assert_string_equal(l->items[1].name, "root");
        assert_true(l->items[1].admin && l->items[1].n_projects == 0);
        assert_false(l->items[0].admin || l->items[2].admin);
        assert_int_equal(l->items[0].n_projects, 1);
        assert_string_equal(l->items[0].projects[0], "alder");
        assert_int_equal(l->items[2].n_projects, 2);
        assert_string_equal(l->items[2].projects[0], "alder");
        assert_string_equal(l->items[2].projects[1], "birch");
        assert_true(l->items[2].created > 1600000000);
        graft_key_list_free(l);
        good(gr_registry_key_list(&l, r, "two", &err));
        assert_true(l->n == 1 && l->items[0].n_projects == 2);
        graft_key_list_free(l);
        finds(r, root, "root");
        finds(r, one, "one");
        finds(r, two, "two");
        gr_registry_close(r);
        r = round == 1 ? support_open_read_only(&d) : support_open(&d);
    }
    bad(GRAFT_E_NOT_FOUND, "key \"three\"", gr_registry_key_remove(r, "three", &err));
    good(gr_registry_key_remove(r, "one", &err));
    finds_not(r, one);
    finds(r, two, "two");
    char again[GRAFT_KEY_SIZE];
    good(gr_registry_key_add(again, r, "one", alder, 1, &err)); /* the name is free; the old secret stays dead */
    finds_not(r, one);
    finds(r, again, "one");
    assert_true(gr_registry_check(r));
    gr_registry_close(r);
    assert_int_equal(gr_memory_blocks(), blocks);
    support_remove(&d);
}

static void secrets(void **state) {
    (void)state;
    enum { MANY = 100 };
    test_dir d = test_dir_make();
    gr_registry *r = support_open(&d);
    char all[MANY][GRAFT_KEY_SIZE], name[16];
    unsigned char seen[256] = {0};
    for (int i = 0; i < MANY; i++) {
        snprintf(name, sizeof name, "k%02d", i);
        good(gr_registry_key_add(all[i], r, name, NULL, 0, &err));
        assert_int_equal(strlen(all[i]), 46);
        assert_memory_equal(all[i], "gk_", 3);
        for (const char *c = all[i] + 3; *c; c++) {
            assert_non_null(strchr("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_", *c));
            seen[(unsigned char)*c] = 1;
        }
        for (int k = 0; k < i; k++) {
            assert_string_not_equal(all[k], all[i]);
        }
    }
    assert_true(seen['-'] && seen['_'] && seen['A'] && seen['9']); /* 4300 characters: one of 64 missing has odds of 1e-29 */
    for (int i = 0; i < MANY; i++) {
        snprintf(name, sizeof name, "k%02d", i);
        finds(r, all[i], name);
    }
    /* Each character counts; so do the case and the length. */
    char almost[GRAFT_KEY_SIZE + 1];
    for (size_t i = 0; i < 46; i++) {
        strcpy(almost, all[50]);
        almost[i] = almost[i] == 'x' ? 'y' : 'x';
        finds_not(r, almost);
    }
    snprintf(almost, sizeof almost, "%.45s", all[50]);
    finds_not(r, almost);
    snprintf(almost, sizeof almost, "%s ", all[50]);
    finds_not(r, almost);
    finds_not(r, "k50");
    /* Neither the file nor what lies beside it holds one. */
    static const char *const files[] = {"registry.db", "registry.db-wal", "registry.db.backup"};
    for (int closed = 0; closed < 2; closed++) {
        for (size_t f = 0; f < 3; f++) {
            for (int i = 0; i < MANY; i++) {
                assert_false(holds(&d, files[f], all[i]));
                assert_false(holds(&d, files[f], all[i] + 3));
            }
        }
        if (!closed) {
            assert_true(holds(&d, "registry.db-wal", "k50")); /* or this looks in the wrong place */
            gr_registry_close(r);
        }
    }
    assert_true(holds(&d, "registry.db.backup", "k50"));
    support_remove(&d);
}

static void refusals(void **state) {
    (void)state;
    test_dir d = test_dir_make();
    gr_registry *r = support_open(&d);
    char secret[GRAFT_KEY_SIZE], blank[GRAFT_KEY_SIZE] = {0};
    const char *projects[GRAFT_KEY_PROJECTS + 1];
    static char names[GRAFT_KEY_PROJECTS + 1][GRAFT_NAME_SIZE];
    graft_key_list *l;
    const char *const out[] = {"alder", "../birch"}, *const missing[] = {"alder", NULL};
    memset(secret, 'x', sizeof secret);
    bad(GRAFT_E_BAD_NAME, "key name \"a b\"", gr_registry_key_add(secret, r, "a b", NULL, 0, &err));
    assert_memory_equal(secret, blank, sizeof secret); /* nobody may take it for one */
    bad(GRAFT_E_BAD_NAME, "key name", gr_registry_key_add(secret, r, NULL, NULL, 0, &err));
    bad(GRAFT_E_BAD_NAME, "project name \"../birch\"", gr_registry_key_add(secret, r, "k", out, 2, &err));
    bad(GRAFT_E_BAD_NAME, "project name", gr_registry_key_add(secret, r, "k", missing, 2, &err));
    bad(GRAFT_E_BAD_NAME, "key name", gr_registry_key_remove(r, "", &err));
    bad(GRAFT_E_BAD_NAME, "key name", gr_registry_key_list(&l, r, "a/b", &err));
    bad(GRAFT_E_NOT_FOUND, "key \"k\"", gr_registry_key_list(&l, r, "k", &err));
    for (int i = 0; i <= GRAFT_KEY_PROJECTS; i++) { /* the longest names there are, backwards */
        char digits[16];
        snprintf(digits, sizeof digits, "%03d", GRAFT_KEY_PROJECTS - i);
        memset(names[i], 'n', GRAFT_NAME_SIZE - 1);
        memcpy(names[i], digits, 3);
        projects[i] = names[i];
    }
    bad(GRAFT_E_BAD_REQUEST, "256 projects at most, not 257", gr_registry_key_add(secret, r, "k", projects, GRAFT_KEY_PROJECTS + 1, &err));
    assert_int_equal(gr_registry_key_count(r), 0);
    good(gr_registry_key_add(secret, r, "k", projects, GRAFT_KEY_PROJECTS, &err));
    gr_registry_close(r);
    r = support_open(&d);
    good(gr_registry_key_list(&l, r, NULL, &err));
    assert_int_equal(l->items[0].n_projects, GRAFT_KEY_PROJECTS);
    assert_string_equal(l->items[0].projects[0], names[GRAFT_KEY_PROJECTS - 1]);
    assert_string_equal(l->items[0].projects[GRAFT_KEY_PROJECTS - 1], names[0]);
    graft_key_list_free(l);
    assert_int_equal(gr_registry_key_count(r), 1);
    gr_registry_close(r);
    support_remove(&d);
}

static void at_most_so_many(void **state) {
    (void)state;
    test_dir d = test_dir_make();
    gr_registry_close(support_open(&d));
    support_sql(&d, "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<4095)"
                    " INSERT INTO keys SELECT i, printf('key-%04d', i), printf('%064x', i), 0, 'alder birch', 1 FROM n;");
    gr_registry *r = support_open(&d);
    char secret[GRAFT_KEY_SIZE];
    good(gr_registry_key_add(secret, r, "key-0000", NULL, 0, &err));
    bad(GRAFT_E_CONFLICT, "there are 4096 keys", gr_registry_key_add(secret, r, "one-more", NULL, 0, &err));
    assert_true(gr_registry_check(r));
    good(gr_registry_key_remove(r, "key-4000", &err));
    good(gr_registry_key_add(secret, r, "one-more", alder, 1, &err));
    finds(r, secret, "one-more");
    assert_true(gr_registry_check(r));
    gr_registry_close(r);
    support_remove(&d);
}

/* What a hand has put in makes nobody an administrator, and is no key. */
static void edited(void **state) {
    (void)state;
    static const char *const edits[] = {
        "projects=''", "admin=1", "id=7; DELETE FROM keys; INSERT INTO keys VALUES (1, 'k', '', 1, '', 1)",
        "projects='alder  birch'", "projects='alder '", "projects='birch alder'", "projects='alder alder'", "projects='../alder'",
        "name='a b'", "id=1; INSERT INTO keys SELECT 2, name, replace(hex(zeroblob(32)),'0','a'), admin, projects, 1 FROM keys",
        "hash=replace(hex(zeroblob(32)),'0','x')", "hash=upper(replace(hex(zeroblob(32)),'0','a'))",
    };
    for (size_t i = 0; i < sizeof edits / sizeof *edits; i++) {
        test_dir d = test_dir_make();
        char secret[GRAFT_KEY_SIZE], sql[256];
        gr_registry *r = support_open(&d);
        good(gr_registry_key_add(secret, r, "k", both, 3, &err));
        gr_registry_close(r);
        support_sql(&d, "PRAGMA ignore_check_constraints=1; UPDATE keys SET projects=''");
        support_no_open(&d, false, GRAFT_E_REGISTRY_INVALID, "CHECK constraint");
        /* The same without the table's own conditions. */
        support_sql(&d, "UPDATE keys SET projects='alder birch'; CREATE TABLE k AS SELECT * FROM keys; DROP TABLE keys;"
                        " ALTER TABLE k RENAME TO keys");
        gr_registry_close(support_open(&d));
        snprintf(sql, sizeof sql, "UPDATE keys SET %s", edits[i]);
        support_sql(&d, sql);
        support_no_open(&d, false, GRAFT_E_REGISTRY_INVALID, "a key that graft did not write");
        support_no_open(&d, true, GRAFT_E_REGISTRY_INVALID, "a key that graft did not write");
        support_remove(&d);
    }
}

/* ---- before there were keys ----------------------------------------------------------------------------- */

static void copy_version_1(const test_dir *d, const char *as) {
    size_t n;
    char *bytes;
    good(gr_file_read_all(&bytes, &n, AT_FDCWD, GRAFT_TEST_DATA "/registry/version1.db", 1 << 20, &err));
    test_write(d, as, bytes, n);
    gr_free(bytes);
}

static int64_t version_of(const test_dir *d) {
    sqlite3 *db;
    sqlite3_stmt *q;
    assert_int_equal(sqlite3_open_v2(test_path(d, "registry.db"), &db, SQLITE_OPEN_READONLY, NULL), SQLITE_OK);
    assert_int_equal(sqlite3_prepare_v2(db, "PRAGMA user_version", -1, &q, NULL), SQLITE_OK);
    assert_int_equal(sqlite3_step(q), SQLITE_ROW);
    int64_t version = sqlite3_column_int64(q, 0);
    sqlite3_finalize(q);
    sqlite3_close(db);
    return version;
}

static void check_old_content(gr_registry *r) {
    graft_registered_list *l;
    good(gr_registry_adapter_list(&l, r, NULL, NULL, &err));
    assert_int_equal(l->n, 2);
    assert_string_equal(l->items[0].project, "alder");
    assert_string_equal(l->items[0].path, "/tmp/graft-v1/alder");
    assert_string_equal(l->items[0].generation, "bf641d333b68339106adc4bef8c721da56d4348e64256af6661b9be1a3458ed8");
    assert_string_equal(l->items[1].adapter, "fast");
    assert_true(l->items[1].pinned);
    graft_registered_list_free(l);
    assert_true(gr_registry_check(r));
}

static void older_is_brought_up(void **state) {
    (void)state;
    test_dir d = test_dir_make();
    copy_version_1(&d, "registry.db");
    /* To be read it stays as it is. */
    gr_registry *r = support_open_read_only(&d);
    check_old_content(r);
    graft_key_list *l;
    good(gr_registry_key_list(&l, r, NULL, &err));
    assert_int_equal(l->n, 0);
    graft_key_list_free(l);
    finds_not(r, "gk_");
    gr_registry_close(r);
    assert_int_equal(version_of(&d), 1);
    r = support_open(&d);
    check_old_content(r);
    char secret[GRAFT_KEY_SIZE];
    good(gr_registry_key_add(secret, r, "k", alder, 1, &err));
    gr_registry_close(r);
    assert_int_equal(version_of(&d), 3);
    r = support_open(&d);
    check_old_content(r);
    finds(r, secret, "k");
    gr_registry_close(r);
    support_remove(&d);
}

/* A reader of the old file goes on while another brings it up. */
static void older_under_a_reader(void **state) {
    (void)state;
    test_dir d = test_dir_make();
    copy_version_1(&d, "registry.db");
    gr_registry *reader = support_open_read_only(&d), *r = support_open(&d);
    char secret[GRAFT_KEY_SIZE];
    good(gr_registry_key_add(secret, r, "k", NULL, 0, &err));
    check_old_content(reader);
    graft_event_list *e;
    good(gr_registry_event_list(&e, reader, NULL, NULL, 10, &err));
    graft_event_list_free(e);
    gr_registry_close(reader);
    reader = support_open_read_only(&d);
    finds(reader, secret, "k");
    gr_registry_close(reader);
    gr_registry_close(r);
    support_remove(&d);
}

/* A backup from before is still one. */
static void older_backup(void **state) {
    (void)state;
    test_dir d = test_dir_make();
    graft_registry_options o = support_options(&d);
    graft_registry_condition c;
    copy_version_1(&d, "registry.db.backup");
    test_write_text(&d, "registry.db", "spoilt");
    good(gr_registry_examine(&c, &o, &err));
    assert_int_equal(c.backup.error.code, 0);
    assert_int_equal(c.backup.adapters, 2);
    good(gr_registry_recover(&c, &o, &err));
    gr_registry *r = support_open(&d);
    check_old_content(r);
    char secret[GRAFT_KEY_SIZE];
    good(gr_registry_key_add(secret, r, "k", NULL, 0, &err));
    gr_registry_close(r);
    assert_int_equal(version_of(&d), 3);
    support_remove(&d);
}

/* The disk is full when it shall be brought up: refused, and as it was. In a child, which may write no file beyond 20 KB. */
static void older_and_no_room(void **state) {
    (void)state;
    test_dir d = test_dir_make();
    copy_version_1(&d, "registry.db");
    pid_t pid = fork();
    if (pid == 0) {
        graft_registry_options o = support_options(&d);
        gr_registry *r;
        signal(SIGXFSZ, SIG_IGN);
        struct rlimit limit = {4096, 4096};
        setrlimit(RLIMIT_FSIZE, &limit);
        _exit(gr_registry_open(&r, &o, NULL) == GRAFT_E_STORAGE_FULL ? 0 : 1);
    }
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    assert_int_equal(version_of(&d), 1);
    gr_registry *r = support_open(&d);
    check_old_content(r);
    gr_registry_close(r);
    assert_int_equal(version_of(&d), 3);
    support_remove(&d);
}

/* ---- the backup ----------------------------------------------------------------------------------------- */

/* A removed key must not come back with the backup, not even if the process ends without closing. */
static void removed_from_the_backup(void **state) {
    (void)state;
    test_dir d = test_dir_make();
    gr_registry *r = support_open(&d);
    char kept[GRAFT_KEY_SIZE], gone[GRAFT_KEY_SIZE];
    good(gr_registry_key_add(kept, r, "kept", alder, 1, &err));
    good(gr_registry_key_add(gone, r, "gone", NULL, 0, &err));
    gr_registry_close(r);
    pid_t pid = fork();
    if (pid == 0) {
        r = support_open(&d);
        _exit(gr_registry_key_remove(r, "gone", NULL) == 0 ? 0 : 1);
    }
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    test_write_text(&d, "registry.db", "spoilt");
    unlink(test_path(&d, "registry.db-wal"));
    graft_registry_options o = support_options(&d);
    graft_registry_condition c;
    good(gr_registry_recover(&c, &o, &err));
    r = support_open(&d);
    finds(r, kept, "kept");
    finds_not(r, gone);
    gr_registry_close(r);
    support_remove(&d);
}

/* A copy that lost the keys takes no good one's place. */
static void lost_keys_are_not_copied(void **state) {
    (void)state;
    test_dir d = test_dir_make();
    gr_registry *r = support_open(&d);
    char secret[GRAFT_KEY_SIZE];
    good(gr_registry_key_add(secret, r, "k", NULL, 0, &err));
    gr_registry_close(r);
    r = support_open(&d);
    support_sql(&d, "DELETE FROM keys"); /* behind its back */
    assert_false(gr_registry_check(r));
    good(gr_registry_project_add(r, "p", &err));
    gr_registry_close(r);
    assert_true(holds(&d, "registry.db.backup", "k"));
    assert_false(access(test_path(&d, "registry.db.backup-new"), F_OK) == 0);
    assert_int_equal(rename(test_path(&d, "registry.db.backup"), test_path(&d, "registry.db")), 0);
    r = support_open(&d);
    finds(r, secret, "k");
    gr_registry_close(r);
    support_remove(&d);
}

/* ---- who may change ------------------------------------------------------------------------------------- */

static void make_one(const test_dir *d, const char *path) {
    (void)path;
    char secret[GRAFT_KEY_SIZE];
    gr_registry *r = support_open(d);
    FILE *f = fopen(test_path(d, "secret"), "w");
    if (gr_registry_key_add(secret, r, "theirs", alder, 1, NULL) != 0 || !f || fputs(secret, f) < 0 || fclose(f) != 0) {
        _exit(1);
    }
}

static void other_process(void **state) {
    (void)state;
    test_dir d = test_dir_make();
    int ends[2];
    assert_int_equal(pipe(ends), 0);
    pid_t pid = fork();
    if (pid == 0) {
        make_one(&d, NULL);
        if (write(ends[1], "r", 1) == 1) {
            pause();
        }
        _exit(1);
    }
    char c, secret[GRAFT_KEY_SIZE];
    assert_int_equal(read(ends[0], &c, 1), 1);
    size_t n;
    char *text = read_file(&d, "secret", &n);
    snprintf(secret, sizeof secret, "%s", text);
    gr_free(text);
    /* It holds the registry; this one reads what it committed, and may not change. */
    gr_registry *r = support_open_read_only(&d);
    finds(r, secret, "theirs");
    char mine[GRAFT_KEY_SIZE];
    bad(GRAFT_E_REGISTRY_BUSY, "for reading only", gr_registry_key_add(mine, r, "mine", NULL, 0, &err));
    assert_int_equal(mine[0], '\0');
    bad(GRAFT_E_REGISTRY_BUSY, "for reading only", gr_registry_key_remove(r, "theirs", &err));
    finds(r, secret, "theirs");
    gr_registry_close(r);
    kill(pid, SIGKILL);
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    close(ends[0]);
    close(ends[1]);
    r = support_open(&d); /* killed at once after it was acknowledged */
    finds(r, secret, "theirs");
    gr_registry_close(r);
    support_remove(&d);
}

/* What failed on the disk changed nothing in memory. */
static void file_gone(void **state) {
    (void)state;
    test_dir d = test_dir_make();
    gr_registry *r = support_open(&d);
    char old[GRAFT_KEY_SIZE], secret[GRAFT_KEY_SIZE];
    good(gr_registry_key_add(old, r, "old", alder, 1, &err));
    assert_int_equal(unlink(test_path(&d, "registry.db")), 0);
    bad(GRAFT_E_REGISTRY_BUSY, "deleted or replaced", gr_registry_key_add(secret, r, "new", NULL, 0, &err));
    assert_int_equal(secret[0], '\0');
    bad(GRAFT_E_REGISTRY_BUSY, "deleted or replaced", gr_registry_key_remove(r, "old", &err));
    assert_int_equal(gr_registry_key_count(r), 1);
    finds(r, old, "old");
    gr_registry_close(r);
    support_remove(&d);
}

/* In a child, which may write no file beyond a limit. Reports by its exit code. */
static int fill_disk(const test_dir *d) {
    graft_error err = {0};
    char secret[GRAFT_KEY_SIZE], name[16];
    gr_registry *r = support_open(d);
    uint64_t blocks = 0;
    int rc = 0, n = 0;
    signal(SIGXFSZ, SIG_IGN);
    setrlimit(RLIMIT_FSIZE, &(struct rlimit){200000, 1 << 20});
    for (; rc == 0 && n < 1000; n++) {
        blocks = gr_memory_blocks();
        snprintf(name, sizeof name, "k%d", n);
        rc = gr_registry_key_add(secret, r, name, both, 3, &err);
    }
    if (rc != GRAFT_E_STORAGE_FULL || secret[0] || gr_memory_blocks() != blocks) {
        return 1;
    }
    if (gr_registry_key_remove(r, "k0", NULL) != GRAFT_E_STORAGE_FULL || gr_registry_key_count(r) != (size_t)n - 1) {
        return 2;
    }
    setrlimit(RLIMIT_FSIZE, &(struct rlimit){1 << 20, 1 << 20});
    if (gr_registry_key_add(secret, r, name, both, 3, NULL) || gr_registry_key_remove(r, "k0", NULL) || !gr_registry_check(r)) {
        return 3; /* there is room again */
    }
    gr_registry_close(r);
    return 0;
}

static void full_disk(void **state) {
    (void)state;
    test_dir d = test_dir_make();
    pid_t pid = fork();
    if (pid == 0) {
        _exit(fill_disk(&d));
    }
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
    support_remove(&d);
}

/* ---- no memory ------------------------------------------------------------------------------------------ */

static int everything(gr_registry *r, graft_error *err) {
    char secret[GRAFT_KEY_SIZE];
    graft_key_list *l = NULL;
    int rc = gr_registry_key_add(secret, r, "a", both, 3, err);
    rc = rc ? rc : gr_registry_key_find(&l, r, secret, err);
    graft_key_list_free(l);
    l = NULL;
    rc = rc ? rc : gr_registry_key_list(&l, r, NULL, err);
    graft_key_list_free(l);
    return rc ? rc : gr_registry_key_remove(r, "a", err);
}

static void allocation_failures(void **state) {
    (void)state;
    test_dir d = test_dir_make();
    char secret[GRAFT_KEY_SIZE], name[16];
    for (int forever = 0; forever < 2; forever++) {
        gr_registry *r = support_open(&d);
        for (int i = 0; i < 4; i++) { /* the fifth needs a larger table */
            snprintf(name, sizeof name, "z%d", i);
            good(gr_registry_key_add(secret, r, name, NULL, 0, &err));
        }
        int rc = -1;
        uint64_t n = 1;
        for (; rc != 0; n++) {
            graft_error why = {0};
            assert_true(n < 1000);
            uint64_t blocks = gr_memory_blocks();
            gr_memory_fail_at(n, forever);
            rc = everything(r, &why);
            gr_memory_fail_at(0, 0);
            assert_true(rc == 0 || rc == GRAFT_E_OUT_OF_MEMORY);
            bool there = gr_registry_key_count(r) == 5;
            assert_true(there || gr_registry_key_count(r) == 4);
            if (there) {
                good(gr_registry_key_remove(r, "a", &err));
            }
            assert_int_equal(gr_memory_blocks(), blocks);
            assert_true(gr_registry_check(r));
        }
        assert_true(n > 5);
        gr_registry_close(r);
        r = NULL;
        rc = -1;
        for (n = 1; rc != 0; n++) { /* and opening */
            graft_registry_options o = support_options(&d);
            graft_error err = {0};
            uint64_t blocks = gr_memory_blocks();
            gr_memory_fail_at(n, forever);
            rc = gr_registry_open(&r, &o, &err);
            gr_memory_fail_at(0, 0);
            assert_true(rc == 0 || rc == GRAFT_E_OUT_OF_MEMORY);
            assert_true(rc == 0 || gr_memory_blocks() == blocks);
        }
        assert_true(n > 8);
        assert_int_equal(gr_registry_key_count(r), 4);
        for (int i = 0; i < 4; i++) {
            snprintf(name, sizeof name, "z%d", i);
            good(gr_registry_key_remove(r, name, &err));
        }
        gr_registry_close(r);
    }
    support_remove(&d);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(made_found_removed),  cmocka_unit_test(secrets),
        cmocka_unit_test(refusals),            cmocka_unit_test(at_most_so_many),
        cmocka_unit_test(edited),              cmocka_unit_test(older_is_brought_up),
        cmocka_unit_test(older_under_a_reader), cmocka_unit_test(older_backup),
        cmocka_unit_test(older_and_no_room),   cmocka_unit_test(removed_from_the_backup),
        cmocka_unit_test(lost_keys_are_not_copied), cmocka_unit_test(other_process),
        cmocka_unit_test(file_gone),           cmocka_unit_test(full_disk),
        cmocka_unit_test(allocation_failures),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
