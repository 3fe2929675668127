/*
 * What happened to adapters. Counters and the last known state are kept in the rows and written together once a second;
 * the log of events waits in a bounded list. Recording takes the index's mutex for a moment, and no more.
 */
#include "state.h"

#include "base/clock.h"
#include "base/memory.h"
#include "model/sha256.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

enum { FLUSH_US = 1000000, FLUSH_ROWS = 16, MAX_MESSAGE = sizeof((graft_error *)0)->message };

static const char *const kinds[] = {"loaded", "failed", "evicted", "unloaded", "fallback", "used"};

int64_t gr_wall_seconds(void) {
    return (int64_t)time(NULL);
}

/* ---- recording: any thread ------------------------------------------------------------------------------ */

static gr_note *make_note(const gr_event *e, int64_t now) {
    const char *message = e->message ? e->message : "";
    size_t length = strnlen(message, MAX_MESSAGE - 1);
    gr_note *n = gr_zalloc(sizeof *n + length + 1);
    if (n) {
        n->at = now;
        n->kind = e->kind;
        n->code = e->code;
        n->bytes = e->bytes;
        n->ms = e->ms;
        snprintf(n->generation, sizeof n->generation, "%s", e->generation ? e->generation : "");
        snprintf(n->project, sizeof n->project, "%s", e->project);
        snprintf(n->adapter, sizeof n->adapter, "%s", e->adapter);
        memcpy(n->message, message, length);
    }
    return n;
}

void gr_history_free_notes(gr_note *notes) {
    while (notes) {
        gr_note *next = notes->next;
        gr_free(notes);
        notes = next;
    }
}

static bool hex_digit(uint8_t *out, char c) {
    *out = (uint8_t)(c <= '9' ? c - '0' : c - 'a' + 10);
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f');
}

bool gr_generation_set(gr_row *row, const char *hex) {
    uint8_t bytes[32];
    for (size_t i = 0; i < sizeof bytes; i++) {
        uint8_t high, low;
        if (!hex_digit(&high, hex[2 * i]) || !hex_digit(&low, hex[2 * i + 1])) {
            row->has_generation = false;
            return *hex == '\0';
        }
        bytes[i] = (uint8_t)(high << 4 | low);
    }
    memcpy(row->generation, bytes, sizeof bytes);
    row->has_generation = true;
    return hex[64] == '\0';
}

void gr_generation_get(const gr_row *row, char out[65]) {
    if (row->has_generation) {
        gr_sha256_hex(out, row->generation);
    } else {
        out[0] = '\0';
    }
}

/* Failures that say something about the files, and not about the moment. */
static bool state_after(graft_registered_state *out, int code) {
    switch (code) {
    case GRAFT_E_ADAPTER_FILE_MISSING: *out = GRAFT_REGISTERED_MISSING; return true;
    case GRAFT_E_CHANGED_ON_DISK: *out = GRAFT_REGISTERED_CHANGED; return true;
    case GRAFT_E_OUT_OF_MEMORY:
    case GRAFT_E_IO_ERROR:
    case GRAFT_E_INTERNAL:
    case GRAFT_E_CANCELLED:
    case GRAFT_E_SHUTTING_DOWN:
    case GRAFT_E_CHANGED_WHILE_READING:
    case GRAFT_E_BUSY:
    case GRAFT_E_LARGER_THAN_BUDGET:
    case GRAFT_E_BUDGET_EXHAUSTED:
    case GRAFT_E_DEADLINE: return false;
    }
    *out = GRAFT_REGISTERED_FAILED;
    return true;
}

static void now_loaded(graft_registry *r, gr_row *row, const gr_event *e, int64_t now) {
    char before[65];
    gr_generation_get(row, before);
    if (e->generation && !e->stale && strcmp(before, e->generation) != 0) {
        gr_generation_set(row, e->generation);
        row->changed = before[0] ? now : row->changed;
    }
    if (gr_format_of(e->format)) {
        row->format = (uint8_t)gr_format_of(e->format);
    }
    row->rank = e->rank ? e->rank : row->rank;
    row->bytes = e->bytes;
    row->base = r->base;
    row->state = GRAFT_REGISTERED_READY;
    row->error_code = 0;
}

