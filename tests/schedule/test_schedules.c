/*
 * The loader under seeded schedules (schedule.h): small scenes of two to four clients, each run many thousand times, each time
 * with the threads taking turns in another way. What must hold in every run stands beside the scene; what must hold always, in
 * clients.h and world.h.
 *
 *     test_schedules                    every scene, 8,000 schedules each (1,000 with sanitizers)
 *     GRAFT_SCHEDULES=1000000 …         more
 *     GRAFT_SCHEDULE_SEED=n …           begin at another seed
 *     test_schedules SCENE [SEED]       one scene; one schedule of it, with every step
 */
#include "clients.h"

#include <time.h>

#ifndef SCHEDULES_EACH
#define SCHEDULES_EACH 8000
#endif

/* ---- the scenes ------------------------------------------------------------------------------------------- */

/* A cold adapter asked for by three at once is read once. */
static void cold_client(int me) {
    (void)me;
    must(touch((ask){.name = 0}), 0);
    must(touch((ask){.name = 0, .patience_us = FOREVER}), 0);
}

static void same_cold_adapter(void) {
    w_init(100, 300);
    W.load_us = 30;
    gr_loader_options o = w_options();
    scene(&o, cold_client, cold_client, cold_client, NULL);
    if (W.names[0].reads != 1 || W.names[0].prepares != 1) {
        sched_fail("prepared %d times, read %d times", W.names[0].prepares, W.names[0].reads);
    }
    close_loader();
}

/* Unload takes the name, never the memory under a lease. */
static void leasing_client(int me) {
    (void)me;
    for (int i = 0; i < 3; i++) {
        ask a = lease((ask){.name = 0, .patience_us = FOREVER}), copy = a;
        must(a.rc, 0);
        copy.lease = gr_lease_copy(a.lease);
        release(&a);
        release(&copy);
    }
}

static void unloading_client(int me) {
    (void)me;
    for (int i = 0; i < 4; i++) {
        unload(0);
    }
}

static void unload_while_leased(void) {
    w_init(100, 1000); /* room for those that are being freed as well */
    gr_loader_options o = w_options();
    scene(&o, leasing_client, unloading_client, leasing_client, NULL);
    close_loader();
}

/* Who asks after the catalogue changed never gets what was there before; who holds the old one keeps it. */
static void replacing_client(int me) {
    (void)me;
    for (int i = 0; i < 3; i++) {
        w_replace(0);
        must(touch((ask){.name = 0, .patience_us = FOREVER}), 0);
    }
}

static void following_client(int me) {
    (void)me;
    for (int i = 0; i < 4; i++) {
        must(touch((ask){.name = 0, .patience_us = FOREVER}), 0);
    }
}

static void replace_while_leased(void) {
    w_init(100, 1000);
    W.load_us = (int64_t)sched_draw(2) * 20;
    gr_loader_options o = w_options();
    o.max_adapters = 0;
    scene(&o, replacing_client, following_client, following_client, NULL);
    int reads = W.names[0].reads;
    if (reads > 4) { /* one for each revision, whoever asks how often */
        sched_fail("%d reads of four revisions", reads);
    }
    close_loader();
}

/* A reload reads the file as it is now, whatever is on its way. */
static void reloading_client(int me) {
    (void)me;
    for (int i = 0; i < 3; i++) {
        w_rewrite(0);
        must(touch((ask){.name = 0, .reload = true, .patience_us = FOREVER}), 0);
    }
}

static void reload_while_loading(void) {
    w_init(100, 1000);
    W.load_us = (int64_t)sched_draw(2) * 20;
    gr_loader_options o = w_options();
    o.max_adapters = 0;
    o.threads = 1 + (int)sched_draw(2);
    scene(&o, reloading_client, following_client, reloading_client, NULL);
    ask last = lease((ask){.name = 0}); /* of two that finish, the later begun stays */
    if (((w_adapter *)gr_lease_adapter(last.lease))->generation != w_registered_content(&W.names[0])) {
        sched_fail("the last reload is not what the name means");
    }
    release(&last);
    close_loader();
}

