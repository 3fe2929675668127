/* The dynamic loader over a fake catalogue and backend: leases, single flight, budget, eviction, replace, retry,
 * fallback, and a stress of all of them from eight threads. */
#include "loader_fake.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "loader/loader_state.h"

#include <pthread.h>

static fake F;
static gr_loader *L;

static void start_with(gr_loader_options o) {
    graft_error err;
    assert_int_equal(gr_loader_create(&L, &o, &err), 0);
}

static void start(int n, uint64_t bytes) {
    fake_init(&F, n, bytes);
    start_with(fake_options(&F));
}

static int stop(void **state) {
    (void)state;
    int wrong = L && !gr_loader_check(L);
    gr_loader_free(L);
    L = NULL;
    return wrong || atomic_load(&F.alive) != 0 || atomic_load(&F.errors) != 0;
}

static const char *name_of(int i) {
    static _Thread_local char name[16];
    snprintf(name, sizeof name, "p%d", i);
    return name;
}

static gr_lease *lease(int i) {
    graft_error err = {0};
    gr_lease *out = NULL;
    int rc = gr_loader_lease(&out, L, &(gr_lease_request){.project = name_of(i)}, &err);
    if (rc) {
        fail_msg("lease of p%d: %s: %s", i, graft_error_name(rc), err.message);
    }
    return out;
}

static int try_lease(int i, gr_lease **out) {
    graft_error err;
    return gr_loader_lease(out, L, &(gr_lease_request){.project = name_of(i)}, &err);
}

static void touch(int i) {
    gr_lease_release(lease(i));
}

static graft_metrics metrics(void) {
    graft_metrics m;
    gr_loader_metrics(L, &m);
    return m;
}

static bool resident(int i) {
    gr_loaded_info *list = NULL;
    size_t n = 0;
    bool found = false;
    graft_error err;
    assert_int_equal(gr_loader_list(L, &list, &n, &err), 0);
    for (size_t k = 0; k < n; k++) {
        found = found || (strcmp(list[k].project, name_of(i)) == 0 && strcmp(list[k].state, "resident") == 0);
    }
    gr_free(list);
    return found;
}

static void a_second_lease_is_a_hit(void **state) {
    (void)state;
    start(4, 100);
    gr_lease *a = lease(0), *b = lease(0);
    assert_ptr_equal(gr_lease_adapter(a), gr_lease_adapter(b));
    assert_int_equal(atomic_load(&F.names[0].reads), 1);
    assert_int_equal(metrics().hits, 1);
    assert_int_equal(metrics().misses, 1);
    gr_lease_release(a);
    gr_lease_release(b);
}

static void cache_overflow_at_three_evicts_the_least_recent(void **state) {
    (void)state;
    start(5, 100);
    touch(0), touch(1), touch(2), touch(0);
    touch(3);
    assert_true(resident(0) && !resident(1) && resident(2) && resident(3));
    assert_int_equal(metrics().evictions, 1);
    assert_int_equal(atomic_load(&F.alive), 3);
}

static void a_leased_adapter_is_never_evicted(void **state) {
    (void)state;
    start(5, 100);
    gr_lease *held = lease(0);
    touch(1), touch(2), touch(3), touch(4), touch(1);
    assert_true(resident(0));
    fake_use(&F, held, 0);
    gr_lease_release(held);
}

/* The last bucket is for all that is longer: its border says nothing, and what was longest does. */
static void quantiles_end_at_what_was_longest(void **state) {
    (void)state;
    graft_histogram h = {0};
    const uint64_t hours = UINT64_C(1) << (GRAFT_HISTOGRAM_BUCKETS + 3);
    assert_int_equal(graft_histogram_quantile(&h, 0.5), 0);
    gr_histogram_add(&h, 100);
    assert_int_equal(graft_histogram_quantile(&h, 0.99), 100);
    gr_histogram_add(&h, (int64_t)hours);
    assert_int_equal(graft_histogram_quantile(&h, 0.99), hours);
    assert_int_equal(graft_histogram_quantile(&h, 0), 128);
}

static void when_all_are_leased_the_answer_is_busy(void **state) {
    (void)state;
    start(5, 100);
    gr_lease *held[3] = {lease(0), lease(1), lease(2)}, *more = NULL;
    assert_int_equal(try_lease(3, &more), GRAFT_E_BUSY);
    assert_null(more);
    assert_int_equal(metrics().busy, 1);
    gr_lease_release(held[1]);
    gr_lease_release(lease(3)); /* busy is not remembered against it */
    gr_lease_release(held[0]);
    gr_lease_release(held[2]);
}

static void *release_later(void *arg) {
    gr_sleep_us(20000);
    gr_lease_release(arg);
    return NULL;
}

static void with_a_deadline_the_caller_waits_for_room(void **state) {
    (void)state;
    start(5, 100);
    gr_lease *held[3] = {lease(0), lease(1), lease(2)}, *more = NULL;
    graft_error err;
    gr_lease_request soon = {.project = "p3", .deadline_us = gr_now_us() + 30000};
    assert_int_equal(gr_loader_lease(&more, L, &soon, &err), GRAFT_E_BUSY);
    pthread_t t;
    gr_thread_start(&t, release_later, held[1]);
    soon.deadline_us = gr_now_us() + 10 * 1000000;
    assert_int_equal(gr_loader_lease(&more, L, &soon, &err), 0);
    gr_thread_join(t);
    gr_lease_release(more);
    gr_lease_release(held[0]);
    gr_lease_release(held[2]);
}

