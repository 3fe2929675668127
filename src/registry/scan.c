/*
 * A folder of adapters, registered without reading weights. The walk is bounded in depth and in entries, goes through no
 * link (so it cannot run in circles), and sees each folder's names in order, so that two scans find the same.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* realpath, O_DIRECTORY, O_NOFOLLOW */
#endif
#include "registry.h"

#include "base/file.h"
#include "base/memory.h"
#include "model/source.h"
#include "registry/names.h"
#include "registry/put.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { BATCH = 64 /* finds per transaction: each costs a wait for the disk */ };

/* One find and what it is to become. */
typedef struct find {
    gr_put put;
    char *path; /* as the walk met it */
    char project[GR_NAME_MAX + 1], adapter[GR_NAME_MAX + 1];
    graft_error early; /* code 0, or why it will not even be tried: no name, outside, no adapter */
} find;

typedef struct scan {
    gr_registry *r;
    gr_scan_limits limits;
    const char *root; /* the folder, resolved: links must stay below it */
    graft_scan_fn fn;
    void *user;
    graft_scan_summary summary;
    find *batch;
    gr_put *puts; /* room for the batch's */
    size_t n;
    bool full; /* the limit on entries was met */
} scan;

/* ---- what was found ------------------------------------------------------------------------------------- */

static graft_scan_outcome outcome_of(const find *f, const graft_error **why) {
    static const graft_error none = {0};
    if (f->early.code) {
        *why = &f->early;
        return f->early.code == GRAFT_E_NOT_AN_ADAPTER ? GRAFT_SCAN_SKIPPED : GRAFT_SCAN_REFUSED;
    }
    if (f->put.refused.code) {
        *why = &f->put.refused;
        return GRAFT_SCAN_REFUSED;
    }
    *why = f->put.broken.code ? &f->put.broken : &none;
    return f->put.broken.code ? GRAFT_SCAN_BROKEN : f->put.outcome == GR_PUT_ADDED ? GRAFT_SCAN_ADDED : GRAFT_SCAN_KNOWN;
}

static void count(graft_scan_summary *s, graft_scan_outcome o) {
    size_t *counters[] = {&s->added, &s->known, &s->broken, &s->refused, &s->skipped};
    ++*counters[o];
}

const char *graft_scan_outcome_name(graft_scan_outcome o) {
    static const char *const names[] = {"added", "known", "broken", "refused", "skipped"};
    return (size_t)o < sizeof names / sizeof *names ? names[o] : "unknown";
}

static void clear(find *f) {
    gr_examined_finish(&f->put.found);
    gr_free(f->path);
    memset(f, 0, sizeof *f);
}

/* Registers the batch and tells of it. */
static int flush(scan *s, graft_error *err) {
    size_t which[BATCH], n = 0;
    for (size_t i = 0; i < s->n; i++) {
        if (!s->batch[i].early.code) {
            which[n] = i;
            s->puts[n++] = s->batch[i].put;
        }
    }
    int rc = n ? gr_put_all(s->r, s->puts, n, err) : 0;
    for (size_t i = 0; i < n; i++) {
        s->batch[which[i]].put = s->puts[i];
    }
    for (size_t i = 0; i < s->n; i++) {
        find *f = &s->batch[i];
        const graft_error *why;
        graft_scan_outcome outcome = outcome_of(f, &why);
        graft_scan_item item = {f->path, f->project, f->adapter, outcome, why->code, why->message};
        if (!rc) {
            count(&s->summary, outcome);
        }
        if (!rc && s->fn && !s->fn(&item, s->user)) {
            rc = gr_fail(err, GRAFT_E_CANCELLED, "the scan was stopped");
        }
        clear(f);
    }
    s->n = 0;
    return rc;
}

/* A batch holds each project once (put.h). */
static bool in_batch(const scan *s, const char *project) {
    for (size_t i = 0; i < s->n; i++) {
        if (strcmp(s->batch[i].project, project) == 0) {
            return true;
        }
    }
    return false;
}

/* Where the files really are decides before anything is opened. */
static void examine(scan *s, find *f) {
    const char *root = s->r->root && gr_path_below(s->r->root, s->root) ? s->r->root : s->root;
    graft_error why = {0};
    int rc = gr_examine(&f->put.found, f->path, root, s->r->max_adapter_bytes, false, &why);
    if (rc == GRAFT_E_NOT_AN_ADAPTER || rc == GRAFT_E_OUTSIDE_ROOT || rc == GRAFT_E_BAD_REQUEST || rc == GRAFT_E_OUT_OF_MEMORY) {
        f->early = why;
    } else if (rc) {
        f->put.broken = why;
    }
}