/* Files that changed behind the catalogue's back are not served under the old name. */
static void rewriting_client(int me) {
    (void)me;
    for (int i = 0; i < 3; i++) {
        one_of(touch((ask){.name = 0}), GRAFT_E_CHANGED_ON_DISK, 0, 0);
        w_rewrite(0);
        unload(0);
    }
    must(touch((ask){.name = 0}), GRAFT_E_CHANGED_ON_DISK);
    w_replace(0);
    must(touch((ask){.name = 0}), 0);
}

static void trusting_client(int me) {
    (void)me;
    for (int i = 0; i < 4; i++) {
        unsigned before = W.names[0].registered;
        ask a = lease((ask){.name = 0});
        one_of(a.rc, GRAFT_E_CHANGED_ON_DISK, 0, 0);
        if (a.lease) {
            unsigned got = ((const w_adapter *)gr_lease_adapter(a.lease))->generation;
            if (got != before && got != W.names[0].registered) {
                sched_fail("p0: generation %u was never registered", got);
            }
        }
        release(&a);
    }
}

static void changed_on_disk(void) {
    w_init(100, 1000);
    W.names[0].told = true;
    gr_loader_options o = w_options();
    o.max_adapters = 0;
    scene(&o, rewriting_client, trusting_client, trusting_client, NULL);
    close_loader();
}

/* One place, three names, everybody willing to wait: everybody gets it, and the place is never shared. */
static void roaming_client(int me) {
    for (int i = 0; i < 3; i++) {
        must(touch((ask){.name = (me + i) % 3, .patience_us = FOREVER}), 0);
    }
}

static void evict_under_one_place(void) {
    w_init(100, 1000);
    gr_loader_options o = w_options();
    o.max_adapters = 1;
    o.policy = (graft_policy)sched_draw(5);
    scene(&o, roaming_client, roaming_client, roaming_client, NULL);
    if (W.alive > 1) {
        sched_fail("%d adapters in one place", W.alive);
    }
    close_loader();
}

/* The same by bytes: two fit, of different sizes. */
static void evict_by_bytes(void) {
    w_init(100, 230);
    W.names[1].bytes = 130;
    W.names[2].bytes = 230;
    gr_loader_options o = w_options();
    o.max_adapters = 0;
    o.policy = (graft_policy)sched_draw(5);
    scene(&o, roaming_client, roaming_client, roaming_client, NULL);
    close_loader();
}

/* A bad file is read once, however often it is asked for. */
static void bad_client(int me) {
    for (int i = 0; i < 3; i++) {
        bool fallback = (me + i) % 2;
        must(touch((ask){.name = 0, .fallback = fallback}), fallback ? 0 : GRAFT_E_WRONG_SHAPE);
    }
}

static void bad_file(void) {
    w_init(100, 300);
    W.names[0].fail_code = GRAFT_E_WRONG_SHAPE;
    W.names[0].fail_times = -1;
    gr_loader_options o = w_options();
    scene(&o, bad_client, bad_client, bad_client, NULL);
    if (W.names[0].prepares != 1) {
        sched_fail("a bad file was opened %d times", W.names[0].prepares);
    }
    close_loader();
}

/* What may pass is tried three times, for all who wait together. */
static void flaky_client(int me) {
    (void)me;
    must(touch((ask){.name = 0}), 0);
    must(touch((ask){.name = 1}), 0);
}

static void flaky_file(void) {
    w_init(100, 300);
    for (int i = 0; i < 2; i++) {
        W.names[i].fail_code = GRAFT_E_IO_ERROR;
        W.names[i].fail_times = 2;
        W.names[i].fail_in_load = i;
    }
    gr_loader_options o = w_options();
    scene(&o, flaky_client, flaky_client, NULL, NULL);
    if (W.names[0].prepares != 3 || W.names[0].reads != 1 || W.names[1].reads != 3) {
        sched_fail("prepared %d times, read %d and %d times", W.names[0].prepares, W.names[0].reads, W.names[1].reads);
    }
    close_loader();
}

