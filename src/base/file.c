/* Files of strangers: opened without waiting, read with pread, checked for change. Policy stays with the callers. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* O_CLOEXEC and friends everywhere */
#endif
#include "file.h"

#include "memory.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#if defined(__APPLE__)
#define MTIME(st) ((st).st_mtimespec)
#define CTIME(st) ((st).st_ctimespec)
#else
#define MTIME(st) ((st).st_mtim)
#define CTIME(st) ((st).st_ctim)
#endif

static int64_t nanoseconds(struct timespec t) {
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void set_name(gr_file *f, const char *path) {
    const char *slash = strrchr(path, '/');
    const char *last = slash && slash[1] ? slash + 1 : path;
    char quoted[GR_QUOTE_SIZE];
    snprintf(f->name, sizeof f->name, "%.250s", gr_quote(quoted, last, strlen(last)));
}

int gr_open_code(int why) {
    switch (why) {
    case ENOENT:
    case ENOTDIR: return GRAFT_E_ADAPTER_FILE_MISSING;
    /* A socket or a device without a driver cannot be opened at all. */
    case ENXIO:
    case ENODEV:
    case EOPNOTSUPP: return GRAFT_E_NOT_REGULAR_FILE;
    /* These say nothing about the file: the next try may succeed. */
    case EIO:
    case EMFILE:
    case ENFILE:
    case EAGAIN: return GRAFT_E_IO_ERROR;
    case ENOMEM: return GRAFT_E_OUT_OF_MEMORY;
    default: return GRAFT_E_NOT_READABLE;
    }
}

int gr_file_open(gr_file *out, int dir_fd, const char *path, graft_error *err) {
    gr_file f = {.fd = -1};
    char whole[GR_QUOTE_PATH_SIZE];
    set_name(&f, path);
    /* Below a folder the caller knows where; else a person needs all of it. */
    const char *shown = dir_fd == AT_FDCWD ? gr_quote_path(whole, path) : f.name;
    /* O_NONBLOCK: opening a FIFO would otherwise wait for a writer. */
    do {
        f.fd = openat(dir_fd, path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    } while (f.fd < 0 && errno == EINTR);
    if (f.fd < 0) {
        int why = errno, code = gr_open_code(why);
        return code == GRAFT_E_ADAPTER_FILE_MISSING ? gr_fail(err, code, "%s: does not exist", shown)
                                                    : gr_fail(err, code, "%s: cannot be opened: %s", shown, strerror(why));
    }
    struct stat st;
    if (fstat(f.fd, &st) != 0) {
        int saved = errno;
        close(f.fd);
        return gr_fail(err, GRAFT_E_IO_ERROR, "%s: cannot be examined: %s", shown, strerror(saved));
    }
    if (!S_ISREG(st.st_mode)) {
        close(f.fd);
        return gr_fail(err, GRAFT_E_NOT_REGULAR_FILE, "%s: is %s, a regular file is needed", shown,
                       S_ISDIR(st.st_mode) ? "a folder" : S_ISFIFO(st.st_mode) ? "a FIFO" : "a device or socket");
    }
    f.size = (uint64_t)st.st_size;
    f.inode = st.st_ino;
    f.device = (uint64_t)st.st_dev;
    f.mtime_ns = nanoseconds(MTIME(st));
    f.ctime_ns = nanoseconds(CTIME(st));
    *out = f;
    return 0;
}

void gr_file_close(gr_file *f) {
    if (f->fd >= 0) {
        close(f->fd);
        f->fd = -1;
    }
}

const char *gr_path_last(const char *path, size_t *length) {
    size_t end = strlen(path);
    while (end > 1 && path[end - 1] == '/') {
        end--;
    }
    size_t begin = end;
    while (begin > 0 && path[begin - 1] != '/') {
        begin--;
    }
    *length = end - begin;
    return path + begin;
}

bool gr_path_below(const char *path, const char *root) {
    size_t n = strlen(root);
    if (strcmp(root, "/") == 0) {
        return true;
    }
    return strncmp(path, root, n) == 0 && (path[n] == '/' || path[n] == '\0');
}

/* The path that the system has for an open file; false if it does not tell. */
static bool own_path(int fd, char out[PATH_MAX]) {
#if defined(__APPLE__)
    return fcntl(fd, F_GETPATH, out) == 0;
#else
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, out, PATH_MAX - 1);
    out[n > 0 ? n : 0] = '\0';
    return n > 0 && n < PATH_MAX - 1;
#endif
}

int gr_file_below(const gr_file *f, const char *root, graft_error *err) {
    char path[PATH_MAX];
    if (own_path(f->fd, path) && gr_path_below(path, root)) {
        return 0;
    }
    return gr_fail(err, GRAFT_E_OUTSIDE_ROOT, "%s: leads out of the folder that adapters may come from", f->name);
}

int gr_file_read(const gr_file *f, void *out, size_t length, uint64_t offset, graft_error *err) {
    enum { MOST_AT_ONCE = 1 << 30 }; /* some systems refuse reads of 2 GiB and more */
    char *p = out;
    while (length > 0) {
        ssize_t n = pread(f->fd, p, length < MOST_AT_ONCE ? length : MOST_AT_ONCE, (off_t)offset);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0) {
            return gr_fail(err, GRAFT_E_IO_ERROR, "%s: reading at byte %" PRIu64 " failed: %s", f->name, offset,
                           strerror(errno));
        }
        if (n == 0) {
            return gr_fail(err, GRAFT_E_CHANGED_WHILE_READING, "%s: ended at byte %" PRIu64 " while it was read, had %" PRIu64,
                           f->name, offset, f->size);
        }
        p += n;
        offset += (uint64_t)n;
        length -= (size_t)n;
    }
    return 0;
}

int gr_file_unchanged(const gr_file *f, graft_error *err) {
    struct stat st;
    if (fstat(f->fd, &st) != 0) {
        return gr_fail(err, GRAFT_E_IO_ERROR, "%s: cannot be examined: %s", f->name, strerror(errno));
    }
    /* Not ctime: a rename or a new hard link changes it and not the content. */
    if ((uint64_t)st.st_size != f->size || nanoseconds(MTIME(st)) != f->mtime_ns) {
        return gr_fail(err, GRAFT_E_CHANGED_WHILE_READING, "%s: was written to while it was read", f->name);
    }
    return 0;
}

int gr_file_read_whole(char **out, size_t *length, const gr_file *f, size_t max, graft_error *err) {
    if (f->size > max) {
        return gr_fail(err, GRAFT_E_TOO_LARGE, "%s: has %" PRIu64 " bytes, at most %zu are read", f->name, f->size, max);
    }
    size_t n = (size_t)f->size;
    char *data = gr_alloc(n + 1);
    if (!data) {
        return gr_fail_memory(err, n + 1);
    }
    int rc = gr_file_read(f, data, n, 0, err);
    rc = rc ? rc : gr_file_unchanged(f, err);
    if (rc) {
        gr_free(data);
        return rc;
    }
    data[n] = '\0';
    *out = data;
    *length = n;
    return 0;
}

int gr_file_read_all(char **out, size_t *length, int dir_fd, const char *path, size_t max, graft_error *err) {
    gr_file f;
    int rc = gr_file_open(&f, dir_fd, path, err);
    if (!rc) {
        rc = gr_file_read_whole(out, length, &f, max, err);
        gr_file_close(&f);
    }
    return rc;
}
