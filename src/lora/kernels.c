/* Chooses the kernel set; the sets themselves are kernels_ref.c, kernels_avx2.c and kernels_neon.c. */
#include "lora/kernels.h"

#include "lora/kernels_simd.h"

const gr_kernels *gr_kernels_best(void) {
    const gr_kernels *best = gr_kernels_avx2();
    if (!best) {
        best = gr_kernels_neon();
    }
    return best ? best : gr_kernels_reference();
}