/* A mended file is noticed at once: the flight that was under way may still say how bad it was, the next one does not. */
static void mending_client(int me) {
    (void)me;
    one_of(touch((ask){.name = 0}), GRAFT_E_WRONG_SHAPE, 0, 0);
    W.names[0].fail_code = 0;
    w_rewrite(0);
    one_of(touch((ask){.name = 0}), GRAFT_E_WRONG_SHAPE, 0, 0);
    must(touch((ask){.name = 0}), 0);
}

static void hoping_client(int me) {
    (void)me;
    for (int i = 0; i < 3; i++) {
        one_of(touch((ask){.name = 0}), GRAFT_E_WRONG_SHAPE, 0, 0);
    }
}

static void mended_file(void) {
    w_init(100, 300);
    W.names[0].fail_code = GRAFT_E_WRONG_SHAPE;
    W.names[0].fail_times = -1;
    gr_loader_options o = w_options();
    scene(&o, mending_client, hoping_client, hoping_client, NULL);
    for (int g = 0; g < GENERATIONS; g++) {
        if (W.names[0].bad_prepares[g] > 1) {
            sched_fail("generation %d was found bad %d times", g, W.names[0].bad_prepares[g]);
        }
    }
    close_loader();
}

/* What only temporary leases asked for is gone with the last of them. */
static void temporary_client(int me) {
    (void)me;
    for (int i = 0; i < 3; i++) {
        must(touch((ask){.name = 0, .temporary = true}), 0);
    }
    must(touch((ask){.name = 1, .temporary = true}), 0);
}

static void permanent_client(int me) {
    (void)me;
    must(touch((ask){.name = 1}), 0);
}

static bool is_resident(int name) {
    gr_mutex_lock(&L->mutex);
    const gr_slot *slot = gr_table_find(&L->table, project_of(name), "default");
    bool resident = slot && slot->resident;
    gr_mutex_unlock(&L->mutex);
    return resident;
}

static void temporary_leases(void) {
    w_init(100, 1000);
    gr_loader_options o = w_options();
    scene(&o, temporary_client, temporary_client, permanent_client, NULL);
    if (is_resident(0)) {
        sched_fail("what was temporary is still there");
    }
    must(touch((ask){.name = 1}), 0);
    close_loader();
}

/* Two places, all leased: busy at once without a deadline, at the deadline with one, never before. */
static void holding_client(int me) {
    ask held = lease((ask){.name = me});
    one_of(held.rc, GRAFT_E_BUSY, 0, 0);
    ask more = lease((ask){.name = (me + 1) % 3, .patience_us = (int64_t)sched_draw(2) * (1 + (int64_t)sched_draw(200))});
    one_of(more.rc, GRAFT_E_BUSY, GRAFT_E_DEADLINE, 0);
    release(&more);
    release(&held);
    must(touch((ask){.name = (me + 2) % 3, .patience_us = FOREVER}), 0);
}

static void all_are_leased(void) {
    w_init(100, 1000);
    W.load_us = (int64_t)sched_draw(2) * 60;
    gr_loader_options o = w_options();
    o.max_adapters = 2;
    scene(&o, holding_client, holding_client, holding_client, NULL);
    close_loader();
}

/* Who leaves at the deadline takes nothing from those who stay. */
static void hasty_client(int me) {
    (void)me;
    for (int i = 0; i < 3; i++) {
        one_of(touch((ask){.name = 0, .patience_us = 1 + (int64_t)sched_draw(60)}), GRAFT_E_DEADLINE, 0, 0);
    }
}

static void deadlines(void) {
    w_init(100, 300);
    W.load_us = 60;
    gr_loader_options o = w_options();
    o.threads = 1;
    scene(&o, hasty_client, cold_client, hasty_client, NULL);
    if (W.names[0].reads != 1) {
        sched_fail("read %d times", W.names[0].reads);
    }
    close_loader();
}

