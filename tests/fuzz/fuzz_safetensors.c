/* A safetensors file: header length, header. The input is the file. */
#include "fuzz.h"

#include "base/memory.h"
#include "format/safetensors.h"
#include "safetensors_mutator.h"

#include <string.h>

static void check_list(const gr_tensor_list *l, uint64_t begin, uint64_t file_size) {
    uint64_t covered = 0;
    FUZZ_REQUIRE(l->n >= 1 && l->n <= GR_MAX_TENSORS);
    for (size_t i = 0; i < l->n; i++) {
        const gr_tensor_info *t = &l->tensors[i];
        uint64_t size;
        FUZZ_REQUIRE(gr_tensor_name_check(t->name, strlen(t->name), NULL) == 0);
        FUZZ_REQUIRE(i == 0 || strcmp(l->tensors[i - 1].name, t->name) < 0);
        FUZZ_REQUIRE(gr_tensor_list_find(l, t->name) == t);
        FUZZ_REQUIRE(t->n_dims >= 1 && t->n_dims <= GR_MAX_DIMS);
        FUZZ_REQUIRE(gr_tensor_byte_size(&size, t) && size == t->size && size >= 1);
        FUZZ_REQUIRE(t->offset >= begin && t->offset <= file_size && t->size <= file_size - t->offset);
        covered += t->size;
    }
    FUZZ_REQUIRE(covered == file_size - begin);
}

static int parse(const char *header, size_t length, uint64_t file_size) {
    gr_tensor_list list = {.tensors = NULL, .n = 4711};
    graft_error err = {0};
    int code = gr_safetensors_parse(&list, header, length, file_size, &err);
    if (code) {
        fuzz_check_error(code, &err);
        FUZZ_REQUIRE(list.n == 4711);
    } else {
        check_list(&list, length + 8, file_size);
        gr_tensor_list_finish(&list);
    }
    return code;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    uint64_t length = 0, held = gr_memory_blocks();
    graft_error err = {0};
    int code = gr_safetensors_header_length(&length, data, size < 16 ? size : 16, size, &err);
    if (code) {
        fuzz_check_error(code, &err);
        return 0;
    }
    FUZZ_REQUIRE(length >= 1 && length <= size - 8);
    code = parse((const char *)data + 8, (size_t)length, size);
    if (code == GRAFT_E_TRUNCATED) { /* tensors larger than any input: as if the file had been large enough */
        parse((const char *)data + 8, (size_t)length, UINT64_MAX);
    }
    FUZZ_REQUIRE(gr_memory_blocks() == held);
    return 0;
}

#ifdef GRAFT_LIBFUZZER
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned int seed) {
    return fuzz_mutate_safetensors(data, size, max_size, seed);
}
#endif
