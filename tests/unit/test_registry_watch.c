/* What the loader is told when the registry changes. */
#include "registry_support.h"

#include "base/clock.h"
#include "registry/state.h"

#include <stdatomic.h>

enum { MOST = 64 };

typedef struct heard {
    gr_registry *r;
    char lines[MOST][160];
    size_t n;
} heard;

static void hear(void *user, gr_registry_change change, const char *project, const char *adapter) {
    static const char *const names[] = {"removed", "changed", "pinned", "unpinned"};
    heard *h = user;
    gr_memory_fail_at(0, 0); /* what is asked here shall not fail in its stead */
    assert_true(h->n < MOST);
    snprintf(h->lines[h->n++], sizeof h->lines[0], "%s %s/%s", names[change], project, adapter);
    /* No lock is held, and the change is in force: both the catalog and a further question answer. */
    gr_catalog c = gr_registry_catalog(h->r);
    gr_catalog_entry e = {0};
    int rc = c.find(c.self, project, adapter, false, &e, NULL);
    assert_int_equal(rc, change == GR_REGISTRY_REMOVED ? GRAFT_E_NOT_FOUND : 0);
    if (change == GR_REGISTRY_PINNED || change == GR_REGISTRY_UNPINNED) {
        assert_int_equal(e.pinned, change == GR_REGISTRY_PINNED);
    }
    support_count(h->r);
}

static void told(heard *h, size_t n, ...) {
    va_list args;
    va_start(args, n);
    if (h->n != n) {
        fail_msg("wanted %zu, heard %zu, first \"%s\"", n, h->n, h->lines[0]);
    }
    for (size_t i = 0; i < n; i++) {
        assert_string_equal(h->lines[i], va_arg(args, const char *));
    }
    va_end(args);
    h->n = 0;
}

static void each_change(void **state) {
    (void)state;
    test_dir d = test_dir_make();
    heard h = {.r = support_open(&d)};
    gr_registry *r = h.r;
    bool changed = false;
    good(gr_registry_watch(r, hear, &h, &err));
    good(gr_registry_project_add(r, "one", &err));
    good(gr_registry_adapter_add(r, "one", NULL, support_adapter(&d, "a", 0), 0, &err));
    good(gr_registry_adapter_add(r, "one", "fast", support_adapter(&d, "b", 1), 0, &err));
    good(gr_registry_adapter_add(r, "one", "fast", test_path(&d, "b"), 0, &err)); /* the same again */
    good(gr_registry_adapter_add(r, "one", "fast", test_path(&d, "b"), GRAFT_ADD_REPLACE, &err));
    good(gr_registry_adapter_reload(r, "one", "fast", &changed, &err));
    assert_false(changed);
    told(&h, 0);
    good(gr_registry_adapter_add(r, "one", "fast", test_path(&d, "a"), GRAFT_ADD_REPLACE, &err)); /* another place */
    told(&h, 1, "changed one/fast");
    support_adapter(&d, "a", 2); /* other content */
    good(gr_registry_adapter_reload(r, "one", NULL, &changed, &err));
    assert_true(changed);
    told(&h, 1, "changed one/default");
    support_adapter(&d, "copy", 2); /* another place, the same content */
    good(gr_registry_adapter_add(r, "one", NULL, test_path(&d, "copy"), GRAFT_ADD_REPLACE, &err));
    told(&h, 1, "changed one/default");
    good(gr_registry_adapter_pin(r, "one", NULL, true, &err));
    good(gr_registry_adapter_pin(r, "one", "fast", false, &err));
    told(&h, 2, "pinned one/default", "unpinned one/fast");
    good(gr_registry_project_rename(r, "one", "two", &err));
    told(&h, 2, "removed one/default", "removed one/fast");
    good(gr_registry_adapter_remove(r, "two", "fast", &err));
    told(&h, 1, "removed two/fast");
    good(gr_registry_adapter_add(r, "two", "zeta", test_path(&d, "b"), 0, &err));
    good(gr_registry_project_remove(r, "two", &err));
    told(&h, 2, "removed two/default", "removed two/zeta");
    gr_registry_unwatch(r);
    gr_registry_close(r);
    support_remove(&d);
}

