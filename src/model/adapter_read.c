/* Reading with a hash beside it: pieces by their place in the file, and what lies between them. */
#include "adapter_read.h"

#include "base/memory.h"
#include "model/adapter_layout.h"
#include "model/convert.h"
#include "model/hash_ring.h"
#include "model/pack.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { HASH_BESIDE = 1 << 20 /* bytes of a file from which on a second thread hashes: 0.7 ms against 0.1 to start it */ };

typedef struct reader {
    const gr_plan *plan;
    gr_adapter *adapter;
    gr_dtype *needed;   /* by module: the narrowest type that can hold it, of those that are not narrower than asked */
    gr_piece *pieces;   /* of all modules, by offset in the file */
    size_t n_pieces;
    gr_hash_ring ring;  /* `chunk` elements as in the file in each buffer, and the hash over them */
    size_t chunk;       /* the longest step of any piece */
    uint64_t hashed;    /* bytes of the file that are in the hash, or on their way into it */
    float *wide;        /* `chunk` elements in float32 */
    uint16_t *narrow;   /* the same in float16 */
} reader;

static int not_finite(const gr_piece *p, size_t first, size_t n, const void *x, gr_dtype type, graft_error *err) {
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
    char q[GR_QUOTE_SIZE], index[48];
    size_t at = gr_piece_element(p, first + i);
    int o = p->tensor->n_dims < 2 ? 0 : snprintf(index, sizeof index, "%zu, ", at / p->tensor_columns);
    snprintf(index + o, sizeof index - (size_t)o, "%zu", at % p->tensor_columns);
    return gr_fail(err, GRAFT_E_NON_FINITE, "%s: element [%s] is %s",
                   gr_quote(q, p->tensor->name, strlen(p->tensor->name)), index, nan ? "NaN" : "infinite");
}

/*
 * Turns raw elements into the type that is packed. *out points to them, *largest is the largest magnitude: as float16 bits
 * if both types are float16, else as float32 bits.
 */
