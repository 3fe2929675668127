/* Birth and end of a loader, what is done to names, and what can be seen of it. */
#include "loader_state.h"

#include "base/clock.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* ---- what the other files share --------------------------------------------------------------------------- */

void gr_split_key(char project[GR_NAME_MAX + 1], char adapter[GR_NAME_MAX + 1], const char *key) {
    const char *slash = strchr(key, '/');
    snprintf(project, GR_NAME_MAX + 1, "%.*s", (int)(slash - key), key);
    snprintf(adapter, GR_NAME_MAX + 1, "%s", slash + 1);
}

void gr_bury(gr_loader *l, gr_version *dead) {
    while (dead) {
        gr_version *next = dead->queue_next;
        int64_t start = gr_now_us();
        if (dead->given_up) {
            gr_record(l, GR_EVENT_UNLOADED, dead->slot->key, dead->revision, &dead->loaded, 0, NULL);
        }
        l->o.backend.free(l->o.backend.self, dead->loaded.adapter);
        int64_t took = gr_now_us() - start;
        gr_mutex_lock(&l->mutex);
        gr_histogram_add(&l->table.metrics.evict_us, took);
        gr_table_freed(&l->table, dead);
        gr_flight_unpark(l);
        gr_mutex_unlock(&l->mutex);
        dead = next;
    }
}

void gr_tell(gr_loader *l, const char *key, gr_event event, const gr_loaded *loaded, const graft_error *err) {
    if (!l->o.catalog.record) {
        return;
    }
    char project[GR_NAME_MAX + 1], adapter[GR_NAME_MAX + 1];
    gr_split_key(project, adapter, key);
    event.project = project;
    event.adapter = adapter;
    event.generation = "";
    if (loaded) {
        event.generation = loaded->generation;
        event.bytes = loaded->bytes;
        event.format = loaded->format;
        event.rank = loaded->rank;
    }
    if (err) {
        event.code = err->code;
        event.message = err->message;
    }
    l->o.catalog.record(l->o.catalog.self, &event);
}

void gr_record(gr_loader *l, gr_event_kind kind, const char *key, uint64_t revision, const gr_loaded *loaded, double ms,
               const graft_error *err) {
    gr_tell(l, key, (gr_event){.kind = kind, .revision = revision, .ms = ms}, loaded, err);
}

void gr_loader_say(gr_loader *l, graft_log_level level, const char *key, const char *generation, int code,
                   const char *format, ...) {
    if (!l->o.log || !l->o.log->fn) {
        return;
    }
    char project[GR_NAME_MAX + 1], adapter[GR_NAME_MAX + 1], text[600];
    gr_split_key(project, adapter, key);
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    const graft_log_entry about = {
        .level = level, .project = project, .adapter = adapter, .generation = generation, .code = code};
    gr_log_about(l->o.log, &about, "adapter %s: %s", key, text);
}

void gr_say_evicted(gr_loader *l, const gr_version *evicted) {
    for (const gr_version *e = evicted; e; e = e->queue_next) {
        gr_loader_say(l, GRAFT_LOG_INFO, e->slot->key, e->loaded.generation, 0, "evicted, %" PRIu64 " bytes", e->loaded.bytes);
        gr_record(l, GR_EVENT_EVICTED, e->slot->key, e->revision, &e->loaded, 0, NULL);
    }
}

void gr_record_fallback(gr_loader *l, const char *key, const graft_error *why) {
    gr_loader_say(l, GRAFT_LOG_WARN, key, NULL, why->code, "the base answers instead: %s: %s", graft_error_name(why->code),
                  why->message);
    gr_record(l, GR_EVENT_FALLBACK, key, 0, NULL, 0, why);
}

/* ---- unload, pin, pressure ---- */

