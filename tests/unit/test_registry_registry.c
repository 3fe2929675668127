/* Adding, renaming, removing, opening again; the catalog and the history. */
#include "registry_support.h"

#include "model/adapter.h"
#include "registry/state.h"

/* ---- names and adapters --------------------------------------------------------------------------------- */

static void add_and_open_again(void **state) {
    (void)state;
    test_dir d = test_dir_make();
    uint64_t blocks = gr_memory_blocks();
    gr_registry *r = support_open(&d);
    good(gr_registry_project_add(r, "birch", &err));
    good(gr_registry_adapter_add(r, "birch", NULL, support_adapter(&d, "b", 1), 0, &err));
    good(gr_registry_adapter_add(r, "birch", "fast", support_adapter(&d, "f", 2), 0, &err));
    good(gr_registry_adapter_add(r, "alder", NULL, support_adapter(&d, "a", 0), GRAFT_ADD_PROJECT, &err));
    good(gr_registry_adapter_pin(r, "birch", "fast", true, &err));
    assert_true(gr_registry_check(r));
    for (int round = 0; round < 2; round++) {
        graft_registered_list *l;
        good(gr_registry_adapter_list(&l, r, NULL, NULL, &err));
        assert_int_equal(l->n, 3);
        assert_string_equal(l->items[0].project, "alder");
        assert_string_equal(l->items[1].project, "birch");
        assert_string_equal(l->items[1].adapter, "default");
        assert_string_equal(l->items[2].adapter, "fast");
        assert_string_equal(l->items[2].path, test_path(&d, "f"));
        assert_int_equal(strlen(l->items[2].generation), 64);
        assert_string_equal(l->items[2].format, "peft");
        assert_int_equal(l->items[2].rank, 4);
        assert_true(l->items[2].file_bytes > 1000);
        assert_true(l->items[2].pinned);
        assert_false(l->items[1].pinned);
        assert_int_equal(l->items[2].state, GRAFT_REGISTERED);
        assert_string_equal(l->items[2].error, "");
        assert_true(l->items[2].created > 1600000000);
        graft_registered_list_free(l);
        graft_project_list *p;
        good(gr_registry_project_list(&p, r, NULL, &err));
        assert_int_equal(p->n, 2);
        assert_string_equal(p->items[1].name, "birch");
        assert_int_equal(p->items[1].n_adapters, 2);
        graft_project_list_free(p);
        gr_registry_close(r);
        assert_int_equal(gr_memory_blocks(), blocks);
        r = round ? NULL : support_open(&d);
    }
    support_remove(&d);
}

/* The generation is the one that loading finds: same definition, two pieces of code. */
static void generation_is_that_of_loading(void **state) {
    (void)state;
    test_dir d = test_dir_make();
    gr_registry *r = support_open(&d);
    gr_base_model *base = test_base_make("llama");
    test_adapter *g = test_gguf_make(GR_DTYPE_F32);
    test_write_gguf(g, &d, "x.gguf", "adapter", "llama", 8, false);
    free(g);
    const char *paths[] = {support_adapter(&d, "a", 3), test_path(&d, "x.gguf")};
    for (int i = 0; i < 2; i++) {
        gr_adapter *a;
        good(gr_adapter_open(&a, base, paths[i], GRAFT_TYPE_F16, 1 << 20, NULL, &err));
        good(gr_registry_adapter_add(r, i ? "gguf" : "peft", NULL, paths[i], GRAFT_ADD_PROJECT, &err));
        graft_registered_list *l = support_get(r, i ? "gguf" : "peft", "default");
        assert_string_equal(l->items[0].generation, a->generation);
        assert_string_equal(l->items[0].format, a->format);
        assert_int_equal(l->items[0].rank, a->rank_max);
        graft_registered_list_free(l);
        gr_adapter_release(a);
    }
    test_base_free(base);
    gr_registry_close(r);
    support_remove(&d);
}

