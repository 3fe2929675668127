/* Rows do not depend on each other: not the blocks of ggml's types, not what adapters do to them. So pieces are rows, and so are threads' shares. */
#include "merge_tensor.h"

#include "base/memory.h"
#include "base/thread.h"
#include "model/convert.h"

#include <string.h>

#define WORK "merging"

enum { PIECE = 32 << 20 /* bytes, in float32 */, COPY = 4 << 20, THREADS_MAX = 64 };

/* What one thread does of a piece. */
typedef struct share {
    const gr_merge_tensor *tensor;
    int64_t first, n;       /* rows, of the tensor */
    const char *raw;        /* as in the base */
    char *out;              /* as in the new file */
    float *wide;            /* [n][n_in] */
    float *scratch;         /* [n_in] */
    int code;
} share;

/* A piece's memory; rows of all threads one after the other. */
typedef struct piece {
    int64_t rows;           /* at most */
    char *raw, *out;
    float *wide, *scratch;
} piece;

static int64_t rows_of(const gr_merge_tensor *t) {
    return t->ne[1] * t->ne[2] * t->ne[3];
}

uint64_t gr_merge_tensor_bytes(const gr_merge_tensor *t) {
    return (uint64_t)ggml_row_size(t->to, t->ne[0]) * (uint64_t)rows_of(t);
}

/* ---- one share ------------------------------------------------------------------------------------------ */

static void to_float(const gr_merge_tensor *t, const share *s) {
    int64_t n = s->n * t->ne[0];
    if (t->from == GGML_TYPE_F32) {
        memcpy(s->wide, s->raw, (size_t)n * sizeof *s->wide);
    } else {
        ggml_get_type_traits(t->from)->to_float(s->raw, s->wide, n);
    }
}

static void change(const gr_merge_tensor *t, const share *s) {
    if (t->vector) {
        gr_merge_vector(s->wide, t->ne[0], t->changes, t->n_changes);
    } else {
        gr_merge_rows(s->wide, s->first, s->n, t->ne[0], t->changes, t->n_changes, s->scratch);
    }
}

static void *run(void *user) {
    share *s = user;
    const gr_merge_tensor *t = s->tensor;
    to_float(t, s);
    change(t, s);
    if (gr_f32_largest(s->wide, (size_t)(s->n * t->ne[0])) >= GR_F32_INFINITY) {
        s->code = GRAFT_E_NON_FINITE;
        return NULL;
    }
    if (t->to == GGML_TYPE_F32) {
        memcpy(s->out, s->wide, (size_t)(s->n * t->ne[0]) * sizeof *s->wide);
        return NULL;
    }
    ggml_quantize_chunk(t->to, s->wide, s->out, 0, s->n, t->ne[0], NULL);
    /* Back again: a factor of a block may have become infinite. ggml_validate_row_data would print. */
    ggml_get_type_traits(t->to)->to_float(s->out, s->wide, s->n * t->ne[0]);
    s->code = gr_f32_largest(s->wide, (size_t)(s->n * t->ne[0])) < GR_F32_INFINITY ? 0 : GRAFT_E_OUT_OF_RANGE;
    return NULL;
}

/* ---- one piece ------------------------------------------------------------------------------------------ */

static int failed(const gr_merge_tensor *t, int code, graft_error *err) {
    if (code == GRAFT_E_NON_FINITE) {
        return gr_fail(err, code, "%s: the merged weight is not finite", t->name);
    }
    return gr_fail(err, code, "%s: holds numbers that %s cannot", t->name, ggml_type_name(t->to));
}

