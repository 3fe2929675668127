/*
 * For tests: small adapters written to temporary folders from a description, and a base model made by hand.
 * Every number in them follows from the tensor's name and the element's index, so a test can compute what it must
 * find. Conversions here are slow and plain on purpose: they check the fast ones.
 */
#ifndef MAKE_ADAPTER_H
#define MAKE_ADAPTER_H

#include "base/memory.h"
#include "format/tensor_info.h"
#include "model/base_model.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <dirent.h>
#include <fcntl.h>
#include <gguf.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- files ---------------------------------------------------------------------------------------------- */

typedef struct test_dir {
    char path[64];
} test_dir;

static inline test_dir test_dir_make(void) {
    test_dir d;
    snprintf(d.path, sizeof d.path, "/tmp/graft-test-XXXXXX");
    assert_non_null(mkdtemp(d.path));
    return d;
}

/* "DIR/NAME" in a buffer that the next but three call overwrites. */
static inline const char *test_path(const test_dir *d, const char *name) {
    static char buffers[4][512];
    static int next;
    char *p = buffers[next++ % 4];
    snprintf(p, sizeof buffers[0], "%s/%s", d->path, name);
    return p;
}

static inline void test_write(const test_dir *d, const char *name, const void *bytes, size_t n) {
    FILE *f = fopen(test_path(d, name), "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(bytes, 1, n, f), n);
    assert_int_equal(fclose(f), 0);
}

static inline void test_write_text(const test_dir *d, const char *name, const char *text) {
    test_write(d, name, text, strlen(text));
}

/* Flat folders only. */
static inline void test_dir_remove(const test_dir *d) {
    DIR *dir = opendir(d->path);
    assert_non_null(dir);
    for (struct dirent *e; (e = readdir(dir)) != NULL;) {
        if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0 && unlinkat(dirfd(dir), e->d_name, 0) != 0) {
            unlinkat(dirfd(dir), e->d_name, AT_REMOVEDIR);
        }
    }
    closedir(dir);
    assert_int_equal(rmdir(d->path), 0);
}

static inline int test_open_fds(void) {
    int n = 0;
    for (int fd = 0; fd < 256; fd++) {
        n += fcntl(fd, F_GETFD) != -1;
    }
    return n;
}

/* ---- numbers -------------------------------------------------------------------------------------------- */

static inline uint32_t test_bits(float f) {
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    return u;
}

