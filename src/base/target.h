/*
 * A result on its way to the disk: a file, or a folder of files, written under another name beside its own, synced, and then
 * renamed. So the name stands for a whole result or for none, also after a crash.
 */
#ifndef GR_TARGET_H
#define GR_TARGET_H

#include "error.h"

#include <stdbool.h>
#include <stdint.h>

typedef struct gr_target {
    char *path;       /* without slashes at the end */
    char *temporary;  /* beside it; NULL: nothing was begun */
    bool folder;
    bool replace;
    int fd;           /* of the file that is being written; -1: none */
    uint64_t written; /* bytes of that file so far */
} gr_target;

/*
 * Begins. What is at `path` already is refused, or with `replace` takes leave when the new one is whole: a regular file for a
 * file, and for a folder one that holds nothing but files named in `names` (NULL-terminated; NULL for a file).
 * Of a file, writing may begin at once. *t is in any case to be ended by gr_target_commit or gr_target_abandon.
 * Errors: BAD_REQUEST (no name for a file), CONFLICT (what is there), STORAGE_FULL (cannot be made), OUT_OF_MEMORY.
 */
int gr_target_open(gr_target *t, const char *path, const char *const *names, bool replace, graft_error *err);
/* The next file of a folder; the one before is synced and closed. Errors: STORAGE_FULL, OUT_OF_MEMORY. */
int gr_target_file(gr_target *t, const char *name, graft_error *err);
/* Errors: STORAGE_FULL. */
int gr_target_write(gr_target *t, const void *bytes, size_t n, graft_error *err);
/* Zeros up to the next multiple of `alignment`. */
int gr_target_pad(gr_target *t, size_t alignment, graft_error *err);
/* Fails with STORAGE_FULL if the file system says that it has no room for so many bytes. */
int gr_target_room(const gr_target *t, uint64_t bytes, graft_error *err);
/* Syncs and renames; if that fails, everything is as it was. Ends *t. Errors: CONFLICT (something came there meanwhile),
 * STORAGE_FULL. `names` as above. */
int gr_target_commit(gr_target *t, const char *const *names, graft_error *err);
/* Removes what was written; harmless after gr_target_commit. */
void gr_target_abandon(gr_target *t, const char *const *names);

/* Whether `path` leads to this very file. */
bool gr_target_is_file(const char *path, uint64_t device, uint64_t inode);

#endif
