/* From path to adapter: open, verify, build; in one step or in two. */
#include "opened.h"

#include "base/clock.h"
#include "base/memory.h"

#include <stdio.h>
#include <string.h>

struct gr_opened {
    gr_source *source;
    gr_plan *plan;
    gr_report report; /* the plan borrows nothing of it; its texts are for the log */
    graft_adapter_type type;
    const gr_log *log;
    double ms;        /* opening and verifying */
};

static void log_warnings(const gr_log *log, const char *path, const gr_report *report) {
    char q[GR_QUOTE_SIZE];
    gr_quote(q, path, strlen(path));
    char before[GR_QUOTE_SIZE + 16];
    snprintf(before, sizeof before, "adapter %s: ", q);
    gr_log_warnings(log, before, report);
}

int gr_opened_make(gr_opened **out, const gr_base_model *base, const char *path, graft_adapter_type type, gr_source_limits limits,
                   const gr_log *log, graft_error *err) {
    int64_t start = gr_now_us();
    gr_opened *o = gr_zalloc(sizeof *o);
    if (!o) {
        return gr_fail_memory(err, sizeof *o);
    }
    o->type = type;
    o->log = log;
    gr_report_init(&o->report);
    graft_error why;
    int rc = gr_source_open(&o->source, path, limits, &o->report, &why);
    rc = rc ? gr_report_end(&o->report, &why, err) : gr_verify(&o->plan, base, o->source, &o->report, err);
    log_warnings(log, path, &o->report);
    if (rc) {
        gr_opened_free(o);
        return rc;
    }
    o->ms = (double)(gr_now_us() - start) / 1000.0;
    *out = o;
    return 0;
}

uint64_t gr_opened_bytes(const gr_opened *o) {
    return gr_adapter_size(o->plan, o->type);
}

size_t gr_opened_modules(const gr_opened *o) {
    return o->plan->n;
}

int gr_opened_build(gr_adapter **out, gr_opened *o, graft_error *err) {
    int64_t start = gr_now_us();
    gr_adapter *a = NULL;
    int rc = gr_adapter_build(&a, o->plan, o->type, err);
    if (!rc) {
        a->load_ms = o->ms + (double)(gr_now_us() - start) / 1000.0;
        if (a->no_effect) {
            char q[GR_QUOTE_SIZE];
            gr_log_line(o->log, GRAFT_LOG_WARN, "adapter %s: every A or B is zero, it cannot change an answer",
                        gr_quote(q, a->path, strlen(a->path)));
        }
        *out = a;
    }
    gr_opened_free(o);
    return rc;
}

void gr_opened_free(gr_opened *o) {
    if (o) {
        gr_plan_free(o->plan);
        gr_source_close(o->source);
        gr_report_finish(&o->report);
        gr_free(o);
    }
}

int gr_adapter_open(gr_adapter **out, const gr_base_model *base, const char *path, graft_adapter_type type,
                    uint64_t max_bytes, const gr_log *log, graft_error *err) {
    gr_opened *o = NULL;
    int rc = gr_opened_make(&o, base, path, type, (gr_source_limits){max_bytes, NULL}, log, err);
    return rc ? rc : gr_opened_build(out, o, err);
}
