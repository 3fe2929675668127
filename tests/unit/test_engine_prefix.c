/* Which slot a request goes to and what it shares: tables, and random slots against a plain restatement. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "engine/prefix_cache.h"

/* ---- keys ---------------------------------------------------------------------------------------------- */

static gr_adapter adapter_of(const char *generation) {
    gr_adapter a = {.references = 1};
    strcpy(a.generation, generation);
    return a;
}

static gr_prefix_key key_from(const gr_adapter *a, float x, int from, const gr_adapter *b, float y, int from_b) {
    gr_adapter_set set = {.adapters = {a, b}, .scales = {x, y}, .n = (a != NULL) + (b != NULL)};
    gr_prefix_key key;
    assert_true(gr_prefix_key_make(&key, &set, (int[]){from, from_b}, 0));
    return key;
}

static gr_prefix_key key_of(const gr_adapter *a, float x, const gr_adapter *b, float y) {
    return key_from(a, x, 0, b, y, 0);
}

static bool same(const gr_prefix_key *a, const gr_prefix_key *b) {
    return gr_prefix_key_same_until(a, b) == GR_NEVER;
}

static void test_keys(void **state) {
    (void)state;
    gr_adapter a = adapter_of("aaaa"), again = adapter_of("aaaa"), b = adapter_of("bbbb"), none = adapter_of("");
    gr_prefix_key base = key_of(NULL, 0, NULL, 0), a1 = key_of(&a, 1, NULL, 0), ab = key_of(&a, 1, &b, 0.5f);
    const struct {
        gr_prefix_key x, y;
        bool same;
    } table[] = {
        {base, base, true},
        {base, a1, false},
        {a1, key_of(&again, 1, NULL, 0), true}, /* the files count, not the handle */
        {a1, key_of(&a, 0.5f, NULL, 0), false},
        {a1, key_of(&a, -1, NULL, 0), false},
        {a1, key_of(&b, 1, NULL, 0), false},
        {a1, ab, false},
        {ab, key_of(&b, 0.5f, &a, 1), true}, /* by whatever order of addresses */
        {ab, key_of(&a, 0.5f, &b, 1), false},
        {key_of(&a, 1, &again, 2), key_of(&again, 2, &a, 1), true},
        {key_of(&a, 1, &again, 2), key_of(&a, 3, NULL, 0), false},
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        int until = table[i].same ? GR_NEVER : 0;
        if (gr_prefix_key_same_until(&table[i].x, &table[i].y) != until ||
            gr_prefix_key_same_until(&table[i].y, &table[i].x) != until) {
            fail_msg("row %zu", i);
        }
    }
    gr_prefix_key mine = a1, yours = a1;
    mine.domain = 1;
    yours.domain = 2;
    assert_true(same(&mine, &mine));
    assert_false(same(&mine, &yours));
    assert_false(same(&mine, &a1));
    gr_adapter_set set = {.adapters = {&a, &none}, .scales = {1, 1}, .n = 2};
    gr_prefix_key key;
    assert_false(gr_prefix_key_make(&key, &set, NULL, 0));
}

/* Two keys of adapters that begin somewhere: how far they mean the same. */
static void test_keys_by_position(void **state) {
    (void)state;
    gr_adapter a = adapter_of("aaaa"), again = adapter_of("aaaa"), b = adapter_of("bbbb"), none = adapter_of("");
    gr_prefix_key base = key_of(NULL, 0, NULL, 0), a5 = key_from(&a, 1, 5, NULL, 0, 0);
    const struct {
        gr_prefix_key x, y;
        int until;
    } table[] = {
        {base, a5, 5},
        {a5, key_from(&again, 1, 5, NULL, 0, 0), GR_NEVER},
        {a5, key_from(&a, 1, 7, NULL, 0, 0), 5},
        {a5, key_from(&b, 1, 5, NULL, 0, 0), 5},
        {a5, key_from(&b, 1, 3, NULL, 0, 0), 3},
        {a5, key_from(&a, 2, 5, NULL, 0, 0), 5},
        {a5, key_of(&a, 1, NULL, 0), 0},
        {a5, key_of(&b, 1, NULL, 0), 0},
        {a5, key_from(&a, 1, 5, &b, 1, 9), 9},
        {a5, key_from(&b, 1, 0, &a, 1, 5), 0},
        {key_of(&b, 1, NULL, 0), key_from(&b, 1, 0, &a, 1, 5), 5}, /* a plain one, and one that joins it */
        {key_from(&a, 1, 8, &b, 1, 5), key_from(&b, 1, 5, &a, 1, 8), GR_NEVER},
        {key_from(&a, 1, 8, &b, 1, 5), key_from(&b, 1, 5, &a, 1, 9), 8},
        {key_from(&a, 1, 8, &b, 1, 5), key_from(&a, 1, 5, &b, 1, 8), 5},
        {base, key_from(&a, 1, GR_NEVER, NULL, 0, 0), GR_NEVER}, /* not invoked: the base */
        {base, key_from(&none, 1, GR_NEVER, NULL, 0, 0), GR_NEVER},
        {a5, key_from(&a, 1, 5, &b, 1, GR_NEVER), GR_NEVER},
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        int there = gr_prefix_key_same_until(&table[i].x, &table[i].y);
        int back = gr_prefix_key_same_until(&table[i].y, &table[i].x);
        if (there != table[i].until || back != table[i].until) {
            fail_msg("row %zu: %d and %d, not %d", i, there, back, table[i].until);
        }
    }
}

