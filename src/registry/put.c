/* Changes. Each is a task: its statements and allocations on the writer thread inside a transaction, and after the
 * commit a step in memory that cannot fail. So what failed changed nothing, and what is in memory is on disk. */
#include "put.h"

#include "base/file.h"
#include "base/memory.h"
#include "registry/names.h"
#include "registry/registry.h"

#include <string.h>

static int no_project(const char *project, graft_error *err) {
    return gr_fail(err, GRAFT_E_NOT_FOUND, "there is no project \"%s\"", project);
}

static int no_adapter(const char *project, const char *adapter, graft_error *err) {
    return gr_fail(err, GRAFT_E_NOT_FOUND, "project \"%s\" has no adapter \"%s\"", project, adapter);
}

/* ---- projects ------------------------------------------------------------------------------------------- */

/* The statement and the object, unlinked. The caller reserved its place. */
static int prepare_project(graft_registry *r, gr_project **out, const char *name, graft_error *err) {
    int64_t now = gr_wall_seconds();
    int rc = gr_store_run(&r->store, err, "INSERT INTO projects (name, created, changed) VALUES (?1,?2,?2)", "si", name, now);
    if (rc) {
        return rc;
    }
    gr_project *p = gr_project_new(name);
    if (!p) {
        return gr_fail_memory(err, sizeof *p);
    }
    p->id = sqlite3_last_insert_rowid(r->store.db);
    p->created = p->changed = now;
    *out = p;
    return 0;
}

typedef struct project_task {
    gr_task task;
    const char *name, *to;
    char *new_name;       /* rename: then the old one */
    char *adapters;       /* rename: their names, each with its NUL, and one more NUL; for the caller to free */
    gr_project *project;  /* add: until it is inserted; remove: once it is taken out; to be freed by the caller */
} project_task;

static int add_run(graft_registry *r, gr_task *task, graft_error *err) {
    project_task *t = (project_task *)task;
    if (gr_index_project(&r->index, t->name)) {
        return gr_fail(err, GRAFT_E_CONFLICT, "there is a project \"%s\" already", t->name);
    }
    if (!gr_index_reserve(&r->index, 1)) {
        return gr_fail_memory(err, sizeof *t->project);
    }
    return prepare_project(r, &t->project, t->name, err);
}

static void add_apply(graft_registry *r, gr_task *task) {
    project_task *t = (project_task *)task;
    gr_index_insert_project(&r->index, t->project);
    t->project = NULL;
}

int gr_registry_project_add(gr_registry *r, const char *project, graft_error *err) {
    int rc = gr_name_check(project, "project", err);
    if (rc) {
        return rc;
    }
    project_task t = {.task = {.run = add_run, .apply = add_apply, .writes = true}, .name = project};
    rc = gr_writer_do(r, &t.task, err);
    gr_project_free(t.project);
    return rc;
}

/* The names of its adapters at this moment, for telling once they are out of reach under it. NULL if memory is out. */
static char *names_of(const gr_project *p) {
    size_t room = 1;
    for (size_t i = 0; i < p->n; i++) {
        room += strlen(p->rows[i]->name) + 1;
    }
    char *names = gr_zalloc(room), *at = names;
    for (size_t i = 0; names && i < p->n; i++) {
        at = strcpy(at, p->rows[i]->name) + strlen(p->rows[i]->name) + 1;
    }
    return names;
}

static int rename_run(graft_registry *r, gr_task *task, graft_error *err) {
    project_task *t = (project_task *)task;
    const gr_project *p = gr_index_project(&r->index, t->name);
    if (!p) {
        return no_project(t->name, err);
    }
    if (gr_index_project(&r->index, t->to)) {
        return gr_fail(err, GRAFT_E_CONFLICT, "there is a project \"%s\" already", t->to);
    }
    t->new_name = gr_strdup(t->to);
    t->adapters = names_of(p);
    if (!t->new_name || !t->adapters) {
        return gr_fail_memory(err, strlen(t->to) + 1);
    }
    return gr_store_run(&r->store, err, "UPDATE projects SET name=?1, changed=?2 WHERE id=?3", "sii", t->to,
                        gr_wall_seconds(), p->id);
}

