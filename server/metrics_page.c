/* /metrics: Prometheus' text format. Names are graft_…, listed in docs/metrics.md, and stay; those that routers look for are
 * router_metrics.c's. At most SRV_USAGE_ROWS adapters have labels of their own (usage.h). */
#include "metrics_page.h"

#include "names.h"
#include "route.h"

#include "base/memory.h"

#include <stddef.h>
#include <string.h>

static void head(gr_buffer *b, const char *name, const char *type, const char *help) {
    srv_prom_family(b, name, type, help);
}

static void number(gr_buffer *b, const char *name, const char *type, uint64_t n, const char *help) {
    head(b, name, type, help);
    srv_prom_count(b, name, NULL, n);
}

static void counter(gr_buffer *b, const char *name, uint64_t n, const char *help) {
    number(b, name, "counter", n, help);
}

static void gauge(gr_buffer *b, const char *name, uint64_t n, const char *help) {
    number(b, name, "gauge", n, help);
}

static void row(gr_buffer *b, const char *name, const char *label, const char *value, uint64_t n) {
    srv_label labels[] = {{label, value}, {0}};
    srv_prom_count(b, name, labels, n);
}

/* Buckets by powers of two of a microsecond: those below 128 µs are shown as one. */
static void histogram(gr_buffer *b, const char *name, const graft_histogram *h, const char *help) {
    enum { FIRST = 7, N = GRAFT_HISTOGRAM_BUCKETS - 1 - FIRST };
    double borders[N];
    uint64_t buckets[N + 1] = {0};
    head(b, name, "histogram", help);
    for (int i = 0; i < GRAFT_HISTOGRAM_BUCKETS; i++) {
        buckets[i < FIRST ? 0 : i - FIRST] += h->buckets[i];
    }
    for (int i = 0; i < N; i++) {
        borders[i] = (double)(UINT64_C(1) << (i + FIRST)) / 1e6;
    }
    srv_prom_histogram(b, name, (srv_label){0}, borders, buckets, N, (double)h->sum_us / 1e6);
}

/* The last bucket of the library's has no upper border. */
static void steps(gr_buffer *b, const char *name, const uint64_t *counts, uint64_t sum, const char *help) {
    double borders[GRAFT_STEP_BUCKETS - 1];
    for (int i = 0; i < GRAFT_STEP_BUCKETS - 1; i++) {
        borders[i] = i ? (double)(UINT64_C(1) << (i - 1)) : 0;
    }
    head(b, name, "histogram", help);
    srv_prom_histogram(b, name, (srv_label){0}, borders, counts, GRAFT_STEP_BUCKETS - 1, (double)sum);
}

static void write_server(gr_buffer *b, const server *s) {
    static const char *const kinds[] = {"0xx", "1xx", "2xx", "3xx", "4xx", "5xx"};
    const srv_counters *c = &s->count;
    head(b, "graft_http_requests_total", "counter", "Replies by kind of status.");
    for (int i = 2; i < 6; i++) {
        row(b, "graft_http_requests_total", "status", kinds[i], c->requests[i]);
    }
    counter(b, "graft_http_disconnects_total", c->disconnects, "Clients that left before their reply was complete.");
    counter(b, "graft_http_unauthorized_total", c->unauthorized, "Requests without a key, or with one that is none.");
    counter(b, "graft_http_timeouts_total", s->connections.timeouts, "Connections that were cut off: slow, idle or not reading.");
    gauge(b, "graft_http_connections", (uint64_t)s->connections.n, "Open connections.");
    gauge(b, "graft_http_requests_open", (uint64_t)s->n_exchanges, "Requests that are being answered.");
    counter(b, "graft_answers_started_total", c->started, "Answers that began; each ends well, failed or cancelled.");
    counter(b, "graft_answers_total", c->answers, "Answers that ended well.");
    counter(b, "graft_answers_failed_total", c->failed, "Requests that ended with an error.");
    counter(b, "graft_answers_cancelled_total", c->cancelled,
            "Answers whose client left, or that another part of their request took with it.");
    counter(b, "graft_answers_refused_total", c->refused, "Requests that found the queue full or the server ending.");
    gauge(b, "graft_answers_running", (uint64_t)s->relay.n, "Answers under way or waiting.");
    counter(b, "graft_prompt_tokens_total", c->prompt_tokens, "Tokens of prompts.");
    counter(b, "graft_prompt_tokens_cached_total", c->cached_tokens, "Of them taken from the KV cache.");
    counter(b, "graft_completion_tokens_total", c->completion_tokens, "Generated tokens.");
    counter(b, "graft_answers_fallback_total", c->fallbacks, "Answers that the base gave instead of an adapter.");
    histogram(b, "graft_time_to_first_token_seconds", &c->first_token_us, "From submitting to the first token.");
    histogram(b, "graft_answer_seconds", &c->total_us, "From submitting to the end.");
}

