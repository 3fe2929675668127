/*
 * Every kind of change on nodes made by hand, against plain loops in double: several adapters per row, several modules per
 * node, factors of all sizes. And what must not matter to the bit: threads, company, and where in the batch a row is.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "base/memory.h"
#include "lora/apply.h"
#include "lora/packed.h"
#include "lora/random_adapter.h"
#include "lora/sane.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_ROWS = 40, N_IN = 75, N_OUT = 333, VOCAB = 101, HEADS = 3, WIDE = 4000, RANK = 5, ADAPTERS = 3, MAX_MODULES = 4 };

/* Sums of some hundred float32 numbers, some of them ten times the result. */
static const double CLOSE = 2e-5;

/* ---- modules by hand ------------------------------------------------------------------------------------- */

static uint64_t seed = 1;

static float uniform(void) { /* -1 to 1 */
    return (float)(gr_random(&seed) % 20001) / 10000.0f - 1.0f;
}

static float *floats(size_t n) {
    float *v = gr_alloc_aligned((n + GR_PAD) * sizeof *v);
    for (size_t i = 0; i < n + GR_PAD; i++) {
        v[i] = i < n ? uniform() : 0.0f;
    }
    return v;
}

static int padded(int n) {
    return (n + GR_PAD - 1) / GR_PAD * GR_PAD;
}

/* [rows][columns], padded with zeros; float16 or float32. */
static void *matrix(gr_dtype type, int rows, int columns) {
    int stride = padded(columns);
    float *v = gr_alloc_aligned((size_t)rows * (size_t)stride * sizeof *v);
    for (int i = 0; i < rows * stride; i++) {
        v[i] = i % stride < columns ? uniform() : 0.0f;
    }
    if (type == GR_DTYPE_F16) {
        gr_f32_to_f16((uint16_t *)(void *)v, v, (size_t)rows * (size_t)stride); /* in place: never ahead of itself */
    }
    return v;
}

static gr_module module_of(gr_kind kind, gr_op op, gr_dtype type, int first, int n_out) {
    gr_module m = {.kind = kind, .op = op, .type = type, .first = first, .n_out = n_out};
    m.n_in = op == GR_OP_ROWS ? VOCAB : N_IN;
    m.stride_in = padded(m.n_in);
    m.stride_out = padded(n_out);
    m.stride_rank = GR_PAD;
    m.scale = 0.7f;
    return m;
}

static gr_module low_rank(gr_op op, gr_dtype type, int first, int n_out, bool gain, bool shift) {
    gr_module m = module_of(GR_LOW_RANK, op, type, first, n_out);
    m.rank = RANK;
    m.a = op == GR_OP_ROWS ? matrix(type, VOCAB, RANK) : matrix(type, RANK, N_IN);
    m.b = matrix(type, RANK, n_out);
    if (gain) {
        float *ww = floats((size_t)n_out), *bb = floats((size_t)n_out), *wba = floats((size_t)n_out);
        for (int o = 0; o < n_out; o++) {
            ww[o] = ww[o] * ww[o] + 0.1f;
            bb[o] = bb[o] * bb[o] + 0.1f;
            wba[o] *= 0.9f * sqrtf(ww[o] * bb[o]);
        }
        m.gain = (gr_gain){floats((size_t)n_out), ww, wba, bb};
    }
    m.shift = shift ? floats((size_t)n_out) : NULL;
    return m;
}

static const int32_t some_tokens[] = {0, 3, 4, 50, 99, 100};
enum { N_TOKENS = sizeof some_tokens / sizeof *some_tokens };

static gr_module dense(gr_kind kind, gr_op op, gr_dtype type, int n_out) {
    gr_module m = module_of(kind, op, type, 0, n_out);
    int rows = kind == GR_TOKENS ? N_TOKENS : op == GR_OP_ROWS ? VOCAB : n_out;
    m.a = matrix(type, rows, op == GR_OP_ROWS ? n_out : N_IN);
    m.tokens = kind == GR_TOKENS ? some_tokens : NULL;
    m.n_tokens = kind == GR_TOKENS ? N_TOKENS : 0;
    return m;
}

