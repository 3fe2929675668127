/* For tests of adapters by name: a registry in a folder of its own, adapters that can be broken, and a log that is kept. */
#ifndef LOADER_HELPERS_H
#define LOADER_HELPERS_H

#include "api_helpers.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

/* ---- files ---------------------------------------------------------------------------------------------- */

static inline void read_file(const char *path, char **bytes, size_t *n) {
    FILE *f = fopen(path, "rb");
    assert_non_null(f);
    assert_int_equal(fseek(f, 0, SEEK_END), 0);
    *n = (size_t)ftell(f);
    rewind(f);
    *bytes = malloc(*n + 1);
    assert_int_equal(fread(*bytes, 1, *n, f), *n);
    (*bytes)[*n] = '\0';
    fclose(f);
}

static inline void write_file(const char *path, const char *bytes, size_t n) {
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(bytes, 1, n, f), n);
    assert_int_equal(fclose(f), 0);
}

/* ---- the log -------------------------------------------------------------------------------------------- */

enum { LOG_KEPT = 4096 };

typedef struct log_kept {
    pthread_mutex_t mutex;
    struct log_line {
        graft_log_level level;
        int code;
        char project[GRAFT_NAME_SIZE], text[160];
    } lines[LOG_KEPT];
    int n;
} log_kept;

static log_kept kept = {.mutex = PTHREAD_MUTEX_INITIALIZER};

static inline void keep_line(const graft_log_entry *e, void *user) {
    (void)user;
    pthread_mutex_lock(&kept.mutex);
    if (e->level >= GRAFT_LOG_INFO && kept.n < LOG_KEPT) {
        struct log_line *l = &kept.lines[kept.n++];
        l->level = e->level;
        l->code = e->code;
        snprintf(l->project, sizeof l->project, "%s", e->project);
        snprintf(l->text, sizeof l->text, "%.159s", e->text);
    }
    pthread_mutex_unlock(&kept.mutex);
}

/* Lines about a project with this code whose text holds `words`. */
static inline int logged(const char *project, int code, const char *words) {
    int n = 0;
    pthread_mutex_lock(&kept.mutex);
    for (int i = 0; i < kept.n; i++) {
        const struct log_line *l = &kept.lines[i];
        n += strcmp(l->project, project) == 0 && l->code == code && strstr(l->text, words) != NULL;
    }
    pthread_mutex_unlock(&kept.mutex);
    return n;
}

/* ---- a world of one test ---------------------------------------------------------------------------------- */

typedef struct world {
    char folder[64];
    graft_registry *registry;
    graft *g;
} world;

static world w;

static inline const char *in_world(const char *name) {
    static char paths[4][256];
    static int next;
    char *path = paths[next++ % 4];
    snprintf(path, sizeof paths[0], "%s/%s", w.folder, name);
    return path;
}

static inline void open_registry(void) {
    graft_registry_options o = graft_registry_options_default();
    graft_error err;
    o.path = in_world("graft.db");
    if (graft_registry_open(&w.registry, &o, &err)) {
        fail_msg("registry: %s", err.message);
    }
}

static inline int begin_world(void **state) {
    (void)state;
    kept.n = 0;
    w = (world){.folder = "/tmp/graft-loader-XXXXXX"};
    if (!mkdtemp(w.folder)) {
        return -1;
    }
    open_registry();
    return 0;
}

static inline void close_world(void) {
    graft_close(w.g);
    graft_registry_close(w.registry);
    w.g = NULL;
    w.registry = NULL;
}

static inline int end_world(void **state) {
    char command[96];
    (void)state;
    close_world();
    snprintf(command, sizeof command, "rm -rf '%s'", w.folder);
    return system(command);
}

#define WORLD_TEST(f) cmocka_unit_test_setup_teardown(f, begin_world, end_world)

static inline graft_options world_options(void) {
    graft_options o = small_options();
    o.registry = w.registry;
    o.log = keep_line;
    return o;
}

static inline void open_world(void) {
    graft_options o = world_options();
    w.g = open_or_fail(&o);
}

static inline void open_world_max(int max_adapters) {
    graft_options o = world_options();
    o.max_adapters = max_adapters;
    w.g = open_or_fail(&o);
}

/* ---- adapters -------------------------------------------------------------------------------------------- */

static inline void register_path(const char *project, const char *path) {
    graft_error err;
    if (graft_registry_adapter_add(w.registry, project, NULL, path, GRAFT_ADD_PROJECT, &err)) {
        fail_msg("add %s: %s", project, err.message);
    }
}

/* A project whose adapter is one of the golden ones, where it lies. */
static inline void add(const char *project, const char *golden_adapter) {
    register_path(project, golden(golden_adapter));
}

static inline const char *weights_of(const char *name) {
    char file[128];
    snprintf(file, sizeof file, "%s/adapter_model.safetensors", name);
    return in_world(file);
}

/* Copies a golden adapter's files over the folder `name` of this world; makes the folder if need be. */
static inline void copy_adapter(const char *name, const char *golden_adapter) {
    static const char *const files[] = {"adapter_config.json", "adapter_model.safetensors"};
    mkdir(in_world(name), 0700);
    for (int i = 0; i < 2; i++) {
        char from[256], to[128], *bytes;
        size_t n;
        snprintf(from, sizeof from, "%s/%s", golden_adapter, files[i]);
        snprintf(to, sizeof to, "%s/%s", name, files[i]);
        read_file(golden(from), &bytes, &n);
        write_file(in_world(to), bytes, n);
        free(bytes);
    }
}

/* A project of its own files, which may be changed. */
static inline void add_copy(const char *project, const char *golden_adapter) {
    copy_adapter(project, golden_adapter);
    register_path(project, in_world(project));
}