/* ---- placing ------------------------------------------------------------------------------------------- */

enum { SLOTS = 4, LONGEST = 12 };

/* A slot of the table: what it holds, letter by letter. */
typedef struct held {
    const char *tokens;
    bool busy;
    int used;
    bool other_key;
} held;

#define NONE {"", false, 0, false}
#define FREE(tokens, used) {tokens, false, used, false}
#define BUSY(tokens) {tokens, true, 0, false}
#define OTHER(tokens, used) {tokens, false, used, true}

static llama_token *letters(const char *s, llama_token *out) {
    for (int i = 0; s[i]; i++) {
        out[i] = s[i];
    }
    return out;
}

static void test_places(void **state) {
    (void)state;
    static const struct {
        const char *what, *tokens;
        bool whole, no_key;
        held slots[SLOTS];
        gr_placement at;
    } table[] = {
        {"all empty: the first", "abc", 0, 0, {NONE, NONE, NONE, NONE}, {0, -1, 0}},
        {"all busy", "abc", 0, 0, {BUSY(""), BUSY(""), BUSY(""), BUSY("")}, {-1, -1, 0}},
        {"a conversation goes on", "abcdef", 0, 0, {NONE, FREE("abcd", 5), FREE("ab", 6), NONE}, {1, 1, 4}},
        {"the last token is computed", "abcd", 0, 0, {FREE("abcd", 1), NONE, NONE, NONE}, {0, 0, 3}},
        {"also of one", "a", 0, 0, {FREE("abcd", 1), NONE, NONE, NONE}, {1, -1, 0}},
        {"another key", "abcdef", 0, 0, {OTHER("abcd", 1), NONE, NONE, NONE}, {1, -1, 0}},
        {"no key", "abcdef", 0, 1, {FREE("abcd", 1), NONE, NONE, NONE}, {1, -1, 0}},
        {"the longest of one key", "abcdef", 0, 0, {OTHER("abcde", 9), FREE("abc", 1), FREE("abcd", 2), FREE("ab", 3)}, {2, 2, 4}},
        {"half kept is continued", "abxyz", 0, 0, {FREE("abcd", 1), NONE, NONE, NONE}, {0, 0, 2}},
        {"less is shared", "abxyz", 0, 0, {FREE("abcde", 1), NONE, NONE, NONE}, {1, 0, 2}},
        {"shared from a busy one", "abxyz", 0, 0, {BUSY("abc"), NONE, NONE, NONE}, {1, 0, 2}},
        {"into the one left longest ago", "abxyz", 0, 0, {FREE("abcde", 4), FREE("z", 3), FREE("y", 2), FREE("x", 9)}, {2, 0, 2}},
        {"which may be the source", "abxyz", 0, 0, {FREE("abcde", 1), FREE("z", 3), FREE("y", 2), FREE("x", 9)}, {0, 0, 2}},
        {"nothing shared, left longest ago", "q", 0, 0, {FREE("a", 4), BUSY("z"), FREE("y", 2), FREE("x", 9)}, {2, -1, 0}},
        {"an empty one first", "q", 0, 0, {FREE("a", 1), FREE("z", 2), FREE("", 9), FREE("", 3)}, {2, -1, 0}},
        {"of equal ones that which goes on", "abc", 0, 0, {FREE("abxxx", 1), BUSY("ab"), FREE("ab", 7), NONE}, {2, 2, 2}},
        {"of equal ones the first", "abc", 0, 0, {NONE, FREE("ab", 7), FREE("ab", 3), NONE}, {1, 1, 2}},
        {"uncut only: uncut", "abc", 1, 0, {FREE("ab", 1), NONE, NONE, NONE}, {0, 0, 2}},
        {"uncut only: cut", "abcd", 1, 0, {FREE("abx", 1), NONE, NONE, NONE}, {1, -1, 0}},
        {"uncut only: a shorter one", "abcd", 1, 0, {FREE("abcx", 1), FREE("ab", 2), NONE, NONE}, {1, 1, 2}},
        {"uncut only: the same prompt", "abc", 1, 0, {FREE("abc", 1), NONE, NONE, NONE}, {1, -1, 0}},
    };
    gr_adapter a = adapter_of("aaaa");
    gr_prefix_key key = key_of(&a, 1, NULL, 0), other = key_of(NULL, 0, NULL, 0);
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        llama_token tokens[LONGEST], room[SLOTS][LONGEST];
        gr_prefix slots[SLOTS];
        for (int k = 0; k < SLOTS; k++) {
            const held *h = &table[i].slots[k];
            slots[k] = (gr_prefix){h->busy, letters(h->tokens, room[k]), (int)strlen(h->tokens), (uint64_t)h->used,
                                   h->other_key ? other : key};
        }
        gr_placement at = gr_prefix_place(slots, SLOTS, table[i].no_key ? NULL : &key, letters(table[i].tokens, tokens),
                                          (int)strlen(table[i].tokens), table[i].whole);
        const gr_placement *want = &table[i].at;
        if (at.slot != want->slot || at.source != want->source || at.n != want->n) {
            fail_msg("%s: slot %d, %d of slot %d", table[i].what, at.slot, at.n, at.source);
        }
    }
}

