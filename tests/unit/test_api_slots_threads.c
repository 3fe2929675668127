/* What can be seen of slots and steps while they go on: the decode thread stands still in a callback, and another thread looks. */
#include "loader_helpers.h"

#include <semaphore.h>

enum { STOP_AT = 3 /* tokens; the board shows the two before */, REQUESTS = 3 };

typedef struct gate {
    sem_t reached, go_on;
    int tokens;
} gate;

static void stop_at_third(const graft_token *token, void *user) {
    gate *g = user;
    (void)token;
    if (++g->tokens == STOP_AT) {
        sem_post(&g->reached);
        while (sem_wait(&g->go_on) != 0) {
        }
    }
}

static graft_slot_list *slots_or_fail(void) {
    graft_slot_list *list = NULL;
    graft_error err;
    if (graft_slots(&list, w.g, &err)) {
        fail_msg("graft_slots: %s", err.message);
    }
    return list;
}

static void assert_idle(const graft_slot *s) {
    assert_string_equal(s->state, "idle");
    assert_true(s->job == 0);
    assert_string_equal(s->project, "");
    assert_string_equal(s->adapter, "");
    assert_string_equal(s->generation, "");
    assert_int_equal(s->prompt_tokens + s->cached_tokens + s->evaluated_tokens + s->completion_tokens, 0);
}

static graft_stats stats_now(void) {
    graft_stats s;
    graft_get_stats(w.g, &s);
    return s;
}

static bool all_idle(void) {
    graft_slot_list *list = slots_or_fail();
    bool idle = true;
    for (size_t i = 0; i < list->n; i++) {
        idle = idle && strcmp(list->items[i].state, "idle") == 0;
    }
    graft_slot_list_free(list);
    return idle && stats_now().last_rows == 0;
}

static const graft_slot *slot_of(const graft_slot_list *list, graft_job *job) {
    for (size_t i = 0; i < list->n; i++) {
        if (list->items[i].job == graft_job_id(job)) {
            return &list->items[i];
        }
    }
    fail_msg("no slot has job %d", (int)graft_job_id(job));
    return NULL;
}

static void preload(const char *project) {
    graft_error err;
    if (graft_load_adapter(w.g, project, NULL, false, &err)) {
        fail_msg("load %s: %s", project, err.message);
    }
}

/* The base, alder and birch at once, in the same steps, until the base's third token. */
static void start_three(graft_job **jobs, gate *g) {
    static graft_adapter_use uses[REQUESTS] = {{.scale = 0}, {.scale = 1, .project = "alder"}, {.scale = 1, .project = "birch"}};
    graft_request r[REQUESTS];
    *g = (gate){.tokens = 0};
    sem_init(&g->reached, 0, 0);
    sem_init(&g->go_on, 0, 0);
    for (int i = 0; i < REQUESTS; i++) {
        r[i] = request(PROMPT, 6);
        r[i].adapters = i ? &uses[i] : NULL;
        r[i].n_adapters = i != 0;
    }
    r[0].on_token = stop_at_third;
    r[0].user = g;
    assert_int_equal(graft_submit(jobs, w.g, r, REQUESTS, NULL), 0);
    while (sem_wait(&g->reached) != 0) {
    }
}

/* Returns how many tokens of the prompts came from the cache. */
static int end_three(graft_job **jobs, gate *g) {
    int cached = 0;
    sem_post(&g->go_on);
    for (int i = 0; i < REQUESTS; i++) {
        answer a = take_answer(jobs[i]);
        assert_int_equal(a.completion_tokens, 6);
        cached += a.cached_tokens;
    }
    sem_destroy(&g->reached);
    sem_destroy(&g->go_on);
    return cached;
}

static void open_with_adapters(void) {
    add("alder", "adapters/llama/plain");
    add("birch", "adapters/llama/qv");
    open_world();
    graft_slot_list *list = slots_or_fail(); /* before anything ran */
    assert_int_equal(list->n, 4);
    for (size_t i = 0; i < list->n; i++) {
        assert_int_equal(list->items[i].slot, i);
        assert_idle(&list->items[i]);
    }
    graft_slot_list_free(list);
    preload("alder");
    preload("birch");
}

static void slots_are_seen_in_the_middle_of_a_step(void **state) {
    static const char *const names[REQUESTS] = {"", "alder", "birch"};
    graft_job *jobs[REQUESTS];
    gate g;
    (void)state;
    open_with_adapters();
    start_three(jobs, &g);
    end_three(jobs, &g); /* so that the next prompts are in the cache */
    start_three(jobs, &g);
    graft_slot_list *list = slots_or_fail();
    end_three(jobs, &g); /* the snapshot is ours: what happens now does not change it */
    int busy = 0;
    for (size_t i = 0; i < list->n; i++) {
        busy += strcmp(list->items[i].state, "idle") != 0;
    }
    assert_int_equal(busy, REQUESTS);
    for (int i = 0, n = 0; i < REQUESTS; i++, n = 0) {
        for (size_t k = 0; k < list->n; k++) {
            const graft_slot *s = &list->items[k];
            if (s->job && strcmp(s->project, names[i]) == 0) {
                n++;
                assert_string_equal(s->state, "decode");
                assert_string_equal(s->adapter, i ? "default" : "");
                assert_int_equal(strlen(s->generation), i ? 64 : 0);
                assert_int_equal(s->completion_tokens, STOP_AT - 1);
                assert_int_equal(s->cached_tokens, s->prompt_tokens - 1);
                assert_int_equal(s->evaluated_tokens, 1);
            }
        }
        assert_int_equal(n, 1);
    }
    graft_slot_list_free(list);
    graft_slot_list_free(NULL);
    WAIT_UNTIL(all_idle())
}

