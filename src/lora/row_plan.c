/*
 * Builds the row plan: groups sorted by their adapter's address, each with its rows in both numberings.
 *
 * One block holds everything: the groups, and four arrays (rows, scales, out_rows, out_scales) with one element
 * per pair of row and adapter, of which every group gets a slice. Two passes over the rows: count, then fill.
 * The order of the groups is the order in which a row's deltas are added; it must not depend on the batch.
 */
#include "lora/row_plan.h"

#include "base/memory.h"

#include <string.h>

int gr_row_plan_create(gr_row_plan **out, int max_rows, graft_error *err) {
    size_t pairs = (size_t)max_rows * GR_MAX_USES;
    size_t size = pairs * (sizeof(gr_row_group) + 2 * sizeof(int32_t) + 2 * sizeof(float));
    gr_row_plan *p = gr_zalloc(sizeof *p);
    if (!p) {
        return gr_fail_memory(err, sizeof *p);
    }
    p->storage = gr_alloc(size);
    if (!p->storage) {
        gr_free(p);
        return gr_fail_memory(err, size);
    }
    p->groups = p->storage;
    p->max_rows = max_rows;
    p->max_groups = (int)pairs;
    *out = p;
    return 0;
}

void gr_row_plan_free(gr_row_plan *p) {
    if (p) {
        gr_free(p->storage);
        gr_free(p);
    }
}

/* Where the adapter's group is, or would be. */
static int find(const gr_row_plan *p, const gr_adapter *adapter) {
    int low = 0, high = p->n_groups;
    while (low < high) {
        int middle = low + (high - low) / 2;
        if ((uintptr_t)p->groups[middle].adapter < (uintptr_t)adapter) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

static gr_row_group *find_or_insert(gr_row_plan *p, const gr_adapter *adapter) {
    int at = find(p, adapter);
    gr_row_group *g = p->groups + at;
    if (at == p->n_groups || g->adapter != adapter) {
        memmove(g + 1, g, (size_t)(p->n_groups - at) * sizeof *g);
        memset(g, 0, sizeof *g);
        g->adapter = adapter;
        p->n_groups++;
    }
    return g;
}

/* Hands each group its slices, sized by the counts, and resets the counts for filling. */
static void slice(gr_row_plan *p) {
    size_t pairs = (size_t)p->max_groups, at = 0, out_at = 0;
    int32_t *rows = (int32_t *)(void *)(p->groups + pairs), *out_rows = rows + pairs;
    float *scales = (float *)(void *)(out_rows + pairs), *out_scales = scales + pairs;
    for (int i = 0; i < p->n_groups; i++) {
        gr_row_group *g = p->groups + i;
        g->rows = rows + at;
        g->scales = scales + at;
        g->out_rows = out_rows + out_at;
        g->out_scales = out_scales + out_at;
        at += (size_t)g->n_rows;
        out_at += (size_t)g->n_out_rows;
        g->n_rows = g->n_out_rows = 0;
    }
}

static void add_row(gr_row_plan *p, const gr_adapter_set *set, int row, int out_row) {
    for (int u = 0; u < set->n; u++) {
        gr_row_group *g = p->groups + find(p, set->adapters[u]);
        g->rows[g->n_rows] = row;
        g->scales[g->n_rows++] = set->scales[u];
        if (out_row >= 0) {
            g->out_rows[g->n_out_rows] = out_row;
            g->out_scales[g->n_out_rows++] = set->scales[u];
        }
    }
}

void gr_row_plan_build(gr_row_plan *p, const gr_adapter_set *const *sets, const int8_t *output, int n_rows) {
    p->n_groups = 0;
    p->n_tokens = n_rows;
    p->n_outputs = 0;
    p->disjoint = true;
    for (int i = 0; i < n_rows; i++) {
        p->disjoint = p->disjoint && (!sets[i] || sets[i]->n <= 1);
        for (int u = 0; sets[i] && u < sets[i]->n; u++) {
            gr_row_group *g = find_or_insert(p, sets[i]->adapters[u]);
            g->n_rows++;
            g->n_out_rows += output[i] != 0;
        }
    }
    slice(p);
    for (int i = 0; i < n_rows; i++) {
        bool out = output[i] != 0;
        if (sets[i]) {
            add_row(p, sets[i], i, out ? p->n_outputs : -1);
        }
        p->n_outputs += out;
    }
}
