/* For the registry's tests: a folder with a registry in it, small adapters, and children that are killed. */
#ifndef REGISTRY_SUPPORT_H
#define REGISTRY_SUPPORT_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* nftw */
#endif
#include "make_adapter.h"

#include "registry/registry.h"

#include <errno.h>
#include <ftw.h>
#include <signal.h>
#include <sqlite3.h>
#include <sys/wait.h>

static inline int support_remove_one(const char *path, const struct stat *st, int kind, struct FTW *ftw) {
    (void)st;
    (void)kind;
    (void)ftw;
    return remove(path);
}

static inline void support_remove(const test_dir *d) {
    assert_int_equal(nftw(d->path, support_remove_one, 16, FTW_DEPTH | FTW_PHYS), 0);
}

static inline graft_registry_options support_options(const test_dir *d) {
    static char path[512];
    snprintf(path, sizeof path, "%s/registry.db", d->path);
    return (graft_registry_options){.size = sizeof(graft_registry_options), .path = path, .wait_ms = 0, .max_adapter_bytes = 1 << 20};
}

static inline gr_registry *support_open(const test_dir *d) {
    graft_registry_options o = support_options(d);
    graft_error err = {0};
    gr_registry *r = NULL;
    if (gr_registry_open(&r, &o, &err)) {
        fail_msg("open: %s: %s", graft_error_name(err.code), err.message);
    }
    return r;
}

static inline gr_registry *support_open_read_only(const test_dir *d) {
    graft_registry_options o = support_options(d);
    graft_error err = {0};
    gr_registry *r = NULL;
    o.read_only = true;
    if (gr_registry_open(&r, &o, &err)) {
        fail_msg("open: %s: %s", graft_error_name(err.code), err.message);
    }
    return r;
}

/* Opening must fail with `code` and `words`, and leave nothing behind in memory. */
static inline void support_no_open(const test_dir *d, bool read_only, int code, const char *words) {
    graft_registry_options o = support_options(d);
    graft_error err = {0};
    gr_registry *r = NULL;
    uint64_t blocks = gr_memory_blocks();
    int fds = test_open_fds();
    o.read_only = read_only;
    int rc = gr_registry_open(&r, &o, &err);
    if (rc != code || !strstr(err.message, words)) {
        fail_msg("wanted %s with \"%s\", got %s \"%s\"", graft_error_name(code), words, graft_error_name(rc), err.message);
    }
    assert_null(r);
    assert_int_equal(gr_memory_blocks(), blocks);
    assert_int_equal(test_open_fds(), fds);
}

/* A PEFT folder DIR/NAME (made if need be) whose numbers depend on `seed`. Returns its path, in one of make_adapter's buffers. */
static inline const char *support_adapter(const test_dir *d, const char *name, int seed) {
    test_dir folder;
    snprintf(folder.path, sizeof folder.path, "%.40s/%.20s", d->path, name);
    assert_true(mkdir(folder.path, 0700) == 0 || errno == EEXIST);
    test_adapter *a = test_adapter_make(GR_DTYPE_F16);
    a->t[0].factor = (float)(1 + seed);
    test_write_peft(a, &folder);
    free(a);
    return test_path(d, name);
}

#define good(call)                                                                             \
    do {                                                                                       \
        graft_error err = {0};                                                                 \
        if ((call) != 0) {                                                                     \
            fail_msg("%s: %s: %s", #call, graft_error_name(err.code), err.message);            \
        }                                                                                      \
    } while (0)

#define bad(expected, words, call)                                                             \
    do {                                                                                       \
        graft_error err = {0};                                                                 \
        int got = (call);                                                                      \
        if (got != (expected) || err.code != got || !strstr(err.message, words)) {             \
            fail_msg("%s: wanted %s with \"%s\", got %s \"%s\"", #call, graft_error_name(expected), words, graft_error_name(got), \
                     err.message);                                                             \
        }                                                                                      \
    } while (0)

/* The one adapter of that name; the list that holds it is for graft_registered_list_free. */
static inline graft_registered_list *support_get(gr_registry *r, const char *project, const char *adapter) {
    graft_registered_list *list = NULL;
    good(gr_registry_adapter_list(&list, r, project, adapter, &err));
    assert_int_equal(list->n, 1);
    return list;
}

static inline size_t support_count(gr_registry *r) {
    graft_registered_list *list = NULL;
    good(gr_registry_adapter_list(&list, r, NULL, NULL, &err));
    size_t n = list->n;
    graft_registered_list_free(list);
    return n;
}

static inline gr_catalog_entry support_find(gr_registry *r, const char *project, const char *adapter) {
    gr_catalog c = gr_registry_catalog(r);
    gr_catalog_entry e = {0};
    good(c.find(c.self, project, adapter, false, &e, &err));
    return e;
}

/* Runs SQL on the file from outside. */
static inline void support_sql(const test_dir *d, const char *sql) {
    sqlite3 *db;
    char *message = NULL;
    assert_int_equal(sqlite3_open(test_path(d, "registry.db"), &db), SQLITE_OK);
    if (sqlite3_exec(db, sql, NULL, NULL, &message) != SQLITE_OK) {
        fail_msg("%s: %s", sql, message);
    }
    sqlite3_close(db);
}

#endif