static void write_engine(gr_buffer *b, const server *s) {
    graft_stats t;
    graft_get_stats(s->g, &t);
    gauge(b, "graft_slots", (uint64_t)s->model.slots, "Sequences that can be in flight at once.");
    counter(b, "graft_decode_steps_total", t.decode_steps, "Batches without prompt rows.");
    counter(b, "graft_decode_tokens_total", t.decode_tokens, "Rows of sequences that are generating.");
    counter(b, "graft_prompt_steps_total", t.prompt_steps, "Batches with prompt rows.");
    counter(b, "graft_prompt_rows_total", t.prompt_tokens, "Rows of prompts.");
    gauge(b, "graft_largest_batch", t.largest_batch, "Most rows in one batch.");
    gauge(b, "graft_most_adapters_in_batch", t.most_adapters, "Most different adapters in one batch.");
    counter(b, "graft_retried_steps_total", t.retried_steps, "Batches that were run again after an error in one row.");
    counter(b, "graft_generated_tokens_total", t.completion_tokens, "Generated tokens, as they come.");
    counter(b, "graft_cached_rows_total", t.cached_tokens,
            "Tokens of prompts that came from the KV cache instead of being evaluated.");
    gauge(b, "graft_slots_busy", t.running, "Requests in slots, probes of loads among them.");
    gauge(b, "graft_queue_waiting", t.waiting, "Requests that wait for a slot or for their adapter.");
    gauge(b, "graft_batch_rows", t.last_rows, "Rows of the last batch; 0 while nothing runs.");
    gauge(b, "graft_batch_adapters", t.last_adapters, "Different adapters in it; the base is none.");
    steps(b, "graft_step_rows", t.rows_per_step, t.step_rows, "Rows of a batch.");
    steps(b, "graft_step_adapters", t.adapters_per_step, t.step_adapters, "Different adapters in a batch; the base is none.");
}

static void codes(gr_buffer *b, const char *name, const struct graft_code_count *counts, size_t n, const char *help) {
    head(b, name, "counter", help);
    for (size_t i = 0; i < n; i++) {
        row(b, name, "code", counts[i].code ? graft_error_name(counts[i].code) : "other", counts[i].n);
    }
}

