/* GET /v1/status: one picture of the whole server, for the dashboard and `graft ps`. Paths and texts with numbers and names
 * are for keys that may see everything; of a slot whose project the key must not see only that it is busy: lengths, and when
 * reading ends and writing begins, would tell of others' prompts. Sums over the whole server are for all keys. */
#include "auth.h"
#include "defaults.h"
#include "names.h"
#include "route.h"

#include "base/clock.h"

#include <string.h>
#include <time.h>

static void open_part(srv_writer *w, const char *key, char bracket) {
    srv_key(w, key);
    srv_open(w, bracket);
}

static void put_count(srv_writer *w, const char *key, uint64_t n) {
    srv_put_integer(w, key, (int64_t)n);
}

static void write_model(srv_writer *w, const srv_exchange *x) {
    graft_model_info m; /* anew: how adapters are applied may change */
    graft_model_get_info(x->s->g, &m);
    open_part(w, "model", '{');
    srv_put_string(w, "id", x->s->base_id);
    srv_put_string(w, "path", x->admin ? m.path : NULL);
    srv_put_integer(w, "context", m.context);
    srv_put_integer(w, "slots", m.slots);
    srv_put_string(w, "apply", m.apply == GRAFT_APPLY_ROWS ? "rows" : "grouped");
    srv_close(w, '}');
}

static void write_health(srv_writer *w, const srv_exchange *x) {
    graft_health h;
    graft_health_check(x->s->g, &h);
    open_part(w, "health", '{');
    srv_put_string(w, "state", graft_health_name(h.state));
    open_part(w, "reasons", '[');
    for (size_t i = 0; i < h.n_reasons; i++) {
        srv_open(w, '{');
        srv_put_string(w, "state", graft_health_name(h.reasons[i].state));
        srv_put_string(w, "name", h.reasons[i].name);
        srv_put_string(w, "text", x->admin ? h.reasons[i].text : NULL);
        srv_close(w, '}');
    }
    srv_close(w, ']');
    srv_close(w, '}');
}

static void write_memory(srv_writer *w, const server *s) {
    graft_memory m;
    graft_memory_report(s->g, &m);
    open_part(w, "memory", '{');
    put_count(w, "limit", m.limit);
    put_count(w, "machine", m.machine);
    put_count(w, "weights", m.weights);
    put_count(w, "context", m.context);
    put_count(w, "own", m.own);
    put_count(w, "resident", m.resident);
    put_count(w, "loading", m.loading);
    put_count(w, "draining", m.draining);
    put_count(w, "by_path", m.by_path);
    put_count(w, "twins", m.twins);
    put_count(w, "counted", m.counted);
    put_count(w, "process", m.process);
    put_count(w, "n_resident", m.n_resident);
    put_count(w, "max_adapters", m.max_adapters);
    srv_close(w, '}');
}

static void write_cache(srv_writer *w, const server *s) {
    graft_metrics m;
    uint64_t failures = 0;
    graft_get_metrics(s->g, &m);
    for (size_t i = 0; i < m.n_failures; i++) {
        failures += m.failures[i].n;
    }
    open_part(w, "cache", '{');
    put_count(w, "hits", m.hits);
    put_count(w, "misses", m.misses);
    srv_key(w, "hit_rate");
    if (m.hits + m.misses) {
        srv_number(w, (double)m.hits / (double)(m.hits + m.misses));
    } else {
        srv_null(w);
    }
    put_count(w, "loads", m.loads);
    put_count(w, "evictions", m.evictions);
    put_count(w, "unloads", m.unloads);
    put_count(w, "replacements", m.replacements);
    put_count(w, "retries", m.retries);
    put_count(w, "fallbacks", m.fallbacks);
    put_count(w, "busy", m.busy);
    put_count(w, "failures", failures);
    srv_put_number(w, "load_ms_p50", (double)graft_histogram_quantile(&m.load_us, 0.5) / 1e3);
    srv_put_number(w, "load_ms_p99", (double)graft_histogram_quantile(&m.load_us, 0.99) / 1e3);
    srv_close(w, '}');
}

static bool is_idle(const graft_slot *slot) {
    return strcmp(slot->state, "idle") == 0;
}

