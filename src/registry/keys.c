/* Keys: made, removed, listed, and found by their secret. */
#include "keys.h"

#include "base/buffer.h"
#include "base/memory.h"
#include "model/sha256.h"
#include "registry/names.h"
#include "registry/state.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/rand.h>
#include <stdlib.h>
#include <string.h>

enum { SECRET_BYTES = 32, PROJECTS_TEXT = GRAFT_KEY_PROJECTS * GRAFT_NAME_SIZE };

/* ---- objects -------------------------------------------------------------------------------------------- */

static size_t count_words(const char *text) {
    size_t n = *text != '\0';
    for (const char *c = text; *c; c++) {
        n += *c == ' ';
    }
    return n;
}

/* `projects`: names with a space between; "" = admin. NULL if memory is out. */
static gr_key *key_new(const char *name, const char *projects) {
    size_t n = count_words(projects), name_size = strlen(name) + 1, projects_size = strlen(projects) + 1;
    gr_key *k = gr_zalloc(sizeof *k + n * sizeof *k->projects + name_size + projects_size);
    if (!k) {
        return NULL;
    }
    char *texts = (char *)(k->projects + n), *at = texts + name_size;
    k->name = memcpy(texts, name, name_size);
    memcpy(at, projects, projects_size);
    k->admin = n == 0;
    k->n_projects = n;
    for (size_t i = 0; i < n; i++) {
        k->projects[i] = at;
        at += strcspn(at, " ");
        *at++ = '\0';
    }
    return k;
}

void gr_keys_finish(gr_keys *keys) {
    for (size_t i = 0; i < keys->n; i++) {
        gr_free(keys->items[i]);
    }
    gr_free(keys->items);
    *keys = (gr_keys){0};
}

