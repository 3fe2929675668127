/*
 * The one pass over an adapter's weights file: every tensor read, checked, converted and packed, every byte hashed. Modules that
 * turn out to need a wider type are read again.
 */
#ifndef GR_ADAPTER_READ_H
#define GR_ADAPTER_READ_H

#include "model/adapter.h"

/*
 * Fills matrices and vectors of `a`, whose modules are laid out for `plan`, as the file has them, and `zero` of the LOW_RANK
 * ones by their matrices; sets the generation. Errors: NON_FINITE (tensor and index), IO_ERROR, CHANGED_WHILE_READING,
 * OUT_OF_MEMORY.
 */
int gr_adapter_read(gr_adapter *a, const gr_plan *plan, graft_error *err);

#endif