static void memory_pressure_evicts_by_bytes(void **state) {
    (void)state;
    fake_init(&F, 6, 300);
    gr_loader_options o = fake_options(&F);
    o.max_adapters = 0; /* 900 bytes for adapters: three of 300 */
    start_with(o);
    touch(0), touch(1), touch(2);
    assert_int_equal(metrics().resident, 900);
    touch(3);
    assert_int_equal(metrics().resident, 900);
    assert_false(resident(0));
    atomic_store(&F.names[4].bytes, 700); /* makes room for a large one */
    touch(4);
    assert_true(resident(4) && !resident(1) && !resident(2) && !resident(3));
    assert_true(atomic_load(&F.most_bytes) <= 900);
}

static void larger_than_the_budget_is_said_at_once(void **state) {
    (void)state;
    start(2, 100);
    atomic_store(&F.names[1].bytes, 901);
    gr_lease *out = NULL;
    touch(0);
    assert_int_equal(try_lease(1, &out), GRAFT_E_LARGER_THAN_BUDGET);
    assert_true(resident(0)); /* nobody was evicted for it */
    assert_int_equal(atomic_load(&F.names[1].reads), 0);
}

static void a_base_over_the_limit_is_refused(void **state) {
    (void)state;
    graft_error err;
    fake_init(&F, 1, 1);
    gr_loader_options o = fake_options(&F);
    o.fixed_bytes = o.memory_limit;
    assert_int_equal(gr_loader_create(&L, &o, &err), GRAFT_E_BUDGET_EXHAUSTED);
    assert_non_null(strstr(err.message, "1000"));
    L = NULL;
}

typedef struct crowd {
    pthread_t thread;
    int index, rc;
    gr_lease *lease;
} crowd;

static void *crowd_main(void *arg) {
    crowd *c = arg;
    c->rc = try_lease(c->index, &c->lease);
    return NULL;
}

static void crowd_start(crowd *c, int n, int index) {
    for (int i = 0; i < n; i++) {
        c[i] = (crowd){.index = index < 0 ? i % 3 : index};
        assert_int_equal(gr_thread_start(&c[i].thread, crowd_main, &c[i]), 0);
    }
}

static void crowd_end(crowd *c, int n) {
    for (int i = 0; i < n; i++) {
        gr_thread_join(c[i].thread);
        gr_lease_release(c[i].lease);
    }
}

static void five_hundred_callers_share_one_read(void **state) {
    (void)state;
    enum { N = 500 };
    static crowd c[N];
    start(1, 100);
    atomic_store(&F.gate, 1);
    crowd_start(c, N, 0);
    while (metrics().misses < N) {
        gr_sleep_us(500);
    }
    atomic_store(&F.gate, 0);
    crowd_end(c, N);
    for (int i = 0; i < N; i++) {
        assert_int_equal(c[i].rc, 0);
    }
    assert_int_equal(atomic_load(&F.names[0].reads), 1);
}

static void different_adapters_load_at_the_same_time(void **state) {
    (void)state;
    crowd c[3];
    start(3, 100);
    atomic_store(&F.gate, 1);
    crowd_start(c, 2, -1);
    while (atomic_load(&F.waiting_at_gate) < 2) { /* both are inside load: neither waits for the other */
        gr_sleep_us(500);
    }
    atomic_store(&F.gate, 0);
    crowd_end(c, 2);
}

static void a_failure_is_shared_then_remembered_for_the_same_file(void **state) {
    (void)state;
    gr_lease *out = NULL;
    start(2, 100);
    atomic_store(&F.names[0].fail_times, -1);
    atomic_store(&F.names[0].fail_code, GRAFT_E_WRONG_SHAPE);
    assert_int_equal(try_lease(0, &out), GRAFT_E_WRONG_SHAPE);
    atomic_store(&F.names[0].fail_code, 0);
    assert_int_equal(try_lease(0, &out), GRAFT_E_WRONG_SHAPE); /* same file: from memory */
    assert_int_equal(metrics().negative_hits, 1);
    assert_int_equal(metrics().retries, 0); /* a bad file is never retried */
    atomic_store(&F.names[0].generation, 2); /* the file was mended */
    assert_int_equal(try_lease(0, &out), 0);
    gr_lease_release(out);
}

static void what_may_pass_is_retried_three_times(void **state) {
    (void)state;
    gr_lease *out = NULL;
    start(2, 100);
    atomic_store(&F.names[0].fail_times, 2);
    atomic_store(&F.names[0].fail_code, GRAFT_E_IO_ERROR);
    assert_int_equal(try_lease(0, &out), 0);
    gr_lease_release(out);
    assert_int_equal(metrics().retries, 2);
    out = NULL;
    atomic_store(&F.names[1].fail_times, -1);
    atomic_store(&F.names[1].fail_code, GRAFT_E_IO_ERROR);
    assert_int_equal(try_lease(1, &out), GRAFT_E_IO_ERROR);
    assert_int_equal(metrics().retries, 4);
    assert_true(metrics().n_retried == 1 && metrics().retried[0].code == GRAFT_E_IO_ERROR && metrics().retried[0].n == 4);
    assert_int_equal(metrics().failures[0].n, 1);
    atomic_store(&F.names[1].fail_code, 0);
    touch(1); /* what may pass is not remembered */
}

static void an_incompatible_adapter_falls_back_and_says_so(void **state) {
    (void)state;
    graft_error err;
    gr_lease *out = NULL;
    start(2, 100);
    atomic_store(&F.names[0].fail_times, -1);
    atomic_store(&F.names[0].fail_code, GRAFT_E_WRONG_SHAPE);
    gr_lease_request r = {.project = "p0", .fallback = GRAFT_FALLBACK_BASE};
    for (int i = 0; i < 2; i++) { /* when it is found out, and from memory */
        assert_int_equal(gr_loader_lease(&out, L, &r, &err), 0);
        assert_null(gr_lease_adapter(out));
        assert_int_equal(gr_lease_fallback(out)->code, GRAFT_E_WRONG_SHAPE);
        gr_lease_release(out);
    }
    assert_int_equal(metrics().fallbacks, 2);
    r.project = "p7"; /* unknown: an error, whatever the setting */
    out = NULL;
    assert_int_equal(gr_loader_lease(&out, L, &r, &err), GRAFT_E_NOT_FOUND);
    assert_null(out);
}

