/* Building adapters: where each matrix lies in memory, one pass over the file to fill them, and the counting of users. */
#include "adapter.h"

#include "base/clock.h"
#include "base/memory.h"
#include "model/convert.h"
#include "model/sha256.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

enum {
    CHUNK = 32768, /* elements read at once: raw, widened and narrowed copies stay in the second-level cache */
    TILE = 32      /* rows of B transposed at once: their source lines stay in the first-level cache */
};

_Static_assert(CHUNK / GR_MAX_RANK >= TILE, "a chunk holds some rows of any B");

/* ---- layout --------------------------------------------------------------------------------------------- */

static int padded(int64_t n) {
    return (int)((n + GR_PAD - 1) / GR_PAD * GR_PAD);
}

static size_t element(gr_dtype type) {
    return gr_dtype_size(type);
}

/* Bytes of a matrix of `rank` rows, rounded up so that the next one is aligned. */
static uint64_t matrix_bytes(int rank, int stride, gr_dtype type) {
    return ((uint64_t)rank * (uint64_t)stride * element(type) + 63) & ~(uint64_t)63;
}

static uint64_t module_bytes(const gr_module *m) {
    return matrix_bytes(m->rank, m->stride_in, m->type) + matrix_bytes(m->rank, m->stride_out, m->type);
}

static void describe(gr_module *m, const gr_plan *plan, const gr_plan_entry *e, gr_dtype type) {
    const gr_weight *w = &plan->base->weights[e->weight];
    *m = (gr_module){.weight = e->weight,
                     .rank = e->rank,
                     .n_in = (int)w->n_in,
                     .n_out = (int)w->n_out,
                     .stride_in = padded(w->n_in),
                     .stride_out = padded(w->n_out),
                     .scale = (float)e->scale,
                     .type = type,
                     .zero = true};
}

static void zero_padding(void *matrix, int rank, int used, int stride, gr_dtype type) {
    for (int k = 0; k < rank && used < stride; k++) {
        memset((char *)matrix + ((size_t)k * (size_t)stride + (size_t)used) * element(type), 0,
               (size_t)(stride - used) * element(type));
    }
}

/* Gives the module its place in memory; only the padding is filled. */
static void place(gr_module *m, char *memory) {
    char *b = memory + matrix_bytes(m->rank, m->stride_in, m->type);
    zero_padding(memory, m->rank, m->n_in, m->stride_in, m->type);
    zero_padding(b, m->rank, m->n_out, m->stride_out, m->type);
    m->a = memory;
    m->b = b;
}

static gr_dtype stored_as(graft_adapter_type type) {
    return type == GRAFT_TYPE_F32 ? GR_DTYPE_F32 : GR_DTYPE_F16;
}

static uint64_t block_bytes(const gr_plan *plan, graft_adapter_type type) {
    uint64_t bytes = 0;
    for (size_t i = 0; i < plan->n; i++) {
        gr_module m;
        describe(&m, plan, &plan->entries[i], stored_as(type));
        bytes += module_bytes(&m);
    }
    return bytes;
}

uint64_t gr_adapter_size(const gr_plan *plan, graft_adapter_type type) {
    return sizeof(gr_adapter) + plan->n * sizeof(gr_module) + plan->base->n_weights * sizeof(int32_t) +
           strlen(plan->source->path) + 1 + block_bytes(plan, type);
}

/* ---- packing one matrix --------------------------------------------------------------------------------- */

/* One tensor of the file on its way into its module. */
typedef struct piece {
    const gr_tensor_info *tensor;
    const gr_plan_entry *entry;
    gr_module *module;
    bool is_b;
} piece;

/* Where a row of B goes: for rotary weights the GGUF interleaves the two halves of each head. */
static size_t column_of(size_t row, size_t n_out, int heads) {
    if (heads == 0) {
        return row;
    }
    size_t head = n_out / (size_t)heads, half = head / 2;
    size_t within = row % head;
    return row - within + 2 * (within % half) + within / half;
}

