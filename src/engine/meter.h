/*
 * How many bytes libllama allocated for a context. Its C interface does not tell, but it logs the size of each buffer
 * it makes ("… KV buffer size = 90.00 MiB"), on the thread that asks for the context. So: begin, make the context,
 * end; meanwhile whoever receives log lines shows them to gr_meter_line.
 */
#ifndef GR_METER_H
#define GR_METER_H

#include <stdint.h>

/* Starts counting lines of this thread. */
void gr_meter_begin(void);
/* Stops; the bytes seen. */
uint64_t gr_meter_end(void);
/* Any thread, any line: counted if this thread is between begin and end. */
void gr_meter_line(const char *line);

#endif