static void a_temporary_lease_unloads_what_it_had_to_load(void **state) {
    (void)state;
    graft_error err;
    gr_lease *t = NULL, *u = NULL;
    start(3, 100);
    gr_lease_request r = {.project = "p0", .temporary = true};
    assert_int_equal(gr_loader_lease(&t, L, &r, &err), 0);
    assert_int_equal(gr_loader_lease(&u, L, &r, &err), 0);
    gr_lease_release(t);
    assert_true(resident(0)); /* the other one still has it */
    gr_lease_release(u);
    assert_false(resident(0));
    assert_int_equal(atomic_load(&F.alive), 0);

    touch(1);
    r.project = "p1"; /* was there before: stays */
    assert_int_equal(gr_loader_lease(&t, L, &r, &err), 0);
    gr_lease_release(t);
    assert_true(resident(1));

    r.project = "p2"; /* somebody else came to want it for good */
    assert_int_equal(gr_loader_lease(&t, L, &r, &err), 0);
    touch(2);
    gr_lease_release(t);
    assert_true(resident(2));
}

static void unload_keeps_the_memory_until_the_last_release(void **state) {
    (void)state;
    graft_error err;
    uint64_t freed, pending;
    start(2, 100);
    gr_lease *held = lease(0);
    assert_int_equal(gr_loader_unload(L, "p0", "default", &freed, &pending, &err), 0);
    assert_int_equal(freed, 0);
    assert_int_equal(pending, 100);
    assert_false(resident(0));
    assert_int_equal(metrics().draining, 100);
    fake_use(&F, held, 0);
    assert_int_equal(gr_loader_unload(L, "p0", "default", &freed, &pending, &err), GRAFT_E_NOT_FOUND);
    gr_lease_release(held);
    assert_int_equal(metrics().draining, 0);
    assert_int_equal(atomic_load(&F.alive), 0);
    touch(0);
    assert_int_equal(gr_loader_unload(L, "p0", "default", &freed, &pending, &err), 0);
    assert_int_equal(freed, 100);
}

static void replace_lets_the_old_finish_and_the_new_begin(void **state) {
    (void)state;
    graft_error err;
    start(2, 100);
    gr_lease *old = lease(0), *new = NULL;
    atomic_store(&F.names[0].generation, 2);
    assert_int_equal(gr_loader_lease(&new, L, &(gr_lease_request){.project = "p0", .reload = true}, &err), 0);
    assert_string_equal(gr_lease_generation(old), "0-1");
    assert_string_equal(gr_lease_generation(new), "0-2");
    assert_int_equal(atomic_load(&F.alive), 2); /* both live until the old one is let go */
    gr_lease_release(old);
    assert_int_equal(atomic_load(&F.alive), 1);
    gr_lease *again = lease(0);
    assert_string_equal(gr_lease_generation(again), "0-2");
    gr_lease_release(again);
    gr_lease_release(new);
    assert_int_equal(metrics().replacements, 1);
}

static void a_reload_never_joins_an_older_flight(void **state) {
    (void)state;
    graft_error err;
    crowd old[1];
    gr_lease *new = NULL;
    start(2, 100);
    atomic_store(&F.gate, 1);
    crowd_start(old, 1, 0);
    while (atomic_load(&F.waiting_at_gate) < 1) {
        gr_sleep_us(500);
    }
    /* The first flight has begun reading; the file changes; a reload must read it anew. */
    gr_lease_request r = {.project = "p0", .reload = true, .deadline_us = gr_now_us() + 30000};
    assert_int_equal(gr_loader_lease(&new, L, &r, &err), GRAFT_E_DEADLINE);
    atomic_store(&F.gate, 0);
    crowd_end(old, 1);
    gr_lease *settled = lease(0); /* waits for the second flight if it is still under way */
    gr_lease_release(settled);
    while (metrics().n_loading) {
        gr_sleep_us(500);
    }
    assert_int_equal(atomic_load(&F.names[0].reads), 2);
}

static void a_name_that_points_elsewhere_is_loaded_anew(void **state) {
    (void)state;
    start(2, 100);
    touch(0);
    atomic_store(&F.names[0].generation, 2);
    atomic_store(&F.names[0].revision, 2);
    gr_lease *l = lease(0);
    assert_string_equal(gr_lease_generation(l), "0-2");
    gr_lease_release(l);
}

static void pinned_adapters_stay(void **state) {
    (void)state;
    graft_error err;
    start(6, 100);
    touch(0);
    assert_int_equal(gr_loader_pin(L, "p0", "default", true, &err), 0);
    touch(1), touch(2), touch(3), touch(4);
    assert_true(resident(0));
    assert_int_equal(gr_loader_pin(L, "p0", "default", false, &err), 0);
    touch(1), touch(2), touch(3);
    assert_false(resident(0));
    assert_int_equal(gr_loader_pin(L, "p5", "default", true, &err), GRAFT_E_NOT_FOUND);
}

static void pressure_evicts_what_nobody_holds(void **state) {
    (void)state;
    start(3, 100);
    gr_lease *held = lease(0);
    touch(1), touch(2);
    assert_int_equal(gr_loader_relieve(L, 1000), 200);
    assert_true(resident(0) && !resident(1) && !resident(2));
    gr_lease_release(held);
}

static void note(gr_lease *l, const graft_error *err, void *user);

/* The clerk looks once a second and lets one go each time. */
static void a_process_over_its_limit_loses_what_nobody_holds(void **state) {
    (void)state;
    start(3, 100);
    gr_lease *held = lease(0);
    touch(1), touch(2);
    atomic_store(&F.process, 1001);
    while (resident(1) || resident(2)) {
        gr_sleep_us(2000);
    }
    assert_true(resident(0));
    assert_int_equal(metrics().evictions, 2);
    gr_lease_release(held);
}