/* Elements first .. first + n of A, in file order, to their padded rows. */
static void pack_a(const gr_module *m, const void *x, size_t first, size_t n) {
    size_t size = element(m->type), n_in = (size_t)m->n_in;
    const char *from = x;
    while (n > 0) {
        size_t row = first / n_in, column = first % n_in;
        size_t run = n_in - column < n ? n_in - column : n;
        memcpy((char *)m->a + (row * (size_t)m->stride_in + column) * size, from, run * size);
        from += run * size;
        first += run;
        n -= run;
    }
}

static void transpose_16(uint16_t *out, size_t stride, const uint16_t *x, size_t rank, const size_t *to,
                         size_t n_rows) {
    for (size_t k = 0; k < rank; k++) {
        for (size_t r = 0; r < n_rows; r++) {
            out[k * stride + to[r]] = x[r * rank + k];
        }
    }
}

static void transpose_32(float *out, size_t stride, const float *x, size_t rank, const size_t *to,
                         size_t n_rows) {
    for (size_t k = 0; k < rank; k++) {
        for (size_t r = 0; r < n_rows; r++) {
            out[k * stride + to[r]] = x[r * rank + k];
        }
    }
}

/* Whole rows of B, from `first` on, to columns of B transposed. */
static void pack_b(const gr_module *m, const void *x, size_t first, size_t n_rows, int heads) {
    size_t rank = (size_t)m->rank, stride = (size_t)m->stride_out;
    for (size_t r = 0; r < n_rows; r += TILE) {
        size_t n = n_rows - r < TILE ? n_rows - r : TILE;
        size_t to[TILE];
        for (size_t i = 0; i < n; i++) {
            to[i] = column_of(first + r + i, (size_t)m->n_out, heads);
        }
        if (m->type == GR_DTYPE_F16) {
            transpose_16((uint16_t *)m->b, stride, (const uint16_t *)x + r * rank, rank, to, n);
        } else {
            transpose_32((float *)m->b, stride, (const float *)x + r * rank, rank, to, n);
        }
    }
}

/* ---- reading -------------------------------------------------------------------------------------------- */

typedef struct builder {
    const gr_plan *plan;
    gr_adapter *adapter;
    bool *unfit;        /* by module: float16 cannot hold it */
    piece *pieces;      /* all tensors, by offset in the file */
    size_t n_pieces;
    gr_sha256 hash;
    uint64_t hashed;    /* bytes of the file that are in the hash */
    void *raw;          /* CHUNK elements as in the file */
    float *wide;        /* the same in float32 */
    uint16_t *narrow;   /* the same in float16 */
} builder;

static int not_finite(const piece *p, size_t first, size_t n, const void *x, gr_dtype type, graft_error *err) {
    size_t columns = p->is_b ? (size_t)p->module->rank : (size_t)p->module->n_in;
    size_t i = 0;
    bool nan = false;
    for (; i < n; i++) {
        uint32_t largest = type == GR_DTYPE_F16 ? gr_f16_largest((const uint16_t *)x + i, 1)
                                                : gr_f32_largest((const float *)x + i, 1);
        uint32_t infinity = type == GR_DTYPE_F16 ? GR_F16_INFINITY : GR_F32_INFINITY;
        if (largest >= infinity) {
            nan = largest > infinity;
            break;
        }
    }
    char q[GR_QUOTE_SIZE];
    return gr_fail(err, GRAFT_E_NON_FINITE, "%s: element [%zu, %zu] is %s",
                   gr_quote(q, p->tensor->name, strlen(p->tensor->name)), (first + i) / columns, (first + i) % columns,
                   nan ? "NaN" : "infinite");
}

/*
 * Turns raw elements into the module's type. *out points to them, *largest is the largest magnitude: as float16 bits
 * if both types are float16, else as float32 bits.
 */
