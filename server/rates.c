/* Tokens per second. */
#include "rates.h"

enum { PERIOD_US = 1000000, LEAST_US = 100000 /* less says nothing */ };

void srv_rates_tick(srv_rates *r, const graft *g, int64_t now_us) {
    const struct srv_rate_sample *last = &r->samples[(r->next + SRV_RATE_SAMPLES - 1) % SRV_RATE_SAMPLES];
    if (r->n > 0 && now_us - last->at_us < PERIOD_US) {
        return;
    }
    graft_stats s;
    graft_get_stats(g, &s);
    r->samples[r->next] = (struct srv_rate_sample){now_us, s.prompt_tokens, s.completion_tokens};
    r->next = (r->next + 1) % SRV_RATE_SAMPLES;
    r->n += r->n < SRV_RATE_SAMPLES;
}

void srv_rates_now(const srv_rates *r, const graft_stats *now, int64_t now_us, double *prompt_per_s, double *completion_per_s) {
    const struct srv_rate_sample *oldest = &r->samples[r->n < SRV_RATE_SAMPLES ? 0 : r->next];
    int64_t span = now_us - oldest->at_us;
    *prompt_per_s = *completion_per_s = 0;
    if (r->n > 0 && span >= LEAST_US) {
        *prompt_per_s = (double)(now->prompt_tokens - oldest->prompt) * 1e6 / (double)span;
        *completion_per_s = (double)(now->completion_tokens - oldest->completion) * 1e6 / (double)span;
    }
}
