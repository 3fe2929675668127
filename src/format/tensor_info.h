/* What a tensor file says about its tensors: the common result of the safetensors and the GGUF reader. */
#ifndef GR_TENSOR_INFO_H
#define GR_TENSOR_INFO_H

#include "base/error.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Q8_0 is a form of matrices in memory only: no reader gives it. BF16 is one of files only. */
typedef enum gr_dtype { GR_DTYPE_F32, GR_DTYPE_F16, GR_DTYPE_BF16, GR_DTYPE_Q8_0 } gr_dtype;

/* "F32", "F16", "BF16", "Q8_0". Static storage. */
const char *gr_dtype_name(gr_dtype t);
/* Bytes per element: 4, 2, 2; 0 for Q8_0, which has only whole blocks. */
size_t gr_dtype_size(gr_dtype t);

#define GR_MAX_DIMS 4

typedef struct gr_tensor_info {
    char *name;                  /* gr_tensor_name_check */
    gr_dtype dtype;
    uint32_t n_dims;             /* 1 to GR_MAX_DIMS */
    uint64_t shape[GR_MAX_DIMS]; /* row-major order: shape[n_dims-1] varies fastest; all >= 1 */
    uint64_t offset;             /* of the first byte, from the file's start */
    uint64_t size;               /* bytes; equals the shape's product times the element size */
} gr_tensor_info;

/* Sorted by name. Owned: gr_tensor_list_finish. */
typedef struct gr_tensor_list {
    gr_tensor_info *tensors;
    size_t n;
} gr_tensor_list;

void gr_tensor_list_finish(gr_tensor_list *l);
/* By name, or NULL. */
const gr_tensor_info *gr_tensor_list_find(const gr_tensor_list *l, const char *name);

/* For the readers: puts the tensors in the list's order. */
void gr_tensor_list_sort(gr_tensor_list *l);

#define GR_MAX_TENSORS 65536
#define GR_MAX_TENSOR_NAME 512

/*
 * BAD_TENSOR_NAME unless the name is 1 to GR_MAX_TENSOR_NAME printable ASCII characters without spaces and slashes.
 * Every module that graft knows has such a name; everything else could only deceive a reader (other scripts,
 * combining characters) or a log.
 */
int gr_tensor_name_check(const char *name, size_t length, graft_error *err);

/* The shape's product times the element size; false if that does not fit 64 bits. */
bool gr_tensor_byte_size(uint64_t *out, const gr_tensor_info *t);

#endif
