/* What answers cost, adapter by adapter. */
#include "usage.h"

#include "internal.h"

#include <string.h>

const srv_borders srv_first_token_borders = {{0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60}, 13};
const srv_borders srv_per_token_borders = {{0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5}, 11};

static void begin(server *s) {
    snprintf(s->usage.rows[0].label, SRV_USAGE_LABEL, "%s", s->base_id);
    snprintf(s->usage.rows[SRV_USAGE_OTHER].label, SRV_USAGE_LABEL, "other");
    s->usage.n = 1;
}

int srv_usage_row_of(server *s, const char *id) {
    srv_usage *u = &s->usage;
    if (u->n == 0) {
        begin(s);
    }
    if (!*id) {
        return 0;
    }
    if (strcmp(id, "other") == 0) { /* an adapter of that name has no series of its own */
        return SRV_USAGE_OTHER;
    }
    for (int i = 1; i < u->n; i++) {
        if (strcmp(u->rows[i].label, id) == 0) {
            return i;
        }
    }
    if (u->n == SRV_USAGE_OTHER) {
        return SRV_USAGE_OTHER;
    }
    snprintf(u->rows[u->n].label, SRV_USAGE_LABEL, "%s", id);
    return u->n++;
}

void srv_usage_count(server *s, const char *id, const graft_result *r) {
    srv_usage_row *row = &s->usage.rows[srv_usage_row_of(s, id)];
    row->answers++;
    row->fallbacks += r->fallback.code != 0;
    row->prompt_tokens += (uint64_t)r->prompt_tokens;
    row->cached_tokens += (uint64_t)r->cached_tokens;
    row->completion_tokens += (uint64_t)r->completion_tokens;
    if (r->completion_tokens > 0) { /* an embedding has none */
        srv_spread_add(&row->first_token, &srv_first_token_borders, (r->queue_ms + r->prompt_ms) / 1e3);
    }
    if (r->completion_tokens > 1) {
        double after_first = r->total_ms - r->queue_ms - r->prompt_ms;
        srv_spread_add(&row->per_token, &srv_per_token_borders, after_first / 1e3 / (r->completion_tokens - 1));
    }
}

void srv_usage_failed(server *s, const char *id, const char *code) {
    struct srv_usage_code *at = s->usage.failures;
    s->usage.rows[srv_usage_row_of(s, id)].failed++;
    while (at->code && strcmp(at->code, code) != 0 && at < s->usage.failures + SRV_USAGE_CODES - 1) {
        at++;
    }
    if (!at->code && at < s->usage.failures + SRV_USAGE_CODES - 1) {
        at->code = code;
    }
    at->n++;
}
