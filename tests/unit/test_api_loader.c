/* Adapters by name through the public API: a real registry, a real base, real adapters. */
#include "loader_helpers.h"

#include <fcntl.h>
#include <poll.h>

/* ---- what is in memory ------------------------------------------------------------------------------------ */

static void answers_by_name_are_those_by_path(void **state) {
    (void)state;
    static const char *const names[] = {"alder", "birch", "cedar", "dogwood"};
    static const char *const files[] = {"adapters/llama/plain", "adapters/llama/qv", "adapters/llama/rslora", "adapters/llama/plain"};
    for (int i = 0; i < 4; i++) {
        add(names[i], files[i]);
    }
    open_world();
    for (int round = 0; round < 2; round++) {
        for (int i = 0; i < 4; i++) {
            named by_name = ask(names[i]);
            answer by_path = ask_path(golden(files[i]));
            assert_int_equal(by_name.fallback.code, 0);
            assert_same_answer(&by_name.a, &by_path);
        }
    }
    graft_metrics m = metrics();
    assert_int_equal(m.hits, 0); /* four in turn, room for three: the worst case of lru */
    assert_int_equal(m.misses, 8);
    assert_int_equal(m.loads, 8);
    assert_int_equal(m.evictions, 5);
    assert_int_equal(m.n_resident, 3);
    assert_int_equal(m.n_leases, 0);
}

static void add_four(void) {
    add("alder", "adapters/llama/plain");
    add("birch", "adapters/llama/qv");
    add("cedar", "adapters/llama/rslora");
    add("dogwood", "adapters/llama/rank16");
}

static void a_fourth_adapter_displaces_the_one_unused_for_longest(void **state) {
    (void)state;
    add_four();
    open_world();
    ask("alder");
    ask("birch");
    ask("cedar");
    ask("alder");
    assert_int_equal(metrics().hits, 1);
    ask("dogwood");
    assert_string_equal(listing(), "alder:resident cedar:resident dogwood:resident");
    graft_memory m = memory();
    assert_int_equal(m.n_resident, 3);
    assert_int_equal(m.max_adapters, 3);
    assert_int_equal(m.loading + m.draining, 0);
    assert_int_equal(history("birch").evictions, 1);
    assert_int_equal(history("alder").requests, 2);
    assert_true(logged("birch", 0, "evicted") == 1);
}

static void what_is_leased_is_not_evicted_and_then_there_is_no_room(void **state) {
    (void)state;
    graft_error err;
    add_four();
    open_world();
    graft_lease *held[3] = {lease_or_fail("alder"), lease_or_fail("birch"), lease_or_fail("cedar")};
    assert_int_equal(lease_code("dogwood", GRAFT_FALLBACK_ERROR, 0, &err), GRAFT_E_BUSY);
    assert_int_equal(lease_code("dogwood", GRAFT_FALLBACK_ERROR, 20, &err), GRAFT_E_BUSY); /* waits, in vain */
    WAIT_UNTIL(metrics().busy == 2) /* the second load ends by itself, once nobody waits for it */
    assert_string_equal(listing(), "alder:resident birch:resident cedar:resident");
    /* Nobody need wait for the base. */
    assert_int_equal(ask_base().finish, GRAFT_FINISH_LENGTH);
    graft_job *waits = start_named("dogwood", GRAFT_FALLBACK_ERROR, 600000, TOKENS);
    named passes = ask("alder");
    assert_int_equal(passes.fallback.code, 0);
    graft_lease_release(held[1]);
    named got = take_named(waits);
    assert_int_equal(got.a.error.code, 0);
    answer expected = ask_path(golden("adapters/llama/rank16"));
    assert_same_answer(&got.a, &expected);
    assert_string_equal(listing(), "alder:resident cedar:resident dogwood:resident");
    graft_lease_release(held[0]);
    graft_lease_release(held[2]);
    WAIT_UNTIL(metrics().n_leases == 0)
}

/* Each wants two of four and two fit: whoever held one and waited for another could wait for ever. */
static void requests_for_several_adapters_do_not_block_each_other(void **state) {
    (void)state;
    static const char *const names[] = {"alder", "birch", "cedar", "dogwood"};
    enum { N = 48 };
    graft_job *jobs[N];
    graft_request r[N];
    graft_adapter_use uses[N][2];
    add_four();
    open_world_max(2);
    for (int i = 0; i < N; i++) {
        int a = i % 4, b = (a + 1 + (i / 4) % 3) % 4;
        uses[i][0] = (graft_adapter_use){.scale = 1, .project = names[a]};
        uses[i][1] = (graft_adapter_use){.scale = 1, .project = names[b]};
        r[i] = request(PROMPT, 3);
        r[i].adapters = uses[i];
        r[i].n_adapters = 2;
        r[i].fallback = GRAFT_FALLBACK_ERROR;
        r[i].adapter_wait_ms = 300000;
    }
    assert_int_equal(graft_submit(jobs, w.g, r, N, NULL), 0);
    for (int i = 0; i < N; i++) {
        answer a = take_answer(jobs[i]);
        assert_int_equal(a.error.code, 0);
    }
    assert_int_equal(metrics().n_leases, 0);
    assert_int_equal(metrics().busy, 0);
    /* Three at once can never be there; the same one twice needs no room of its own. */
    graft_adapter_use three[3] = {{.scale = 1, .project = "alder"}, {.scale = 1, .project = "birch"}, {.scale = 1, .project = "cedar"}};
    graft_error err;
    r[0].adapters = three;
    r[0].n_adapters = 3;
    assert_int_equal(graft_submit(jobs, w.g, r, 1, &err), GRAFT_E_BAD_REQUEST);
    assert_non_null(strstr(err.message, "max_adapters"));
    three[2].project = "alder";
    assert_int_equal(run(w.g, &r[0]).error.code, 0);
}

static void scoring_by_name_never_falls_back(void **state) {
    (void)state;
    graft_error err;
    graft_score_result *by_name, *by_path;
    add("alder", "adapters/llama/plain");
    add("other", "adapters/qwen3/plain");
    open_world();
    graft_adapter *a = load_or_fail(w.g, "adapters/llama/plain");
    graft_adapter_use use = {.scale = 1, .adapter = a};
    graft_score_request s = graft_score_request_default();
    s.text = PROMPT;
    s.adapters = &use;
    s.n_adapters = 1;
    assert_int_equal(graft_score(&by_path, w.g, &s, &err), 0);
    use = (graft_adapter_use){.scale = 1, .project = "alder"};
    assert_int_equal(graft_score(&by_name, w.g, &s, &err), 0);
    assert_int_equal(by_name->n_tokens, by_path->n_tokens);
    assert_memory_equal(by_name->logprobs + 1, by_path->logprobs + 1, (by_name->n_tokens - 1) * sizeof(float));
    graft_score_result_free(by_name);
    graft_score_result_free(by_path);
    graft_adapter_free(a);
    use.project = "other";
    assert_int_not_equal(graft_score(&by_name, w.g, &s, &err), 0);
    assert_int_equal(metrics().fallbacks, 0);
}

/* ---- what cannot be had ----------------------------------------------------------------------------------- */