static void duplicates(void **state) {
    (void)state;
    test_dir d = test_dir_make();
    gr_registry *r = support_open(&d);
    good(gr_registry_project_add(r, "p", &err));
    bad(GRAFT_E_CONFLICT, "project \"p\"", gr_registry_project_add(r, "p", &err));
    const char *a = support_adapter(&d, "a", 0);
    good(gr_registry_adapter_add(r, "p", NULL, a, 0, &err));
    gr_catalog_entry before = support_find(r, "p", "default");
    /* The same once more is the same; other content or another place is not. */
    good(gr_registry_adapter_add(r, "p", NULL, a, 0, &err));
    assert_int_equal(support_find(r, "p", "default").revision, before.revision);
    bad(GRAFT_E_CONFLICT, "p/default stands for", gr_registry_adapter_add(r, "p", NULL, support_adapter(&d, "b", 0), 0, &err));
    support_adapter(&d, "a", 9);
    bad(GRAFT_E_CONFLICT, "other content", gr_registry_adapter_add(r, "p", NULL, test_path(&d, "a"), 0, &err));
    bad(GRAFT_E_CONFLICT, "project \"p\"", gr_registry_adapter_add(r, "p", "x", test_path(&d, "a"), GRAFT_ADD_NEW_PROJECT, &err));
    assert_string_equal(support_find(r, "p", "default").generation, before.generation);
    good(gr_registry_adapter_pin(r, "p", NULL, true, &err));
    good(gr_registry_adapter_add(r, "p", NULL, test_path(&d, "b"), GRAFT_ADD_REPLACE, &err));
    gr_catalog_entry after = support_find(r, "p", "default");
    assert_int_not_equal(after.revision, before.revision);
    assert_true(after.pinned);
    assert_true(gr_registry_check(r));
    gr_registry_close(r);
    support_remove(&d);
}

/* Two names, one content: two rows, and the one outlives the other. */
static void same_content_twice(void **state) {
    (void)state;
    test_dir d = test_dir_make();
    gr_registry *r = support_open(&d);
    good(gr_registry_adapter_add(r, "p", NULL, support_adapter(&d, "a", 5), GRAFT_ADD_PROJECT, &err));
    good(gr_registry_adapter_add(r, "q", NULL, support_adapter(&d, "b", 5), GRAFT_ADD_PROJECT, &err));
    gr_catalog_entry p = support_find(r, "p", "default"), q = support_find(r, "q", "default");
    assert_string_equal(p.generation, q.generation);
    assert_int_not_equal(p.revision, q.revision);
    good(gr_registry_project_remove(r, "p", &err));
    assert_string_equal(support_find(r, "q", "default").generation, q.generation);
    gr_registry_close(r);
    r = support_open(&d);
    assert_int_equal(support_count(r), 1);
    support_find(r, "q", "default");
    gr_registry_close(r);
    support_remove(&d);
}

static void renaming(void **state) {
    (void)state;
    test_dir d = test_dir_make();
    gr_registry *r = support_open(&d);
    const char *const names[] = {"m", "b", "z", "k"};
    for (int i = 0; i < 4; i++) {
        good(gr_registry_adapter_add(r, names[i], NULL, support_adapter(&d, names[i], i), GRAFT_ADD_PROJECT, &err));
    }
    gr_catalog_entry b = support_find(r, "b", "default");
    bad(GRAFT_E_CONFLICT, "\"z\"", gr_registry_project_rename(r, "b", "z", &err));
    bad(GRAFT_E_CONFLICT, "\"b\"", gr_registry_project_rename(r, "b", "b", &err));
    bad(GRAFT_E_NOT_FOUND, "\"x\"", gr_registry_project_rename(r, "x", "y", &err));
    good(gr_registry_project_rename(r, "b", "zz", &err));
    assert_true(gr_registry_check(r));
    gr_catalog_entry e = support_find(r, "zz", "default");
    assert_int_equal(e.revision, b.revision);
    assert_string_equal(e.generation, b.generation);
    gr_catalog c = gr_registry_catalog(r);
    bad(GRAFT_E_NOT_FOUND, "no project \"b\"", c.find(c.self, "b", "default", false, &e, &err));
    /* The freed name may be taken, and is somebody else. */
    good(gr_registry_adapter_add(r, "b", NULL, test_path(&d, "b"), GRAFT_ADD_PROJECT, &err));
    assert_int_not_equal(support_find(r, "b", "default").revision, b.revision);
    gr_registry_close(r);
    r = support_open(&d);
    assert_string_equal(support_find(r, "zz", "default").generation, b.generation);
    assert_true(gr_registry_check(r));
    gr_registry_close(r);
    support_remove(&d);
}

