/* Building adapters: where each matrix lies in memory, one pass over the file to fill them, and the counting of users. */
#include "adapter.h"

#include "base/clock.h"
#include "base/memory.h"
#include "model/convert.h"
#include "model/hash_ring.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

enum {
    CHUNK = 32768, /* elements read at once: raw, widened and narrowed copies stay in the second-level cache */
    HASH_BESIDE = 1 << 20, /* bytes of a file from which on a second thread hashes: 0.7 ms against 0.1 to start it */
    TILE = 32      /* rows of B transposed at once: their source lines stay in the first-level cache */
};

_Static_assert(CHUNK / GR_MAX_RANK >= TILE, "a chunk holds some rows of any B");
_Static_assert((int)CHUNK % (int)GR_Q8_0_BLOCK == 0 && GR_PAD % GR_Q8_0_BLOCK == 0, "whole blocks");

/* ---- layout --------------------------------------------------------------------------------------------- */

static int padded(int64_t n) {
    return (int)((n + GR_PAD - 1) / GR_PAD * GR_PAD);
}

static size_t element(gr_dtype type) {
    return gr_dtype_size(type);
}

size_t gr_packed_size(gr_dtype type, size_t n) {
    return type == GR_DTYPE_Q8_0 ? n / GR_Q8_0_BLOCK * sizeof(gr_q8_0) : n * element(type);
}

/* Bytes of a matrix of `rank` rows, rounded up so that the next one is aligned. */
static uint64_t matrix_bytes(int rank, int stride, gr_dtype type) {
    return (gr_packed_size(type, (size_t)rank * (size_t)stride) + 63) & ~(uint64_t)63;
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
                     .zero = false};
}