static void an_adapter_for_another_base_falls_back_and_says_so(void **state) {
    (void)state;
    graft_error err;
    add("other", "adapters/qwen3/plain");
    add("good", "adapters/llama/plain");
    open_world();
    answer base = ask_base();
    named got = ask("other");
    int code = got.fallback.code;
    assert_true(code == GRAFT_E_WRONG_SHAPE || code == GRAFT_E_UNKNOWN_TARGET || code == GRAFT_E_WRONG_BASE);
    assert_true(got.fallback.message[0] != '\0');
    assert_same_answer(&got.a, &base);
    assert_string_equal(got.generation, "");

    graft_lease_options o = graft_lease_options_default();
    graft_lease *l;
    graft_lease_info info;
    o.project = "other";
    assert_int_equal(graft_lease_take(&l, w.g, &o, &err), 0);
    graft_lease_get_info(l, &info);
    assert_int_equal(info.fallback.code, code);
    assert_string_equal(info.generation, "");
    assert_string_equal(info.project, "other");
    assert_string_equal(info.adapter, "default");
    assert_int_equal(info.bytes, 0);
    /* A lease on the base works in a request, which says so too. */
    graft_adapter_use use = {.scale = 1, .lease = l};
    graft_request r = request(PROMPT, TOKENS);
    r.adapters = &use;
    r.n_adapters = 1;
    graft_job *job = submit_or_fail(w.g, &r);
    graft_lease_release(l);
    named by_lease = take_named(job);
    assert_int_equal(by_lease.fallback.code, code);
    assert_same_answer(&by_lease.a, &base);

    assert_int_equal(metrics().fallbacks, 2);
    assert_int_equal(failures(code), 1); /* the second was answered from memory */
    assert_int_equal(metrics().negative_hits, 1);
    assert_int_equal(logged("other", code, "base answers instead"), 2);
    assert_int_equal(logged("other", code, "not loaded"), 1);
    assert_int_equal(state_of("other"), GRAFT_REGISTERED_FAILED);
    assert_int_equal(history("other").fallbacks, 2);
    assert_int_equal(history("other").failures, 1);
    assert_int_equal(ask("good").fallback.code, 0);
}

typedef struct seen_start {
    char project[GRAFT_NAME_SIZE], adapter[GRAFT_NAME_SIZE], generation[65];
    int fallback, cached_tokens, n;
} seen_start;

static void see_start(const graft_start *start, void *user) {
    seen_start *s = user;
    s->n++;
    snprintf(s->project, sizeof s->project, "%s", start->project);
    snprintf(s->adapter, sizeof s->adapter, "%s", start->adapter);
    snprintf(s->generation, sizeof s->generation, "%s", start->generation);
    s->fallback = start->fallback->code;
    s->cached_tokens = start->cached_tokens;
}

/* Before its first token a request knows what its result will tell. */
static void the_start_tells_who_answers(void **state) {
    (void)state;
    static const char *const names[] = {"other", "good", "good"};
    add("other", "adapters/qwen3/plain");
    add("good", "adapters/llama/plain");
    open_world();
    for (int i = 0; i < 3; i++) {
        seen_start seen = {.fallback = -1};
        graft_adapter_use use = {.scale = 1, .project = names[i]};
        graft_request r = request(PROMPT, TOKENS);
        r.adapters = &use;
        r.n_adapters = 1;
        r.on_start = see_start;
        r.user = &seen;
        graft_job *job = submit_or_fail(w.g, &r);
        const graft_result *result = graft_job_wait(job);
        assert_int_equal(seen.n, 1);
        assert_string_equal(seen.project, names[i]);
        assert_string_equal(seen.adapter, "default");
        assert_string_equal(seen.generation, result->generation);
        assert_int_equal(strlen(seen.generation), i ? 64 : 0);
        assert_int_equal(seen.fallback, result->fallback.code);
        assert_int_equal(seen.fallback != 0, i == 0);
        assert_int_equal(seen.cached_tokens, result->cached_tokens);
        assert_int_equal(seen.cached_tokens > 0, i == 2);
        graft_job_free(job);
    }
    /* It cannot be had at all: the end is all that is told. */
    seen_start seen = {0};
    graft_adapter_use use = {.scale = 1, .project = "other"};
    graft_request r = request(PROMPT, TOKENS);
    r.adapters = &use;
    r.n_adapters = 1;
    r.fallback = GRAFT_FALLBACK_ERROR;
    r.on_start = see_start;
    r.user = &seen;
    assert_int_equal(run(w.g, &r).finish, GRAFT_FINISH_ERROR);
    assert_int_equal(seen.n, 0);
}

static int count_events(const char *project, const char *kind, int code) {
    graft_event_list *l;
    int n = 0;
    assert_int_equal(graft_registry_event_list(&l, w.registry, project, NULL, 100, NULL), 0);
    for (size_t i = 0; i < l->n; i++) {
        n += strcmp(l->items[i].kind, kind) == 0 && l->items[i].code == code;
    }
    graft_event_list_free(l);
    return n;
}

static void what_happened_is_in_the_registrys_events(void **state) {
    (void)state;
    add("other", "adapters/qwen3/plain");
    add("good", "adapters/llama/plain");
    open_world();
    int code = ask("other").fallback.code;
    ask("good");
    assert_int_equal(graft_unload_adapter(w.g, "good", NULL, NULL, NULL, NULL), 0);
    graft_close(w.g);
    w.g = NULL;
    graft_registry_close(w.registry); /* writes down what it has */
    open_registry();
    assert_int_equal(count_events("other", "failed", code), 1);
    assert_int_equal(count_events("other", "fallback", code), 1);
    assert_int_equal(count_events("good", "loaded", 0), 1);
    assert_int_equal(count_events("good", "unloaded", 0), 1);
    assert_int_equal(history("other").fallbacks, 1);
}

static void fallback_can_be_an_error_for_all_or_for_one(void **state) {
    (void)state;
    graft_error err;
    add("other", "adapters/qwen3/plain");
    open_world();
    int code = ask("other").fallback.code;
    named strict = take_named(start_named("other", GRAFT_FALLBACK_ERROR, -1, TOKENS));
    assert_int_equal(strict.a.finish, GRAFT_FINISH_ERROR);
    assert_int_equal(strict.a.error.code, code);
    assert_int_equal(strict.fallback.code, 0);
    assert_string_equal(strict.a.text, "");
    assert_int_equal(lease_code("other", GRAFT_FALLBACK_ERROR, -1, &err), code);
    assert_int_equal(graft_load_adapter(w.g, "other", NULL, false, &err), code);
    graft_close(w.g);
    graft_options o = world_options();
    o.fallback = GRAFT_FALLBACK_ERROR;
    w.g = open_or_fail(&o);
    assert_int_equal(ask("other").a.error.code, code);
    assert_int_equal(lease_code("other", GRAFT_FALLBACK_DEFAULT, -1, &err), code);
    assert_int_equal(take_named(start_named("other", GRAFT_FALLBACK_BASE, -1, TOKENS)).fallback.code, code);
    assert_int_equal(metrics().fallbacks, 1);
}

static int submit_code(const char *project, const char *name) {
    graft_adapter_use use = {.scale = 1, .project = project, .name = name};
    graft_request r = request(PROMPT, 2);
    graft_job *job;
    graft_error err;
    r.adapters = &use;
    r.n_adapters = 1;
    r.fallback = GRAFT_FALLBACK_BASE;
    int rc = graft_submit(&job, w.g, &r, 1, &err);
    if (!rc) {
        graft_job_free(job);
    }
    return rc;
}

