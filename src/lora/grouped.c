/*
 * Twins: the same adapters in libllama's own form. A twin is made from a GGUF that is written into memory here
 * and read back by libllama at once, so libllama only ever parses bytes of ours.
 *
 * Its list is an array: a handful of adapters, searched by address.
 */
#include "lora/grouped.h"

#include "base/memory.h"
#include "model/convert.h"

#include <ggml.h>
#include <gguf.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

typedef struct twin {
    const gr_adapter *adapter;
    struct llama_adapter_lora *llama;
    size_t bytes;
} twin;

struct gr_grouped {
    const gr_base_model *base;
    twin *twins;
    size_t n_twins, capacity;
    _Atomic uint64_t bytes;  /* of all twins */
    gr_adapter_set selected; /* what the context has */
};

int gr_grouped_create(gr_grouped **out, const gr_base_model *base, graft_error *err) {
    gr_grouped *g = gr_zalloc(sizeof *g);
    if (!g) {
        return gr_fail_memory(err, sizeof *g);
    }
    g->base = base;
    *out = g;
    return 0;
}

void gr_grouped_free(gr_grouped *g) {
    if (!g) {
        return;
    }
    for (size_t i = 0; i < g->n_twins; i++) {
        llama_adapter_lora_free(g->twins[i].llama);
    }
    gr_free(g->twins);
    gr_free(g);
}

uint64_t gr_grouped_bytes(const gr_grouped *g) {
    return atomic_load(&((gr_grouped *)g)->bytes); /* reading an atomic is no change */
}

/* ---- a GGUF from an adapter ---------------------------------------------------------------------------- */

/*
 * libllama's scale is alpha / rank for all modules alike, or 1 if alpha is 0. The alpha that reproduces every
 * module's own scale exactly, or 0: then the scales must be multiplied into B.
 */
static float common_alpha(const gr_adapter *a) {
    float alpha = a->n_modules > 0 ? a->modules[0].scale * (float)a->modules[0].rank : 0.0f;
    for (size_t i = 0; i < a->n_modules; i++) {
        if (alpha / (float)a->modules[i].rank != a->modules[i].scale) {
            return 0.0f;
        }
    }
    return alpha;
}

/*
 * Q8_0 becomes float16, which rounds once more, by 2^-12 of each number. ggml's own Q8_0 would keep A exact, but then
 * x would be rounded to 8 bits before the product; and rows of B are `rank` long here, seldom a multiple of 32.
 */
static enum ggml_type ggml_type_of(const gr_module *m) {
    return m->type == GR_DTYPE_F32 ? GGML_TYPE_F32 : GGML_TYPE_F16;
}

/* B with a scale in it is no longer exact in float16. */
static enum ggml_type type_of_b(const gr_module *m, float alpha) {
    return alpha == 0.0f ? GGML_TYPE_F32 : ggml_type_of(m);
}

#define OVERHEAD_MODULE 1024 /* two tensors' entries and names, in the file and in libllama's lists */
#define OVERHEAD 4096

uint64_t gr_grouped_size(const gr_adapter *a) {
    if (gr_grouped_check(a, NULL)) {
        return 0; /* there will be none */
    }
    float alpha = common_alpha(a);
    uint64_t size = OVERHEAD;
    for (size_t i = 0; i < a->n_modules; i++) {
        const gr_module *m = a->modules + i;
        size += (uint64_t)m->rank * ((uint64_t)m->n_in * ggml_type_size(ggml_type_of(m)) +
                                     (uint64_t)m->n_out * ggml_type_size(type_of_b(m, alpha)));
    }
    return size + a->n_modules * OVERHEAD_MODULE;
}

/* In float32, at worst. */
uint64_t gr_grouped_most(uint64_t adapter_bytes, size_t n_modules, graft_adapter_type type) {
    uint64_t times = type == GRAFT_TYPE_F32 ? 1 : type == GRAFT_TYPE_F16 ? 2 : 4;
    return times * adapter_bytes + (uint64_t)n_modules * OVERHEAD_MODULE + OVERHEAD;
}

static int name_tensor(struct ggml_tensor *t, const gr_weight *w, const char *suffix, graft_error *err) {
    char name[GGML_MAX_NAME];
    int n = snprintf(name, sizeof name, "%s%s", w->name, suffix);
    if (n < 0 || (size_t)n >= sizeof name) {
        return gr_fail(err, GRAFT_E_INTERNAL, "a weight's name is too long for libllama's adapters");
    }
    ggml_set_name(t, name);
    return 0;
}

