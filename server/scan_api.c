/*
 * A scan of the folder that adapters come from, told line by line while it goes on. It runs on the worker; each find becomes
 * a line in a bounded buffer, which the loop sends. When the client leaves the scan stops; what it registered stays.
 */
#include "names.h"
#include "route.h"

#include "base/memory.h"

#include <stdatomic.h>
#include <stddef.h>
#include <string.h>

/* Of lines that wait to be sent; a client that reads slower than a folder is scanned misses lines, not the summary. */
enum { LINES_MOST = 4 << 20 };

typedef struct scan {
    srv_task task; /* first */
    srv_post post; /* lines wait */
    server *s;
    srv_exchange *x; /* NULL: the client left */
    atomic_bool left;
    gr_mutex lock; /* the next two */
    gr_buffer lines;
    size_t missed;
    /* what came of it */
    int code;
    graft_error err;
    graft_scan_summary found;
} scan;

/* ---- on the worker ------------------------------------------------------------------------------------ */

static void write_item(srv_writer *w, const graft_scan_item *item) {
    char id[SRV_ID_SIZE];
    srv_open(w, '{');
    srv_put_string(w, "path", item->path);
    srv_put_string(w, "id", *item->project ? srv_name_id(id, item->project, item->adapter) : NULL);
    srv_put_string(w, "outcome", graft_scan_outcome_name(item->outcome));
    srv_put_string(w, "code", item->code ? graft_error_name(item->code) : NULL);
    srv_put_string(w, "message", item->message);
    srv_close(w, '}');
}

static bool on_item(const graft_scan_item *item, void *user) {
    scan *n = user;
    srv_writer w;
    srv_writer_init(&w);
    write_item(&w, item);
    gr_buffer_puts(&w.out, "\n");
    gr_mutex_lock(&n->lock);
    if (w.out.failed || n->lines.length + w.out.length > LINES_MOST || !gr_buffer_append(&n->lines, w.out.data, w.out.length)) {
        n->missed++;
    }
    gr_mutex_unlock(&n->lock);
    srv_writer_finish(&w);
    srv_loop_post(&n->s->loop, &n->post);
    return !atomic_load(&n->left) && !atomic_load(&n->s->stopping);
}

static void run_scan(srv_task *t) {
    scan *n = (scan *)(void *)t; /* its first member */
    n->code = graft_registry_scan(n->s->registry, n->s->root, on_item, n, &n->found, &n->err);
}

/* ---- on the loop -------------------------------------------------------------------------------------- */

static void send_lines(scan *n) {
    gr_mutex_lock(&n->lock);
    if (n->x && n->lines.length && !n->lines.failed) {
        srv_stream_bytes(n->x, n->lines.data, n->lines.length);
    }
    gr_buffer_clear(&n->lines);
    gr_mutex_unlock(&n->lock);
}

static void on_post(srv_post *post) {
    send_lines((scan *)(void *)((char *)post - offsetof(scan, post)));
}

static void write_summary(srv_writer *w, const scan *n) {
    const graft_scan_summary *f = &n->found;
    srv_open(w, '{');
    srv_put_bool(w, "done", true);
    srv_put_bool(w, "complete", f->complete);
    srv_put_integer(w, "entries", (int64_t)f->entries);
    srv_put_integer(w, "added", (int64_t)f->added);
    srv_put_integer(w, "known", (int64_t)f->known);
    srv_put_integer(w, "broken", (int64_t)f->broken);
    srv_put_integer(w, "refused", (int64_t)f->refused);
    srv_put_integer(w, "skipped", (int64_t)f->skipped);
    srv_put_integer(w, "lines_missed", (int64_t)n->missed);
    srv_close(w, '}');
}

static void finish_reply(scan *n) {
    srv_writer w;
    srv_fault f;
    srv_writer_init(&w);
    if (n->code) {
        srv_fault_from(&f, &n->err);
        srv_fault_write(&w, n->x, &f);
    } else {
        write_summary(&w, n);
    }
    srv_stream_event(n->x, &w);
    srv_writer_finish(&w);
    srv_stream_end(n->x);
}

/* Posts run in order and the worker is done: none of this scan's is behind this one. */
static void scan_done(srv_task *t) {
    scan *n = (scan *)(void *)t;
    send_lines(n);
    if (n->x) {
        finish_reply(n);
    }
    gr_buffer_finish(&n->lines);
    gr_mutex_finish(&n->lock);
    gr_free(n);
}

static void on_gone(srv_exchange *x, void *user) {
    scan *n = user;
    (void)x;
    n->x = NULL;
    atomic_store(&n->left, true);
}

static scan *new_scan(srv_exchange *x) {
    scan *n = gr_zalloc(sizeof *n);
    if (n) {
        n->task.run = run_scan;
        n->task.done = scan_done;
        n->post.fn = on_post;
        n->s = x->s;
        n->x = x;
        gr_mutex_init(&n->lock, SRV_RANK_JOB);
        gr_buffer_init(&n->lines, LINES_MOST);
    }
    return n;
}

static void start(srv_exchange *x) {
    scan *n = new_scan(x);
    if (!n) {
        srv_reply_no_memory(x);
    } else if (!srv_work_add(x->s->work, &n->task)) {
        gr_buffer_finish(&n->lines);
        gr_mutex_finish(&n->lock);
        gr_free(n);
        srv_reply_error(x, 429, "queue_full", NULL, "too many changes of adapters are waiting");
    } else {
        x->user = n;
        x->gone = on_gone;
        srv_stream_begin(x, SRV_NDJSON);
    }
}

void srv_post_scan(srv_exchange *x) {
    if (!x->s->registry || !*x->s->root) {
        srv_reply_error(x, 409, "outside_root", NULL, "the server was started without a folder for adapters");
    } else if (x->s->drain_until) {
        srv_reply_shutting_down(x);
    } else {
        start(x);
    }
}