static void rename_apply(graft_registry *r, gr_task *task) {
    project_task *t = (project_task *)task;
    gr_project *p = gr_index_project(&r->index, t->name);
    p->changed = gr_wall_seconds();
    t->new_name = gr_index_rename(&r->index, p, t->new_name);
}

int gr_registry_project_rename(gr_registry *r, const char *from, const char *to, graft_error *err) {
    int rc = gr_name_check(from, "project", err);
    rc = rc ? rc : gr_name_check(to, "project", err);
    if (rc) {
        return rc;
    }
    project_task t = {.task = {.run = rename_run, .apply = rename_apply, .writes = true}, .name = from, .to = to};
    rc = gr_writer_do(r, &t.task, err);
    for (const char *a = t.adapters; !rc && *a; a += strlen(a) + 1) {
        gr_registry_tell(r, GR_REGISTRY_REMOVED, from, a);
    }
    gr_free(t.adapters);
    gr_free(t.new_name);
    return rc;
}

static int remove_run(graft_registry *r, gr_task *task, graft_error *err) {
    project_task *t = (project_task *)task;
    const gr_project *p = gr_index_project(&r->index, t->name);
    return p ? gr_store_run(&r->store, err, "DELETE FROM projects WHERE id=?1", "i", p->id) : no_project(t->name, err);
}

static void remove_apply(graft_registry *r, gr_task *task) {
    project_task *t = (project_task *)task;
    t->project = gr_index_project(&r->index, t->name);
    gr_index_take_project(&r->index, t->project);
}

int gr_registry_project_remove(gr_registry *r, const char *project, graft_error *err) {
    int rc = gr_name_check(project, "project", err);
    if (rc) {
        return rc;
    }
    project_task t = {.task = {.run = remove_run, .apply = remove_apply, .writes = true}, .name = project};
    rc = gr_writer_do(r, &t.task, err);
    for (size_t i = 0; !rc && i < t.project->n; i++) {
        gr_registry_tell(r, GR_REGISTRY_REMOVED, project, t.project->rows[i]->name);
    }
    gr_project_free(t.project);
    return rc;
}

/* ---- registering ---------------------------------------------------------------------------------------- */

/* Whether the row stands for exactly what was found. */
static bool same(graft_registry *r, const gr_row *row, const gr_put *put) {
    char generation[65];
    gr_mutex_lock(&r->index.mutex);
    gr_generation_get(row, generation);
    gr_mutex_unlock(&r->index.mutex);
    return strcmp(row->path, put->found.path) == 0 &&
           (put->flags & GR_PUT_SCAN || strcmp(generation, put->found.generation) == 0);
}

static int conflict(const gr_row *row, const gr_put *put, graft_error *err) {
    char q[GR_QUOTE_SIZE];
    size_t n = strlen(row->path);
    return gr_fail(err, GRAFT_E_CONFLICT, "%s/%s stands for %s %s already", put->project, put->adapter,
                   strcmp(row->path, put->found.path) == 0 ? "other content of" : "what is at",
                   gr_quote(q, n > 64 ? row->path + n - 64 : row->path, n > 64 ? 64 : n));
}

/* What to do with one: sets put->row (NULL: a new one) and put->outcome, or refuses. */
static int decide(graft_registry *r, gr_put *put, gr_project **project, graft_error *err) {
    *project = gr_index_project(&r->index, put->project);
    if (!*project && !(put->flags & (GRAFT_ADD_PROJECT | GRAFT_ADD_NEW_PROJECT))) {
        return no_project(put->project, err);
    }
    if (*project && put->flags & GRAFT_ADD_NEW_PROJECT) {
        return gr_fail(err, GRAFT_E_CONFLICT, "there is a project \"%s\" already", put->project);
    }
    put->row = *project ? gr_index_row(*project, put->adapter) : NULL;
    put->outcome = put->row ? GR_PUT_UPDATED : GR_PUT_ADDED;
    if (!put->row) {
        return put->flags & GR_PUT_RELOAD ? no_adapter(put->project, put->adapter, err) : 0;
    }
    if (put->flags & GRAFT_ADD_REPLACE) {
        return 0;
    }
    if (put->flags & GR_PUT_RELOAD && strcmp(put->row->path, put->found.path) == 0) {
        return 0;
    }
    if (!same(r, put->row, put)) {
        return conflict(put->row, put, err);
    }
    put->outcome = GR_PUT_SAME;
    return 0;
}

