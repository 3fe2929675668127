/* One tensor of a merge, from the base's file to the new one, in pieces. */
#ifndef GR_MERGE_TENSOR_H
#define GR_MERGE_TENSOR_H

#include "base/file.h"
#include "base/progress.h"
#include "base/target.h"
#include "model/merge_rows.h"

#include <ggml.h>

typedef struct gr_merge_tensor {
    char name[GGML_MAX_NAME];
    const gr_file *file;          /* of the base */
    uint64_t offset;
    int64_t ne[4];
    enum ggml_type from, to;
    const gr_merge_change *changes;
    size_t n_changes;
    bool vector;                  /* changes are those of gr_merge_vector */
} gr_merge_tensor;

/* Bytes in the new file. */
uint64_t gr_merge_tensor_bytes(const gr_merge_tensor *t);

/*
 * Copies the bytes if nothing changes, else computes rows in float32 with so many threads. Progress counts bytes of the new file.
 * Errors: NON_FINITE (the base's or the merged weight), OUT_OF_RANGE (the type cannot hold it), CANCELLED, those of gr_file_read and
 * gr_target_write, OUT_OF_MEMORY.
 */
int gr_merge_tensor_write(gr_target *target, const gr_merge_tensor *t, int threads, gr_progress *progress, graft_error *err);

#endif
