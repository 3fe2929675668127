/*
 * NORM and BIAS: y times 1 + f (v - w) / w, and y plus f (v - w), for every vector of a row.
 *
 * Such nodes are often computed in place, so that what came in is gone: it is y before the change that tells whether a row was
 * spoilt already.
 */
#include "lora/apply.h"
#include "lora/sane.h"

static void scale(float *y, const float *factor, int n, float f) {
    for (int j = 0; j < n; j++) {
        y[j] *= 1.0f + f * factor[j];
    }
}

static void shift(float *y, const float *by, int n, float f) {
    for (int j = 0; j < n; j++) {
        y[j] += f * by[j];
    }
}

typedef void change(float *y, const float *by, int n, float f);

static void every_vector(gr_apply *a, int part, const float *by, int begin, int end, change *make) {
    const gr_part *p = a->parts + part;
    int n = end - begin;
    for (int i = 0; i < p->n_rows; i++) {
        char *y_row = (char *)gr_part_y(a, p, i, begin);
        for (int head = 0; head < a->node.heads; head++) {
            float *y = (float *)(void *)(y_row + a->node.head_stride * (size_t)head);
            bool came_in_sane = gr_is_sane(y, n, FLT_MAX);
            make(y, by + begin, n, p->factors[i]);
            if (came_in_sane && !gr_is_sane(y, n, GR_Y_LIMIT)) {
                gr_spoilt(a, part, y, n);
            }
        }
    }
}

static void norm_second(gr_apply *a, int part, int begin, int end) {
    every_vector(a, part, a->parts[part].module->factor, begin, end, scale);
}

static void bias_second(gr_apply *a, int part, int begin, int end) {
    every_vector(a, part, a->parts[part].module->shift, begin, end, shift);
}

static int64_t work(const gr_part *p) {
    return (int64_t)p->n_rows * p->module->n_out; /* heads would not make it enough to share out */
}

const gr_way gr_way_norm = {NULL, norm_second, work};
const gr_way gr_way_bias = {NULL, bias_second, work};
