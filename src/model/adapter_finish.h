/* What remains once the file's numbers are in memory: vectors that follow from them and from the base's weights. */
#ifndef GR_ADAPTER_FINISH_H
#define GR_ADAPTER_FINISH_H

#include "model/adapter.h"

/*
 * For module number `index`, filled by gr_adapter_read: lora_bias times the scale, biases and norms relative to the base's, norms
 * of DoRA; and `zero`. Errors: UNSUPPORTED_TARGET (a norm's weight that is zero, or so small that the quotient exceeds 1e4; a
 * base's type that is not dequantised), NON_FINITE (a gain that is no number), IO_ERROR and CHANGED_WHILE_READING (the base's
 * file), OUT_OF_MEMORY.
 */
int gr_module_finish(gr_module *m, const gr_plan *plan, size_t index, graft_error *err);

#endif
