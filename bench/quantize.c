/* Makes a model file of another quantisation out of one we have, for benchmarks only: requantising loses quality,
 * which speed does not care about. usage: bench_quantize IN.gguf OUT.gguf q8_0|q4_0|q4_k_m|f16 */
#include <llama.h>
#include <stdio.h>
#include <string.h>

int main(int argc, char **argv) {
    static const struct { const char *name; enum llama_ftype type; } types[] = {
        {"q8_0", LLAMA_FTYPE_MOSTLY_Q8_0}, {"q4_0", LLAMA_FTYPE_MOSTLY_Q4_0},
        {"q4_k_m", LLAMA_FTYPE_MOSTLY_Q4_K_M}, {"f16", LLAMA_FTYPE_MOSTLY_F16},
    };
    for (size_t i = 0; argc == 4 && i < sizeof types / sizeof *types; i++) {
        if (strcmp(argv[3], types[i].name) == 0) {
            llama_model_quantize_params params = llama_model_quantize_default_params();
            params.ftype = types[i].type;
            params.allow_requantize = true;
            return llama_model_quantize(argv[1], argv[2], &params) == 0 ? 0 : 1;
        }
    }
    fprintf(stderr, "usage: bench_quantize IN.gguf OUT.gguf q8_0|q4_0|q4_k_m|f16\n");
    return 2;
}