/* What graft itself takes is taken from what adapters may have. */
static void own_memory_leaves_less_for_adapters(void **state) {
    (void)state;
    start(3, 300); /* of 1000, 100 are fixed: three fit */
    touch(0), touch(1), touch(2);
    assert_int_equal(metrics().n_resident, 3);
    assert_int_equal(gr_loader_unload(L, "p2", "default", &(uint64_t){0}, &(uint64_t){0}, NULL), 0);
    atomic_store(&F.own, 50);
    touch(2);
    assert_int_equal(metrics().n_resident, 2);
    assert_int_equal(metrics().fixed, 150);
    gr_lease *out = NULL;
    atomic_store(&F.own, 601);
    assert_int_equal(gr_loader_unload(L, "p2", "default", &(uint64_t){0}, &(uint64_t){0}, NULL), 0);
    assert_int_equal(try_lease(2, &out), GRAFT_E_LARGER_THAN_BUDGET);
    atomic_store(&F.own, 0); /* which is no fault of the file, so it is not remembered */
    touch(2);
}

static void bytes_without_a_name_are_charged(void **state) {
    (void)state;
    start(3, 300);
    graft_error err;
    touch(0), touch(1), touch(2);
    gr_lease *held = lease(1);
    assert_int_equal(gr_loader_charge(L, 350, &err), 0); /* 0 and 2 had to go */
    assert_true(resident(1) && !resident(0) && !resident(2));
    assert_int_equal(gr_loader_charge(L, 300, &err), GRAFT_E_BUDGET_EXHAUSTED);
    assert_non_null(strstr(err.message, "300"));
    gr_loader_discharge(L, 350);
    assert_int_equal(gr_loader_charge(L, 600, &err), 0);
    gr_loader_discharge(L, 600);
    assert_int_equal(metrics().fixed, 100);
    gr_lease_release(held);
}

/* The last lease is given back where nothing may be freed: the clerk does it. */
static void releasing_later_frees_on_another_thread(void **state) {
    (void)state;
    start(1, 100);
    gr_lease *held = lease(0);
    uint64_t freed, pending;
    assert_int_equal(gr_loader_unload(L, "p0", "default", &freed, &pending, NULL), 0);
    assert_true(freed == 0 && pending == 100);
    gr_lease_release_later(held);
    while (metrics().n_draining > 0) {
        gr_sleep_us(500);
    }
    assert_int_equal(atomic_load(&F.alive), 0);
}

static void a_copied_lease_holds_by_itself(void **state) {
    (void)state;
    start(4, 100);
    gr_lease *first = lease(0), *second = gr_lease_copy(first);
    assert_non_null(second);
    gr_lease_release(first);
    touch(1), touch(2), touch(3);
    assert_true(resident(0));
    fake_use(&F, second, 0);
    gr_lease_release(second);
    touch(1), touch(2), touch(3);
    assert_false(resident(0));
}

/* Nobody blocks for those who asked with a callback: the clerk looks at their clocks. */
static void who_does_not_block_is_told_in_time_too(void **state) {
    (void)state;
    start(4, 100);
    gr_lease *held[] = {lease(0), lease(1), lease(2)};
    atomic_int no_room = 0, slow = 0;
    gr_loader_lease_async(L, &(gr_lease_request){.project = "p3", .deadline_us = gr_now_us() + 30000}, note, &no_room);
    while (!atomic_load(&no_room)) {
        gr_sleep_us(500);
    }
    assert_int_equal(atomic_load(&no_room), GRAFT_E_BUSY);
    for (int i = 0; i < 3; i++) {
        gr_lease_release(held[i]);
    }
    atomic_store(&F.gate, 1);
    gr_loader_lease_async(L, &(gr_lease_request){.project = "p3", .deadline_us = gr_now_us() + 30000}, note, &slow);
    while (!atomic_load(&slow)) {
        gr_sleep_us(500);
    }
    assert_int_equal(atomic_load(&slow), GRAFT_E_DEADLINE);
    atomic_store(&F.gate, 0);
    touch(3); /* the load itself went on */
    assert_int_equal(atomic_load(&F.names[3].reads), 1);
}

static void note(gr_lease *l, const graft_error *err, void *user) {
    atomic_int *seen = user;
    atomic_store(seen, l ? 1 : err->code);
    gr_lease_release(l);
}

static void prefetch_calls_back_once(void **state) {
    (void)state;
    start(2, 100);
    atomic_int seen = 0;
    gr_loader_lease_async(L, &(gr_lease_request){.project = "p0"}, note, &seen);
    while (!atomic_load(&seen)) {
        gr_sleep_us(500);
    }
    assert_int_equal(atomic_load(&seen), 1);
    atomic_store(&seen, 0);
    gr_loader_lease_async(L, &(gr_lease_request){.project = "p0"}, note, &seen);
    assert_int_equal(atomic_load(&seen), 1); /* a hit answers before it returns */
    gr_loader_lease_async(L, &(gr_lease_request){.project = "p9"}, note, &seen);
    assert_int_equal(atomic_load(&seen), GRAFT_E_NOT_FOUND);
}

static void closing_answers_those_who_wait(void **state) {
    (void)state;
    start(4, 100);
    atomic_int seen[4] = {0};
    atomic_store(&F.gate, 1); /* two of them are inside load, two are queued */
    for (int i = 0; i < 4; i++) {
        gr_loader_lease_async(L, &(gr_lease_request){.project = name_of(i)}, note, &seen[i]);
    }
    while (atomic_load(&F.waiting_at_gate) < 2) {
        gr_sleep_us(500);
    }
    atomic_store(&F.gate, 0);
    gr_loader_free(L);
    L = NULL;
    for (int i = 0; i < 4; i++) {
        assert_true(atomic_load(&seen[i]) == 1 || atomic_load(&seen[i]) == GRAFT_E_SHUTTING_DOWN);
    }
}

