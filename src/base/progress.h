/* How far something long has come, and whether it is to go on. */
#ifndef GR_PROGRESS_H
#define GR_PROGRESS_H

#include "error.h"

#include <stdint.h>

typedef struct gr_progress {
    graft_progress_fn fn; /* NULL = nobody asks */
    void *user;
    uint64_t done, total; /* in whatever the caller counts */
} gr_progress;

/* So much more is done; asks the caller whether to go on. `what` is for the message. Errors: CANCELLED. */
int gr_progress_add(gr_progress *p, uint64_t n, const char *what, graft_error *err);

#endif