static void what_is_not_registered_is_always_an_error(void **state) {
    (void)state;
    graft_error err = {0};
    graft_prefetch *p;
    uint64_t freed = 7;
    add("alder", "adapters/llama/plain");
    open_world();
    assert_int_equal(submit_code("nobody", NULL), GRAFT_E_NOT_FOUND);
    assert_int_equal(submit_code("alder", "other"), GRAFT_E_NOT_FOUND);
    assert_int_equal(submit_code("no slash/es", NULL), GRAFT_E_BAD_NAME);
    assert_int_equal(submit_code("", NULL), GRAFT_E_BAD_NAME);
    assert_int_equal(submit_code(NULL, NULL), GRAFT_E_BAD_REQUEST); /* no current project */
    assert_int_equal(lease_code("nobody", GRAFT_FALLBACK_BASE, -1, &err), GRAFT_E_NOT_FOUND);
    assert_non_null(strstr(err.message, "nobody"));
    assert_int_equal(graft_load_adapter(w.g, "nobody", NULL, false, &err), GRAFT_E_NOT_FOUND);
    assert_int_equal(graft_prefetch_start(&p, w.g, "nobody", NULL, NULL, NULL, &err), GRAFT_E_NOT_FOUND);
    assert_int_equal(graft_pin_adapter(w.g, "nobody", NULL, true, &err), GRAFT_E_NOT_FOUND);
    assert_int_equal(graft_unload_adapter(w.g, "alder", NULL, &freed, NULL, &err), GRAFT_E_NOT_FOUND); /* not in memory */
    assert_int_equal(freed, 7);
    assert_int_equal(metrics().fallbacks + metrics().misses, 0);
    graft_lease_options o = graft_lease_options_default();
    graft_lease *l;
    o.project = "alder";
    o.wait_ms = -2;
    assert_int_equal(graft_lease_take(&l, w.g, &o, &err), GRAFT_E_BAD_REQUEST);
    o.wait_ms = 86400001;
    assert_int_equal(graft_lease_take(&l, w.g, &o, &err), GRAFT_E_BAD_REQUEST);
    o = graft_lease_options_default();
    o.project = "alder";
    o.size--;
    assert_int_equal(graft_lease_take(&l, w.g, &o, &err), GRAFT_E_BAD_REQUEST);
    o.size++;
    o.fallback = (graft_fallback)9;
    assert_int_equal(graft_lease_take(&l, w.g, &o, &err), GRAFT_E_BAD_REQUEST);
}

static void without_a_registry_there_are_no_names(void **state) {
    (void)state;
    graft_error err;
    graft_options o = world_options();
    o.registry = NULL;
    w.g = open_or_fail(&o);
    assert_int_equal(submit_code("alder", NULL), GRAFT_E_BAD_REQUEST);
    assert_int_equal(lease_code("alder", GRAFT_FALLBACK_BASE, -1, &err), GRAFT_E_BAD_REQUEST);
    assert_int_equal(graft_pin_adapter(w.g, "alder", NULL, true, &err), GRAFT_E_BAD_REQUEST);
    graft_loaded_list *l;
    assert_int_equal(graft_loaded_adapters(&l, w.g, &err), 0);
    assert_int_equal(l->n, 0);
    graft_loaded_list_free(l);
    answer a = ask_path(golden("adapters/llama/plain"));
    assert_int_equal(a.error.code, 0);
    /* and one registry serves one instance */
    graft *second = NULL;
    o.registry = w.registry;
    graft *first = open_or_fail(&o);
    assert_int_equal(graft_open(&second, &o, &err), GRAFT_E_CONFLICT);
    assert_null(second);
    graft_close(first);
    graft_close(open_or_fail(&o));
}

static void a_failure_is_remembered_until_the_file_changes(void **state) {
    (void)state;
    char *bytes;
    size_t n;
    add_copy("alder", "adapters/llama/plain");
    open_world();
    answer good = ask_path(golden("adapters/llama/plain"));
    read_file(weights_of("alder"), &bytes, &n);
    write_file(weights_of("alder"), bytes, n - 100);
    int code = ask("alder").fallback.code;
    assert_int_equal(code, GRAFT_E_TRUNCATED);
    assert_int_equal(ask("alder").fallback.code, code);
    assert_int_equal(ask("alder").fallback.code, code);
    assert_int_equal(metrics().negative_hits, 2);
    assert_int_equal(failures(code), 1);
    assert_int_equal(unlink(weights_of("alder")), 0); /* another fault */
    assert_int_equal(ask("alder").fallback.code, GRAFT_E_MISSING_FILE);
    write_file(weights_of("alder"), bytes, n); /* repaired: tried at once */
    named got = ask("alder");
    assert_int_equal(got.fallback.code, 0);
    assert_same_answer(&got.a, &good);
    assert_int_equal(metrics().negative_hits, 2);
    free(bytes);
}

static void files_that_changed_need_a_reload(void **state) {
    (void)state;
    graft_error err;
    bool changed;
    add_copy("alder", "adapters/llama/plain");
    open_world();
    answer plain = ask_path(golden("adapters/llama/plain")), qv = ask_path(golden("adapters/llama/qv"));
    named first = ask("alder");
    assert_same_answer(&first.a, &plain);
    copy_adapter("alder", "adapters/llama/qv");
    named resident = ask("alder"); /* what is in memory is what was registered */
    assert_same_answer(&resident.a, &plain);
    assert_int_equal(graft_unload_adapter(w.g, "alder", NULL, NULL, NULL, &err), 0);
    assert_int_equal(ask("alder").fallback.code, GRAFT_E_CHANGED_ON_DISK);
    assert_int_equal(ask("alder").fallback.code, GRAFT_E_CHANGED_ON_DISK); /* remembered */
    assert_int_equal(state_of("alder"), GRAFT_REGISTERED_CHANGED);
    /* What was remembered is about what was registered then. */
    assert_int_equal(graft_registry_adapter_reload(w.registry, "alder", NULL, &changed, &err), 0);
    assert_true(changed);
    named second = ask("alder");
    assert_int_equal(second.fallback.code, 0);
    assert_same_answer(&second.a, &qv);
    assert_string_not_equal(first.generation, second.generation);
    /* The loader's own reload accepts them too, and for good. */
    copy_adapter("alder", "adapters/llama/plain");
    assert_int_equal(graft_unload_adapter(w.g, "alder", NULL, NULL, NULL, &err), 0);
    assert_int_equal(ask("alder").fallback.code, GRAFT_E_CHANGED_ON_DISK);
    assert_int_equal(graft_load_adapter(w.g, "alder", NULL, true, &err), 0);
    assert_int_equal(graft_unload_adapter(w.g, "alder", NULL, NULL, NULL, &err), 0);
    named third = ask("alder");
    assert_int_equal(third.fallback.code, 0);
    assert_same_answer(&third.a, &plain);
    assert_string_equal(first.generation, third.generation);
}

/* ---- several at once -------------------------------------------------------------------------------------- */

static void many_who_ask_for_one_adapter_cause_one_load(void **state) {
    (void)state;
    enum { N = 40 };
    graft_job *jobs[N];
    graft_prefetch *prefetches[N];
    add_four();
    open_world();
    graft_adapter_use use = {.scale = 1, .project = "alder"};
    graft_request r[N];
    for (int i = 0; i < N; i++) {
        r[i] = request(PROMPT, TOKENS);
        r[i].adapters = &use;
        r[i].n_adapters = 1;
        assert_int_equal(graft_prefetch_start(&prefetches[i], w.g, "alder", NULL, NULL, NULL, NULL), 0);
    }
    assert_int_equal(graft_submit(jobs, w.g, r, N, NULL), 0);
    answer expected = ask_path(golden("adapters/llama/plain"));
    for (int i = 0; i < N; i++) {
        named got = take_named(jobs[i]);
        assert_int_equal(got.fallback.code, 0);
        assert_same_answer(&got.a, &expected);
        assert_int_equal(graft_prefetch_wait(prefetches[i], NULL), 0);
        graft_prefetch_free(prefetches[i]);
    }
    assert_int_equal(metrics().loads, 1);
    /* Different ones, together. */
    static const char *const others[] = {"birch", "cedar"};
    for (int i = 0; i < 2; i++) {
        assert_int_equal(graft_prefetch_start(&prefetches[i], w.g, others[i], NULL, NULL, NULL, NULL), 0);
    }
    for (int i = 0; i < 2; i++) {
        assert_int_equal(graft_prefetch_wait(prefetches[i], NULL), 0);
        graft_prefetch_free(prefetches[i]);
    }
    assert_int_equal(metrics().loads, 3);
    assert_string_equal(listing(), "alder:resident birch:resident cedar:resident");
    assert_int_equal(metrics().n_leases, 0);
}

