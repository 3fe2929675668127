/* The beginning of a GGUF file that is written; its data follow in pieces, each padded to the alignment. */
#ifndef GR_GGUF_WRITE_H
#define GR_GGUF_WRITE_H

#include "base/target.h"

#include <gguf.h>

/* Keys and the table of tensors. Errors: STORAGE_FULL, OUT_OF_MEMORY. */
int gr_gguf_write_header(gr_target *target, const struct gguf_context *g, graft_error *err);

#endif