/* ---- flights that wait for room ----------------------------------------------------------------------------- */

enum { LONG_US = 600 * 1000000 };

static void ask_for(int i, int64_t wait_us, atomic_int *seen) {
    gr_loader_lease_async(L, &(gr_lease_request){.project = name_of(i), .deadline_us = wait_us ? gr_now_us() + wait_us : 0}, note, seen);
}

#define WAIT_UNTIL(condition) \
    while (!(condition)) {    \
        gr_sleep_us(500);     \
    }

/* One place, and it is taken. */
static gr_lease *start_with_one_place_taken(void) {
    fake_init(&F, 4, 100);
    gr_loader_options o = fake_options(&F);
    o.max_adapters = 1;
    start_with(o);
    return lease(0);
}

/* Who waits with 0 does not wait for room, whoever else does: be he there before it is known that there is none, or after. */
static void who_does_not_wait_for_room_is_told_at_once(void **state) {
    (void)state;
    gr_lease *held = start_with_one_place_taken(), *out = NULL;
    atomic_int patient = 0, early = 0;
    atomic_store(&F.prepare_gate, 1);
    ask_for(1, LONG_US, &patient);
    ask_for(1, 0, &early);
    atomic_store(&F.prepare_gate, 0);
    WAIT_UNTIL(atomic_load(&early))
    assert_int_equal(atomic_load(&early), GRAFT_E_BUSY);
    assert_int_equal(try_lease(1, &out), GRAFT_E_BUSY);
    assert_int_equal(atomic_load(&patient), 0);
    gr_lease_release(held);
    WAIT_UNTIL(atomic_load(&patient))
    assert_int_equal(atomic_load(&patient), 1);
    assert_int_equal(atomic_load(&F.names[1].prepares), 1);
}

/* No lease ends and no load does, but graft itself takes less. */
static void room_that_own_memory_makes_is_found(void **state) {
    (void)state;
    atomic_int seen = 0;
    start(3, 300);
    gr_lease *a = lease(0), *b = lease(1);
    atomic_store(&F.own, 250);
    ask_for(2, LONG_US, &seen);
    WAIT_UNTIL(gr_loader_starved_us(L) > 0)
    assert_int_equal(atomic_load(&seen), 0);
    atomic_store(&F.own, 0);
    WAIT_UNTIL(atomic_load(&seen))
    assert_int_equal(atomic_load(&seen), 1);
    gr_lease_release(a);
    gr_lease_release(b);
}

static void waiting_for_room_shows_and_waiting_for_a_load_does_not(void **state) {
    (void)state;
    atomic_int seen = 0;
    gr_lease *held = start_with_one_place_taken();
    assert_true(gr_loader_starved_us(L) == 0);
    ask_for(1, LONG_US, &seen);
    int64_t first, then;
    WAIT_UNTIL((first = gr_loader_starved_us(L)) > 0)
    WAIT_UNTIL((then = gr_loader_starved_us(L)) > first)
    atomic_store(&F.gate, 1);
    gr_lease_release(held);
    WAIT_UNTIL(atomic_load(&F.waiting_at_gate))
    assert_true(gr_loader_starved_us(L) == 0);
    atomic_store(&F.gate, 0);
    WAIT_UNTIL(atomic_load(&seen))
    assert_int_equal(atomic_load(&seen), 1);
}

static int64_t working(void) {
    gr_recent r;
    gr_loader_recent(L, &r);
    return r.working_us;
}

static void work_that_does_not_end_shows(void **state) {
    (void)state;
    atomic_int seen[2] = {0};
    gr_lease *held = start_with_one_place_taken();
    ask_for(1, LONG_US, &seen[0]);
    WAIT_UNTIL(gr_loader_starved_us(L) > 0)
    assert_true(working() == 0); /* waiting for room is no work */
    gr_lease_release(held);
    WAIT_UNTIL(atomic_load(&seen[0]))
    for (int i = 0; i < 2; i++) { /* in load, and in prepare */
        atomic_int *gate = i ? &F.prepare_gate : &F.gate;
        int64_t first, then;
        atomic_store(&seen[1], 0);
        atomic_store(gate, 1);
        ask_for(2 + i, 0, &seen[1]);
        WAIT_UNTIL((first = working()) > 0)
        WAIT_UNTIL((then = working()) > first)
        atomic_store(gate, 0);
        WAIT_UNTIL(atomic_load(&seen[1]))
        assert_true(working() == 0);
    }
}

/* Two wait for room while the loader closes, and the time of one is up while the other's end is being told. */
static atomic_int late_left;

static void until_the_late_one_left(const gr_event *e) {
    if (e->kind == GR_EVENT_FAILED && strcmp(e->project, "p2") == 0) {
        WAIT_UNTIL(atomic_load(&late_left))
    }
}

static void *leave_late(void *arg) {
    gr_lease *out = NULL;
    graft_error err;
    gr_lease_request r = {.project = "p2", .deadline_us = gr_now_us() + 300000};
    *(int *)arg = gr_loader_lease(&out, L, &r, &err);
    atomic_store(&late_left, 1);
    return NULL;
}

static void closing_while_two_wait_for_room(void **state) {
    (void)state;
    pthread_t late;
    int late_code = 0;
    atomic_int seen = 0;
    gr_lease *held = start_with_one_place_taken();
    F.on_event = until_the_late_one_left;
    atomic_store(&late_left, 0);
    ask_for(1, LONG_US, &seen);
    WAIT_UNTIL(metrics().n_loading == 1)
    assert_int_equal(gr_thread_start(&late, leave_late, &late_code), 0);
    WAIT_UNTIL(metrics().n_loading == 2 && atomic_load(&F.names[2].prepares))
    gr_sleep_us(20000); /* so that it is parked, most likely */
    gr_loader_stop(L);
    gr_thread_join(late);
    assert_int_equal(atomic_load(&seen), GRAFT_E_SHUTTING_DOWN);
    assert_true(late_code == GRAFT_E_BUSY || late_code == GRAFT_E_DEADLINE || late_code == GRAFT_E_SHUTTING_DOWN);
    assert_int_equal(metrics().n_loading, 0);
    gr_lease_release(held);
}

