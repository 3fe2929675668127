/* The eviction simulator: Belady against all possible choices, policies against digests from libCacheSim. */
#include "base/memory.h"
#include "loader/heap.h"
#include "loader/replay.h"
#include "loader/sketch.h"
#include "loader/workload.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <stdint.h>
#include <string.h>

#define MIB (UINT64_C(1) << 20)

/* ---- golden digests ---- */

/* FNV-1a over the victims' keys, as compare_libcachesim.py reckons it. */
static void add_to_digest(void *user, size_t at, const gr_policy_entry *e) {
    uint64_t *digest = user;
    (void)at;
    for (int i = 0; i < 64; i += 8) {
        *digest = (*digest ^ (e->key >> i & 0xff)) * UINT64_C(0x100000001b3);
    }
}

/* From compare_libcachesim.py --golden, which compares each of these evictions with libCacheSim 0.3.5. */
static void evictions_are_those_of_libcachesim(void **state) {
    (void)state;
    enum { N = 20000 };
    static gr_request trace[N];
    const gr_workload w = {.kind = GRAFT_WORKLOAD_ZIPF, .objects = 200, .skew = 0.9, .equal_sizes = true, .seed = 7};
    assert_int_equal(gr_workload_make(trace, N, &w, NULL), 0);
    const struct { const char *policy; uint64_t evictions, digest; } golden[] = {
        {"lru", 9019, UINT64_C(0xc7a0236eceb550c3)},
        {"sieve", 7266, UINT64_C(0xf6a66f8353e8654e)},
        {"s3fifo", 7514, UINT64_C(0x8a540972c5628b86)},
    };
    for (size_t i = 0; i < sizeof golden / sizeof *golden; i++) {
        uint64_t digest = UINT64_C(0xcbf29ce484222325);
        gr_replay_options options = {.capacity = 40 * MIB, .evicted = add_to_digest, .user = &digest};
        gr_replay_result r;
        graft_policy kind;
        assert_true(gr_policy_parse(&kind, golden[i].policy));
        assert_int_equal(gr_replay(&r, trace, N, kind, &options, NULL), 0);
        assert_int_equal(r.evictions, golden[i].evictions);
        assert_true(digest == golden[i].digest);
    }
}

/* ---- Belady ---- */

static uint64_t random_state = 1;

static uint64_t dice(uint64_t sides) {
    random_state = random_state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (random_state >> 33) % sides;
}

/* The fewest misses from `at` on with these residents (bits), trying each victim. Objects 0 to 6 of size 1. */
static unsigned fewest_misses(const gr_request *trace, size_t at, size_t n, unsigned residents, unsigned room) {
    while (at < n && residents >> trace[at].key & 1) {
        at++;
    }
    if (at == n) {
        return 0;
    }
    unsigned wanted = 1u << trace[at].key, best = UINT32_MAX;
    if (room > 0) {
        return 1 + fewest_misses(trace, at + 1, n, residents | wanted, room - 1);
    }
    for (unsigned i = 0; i < 7; i++) {
        if (residents >> i & 1) {
            unsigned misses = 1 + fewest_misses(trace, at + 1, n, (residents & ~(1u << i)) | wanted, 0);
            best = misses < best ? misses : best;
        }
    }
    return best;
}

static void belady_is_the_best_possible_with_equal_sizes(void **state) {
    (void)state;
    for (int round = 0; round < 300; round++) {
        gr_request trace[14];
        size_t n = 1 + dice(14), room = 1 + dice(3);
        for (size_t i = 0; i < n; i++) {
            trace[i] = (gr_request){.key = dice(7), .bytes = 1, .cost = 1};
        }
        gr_replay_result r;
        gr_replay_options options = {.capacity = room};
        assert_int_equal(gr_replay_belady(&r, trace, n, &options, NULL), 0);
        assert_int_equal(r.misses, fewest_misses(trace, 0, n, 0, (unsigned)room));
        assert_int_equal(r.hits + r.misses, n);
    }
}

