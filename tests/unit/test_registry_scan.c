/* Finding adapters in a folder. */
#include "registry_support.h"

static const gr_scan_limits limits = {GRAFT_SCAN_ENTRIES, GRAFT_SCAN_DEPTH};

/* What a scan told, as lines "outcome project/adapter code". */
static char told[65536];

static bool tell(const graft_scan_item *item, void *user) {
    size_t n = strlen(told);
    (void)user;
    assert_true(item->outcome == GRAFT_SCAN_ADDED || item->outcome == GRAFT_SCAN_KNOWN || *item->message);
    snprintf(told + n, sizeof told - n, "%s %s/%s %s\n", graft_scan_outcome_name(item->outcome), item->project, item->adapter,
             graft_error_name(item->code));
    return true;
}

static graft_scan_summary scan(gr_registry *r, const char *path) {
    graft_scan_summary s;
    told[0] = '\0';
    good(gr_registry_scan(r, path, &limits, tell, NULL, &s, &err));
    return s;
}

static void make_folder(const test_dir *d, const char *name) {
    assert_int_equal(mkdir(test_path(d, name), 0700), 0);
}

static void gguf(const test_dir *d, const char *name, const char *type) {
    test_adapter *a = test_gguf_make(GR_DTYPE_F32);
    test_write_gguf(a, d, name, type, "llama", 8, false);
    free(a);
}

static void finds_all(void **state) {
    (void)state;
    test_dir d = test_dir_make();
    gr_registry *r = support_open(&d);
    make_folder(&d, "x");
    support_adapter(&d, "x/alder", 0);
    support_adapter(&d, "x/birch", 1);
    support_adapter(&d, "x/birch/step-5", 2); /* an adapter below an adapter */
    support_adapter(&d, "x/my project", 3);
    support_adapter(&d, "x/.hidden", 4);
    make_folder(&d, "x/deep");
    make_folder(&d, "x/deep/er");
    support_adapter(&d, "x/deep/er/cedar", 5);
    make_folder(&d, "x/elm");
    gguf(&d, "x/elm/one.gguf", "adapter");
    make_folder(&d, "x/fir");
    gguf(&d, "x/fir/a.gguf", "adapter");
    gguf(&d, "x/fir/b.gguf", "adapter");
    gguf(&d, "x/oak.gguf", "adapter");
    gguf(&d, "x/base.gguf", "model");
    test_write_text(&d, "x/README", "no adapter");
    graft_scan_summary s = scan(r, test_path(&d, "x"));
    assert_string_equal(told, "added alder/default ok\n"
                              "skipped base/default not_an_adapter\n"
                              "added birch/default ok\n"
                              "added step-5/default ok\n"
                              "added cedar/default ok\n"
                              "added elm/default ok\n"
                              "added fir/a ok\n"
                              "added fir/b ok\n"
                              "added my-project/default ok\n"
                              "added oak/default ok\n");
    assert_int_equal(s.added, 9);
    assert_int_equal(s.skipped, 1);
    assert_true(s.complete);
    assert_true(gr_registry_check(r));
    graft_registered_list *l = support_get(r, "my-project", "default");
    assert_string_equal(l->items[0].path, test_path(&d, "x/my project"));
    assert_string_equal(l->items[0].generation, ""); /* nothing was read */
    assert_int_equal(l->items[0].rank, 4);
    graft_registered_list_free(l);
    s = scan(r, test_path(&d, "x"));
    assert_int_equal(s.known, 9);
    assert_int_equal(s.added, 0);
    gr_registry_close(r);
    r = support_open(&d);
    assert_int_equal(support_count(r), 9);
    gr_registry_close(r);
    support_remove(&d);
}

/* The folder itself is an adapter; and it is given by a link with a slash behind. */
static void the_folder_itself(void **state) {
    (void)state;
    test_dir d = test_dir_make();
    gr_registry *r = support_open(&d);
    support_adapter(&d, "alder", 0);
    assert_int_equal(symlink("alder", test_path(&d, "link")), 0);
    scan(r, test_path(&d, "link/"));
    assert_string_equal(told, "added alder/default ok\n");
    gr_registry_close(r);
    support_remove(&d);
}