static gr_module vector(gr_kind kind, int n_out) {
    gr_module m = module_of(kind, kind == GR_NORM ? GR_OP_MUL : GR_OP_ADD, GR_DTYPE_F32, 0, n_out);
    *(kind == GR_NORM ? &m.factor : &m.shift) = floats((size_t)n_out);
    return m;
}

static void free_module(gr_module *m) {
    const void *all[] = {m->a, m->b, m->shift, m->factor, m->gain.magnitude, m->gain.ww, m->gain.wba, m->gain.bb};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        gr_free((void *)(uintptr_t)all[i]);
    }
}

/* ---- a bed: adapters on one weight, and one node ----------------------------------------------------------- */

typedef struct bed {
    gr_op op;
    int width, heads;                     /* of y */
    gr_adapter adapters[ADAPTERS];        /* addresses ascend */
    gr_module modules[ADAPTERS][MAX_MODULES];
    int32_t by_weight[1];
    int n_rows;
    int32_t ids[MAX_ROWS];
    float x[MAX_ROWS][N_IN];
    float *y, *before;                    /* [n_rows][heads][width] */
    double *want;
    gr_adapter_set sets[MAX_ROWS];
} bed;

static bed *bed_new(gr_op op, int width, int heads) {
    bed *b = calloc(1, sizeof *b);
    b->op = op;
    b->width = width;
    b->heads = heads;
    for (int a = 0; a < ADAPTERS; a++) {
        b->adapters[a].modules = b->modules[a];
        b->adapters[a].by_weight = b->by_weight;
        b->adapters[a].n_weights = 1;
    }
    return b;
}

static void bed_add(bed *b, int adapter, gr_module m) {
    assert_int_equal(m.op, b->op);
    b->modules[adapter][b->adapters[adapter].n_modules++] = m;
}

static size_t row_size(const bed *b) {
    return (size_t)b->width * (size_t)b->heads;
}

/* Random rows; each has some of the adapters: at most one if `single`. */
static void bed_rows(bed *b, int n, bool single) {
    static const float factors[] = {1.0f, 1.0f, 0.5f, -0.75f, 2.0f};
    size_t size = row_size(b);
    b->n_rows = n;
    b->y = calloc((size_t)n * size, sizeof *b->y);
    b->before = calloc((size_t)n * size, sizeof *b->before);
    b->want = calloc((size_t)n * size, sizeof *b->want);
    for (size_t i = 0; i < (size_t)n * size; i++) {
        b->before[i] = uniform();
    }
    for (int i = 0; i < n; i++) {
        b->ids[i] = i % 3 ? (int32_t)(gr_random(&seed) % VOCAB) : some_tokens[i / 3 % N_TOKENS];
        for (int j = 0; j < N_IN; j++) {
            b->x[i][j] = uniform();
        }
        gr_adapter_set *set = &b->sets[i];
        uint32_t members = gr_random(&seed) % (1u << ADAPTERS);
        for (int a = 0; a < ADAPTERS; a++) {
            if (members >> a & 1 && b->adapters[a].n_modules > 0 && !(single && set->n == 1)) {
                set->adapters[set->n] = &b->adapters[a];
                set->scales[set->n++] = factors[gr_random(&seed) % 5];
            }
        }
    }
}

static void bed_free(bed *b) {
    for (int a = 0; a < ADAPTERS; a++) {
        for (size_t i = 0; i < b->adapters[a].n_modules; i++) {
            free_module(&b->modules[a][i]);
        }
    }
    free(b->y);
    free(b->before);
    free(b->want);
    free(b);
}

/* ---- plain double ------------------------------------------------------------------------------------------ */

