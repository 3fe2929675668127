/*
 * DoRA's norms. |W + c BA|^2 of a row is ww + 2 c wba + c c bb; with the three numbers of each row the gain is known for every
 * factor of a request. W is the base's, dequantised; A and B are those of the module as it is stored, so that what is applied
 * is what was measured.
 */
#ifndef GR_DORA_H
#define GR_DORA_H

#include "model/adapter.h"

/*
 * Fills gain.ww, .wba and .bb of a LOW_RANK module, whose matrices are in place, from the base's file. It costs about as many
 * multiplications as evaluating the module for as many tokens as it has inputs. Errors: those of gr_base_weights_read,
 * OUT_OF_MEMORY.
 */
int gr_dora_measure(const gr_base_model *base, gr_module *m, graft_error *err);

/* |row o of W + f s BA|^2. */
double gr_dora_square(const gr_module *m, int o, double f);
/* The first row whose gain at factor 1 is no number, as where W + BA is zero there; n_out if there is none. */
int gr_dora_check(const gr_module *m);

#endif