static void write_loader(gr_buffer *b, const server *s) {
    graft_metrics m;
    graft_get_metrics(s->g, &m);
    counter(b, "graft_adapter_hits_total", m.hits, "Leases of an adapter in memory.");
    counter(b, "graft_adapter_misses_total", m.misses, "Leases that waited for a load.");
    counter(b, "graft_adapter_loads_total", m.loads, "Loads that succeeded.");
    counter(b, "graft_adapter_load_bytes_total", m.load_bytes, "Bytes that they brought in.");
    counter(b, "graft_adapter_evictions_total", m.evictions, "Adapters evicted for room.");
    counter(b, "graft_adapter_unloads_total", m.unloads, "Adapters unloaded on request.");
    counter(b, "graft_adapter_replacements_total", m.replacements, "Adapters replaced by a new version.");
    counter(b, "graft_adapter_retries_total", m.retries, "Attempts at loading that were repeated.");
    counter(b, "graft_adapter_busy_total", m.busy, "Loads that found no room.");
    counter(b, "graft_adapter_lease_fallbacks_total", m.fallbacks, "Leases that became the base.");
    counter(b, "graft_adapter_negative_hits_total", m.negative_hits, "Failures answered from memory: the file has not changed.");
    counter(b, "graft_adapter_no_effect_total", m.no_effect, "Loads of adapters that change nothing.");
    codes(b, "graft_adapter_load_failures_total", m.failures, m.n_failures, "Loads that failed, by code.");
    codes(b, "graft_adapter_load_retried_total", m.retried, m.n_retried,
          "Attempts that failed and were followed by another, by code.");
    gauge(b, "graft_adapters_resident", m.n_resident, "Adapters in memory.");
    gauge(b, "graft_adapters_loading", m.n_loading, "Adapters on their way in.");
    gauge(b, "graft_adapters_draining", m.n_draining, "Versions that go when their requests have ended.");
    gauge(b, "graft_adapter_leases", m.n_leases, "Leases held.");
    histogram(b, "graft_adapter_load_seconds", &m.load_us, "What loading an adapter takes.");
    histogram(b, "graft_adapter_wait_seconds", &m.wait_us, "What requests waited for adapters.");
    histogram(b, "graft_adapter_hit_seconds", &m.hit_us, "What a lease of an adapter in memory takes.");
    histogram(b, "graft_adapter_evict_seconds", &m.evict_us, "What evicting takes.");
}

static void write_memory(gr_buffer *b, const server *s) {
    graft_memory m;
    graft_memory_report(s->g, &m);
    const struct {
        const char *kind;
        uint64_t bytes;
    } kinds[] = {{"weights", m.weights},   {"context", m.context},   {"own", m.own},       {"resident", m.resident},
                 {"loading", m.loading},   {"draining", m.draining}, {"by_path", m.by_path}};
    head(b, "graft_memory_bytes", "gauge", "Memory by what it is for.");
    for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++) {
        row(b, "graft_memory_bytes", "kind", kinds[i].kind, kinds[i].bytes);
    }
    gauge(b, "graft_memory_limit_bytes", m.limit, "The limit in force.");
    gauge(b, "graft_memory_machine_bytes", m.machine, "What the cgroup or else the machine has.");
    gauge(b, "graft_memory_twin_bytes", m.twins, "libllama's copies of adapters: counted with the adapters above.");
    gauge(b, "graft_adapters_resident_max", m.max_adapters,
          "Adapters that may be in memory at once; 0 = bounded by memory only.");
    gauge(b, "graft_memory_counted_bytes", m.counted, "All of it together.");
    gauge(b, "graft_server_bytes", gr_memory_bytes(),
          "What the server itself has allocated, without libevent's buffers and TLS.");
    gauge(b, "graft_process_resident_bytes", m.process, "Resident set of the process.");
}

static int row_of(server *s, const char *project, const char *adapter) {
    char id[SRV_ID_SIZE];
    return srv_usage_row_of(s, srv_name_id(id, project, adapter));
}

