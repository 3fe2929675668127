#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* flock, O_NOFOLLOW */
#endif
#include "lock.h"

#include "base/clock.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

enum { PID_SIZE = 24, POLL_US = 20000 };

/* 0 if the file does not say (the holder has not written yet). */
static long holder(int fd) {
    char text[PID_SIZE] = "";
    ssize_t n = pread(fd, text, sizeof text - 1, 0);
    return n > 0 ? strtol(text, NULL, 10) : 0;
}

static int try_lock(int fd) {
    int rc;
    do {
        rc = flock(fd, LOCK_EX | LOCK_NB);
    } while (rc != 0 && errno == EINTR);
    return rc;
}

static int refused(int fd, const char *path, graft_error *err) {
    char q[GR_QUOTE_SIZE];
    if (errno != EWOULDBLOCK) {
        return gr_fail(err, GRAFT_E_STORAGE_FULL, "%s: cannot be locked: %s", gr_quote(q, path, strlen(path)), strerror(errno));
    }
    long pid = holder(fd);
    if (pid <= 0) {
        return gr_fail(err, GRAFT_E_REGISTRY_BUSY, "another process writes to the registry (lock file %s)",
                       gr_quote(q, path, strlen(path)));
    }
    return gr_fail(err, GRAFT_E_REGISTRY_BUSY, "process %ld writes to the registry (lock file %s)", pid,
                   gr_quote(q, path, strlen(path)));
}

int gr_lock_take(gr_lock *out, const char *path, int64_t wait_us, graft_error *err) {
    char q[GR_QUOTE_SIZE];
    int fd;
    do {
        fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    } while (fd < 0 && errno == EINTR);
    if (fd < 0) {
        return gr_fail(err, GRAFT_E_STORAGE_FULL, "%s: cannot be made: %s", gr_quote(q, path, strlen(path)), strerror(errno));
    }
    int64_t until = gr_now_us() + wait_us;
    while (try_lock(fd) != 0) {
        if (errno != EWOULDBLOCK || gr_now_us() >= until) {
            int rc = refused(fd, path, err);
            close(fd);
            return rc;
        }
        gr_sleep_us(POLL_US);
    }
    char text[PID_SIZE];
    int n = snprintf(text, sizeof text, "%ld\n", (long)getpid());
    /* Only a courtesy to whoever is refused: a full disk must not take the lock away. */
    if (ftruncate(fd, 0) != 0 || pwrite(fd, text, (size_t)n, 0) != n) {
        errno = 0;
    }
    *out = (gr_lock){fd};
    return 0;
}

void gr_lock_give(gr_lock *lock) {
    if (lock->fd >= 0) {
        close(lock->fd);
        lock->fd = -1;
    }
}
