/*
 * What answers cost, adapter by adapter, since the start: for /metrics. Labels are few, whatever clients ask for: the base,
 * the first adapters that were seen, and "other" for all the rest. An adapter keeps the label that it got. Loop thread only.
 */
#ifndef SRV_USAGE_H
#define SRV_USAGE_H

#include "graft.h"
#include "prometheus.h"

enum {
    SRV_USAGE_ROWS = 100, /* labels: the first is the base's, the last is "other" */
    SRV_USAGE_LABEL = 2 * GRAFT_NAME_SIZE,
    SRV_USAGE_CODES = 64
};

typedef struct srv_usage_row {
    char label[SRV_USAGE_LABEL];
    uint64_t answers, failed, fallbacks; /* ended well; ended with an error or were refused; of the answers: the base's */
    uint64_t prompt_tokens, cached_tokens, completion_tokens;
    srv_spread first_token, per_token;
} srv_usage_row;

typedef struct srv_usage {
    srv_usage_row rows[SRV_USAGE_ROWS];
    int n; /* of the rows that are in use, from the first one on, "other" not counted */
    struct srv_usage_code {
        const char *code; /* static storage; the last one: NULL, for all that found no room */
        uint64_t n;
    } failures[SRV_USAGE_CODES];
} srv_usage;

extern const srv_borders srv_first_token_borders, srv_per_token_borders;

struct server;

/* An answer that ended well. `id` as in /v1/models, "" = the base. */
void srv_usage_count(struct server *s, const char *id, const graft_result *r);
/* One that did not, or a request that was refused; `code` as in srv_fault. Not for clients that left. */
void srv_usage_failed(struct server *s, const char *id, const char *code);

/* The row of an adapter; it gets one if there is room. */
int srv_usage_row_of(struct server *s, const char *id);
/* The last row, which is the rest's. */
#define SRV_USAGE_OTHER (SRV_USAGE_ROWS - 1)

#endif