/* Six projects through room for `max`: every answer is that of its project alone. */
static void crowd_through(int max) {
    static const char *const names[] = {"alder", "birch", "cedar", "dogwood", "elm", "fir"};
    static const char *const files[] = {"adapters/llama/plain",   "adapters/llama/qv",       "adapters/llama/rslora",
                                        "adapters/llama/rank16", "adapters/llama/patterns", "adapters/llama/one-layer"};
    enum { N = 64, PROJECTS = 6 };
    static answer expected[PROJECTS + 1];
    graft_job *jobs[N];
    graft_request r[N];
    graft_adapter_use uses[PROJECTS];
    for (int i = 0; i < PROJECTS; i++) {
        add(names[i], files[i]);
        uses[i] = (graft_adapter_use){.scale = 1, .project = names[i]};
    }
    open_world_max(max);
    for (int i = 0; i < PROJECTS; i++) {
        expected[i] = ask_path(golden(files[i]));
    }
    expected[PROJECTS] = ask_base();
    for (int i = 0; i < N; i++) {
        int which = (i * 5 + i / 7) % (PROJECTS + 1);
        r[i] = request(PROMPT, TOKENS);
        r[i].adapters = which < PROJECTS ? &uses[which] : NULL;
        r[i].n_adapters = which < PROJECTS;
        r[i].fallback = GRAFT_FALLBACK_ERROR;
    }
    assert_int_equal(graft_submit(jobs, w.g, r, N, NULL), 0);
    for (int i = 0; i < N; i++) {
        named got = take_named(jobs[i]);
        if (got.a.error.code) {
            fail_msg("request %d: %s", i, got.a.error.message);
        }
        assert_same_answer(&got.a, &expected[(i * 5 + i / 7) % (PROJECTS + 1)]);
    }
    graft_metrics m = metrics();
    assert_int_equal(m.n_leases, 0);
    assert_true(m.n_resident <= (uint64_t)max);
    assert_int_equal(m.draining, 0);
}

static void a_crowd_of_six_projects_through_room_for_three(void **state) {
    (void)state;
    crowd_through(3);
}

static void a_crowd_of_six_projects_through_room_for_one(void **state) {
    (void)state;
    crowd_through(1);
}

static void endless_requests_of_one_project_do_not_starve_another(void **state) {
    (void)state;
    enum { AT_ONCE = 32, MOST = 30000 };
    graft_job *stream[AT_ONCE];
    add_four();
    open_world_max(1);
    for (int i = 0; i < AT_ONCE; i++) {
        stream[i] = start_named("alder", GRAFT_FALLBACK_ERROR, 600000, 4);
    }
    graft_job_wait(stream[0]);
    graft_adapter_use use = {.scale = 1, .project = "birch"};
    graft_request r = request(PROMPT, 4);
    r.adapters = &use;
    r.n_adapters = 1;
    r.fallback = GRAFT_FALLBACK_ERROR;
    r.adapter_wait_ms = 600000;
    graft_job *waits = submit_or_fail(w.g, &r);
    /* The stream ends with birch's answer, or (starved) after so many. Its load is the sign: nobody else asks for it. */
    int answered = 0;
    while (history("birch").requests == 0 && answered < MOST) {
        graft_job **oldest = &stream[answered++ % AT_ONCE];
        assert_int_equal(take_answer(*oldest).error.code, 0);
        *oldest = start_named("alder", GRAFT_FALLBACK_ERROR, 600000, 4);
    }
    print_message("    birch was answered after %d of alder's\n", answered);
    assert_true(answered < MOST);
    assert_int_equal(take_answer(waits).error.code, 0);
    for (int i = 0; i < AT_ONCE; i++) {
        assert_int_equal(take_answer(stream[i]).error.code, 0);
    }
}

/* ---- leases ----------------------------------------------------------------------------------------------- */

static void a_temporary_lease_unloads_what_it_had_to_load(void **state) {
    (void)state;
    graft_lease_options o = graft_lease_options_default();
    graft_lease *l, *second;
    graft_lease_info info;
    add_four();
    open_world();
    o.project = "alder";
    o.temporary = true;
    assert_int_equal(graft_lease_take(&l, w.g, &o, NULL), 0);
    graft_lease_get_info(l, &info);
    assert_false(info.hit);
    assert_true(info.bytes > 0);
    assert_int_equal(graft_lease_take(&second, w.g, &o, NULL), 0);
    graft_lease_get_info(second, &info);
    assert_true(info.hit);
    graft_lease_release(l);
    assert_string_equal(listing(), "alder:resident"); /* the other temporary one still has it */
    graft_lease_release(second);
    assert_string_equal(listing(), "");
    assert_int_equal(metrics().unloads, 1);
    assert_int_equal(history("alder").unloads, 1);
    /* What was there stays. */
    ask("birch");
    o.project = "birch";
    assert_int_equal(graft_lease_take(&l, w.g, &o, NULL), 0);
    graft_lease_release(l);
    assert_string_equal(listing(), "birch:resident");
    /* And so does what somebody else asked for meanwhile. */
    o.project = "cedar";
    assert_int_equal(graft_lease_take(&l, w.g, &o, NULL), 0);
    ask("cedar");
    graft_lease_release(l);
    assert_string_equal(listing(), "birch:resident cedar:resident");
}

/* Stops the decode thread in the middle of an answer until it is let go. */
typedef struct gate {
    atomic_bool reached, open;
} gate;

static gate at; /* one for all: the end of a test that failed opens it too */

static int end_gate(void **state) {
    atomic_store(&at.open, true);
    return end_world(state);
}

static int begin_gate(void **state) {
    atomic_store(&at.reached, false);
    atomic_store(&at.open, false);
    return begin_world(state);
}

#define GATE_TEST(f) cmocka_unit_test_setup_teardown(f, begin_gate, end_gate)

static bool wait_at(const char *text, size_t length, void *user) {
    (void)text, (void)length, (void)user;
    atomic_store(&at.reached, true);
    WAIT_UNTIL(atomic_load(&at.open))
    return true;
}

static graft_job *start_at_gate(const char *project) {
    graft_adapter_use use = {.scale = 1, .project = project};
    graft_request r = request(PROMPT, TOKENS);
    r.adapters = &use;
    r.n_adapters = 1;
    r.on_text = wait_at;
    graft_job *job = submit_or_fail(w.g, &r);
    WAIT_UNTIL(atomic_load(&at.reached))
    return job;
}

static void unloading_in_the_middle_of_an_answer_does_not_change_it(void **state) {
    (void)state;
    uint64_t freed, pending;
    graft_error err;
    add_four();
    open_world();
    named alone = ask("alder");
    assert_int_equal(graft_unload_adapter(w.g, "alder", NULL, &freed, &pending, &err), 0);
    assert_true(freed > 0);
    assert_int_equal(pending, 0);
    uint64_t before = graft_own_bytes();
    graft_memory empty = memory();
    assert_int_equal(empty.resident + empty.draining + empty.loading, 0);
    graft_job *job = start_at_gate("alder");
    uint64_t was_freed = freed, half = freed / 2; /* the registry's notes come and go meanwhile */
    assert_true(graft_own_bytes() > before + half);
    assert_int_equal(graft_unload_adapter(w.g, "alder", NULL, &freed, &pending, &err), 0);
    assert_int_equal(freed, 0);
    assert_int_equal(pending, was_freed);
    assert_string_equal(listing(), "alder:draining");
    assert_int_equal(memory().draining, was_freed);
    assert_int_equal(graft_unload_adapter(w.g, "alder", NULL, &freed, &pending, &err), GRAFT_E_NOT_FOUND);
    atomic_store(&at.open, true);
    named got = take_named(job);
    assert_same_answer(&got.a, &alone.a);
    assert_string_equal(got.generation, alone.generation);
    WAIT_UNTIL(memory().draining == 0)
    assert_string_equal(listing(), "");
    assert_true(graft_own_bytes() < before + half);
}

