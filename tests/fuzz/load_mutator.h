/* A PEFT folder in one file: u32 little-endian length of adapter_config.json, its bytes, those of adapter_model.safetensors. */
#ifndef GR_FUZZ_LOAD_MUTATOR_H
#define GR_FUZZ_LOAD_MUTATOR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct fuzz_folder {
    const uint8_t *config, *weights;
    size_t config_length, weights_length;
} fuzz_folder;

/* False if the length leads beyond the end. */
bool fuzz_folder_split(fuzz_folder *out, const uint8_t *data, size_t size);

/* As LLVMFuzzerCustomMutator: changes that mostly leave a folder that can be loaded. Only with libFuzzer. */
size_t fuzz_mutate_folder(uint8_t *data, size_t size, size_t max_size, unsigned int seed);

#endif