static void write_answers(srv_writer *w, const server *s, const graft_slot_list *slots, const graft_stats *t) {
    uint64_t running = 0;
    for (size_t i = 0; slots && i < slots->n; i++) {
        running += !is_idle(&slots->items[i]);
    }
    open_part(w, "answers", '{');
    put_count(w, "running", running);
    put_count(w, "waiting", t->waiting);
    put_count(w, "total", s->count.answers);
    put_count(w, "failed", s->count.failed);
    put_count(w, "cancelled", s->count.cancelled);
    put_count(w, "refused", s->count.refused);
    srv_close(w, '}');
}

static void write_tokens(srv_writer *w, const server *s, const graft_stats *t) {
    double prompt, completion;
    srv_rates_now(&s->rates, t, gr_now_us(), &prompt, &completion);
    open_part(w, "tokens", '{');
    put_count(w, "prompt", t->prompt_tokens);
    put_count(w, "cached", t->cached_tokens);
    put_count(w, "completion", t->completion_tokens);
    srv_put_number(w, "prompt_per_s", prompt);
    srv_put_number(w, "completion_per_s", completion);
    srv_close(w, '}');
}

static void write_slot(srv_writer *w, const srv_exchange *x, const graft_slot *slot) {
    char id[SRV_ID_SIZE];
    bool named = *slot->project, hidden = named && !srv_may(x, slot->project);
    srv_open(w, '{');
    srv_put_integer(w, "id", slot->slot);
    srv_put_string(w, "state", hidden ? "decode" : slot->state);
    srv_put_string(w, "adapter", named && !hidden ? srv_name_id(id, slot->project, slot->adapter) : NULL);
    srv_put_bool(w, "hidden", hidden);
    srv_put_integer(w, "prompt_tokens", hidden ? 0 : slot->prompt_tokens);
    srv_put_integer(w, "cached_tokens", hidden ? 0 : slot->cached_tokens);
    srv_put_integer(w, "completion_tokens", hidden ? 0 : slot->completion_tokens);
    srv_close(w, '}');
}

static void write_slots(srv_writer *w, const srv_exchange *x, const graft_slot_list *slots) {
    open_part(w, "slots", '[');
    for (size_t i = 0; slots && i < slots->n; i++) {
        write_slot(w, x, &slots->items[i]);
    }
    srv_close(w, ']');
}

static void write_current(srv_writer *w, const srv_exchange *x) {
    char id[SRV_ID_SIZE];
    const srv_default *d = srv_defaults_current(x->s);
    srv_put_string(w, "current", d && srv_may(x, d->project) ? srv_name_id(id, d->project, d->adapter) : NULL);
}

void srv_get_status(srv_exchange *x) {
    const server *s = x->s;
    int64_t up = (int64_t)time(NULL) - s->started;
    graft_slot_list *slots = NULL; /* none if memory is out */
    graft_stats t;
    srv_writer w;
    graft_slots(&slots, s->g, NULL);
    graft_get_stats(s->g, &t);
    srv_writer_init(&w);
    srv_open(&w, '{');
    srv_put_string(&w, "version", graft_version());
    srv_put_integer(&w, "uptime_s", up > 0 ? up : 0);
    srv_put_bool(&w, "draining", s->drain_until != 0);
    srv_put_bool(&w, "admin", x->admin);
    write_model(&w, x);
    write_health(&w, x);
    write_memory(&w, s);
    write_cache(&w, s);
    write_answers(&w, s, slots, &t);
    write_tokens(&w, s, &t);
    write_slots(&w, x, slots);
    open_part(&w, "batch", '{');
    put_count(&w, "rows", t.last_rows);
    put_count(&w, "adapters", t.last_adapters);
    srv_close(&w, '}');
    open_part(&w, "http", '{');
    srv_put_integer(&w, "connections", s->connections.n);
    srv_put_integer(&w, "requests_open", s->n_exchanges);
    srv_close(&w, '}');
    write_current(&w, x);
    srv_close(&w, '}');
    graft_slot_list_free(slots);
    srv_reply_json(x, 200, &w);
}
