/* The heap of gdsf and Belady: see heap.h. */
#include "heap.h"

#include "base/memory.h"

#include <assert.h>

void gr_heap_finish(gr_heap *h) {
    gr_free(h->entries);
    *h = (gr_heap){0};
}

bool gr_heap_reserve(gr_heap *h, size_t count) {
    if (count <= h->capacity) {
        return true;
    }
    size_t capacity = count + count / 2 + 16;
    if (capacity > SIZE_MAX / sizeof *h->entries) {
        return false;
    }
    gr_policy_entry **entries = gr_realloc(h->entries, capacity * sizeof *entries);
    if (!entries) {
        return false;
    }
    h->entries = entries;
    h->capacity = capacity;
    return true;
}

static bool less(const gr_policy_entry *a, const gr_policy_entry *b) {
    return a->priority < b->priority || (a->priority == b->priority && a->stamp < b->stamp);
}

static void set(gr_heap *h, size_t i, gr_policy_entry *e) {
    h->entries[i] = e;
    e->heap_index = i;
}

static void up(gr_heap *h, size_t i) {
    gr_policy_entry *e = h->entries[i];
    while (i > 0 && less(e, h->entries[(i - 1) / 2])) {
        set(h, i, h->entries[(i - 1) / 2]);
        i = (i - 1) / 2;
    }
    set(h, i, e);
}

static void down(gr_heap *h, size_t i) {
    gr_policy_entry *e = h->entries[i];
    for (size_t child; (child = 2 * i + 1) < h->count; i = child) {
        if (child + 1 < h->count && less(h->entries[child + 1], h->entries[child])) {
            child++;
        }
        if (!less(h->entries[child], e)) {
            break;
        }
        set(h, i, h->entries[child]);
    }
    set(h, i, e);
}

void gr_heap_push(gr_heap *h, gr_policy_entry *e) {
    assert(h->count < h->capacity);
    set(h, h->count++, e);
    up(h, e->heap_index);
}

void gr_heap_moved(gr_heap *h, gr_policy_entry *e) {
    up(h, e->heap_index);
    down(h, e->heap_index);
}

void gr_heap_take(gr_heap *h, gr_policy_entry *e) {
    gr_policy_entry *last = h->entries[--h->count];
    if (last != e) {
        set(h, e->heap_index, last);
        gr_heap_moved(h, last);
    }
}

bool gr_heap_check(const gr_heap *h) {
    for (size_t i = 0; i < h->count; i++) {
        if (h->entries[i]->heap_index != i || (i > 0 && less(h->entries[i], h->entries[(i - 1) / 2]))) {
            return false;
        }
    }
    return h->count <= h->capacity;
}
