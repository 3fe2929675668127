/* A GGUF adapter: keys and tensor table. The input is the file. */
#include "fuzz.h"

#include "base/memory.h"
#include "format/gguf_lora.h"

#include <math.h>
#include <string.h>

static void check(const gr_gguf_lora *g, uint64_t file_size) {
    FUZZ_REQUIRE(g->architecture && g->architecture[0]);
    FUZZ_REQUIRE(isfinite(g->alpha) && g->alpha != 0);
    FUZZ_REQUIRE(g->tensors.n >= 1 && g->tensors.n <= GR_MAX_TENSORS);
    for (size_t i = 0; i < g->tensors.n; i++) {
        const gr_tensor_info *t = &g->tensors.tensors[i];
        uint64_t size;
        FUZZ_REQUIRE(gr_tensor_name_check(t->name, strlen(t->name), NULL) == 0);
        FUZZ_REQUIRE(i == 0 || strcmp(g->tensors.tensors[i - 1].name, t->name) < 0);
        FUZZ_REQUIRE(t->n_dims >= 1 && t->n_dims <= GR_MAX_DIMS);
        FUZZ_REQUIRE(gr_tensor_byte_size(&size, t) && size == t->size && size >= 1);
        FUZZ_REQUIRE(t->offset <= file_size && t->size <= file_size - t->offset);
    }
}

static int parse(const uint8_t *data, size_t size, uint64_t file_size) {
    gr_gguf_lora g = {.alpha = 4711};
    graft_error err = {0};
    int code = gr_gguf_lora_parse(&g, data, size, file_size, &err);
    if (code) {
        fuzz_check_error(code, &err);
        FUZZ_REQUIRE(g.alpha == 4711 && !g.architecture);
    } else {
        check(&g, file_size);
        gr_gguf_lora_finish(&g);
    }
    return code;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    uint64_t held = gr_memory_blocks();
    int code = parse(data, size, size);
    if (code == GRAFT_E_TRUNCATED) { /* as the beginning of a large file */
        parse(data, size, UINT64_MAX);
    }
    FUZZ_REQUIRE(gr_memory_blocks() == held);
    return 0;
}
