/*
 * For tests: numbers for a base model made by hand (make_adapter.h), of any of ggml's types, in files that its `parts` are then.
 * What they are as float32 is told by ggml itself.
 */
#ifndef MAKE_BASE_H
#define MAKE_BASE_H

#include "make_adapter.h"

#include <ggml.h>

static inline int64_t test_weight_elements(const gr_weight *w) {
    return w->n_in * w->n_out;
}

/* One number of a weight before it is rounded to the weight's type. */
static inline float test_base_number(const gr_weight *w, size_t i) {
    return 2 * test_value(w->name, i);
}

/* The bytes of a weight. */
static inline void *test_base_bytes(const gr_weight *w, size_t *size) {
    int64_t n = test_weight_elements(w), row = w->vector ? n : w->n_in;
    *size = ggml_row_size((enum ggml_type)w->type, row) * (size_t)(n / row);
    float *x = malloc((size_t)n * sizeof *x);
    void *bytes = malloc(*size);
    for (int64_t i = 0; i < n; i++) {
        x[i] = test_base_number(w, (size_t)i);
    }
    assert_int_equal(ggml_quantize_chunk((enum ggml_type)w->type, x, bytes, 0, n / row, row, NULL), *size);
    free(x);
    return bytes;
}

/* The same as ggml reads them: free. */
static inline float *test_base_floats(const gr_weight *w) {
    size_t size;
    void *bytes = test_base_bytes(w, &size);
    int64_t n = test_weight_elements(w);
    float *x = malloc((size_t)n * sizeof *x);
    if (w->type == GGML_TYPE_F32) {
        memcpy(x, bytes, size);
    } else {
        ggml_get_type_traits((enum ggml_type)w->type)->to_float(bytes, x, n);
    }
    free(bytes);
    return x;
}

/* Writes the weights of each part to DIR/partN and opens them. Undone by test_base_close. */
static inline void test_base_write(gr_base_model *m, const test_dir *d) {
    for (size_t i = 0; i < m->n_weights; i++) {
        m->n_parts = m->weights[i].part >= m->n_parts ? m->weights[i].part + 1 : m->n_parts;
    }
    m->parts = calloc((size_t)m->n_parts, sizeof *m->parts);
    for (int part = 0; part < m->n_parts; part++) {
        char name[16];
        snprintf(name, sizeof name, "part%d", part);
        FILE *f = fopen(test_path(d, name), "wb");
        assert_non_null(f);
        fputs("GGUF, as it were", f);
        for (size_t i = 0; i < m->n_weights; i++) {
            gr_weight *w = &m->weights[i];
            if (w->part == part) {
                size_t size;
                void *bytes = test_base_bytes(w, &size);
                w->offset = (uint64_t)ftell(f);
                assert_int_equal(fwrite(bytes, 1, size, f), size);
                fputs("padding", f);
                free(bytes);
            }
        }
        fclose(f);
        graft_error err;
        assert_int_equal(gr_file_open(&m->parts[part], AT_FDCWD, test_path(d, name), &err), 0);
    }
}

static inline void test_base_close(gr_base_model *m) {
    for (int i = 0; i < m->n_parts; i++) {
        gr_file_close(&m->parts[i]);
    }
    free(m->parts);
    m->parts = NULL;
    m->n_parts = 0;
}

static inline int test_base_id(const gr_base_model *m, const char *name) {
    int id = gr_base_model_weight(m, name);
    assert_true(id >= 0);
    return id;
}

#endif
