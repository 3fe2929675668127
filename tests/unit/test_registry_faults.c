/* What may befall the file: damage, other processes, a full disk, sudden death. */
#include "registry_support.h"

#include "base/clock.h"
#include "base/file.h"
#include "registry/state.h"

#include <inttypes.h>
#include <stdatomic.h>
#include <sys/resource.h>
#include <time.h>

static void make_registry(const test_dir *d, int n) {
    gr_registry *r = support_open(d);
    for (int i = 0; i < n; i++) {
        char name[16];
        snprintf(name, sizeof name, "p%03d", i);
        good(gr_registry_project_add(r, name, &err));
    }
    good(gr_registry_adapter_add(r, "p000", NULL, support_adapter(d, "a", 0), 0, &err));
    gr_registry_close(r);
}

static char *read_file(const char *path, size_t *n) {
    char *bytes;
    good(gr_file_read_all(&bytes, n, AT_FDCWD, path, 64 << 20, &err));
    return bytes;
}

/* Neither opening refuses differently nor does the file change by being refused. */
static void refused(const test_dir *d, const void *bytes, size_t n, const char *words) {
    size_t after;
    test_write(d, "registry.db", bytes, n);
    support_no_open(d, false, GRAFT_E_REGISTRY_INVALID, words);
    support_no_open(d, true, GRAFT_E_REGISTRY_INVALID, words);
    char *now = read_file(test_path(d, "registry.db"), &after);
    assert_int_equal(after, n);
    assert_memory_equal(now, bytes, n);
    gr_free(now);
}

static void damage(void **state) {
    (void)state;
    enum { NOISE = 50000 };
    test_dir d = test_dir_make();
    make_registry(&d, 100);
    size_t n;
    char *whole = read_file(test_path(&d, "registry.db"), &n);
    assert_true(n > 20000);
    uint8_t *noise = gr_alloc(NOISE);
    for (size_t i = 0; i < NOISE; i++) {
        noise[i] = (uint8_t)(test_value("noise", i) * 1000);
    }
    refused(&d, noise, NOISE, "is no registry");
    refused(&d, "", 0, "is empty");
    refused(&d, "SQLite", 6, "is cut short");
    refused(&d, "{\"projects\": []}, and so on", 26, "is no registry");
    refused(&d, whole, 100, "is damaged");
    refused(&d, whole, n / 2, "damaged");
    refused(&d, whole, n - 4096, "damaged");
    memcpy(noise, whole, 16); /* only the first words are right */
    refused(&d, noise, NOISE, "is damaged");
    /* Every page but the first spoilt in turn: found, or of no importance; never a crash, never a loss in silence. */
    for (size_t page = 1; page < n / 4096; page++) {
        char *spoilt = gr_alloc(n);
        memcpy(spoilt, whole, n);
        memset(spoilt + page * 4096, 0xa5, 4096);
        refused(&d, spoilt, n, "damaged");
        gr_free(spoilt);
    }
    test_write(&d, "registry.db", whole, n);
    gr_registry *r = support_open(&d);
    graft_project_list *l;
    good(gr_registry_project_list(&l, r, NULL, &err));
    assert_int_equal(l->n, 100);
    graft_project_list_free(l);
    gr_registry_close(r);
    gr_free(noise);
    gr_free(whole);
    support_remove(&d);
}

