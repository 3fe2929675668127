/* Many threads on one instance with a registry: everything that can be done to names, at once, while answers are checked. */
#include "loader_helpers.h"

enum { THREADS = 8, ROUNDS = 40, PROJECTS = 5 };

static const char *const names[PROJECTS] = {"alder", "birch", "cedar", "dogwood", "elm"};
static const char *const files[PROJECTS] = {"adapters/llama/plain", "adapters/llama/qv", "adapters/llama/rslora", "adapters/llama/rank16",
                                            "adapters/llama/one-layer"};
static answer expected[PROJECTS + 1]; /* the last is the base's */

typedef struct worker {
    pthread_t thread;
    unsigned seed;
    atomic_int *wrong;
} worker;

static unsigned roll(unsigned *seed, unsigned n) {
    *seed = *seed * 1664525u + 1013904223u;
    return (unsigned)((uint64_t)(*seed >> 8) * n >> 24);
}

/* cmocka's asserts are for the main thread only. */
static void check(worker *k, bool right) {
    atomic_fetch_add(k->wrong, !right);
}

/* Room may be short, the deadline near, the current project gone: those ends are right too. */
static bool may_be(int code) {
    return code == 0 || code == GRAFT_E_BUSY || code == GRAFT_E_DEADLINE || code == GRAFT_E_NOT_FOUND || code == GRAFT_E_BAD_REQUEST;
}

static void check_result(worker *k, const graft_result *r, int project, bool cancelled) {
    if (r->finish == GRAFT_FINISH_LENGTH) {
        const answer *e = &expected[r->fallback.code ? PROJECTS : project];
        check(k, strcmp(r->text, e->text) == 0 && may_be(r->fallback.code));
        check(k, (r->generation[0] == '\0') == (r->fallback.code != 0));
    } else {
        check(k, cancelled ? r->error.code == GRAFT_E_CANCELLED || may_be(r->error.code) : may_be(r->error.code));
    }
}

static void ask_by_name(worker *k) {
    int project = (int)roll(&k->seed, PROJECTS);
    graft_adapter_use use = {.scale = 1, .project = names[project]};
    graft_request r = request(PROMPT, TOKENS);
    graft_job *jobs[2] = {NULL, NULL};
    r.adapters = &use;
    r.n_adapters = 1;
    r.fallback = roll(&k->seed, 2) ? GRAFT_FALLBACK_BASE : GRAFT_FALLBACK_ERROR;
    r.adapter_wait_ms = roll(&k->seed, 4) == 0 ? 3 : 600000;
    graft_request both[2] = {r, r};
    if (graft_submit(jobs, w.g, both, 2, NULL)) {
        check(k, false);
        return;
    }
    bool cancel = roll(&k->seed, 4) == 0;
    if (cancel) {
        graft_job_cancel(jobs[1]);
    }
    check_result(k, graft_job_wait(jobs[0]), project, false);
    check_result(k, graft_job_wait(jobs[1]), project, cancel);
    graft_job_free(jobs[0]);
    graft_job_free(jobs[1]);
}

static void ask_by_lease(worker *k) {
    int project = (int)roll(&k->seed, PROJECTS);
    graft_lease_options o = graft_lease_options_default();
    graft_lease *l;
    o.project = names[project];
    o.fallback = GRAFT_FALLBACK_ERROR;
    o.temporary = roll(&k->seed, 3) == 0;
    o.reload = roll(&k->seed, 6) == 0;
    o.wait_ms = (int)roll(&k->seed, 3) * 5;
    int rc = graft_lease_take(&l, w.g, &o, NULL);
    check(k, may_be(rc));
    if (rc) {
        return;
    }
    graft_adapter_use use = {.scale = 1, .lease = l};
    graft_request r = request(PROMPT, TOKENS);
    graft_job *job;
    r.adapters = &use;
    r.n_adapters = 1;
    rc = graft_submit(&job, w.g, &r, 1, NULL);
    check(k, rc == 0);
    graft_lease_release(l);
    if (!rc) {
        const graft_result *result = graft_job_wait(job);
        check(k, result->error.code == 0 && result->fallback.code == 0);
        check_result(k, result, project, false);
        graft_job_free(job);
    }
}

