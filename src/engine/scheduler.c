/* Who gets how many rows of a step. Pure. */
#include "scheduler.h"

#include <stdlib.h>

static int by_age(const void *a, const void *b) {
    uint64_t x = (*(gr_sched_item *const *)a)->age, y = (*(gr_sched_item *const *)b)->age;
    return x < y ? -1 : x > y;
}

static int by_turn(const void *a, const void *b) {
    uint64_t x = (*(gr_sched_item *const *)a)->served, y = (*(gr_sched_item *const *)b)->served;
    return x < y ? -1 : x > y ? 1 : by_age(a, b);
}

static int min_int(int a, int b) {
    return a < b ? a : b;
}

/* Rows left for generating sequences when prompts keep a share. */
static int generating_capacity(gr_sched_item *const *prompts, int n_prompts, int capacity) {
    int share = capacity / 4 > 1 ? capacity / 4 : 1;
    int wanted = 0;
    for (int i = 0; i < n_prompts && wanted < share; i++) {
        wanted += prompts[i]->want;
    }
    return capacity - min_int(wanted, share);
}

/* Gives up to `most` more rows to a prompt; returns how many. */
static int give(gr_sched_item *item, int most, int *outputs) {
    int rows = min_int(item->want - item->rows, most);
    if (item->scoring) {
        rows = min_int(rows, *outputs);
        *outputs -= rows;
    }
    item->rows += rows;
    return rows;
}

static void share_among_prompts(gr_sched_item **prompts, int n, int left, int outputs) {
    int share = left / (2 * n) > 1 ? left / (2 * n) : 1;
    int scoring = 0; /* still to get their first row */
    for (int i = 0; i < n; i++) {
        scoring += prompts[i]->scoring;
        outputs -= !prompts[i]->scoring;
    }
    for (int i = 0; i < n && left > 0; i++) {
        scoring -= prompts[i]->scoring;
        /* Outputs are the scarcer thing: leave one for each scoring sequence that follows. */
        int usable = outputs - scoring;
        left -= give(prompts[i], min_int(share, left), &usable);
        outputs = usable + scoring;
    }
    for (int i = 0; i < n && left > 0; i++) {
        left -= give(prompts[i], left, &outputs);
    }
}

void gr_schedule(gr_sched_item *items, int n, int capacity, int max_outputs) {
    gr_sched_item *generating[GR_MAX_SLOTS], *prompts[GR_MAX_SLOTS];
    int n_generating = 0, n_prompts = 0;
    for (int i = 0; i < n; i++) {
        items[i].rows = 0;
        if (items[i].generating) {
            generating[n_generating++] = &items[i];
        } else {
            prompts[n_prompts++] = &items[i];
        }
    }
    qsort(generating, (size_t)n_generating, sizeof *generating, by_turn);
    qsort(prompts, (size_t)n_prompts, sizeof *prompts, by_age);

    int served = min_int(n_generating, generating_capacity(prompts, n_prompts, capacity));
    for (int i = 0; i < served; i++) {
        generating[i]->rows = 1;
    }
    if (n_prompts > 0) {
        share_among_prompts(prompts, n_prompts, capacity - served, max_outputs - served);
    }
}
