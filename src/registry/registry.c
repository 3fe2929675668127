#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* realpath */
#endif
#include "registry.h"

#include "base/memory.h"
#include "model/sha256.h"
#include "registry/names.h"
#include "registry/state.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- opening and closing -------------------------------------------------------------------------------- */

int gr_registry_lock(gr_lock *out, const char *path, int wait_ms, graft_error *err) {
    size_t room = strlen(path) + sizeof ".lock";
    char *lock = gr_alloc(room);
    if (!lock) {
        return gr_fail_memory(err, room);
    }
    snprintf(lock, room, "%s.lock", path);
    int rc = gr_lock_take(out, lock, (int64_t)wait_ms * 1000, err);
    gr_free(lock);
    return rc;
}

const char *gr_registry_root(const gr_registry *r) {
    return r ? r->root : NULL;
}

static int resolve_root(gr_registry *r, const char *root, graft_error *err) {
    char q[GR_QUOTE_SIZE], real[PATH_MAX];
    if (!root) {
        return 0;
    }
    if (!realpath(root, real)) {
        return gr_fail(err, GRAFT_E_NOT_READABLE, "adapters' folder %s: %s", gr_quote(q, root, strlen(root)), strerror(errno));
    }
    r->root = gr_strdup(real);
    return r->root ? 0 : gr_fail_memory(err, strlen(real) + 1);
}

static int open_all(gr_registry *r, const graft_registry_options *o, graft_error *err) {
    char *path = NULL;
    int rc = resolve_root(r, o->root, err);
    rc = rc ? rc : gr_store_resolve(&path, o->path, err);
    if (rc) {
        return rc;
    }
    if (!o->read_only && (rc = gr_registry_lock(&r->lock, path, o->wait_ms, err)) != 0) {
        gr_free(path);
        return rc;
    }
    rc = gr_store_open(&r->store, path, o->read_only, o->wait_ms, err);
    rc = rc ? rc : gr_registry_load(r, err);
    if (rc == GRAFT_E_REGISTRY_INVALID && gr_store_resolve(&path, o->path, NULL) == 0) {
        gr_backup_mention(path, r->store.not_ours, err);
        gr_free(path);
    }
    return rc ? rc : gr_writer_start(r, err);
}

int gr_registry_open(gr_registry **out, const graft_registry_options *o, graft_error *err) {
    gr_registry *r = gr_zalloc(sizeof *r);
    if (!r) {
        return gr_fail_memory(err, sizeof *r);
    }
    r->lock.fd = -1;
    r->log = (gr_log){o->log, o->log_user};
    r->read_only = o->read_only;
    r->max_adapter_bytes = o->max_adapter_bytes;
    r->pid = getpid();
    r->base = "";
    gr_index_init(&r->index);
    gr_cond_init(&r->work);
    gr_cond_init(&r->ended);
    gr_cond_init(&r->told);
    int rc = open_all(r, o, err);
    if (rc) {
        gr_registry_close(r);
        return rc;
    }
    *out = r;
    return 0;
}

void gr_registry_close(gr_registry *r) {
    if (!r) {
        return;
    }
    gr_writer_stop(r);
    gr_store_close(&r->store);
    gr_lock_give(&r->lock); /* last: whoever takes it now finds the file at rest */
    gr_history_free_notes(r->notes);
    gr_cond_finish(&r->told);
    gr_cond_finish(&r->ended);
    gr_cond_finish(&r->work);
    gr_keys_finish(&r->keys);
    gr_index_finish(&r->index);
    gr_free(r->root);
    gr_free(r);
}

/* ---- the catalog ---------------------------------------------------------------------------------------- */