/* Describes all tensors, in the order of modules, A before B. `ctx` holds no data. */
static int describe(struct gguf_context *gguf, struct ggml_context *ctx, const gr_base_model *base,
                    const gr_adapter *a, float alpha, graft_error *err) {
    gguf_set_val_str(gguf, "general.type", "adapter");
    gguf_set_val_str(gguf, "general.architecture", base->architecture);
    gguf_set_val_str(gguf, "adapter.type", "lora");
    gguf_set_val_f32(gguf, "adapter.lora.alpha", alpha);
    for (size_t i = 0; i < a->n_modules; i++) {
        const gr_module *m = a->modules + i;
        const gr_weight *w = base->weights + m->weight;
        struct ggml_tensor *ta = ggml_new_tensor_2d(ctx, ggml_type_of(m), m->n_in, m->rank);
        struct ggml_tensor *tb = ggml_new_tensor_2d(ctx, type_of_b(m, alpha), m->rank, m->n_out);
        int status = name_tensor(ta, w, ".lora_a", err);
        if (!status) {
            status = name_tensor(tb, w, ".lora_b", err);
        }
        if (status) {
            return status;
        }
        gguf_add_tensor(gguf, ta);
        gguf_add_tensor(gguf, tb);
    }
    return 0;
}

/* Element [k][j] of a packed matrix. */
static float value(const gr_module *m, const void *matrix, int stride, int k, int j) {
    size_t at = (size_t)k * (size_t)stride + (size_t)j;
    if (m->type == GR_DTYPE_Q8_0) {
        const gr_q8_0 *block = (const gr_q8_0 *)matrix + at / GR_Q8_0_BLOCK;
        return ggml_fp16_to_fp32(block->factor) * (float)block->q[at % GR_Q8_0_BLOCK];
    }
    return m->type == GR_DTYPE_F16 ? ggml_fp16_to_fp32(((const ggml_fp16_t *)matrix)[at]) : ((const float *)matrix)[at];
}

/* A without its padding. */
static void copy_a(char *out, const gr_module *m) {
    if (m->type == GR_DTYPE_Q8_0) {
        for (int64_t i = 0; i < (int64_t)m->rank * m->n_in; i++) {
            ggml_fp16_t half = ggml_fp32_to_fp16(value(m, m->a, m->stride_in, (int)(i / m->n_in), (int)(i % m->n_in)));
            memcpy(out + 2 * i, &half, 2);
        }
        return;
    }
    size_t element = gr_dtype_size(m->type), row = (size_t)m->n_in * element, stride = (size_t)m->stride_in * element;
    for (int k = 0; k < m->rank; k++) {
        memcpy(out + (size_t)k * row, (const char *)m->a + (size_t)k * stride, row);
    }
}

/* B as [n_out][rank], from our transposed one. */
static void copy_b(char *out, const gr_module *m, float alpha) {
    for (int k = 0; k < m->rank; k++) {
        for (int o = 0; o < m->n_out; o++) {
            size_t to = (size_t)o * (size_t)m->rank + (size_t)k;
            float b = value(m, m->b, m->stride_out, k, o) * (alpha == 0.0f ? m->scale : 1.0f);
            ggml_fp16_t half = ggml_fp32_to_fp16(b); /* exact where it was one */
            if (type_of_b(m, alpha) == GGML_TYPE_F16) {
                memcpy(out + 2 * to, &half, 2);
            } else {
                memcpy(out + 4 * to, &b, 4);
            }
        }
    }
}

static void copy_data(char *data, const struct gguf_context *gguf, const gr_adapter *a, float alpha) {
    for (size_t i = 0; i < a->n_modules; i++) {
        copy_a(data + gguf_get_tensor_offset(gguf, 2 * (int64_t)i), a->modules + i);
        copy_b(data + gguf_get_tensor_offset(gguf, 2 * (int64_t)i + 1), a->modules + i, alpha);
    }
}

static size_t data_size(const struct gguf_context *gguf) {
    int64_t last = gguf_get_n_tensors(gguf) - 1;
    size_t end = last < 0 ? 0 : gguf_get_tensor_offset(gguf, last) + gguf_get_tensor_size(gguf, last);
    return GGML_PAD(end, gguf_get_alignment(gguf));
}

/* The whole file in one block of the caller's. */
static int write_gguf(char **out, size_t *length, const gr_base_model *base, const gr_adapter *a, graft_error *err) {
    float alpha = common_alpha(a);
    struct ggml_init_params params = {.mem_size = (2 * a->n_modules + 1) * ggml_tensor_overhead(), .no_alloc = true};
    struct ggml_context *ctx = ggml_init(params);
    struct gguf_context *gguf = gguf_init_empty();
    if (!ctx || !gguf) {
        gguf_free(gguf);
        ggml_free(ctx);
        return gr_fail_memory(err, params.mem_size);
    }
    int status = describe(gguf, ctx, base, a, alpha, err);
    if (!status) {
        size_t meta = gguf_get_meta_size(gguf), total = meta + data_size(gguf);
        char *bytes = gr_zalloc(total);
        if (bytes) {
            gguf_get_meta_data(gguf, bytes);
            copy_data(bytes + meta, gguf, a, alpha);
            *out = bytes;
            *length = total;
        } else {
            status = gr_fail_memory(err, total);
        }
    }
    gguf_free(gguf);
    ggml_free(ctx);
    return status;
}