static void foreign_and_newer(void **state) {
    (void)state;
    test_dir d = test_dir_make();
    support_sql(&d, "CREATE TABLE t (x); INSERT INTO t VALUES (1)");
    support_no_open(&d, false, GRAFT_E_REGISTRY_INVALID, "some other program");
    unlink(test_path(&d, "registry.db"));
    make_registry(&d, 1);
    support_sql(&d, "PRAGMA user_version=4");
    support_no_open(&d, false, GRAFT_E_REGISTRY_INVALID, "is of version 4, this graft knows up to 3");
    support_no_open(&d, true, GRAFT_E_REGISTRY_INVALID, "is of version 4");
    support_sql(&d, "PRAGMA user_version=0");
    support_no_open(&d, false, GRAFT_E_REGISTRY_INVALID, "is of version 0");
    support_sql(&d, "PRAGMA user_version=3");
    /* What a hand has put in is checked like anything else from outside. */
    support_sql(&d, "UPDATE projects SET name='../../etc' WHERE name='p000'");
    support_no_open(&d, false, GRAFT_E_REGISTRY_INVALID, "../../etc");
    support_sql(&d, "UPDATE projects SET name='p000'; UPDATE adapters SET generation=replace(hex(zeroblob(32)),'0','x')");
    support_no_open(&d, false, GRAFT_E_REGISTRY_INVALID, "xxxx");
    support_sql(&d, "UPDATE adapters SET generation='', path='relative'");
    support_no_open(&d, true, GRAFT_E_REGISTRY_INVALID, "relative");
    support_sql(&d, "UPDATE adapters SET path='/x'");
    gr_registry_close(support_open(&d));
    /* A folder, a link to nothing, a log without its file. */
    unlink(test_path(&d, "registry.db"));
    test_write_text(&d, "registry.db-wal", "left over");
    support_no_open(&d, false, GRAFT_E_REGISTRY_INVALID, "write-ahead log");
    assert_int_not_equal(access(test_path(&d, "registry.db"), F_OK), 0);
    unlink(test_path(&d, "registry.db-wal"));
    assert_int_equal(mkdir(test_path(&d, "registry.db"), 0700), 0);
    support_no_open(&d, false, GRAFT_E_REGISTRY_INVALID, "no regular file");
    support_remove(&d);
}

/* A newer registry whose last user was killed: its log must not be merged by one who does not know what it means. */
static void refused_with_a_log(void **state) {
    (void)state;
    test_dir d = test_dir_make();
    sqlite3 *db;
    size_t n, after;
    make_registry(&d, 3);
    assert_int_equal(sqlite3_open(test_path(&d, "registry.db"), &db), SQLITE_OK);
    sqlite3_db_config(db, SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1, NULL);
    assert_int_equal(sqlite3_exec(db, "PRAGMA user_version=4; INSERT INTO projects VALUES (99, 'new', 1, 1)", NULL, NULL, NULL), SQLITE_OK);
    sqlite3_close(db);
    char *before = read_file(test_path(&d, "registry.db"), &n);
    support_no_open(&d, false, GRAFT_E_REGISTRY_INVALID, "is of version 4");
    char *now = read_file(test_path(&d, "registry.db"), &after);
    assert_int_equal(after, n);
    assert_memory_equal(now, before, n);
    gr_free(before);
    gr_free(now);
    support_remove(&d);
}

