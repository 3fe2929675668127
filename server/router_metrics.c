/*
 * What routers look for on /metrics, under vLLM's names: which adapters are in use here, and how busy it is. The gateway API's
 * inference extension and llm-d send a request to a server that has its adapter, by
 *   vllm:lora_requests_info   adapters with requests that run and that wait, as lists in labels; the value is the time, because
 *                             vLLM leaves old label sets behind and readers take the newest. Here there is only the one;
 *   vllm:lora_adapter_loaded  one series for each adapter in memory, as vLLM is about to have it. Its level "gpu" stands for
 *                             where answers are computed: with graft there is no other place.
 * Both readers also want the queue and the KV cache, without which they take a server for broken.
 */
#include "metrics_page.h"

#include "names.h"

#include <string.h>
#include <time.h>

enum { NAMES = 100 }; /* adapters in one label */

/* Different adapters, each with how many requests. */
typedef struct tally {
    struct tally_item {
        const char *project, *adapter; /* borrowed */
        int n;
    } items[NAMES];
    int n;
} tally;

static void add(tally *t, const char *project, const char *adapter, int n) {
    int i = 0;
    while (i < t->n && (strcmp(t->items[i].project, project) != 0 || strcmp(t->items[i].adapter, adapter) != 0)) {
        i++;
    }
    if (i < NAMES) {
        t->items[i] = (struct tally_item){project, adapter, i < t->n ? t->items[i].n + n : n};
        t->n += i == t->n;
    }
}

/* Those with requests left, as "a,b". A name holds no comma. */
static void join(gr_buffer *out, const tally *t) {
    gr_buffer_init(out, NAMES * SRV_ID_SIZE);
    gr_buffer_puts(out, "");
    for (int i = 0; i < t->n; i++) {
        char id[SRV_ID_SIZE];
        if (t->items[i].n > 0) {
            gr_buffer_printf(out, "%s%s", out->length ? "," : "", srv_name_id(id, t->items[i].project, t->items[i].adapter));
        }
    }
}

/* What waits is what was asked for and has no slot yet. */
static void write_requests(gr_buffer *b, const server *s, const graft_slot_list *slots) {
    tally running = {.n = 0}, waiting = {.n = 0};
    gr_buffer run, wait;
    char most[16];
    for (const srv_job *j = s->relay.jobs; j; j = j->next) {
        if (*j->project) {
            add(&waiting, j->project, j->adapter, 1);
        }
    }
    for (size_t i = 0; slots && i < slots->n; i++) {
        if (*slots->items[i].project) {
            add(&running, slots->items[i].project, slots->items[i].adapter, 1);
            add(&waiting, slots->items[i].project, slots->items[i].adapter, -1);
        }
    }
    join(&run, &running);
    join(&wait, &waiting);
    snprintf(most, sizeof most, "%d", s->model.slots); /* any mix of adapters shares a batch */
    srv_label labels[] = {{"max_lora", most}, {"running_lora_adapters", run.data ? run.data : ""},
                          {"waiting_lora_adapters", wait.data ? wait.data : ""}, {0}};
    srv_prom_family(b, "vllm:lora_requests_info", "gauge", "Adapters with requests; the value is the time.");
    srv_prom_count(b, "vllm:lora_requests_info", labels, (uint64_t)time(NULL));
    gr_buffer_finish(&run);
    gr_buffer_finish(&wait);
}

/* 0 if it is not registered any more. */
static int rank_of(const server *s, const graft_loaded *a) {
    srv_name name;
    srv_name_set(&name, a->project, a->adapter);
    graft_registered_list *list = srv_registered(s, &name);
    int rank = list ? list->items[0].rank : 0;
    graft_registered_list_free(list);
    return rank;
}

static void write_loaded(gr_buffer *b, const server *s) {
    graft_loaded_list *list = NULL;
    graft_loaded_adapters(&list, s->g, NULL);
    srv_prom_family(b, "vllm:lora_adapter_loaded", "gauge", "1 for each adapter in memory.");
    for (size_t i = 0, shown = 0; list && i < list->n && shown < NAMES; i++) {
        const graft_loaded *a = &list->items[i];
        if (strcmp(a->state, "resident") == 0) { /* at most one version of a name is */
            char id[SRV_ID_SIZE], rank[16];
            snprintf(rank, sizeof rank, "%d", rank_of(s, a));
            srv_label labels[] = {{"adapter_name", srv_name_id(id, a->project, a->adapter)}, {"level", "gpu"},
                                  {"pinned", a->pinned ? "true" : "false"}, {"rank", rank}, {0}};
            srv_prom_count(b, "vllm:lora_adapter_loaded", labels, 1);
            shown++;
        }
    }
    graft_loaded_list_free(list);
}

/* The part of the KV cache that requests under way have filled. */
static double kv_used(const server *s, const graft_slot_list *slots) {
    double cells = 0;
    for (size_t i = 0; slots && i < slots->n; i++) {
        const graft_slot *t = &slots->items[i];
        cells += t->cached_tokens + t->evaluated_tokens + t->completion_tokens;
    }
    return cells / ((double)s->model.slots * s->model.context);
}

static void write_load(gr_buffer *b, const server *s, const graft_slot_list *slots) {
    srv_label model[] = {{"model_name", s->base_id}, {0}};
    graft_stats t;
    graft_get_stats(s->g, &t);
    srv_prom_family(b, "vllm:num_requests_running", "gauge", "Requests in slots.");
    srv_prom_count(b, "vllm:num_requests_running", model, t.running);
    srv_prom_family(b, "vllm:num_requests_waiting", "gauge", "Requests that wait for a slot or for their adapter.");
    srv_prom_count(b, "vllm:num_requests_waiting", model, t.waiting);
    srv_prom_family(b, "vllm:kv_cache_usage_perc", "gauge", "Part of the KV cache that requests under way have filled, 0 to 1.");
    srv_prom_value(b, "vllm:kv_cache_usage_perc", model, kv_used(s, slots));
}

void srv_write_router_metrics(gr_buffer *b, server *s) {
    graft_slot_list *slots = NULL;
    graft_slots(&slots, s->g, NULL);
    write_requests(b, s, slots);
    write_loaded(b, s);
    write_load(b, s, slots);
    graft_slot_list_free(slots);
}