int gr_loader_unload(gr_loader *l, const char *project, const char *adapter, uint64_t *freed, uint64_t *pending,
                     graft_error *err) {
    gr_version *dead = NULL;
    uint64_t now = 0, later = 0;
    gr_mutex_lock(&l->mutex);
    gr_slot *slot = gr_table_find(&l->table, project, adapter);
    gr_version *v = slot ? slot->resident : NULL;
    bool found = v || (slot && slot->flight);
    uint64_t revision = v ? v->revision : 0;
    char key[GR_KEY_SIZE] = "";
    gr_loaded said = {0};
    if (slot && slot->flight) { /* its waiters get it, the name does not */
        slot->flight->unwanted = true;
        slot->flight = NULL;
    }
    if (v) {
        said = v->loaded; /* for who is told without the mutex, when it may be gone */
        snprintf(key, sizeof key, "%s", slot->key);
        *(v->leases ? &later : &now) += v->loaded.bytes;
        gr_table_detach(&l->table, v, &dead);
        l->table.metrics.unloads++;
    }
    gr_mutex_unlock(&l->mutex);
    if (!found) {
        return gr_fail(err, GRAFT_E_NOT_FOUND, "%s/%s is not loaded", project, adapter);
    }
    if (key[0]) {
        gr_record(l, GR_EVENT_UNLOADED, key, revision, &said, 0, NULL);
    }
    gr_bury(l, dead);
    *freed = now;
    *pending = later;
    return 0;
}

int gr_loader_pin(gr_loader *l, const char *project, const char *adapter, bool pinned, graft_error *err) {
    gr_mutex_lock(&l->mutex);
    atomic_fetch_add(&l->pin_events, 1);
    gr_slot *slot = gr_table_find(&l->table, project, adapter);
    bool there = slot && (slot->resident || slot->flight);
    if (there || (slot && !pinned)) {
        gr_table_pin(&l->table, slot, pinned);
        gr_flight_unpark(l);
    }
    gr_mutex_unlock(&l->mutex);
    return there || !pinned ? 0 : gr_fail(err, GRAFT_E_NOT_FOUND, "%s/%s is not loaded", project, adapter);
}

uint64_t gr_loader_relieve(gr_loader *l, uint64_t bytes) {
    uint64_t freed = 0;
    while (freed < bytes) {
        gr_version *dead = NULL;
        gr_mutex_lock(&l->mutex);
        gr_policy_entry *victim = gr_policy_evict(l->table.policy, 0);
        if (victim) {
            gr_version *v = GR_VERSION_OF(victim);
            freed += v->loaded.bytes;
            gr_table_evicted(&l->table, v, &dead);
        }
        gr_mutex_unlock(&l->mutex);
        if (!victim) {
            break;
        }
        gr_say_evicted(l, dead);
        gr_bury(l, dead);
    }
    return freed;
}

/* ---- bytes that no name reaches -------------------------------------------------------------------------- */

#define FREEING_US 1000 /* between two looks at whether another thread has freed something */

/* Whether memory is on its way back without anybody's doing. The mutex is held. */
static bool is_freeing(const gr_loader *l) {
    bool freeing = false;
    for (const gr_version *v = l->table.versions; v && !freeing; v = v->next) {
        freeing = v->state == GR_DRAINING && v->leases == 0;
    }
    return freeing;
}

int gr_loader_charge(gr_loader *l, uint64_t bytes, graft_error *err) {
    for (;;) {
        gr_mutex_lock(&l->mutex);
        gr_budget *b = &l->table.budget;
        uint64_t free_now = gr_budget_free(b), limit = b->limit;
        bool fits = bytes <= free_now;
        b->fixed += fits ? bytes : 0;
        bool freeing = is_freeing(l) && !l->stop;
        bool helps = gr_table_eviction_helps(&l->table, bytes);
        gr_mutex_unlock(&l->mutex);
        if (fits) {
            return 0;
        }
        bool relieved = helps && gr_loader_relieve(l, bytes - free_now) > 0;
        if (!relieved && freeing) { /* another thread has it in hand */
            gr_sleep_us(FREEING_US);
        } else if (!relieved) {
            return gr_fail(err, GRAFT_E_BUDGET_EXHAUSTED,
                           "needs %" PRIu64 " bytes, %" PRIu64 " of the limit of %" PRIu64 " are free", bytes, free_now,
                           limit);
        }
    }
}