static void none_there(void **state) {
    (void)state;
    test_dir d = test_dir_make();
    support_no_open(&d, true, GRAFT_E_NOT_FOUND, "there is none yet");
    assert_int_not_equal(access(test_path(&d, "registry.db"), F_OK), 0);
    graft_registry_options o = support_options(&d);
    gr_registry *r;
    o.path = "/nowhere/at/all/registry.db";
    bad(GRAFT_E_NOT_FOUND, "its folder", gr_registry_open(&r, &o, &err));
    o.path = "/proc/registry.db";
    bad(GRAFT_E_STORAGE_FULL, "", gr_registry_open(&r, &o, &err));
    /* An unfinished one of an earlier, killed process is cleared away. */
    test_write_text(&d, "registry.db.new", "half");
    r = support_open(&d);
    assert_int_not_equal(access(test_path(&d, "registry.db.new"), F_OK), 0);
    struct stat st;
    assert_int_equal(stat(test_path(&d, "registry.db"), &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    gr_registry_close(r);
    support_remove(&d);
}

/* ---- other processes ------------------------------------------------------------------------------------ */

/* Runs `child` in a fork and waits until it has written a byte. */
static pid_t start(const test_dir *d, void (*child)(const test_dir *d, int ready), int *out) {
    int ends[2];
    assert_int_equal(pipe(ends), 0);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        close(ends[0]);
        child(d, ends[1]);
        _exit(0);
    }
    close(ends[1]);
    *out = ends[0];
    return pid;
}

static void wait_ready(int fd) {
    char c;
    assert_int_equal(read(fd, &c, 1), 1);
}

static void end(pid_t pid, int fd) {
    int status;
    kill(pid, SIGKILL);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    close(fd);
}

static void hold(const test_dir *d, int ready) {
    graft_registry_options o = support_options(d);
    gr_registry *r;
    if (gr_registry_open(&r, &o, NULL) == 0 && gr_registry_project_add(r, "theirs", NULL) == 0 && write(ready, "r", 1) == 1) {
        pause();
    }
}

static void second_process(void **state) {
    (void)state;
    test_dir d = test_dir_make();
    make_registry(&d, 3);
    int fd;
    char words[32];
    pid_t pid = start(&d, hold, &fd);
    wait_ready(fd);
    snprintf(words, sizeof words, "process %ld writes", (long)pid);
    support_no_open(&d, false, GRAFT_E_REGISTRY_BUSY, words);
    /* Reading is free, and sees what the other has committed. */
    gr_registry *r = support_open_read_only(&d);
    graft_project_list *l;
    good(gr_registry_project_list(&l, r, "theirs", &err));
    graft_project_list_free(l);
    graft_event_list *e;
    good(gr_registry_event_list(&e, r, NULL, NULL, 10, &err));
    graft_event_list_free(e);
    bad(GRAFT_E_REGISTRY_BUSY, "for reading only", gr_registry_project_add(r, "mine", &err));
    bad(GRAFT_E_REGISTRY_BUSY, "for reading only", gr_registry_adapter_add(r, "p000", "x", test_path(&d, "a"), 0, &err));
    bad(GRAFT_E_REGISTRY_BUSY, "for reading only", gr_registry_scan(r, d.path, &(gr_scan_limits){10, 2}, NULL, NULL, NULL, &err));
    assert_true(gr_registry_check(r));
    gr_registry_close(r);
    end(pid, fd);
    /* However it ended, its lock ended with it. */
    r = support_open(&d);
    good(gr_registry_project_list(&l, r, "theirs", &err));
    graft_project_list_free(l);
    gr_registry_close(r);
    support_remove(&d);
}

/* Two handles in one process are two writers as well. */
static void second_handle(void **state) {
    (void)state;
    test_dir d = test_dir_make();
    gr_registry *r = support_open(&d);
    char words[32];
    snprintf(words, sizeof words, "process %ld writes", (long)getpid());
    support_no_open(&d, false, GRAFT_E_REGISTRY_BUSY, words);
    assert_int_equal(symlink("registry.db", test_path(&d, "other.db")), 0);
    graft_registry_options o = support_options(&d);
    gr_registry *second;
    o.path = test_path(&d, "other.db");
    bad(GRAFT_E_REGISTRY_BUSY, words, gr_registry_open(&second, &o, &err));
    gr_registry_close(r);
    good(gr_registry_open(&second, &o, &err));
    gr_registry_close(second);
    support_remove(&d);
}

static void lock_sql(const test_dir *d, int ready) {
    sqlite3 *db;
    char path[512];
    snprintf(path, sizeof path, "%s/registry.db", d->path);
    if (sqlite3_open(path, &db) == SQLITE_OK && sqlite3_exec(db, "BEGIN EXCLUSIVE", NULL, NULL, NULL) == SQLITE_OK &&
        write(ready, "r", 1) == 1) {
        pause();
    }
}

/* Another program, that knows nothing of our lock, holds the file. */
static void locked_file(void **state) {
    (void)state;
    test_dir d = test_dir_make();
    make_registry(&d, 3);
    int fd;
    pid_t pid = start(&d, lock_sql, &fd); /* before opening: no fork with an open SQLite file */
    wait_ready(fd);
    gr_registry *r = support_open(&d);
    bad(GRAFT_E_REGISTRY_BUSY, "locked", gr_registry_project_add(r, "x", &err));
    support_find(r, "p000", "default");
    end(pid, fd);
    good(gr_registry_project_add(r, "x", &err));
    assert_true(gr_registry_check(r));
    gr_registry_close(r);
    support_remove(&d);
}

static void forked(void **state) {
    (void)state;
    test_dir d = test_dir_make();
    gr_registry *r = support_open(&d);
    pid_t pid = fork();
    if (pid == 0) {
        _exit(gr_registry_project_add(r, "x", NULL) == GRAFT_E_INTERNAL ? 7 : 8);
    }
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 7);
    gr_registry_close(r);
    support_remove(&d);
}

/* ---- the file goes away --------------------------------------------------------------------------------- */

static char last_log[1024];
static atomic_int log_lines;

static void take_log(const graft_log_entry *entry, void *user) {
    (void)user;
    snprintf(last_log, sizeof last_log, "%s", entry->text);
    atomic_fetch_add(&log_lines, 1);
}

