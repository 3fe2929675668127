/*
 * Does a loaded adapter act? Before it counts as resident a few fixed tokens are evaluated with it, and the logits of the last
 * one compared with the base's: they must be finite, and an adapter that leaves them as they are has no effect.
 */
#ifndef GR_PROBE_H
#define GR_PROBE_H

#include "engine/engine.h"

typedef struct gr_probe gr_probe;

/*
 * Largest difference of a logit, in parts of the largest logit, that counts as none.
 *
 * The same rows alone give the same to the bit. In company they do not (other kernels, another order of adding up): 3e-7 was
 * measured with float32 weights and cache, 5e-4 with a float16 cache, 3e-2 with a base of 4 bits, where inputs are rounded
 * to 8 bits and any difference may tip some. The faintest adapters (gain 0.001) do 1e-3 in float32 and 3e-2 with 4 bits. No
 * border lies above all noise and below all effects. This one never takes an adapter that acts for one that does not; one
 * that does not may be missed, when the base was busy. (One whose matrices are zero is known without a probe.)
 */
#define GR_PROBE_NOISE 1e-5f

/* For one engine, which must outlive it. Errors: OUT_OF_MEMORY, and those of tokenising. *out: gr_probe_free. */
int gr_probe_create(gr_probe **out, gr_engine *e, graft_error *err);
void gr_probe_free(gr_probe *p);

/*
 * Waits for one small evaluation (two the first time). Any thread but the decode thread; several at once. *no_effect: no logit
 * differs from the base's, but for GR_PROBE_NOISE. Errors: NON_FINITE_OUTPUT, those of a job.
 */
int gr_probe_run(gr_probe *p, gr_adapter *a, bool *no_effect, graft_error *err);

#endif