/* ---- room: never more than there is, and nobody goes in vain --------------------------------------------------- */

static void break_load(int i, int times, int code, uint64_t bytes_then) {
    atomic_store(&F.names[i].bytes_then, bytes_then);
    atomic_store(&F.names[i].break_code, code);
    atomic_store(&F.names[i].breaks, times);
}

/* A file that was being written: the second attempt finds more than the first reserved room for. */
static void a_file_that_grew_between_attempts_finds_room_anew(void **state) {
    (void)state;
    start(3, 500); /* of 900 */
    atomic_store(&F.names[1].bytes, 100);
    touch(0);
    break_load(1, 1, GRAFT_E_CHANGED_WHILE_READING, 600);
    gr_lease *l = lease(1);
    assert_int_equal(gr_lease_loaded(l)->bytes, 600);
    assert_int_equal(atomic_load(&F.names[1].reads), 2);
    assert_true(atomic_load(&F.most_bytes) <= 900);
    assert_true(!resident(0) && metrics().evictions == 1);
    gr_lease_release(l);
}

static void what_takes_more_than_announced_evicts_for_the_rest(void **state) {
    (void)state;
    gr_lease *out = NULL;
    start(3, 300); /* of 900 */
    touch(0), touch(1);
    atomic_store(&F.names[2].more, 200);
    touch(2);
    assert_true(!resident(0) && resident(1) && resident(2));
    assert_int_equal(metrics().resident, 800);
    uint64_t a, b;
    assert_int_equal(gr_loader_unload(L, "p2", "default", &a, &b, NULL), 0);
    gr_lease *held[2] = {lease(0), lease(1)};
    assert_int_equal(try_lease(2, &out), GRAFT_E_BUDGET_EXHAUSTED); /* not over it, and not at the cost of who is held */
    assert_true(resident(0) && resident(1));
    assert_int_equal(metrics().resident, 600);
    gr_lease_release(held[0]);
    gr_lease_release(held[1]);
}

static void nothing_goes_that_would_not_help(void **state) {
    (void)state;
    graft_error err;
    gr_lease *out = NULL;
    start(3, 400); /* of 900 */
    atomic_store(&F.names[2].bytes, 800);
    gr_lease *held = lease(0);
    touch(1);
    assert_int_equal(try_lease(2, &out), GRAFT_E_BUSY);
    assert_int_equal(gr_loader_charge(L, 600, &err), GRAFT_E_BUDGET_EXHAUSTED);
    assert_true(resident(1));
    assert_int_equal(metrics().evictions, 0);
    assert_int_equal(gr_loader_charge(L, 500, &err), 0); /* this one does */
    assert_false(resident(1));
    gr_loader_discharge(L, 500);
    gr_lease_release(held);
    touch(2); /* now it fits */
}

/* ---- pauses between attempts ------------------------------------------------------------------------------------- */

/* How long the paused flights still rest, the longest of them. */
static int64_t longest_rest(void) {
    int64_t longest = 0;
    gr_mutex_lock(&L->mutex);
    for (const gr_version *v = L->table.versions; v; v = v->next) {
        int64_t rest = v->retry_at ? v->retry_at - gr_now_us() : 0;
        longest = rest > longest ? rest : longest;
    }
    gr_mutex_unlock(&L->mutex);
    return longest;
}

/* Two flaky files, two threads, one place; a third name does not wait for them. */
static void who_pauses_keeps_nobody_back(void **state) {
    (void)state;
    atomic_int seen[2] = {0};
    fake_init(&F, 3, 100);
    gr_loader_options o = fake_options(&F);
    o.max_adapters = 1;
    o.retry_base_us = 60 * 1000000;
    start_with(o);
    for (int i = 0; i < 2; i++) {
        break_load(i, 1, GRAFT_E_IO_ERROR, 0);
        ask_for(i, LONG_US, &seen[i]);
    }
    WAIT_UNTIL(metrics().retries == 2)
    int64_t rest = longest_rest();
    assert_true(rest > 0 && rest <= 7500000); /* five seconds, and up to half as much again */
    assert_int_equal(metrics().loading, 0);
    gr_lease *l = lease(2);
    assert_int_equal(atomic_load(&F.names[0].prepares), 1);
    assert_int_equal(atomic_load(&F.names[1].prepares), 1);
    gr_lease_release(l);
    gr_loader_stop(L); /* and closing does not wait for them either */
    assert_int_equal(atomic_load(&seen[0]), GRAFT_E_SHUTTING_DOWN);
    assert_int_equal(atomic_load(&seen[1]), GRAFT_E_SHUTTING_DOWN);
}

static void nobody_left_no_further_attempt(void **state) {
    (void)state;
    gr_lease *out = NULL;
    graft_error err;
    start(1, 100);
    break_load(0, 3, GRAFT_E_IO_ERROR, 0);
    atomic_store(&F.gate, 1);
    gr_lease_request r = {.project = "p0", .deadline_us = gr_now_us() + 20000};
    assert_int_equal(gr_loader_lease(&out, L, &r, &err), GRAFT_E_DEADLINE);
    WAIT_UNTIL(atomic_load(&F.waiting_at_gate))
    atomic_store(&F.gate, 0);
    WAIT_UNTIL(metrics().n_loading == 0)
    assert_int_equal(atomic_load(&F.names[0].reads), 1);
    assert_int_equal(metrics().retries, 0);
    assert_int_equal(metrics().n_failures, 1);
}

