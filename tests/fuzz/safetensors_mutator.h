/* Changes of a safetensors file that leave it a file whose parts fit: without them nearly every input ends at the header's length. */
#ifndef GR_FUZZ_SAFETENSORS_MUTATOR_H
#define GR_FUZZ_SAFETENSORS_MUTATOR_H

#include <stddef.h>
#include <stdint.h>

/* As LLVMFuzzerCustomMutator. Only with libFuzzer. */
size_t fuzz_mutate_safetensors(uint8_t *data, size_t size, size_t max_size, unsigned int seed);

#endif