static int convert(builder *b, const piece *p, size_t first, size_t n, const void **out, uint32_t *largest,
                   graft_error *err) {
    gr_dtype from = p->tensor->dtype, to = p->module->type;
    if (from == GR_DTYPE_F16 && to == GR_DTYPE_F16) {
        *largest = gr_f16_largest(b->raw, n);
        *out = b->raw;
        return *largest < GR_F16_INFINITY ? 0 : not_finite(p, first, n, b->raw, from, err);
    }
    const float *wide = b->wide;
    if (from == GR_DTYPE_F16) {
        gr_f16_to_f32(b->wide, b->raw, n);
    } else if (from == GR_DTYPE_BF16) {
        gr_bf16_to_f32(b->wide, b->raw, n);
    } else {
        wide = b->raw;
    }
    *largest = gr_f32_largest(wide, n);
    if (*largest >= GR_F32_INFINITY) {
        return not_finite(p, first, n, wide, GR_DTYPE_F32, err);
    }
    *out = wide;
    if (to == GR_DTYPE_F16) {
        gr_f32_to_f16(b->narrow, wide, n);
        *out = b->narrow;
    }
    return 0;
}

static bool fits_f16(const piece *p, uint32_t largest) {
    return p->tensor->dtype == GR_DTYPE_F16 || largest == 0 ||
           (largest <= GR_F32_F16_MAX && largest >= GR_F32_F16_NORMAL);
}

/* Reads, checks and packs one tensor; with `hash` its bytes go into the generation. */
static int load_piece(builder *b, const piece *p, bool hash, graft_error *err) {
    size_t rank = (size_t)p->module->rank, size = element(p->tensor->dtype);
    size_t total = rank * (size_t)(p->is_b ? p->module->n_out : p->module->n_in);
    size_t step = p->is_b ? CHUNK / rank * rank : CHUNK; /* B in whole rows */
    uint32_t largest = 0;
    for (size_t first = 0; first < total; first += step) {
        size_t n = total - first < step ? total - first : step;
        const void *x = NULL;
        uint32_t chunk_largest = 0;
        int rc = gr_file_read(&b->plan->source->weights, b->raw, n * size, p->tensor->offset + first * size, err);
        if (rc) {
            return rc;
        }
        if (hash) {
            gr_sha256_add(&b->hash, b->raw, n * size);
            b->hashed += n * size;
        }
        if ((rc = convert(b, p, first, n, &x, &chunk_largest, err)) != 0) {
            return rc;
        }
        largest = chunk_largest > largest ? chunk_largest : largest;
        if (p->is_b) {
            pack_b(p->module, x, first / rank, n / rank, p->entry->permute_heads);
        } else {
            pack_a(p->module, x, first, n);
        }
    }
    if (p->is_b) {
        p->module->zero = largest == 0;
    }
    if (p->module->type == GR_DTYPE_F16 && !fits_f16(p, largest)) {
        b->unfit[p->module - b->adapter->modules] = true;
    }
    return 0;
}

/* Adds the bytes up to `end` to the hash: the file's header, and what may lie between tensors. */
static int hash_until(builder *b, uint64_t end, graft_error *err) {
    while (b->hashed < end) {
        uint64_t left = end - b->hashed;
        size_t n = left < CHUNK ? (size_t)left : CHUNK;
        int rc = gr_file_read(&b->plan->source->weights, b->raw, n, b->hashed, err);
        if (rc) {
            return rc;
        }
        gr_sha256_add(&b->hash, b->raw, n);
        b->hashed += n;
    }
    return 0;
}

/* Once more, into a block of its own in float32. Rare, so reading twice is better than a pass over every file. */
static int load_in_f32(builder *b, size_t module, graft_error *err) {
    gr_module *m = &b->adapter->modules[module];
    m->type = GR_DTYPE_F32;
    m->own = gr_alloc_aligned((size_t)module_bytes(m));
    if (!m->own) {
        return gr_fail_memory(err, (size_t)module_bytes(m));
    }
    b->adapter->bytes += module_bytes(m);
    place(m, m->own);
    const gr_plan_entry *e = &b->plan->entries[module];
    int rc = load_piece(b, &(piece){e->a, e, m, false}, false, err);
    return rc ? rc : load_piece(b, &(piece){e->b, e, m, true}, false, err);
}