/* Slots whose content was computed with an adapter from some position on, or never. */
static void test_activated_places(void **state) {
    (void)state;
    gr_adapter a = adapter_of("aaaa"), b = adapter_of("bbbb");
#define OF_A(from) key_from(&a, 1, from, NULL, 0, 0)
#define OF_B(from) key_from(&b, 1, from, NULL, 0, 0)
#define BASE OF_A(GR_NEVER)
    const struct {
        const char *what, *tokens;
        bool whole;
        gr_prefix_key key;
        const char *held;
        gr_prefix_key of_held;
        gr_placement at;
    } table[] = {
        {"the base's context", "abcdefI?", 0, OF_A(6), "abcdef", BASE, {0, 0, 6}},
        {"not beyond the invocation", "abcdefI?", 0, OF_A(6), "abcdefI?!", BASE, {0, 0, 6}},
        {"the base takes it back", "abcdefI?", 0, BASE, "abcdefI?!", OF_A(6), {0, 0, 6}},
        {"from one to the other", "abcdefJ?", 0, OF_B(6), "abcdefI?!", OF_A(6), {0, 0, 6}},
        {"who begins earlier decides", "abcdefJ?", 0, OF_B(6), "abcdefI?!", OF_A(4), {1, 0, 4}},
        {"also if it is the new one", "abcdefI?", 0, OF_B(2), "abcdefI?", OF_A(6), {1, 0, 2}},
        {"the same one again", "abcdefI?", 0, OF_A(6), "abcdefI?!", OF_A(6), {0, 0, 7}},
        {"invoked anew in the next turn", "abIcd!IeI", 0, OF_A(8), "abIcd!Ie", OF_A(2), {1, 0, 2}},
        {"invoked at the beginning", "Iabc", 0, OF_A(0), "Iabc", BASE, {1, -1, 0}},
        {"never invoked is the base", "abcd", 0, OF_B(GR_NEVER), "abcd", BASE, {0, 0, 3}},
        {"uncut only: too long", "abcdefI?", 1, OF_A(6), "abcdefI?", OF_B(6), {1, -1, 0}},
        {"uncut only: as long as it is the same", "abcdefI?", 1, OF_A(6), "abcdef", OF_B(6), {0, 0, 6}},
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        llama_token tokens[LONGEST], room[LONGEST];
        gr_prefix slots[2] = {{false, letters(table[i].held, room), (int)strlen(table[i].held), 1, table[i].of_held}, {0}};
        gr_placement at = gr_prefix_place(slots, 2, &table[i].key, letters(table[i].tokens, tokens),
                                          (int)strlen(table[i].tokens), table[i].whole);
        const gr_placement *want = &table[i].at;
        if (at.slot != want->slot || at.source != want->source || at.n != want->n) {
            fail_msg("%s: slot %d, %d of slot %d", table[i].what, at.slot, at.n, at.source);
        }
    }
}