/* Not of Q8_0: there it is in the last block of a row, which is filled as a whole. */
static void zero_padding(void *matrix, int rank, int used, int stride, gr_dtype type) {
    for (int k = 0; k < rank && used < stride && type != GR_DTYPE_Q8_0; k++) {
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
    return type == GRAFT_TYPE_F32 ? GR_DTYPE_F32 : type == GRAFT_TYPE_Q8_0 ? GR_DTYPE_Q8_0 : GR_DTYPE_F16;
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

/* The row of the file that goes to a column of B transposed: the inverse of column_of. */
static size_t row_of(size_t column, size_t n_out, int heads) {
    if (heads == 0) {
        return column;
    }
    size_t head = n_out / (size_t)heads;
    size_t within = column % head;
    return column - within + within / 2 + within % 2 * (head / 2);
}

/* Elements first .. first + n of A, in file order, to their padded rows. */
static void pack_a(const gr_module *m, const void *x, size_t first, size_t n) {
    size_t size = m->type == GR_DTYPE_Q8_0 ? sizeof(float) : element(m->type), n_in = (size_t)m->n_in;
    const char *from = x;
    while (n > 0) {
        size_t row = first / n_in, column = first % n_in;
        size_t run = n_in - column < n ? n_in - column : n, at = row * (size_t)m->stride_in + column;
        if (m->type == GR_DTYPE_Q8_0) {
            gr_f32_to_q8_0((gr_q8_0 *)m->a + at / GR_Q8_0_BLOCK, (const float *)(const void *)from, run);
        } else {
            memcpy((char *)m->a + at * size, from, run * size);
        }
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

/* Rows of B whose columns are whole blocks, to those. */
static void pack_b_q8_0(const gr_module *m, const float *x, size_t first, size_t n_rows, int heads) {
    size_t rank = (size_t)m->rank;
    for (size_t c = 0; c < n_rows; c += GR_Q8_0_BLOCK) {
        size_t n = n_rows - c < GR_Q8_0_BLOCK ? n_rows - c : GR_Q8_0_BLOCK;
        const float *from[GR_Q8_0_BLOCK];
        float block[GR_Q8_0_BLOCK];
        for (size_t i = 0; i < n; i++) {
            from[i] = x + (row_of(first + c + i, (size_t)m->n_out, heads) - first) * rank;
        }
        for (size_t k = 0; k < rank; k++) {
            for (size_t i = 0; i < n; i++) {
                block[i] = from[i][k];
            }
            size_t at = k * (size_t)m->stride_out + first + c;
            gr_f32_to_q8_0((gr_q8_0 *)m->b + at / GR_Q8_0_BLOCK, block, n);
        }
    }
}

/* Whole rows of B, from `first` on, to columns of B transposed. */
static void pack_b(const gr_module *m, const void *x, size_t first, size_t n_rows, int heads) {
    size_t rank = (size_t)m->rank, stride = (size_t)m->stride_out;
    if (m->type == GR_DTYPE_Q8_0) {
        pack_b_q8_0(m, x, first, n_rows, heads);
        return;
    }
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
    gr_dtype *needed;   /* by module: the narrowest type that can hold it, of those that are not narrower than asked */
    piece *pieces;      /* all tensors, by offset in the file */
    size_t n_pieces;
    gr_hash_ring ring;  /* `chunk` elements as in the file in each buffer, and the hash over them */
    size_t chunk;       /* CHUNK, or more if some tensor's steps are larger */
    uint64_t hashed;    /* bytes of the file that are in the hash, or on their way into it */
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
static int convert(builder *b, const piece *p, const void *raw, size_t first, size_t n, const void **out,
                   uint32_t *largest, graft_error *err) {
    gr_dtype from = p->tensor->dtype, to = p->module->type;
    if (from == GR_DTYPE_F16 && to == GR_DTYPE_F16) {
        *largest = gr_f16_largest(raw, n);
        *out = raw;
        return *largest < GR_F16_INFINITY ? 0 : not_finite(p, first, n, raw, from, err);
    }
    const float *wide = b->wide;
    if (from == GR_DTYPE_F16) {
        gr_f16_to_f32(b->wide, raw, n);
    } else if (from == GR_DTYPE_BF16) {
        gr_bf16_to_f32(b->wide, raw, n);
    } else {
        wide = raw;
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

static gr_dtype wider(gr_dtype a, gr_dtype b) {
    return a == GR_DTYPE_F32 || b == GR_DTYPE_F32   ? GR_DTYPE_F32
           : a == GR_DTYPE_F16 || b == GR_DTYPE_F16 ? GR_DTYPE_F16
                                                    : GR_DTYPE_Q8_0;
}

/* The narrowest type from the module's own on that can hold a matrix. */
static gr_dtype needed_type(const piece *p, uint32_t largest) {
    bool in_range = largest == 0 || largest >= GR_F32_F16_NORMAL;
    gr_dtype type = p->module->type;
    if (type == GR_DTYPE_Q8_0 && !(in_range && largest <= GR_F32_Q8_0_MAX)) {
        type = GR_DTYPE_F16;
    }
    if (type == GR_DTYPE_F16 && p->tensor->dtype != GR_DTYPE_F16 && !(in_range && largest <= GR_F32_F16_MAX)) {
        type = GR_DTYPE_F32;
    }
    return type;
}

/*
 * Rows of B that must be packed together: in Q8_0 those of whole blocks, of which each takes rows from both halves of
 * a rotary head.
 */
static size_t rows_together(size_t n_out, int heads, gr_dtype type) {
    if (type != GR_DTYPE_Q8_0 || heads == 0) {
        return type == GR_DTYPE_Q8_0 ? GR_Q8_0_BLOCK : 1;
    }
    size_t head = n_out / (size_t)heads, rows = head;
    while (rows % GR_Q8_0_BLOCK != 0 && rows < n_out) {
        rows += head;
    }
    return rows;
}

/* Elements to read and pack at once of a B: whole rows. */
static size_t step_of_b(size_t rank, size_t n_out, int heads, gr_dtype type) {
    size_t together = rows_together(n_out, heads, type), rows = CHUNK / rank / together * together;
    return (rows > 0 ? rows : together) * rank;
}

/* The same of A, from element `first` on: whole rows, or parts of one that end where blocks do. */
static size_t step_of_a(size_t n_in, size_t first) {
    size_t left = n_in - first % n_in;
    return n_in <= CHUNK ? CHUNK / n_in * n_in : left < CHUNK ? left : CHUNK;
}

static size_t step_of(const piece *p, size_t first) {
    const gr_module *m = p->module;
    return p->is_b ? step_of_b((size_t)m->rank, (size_t)m->n_out, p->entry->rows.heads, m->type)
                   : step_of_a((size_t)m->n_in, first);
}

/* Reads, checks and packs one tensor; with `hash` its bytes go into the generation. */
static int load_piece(builder *b, const piece *p, bool hash, graft_error *err) {
    size_t rank = (size_t)p->module->rank, size = element(p->tensor->dtype);
    size_t total = rank * (size_t)(p->is_b ? p->module->n_out : p->module->n_in);
    uint32_t largest = 0;
    for (size_t first = 0, n; first < total; first += n) {
        n = step_of(p, first);
        n = total - first < n ? total - first : n;
        const void *x = NULL;
        uint32_t chunk_largest = 0;
        void *raw = gr_hash_ring_take(&b->ring);
        int rc = gr_file_read(&b->plan->source->weights, raw, n * size, p->tensor->offset + first * size, err);
        if (rc) {
            return rc;
        }
        if (hash) { /* while it is being hashed, it is converted here */
            gr_hash_ring_put(&b->ring, n * size);
            b->hashed += n * size;
        }
        if ((rc = convert(b, p, raw, first, n, &x, &chunk_largest, err)) != 0) {
            return rc;
        }
        largest = chunk_largest > largest ? chunk_largest : largest;
        if (p->is_b) {
            pack_b(p->module, x, first / rank, n / rank, p->entry->rows.heads);
        } else {
            pack_a(p->module, x, first, n);
        }
    }
    p->module->zero = p->module->zero || largest == 0;
    gr_dtype *needed = &b->needed[p->module - b->adapter->modules];
    *needed = wider(*needed, needed_type(p, largest));
    return 0;
}

/* Adds the bytes up to `end` to the hash: the file's header, and what may lie between tensors. */
static int hash_until(builder *b, uint64_t end, graft_error *err) {
    while (b->hashed < end) {
        uint64_t left = end - b->hashed;
        size_t n = left < CHUNK ? (size_t)left : CHUNK;
        int rc = gr_file_read(&b->plan->source->weights, gr_hash_ring_take(&b->ring), n, b->hashed, err);
        if (rc) {
            return rc;
        }
        gr_hash_ring_put(&b->ring, n);
        b->hashed += n;
    }
    return 0;
}

/* Once more, into a block of its own in a wider type. Rare, so reading twice is better than a pass over every file. */
static int load_again(builder *b, size_t module, graft_error *err) {
    gr_module *m = &b->adapter->modules[module];
    m->type = b->needed[module];
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
    memcpy(gr_hash_ring_take(&b->ring), b->plan->source->config_hash, GR_SHA256_SIZE);
    gr_hash_ring_put(&b->ring, GR_SHA256_SIZE);
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
        if (b->needed[i] != b->adapter->modules[i].type && (rc = load_again(b, i, err)) != 0) {
            return rc;
        }
    }
    if ((rc = gr_file_unchanged(f, err)) != 0) {
        return rc;
    }
    uint8_t hash[GR_SHA256_SIZE];
    if ((rc = gr_hash_ring_result(&b->ring, hash, err)) == 0) {
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

static size_t chunk_of(const gr_plan *plan, gr_dtype type) {
    size_t chunk = CHUNK;
    for (size_t i = 0; i < plan->n; i++) {
        const gr_plan_entry *e = &plan->entries[i];
        size_t step = step_of_b((size_t)e->rank, (size_t)plan->base->weights[e->weight].n_out, e->rows.heads, type);
        chunk = step > chunk ? step : chunk;
    }
    return chunk;
}

static int prepare(builder *b, graft_error *err) {
    size_t n = b->plan->n;
    b->needed = gr_calloc(n, sizeof *b->needed);
    b->pieces = gr_calloc(n, 2 * sizeof *b->pieces);
    b->wide = gr_alloc_aligned(b->chunk * sizeof(float));
    b->narrow = gr_alloc_aligned(b->chunk * sizeof(uint16_t));
    if (!b->needed || !b->pieces || !b->wide || !b->narrow) {
        return gr_fail_memory(err, b->chunk * sizeof(float) + 2 * n * sizeof *b->pieces);
    }
    for (size_t i = 0; i < n; i++) {
        const gr_plan_entry *e = &b->plan->entries[i];
        b->needed[i] = b->adapter->modules[i].type;
        b->pieces[b->n_pieces++] = (piece){e->a, e, &b->adapter->modules[i], false};
        b->pieces[b->n_pieces++] = (piece){e->b, e, &b->adapter->modules[i], true};
    }
    qsort(b->pieces, b->n_pieces, sizeof *b->pieces, by_offset);
    return 0;
}

int gr_adapter_build(gr_adapter **out, const gr_plan *plan, graft_adapter_type type, graft_error *err) {
    builder b = {.plan = plan, .chunk = chunk_of(plan, stored_as(type))};
    bool beside = plan->source->weights.size >= HASH_BESIDE;
    int rc = gr_hash_ring_start(&b.ring, b.chunk * sizeof(float), beside, err);
    if (!rc) {
        rc = make_adapter(&b.adapter, plan, type, err);
    }
    if (!rc) {
        rc = prepare(&b, err);
    }
    if (!rc) {
        rc = load_all(&b, err);
    }
    gr_hash_ring_finish(&b.ring);
    gr_free(b.narrow);
    gr_free(b.wide);
    gr_free(b.pieces);
    gr_free(b.needed);
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
    gr_free(a->invocation);
    gr_free(a->by_weight);
    gr_free(a->modules);
    gr_free(a);
}