static void no_policy_beats_belady_with_equal_sizes(void **state) {
    (void)state;
    enum { N = 30000 };
    static gr_request trace[N];
    for (int kind = GRAFT_WORKLOAD_ZIPF; kind <= GRAFT_WORKLOAD_SHIFT; kind++) {
        gr_workload w = {.kind = (graft_workload_kind)kind, .objects = 150, .skew = 0.8, .equal_sizes = true, .seed = 3};
        assert_int_equal(gr_workload_make(trace, N, &w, NULL), 0);
        gr_replay_options options = {.capacity = 30 * MIB};
        gr_replay_result best, r;
        assert_int_equal(gr_replay_belady(&best, trace, N, &options, NULL), 0);
        for (int policy = 0; policy < GRAFT_POLICIES; policy++) {
            assert_int_equal(gr_replay(&r, trace, N, (graft_policy)policy, &options, NULL), 0);
            assert_true(r.hits <= best.hits);
            assert_int_equal(r.hits + r.misses, N);
            assert_int_equal(r.misses, r.evictions + 30); /* 30 places are still taken at the end */
            assert_true(r.cost == N && r.cost_missed == (double)r.misses); /* 1 s each */
        }
    }
}

/* ---- the loop ---- */

/* Bounding the number of equal objects is the same as bounding their bytes. */
static void shares_of_the_number_work_like_shares_of_bytes(void **state) {
    (void)state;
    enum { N = 20000 };
    static gr_request trace[N];
    const gr_workload w = {.kind = GRAFT_WORKLOAD_ZIPF, .objects = 200, .skew = 0.9, .equal_sizes = true, .seed = 5};
    assert_int_equal(gr_workload_make(trace, N, &w, NULL), 0);
    const size_t places[] = {10, 20, 40, 100};
    for (int policy = 0; policy < GRAFT_POLICIES; policy++) {
        for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
            uint64_t a = 0, b = 0;
            gr_replay_options by_bytes = {.capacity = places[i] * MIB, .evicted = add_to_digest, .user = &a};
            gr_replay_options by_count = {.capacity = UINT64_MAX / 2, .max_count = places[i], .evicted = add_to_digest,
                                          .user = &b};
            gr_replay_result r;
            assert_int_equal(gr_replay(&r, trace, N, (graft_policy)policy, &by_bytes, NULL), 0);
            assert_int_equal(gr_replay(&r, trace, N, (graft_policy)policy, &by_count, NULL), 0);
            assert_true(a != 0 && a == b);
        }
    }
}

static void sizes_and_costs_are_counted(void **state) {
    (void)state;
    const gr_request trace[] = {{1, 6, 2}, {2, 5, 3}, {3, 11, 4}, {2, 5, 3}, {1, 6, 2}, {3, 11, 4}};
    gr_replay_options options = {.capacity = 10};
    gr_replay_result r;
    assert_int_equal(gr_replay(&r, trace, 6, GRAFT_POLICY_LRU, &options, NULL), 0);
    assert_int_equal(r.hits, 1);
    assert_int_equal(r.misses, 5);
    assert_int_equal(r.too_large, 2);
    assert_int_equal(r.evictions, 2);
    assert_true(r.cost == 18 && r.cost_missed == 15);

    const gr_request nothing = {1, 0, 1};
    graft_error err;
    r.hits = 77;
    assert_int_equal(gr_replay(&r, &nothing, 1, GRAFT_POLICY_LRU, &options, &err), GRAFT_E_BAD_REQUEST);
    assert_int_equal(gr_replay_belady(&r, &nothing, 1, &options, &err), GRAFT_E_BAD_REQUEST);
    assert_int_equal(r.hits, 77);
    assert_int_equal(gr_replay(&r, NULL, 0, GRAFT_POLICY_LRU, &options, NULL), 0);
    assert_int_equal(gr_replay_belady(&r, NULL, 0, &options, NULL), 0);
}