static void ignore(const graft_error *error, void *user) {
    (void)error;
    atomic_fetch_add((atomic_int *)user, 1);
}

static atomic_int prefetched, told;

static void prefetch(worker *k) {
    graft_prefetch *p;
    if (graft_prefetch_start(&p, w.g, names[roll(&k->seed, PROJECTS)], NULL, ignore, &told, NULL)) {
        check(k, false);
        return;
    }
    atomic_fetch_add(&prefetched, 1);
    if (roll(&k->seed, 2)) {
        check(k, graft_prefetch_fd(p, NULL) >= 0);
    }
    if (roll(&k->seed, 2)) {
        check(k, may_be(graft_prefetch_wait(p, NULL)));
    }
    graft_prefetch_free(p);
}

static void change_names(worker *k) {
    const char *name = names[roll(&k->seed, PROJECTS)];
    char project[GRAFT_NAME_SIZE], adapter[GRAFT_NAME_SIZE];
    uint64_t freed, pending;
    switch (roll(&k->seed, 6)) {
    case 0: check(k, may_be(graft_load_adapter(w.g, name, NULL, roll(&k->seed, 2), NULL))); break;
    case 1: check(k, may_be(graft_unload_adapter(w.g, name, NULL, &freed, &pending, NULL))); break;
    case 2:
        check(k, graft_pin_adapter(w.g, names[0], NULL, true, NULL) == 0);
        check(k, graft_pin_adapter(w.g, names[0], NULL, false, NULL) == 0);
        break;
    case 3: check(k, may_be(graft_switch_project(w.g, name, NULL, NULL))); break;
    case 4: check(k, may_be(graft_current_project(w.g, project, adapter, NULL))); break;
    case 5: /* a project of this thread's own comes, loads and goes */
        snprintf(project, sizeof project, "own-%p", (void *)k);
        char path[512];
        snprintf(path, sizeof path, "%s/oracle/golden/%s", GRAFT_TEST_DATA, files[1]);
        check(k, graft_registry_adapter_add(w.registry, project, NULL, path, GRAFT_ADD_PROJECT, NULL) == 0);
        check(k, may_be(graft_load_adapter(w.g, project, NULL, false, NULL)));
        check(k, graft_registry_project_remove(w.registry, project, NULL) == 0);
        break;
    }
}

static void look(worker *k) {
    graft_metrics m;
    graft_memory mem;
    graft_health h;
    graft_loaded_list *l = NULL;
    graft_get_metrics(w.g, &m);
    graft_memory_report(w.g, &mem);
    graft_health_check(w.g, &h);
    check(k, graft_loaded_adapters(&l, w.g, NULL) == 0);
    check(k, m.n_resident <= 3 && m.resident <= m.limit && mem.counted <= mem.limit);
    graft_loaded_list_free(l);
}

static void *work(void *arg) {
    worker *k = arg;
    for (int i = 0; i < ROUNDS; i++) {
        switch (roll(&k->seed, 8)) {
        case 0:
        case 1:
        case 2: ask_by_name(k); break;
        case 3:
        case 4: ask_by_lease(k); break;
        case 5: prefetch(k); break;
        case 6: change_names(k); break;
        default: look(k); break;
        }
    }
    return NULL;
}