static void deleted_or_replaced(void **state) {
    (void)state;
    for (int replaced = 0; replaced < 2; replaced++) {
        test_dir d = test_dir_make(), other = test_dir_make();
        make_registry(&d, 3);
        gr_registry *theirs = support_open(&other);
        good(gr_registry_project_add(theirs, "theirs", &err));
        gr_registry_close(theirs);
        graft_registry_options o = support_options(&d);
        gr_registry *r;
        atomic_store(&log_lines, 0);
        o.log = take_log;
        good(gr_registry_open(&r, &o, &err));
        good(gr_registry_project_add(r, "before", &err));
        if (replaced) {
            assert_int_equal(rename(test_path(&other, "registry.db"), test_path(&d, "registry.db")), 0);
        } else {
            assert_int_equal(unlink(test_path(&d, "registry.db")), 0);
        }
        bad(GRAFT_E_REGISTRY_BUSY, "deleted or replaced", gr_registry_project_add(r, "after", &err));
        bad(GRAFT_E_REGISTRY_BUSY, "deleted or replaced", gr_registry_adapter_remove(r, "p000", NULL, &err));
        /* Serving goes on, and the alarm is raised once. */
        support_find(r, "p000", "default");
        gr_catalog c = gr_registry_catalog(r);
        c.record(c.self, &(gr_event){.kind = GR_EVENT_EVICTED, .project = "p000", .adapter = "default"});
        bad(GRAFT_E_REGISTRY_BUSY, "", gr_registry_flush(r, &err));
        gr_registry_close(r);
        assert_int_equal(atomic_load(&log_lines), 1);
        assert_non_null(strstr(last_log, "history is not being written"));
        if (replaced) { /* and the other file is as it was */
            unlink(test_path(&d, "registry.db-wal"));
            r = support_open(&d);
            graft_project_list *l;
            good(gr_registry_project_list(&l, r, NULL, &err));
            assert_int_equal(l->n, 1);
            assert_string_equal(l->items[0].name, "theirs");
            graft_project_list_free(l);
            gr_registry_close(r);
        }
        support_remove(&d);
        support_remove(&other);
    }
}

/* ---- a full disk ---------------------------------------------------------------------------------------- */

/* In a child, which may write no file beyond `limit` bytes. Reports by its exit code. */
static int fill_disk(const test_dir *d) {
    graft_registry_options o = support_options(d);
    gr_registry *r;
    graft_error err = {0};
    char name[GR_NAME_MAX + 1];
    int rc = 0, n = 0;
    if (gr_registry_open(&r, &o, NULL)) {
        return 1;
    }
    signal(SIGXFSZ, SIG_IGN);
    setrlimit(RLIMIT_FSIZE, &(struct rlimit){200000, 1 << 20});
    for (; rc == 0 && n < 10000; n++) {
        snprintf(name, sizeof name, "full-%d", n);
        rc = gr_registry_project_add(r, name, &err);
    }
    graft_project_list *l;
    if (rc != GRAFT_E_STORAGE_FULL || !strstr(err.message, "could not be written")) {
        return 2;
    }
    if (gr_registry_project_list(&l, r, name, NULL) != GRAFT_E_NOT_FOUND || gr_registry_project_list(&l, r, NULL, NULL) != 0 ||
        l->n != (size_t)n) { /* those that were added, and p000 */
        return 3; /* what failed is in memory, or what did not is missing */
    }
    gr_catalog_entry e;
    gr_catalog c = gr_registry_catalog(r);
    if (gr_registry_adapter_remove(r, "p000", NULL, NULL) != GRAFT_E_STORAGE_FULL ||
        c.find(c.self, "p000", "default", false, &e, NULL) != 0) {
        return 4;
    }
    setrlimit(RLIMIT_FSIZE, &(struct rlimit){1 << 20, 1 << 20});
    if (gr_registry_project_add(r, name, NULL) != 0 || !gr_registry_check(r)) {
        return 5; /* there is room again */
    }
    gr_registry_close(r);
    r = support_open(d);
    if (gr_registry_project_list(&l, r, NULL, NULL) != 0 || l->n != (size_t)n + 1) {
        return 6;
    }
    return 0;
}

static void full_disk(void **state) {
    (void)state;
    test_dir d = test_dir_make();
    pid_t pid = fork();
    if (pid == 0) {
        make_registry(&d, 1);
        _exit(fill_disk(&d));
    }
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
    support_remove(&d);
}

