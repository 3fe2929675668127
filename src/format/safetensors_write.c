/* Names, shapes and offsets as JSON, by jansson. */
#include "safetensors_write.h"

#include "base/checked.h"
#include "base/memory.h"
#include "format/safetensors.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

static int by_place(const void *a, const void *b) {
    const gr_tensor_info *x = a, *y = b;
    size_t wx = gr_dtype_size(x->dtype), wy = gr_dtype_size(y->dtype);
    return wx != wy ? (wx < wy) - (wx > wy) : strcmp(x->name, y->name);
}

/* Offsets in the data, for now. */
static int lay_out(gr_tensor_info *tensors, size_t n, graft_error *err) {
    uint64_t at = 0;
    for (size_t i = 0; i < n; i++) {
        tensors[i].offset = at;
        if (!gr_tensor_byte_size(&tensors[i].size, &tensors[i]) || !gr_add_u64(&at, at, tensors[i].size) || at > INT64_MAX) {
            return gr_fail(err, GRAFT_E_OVERFLOW, "the tensors' size does not fit 63 bits");
        }
    }
    return 0;
}

/* NULL when memory is out. */
static json_t *describe(const gr_tensor_info *t) {
    json_t *shape = json_array();
    bool good = shape != NULL;
    for (uint32_t d = 0; good && d < t->n_dims; d++) {
        good = json_array_append_new(shape, json_integer((json_int_t)t->shape[d])) == 0;
    }
    if (!good) {
        json_decref(shape);
        return NULL;
    }
    return json_pack("{s:s, s:o, s:[I, I]}", "dtype", gr_dtype_name(t->dtype), "shape", shape, "data_offsets",
                     (json_int_t)t->offset, (json_int_t)(t->offset + t->size));
}

static json_t *describe_all(const gr_tensor_info *tensors, size_t n) {
    json_t *header = json_pack("{s:{s:s}}", "__metadata__", "format", "pt");
    for (size_t i = 0; header && i < n; i++) {
        if (json_object_set_new(header, tensors[i].name, describe(&tensors[i])) != 0) {
            json_decref(header);
            return NULL;
        }
    }
    return header;
}

/* Appends length, text and padding. */
static int append(gr_buffer *out, const char *text, size_t n, graft_error *err) {
    size_t padded = (n + 7) / 8 * 8;
    if (padded > GR_SAFETENSORS_MAX_HEADER) {
        return gr_fail(err, GRAFT_E_HEADER_TOO_LARGE, "the header would have %zu bytes", padded);
    }
    uint8_t length[8];
    for (int i = 0; i < 8; i++) {
        length[i] = (uint8_t)((uint64_t)padded >> (8 * i));
    }
    gr_buffer_append(out, length, sizeof length);
    gr_buffer_append(out, text, n);
    gr_buffer_append(out, "        ", padded - n);
    return out->failed ? gr_fail_memory(err, padded + 8) : 0;
}

int gr_safetensors_begin(gr_buffer *out, gr_tensor_info *tensors, size_t n, graft_error *err) {
    if (n > 1) {
        qsort(tensors, n, sizeof *tensors, by_place);
    }
    int rc = lay_out(tensors, n, err);
    if (rc) {
        return rc;
    }
    json_t *header = describe_all(tensors, n);
    char *text = header ? json_dumps(header, JSON_COMPACT | JSON_ENSURE_ASCII) : NULL;
    rc = text ? append(out, text, strlen(text), err) : gr_fail_memory(err, n * 128);
    free(text); /* jansson's */
    json_decref(header);
    for (size_t i = 0; !rc && i < n; i++) {
        tensors[i].offset += out->length;
    }
    return rc;
}
