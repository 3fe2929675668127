/* /metrics: Prometheus' text format, by hand. Names are graft_…; there are at most LABELS adapters with labels of their
 * own: those in memory, and the first of the registry that were ever used. */
#include "route.h"

#include <inttypes.h>
#include <string.h>

enum { LABELS = 100 };

static void head(gr_buffer *b, const char *name, const char *type, const char *help) {
    gr_buffer_printf(b, "# HELP graft_%s %s\n# TYPE graft_%s %s\n", name, help, name, type);
}

static void number(gr_buffer *b, const char *name, const char *type, uint64_t n, const char *help) {
    head(b, name, type, help);
    gr_buffer_printf(b, "graft_%s %" PRIu64 "\n", name, n);
}

static void counter(gr_buffer *b, const char *name, uint64_t n, const char *help) {
    number(b, name, "counter", n, help);
}

static void gauge(gr_buffer *b, const char *name, uint64_t n, const char *help) {
    number(b, name, "gauge", n, help);
}

static void row(gr_buffer *b, const char *name, const char *label, const char *value, uint64_t n) {
    gr_buffer_printf(b, "graft_%s{%s=\"%s\"} %" PRIu64 "\n", name, label, value, n);
}

/* Buckets by powers of two of a microsecond: those below 128 µs are shown as one. */
static void histogram(gr_buffer *b, const char *name, const graft_histogram *h, const char *help) {
    uint64_t sum = 0;
    head(b, name, "histogram", help);
    for (int i = 0; i < GRAFT_HISTOGRAM_BUCKETS - 1; i++) {
        sum += h->buckets[i];
        if (i >= 7) {
            gr_buffer_printf(b, "graft_%s_bucket{le=\"%.9g\"} %" PRIu64 "\n", name, (double)(UINT64_C(1) << i) / 1e6, sum);
        }
    }
    gr_buffer_printf(b, "graft_%s_bucket{le=\"+Inf\"} %" PRIu64 "\ngraft_%s_sum %.9g\ngraft_%s_count %" PRIu64 "\n", name, h->count, name,
                     (double)h->sum_us / 1e6, name, h->count);
}

static void write_server(gr_buffer *b, const server *s) {
    static const char *const kinds[] = {"0xx", "1xx", "2xx", "3xx", "4xx", "5xx"};
    const srv_counters *c = &s->count;
    head(b, "http_requests_total", "counter", "Replies by kind of status.");
    for (int i = 2; i < 6; i++) {
        row(b, "http_requests_total", "status", kinds[i], c->requests[i]);
    }
    counter(b, "http_disconnects_total", c->disconnects, "Clients that left before their reply was complete.");
    counter(b, "http_unauthorized_total", c->unauthorized, "Requests without a key, or with one that is none.");
    counter(b, "http_timeouts_total", s->connections.timeouts, "Connections that were cut off: slow, idle or not reading.");
    gauge(b, "http_connections", (uint64_t)s->connections.n, "Open connections.");
    gauge(b, "http_requests_open", (uint64_t)s->n_exchanges, "Requests that are being answered.");
    counter(b, "answers_total", c->answers, "Answers that ended well.");
    counter(b, "answers_failed_total", c->failed, "Requests that ended with an error.");
    counter(b, "answers_cancelled_total", c->cancelled, "Answers whose client left.");
    counter(b, "answers_refused_total", c->refused, "Requests that found the queue full or the server ending.");
    gauge(b, "answers_running", (uint64_t)s->relay.n, "Answers under way or waiting.");
    counter(b, "prompt_tokens_total", c->prompt_tokens, "Tokens of prompts.");
    counter(b, "prompt_tokens_cached_total", c->cached_tokens, "Of them taken from the KV cache.");
    counter(b, "completion_tokens_total", c->completion_tokens, "Generated tokens.");
    counter(b, "answers_fallback_total", c->fallbacks, "Answers that the base gave instead of an adapter.");
    histogram(b, "time_to_first_token_seconds", &c->first_token_us, "From submitting to the first token.");
    histogram(b, "answer_seconds", &c->total_us, "From submitting to the end.");
}

static void write_engine(gr_buffer *b, const server *s) {
    graft_stats t;
    graft_get_stats(s->g, &t);
    gauge(b, "slots", (uint64_t)s->model.slots, "Sequences that can be in flight at once.");
    counter(b, "decode_steps_total", t.decode_steps, "Batches without prompt rows.");
    counter(b, "decode_tokens_total", t.decode_tokens, "Rows of sequences that are generating.");
    counter(b, "prompt_steps_total", t.prompt_steps, "Batches with prompt rows.");
    counter(b, "prompt_rows_total", t.prompt_tokens, "Rows of prompts.");
    gauge(b, "largest_batch", t.largest_batch, "Most rows in one batch.");
    gauge(b, "most_adapters_in_batch", t.most_adapters, "Most different adapters in one batch.");
    counter(b, "retried_steps_total", t.retried_steps, "Batches that were run again after an error in one row.");
}

