#include "gguf_write.h"

#include "base/memory.h"

int gr_gguf_write_header(gr_target *target, const struct gguf_context *g, graft_error *err) {
    size_t size = gguf_get_meta_size(g);
    void *bytes = gr_alloc(size);
    if (!bytes) {
        return gr_fail_memory(err, size);
    }
    gguf_get_meta_data(g, bytes);
    int rc = gr_target_write(target, bytes, size, err);
    gr_free(bytes);
    return rc;
}