static graft_registered_state state_of(const gr_put *put) {
    return put->broken.code == 0                                ? GRAFT_REGISTERED
           : put->broken.code == GRAFT_E_ADAPTER_FILE_MISSING ? GRAFT_REGISTERED_MISSING
                                                              : GRAFT_REGISTERED_FAILED;
}

static int insert(graft_registry *r, gr_put *put, gr_project *project, graft_error *err) {
    int64_t now = gr_wall_seconds();
    const gr_examined *f = &put->found;
    int rc = gr_store_run(&r->store, err,
                          "INSERT INTO adapters (project, name, path, generation, format, rank, file_bytes, bytes, base, state,"
                          " error_code, error, pinned, created, changed) VALUES (?1,?2,?3,?4,?5,?6,?7,0,'',?8,?9,?10,0,?11,?11)",
                          "issssiisisi", project->id, put->adapter, f->path, f->generation, f->format, (int64_t)f->rank,
                          (int64_t)f->file_bytes, graft_registered_state_name(state_of(put)), (int64_t)put->broken.code,
                          put->error ? put->error : "", now);
    if (rc) {
        return rc;
    }
    put->new_row = gr_project_reserve(&r->index, project) ? gr_row_new(put->adapter, f->path) : NULL;
    if (!put->new_row) {
        return gr_fail_memory(err, sizeof *put->new_row);
    }
    put->new_row->id = sqlite3_last_insert_rowid(r->store.db);
    put->new_row->project = project;
    put->new_row->created = now;
    return 0;
}

static int update(graft_registry *r, gr_put *put, graft_error *err) {
    const gr_examined *f = &put->found;
    return gr_store_run(&r->store, err,
                        "UPDATE adapters SET path=?1, generation=?2, format=?3, rank=?4, file_bytes=?5, state=?6, error_code=?7,"
                        " error=?8, changed=?9 WHERE id=?10",
                        "sssiisisii", f->path, f->generation, f->format, (int64_t)f->rank, (int64_t)f->file_bytes,
                        graft_registered_state_name(state_of(put)), (int64_t)put->broken.code, put->error ? put->error : "",
                        gr_wall_seconds(), put->row->id);
}

static int put_one(graft_registry *r, gr_put *put, graft_error *err) {
    gr_project *project;
    if (decide(r, put, &project, &put->refused)) {
        return 0; /* this one only */
    }
    put->refused.code = 0;
    if (put->broken.code && !(put->error = gr_strdup(put->broken.message))) {
        return gr_fail_memory(err, sizeof put->broken.message);
    }
    if (put->outcome == GR_PUT_SAME) {
        return 0;
    }
    int rc = 0;
    if (!project) {
        rc = prepare_project(r, &put->new_project, put->project, err);
        project = put->new_project;
    }
    return rc ? rc : put->row ? update(r, put, err) : insert(r, put, project, err);
}

typedef struct put_task {
    gr_task task;
    gr_put *puts;
    size_t n;
} put_task;

static int put_run(graft_registry *r, gr_task *task, graft_error *err) {
    put_task *t = (put_task *)task;
    int rc = gr_index_reserve(&r->index, t->n) ? 0 : gr_fail_memory(err, t->n * sizeof(gr_project *));
    for (size_t i = 0; i < t->n && !rc; i++) {
        rc = put_one(r, &t->puts[i], err);
    }
    return rc;
}

/* The mutex is held. The row becomes what was found; what it no longer needs is left in the put, for the caller to free. */
static void put_apply_one(graft_registry *r, gr_put *put) {
    gr_row *row = put->row ? put->row : put->new_row;
    char before[65];
    gr_generation_get(row, before);
    if (put->new_project) {
        gr_index_insert_project(&r->index, put->new_project);
        put->new_project = NULL;
    }
    if (put->new_row) {
        gr_index_insert_row(&r->index, row->project, row);
        put->new_row = NULL;
    }
    char *path = row->path, *error = row->error;
    row->path = put->found.path;
    row->error = put->error;
    put->found.path = path;
    put->error = error;
    put->changed = strcmp(before, put->found.generation) != 0;
    put->moved = strcmp(path, row->path) != 0;
    gr_generation_set(row, put->found.generation);
    row->format = (uint8_t)gr_format_of(put->found.format);
    row->rank = put->found.rank;
    row->file_bytes = put->found.file_bytes;
    row->state = (uint8_t)state_of(put);
    row->error_code = put->broken.code;
    row->changed = gr_wall_seconds();
    row->revision = ++r->index.next_revision;
}

