/* Eviction policies: tables of requests and the victims they must give, and random histories against the laws. */
#include "base/memory.h"
#include "loader/policy.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <stdio.h>
#include <string.h>

static void names_go_both_ways(void **state) {
    (void)state;
    for (int i = 0; i < GRAFT_POLICIES; i++) {
        graft_policy kind = GRAFT_POLICIES;
        assert_true(gr_policy_parse(&kind, graft_policy_name((graft_policy)i)));
        assert_int_equal(kind, i);
    }
    graft_policy kind = GRAFT_POLICY_SIEVE;
    assert_null(graft_policy_name(GRAFT_POLICIES));
    assert_false(gr_policy_parse(&kind, "LRU"));
    assert_false(gr_policy_parse(&kind, ""));
    assert_int_equal(kind, GRAFT_POLICY_SIEVE);

    graft_error err;
    gr_policy *p = NULL;
    assert_int_equal(gr_policy_create(&p, GRAFT_POLICIES, 1, &err), GRAFT_E_BAD_REQUEST);
    assert_null(p);
    gr_policy_free(NULL);
}

/* ---- tables ---- */

/*
 * A script is a row of operations on objects a to z:
 *   a    request: a hit, or a miss that makes room and inserts      +a   one hold more      -a   one less
 *   !a   remove                                                     .    evict one (the budget shrank)
 * The answer lists the victims; '?' where room was needed and everything was held (a miss then does not insert).
 */
typedef struct table_case {
    graft_policy kind;
    uint64_t capacity;
    size_t max_count;
    const char *sizes; /* "a3b2": others are of size 1 */
    const char *costs; /* likewise */
    const char *script, *victims;
} table_case;

typedef struct machine {
    gr_policy *policy;
    gr_policy_entry entries[26];
    bool resident[26];
    uint64_t capacity;
    size_t max_count;
    char victims[200];
} machine;

static bool evict_one(machine *m, uint64_t incoming) {
    gr_policy_entry *victim = gr_policy_evict(m->policy, incoming);
    char name[2] = "?";
    if (victim) {
        name[0] = (char)('a' + (victim - m->entries));
        assert_true(m->resident[victim - m->entries]);
        m->resident[victim - m->entries] = false;
    }
    strcat(m->victims, name);
    return victim != NULL;
}

static void request(machine *m, int i) {
    gr_policy_entry *e = &m->entries[i];
    if (m->resident[i]) {
        gr_policy_hit(m->policy, e);
        return;
    }
    gr_policy_miss(m->policy, e);
    while (gr_policy_bytes(m->policy) + e->bytes > m->capacity ||
           (m->max_count > 0 && gr_policy_count(m->policy) >= m->max_count)) {
        if (!evict_one(m, e->bytes)) {
            return;
        }
    }
    assert_int_equal(gr_policy_insert(m->policy, e, NULL), 0);
    m->resident[i] = true;
}

static const char *step(machine *m, const char *s) {
    int i = (s[0] >= 'a' ? s[0] : s[1]) - 'a';
    switch (*s) {
    case '.': evict_one(m, 0); return s + 1;
    case '+': gr_policy_hold(m->policy, &m->entries[i]); return s + 2;
    case '-': gr_policy_unhold(m->policy, &m->entries[i]); return s + 2;
    case '!':
        gr_policy_remove(m->policy, &m->entries[i]);
        m->resident[i] = false;
        return s + 2;
    default: request(m, i); return s + 1;
    }
}

static uint64_t figure(const char *list, char name) {
    const char *at = list ? strchr(list, name) : NULL;
    return at ? (uint64_t)(at[1] - '0') : 1;
}

static void run_case(const table_case *c) {
    machine m = {.capacity = c->capacity, .max_count = c->max_count};
    assert_int_equal(gr_policy_create(&m.policy, c->kind, c->capacity, NULL), 0);
    gr_policy_limit_count(m.policy, c->max_count);
    for (int i = 0; i < 26; i++) {
        m.entries[i] = (gr_policy_entry){.key = (uint64_t)i + 1, .bytes = figure(c->sizes, (char)('a' + i)),
                                         .cost = (double)figure(c->costs, (char)('a' + i))};
    }
    for (const char *s = c->script; *s;) {
        s = step(&m, s);
        assert_true(gr_policy_check(m.policy));
    }
    if (strcmp(m.victims, c->victims) != 0) {
        print_error("%s, %s: %s\n", graft_policy_name(c->kind), c->script, m.victims);
    }
    assert_string_equal(m.victims, c->victims);
    gr_policy_free(m.policy);
}

