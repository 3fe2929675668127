/* Loading in two steps, for who must know how much memory it takes before any matrix is read. */
#ifndef GR_OPENED_H
#define GR_OPENED_H

#include "base/log.h"
#include "model/adapter.h"
#include "model/source.h"

/* An adapter's files, opened and verified against the base. */
typedef struct gr_opened gr_opened;

/* Opens and verifies; reads no matrix. Warnings go to `log` (may be NULL). `base` must outlive it. Errors: those of
 * gr_source_open and gr_verify. *out: gr_opened_build or gr_opened_free. */
int gr_opened_make(gr_opened **out, const gr_base_model *base, const char *path, graft_adapter_type type, gr_source_limits limits,
                   const gr_log *log, graft_error *err);
/* What building will hold: gr_adapter_size. */
uint64_t gr_opened_bytes(const gr_opened *o);
/* Weights that it changes. */
size_t gr_opened_modules(const gr_opened *o);
/* Reads and packs. Frees `o` in any case. Errors: those of gr_adapter_build. load_ms of the adapter counts from gr_opened_make,
 * without the time between the two calls. */
int gr_opened_build(gr_adapter **out, gr_opened *o, graft_error *err);
void gr_opened_free(gr_opened *o);

#endif