static double at(const gr_module *m, const void *matrix_, int stride, int row, int column) {
    size_t i = (size_t)row * (size_t)stride + (size_t)column;
    float half;
    gr_f16_to_f32(&half, (const uint16_t *)matrix_ + (m->type == GR_DTYPE_F16 ? i : 0), 1);
    return m->type == GR_DTYPE_F16 ? (double)half : (double)((const float *)matrix_)[i];
}

static void want_low_rank(const bed *b, const gr_module *m, double *y, int row, double f) {
    for (int o = 0; o < m->n_out; o++) {
        double delta = 0, c = f * (double)m->scale;
        for (int k = 0; k < m->rank; k++) {
            double t = 0;
            if (m->op == GR_OP_ROWS) {
                t = at(m, m->a, m->stride_rank, b->ids[row], k);
            } else {
                for (int j = 0; j < N_IN; j++) {
                    t += at(m, m->a, m->stride_in, k, j) * (double)b->x[row][j];
                }
            }
            delta += c * t * at(m, m->b, m->stride_out, k, o);
        }
        double g = 1;
        if (m->gain.magnitude) {
            g = (double)m->gain.magnitude[o] /
                sqrt((double)m->gain.ww[o] + 2 * c * (double)m->gain.wba[o] + c * c * (double)m->gain.bb[o]);
        }
        y[m->first + o] = g * (y[m->first + o] + delta) + (m->shift ? f * (double)m->shift[o] : 0);
    }
}

static void want_dense(const bed *b, const gr_module *m, double *y, int row, double f) {
    int n = m->kind == GR_TOKENS ? m->n_tokens : m->op == GR_OP_ROWS ? VOCAB : m->n_out;
    for (int r = 0; r < n; r++) {
        int token = m->kind == GR_TOKENS ? m->tokens[r] : r;
        if (m->op == GR_OP_ROWS) {
            for (int o = 0; token == b->ids[row] && o < m->n_out; o++) {
                y[o] = (1 - f) * y[o] + f * at(m, m->a, m->stride_out, r, o);
            }
        } else {
            double sum = 0;
            for (int j = 0; j < N_IN; j++) {
                sum += at(m, m->a, m->stride_in, r, j) * (double)b->x[row][j];
            }
            y[token] = (1 - f) * y[token] + f * sum;
        }
    }
}

static void want_module(const bed *b, const gr_module *m, double *y, int row, double f) {
    switch (m->kind) {
    case GR_LOW_RANK: want_low_rank(b, m, y, row, f); break;
    case GR_WHOLE:
    case GR_TOKENS: want_dense(b, m, y, row, f); break;
    case GR_NORM:
    case GR_BIAS:
        for (int i = 0; i < b->heads * b->width; i++) {
            int o = i % b->width;
            y[i] = m->kind == GR_NORM ? y[i] * (1 + f * (double)m->factor[o]) : y[i] + f * (double)m->shift[o];
        }
        break;
    }
}

/* What replaces, then what scales, then what adds. */
static void compute_want(bed *b) {
    size_t size = row_size(b);
    for (int i = 0; i < b->n_rows; i++) {
        double *y = b->want + (size_t)i * size;
        for (size_t o = 0; o < size; o++) {
            y[o] = (double)b->before[(size_t)i * size + o];
        }
        for (int turn = 0; turn < 3; turn++) {
            for (int u = 0; u < b->sets[i].n; u++) {
                const gr_adapter *a = b->sets[i].adapters[u];
                for (size_t k = 0; k < a->n_modules; k++) {
                    const gr_module *m = &a->modules[k];
                    bool replaces = m->kind == GR_WHOLE || m->kind == GR_TOKENS || m->kind == GR_NORM;
                    if (turn == (replaces ? 0 : m->gain.magnitude ? 1 : 2)) {
                        want_module(b, m, y, i, (double)b->sets[i].scales[u]);
                    }
                }
            }
        }
    }
}

