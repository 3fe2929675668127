/* Temporary names, syncing and the last rename. Nobody else's file is ever removed: of a folder only the files that we know. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* O_CLOEXEC */
#endif
#include "target.h"

#include "memory.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

enum { TRIES = 100 };

static int failed(const gr_target *t, const char *what, int why, graft_error *err) {
    char q[GR_QUOTE_PATH_SIZE];
    return gr_fail(err, GRAFT_E_STORAGE_FULL, "%s: %s: %s", gr_quote_path(q, t->path), what, strerror(why));
}

static int conflict(const gr_target *t, const char *what, graft_error *err) {
    char q[GR_QUOTE_PATH_SIZE];
    return gr_fail(err, GRAFT_E_CONFLICT, "%s: %s", gr_quote_path(q, t->path), what);
}

/* "FOLDER/NAME"; gr_free. */
static char *join(const char *folder, const char *name) {
    size_t size = strlen(folder) + strlen(name) + 2;
    char *path = gr_alloc(size);
    if (path) {
        snprintf(path, size, "%s/%s", folder, name);
    }
    return path;
}

/* ---- what is there already ------------------------------------------------------------------------------ */

static bool known(const char *name, const char *const *names) {
    for (size_t i = 0; names && names[i]; i++) {
        if (strcmp(name, names[i]) == 0) {
            return true;
        }
    }
    return strcmp(name, ".") == 0 || strcmp(name, "..") == 0;
}

static bool holds_only(const char *folder, const char *const *names) {
    DIR *dir = opendir(folder);
    bool only = dir != NULL;
    for (struct dirent *e; only && (e = readdir(dir)) != NULL;) {
        only = known(e->d_name, names);
    }
    if (dir) {
        closedir(dir);
    }
    return only;
}

static int check_free(const gr_target *t, const char *const *names, graft_error *err) {
    struct stat st;
    if (lstat(t->path, &st) != 0) {
        return errno == ENOENT ? 0 : failed(t, "cannot be written", errno, err);
    }
    if (!t->replace) {
        return conflict(t, "exists already, and was not to be replaced", err);
    }
    if (!t->folder) {
        return S_ISREG(st.st_mode) || S_ISLNK(st.st_mode) ? 0 : conflict(t, "is no regular file and is not replaced", err);
    }
    if (!S_ISDIR(st.st_mode)) {
        return conflict(t, "is no folder and is not replaced by one", err);
    }
    return holds_only(t->path, names) ? 0 : conflict(t, "is a folder with other files in it and is not replaced", err);
}

bool gr_target_is_file(const char *path, uint64_t device, uint64_t inode) {
    struct stat st;
    return stat(path, &st) == 0 && (uint64_t)st.st_dev == device && (uint64_t)st.st_ino == inode;
}

/* ---- beginning ------------------------------------------------------------------------------------------ */