static void write_loader(gr_buffer *b, const server *s) {
    graft_metrics m;
    graft_get_metrics(s->g, &m);
    counter(b, "adapter_hits_total", m.hits, "Leases of an adapter in memory.");
    counter(b, "adapter_misses_total", m.misses, "Leases that waited for a load.");
    counter(b, "adapter_loads_total", m.loads, "Loads that succeeded.");
    counter(b, "adapter_load_bytes_total", m.load_bytes, "Bytes that they brought in.");
    counter(b, "adapter_evictions_total", m.evictions, "Adapters evicted for room.");
    counter(b, "adapter_unloads_total", m.unloads, "Adapters unloaded on request.");
    counter(b, "adapter_replacements_total", m.replacements, "Adapters replaced by a new version.");
    counter(b, "adapter_retries_total", m.retries, "Attempts at loading that were repeated.");
    counter(b, "adapter_busy_total", m.busy, "Loads that found no room.");
    head(b, "adapter_load_failures_total", "counter", "Loads that failed, by code.");
    for (size_t i = 0; i < m.n_failures; i++) {
        row(b, "adapter_load_failures_total", "code", m.failures[i].code ? graft_error_name(m.failures[i].code) : "other", m.failures[i].n);
    }
    gauge(b, "adapters_resident", m.n_resident, "Adapters in memory.");
    gauge(b, "adapters_loading", m.n_loading, "Adapters on their way in.");
    gauge(b, "adapters_draining", m.n_draining, "Versions that go when their requests have ended.");
    gauge(b, "adapter_leases", m.n_leases, "Leases held.");
    histogram(b, "adapter_load_seconds", &m.load_us, "What loading an adapter takes.");
    histogram(b, "adapter_wait_seconds", &m.wait_us, "What requests waited for adapters.");
}

static void write_memory(gr_buffer *b, const server *s) {
    graft_memory m;
    graft_memory_report(s->g, &m);
    const struct {
        const char *kind;
        uint64_t bytes;
    } kinds[] = {{"weights", m.weights},   {"context", m.context},   {"own", m.own},       {"resident", m.resident},
                 {"loading", m.loading},   {"draining", m.draining}, {"by_path", m.by_path}};
    head(b, "memory_bytes", "gauge", "Memory by what it is for.");
    for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++) {
        row(b, "memory_bytes", "kind", kinds[i].kind, kinds[i].bytes);
    }
    gauge(b, "memory_limit_bytes", m.limit, "The limit in force.");
    gauge(b, "memory_counted_bytes", m.counted, "All of it together.");
    gauge(b, "process_resident_bytes", m.process, "Resident set of the process.");
}

/* Names are checked when they are registered, so labels need no escaping. */
static void write_adapters(gr_buffer *b, const server *s) {
    graft_loaded_list *list = NULL;
    if (!s->registry || graft_loaded_adapters(&list, s->g, NULL) != 0) {
        return;
    }
    head(b, "adapter_bytes", "gauge", "Adapters in memory: their bytes.");
    for (size_t i = 0; i < list->n && i < LABELS; i++) {
        gr_buffer_printf(b, "graft_adapter_bytes{adapter=\"%s/%s\",state=\"%s\"} %" PRIu64 "\n", list->items[i].project, list->items[i].adapter,
                         list->items[i].state, list->items[i].bytes);
    }
    graft_loaded_list_free(list);
}

static uint64_t history_value(const graft_history *h, int which) {
    const uint64_t values[] = {h->requests, h->tokens, h->loads, h->failures, h->evictions, h->fallbacks};
    return values[which];
}

/* Since the adapter was registered, so they do not begin at 0 with the process. */
static void write_history(gr_buffer *b, const server *s) {
    static const char *const names[] = {"adapter_requests_total", "adapter_tokens_total", "adapter_loaded_total", "adapter_failed_total",
                                        "adapter_evicted_total", "adapter_fallbacks_total"};
    graft_registered_list *list = NULL;
    if (!s->registry || graft_registry_adapter_list(&list, s->registry, NULL, NULL, NULL) != 0) {
        return;
    }
    for (int k = 0; k < 6; k++) {
        int shown = 0;
        head(b, names[k], "counter", "Of one adapter, since it was registered.");
        for (size_t i = 0; i < list->n && shown < LABELS; i++) {
            const graft_registered *a = &list->items[i];
            if (a->history.requests || a->history.loads || a->history.failures) {
                gr_buffer_printf(b, "graft_%s{adapter=\"%s/%s\"} %" PRIu64 "\n", names[k], a->project, a->adapter, history_value(&a->history, k));
                shown++;
            }
        }
    }
    graft_registered_list_free(list);
}

void srv_get_metrics(srv_exchange *x) {
    gr_buffer b;
    gr_buffer_init(&b, 1 << 20);
    write_server(&b, x->s);
    write_engine(&b, x->s);
    write_loader(&b, x->s);
    write_memory(&b, x->s);
    write_adapters(&b, x->s);
    write_history(&b, x->s);
    srv_reply(x, b.failed ? 503 : 200, "text/plain; version=0.0.4; charset=utf-8", b.data ? b.data : "", b.length);
    gr_buffer_finish(&b);
}