static void removing(void **state) {
    (void)state;
    test_dir d = test_dir_make();
    gr_registry *r = support_open(&d);
    bad(GRAFT_E_NOT_FOUND, "no project \"p\"", gr_registry_adapter_add(r, "p", NULL, support_adapter(&d, "a", 0), 0, &err));
    good(gr_registry_adapter_add(r, "p", "x", test_path(&d, "a"), GRAFT_ADD_PROJECT, &err));
    gr_catalog c = gr_registry_catalog(r);
    gr_catalog_entry e;
    bad(GRAFT_E_NOT_FOUND, "no adapter \"default\"", c.find(c.self, "p", "default", false, &e, &err));
    uint64_t revision = support_find(r, "p", "x").revision;
    bad(GRAFT_E_NOT_FOUND, "no adapter \"default\"", gr_registry_adapter_remove(r, "p", NULL, &err));
    bad(GRAFT_E_NOT_FOUND, "no project \"q\"", gr_registry_adapter_remove(r, "q", "x", &err));
    bad(GRAFT_E_NOT_FOUND, "", gr_registry_adapter_pin(r, "p", "y", true, &err));
    bad(GRAFT_E_NOT_FOUND, "", gr_registry_adapter_reload(r, "p", "y", NULL, &err));
    good(gr_registry_adapter_remove(r, "p", "x", &err));
    bad(GRAFT_E_NOT_FOUND, "", c.find(c.self, "p", "x", false, &e, &err));
    /* Nothing that held the old revision may take the new row for it. */
    good(gr_registry_adapter_add(r, "p", "x", test_path(&d, "a"), 0, &err));
    assert_int_not_equal(support_find(r, "p", "x").revision, revision);
    good(gr_registry_project_remove(r, "p", &err));
    bad(GRAFT_E_NOT_FOUND, "", gr_registry_project_remove(r, "p", &err));
    assert_int_equal(support_count(r), 0);
    assert_true(access(test_path(&d, "a"), F_OK) == 0);
    gr_registry_close(r);
    r = support_open(&d);
    assert_int_equal(support_count(r), 0);
    gr_registry_close(r);
    support_remove(&d);
}

static void reloading(void **state) {
    (void)state;
    test_dir d = test_dir_make();
    gr_registry *r = support_open(&d);
    bool changed = true;
    good(gr_registry_adapter_add(r, "p", NULL, support_adapter(&d, "a", 0), GRAFT_ADD_PROJECT, &err));
    gr_catalog_entry first = support_find(r, "p", "default");
    good(gr_registry_adapter_reload(r, "p", NULL, &changed, &err));
    gr_catalog_entry second = support_find(r, "p", "default");
    assert_false(changed);
    assert_int_not_equal(second.revision, first.revision);
    assert_string_equal(second.generation, first.generation);
    support_adapter(&d, "a", 1);
    good(gr_registry_adapter_reload(r, "p", NULL, &changed, &err));
    gr_catalog_entry third = support_find(r, "p", "default");
    assert_true(changed);
    assert_string_not_equal(third.generation, first.generation);
    /* Files that are gone or bad leave the entry as it was: what is in memory goes on serving. */
    assert_int_equal(unlink(test_path(&d, "a/adapter_config.json")), 0);
    bad(GRAFT_E_CONFIG_MISSING, "", gr_registry_adapter_reload(r, "p", NULL, &changed, &err));
    gr_catalog_entry fourth = support_find(r, "p", "default");
    assert_int_equal(fourth.revision, third.revision);
    assert_string_equal(fourth.generation, third.generation);
    gr_registry_close(r);
    support_remove(&d);
}