/* In a child, as a user who may read the folder and not write to it. */
static int read_only(const test_dir *d) {
    graft_registry_options o = support_options(d);
    gr_registry *r;
    gr_catalog_entry e;
    if (gr_registry_open(&r, &o, NULL) != GRAFT_E_STORAGE_FULL) {
        return 1;
    }
    o.read_only = true;
    if (gr_registry_open(&r, &o, NULL) != 0) {
        return 2;
    }
    gr_catalog c = gr_registry_catalog(r);
    int rc = c.find(c.self, "p000", "default", false, &e, NULL) == 0 && gr_registry_check(r) ? 0 : 3;
    gr_registry_close(r);
    return rc;
}

/* Where nothing can be written at all, not even what SQLite's readers share, reading still works. */
static void read_only_folder(void **state) {
    (void)state;
    enum { NOBODY = 65534 };
    test_dir d = test_dir_make();
    make_registry(&d, 3);
    assert_int_equal(unlink(test_path(&d, "registry.db.lock")), 0);
    assert_int_equal(chmod(test_path(&d, "registry.db"), 0444), 0);
    assert_int_equal(chmod(d.path, 0555), 0);
    pid_t pid = fork();
    if (pid == 0) { /* nothing is read-only for root */
        _exit(geteuid() == 0 && (setgid(NOBODY) || setuid(NOBODY)) ? 4 : read_only(&d));
    }
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
    assert_int_equal(chmod(d.path, 0700), 0);
    support_remove(&d);
}

/* ---- sudden death --------------------------------------------------------------------------------------- */

/* Adds for ever, and writes each name to the pipe once it was acknowledged. */
static void add_for_ever(const test_dir *d, int fd) {
    graft_registry_options o = support_options(d);
    gr_registry *r;
    char path[512], name[32];
    snprintf(path, sizeof path, "%s/a", d->path);
    o.wait_ms = 5000;
    if (gr_registry_open(&r, &o, NULL)) {
        return;
    }
    gr_catalog c = gr_registry_catalog(r);
    for (int i = 0; i < 100000; i++) {
        snprintf(name, sizeof name, "k%ld-%d", (long)getpid(), i);
        bool ok = i % 3 ? gr_registry_project_add(r, name, NULL) == 0
                        : gr_registry_adapter_add(r, name, NULL, path, GRAFT_ADD_PROJECT, NULL) == 0;
        c.record(c.self, &(gr_event){.kind = GR_EVENT_EVICTED, .project = name, .adapter = "default"});
        size_t n = strlen(name);
        name[n] = '\n';
        if (!ok || write(fd, name, n + 1) != (ssize_t)n + 1) {
            return;
        }
    }
}

/* Reads on from names[*used] until `wanted` lines are there or the writer is gone. Returns how many there are. */
static size_t read_lines(int fd, char *names, size_t room, size_t *used, size_t wanted) {
    size_t lines = 0;
    for (size_t at = 0;;) {
        for (; at < *used; at++) {
            lines += names[at] == '\n';
        }
        ssize_t n = lines < wanted ? read(fd, names + *used, room - 1 - *used) : 0;
        if (n <= 0) {
            names[*used] = '\0';
            return lines;
        }
        *used += (size_t)n;
    }
}

static void check_integrity(const test_dir *d) {
    sqlite3 *db;
    sqlite3_stmt *q;
    assert_int_equal(sqlite3_open_v2(test_path(d, "registry.db"), &db, SQLITE_OPEN_READONLY, NULL), SQLITE_OK);
    assert_int_equal(sqlite3_prepare_v2(db, "PRAGMA integrity_check", -1, &q, NULL), SQLITE_OK);
    assert_int_equal(sqlite3_step(q), SQLITE_ROW);
    assert_string_equal((const char *)sqlite3_column_text(q, 0), "ok");
    sqlite3_finalize(q);
    sqlite3_close(db);
}