static void broken_ones(void **state) {
    (void)state;
    test_dir d = test_dir_make();
    gr_registry *r = support_open(&d);
    make_folder(&d, "x");
    for (int i = 0; i < 6; i++) {
        char name[16];
        snprintf(name, sizeof name, "x/p%d", i);
        support_adapter(&d, name, i);
    }
    unlink(test_path(&d, "x/p1/adapter_config.json"));
    unlink(test_path(&d, "x/p2/adapter_model.safetensors"));
    test_write_text(&d, "x/p2/adapter_model.bin", "\x80\x02");
    test_write_text(&d, "x/p3/adapter_config.json", "{\"peft_type\": \"LOHA\", \"r\": 4}");
    test_write_text(&d, "x/p4/adapter_model.safetensors", "short");
    make_folder(&d, "x/caf\xc3\xa9");
    test_write_text(&d, "x/caf\xc3\xa9/adapter_config.json", "{}");
    make_folder(&d, "x/a\x1b[1m");
    test_write_text(&d, "x/a\x1b[1m/adapter_config.json", "{}");
    graft_scan_summary s = scan(r, test_path(&d, "x"));
    assert_string_equal(told, "refused /default bad_name\n"
                              "refused /default bad_name\n"
                              "added p0/default ok\n"
                              "broken p1/default config_missing\n"
                              "broken p2/default pickle_refused\n"
                              "broken p3/default unsupported_adapter\n"
                              "broken p4/default header_too_small\n"
                              "added p5/default ok\n");
    assert_int_equal(s.broken, 4);
    assert_int_equal(s.refused, 2);
    graft_registered_list *l = support_get(r, "p3", "default");
    assert_int_equal(l->items[0].state, GRAFT_REGISTERED_FAILED);
    assert_int_equal(l->items[0].error_code, GRAFT_E_UNSUPPORTED_ADAPTER);
    assert_non_null(strstr(l->items[0].error, "LOHA"));
    graft_registered_list_free(l);
    /* Mended and broken since: a scan finds that out too. */
    support_adapter(&d, "x/p3", 3);
    unlink(test_path(&d, "x/p5/adapter_config.json"));
    s = scan(r, test_path(&d, "x"));
    assert_int_equal(s.known, 2);
    assert_int_equal(s.broken, 4);
    l = support_get(r, "p3", "default");
    assert_int_equal(l->items[0].state, GRAFT_REGISTERED);
    assert_string_equal(l->items[0].error, "");
    graft_registered_list_free(l);
    l = support_get(r, "p5", "default");
    assert_int_equal(l->items[0].error_code, GRAFT_E_CONFIG_MISSING);
    graft_registered_list_free(l);
    assert_true(gr_registry_check(r));
    gr_registry_close(r);
    support_remove(&d);
}

/* A name that stands for another path is left alone, and so is the second of two folders of one name. */
static void names_clash(void **state) {
    (void)state;
    test_dir d = test_dir_make();
    gr_registry *r = support_open(&d);
    make_folder(&d, "x");
    make_folder(&d, "x/one");
    make_folder(&d, "x/two");
    support_adapter(&d, "x/one/alder", 0);
    support_adapter(&d, "x/two/alder", 1);
    support_adapter(&d, "x/a b", 2);
    support_adapter(&d, "x/a-b", 3);
    support_adapter(&d, "birch", 4);
    support_adapter(&d, "x/birch", 5);
    good(gr_registry_adapter_add(r, "birch", NULL, test_path(&d, "birch"), GRAFT_ADD_PROJECT, &err));
    gr_catalog_entry before = support_find(r, "birch", "default");
    scan(r, test_path(&d, "x"));
    assert_string_equal(told, "added a-b/default ok\n"
                              "refused a-b/default conflict\n"
                              "refused birch/default conflict\n"
                              "added alder/default ok\n"
                              "refused alder/default conflict\n");
    assert_int_equal(support_find(r, "birch", "default").revision, before.revision);
    gr_registry_close(r);
    support_remove(&d);
}

