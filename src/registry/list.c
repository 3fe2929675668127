/* Snapshots for callers. Each is one block: the public list, its items, then their texts. */
#include "state.h"

#include "base/memory.h"
#include "registry/names.h"
#include "registry/registry.h"

#include <limits.h>
#include <string.h>

/* ---- one block ------------------------------------------------------------------------------------------ */

/* Where the next text goes. A first pass with `at` NULL only counts. */
typedef struct texts {
    char *at;
    size_t bytes;
} texts;

static const char *keep(texts *t, const char *s) {
    size_t n = strlen(s) + 1;
    t->bytes += n;
    if (!t->at) {
        return NULL;
    }
    char *copy = memcpy(t->at, s, n);
    t->at += n;
    return copy;
}

static void add_history(graft_history *sum, const graft_history *h) {
    if (!h) {
        return;
    }
    sum->requests += h->requests;
    sum->tokens += h->tokens;
    sum->loads += h->loads;
    sum->failures += h->failures;
    sum->evictions += h->evictions;
    sum->unloads += h->unloads;
    sum->fallbacks += h->fallbacks;
    sum->load_ms += h->load_ms;
    sum->last_loaded = h->last_loaded > sum->last_loaded ? h->last_loaded : sum->last_loaded;
    sum->last_used = h->last_used > sum->last_used ? h->last_used : sum->last_used;
}

/* ---- adapters ------------------------------------------------------------------------------------------- */

typedef struct adapter_list {
    graft_registered_list list; /* first: what the caller has */
    graft_registered items[];
} adapter_list;

static void show_row(graft_registered *out, const gr_row *row, texts *t) {
    char generation[65];
    gr_generation_get(row, generation);
    *out = (graft_registered){
        .project = keep(t, row->project->name),
        .adapter = keep(t, row->name),
        .path = keep(t, row->path),
        .generation = keep(t, generation),
        .format = gr_format_name(row->format),
        .base = keep(t, row->base),
        .rank = row->rank,
        .file_bytes = row->file_bytes,
        .bytes = row->bytes,
        .state = (graft_registered_state)row->state,
        .error_code = row->error_code,
        .error = keep(t, row->error ? row->error : ""),
        .pinned = row->pinned,
        .created = row->created,
        .changed = row->changed,
    };
    add_history(&out->history, row->history);
}

/* The mutex is held. Fills items if t->at is set; else only counts. Returns how many there are. */
static size_t walk_rows(graft_registry *r, const char *project, const char *adapter, graft_registered *items, texts *t) {
    size_t n = 0;
    for (size_t i = 0; i < r->index.n; i++) {
        const gr_project *p = r->index.projects[i];
        if (project && strcmp(p->name, project) != 0) {
            continue;
        }
        for (size_t k = 0; k < p->n; k++) {
            if (!adapter || strcmp(p->rows[k]->name, adapter) == 0) {
                graft_registered counted;
                show_row(items ? &items[n] : &counted, p->rows[k], t);
                n++;
            }
        }
    }
    return n;
}

/* With the mutex: whether a name that was asked for exists. */
static int must_exist(graft_registry *r, const char *project, const char *adapter, graft_error *err) {
    const gr_project *p = project ? gr_index_project(&r->index, project) : NULL;
    if (project && !p) {
        return gr_fail(err, GRAFT_E_NOT_FOUND, "there is no project \"%s\"", project);
    }
    if (adapter && !gr_index_row(p, adapter)) {
        return gr_fail(err, GRAFT_E_NOT_FOUND, "project \"%s\" has no adapter \"%s\"", project, adapter);
    }
    return 0;
}

static int check_names(const char *project, const char *adapter, graft_error *err) {
    int rc = project ? gr_name_check(project, "project", err) : 0;
    if (!rc && adapter && !project) {
        rc = gr_fail(err, GRAFT_E_BAD_REQUEST, "an adapter is named without its project");
    }
    return rc || !adapter ? rc : gr_name_check(adapter, "adapter", err);
}

