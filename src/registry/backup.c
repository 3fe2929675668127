/*
 * The copy beside the file: made by the writer thread, checked before it takes an older one's place, and put in the
 * registry's place by hand (`graft registry recover`) when that is damaged. Nothing here happens by itself at opening: a
 * registry that quietly became an older one would be as bad as one that quietly became empty.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* lstat, gmtime_r */
#endif
#include "state.h"

#include "base/memory.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

/* ---- making it ------------------------------------------------------------------------------------------ */

/* Whether the copy holds what the index holds: an empty one, however whole, must not displace a good one. */
static int check_copy(graft_registry *r, const char *path, graft_error *err) {
    gr_store copy;
    int64_t projects = 0, adapters = 0, keys = 0;
    char *name = gr_strdup(path);
    if (!name) {
        return gr_fail_memory(err, strlen(path) + 1);
    }
    int rc = gr_store_open(&copy, name, true, 0, err);
    rc = rc ? rc : gr_store_number(&copy, &projects, "SELECT count(*) FROM projects", err);
    rc = rc ? rc : gr_store_number(&copy, &adapters, "SELECT count(*) FROM adapters", err);
    rc = rc ? rc : gr_store_number(&copy, &keys, "SELECT count(*) FROM keys", err);
    gr_store_close(&copy);
    if (!rc && ((uint64_t)projects != r->index.n || (uint64_t)adapters != r->index.n_rows || (uint64_t)keys != r->keys.n)) {
        rc = gr_fail(err, GRAFT_E_REGISTRY_INVALID,
                     "the file holds %lld projects, %lld adapters and %lld keys, memory %zu, %zu and %zu",
                     (long long)projects, (long long)adapters, (long long)keys, r->index.n, r->index.n_rows, r->keys.n);
    }
    return rc;
}

static int make(graft_registry *r, graft_error *err) {
    char path[PATH_MAX], fresh[PATH_MAX];
    gr_store_beside(path, r->store.path, GR_STORE_BACKUP);
    gr_store_beside(fresh, r->store.path, GR_STORE_BACKUP "-new");
    int rc = gr_store_still_there(&r->store, err); /* the file that took its place has a backup of its own to come */
    rc = rc ? rc : gr_store_copy(&r->store, fresh, false, err);
    if (rc) {
        return rc;
    }
    rc = check_copy(r, fresh, err);
    if (!rc && rename(fresh, path) != 0) {
        rc = gr_fail(err, GRAFT_E_STORAGE_FULL, "cannot be renamed: %s", strerror(errno));
    }
    if (rc) {
        unlink(fresh);
        return rc;
    }
    gr_store_sync_folder(path);
    return 0;
}

void gr_backup_if_due(graft_registry *r, uint64_t due) {
    graft_error err;
    if (r->store.commits - r->backed_up < due) {
        return;
    }
    r->backed_up = r->store.commits; /* also if it fails: the next try is as far away */
    int rc = r->store.replaced ? 0 : make(r, &err);
    if (rc && !r->backup_failed) {
        gr_log_line(&r->log, GRAFT_LOG_WARN, "the registry's backup could not be made: %s: %s", graft_error_name(rc),
                    err.message);
    }
    r->backup_failed = rc != 0;
}

/* ---- looking -------------------------------------------------------------------------------------------- */

/* Opens and reads the registry at `path` as for use, and throws all away again. *not_ours as gr_store's. */
static int read_whole(graft_registry_file *out, const char *path, int wait_ms, bool *not_ours, graft_error *err) {
    struct stat st;
    graft_registry *r = gr_zalloc(sizeof *r);
    char *name = gr_strdup(path);
    if (!r || !name) {
        gr_free(name);
        gr_free(r);
        return gr_fail_memory(err, sizeof *r);
    }
    gr_index_init(&r->index);
    int rc = gr_store_open(&r->store, name, true, wait_ms, err);
    *not_ours = r->store.not_ours;
    rc = rc ? rc : gr_registry_load(r, err);
    if (!rc) {
        out->projects = r->index.n;
        out->adapters = r->index.n_rows;
    }
    out->written = stat(path, &st) == 0 ? (int64_t)st.st_mtime : 0;
    gr_store_close(&r->store);
    gr_keys_finish(&r->keys);
    gr_index_finish(&r->index);
    gr_free(r);
    return rc;
}

static int read_backup(graft_registry_file *out, const char *path, graft_error *err) {
    char backup[PATH_MAX];
    struct stat st;
    bool not_ours;
    if (lstat(gr_store_beside(backup, path, GR_STORE_BACKUP), &st) != 0) {
        return gr_fail(err, GRAFT_E_NOT_FOUND, "there is no backup");
    }
    return read_whole(out, backup, 0, &not_ours, err);
}

/* "2026-01-31T12:00:00Z", or without the punctuation, as part of a file's name. */
static const char *utc(char out[32], int64_t seconds, bool for_file) {
    time_t t = (time_t)seconds;
    struct tm parts = {0};
    gmtime_r(&t, &parts);
    size_t n = for_file ? strftime(out, 32, "%Y%m%dT%H%M%SZ", &parts) : strftime(out, 32, "%Y-%m-%dT%H:%M:%SZ", &parts);
    return n ? out : "?";
}