static void replacing_in_the_middle_of_an_answer_does_not_change_it(void **state) {
    (void)state;
    graft_error err;
    add_copy("alder", "adapters/llama/plain");
    graft_options o = world_options();
    o.probe = false; /* the decode thread stands at the gate and could not probe */
    w.g = open_or_fail(&o);
    answer plain = ask_path(golden("adapters/llama/plain")), qv = ask_path(golden("adapters/llama/qv"));
    assert_false(same_text(&plain, &qv));
    graft_job *old = start_at_gate("alder");
    copy_adapter("alder", "adapters/llama/qv");
    assert_int_equal(graft_load_adapter(w.g, "alder", NULL, true, &err), 0);
    assert_int_equal(metrics().n_resident, 1);
    assert_int_equal(metrics().n_draining, 1);
    graft_job *young = start_named("alder", GRAFT_FALLBACK_ERROR, -1, TOKENS); /* shares batches with the old one */
    atomic_store(&at.open, true);
    named a = take_named(old), b = take_named(young);
    assert_same_answer(&a.a, &plain);
    assert_same_answer(&b.a, &qv);
    assert_string_not_equal(a.generation, b.generation);
    WAIT_UNTIL(metrics().n_draining == 0)
    assert_int_equal(metrics().replacements, 1);
    assert_string_equal(listing(), "alder:resident");
    assert_true(memory().resident > 0);
}

static void a_lease_may_go_as_soon_as_the_request_was_submitted(void **state) {
    (void)state;
    add_four();
    open_world();
    named expected = ask("alder");
    graft_lease *l = lease_or_fail("alder");
    graft_adapter_use use = {.scale = 1, .lease = l};
    graft_request r = request(PROMPT, TOKENS);
    r.adapters = &use;
    r.n_adapters = 1;
    graft_job *jobs[8];
    for (int i = 0; i < 8; i++) {
        jobs[i] = submit_or_fail(w.g, &r);
    }
    graft_lease_release(l);
    graft_unload_adapter(w.g, "alder", NULL, NULL, NULL, NULL);
    for (int i = 0; i < 8; i++) {
        named got = take_named(jobs[i]);
        assert_same_answer(&got.a, &expected.a);
        assert_string_equal(got.generation, expected.generation);
    }
    WAIT_UNTIL(metrics().n_draining == 0)
    assert_int_equal(metrics().n_leases, 0);
}

static void paths_leases_and_names_add_up_in_one_request(void **state) {
    (void)state;
    static const char *const files[] = {"plain", "qv", "rslora", "rank16", "patterns", "one-layer", "regex", "rank1"};
    enum { N = 8 };
    graft_adapter *opened[N];
    graft_adapter_use by_path[N], mixed[N];
    graft_lease *leases[N] = {NULL};
    char path[64];
    for (int i = 0; i < N; i++) {
        snprintf(path, sizeof path, "adapters/llama/%s", files[i]);
        add(files[i], path);
    }
    open_world_max(0);
    for (int i = 0; i < N; i++) {
        snprintf(path, sizeof path, "adapters/llama/%s", files[i]);
        opened[i] = load_or_fail(w.g, path);
        by_path[i] = (graft_adapter_use){.adapter = opened[i], .scale = 0.25f};
        mixed[i] = by_path[i];
        if (i % 3 == 1) {
            leases[i] = lease_or_fail(files[i]);
            mixed[i] = (graft_adapter_use){.lease = leases[i], .scale = 0.25f};
        } else if (i % 3 == 2) {
            mixed[i] = (graft_adapter_use){.project = files[i], .scale = 0.25f};
        }
    }
    graft_request r = request(PROMPT, TOKENS);
    r.n_adapters = N;
    r.adapters = by_path;
    answer expected = run(w.g, &r), base = ask_base();
    assert_false(same_text(&expected, &base));
    r.adapters = mixed;
    named got = take_named(submit_or_fail(w.g, &r));
    assert_same_answer(&got.a, &expected);
    graft_adapter_info info;
    graft_adapter_get_info(opened[0], &info);
    assert_string_equal(got.generation, info.generation);
    mixed[2].scale = 0; /* as if it were not named */
    r.adapters = mixed;
    got = take_named(submit_or_fail(w.g, &r));
    by_path[2].scale = 0;
    r.adapters = by_path;
    expected = run(w.g, &r);
    assert_same_answer(&got.a, &expected);
    mixed[0].project = "plain"; /* a path and a name */
    r.adapters = mixed;
    graft_job *job;
    assert_int_equal(graft_submit(&job, w.g, &r, 1, NULL), GRAFT_E_BAD_REQUEST);
    for (int i = 0; i < N; i++) {
        graft_lease_release(leases[i]);
        graft_adapter_free(opened[i]);
    }
    WAIT_UNTIL(metrics().n_leases == 0)
}

/* ---- pins, the current project ---------------------------------------------------------------------------- */

static void a_pinned_adapter_is_never_evicted_also_after_a_restart(void **state) {
    (void)state;
    graft_error err;
    add_four();
    open_world();
    assert_int_equal(graft_pin_adapter(w.g, "alder", NULL, true, &err), 0); /* before it is in memory */
    ask("alder");
    ask("birch");
    ask("cedar");
    ask("dogwood");
    assert_string_equal(listing(), "alder:resident! cedar:resident dogwood:resident");
    close_world();
    open_registry();
    open_world();
    ask("alder");
    ask("birch");
    ask("cedar");
    ask("dogwood");
    assert_string_equal(listing(), "alder:resident! cedar:resident dogwood:resident");
    assert_int_equal(graft_registry_adapter_pin(w.registry, "alder", NULL, false, &err), 0); /* which the loader hears */
    ask("birch");
    ask("cedar");
    ask("dogwood"); /* by now it is alder's turn: the end of its pin was its last use */
    assert_string_equal(listing(), "birch:resident cedar:resident dogwood:resident");
    assert_int_equal(graft_pin_adapter(w.g, "birch", NULL, true, &err), 0); /* in memory */
    ask("alder");
    ask("cedar");
    ask("dogwood");
    assert_non_null(strstr(listing(), "birch:resident!"));
    assert_int_equal(graft_unload_adapter(w.g, "birch", NULL, NULL, NULL, &err), 0); /* told to, it goes */
    assert_null(strstr(listing(), "birch"));
    /* The name's next adapter is not pinned because its last one was. */
    assert_int_equal(graft_registry_project_remove(w.registry, "birch", &err), 0);
    add("birch", "adapters/llama/rank1");
    ask("birch");
    assert_non_null(strstr(listing(), "birch:resident"));
    assert_null(strstr(listing(), "birch:resident!"));
}

/* The pin comes while the adapter's load waits for room. */
static void a_pin_during_the_load_holds(void **state) {
    (void)state;
    graft_error err;
    add_four();
    open_world_max(1);
    graft_lease *l = lease_or_fail("alder");
    graft_job *waits = start_named("birch", GRAFT_FALLBACK_ERROR, 600000, 2);
    WAIT_UNTIL(strstr(listing(), "birch:loading"))
    assert_int_equal(graft_pin_adapter(w.g, "birch", NULL, true, &err), 0);
    graft_lease_release(l);
    assert_int_equal(take_named(waits).a.error.code, 0);
    assert_string_equal(listing(), "birch:resident!");
    assert_int_equal(lease_code("alder", GRAFT_FALLBACK_ERROR, 0, &err), GRAFT_E_BUSY);
}

