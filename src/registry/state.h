/*
 * What a registry consists of, for the files in this folder.
 *
 * Threads. One writer thread owns the store: every statement runs on it, handed over as a task, and the callers of
 * changes wait for their task. Requests (find, record) take the index's mutex for a moment and never wait for the disk.
 */
#ifndef GR_REGISTRY_STATE_H
#define GR_REGISTRY_STATE_H

#include "base/log.h"
#include "registry/index.h"
#include "registry/keys.h"
#include "registry/lock.h"
#include "registry/registry.h"
#include "registry/store.h"

#include <sys/types.h>

typedef struct gr_task gr_task;

/* Something for the writer thread to do; embedded in a struct with what it needs. */
struct gr_task {
    /* With `writes`, inside a transaction: does the statements and prepares (allocates) what apply will need. */
    int (*run)(graft_registry *r, gr_task *task, graft_error *err);
    /* After the commit, with the mutex held; cannot fail. May be NULL. */
    void (*apply)(graft_registry *r, gr_task *task);
    bool writes;
    bool backup; /* the copy beside the file is made anew before it is done */
    bool done;
    int rc;
    graft_error error;
    gr_task *next;
};

/* An event on its way into the log. */
typedef struct gr_note {
    struct gr_note *next;
    int64_t at;
    gr_event_kind kind;
    int code;
    uint64_t bytes;
    double ms;
    char generation[65];
    char project[GR_NAME_MAX + 1], adapter[GR_NAME_MAX + 1];
    char message[];
} gr_note;

struct graft_registry {
    gr_index index;       /* its mutex also guards the fields marked (m) */
    gr_keys keys;         /* as the index: the writer thread changes them, with the mutex held */
    gr_store store;       /* writer thread */
    gr_lock lock;
    gr_log log;
    bool read_only;
    char *root;           /* resolved, or NULL */
    uint64_t max_adapter_bytes;
    pid_t pid;            /* of the process that opened it */

    pthread_t thread;
    bool running;         /* the thread was started */
    bool stop;            /* (m) */
    gr_task *first, *last; /* (m) waiting tasks */
    gr_cond work;         /* a task, a new flush_at, or stop */
    gr_cond ended;        /* some task is done */

    gr_note *notes, *last_note; /* (m) oldest first */
    size_t n_notes;       /* (m) at most GR_NOTES */
    uint64_t lost_notes;  /* (m) */
    int64_t flush_at;     /* (m) when what is dirty gets written, on gr_now_us's clock; 0 = nothing is */
    bool flush_failed;    /* writer thread: said so already */
    const char *base;     /* (m) interned; of the base that is in use, or "" */

    uint64_t backed_up;   /* writer thread: store.commits when the backup was made */
    bool backup_failed;   /* writer thread: said so already */

    gr_registry_watch_fn watch; /* (m) NULL = nobody watches */
    void *watch_user;     /* (m) */
    size_t telling;       /* (m) calls of a watcher that have not returned */
    gr_cond told;         /* telling fell to 0 */
};

#define GR_NOTES 1024          /* events waiting; more are lost, and counted */
#define GR_EVENTS_KEPT 10000   /* in the file */

/* writer.c */
int gr_writer_start(graft_registry *r, graft_error *err);
/* Ends it, after the tasks that wait and a last flush. */
void gr_writer_stop(graft_registry *r);
/* Has the task done and waits. Errors: REGISTRY_BUSY (read-only, for one that writes), INTERNAL (after a fork), its own. */
int gr_writer_do(graft_registry *r, gr_task *task, graft_error *err);

/* history.c */
/* For the catalog. */
void gr_history_record(void *registry, const gr_event *event);
/* Writer thread: writes what is dirty. Failures leave it dirty, for the next time. */
int gr_history_flush(graft_registry *r, graft_error *err);
void gr_history_free_notes(gr_note *notes);
/* A row's generation from 64 hex digits or ""; false if it is neither (the row then has none). And back. */
bool gr_generation_set(gr_row *row, const char *hex);
void gr_generation_get(const gr_row *row, char out[65]);

/* backup.c. Writer thread: makes the backup anew, if `due` changes were made since. Says failures in the log, once. */
#define GR_BACKUP_EVERY 256
void gr_backup_if_due(graft_registry *r, uint64_t due);
/* Adds to the REGISTRY_INVALID in *err what can be done about it. `path` as resolved. */
void gr_backup_mention(const char *path, bool not_ours, graft_error *err);

/* watch.c. Tells the watcher, if there is one. No mutex may be held. */
void gr_registry_tell(graft_registry *r, gr_registry_change change, const char *project, const char *adapter);

/* registry.c. Takes the lock that belongs to the registry at `path`, as resolved. */
int gr_registry_lock(gr_lock *out, const char *path, int wait_ms, graft_error *err);

/* load.c. Opening: reads all of the file into the index. */
int gr_registry_load(graft_registry *r, graft_error *err);

/* The clock of rows: seconds since 1970. */
int64_t gr_wall_seconds(void);

#endif