static void replay_survives_lack_of_memory(void **state) {
    (void)state;
    enum { N = 600 };
    static gr_request trace[N];
    const gr_workload w = {.kind = GRAFT_WORKLOAD_ZIPF, .objects = 60, .skew = 0.5, .seed = 9};
    assert_int_equal(gr_workload_make(trace, N, &w, NULL), 0);
    for (int policy = 0; policy <= GRAFT_POLICIES; policy++) {
        uint64_t blocks = gr_memory_blocks();
        gr_replay_options options = {.capacity = 500000000};
        gr_replay_result r;
        int code = GRAFT_E_OUT_OF_MEMORY;
        for (uint64_t n = 1; code != 0; n++) {
            gr_memory_fail_at(n, 1);
            code = policy < GRAFT_POLICIES ? gr_replay(&r, trace, N, (graft_policy)policy, &options, NULL)
                                            : gr_replay_belady(&r, trace, N, &options, NULL);
            gr_memory_fail_at(0, 0);
            assert_true(code == 0 || code == GRAFT_E_OUT_OF_MEMORY);
            assert_int_equal(gr_memory_blocks(), blocks);
        }
    }
}

/* ---- workloads ---- */

static void workloads_are_what_they_say(void **state) {
    (void)state;
    enum { N = 21000 * 4, OBJECTS = 100 };
    static gr_request a[N], b[N];
    for (int kind = GRAFT_WORKLOAD_ZIPF; kind <= GRAFT_WORKLOAD_SHIFT; kind++) {
        gr_workload w = {.kind = (graft_workload_kind)kind, .objects = OBJECTS, .skew = 1, .seed = 11};
        size_t times[OBJECTS + 1] = {0};
        uint64_t bytes[OBJECTS + 1] = {0};
        assert_int_equal(gr_workload_make(a, N, &w, NULL), 0);
        assert_int_equal(gr_workload_make(b, N, &w, NULL), 0);
        assert_memory_equal(a, b, sizeof a);
        for (size_t i = 0; i < N; i++) {
            assert_in_range(a[i].key, 1, OBJECTS);
            assert_in_range(a[i].bytes, 2000000, 128000000);
            assert_true(a[i].cost > 0.01 && a[i].cost < 0.01 + 0.128 * 1.5);
            assert_true(bytes[a[i].key] == 0 || bytes[a[i].key] == a[i].bytes);
            bytes[a[i].key] = a[i].bytes;
            times[a[i].key]++;
        }
        if (kind == GRAFT_WORKLOAD_ZIPF) { /* the share of the first is 1 / (1 + 1/2 + … + 1/100) = 19.3 % */
            assert_in_range(times[1] * 1000 / N, 185, 200);
            assert_in_range(times[1] * 100 / times[2], 185, 215);
            assert_in_range(times[1] * 100 / times[10], 850, 1150);
        } else if (kind == GRAFT_WORKLOAD_LOOP) {
            assert_true(a[0].key == 1 && a[99].key == 100 && a[100].key == 1);
        } else if (kind == GRAFT_WORKLOAD_SCAN) {
            assert_true(a[2000].key == 1 && a[2099].key == 100); /* after 20 requests for each */
            assert_true(times[1] > times[100]);
        } else {
            size_t hot = 0;
            for (size_t i = 2000; i < 4000; i++) { /* the second hot set: 11 to 20 */
                hot += a[i].key >= 11 && a[i].key <= 20;
            }
            assert_in_range(hot, 1750, 1870); /* 90 %, and a tenth of the rest */
        }
        w.seed++;
        assert_int_equal(gr_workload_make(b, N, &w, NULL), 0);
        assert_true(memcmp(a, b, sizeof a) != 0);
    }
    const gr_workload none = {0};
    assert_int_equal(gr_workload_make(a, 1, &none, NULL), GRAFT_E_BAD_REQUEST);
}

/* ---- sketch and heap ---- */