/* The mutex is held. *error is swapped with the row's text where that changes. */
static void update(graft_registry *r, gr_row *row, const gr_event *e, int64_t now, char **error) {
    /* A load that began before the name came to point elsewhere says nothing about where it points now. */
    bool current = e->revision == 0 || e->revision == row->revision;
    graft_registered_state state;
    if (e->kind == GR_EVENT_LOADED && current) {
        now_loaded(r, row, e, now);
    } else if (e->kind == GR_EVENT_FAILED && current && state_after(&state, e->code)) {
        row->state = (uint8_t)state;
        row->error_code = e->code;
    } else {
        return;
    }
    char *old = row->error;
    row->error = *error;
    *error = old;
}

static void count(gr_row *row, const gr_event *e, int64_t now) {
    if (!row->history && !(row->history = gr_zalloc(sizeof *row->history))) {
        return;
    }
    graft_history *h = row->history;
    switch (e->kind) {
    case GR_EVENT_LOADED:
        h->loads++;
        h->load_ms += e->ms;
        h->last_loaded = now;
        break;
    case GR_EVENT_FAILED: h->failures++; break;
    case GR_EVENT_EVICTED: h->evictions++; break;
    case GR_EVENT_UNLOADED: h->unloads++; break;
    case GR_EVENT_FALLBACK: h->fallbacks++; break;
    case GR_EVENT_USED:
        h->requests++;
        h->tokens += e->tokens;
        h->last_used = now;
        break;
    }
}

/* The mutex is held. False: there is no room for it. */
static bool add_note(graft_registry *r, gr_note *n) {
    if (!n || r->n_notes >= GR_NOTES) {
        r->lost_notes++;
        return false;
    }
    if (r->last_note) {
        r->last_note->next = n;
    } else {
        r->notes = n;
    }
    r->last_note = n;
    r->n_notes++;
    return true;
}

void gr_history_record(void *registry, const gr_event *e) {
    graft_registry *r = registry;
    int64_t now = gr_wall_seconds();
    bool noted = e->kind != GR_EVENT_USED && !r->read_only;
    gr_note *note = noted ? make_note(e, now) : NULL;
    char *error = e->kind == GR_EVENT_FAILED && e->message ? gr_strndup(e->message, strnlen(e->message, MAX_MESSAGE - 1)) : NULL;

    gr_mutex_lock(&r->index.mutex);
    const gr_project *p = gr_index_project(&r->index, e->project);
    gr_row *row = p ? gr_index_row(p, e->adapter) : NULL;
    if (row) {
        update(r, row, e, now, &error);
        count(row, e, now);
        gr_index_mark(&r->index, row);
    }
    if (noted && add_note(r, note)) {
        note = NULL;
    }
    if (!r->flush_at && !r->read_only) {
        r->flush_at = gr_now_us() + FLUSH_US;
        gr_cond_signal(&r->work);
    }
    gr_mutex_unlock(&r->index.mutex);
    gr_free(note);
    gr_free(error);
}

/* ---- flushing: the writer thread ------------------------------------------------------------------------ */

/* A row's news, copied so that no statement runs with the mutex held. */
typedef struct flushed {
    gr_row *row; /* stays: only this thread removes rows */
    graft_history history;
    const char *base;
    uint64_t bytes;
    int64_t changed;
    int rank, error_code, state, format;
    char generation[65];
    char error[MAX_MESSAGE];
} flushed;

static void copy_row(flushed *f, gr_row *row) {
    *f = (flushed){
        .row = row,
        .base = row->base,
        .bytes = row->bytes,
        .changed = row->changed,
        .rank = row->rank,
        .error_code = row->error_code,
        .state = row->state,
        .format = row->format,
    };
    if (row->history) {
        f->history = *row->history;
    }
    gr_generation_get(row, f->generation);
    snprintf(f->error, sizeof f->error, "%s", row->error ? row->error : "");
}