static int convert(reader *b, const gr_piece *p, const void *raw, size_t first, size_t n, const void **out, uint32_t *largest,
                   graft_error *err) {
    gr_dtype from = p->tensor->dtype, to = p->type;
    if (from == GR_DTYPE_F16 && to == GR_DTYPE_F16) {
        *largest = gr_f16_largest(raw, n);
        *out = raw;
        return *largest < GR_F16_INFINITY ? 0 : not_finite(p, first, n, raw, from, err);
    }
    const float *wide = b->wide;
    if (from == GR_DTYPE_F32) {
        wide = raw;
    } else {
        gr_to_f32(b->wide, from, raw, n);
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

/* The narrowest type from the matrix's own on that can hold it. */
static gr_dtype needed_type(const gr_piece *p, uint32_t largest) {
    bool in_range = largest == 0 || largest >= GR_F32_F16_NORMAL;
    gr_dtype type = p->type;
    if (type == GR_DTYPE_Q8_0 && !(in_range && largest <= GR_F32_Q8_0_MAX)) {
        type = GR_DTYPE_F16;
    }
    if (type == GR_DTYPE_F16 && p->tensor->dtype != GR_DTYPE_F16 && !(in_range && largest <= GR_F32_F16_MAX)) {
        type = GR_DTYPE_F32;
    }
    return type;
}

/* What the largest magnitude of a whole tensor says about its module. */
static void note_largest(reader *b, const gr_piece *p, uint32_t largest) {
    gr_module *m = &b->adapter->modules[p->module];
    m->zero = m->zero || (p->factor && largest == 0);
    if (p->matrix) {
        b->needed[p->module] = wider(b->needed[p->module], needed_type(p, largest));
    }
}

static uint64_t offset_of(const gr_piece *p, size_t i) {
    return p->tensor->offset + gr_piece_element(p, i) * gr_dtype_size(p->tensor->dtype);
}

/* Reads, checks and packs one tensor; with `hash` its bytes, which are the next ones, go into the generation. */
static int read_piece(reader *b, const gr_piece *p, bool hash, graft_error *err) {
    size_t size = gr_dtype_size(p->tensor->dtype), total = p->rows * p->columns;
    uint32_t largest = 0;
    for (size_t first = 0, n; first < total; first += n) {
        n = gr_piece_step(p, first);
        const void *x = NULL;
        uint32_t chunk_largest = 0;
        void *raw = gr_hash_ring_take(&b->ring);
        int rc = gr_file_read(&b->plan->source->weights, raw, n * size, offset_of(p, first), err);
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
        gr_piece_put(p, x, first, n);
    }
    note_largest(b, p, largest);
    return 0;
}

/* Adds the bytes up to `end` to the hash: the file's header, and what lies between pieces. */
static int hash_until(reader *b, uint64_t end, graft_error *err) {
    while (b->hashed < end) {
        uint64_t left = end - b->hashed;
        size_t n = left < GR_PACK_CHUNK ? (size_t)left : GR_PACK_CHUNK;
        int rc = gr_file_read(&b->plan->source->weights, gr_hash_ring_take(&b->ring), n, b->hashed, err);
        if (rc) {
            return rc;
        }
        gr_hash_ring_put(&b->ring, n);
        b->hashed += n;
    }
    return 0;
}

/* In the order of the file. Some modules share a tensor or take columns of it: then its bytes are hashed apart. */
static int read_in_order(reader *b, const gr_piece *p, graft_error *err) {
    uint64_t begin = offset_of(p, 0);
    bool hash = begin >= b->hashed && gr_piece_contiguous(p);
    int rc = hash ? hash_until(b, begin, err) : 0;
    return rc ? rc : read_piece(b, p, hash, err);
}

/* Once more, into a block of its own in a wider type. Rare, so reading twice is better than a pass over every file. Vectors
 * stay where they are. */
static int read_again(reader *b, size_t module, graft_error *err) {
    gr_module *m = &b->adapter->modules[module];
    m->type = b->needed[module];
    uint64_t bytes = gr_module_matrix_bytes(m);
    m->own = gr_alloc_aligned((size_t)bytes);
    if (!m->own) {
        return gr_fail_memory(err, (size_t)bytes);
    }
    b->adapter->bytes += bytes;
    gr_module_place_matrices(m, m->own);
    gr_piece pieces[GR_PIECES_MAX];
    int n = gr_pieces_of(pieces, b->plan, &b->plan->entries[module], m, module), rc = 0;
    for (int i = 0; i < n && !rc; i++) {
        rc = pieces[i].matrix ? read_piece(b, &pieces[i], false, err) : 0;
    }
    return rc;
}

static int read_all(reader *b, graft_error *err) {
    const gr_file *f = &b->plan->source->weights;
    int rc = 0;
    memcpy(gr_hash_ring_take(&b->ring), b->plan->source->config_hash, GR_SHA256_SIZE);
    gr_hash_ring_put(&b->ring, GR_SHA256_SIZE);
    for (size_t i = 0; i < b->n_pieces && !rc; i++) {
        rc = read_in_order(b, &b->pieces[i], err);
    }
    rc = rc ? rc : hash_until(b, f->size, err);
    for (size_t i = 0; i < b->adapter->n_modules && !rc; i++) {
        if (b->needed[i] != b->adapter->modules[i].type) {
            rc = read_again(b, i, err);
        }
    }
    uint8_t hash[GR_SHA256_SIZE];
    rc = rc ? rc : gr_file_unchanged(f, err);
    rc = rc ? rc : gr_hash_ring_result(&b->ring, hash, err);
    if (!rc) {
        gr_sha256_hex(b->adapter->generation, hash);
    }
    return rc;
}

static int by_offset(const void *a, const void *b) {
    const gr_piece *x = a, *y = b;
    uint64_t at_x = offset_of(x, 0), at_y = offset_of(y, 0);
    return at_x != at_y ? (at_x > at_y) - (at_x < at_y) : (x->module > y->module) - (x->module < y->module);
}

static int prepare(reader *b, graft_error *err) {
    size_t n = b->plan->n;
    b->needed = gr_calloc(n, sizeof *b->needed);
    b->pieces = gr_calloc(n, GR_PIECES_MAX * sizeof *b->pieces);
    if (!b->needed || !b->pieces) {
        return gr_fail_memory(err, n * GR_PIECES_MAX * sizeof *b->pieces);
    }
    b->chunk = GR_PACK_CHUNK;
    for (size_t i = 0; i < n; i++) {
        const gr_module *m = &b->adapter->modules[i];
        b->needed[i] = m->type;
        int made = gr_pieces_of(b->pieces + b->n_pieces, b->plan, &b->plan->entries[i], m, i);
        for (int k = 0; k < made; k++) {
            size_t longest = gr_piece_longest(&b->pieces[b->n_pieces++]);
            b->chunk = longest > b->chunk ? longest : b->chunk;
        }
    }
    qsort(b->pieces, b->n_pieces, sizeof *b->pieces, by_offset);
    b->wide = gr_alloc_aligned(b->chunk * sizeof(float));
    b->narrow = gr_alloc_aligned(b->chunk * sizeof(uint16_t));
    return b->wide && b->narrow ? 0 : gr_fail_memory(err, b->chunk * sizeof(float));
}

int gr_adapter_read(gr_adapter *a, const gr_plan *plan, graft_error *err) {
    reader b = {.plan = plan, .adapter = a};
    int rc = prepare(&b, err);
    if (!rc) {
        rc = gr_hash_ring_start(&b.ring, b.chunk * sizeof(float), plan->source->weights.size >= HASH_BESIDE, err);
        rc = rc ? rc : read_all(&b, err);
        gr_hash_ring_finish(&b.ring);
    }
    gr_free(b.narrow);
    gr_free(b.wide);
    gr_free(b.pieces);
    gr_free(b.needed);
    return rc;
}