void gr_backup_mention(const char *path, bool not_ours, graft_error *err) {
    graft_registry_file backup = {0};
    graft_error why = {0};
    char time[32];
    if (!err) {
        return;
    }
    size_t n = strlen(err->message), room = sizeof err->message - n;
    int rc = not_ours ? GRAFT_E_NOT_FOUND : read_backup(&backup, path, &why);
    const char *name = strrchr(path, '/') + 1;
    if (rc == 0) {
        snprintf(err->message + n, room,
                 "; `graft registry recover` puts the backup of %s (%zu projects, %zu adapters) in its place: %.60s%s",
                 utc(time, backup.written, false), backup.projects, backup.adapters, name, GR_STORE_BACKUP);
    } else {
        snprintf(err->message + n, room, "; %sput a good copy in its place, or move %s away to start anew",
                 rc == GRAFT_E_NOT_FOUND ? (not_ours ? "" : "there is no backup: ") : "its backup is damaged too: ",
                 rc == GRAFT_E_NOT_FOUND ? "it" : "both");
    }
}

int gr_registry_examine(graft_registry_condition *out, const graft_registry_options *o, graft_error *err) {
    char *path;
    bool not_ours;
    int rc = gr_store_resolve(&path, o->path, err);
    if (rc) {
        return rc;
    }
    *out = (graft_registry_condition){0};
    read_whole(&out->registry, path, o->wait_ms, &not_ours, &out->registry.error);
    read_backup(&out->backup, path, &out->backup.error);
    gr_free(path);
    return 0;
}

/* ---- going back to it ----------------------------------------------------------------------------------- */

/* A name beside the registry that nothing has yet; only its part from ".damaged" on. */
static int choose_name(char out[GR_STORE_SUFFIX], const char *path, graft_error *err) {
    char time[32], full[PATH_MAX];
    struct stat st;
    utc(time, gr_wall_seconds(), true);
    for (int i = 1; i < 10; i++) { /* several in one second: a person would not */
        snprintf(out, GR_STORE_SUFFIX, i > 1 ? ".damaged-%.16s-%d" : ".damaged-%.16s", time, i);
        if (lstat(gr_store_beside(full, path, out), &st) != 0) {
            return 0;
        }
    }
    return gr_fail(err, GRAFT_E_CONFLICT, "there are too many damaged files of this second");
}

/* The file with its log: a log left behind would be poured into the file that comes. What is not there need not move. */
static int move_aside(const char *path, const char *suffix, graft_error *err) {
    static const char *const parts[] = {"", "-wal", "-shm"}; /* the file first: a log without it is found damaged again */
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        char from[PATH_MAX], to[PATH_MAX], name[GR_STORE_SUFFIX];
        snprintf(name, sizeof name, "%s%s", suffix, parts[i]);
        if (rename(gr_store_beside(from, path, parts[i]), gr_store_beside(to, path, name)) != 0 && errno != ENOENT) {
            return gr_fail(err, GRAFT_E_STORAGE_FULL, "the damaged registry cannot be moved aside: %s", strerror(errno));
        }
    }
    return 0;
}

static int copy_back(const char *path, const char *fresh, graft_error *err) {
    char backup[PATH_MAX];
    gr_store store;
    char *name = gr_strdup(gr_store_beside(backup, path, GR_STORE_BACKUP));
    if (!name) {
        return gr_fail_memory(err, sizeof backup);
    }
    int rc = gr_store_open(&store, name, true, 0, err);
    rc = rc ? rc : gr_store_copy(&store, fresh, true, err);
    gr_store_close(&store);
    return rc;
}

/* The lock is held. Until the last rename a crash leaves a state from which this can be done again. */
static int recover(graft_registry_condition *out, const char *path, graft_error *err) {
    char fresh[PATH_MAX], suffix[GR_STORE_SUFFIX];
    struct stat st;
    bool not_ours;
    int rc = read_whole(&out->registry, path, 0, &not_ours, &out->registry.error);
    if (rc == 0) {
        return gr_fail(err, GRAFT_E_CONFLICT, "the registry is whole (%zu projects, %zu adapters): there is nothing to recover",
                       out->registry.projects, out->registry.adapters);
    }
    if ((rc != GRAFT_E_REGISTRY_INVALID && rc != GRAFT_E_NOT_FOUND) || not_ours) {
        return gr_fail(err, rc, "%s", out->registry.error.message);
    }
    rc = read_backup(&out->backup, path, err);
    rc = rc ? rc : choose_name(suffix, path, err);
    rc = rc ? rc : copy_back(path, gr_store_beside(fresh, path, ".new"), err);
    if (rc) {
        return rc;
    }
    bool there = lstat(path, &st) == 0;
    rc = move_aside(path, suffix, err);
    if (!rc && rename(fresh, path) != 0) {
        rc = gr_fail(err, GRAFT_E_STORAGE_FULL, "the backup cannot be put in the registry's place: %s", strerror(errno));
    }
    if (rc) {
        unlink(fresh);
        return rc;
    }
    gr_store_sync_folder(path);
    if (there) {
        const char *name = strrchr(path, '/') + 1;
        snprintf(out->damaged, sizeof out->damaged, "%.*s%s", (int)(sizeof out->damaged - GR_STORE_SUFFIX), name, suffix);
    }
    return 0;
}

int gr_registry_recover(graft_registry_condition *out, const graft_registry_options *o, graft_error *err) {
    graft_registry_condition done = {0};
    char *path;
    gr_lock lock;
    int rc = gr_store_resolve(&path, o->path, err);
    if (rc) {
        return rc;
    }
    rc = gr_registry_lock(&lock, path, o->wait_ms, err);
    if (!rc) {
        rc = recover(&done, path, err);
        gr_lock_give(&lock);
    }
    if (!rc) {
        *out = done;
    }
    gr_free(path);
    return rc;
}