static int find(void *self, const char *project, const char *adapter, bool with_path, gr_catalog_entry *out, graft_error *err) {
    gr_registry *r = self;
    int rc = gr_name_check(project, "project", err);
    rc = rc ? rc : gr_name_check(adapter, "adapter", err);
    if (rc) {
        return rc;
    }
    gr_catalog_entry e = {0};
    gr_mutex_lock(&r->index.mutex);
    const gr_project *p = gr_index_project(&r->index, project);
    const gr_row *row = p ? gr_index_row(p, adapter) : NULL;
    if (row) {
        strcpy(e.project, p->name); /* valid names fit */
        strcpy(e.adapter, row->name);
        gr_generation_get(row, e.generation);
        e.revision = row->revision;
        e.pinned = row->pinned;
        e.path = with_path ? gr_strdup(row->path) : NULL;
    }
    gr_mutex_unlock(&r->index.mutex);
    if (!row) {
        return p ? gr_fail(err, GRAFT_E_NOT_FOUND, "project \"%s\" has no adapter \"%s\"", project, adapter)
                 : gr_fail(err, GRAFT_E_NOT_FOUND, "there is no project \"%s\"", project);
    }
    if (with_path && !e.path) {
        return gr_fail_memory(err, PATH_MAX);
    }
    *out = e;
    return 0;
}

gr_catalog gr_registry_catalog(gr_registry *r) {
    return (gr_catalog){.find = find, .record = gr_history_record, .self = r};
}

int gr_registry_set_base(gr_registry *r, const uint8_t fingerprint[32], graft_error *err) {
    char hex[65];
    gr_sha256_hex(hex, fingerprint);
    gr_mutex_lock(&r->index.mutex);
    const char *base = gr_index_base(&r->index, hex);
    r->base = base ? base : r->base;
    gr_mutex_unlock(&r->index.mutex);
    return base ? 0 : gr_fail_memory(err, sizeof(gr_base_name));
}

static int flush_run(gr_registry *r, gr_task *task, graft_error *err) {
    (void)task;
    return gr_history_flush(r, err);
}

int gr_registry_flush(gr_registry *r, graft_error *err) {
    if (r->read_only) {
        return gr_fail(err, GRAFT_E_REGISTRY_BUSY, "the registry was opened for reading only");
    }
    gr_task task = {.run = flush_run};
    return gr_writer_do(r, &task, err);
}

/* ---- checking ------------------------------------------------------------------------------------------- */

typedef struct check_task {
    gr_task task;
    bool same;
} check_task;

/* One row of the file has its twin in memory. */
static bool same_row(gr_registry *r, sqlite3_stmt *q) {
    const gr_project *p = gr_index_project(&r->index, gr_store_text(q, 0));
    const gr_row *row = p ? gr_index_row(p, gr_store_text(q, 2)) : NULL;
    char generation[65] = "";
    if (row) {
        gr_generation_get(row, generation);
    }
    return row && p->id == sqlite3_column_int64(q, 1) && row->id == sqlite3_column_int64(q, 3) &&
           strcmp(row->path, gr_store_text(q, 4)) == 0 && strcmp(generation, gr_store_text(q, 5)) == 0 &&
           row->pinned == (sqlite3_column_int(q, 6) != 0) && row->file_bytes == (uint64_t)sqlite3_column_int64(q, 7) &&
           strcmp(graft_registered_state_name((graft_registered_state)row->state), gr_store_text(q, 8)) == 0 &&
           strcmp(row->error ? row->error : "", gr_store_text(q, 9)) == 0 &&
           (row->history ? row->history->requests : 0) == (uint64_t)sqlite3_column_int64(q, 10);
}

static int check_run(gr_registry *r, gr_task *task, graft_error *err) {
    check_task *t = (check_task *)task;
    sqlite3_stmt *q;
    size_t n = 0;
    int rc = r->read_only ? 0 : gr_history_flush(r, err);
    rc = rc ? rc
            : gr_store_query(&r->store, &q, err,
                             "SELECT p.name, p.id, a.name, a.id, a.path, a.generation, a.pinned, a.file_bytes, a.state, a.error,"
                             " coalesce(u.requests, 0) FROM adapters a JOIN projects p ON p.id = a.project"
                             " LEFT JOIN usage u ON u.adapter = a.id",
                             "");
    if (rc) {
        return rc;
    }
    t->same = true;
    while ((rc = gr_store_step(&r->store, q, err)) > 0) {
        t->same = t->same && same_row(r, q);
        n++;
    }
    sqlite3_finalize(q);
    bool keys = false;
    rc = rc ? rc : gr_keys_same(r, &keys, err);
    t->same = t->same && keys && n == r->index.n_rows;
    return rc;
}

bool gr_registry_check(gr_registry *r) {
    check_task t = {.task = {.run = check_run}};
    return gr_writer_do(r, &t.task, NULL) == 0 && t.same && gr_index_check(&r->index);
}