/* Each callback once, whatever becomes of the load. */
static void async_client(int me) {
    async *x[3];
    for (int i = 0; i < 3; i++) {
        x[i] = ask_async((ask){.name = (me + i) % 3, .patience_us = sched_draw(2) ? 1 + (int64_t)sched_draw(150) : 0,
                               .fallback = sched_draw(2)},
                         (int)sched_draw(3));
    }
    for (int i = 0; i < 3; i++) {
        one_of(finish_async(x[i]), GRAFT_E_BUSY, GRAFT_E_DEADLINE, GRAFT_E_IO_ERROR);
    }
}

static void async_leases(void) {
    w_init(100, 1000);
    W.load_us = (int64_t)sched_draw(2) * 40;
    W.names[2].fail_code = GRAFT_E_IO_ERROR;
    W.names[2].fail_times = (int)sched_draw(5);
    gr_loader_options o = w_options();
    o.max_adapters = 2;
    scene(&o, async_client, async_client, async_client, NULL);
    close_loader();
}

/* A decode thread that must not stop: asks without waiting, gives back without freeing, while names are unloaded. */
static void decoding_client(int me) {
    (void)me;
    for (int i = 0; i < 3; i++) {
        ask a = lease((ask){.name = 0});
        must(a.rc, 0);
        gr_lease_used(a.lease, 10, 1.0);
        if (sched_draw(3) == 0) {
            release(&a);
        } else {
            use(&a);
            gr_lease_release_later(a.lease);
        }
    }
}

static void release_later(void) {
    w_init(100, 1000);
    gr_loader_options o = w_options();
    scene(&o, decoding_client, unloading_client, decoding_client, NULL);
    close_loader();
}

/* What was given back "later" makes room for who waits. */
static void later_roaming_client(int me) {
    for (int i = 0; i < 3; i++) {
        ask a = lease((ask){.name = (me + i) % 3, .temporary = sched_draw(2), .patience_us = FOREVER});
        must(a.rc, 0);
        use(&a);
        gr_lease_release_later(a.lease);
    }
}

static void release_later_under_one_place(void) {
    w_init(100, 100);
    gr_loader_options o = w_options();
    o.max_adapters = (int)sched_draw(2);
    scene(&o, later_roaming_client, later_roaming_client, later_roaming_client, NULL);
    close_loader();
}

/* What is pinned stays, whoever needs room. */
static void pinning_client(int me) {
    (void)me;
    for (int i = 0; i < 2; i++) {
        ask a = lease((ask){.name = 0, .patience_us = FOREVER});
        must(a.rc, 0);
        const w_adapter *w = gr_lease_adapter(a.lease);
        must(pin(0, true), 0);
        release(&a);
        sched_point("pinned");
        if (!w->alive) {
            sched_fail("a pinned adapter is gone");
        }
        ask b = lease((ask){.name = 0});
        must(b.rc, 0);
        if (gr_lease_adapter(b.lease) != w) {
            sched_fail("a pinned adapter was loaded anew");
        }
        release(&b);
        must(pin(0, false), 0);
    }
}

static void pin_and_unpin(void) {
    w_init(100, 1000);
    gr_loader_options o = w_options();
    o.max_adapters = 2;
    o.policy = (graft_policy)sched_draw(5);
    scene(&o, pinning_client, roaming_client, roaming_client, NULL);
    close_loader();
}

/* Prefetch: a lease given back by the callback. */
static void prefetching_client(int me) {
    for (int i = 0; i < 3; i++) {
        one_of(finish_async(ask_async((ask){.name = (me + i) % 3}, RELEASE)), GRAFT_E_BUSY, 0, 0);
    }
}

static void prefetch(void) {
    w_init(100, 1000);
    gr_loader_options o = w_options();
    o.max_adapters = 2;
    scene(&o, prefetching_client, prefetching_client, leasing_client, NULL);
    close_loader();
}

