/* Whose turn it is. */
#include "turns.h"

void gr_turns_look(gr_turns *t) {
    t->n_running = 0;
}

void gr_turns_running(gr_turns *t, uint64_t key) {
    if (t->n_running < GR_MAX_SLOTS) {
        t->running[t->n_running++] = key;
    }
}

uint64_t gr_turns_rank(const gr_turns *t, uint64_t key) {
    uint64_t running = 0, began = 0;
    for (int i = 0; i < t->n_running; i++) {
        running += t->running[i] == key;
    }
    for (int i = 0; i < GR_TURNS_KEPT && !began; i++) {
        began = t->last[i].began && t->last[i].key == key ? t->last[i].began : 0;
    }
    return running << 48 | (began & ((UINT64_C(1) << 48) - 1));
}

void gr_turns_began(gr_turns *t, uint64_t key) {
    struct gr_turn *at = &t->last[0]; /* its own place, else the oldest */
    for (int i = 0; i < GR_TURNS_KEPT; i++) {
        struct gr_turn *other = &t->last[i];
        if (other->began && other->key == key) {
            at = other;
            break;
        }
        at = other->began < at->began ? other : at;
    }
    *at = (struct gr_turn){key, ++t->n_began};
    gr_turns_running(t, key);
}
