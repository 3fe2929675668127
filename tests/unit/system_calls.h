/*
 * For tests: the system calls of reading files, each of which can be made to fail, to give less than was asked for, or to be
 * preceded by a change to a file. The linker sends graft's own calls here (--wrap); those of libraries stay as they are.
 * Calls of one kind are counted from system_calls_arm on; `at` (1 = the next) is struck, and with `forever` all after it.
 */
#ifndef SYSTEM_CALLS_H
#define SYSTEM_CALLS_H

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/stat.h>
#include <sys/types.h>

enum { CALL_OPEN = 1, CALL_STAT = 2, CALL_READ = 4 };

typedef struct system_fault {
    int calls;           /* which kinds, or'ed */
    int at;
    bool forever;
    int error;           /* errno to fail with, or 0 */
    bool end, less;      /* reads: nothing is left; half of it, at least a byte */
    void (*before)(void *user); /* called before the call itself, once */
    void *user;
} system_fault;

static system_fault system_fault_now;
static int system_calls_seen;

static inline void system_calls_arm(const system_fault *fault) {
    system_fault_now = *fault;
    system_calls_seen = 0;
}

/* How many calls of the kinds were made; none is struck any more. */
static inline int system_calls_disarm(void) {
    system_fault_now = (system_fault){0};
    return system_calls_seen;
}

/* Whether this call is struck; `before` is called then. */
static inline bool system_call_struck(int kind) {
    system_fault *f = &system_fault_now;
    if (!(f->calls & kind)) {
        return false;
    }
    int number = ++system_calls_seen;
    if (number != f->at && !(f->forever && number > f->at)) {
        return false;
    }
    if (f->before) {
        void (*before)(void *) = f->before;
        int seen = system_calls_seen;
        f->before = NULL;
        before(f->user);
        system_calls_seen = seen;
    }
    return true;
}

static inline bool system_call_fails(int kind) {
    bool struck = system_call_struck(kind);
    if (struck && system_fault_now.error) {
        errno = system_fault_now.error;
    }
    return struck && system_fault_now.error;
}

int __real_open(const char *path, int flags, ...);
int __real_openat(int dir, const char *path, int flags, ...);
int __real_fstat(int fd, struct stat *st);
int __real_fstatat(int dir, const char *path, struct stat *st, int flags);
ssize_t __real_pread(int fd, void *out, size_t n, off_t offset);
int __wrap_open(const char *path, int flags, ...);
int __wrap_openat(int dir, const char *path, int flags, ...);
int __wrap_fstat(int fd, struct stat *st);
int __wrap_fstatat(int dir, const char *path, struct stat *st, int flags);
ssize_t __wrap_pread(int fd, void *out, size_t n, off_t offset);

static inline int system_mode(int flags, va_list rest) {
    return flags & O_CREAT ? va_arg(rest, int) : 0;
}

int __wrap_open(const char *path, int flags, ...) {
    va_list rest;
    va_start(rest, flags);
    int mode = system_mode(flags, rest);
    va_end(rest);
    return system_call_fails(CALL_OPEN) ? -1 : __real_open(path, flags, mode);
}

int __wrap_openat(int dir, const char *path, int flags, ...) {
    va_list rest;
    va_start(rest, flags);
    int mode = system_mode(flags, rest);
    va_end(rest);
    return system_call_fails(CALL_OPEN) ? -1 : __real_openat(dir, path, flags, mode);
}

int __wrap_fstat(int fd, struct stat *st) {
    return system_call_fails(CALL_STAT) ? -1 : __real_fstat(fd, st);
}

int __wrap_fstatat(int dir, const char *path, struct stat *st, int flags) {
    return system_call_fails(CALL_STAT) ? -1 : __real_fstatat(dir, path, st, flags);
}

ssize_t __wrap_pread(int fd, void *out, size_t n, off_t offset) {
    if (!system_call_struck(CALL_READ)) {
        return __real_pread(fd, out, n, offset);
    }
    if (system_fault_now.error) {
        errno = system_fault_now.error;
        return -1;
    }
    if (system_fault_now.end) {
        return 0;
    }
    return __real_pread(fd, out, system_fault_now.less && n > 1 ? n / 2 : n, offset);
}

#endif
