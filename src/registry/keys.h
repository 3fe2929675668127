/*
 * Keys: who may ask a server, and for which projects. In memory a sorted array of objects that never change, under the same
 * rules as the index: the writer thread alone changes the array, with the index's mutex held; every other thread holds the
 * mutex to look. A key's secret is nowhere, only its SHA-256.
 */
#ifndef GR_KEYS_H
#define GR_KEYS_H

#include "base/error.h"
#include "registry/index.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* One block: the object, its pointers, their texts. */
typedef struct gr_key {
    int64_t id; /* keys.id */
    int64_t created;
    char hash[65];
    bool admin;
    const char *name;
    size_t n_projects;
    const char *projects[]; /* sorted, each once */
} gr_key;

typedef struct gr_keys {
    gr_key **items; /* sorted by name */
    size_t n, capacity;
} gr_keys;

void gr_keys_finish(gr_keys *keys);

/* Opening: the file's keys. Nothing if it is of a version without. Errors: REGISTRY_INVALID, OUT_OF_MEMORY. */
int gr_keys_load(graft_registry *r, graft_error *err);
/* Writer thread: whether memory holds what the file does. For tests. */
int gr_keys_same(graft_registry *r, bool *same, graft_error *err);

#endif
