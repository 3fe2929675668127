/* Many threads on one instance: submitting, cancelling, loading and freeing at once; closing in the middle. */
#include "api_helpers.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>

enum { THREADS = 8, ROUNDS = 12, KINDS = 3 };

static const char *const names[] = {NULL, "adapters/llama/plain", "adapters/llama/qv"};

typedef struct worker {
    pthread_t thread;
    graft *g;
    const answer *expected; /* [KINDS] */
    unsigned seed;
    atomic_int *wrong;
} worker;

static graft_request kind_request(graft_adapter_use *use) {
    graft_request r = request("everybody at once", 18);
    r.adapters = use->adapter ? use : NULL;
    r.n_adapters = use->adapter != NULL;
    return r;
}

static unsigned roll(unsigned *seed, unsigned n) {
    *seed = *seed * 1664525u + 1013904223u;
    return (unsigned)((uint64_t)(*seed >> 8) * n >> 24);
}

/* Loads, asks, frees the adapter early or late, sometimes cancels. cmocka's asserts are for the main thread only. */
static void one_round(worker *w) {
    unsigned kind = roll(&w->seed, KINDS);
    graft_adapter_use use = {.adapter = NULL, .scale = 1};
    if (names[kind]) {
        char path[512];
        snprintf(path, sizeof path, "%s/oracle/golden/%s", GRAFT_TEST_DATA, names[kind]);
        if (graft_adapter_open(&use.adapter, w->g, path, NULL)) {
            atomic_fetch_add(w->wrong, 1);
            return;
        }
    }
    graft_request r = kind_request(&use);
    graft_job *job = NULL;
    if (graft_submit(&job, w->g, &r, 1, NULL)) {
        atomic_fetch_add(w->wrong, 1);
        graft_adapter_free(use.adapter);
        return;
    }
    bool cancel = roll(&w->seed, 4) == 0, early = roll(&w->seed, 2) == 0;
    if (early) {
        graft_adapter_free(use.adapter);
    }
    if (cancel) {
        graft_job_cancel(job);
    }
    const graft_result *result = graft_job_wait(job);
    bool right = result->finish == GRAFT_FINISH_LENGTH ? strcmp(result->text, w->expected[kind].text) == 0
                                                       : cancel && result->finish == GRAFT_FINISH_CANCELLED;
    atomic_fetch_add(w->wrong, !right);
    graft_job_free(job);
    if (!early) {
        graft_adapter_free(use.adapter);
    }
}

static void *work(void *arg) {
    worker *w = arg;
    for (int i = 0; i < ROUNDS; i++) {
        one_round(w);
        if (roll(&w->seed, 3) == 0) { /* and somebody else changes the way, and reads figures */
            graft_model_info info;
            graft_stats stats;
            graft_set_apply(w->g, roll(&w->seed, 2) ? GRAFT_APPLY_GROUPED : GRAFT_APPLY_AUTO, NULL);
            graft_model_get_info(w->g, &info);
            graft_get_stats(w->g, &stats);
            graft_slot_list *slots = NULL;
            atomic_fetch_add(w->wrong, graft_slots(&slots, w->g, NULL) != 0 || slots->n != 4);
            graft_slot_list_free(slots);
        }
    }
    return NULL;
}

static void test_everything_at_once(void **state) {
    (void)state;
    graft *g = open_small();
    uint64_t before = graft_own_bytes();
    static answer expected[KINDS];
    for (int kind = 0; kind < KINDS; kind++) {
        graft_adapter_use use = {.adapter = names[kind] ? load_or_fail(g, names[kind]) : NULL, .scale = 1};
        graft_request r = kind_request(&use);
        expected[kind] = run(g, &r);
        graft_adapter_free(use.adapter);
    }
    assert_string_not_equal(expected[0].text, expected[1].text);
    atomic_int wrong = 0;
    worker workers[THREADS];
    for (int i = 0; i < THREADS; i++) {
        workers[i] = (worker){.g = g, .expected = expected, .seed = (unsigned)i + 1, .wrong = &wrong};
        assert_int_equal(pthread_create(&workers[i].thread, NULL, work, &workers[i]), 0);
    }
    for (int i = 0; i < THREADS; i++) {
        pthread_join(workers[i].thread, NULL);
    }
    assert_int_equal(wrong, 0);
    /* Farewells that came while the thread was busy are over once it has done something else. */
    graft_request r = request("the last one", 3);
    run(g, &r);
    assert_true(graft_own_bytes() == before);
    graft_close(g);
}

/* The header says to free jobs first. Who does not still gets ends and no crash. */
static void test_close_while_running(void **state) {
    (void)state;
    graft *g = open_small();
    graft_request r[8];
    graft_job *jobs[8];
    for (int i = 0; i < 8; i++) {
        r[i] = request("to be cut short", 0);
    }
    assert_int_equal(graft_submit(jobs, g, r, 8, NULL), 0);
    graft_close(g);
    int cut = 0;
    for (int i = 0; i < 8; i++) {
        const graft_result *result = graft_job_wait(jobs[i]);
        cut += result->error.code == GRAFT_E_SHUTTING_DOWN;
        assert_true(result->finish == GRAFT_FINISH_LENGTH || result->error.code == GRAFT_E_SHUTTING_DOWN);
        graft_job_free(jobs[i]);
    }
    assert_true(cut > 0);
}

static void test_two_instances(void **state) {
    (void)state;
    graft *a = open_small(), *b = open_small();
    graft_request r = request("twice", 10);
    graft_job *x = submit_or_fail(a, &r), *y = submit_or_fail(b, &r);
    answer first = take_answer(x), second = take_answer(y);
    assert_same_answer(&first, &second);
    graft_close(a);
    answer again = run(b, &r);
    assert_same_answer(&first, &again);
    graft_close(b);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_everything_at_once),
        cmocka_unit_test(test_close_while_running),
        cmocka_unit_test(test_two_instances),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
