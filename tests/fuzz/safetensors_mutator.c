/*
 * Mutates the header's text by libFuzzer's own means and repairs what that breaks: the length in front of it, most of the time, and, half
 * of the time, the amount of data behind it. Now and then nothing is repaired.
 */
#include "safetensors_mutator.h"

#include "fuzz.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#ifdef GRAFT_LIBFUZZER

static uint32_t next(uint32_t *state) {
    *state = *state * 1664525u + 1013904223u;
    return *state >> 16;
}

static uint64_t read_length(const uint8_t *data) {
    uint64_t v = 0;
    for (int i = 7; i >= 0; i--) {
        v = v << 8 | data[i];
    }
    return v;
}

static void write_length(uint8_t *data, uint64_t v) {
    for (int i = 0; i < 8; i++) {
        data[i] = (uint8_t)(v >> 8 * i);
    }
}

/* The largest number in the header: where it is well-formed, the end of the data. */
static uint64_t largest_number(const char *text, size_t length) {
    uint64_t largest = 0, n = 0;
    for (size_t i = 0; i < length; i++) {
        n = text[i] >= '0' && text[i] <= '9' && n < UINT64_MAX / 16 ? n * 10 + (uint64_t)(text[i] - '0') : 0;
        largest = n > largest ? n : largest;
    }
    return largest;
}

/* Lays the tensors of a header out one behind the other, as their shapes say. Returns the new header, or NULL. */
static char *lay_out(const char *text, size_t length, uint64_t *end) {
    json_t *root = json_loadb(text, length, 0, NULL), *value;
    const char *key;
    json_int_t at = 0;
    json_object_foreach(root, key, value) {
        json_t *shape = json_object_get(value, "shape"), *dim;
        const char *dtype = json_string_value(json_object_get(value, "dtype"));
        json_int_t bytes = dtype && strcmp(dtype, "F32") == 0 ? 4 : 2;
        size_t i;
        json_array_foreach(shape, i, dim) {
            json_int_t n = json_integer_value(dim);
            bytes = n > 0 && n < 1 << 20 && bytes < 1 << 20 ? bytes * n : 1;
        }
        if (shape) {
            json_object_set_new(value, "data_offsets", json_pack("[I,I]", at, at + bytes));
            at += bytes;
        }
    }
    char *out = root ? json_dumps(root, JSON_COMPACT | JSON_PRESERVE_ORDER) : NULL;
    json_decref(root);
    *end = (uint64_t)at;
    return out;
}

size_t fuzz_mutate_safetensors(uint8_t *data, size_t size, size_t max_size, unsigned int seed) {
    uint32_t state = seed;
    if (size < 10 || read_length(data) > size - 8 || max_size < 64 || next(&state) % 16 == 0) {
        return LLVMFuzzerMutate(data, size, max_size);
    }
    size_t length = (size_t)read_length(data);
    uint64_t end;
    if (next(&state) % 8 != 0) { /* else: as it is, laid out */
        length = LLVMFuzzerMutate(data + 8, length, max_size - 8);
    }
    char *laid = next(&state) % 2 ? lay_out((char *)data + 8, length, &end) : NULL;
    if (laid && strlen(laid) <= max_size - 8) {
        length = strlen(laid);
        memcpy(data + 8, laid, length);
    } else {
        end = largest_number((char *)data + 8, length);
    }
    free(laid);
    write_length(data, length);
    if (end > max_size - 8 - length) {
        end = max_size - 8 - length < 4 ? 0 : next(&state) % 4; /* cannot be: only a stub of it */
    }
    memset(data + 8 + length, 0, (size_t)end);
    return 8 + length + (size_t)end;
}

#endif