static void lru_gives_up_the_one_unused_for_longest(void **state) {
    (void)state;
    const table_case cases[] = {
        {.script = "abc", .victims = ""},
        {.script = "abcd", .victims = "a"},
        {.script = "abcad", .victims = "b"},
        {.script = "abcabcd", .victims = "a"},
        {.script = "abcdefabcd", .victims = "abcdefa"},
        {.script = "abc..", .victims = "ab"},
        {.script = "abc!bd", .victims = ""},
        {.script = "abc!bde", .victims = "a"},
        {.script = "abc+ad", .victims = "b"},
        {.script = "abc+a+b+cd", .victims = "?"},
        {.script = "abc+a+a-a...", .victims = "bc?"},    /* a second lease */
        {.script = "ab+ac-adef", .victims = "bca"},      /* in use until it was given back */
        {.script = "abc+aad-aef", .victims = "bcd"},     /* a hit while held */
        {.script = "abcd", .sizes = "d3", .victims = "abc"},
        {.script = "abcd", .sizes = "d2", .victims = "ab"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        table_case c = cases[i];
        c.kind = GRAFT_POLICY_LRU;
        c.capacity = 3;
        run_case(&c);
    }
}

static void sieve_spares_the_visited_until_the_hand_returns(void **state) {
    (void)state;
    const table_case cases[] = {
        {.script = "abcd", .victims = "a"},
        {.script = "abcad", .victims = "b"},
        {.script = "abcadefgh", .victims = "bcdef"},  /* a is behind the hand; each newcomer is before it */
        {.script = "abcabcd", .victims = "a"},        /* all visited: once round */
        {.script = "abcabcdd.", .victims = "ab"},     /* and their marks are gone */
        {.script = "abcd!bef", .victims = "ac"},      /* the hand's own entry leaves */
        {.script = "aabc!aadef", .victims = "bca"},   /* comes back without its mark */
        {.script = "abc...", .victims = "abc"},
        {.script = "abc+ad", .victims = "b"},
        {.script = "abc+ad-ae", .victims = "bc"},     /* stepped over: safe until the next round */
        {.script = "abca+ad-acde", .victims = "bc"},  /* its mark was not spent while it was held */
        {.script = "abc+a+b+c.", .victims = "?"},
        {.script = "abc+b+cd-b-c...", .victims = "abcd"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        table_case c = cases[i];
        c.kind = GRAFT_POLICY_SIEVE;
        c.capacity = 3;
        run_case(&c);
    }
}

static void s3fifo_tries_newcomers_in_a_small_queue(void **state) {
    (void)state;
    const uint64_t cap = 10; /* 1 small, 9 main, 9 ghosts */
    const table_case cases[] = {
        {.capacity = cap, .script = "abcdefghijk", .victims = "a"},    /* only a was in small */
        {.capacity = cap, .script = "abcdefghijklm", .victims = "akl"},
        {.capacity = cap, .script = "abcdefghijkal", .victims = "akb"}, /* a returns to main, which is then over */
        {.capacity = cap, .script = "abcdefghijkabl", .victims = "akc"}, /* b was hit in main */
        {.capacity = cap, .script = "abcdefghijak", .victims = "a"},    /* one hit is not enough in small */
        {.capacity = cap, .script = "abcdefghijaak", .victims = "b"},   /* two are; small is empty then */
        {.capacity = cap, .script = "abcdefghij!akal", .victims = "ka"}, /* removed: no ghost */
        {.capacity = cap, .script = "abcdefghij+ak", .victims = "b"},
        {.capacity = cap, .script = "abcdefghij+akl", .victims = "bk"},
        {.capacity = cap, .script = "abcdefghij+akl-am", .victims = "bka"}, /* held: it did not lose its place */
        {.capacity = cap, .script = "abcdefghij+aaak-al", .victims = "bk"}, /* nor its hits: it moved to main */
        {.capacity = 2, .script = "ab+a+bc", .victims = "?"},
        {.capacity = cap, .sizes = "a5b5c5", .script = "abc", .victims = "a"}, /* larger than small's share */
        {.capacity = cap, .sizes = "a9b9", .script = "abab", .victims = "aba"},
        {.capacity = 1000, .max_count = 3, .script = "abcdae", .victims = "adb"},
        {.capacity = 1000, .max_count = 1, .script = "abab", .victims = "aba"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        table_case c = cases[i];
        c.kind = GRAFT_POLICY_S3FIFO;
        run_case(&c);
    }
}

static void wtinylfu_admits_only_the_more_wanted(void **state) {
    (void)state;
    const uint64_t cap = 10; /* window: one object */
    const table_case cases[] = {
        {.capacity = cap, .script = "abcdefghijk", .victims = "j"},      /* asked for once, like a: a stays */
        {.capacity = cap, .script = "abcdefghijklmn", .victims = "jklm"}, /* a pass of one-off objects */
        {.capacity = cap, .script = "abcdefghijkkl", .victims = "ja"},   /* k was asked for twice */
        {.capacity = cap, .script = "abcdefghijkalmmn", .victims = "jklb"}, /* a was hit and is protected */
        {.capacity = cap, .script = "abcdefghijkjl", .victims = "jka"}, /* the sketch knows j from before */
        {.capacity = cap, .script = "abcdefghijkkk.", .victims = "ja"},
        {.capacity = cap, .script = "abcdefghij+jk", .victims = "i"},
        {.capacity = cap, .script = "abcdefghij+jkl", .victims = "ik"},
        {.capacity = cap, .script = "abcdefghij+ak-al", .victims = "ja"}, /* k takes main's free place, a is judged */
        {.capacity = 3, .script = "abcdadeeef", .victims = "cbd"}, /* a is protected: d goes, though it came later */
        {.capacity = 3, .script = "abcddedf", .victims = "cae"},   /* d won its place in main, and is protected there */
        {.capacity = 2, .script = "ab+a+bc", .victims = "?"},
        {.capacity = 2, .script = "ab+a+bc-a.", .victims = "?a"},
        {.capacity = 1, .script = "abc", .victims = "ab"},
        {.capacity = cap, .sizes = "k5", .script = "abcdefghijk", .victims = "fghij"}, /* the window needs 5 now */
        {.capacity = 1000, .max_count = 3, .script = "abcdee", .victims = "cd"},
        {.capacity = 1000, .max_count = 3, .script = "abcdeef", .victims = "cda"},
        {.capacity = 1000, .max_count = 1, .script = "abb", .victims = "a"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        table_case c = cases[i];
        c.kind = GRAFT_POLICY_WTINYLFU;
        run_case(&c);
    }
}

static void gdsf_weighs_frequency_cost_and_size(void **state) {
    (void)state;
    const table_case cases[] = {
        {.capacity = 3, .script = "abcd", .victims = "a"},
        {.capacity = 3, .script = "abcad", .victims = "b"},
        {.capacity = 2, .script = "aabcd", .victims = "ba"},   /* a's 2 is no more than c's 1 + clock 1, and older */
        {.capacity = 2, .script = "aaaabcdef", .victims = "bcda"}, /* fame fades */
        {.capacity = 4, .sizes = "a3", .script = "bac", .victims = "a"},
        {.capacity = 4, .sizes = "a3", .costs = "a4", .script = "abc", .victims = "b"},
        {.capacity = 2, .costs = "a5", .script = "abcdefg", .victims = "bcdea"},
        {.capacity = 2, .costs = "a0", .script = "bac", .victims = "a"}, /* no cost measured */
        {.capacity = 2, .script = "ab+ac", .victims = "b"},
        {.capacity = 2, .script = "ab+acd-ae", .victims = "bcd"}, /* in use until now: today's clock */
        {.capacity = 2, .script = "ab+a+bc-a.", .victims = "?a"},
        {.capacity = 3, .script = "abc!bde", .victims = "a"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        table_case c = cases[i];
        c.kind = GRAFT_POLICY_GDSF;
        run_case(&c);
    }
}

/* ---- random histories ---- */

static uint64_t random_state;

/* xorshift64* */
static uint64_t dice(uint64_t sides) {
    random_state ^= random_state >> 12;
    random_state ^= random_state << 25;
    random_state ^= random_state >> 27;
    return random_state * UINT64_C(0x2545f4914f6cdd1d) % sides;
}

#define OBJECTS 24

typedef struct history {
    gr_policy *policy;
    graft_policy kind;
    gr_policy_entry entries[OBJECTS];
    bool resident[OBJECTS];
    uint64_t used_at[OBJECTS]; /* lru: the last insertion, hit or end of a hold */
    uint64_t now, capacity;
    size_t max_count, n_resident;
    uint64_t bytes;
} history;

/* What only some policies promise, as plainly as can be. */
static void assert_victim_is_right(const history *h, int victim) {
    assert_true(h->resident[victim]);
    assert_int_equal(h->entries[victim].held, 0);
    for (int i = 0; i < OBJECTS; i++) {
        if (!h->resident[i] || h->entries[i].held > 0 || i == victim) {
            continue;
        }
        if (h->kind == GRAFT_POLICY_LRU) {
            assert_true(h->used_at[victim] < h->used_at[i]);
        } else if (h->kind == GRAFT_POLICY_GDSF) {
            assert_true(h->entries[victim].priority <= h->entries[i].priority);
        }
    }
}

static void went(history *h, int i) {
    h->resident[i] = false;
    h->n_resident--;
    h->bytes -= h->entries[i].bytes;
}

static bool evict_any(history *h, uint64_t incoming) {
    gr_policy_entry *victim = gr_policy_evict(h->policy, incoming);
    if (!victim) {
        for (int i = 0; i < OBJECTS; i++) {
            assert_true(!h->resident[i] || h->entries[i].held > 0);
        }
        return false;
    }
    assert_victim_is_right(h, (int)(victim - h->entries));
    went(h, (int)(victim - h->entries));
    return true;
}

static void random_insert(history *h, int i) {
    gr_policy_entry *e = &h->entries[i];
    *e = (gr_policy_entry){.key = (uint64_t)i * 7919, .bytes = 1 + dice(20), .cost = 0.5 + (double)dice(8),
                           .held = dice(4) == 0}; /* whoever waited for the load */
    gr_policy_miss(h->policy, e);
    while (h->bytes + e->bytes > h->capacity || h->n_resident >= h->max_count) {
        if (!evict_any(h, e->bytes)) {
            return;
        }
    }
    assert_int_equal(gr_policy_insert(h->policy, e, NULL), 0);
    h->resident[i] = true;
    h->n_resident++;
    h->bytes += e->bytes;
}

static void random_step(history *h) {
    int i = (int)dice(OBJECTS);
    gr_policy_entry *e = &h->entries[i];
    uint64_t what = dice(100);
    if (!h->resident[i]) {
        random_insert(h, i);
    } else if (what < 45) {
        gr_policy_hit(h->policy, e);
    } else if (what < 60) {
        gr_policy_hold(h->policy, e);
    } else if (what < 85) {
        if (e->held == 0) {
            return;
        }
        gr_policy_unhold(h->policy, e);
    } else if (what < 92) {
        gr_policy_remove(h->policy, e);
        went(h, i);
    } else {
        evict_any(h, 0);
        return; /* not a use of i */
    }
    h->used_at[i] = ++h->now;
}

static void random_history(graft_policy kind, uint64_t seed) {
    random_state = seed * 2654435761u + 1;
    history h = {.kind = kind, .capacity = 20 + dice(150), .max_count = dice(2) ? 1 + dice(12) : OBJECTS};
    uint64_t blocks = gr_memory_blocks();
    assert_int_equal(gr_policy_create(&h.policy, kind, h.capacity, NULL), 0);
    gr_policy_limit_count(h.policy, h.max_count < OBJECTS ? h.max_count : 0);
    for (int steps = 0; steps < 2000; steps++) {
        random_step(&h);
        if (dice(500) == 0) {
            h.capacity = 20 + dice(150);
            gr_policy_resize(h.policy, h.capacity);
            while (h.bytes > h.capacity && evict_any(&h, 0)) {
            }
        }
        assert_int_equal(gr_policy_count(h.policy), h.n_resident);
        assert_int_equal(gr_policy_bytes(h.policy), h.bytes);
        if (!gr_policy_check(h.policy)) {
            fail_msg("%s, seed %d: invariants broken at step %d", graft_policy_name(kind), (int)seed, steps);
        }
    }
    while (evict_any(&h, 0)) {
    }
    gr_policy_free(h.policy);
    assert_int_equal(gr_memory_blocks(), blocks);
}

static void random_histories_keep_every_law(void **state) {
    (void)state;
    for (int kind = 0; kind < GRAFT_POLICIES; kind++) {
        for (uint64_t seed = 1; seed <= 60; seed++) {
            random_history((graft_policy)kind, seed);
        }
    }
}

/* check() itself must see what is wrong. */
static void the_check_notices_damage(void **state) {
    (void)state;
    for (int kind = 0; kind < GRAFT_POLICIES; kind++) {
        gr_policy *p;
        gr_policy_entry e[4];
        assert_int_equal(gr_policy_create(&p, (graft_policy)kind, 100, NULL), 0);
        for (int i = 0; i < 4; i++) {
            e[i] = (gr_policy_entry){.key = (uint64_t)i, .bytes = 10, .cost = 1};
            assert_int_equal(gr_policy_insert(p, &e[i], NULL), 0);
        }
        assert_true(gr_policy_check(p));
        e[2].held = 1; /* behind the policy's back */
        assert_false(gr_policy_check(p));
        e[2].held = 0;
        e[1].bytes++;
        assert_false(gr_policy_check(p));
        e[1].bytes--;
        assert_true(gr_policy_check(p));
        gr_policy_free(p);
    }
}

static void removing_a_held_entry_forgets_it(void **state) {
    (void)state;
    for (int kind = 0; kind < GRAFT_POLICIES; kind++) {
        gr_policy *p;
        gr_policy_entry a = {.key = 1, .bytes = 10, .cost = 1}, b = {.key = 2, .bytes = 10, .cost = 1};
        assert_int_equal(gr_policy_create(&p, (graft_policy)kind, 100, NULL), 0);
        assert_int_equal(gr_policy_insert(p, &a, NULL), 0);
        assert_int_equal(gr_policy_insert(p, &b, NULL), 0);
        gr_policy_hold(p, &a);
        gr_policy_remove(p, &a);
        assert_true(gr_policy_check(p));
        assert_int_equal(gr_policy_count(p), 1);
        assert_ptr_equal(gr_policy_evict(p, 0), &b);
        assert_null(gr_policy_evict(p, 0));
        gr_policy_free(p);
    }
}

/* ---- memory ---- */

/* Every allocation may fail: creating says so, inserting says so and leaves no trace, a lost ghost is no matter. */
static bool fill_and_churn(graft_policy kind) {
    enum { N = 100 };
    static gr_policy_entry entries[N];
    gr_policy *p;
    int code = gr_policy_create(&p, kind, 300, NULL);
    if (code != 0) {
        assert_int_equal(code, GRAFT_E_OUT_OF_MEMORY);
        return false;
    }
    bool all_in = true;
    for (int i = 0; i < N; i++) {
        entries[i] = (gr_policy_entry){.key = (uint64_t)i, .bytes = 10, .cost = 1};
        while (gr_policy_bytes(p) + 10 > 300) {
            assert_non_null(gr_policy_evict(p, 10));
        }
        size_t before = gr_policy_count(p);
        code = gr_policy_insert(p, &entries[i], NULL);
        assert_true(code == 0 || code == GRAFT_E_OUT_OF_MEMORY);
        assert_int_equal(gr_policy_count(p), before + (code == 0));
        assert_true(gr_policy_check(p));
        all_in = all_in && code == 0;
    }
    gr_policy_free(p);
    return all_in;
}

static void any_allocation_may_fail(void **state) {
    (void)state;
    for (int kind = 0; kind < GRAFT_POLICIES; kind++) {
        for (int forever = 0; forever < 2; forever++) {
            uint64_t blocks = gr_memory_blocks(), asked, n = 1;
            do {
                gr_memory_fail_at(n, forever);
                fill_and_churn((graft_policy)kind);
                asked = gr_memory_fail_at(0, 0);
                assert_int_equal(gr_memory_blocks(), blocks);
            } while (asked >= n++);
            assert_true(fill_and_churn((graft_policy)kind));
        }
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(names_go_both_ways),
        cmocka_unit_test(lru_gives_up_the_one_unused_for_longest),
        cmocka_unit_test(sieve_spares_the_visited_until_the_hand_returns),
        cmocka_unit_test(s3fifo_tries_newcomers_in_a_small_queue),
        cmocka_unit_test(wtinylfu_admits_only_the_more_wanted),
        cmocka_unit_test(gdsf_weighs_frequency_cost_and_size),
        cmocka_unit_test(random_histories_keep_every_law),
        cmocka_unit_test(the_check_notices_damage),
        cmocka_unit_test(removing_a_held_entry_forgets_it),
        cmocka_unit_test(any_allocation_may_fail),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
