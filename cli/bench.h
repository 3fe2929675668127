/* What `graft bench`, `graft bench-loader` and `graft demo` share: figures, and adapters that they make for themselves. */
#ifndef GRAFT_CLI_BENCH_H
#define GRAFT_CLI_BENCH_H

#include "cli.h"

/* ---- figures (bench_figures.c) ------------------------------------------------------------------------ */

typedef struct cli_spread {
    double median, min, max;
} cli_spread;

/* All 0 for n = 0. */
cli_spread cli_spread_of(const double *values, size_t n);

/* The processor's name, or "unknown". */
void cli_cpu_name(char *out, size_t size);

/* ---- links (bench_files.c) ---------------------------------------------------------------------------- */

/* Makes links "NAME" -> `target` in a folder, `n` of them, NAME by bench_link_name. */
int bench_make_links(const char *folder, const char *target, int n, graft_error *err);

#define BENCH_NAME_SIZE 16
/* "p00000": the i-th name. */
const char *bench_link_name(char out[BENCH_NAME_SIZE], int i);

/* ---- a PEFT folder, read (bench_files.c) -------------------------------------------------------------- */

/* Only for adapters that graft_inspect found loadable: little is checked here. */
typedef struct bench_peft {
    gr_buffer config, weights;
    json_t *header;
    const char *data; /* after the header, in `weights` */
    size_t n_data;
} bench_peft;

typedef struct bench_matrix {
    const char *name, *dtype; /* "F32", "F16", "BF16" */
    int64_t rows, columns;
    const char *bytes;
    size_t n_bytes;
} bench_matrix;

int bench_peft_read(bench_peft *out, const char *folder, graft_error *err);
void bench_peft_finish(bench_peft *p);

/* lora_A (which = 'A') or lora_B of a module as graft_inspect calls it. False if it has none by that name. */
bool bench_peft_find(const bench_peft *p, const char *module, char which, bench_matrix *out);

/* The same adapter again, in another folder. */
int bench_peft_copy(const bench_peft *p, const char *folder, graft_error *err);
/* An adapter of one module, with scale 1. */
int bench_peft_write_one(const bench_peft *p, const graft_module_info *module, const char *folder, graft_error *err);

/* ---- libllama by itself (bench_llama.c) --------------------------------------------------------------- */

/* The base opened a second time, as any program with libllama would, and the adapter as a GGUF file. */
typedef struct bench_llama bench_llama;

/* Errors: UNSUPPORTED_ADAPTER (no GGUF adapter can hold it), IO_ERROR. */
int bench_llama_write(const char *path, const char *architecture, const bench_peft *p, const graft_inspection *in,
                      graft_error *err);
/* `gguf` must live as long. */
int bench_llama_open(bench_llama **out, const char *model, const char *gguf, graft_error *err);
/* Loads the adapter and frees it. *ms: the loading. */
int bench_llama_load(bench_llama *b, double *ms, graft_error *err);
void bench_llama_close(bench_llama *b);

/* Milliseconds of a monotonic clock, with nanoseconds. */
double bench_now_ms(void);

#endif