/* A scan found what was known: only whether it can be loaded may be news, and is written with the history, as all such. */
static void put_rescan(graft_registry *r, gr_put *put) {
    gr_row *row = put->row;
    bool was_bad = row->state != GRAFT_REGISTERED && row->state != GRAFT_REGISTERED_READY &&
                   row->state != GRAFT_REGISTERED_CHANGED;
    if (!put->broken.code && !was_bad) {
        return;
    }
    row->state = (uint8_t)state_of(put);
    row->error_code = put->broken.code;
    char *error = row->error;
    row->error = put->error;
    put->error = error;
    gr_index_mark(&r->index, row);
}

static void put_apply(graft_registry *r, gr_task *task) {
    put_task *t = (put_task *)task;
    for (size_t i = 0; i < t->n; i++) {
        gr_put *put = &t->puts[i];
        if (put->refused.code) {
            continue;
        }
        if (put->outcome != GR_PUT_SAME) {
            put_apply_one(r, put);
        } else if (put->flags & GR_PUT_SCAN) {
            put_rescan(r, put);
        }
    }
}

int gr_put_all(graft_registry *r, gr_put *puts, size_t n, graft_error *err) {
    put_task t = {.task = {.run = put_run, .apply = put_apply, .writes = true}, .puts = puts, .n = n};
    int rc = gr_writer_do(r, &t.task, err);
    for (size_t i = 0; i < n; i++) {
        gr_project_free(puts[i].new_project);
        gr_row_free(puts[i].new_row);
        gr_free(puts[i].error);
        puts[i].new_project = NULL;
        puts[i].new_row = NULL;
        puts[i].error = NULL;
    }
    return rc;
}

static int check_names(const char *project, const char *adapter, graft_error *err) {
    int rc = gr_name_check(project, "project", err);
    return rc ? rc : gr_name_check(adapter, "adapter", err);
}

/* Refusals that need no look at the files come first: they are the cheap ones. */
static int check_open(const graft_registry *r, graft_error *err) {
    return r->read_only ? gr_fail(err, GRAFT_E_REGISTRY_BUSY, "the registry was opened for reading only") : 0;
}

/* The narrower of the two: NULL is the widest. False if neither lies within the other: nothing can be below both. */
static bool narrower(const char **out, const char *a, const char *b) {
    *out = !a || (b && gr_path_below(b, a)) ? b : a;
    return !a || !b || gr_path_below(a, b) || gr_path_below(b, a);
}

static int examine(gr_registry *r, gr_examined *out, const char *path, const char *below, graft_error *err) {
    const char *root;
    if (!narrower(&root, r->root, below)) {
        return gr_fail(err, GRAFT_E_OUTSIDE_ROOT, "adapters may not come from there");
    }
    return gr_examine(out, path, root, r->max_adapter_bytes, true, err);
}

static int put_examined(gr_registry *r, const char *project, const char *adapter, const char *path, const char *below,
                        unsigned flags, bool *changed, graft_error *err) {
    gr_put put = {.project = project, .adapter = adapter, .flags = flags};
    int rc = check_open(r, err);
    rc = rc ? rc : examine(r, &put.found, path, below, err);
    rc = rc ? rc : gr_put_all(r, &put, 1, err);
    if (!rc && put.refused.code) {
        rc = put.refused.code;
        if (err) {
            *err = put.refused;
        }
    }
    if (!rc && changed) {
        *changed = put.changed;
    }
    if (!rc && put.outcome == GR_PUT_UPDATED && (put.changed || put.moved)) {
        gr_registry_tell(r, GR_REGISTRY_CHANGED, project, adapter);
    }
    gr_examined_finish(&put.found);
    return rc;
}