/* ---- what libllama can do --------------------------------------------------------------------------------- */

int gr_grouped_check(const gr_adapter *a, graft_error *err) {
    if (!a->by_rows_only || a->no_effect) {
        return 0;
    }
    return gr_fail(err, GRAFT_E_UNSUPPORTED_ADAPTER,
                   "the adapter needs applying by rows, which is not possible here: grouped, libllama applies nothing but pairs of "
                   "low-rank matrices to whole weights (no DoRA, biases, norms, embeddings or modules_to_save)");
}

/* ---- twins ---------------------------------------------------------------------------------------------- */

static int make_twin(twin *out, const gr_base_model *base, const gr_adapter *a, graft_error *err) {
    char *bytes = NULL;
    size_t length = 0;
    int status = write_gguf(&bytes, &length, base, a, err);
    if (status) {
        return status;
    }
    FILE *file = fmemopen(bytes, length, "rb");
    struct llama_adapter_lora *llama = NULL;
    if (!file) {
        status = gr_fail_memory(err, length);
    } else {
        llama = llama_adapter_lora_init_from_file_ptr(base->llama, file);
        fclose(file);
        if (!llama) {
            status = gr_fail(err, GRAFT_E_INTERNAL, "libllama refused an adapter that graft had verified");
        }
    }
    gr_free(bytes);
    if (!status) {
        *out = (twin){a, llama, length};
    }
    return status;
}

static twin *find(const gr_grouped *g, const gr_adapter *a) {
    for (size_t i = 0; i < g->n_twins; i++) {
        if (g->twins[i].adapter == a) {
            return g->twins + i;
        }
    }
    return NULL;
}

static int reserve(gr_grouped *g, graft_error *err) {
    if (g->n_twins < g->capacity) {
        return 0;
    }
    size_t capacity = g->capacity ? 2 * g->capacity : 8;
    twin *grown = gr_realloc(g->twins, capacity * sizeof *grown);
    if (!grown) {
        return gr_fail_memory(err, capacity * sizeof *grown);
    }
    g->twins = grown;
    g->capacity = capacity;
    return 0;
}

static int twin_of(struct llama_adapter_lora **out, gr_grouped *g, const gr_adapter *a, graft_error *err) {
    const twin *known = find(g, a);
    if (known) {
        *out = known->llama;
        return 0;
    }
    int status = reserve(g, err);
    if (!status) {
        status = make_twin(&g->twins[g->n_twins], g->base, a, err);
    }
    if (!status) {
        const twin *made = &g->twins[g->n_twins++];
        atomic_fetch_add(&g->bytes, made->bytes);
        *out = made->llama;
    }
    return status;
}

static bool same_set(const gr_adapter_set *a, const gr_adapter_set *b) {
    bool same = a->n == b->n;
    for (int i = 0; same && i < a->n; i++) {
        same = a->adapters[i] == b->adapters[i] && a->scales[i] == b->scales[i];
    }
    return same;
}

int gr_grouped_select(gr_grouped *g, struct llama_context *ctx, const gr_adapter_set *set, graft_error *err) {
    static const gr_adapter_set none = {.n = 0};
    set = set ? set : &none;
    if (same_set(set, &g->selected)) {
        return 0;
    }
    struct llama_adapter_lora *twins[GR_MAX_USES];
    float scales[GR_MAX_USES];
    int n = 0;
    for (int i = 0; i < set->n; i++) {
        if (set->adapters[i]->no_effect) { /* libllama need not multiply zeros, nor choke on an empty file */
            continue;
        }
        int status = gr_grouped_check(set->adapters[i], err);
        status = status ? status : twin_of(&twins[n], g, set->adapters[i], err);
        if (status) {
            return status;
        }
        scales[n++] = set->scales[i];
    }
    if (llama_set_adapters_lora(ctx, twins, (size_t)n, scales) != 0) {
        return gr_fail(err, GRAFT_E_INTERNAL, "libllama refused to switch adapters");
    }
    g->selected = *set;
    return 0;
}

void gr_grouped_forget(gr_grouped *g, struct llama_context *ctx, const gr_adapter *adapter) {
    for (int i = 0; i < g->selected.n; i++) {
        if (g->selected.adapters[i] == adapter) {
            llama_set_adapters_lora(ctx, NULL, 0, NULL);
            g->selected.n = 0;
        }
    }
    twin *t = find(g, adapter);
    if (t) {
        llama_adapter_lora_free(t->llama);
        atomic_fetch_sub(&g->bytes, t->bytes);
        *t = g->twins[--g->n_twins];
    }
}
