/* How many bytes libllama takes for a context, from the lines in which it says so. */
#include "meter.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

static _Thread_local bool counting;
static _Thread_local uint64_t bytes;

void gr_meter_begin(void) {
    counting = true;
    bytes = 0;
}

uint64_t gr_meter_end(void) {
    counting = false;
    return bytes;
}

void gr_meter_line(const char *line) {
    static const char label[] = "buffer size =";
    const char *at = counting ? strstr(line, label) : NULL;
    if (at) {
        char *end;
        double mib = strtod(at + sizeof label - 1, &end);
        if (mib > 0 && mib < 1e9 && strncmp(end, " MiB", 4) == 0) {
            bytes += (uint64_t)(mib * 1048576.0);
        }
    }
}
