/*
 * The numbers of the base's weights, read from its GGUF and dequantised. libllama has them in memory, but does not give them:
 * they may be repacked, or on a GPU.
 */
#ifndef GR_BASE_WEIGHTS_H
#define GR_BASE_WEIGHTS_H

#include "model/base_model.h"

/*
 * Rows first .. first + n - 1 of a weight as float32: out[i * n_in + j]; of a vector its elements first .. first + n - 1. They
 * come from the files that were opened with the model, whatever has become of their paths. No lock, any thread.
 * Errors: UNSUPPORTED_TARGET (a type of numbers that is not dequantised), CHANGED_WHILE_READING, IO_ERROR, OUT_OF_MEMORY;
 * INTERNAL for rows that the weight does not have.
 */
int gr_base_weights_read(const gr_base_model *m, int weight, int64_t first, int64_t n, float *out, graft_error *err);

/* How many rows to read at once: some 256 KiB of float32, and at least one. */
int64_t gr_base_weights_step(const gr_weight *w);

/* Fails with CHANGED_WHILE_READING if the weight's file was written to since the model was opened. */
int gr_base_weights_unchanged(const gr_base_model *m, int weight, graft_error *err);

#endif
