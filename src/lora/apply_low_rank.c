/*
 * LOW_RANK: t = f s A x by `down`, or column A[:, token] where x is one-hot; then y += B t, with DoRA times the gain of each
 * output, and plus f times the bias of B.
 */
#include "lora/apply.h"
#include "lora/packed.h"
#include "lora/sane.h"

#include <math.h>

enum { BLOCK = 256 }; /* outputs of which the gains are computed at a time; whole blocks of GR_PAD */

static float *t_of(const gr_part *p, int i) {
    return p->t + (size_t)i * (size_t)p->module->rank;
}

/* ---- t --------------------------------------------------------------------------------------------------- */

static void product_first(const gr_apply *a, const gr_part *p, int thread, int n_threads) {
    const gr_module *m = p->module;
    int begin, end;
    if (p->n_rows >= 4 * n_threads) { /* many rows: each thread all of A, in whole tiles of rows */
        gr_thread_share(p->n_rows, 4, thread, n_threads, &begin, &end);
        a->kernels->down(t_of(p, begin), m, a->node.x, a->node.x_stride, p->rows + begin, p->factors + begin, end - begin, 0,
                         m->rank);
    } else {
        gr_thread_share(m->rank, 4, thread, n_threads, &begin, &end);
        a->kernels->down(p->t, m, a->node.x, a->node.x_stride, p->rows, p->factors, p->n_rows, begin, end);
    }
}

static void rows_first(const gr_apply *a, const gr_part *p, int thread, int n_threads) {
    const gr_module *m = p->module;
    int begin, end;
    gr_thread_share(p->n_rows, 1, thread, n_threads, &begin, &end);
    for (int i = begin; i < end; i++) {
        float *t = t_of(p, i), factor = m->scale * p->factors[i];
        gr_packed_read(t, m->type, m->a, (size_t)a->node.ids[p->rows[i]] * (size_t)m->stride_rank, m->rank);
        for (int k = 0; k < m->rank; k++) {
            t[k] *= factor;
        }
    }
}

/* ---- y --------------------------------------------------------------------------------------------------- */

static void up(const gr_apply *a, const gr_part *p, int i, int n, int begin, int end) {
    float *y = (float *)a->node.y + p->module->first;
    a->kernels->up(y, a->node.y_stride, p->module, t_of(p, i), p->rows + i, n, begin, end);
}

/* The part has rows to give up: one at a time. */
static void up_with_care(const gr_apply *a, const gr_part *p, int begin, int end) {
    for (int i = 0; i < p->n_rows; i++) {
        if (gr_is_sane(t_of(p, i), p->module->rank, GR_T_LIMIT)) {
            up(a, p, i, 1, begin, end);
        } else if (gr_came_in_sane(a, p, i)) {
            memset(gr_part_y(a, p, i, begin), 0, (size_t)(end - begin) * sizeof(float));
        }
    }
}

/* g(f) of n outputs from `begin` on: m / |W + f s B A|. */
static void gains(float *g, const gr_module *m, float f, int begin, int n) {
    const float *magnitude = m->gain.magnitude + begin, *ww = m->gain.ww + begin, *wba = m->gain.wba + begin;
    const float *bb = m->gain.bb + begin;
    float c = f * m->scale;
    for (int o = 0; o < n; o++) {
        float square = ww[o] + c * (2.0f * wba[o] + c * bb[o]);
        square = square > 0.0f ? square : 0.0f;
        g[o] = magnitude[o] / sqrtf(square);
    }
}

/* Rows with one factor share the gains, and mostly all have one. */
static void scale_rows(const gr_apply *a, const gr_part *p, int begin, int end) {
    float g[BLOCK], f = 0.0f; /* which no row has */
    for (int o = begin; o < end; o += BLOCK) {
        int n = end - o < BLOCK ? end - o : BLOCK;
        f = 0.0f;
        for (int i = 0; i < p->n_rows; i++) {
            if (p->factors[i] != f) {
                f = p->factors[i];
                gains(g, p->module, f, o, n);
            }
            float *y = gr_part_y(a, p, i, o);
            for (int j = 0; j < n; j++) {
                y[j] *= g[j];
            }
        }
    }
}

static void shift_rows(const gr_apply *a, const gr_part *p, int begin, int end) {
    const float *shift = p->module->shift + begin;
    for (int i = 0; i < p->n_rows; i++) {
        float *y = gr_part_y(a, p, i, begin), f = p->factors[i];
        for (int j = 0; j < end - begin; j++) {
            y[j] += f * shift[j];
        }
    }
}

/* B in float32, gains and shifts can overflow whatever t is. */
static void check_y(gr_apply *a, int part, int begin, int end) {
    const gr_part *p = a->parts + part;
    for (int i = 0; i < p->n_rows; i++) {
        float *y = gr_part_y(a, p, i, begin);
        if (!gr_is_sane(y, end - begin, GR_Y_LIMIT) && gr_came_in_sane(a, p, i)) {
            gr_spoilt(a, part, y, end - begin);
        }
    }
}

static void low_rank_second(gr_apply *a, int part, int begin, int end) {
    const gr_part *p = a->parts + part;
    const gr_module *m = p->module;
    if (gr_is_sane(p->t, p->n_rows * m->rank, GR_T_LIMIT)) {
        up(a, p, 0, p->n_rows, begin, end);
    } else {
        up_with_care(a, p, begin, end);
    }
    if (m->gain.magnitude) {
        scale_rows(a, p, begin, end);
    }
    if (m->shift) {
        shift_rows(a, p, begin, end);
    }
    if (m->type == GR_DTYPE_F32 || m->gain.magnitude || m->shift) {
        check_y(a, part, begin, end);
    }
}

/* A gain's root and division take about as long as four products. */
static int64_t second_work(const gr_part *p) {
    const gr_module *m = p->module;
    return (int64_t)m->rank * m->n_out * p->n_rows + (m->gain.magnitude ? 4 * (int64_t)m->n_out : 0);
}

static int64_t product_work(const gr_part *p) {
    return (int64_t)p->module->rank * p->module->n_in * p->n_rows + second_work(p);
}

const gr_way gr_way_product = {product_first, low_rank_second, product_work};
const gr_way gr_way_rows = {rows_first, low_rank_second, second_work};