static void paths(void **state) {
    (void)state;
    test_dir d = test_dir_make(), other = test_dir_make();
    char here[512], long_path[5000];
    support_adapter(&d, "a", 0);
    support_adapter(&other, "o", 0);
    gr_registry *r = support_open(&d);
    memset(long_path, 'a', sizeof long_path - 1);
    long_path[sizeof long_path - 1] = '\0';
    good(gr_registry_project_add(r, "p", &err));
    bad(GRAFT_E_BAD_REQUEST, "is empty", gr_registry_adapter_add(r, "p", NULL, "", 0, &err));
    bad(GRAFT_E_BAD_REQUEST, "too long", gr_registry_adapter_add(r, "p", NULL, long_path, 0, &err));
    bad(GRAFT_E_BAD_REQUEST, "UTF-8", gr_registry_adapter_add(r, "p", NULL, "/tmp/\xff", 0, &err));
    bad(GRAFT_E_BAD_REQUEST, "control", gr_registry_adapter_add(r, "p", NULL, "/tmp/\x1b[1m", 0, &err));
    bad(GRAFT_E_ADAPTER_FILE_MISSING, "", gr_registry_adapter_add(r, "p", NULL, test_path(&d, "nowhere"), 0, &err));
    bad(GRAFT_E_HEADER_TOO_SMALL, "", gr_registry_adapter_add(r, "p", NULL, "/proc/self/mem", 0, &err));
    bad(GRAFT_E_NOT_REGULAR_FILE, "", gr_registry_adapter_add(r, "p", NULL, "/dev/zero", 0, &err));
    /* A relative path is made absolute, and a link stays one. */
    assert_non_null(getcwd(here, sizeof here));
    assert_int_equal(chdir(d.path), 0);
    assert_int_equal(symlink("a", "link"), 0);
    good(gr_registry_adapter_add(r, "p", NULL, "./link/", 0, &err));
    assert_int_equal(chdir(here), 0);
    graft_registered_list *l = support_get(r, "p", "default");
    assert_string_equal(l->items[0].path, test_path(&d, "link"));
    graft_registered_list_free(l);
    gr_registry_close(r);

    /* With a root nothing leads out of it: not by "..", not by an absolute path, not by links to folders or to files. */
    graft_registry_options o = support_options(&d);
    char link[512];
    o.root = d.path;
    good(gr_registry_open(&r, &o, &err));
    snprintf(link, sizeof link, "../%s/o", strrchr(other.path, '/') + 1);
    bad(GRAFT_E_OUTSIDE_ROOT, "", gr_registry_adapter_add(r, "p", "x", link, 0, &err));
    bad(GRAFT_E_OUTSIDE_ROOT, "", gr_registry_adapter_add(r, "p", "x", test_path(&other, "o"), 0, &err));
    bad(GRAFT_E_OUTSIDE_ROOT, "", gr_registry_adapter_add(r, "p", "x", "/proc/self/mem", 0, &err));
    assert_int_equal(symlink(test_path(&other, "o"), test_path(&d, "out")), 0);
    bad(GRAFT_E_OUTSIDE_ROOT, "", gr_registry_adapter_add(r, "p", "x", "out", 0, &err));
    assert_int_equal(symlink("loop", test_path(&d, "loop")), 0);
    bad(GRAFT_E_NOT_READABLE, "", gr_registry_adapter_add(r, "p", "x", "loop", 0, &err));
    support_adapter(&d, "c", 0);
    assert_int_equal(unlink(test_path(&d, "c/adapter_config.json")), 0);
    assert_int_equal(symlink(test_path(&other, "o/adapter_config.json"), test_path(&d, "c/adapter_config.json")), 0);
    bad(GRAFT_E_OUTSIDE_ROOT, "", gr_registry_adapter_add(r, "p", "x", "c", 0, &err));
    good(gr_registry_adapter_add(r, "p", "x", "a", 0, &err));
    good(gr_registry_adapter_add(r, "p", "y", "link", 0, &err));
    gr_registry_close(r);

    /* The same for one call, with a registry that has no root, or a wider one, or none that fits. */
    o.root = NULL;
    good(gr_registry_open(&r, &o, &err));
    bad(GRAFT_E_OUTSIDE_ROOT, "", gr_registry_adapter_add_below(r, d.path, "p", "x", test_path(&other, "o"), 0, &err));
    bad(GRAFT_E_OUTSIDE_ROOT, "", gr_registry_adapter_add_below(r, d.path, "p", "x", test_path(&d, "c"), 0, &err));
    good(gr_registry_adapter_add_below(r, d.path, "p", "z", test_path(&d, "a"), 0, &err));
    gr_registry_close(r);
    o.root = test_path(&d, "a");
    good(gr_registry_open(&r, &o, &err));
    good(gr_registry_adapter_add_below(r, d.path, "p", "u", test_path(&d, "a"), 0, &err));
    bad(GRAFT_E_OUTSIDE_ROOT, "", gr_registry_adapter_add_below(r, d.path, "p", "x", support_adapter(&d, "b", 0), 0, &err));
    bad(GRAFT_E_OUTSIDE_ROOT, "", gr_registry_adapter_add_below(r, other.path, "p", "x", test_path(&other, "o"), 0, &err));
    gr_registry_close(r);
    support_remove(&other);
    support_remove(&d);
}

/* ---- the catalog and the history ------------------------------------------------------------------------ */

static void tell(gr_registry *r, gr_event e) {
    gr_catalog c = gr_registry_catalog(r);
    e.project = e.project ? e.project : "p";
    e.adapter = "default";
    c.record(c.self, &e);
}

static char g1[65], g2[65];

