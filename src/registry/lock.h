/*
 * One writer per registry: an advisory lock on a file beside it, which the kernel gives back however the holder ends.
 * The file holds the holder's pid, so that a refusal can say who it is; the text alone locks nothing.
 */
#ifndef GR_LOCK_H
#define GR_LOCK_H

#include "base/error.h"

#include <stdint.h>

typedef struct gr_lock {
    int fd; /* -1 = not held */
} gr_lock;

/*
 * Tries for wait_us. Errors: REGISTRY_BUSY (names the pid), STORAGE_FULL (the lock file cannot be made). The file stays
 * when the lock is given back: removing it would let two processes hold locks on two files of one name.
 */
int gr_lock_take(gr_lock *out, const char *path, int64_t wait_us, graft_error *err);
void gr_lock_give(gr_lock *lock);

#endif