static void everything_at_once(bool probe) {
    for (int i = 0; i < PROJECTS; i++) {
        add(names[i], files[i]);
    }
    graft_options o = world_options();
    o.probe = probe;
    w.g = open_or_fail(&o);
    for (int i = 0; i < PROJECTS; i++) {
        expected[i] = ask_path(golden(files[i]));
    }
    expected[PROJECTS] = ask_base();
    atomic_int wrong = 0;
    worker workers[THREADS];
    atomic_store(&prefetched, 0);
    atomic_store(&told, 0);
    for (int i = 0; i < THREADS; i++) {
        workers[i] = (worker){.seed = (unsigned)i + 1 + 100u * probe, .wrong = &wrong};
        assert_int_equal(pthread_create(&workers[i].thread, NULL, work, &workers[i]), 0);
    }
    for (int i = 0; i < THREADS; i++) {
        pthread_join(workers[i].thread, NULL);
    }
    assert_int_equal(wrong, 0);
    WAIT_UNTIL(atomic_load(&told) == atomic_load(&prefetched))
    WAIT_UNTIL(metrics().n_loading == 0 && metrics().n_draining == 0 && metrics().n_leases == 0)
    graft_metrics m = metrics();
    assert_true(m.n_resident <= 3);
    assert_int_equal(m.loading + m.draining + m.held, 0);
    for (int i = 0; i < PROJECTS; i++) {
        graft_unload_adapter(w.g, names[i], NULL, NULL, NULL, NULL);
    }
    m = metrics();
    assert_int_equal(m.n_resident, 0);
    assert_int_equal(m.resident + m.draining, 0);
    print_message("    %d loads, %d hits, %d evictions, %d found no room, %d fell back\n", (int)m.loads, (int)m.hits, (int)m.evictions,
                  (int)m.busy, (int)m.fallbacks);
}

static void everything_at_once_with_the_probe(void **state) {
    (void)state;
    everything_at_once(true);
}

static void everything_at_once_without_the_probe(void **state) {
    (void)state;
    everything_at_once(false);
}

/* Closed in the middle of it all: what waited ends, nothing is left. */
static void closing_in_the_middle(void **state) {
    (void)state;
    graft_job *jobs[32];
    graft_prefetch *p[PROJECTS];
    uint64_t before = graft_own_bytes();
    for (int i = 0; i < PROJECTS; i++) {
        add(names[i], files[i]);
    }
    for (int round = 0; round < 6; round++) {
        graft_options o = world_options();
        o.max_adapters = 1 + round % 3;
        o.apply = round % 2 ? GRAFT_APPLY_GROUPED : GRAFT_APPLY_AUTO;
        w.g = open_or_fail(&o);
        for (int i = 0; i < 32; i++) {
            jobs[i] = start_named(names[i % PROJECTS], GRAFT_FALLBACK_ERROR, 600000, 20);
        }
        for (int i = 0; i < PROJECTS; i++) {
            assert_int_equal(graft_prefetch_start(&p[i], w.g, names[i], NULL, NULL, NULL, NULL), 0);
        }
        if (round > 2) {
            graft_job_wait(jobs[round]);
        }
        graft_close(w.g);
        w.g = NULL;
        for (int i = 0; i < 32; i++) {
            const graft_result *r = graft_job_wait(jobs[i]);
            assert_true(r->finish == GRAFT_FINISH_LENGTH || r->error.code == GRAFT_E_SHUTTING_DOWN);
            graft_job_free(jobs[i]);
        }
        for (int i = 0; i < PROJECTS; i++) {
            int rc = graft_prefetch_wait(p[i], NULL);
            assert_true(rc == 0 || rc == GRAFT_E_SHUTTING_DOWN);
            graft_prefetch_free(p[i]);
        }
    }
    graft_registry_close(w.registry);
    w.registry = NULL;
    assert_true(graft_own_bytes() < before); /* all that is left is less than the registry that was open then */
}

int main(void) {
    const struct CMUnitTest tests[] = {
        WORLD_TEST(everything_at_once_with_the_probe),
        WORLD_TEST(everything_at_once_without_the_probe),
        WORLD_TEST(closing_in_the_middle),
    };
    cmocka_set_test_filter(getenv("GRAFT_TEST_FILTER"));
    return cmocka_run_group_tests(tests, NULL, NULL);
}