/* The request's slot, from within the step that draws its first token. Names in it are not to be looked at. */
static graft_slot see_first_token(graft_request *r) {
    gate g = {.tokens = STOP_AT - 1};
    sem_init(&g.reached, 0, 0);
    sem_init(&g.go_on, 0, 0);
    r->on_token = stop_at_third;
    r->user = &g;
    graft_job *job = submit_or_fail(w.g, r);
    while (sem_wait(&g.reached) != 0) {
    }
    graft_slot_list *list = slots_or_fail();
    graft_slot s = *slot_of(list, job);
    assert_string_equal(s.state, "prompt");
    assert_string_equal(s.project, "alder");
    assert_int_equal(s.cached_tokens, 0);
    assert_int_equal(s.completion_tokens, 0);
    graft_slot_list_free(list);
    sem_post(&g.go_on);
    take_answer(job);
    sem_destroy(&g.reached);
    sem_destroy(&g.go_on);
    return s;
}

static void a_prompt_is_seen_before_its_first_token(void **state) {
    static const char text[] = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen";
    gate g;
    graft_job *jobs[REQUESTS], *late;
    (void)state;
    graft_options o = world_options();
    o.batch = 16; /* so that the prompt takes several steps */
    add("alder", "adapters/llama/plain");
    add("birch", "adapters/llama/qv");
    w.g = open_or_fail(&o);
    preload("alder");
    preload("birch");
    start_three(jobs, &g);
    graft_request r = request(text, 2);
    r.adapters = &(graft_adapter_use){.scale = 1, .project = "alder"};
    r.n_adapters = 1;
    late = submit_or_fail(w.g, &r);
    graft_slot_list *list = slots_or_fail();
    for (size_t i = 0; i < list->n; i++) { /* it has no slot yet: the decode thread stands */
        assert_true(list->items[i].job != graft_job_id(late));
    }
    graft_slot_list_free(list);
    end_three(jobs, &g);
    take_answer(late);

    r.cache_prompt = false;
    graft_slot s = see_first_token(&r); /* all but the last piece of the prompt has been evaluated */
    assert_true(s.prompt_tokens > 2 * o.batch);
    assert_true(s.evaluated_tokens >= o.batch && s.evaluated_tokens < s.prompt_tokens);
    assert_int_equal(s.evaluated_tokens % o.batch, 0);
    r.prompt = "one step";
    s = see_first_token(&r);
    assert_int_equal(s.evaluated_tokens, 0);
    assert_true(s.prompt_tokens > 0);
}

static uint64_t sum_of(const uint64_t *buckets) {
    uint64_t n = 0;
    for (int i = 0; i < GRAFT_STEP_BUCKETS; i++) {
        n += buckets[i];
    }
    return n;
}

/* The same requests either way of applying adapters: the picture is the same. */
static void check_steps(graft_apply apply) {
    graft_job *jobs[REQUESTS];
    gate g;
    graft_error err;
    assert_int_equal(graft_set_apply(w.g, apply, &err), 0);
    WAIT_UNTIL(all_idle())
    graft_stats before = stats_now();
    start_three(jobs, &g);
    graft_stats s = stats_now();
    assert_int_equal(s.last_rows, REQUESTS);
    assert_int_equal(s.last_adapters, 2); /* the base is none */
    int cached = end_three(jobs, &g);
    WAIT_UNTIL(all_idle())
    s = stats_now();
    assert_int_equal(s.cached_tokens - before.cached_tokens, cached);
    assert_int_equal(s.completion_tokens - before.completion_tokens, 6 * REQUESTS);
    /* Five steps of three generating rows and two adapters; the prompts came before, in one step, which is as small if they
     * were cached. */
    uint64_t prompts = s.prompt_tokens - before.prompt_tokens;
    assert_int_equal(s.rows_per_step[3] - before.rows_per_step[3], 5 + (prompts <= 4));
    assert_int_equal(s.adapters_per_step[2] - before.adapters_per_step[2], 6);
    assert_int_equal(s.adapters_per_step[0], before.adapters_per_step[0]);
    assert_int_equal(s.step_adapters - before.step_adapters, 12);
    assert_int_equal(sum_of(s.rows_per_step), s.decode_steps + s.prompt_steps);
    assert_int_equal(sum_of(s.adapters_per_step), s.decode_steps + s.prompt_steps);
    assert_int_equal(s.step_rows, s.decode_tokens + s.prompt_tokens);
    assert_int_equal(s.last_rows, 0);
    assert_int_equal(s.last_adapters, 0);
}

static void steps_are_counted_by_rows_and_by_adapters(void **state) {
    (void)state;
    open_with_adapters();
    check_steps(GRAFT_APPLY_ROWS);
    graft_stats first = stats_now();
    assert_int_equal(first.cached_tokens, 0);
    check_steps(GRAFT_APPLY_GROUPED);
    assert_true(stats_now().cached_tokens > 0); /* the same prompts again */
    graft_stats before = stats_now();
    ask_base();
    WAIT_UNTIL(all_idle())
    graft_stats after = stats_now();
    uint64_t n = sum_of(after.rows_per_step) - sum_of(before.rows_per_step);
    assert_int_equal(after.adapters_per_step[0] - before.adapters_per_step[0], n);
    assert_int_equal(after.step_adapters, before.step_adapters);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        WORLD_TEST(slots_are_seen_in_the_middle_of_a_step),
        WORLD_TEST(a_prompt_is_seen_before_its_first_token),
        WORLD_TEST(steps_are_counted_by_rows_and_by_adapters),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