static bool make(gr_target *t, const char *name) {
    if (t->folder) {
        return mkdir(name, 0777) == 0;
    }
    t->fd = open(name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    return t->fd >= 0;
}

static int make_temporary(gr_target *t, graft_error *err) {
    size_t size = strlen(t->path) + 48;
    char *name = gr_alloc(size);
    if (!name) {
        return gr_fail_memory(err, size);
    }
    for (int i = 0; i < TRIES && !t->temporary; i++) {
        snprintf(name, size, "%s.new-%ld-%d", t->path, (long)getpid(), i);
        if (make(t, name)) {
            t->temporary = name;
        } else if (errno != EEXIST) {
            break;
        }
    }
    if (t->temporary) {
        return 0;
    }
    int why = errno;
    gr_free(name);
    return failed(t, "cannot be written", why, err);
}

int gr_target_open(gr_target *t, const char *path, const char *const *names, bool replace, graft_error *err) {
    *t = (gr_target){.folder = names != NULL, .replace = replace, .fd = -1};
    size_t n = strlen(path), end = n;
    while (end > 1 && path[end - 1] == '/') {
        end--;
    }
    if (n == 0 || (!t->folder && end < n)) {
        return gr_fail(err, GRAFT_E_BAD_REQUEST, "the path to write to is %s", n ? "that of a folder" : "empty");
    }
    t->path = gr_strndup(path, end);
    if (!t->path) {
        return gr_fail_memory(err, end + 1);
    }
    int rc = check_free(t, names, err);
    return rc ? rc : make_temporary(t, err);
}

/* ---- writing -------------------------------------------------------------------------------------------- */

/* Some file systems cannot sync; then it is as good as it gets. */
static bool synced(int fd) {
    int rc;
    do {
        rc = fsync(fd);
    } while (rc != 0 && errno == EINTR);
    return rc == 0 || errno == EINVAL || errno == ENOTSUP;
}

static int close_file(gr_target *t, graft_error *err) {
    if (t->fd < 0) {
        return 0;
    }
    int why = synced(t->fd) ? 0 : errno;
    if (close(t->fd) != 0 && !why && errno != EINTR) {
        why = errno;
    }
    t->fd = -1;
    return why ? failed(t, "cannot be written", why, err) : 0;
}

int gr_target_file(gr_target *t, const char *name, graft_error *err) {
    int rc = close_file(t, err);
    if (rc) {
        return rc;
    }
    char *path = join(t->temporary, name);
    if (!path) {
        return gr_fail_memory(err, strlen(t->temporary) + strlen(name) + 2);
    }
    t->fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    rc = t->fd < 0 ? failed(t, "cannot be written", errno, err) : 0;
    t->written = 0;
    gr_free(path);
    return rc;
}

int gr_target_write(gr_target *t, const void *bytes, size_t n, graft_error *err) {
    enum { MOST_AT_ONCE = 1 << 30 }; /* some systems refuse writes of 2 GiB and more */
    const char *p = bytes;
    while (n > 0) {
        ssize_t done = write(t->fd, p, n < MOST_AT_ONCE ? n : MOST_AT_ONCE);
        if (done < 0 && errno == EINTR) {
            continue;
        }
        if (done <= 0) {
            return failed(t, "cannot be written", done < 0 ? errno : ENOSPC, err);
        }
        p += done;
        n -= (size_t)done;
        t->written += (uint64_t)done;
    }
    return 0;
}

int gr_target_pad(gr_target *t, size_t alignment, graft_error *err) {
    static const char zeros[4096];
    size_t n = (alignment - (size_t)(t->written % alignment)) % alignment;
    int rc = 0;
    for (size_t part; n > 0 && !rc; n -= part) {
        part = n < sizeof zeros ? n : sizeof zeros;
        rc = gr_target_write(t, zeros, part, err);
    }
    return rc;
}

int gr_target_room(const gr_target *t, uint64_t bytes, graft_error *err) {
    struct statvfs fs;
    char q[GR_QUOTE_PATH_SIZE];
    /* Some report no size at all; there writing has to show it. */
    if (statvfs(t->temporary, &fs) != 0 || fs.f_blocks == 0 || fs.f_frsize == 0) {
        return 0;
    }
    if (bytes / fs.f_frsize < fs.f_bavail) {
        return 0;
    }
    return gr_fail(err, GRAFT_E_STORAGE_FULL, "%s: needs %" PRIu64 " bytes, of which the disk has %" PRIu64 " left",
                   gr_quote_path(q, t->path), bytes, (uint64_t)fs.f_bavail * fs.f_frsize);
}

/* ---- the end -------------------------------------------------------------------------------------------- */

/* Takes no memory: it may be what was missing. */
static void remove_folder(const char *folder, const char *const *names) {
    int dir = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    for (size_t i = 0; dir >= 0 && names && names[i]; i++) {
        unlinkat(dir, names[i], 0);
    }
    if (dir >= 0) {
        close(dir);
    }
    rmdir(folder);
}

static void finish(gr_target *t) {
    if (t->fd >= 0) {
        close(t->fd);
    }
    gr_free(t->path);
    gr_free(t->temporary);
    *t = (gr_target){.fd = -1};
}

void gr_target_abandon(gr_target *t, const char *const *names) {
    if (t->temporary && t->folder) {
        remove_folder(t->temporary, names);
    } else if (t->temporary) {
        unlink(t->temporary);
    }
    finish(t);
}

/* The renames are safe only when the folder they happen in is on the disk too. Best effort. */
static void sync_parent(const char *path) {
    const char *slash = strrchr(path, '/');
    char *parent = !slash ? gr_strdup(".") : gr_strndup(path, slash == path ? 1 : (size_t)(slash - path));
    int fd = parent ? open(parent, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
    if (fd >= 0) {
        synced(fd);
        close(fd);
    }
    gr_free(parent);
}

/* Without replacing: a link fails where anything is, as a rename would not. */
static int place_file(gr_target *t, graft_error *err) {
    if (!t->replace && link(t->temporary, t->path) == 0) {
        unlink(t->temporary);
        return 0;
    }
    if (!t->replace && errno == EEXIST) {
        return conflict(t, "came into being meanwhile", err);
    }
    return rename(t->temporary, t->path) == 0 ? 0 : failed(t, "cannot be put in place", errno, err);
}

/* A folder with files in it cannot be renamed over: the old one steps aside first, and back if that was for nothing. */
static int replace_folder(gr_target *t, const char *const *names, graft_error *err) {
    size_t size = strlen(t->temporary) + 8;
    char *old = gr_alloc(size);
    if (!old) {
        return gr_fail_memory(err, size);
    }
    snprintf(old, size, "%s.old", t->temporary);
    int rc = rename(t->path, old) == 0 ? 0 : failed(t, "cannot be moved aside", errno, err);
    if (!rc && rename(t->temporary, t->path) != 0) {
        rc = failed(t, "cannot be put in place", errno, err);
        (void)!rename(old, t->path);
    } else if (!rc) {
        remove_folder(old, names);
    }
    gr_free(old);
    return rc;
}

static int place(gr_target *t, const char *const *names, graft_error *err) {
    struct stat st;
    if (!t->folder) {
        return place_file(t, err);
    }
    if (t->replace && lstat(t->path, &st) == 0) {
        int rc = check_free(t, names, err);
        return rc ? rc : replace_folder(t, names, err);
    }
    if (rename(t->temporary, t->path) == 0) {
        return 0;
    }
    return errno == EEXIST || errno == ENOTEMPTY || errno == ENOTDIR ? conflict(t, "came into being meanwhile", err)
                                                                     : failed(t, "cannot be put in place", errno, err);
}

static int sync_folder(const gr_target *t, graft_error *err) {
    int fd = open(t->temporary, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int rc = fd >= 0 && synced(fd) ? 0 : failed(t, "cannot be written", errno, err);
    if (fd >= 0) {
        close(fd);
    }
    return rc;
}

int gr_target_commit(gr_target *t, const char *const *names, graft_error *err) {
    int rc = close_file(t, err);
    if (!rc && t->folder) {
        rc = sync_folder(t, err);
    }
    rc = rc ? rc : place(t, names, err);
    if (rc) {
        gr_target_abandon(t, names);
        return rc;
    }
    sync_parent(t->path);
    finish(t);
    return 0;
}