/* `project` and `adapter` as file names (adapter NULL: default). Takes over `path`. */
static int found(scan *s, char *path, const char *project, size_t project_length, const char *adapter, size_t adapter_length,
                 graft_error *err) {
    char name[GR_NAME_MAX + 1] = "";
    graft_error bad = {0};
    int rc = gr_name_from_file(name, project, project_length, &bad);
    if ((s->n == BATCH || in_batch(s, name)) && (rc = flush(s, err)) != 0) {
        gr_free(path);
        return rc;
    }
    find *f = &s->batch[s->n++];
    f->path = path;
    snprintf(f->project, sizeof f->project, "%s", name);
    snprintf(f->adapter, sizeof f->adapter, "%s", GR_DEFAULT_ADAPTER);
    if (!bad.code && adapter) {
        gr_name_from_file(f->adapter, adapter, adapter_length, &bad);
    }
    if (bad.code) {
        f->early = bad;
        return 0;
    }
    f->put = (gr_put){.project = f->project, .adapter = f->adapter, .flags = GRAFT_ADD_PROJECT | GR_PUT_SCAN};
    examine(s, f);
    return f->early.code == GRAFT_E_OUT_OF_MEMORY ? gr_fail_memory(err, 0) : 0;
}

/* ---- one folder ----------------------------------------------------------------------------------------- */

/* A folder's names, sorted. */
typedef struct names {
    char **items;
    size_t n, capacity;
} names;

static void names_finish(names *l) {
    for (size_t i = 0; i < l->n; i++) {
        gr_free(l->items[i]);
    }
    gr_free(l->items);
}

static bool names_add(names *l, const char *name) {
    if (l->n == l->capacity) {
        size_t capacity = l->capacity ? l->capacity * 2 : 32;
        char **items = gr_realloc(l->items, capacity * sizeof *items);
        if (!items) {
            return false;
        }
        l->items = items;
        l->capacity = capacity;
    }
    l->items[l->n] = gr_strdup(name);
    return l->items[l->n] && ++l->n;
}