/* ---- what the catalogue hears, and what it says of pins ---------------------------------------------------------- */

static void a_load_that_was_overtaken_is_no_news(void **state) {
    (void)state;
    graft_error err;
    atomic_int seen = 0;
    gr_lease *new = NULL;
    start(1, 100);
    atomic_store(&F.names[0].held_reads, 1);
    ask_for(0, 0, &seen);
    WAIT_UNTIL(atomic_load(&F.waiting_at_gate))
    atomic_store(&F.names[0].generation, 2); /* the file changes while it is read, and somebody loads it anew */
    assert_int_equal(gr_loader_lease(&new, L, &(gr_lease_request){.project = "p0", .reload = true}, &err), 0);
    assert_int_equal(fake_told_of(&F, "0-2", false), 1);
    atomic_store(&F.names[0].held_reads, 0);
    WAIT_UNTIL(atomic_load(&seen))
    assert_int_equal(atomic_load(&seen), 1);
    assert_int_equal(fake_told_of(&F, "0-1", true), 1);
    assert_int_equal(fake_told_of(&F, "0-1", false), 0);
    gr_lease_release(new);
    new = lease(0);
    assert_string_equal(gr_lease_generation(new), "0-2");
    gr_lease_release(new);
}

static void what_was_expected_is_no_news(void **state) {
    (void)state;
    graft_error err;
    gr_lease *l = NULL;
    start(1, 100);
    touch(0);
    assert_int_equal(fake_told_of(&F, "0-1", false), 1); /* until now nobody knew */
    atomic_store(&F.names[0].told, 1);
    gr_loader_relieve(L, 100);
    touch(0);
    assert_int_equal(fake_told_of(&F, "0-1", true), 1);
    atomic_store(&F.names[0].generation, 2);
    gr_loader_relieve(L, 100);
    assert_int_equal(try_lease(0, &l), GRAFT_E_CHANGED_ON_DISK);
    assert_int_equal(gr_loader_lease(&l, L, &(gr_lease_request){.project = "p0", .reload = true}, &err), 0);
    assert_int_equal(fake_told_of(&F, "0-2", false), 1);
    gr_lease_release(l);
}

/* It was pinned when the catalogue was asked, and no longer when the loader hears of it. */
static void unpin_meanwhile(int name) {
    if (atomic_exchange(&F.names[name].pinned, 0)) {
        gr_loader_pin(L, name_of(name), "default", false, NULL);
    }
}

static void an_old_pin_does_not_hold(void **state) {
    (void)state;
    start(5, 100);
    atomic_store(&F.names[0].pinned, 1);
    touch(0), touch(1), touch(2), touch(3);
    assert_true(resident(0)); /* what the catalogue says holds */
    gr_loader_pin(L, "p0", "default", false, NULL);
    atomic_store(&F.names[0].pinned, 0);
    touch(1), touch(2), touch(3);
    assert_false(resident(0));
    F.on_find = unpin_meanwhile;
    atomic_store(&F.names[4].pinned, 1);
    touch(4), touch(1), touch(2), touch(3);
    assert_false(resident(4));
}

/* ---- every allocation fails once, and from there on ---- */

static void each_allocation_may_fail(void **state) {
    (void)state;
    for (int forever = 0; forever <= 1; forever++) {
        for (uint64_t n = 1;; n++) {
            fake_init(&F, 4, 100);
            gr_loader_options o = fake_options(&F);
            o.retry_base_us = 1;
            o.threads = 1;
            graft_error err;
            uint64_t blocks = gr_memory_blocks();
            gr_memory_fail_at(n, forever);
            if (gr_loader_create(&L, &o, &err) == 0) {
                for (int i = 0; i < 5; i++) {
                    gr_lease *l = NULL;
                    if (try_lease(i % 4, &l) == 0) {
                        fake_use(&F, l, i % 4);
                        gr_lease_release(l);
                    }
                    assert_true(gr_loader_check(L));
                }
                gr_loader_free(L);
            }
            L = NULL;
            uint64_t asked = gr_memory_fail_at(0, 0);
            assert_int_equal(gr_memory_blocks(), blocks);
            assert_int_equal(atomic_load(&F.alive), 0);
            if (asked < n) {
                break;
            }
        }
    }
}

/* ---- stress ---- */

enum { STRESS_THREADS = 8, STRESS_NAMES = 10 };

typedef struct stress {
    pthread_t thread;
    uint64_t random;
    int rounds, ends;
} stress;

static uint64_t draw(uint64_t *s) {
    *s ^= *s << 13;
    *s ^= *s >> 7;
    *s ^= *s << 17;
    return *s;
}

static void *stress_main(void *arg) {
    stress *s = arg;
    graft_error err;
    for (int i = 0; i < s->rounds; i++) {
        int name = (int)(draw(&s->random) % STRESS_NAMES);
        uint64_t a, b;
        switch (draw(&s->random) % 16) {
        case 0:
            gr_loader_unload(L, name_of(name), "default", &a, &b, &err);
            break;
        case 1:
            gr_loader_pin(L, name_of(name), "default", draw(&s->random) % 2, &err);
            break;
        case 2: /* replace */
            atomic_fetch_add(&F.names[name].generation, 1);
            atomic_fetch_add(&F.names[name].revision, 1);
            break;
        case 3:
            atomic_store(&F.names[name].fail_times, (int)(draw(&s->random) % 4) - 1);
            atomic_store(&F.names[name].fail_code, draw(&s->random) % 2 ? GRAFT_E_IO_ERROR : GRAFT_E_WRONG_SHAPE);
            break;
        case 4:
            atomic_store(&F.names[name].fail_code, 0);
            break;
        case 5:
            gr_loader_relieve(L, 100);
            break;
        default: {
            gr_lease *l = NULL;
            gr_lease_request r = {.project = name_of(name), .temporary = draw(&s->random) % 4 == 0,
                                  .reload = draw(&s->random) % 16 == 0,
                                  .fallback = draw(&s->random) % 2 ? GRAFT_FALLBACK_BASE : GRAFT_FALLBACK_ERROR,
                                  .deadline_us = draw(&s->random) % 2 ? gr_now_us() + (int64_t)(draw(&s->random) % 3000) : 0};
            if (gr_loader_lease(&l, L, &r, &err) == 0) {
                fake_use(&F, l, name);
                if (draw(&s->random) % 4 == 0) {
                    gr_sleep_us((int64_t)(draw(&s->random) % 200));
                }
                fake_use(&F, l, name);
                gr_lease_release(l);
            }
            s->ends++;
        }
        }
    }
    return NULL;
}

