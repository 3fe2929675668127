/*
 * For tests of the row-wise way: model, context, hook and twins in one place, and batches that are easy to write.
 * Most run on the oracle's tiny float32 bases, where all but the last bits must agree; a quantised base rounds its
 * activations, which makes per cents of the last bit of a float32 (see selftest.c).
 */
#ifndef LORA_SUPPORT_H
#define LORA_SUPPORT_H

#include "base/memory.h"
#include "lora/grouped.h"
#include "lora/hook.h"
#include "lora/random_adapter.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { TEST_SEQUENCES = 64, TEST_BATCH = 128, TEST_CONTEXT = 2048 };

typedef struct test_bed {
    gr_base_model *base;
    struct llama_context *ctx;
    gr_hook *hook;
    gr_grouped *grouped;
    gr_row_plan *plan;
    struct llama_batch batch;
    const gr_adapter_set *sets[TEST_BATCH]; /* of the batch's rows */
} test_bed;

typedef struct test_options {
    const char *path;          /* of the model */
    int threads;
    const gr_kernels *kernels; /* NULL: the best */
    bool half_kv;              /* float16 KV cache and flash attention, as people use it; else float32 */
    int ubatch;                /* 0: TEST_BATCH */
} test_options;

/* Path of a tiny base of the oracle. Static storage. */
static inline const char *tiny_base(const char *name) {
    static char path[512];
    snprintf(path, sizeof path, "%s/oracle/golden/bases/%s.gguf", GRAFT_TEST_DATA, name);
    return path;
}

static inline void bed_open(test_bed *b, test_options o) {
    memset(b, 0, sizeof *b);
    gr_log silent = {NULL, NULL};
    gr_base_options options = {.log = &silent};
    assert_int_equal(gr_base_model_open(&b->base, o.path, &options, NULL), 0);
    assert_int_equal(gr_hook_create(&b->hook, b->base, TEST_BATCH, o.threads ? o.threads : 2,
                                    o.kernels ? o.kernels : gr_kernels_best(), NULL), 0);
    assert_int_equal(gr_grouped_create(&b->grouped, b->base, NULL), 0);
    assert_int_equal(gr_row_plan_create(&b->plan, TEST_BATCH, NULL), 0);
    struct llama_context_params params = llama_context_default_params();
    params.n_ctx = TEST_CONTEXT;
    params.n_batch = TEST_BATCH;
    params.n_ubatch = o.ubatch ? (uint32_t)o.ubatch : TEST_BATCH;
    params.n_seq_max = TEST_SEQUENCES;
    params.kv_unified = true;
    params.cb_eval = gr_hook_callback();
    params.cb_eval_user_data = b->hook;
    if (!o.half_kv) {
        params.type_k = params.type_v = GGML_TYPE_F32;
        params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
    }
    b->ctx = llama_init_from_model(b->base->llama, params);
    assert_non_null(b->ctx);
    gr_hook_attach(b->hook, b->ctx);
    b->batch = llama_batch_init(TEST_BATCH, 0, 1);
}

static inline void bed_close(test_bed *b) {
    llama_batch_free(b->batch);
    llama_free(b->ctx);
    gr_row_plan_free(b->plan);
    gr_grouped_free(b->grouped);
    gr_hook_free(b->hook);
    gr_base_model_close(b->base);
}

static inline void bed_clear(test_bed *b) {
    llama_memory_clear(llama_get_memory(b->ctx), true);
}

static inline void bed_row(test_bed *b, int sequence, int position, int token, bool output,
                           const gr_adapter_set *set) {
    int i = b->batch.n_tokens++;
    b->batch.token[i] = token;
    b->batch.pos[i] = position;
    b->batch.n_seq_id[i] = 1;
    b->batch.seq_id[i][0] = sequence;
    b->batch.logits[i] = output;
    b->sets[i] = set;
}

/* Decodes the batch by rows. Returns what gr_hook_end says. */
static inline int bed_decode_rows(test_bed *b, const gr_adapter **bad, graft_error *err) {
    const gr_adapter *ignored;
    assert_int_equal(gr_grouped_select(b->grouped, b->ctx, NULL, NULL), 0);
    gr_row_plan_build(b->plan, b->sets, b->batch.logits, b->batch.n_tokens);
    gr_hook_begin(b->hook, b->plan);
    assert_int_equal(llama_decode(b->ctx, b->batch), 0);
    return gr_hook_end(b->hook, bad ? bad : &ignored, err);
}

/* Decodes the batch through libllama's adapters, all rows with one set. */
static inline void bed_decode_grouped(test_bed *b, const gr_adapter_set *set) {
    gr_hook_begin(b->hook, NULL);
    assert_int_equal(gr_grouped_select(b->grouped, b->ctx, set, NULL), 0);
    assert_int_equal(llama_decode(b->ctx, b->batch), 0);
}

/* Every weight of every layer that the architecture's table has; returns how many. */
static inline size_t bed_all_weights(const gr_base_model *base, int *out, size_t max) {
    size_t n = 0;
    for (size_t id = 0; id < base->n_weights && n < max; id++) {
        bool found = false;
        for (size_t r = 0; r < base->arch->rules[GR_RULES_LINEAR].n && !found; r++) {
            char name[96];
            snprintf(name, sizeof name, "blk.%d.%s", base->weights[id].layer, base->arch->rules[GR_RULES_LINEAR].list[r].weight);
            found = !strcmp(name, base->weights[id].name);
        }
        if (found) {
            out[n++] = (int)id;
        }
    }
    return n;
}

static inline gr_adapter *bed_adapter(test_bed *b, int rank, gr_dtype type, float gain, uint64_t seed) {
    int weights[512];
    size_t n = bed_all_weights(b->base, weights, 512);
    gr_adapter *a;
    assert_int_equal(gr_random_adapter_create(&a, b->base, weights, n, rank, type, gain, seed, NULL), 0);
    return a;
}

static inline gr_adapter_set bed_set(const gr_adapter *a, float scale_a, const gr_adapter *b, float scale_b) {
    gr_adapter_set set = {.n = 0};
    bool swap = b && b < a;
    if (a) {
        set.adapters[0] = swap ? b : a;
        set.scales[0] = swap ? scale_b : scale_a;
        set.n = 1;
    }
    if (b) {
        set.adapters[1] = swap ? a : b;
        set.scales[1] = swap ? scale_a : scale_b;
        set.n = 2;
    }
    return set;
}

/* |a - b| / |b - mean b| */
static inline double bed_difference(const float *a, const float *b, int n) {
    double mean = 0, difference = 0, size = 0;
    for (int i = 0; i < n; i++) {
        mean += (double)b[i] / n;
    }
    for (int i = 0; i < n; i++) {
        difference += ((double)a[i] - b[i]) * ((double)a[i] - b[i]);
        size += (b[i] - mean) * (b[i] - mean);
    }
    return sqrt(difference / size);
}

#endif