void gr_loader_discharge(gr_loader *l, uint64_t bytes) {
    gr_mutex_lock(&l->mutex);
    l->table.budget.fixed -= bytes;
    gr_flight_unpark(l);
    gr_mutex_unlock(&l->mutex);
}

/* ---- looking ---- */

int gr_loader_list(gr_loader *l, gr_loaded_info **out, size_t *n, graft_error *err) {
    gr_mutex_lock(&l->mutex);
    size_t count = 0;
    for (const gr_version *v = l->table.versions; v; v = v->next) {
        count++;
    }
    gr_mutex_unlock(&l->mutex);
    /* A few more than there are now, since the allocation happens without the mutex. */
    size_t room = count + 16, filled = 0;
    gr_loaded_info *list = gr_calloc(room, sizeof *list);
    if (!list) {
        return gr_fail_memory(err, room * sizeof *list);
    }
    int64_t now = gr_now_us();
    gr_mutex_lock(&l->mutex);
    for (const gr_version *v = l->table.versions; v && filled < room; v = v->next) {
        gr_loaded_info *i = &list[filled++];
        gr_split_key(i->project, i->adapter, v->slot->key);
        memcpy(i->generation, v->loaded.generation, sizeof i->generation);
        i->state = gr_state_name(v->state);
        i->bytes = v->state == GR_LOADING ? v->reserved : v->loaded.bytes;
        i->leases = v->leases;
        i->pinned = v->slot->pinned;
        i->no_effect = v->loaded.no_effect;
        i->load_ms = v->load_ms;
        i->idle_us = v->leases || v->state == GR_LOADING ? 0 : now - v->last_used;
        i->hits = v->slot->hits;
    }
    gr_mutex_unlock(&l->mutex);
    *out = list;
    *n = filled;
    return 0;
}

void gr_loader_metrics(gr_loader *l, graft_metrics *out) {
    gr_mutex_lock(&l->mutex);
    *out = l->table.metrics;
    const gr_budget *b = &l->table.budget;
    out->limit = b->limit;
    out->fixed = b->fixed + b->own;
    out->resident = b->resident;
    out->loading = b->loading;
    out->draining = b->draining;
    out->held = l->table.held_bytes;
    out->n_resident = l->table.n_resident;
    out->n_loading = l->table.n_loading;
    out->n_draining = l->table.n_draining;
    out->n_leases = l->table.n_leases;
    gr_mutex_unlock(&l->mutex);
}

/* The longest time since what `field` of a loading version says. The mutex is held. */
#define LONGEST(l, field, now, out)                                               \
    for (const gr_version *v = (l)->table.versions; v; v = v->next) {             \
        if (v->state == GR_LOADING && v->field && (now) - v->field > *(out)) {    \
            *(out) = (now) - v->field;                                            \
        }                                                                         \
    }

void gr_loader_recent(gr_loader *l, gr_recent *out) {
    int64_t now = gr_now_us();
    gr_mutex_lock(&l->mutex);
    *out = (gr_recent){
        .failed_us_ago = l->failed_at ? now - l->failed_at : -1,
        .busy_us_ago = l->busy_at ? now - l->busy_at : -1,
        .failed_code = l->failed_code,
    };
    LONGEST(l, busy_since, now, &out->working_us)
    gr_mutex_unlock(&l->mutex);
}

int64_t gr_loader_starved_us(gr_loader *l) {
    int64_t now = gr_now_us(), longest = 0;
    gr_mutex_lock(&l->mutex);
    if (l->table.n_loading > 0) {
        LONGEST(l, short_since, now, &longest)
    }
    gr_mutex_unlock(&l->mutex);
    return longest;
}

bool gr_loader_check(gr_loader *l) {
    gr_mutex_lock(&l->mutex);
    bool ok = gr_table_check(&l->table);
    gr_mutex_unlock(&l->mutex);
    return ok;
}

/* ---- birth and end ---- */