/* Closing answers those who wait, and lets leases end. */
static void surprised_client(int me) {
    for (int i = 0; i < 3; i++) {
        one_of(touch((ask){.name = (me + i) % 3, .temporary = me == 1, .patience_us = (int64_t)sched_draw(2) * 100, .fallback = sched_draw(2)}),
               GRAFT_E_SHUTTING_DOWN, GRAFT_E_BUSY, GRAFT_E_DEADLINE);
    }
    async *x = ask_async((ask){.name = me % 3, .patience_us = (int64_t)sched_draw(2) * 50}, (int)sched_draw(3));
    int rc = finish_async(x);
    if (rc != GRAFT_E_IO_ERROR) {
        one_of(rc, GRAFT_E_SHUTTING_DOWN, GRAFT_E_BUSY, GRAFT_E_DEADLINE);
    }
}

static void closing(void) {
    w_init(100, 1000);
    W.load_us = (int64_t)sched_draw(2) * 40;
    W.names[3].fail_code = GRAFT_E_IO_ERROR;
    W.names[3].fail_times = 2;
    gr_loader_options o = w_options();
    o.max_adapters = 1 + (int)sched_draw(2);
    if (open_loader(&o)) {
        start_clients(surprised_client, surprised_client, surprised_client, NULL);
        async *pausing = ask_async((ask){.name = 3}, RELEASE); /* its retry's pause ends early */
        gr_sleep_us((int64_t)sched_draw(200));
        sched_note("closes", INT32_MIN);
        gr_loader_stop(L);
        if (L->table.n_loading) {
            sched_fail("loads are under way after closing");
        }
        one_of(finish_async(pausing), GRAFT_E_SHUTTING_DOWN, GRAFT_E_BUSY, 0);
        must(touch((ask){.name = 0}), GRAFT_E_SHUTTING_DOWN);
        join_clients();
    }
    close_loader();
}

/* Some wait for the one place while the loader closes; the time of each may be up while it does. */
static void waiting_client(int me) {
    one_of(touch((ask){.name = 1 + me, .patience_us = sched_draw(8) ? 30 + (int64_t)sched_draw(300) : 0, .fallback = sched_draw(4) == 0}),
           GRAFT_E_SHUTTING_DOWN, GRAFT_E_BUSY, GRAFT_E_DEADLINE);
}

static void closing_while_two_wait(void) {
    w_init(100, 1000);
    W.record_us = (int64_t)sched_draw(4) * 70;
    gr_loader_options o = w_options();
    o.max_adapters = 1;
    if (open_loader(&o)) {
        ask held = lease((ask){.name = 0});
        must(held.rc, 0);
        start_clients(waiting_client, waiting_client, sched_draw(2) ? waiting_client : NULL, NULL);
        async *x = ask_async((ask){.name = 3, .patience_us = 1 + (int64_t)sched_draw(200)}, RELEASE);
        gr_sleep_us((int64_t)sched_draw(120));
        sched_note("closes", INT32_MIN);
        gr_loader_stop(L);
        if (L->table.n_loading) {
            sched_fail("loads are under way after closing");
        }
        one_of(finish_async(x), GRAFT_E_SHUTTING_DOWN, GRAFT_E_BUSY, GRAFT_E_DEADLINE);
        join_clients();
        release(&held);
    }
    close_loader();
}

/* Flaky files in their pause keep nobody from the one place; and no pause is longer than five seconds and a half as much. */
static int64_t pauses_from, pause_us;

static void pausing_client(int me) {
    must(touch((ask){.name = me, .patience_us = FOREVER}), 0);
}

static void passing_client(int me) {
    for (int i = 0; i < 2; i++) {
        must(touch((ask){.name = me, .patience_us = FOREVER}), 0);
        must(touch((ask){.name = me + 1, .patience_us = FOREVER}), 0);
    }
    if (gr_now_us() - pauses_from >= pause_us) {
        sched_fail("waited for a file that somebody else asked for");
    }
}

