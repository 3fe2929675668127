#include "progress.h"

int gr_progress_add(gr_progress *p, uint64_t n, const char *what, graft_error *err) {
    p->done += n;
    float fraction = p->total ? (float)((double)p->done / (double)p->total) : 1.0f;
    bool go = !p->fn || p->fn(fraction < 1 ? fraction : 1, p->user);
    return go ? 0 : gr_fail(err, GRAFT_E_CANCELLED, "%s was cancelled", what);
}