/* Killed at all sorts of moments, the very first ones included: every acknowledged change is there, none is half there. */
static void killed(void **state) {
    (void)state;
    enum { KILLS = 40, MOST_LINES = 24, ROOM = 1 << 20 };
    test_dir d = test_dir_make();
    support_adapter(&d, "a", 0);
    char *names = gr_alloc(ROOM);
    size_t acknowledged = 0, early = 0;
    for (int i = 0; i < KILLS; i++) {
        int fd;
        size_t used = 0;
        pid_t pid = start(&d, add_for_ever, &fd);
        /* Every other one in the middle of things, the rest about when the file is made and opened. */
        size_t wanted = i % 2 ? 1 + (size_t)i % MOST_LINES : 0;
        assert_true(read_lines(fd, names, ROOM, &used, wanted) >= wanted);
        gr_sleep_us((int64_t)((double)(test_value("kill", (size_t)i) + 0.5F) * (i % 2 ? 3000 : 12000)));
        kill(pid, SIGKILL);
        size_t lines = read_lines(fd, names, ROOM, &used, SIZE_MAX);
        end(pid, fd);
        early += lines == 0;
        acknowledged += lines;
        gr_registry *r = i % 3 == 2 && access(test_path(&d, "registry.db"), F_OK) == 0 ? support_open_read_only(&d) : support_open(&d);
        for (char *name = strtok(names, "\n"); name; name = strtok(NULL, "\n")) {
            graft_project_list *l;
            good(gr_registry_project_list(&l, r, name, &err));
            bool whole = atoi(strrchr(name, '-') + 1) % 3 != 0 || l->items[0].n_adapters == 1;
            assert_true(whole);
            graft_project_list_free(l);
        }
        assert_true(gr_registry_check(r));
        gr_registry_close(r);
        check_integrity(&d);
    }
    print_message("killed %d times (%zu before the first change): %zu acknowledged changes, all there\n", KILLS, early, acknowledged);
    assert_true(acknowledged >= KILLS / 2);
    gr_free(names);
    support_remove(&d);
}

/* ---- many ----------------------------------------------------------------------------------------------- */

static void ten_thousand(void **state) {
    (void)state;
    enum { MANY = 10000, FINDS = 1000000 };
    test_dir d = test_dir_make();
    gr_registry_close(support_open(&d));
    support_sql(&d,
                "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<10000)"
                " INSERT INTO projects SELECT i, printf('project-%05d', i), 1, 1 FROM n;"
                "INSERT INTO adapters (id, project, name, path, generation, format, rank, file_bytes, bytes, base, state, error_code,"
                " error, pinned, created, changed) SELECT id, id, 'default', printf('/srv/adapters/somewhere/project-%05d', id),"
                " printf('%064x', id), 'peft', 16, 20000000, 10000000, printf('%064x', 7), iif(id%20=0,'failed','ready'),"
                " iif(id%20=0,-111,0), iif(id%20=0,'blk.0.attn_q.weight: 4 x 576, must be 576 x 4',''), 0, 1, 1 FROM projects;"
                "INSERT INTO usage SELECT id, 5, 500, 2, 0, 1, 0, 0, 12.5, 1700000000, 1700000001 FROM adapters WHERE id%2=0;");
    uint64_t bytes = gr_memory_bytes();
    int64_t start_us = gr_now_us();
    gr_registry *r = support_open(&d);
    int64_t opened_us = gr_now_us();
    bytes = gr_memory_bytes() - bytes;
    assert_int_equal(support_count(r), MANY);
    assert_true(bytes < 4u << 20);
    gr_catalog c = gr_registry_catalog(r);
    int64_t find_us = gr_now_us();
    for (int i = 0; i < FINDS; i++) {
        char name[32];
        gr_catalog_entry e;
        snprintf(name, sizeof name, "project-%05d", i % MANY + 1);
        assert_int_equal(c.find(c.self, name, "default", false, &e, NULL), 0);
    }
    find_us = gr_now_us() - find_us;
    print_message("10,000 adapters: opened in %.1f ms, %.2f MB of our memory, %.2f MB of SQLite's, %.0f ns a find\n",
                  (double)(opened_us - start_us) / 1000, (double)bytes / 1e6, (double)sqlite3_memory_used() / 1e6,
                  (double)find_us * 1000 / FINDS);
    graft_registered_list *l;
    size_t failed = 0;
    good(gr_registry_adapter_list(&l, r, NULL, NULL, &err));
    for (size_t i = 0; i < l->n; i++) {
        failed += l->items[i].state == GRAFT_REGISTERED_FAILED && *l->items[i].error;
    }
    assert_int_equal(failed, MANY / 20);
    graft_registered_list_free(l);
    assert_true(gr_registry_check(r));
    gr_registry_close(r);
    support_remove(&d);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(damage),         cmocka_unit_test(foreign_and_newer),   cmocka_unit_test(none_there),
        cmocka_unit_test(refused_with_a_log),
        cmocka_unit_test(second_process), cmocka_unit_test(second_handle),       cmocka_unit_test(locked_file),
        cmocka_unit_test(forked),         cmocka_unit_test(deleted_or_replaced), cmocka_unit_test(full_disk),
        cmocka_unit_test(read_only_folder), cmocka_unit_test(killed),            cmocka_unit_test(ten_thousand),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
