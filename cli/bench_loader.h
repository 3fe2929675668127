/* What `graft bench-loader` measures (bench_loader_measure.c) and shows (cmd_bench_loader.c). */
#ifndef GRAFT_BENCH_LOADER_H
#define GRAFT_BENCH_LOADER_H

#include "bench.h"

enum { BENCH_ZIPF_NAMES = 100, BENCH_THREADS_MAX = 64 };

typedef struct counts {
    int names, rounds, evictions, starts, hits, requests;
} counts;

typedef struct loader_bench {
    cli_settings set;
    cli_adapters adapters;
    counts n;
    bool quick;
    int threads; /* of the hits */

    char *big, *gguf, *model, *description; /* paths and a text */
    bench_peft small;                   /* an adapter of one module */
    uint64_t file_bytes, bytes;
    size_t n_modules;
    int rank;
    char dtype[8];
    uint64_t loads;                     /* of the whole run, by the loader's own count */

    double *load, *load_probe, *load_llama, *ratio, *unload; /* [rounds] */
    double evict_mean, evict_max;
    double *start, *open, *start_one;   /* [starts] */
    double unused_bytes, burst_bytes, overhead_bytes, scan_ms;
    cli_spread hit_p50, hit_p99, hit_p50_one, hits_per_second;
    cli_spread switching;
    double hit_rate[GRAFT_POLICIES];
} loader_bench;

/* Makes files in a temporary folder and fills in all that is measured. CLI_GO or an exit code, the error printed. The folder
 * stays: cli_temp_remove. */
int bench_loader_measure(loader_bench *b);

#endif
