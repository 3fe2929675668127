/* Medians, clocks, and the processor's name. */
#include "bench.h"

#include "base/memory.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>
#if defined(__APPLE__)
#include <sys/sysctl.h>
#endif

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

cli_spread cli_spread_of(const double *values, size_t n) {
    if (n == 0) {
        return (cli_spread){0, 0, 0};
    }
    double *sorted = cli_alloc(n, sizeof *sorted);
    memcpy(sorted, values, n * sizeof *sorted);
    qsort(sorted, n, sizeof *sorted, ascending);
    cli_spread s = {(sorted[(n - 1) / 2] + sorted[n / 2]) / 2, sorted[0], sorted[n - 1]};
    gr_free(sorted);
    return s;
}

void cli_cpu_name(char *out, size_t size) {
    snprintf(out, size, "unknown");
#if defined(__APPLE__)
    sysctlbyname("machdep.cpu.brand_string", out, &size, NULL, 0);
#else
    FILE *file = fopen("/proc/cpuinfo", "r");
    char line[512];
    while (file && fgets(line, sizeof line, file)) {
        const char *colon = strchr(line, ':');
        if (strncmp(line, "model name", 10) == 0 && colon) {
            colon += 1 + strspn(colon + 1, " ");
            snprintf(out, size, "%.*s", (int)strcspn(colon, "\n"), colon);
            break;
        }
    }
    if (file) {
        fclose(file);
    }
#endif
}

double bench_now_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec / 1e6;
}