/* The place of `name`: of the first that is not before it. */
static size_t place_of(const gr_keys *keys, const char *name) {
    size_t low = 0, high = keys->n;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (strcmp(keys->items[middle]->name, name) < 0) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

static bool is_at(const gr_keys *keys, size_t i, const char *name) {
    return i < keys->n && strcmp(keys->items[i]->name, name) == 0;
}

/* Writer thread, without the mutex: growing copies outside it. False if memory is out. */
static bool reserve(graft_registry *r) {
    gr_keys *keys = &r->keys;
    if (keys->n < keys->capacity) {
        return true;
    }
    size_t capacity = keys->capacity ? 2 * keys->capacity : 4;
    gr_key **old = keys->items, **items = gr_calloc(capacity, sizeof *items);
    if (!items) {
        return false;
    }
    if (keys->n) {
        memcpy(items, old, keys->n * sizeof *items);
    }
    gr_mutex_lock(&r->index.mutex);
    keys->items = items;
    keys->capacity = capacity;
    gr_mutex_unlock(&r->index.mutex);
    gr_free(old);
    return true;
}

/* Mutex held, room was reserved. */
static void insert(gr_keys *keys, gr_key *key) {
    size_t i = place_of(keys, key->name);
    memmove(&keys->items[i + 1], &keys->items[i], (keys->n - i) * sizeof *keys->items);
    keys->items[i] = key;
    keys->n++;
}

/* ---- the file ------------------------------------------------------------------------------------------- */

#define SELECT_KEYS "SELECT id, name, hash, admin, projects, created FROM keys ORDER BY name"
enum { C_ID, C_NAME, C_HASH, C_ADMIN, C_PROJECTS, C_CREATED };

static bool is_sane(const gr_key *k, sqlite3_stmt *q) {
    bool good = gr_name_valid(k->name, strlen(k->name)) && k->n_projects <= GRAFT_KEY_PROJECTS &&
                k->admin == (sqlite3_column_int(q, C_ADMIN) != 0) && strspn(k->hash, "0123456789abcdef") == sizeof k->hash - 1;
    for (size_t i = 0; i < k->n_projects && good; i++) {
        good = gr_name_valid(k->projects[i], strlen(k->projects[i])) &&
               (i == 0 || strcmp(k->projects[i - 1], k->projects[i]) < 0);
    }
    return good;
}

static int load_key(graft_registry *r, sqlite3_stmt *q, graft_error *err) {
    char quoted[GR_QUOTE_SIZE];
    const char *name = gr_store_text(q, C_NAME), *projects = gr_store_text(q, C_PROJECTS);
    gr_key *k = strlen(projects) < PROJECTS_TEXT && reserve(r) ? key_new(name, projects) : NULL;
    if (!k && strlen(projects) < PROJECTS_TEXT) {
        return gr_fail_memory(err, sizeof *k + strlen(projects));
    }
    if (k) {
        snprintf(k->hash, sizeof k->hash, "%s", gr_store_text(q, C_HASH));
    }
    const gr_keys *before = &r->keys;
    if (!k || !is_sane(k, q) || (before->n && strcmp(before->items[before->n - 1]->name, k->name) >= 0)) {
        gr_free(k);
        return gr_fail(err, GRAFT_E_REGISTRY_INVALID, "the registry holds a key that graft did not write: \"%s\"",
                       gr_quote(quoted, name, strlen(name)));
    }
    k->id = sqlite3_column_int64(q, C_ID);
    k->created = sqlite3_column_int64(q, C_CREATED);
    insert(&r->keys, k);
    return 0;
}

static bool is_same(const gr_key *k, sqlite3_stmt *q) {
    const char *at = gr_store_text(q, C_PROJECTS);
    bool same = k->id == sqlite3_column_int64(q, C_ID) && strcmp(k->name, gr_store_text(q, C_NAME)) == 0 &&
                strcmp(k->hash, gr_store_text(q, C_HASH)) == 0 && count_words(at) == k->n_projects;
    for (size_t i = 0; i < k->n_projects && same; i++) {
        size_t n = strcspn(at, " ");
        same = strlen(k->projects[i]) == n && memcmp(k->projects[i], at, n) == 0;
        at += n + (at[n] != '\0');
    }
    return same;
}

/* Reads the table and loads each key or, with `same`, compares it with the one in its place. */
static int each_key(graft_registry *r, bool *same, graft_error *err) {
    sqlite3_stmt *q;
    size_t n = 0;
    if (r->store.version < GR_STORE_KEYS) {
        return 0;
    }
    int rc = gr_store_query(&r->store, &q, err, SELECT_KEYS, "");
    if (rc) {
        return rc;
    }
    while ((rc = gr_store_step(&r->store, q, err)) > 0) {
        if (same) {
            *same = *same && n < r->keys.n && is_same(r->keys.items[n], q);
        } else if ((rc = load_key(r, q, err)) != 0) {
            break;
        }
        n++;
    }
    if (same) {
        *same = *same && n == r->keys.n;
    }
    sqlite3_finalize(q);
    return rc;
}

int gr_keys_load(graft_registry *r, graft_error *err) {
    return each_key(r, NULL, err);
}

int gr_keys_same(graft_registry *r, bool *same, graft_error *err) {
    *same = true;
    return each_key(r, same, err);
}

/* ---- secrets -------------------------------------------------------------------------------------------- */

/* "gk_" and the bytes in base64url. */
static int make_secret(char secret[GRAFT_KEY_SIZE], graft_error *err) {
    unsigned char bytes[SECRET_BYTES], text[4 * ((SECRET_BYTES + 2) / 3) + 1];
    int rc = RAND_bytes(bytes, sizeof bytes) == 1 ? 0 : gr_fail(err, GRAFT_E_INTERNAL, "the system has no random numbers");
    if (!rc) {
        size_t n = (size_t)EVP_EncodeBlock(text, bytes, sizeof bytes);
        memcpy(secret, "gk_", 3);
        char *out = secret + 3;
        for (size_t i = 0; i < n && text[i] != '='; i++) {
            *out++ = (char)(text[i] == '+' ? '-' : text[i] == '/' ? '_' : text[i]);
        }
        *out = '\0';
    }
    OPENSSL_cleanse(bytes, sizeof bytes);
    OPENSSL_cleanse(text, sizeof text);
    return rc;
}

static int hash_secret(char out[65], const char *secret, graft_error *err) {
    uint8_t hash[GR_SHA256_SIZE];
    int rc = gr_sha256_of(hash, secret, strlen(secret), err);
    if (!rc) {
        gr_sha256_hex(out, hash);
    }
    return rc;
}

/* ---- changes -------------------------------------------------------------------------------------------- */

typedef struct key_task {
    gr_task task;
    const char *name, *projects;
    char hash[65];
    gr_key *key; /* add: until it is inserted; remove: once it is taken out; for the caller to free */
} key_task;

static int add_run(graft_registry *r, gr_task *task, graft_error *err) {
    key_task *t = (key_task *)task;
    int64_t now = gr_wall_seconds();
    if (is_at(&r->keys, place_of(&r->keys, t->name), t->name)) {
        return gr_fail(err, GRAFT_E_CONFLICT, "there is a key \"%s\" already", t->name);
    }
    if (r->keys.n >= GRAFT_KEYS) {
        return gr_fail(err, GRAFT_E_CONFLICT, "there are %d keys, and no more may be: remove one", GRAFT_KEYS);
    }
    if (!reserve(r) || !(t->key = key_new(t->name, t->projects))) {
        return gr_fail_memory(err, sizeof *t->key + strlen(t->projects));
    }
    memcpy(t->key->hash, t->hash, sizeof t->hash);
    t->key->created = now;
    int rc = gr_store_run(&r->store, err, "INSERT INTO keys (name, hash, admin, projects, created) VALUES (?1,?2,?3,?4,?5)",
                          "ssisi", t->name, t->hash, (int64_t)t->key->admin, t->projects, now);
    t->key->id = sqlite3_last_insert_rowid(r->store.db);
    return rc;
}

static void add_apply(graft_registry *r, gr_task *task) {
    key_task *t = (key_task *)task;
    insert(&r->keys, t->key);
    t->key = NULL;
}

static int by_text(const void *a, const void *b) {
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* The projects checked, sorted, each once, into `out` with a space between. */
static int join_projects(gr_buffer *out, const char *const *projects, size_t n, graft_error *err) {
    if (n > GRAFT_KEY_PROJECTS) {
        return gr_fail(err, GRAFT_E_BAD_REQUEST, "a key is for %d projects at most, not %zu", GRAFT_KEY_PROJECTS, n);
    }
    for (size_t i = 0; i < n; i++) {
        int rc = gr_name_check(projects[i], "project", err);
        if (rc) {
            return rc;
        }
    }
    const char *sorted[GRAFT_KEY_PROJECTS];
    if (n) {
        memcpy(sorted, projects, n * sizeof *sorted);
        qsort(sorted, n, sizeof *sorted, by_text);
    }
    gr_buffer_puts(out, "");
    for (size_t i = 0; i < n; i++) {
        if (i == 0 || strcmp(sorted[i - 1], sorted[i]) != 0) {
            gr_buffer_printf(out, i ? " %s" : "%s", sorted[i]);
        }
    }
    return out->failed || !out->data ? gr_fail_memory(err, out->length) : 0;
}

int gr_registry_key_add(char secret[GRAFT_KEY_SIZE], gr_registry *r, const char *name, const char *const *projects,
                        size_t n_projects, graft_error *err) {
    gr_buffer joined;
    key_task t = {.task = {.run = add_run, .apply = add_apply, .writes = true}, .name = name};
    gr_buffer_init(&joined, PROJECTS_TEXT);
    int rc = gr_name_check(name, "key", err);
    rc = rc ? rc : join_projects(&joined, projects, n_projects, err);
    rc = rc ? rc : make_secret(secret, err);
    rc = rc ? rc : hash_secret(t.hash, secret, err);
    if (!rc) {
        t.projects = joined.data;
        rc = gr_writer_do(r, &t.task, err);
    }
    if (rc) {
        OPENSSL_cleanse(secret, GRAFT_KEY_SIZE);
    }
    gr_free(t.key);
    gr_buffer_finish(&joined);
    return rc;
}

static int no_key(const char *name, graft_error *err) {
    return gr_fail(err, GRAFT_E_NOT_FOUND, "there is no key \"%s\"", name);
}

static int remove_run(graft_registry *r, gr_task *task, graft_error *err) {
    key_task *t = (key_task *)task;
    size_t i = place_of(&r->keys, t->name);
    return is_at(&r->keys, i, t->name) ? gr_store_run(&r->store, err, "DELETE FROM keys WHERE id=?1", "i", r->keys.items[i]->id)
                                       : no_key(t->name, err);
}

static void remove_apply(graft_registry *r, gr_task *task) {
    key_task *t = (key_task *)task;
    gr_keys *keys = &r->keys;
    size_t i = place_of(keys, t->name);
    t->key = keys->items[i];
    memmove(&keys->items[i], &keys->items[i + 1], (keys->n - i - 1) * sizeof *keys->items);
    keys->n--;
}

/* The backup is made anew as part of it: going back to one that still held the key would give it back its force. */
int gr_registry_key_remove(gr_registry *r, const char *name, graft_error *err) {
    key_task t = {.task = {.run = remove_run, .apply = remove_apply, .writes = true, .backup = true}, .name = name};
    int rc = gr_name_check(name, "key", err);
    rc = rc ? rc : gr_writer_do(r, &t.task, err);
    gr_free(t.key);
    return rc;
}

/* ---- questions ------------------------------------------------------------------------------------------ */

/* A snapshot in one block: the public list, its items, their pointers, their texts. */
typedef struct key_list {
    graft_key_list list; /* first: what the caller has */
    graft_key items[];
} key_list;

/* Which keys are asked for: by name, by hash, or all. Mutex held. */
typedef struct wanted {
    const char *name, *hash;
} wanted;

/* All hashes are compared to their end, whichever matches. */
static size_t place_of_hash(const gr_keys *keys, const char *hash) {
    size_t found = 0;
    for (size_t i = 0; i < keys->n; i++) {
        size_t same = CRYPTO_memcmp(keys->items[i]->hash, hash, sizeof keys->items[i]->hash) == 0;
        found |= (0 - same) & (i + 1);
    }
    return found ? found - 1 : keys->n;
}

/* *first and how many from there on. */
static size_t choose(const gr_keys *keys, const wanted *w, size_t *first) {
    *first = 0;
    if (w->hash) {
        *first = place_of_hash(keys, w->hash);
        return *first < keys->n;
    }
    if (w->name) {
        *first = place_of(keys, w->name);
        return is_at(keys, *first, w->name);
    }
    return keys->n;
}

static size_t text_size(const gr_key *k) {
    size_t bytes = strlen(k->name) + 1;
    for (size_t i = 0; i < k->n_projects; i++) {
        bytes += strlen(k->projects[i]) + 1;
    }
    return bytes;
}

static size_t block_size(const gr_keys *keys, size_t first, size_t n) {
    size_t bytes = sizeof(key_list) + n * sizeof(graft_key);
    for (size_t i = first; i < first + n; i++) {
        bytes += keys->items[i]->n_projects * sizeof(char *) + text_size(keys->items[i]);
    }
    return bytes;
}

static const char *keep(char **at, const char *text) {
    const char *copy = strcpy(*at, text);
    *at += strlen(text) + 1;
    return copy;
}

static void fill(key_list *l, const gr_keys *keys, size_t first, size_t n) {
    size_t n_pointers = 0;
    const char **pointers = (const char **)(void *)(l->items + n);
    for (size_t i = 0; i < n; i++) {
        n_pointers += keys->items[first + i]->n_projects;
    }
    char *texts = (char *)(pointers + n_pointers);
    for (size_t i = 0; i < n; i++) {
        const gr_key *k = keys->items[first + i];
        l->items[i] = (graft_key){keep(&texts, k->name), k->admin, pointers, k->n_projects, k->created};
        for (size_t p = 0; p < k->n_projects; p++) {
            *pointers++ = keep(&texts, k->projects[p]);
        }
    }
    l->list = (graft_key_list){l->items, n};
}

/* *out stays if none is there that was wanted: the caller says what that means. */
static int snapshot(graft_key_list **out, gr_registry *r, const wanted *w, graft_error *err) {
    gr_mutex *m = &r->index.mutex;
    size_t room = 0;
    key_list *l = NULL;
    for (;;) {
        size_t first;
        gr_mutex_lock(m);
        size_t n = choose(&r->keys, w, &first), needed = block_size(&r->keys, first, n);
        bool found = n || (!w->name && !w->hash), fits = found && l && needed <= room;
        if (fits) {
            fill(l, &r->keys, first, n);
        }
        gr_mutex_unlock(m);
        if (fits) {
            *out = &l->list;
            return 0;
        }
        /* Allocated without the mutex; meanwhile there may be more, so look again. */
        gr_free(l);
        l = found ? gr_alloc(needed) : NULL;
        if (!l) {
            return found ? gr_fail_memory(err, needed) : GRAFT_E_NOT_FOUND;
        }
        room = needed;
    }
}

int gr_registry_key_list(graft_key_list **out, gr_registry *r, const char *name, graft_error *err) {
    int rc = name ? gr_name_check(name, "key", err) : 0;
    rc = rc ? rc : snapshot(out, r, &(wanted){.name = name}, err);
    return rc == GRAFT_E_NOT_FOUND ? no_key(name, err) : rc;
}

int gr_registry_key_find(graft_key_list **out, gr_registry *r, const char *secret, graft_error *err) {
    char hash[65];
    int rc = hash_secret(hash, secret, err);
    rc = rc ? rc : snapshot(out, r, &(wanted){.hash = hash}, err);
    return rc == GRAFT_E_NOT_FOUND ? gr_fail(err, rc, "there is no such key") : rc;
}

size_t gr_registry_key_count(gr_registry *r) {
    gr_mutex_lock(&r->index.mutex);
    size_t n = r->keys.n;
    gr_mutex_unlock(&r->index.mutex);
    return n;
}

void graft_key_list_free(graft_key_list *list) {
    gr_free(list);
}