/* ---- running ------------------------------------------------------------------------------------------------ */

/* The rows which[0..n) of the bed as one node; results into the bed's y. */
static const gr_adapter *run(bed *b, const int *which, int n, int threads, const gr_kernels *kernels) {
    static const int8_t outputs[MAX_ROWS] = {0};
    const gr_adapter_set *sets[MAX_ROWS];
    int32_t ids[MAX_ROWS];
    float x[MAX_ROWS][N_IN];
    size_t size = row_size(b);
    float *y = calloc((size_t)n * size, sizeof *y);
    for (int i = 0; i < n; i++) {
        sets[i] = &b->sets[which[i]];
        ids[i] = b->ids[which[i]];
        memcpy(x[i], b->x[which[i]], sizeof x[i]);
        memcpy(y + (size_t)i * size, b->before + (size_t)which[i] * size, size * sizeof *y);
    }
    gr_row_plan *plan;
    gr_apply *a;
    assert_int_equal(gr_row_plan_create(&plan, MAX_ROWS, NULL), 0);
    assert_int_equal(gr_apply_create(&a, MAX_ROWS, threads, kernels, NULL), 0);
    gr_row_plan_build(plan, sets, outputs, n);
    gr_node node = {.op = b->op, .y = y, .y_stride = size * sizeof *y, .heads = b->heads,
                    .head_stride = (size_t)b->width * sizeof *y, .n_in = N_IN};
    if (b->op == GR_OP_PRODUCT) {
        node.x = x;
        node.x_stride = sizeof x[0];
    } else if (b->op == GR_OP_ROWS) {
        node.ids = ids;
    }
    gr_apply_begin(a);
    gr_apply_node(a, &node, plan, 0, 7, false);
    assert_false(a->refused);
    const gr_adapter *bad = a->bad_adapter;
    for (int i = 0; i < n; i++) {
        memcpy(b->y + (size_t)which[i] * size, y + (size_t)i * size, size * sizeof *y);
    }
    gr_apply_free(a);
    gr_row_plan_free(plan);
    free(y);
    return bad;
}

static void run_all(bed *b, int threads, const gr_kernels *kernels) {
    int which[MAX_ROWS];
    for (int i = 0; i < b->n_rows; i++) {
        which[i] = i;
    }
    assert_null(run(b, which, b->n_rows, threads, kernels));
}

static void check_close(const bed *b, const char *what) {
    for (size_t i = 0; i < (size_t)b->n_rows * row_size(b); i++) {
        double off = fabs((double)b->y[i] - b->want[i]) / (1 + fabs(b->want[i]));
        if (!(off < CLOSE)) {
            fail_msg("%s: row %zu, output %zu is %g, not %g", what, i / row_size(b), i % row_size(b), (double)b->y[i], b->want[i]);
        }
    }
}

/* Against doubles with both kernel sets; then threads, single rows and the reverse order to the bit. */
static void check_bed(bed *b, const char *what) {
    size_t bytes = (size_t)b->n_rows * row_size(b) * sizeof(float);
    compute_want(b);
    run_all(b, 1, gr_kernels_reference());
    check_close(b, what);
    run_all(b, 1, gr_kernels_best());
    check_close(b, what);
    float *first = malloc(bytes);
    memcpy(first, b->y, bytes);
    for (int threads = 2; threads <= 4; threads++) {
        run_all(b, threads, gr_kernels_best());
        assert_memory_equal(b->y, first, bytes);
    }
    for (int i = 0; i < b->n_rows; i++) {
        run(b, &i, 1, 2, gr_kernels_best());
    }
    assert_memory_equal(b->y, first, bytes);
    int reversed[MAX_ROWS];
    for (int i = 0; i < b->n_rows; i++) {
        reversed[i] = b->n_rows - 1 - i;
    }
    run(b, reversed, b->n_rows, 3, gr_kernels_best());
    assert_memory_equal(b->y, first, bytes);
    free(first);
    bed_free(b);
}