static void stress_from_eight_threads(void **state) {
    (void)state;
    static const graft_policy kinds[] = {GRAFT_POLICY_LRU, GRAFT_POLICY_SIEVE, GRAFT_POLICY_S3FIFO, GRAFT_POLICY_WTINYLFU, GRAFT_POLICY_GDSF};
    for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++) {
        fake_init(&F, STRESS_NAMES, 100);
        F.sleep_us = 50;
        gr_loader_options o = fake_options(&F);
        o.policy = kinds[k];
        o.max_adapters = k % 2 ? 0 : 4;
        o.memory_limit = 100 + 500;
        o.retry_base_us = 20;
        o.failure_ttl_us = 2000;
        start_with(o);
        stress s[STRESS_THREADS];
        for (int i = 0; i < STRESS_THREADS; i++) {
            s[i] = (stress){.random = 0x9e3779b9u * (uint64_t)(i + 1) + k, .rounds = 1500};
            assert_int_equal(gr_thread_start(&s[i].thread, stress_main, &s[i]), 0);
        }
        for (int i = 0; i < STRESS_THREADS; i++) {
            gr_thread_join(s[i].thread);
            assert_true(s[i].ends > 500);
        }
        assert_true(gr_loader_check(L));
        assert_int_equal(metrics().n_leases, 0);
        assert_true(atomic_load(&F.most_bytes) <= 500);
        gr_loader_free(L);
        L = NULL;
        assert_int_equal(atomic_load(&F.alive), 0);
        assert_int_equal(atomic_load(&F.errors), 0);
    }
}

/* Working set twice the budget: everybody gets on, in time. */
static void thrash_has_no_livelock(void **state) {
    (void)state;
    start(6, 100);
    F.sleep_us = 100;
    for (int round = 0; round < 200; round++) {
        for (int i = 0; i < 6; i++) {
            gr_lease *l = NULL;
            graft_error err;
            gr_lease_request r = {.project = name_of(i), .deadline_us = gr_now_us() + 10 * 1000000};
            assert_int_equal(gr_loader_lease(&l, L, &r, &err), 0);
            gr_lease_release(l);
        }
    }
    assert_int_equal(metrics().hits, 0);
    assert_int_equal(metrics().loads, 1200);
}

#define TEST(f) cmocka_unit_test_teardown(f, stop)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(a_second_lease_is_a_hit),
        TEST(cache_overflow_at_three_evicts_the_least_recent),
        TEST(a_leased_adapter_is_never_evicted),
        TEST(quantiles_end_at_what_was_longest),
        TEST(when_all_are_leased_the_answer_is_busy),
        TEST(with_a_deadline_the_caller_waits_for_room),
        TEST(memory_pressure_evicts_by_bytes),
        TEST(larger_than_the_budget_is_said_at_once),
        TEST(a_base_over_the_limit_is_refused),
        TEST(five_hundred_callers_share_one_read),
        TEST(different_adapters_load_at_the_same_time),
        TEST(a_failure_is_shared_then_remembered_for_the_same_file),
        TEST(what_may_pass_is_retried_three_times),
        TEST(an_incompatible_adapter_falls_back_and_says_so),
        TEST(a_temporary_lease_unloads_what_it_had_to_load),
        TEST(unload_keeps_the_memory_until_the_last_release),
        TEST(replace_lets_the_old_finish_and_the_new_begin),
        TEST(a_reload_never_joins_an_older_flight),
        TEST(a_name_that_points_elsewhere_is_loaded_anew),
        TEST(pinned_adapters_stay),
        TEST(pressure_evicts_what_nobody_holds),
        TEST(a_process_over_its_limit_loses_what_nobody_holds),
        TEST(own_memory_leaves_less_for_adapters),
        TEST(bytes_without_a_name_are_charged),
        TEST(releasing_later_frees_on_another_thread),
        TEST(a_copied_lease_holds_by_itself),
        TEST(who_does_not_block_is_told_in_time_too),
        TEST(prefetch_calls_back_once),
        TEST(closing_answers_those_who_wait),
        TEST(who_does_not_wait_for_room_is_told_at_once),
        TEST(room_that_own_memory_makes_is_found),
        TEST(waiting_for_room_shows_and_waiting_for_a_load_does_not),
        TEST(work_that_does_not_end_shows),
        TEST(closing_while_two_wait_for_room),
        TEST(a_file_that_grew_between_attempts_finds_room_anew),
        TEST(what_takes_more_than_announced_evicts_for_the_rest),
        TEST(nothing_goes_that_would_not_help),
        TEST(who_pauses_keeps_nobody_back),
        TEST(nobody_left_no_further_attempt),
        TEST(a_load_that_was_overtaken_is_no_news),
        TEST(what_was_expected_is_no_news),
        TEST(an_old_pin_does_not_hold),
        TEST(each_allocation_may_fail),
        TEST(stress_from_eight_threads),
        TEST(thrash_has_no_livelock),
    };
    return cmocka_run_group_tests_name("loader", tests, NULL, NULL);
}
