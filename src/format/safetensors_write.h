/* The beginning of a safetensors file that is about to be written. */
#ifndef GR_SAFETENSORS_WRITE_H
#define GR_SAFETENSORS_WRITE_H

#include "base/buffer.h"
#include "format/tensor_info.h"

/*
 * Puts the tensors in the order in which their data has to follow (as safetensors' own writer does: wide elements first, so
 * that all are aligned; then by name), sets `size` and `offset` of each, and appends the header: its length, the JSON with
 * `{"format": "pt"}` as metadata, spaces up to a multiple of 8.
 * Errors: OVERFLOW, HEADER_TOO_LARGE (more than graft reads), OUT_OF_MEMORY.
 */
int gr_safetensors_begin(gr_buffer *out, gr_tensor_info *tensors, size_t n, graft_error *err);

#endif