static void pauses_beside_a_good_name(void) {
    w_init(100, 1000);
    for (int i = 0; i < 2; i++) {
        W.names[i].fail_code = GRAFT_E_IO_ERROR;
        W.names[i].fail_times = 2;
        W.names[i].fail_in_load = sched_draw(2);
    }
    gr_loader_options o = w_options();
    o.max_adapters = 1;
    o.retry_base_us = sched_draw(2) ? 4000000 : 60000000;
    pause_us = 4000000;
    pauses_from = gr_now_us();
    scene(&o, pausing_client, pausing_client, passing_client, NULL);
    if (gr_now_us() - pauses_from > 2 * 7500000 + 1000000) {
        sched_fail("two pauses took %d ms", (int)((gr_now_us() - pauses_from) / 1000));
    }
    close_loader();
}

/* Loads that began before a reload and end after it: what the catalogue takes for the name's generation is what is in memory. */
static void first_client(int me) {
    (void)me;
    one_of(touch((ask){.name = 0, .patience_us = FOREVER}), GRAFT_E_CHANGED_ON_DISK, 0, 0);
}

static void overtaking_client(int me) {
    (void)me;
    for (int i = 0; i < 2; i++) {
        w_rewrite(0);
        must(touch((ask){.name = 0, .reload = true, .patience_us = FOREVER}), 0);
    }
}

static void reload_overtakes(void) {
    w_init(100, 1000);
    W.names[0].learns = true;
    W.load_us = (int64_t)sched_draw(2) * 40;
    W.record_us = (int64_t)sched_draw(2) * 20;
    gr_loader_options o = w_options();
    o.max_adapters = 0;
    o.threads = 2 + (int)sched_draw(2);
    scene(&o, first_client, overtaking_client, sched_draw(2) ? overtaking_client : first_client, NULL);
    ask last = lease((ask){.name = 0});
    must(last.rc, 0);
    unsigned got = ((const w_adapter *)gr_lease_adapter(last.lease))->generation;
    if (got != W.names[0].learned) {
        sched_fail("generation %u is in memory, the catalogue has %u", got, W.names[0].learned);
    }
    release(&last);
    close_loader();
}

/* Pressure from outside: what nobody holds goes, the charged bytes count. */
static void relieving_client(int me) {
    graft_error err;
    (void)me;
    for (int i = 0; i < 3; i++) {
        gr_loader_relieve(L, 1 + sched_draw(200));
        if (gr_loader_charge(L, 100, &err) == 0) {
            W.limit -= 100;
            sched_point("charged");
            W.limit += 100;
            gr_loader_discharge(L, 100);
        }
    }
}

static void relieve_and_charge(void) {
    w_init(100, 300);
    gr_loader_options o = w_options();
    o.max_adapters = 0;
    o.policy = (graft_policy)sched_draw(5);
    scene(&o, relieving_client, roaming_client, leasing_client, NULL);
    close_loader();
}

/* The process takes more than the limit: the clerk lets go what nobody holds; graft's own bytes leave less for adapters. */
static void growing_client(int me) {
    (void)me;
    for (int i = 0; i < 3; i++) {
        W.process = sched_draw(2) * 100000;
        W.own = sched_draw(2) * 60;
        gr_sleep_us(1 + (int64_t)sched_draw(700000));
    }
    W.own = 0; /* else nobody might ever get room */
    must(touch((ask){.name = 3, .patience_us = FOREVER}), 0);
}

static void patient_about_own(int me) {
    for (int i = 0; i < 3; i++) {
        one_of(touch((ask){.name = (me + i) % 3, .patience_us = 1 + (int64_t)sched_draw(900000)}), GRAFT_E_BUSY, GRAFT_E_DEADLINE,
               GRAFT_E_LARGER_THAN_BUDGET);
    }
}

static void measured_memory(void) {
    w_init(100, 250);
    W.load_us = 20;
    gr_loader_options o = w_options();
    o.backend.own = w_own;
    o.backend.process = w_process;
    o.max_adapters = 0;
    scene(&o, growing_client, patient_about_own, patient_about_own, NULL);
    close_loader();
}

/* It takes more than it said: the rest is asked for, or the load ends. */
static void swelling_client(int me) {
    for (int i = 0; i < 3; i++) {
        one_of(touch((ask){.name = (me + i) % 3}), GRAFT_E_BUDGET_EXHAUSTED, GRAFT_E_BUSY, 0);
    }
}