/* ---- the kinds ---------------------------------------------------------------------------------------------- */

static void test_gains_and_shifts(void **state) {
    (void)state;
    for (int single = 0; single < 2; single++) {
        bed *b = bed_new(GR_OP_PRODUCT, N_OUT, 1);
        bed_add(b, 0, low_rank(GR_OP_PRODUCT, GR_DTYPE_F16, 0, N_OUT, true, false));
        bed_add(b, 1, low_rank(GR_OP_PRODUCT, GR_DTYPE_F32, 0, N_OUT, false, true));
        bed_add(b, 2, low_rank(GR_OP_PRODUCT, GR_DTYPE_F16, 0, N_OUT, false, false));
        bed_rows(b, MAX_ROWS, single);
        check_bed(b, "gains and shifts");
    }
}

/* A plain adapter at a lower address than the one with gains: its delta must not be scaled. And gain and shift in one. */
static void test_gains_come_first(void **state) {
    (void)state;
    bed *b = bed_new(GR_OP_PRODUCT, N_OUT, 1);
    bed_add(b, 0, low_rank(GR_OP_PRODUCT, GR_DTYPE_F32, 0, N_OUT, false, false));
    bed_add(b, 1, low_rank(GR_OP_PRODUCT, GR_DTYPE_F32, 0, N_OUT, false, true));
    bed_add(b, 2, low_rank(GR_OP_PRODUCT, GR_DTYPE_F16, 0, N_OUT, true, true));
    bed_rows(b, MAX_ROWS, false);
    check_bed(b, "gains come first");
}

/* Split modules on a fused weight, at rows that are no multiples of anything, beside one over all of it. */
static void test_slices(void **state) {
    (void)state;
    for (int single = 0; single < 2; single++) {
        bed *b = bed_new(GR_OP_PRODUCT, N_OUT, 1);
        bed_add(b, 0, low_rank(GR_OP_PRODUCT, GR_DTYPE_F16, 0, 101, false, false));
        bed_add(b, 0, low_rank(GR_OP_PRODUCT, GR_DTYPE_F16, 101, 99, true, false));
        bed_add(b, 0, low_rank(GR_OP_PRODUCT, GR_DTYPE_F16, 203, 130, false, true));
        bed_add(b, 1, low_rank(GR_OP_PRODUCT, GR_DTYPE_F32, 0, N_OUT, false, false));
        bed_add(b, 2, low_rank(GR_OP_PRODUCT, GR_DTYPE_F16, 7, 64, false, false));
        bed_rows(b, MAX_ROWS, single);
        check_bed(b, "slices");
    }
}

/* Another head whole, another one's rows of some tokens, and a low-rank one. Work enough to be shared out. */
static void test_heads(void **state) {
    (void)state;
    for (int single = 0; single < 2; single++) {
        bed *b = bed_new(GR_OP_PRODUCT, VOCAB, 1);
        bed_add(b, 0, low_rank(GR_OP_PRODUCT, GR_DTYPE_F32, 0, VOCAB, false, false));
        bed_add(b, 1, dense(GR_WHOLE, GR_OP_PRODUCT, GR_DTYPE_F16, VOCAB));
        bed_add(b, 2, dense(GR_TOKENS, GR_OP_PRODUCT, GR_DTYPE_F32, VOCAB));
        bed_rows(b, MAX_ROWS, single);
        check_bed(b, "heads");
    }
}