int gr_registry_adapter_add_below(gr_registry *r, const char *below, const char *project, const char *adapter, const char *path,
                                  unsigned flags, graft_error *err) {
    adapter = adapter ? adapter : GR_DEFAULT_ADAPTER;
    int rc = check_names(project, adapter, err);
    return rc ? rc : put_examined(r, project, adapter, path, below, flags, NULL, err);
}

int gr_registry_adapter_add(gr_registry *r, const char *project, const char *adapter, const char *path, unsigned flags,
                            graft_error *err) {
    return gr_registry_adapter_add_below(r, NULL, project, adapter, path, flags, err);
}

int gr_registry_adapter_reload(gr_registry *r, const char *project, const char *adapter, bool *changed, graft_error *err) {
    adapter = adapter ? adapter : GR_DEFAULT_ADAPTER;
    int rc = check_names(project, adapter, err);
    if (rc) {
        return rc;
    }
    gr_catalog c = gr_registry_catalog(r);
    gr_catalog_entry entry;
    rc = c.find(c.self, project, adapter, true, &entry, err);
    if (!rc) {
        rc = put_examined(r, project, adapter, entry.path, NULL, GR_PUT_RELOAD, changed, err);
        gr_free(entry.path);
    }
    return rc;
}

/* ---- removing, pinning ---------------------------------------------------------------------------------- */

typedef struct row_task {
    gr_task task;
    const char *project, *adapter;
    bool pinned;
    gr_row *row; /* remove: once it is taken out, for the caller to free */
} row_task;

static int find_row(graft_registry *r, const row_task *t, gr_row **out, graft_error *err) {
    const gr_project *p = gr_index_project(&r->index, t->project);
    if (!p) {
        return no_project(t->project, err);
    }
    *out = gr_index_row(p, t->adapter);
    return *out ? 0 : no_adapter(t->project, t->adapter, err);
}

static int take_run(graft_registry *r, gr_task *task, graft_error *err) {
    gr_row *row;
    int rc = find_row(r, (row_task *)task, &row, err);
    return rc ? rc : gr_store_run(&r->store, err, "DELETE FROM adapters WHERE id=?1", "i", row->id);
}

static void take_apply(graft_registry *r, gr_task *task) {
    row_task *t = (row_task *)task;
    find_row(r, t, &t->row, NULL);
    gr_index_take_row(&r->index, t->row);
}

int gr_registry_adapter_remove(gr_registry *r, const char *project, const char *adapter, graft_error *err) {
    row_task t = {.task = {.run = take_run, .apply = take_apply, .writes = true}, .project = project,
                  .adapter = adapter ? adapter : GR_DEFAULT_ADAPTER};
    int rc = check_names(t.project, t.adapter, err);
    rc = rc ? rc : gr_writer_do(r, &t.task, err);
    if (!rc) {
        gr_registry_tell(r, GR_REGISTRY_REMOVED, t.project, t.adapter);
    }
    gr_row_free(t.row);
    return rc;
}

static int pin_run(graft_registry *r, gr_task *task, graft_error *err) {
    row_task *t = (row_task *)task;
    gr_row *row;
    int rc = find_row(r, t, &row, err);
    return rc ? rc : gr_store_run(&r->store, err, "UPDATE adapters SET pinned=?1 WHERE id=?2", "ii", (int64_t)t->pinned, row->id);
}

static void pin_apply(graft_registry *r, gr_task *task) {
    row_task *t = (row_task *)task;
    gr_row *row;
    if (find_row(r, t, &row, NULL) == 0) {
        row->pinned = t->pinned;
    }
}

int gr_registry_adapter_pin(gr_registry *r, const char *project, const char *adapter, bool pinned, graft_error *err) {
    row_task t = {.task = {.run = pin_run, .apply = pin_apply, .writes = true}, .project = project,
                  .adapter = adapter ? adapter : GR_DEFAULT_ADAPTER, .pinned = pinned};
    int rc = check_names(t.project, t.adapter, err);
    rc = rc ? rc : gr_writer_do(r, &t.task, err);
    if (!rc) {
        gr_registry_tell(r, pinned ? GR_REGISTRY_PINNED : GR_REGISTRY_UNPINNED, t.project, t.adapter);
    }
    return rc;
}