/* An adapter may have several versions in one state, and those without a label of their own share one. */
static void write_loaded(gr_buffer *b, server *s) {
    static const char *const states[] = {"loading", "resident", "draining"};
    enum { STATES = sizeof states / sizeof states[0] };
    uint64_t bytes[SRV_USAGE_ROWS][STATES] = {0};
    bool there[SRV_USAGE_ROWS][STATES] = {0};
    graft_loaded_list *list = NULL;
    graft_loaded_adapters(&list, s->g, NULL);
    for (size_t i = 0; list && i < list->n; i++) {
        const graft_loaded *a = &list->items[i];
        int at = row_of(s, a->project, a->adapter);
        for (int k = 0; k < STATES; k++) {
            if (strcmp(a->state, states[k]) == 0) {
                bytes[at][k] += a->bytes;
                there[at][k] = true;
            }
        }
    }
    graft_loaded_list_free(list);
    head(b, "graft_adapter_bytes", "gauge", "Adapters in memory: their bytes.");
    for (int i = 0; i < SRV_USAGE_ROWS * STATES; i++) {
        if (there[i / STATES][i % STATES]) {
            srv_label labels[] = {{"adapter", s->usage.rows[i / STATES].label}, {"state", states[i % STATES]}, {0}};
            srv_prom_count(b, "graft_adapter_bytes", labels, bytes[i / STATES][i % STATES]);
        }
    }
}

static uint64_t history_value(const graft_history *h, int which) {
    const uint64_t values[] = {h->requests, h->tokens, h->loads, h->failures, h->evictions, h->fallbacks};
    return values[which];
}

/* Since the adapter was registered, so they do not begin at 0 with the process. Only of adapters that have labels by what
 * they did since the start: the rest added up would fall whenever one of them gets its own. */
static void write_history(gr_buffer *b, server *s) {
    static const char *const names[] = {"graft_adapter_requests_total", "graft_adapter_tokens_total",
                                        "graft_adapter_loaded_total",   "graft_adapter_failed_total",
                                        "graft_adapter_evicted_total",  "graft_adapter_fallbacks_total"};
    graft_history of[SRV_USAGE_ROWS];
    bool there[SRV_USAGE_ROWS] = {0};
    for (int i = 1; i < s->usage.n; i++) {
        srv_name name;
        graft_registered_list *list = srv_name_split(&name, s->usage.rows[i].label) ? srv_registered(s, &name) : NULL;
        if (list) {
            of[i] = list->items[0].history;
            there[i] = true;
        }
        graft_registered_list_free(list);
    }
    for (int k = 0; k < 6; k++) {
        head(b, names[k], "counter", "Of one adapter, since it was registered.");
        for (int i = 1; i < s->usage.n; i++) {
            if (there[i]) {
                row(b, names[k], "adapter", s->usage.rows[i].label, history_value(&of[i], k));
            }
        }
    }
}

/* ---- answers by adapter ------------------------------------------------------------------------------- */

/* A family with a value for each row: the counter that lies `offset` into it. */
static const struct usage_family {
    const char *name, *help;
    size_t offset;
} usage_families[] = {
    {"graft_adapter_answers_total", "Answers that ended well, by adapter.", offsetof(srv_usage_row, answers)},
    {"graft_adapter_answers_failed_total", "Requests that ended with an error or were refused, by adapter.",
     offsetof(srv_usage_row, failed)},
    {"graft_adapter_answers_fallback_total", "Answers that the base gave instead, by adapter.",
     offsetof(srv_usage_row, fallbacks)},
    {"graft_adapter_prompt_tokens_total", "Tokens of prompts, by adapter.", offsetof(srv_usage_row, prompt_tokens)},
    {"graft_adapter_prompt_tokens_cached_total", "Of them taken from the KV cache, by adapter.",
     offsetof(srv_usage_row, cached_tokens)},
    {"graft_adapter_completion_tokens_total", "Generated tokens, by adapter.", offsetof(srv_usage_row, completion_tokens)},
};

/* "other" is there once something was counted in it. */
static bool is_shown(const srv_usage *u, int i) {
    return i < u->n || (i == SRV_USAGE_OTHER && u->rows[i].answers + u->rows[i].failed > 0);
}