static int write_row(gr_store *s, const flushed *f, graft_error *err) {
    int rc = gr_store_run(s, err,
                          "UPDATE adapters SET generation=?1, format=?2, rank=?3, bytes=?4, base=?5, state=?6, error_code=?7,"
                          " error=?8, changed=?9 WHERE id=?10",
                          "ssiissisii", f->generation, gr_format_name(f->format), (int64_t)f->rank, (int64_t)f->bytes, f->base,
                          graft_registered_state_name((graft_registered_state)f->state), (int64_t)f->error_code, f->error,
                          f->changed, f->row->id);
    if (rc) {
        return rc;
    }
    const graft_history *h = &f->history;
    return gr_store_run(s, err, "INSERT OR REPLACE INTO usage VALUES (?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11)", "iiiiiiiidii",
                        f->row->id, (int64_t)h->requests, (int64_t)h->tokens, (int64_t)h->loads, (int64_t)h->failures,
                        (int64_t)h->evictions, (int64_t)h->unloads, (int64_t)h->fallbacks, h->load_ms, h->last_loaded,
                        h->last_used);
}

static int write_notes(gr_store *s, const gr_note *notes, graft_error *err) {
    int rc = 0;
    for (const gr_note *n = notes; n && !rc; n = n->next) {
        rc = gr_store_run(s, err,
                          "INSERT INTO events (at, project, adapter, kind, code, generation, bytes, ms, message)"
                          " VALUES (?1,?2,?3,?4,?5,?6,?7,?8,?9)",
                          "isssisids", n->at, n->project, n->adapter, kinds[n->kind], (int64_t)n->code, n->generation,
                          (int64_t)n->bytes, n->ms, n->message);
    }
    if (!rc && notes) {
        rc = gr_store_run(s, err, "DELETE FROM events WHERE id <= (SELECT max(id) FROM events) - ?1", "i",
                          (int64_t)GR_EVENTS_KEPT);
    }
    return rc;
}

static int write_all(gr_store *s, const flushed *rows, size_t n, const gr_note *notes, graft_error *err) {
    int rc = gr_store_begin(s, err);
    if (rc) {
        return rc;
    }
    for (size_t i = 0; i < n && !rc; i++) {
        rc = write_row(s, &rows[i], err);
    }
    rc = rc ? rc : write_notes(s, notes, err);
    if (rc) {
        gr_store_rollback(s);
        return rc;
    }
    return gr_store_commit(s, err);
}

/* Back in front of what came meanwhile. The mutex is held. */
static void give_back(graft_registry *r, const flushed *rows, size_t n, gr_note *notes, gr_note *last, size_t n_notes) {
    for (size_t i = 0; i < n; i++) {
        gr_index_mark(&r->index, rows[i].row);
    }
    if (last) {
        last->next = r->notes;
        r->last_note = r->notes ? r->last_note : last;
        r->notes = notes;
        r->n_notes += n_notes;
    }
}

int gr_history_flush(graft_registry *r, graft_error *err) {
    flushed rows[FLUSH_ROWS];
    size_t n;
    gr_mutex *m = &r->index.mutex;
    do {
        n = 0;
        gr_mutex_lock(m);
        while (n < FLUSH_ROWS && r->index.dirty) {
            gr_row *row = r->index.dirty;
            r->index.dirty = row->dirty_next;
            row->dirty = false;
            copy_row(&rows[n++], row);
        }
        gr_note *notes = r->notes, *last = r->last_note;
        size_t n_notes = r->n_notes;
        r->notes = r->last_note = NULL;
        r->n_notes = 0;
        gr_mutex_unlock(m);
        if (n == 0 && !notes) {
            break;
        }
        int rc = write_all(&r->store, rows, n, notes, err);
        if (rc) {
            gr_mutex_lock(m);
            give_back(r, rows, n, notes, last, n_notes);
            gr_mutex_unlock(m);
            return rc;
        }
        gr_history_free_notes(notes);
    } while (n == FLUSH_ROWS);
    return 0;
}