static void history(void **state) {
    (void)state;
    test_dir d = test_dir_make();
    uint8_t base[32] = {0xab};
    memset(g1, '1', 64);
    gr_registry *r = support_open(&d);
    good(gr_registry_set_base(r, base, &err));
    good(gr_registry_adapter_add(r, "p", NULL, support_adapter(&d, "a", 0), GRAFT_ADD_PROJECT, &err));
    tell(r, (gr_event){.kind = GR_EVENT_LOADED, .generation = g1, .bytes = 1000, .ms = 2.5, .format = "peft", .rank = 8});
    tell(r, (gr_event){.kind = GR_EVENT_USED, .ms = 10, .tokens = 30});
    tell(r, (gr_event){.kind = GR_EVENT_USED, .ms = 10, .tokens = 12});
    tell(r, (gr_event){.kind = GR_EVENT_EVICTED, .generation = g1, .bytes = 1000});
    tell(r, (gr_event){.kind = GR_EVENT_LOADED, .generation = g1, .bytes = 1004, .ms = 1.5, .format = "peft", .rank = 8});
    tell(r, (gr_event){.kind = GR_EVENT_UNLOADED, .generation = g1, .bytes = 1004});
    tell(r, (gr_event){.kind = GR_EVENT_FALLBACK, .code = GRAFT_E_BUSY, .message = "no room"});
    tell(r, (gr_event){.kind = GR_EVENT_USED, .project = "gone", .tokens = 1});
    for (int round = 0; round < 3; round++) {
        graft_registered_list *l = support_get(r, "p", "default");
        const graft_registered *a = l->items;
        assert_int_equal(a->state, GRAFT_REGISTERED_READY);
        assert_string_equal(a->generation, g1);
        assert_int_equal(a->bytes, 1004);
        assert_int_equal(a->rank, 8);
        assert_int_equal(strlen(a->base), 64);
        assert_memory_equal(a->base, "ab00", 4);
        const graft_history *h = &a->history;
        assert_int_equal(h->requests, 2);
        assert_int_equal(h->tokens, 42);
        assert_int_equal(h->loads, 2);
        assert_int_equal(h->evictions, 1);
        assert_int_equal(h->unloads, 1);
        assert_int_equal(h->fallbacks, 1);
        assert_int_equal(h->failures, 0);
        assert_float_equal(h->load_ms, 4.0, 1e-9);
        assert_true(h->last_used > 1600000000 && h->last_loaded > 1600000000);
        graft_registered_list_free(l);
        graft_event_list *e;
        good(gr_registry_event_list(&e, r, "p", NULL, 100, &err));
        assert_int_equal(e->n, 5);
        assert_string_equal(e->items[0].kind, "fallback");
        assert_int_equal(e->items[0].code, GRAFT_E_BUSY);
        assert_string_equal(e->items[0].message, "no room");
        assert_string_equal(e->items[4].kind, "loaded");
        assert_string_equal(e->items[4].generation, g1);
        graft_event_list_free(e);
        good(gr_registry_event_list(&e, r, "p", "default", 2, &err));
        assert_int_equal(e->n, 2);
        graft_event_list_free(e);
        assert_true(gr_registry_check(r));
        gr_registry_close(r);
        r = round == 0 ? support_open(&d) : round == 1 ? support_open_read_only(&d) : NULL;
    }
    support_remove(&d);
}

static void states(void **state) {
    (void)state;
    static const struct {
        int code, state;
    } table[] = {
        {GRAFT_E_ADAPTER_FILE_MISSING, GRAFT_REGISTERED_MISSING}, {GRAFT_E_CHANGED_ON_DISK, GRAFT_REGISTERED_CHANGED},
        {GRAFT_E_WRONG_SHAPE, GRAFT_REGISTERED_FAILED},           {GRAFT_E_BUSY, -1},
        {GRAFT_E_OUT_OF_MEMORY, -1},                              {GRAFT_E_SHUTTING_DOWN, -1},
        {GRAFT_E_IO_ERROR, -1},
        {GRAFT_E_LARGER_THAN_BUDGET, -1},                         {GRAFT_E_NON_FINITE, GRAFT_REGISTERED_FAILED},
    };
    test_dir d = test_dir_make();
    gr_registry *r = support_open(&d);
    memset(g1, '1', 64);
    good(gr_registry_adapter_add(r, "p", NULL, support_adapter(&d, "a", 0), GRAFT_ADD_PROJECT, &err));
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        tell(r, (gr_event){.kind = GR_EVENT_LOADED, .generation = g1, .bytes = 1, .format = "peft"});
        tell(r, (gr_event){.kind = GR_EVENT_FAILED, .code = table[i].code, .message = "why \x1b[1m"});
        graft_registered_list *l = support_get(r, "p", "default");
        bool says = table[i].state >= 0;
        assert_int_equal(l->items[0].state, says ? table[i].state : GRAFT_REGISTERED_READY);
        assert_int_equal(l->items[0].error_code, says ? table[i].code : 0);
        assert_string_equal(l->items[0].error, says ? "why \x1b[1m" : "");
        assert_int_equal(l->items[0].history.failures, i + 1);
        graft_registered_list_free(l);
        assert_true(gr_registry_check(r));
    }
    /* The row is kept, whatever happened to its files (F19). */
    gr_registry_close(r);
    r = support_open(&d);
    graft_registered_list *l = support_get(r, "p", "default");
    assert_int_equal(l->items[0].state, GRAFT_REGISTERED_FAILED);
    assert_int_equal(l->items[0].error_code, GRAFT_E_NON_FINITE);
    graft_registered_list_free(l);
    gr_registry_close(r);
    support_remove(&d);
}