static uint32_t seed = 5;
static int roll(int n) {
    seed = seed * 1664525u + 1013904223u;
    return (int)((uint64_t)(seed >> 8) * (uint32_t)n >> 24);
}

/* Whatever the slots hold: a free slot if there is one, and the longest beginning that any slot of the key has. */
static void test_random_places(void **state) {
    (void)state;
    gr_adapter a = adapter_of("aaaa");
    gr_prefix_key keys[2] = {key_of(&a, 1, NULL, 0), key_of(NULL, 0, NULL, 0)};
    for (int round = 0; round < 20000; round++) {
        llama_token tokens[LONGEST], room[SLOTS][LONGEST];
        gr_prefix slots[SLOTS];
        int n_tokens = 1 + roll(LONGEST), longest = 0, n_busy = 0, mine = roll(2);
        for (int t = 0; t < LONGEST; t++) {
            tokens[t] = roll(2);
        }
        for (int k = 0; k < SLOTS; k++) {
            int of = roll(2), n = roll(LONGEST + 1), same = 0;
            for (int t = 0; t < LONGEST; t++) {
                room[k][t] = roll(8) ? tokens[t] : roll(2);
            }
            while (same < n && same < n_tokens - 1 && room[k][same] == tokens[same]) {
                same++;
            }
            slots[k] = (gr_prefix){roll(2), room[k], n, (uint64_t)roll(100), keys[of]};
            n_busy += slots[k].busy;
            longest = of == mine && same > longest ? same : longest;
        }
        gr_placement at = gr_prefix_place(slots, SLOTS, &keys[mine], tokens, n_tokens, false);
        assert_int_equal(at.n, longest);
        assert_true(n_busy == SLOTS ? at.slot == -1 : at.slot >= 0 && !slots[at.slot].busy);
        if (at.n > 0) {
            const gr_prefix *from = &slots[at.source];
            assert_true(at.n <= from->n && same(&from->key, &keys[mine]));
            assert_memory_equal(from->tokens, tokens, (size_t)at.n * sizeof *tokens);
        }
    }
}

/* How many positions the slot has in common with the request, one by one: the same token, and the same adapters act. */
static int plain_common(const gr_prefix *p, const int starts[2], const int theirs[2], const llama_token *tokens, int n) {
    int i = 0;
    while (i < p->n && i < n && p->tokens[i] == tokens[i] && (starts[0] <= i) == (theirs[0] <= i) &&
           (starts[1] <= i) == (theirs[1] <= i)) {
        i++;
    }
    return i;
}

static int roll_start(void) {
    return roll(3) ? roll(LONGEST) : GR_NEVER;
}

static void test_random_activated_places(void **state) {
    (void)state;
    gr_adapter a = adapter_of("aaaa"), b = adapter_of("bbbb");
    for (int round = 0; round < 20000; round++) {
        llama_token tokens[LONGEST], room[SLOTS][LONGEST];
        gr_prefix slots[SLOTS];
        int n_tokens = 1 + roll(LONGEST), longest = 0;
        int starts[2] = {roll_start(), roll_start()}, of_slot[SLOTS][2];
        gr_prefix_key key = key_from(&a, 1, starts[0], &b, 1, starts[1]);
        for (int t = 0; t < LONGEST; t++) {
            tokens[t] = roll(2);
        }
        for (int k = 0; k < SLOTS; k++) {
            for (int t = 0; t < LONGEST; t++) {
                room[k][t] = roll(16) ? tokens[t] : roll(2);
            }
            for (int i = 0; i < 2; i++) {
                of_slot[k][i] = roll(2) ? starts[i] : roll_start();
            }
            slots[k] = (gr_prefix){false, room[k], roll(LONGEST + 1), (uint64_t)roll(100),
                                   key_from(&b, 1, of_slot[k][1], &a, 1, of_slot[k][0])};
            int found = plain_common(&slots[k], starts, of_slot[k], tokens, n_tokens - 1);
            longest = found > longest ? found : longest;
        }
        gr_placement at = gr_prefix_place(slots, SLOTS, &key, tokens, n_tokens, false);
        assert_int_equal(at.n, longest);
        if (at.n > 0) {
            assert_true(plain_common(&slots[at.source], starts, of_slot[at.source], tokens, n_tokens) >= at.n);
        }
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_keys),
        cmocka_unit_test(test_keys_by_position),
        cmocka_unit_test(test_places),
        cmocka_unit_test(test_activated_places),
        cmocka_unit_test(test_random_places),
        cmocka_unit_test(test_random_activated_places),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
