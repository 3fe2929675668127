/* The parts of /metrics. Loop thread only. */
#ifndef SRV_METRICS_PAGE_H
#define SRV_METRICS_PAGE_H

#include "http.h"

/* router_metrics.c: vLLM's names. */
void srv_write_router_metrics(gr_buffer *b, server *s);

#endif
