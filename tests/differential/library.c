/* The two readers of tensor files as functions of bytes, for compare.py. Nothing of libllama's is in it. */
#include "base/error.h"
#include "format/gguf_lora.h"
#include "format/safetensors.h"

int differential_safetensors(const uint8_t *bytes, size_t n);
int differential_gguf(const uint8_t *bytes, size_t n);
const char *differential_code(int code);

__attribute__((visibility("default"))) int differential_safetensors(const uint8_t *bytes, size_t n) {
    graft_error err = {0};
    gr_tensor_list list = {0};
    uint64_t length;
    int code = gr_safetensors_header_length(&length, bytes, n < 16 ? n : 16, n, &err);
    if (!code) {
        code = gr_safetensors_parse(&list, (const char *)bytes + 8, (size_t)length, n, &err);
        gr_tensor_list_finish(&list);
    }
    return code;
}

__attribute__((visibility("default"))) int differential_gguf(const uint8_t *bytes, size_t n) {
    graft_error err = {0};
    gr_gguf_lora g = {0};
    int code = gr_gguf_lora_parse(&g, bytes, n, n, &err);
    gr_gguf_lora_finish(&g);
    return code;
}

__attribute__((visibility("default"))) const char *differential_code(int code) {
    return graft_error_name(code);
}
