/*
 * Reading files that strangers made: never mapped (a file cut short by somebody else would kill us with
 * SIGBUS), never followed into devices, and checked for having changed.
 */
#ifndef GR_FILE_H
#define GR_FILE_H

#include "error.h"

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

typedef struct gr_file {
    int fd;          /* -1 when closed */
    uint64_t size;   /* at opening */
    uint64_t inode, device;
    int64_t mtime_ns, ctime_ns;
    char name[256];  /* for messages: the last part of the path, quoted */
} gr_file;

/*
 * What an errno of open or stat means: ADAPTER_FILE_MISSING, NOT_REGULAR_FILE, NOT_READABLE; IO_ERROR (also when
 * descriptors have run out) or OUT_OF_MEMORY for what may pass and says nothing about the file.
 */
int gr_open_code(int why);

/*
 * Opens `path` below the folder `dir_fd` (AT_FDCWD for none) for reading, without waiting on FIFOs or devices.
 * Errors: as gr_open_code, with errno's text. Without a folder the message begins with all of `path` (gr_quote_path), else
 * with its last part.
 */
int gr_file_open(gr_file *out, int dir_fd, const char *path, graft_error *err);
/* Harmless on a file with fd -1. */
void gr_file_close(gr_file *f);
/* Fails with OUTSIDE_ROOT unless the open file itself lies below the folder `root` (absolute, resolved), whatever links its path
 * had and whatever was exchanged since: the system is asked for the descriptor's own path. Also where it does not tell. */
int gr_file_below(const gr_file *f, const char *root, graft_error *err);
/* Where the last part of a path begins, and its length, without slashes at the end. */
const char *gr_path_last(const char *path, size_t *length);
/* Whether `path` (absolute, resolved) is `root` or lies below it. */
bool gr_path_below(const char *path, const char *root);
/* Reads exactly `length` bytes at `offset`; repeats after EINTR and short reads.
 * Errors: CHANGED_WHILE_READING (the file ended early), IO_ERROR. */
int gr_file_read(const gr_file *f, void *out, size_t length, uint64_t offset, graft_error *err);
/* Fails with CHANGED_WHILE_READING unless size and time of writing are still those of gr_file_open. */
int gr_file_unchanged(const gr_file *f, graft_error *err);

/* Reads a whole file of at most `max` bytes into a NUL-terminated block of the caller's (gr_free).
 * Errors: those above, TOO_LARGE. */
int gr_file_read_whole(char **out, size_t *length, const gr_file *f, size_t max, graft_error *err);
/* The same with opening and closing. */
int gr_file_read_all(char **out, size_t *length, int dir_fd, const char *path, size_t max, graft_error *err);

#endif