int gr_registry_adapter_list(graft_registered_list **out, gr_registry *r, const char *project, const char *adapter,
                             graft_error *err) {
    int rc = check_names(project, adapter, err);
    gr_mutex *m = &r->index.mutex;
    size_t room = 0;
    adapter_list *l = NULL;
    while (!rc) {
        texts t = {0};
        gr_mutex_lock(m);
        rc = must_exist(r, project, adapter, err);
        size_t n = rc ? 0 : walk_rows(r, project, adapter, NULL, &t);
        size_t needed = sizeof *l + n * sizeof *l->items + t.bytes;
        bool fits = !rc && l && needed <= room;
        if (fits) {
            t = (texts){.at = (char *)(l->items + n)};
            l->list = (graft_registered_list){l->items, walk_rows(r, project, adapter, l->items, &t)};
        }
        gr_mutex_unlock(m);
        if (fits) {
            *out = &l->list;
            return 0;
        }
        /* Allocated without the mutex; meanwhile there may be more, so look again. */
        gr_free(l);
        room = needed;
        l = rc ? NULL : gr_alloc(room);
        rc = rc || l ? rc : gr_fail_memory(err, room);
    }
    gr_free(l);
    return rc;
}

void graft_registered_list_free(graft_registered_list *list) {
    gr_free(list);
}

/* ---- projects ------------------------------------------------------------------------------------------- */

typedef struct project_list {
    graft_project_list list;
    graft_project_info items[];
} project_list;

static void show_project(graft_project_info *out, const gr_project *p, texts *t) {
    *out = (graft_project_info){.name = keep(t, p->name), .n_adapters = p->n, .created = p->created, .changed = p->changed};
    for (size_t i = 0; i < p->n; i++) {
        out->file_bytes += p->rows[i]->file_bytes;
        add_history(&out->history, p->rows[i]->history);
    }
}

static size_t walk_projects(graft_registry *r, const char *project, graft_project_info *items, texts *t) {
    size_t n = 0;
    for (size_t i = 0; i < r->index.n; i++) {
        const gr_project *p = r->index.projects[i];
        if (!project || strcmp(p->name, project) == 0) {
            graft_project_info counted;
            show_project(items ? &items[n] : &counted, p, t);
            n++;
        }
    }
    return n;
}

int gr_registry_project_list(graft_project_list **out, gr_registry *r, const char *project, graft_error *err) {
    int rc = check_names(project, NULL, err);
    gr_mutex *m = &r->index.mutex;
    size_t room = 0;
    project_list *l = NULL;
    while (!rc) {
        texts t = {0};
        gr_mutex_lock(m);
        rc = must_exist(r, project, NULL, err);
        size_t n = rc ? 0 : walk_projects(r, project, NULL, &t);
        size_t needed = sizeof *l + n * sizeof *l->items + t.bytes;
        bool fits = !rc && l && needed <= room;
        if (fits) {
            t = (texts){.at = (char *)(l->items + n)};
            l->list = (graft_project_list){l->items, walk_projects(r, project, l->items, &t)};
        }
        gr_mutex_unlock(m);
        if (fits) {
            *out = &l->list;
            return 0;
        }
        gr_free(l);
        room = needed;
        l = rc ? NULL : gr_alloc(room);
        rc = rc || l ? rc : gr_fail_memory(err, room);
    }
    gr_free(l);
    return rc;
}

void graft_project_list_free(graft_project_list *list) {
    gr_free(list);
}

/* ---- events --------------------------------------------------------------------------------------------- */

/* Read from the file, on the writer thread. Each text is a block of its own: how many there are shows only in the end. */
typedef struct event_list {
    graft_event_list list; /* first */
    graft_registry_event *items;
    char **texts;          /* one per item: project, adapter, kind, generation and message, one after the other */
    size_t n, capacity;
} event_list;