/* A load that began before a reload and ends after it must not put the old generation back. */
static void late_news(void **state) {
    (void)state;
    test_dir d = test_dir_make();
    memset(g1, '1', 64);
    memset(g2, '2', 64);
    gr_registry *r = support_open(&d);
    good(gr_registry_adapter_add(r, "p", NULL, support_adapter(&d, "a", 0), GRAFT_ADD_PROJECT, &err));
    uint64_t old = support_find(r, "p", "default").revision;
    support_adapter(&d, "a", 1);
    good(gr_registry_adapter_reload(r, "p", NULL, NULL, &err));
    gr_catalog_entry now = support_find(r, "p", "default");
    tell(r, (gr_event){.kind = GR_EVENT_LOADED, .generation = g1, .bytes = 1, .format = "peft", .revision = old});
    tell(r, (gr_event){.kind = GR_EVENT_FAILED, .code = GRAFT_E_WRONG_SHAPE, .message = "x", .revision = old});
    assert_string_equal(support_find(r, "p", "default").generation, now.generation);
    graft_registered_list *l = support_get(r, "p", "default");
    assert_int_equal(l->items[0].state, GRAFT_REGISTERED);
    assert_int_equal(l->items[0].history.loads, 1); /* it happened all the same */
    graft_registered_list_free(l);
    tell(r, (gr_event){.kind = GR_EVENT_LOADED, .generation = g2, .bytes = 1, .format = "peft", .revision = now.revision});
    assert_string_equal(support_find(r, "p", "default").generation, g2);
    /* Of the same revision, and overtaken by another load: it is told, and the name keeps the generation that it has. */
    tell(r, (gr_event){.kind = GR_EVENT_LOADED, .generation = g1, .bytes = 1, .format = "peft", .revision = now.revision, .stale = true});
    assert_string_equal(support_find(r, "p", "default").generation, g2);
    l = support_get(r, "p", "default");
    assert_int_equal(l->items[0].state, GRAFT_REGISTERED_READY);
    assert_int_equal(l->items[0].history.loads, 3);
    graft_registered_list_free(l);
    gr_registry_close(r);
    support_remove(&d);
}

/* What has news to be written may be removed before it is. */
static void removed_with_news(void **state) {
    (void)state;
    test_dir d = test_dir_make();
    gr_registry *r = support_open(&d);
    const char *path = support_adapter(&d, "a", 0);
    static const char *const names[] = {"one", "two", "three"};
    for (int i = 0; i < 3; i++) {
        good(gr_registry_adapter_add(r, "p", names[i], path, GRAFT_ADD_PROJECT, &err));
        good(gr_registry_adapter_add(r, "q", names[i], path, GRAFT_ADD_PROJECT, &err));
    }
    gr_catalog c = gr_registry_catalog(r);
    for (int i = 0; i < 3; i++) {
        c.record(c.self, &(gr_event){.kind = GR_EVENT_USED, .project = "p", .adapter = names[i], .tokens = 1});
        c.record(c.self, &(gr_event){.kind = GR_EVENT_USED, .project = "q", .adapter = names[i], .tokens = 1});
    }
    good(gr_registry_adapter_remove(r, "p", "two", &err));
    assert_true(gr_index_check(&r->index));
    good(gr_registry_project_remove(r, "q", &err));
    assert_true(gr_index_check(&r->index));
    assert_true(gr_registry_check(r));
    gr_registry_close(r);
    support_remove(&d);
}