static void more_than_announced(void) {
    w_init(100, 350);
    W.names[1].more = 40;
    W.names[2].more = 100;
    gr_loader_options o = w_options();
    o.max_adapters = 0;
    scene(&o, swelling_client, swelling_client, swelling_client, NULL);
    close_loader();
}

/* Everything at once. */
static void mix_failure(int name) {
    w_name *n = &W.names[name];
    n->fail_in_load = sched_draw(2);
    n->fail_times = (int)sched_draw(4) - 1;
    n->fail_code = sched_draw(3) == 0 ? 0 : sched_draw(2) ? GRAFT_E_IO_ERROR : GRAFT_E_WRONG_SHAPE;
}

static void mix_lease(int name) {
    ask a = {.name = name, .patience_us = sched_draw(3) ? (int64_t)sched_draw(200) : 0, .temporary = sched_draw(4) == 0,
             .reload = sched_draw(8) == 0, .fallback = sched_draw(2)};
    ask held = lease(a);
    if (held.lease && sched_draw(3) == 0) { /* holds one while it asks for another */
        touch((ask){.name = (name + 1) % NAMES, .patience_us = 1 + (int64_t)sched_draw(100), .fallback = true});
    }
    if (held.lease && sched_draw(3) == 0) {
        use(&held);
        gr_lease_release_later(held.lease);
    } else {
        release(&held);
    }
}

static void look_around(void) {
    gr_loaded_info *list = NULL;
    size_t n = 0;
    graft_error err;
    graft_metrics m;
    if (gr_loader_list(L, &list, &n, &err) == 0) {
        for (size_t i = 0; i < n; i++) {
            if (strcmp(list[i].state, "loading") && strcmp(list[i].state, "resident") && strcmp(list[i].state, "draining")) {
                sched_fail("%s is listed as %s", list[i].project, list[i].state);
            }
        }
        gr_free(list);
    }
    gr_loader_metrics(L, &m);
    if (m.fixed + m.resident + m.loading + m.draining > m.limit) {
        sched_fail("the metrics are over the limit");
    }
}

static void mixing_client(int me) {
    async *x[6];
    int n = 0;
    (void)me;
    for (int i = 0; i < 6; i++) {
        int name = (int)sched_draw(NAMES);
        switch (sched_draw(15)) {
        case 0: unload(name); break;
        case 1: pin(name, sched_draw(2)); break;
        case 2: w_replace(name); break;
        case 3: w_rewrite(name); break;
        case 4: mix_failure(name); break;
        case 5: gr_loader_relieve(L, 100); break;
        case 9: look_around(); break;
        case 6:
        case 7:
        case 8:
            x[n++] = ask_async((ask){.name = name, .patience_us = (int64_t)sched_draw(2) * (1 + (int64_t)sched_draw(150)),
                                     .temporary = sched_draw(4) == 0, .reload = sched_draw(8) == 0, .fallback = sched_draw(2)},
                               (int)sched_draw(3));
            break;
        default: mix_lease(name);
        }
    }
    while (n > 0) {
        finish_async(x[--n]);
    }
}

static gr_loader_options mix_options(void) {
    w_init(100, 500);
    W.load_us = (int64_t)sched_draw(2) * 30;
    W.names[1].bytes = 150;
    W.names[2].pinned = sched_draw(8) == 0;
    gr_loader_options o = w_options();
    o.policy = (graft_policy)sched_draw(5);
    o.max_adapters = (int)sched_draw(4);
    o.failure_ttl_us = 1 + (int64_t)sched_draw(300);
    o.threads = 1 + (int)sched_draw(3);
    return o;
}

static void mix(void) {
    gr_loader_options o = mix_options();
    scene(&o, mixing_client, mixing_client, mixing_client, mixing_client);
    close_loader();
}