static void test_embeddings(void **state) {
    (void)state;
    for (int single = 0; single < 2; single++) {
        bed *b = bed_new(GR_OP_ROWS, N_OUT, 1);
        bed_add(b, 0, low_rank(GR_OP_ROWS, single ? GR_DTYPE_F16 : GR_DTYPE_F32, 0, N_OUT, single, false));
        bed_add(b, 1, dense(GR_WHOLE, GR_OP_ROWS, GR_DTYPE_F16, N_OUT));
        bed_add(b, 2, dense(GR_TOKENS, GR_OP_ROWS, GR_DTYPE_F32, N_OUT));
        bed_add(b, 2, low_rank(GR_OP_ROWS, GR_DTYPE_F32, 0, N_OUT, false, false));
        bed_rows(b, MAX_ROWS, single);
        check_bed(b, "embeddings");
    }
}

static void test_norms_and_biases(void **state) {
    (void)state;
    for (int kind = GR_NORM; kind <= GR_BIAS; kind++) {
        for (int heads = 1; heads <= HEADS; heads += HEADS - 1) {
            int n = heads > 1 ? N_OUT : WIDE; /* enough to be shared out */
            bed *b = bed_new(kind == GR_NORM ? GR_OP_MUL : GR_OP_ADD, n, heads);
            bed_add(b, 0, vector((gr_kind)kind, n));
            bed_add(b, 2, vector((gr_kind)kind, n));
            bed_rows(b, MAX_ROWS, false);
            check_bed(b, kind == GR_NORM ? "norms" : "biases");
        }
    }
}

/* With f = 1 what replaces leaves nothing of the base behind. */
static void test_replaces_exactly(void **state) {
    (void)state;
    bed *b = bed_new(GR_OP_ROWS, N_OUT, 1);
    bed_add(b, 0, dense(GR_WHOLE, GR_OP_ROWS, GR_DTYPE_F32, N_OUT));
    bed_rows(b, 4, true);
    for (int i = 0; i < 4; i++) {
        b->sets[i] = (gr_adapter_set){{&b->adapters[0]}, {1.0f}, 1};
    }
    run_all(b, 1, gr_kernels_best());
    for (int i = 0; i < 4; i++) {
        const float *row = (const float *)b->modules[0][0].a + b->ids[i] * b->modules[0][0].stride_out;
        for (int o = 0; o < N_OUT; o++) {
            assert_true(b->y[i * N_OUT + o] == row[o]);
        }
    }
    bed_free(b);
}

/* ---- what is no number -------------------------------------------------------------------------------------- */

/* Rows 0, 2, 4 have the evil adapter, the others a good one; theirs must be as without it. */
static void check_blamed(bed *b, int evil) {
    bed_rows(b, 6, true);
    for (int i = 0; i < 6; i++) {
        b->sets[i] = (gr_adapter_set){{&b->adapters[i % 2 ? 1 - evil : evil]}, {1.0f}, 1};
    }
    compute_want(b);
    for (int threads = 1; threads <= 3; threads += 2) {
        assert_ptr_equal(run(b, (const int[]){0, 1, 2, 3, 4, 5}, 6, threads, gr_kernels_best()), &b->adapters[evil]);
        for (int i = 0; i < 6; i++) {
            for (size_t o = 0; o < row_size(b); o++) {
                float y = b->y[(size_t)i * row_size(b) + o];
                double want = b->want[(size_t)i * row_size(b) + o];
                assert_true(gr_is_sane(&y, 1, GR_Y_LIMIT));
                assert_true(i % 2 == 0 || fabs((double)y - want) < CLOSE * (1 + fabs(want)));
            }
        }
    }
    bed_free(b);
}

static float *writable(const float *v) {
    return (float *)(uintptr_t)v;
}