/* The log is bounded: on its way by what may wait, in the file by what is kept. Counters lose nothing. */
static void log_is_bounded(void **state) {
    (void)state;
    test_dir d = test_dir_make();
    gr_registry *r = support_open(&d);
    good(gr_registry_adapter_add(r, "p", NULL, support_adapter(&d, "a", 0), GRAFT_ADD_PROJECT, &err));
    size_t told = 0;
    for (int round = 0; round < 12; round++) {
        for (int i = 0; i < 1000; i++, told++) {
            tell(r, (gr_event){.kind = GR_EVENT_EVICTED, .bytes = told});
        }
        good(gr_registry_flush(r, &err));
    }
    graft_event_list *e;
    good(gr_registry_event_list(&e, r, NULL, NULL, 1000000, &err));
    assert_int_equal(e->n, GR_EVENTS_KEPT);
    assert_int_equal(e->items[0].bytes, told - 1);
    graft_event_list_free(e);
    uint64_t before = gr_memory_bytes();
    for (int i = 0; i < 10000; i++, told++) {
        tell(r, (gr_event){.kind = GR_EVENT_EVICTED});
    }
    /* As many as may wait, while the writer has as many in hand; and a little for the writing. */
    assert_true(gr_memory_bytes() <= before + (uint64_t)2 * GR_NOTES * (sizeof(gr_note) + 1) + 4096);
    good(gr_registry_flush(r, &err));
    graft_registered_list *l = support_get(r, "p", "default");
    assert_int_equal(l->items[0].history.evictions, told);
    graft_registered_list_free(l);
    gr_registry_close(r);
    support_remove(&d);
}

/* ---- threads -------------------------------------------------------------------------------------------- */

static gr_registry *shared;
static atomic_bool over;

/* Finds and records while names come and go. */
static void *ask(void *arg) {
    gr_catalog c = gr_registry_catalog(shared);
    (void)arg;
    while (!atomic_load(&over)) {
        gr_catalog_entry e;
        if (c.find(c.self, "p", "default", true, &e, NULL) == 0) {
            assert_string_equal(e.project, "p");
            gr_free(e.path);
        }
        if (c.find(c.self, "q7", "default", false, &e, NULL) == 0) {
            assert_string_equal(e.project, "q7");
        }
        gr_event used = {.kind = GR_EVENT_USED, .project = "q3", .adapter = "default", .tokens = 1};
        c.record(c.self, &used);
        gr_event loaded = {.kind = GR_EVENT_LOADED, .project = "q5", .adapter = "default", .generation = g1, .format = "peft"};
        c.record(c.self, &loaded);
    }
    return NULL;
}

static void many_threads(void **state) {
    (void)state;
    enum { ASKERS = 3, ROUNDS = 15 };
    test_dir d = test_dir_make();
    pthread_t threads[ASKERS];
    const char *path = support_adapter(&d, "a", 0);
    memset(g1, '1', 64);
    shared = support_open(&d);
    atomic_store(&over, false);
    good(gr_registry_adapter_add(shared, "p", NULL, path, GRAFT_ADD_PROJECT, &err));
    for (int i = 0; i < ASKERS; i++) {
        assert_int_equal(gr_thread_start(&threads[i], ask, NULL), 0);
    }
    for (int round = 0; round < ROUNDS; round++) {
        char name[16];
        for (int i = 0; i < 10; i++) {
            snprintf(name, sizeof name, "q%d", i);
            good(gr_registry_adapter_add(shared, name, NULL, path, GRAFT_ADD_PROJECT, &err));
        }
        good(gr_registry_flush(shared, &err));
        good(gr_registry_adapter_reload(shared, "p", NULL, NULL, &err));
        good(gr_registry_project_rename(shared, "p", "pp", &err));
        good(gr_registry_project_rename(shared, "pp", "p", &err));
        for (int i = 0; i < 10; i++) {
            snprintf(name, sizeof name, "q%d", i);
            good(gr_registry_project_remove(shared, name, &err));
        }
    }
    atomic_store(&over, true);
    for (int i = 0; i < ASKERS; i++) {
        gr_thread_join(threads[i]);
    }
    assert_true(gr_registry_check(shared));
    gr_registry_close(shared);
    support_remove(&d);
}

/* ---- memory --------------------------------------------------------------------------------------------- */