static void links(void **state) {
    (void)state;
    test_dir d = test_dir_make(), other = test_dir_make();
    gr_registry *r = support_open(&d);
    make_folder(&d, "x");
    make_folder(&d, "x/store");
    support_adapter(&d, "x/store/abc", 0);
    support_adapter(&other, "secret", 1);
    assert_int_equal(symlink("store/abc", test_path(&d, "x/inside")), 0);
    assert_int_equal(symlink(test_path(&other, "secret"), test_path(&d, "x/outside")), 0);
    assert_int_equal(symlink(other.path, test_path(&d, "x/elsewhere")), 0);
    assert_int_equal(symlink("..", test_path(&d, "x/store/up")), 0);
    assert_int_equal(symlink("self", test_path(&d, "x/self")), 0);
    assert_int_equal(symlink("nowhere", test_path(&d, "x/dangling.gguf")), 0);
    assert_int_equal(symlink("/dev/zero", test_path(&d, "x/zero.gguf")), 0);
    assert_int_equal(mkfifo(test_path(&d, "x/fifo.gguf"), 0600), 0);
    /* As the hub's cache does it: the folder is real, its files are links to blobs. */
    make_folder(&d, "x/blobs");
    make_folder(&d, "x/snapshot");
    for (int i = 0; i < 2; i++) {
        static const char *const files[] = {"adapter_config.json", "adapter_model.safetensors"};
        char from[64], to[64], blob[64];
        snprintf(from, sizeof from, "x/store/abc/%s", files[i]);
        snprintf(blob, sizeof blob, "x/blobs/%d", i);
        snprintf(to, sizeof to, "x/snapshot/%s", files[i]);
        assert_int_equal(link(test_path(&d, from), test_path(&d, blob)), 0);
        snprintf(blob, sizeof blob, "../blobs/%d", i);
        assert_int_equal(symlink(blob, test_path(&d, to)), 0);
    }
    make_folder(&d, "x/thief");
    assert_int_equal(symlink(test_path(&other, "secret/adapter_config.json"), test_path(&d, "x/thief/adapter_config.json")), 0);
    graft_scan_summary s = scan(r, test_path(&d, "x"));
    assert_string_equal(told, "broken dangling/default adapter_file_missing\n"
                              "added inside/default ok\n"
                              "refused outside/default outside_root\n"
                              "added snapshot/default ok\n"
                              "added abc/default ok\n"
                              "refused thief/default outside_root\n"
                              "refused zero/default outside_root\n");
    assert_true(s.complete);
    gr_registry_close(r);
    support_remove(&other);
    support_remove(&d);
}

static void limits_hold(void **state) {
    (void)state;
    test_dir d = test_dir_make();
    gr_registry *r = support_open(&d);
    char path[256] = "x";
    make_folder(&d, path);
    support_adapter(&d, "x/top", 0);
    for (int i = 0; i < 6; i++) {
        strcat(path, "/d");
        make_folder(&d, path);
    }
    graft_scan_summary s;
    good(gr_registry_scan(r, test_path(&d, "x"), &(gr_scan_limits){1000, 3}, NULL, NULL, &s, &err));
    assert_false(s.complete);
    assert_int_equal(s.added, 1);
    good(gr_registry_scan(r, test_path(&d, "x"), &(gr_scan_limits){1000, 6}, NULL, NULL, &s, &err));
    assert_true(s.complete);
    good(gr_registry_scan(r, test_path(&d, "x"), &(gr_scan_limits){1, 6}, NULL, NULL, &s, &err));
    assert_false(s.complete);
    assert_int_equal(s.entries, 1);
    gr_registry_close(r);
    support_remove(&d);
}

static int left;

