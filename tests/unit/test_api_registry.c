/* The registry through graft.h alone: what callers may give, and what the library refuses. */
#include "graft.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define ADAPTER GRAFT_TEST_DATA "/oracle/golden/adapters/llama/plain"

static char folder[] = "/tmp/graft-test-XXXXXX";
static char path[64];

static int set_up(void **state) {
    (void)state;
    snprintf(path, sizeof path, "%s/r.db", mkdtemp(folder));
    return 0;
}

static int tear_down(void **state) {
    char lock[80], backup[80];
    (void)state;
    snprintf(lock, sizeof lock, "%s.lock", path);
    snprintf(backup, sizeof backup, "%s.backup", path);
    return unlink(path) || unlink(lock) || unlink(backup) || rmdir(folder);
}

static void refused(const graft_registry_options *o, const char *words) {
    graft_error err = {0};
    graft_registry *r = NULL;
    assert_int_equal(graft_registry_open(&r, o, &err), GRAFT_E_BAD_REQUEST);
    assert_int_equal(err.code, GRAFT_E_BAD_REQUEST);
    assert_non_null(strstr(err.message, words));
    assert_null(r);
}

static void arguments(void **state) {
    (void)state;
    graft_error err;
    graft_registry *r = NULL;
    graft_registry_options o = graft_registry_options_default();
    assert_int_equal(o.size, sizeof o);
    refused(NULL, "graft_registry_open needs");
    refused(&o, "option path");
    o.path = "";
    refused(&o, "option path");
    o.path = path;
    o.wait_ms = -1;
    refused(&o, "option wait_ms");
    o.wait_ms = 60001;
    refused(&o, "0 to 60000");
    o.wait_ms = 0;
    o.size = 8;
    refused(&o, "option size");
    graft_registry_close(NULL);
    graft_registered_list_free(NULL);
    graft_project_list_free(NULL);
    graft_event_list_free(NULL);
    assert_int_equal(graft_registry_project_add(NULL, "a", &err), GRAFT_E_BAD_REQUEST);
    assert_int_equal(graft_registry_scan(NULL, "a", NULL, NULL, NULL, NULL), GRAFT_E_BAD_REQUEST);
    o.size = sizeof o;
    assert_int_equal(graft_registry_open(&r, &o, NULL), 0);
    assert_int_equal(graft_registry_project_add(r, NULL, &err), GRAFT_E_BAD_NAME);
    assert_int_equal(graft_registry_adapter_add(r, "a", NULL, NULL, 0, &err), GRAFT_E_BAD_REQUEST);
    assert_int_equal(graft_registry_adapter_add(r, "a", NULL, ADAPTER, 8, &err), GRAFT_E_BAD_REQUEST);
    graft_registered_list *l;
    assert_int_equal(graft_registry_adapter_list(&l, r, NULL, "a", &err), GRAFT_E_BAD_REQUEST);
    assert_int_equal(graft_registry_adapter_list(NULL, r, NULL, NULL, &err), GRAFT_E_BAD_REQUEST);
    char secret[GRAFT_KEY_SIZE];
    graft_key_list *keys = NULL;
    assert_int_equal(graft_registry_key_add(NULL, r, "k", NULL, 0, &err), GRAFT_E_BAD_REQUEST);
    assert_int_equal(graft_registry_key_add(secret, NULL, "k", NULL, 0, &err), GRAFT_E_BAD_REQUEST);
    assert_int_equal(graft_registry_key_add(secret, r, "k", NULL, 1, &err), GRAFT_E_BAD_REQUEST);
    assert_int_equal(graft_registry_key_remove(NULL, "k", &err), GRAFT_E_BAD_REQUEST);
    assert_int_equal(graft_registry_key_list(NULL, r, NULL, &err), GRAFT_E_BAD_REQUEST);
    assert_int_equal(graft_registry_key_find(&keys, r, NULL, &err), GRAFT_E_BAD_REQUEST);
    assert_int_equal(graft_registry_key_count(NULL), 0);
    assert_int_equal(graft_registry_key_add(secret, r, "k", NULL, 0, NULL), 0);
    assert_int_equal(graft_registry_key_count(r), 1);
    assert_int_equal(graft_registry_key_find(&keys, r, secret, NULL), 0);
    assert_true(keys->n == 1 && keys->items[0].admin);
    graft_key_list_free(keys);
    graft_key_list_free(NULL);
    assert_int_equal(graft_registry_key_remove(r, "k", NULL), 0);
    graft_registry_close(r);
}

static void names(void **state) {
    (void)state;
    assert_string_equal(graft_registered_state_name(GRAFT_REGISTERED), "registered");
    assert_string_equal(graft_registered_state_name(GRAFT_REGISTERED_CHANGED), "changed");
    assert_string_equal(graft_registered_state_name((graft_registered_state)99), "unknown");
    assert_string_equal(graft_scan_outcome_name(GRAFT_SCAN_SKIPPED), "skipped");
    assert_string_equal(graft_scan_outcome_name((graft_scan_outcome)99), "unknown");
    assert_string_equal(graft_error_name(GRAFT_E_OUTSIDE_ROOT), "outside_root");
    assert_int_equal(graft_error_http(GRAFT_E_OUTSIDE_ROOT), 422);
}

static void a_life(void **state) {
    (void)state;
    graft_error err = {0};
    graft_registry *r;
    graft_registry_options o = graft_registry_options_default();
    graft_registered_list *l;
    graft_project_list *p;
    graft_event_list *e;
    bool changed = true;
    uint64_t bytes = graft_own_bytes();
    o.path = path;
    assert_int_equal(graft_registry_open(&r, &o, &err), 0);
    assert_int_equal(graft_registry_adapter_add(r, "p", "x", ADAPTER, GRAFT_ADD_PROJECT, &err), 0);
    assert_int_equal(graft_registry_adapter_pin(r, "p", "x", true, &err), 0);
    assert_int_equal(graft_registry_adapter_reload(r, "p", "x", &changed, &err), 0);
    assert_false(changed);
    assert_int_equal(graft_registry_project_rename(r, "p", "q", &err), 0);
    assert_int_equal(graft_registry_adapter_list(&l, r, "q", "x", &err), 0);
    assert_true(l->n == 1 && l->items[0].pinned);
    graft_registered_list_free(l);
    assert_int_equal(graft_registry_project_list(&p, r, NULL, &err), 0);
    assert_true(p->n == 1 && p->items[0].n_adapters == 1);
    graft_project_list_free(p);
    assert_int_equal(graft_registry_event_list(&e, r, NULL, NULL, 10, &err), 0);
    assert_int_equal(e->n, 0);
    graft_event_list_free(e);
    assert_int_equal(graft_registry_adapter_remove(r, "q", "x", &err), 0);
    assert_int_equal(graft_registry_project_remove(r, "q", &err), 0);
    graft_registry_close(r);
    assert_int_equal(graft_own_bytes(), bytes);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(arguments), cmocka_unit_test(names), cmocka_unit_test(a_life)};
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