/* The same while memory is out: one allocation fails, or all from there on, or a thread does not start. */
static void mix_without_memory(void) {
    gr_loader_options o = mix_options();
    uint64_t which = 1 + sched_draw(60);
    if (sched_draw(8) == 0) {
        sched_fail_thread(1 + (int)sched_draw(3)); /* a loader thread, or the clerk */
    } else {
        gr_memory_fail_at(which, sched_draw(2) != 0);
    }
    if (open_loader(&o)) {
        sched_fail_thread(0);
        start_clients(mixing_client, mixing_client, mixing_client, NULL);
        join_clients();
    }
    close_loader();
}

static const struct {
    const char *name;
    void (*run)(void);
} scenes[] = {
    {"same_cold_adapter", same_cold_adapter},
    {"unload_while_leased", unload_while_leased},
    {"replace_while_leased", replace_while_leased},
    {"reload_while_loading", reload_while_loading},
    {"changed_on_disk", changed_on_disk},
    {"evict_under_one_place", evict_under_one_place},
    {"evict_by_bytes", evict_by_bytes},
    {"bad_file", bad_file},
    {"flaky_file", flaky_file},
    {"mended_file", mended_file},
    {"temporary_leases", temporary_leases},
    {"all_are_leased", all_are_leased},
    {"deadlines", deadlines},
    {"async_leases", async_leases},
    {"release_later", release_later},
    {"release_later_under_one_place", release_later_under_one_place},
    {"pin_and_unpin", pin_and_unpin},
    {"prefetch", prefetch},
    {"closing", closing},
    {"closing_while_two_wait", closing_while_two_wait},
    {"pauses_beside_a_good_name", pauses_beside_a_good_name},
    {"reload_overtakes", reload_overtakes},
    {"relieve_and_charge", relieve_and_charge},
    {"measured_memory", measured_memory},
    {"more_than_announced", more_than_announced},
    {"mix", mix},
    {"mix_without_memory", mix_without_memory},
};

/* ---- running them ----------------------------------------------------------------------------------------- */

static double seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static bool run_one(size_t s, uint64_t seed) {
    arena_reset();
    bool good = sched_run(scenes[s].name, seed, scenes[s].run);
    if (good && gr_memory_blocks() != 0) {
        fprintf(stderr, "FAILED: scenario %s, seed %" PRIu64 ": %" PRIu64 " blocks are not freed\n", scenes[s].name, seed, gr_memory_blocks());
        good = false;
    }
    if (good && !arena_check()) {
        fprintf(stderr, "FAILED: scenario %s, seed %" PRIu64 ": a freed block was written to\n", scenes[s].name, seed);
        good = false;
    }
    return good;
}

static uint64_t number(const char *variable, uint64_t otherwise) {
    const char *text = getenv(variable);
    return text && *text ? strtoull(text, NULL, 10) : otherwise;
}

int main(int argc, char **argv) {
    uint64_t each = number("GRAFT_SCHEDULES", SCHEDULES_EACH), first = number("GRAFT_SCHEDULE_SEED", 1), total = 0, points = 0;
    double start = seconds();
    int bad = 0, met = 0;
    if (argc > 2) {
        first = strtoull(argv[2], NULL, 10);
        each = 1;
        sched_trace(true);
    }
    for (size_t s = 0; s < sizeof scenes / sizeof *scenes; s++) {
        if (argc > 1 && strcmp(argv[1], scenes[s].name) != 0) {
            continue;
        }
        double begun = seconds();
        uint64_t n = 0, before = points;
        bool good = true;
        met++;
        for (; n < each && good; n++) {
            good = run_one(s, first + n);
            points += sched_steps();
        }
        double took = seconds() - begun;
        printf("%-30s %8" PRIu64 " schedules, %4.0f points each, %8.0f a second%s\n", scenes[s].name, n, (double)(points - before) / (double)n,
               (double)n / took, good ? "" : "   FAILED");
        fflush(stdout);
        bad += !good;
        total += n;
    }
    printf("%" PRIu64 " schedules in %.1f s, %d of %d scenes failed\n", total, seconds() - start, bad, met);
    return bad || !met;
}
