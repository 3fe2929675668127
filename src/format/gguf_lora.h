/*
 * Strict reader of GGUF LoRA adapters (general.type = "adapter"). libllama's own reader asserts on some
 * malformed files, so it never sees a stranger's file. A function of memory.
 * Format: ggml's docs/gguf.md; keys: adapter.type, adapter.lora.alpha, general.architecture.
 */
#ifndef GR_GGUF_LORA_H
#define GR_GGUF_LORA_H

#include "base/error.h"
#include "format/tensor_info.h"

#include <stdbool.h>

typedef struct gr_gguf_lora {
    char *architecture;      /* general.architecture */
    double alpha;            /* adapter.lora.alpha, finite, not 0 */
    int32_t *invocation;     /* adapter.alora.invocation_tokens, not negative, or NULL */
    size_t n_invocation;
    bool has_tokenizer;      /* tokenizer.* keys are present: never used, worth a warning */
    gr_tensor_list tensors;  /* row-major shapes (GGUF's ne reversed); only F32, F16, BF16 */
} gr_gguf_lora;

#define GR_GGUF_MAX_METADATA ((uint64_t)64 << 20)
#define GR_GGUF_MAX_KEYS 65536
#define GR_GGUF_MAX_STRING 65536
#define GR_GGUF_MAX_ARRAY ((uint64_t)1 << 24)

/* Whether the first bytes are GGUF's magic. */
bool gr_gguf_is(const uint8_t *first, size_t n);

/*
 * Parses header, keys and tensor table out of bytes[0..n), the file's beginning: all of it, or its first
 * GR_GGUF_MAX_METADATA bytes. `file_size` bounds the tensor data.
 * Versions 2 and 3 (they differ in nothing but the permission of big-endian files, which are refused).
 * Errors: the GGUF codes, NOT_AN_ADAPTER, ALPHA_MISSING, BAD_ALPHA, MISSING_FIELD (architecture), UNSUPPORTED_DTYPE
 * (quantised), SHARDED_UNSUPPORTED, TRUNCATED, TRAILING_BYTES, TOO_LARGE (the table goes on after
 * GR_GGUF_MAX_METADATA), NO_TENSORS, TOO_MANY_TENSORS, BAD_TENSOR_NAME. *out: gr_gguf_lora_finish.
 */
int gr_gguf_lora_parse(gr_gguf_lora *out, const uint8_t *bytes, size_t n, uint64_t file_size, graft_error *err);
void gr_gguf_lora_finish(gr_gguf_lora *g);

#endif