static bool stop_after(const graft_scan_item *item, void *user) {
    (void)item;
    (void)user;
    return --left > 0;
}

static void many_and_stopping(void **state) {
    (void)state;
    enum { MANY = 300 };
    test_dir d = test_dir_make();
    gr_registry *r = support_open(&d);
    make_folder(&d, "x");
    for (int i = 0; i < MANY; i++) {
        char name[16];
        snprintf(name, sizeof name, "x/p%03d", i);
        support_adapter(&d, name, i % 7);
    }
    left = 100;
    graft_scan_summary s;
    bad(GRAFT_E_CANCELLED, "stopped", gr_registry_scan(r, test_path(&d, "x"), &limits, stop_after, NULL, &s, &err));
    size_t n = support_count(r);
    assert_true(n >= 100 && n < MANY);
    s = scan(r, test_path(&d, "x"));
    assert_int_equal(s.known, n);
    assert_int_equal(s.added, MANY - n);
    assert_int_equal(support_count(r), MANY);
    assert_true(gr_registry_check(r));
    gr_registry_close(r);
    support_remove(&d);
}

static void refusals(void **state) {
    (void)state;
    test_dir d = test_dir_make();
    gr_registry *r = support_open(&d);
    test_write_text(&d, "file", "x");
    bad(GRAFT_E_ADAPTER_FILE_MISSING, "", gr_registry_scan(r, "/nowhere", &limits, NULL, NULL, NULL, &err));
    bad(GRAFT_E_NOT_READABLE, "no folder", gr_registry_scan(r, test_path(&d, "file"), &limits, NULL, NULL, NULL, &err));
    gr_registry_close(r);
    graft_registry_options o = support_options(&d);
    o.root = d.path;
    good(gr_registry_open(&r, &o, &err));
    bad(GRAFT_E_OUTSIDE_ROOT, "", gr_registry_scan(r, "/etc", &limits, NULL, NULL, NULL, &err));
    good(gr_registry_scan(r, d.path, &limits, NULL, NULL, NULL, &err));
    gr_registry_close(r);
    support_remove(&d);
}

static void allocation_failures(void **state) {
    (void)state;
    test_dir d = test_dir_make();
    gr_registry *r = support_open(&d);
    make_folder(&d, "x");
    support_adapter(&d, "x/alder", 0);
    support_adapter(&d, "x/birch", 1);
    gguf(&d, "x/oak.gguf", "adapter");
    for (int forever = 0; forever < 2; forever++) {
        int rc = -1;
        for (uint64_t n = 1; rc != 0; n++) {
            graft_scan_summary s = {0};
            assert_true(n < 2000);
            gr_memory_fail_at(n, forever);
            rc = gr_registry_scan(r, test_path(&d, "x"), &limits, NULL, NULL, &s, NULL);
            gr_memory_fail_at(0, 0);
            assert_true(rc == 0 || rc == GRAFT_E_OUT_OF_MEMORY);
            assert_true(gr_registry_check(r));
            if (rc == 0 && s.added == 3) {
                break;
            }
            rc = -1; /* memory that ran out while a file was read is a broken adapter, until the next scan */
            gr_registry_project_remove(r, "alder", NULL);
            gr_registry_project_remove(r, "birch", NULL);
            gr_registry_project_remove(r, "oak", NULL);
            assert_int_equal(support_count(r), 0);
        }
        assert_int_equal(support_count(r), 3);
        gr_registry_project_remove(r, "alder", NULL);
        gr_registry_project_remove(r, "birch", NULL);
        gr_registry_project_remove(r, "oak", NULL);
    }
    gr_registry_close(r);
    support_remove(&d);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(finds_all),   cmocka_unit_test(the_folder_itself), cmocka_unit_test(broken_ones),
        cmocka_unit_test(names_clash), cmocka_unit_test(links),             cmocka_unit_test(limits_hold),
        cmocka_unit_test(many_and_stopping), cmocka_unit_test(refusals),    cmocka_unit_test(allocation_failures),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