/* Everything once, ignoring failures; memory and file must agree afterwards. */
static int everything(gr_registry *r, const test_dir *d, graft_error *err) {
    static char a[512], b[512];
    graft_registered_list *rows = NULL;
    graft_project_list *projects = NULL;
    graft_event_list *events = NULL;
    snprintf(a, sizeof a, "%s/a", d->path);
    snprintf(b, sizeof b, "%s/b", d->path);
    int rc = gr_registry_project_add(r, "one", err);
    rc = rc ? rc : gr_registry_adapter_add(r, "two", NULL, a, GRAFT_ADD_PROJECT, err);
    rc = rc ? rc : gr_registry_adapter_add(r, "two", "x", b, 0, err);
    rc = rc ? rc : gr_registry_adapter_add(r, "two", "x", a, GRAFT_ADD_REPLACE, err);
    rc = rc ? rc : gr_registry_adapter_reload(r, "two", "x", NULL, err);
    rc = rc ? rc : gr_registry_adapter_pin(r, "two", "x", true, err);
    rc = rc ? rc : gr_registry_project_rename(r, "two", "three", err);
    tell(r, (gr_event){.kind = GR_EVENT_FAILED, .project = "three", .code = GRAFT_E_WRONG_SHAPE, .message = "why"});
    rc = rc ? rc : gr_registry_flush(r, err);
    rc = rc ? rc : gr_registry_adapter_list(&rows, r, NULL, NULL, err);
    rc = rc ? rc : gr_registry_project_list(&projects, r, NULL, err);
    rc = rc ? rc : gr_registry_event_list(&events, r, NULL, NULL, 3, err);
    graft_registered_list_free(rows);
    graft_project_list_free(projects);
    graft_event_list_free(events);
    rc = rc ? rc : gr_registry_adapter_remove(r, "three", "x", err);
    return rc ? rc : gr_registry_project_remove(r, "three", err);
}

static void clean(gr_registry *r) {
    gr_registry_project_remove(r, "one", NULL);
    gr_registry_project_remove(r, "two", NULL);
    gr_registry_project_remove(r, "three", NULL);
    assert_int_equal(gr_registry_flush(r, NULL), 0);
}

static void allocation_failures(void **state) {
    (void)state;
    test_dir d = test_dir_make();
    support_adapter(&d, "a", 0);
    support_adapter(&d, "b", 1);
    for (int forever = 0; forever < 2; forever++) {
        gr_registry *r = support_open(&d);
        good(everything(r, &d, &err));
        clean(r);
        int rc = -1;
        for (uint64_t n = 1; rc != 0; n++) {
            graft_error err = {0};
            assert_true(n < 2000);
            gr_memory_fail_at(n, forever);
            rc = everything(r, &d, &err);
            gr_memory_fail_at(0, 0);
            assert_true(rc == 0 || rc == GRAFT_E_OUT_OF_MEMORY || rc == GRAFT_E_NOT_FOUND);
            assert_true(gr_registry_check(r));
            clean(r);
            assert_int_equal(support_count(r), 0);
        }
        gr_registry_close(r);
    }
    support_remove(&d);
}

static void allocation_failures_opening(void **state) {
    (void)state;
    test_dir d = test_dir_make();
    gr_registry *r = support_open(&d);
    memset(g1, '1', 64);
    good(gr_registry_adapter_add(r, "p", NULL, support_adapter(&d, "a", 0), GRAFT_ADD_PROJECT, &err));
    tell(r, (gr_event){.kind = GR_EVENT_FAILED, .code = GRAFT_E_WRONG_SHAPE, .message = "why"});
    gr_registry_close(r);
    graft_registry_options o = support_options(&d);
    o.root = d.path;
    for (int forever = 0; forever < 2; forever++) {
        int rc = -1;
        for (uint64_t n = 1; rc != 0; n++) {
            graft_error err = {0};
            uint64_t blocks = gr_memory_blocks();
            int fds = test_open_fds();
            gr_memory_fail_at(n, forever);
            rc = gr_registry_open(&r, &o, &err);
            gr_memory_fail_at(0, 0);
            if (rc == 0) {
                assert_true(n > 5);
                assert_int_equal(support_count(r), 1);
                gr_registry_close(r);
            } else {
                assert_int_equal(rc, GRAFT_E_OUT_OF_MEMORY);
            }
            assert_int_equal(gr_memory_blocks(), blocks);
            assert_int_equal(test_open_fds(), fds);
        }
    }
    support_remove(&d);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(add_and_open_again), cmocka_unit_test(generation_is_that_of_loading),
        cmocka_unit_test(duplicates),         cmocka_unit_test(same_content_twice),
        cmocka_unit_test(renaming),           cmocka_unit_test(removing),
        cmocka_unit_test(reloading),          cmocka_unit_test(paths),
        cmocka_unit_test(history),            cmocka_unit_test(states),
        cmocka_unit_test(late_news),          cmocka_unit_test(log_is_bounded),
        cmocka_unit_test(removed_with_news),
        cmocka_unit_test(many_threads),       cmocka_unit_test(allocation_failures),
        cmocka_unit_test(allocation_failures_opening),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