static void sketch_counts_and_forgets(void **state) {
    (void)state;
    static gr_sketch s;
    for (unsigned n = 1; n <= 20; n++) {
        gr_sketch_add(&s, 5, 1000);
        assert_int_equal(gr_sketch_estimate(&s, 5), n < GR_SKETCH_MAX ? n : GR_SKETCH_MAX);
        assert_int_equal(gr_sketch_estimate(&s, 6), 0);
    }
    for (unsigned n = 0; n < 9; n++) {
        gr_sketch_add(&s, 6, 1000);
    }
    assert_int_equal(gr_sketch_estimate(&s, 6), 9);
    gr_sketch_add(&s, 7, 30); /* the 30th: all are halved, rounded down */
    assert_int_equal(gr_sketch_estimate(&s, 5), 7);
    assert_int_equal(gr_sketch_estimate(&s, 6), 4);
    assert_int_equal(gr_sketch_estimate(&s, 7), 0);
    assert_int_equal(s.additions, 15);
}

static void sketch_never_counts_too_little(void **state) {
    (void)state;
    static gr_sketch s;
    enum { KEYS = 1000 };
    unsigned exact[KEYS] = {0}, too_high = 0;
    for (int i = 0; i < 5000; i++) {
        uint64_t key = dice(KEYS) * dice(2); /* key 0 above all */
        exact[key]++;
        gr_sketch_add(&s, key, 1000000);
    }
    for (uint64_t key = 0; key < KEYS; key++) {
        unsigned most = exact[key] < GR_SKETCH_MAX ? exact[key] : GR_SKETCH_MAX;
        assert_true(gr_sketch_estimate(&s, key) >= most);
        too_high += gr_sketch_estimate(&s, key) > most;
    }
    assert_in_range(too_high, 0, KEYS / 50); /* four collisions at once are rare */

    for (uint64_t key = 0; key < 200000; key++) { /* until each counter is full */
        gr_sketch_add(&s, key, 1000000);
    }
    assert_int_equal(gr_sketch_estimate(&s, 1), GR_SKETCH_MAX);
    gr_sketch_add(&s, 0, 1); /* halves; neighbours in one word must not leak into each other */
    for (uint64_t key = 0; key < KEYS; key++) {
        assert_int_equal(gr_sketch_estimate(&s, key), GR_SKETCH_MAX / 2);
    }
}

static void heap_gives_the_least_first(void **state) {
    (void)state;
    enum { N = 200 };
    static gr_policy_entry entries[N];
    gr_heap h = {0};
    assert_true(gr_heap_reserve(&h, N));
    for (int i = 0; i < N; i++) {
        entries[i] = (gr_policy_entry){.priority = (double)dice(20), .stamp = (uint64_t)i};
        gr_heap_push(&h, &entries[i]);
    }
    for (int i = 0; i < N; i++) {
        entries[i].priority = (double)dice(20);
        gr_heap_moved(&h, &entries[i]);
        assert_true(gr_heap_check(&h));
    }
    for (int i = 0; i < N; i += 3) {
        gr_heap_take(&h, &entries[i]);
        assert_true(gr_heap_check(&h));
    }
    gr_policy_entry before = {.priority = -1};
    for (size_t left = h.count; left > 0; left--) {
        gr_policy_entry *e = h.entries[0];
        assert_true(e->stamp % 3 != 0);
        assert_true(before.priority < e->priority || (before.priority == e->priority && before.stamp < e->stamp));
        before = *e;
        gr_heap_take(&h, e);
        assert_true(gr_heap_check(&h));
    }
    assert_false(gr_heap_reserve(&h, SIZE_MAX / 2));
    gr_heap_finish(&h);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(evictions_are_those_of_libcachesim),
        cmocka_unit_test(belady_is_the_best_possible_with_equal_sizes),
        cmocka_unit_test(no_policy_beats_belady_with_equal_sizes),
        cmocka_unit_test(shares_of_the_number_work_like_shares_of_bytes),
        cmocka_unit_test(sizes_and_costs_are_counted),
        cmocka_unit_test(replay_survives_lack_of_memory),
        cmocka_unit_test(workloads_are_what_they_say),
        cmocka_unit_test(sketch_counts_and_forgets),
        cmocka_unit_test(sketch_never_counts_too_little),
        cmocka_unit_test(heap_gives_the_least_first),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
