/* How large a module's matrices and vectors are, and where in the adapter's memory they lie. */
#ifndef GR_ADAPTER_LAYOUT_H
#define GR_ADAPTER_LAYOUT_H

#include "model/adapter.h"

/* A packed matrix: `rows` rows of `used` elements, each padded with zeros to `stride`. Without rows there is none. */
typedef struct gr_packed {
    size_t rows, used, stride;
} gr_packed;

gr_packed gr_module_a(const gr_module *m);
gr_packed gr_module_b(const gr_module *m);

/* Everything of *m but pointers and `zero`. The type is as asked for where such a module can have it: rows and tokens are
 * looked up one by one and have no Q8_0, and neither has a B whose rows' order does not make whole blocks. */
void gr_module_describe(gr_module *m, const gr_plan *plan, const gr_plan_entry *e, graft_adapter_type type);

/* Bytes of the module's matrices in its type, and of its vectors; multiples of 64. */
uint64_t gr_module_matrix_bytes(const gr_module *m);
uint64_t gr_module_vector_bytes(const gr_module *m, const gr_plan_entry *e);

/* Gives them their places from `memory` on, 64-byte aligned. Of matrices the padding is filled, vectors become zero; `tokens`
 * are those of the entry, ascending. */
void gr_module_place_matrices(gr_module *m, char *memory);
void gr_module_place_vectors(gr_module *m, const gr_plan_entry *e, char *memory);

#endif
