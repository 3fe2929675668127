/* Adapters are small, so tensors are read as a whole: that leaves every order open. */
#include "export_matrix.h"

#include "base/checked.h"
#include "base/memory.h"
#include "model/convert.h"

#include <string.h>

enum { CHUNK = 16384 }; /* elements converted at once */

/* ---- reading -------------------------------------------------------------------------------------------- */

static int not_finite(const gr_tensor_info *t, const float *x, size_t n, graft_error *err) {
    char q[GR_QUOTE_SIZE];
    size_t i = 0, columns = t->n_dims > 1 ? (size_t)t->shape[t->n_dims - 1] : n;
    while (i < n - 1 && gr_f32_largest(x + i, 1) < GR_F32_INFINITY) {
        i++;
    }
    return gr_fail(err, GRAFT_E_NON_FINITE, "%s: element [%zu, %zu] is not finite", gr_quote(q, t->name, strlen(t->name)),
                   i / columns, i % columns);
}

static int read_all(float *out, const gr_source *source, const gr_tensor_info *t, size_t n, graft_error *err) {
    float raw[CHUNK];
    size_t size = gr_dtype_size(t->dtype);
    for (size_t first = 0, part; first < n; first += part) {
        part = n - first < CHUNK ? n - first : CHUNK;
        int rc = gr_file_read(&source->weights, raw, part * size, t->offset + first * size, err);
        if (rc) {
            return rc;
        }
        gr_to_f32(out + first, t->dtype, raw, part);
    }
    return gr_f32_largest(out, n) < GR_F32_INFINITY ? 0 : not_finite(t, out, n, err);
}

static void transpose(float *out, const float *x, size_t rows, size_t columns) {
    for (size_t r = 0; r < rows; r++) {
        for (size_t c = 0; c < columns; c++) {
            out[c * rows + r] = x[r * columns + c];
        }
    }
}

int gr_export_read(float **out, const gr_source *source, const gr_tensor_info *t, bool transposed, graft_error *err) {
    size_t n = (size_t)(t->size / gr_dtype_size(t->dtype)); /* it lies in a file whose size was bounded */
    float *x = gr_calloc(n, sizeof *x);
    if (!x) {
        return gr_fail_memory(err, n * sizeof *x);
    }
    int rc = read_all(x, source, t, n, err);
    if (!rc && transposed && t->n_dims == 2) {
        float *turned = gr_calloc(n, sizeof *turned);
        if (turned) {
            transpose(turned, x, (size_t)t->shape[0], (size_t)t->shape[1]);
        } else {
            rc = gr_fail_memory(err, n * sizeof *turned);
        }
        gr_free(x);
        x = turned;
    }
    if (rc) {
        gr_free(x);
        return rc;
    }
    *out = x;
    return 0;
}

/* ---- writing -------------------------------------------------------------------------------------------- */

static int narrow(uint16_t *out, const float *x, size_t n, gr_dtype type, const char *name, graft_error *err) {
    if (type == GR_DTYPE_BF16) {
        for (size_t i = 0; i < n; i++) {
            uint32_t bits;
            memcpy(&bits, x + i, sizeof bits);
            out[i] = (uint16_t)(bits >> 16);
        }
        return 0;
    }
    gr_f32_to_f16(out, x, n);
    if (gr_f16_largest(out, n) < GR_F16_INFINITY) {
        return 0;
    }
    char q[GR_QUOTE_SIZE];
    return gr_fail(err, GRAFT_E_OUT_OF_RANGE, "%s: holds numbers beyond 65504, which float16 cannot", gr_quote(q, name, strlen(name)));
}

int gr_export_write(gr_target *target, const float *x, size_t n, gr_dtype type, const char *name, graft_error *err) {
    uint16_t half[CHUNK];
    if (type == GR_DTYPE_F32) {
        return gr_target_write(target, x, n * sizeof *x, err);
    }
    int rc = 0;
    for (size_t first = 0, part; first < n && !rc; first += part) {
        part = n - first < CHUNK ? n - first : CHUNK;
        rc = narrow(half, x + first, part, type, name, err);
        rc = rc ? rc : gr_target_write(target, half, part * sizeof *half, err);
    }
    return rc;
}
