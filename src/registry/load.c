/* Opening: the whole file into the index, each value checked, because anybody may have edited it. */
#include "state.h"

#include "base/memory.h"
#include "registry/names.h"

#include <string.h>

static int bad_row(const char *what, const char *name, graft_error *err) {
    char q[GR_QUOTE_SIZE];
    return gr_fail(err, GRAFT_E_REGISTRY_INVALID, "the registry holds %s that graft did not write: \"%s\"", what,
                   gr_quote(q, name, strlen(name)));
}

/* Rows come sorted, so each goes to the end; names of one kind cannot repeat (the table's UNIQUE). */
static int load_project(graft_registry *r, sqlite3_stmt *q, graft_error *err) {
    const char *name = gr_store_text(q, 1);
    if (!gr_name_valid(name, strlen(name))) {
        return bad_row("a project's name", name, err);
    }
    gr_project *p = gr_index_reserve(&r->index, 1) ? gr_project_new(name) : NULL;
    if (!p) {
        return gr_fail_memory(err, sizeof *p);
    }
    p->id = sqlite3_column_int64(q, 0);
    p->created = sqlite3_column_int64(q, 2);
    p->changed = sqlite3_column_int64(q, 3);
    gr_index_insert_project(&r->index, p);
    return 0;
}

enum {
    C_PROJECT, C_ID, C_NAME, C_PATH, C_GENERATION, C_FORMAT, C_RANK, C_FILE_BYTES, C_BYTES, C_BASE, C_STATE, C_ERROR_CODE,
    C_ERROR, C_PINNED, C_CREATED, C_CHANGED, C_REQUESTS, C_TOKENS, C_LOADS, C_FAILURES, C_EVICTIONS, C_UNLOADS, C_FALLBACKS,
    C_LOAD_MS, C_LAST_LOADED, C_LAST_USED
};

static const char select_adapters[] =
    "SELECT p.name, a.id, a.name, a.path, a.generation, a.format, a.rank, a.file_bytes, a.bytes, a.base, a.state,"
    " a.error_code, a.error, a.pinned, a.created, a.changed, u.requests, u.tokens, u.loads, u.failures, u.evictions, u.unloads,"
    " u.fallbacks, u.load_ms, u.last_loaded, u.last_used"
    " FROM adapters a JOIN projects p ON p.id = a.project LEFT JOIN usage u ON u.adapter = a.id ORDER BY p.name, a.name";

static uint64_t unsigned_column(sqlite3_stmt *q, int column) {
    int64_t value = sqlite3_column_int64(q, column);
    return value > 0 ? (uint64_t)value : 0;
}

static bool load_history(gr_row *row, sqlite3_stmt *q) {
    if (sqlite3_column_type(q, C_REQUESTS) == SQLITE_NULL) {
        return true;
    }
    graft_history *h = gr_zalloc(sizeof *h);
    if (!h) {
        return false;
    }
    *h = (graft_history){
        .requests = unsigned_column(q, C_REQUESTS),
        .tokens = unsigned_column(q, C_TOKENS),
        .loads = unsigned_column(q, C_LOADS),
        .failures = unsigned_column(q, C_FAILURES),
        .evictions = unsigned_column(q, C_EVICTIONS),
        .unloads = unsigned_column(q, C_UNLOADS),
        .fallbacks = unsigned_column(q, C_FALLBACKS),
        .load_ms = sqlite3_column_double(q, C_LOAD_MS),
        .last_loaded = sqlite3_column_int64(q, C_LAST_LOADED),
        .last_used = sqlite3_column_int64(q, C_LAST_USED),
    };
    row->history = h;
    return true;
}

static int fill_row(graft_registry *r, gr_row *row, sqlite3_stmt *q, graft_error *err) {
    graft_registered_state state;
    const char *error = gr_store_text(q, C_ERROR), *base = gr_store_text(q, C_BASE);
    if (!gr_generation_set(row, gr_store_text(q, C_GENERATION))) {
        return bad_row("a generation", gr_store_text(q, C_GENERATION), err);
    }
    if (!gr_state_of(&state, gr_store_text(q, C_STATE))) {
        return bad_row("a state", gr_store_text(q, C_STATE), err);
    }
    if (*row->path != '/') {
        return bad_row("a path", row->path, err);
    }
    row->id = sqlite3_column_int64(q, C_ID);
    row->revision = ++r->index.next_revision;
    row->format = (uint8_t)gr_format_of(gr_store_text(q, C_FORMAT));
    row->rank = sqlite3_column_int(q, C_RANK);
    row->file_bytes = unsigned_column(q, C_FILE_BYTES);
    row->bytes = unsigned_column(q, C_BYTES);
    row->state = (uint8_t)state;
    row->error_code = sqlite3_column_int(q, C_ERROR_CODE);
    row->pinned = sqlite3_column_int(q, C_PINNED) != 0;
    row->created = sqlite3_column_int64(q, C_CREATED);
    row->changed = sqlite3_column_int64(q, C_CHANGED);
    row->base = gr_index_base(&r->index, strlen(base) == 64 ? base : "");
    row->error = *error ? gr_strdup(error) : NULL;
    if (!row->base || (*error && !row->error) || !load_history(row, q)) {
        return gr_fail_memory(err, strlen(error) + sizeof(graft_history));
    }
    return 0;
}

static int load_adapter(graft_registry *r, sqlite3_stmt *q, graft_error *err) {
    const char *name = gr_store_text(q, C_NAME);
    gr_project *p = gr_index_project(&r->index, gr_store_text(q, C_PROJECT));
    if (!p || !gr_name_valid(name, strlen(name))) {
        return bad_row("an adapter's name", name, err);
    }
    gr_row *row = gr_project_reserve(&r->index, p) ? gr_row_new(name, gr_store_text(q, C_PATH)) : NULL;
    if (!row) {
        return gr_fail_memory(err, sizeof *row);
    }
    int rc = fill_row(r, row, q, err);
    if (rc) {
        gr_row_free(row);
        return rc;
    }
    gr_index_insert_row(&r->index, p, row);
    return 0;
}

/* Calls `take` for each row of a query. */
static int each(graft_registry *r, const char *sql, int (*take)(graft_registry *, sqlite3_stmt *, graft_error *),
                graft_error *err) {
    sqlite3_stmt *q;
    int rc = gr_store_query(&r->store, &q, err, sql, "");
    if (rc) {
        return rc;
    }
    while ((rc = gr_store_step(&r->store, q, err)) > 0) {
        if ((rc = take(r, q, err)) != 0) {
            break;
        }
    }
    sqlite3_finalize(q);
    return rc;
}

int gr_registry_load(graft_registry *r, graft_error *err) {
    int rc = each(r, "SELECT id, name, created, changed FROM projects ORDER BY name", load_project, err);
    rc = rc ? rc : each(r, select_adapters, load_adapter, err);
    return rc ? rc : gr_keys_load(r, err);
}