static inline float test_float(uint32_t u) {
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

static inline double test_half_value(uint16_t h) {
    int exponent = (h >> 10) & 31, mantissa = h & 1023;
    double sign = h & 0x8000 ? -1.0 : 1.0;
    if (exponent == 31) {
        return mantissa ? (double)NAN : sign * (double)INFINITY;
    }
    return sign * (exponent ? ldexp(1024 + mantissa, exponent - 25) : ldexp(mantissa, -24));
}

/* Round to nearest even through double, where both the float and the half's spacing are exact. */
static inline uint16_t test_half(float f) {
    uint16_t sign = signbit(f) ? 0x8000 : 0;
    double x = fabs((double)f);
    if (!isfinite(x)) {
        return isnan(x) ? 0x7e00 : sign | 0x7c00;
    }
    if (x == 0) {
        return sign;
    }
    int exponent;
    frexp(x, &exponent); /* x in [2^(exponent-1), 2^exponent) */
    if (exponent - 1 < -14) {
        exponent = -13;
    }
    double spacing = ldexp(1.0, exponent - 1 - 10);
    double rounded = nearbyint(x / spacing) * spacing;
    if (rounded >= 65520) {
        return sign | 0x7c00;
    }
    if (rounded < ldexp(1.0, -14)) {
        return (uint16_t)(sign | (uint16_t)ldexp(rounded, 24));
    }
    frexp(rounded, &exponent);
    return (uint16_t)(sign | ((exponent - 1 + 15) << 10) | ((uint16_t)ldexp(rounded, 10 - (exponent - 1)) & 1023));
}

/* Uniform in (-0.5, 0.5), the same for the same name and index. */
static inline float test_value(const char *name, size_t i) {
    uint64_t h = 1469598103934665603u;
    for (const char *p = name; *p; p++) {
        h = (h ^ (unsigned char)*p) * 1099511628211u;
    }
    h ^= (i + 1) * 0x9e3779b97f4a7c15u;
    h ^= h >> 30;
    h *= 0xbf58476d1ce4e5b9u;
    h ^= h >> 27;
    h *= 0x94d049bb133111ebu;
    h ^= h >> 31;
    return (float)((double)(h >> 40) / 16777216.0 - 0.5);
}

/* ---- tensors -------------------------------------------------------------------------------------------- */

typedef struct test_tensor {
    char name[GR_MAX_TENSOR_NAME + 1];
    gr_dtype dtype;
    int n_dims;
    uint64_t shape[4];
    bool zero;          /* all elements 0 */
    float factor;       /* on every element */
    size_t special_at;  /* this element is `special` if has_special */
    float special;
    bool has_special;
} test_tensor;

enum { TEST_MAX_TENSORS = 64 };

typedef struct test_adapter {
    test_tensor t[TEST_MAX_TENSORS];
    int n;
    char config[4096];
} test_adapter;

static inline size_t test_count(const test_tensor *t) {
    size_t n = 1;
    for (int i = 0; i < t->n_dims; i++) {
        n *= (size_t)t->shape[i];
    }
    return n;
}

/* bfloat16 is a float's upper half. Volatile: GCC 12 drops a masking of a float's bits from -O1 on. */
static inline float test_bf16(float f) {
    volatile uint32_t bits = test_bits(f);
    bits &= 0xffff0000u;
    return test_float(bits);
}

/* Element i as the file holds it, after rounding to the file's type. */
static inline float test_stored(const test_tensor *t, size_t i) {
    float v = t->has_special && i == t->special_at ? t->special : t->zero ? 0.0f : test_value(t->name, i) * t->factor;
    switch (t->dtype) {
    case GR_DTYPE_F16: return (float)test_half_value(test_half(v));
    case GR_DTYPE_BF16: return test_bf16(v);
    default: return v;
    }
}

static inline test_tensor *test_add(test_adapter *a, const char *name, gr_dtype dtype, uint64_t rows, uint64_t columns) {
    assert_true(a->n < TEST_MAX_TENSORS);
    test_tensor *t = &a->t[a->n++];
    memset(t, 0, sizeof *t);
    snprintf(t->name, sizeof t->name, "%s", name);
    t->dtype = dtype;
    t->n_dims = 2;
    t->shape[0] = rows;
    t->shape[1] = columns;
    t->factor = 1;
    return t;
}

static inline test_tensor *test_find(test_adapter *a, const char *name) {
    for (int i = 0; i < a->n; i++) {
        if (strcmp(a->t[i].name, name) == 0) {
            return &a->t[i];
        }
    }
    fail_msg("no tensor %s", name);
    return NULL;
}

static inline void test_drop(test_adapter *a, const char *name) {
    test_tensor *t = test_find(a, name);
    memmove(t, t + 1, (size_t)(&a->t[--a->n] - t) * sizeof *t);
}

static inline void test_rename(test_adapter *a, const char *name, const char *to) {
    snprintf(test_find(a, name)->name, GR_MAX_TENSOR_NAME + 1, "%s", to);
}

static inline void test_put(uint8_t *out, const test_tensor *t, size_t i) {
    float v = test_stored(t, i);
    uint32_t bits = test_bits(v);
    uint16_t half = t->dtype == GR_DTYPE_BF16 ? (uint16_t)(bits >> 16) : test_half(v);
    memcpy(out, t->dtype == GR_DTYPE_F32 ? (void *)&bits : (void *)&half, t->dtype == GR_DTYPE_F32 ? 4 : 2);
}

/* Writes the container; `pad` bytes of spaces at the header's end make data sections of any alignment. */
static inline void test_write_safetensors(const test_adapter *a, const test_dir *d, const char *name, int pad) {
    size_t data = 0, o = 0, room = 1024 + (size_t)a->n * 1024;
    char *header = malloc(room);
    o += (size_t)snprintf(header + o, room - o, "{\"__metadata__\":{\"format\":\"pt\"}");
    for (int i = 0; i < a->n; i++) {
        const test_tensor *t = &a->t[i];
        size_t size = test_count(t) * (t->dtype == GR_DTYPE_F32 ? 4 : 2);
        o += (size_t)snprintf(header + o, room - o, ",\"%s\":{\"dtype\":\"%s\",\"shape\":[", t->name,
                              t->dtype == GR_DTYPE_F32 ? "F32" : t->dtype == GR_DTYPE_F16 ? "F16" : "BF16");
        for (int k = 0; k < t->n_dims; k++) {
            o += (size_t)snprintf(header + o, room - o, "%s%llu", k ? "," : "", (unsigned long long)t->shape[k]);
        }
        o += (size_t)snprintf(header + o, room - o, "],\"data_offsets\":[%zu,%zu]}", data, data + size);
        data += size;
    }
    o += (size_t)snprintf(header + o, room - o, "}%*s", pad, "");
    uint8_t *bytes = malloc(8 + o + data);
    for (int i = 0; i < 8; i++) {
        bytes[i] = (uint8_t)(o >> (8 * i));
    }
    memcpy(bytes + 8, header, o);
    uint8_t *at = bytes + 8 + o;
    for (int i = 0; i < a->n; i++) {
        size_t size = a->t[i].dtype == GR_DTYPE_F32 ? 4 : 2;
        for (size_t k = 0; k < test_count(&a->t[i]); k++, at += size) {
            test_put(at, &a->t[i], k);
        }
    }
    test_write(d, name, bytes, 8 + o + data);
    free(bytes);
    free(header);
}

static inline void test_write_mlx(const test_adapter *a, const test_dir *d) {
    test_write_safetensors(a, d, "adapters.safetensors", 0);
    test_write_text(d, "adapter_config.json", a->config);
}

static inline void test_write_peft(const test_adapter *a, const test_dir *d) {
    test_write_safetensors(a, d, "adapter_model.safetensors", 0);
    test_write_text(d, "adapter_config.json", a->config);
}

/* `alora`: with invocation tokens. Only F32 and F16. */
static inline void test_write_gguf(const test_adapter *a, const test_dir *d, const char *name, const char *type,
                                   const char *architecture, float alpha, bool alora) {
    struct ggml_context *c = ggml_init((struct ggml_init_params){.mem_size = (size_t)16 << 20});
    struct gguf_context *g = gguf_init_empty();
    gguf_set_val_str(g, "general.type", type);
    gguf_set_val_str(g, "general.architecture", architecture);
    gguf_set_val_str(g, "adapter.type", "lora");
    gguf_set_val_f32(g, "adapter.lora.alpha", alpha);
    if (alora) {
        uint32_t tokens[2] = {1, 2};
        gguf_set_arr_data(g, "adapter.alora.invocation_tokens", GGUF_TYPE_UINT32, tokens, 2);
    }
    for (int i = 0; i < a->n; i++) {
        const test_tensor *t = &a->t[i];
        int64_t ne[4] = {1, 1, 1, 1};
        for (int k = 0; k < t->n_dims; k++) {
            ne[k] = (int64_t)t->shape[t->n_dims - 1 - k];
        }
        struct ggml_tensor *out = ggml_new_tensor(c, t->dtype == GR_DTYPE_F32 ? GGML_TYPE_F32 : GGML_TYPE_F16, t->n_dims, ne);
        ggml_set_name(out, t->name);
        size_t size = t->dtype == GR_DTYPE_F32 ? 4 : 2;
        for (size_t k = 0; k < test_count(t); k++) {
            test_put((uint8_t *)out->data + k * size, t, k);
        }
        gguf_add_tensor(g, out);
    }
    assert_true(gguf_write_to_file(g, test_path(d, name), false));
    gguf_free(g);
    ggml_free(c);
}

/* ---- a base model made by hand -------------------------------------------------------------------------- */

/* Sizes that are no multiples of GR_PAD, grouped-query attention, head size 10. */
enum { TEST_LAYERS = 2, TEST_HEADS = 4, TEST_HEADS_KV = 2, TEST_EMBD = 40, TEST_KV = 20, TEST_FF = 56, TEST_VOCAB = 100 };

static inline int test_weight_order(const void *a, const void *b) {
    return strcmp(((const gr_weight *)a)->name, ((const gr_weight *)b)->name);
}

static inline void test_base_add(gr_base_model *m, int layer, const char *name, int64_t n_in, int64_t n_out) {
    gr_weight *w = &m->weights[m->n_weights++];
    if (layer < 0) {
        snprintf(w->name, sizeof w->name, "%s", name);
    } else {
        snprintf(w->name, sizeof w->name, "blk.%d.%s", layer, name);
    }
    w->n_in = n_in;
    w->n_out = n_out;
    w->layer = layer;
}

static inline gr_weight *test_base_vector(gr_base_model *m, int layer, const char *name, int64_t n) {
    test_base_add(m, layer, name, 1, n);
    m->weights[m->n_weights - 1].vector = true;
    return &m->weights[m->n_weights - 1];
}

static inline void test_base_sort(gr_base_model *m) {
    qsort(m->weights, m->n_weights, sizeof *m->weights, test_weight_order);
}

static inline test_tensor *test_add_vector(test_adapter *a, const char *name, gr_dtype dtype, uint64_t n) {
    test_tensor *t = test_add(a, name, dtype, n, 1);
    t->n_dims = 1;
    return t;
}

/* Not to be closed: test_base_free. `llama` is NULL. */
static inline gr_base_model *test_base_make(const char *architecture) {
    gr_base_model *m = calloc(1, sizeof *m);
    snprintf(m->architecture, sizeof m->architecture, "%s", architecture);
    m->arch = gr_arch_find(architecture);
    m->n_layer = TEST_LAYERS;
    m->n_head = TEST_HEADS;
    m->n_head_kv = TEST_HEADS_KV;
    m->n_embd = TEST_EMBD;
    m->n_vocab = TEST_VOCAB;
    m->weights = calloc(64, sizeof *m->weights);
    for (int i = 0; i < TEST_LAYERS; i++) {
        if (strcmp(architecture, "gpt2") == 0) {
            test_base_add(m, i, "attn_qkv.weight", TEST_EMBD, 3 * TEST_EMBD);
        } else {
            test_base_add(m, i, "attn_q.weight", TEST_EMBD, TEST_EMBD);
            test_base_add(m, i, "attn_k.weight", TEST_EMBD, TEST_KV);
            test_base_add(m, i, "attn_v.weight", TEST_EMBD, TEST_KV);
            test_base_add(m, i, "ffn_gate.weight", TEST_EMBD, TEST_FF);
        }
        test_base_add(m, i, "attn_output.weight", TEST_EMBD, TEST_EMBD);
        test_base_add(m, i, "ffn_up.weight", TEST_EMBD, TEST_FF);
        test_base_add(m, i, "ffn_down.weight", TEST_FF, TEST_EMBD);
    }
    test_base_add(m, -1, "token_embd.weight", TEST_EMBD, TEST_VOCAB);
    qsort(m->weights, m->n_weights, sizeof *m->weights, test_weight_order);
    return m;
}

static inline void test_base_free(gr_base_model *m) {
    free(m->weights);
    free(m);
}

#define TEST_Q(layer, part) "base_model.model.model.layers." #layer ".self_attn.q_proj.lora_" part ".weight"
#define TEST_K(layer, part) "base_model.model.model.layers." #layer ".self_attn.k_proj.lora_" part ".weight"
#define TEST_DOWN(layer, part) "base_model.model.model.layers." #layer ".mlp.down_proj.lora_" part ".weight"

/* Rank 4, alpha 8 (scale 2), on q_proj, k_proj and down_proj of both layers of test_base_make("llama"). */
static inline test_adapter *test_adapter_make(gr_dtype dtype) {
    test_adapter *a = calloc(1, sizeof *a);
    snprintf(a->config, sizeof a->config,
             "{\"peft_type\":\"LORA\",\"r\":4,\"lora_alpha\":8,\"target_modules\":[\"q_proj\",\"k_proj\",\"down_proj\"]}");
    test_add(a, TEST_DOWN(0, "A"), dtype, 4, TEST_FF);
    test_add(a, TEST_DOWN(0, "B"), dtype, TEST_EMBD, 4);
    test_add(a, TEST_K(0, "A"), dtype, 4, TEST_EMBD);
    test_add(a, TEST_K(0, "B"), dtype, TEST_KV, 4);
    test_add(a, TEST_Q(0, "A"), dtype, 4, TEST_EMBD);
    test_add(a, TEST_Q(0, "B"), dtype, TEST_EMBD, 4);
    test_add(a, TEST_DOWN(1, "A"), dtype, 4, TEST_FF);
    test_add(a, TEST_DOWN(1, "B"), dtype, TEST_EMBD, 4);
    test_add(a, TEST_K(1, "A"), dtype, 4, TEST_EMBD);
    test_add(a, TEST_K(1, "B"), dtype, TEST_KV, 4);
    test_add(a, TEST_Q(1, "A"), dtype, 4, TEST_EMBD);
    test_add(a, TEST_Q(1, "B"), dtype, TEST_EMBD, 4);
    return a;
}

/* Inserts `text` (with its comma in front) before the config's closing brace. */
static inline void test_config_add(test_adapter *a, const char *text) {
    size_t n = strlen(a->config);
    snprintf(a->config + n - 1, sizeof a->config - n, "%s}", text);
}

/* The same shape as GGUF: attn_q and ffn_down of layer 0. */
static inline test_adapter *test_gguf_make(gr_dtype dtype) {
    test_adapter *a = calloc(1, sizeof *a);
    test_add(a, "blk.0.attn_q.weight.lora_a", dtype, 4, TEST_EMBD);
    test_add(a, "blk.0.attn_q.weight.lora_b", dtype, TEST_EMBD, 4);
    test_add(a, "blk.0.ffn_down.weight.lora_a", dtype, 2, TEST_FF);
    test_add(a, "blk.0.ffn_down.weight.lora_b", dtype, TEST_EMBD, 2);
    return a;
}

#endif