static void test_blames(void **state) {
    static const float wrong[] = {INFINITY, NAN, 1e30f};
    (void)state;
    for (int w = 0; w < 3; w++) {
        for (int what = 0; what < 8; what++) {
            gr_op op = what < 4 ? GR_OP_PRODUCT : what < 6 ? GR_OP_ROWS : what == 6 ? GR_OP_MUL : GR_OP_ADD;
            bed *b = bed_new(op, VOCAB, 1);
            for (int a = 0; a < 2; a++) {
                switch (what) {
                case 0:
                case 1: bed_add(b, a, low_rank(op, GR_DTYPE_F16, 0, VOCAB, true, true)); break;
                case 2: bed_add(b, a, dense(GR_WHOLE, op, GR_DTYPE_F32, VOCAB)); break;
                case 3: bed_add(b, a, dense(GR_TOKENS, op, GR_DTYPE_F32, VOCAB)); break;
                case 4: bed_add(b, a, low_rank(op, GR_DTYPE_F32, 0, VOCAB, false, false)); break;
                case 5: bed_add(b, a, dense(GR_WHOLE, op, GR_DTYPE_F32, VOCAB)); break;
                default: bed_add(b, a, vector(what == 6 ? GR_NORM : GR_BIAS, VOCAB)); break;
                }
            }
            gr_module *m = &b->modules[1][0];
            const float *at_fault[] = {m->gain.magnitude, m->shift, m->a, m->a, m->a, m->a, m->factor, m->shift};
            float *v = writable(at_fault[what]);
            int rows = what == 4 || what == 5 ? VOCAB : 1, stride = what == 4 ? m->stride_rank : m->stride_out;
            for (int r = 0; r < rows; r++) { /* whatever the rows' tokens are */
                v[r * stride + 3] = wrong[w];
            }
            check_blamed(b, 1);
        }
    }
}

/* W + BA = 0 in one row: no direction is left to scale. */
static void test_gain_of_nothing(void **state) {
    (void)state;
    bed *b = bed_new(GR_OP_PRODUCT, VOCAB, 1);
    for (int a = 0; a < 2; a++) {
        bed_add(b, a, low_rank(GR_OP_PRODUCT, GR_DTYPE_F32, 0, VOCAB, true, false));
    }
    writable(b->modules[0][0].gain.ww)[5] = 0;
    writable(b->modules[0][0].gain.wba)[5] = 0;
    writable(b->modules[0][0].gain.bb)[5] = 0;
    check_blamed(b, 0);
}

/* What came in as NaN stays so, and nobody is blamed. */
static void test_not_blamed(void **state) {
    (void)state;
    for (int op = GR_OP_PRODUCT; op <= GR_OP_ADD; op++) {
        if (op == GR_OP_ROWS) {
            continue; /* the base's embeddings are numbers */
        }
        bed *b = bed_new((gr_op)op, VOCAB, 1);
        bed_add(b, 0, op == GR_OP_PRODUCT ? low_rank((gr_op)op, GR_DTYPE_F32, 0, VOCAB, true, true)
                                          : vector(op == GR_OP_MUL ? GR_NORM : GR_BIAS, VOCAB));
        if (op == GR_OP_PRODUCT) {
            bed_add(b, 1, dense(GR_WHOLE, GR_OP_PRODUCT, GR_DTYPE_F32, VOCAB));
        }
        bed_rows(b, 2, true);
        for (int i = 0; i < 2; i++) {
            b->sets[i] = (gr_adapter_set){{&b->adapters[op == GR_OP_PRODUCT ? i : 0]}, {1.0f}, 1};
            for (int o = 0; o < VOCAB; o++) {
                b->before[i * VOCAB + o] = NAN;
            }
            b->x[i][7] = NAN;
        }
        run_all(b, 1, gr_kernels_best());
        assert_true(isnan(b->y[0]) && isnan(b->y[VOCAB]));
        bed_free(b);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gains_and_shifts), cmocka_unit_test(test_gains_come_first), cmocka_unit_test(test_slices),
        cmocka_unit_test(test_heads),            cmocka_unit_test(test_embeddings),       cmocka_unit_test(test_norms_and_biases),
        cmocka_unit_test(test_replaces_exactly), cmocka_unit_test(test_blames),           cmocka_unit_test(test_gain_of_nothing),
        cmocka_unit_test(test_not_blamed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