static void the_current_project_answers_who_names_none(void **state) {
    (void)state;
    char project[GRAFT_NAME_SIZE], adapter[GRAFT_NAME_SIZE];
    graft_error err;
    add_four();
    add("broken", "adapters/qwen3/plain");
    assert_int_equal(graft_registry_adapter_add(w.registry, "alder", "second", golden("adapters/llama/qv"), 0, &err), 0);
    open_world();
    assert_int_equal(graft_current_project(w.g, project, adapter, &err), GRAFT_E_NOT_FOUND);
    assert_int_equal(graft_load_adapter(w.g, NULL, NULL, false, &err), GRAFT_E_BAD_REQUEST);
    assert_int_equal(graft_switch_project(w.g, "alder", NULL, &err), 0);
    assert_string_equal(listing(), "alder:resident");
    named current = ask(NULL), by_name = ask("alder");
    assert_same_answer(&current.a, &by_name.a);
    assert_int_equal(graft_switch_project(w.g, "alder", "second", &err), 0);
    assert_int_equal(graft_current_project(w.g, project, adapter, &err), 0);
    assert_string_equal(project, "alder");
    assert_string_equal(adapter, "second");
    current = ask(NULL);
    named birch = ask("birch"); /* the same files */
    assert_same_answer(&current.a, &birch.a);
    assert_string_equal(current.generation, birch.generation);
    /* An error leaves it. */
    assert_int_not_equal(graft_switch_project(w.g, "broken", NULL, &err), 0);
    assert_int_equal(graft_switch_project(w.g, "nobody", NULL, &err), GRAFT_E_NOT_FOUND);
    assert_int_equal(graft_current_project(w.g, project, adapter, &err), 0);
    assert_string_equal(adapter, "second");
    /* A name of its own within the current project. */
    graft_adapter_use use = {.scale = 1, .name = "default"};
    graft_request r = request(PROMPT, TOKENS);
    r.adapters = &use;
    r.n_adapters = 1;
    named first = take_named(submit_or_fail(w.g, &r));
    assert_same_answer(&first.a, &by_name.a);
    /* Removed from the registry: there is none then, and its memory is free. */
    assert_int_equal(graft_registry_project_remove(w.registry, "alder", &err), 0);
    assert_int_equal(graft_current_project(w.g, project, adapter, &err), GRAFT_E_NOT_FOUND);
    assert_null(strstr(listing(), "alder"));
    assert_int_equal(submit_code(NULL, NULL), GRAFT_E_BAD_REQUEST);
    assert_int_equal(submit_code("alder", NULL), GRAFT_E_NOT_FOUND);
}

/* ---- prefetch --------------------------------------------------------------------------------------------- */

static atomic_int called, called_code;

static void note(const graft_error *error, void *user) {
    atomic_store(&called_code, error->code);
    atomic_fetch_add((atomic_int *)user, 1);
}

static bool readable(int fd, int ms) {
    struct pollfd p = {.fd = fd, .events = POLLIN};
    return poll(&p, 1, ms) == 1 && (p.revents & POLLIN);
}