static int load_all(builder *b, graft_error *err) {
    const gr_file *f = &b->plan->source->weights;
    int rc;
    gr_sha256_add(&b->hash, b->plan->source->config_hash, sizeof b->plan->source->config_hash);
    for (size_t i = 0; i < b->n_pieces; i++) {
        const piece *p = &b->pieces[i];
        if ((rc = hash_until(b, p->tensor->offset, err)) != 0 || (rc = load_piece(b, p, true, err)) != 0) {
            return rc;
        }
    }
    if ((rc = hash_until(b, f->size, err)) != 0) {
        return rc;
    }
    for (size_t i = 0; i < b->adapter->n_modules; i++) {
        if (b->unfit[i] && (rc = load_in_f32(b, i, err)) != 0) {
            return rc;
        }
    }
    if ((rc = gr_file_unchanged(f, err)) != 0) {
        return rc;
    }
    uint8_t hash[GR_SHA256_SIZE];
    if ((rc = gr_sha256_result(&b->hash, hash, err)) == 0) {
        gr_sha256_hex(b->adapter->generation, hash);
    }
    return rc;
}

/* ---- building ------------------------------------------------------------------------------------------- */

/* Everything but the numbers. */
static int make_adapter(gr_adapter **out, const gr_plan *plan, graft_adapter_type type, graft_error *err) {
    uint64_t bytes = gr_adapter_size(plan, type);
    gr_adapter *a = gr_zalloc(sizeof *a);
    if (!a) {
        return gr_fail_memory(err, sizeof *a);
    }
    atomic_init(&a->references, 1);
    a->modules = gr_calloc(plan->n, sizeof *a->modules);
    a->by_weight = gr_alloc(plan->base->n_weights * sizeof *a->by_weight);
    a->path = gr_strdup(plan->source->path);
    a->block = gr_alloc_aligned((size_t)block_bytes(plan, type));
    if (!a->modules || !a->by_weight || !a->path || !a->block) {
        gr_adapter_release(a);
        return gr_fail_memory(err, (size_t)bytes);
    }
    a->n_weights = plan->base->n_weights;
    memset(a->by_weight, 0xff, a->n_weights * sizeof *a->by_weight);
    char *memory = a->block;
    for (size_t i = 0; i < plan->n; i++) {
        gr_module *m = &a->modules[a->n_modules++];
        describe(m, plan, &plan->entries[i], stored_as(type));
        place(m, memory);
        memory += module_bytes(m);
        a->by_weight[m->weight] = (int32_t)i;
    }
    a->bytes = bytes;
    a->rank_min = plan->rank_min;
    a->rank_max = plan->rank_max;
    a->type = type;
    a->format = plan->source->format == GR_SOURCE_PEFT ? "peft" : "gguf";
    *out = a;
    return 0;
}

static int by_offset(const void *a, const void *b) {
    uint64_t x = ((const piece *)a)->tensor->offset, y = ((const piece *)b)->tensor->offset;
    return (x > y) - (x < y);
}

static int prepare(builder *b, graft_error *err) {
    size_t n = b->plan->n;
    b->unfit = gr_calloc(n, sizeof *b->unfit);
    b->pieces = gr_calloc(n, 2 * sizeof *b->pieces);
    b->raw = gr_alloc_aligned(CHUNK * sizeof(float));
    b->wide = gr_alloc_aligned(CHUNK * sizeof(float));
    b->narrow = gr_alloc_aligned(CHUNK * sizeof(uint16_t));
    if (!b->unfit || !b->pieces || !b->raw || !b->wide || !b->narrow) {
        return gr_fail_memory(err, CHUNK * sizeof(float) + 2 * n * sizeof *b->pieces);
    }
    for (size_t i = 0; i < n; i++) {
        const gr_plan_entry *e = &b->plan->entries[i];
        b->pieces[b->n_pieces++] = (piece){e->a, e, &b->adapter->modules[i], false};
        b->pieces[b->n_pieces++] = (piece){e->b, e, &b->adapter->modules[i], true};
    }
    qsort(b->pieces, b->n_pieces, sizeof *b->pieces, by_offset);
    return 0;
}