static void failures_tell_nothing(void **state) {
    (void)state;
    test_dir d = test_dir_make();
    heard h = {.r = support_open(&d)};
    gr_registry *r = h.r;
    good(gr_registry_adapter_add(r, "one", NULL, support_adapter(&d, "a", 0), GRAFT_ADD_PROJECT, &err));
    good(gr_registry_watch(r, hear, &h, &err));
    bad(GRAFT_E_CONFLICT, "another", gr_registry_watch(r, hear, &h, &err));
    bad(GRAFT_E_CONFLICT, "", gr_registry_adapter_add(r, "one", NULL, support_adapter(&d, "b", 1), 0, &err));
    bad(GRAFT_E_NOT_FOUND, "", gr_registry_adapter_remove(r, "one", "none", &err));
    bad(GRAFT_E_NOT_FOUND, "", gr_registry_project_remove(r, "none", &err));
    bad(GRAFT_E_NOT_FOUND, "", gr_registry_project_rename(r, "none", "other", &err));
    bad(GRAFT_E_NOT_FOUND, "", gr_registry_adapter_pin(r, "one", "none", true, &err));
    support_sql(&d, "CREATE TRIGGER no BEFORE DELETE ON projects BEGIN SELECT raise(ABORT, 'no'); END;"
                    "CREATE TRIGGER never BEFORE UPDATE ON adapters BEGIN SELECT raise(ABORT, 'no'); END");
    bad(GRAFT_E_INTERNAL, "no", gr_registry_project_remove(r, "one", &err));
    bad(GRAFT_E_INTERNAL, "no", gr_registry_adapter_pin(r, "one", NULL, true, &err));
    bad(GRAFT_E_INTERNAL, "no", gr_registry_adapter_add(r, "one", NULL, test_path(&d, "b"), GRAFT_ADD_REPLACE, &err));
    told(&h, 0);
    support_sql(&d, "DROP TRIGGER no; DROP TRIGGER never");
    for (int rc = -1, n = 1; rc != 0; n++) { /* out of memory in the middle: all or nothing */
        gr_memory_fail_at((uint64_t)n, 0);
        rc = gr_registry_project_rename(r, "one", "two", NULL);
        gr_memory_fail_at(0, 0);
        assert_true(n < 100 && (rc == 0 || rc == GRAFT_E_OUT_OF_MEMORY));
        assert_int_equal(h.n, rc == 0);
    }
    h.n = 0;
    gr_registry_unwatch(r);
    good(gr_registry_adapter_pin(r, "two", NULL, true, &err));
    told(&h, 0);
    good(gr_registry_watch(r, hear, &h, &err)); /* the next one may */
    gr_registry_unwatch(r);
    gr_registry_close(r);
    support_remove(&d);
}

/* ---- threads -------------------------------------------------------------------------------------------- */

enum { THREADS = 4, CHANGES = 60 };

typedef struct shared {
    gr_registry *r;
    atomic_int calls, inside;
    int quiet; /* not atomic: unwatch has to order it. Set once nobody may call any more */
} shared;

static void count_call(void *user, gr_registry_change change, const char *project, const char *adapter) {
    shared *s = user;
    (void)change;
    (void)project;
    (void)adapter;
    assert_false(s->quiet);
    atomic_fetch_add(&s->inside, 1);
    gr_sleep_us(2000); /* long enough to be left in the middle of it */
    assert_false(s->quiet);
    atomic_fetch_sub(&s->inside, 1);
    atomic_fetch_add(&s->calls, 1);
}

static void *change_things(void *arg) {
    shared *s = arg;
    for (int i = 0; i < CHANGES; i++) {
        assert_int_equal(gr_registry_adapter_pin(s->r, "one", NULL, i % 2 == 0, NULL), 0);
    }
    return NULL;
}

static void leaving_while_changes_go_on(void **state) {
    (void)state;
    test_dir d = test_dir_make();
    shared s = {.r = support_open(&d)};
    good(gr_registry_adapter_add(s.r, "one", NULL, support_adapter(&d, "a", 0), GRAFT_ADD_PROJECT, &err));
    good(gr_registry_watch(s.r, count_call, &s, &err));
    pthread_t threads[THREADS];
    for (int i = 0; i < THREADS; i++) {
        assert_int_equal(gr_thread_start(&threads[i], change_things, &s), 0);
    }
    while (atomic_load(&s.calls) < CHANGES || atomic_load(&s.inside) == 0) {
        gr_sleep_us(100);
    }
    gr_registry_unwatch(s.r);
    s.quiet = 1;
    int calls = atomic_load(&s.calls);
    for (int i = 0; i < THREADS; i++) {
        gr_thread_join(threads[i]);
    }
    assert_int_equal(atomic_load(&s.calls), calls);
    assert_true(calls < THREADS * CHANGES);
    gr_registry_close(s.r);
    support_remove(&d);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_change),
        cmocka_unit_test(failures_tell_nothing),
        cmocka_unit_test(leaving_while_changes_go_on),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
