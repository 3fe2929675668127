/* In which of ggml's types each weight of a merged model is stored. */
#ifndef GR_MERGE_TYPES_H
#define GR_MERGE_TYPES_H

#include "base/error.h"

#include <ggml.h>
#include <stdbool.h>
#include <stdint.h>

#define GR_MERGE_SAME GGML_TYPE_COUNT /* each weight keeps its own */

/* "same", "f32", "q4_k" and so on, as graft.h lists them; false for anything else. */
bool gr_merge_type_find(enum ggml_type *out, const char *name);
/* general.file_type for a model of this type. */
uint32_t gr_merge_file_type(enum ggml_type type);

/*
 * The type for a tensor, as llama.cpp's own quantisation would have it: vectors, norms and the like keep theirs; the head (or the
 * embedding that serves as one) gets Q6_K where the others get less; rows that the type's blocks do not divide get the next
 * type that does, at last F16.
 */
enum ggml_type gr_merge_type_of(enum ggml_type wanted, const char *name, bool head, enum ggml_type own, const int64_t ne[4]);

/* Whether rows can be made from float32, and into float32, without anything else to go by. */
bool gr_merge_type_writable(enum ggml_type t);
bool gr_merge_type_readable(enum ggml_type t);

#endif
