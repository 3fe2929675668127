/* What can be seen from outside: counters, memory, health. */
#include "api.h"

#include "base/memory.h"
#include "loader/budget.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>

void graft_get_metrics(graft *g, graft_metrics *out) {
    gr_loader_metrics(g->loader, out);
}

/* ---- memory --------------------------------------------------------------------------------------------- */

void graft_memory_report(graft *g, graft_memory *out) {
    graft_metrics m;
    gr_loader_metrics(g->loader, &m);
    *out = (graft_memory){
        .limit = g->memory_limit,
        .machine = gr_machine_memory(),
        .weights = g->base->weight_bytes,
        .context = gr_engine_context_bytes(g->engine),
        .own = gr_backend_own_bytes(g),
        .resident = m.resident,
        .loading = m.loading,
        .draining = m.draining,
        .by_path = atomic_load(&g->path_charged),
        .twins = gr_engine_twin_bytes(g->engine),
        .process = gr_process_memory(),
        .n_resident = m.n_resident,
        .max_adapters = (uint64_t)g->max_adapters,
    };
    out->counted = out->weights + out->context + out->own + out->resident + out->loading + out->draining + out->by_path;
}

/* ---- health --------------------------------------------------------------------------------------------- */

#define STALLED_US 30000000        /* a step that takes longer is worth a word … */
#define HANGS_US 120000000         /* … and one that takes so long does not come back */
#define RECENT_US 60000000         /* failures count for so long */
#define QUEUE_LONG 1024
#define FULL 0.9

const char *graft_health_name(graft_health_state s) {
    switch (s) {
    case GRAFT_HEALTHY: return "healthy";
    case GRAFT_DEGRADED: return "degraded";
    case GRAFT_UNHEALTHY: return "unhealthy";
    }
    return "unknown";
}

static void GR_PRINTF(4, 5) add(graft_health *h, graft_health_state state, const char *name, const char *format, ...) {
    if (h->n_reasons < GRAFT_HEALTH_REASONS) {
        struct graft_health_reason *r = &h->reasons[h->n_reasons++];
        va_list args;
        r->state = state;
        r->name = name;
        va_start(args, format);
        vsnprintf(r->text, sizeof r->text, format, args);
        va_end(args);
    }
    h->state = state > h->state ? state : h->state;
}

static void check_decoding(const graft *g, graft_health *h) {
    int64_t stalled = gr_engine_stalled_us(g->engine);
    size_t waiting, active;
    gr_engine_load(g->engine, &waiting, &active);
    if (stalled > STALLED_US) {
        add(h, stalled > HANGS_US ? GRAFT_UNHEALTHY : GRAFT_DEGRADED, "decoding_stalled", "one step has taken %.0f s so far",
            (double)stalled / 1e6);
    }
    if (waiting > QUEUE_LONG) {
        add(h, GRAFT_DEGRADED, "queue_long", "%zu requests wait, %zu run", waiting, active);
    }
    if (!gr_engine_rows_work(g->engine) && !g->base->offloaded) {
        add(h, GRAFT_DEGRADED, "rows_do_not_work", "adapters are applied grouped: %.150s", gr_engine_apply_reason(g->engine));
    }
}

static void check_memory(const graft *g, const graft_metrics *m, graft_health *h) {
    uint64_t process = gr_process_memory(), held = m->fixed + m->held + m->loading + m->draining;
    bool movable = m->resident > m->held;
    if (process > g->memory_limit) {
        add(h, movable ? GRAFT_DEGRADED : GRAFT_UNHEALTHY, "memory_over",
            "the process takes %" PRIu64 " bytes, the limit is %" PRIu64, process, g->memory_limit);
    } else if ((double)held > FULL * (double)g->memory_limit) {
        add(h, GRAFT_DEGRADED, "memory_high", "%" PRIu64 " of %" PRIu64 " bytes are in use and cannot be evicted", held,
            g->memory_limit);
    }
}

static void check_loads(const gr_recent *r, graft_health *h) {
    if (r->working_us > STALLED_US) {
        add(h, GRAFT_DEGRADED, "loads_stalled", "one load has taken %.0f s so far", (double)r->working_us / 1e6);
    }
    if (r->failed_us_ago >= 0 && r->failed_us_ago < RECENT_US) {
        add(h, GRAFT_DEGRADED, "loads_fail", "an adapter could not be loaded %.0f s ago: %s", (double)r->failed_us_ago / 1e6,
            graft_error_name(r->failed_code));
    }
    if (r->busy_us_ago >= 0 && r->busy_us_ago < RECENT_US) {
        add(h, GRAFT_DEGRADED, "no_room", "%.0f s ago an adapter found no room: all in memory were in use",
            (double)r->busy_us_ago / 1e6);
    }
}

void graft_health_check(graft *g, graft_health *out) {
    graft_metrics m;
    gr_recent recent;
    *out = (graft_health){.state = GRAFT_HEALTHY};
    gr_loader_metrics(g->loader, &m);
    gr_loader_recent(g->loader, &recent);
    check_decoding(g, out);
    check_memory(g, &m, out);
    check_loads(&recent, out);
}