static void prefetching_tells_by_callback_and_by_descriptor(void **state) {
    (void)state;
    graft_prefetch *p;
    graft_error err;
    add_four();
    add("broken", "adapters/qwen3/plain");
    open_world();
    atomic_store(&called, 0);
    /* The probe cannot be run while the decode thread stands at the gate: the load is not over before it opens. */
    ask("birch");
    graft_job *job = start_at_gate("birch");
    assert_int_equal(graft_prefetch_start(&p, w.g, "alder", NULL, note, &called, &err), 0);
    int fd = graft_prefetch_fd(p, &err);
    assert_true(fd >= 0);
    assert_int_equal(graft_prefetch_fd(p, &err), fd);
    assert_false(readable(fd, 20));
    assert_false(graft_prefetch_done(p));
    assert_int_equal(atomic_load(&called), 0);
    atomic_store(&at.open, true);
    assert_true(readable(fd, -1));
    assert_true(readable(fd, -1)); /* stays so */
    assert_int_equal(graft_prefetch_wait(p, &err), 0);
    assert_true(graft_prefetch_done(p));
    assert_int_equal(atomic_load(&called), 1);
    assert_int_equal(atomic_load(&called_code), 0);
    assert_int_equal(fcntl(fd, F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
    struct stat before, after;
    assert_int_equal(fstat(fd, &before), 0);
    graft_prefetch_free(p);
    /* It is closed; another thread may have opened a file since, and been given the number. */
    assert_true(fstat(fd, &after) != 0 || after.st_dev != before.st_dev || after.st_ino != before.st_ino);
    graft_job_free(job);
    /* In memory already: over at once, and a descriptor asked for after the end is readable. */
    assert_int_equal(graft_prefetch_start(&p, w.g, "alder", NULL, note, &called, &err), 0);
    assert_true(graft_prefetch_done(p));
    assert_int_equal(atomic_load(&called), 2);
    assert_true(readable(graft_prefetch_fd(p, &err), 0));
    graft_prefetch_free(p);
    /* A broken one tells why, and never falls back. */
    assert_int_equal(graft_prefetch_start(&p, w.g, "broken", NULL, note, &called, &err), 0);
    int code = graft_prefetch_wait(p, &err);
    assert_int_not_equal(code, 0);
    assert_int_equal(err.code, code);
    assert_int_equal(atomic_load(&called), 3);
    assert_int_equal(atomic_load(&called_code), code);
    assert_true(readable(graft_prefetch_fd(p, &err), 0));
    graft_prefetch_free(p);
    /* Freed at once: the load goes on. */
    assert_int_equal(graft_prefetch_start(&p, w.g, "cedar", NULL, note, &called, &err), 0);
    graft_prefetch_free(p);
    WAIT_UNTIL(atomic_load(&called) == 4)
    assert_non_null(strstr(listing(), "cedar:resident"));
    assert_int_equal(metrics().fallbacks, 0);
    graft_prefetch_free(NULL);
}

/* ---- ends ------------------------------------------------------------------------------------------------- */

static void who_waits_for_an_adapter_can_be_cancelled(void **state) {
    (void)state;
    add_four();
    open_world_max(1);
    graft_lease *l = lease_or_fail("alder");
    graft_job *waits = start_named("birch", GRAFT_FALLBACK_BASE, 600000, 4);
    WAIT_UNTIL(strstr(listing(), "birch:loading"))
    graft_job_cancel(waits);
    named got = take_named(waits); /* at once: birch does not come before alder is released */
    assert_int_equal(got.a.finish, GRAFT_FINISH_CANCELLED);
    assert_int_equal(got.a.error.code, GRAFT_E_CANCELLED);
    assert_int_equal(got.fallback.code, 0);
    graft_lease_release(l);
    WAIT_UNTIL(metrics().n_loading == 0 && metrics().n_leases == 0) /* what it had asked for came, and went back */
    assert_int_equal(ask("birch").fallback.code, 0);
}

static void closing_ends_those_who_wait_for_adapters(void **state) {
    (void)state;
    graft_job *jobs[6];
    graft_prefetch *p;
    graft_error err;
    add_four();
    open_world_max(1);
    graft_lease *l = lease_or_fail("alder");
    for (int i = 0; i < 6; i++) {
        jobs[i] = start_named(i % 2 ? "birch" : "cedar", GRAFT_FALLBACK_BASE, 600000, 4);
    }
    assert_int_equal(graft_prefetch_start(&p, w.g, "dogwood", NULL, NULL, NULL, NULL), 0);
    WAIT_UNTIL(strstr(listing(), "birch:loading"))
    graft_lease_release(l);
    graft_close(w.g);
    w.g = NULL;
    for (int i = 0; i < 6; i++) {
        const graft_result *r = graft_job_wait(jobs[i]);
        assert_true(r->finish == GRAFT_FINISH_LENGTH || r->error.code == GRAFT_E_SHUTTING_DOWN);
        graft_job_free(jobs[i]);
    }
    int rc = graft_prefetch_wait(p, &err);
    assert_true(rc == 0 || rc == GRAFT_E_SHUTTING_DOWN);
    graft_prefetch_free(p);
}

/* ---- the probe -------------------------------------------------------------------------------------------- */

static void an_adapter_that_changes_nothing_is_said_to(void **state) {
    (void)state;
    graft_lease_info info;
    add_copy("nothing", "adapters/llama/plain");
    scale_part("nothing", 'A', 0); /* B is not */
    add_copy("zero", "adapters/llama/plain");
    scale_part("zero", 'B', 0);
    add_copy("faint", "adapters/llama/plain"); /* no number is zero, and nothing comes of them: only evaluating tells */
    scale_part("faint", 'A', 1e-6f);
    scale_part("faint", 'B', 1e-6f);
    add("alder", "adapters/llama/plain");
    open_world();
    assert_int_equal(graft_load_adapter(w.g, "nothing", NULL, true, NULL), 0);
    assert_int_equal(graft_load_adapter(w.g, "zero", NULL, true, NULL), 0);
    assert_int_equal(graft_load_adapter(w.g, "faint", NULL, true, NULL), 0);
    static const char *const names[] = {"nothing", "zero", "faint", "alder"};
    for (int i = 0; i < 4; i++) {
        graft_lease *l = lease_or_fail(names[i]);
        graft_lease_get_info(l, &info);
        assert_int_equal(info.no_effect, i < 3);
        assert_int_equal(info.fallback.code, 0);
        graft_lease_release(l);
        assert_int_equal(logged(names[i], GRAFT_E_NO_EFFECT, "no effect"), i < 3);
    }
    assert_int_equal(metrics().no_effect, 3);
    graft_loaded_list *l;
    assert_int_equal(graft_loaded_adapters(&l, w.g, NULL), 0);
    for (size_t i = 0; i < l->n; i++) {
        assert_int_equal(l->items[i].no_effect, strcmp(l->items[i].project, "alder") != 0);
    }
    graft_loaded_list_free(l);
    answer base = ask_base();
    named same = ask("nothing");
    assert_same_answer(&same.a, &base);
}

static void an_adapter_that_overflows_is_refused_before_it_answers(void **state) {
    (void)state;
    enum { N = 4 };
    graft_job *jobs[N];
    add_copy("huge", "adapters/llama/plain");
    scale_part("huge", 'B', 1e30f);
    scale_part("huge", 'A', 1e15f);
    add("alder", "adapters/llama/plain");
    open_world();
    named alone = take_named(start_named("alder", GRAFT_FALLBACK_ERROR, -1, 60));
    for (int i = 0; i < N; i++) {
        jobs[i] = start_named("alder", GRAFT_FALLBACK_ERROR, -1, 60);
    }
    assert_int_equal(graft_load_adapter(w.g, "huge", NULL, true, NULL), GRAFT_E_NON_FINITE_OUTPUT);
    for (int i = 0; i < N; i++) { /* they shared batches with the probe, and perhaps were computed anew */
        named got = take_named(jobs[i]);
        assert_same_answer(&got.a, &alone.a);
    }
    assert_string_equal(listing(), "alder:resident");
    named got = ask("huge");
    assert_true(got.fallback.code == GRAFT_E_NON_FINITE_OUTPUT || got.fallback.code == GRAFT_E_CHANGED_ON_DISK);
    assert_int_equal(memory().loading + memory().draining, 0);
    /* Without the probe it loads, and its requests fail. */
    graft_close(w.g);
    graft_options o = world_options();
    o.probe = false;
    w.g = open_or_fail(&o);
    assert_int_equal(graft_load_adapter(w.g, "huge", NULL, true, NULL), 0);
    assert_int_equal(ask("huge").a.error.code, GRAFT_E_NON_FINITE_OUTPUT);
    named after = take_named(start_named("alder", GRAFT_FALLBACK_ERROR, -1, 60));
    assert_same_answer(&after.a, &alone.a);
}

/* ---- the grouped way, other types ------------------------------------------------------------------------- */

static uint64_t path_bytes(const char *path) {
    graft_adapter *a;
    graft_adapter_info info;
    assert_int_equal(graft_adapter_open(&a, w.g, path, NULL), 0);
    graft_adapter_get_info(a, &info);
    graft_adapter_free(a);
    return info.bytes;
}

static void grouped(graft_adapter_type type) {
    static const char *const names[] = {"alder", "birch", "cedar", "dogwood"};
    static const char *const files[] = {"plain", "qv", "rslora", "rank16"};
    add_four();
    graft_options o = world_options();
    o.apply = GRAFT_APPLY_GROUPED;
    o.adapter_type = type;
    o.max_adapters = 2;
    w.g = open_or_fail(&o);
    for (int round = 0; round < 2; round++) {
        for (int i = 0; i < 4; i++) {
            char path[64];
            snprintf(path, sizeof path, "adapters/llama/%s", files[i]);
            named got = ask(names[i]);
            assert_int_equal(got.fallback.code, 0);
            answer expected = ask_path(golden(path));
            assert_same_answer(&got.a, &expected);
        }
    }
    assert_int_equal(metrics().evictions, 6);
    ask_base(); /* the farewells of those by path are over once the thread has done something else */
    WAIT_UNTIL(metrics().n_draining == 0)
    graft_memory m = memory();
    uint64_t adapters = path_bytes(golden("adapters/llama/rslora")) + path_bytes(golden("adapters/llama/rank16"));
    assert_true(m.twins > 0);
    assert_int_equal(m.by_path, 0);
    assert_true(m.resident > adapters);
    if (m.twins > m.resident - adapters || 3 * m.twins < m.resident - adapters) {
        fail_msg("type %d: twins take %d bytes, %d were counted for them", (int)type, (int)m.twins, (int)(m.resident - adapters));
    }
    assert_int_equal(graft_unload_adapter(w.g, "cedar", NULL, NULL, NULL, NULL), 0);
    assert_int_equal(graft_unload_adapter(w.g, "dogwood", NULL, NULL, NULL, NULL), 0);
    assert_int_equal(memory().twins, 0);
    assert_int_equal(memory().resident + memory().draining, 0);
}

static void grouped_with_f32(void **state) {
    (void)state;
    grouped(GRAFT_TYPE_F32);
}

static void grouped_with_f16(void **state) {
    (void)state;
    grouped(GRAFT_TYPE_F16);
}

static void grouped_with_q8_0(void **state) {
    (void)state;
    grouped(GRAFT_TYPE_Q8_0);
}

/* ---- opening ---------------------------------------------------------------------------------------------- */

static bool count_progress(float fraction, void *user) {
    (void)fraction;
    atomic_fetch_add((atomic_int *)user, 1);
    return true;
}

static void a_base_over_the_limit_is_refused_with_the_numbers(void **state) {
    (void)state;
    graft_options o = world_options();
    graft_error err;
    graft *g = NULL;
    atomic_int progress = 0;
    o.progress = count_progress;
    o.progress_user = &progress;
    o.memory_limit = 200000; /* the file alone has 320,704 bytes */
    assert_int_equal(graft_open(&g, &o, &err), GRAFT_E_BUDGET_EXHAUSTED);
    assert_non_null(strstr(err.message, "1 MiB"));
    assert_non_null(strstr(err.message, "memory_limit"));
    assert_int_equal(progress, 0); /* nothing was loaded */
    o.memory_limit = (uint64_t)64 << 20;
    o.slots = 64;
    o.context = 65536; /* 4 Mi cells of two layers: gigabytes */
    assert_int_equal(graft_open(&g, &o, &err), GRAFT_E_BUDGET_EXHAUSTED);
    assert_true(progress > 0);
    assert_non_null(strstr(err.message, "64 slots of 65536 tokens"));
    assert_non_null(strstr(err.message, "the memory limit is 64 MiB"));
    assert_null(g);
    o.slots = 4; /* the registry is free for another */
    o.context = 128;
    w.g = open_or_fail(&o);
}

typedef struct opener {
    pthread_t thread;
    const graft_options *o;
    graft *g;
    int rc;
    graft_error err;
} opener;

static void *open_default(void *arg) {
    opener *o = arg;
    o->rc = graft_default(&o->g, o->o, &o->err);
    return NULL;
}

static void crowd_opens(opener *all, int n, const graft_options *o) {
    for (int i = 0; i < n; i++) {
        all[i] = (opener){.o = o};
        assert_int_equal(pthread_create(&all[i].thread, NULL, open_default, &all[i]), 0);
    }
    for (int i = 0; i < n; i++) {
        pthread_join(all[i].thread, NULL);
    }
}

static void the_default_instance_is_opened_once(void **state) {
    (void)state;
    enum { N = 16 };
    opener all[N];
    graft *g = NULL;
    graft_error err;
    atomic_int progress = 0, once;
    graft_options o = world_options();
    o.progress = count_progress;
    o.progress_user = &progress;
    assert_int_equal(graft_default(&g, NULL, &err), GRAFT_E_BAD_REQUEST);
    graft_options bad = o;
    bad.model = in_world("no-such.gguf");
    crowd_opens(all, N, &bad);
    for (int i = 0; i < N; i++) {
        assert_int_equal(all[i].rc, GRAFT_E_MODEL_MISSING);
        assert_int_equal(all[i].err.code, GRAFT_E_MODEL_MISSING);
        assert_null(all[i].g);
    }
    w.g = open_or_fail(&o); /* how often progress is told of one opening */
    once = atomic_load(&progress);
    assert_true(once > 0);
    graft_close(w.g);
    w.g = NULL;
    atomic_store(&progress, 0);
    crowd_opens(all, N, &o);
    for (int i = 0; i < N; i++) {
        assert_int_equal(all[i].rc, 0);
        assert_ptr_equal(all[i].g, all[0].g);
    }
    assert_int_equal(progress, once);
    assert_int_equal(graft_default(&g, NULL, &err), 0);
    assert_ptr_equal(g, all[0].g);
    assert_int_equal(graft_default(&g, &bad, &err), 0); /* options are not looked at */
    add("alder", "adapters/llama/plain");
    assert_int_equal(graft_load_adapter(g, "alder", NULL, false, &err), 0);
    graft_default_close();
    graft_default_close();
    assert_int_equal(graft_default(&g, NULL, &err), GRAFT_E_BAD_REQUEST);
    assert_int_equal(graft_default(&g, &o, &err), 0);
    assert_int_equal(progress, 2 * once);
    graft_default_close();
}

/* Opening lasts until the others wait for it. */
enum { WAITERS = 8 };
static atomic_int begun, waiters;

static bool open_slowly(float fraction, void *user) {
    (void)fraction, (void)user;
    atomic_store(&begun, 1);
    while (atomic_load(&waiters) < WAITERS) {
        nap();
    }
    nap();
    return true;
}

static void *open_and_close(void *arg) {
    open_default(arg);
    graft_default_close();
    return NULL;
}

static void *wait_for_default(void *arg) {
    atomic_fetch_add(&waiters, 1);
    return open_default(arg);
}

static void who_waited_for_an_instance_that_was_closed_is_told(void **state) {
    (void)state;
    graft_options o = world_options();
    o.progress = open_slowly;
    o.registry = NULL;
    int late = 0;
    for (int round = 0; round < 20 && late == 0; round++) {
        opener first = {.o = &o}, all[WAITERS];
        atomic_store(&begun, 0);
        atomic_store(&waiters, 0);
        assert_int_equal(pthread_create(&first.thread, NULL, open_and_close, &first), 0);
        while (!atomic_load(&begun)) {
            nap();
        }
        for (int i = 0; i < WAITERS; i++) {
            all[i] = (opener){.o = NULL};
            assert_int_equal(pthread_create(&all[i].thread, NULL, wait_for_default, &all[i]), 0);
        }
        pthread_join(first.thread, NULL);
        for (int i = 0; i < WAITERS; i++) {
            pthread_join(all[i].thread, NULL);
            assert_int_equal(all[i].err.code, all[i].rc);
            assert_true(all[i].rc == 0 || all[i].err.message[0]);
            late += all[i].rc == GRAFT_E_SHUTTING_DOWN;
        }
        graft_default_close();
    }
    assert_true(late > 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        WORLD_TEST(answers_by_name_are_those_by_path),
        WORLD_TEST(a_fourth_adapter_displaces_the_one_unused_for_longest),
        WORLD_TEST(what_is_leased_is_not_evicted_and_then_there_is_no_room),
        WORLD_TEST(requests_for_several_adapters_do_not_block_each_other),
        WORLD_TEST(scoring_by_name_never_falls_back),
        WORLD_TEST(an_adapter_for_another_base_falls_back_and_says_so),
        WORLD_TEST(the_start_tells_who_answers),
        WORLD_TEST(what_happened_is_in_the_registrys_events),
        WORLD_TEST(fallback_can_be_an_error_for_all_or_for_one),
        WORLD_TEST(what_is_not_registered_is_always_an_error),
        WORLD_TEST(without_a_registry_there_are_no_names),
        WORLD_TEST(a_failure_is_remembered_until_the_file_changes),
        WORLD_TEST(files_that_changed_need_a_reload),
        WORLD_TEST(many_who_ask_for_one_adapter_cause_one_load),
        WORLD_TEST(a_crowd_of_six_projects_through_room_for_three),
        WORLD_TEST(a_crowd_of_six_projects_through_room_for_one),
        WORLD_TEST(endless_requests_of_one_project_do_not_starve_another),
        WORLD_TEST(a_temporary_lease_unloads_what_it_had_to_load),
        GATE_TEST(unloading_in_the_middle_of_an_answer_does_not_change_it),
        GATE_TEST(replacing_in_the_middle_of_an_answer_does_not_change_it),
        WORLD_TEST(a_lease_may_go_as_soon_as_the_request_was_submitted),
        WORLD_TEST(paths_leases_and_names_add_up_in_one_request),
        WORLD_TEST(a_pinned_adapter_is_never_evicted_also_after_a_restart),
        WORLD_TEST(a_pin_during_the_load_holds),
        WORLD_TEST(the_current_project_answers_who_names_none),
        GATE_TEST(prefetching_tells_by_callback_and_by_descriptor),
        WORLD_TEST(who_waits_for_an_adapter_can_be_cancelled),
        WORLD_TEST(closing_ends_those_who_wait_for_adapters),
        WORLD_TEST(an_adapter_that_changes_nothing_is_said_to),
        WORLD_TEST(an_adapter_that_overflows_is_refused_before_it_answers),
        WORLD_TEST(grouped_with_f32),
        WORLD_TEST(grouped_with_f16),
        WORLD_TEST(grouped_with_q8_0),
        WORLD_TEST(a_base_over_the_limit_is_refused_with_the_numbers),
        WORLD_TEST(who_waited_for_an_instance_that_was_closed_is_told),
        WORLD_TEST(the_default_instance_is_opened_once),
    };
    cmocka_set_test_filter(getenv("GRAFT_TEST_FILTER"));
    return cmocka_run_group_tests(tests, NULL, NULL);
}
