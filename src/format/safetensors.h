/*
 * Strict reader of the safetensors container. A function of memory: the caller reads the bytes.
 * File = u64 little-endian header length N, N bytes of JSON, tensor data. Accepted is what the safetensors
 * package accepts, less: duplicate names, dimensions of 0, element types other than F32, F16 and BF16 for any
 * tensor, headers above 16 MiB, more than GR_MAX_TENSORS tensors. The data must be covered without overlap,
 * hole or trailing byte.
 */
#ifndef GR_SAFETENSORS_H
#define GR_SAFETENSORS_H

#include "base/error.h"
#include "format/tensor_info.h"

#define GR_SAFETENSORS_MAX_HEADER ((uint64_t)16 << 20)

/*
 * From a file's first bytes (`n` of them, up to 16 are looked at) and its size: the header's length.
 * Errors: HEADER_TOO_SMALL, HEADER_LENGTH (with a hint if it looks big-endian), HEADER_TOO_LARGE, HEADER_INVALID
 * (length 0); UNSUPPORTED_FORMAT ("this looks like a zip archive, …"), PICKLE_REFUSED, LFS_POINTER by the first bytes.
 */
int gr_safetensors_header_length(uint64_t *out, const uint8_t *first, size_t n, uint64_t file_size, graft_error *err);

/*
 * Parses the header's JSON (header[0..length), the bytes after the first 8). Errors: HEADER_INVALID, the JSON
 * codes, DUPLICATE_TENSOR, OVERLAP, HOLE, TRAILING_BYTES, TRUNCATED, BAD_OFFSETS, OVERFLOW, SIZE_MISMATCH,
 * UNKNOWN_DTYPE, UNSUPPORTED_DTYPE, BAD_TYPE, MISSING_FIELD, METADATA_INVALID, BAD_TENSOR_NAME,
 * TOO_MANY_TENSORS, NO_TENSORS, BAD_RANK. Offsets in *out are from the file's start. *out: gr_tensor_list_finish.
 */
int gr_safetensors_parse(gr_tensor_list *out, const char *header, size_t length, uint64_t file_size, graft_error *err);

#endif