/* Multiplies every number of every lora_A ('A') or lora_B of a copy; the golden files are float32. */
static inline void scale_part(const char *name, char part, float factor) {
    char *bytes, key[16];
    size_t n;
    uint64_t header;
    read_file(weights_of(name), &bytes, &n);
    memcpy(&header, bytes, 8);
    char *text = strndup(bytes + 8, header), *data = bytes + 8 + header;
    snprintf(key, sizeof key, "lora_%c", part);
    for (char *at = text; (at = strstr(at, key)); at++) {
        size_t from, to;
        assert_int_equal(sscanf(strstr(at, "data_offsets"), "data_offsets\":[%zu,%zu]", &from, &to), 2);
        for (size_t i = from; i < to; i += sizeof(float)) {
            float f;
            memcpy(&f, data + i, sizeof f);
            f *= factor;
            memcpy(data + i, &f, sizeof f);
        }
    }
    write_file(weights_of(name), bytes, n);
    free(text);
    free(bytes);
}

/* ---- asking ---------------------------------------------------------------------------------------------- */

#define PROMPT "Once upon a time"
enum { TOKENS = 12 };

typedef struct named {
    answer a;
    graft_error fallback;
    char generation[65];
} named;

static inline named take_named(graft_job *job) {
    const graft_result *r = graft_job_wait(job);
    named n = {.fallback = r->fallback};
    snprintf(n.generation, sizeof n.generation, "%s", r->generation);
    n.a = take_answer(job);
    return n;
}

static inline graft_job *start_named(const char *project, graft_fallback fallback, int wait_ms, int tokens) {
    graft_adapter_use use = {.scale = 1, .project = project};
    graft_request r = request(PROMPT, tokens);
    r.adapters = &use;
    r.n_adapters = 1;
    r.fallback = fallback;
    r.adapter_wait_ms = wait_ms;
    return submit_or_fail(w.g, &r);
}

static inline named ask(const char *project) {
    return take_named(start_named(project, GRAFT_FALLBACK_DEFAULT, -1, TOKENS));
}

static inline answer ask_base(void) {
    graft_request r = request(PROMPT, TOKENS);
    return run(w.g, &r);
}

static inline answer ask_path(const char *path) {
    graft_adapter *a;
    graft_error err;
    if (graft_adapter_open(&a, w.g, path, &err)) {
        fail_msg("graft_adapter_open %s: %s", path, err.message);
    }
    graft_adapter_use use = {.adapter = a, .scale = 1};
    graft_request r = request(PROMPT, TOKENS);
    r.adapters = &use;
    r.n_adapters = 1;
    answer got = run(w.g, &r);
    graft_adapter_free(a);
    return got;
}

static inline bool same_text(const answer *a, const answer *b) {
    return a->length == b->length && memcmp(a->text, b->text, a->length) == 0;
}

static inline graft_lease *lease_or_fail(const char *project) {
    graft_lease_options o = graft_lease_options_default();
    graft_lease *l = NULL;
    graft_error err;
    o.project = project;
    o.fallback = GRAFT_FALLBACK_ERROR;
    if (graft_lease_take(&l, w.g, &o, &err)) {
        fail_msg("lease on %s: %s", project, err.message);
    }
    return l;
}

static inline int lease_code(const char *project, graft_fallback fallback, int wait_ms, graft_error *err) {
    graft_lease_options o = graft_lease_options_default();
    graft_lease *l = NULL;
    o.project = project;
    o.fallback = fallback;
    o.wait_ms = wait_ms;
    int rc = graft_lease_take(&l, w.g, &o, err);
    if (!rc) {
        graft_lease_release(l);
    }
    return rc;
}

static inline graft_metrics metrics(void) {
    graft_metrics m;
    graft_get_metrics(w.g, &m);
    return m;
}

static inline graft_memory memory(void) {
    graft_memory m;
    graft_memory_report(w.g, &m);
    return m;
}

static inline void nap(void) {
    nanosleep(&(struct timespec){0, 2000000}, NULL);
}

/* Waits for what other threads are about to do; a test that never sees it hangs, and the runner says so. */
#define WAIT_UNTIL(condition) \
    while (!(condition)) {    \
        nap();                \
    }

/* "alder/default:resident birch/default:loading" */
static inline const char *listing(void) {
    static char text[2048];
    graft_loaded_list *l;
    size_t at = 0;
    assert_int_equal(graft_loaded_adapters(&l, w.g, NULL), 0);
    text[0] = '\0';
    for (size_t i = 0; i < l->n; i++) {
        at += (size_t)snprintf(text + at, sizeof text - at, "%s%s:%s%s", i ? " " : "", l->items[i].project, l->items[i].state,
                               l->items[i].pinned ? "!" : "");
    }
    graft_loaded_list_free(l);
    return text;
}

static inline uint64_t failures(int code) {
    graft_metrics m = metrics();
    for (size_t i = 0; i < m.n_failures; i++) {
        if (m.failures[i].code == code) {
            return m.failures[i].n;
        }
    }
    return 0;
}

static inline graft_history history(const char *project) {
    graft_registered_list *l;
    assert_int_equal(graft_registry_adapter_list(&l, w.registry, project, "default", NULL), 0);
    graft_history h = l->items[0].history;
    graft_registered_list_free(l);
    return h;
}

static inline graft_registered_state state_of(const char *project) {
    graft_registered_list *l;
    assert_int_equal(graft_registry_adapter_list(&l, w.registry, project, "default", NULL), 0);
    graft_registered_state s = l->items[0].state;
    graft_registered_list_free(l);
    return s;
}

#endif
