/* Reading rows of the base's weights: bounded pieces of the file, through ggml's own conversions. */
#include "base_weights.h"

#include "base/checked.h"
#include "base/memory.h"

#include <ggml.h>

enum { STEP = 65536 /* elements */, RAW = 65536 /* bytes */ };

/* Elements that are converted as one: a row; of a vector, whose elements are rows, all that are asked for. */
typedef struct span {
    int64_t n_rows, n;   /* rows of n elements */
    size_t row_bytes;
    uint64_t offset;
} span;

int64_t gr_base_weights_step(const gr_weight *w) {
    return w->n_in >= STEP ? 1 : STEP / w->n_in;
}

static int unsupported(const gr_weight *w, graft_error *err) {
    return gr_fail(err, GRAFT_E_UNSUPPORTED_TARGET, "%s: the base has it as %s, which graft cannot read", w->name,
                   w->type >= 0 && w->type < GGML_TYPE_COUNT ? ggml_type_name((enum ggml_type)w->type) : "an unknown type");
}

static int find_span(span *out, const gr_weight *w, int64_t first, int64_t n, graft_error *err) {
    if (w->type < 0 || w->type >= GGML_TYPE_COUNT) {
        return unsupported(w, err);
    }
    const struct ggml_type_traits *t = ggml_get_type_traits((enum ggml_type)w->type);
    int64_t block = w->vector ? 1 : w->n_in; /* what must be made of whole blocks */
    bool known = t && (w->type == GGML_TYPE_F32 || t->to_float) && t->blck_size > 0 && block % t->blck_size == 0;
    if (!known) {
        return unsupported(w, err);
    }
    size_t row = ggml_row_size((enum ggml_type)w->type, w->n_in);
    *out = (span){.n_rows = w->vector ? 1 : n, .n = w->vector ? n : w->n_in};
    out->row_bytes = w->vector ? row * (size_t)n : row;
    uint64_t skip;
    if (!gr_mul_u64(&skip, (uint64_t)first, row) || !gr_add_u64(&out->offset, w->offset, skip)) {
        return gr_fail(err, GRAFT_E_INTERNAL, "%s: row %lld lies beyond every file", w->name, (long long)first);
    }
    return 0;
}

/* As many rows at a time as fit RAW bytes, but at least one. */
static int convert(const gr_file *f, enum ggml_type type, const span *s, float *out, graft_error *err) {
    int64_t at_once = s->row_bytes >= RAW ? 1 : (int64_t)(RAW / s->row_bytes);
    at_once = at_once < s->n_rows ? at_once : s->n_rows;
    void *raw = gr_alloc_aligned((size_t)at_once * s->row_bytes);
    if (!raw) {
        return gr_fail_memory(err, (size_t)at_once * s->row_bytes);
    }
    ggml_to_float_t to_float = ggml_get_type_traits(type)->to_float;
    int rc = 0;
    for (int64_t row = 0; row < s->n_rows && !rc; row += at_once) {
        int64_t n = s->n_rows - row < at_once ? s->n_rows - row : at_once;
        rc = gr_file_read(f, raw, (size_t)n * s->row_bytes, s->offset + (uint64_t)row * s->row_bytes, err);
        if (!rc) {
            to_float(raw, out + row * s->n, n * s->n); /* rows are whole blocks */
        }
    }
    gr_free(raw);
    return rc;
}

int gr_base_weights_read(const gr_base_model *m, int weight, int64_t first, int64_t n, float *out, graft_error *err) {
    const gr_weight *w = &m->weights[weight];
    if (first < 0 || n < 0 || n > w->n_out || first > w->n_out - n) {
        return gr_fail(err, GRAFT_E_INTERNAL, "%s: has no %lld rows from %lld on", w->name, (long long)n, (long long)first);
    }
    if (n == 0) {
        return 0;
    }
    span s = {0};
    int rc = find_span(&s, w, first, n, err);
    if (rc) {
        return rc;
    }
    if (w->part >= m->n_parts) {
        return gr_fail(err, GRAFT_E_IO_ERROR, "%s: the base's file is not open", w->name);
    }
    const gr_file *f = &m->parts[w->part];
    if (w->type == GGML_TYPE_F32) {
        return gr_file_read(f, out, (size_t)s.n_rows * s.row_bytes, s.offset, err);
    }
    return convert(f, (enum ggml_type)w->type, &s, out, err);
}

int gr_base_weights_unchanged(const gr_base_model *m, int weight, graft_error *err) {
    int part = m->weights[weight].part;
    return part < m->n_parts ? gr_file_unchanged(&m->parts[part], err) : 0;
}