/* Threads that cannot be had are done without. */
static int compute(const gr_merge_tensor *t, const piece *p, int64_t first, int64_t n, int threads, graft_error *err) {
    share shares[THREADS_MAX];
    pthread_t ids[THREADS_MAX];
    bool started[THREADS_MAX] = {false};
    int64_t each = (n + threads - 1) / threads;
    int used = 0;
    for (int64_t at = 0; at < n; at += each, used++) {
        shares[used] = (share){.tensor = t,
                               .first = first + at,
                               .n = n - at < each ? n - at : each,
                               .raw = p->raw + ggml_row_size(t->from, t->ne[0]) * (size_t)at,
                               .out = p->out + ggml_row_size(t->to, t->ne[0]) * (size_t)at,
                               .wide = p->wide + at * t->ne[0],
                               .scratch = p->scratch + used * t->ne[0]};
    }
    for (int i = 1; i < used; i++) {
        started[i] = gr_thread_start(&ids[i], run, &shares[i]) == 0;
    }
    int code = 0;
    for (int i = 0; i < used; i++) {
        if (started[i]) {
            gr_thread_join(ids[i]);
        } else {
            run(&shares[i]);
        }
        code = code ? code : shares[i].code;
    }
    return code ? failed(t, code, err) : 0;
}

static int write_pieces(gr_target *target, const gr_merge_tensor *t, const piece *p, int threads, gr_progress *progress,
                        graft_error *err) {
    size_t from = ggml_row_size(t->from, t->ne[0]), to = ggml_row_size(t->to, t->ne[0]);
    int rc = 0;
    for (int64_t first = 0, n; first < rows_of(t) && !rc; first += n) {
        n = rows_of(t) - first < p->rows ? rows_of(t) - first : p->rows;
        rc = gr_file_read(t->file, p->raw, from * (size_t)n, t->offset + from * (uint64_t)first, err);
        rc = rc ? rc : compute(t, p, first, n, threads, err);
        rc = rc ? rc : gr_target_write(target, p->out, to * (size_t)n, err);
        rc = rc ? rc : gr_progress_add(progress, to * (size_t)n, WORK, err);
    }
    return rc;
}

/* ---- a tensor ------------------------------------------------------------------------------------------- */

static int write_changed(gr_target *target, const gr_merge_tensor *t, int threads, gr_progress *progress, graft_error *err) {
    size_t wide = (size_t)t->ne[0] * sizeof(float);
    threads = threads > THREADS_MAX ? THREADS_MAX : threads;
    piece p = {.rows = wide < PIECE ? (int64_t)(PIECE / wide) : 1};
    p.rows = p.rows < rows_of(t) ? p.rows : rows_of(t);
    p.raw = gr_alloc(ggml_row_size(t->from, t->ne[0]) * (size_t)p.rows);
    p.out = gr_alloc(ggml_row_size(t->to, t->ne[0]) * (size_t)p.rows);
    p.wide = gr_alloc_aligned(wide * (size_t)p.rows);
    p.scratch = gr_alloc_aligned(wide * (size_t)threads);
    int rc = p.raw && p.out && p.wide && p.scratch ? 0 : gr_fail_memory(err, wide * (size_t)p.rows);
    rc = rc ? rc : write_pieces(target, t, &p, threads, progress, err);
    gr_free(p.raw);
    gr_free(p.out);
    gr_free(p.wide);
    gr_free(p.scratch);
    return rc;
}

static int copy(gr_target *target, const gr_merge_tensor *t, gr_progress *progress, graft_error *err) {
    uint64_t bytes = gr_merge_tensor_bytes(t);
    char *buffer = gr_alloc(COPY);
    int rc = buffer ? 0 : gr_fail_memory(err, COPY);
    for (uint64_t at = 0; at < bytes && !rc; at += COPY) {
        size_t n = bytes - at < COPY ? (size_t)(bytes - at) : COPY;
        rc = gr_file_read(t->file, buffer, n, t->offset + at, err);
        rc = rc ? rc : gr_target_write(target, buffer, n, err);
        rc = rc ? rc : gr_progress_add(progress, n, WORK, err);
    }
    gr_free(buffer);
    return rc;
}

int gr_merge_tensor_write(gr_target *target, const gr_merge_tensor *t, int threads, gr_progress *progress, graft_error *err) {
    return t->n_changes == 0 && t->from == t->to ? copy(target, t, progress, err)
                                                 : write_changed(target, t, threads, progress, err);
}