int gr_adapter_build(gr_adapter **out, const gr_plan *plan, graft_adapter_type type, graft_error *err) {
    builder b = {.plan = plan};
    gr_sha256_init(&b.hash);
    int rc = make_adapter(&b.adapter, plan, type, err);
    if (!rc) {
        rc = prepare(&b, err);
    }
    if (!rc) {
        rc = load_all(&b, err);
    }
    gr_free(b.narrow);
    gr_free(b.wide);
    gr_free(b.raw);
    gr_free(b.pieces);
    gr_free(b.unfit);
    gr_sha256_finish(&b.hash);
    if (rc) {
        gr_adapter_release(b.adapter);
        return rc;
    }
    b.adapter->no_effect = true;
    for (size_t i = 0; i < b.adapter->n_modules; i++) {
        b.adapter->no_effect = b.adapter->no_effect && b.adapter->modules[i].zero;
    }
    *out = b.adapter;
    return 0;
}

/* ---- loading, sharing ----------------------------------------------------------------------------------- */

static void log_warnings(const gr_log *log, const char *path, const gr_report *report) {
    char q[GR_QUOTE_SIZE];
    gr_quote(q, path, strlen(path));
    for (size_t i = 0; i < report->n; i++) {
        const gr_reason *r = &report->reasons[i];
        if (r->severity == GRAFT_LOG_WARN) {
            gr_log_line(log, GRAFT_LOG_WARN, "adapter %s: %s%s%s", q, r->where, r->where[0] ? ": " : "",
                        r->error.message);
        }
    }
}

int gr_adapter_open(gr_adapter **out, const gr_base_model *base, const char *path, graft_adapter_type type,
                    uint64_t max_bytes, const gr_log *log, graft_error *err) {
    int64_t start = gr_now_us();
    gr_report report;
    gr_source *source = NULL;
    gr_plan *plan = NULL;
    gr_adapter *a = NULL;
    gr_report_init(&report);
    int rc = gr_source_open(&source, path, max_bytes, &report, err);
    if (!rc) {
        rc = gr_verify(&plan, base, source, &report, err);
    }
    log_warnings(log, path, &report);
    if (!rc) {
        rc = gr_adapter_build(&a, plan, type, err);
    }
    if (!rc) {
        a->load_ms = (double)(gr_now_us() - start) / 1000.0;
        if (a->no_effect) {
            char q[GR_QUOTE_SIZE];
            gr_log_line(log, GRAFT_LOG_WARN, "adapter %s: every B is zero, it cannot change an answer",
                        gr_quote(q, path, strlen(path)));
        }
        *out = a;
    }
    gr_plan_free(plan);
    gr_source_close(source);
    gr_report_finish(&report);
    return rc;
}

gr_adapter *gr_adapter_retain(gr_adapter *a) {
    if (a) {
        atomic_fetch_add_explicit(&a->references, 1, memory_order_relaxed);
    }
    return a;
}

void gr_adapter_release(gr_adapter *a) {
    /* Release: our reads of the matrices happen before the free. Acquire: the freer sees all of that. */
    if (!a || atomic_fetch_sub_explicit(&a->references, 1, memory_order_acq_rel) != 1) {
        return;
    }
    for (size_t i = 0; i < a->n_modules; i++) {
        gr_free(a->modules[i].own);
    }
    gr_free(a->block);
    gr_free(a->path);
    gr_free(a->by_weight);
    gr_free(a->modules);
    gr_free(a);
}
