/* Telling the watcher of changes. The call itself runs with no mutex held, so it is counted while it runs: that is what
 * gr_registry_unwatch waits for. */
#include "state.h"

int gr_registry_watch(gr_registry *r, gr_registry_watch_fn fn, void *user, graft_error *err) {
    gr_mutex_lock(&r->index.mutex);
    bool taken = r->watch != NULL;
    if (!taken) {
        r->watch = fn;
        r->watch_user = user;
    }
    gr_mutex_unlock(&r->index.mutex);
    return taken ? gr_fail(err, GRAFT_E_CONFLICT, "the registry serves another instance") : 0;
}

void gr_registry_unwatch(gr_registry *r) {
    gr_mutex_lock(&r->index.mutex);
    r->watch = NULL;
    while (r->telling > 0) {
        gr_cond_wait(&r->told, &r->index.mutex);
    }
    gr_mutex_unlock(&r->index.mutex);
}

void gr_registry_tell(gr_registry *r, gr_registry_change change, const char *project, const char *adapter) {
    gr_mutex_lock(&r->index.mutex);
    gr_registry_watch_fn fn = r->watch;
    void *user = r->watch_user;
    r->telling += fn != NULL;
    gr_mutex_unlock(&r->index.mutex);
    if (!fn) {
        return;
    }
    fn(user, change, project, adapter);
    gr_mutex_lock(&r->index.mutex);
    if (--r->telling == 0) {
        gr_cond_broadcast(&r->told);
    }
    gr_mutex_unlock(&r->index.mutex);
}
