#include "index.h"

#include "base/memory.h"

#include <stdio.h>
#include <string.h>

static const char *const format_names[] = {"", "peft", "gguf", "mlx"};
static const char *const state_names[] = {"registered", "ready", "failed", "missing", "changed"};

const char *gr_format_name(int format) {
    return format_names[format];
}

int gr_format_of(const char *name) {
    for (int i = 1; name && i < (int)(sizeof format_names / sizeof *format_names); i++) {
        if (strcmp(name, format_names[i]) == 0) {
            return i;
        }
    }
    return 0;
}

const char *graft_registered_state_name(graft_registered_state s) {
    return (size_t)s < sizeof state_names / sizeof *state_names ? state_names[s] : "unknown";
}

bool gr_state_of(graft_registered_state *out, const char *name) {
    for (size_t i = 0; i < sizeof state_names / sizeof *state_names; i++) {
        if (strcmp(name, state_names[i]) == 0) {
            *out = (graft_registered_state)i;
            return true;
        }
    }
    return false;
}

/* ---- searching ------------------------------------------------------------------------------------------ */

/* The place of `name` among the projects: of the first that is not before it. */
static size_t place_of_project(const gr_index *x, const char *name) {
    size_t low = 0, high = x->n;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (strcmp(x->projects[middle]->name, name) < 0) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

static size_t place_of_row(const gr_project *p, const char *name) {
    size_t low = 0, high = p->n;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (strcmp(p->rows[middle]->name, name) < 0) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

gr_project *gr_index_project(const gr_index *x, const char *name) {
    size_t i = place_of_project(x, name);
    return i < x->n && strcmp(x->projects[i]->name, name) == 0 ? x->projects[i] : NULL;
}

gr_row *gr_index_row(const gr_project *p, const char *name) {
    size_t i = place_of_row(p, name);
    return i < p->n && strcmp(p->rows[i]->name, name) == 0 ? p->rows[i] : NULL;
}

/* ---- objects -------------------------------------------------------------------------------------------- */

gr_project *gr_project_new(const char *name) {
    gr_project *p = gr_zalloc(sizeof *p);
    if (p && !(p->name = gr_strdup(name))) {
        gr_free(p);
        return NULL;
    }
    return p;
}

gr_row *gr_row_new(const char *name, const char *path) {
    size_t length = strlen(name) + 1;
    gr_row *row = gr_zalloc(sizeof *row + length);
    if (!row) {
        return NULL;
    }
    memcpy(row->name, name, length);
    row->base = "";
    row->path = gr_strdup(path);
    if (!row->path) {
        gr_free(row);
        return NULL;
    }
    return row;
}

void gr_row_free(gr_row *row) {
    if (row) {
        gr_free(row->history);
        gr_free(row->error);
        gr_free(row->path);
        gr_free(row);
    }
}

void gr_project_free(gr_project *p) {
    if (p) {
        for (size_t i = 0; i < p->n; i++) {
            gr_row_free(p->rows[i]);
        }
        gr_free(p->rows);
        gr_free(p->name);
        gr_free(p);
    }
}

void gr_index_init(gr_index *x) {
    memset(x, 0, sizeof *x);
    gr_mutex_init(&x->mutex, GR_RANK_REGISTRY);
}

void gr_index_finish(gr_index *x) {
    for (size_t i = 0; i < x->n; i++) {
        gr_project_free(x->projects[i]);
    }
    gr_free(x->projects);
    for (gr_base_name *b = x->bases, *next; b; b = next) {
        next = b->next;
        gr_free(b);
    }
    gr_mutex_finish(&x->mutex);
}

/* ---- changing ------------------------------------------------------------------------------------------- */

/* A copy with room for more, or NULL. Nobody but the writer thread changes the array, so it is copied without the mutex
 * and only swapped under it. */
static void *grown(const void *array, size_t n, size_t capacity) {
    void *copy = gr_calloc(capacity, sizeof(void *));
    if (copy && n) {
        memcpy(copy, array, n * sizeof(void *));
    }
    return copy;
}

bool gr_index_reserve(gr_index *x, size_t more) {
    size_t capacity = x->capacity ? x->capacity : 16;
    while (capacity - x->n < more) {
        capacity *= 2;
    }
    if (capacity == x->capacity) {
        return true;
    }
    gr_project **old = x->projects, **projects = grown(old, x->n, capacity);
    if (!projects) {
        return false;
    }
    gr_mutex_lock(&x->mutex);
    x->projects = projects;
    x->capacity = capacity;
    gr_mutex_unlock(&x->mutex);
    gr_free(old);
    return true;
}

bool gr_project_reserve(gr_index *x, gr_project *p) {
    if (p->n < p->capacity) {
        return true;
    }
    size_t capacity = p->capacity ? p->capacity * 2 : 1; /* most projects have one adapter */
    gr_row **old = p->rows, **rows = grown(old, p->n, capacity);
    if (!rows) {
        return false;
    }
    gr_mutex_lock(&x->mutex);
    p->rows = rows;
    p->capacity = capacity;
    gr_mutex_unlock(&x->mutex);
    gr_free(old);
    return true;
}

void gr_index_insert_project(gr_index *x, gr_project *p) {
    size_t i = place_of_project(x, p->name);
    memmove(&x->projects[i + 1], &x->projects[i], (x->n - i) * sizeof *x->projects);
    x->projects[i] = p;
    x->n++;
}

void gr_index_insert_row(gr_index *x, gr_project *p, gr_row *row) {
    size_t i = place_of_row(p, row->name);
    memmove(&p->rows[i + 1], &p->rows[i], (p->n - i) * sizeof *p->rows);
    p->rows[i] = row;
    p->n++;
    row->project = p;
    x->n_rows++;
}

static void unmark(gr_index *x, gr_row *row) {
    if (!row->dirty) {
        return;
    }
    gr_row **at = &x->dirty;
    while (*at != row) {
        at = &(*at)->dirty_next;
    }
    *at = row->dirty_next;
    row->dirty = false;
}

void gr_index_take_row(gr_index *x, gr_row *row) {
    gr_project *p = row->project;
    size_t i = place_of_row(p, row->name);
    memmove(&p->rows[i], &p->rows[i + 1], (p->n - i - 1) * sizeof *p->rows);
    p->n--;
    x->n_rows--;
    unmark(x, row);
}

void gr_index_take_project(gr_index *x, gr_project *p) {
    size_t i = place_of_project(x, p->name);
    memmove(&x->projects[i], &x->projects[i + 1], (x->n - i - 1) * sizeof *x->projects);
    x->n--;
    x->n_rows -= p->n;
    for (size_t k = 0; k < p->n; k++) {
        unmark(x, p->rows[k]);
    }
}

char *gr_index_rename(gr_index *x, gr_project *p, char *name) {
    char *old = p->name;
    size_t i = place_of_project(x, old);
    memmove(&x->projects[i], &x->projects[i + 1], (x->n - i - 1) * sizeof *x->projects);
    x->n--;
    p->name = name;
    gr_index_insert_project(x, p);
    return old;
}

void gr_index_mark(gr_index *x, gr_row *row) {
    if (!row->dirty) {
        row->dirty = true;
        row->dirty_next = x->dirty;
        x->dirty = row;
    }
}

const char *gr_index_base(gr_index *x, const char *hex) {
    if (!*hex) {
        return "";
    }
    for (gr_base_name *b = x->bases; b; b = b->next) {
        if (strcmp(b->hex, hex) == 0) {
            return b->hex;
        }
    }
    gr_base_name *b = gr_zalloc(sizeof *b);
    if (!b) {
        return NULL;
    }
    snprintf(b->hex, sizeof b->hex, "%s", hex);
    b->next = x->bases;
    x->bases = b;
    return b->hex;
}

/* ---- checking ------------------------------------------------------------------------------------------- */

static bool check_project(const gr_project *p, size_t *n_dirty) {
    if (p->n > p->capacity) {
        return false;
    }
    for (size_t i = 0; i < p->n; i++) {
        const gr_row *row = p->rows[i];
        *n_dirty += row->dirty;
        if (row->project != p || !row->path || (i > 0 && strcmp(p->rows[i - 1]->name, row->name) >= 0)) {
            return false;
        }
    }
    return true;
}

bool gr_index_check(gr_index *x) {
    bool ok = true;
    size_t n_rows = 0, n_dirty = 0, listed = 0;
    gr_mutex_lock(&x->mutex);
    for (size_t i = 0; i < x->n && ok; i++) {
        n_rows += x->projects[i]->n;
        ok = check_project(x->projects[i], &n_dirty) && (i == 0 || strcmp(x->projects[i - 1]->name, x->projects[i]->name) < 0);
    }
    for (const gr_row *row = x->dirty; row && listed <= n_dirty; row = row->dirty_next) {
        listed++;
    }
    ok = ok && n_rows == x->n_rows && n_dirty == listed;
    gr_mutex_unlock(&x->mutex);
    return ok;
}
