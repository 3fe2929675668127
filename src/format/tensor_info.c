/* Lists of tensors, and the rules for their names and sizes that both file formats share. */
#include "tensor_info.h"

#include "base/checked.h"
#include "base/memory.h"

#include <stdlib.h>
#include <string.h>

const char *gr_dtype_name(gr_dtype t) {
    switch (t) {
    case GR_DTYPE_F32: return "F32";
    case GR_DTYPE_F16: return "F16";
    case GR_DTYPE_BF16: return "BF16";
    case GR_DTYPE_Q8_0: return "Q8_0";
    }
    return "?";
}

size_t gr_dtype_size(gr_dtype t) {
    return t == GR_DTYPE_Q8_0 ? 0 : t == GR_DTYPE_F32 ? 4 : 2;
}

bool gr_tensor_byte_size(uint64_t *out, const gr_tensor_info *t) {
    uint64_t n = gr_dtype_size(t->dtype);
    for (uint32_t i = 0; i < t->n_dims; i++) {
        if (!gr_mul_u64(&n, n, t->shape[i])) {
            return false;
        }
    }
    *out = n;
    return true;
}

int gr_tensor_name_check(const char *name, size_t length, graft_error *err) {
    if (length == 0 || length > GR_MAX_TENSOR_NAME) {
        return gr_fail(err, GRAFT_E_BAD_TENSOR_NAME, "a tensor name of %zu bytes (allowed: 1 to %d)", length,
                       GR_MAX_TENSOR_NAME);
    }
    for (size_t i = 0; i < length; i++) {
        unsigned char c = (unsigned char)name[i];
        if (c <= 0x20 || c >= 0x7f || c == '/' || c == '\\') {
            char quoted[GR_QUOTE_SIZE];
            return gr_fail(
                err, GRAFT_E_BAD_TENSOR_NAME,
                "tensor name \"%s\": byte %zu is 0x%02x (allowed: printable ASCII, no spaces or slashes)",
                gr_quote(quoted, name, length), i, c);
        }
    }
    return 0;
}

static int by_name(const void *a, const void *b) {
    return strcmp(((const gr_tensor_info *)a)->name, ((const gr_tensor_info *)b)->name);
}

void gr_tensor_list_sort(gr_tensor_list *l) {
    if (l->n > 1) {
        qsort(l->tensors, l->n, sizeof *l->tensors, by_name);
    }
}

void gr_tensor_list_finish(gr_tensor_list *l) {
    for (size_t i = 0; i < l->n; i++) {
        gr_free(l->tensors[i].name);
    }
    gr_free(l->tensors);
    l->tensors = NULL;
    l->n = 0;
}

const gr_tensor_info *gr_tensor_list_find(const gr_tensor_list *l, const char *name) {
    size_t low = 0, high = l->n;
    while (low < high) {
        size_t mid = low + (high - low) / 2;
        int order = strcmp(name, l->tensors[mid].name);
        if (order == 0) {
            return &l->tensors[mid];
        }
        if (order < 0) {
            high = mid;
        } else {
            low = mid + 1;
        }
    }
    return NULL;
}