static int by_name(const void *a, const void *b) {
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static int read_names(scan *s, DIR *dir, names *l, graft_error *err) {
    for (struct dirent *e; (e = readdir(dir)) != NULL;) {
        if (e->d_name[0] == '.') {
            continue;
        }
        if (s->summary.entries >= s->limits.entries) {
            s->full = true;
            break;
        }
        s->summary.entries++;
        if (!names_add(l, e->d_name)) {
            return gr_fail_memory(err, sizeof *l->items);
        }
    }
    if (l->n) {
        qsort(l->items, l->n, sizeof *l->items, by_name);
    }
    return 0;
}

static bool is_gguf(const char *name) {
    size_t n = strlen(name);
    return n > 5 && strcmp(name + n - 5, ".gguf") == 0;
}

static bool marks_folder(const char *name) {
    bool marks = strncmp(name, "adapter_model.", 14) == 0;
    for (int i = 0; i < GR_SOURCE_FILES; i++) {
        marks = marks || strcmp(name, gr_source_files[i]) == 0;
    }
    return marks;
}

static char *join(const char *folder, const char *name) {
    size_t room = strlen(folder) + strlen(name) + 2;
    char *path = room <= PATH_MAX ? gr_alloc(room) : NULL;
    if (path) {
        snprintf(path, room, "%s%s%s", folder, strcmp(folder, "/") == 0 ? "" : "/", name);
    }
    return path;
}

typedef struct folder {
    const char *path, *name;
    size_t name_length;
    int fd, depth;
    bool peft;      /* is an adapter itself */
    size_t n_gguf;
} folder;

/* ROOT/alder.gguf is project alder; ROOT/alder/x.gguf is project alder too: its default if nothing else could be. */
static int found_gguf(scan *s, const folder *d, const char *name, graft_error *err) {
    size_t stem = strlen(name) - 5;
    char *path = join(d->path, name);
    if (!path) {
        return gr_fail_memory(err, PATH_MAX);
    }
    if (d->depth == 0) {
        return found(s, path, name, stem, NULL, 0, err);
    }
    bool alone = !d->peft && d->n_gguf == 1;
    return found(s, path, d->name, d->name_length, alone ? NULL : name, stem, err);
}

/* A link to a folder is an adapter or nothing: what lies below it is met where it really is, or is not ours to find. */
static int found_link(scan *s, const folder *d, const char *name, graft_error *err) {
    int fd = openat(d->fd, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NONBLOCK);
    struct stat st;
    bool peft = false;
    for (int i = 0; i < GR_SOURCE_FILES && fd >= 0; i++) {
        peft = peft || fstatat(fd, gr_source_files[i], &st, AT_SYMLINK_NOFOLLOW) == 0;
    }
    if (fd >= 0) {
        close(fd);
    }
    if (!peft) {
        return 0;
    }
    char *path = join(d->path, name);
    return path ? found(s, path, name, strlen(name), NULL, 0, err) : gr_fail_memory(err, PATH_MAX);
}

static int walk(scan *s, int parent, const char *name, const char *path, int depth, graft_error *err);

static int visit(scan *s, const folder *d, const char *name, graft_error *err) {
    struct stat st;
    if (fstatat(d->fd, name, &st, AT_SYMLINK_NOFOLLOW) != 0) {
        return 0; /* gone meanwhile */
    }
    if (is_gguf(name) && (S_ISREG(st.st_mode) || S_ISLNK(st.st_mode))) {
        return found_gguf(s, d, name, err);
    }
    if (S_ISLNK(st.st_mode)) {
        return found_link(s, d, name, err);
    }
    if (!S_ISDIR(st.st_mode)) {
        return 0;
    }
    if (d->depth >= s->limits.depth) {
        s->summary.complete = false;
        return 0;
    }
    char *path = join(d->path, name);
    if (!path) {
        s->summary.complete = false; /* longer than any path can be */
        return 0;
    }
    int rc = walk(s, d->fd, name, path, d->depth + 1, err);
    gr_free(path);
    return rc;
}

static int visit_all(scan *s, folder *d, const names *l, graft_error *err) {
    int rc = 0;
    for (size_t i = 0; i < l->n; i++) {
        d->peft = d->peft || marks_folder(l->items[i]);
        d->n_gguf += is_gguf(l->items[i]);
    }
    if (d->peft) {
        char *path = gr_strdup(d->path);
        rc = path ? found(s, path, d->name, d->name_length, NULL, 0, err) : gr_fail_memory(err, strlen(d->path));
    }
    for (size_t i = 0; i < l->n && !rc; i++) {
        rc = visit(s, d, l->items[i], err);
    }
    return rc;
}

/* The folder `name` below the folder `parent`. What cannot be read is passed over, and makes the scan incomplete. */
static int walk(scan *s, int parent, const char *name, const char *path, int depth, graft_error *err) {
    int fd = openat(parent, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    DIR *dir = fd >= 0 ? fdopendir(fd) : NULL;
    if (!dir) {
        if (fd >= 0) {
            close(fd);
        }
        s->summary.complete = false;
        return 0;
    }
    const char *last = strrchr(path, '/') + 1;
    folder d = {.path = path, .name = last, .name_length = strlen(last), .fd = fd, .depth = depth};
    names l = {0};
    int rc = read_names(s, dir, &l, err);
    rc = rc ? rc : visit_all(s, &d, &l, err);
    names_finish(&l);
    closedir(dir);
    return rc;
}

/* ---- the whole ------------------------------------------------------------------------------------------ */

static int check_folder(const gr_registry *r, const char *path, char real[PATH_MAX], graft_error *err) {
    char q[GR_QUOTE_SIZE];
    struct stat st;
    gr_quote(q, path, strlen(path));
    if (!realpath(path, real) || stat(real, &st) != 0) {
        return gr_fail(err, errno == ENOENT || errno == ENOTDIR ? GRAFT_E_ADAPTER_FILE_MISSING : GRAFT_E_NOT_READABLE,
                       "folder %s: %s", q, strerror(errno));
    }
    if (!S_ISDIR(st.st_mode) || access(real, R_OK | X_OK) != 0) {
        return gr_fail(err, GRAFT_E_NOT_READABLE, "%s: %s", q, S_ISDIR(st.st_mode) ? strerror(errno) : "is no folder");
    }
    if (r->root && !gr_path_below(real, r->root) && !gr_path_below(r->root, real)) {
        return gr_fail(err, GRAFT_E_OUTSIDE_ROOT, "folder %s: leads out of the folder that adapters may come from", q);
    }
    return r->read_only ? gr_fail(err, GRAFT_E_REGISTRY_BUSY, "the registry was opened for reading only") : 0;
}

int gr_registry_scan(gr_registry *r, const char *path, const gr_scan_limits *limits, graft_scan_fn fn, void *user,
                     graft_scan_summary *out, graft_error *err) {
    char real[PATH_MAX];
    int rc = check_folder(r, path, real, err);
    if (rc) {
        return rc;
    }
    scan s = {.r = r, .limits = *limits, .root = real, .fn = fn, .user = user, .summary = {.complete = true}};
    s.batch = gr_calloc(BATCH, sizeof *s.batch);
    s.puts = gr_calloc(BATCH, sizeof *s.puts);
    rc = s.batch && s.puts ? 0 : gr_fail_memory(err, BATCH * (sizeof *s.batch + sizeof *s.puts));
    rc = rc ? rc : walk(&s, AT_FDCWD, real, real, 0, err);
    rc = rc ? rc : flush(&s, err);
    for (size_t i = 0; i < s.n; i++) {
        clear(&s.batch[i]);
    }
    gr_free(s.puts);
    gr_free(s.batch);
    s.summary.complete = s.summary.complete && !s.full;
    if (!rc && out) {
        *out = s.summary;
    }
    return rc;
}
