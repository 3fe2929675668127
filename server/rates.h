/* Tokens per second over the last few seconds: the library's counters, looked at once a second. Loop thread only. */
#ifndef SRV_RATES_H
#define SRV_RATES_H

#include "graft.h"

enum { SRV_RATE_SAMPLES = 6 };

typedef struct srv_rates {
    struct srv_rate_sample {
        int64_t at_us;
        uint64_t prompt, completion;
    } samples[SRV_RATE_SAMPLES]; /* a ring */
    int n, next;
} srv_rates;

/* On each tick of the server; takes a sample when one is due. */
void srv_rates_tick(srv_rates *r, const graft *g, int64_t now_us);
/* From the oldest sample, about five seconds ago, until `now`; 0 where there is none. */
void srv_rates_now(const srv_rates *r, const graft_stats *now, int64_t now_us, double *prompt_per_s, double *completion_per_s);

#endif
