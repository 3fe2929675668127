/* Time that never jumps. Wall-clock time is for logs only and not here. */
#ifndef GR_CLOCK_H
#define GR_CLOCK_H

#include <stdint.h>

/* Microseconds of CLOCK_MONOTONIC. */
int64_t gr_now_us(void);
/* Sleeps at least so long, unless a signal ends it. */
void gr_sleep_us(int64_t us);

#endif
