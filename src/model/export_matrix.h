/* One tensor of an adapter on its way from file to file: read whole as float32, put into another order, written as another type. */
#ifndef GR_EXPORT_MATRIX_H
#define GR_EXPORT_MATRIX_H

#include "base/target.h"
#include "model/source.h"

/*
 * Reads the tensor as float32, exactly. With `transposed` a matrix's rows become columns. *out: gr_free.
 * Errors: NON_FINITE (tensor and element), those of gr_file_read, OUT_OF_MEMORY.
 */
int gr_export_read(float **out, const gr_source *source, const gr_tensor_info *t, bool transposed, graft_error *err);

/*
 * Writes n numbers as `type` (not Q8_0). Errors: OUT_OF_RANGE (too large for float16; `name` says of what), STORAGE_FULL,
 * OUT_OF_MEMORY. BF16 must be asked for only where the numbers were BF16: it is cut off, not rounded.
 */
int gr_export_write(gr_target *target, const float *x, size_t n, gr_dtype type, const char *name, graft_error *err);

#endif
