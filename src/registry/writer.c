/* The writer thread: the only one that speaks to SQLite, so that nobody else ever waits for a disk by accident. */
#include "state.h"

#include "base/clock.h"

#include <string.h>
#include <unistd.h>

enum { FLUSH_RETRY_US = 10000000 };

static int run_task(graft_registry *r, gr_task *t, graft_error *err) {
    int rc = 0;
    if (t->writes && (rc = gr_store_begin(&r->store, err)) != 0) {
        return rc;
    }
    rc = t->run(r, t, err);
    if (t->writes && rc) {
        gr_store_rollback(&r->store);
    } else if (t->writes) {
        rc = gr_store_commit(&r->store, err);
    }
    if (!rc && t->apply) {
        gr_mutex_lock(&r->index.mutex);
        t->apply(r, t);
        gr_mutex_unlock(&r->index.mutex);
    }
    if (!rc && t->backup) {
        gr_backup_if_due(r, 1);
    }
    return rc;
}

/* Called without the mutex. Says a failure once, not once a second. */
static void flush(graft_registry *r) {
    graft_error err;
    int rc = gr_history_flush(r, &err);
    if (rc && !r->flush_failed) {
        gr_log_line(&r->log, GRAFT_LOG_ERROR, "history is not being written: %s: %s", graft_error_name(rc), err.message);
    } else if (!rc && r->flush_failed) {
        gr_log_line(&r->log, GRAFT_LOG_INFO, "history is being written again");
    }
    r->flush_failed = rc != 0;
    gr_mutex_lock(&r->index.mutex);
    uint64_t lost = r->lost_notes;
    r->lost_notes = 0;
    if (rc) {
        r->flush_at = gr_now_us() + FLUSH_RETRY_US;
    }
    gr_mutex_unlock(&r->index.mutex);
    if (lost) {
        gr_log_line(&r->log, GRAFT_LOG_WARN, "%llu events came too fast to be logged; they are counted",
                    (unsigned long long)lost);
    }
}

static gr_task *take_task(graft_registry *r) {
    gr_task *t = r->first;
    if (t) {
        r->first = t->next;
        r->last = r->first ? r->last : NULL;
    }
    return t;
}

static void *writer_main(void *arg) {
    graft_registry *r = arg;
    gr_mutex *m = &r->index.mutex;
    gr_mutex_lock(m);
    for (;;) {
        gr_task *t = take_task(r);
        if (t) {
            gr_mutex_unlock(m);
            int rc = run_task(r, t, &t->error);
            gr_mutex_lock(m);
            t->rc = rc;
            t->done = true; /* from here on it is its caller's */
            gr_cond_broadcast(&r->ended);
            gr_mutex_unlock(m);
            gr_backup_if_due(r, GR_BACKUP_EVERY);
            gr_mutex_lock(m);
        } else if (r->stop) {
            break;
        } else if (r->flush_at && gr_now_us() >= r->flush_at) {
            r->flush_at = 0;
            gr_mutex_unlock(m);
            flush(r);
            gr_backup_if_due(r, GR_BACKUP_EVERY);
            gr_mutex_lock(m);
        } else if (r->flush_at) {
            gr_cond_wait_until(&r->work, m, r->flush_at);
        } else {
            gr_cond_wait(&r->work, m);
        }
    }
    gr_mutex_unlock(m);
    if (!r->read_only) {
        flush(r);
        gr_backup_if_due(r, 1);
    }
    return NULL;
}

int gr_writer_start(graft_registry *r, graft_error *err) {
    int rc = gr_thread_start(&r->thread, writer_main, r);
    if (rc) {
        return gr_fail(err, GRAFT_E_OUT_OF_MEMORY, "could not start the registry's thread: %s", strerror(rc));
    }
    r->running = true;
    return 0;
}

void gr_writer_stop(graft_registry *r) {
    if (r->running) {
        gr_mutex_lock(&r->index.mutex);
        r->stop = true;
        gr_cond_signal(&r->work);
        gr_mutex_unlock(&r->index.mutex);
        gr_thread_join(r->thread);
        r->running = false;
    }
}

int gr_writer_do(graft_registry *r, gr_task *t, graft_error *err) {
    if (t->writes && r->read_only) {
        return gr_fail(err, GRAFT_E_REGISTRY_BUSY, "the registry was opened for reading only");
    }
    if (getpid() != r->pid) {
        return gr_fail(err, GRAFT_E_INTERNAL, "the registry belongs to process %ld: a fork must open its own", (long)r->pid);
    }
    t->done = false;
    t->next = NULL;
    gr_mutex_lock(&r->index.mutex);
    if (r->last) {
        r->last->next = t;
    } else {
        r->first = t;
    }
    r->last = t;
    gr_cond_signal(&r->work);
    while (!t->done) {
        gr_cond_wait(&r->ended, &r->index.mutex);
    }
    gr_mutex_unlock(&r->index.mutex);
    if (t->rc && err) {
        *err = t->error;
    }
    return t->rc;
}