void graft_event_list_free(graft_event_list *list) {
    if (list) {
        event_list *l = (event_list *)list;
        for (size_t i = 0; i < l->n; i++) {
            gr_free(l->texts[i]);
        }
        gr_free(l->texts);
        gr_free(l->items);
        gr_free(l);
    }
}

static bool grow_events(event_list *l) {
    if (l->n < l->capacity) {
        return true;
    }
    size_t capacity = l->capacity ? l->capacity * 2 : 16;
    graft_registry_event *items = gr_realloc(l->items, capacity * sizeof *items);
    l->items = items ? items : l->items;
    char **blocks = items ? gr_realloc(l->texts, capacity * sizeof *blocks) : NULL;
    l->texts = blocks ? blocks : l->texts;
    l->capacity = blocks ? capacity : l->capacity;
    return blocks != NULL;
}

enum { E_AT, E_CODE, E_BYTES, E_MS, E_PROJECT, E_ADAPTER, E_KIND, E_GENERATION, E_MESSAGE, E_END };

static bool take_event(event_list *l, sqlite3_stmt *q) {
    texts t = {0};
    for (int column = E_PROJECT; column < E_END; column++) {
        keep(&t, gr_store_text(q, column));
    }
    char *block = grow_events(l) ? gr_alloc(t.bytes) : NULL;
    if (!block) {
        return false;
    }
    t = (texts){.at = block};
    l->texts[l->n] = block;
    l->items[l->n++] = (graft_registry_event){
        .at = sqlite3_column_int64(q, E_AT),
        .code = sqlite3_column_int(q, E_CODE),
        .bytes = (uint64_t)sqlite3_column_int64(q, E_BYTES),
        .ms = sqlite3_column_double(q, E_MS),
        .project = keep(&t, gr_store_text(q, E_PROJECT)),
        .adapter = keep(&t, gr_store_text(q, E_ADAPTER)),
        .kind = keep(&t, gr_store_text(q, E_KIND)),
        .generation = keep(&t, gr_store_text(q, E_GENERATION)),
        .message = keep(&t, gr_store_text(q, E_MESSAGE)),
    };
    return true;
}

typedef struct event_task {
    gr_task task;
    const char *project, *adapter;
    size_t most;
    event_list *list;
} event_task;

static int events_run(graft_registry *r, gr_task *task, graft_error *err) {
    event_task *t = (event_task *)task;
    sqlite3_stmt *q;
    int rc = r->read_only ? 0 : gr_history_flush(r, err); /* what waits is newest */
    rc = rc ? rc
            : gr_store_query(&r->store, &q, err,
                             "SELECT at, code, bytes, ms, project, adapter, kind, generation, message FROM events"
                             " WHERE (?1='' OR project=?1) AND (?2='' OR adapter=?2) ORDER BY id DESC LIMIT ?3",
                             "ssi", t->project ? t->project : "", t->adapter ? t->adapter : "",
                             (int64_t)(t->most < INT32_MAX ? t->most : INT32_MAX));
    if (rc) {
        return rc;
    }
    while ((rc = gr_store_step(&r->store, q, err)) > 0) {
        if (!take_event(t->list, q)) {
            rc = gr_fail_memory(err, sizeof *t->list->items);
            break;
        }
    }
    sqlite3_finalize(q);
    return rc;
}

int gr_registry_event_list(graft_event_list **out, gr_registry *r, const char *project, const char *adapter, size_t most,
                           graft_error *err) {
    int rc = check_names(project, adapter, err);
    if (rc) {
        return rc;
    }
    event_task t = {.task = {.run = events_run}, .project = project, .adapter = adapter, .most = most};
    t.list = gr_zalloc(sizeof *t.list);
    if (!t.list) {
        return gr_fail_memory(err, sizeof *t.list);
    }
    rc = gr_writer_do(r, &t.task, err);
    if (rc) {
        graft_event_list_free(&t.list->list);
        return rc;
    }
    t.list->list = (graft_event_list){t.list->items, t.list->n};
    *out = &t.list->list;
    return 0;
}