static void write_spread(gr_buffer *b, const srv_usage *u, const char *name, const srv_borders *borders, size_t offset,
                         const char *help) {
    head(b, name, "histogram", help);
    for (int i = 0; i < SRV_USAGE_ROWS; i++) {
        if (is_shown(u, i)) {
            const srv_spread *s = (const srv_spread *)(const void *)((const char *)&u->rows[i] + offset);
            srv_prom_histogram(b, name, (srv_label){"adapter", u->rows[i].label}, borders->at, s->buckets, borders->n, s->sum);
        }
    }
}

static void write_usage(gr_buffer *b, server *s) {
    const srv_usage *u = &s->usage;
    srv_usage_row_of(s, ""); /* the base is always there */
    for (size_t k = 0; k < sizeof usage_families / sizeof usage_families[0]; k++) {
        const struct usage_family *f = &usage_families[k];
        head(b, f->name, "counter", f->help);
        for (int i = 0; i < SRV_USAGE_ROWS; i++) {
            if (is_shown(u, i)) {
                const void *at = (const char *)&u->rows[i] + f->offset;
                row(b, f->name, "adapter", u->rows[i].label, *(const uint64_t *)at);
            }
        }
    }
    write_spread(b, u, "graft_adapter_time_to_first_token_seconds", &srv_first_token_borders,
                 offsetof(srv_usage_row, first_token), "From submitting to the first token, by adapter.");
    write_spread(b, u, "graft_adapter_time_per_output_token_seconds", &srv_per_token_borders, offsetof(srv_usage_row, per_token),
                 "Of each answer: seconds for a token after its first, by adapter.");
    head(b, "graft_answer_failures_total", "counter", "Requests that ended with an error or were refused, by code.");
    for (int i = 0; i < SRV_USAGE_CODES; i++) {
        if (u->failures[i].n) {
            row(b, "graft_answer_failures_total", "code", u->failures[i].code ? u->failures[i].code : "other", u->failures[i].n);
        }
    }
}

/* ---- health ------------------------------------------------------------------------------------------- */

static void write_health(gr_buffer *b, const server *s) {
    graft_health h;
    graft_health_check(s->g, &h);
    head(b, "graft_health", "gauge", "1 for the state that holds.");
    for (int i = GRAFT_HEALTHY; i <= GRAFT_UNHEALTHY; i++) {
        row(b, "graft_health", "state", graft_health_name((graft_health_state)i), h.state == (graft_health_state)i);
    }
    head(b, "graft_health_reason", "gauge", "1 for each reason not to be healthy; docs/loader.md lists them.");
    for (size_t i = 0; i < h.n_reasons; i++) {
        row(b, "graft_health_reason", "reason", h.reasons[i].name, 1);
    }
    gauge(b, "graft_draining", s->drain_until != 0, "1 while the server ends.");
    gauge(b, "graft_start_time_seconds", (uint64_t)s->started, "When the server started, in seconds since 1970.");
    graft_model_info m;
    graft_model_get_info(s->g, &m);
    srv_label labels[] = {{"version", graft_version()}, {"llama", graft_llama_version()}, {"kernels", m.kernels},
                          {"apply", m.apply == GRAFT_APPLY_ROWS ? "rows" : "grouped"}, {"model", s->base_id}, {0}};
    head(b, "graft_info", "gauge", "Always 1: what runs.");
    srv_prom_count(b, "graft_info", labels, 1);
}

void srv_get_metrics(srv_exchange *x) {
    gr_buffer b;
    gr_buffer_init(&b, 4 << 20); /* with all labels at their longest about half of it */
    write_health(&b, x->s);
    write_server(&b, x->s);
    write_usage(&b, x->s);
    write_engine(&b, x->s);
    write_loader(&b, x->s);
    write_memory(&b, x->s);
    write_loaded(&b, x->s);
    write_history(&b, x->s);
    srv_write_router_metrics(&b, x->s);
    srv_reply(x, b.failed ? 503 : 200, "text/plain; version=0.0.4; charset=utf-8", b.failed ? "" : b.data,
              b.failed ? 0 : b.length);
    gr_buffer_finish(&b);
}