static int start_threads(gr_loader *l, graft_error *err) {
    int wanted = l->o.threads > 0 ? l->o.threads : 2;
    wanted = wanted < GR_LOADER_THREADS ? wanted : GR_LOADER_THREADS;
    for (int i = 0; i < wanted; i++) {
        if (gr_thread_start(&l->threads[i], gr_loader_thread, l) != 0) {
            return gr_fail(err, GRAFT_E_OUT_OF_MEMORY, "could not start a loader thread");
        }
        l->n_threads = i + 1;
    }
    l->clerk_runs = gr_thread_start(&l->clerk_thread, gr_clerk_thread, l) == 0;
    return l->clerk_runs ? 0 : gr_fail(err, GRAFT_E_OUT_OF_MEMORY, "could not start the loader's clerk");
}

int gr_loader_create(gr_loader **out, const gr_loader_options *options, graft_error *err) {
    if (options->fixed_bytes >= options->memory_limit) {
        return gr_fail(err, GRAFT_E_BUDGET_EXHAUSTED,
                       "the base model and its caches need %" PRIu64 " bytes, the memory limit (memory_limit) is %" PRIu64,
                       options->fixed_bytes, options->memory_limit);
    }
    gr_loader *l = gr_zalloc(sizeof *l);
    if (!l) {
        return gr_fail_memory(err, sizeof *l);
    }
    l->o = *options;
    l->random = options->seed;
    l->table.budget.limit = options->memory_limit;
    l->table.budget.fixed = options->fixed_bytes;
    l->table.max_adapters = options->max_adapters;
    int rc = gr_policy_create(&l->table.policy, options->policy, gr_budget_capacity(&l->table.budget), err);
    if (rc) {
        gr_free(l);
        return rc;
    }
    gr_policy_limit_count(l->table.policy, (size_t)l->table.max_adapters);
    gr_mutex_init(&l->mutex, GR_RANK_LOADER);
    gr_cond_init(&l->work);
    gr_cond_init(&l->landed);
    gr_cond_init(&l->clerk);
    rc = start_threads(l, err);
    if (rc) {
        gr_loader_free(l);
        return rc;
    }
    *out = l;
    return 0;
}

/* Flights that no thread will take any more. */
static void cancel_flights(gr_loader *l) {
    graft_error err;
    gr_fail(&err, GRAFT_E_SHUTTING_DOWN, "the loader is closing");
    for (;;) {
        gr_mutex_lock(&l->mutex);
        gr_version *v = l->table.versions;
        while (v && v->state != GR_LOADING) {
            v = v->next;
        }
        gr_mutex_unlock(&l->mutex);
        if (!v) {
            return;
        }
        gr_flight_failed(l, v, &err);
    }
}

void gr_loader_stop(gr_loader *l) {
    gr_mutex_lock(&l->mutex);
    l->stop = true;
    l->queue_first = l->queue_last = NULL; /* what is queued ends in cancel_flights */
    gr_cond_broadcast(&l->work);
    gr_cond_broadcast(&l->clerk);
    gr_mutex_unlock(&l->mutex);
    while (l->n_threads > 0) {
        gr_thread_join(l->threads[--l->n_threads]);
    }
    if (l->clerk_runs) {
        gr_thread_join(l->clerk_thread);
        l->clerk_runs = false;
    }
    cancel_flights(l);
}

void gr_loader_free(gr_loader *l) {
    if (!l) {
        return;
    }
    gr_loader_stop(l);
    gr_mutex_lock(&l->mutex);
    gr_version *dead = l->dead;
    l->dead = NULL;
    for (gr_version *v = l->table.versions, *next; v; v = next) {
        next = v->next;
        if (v->state == GR_RESIDENT) {
            gr_table_detach(&l->table, v, &dead);
        }
    }
    gr_mutex_unlock(&l->mutex);
    gr_bury(l, dead);
    gr_table_finish(&l->table);
    gr_cond_finish(&l->clerk);
    gr_cond_finish(&l->landed);
    gr_cond_finish(&l->work);
    gr_mutex_finish(&l->mutex);
    gr_free(l);
}
