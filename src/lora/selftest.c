/*
 * Rows against libllama on the open model.
 *
 * Four sequences: the base, adapter one, adapter two, both; their prompts interleaved in one batch, of which only
 * each last row has output (so that the last layer's two row numberings differ), then one more token each. The
 * very same batches are decoded several times: once for each set of adapters through libllama, where every row
 * gets that set and the sequence it belongs to is kept, and once by rows.
 *
 * Why so: a quantised base rounds its activations to 8 bits before every product. A difference in the last bit of a
 * float32 now and then tips one of those roundings, and what comes out after 30 layers differs by per cents. Equal
 * batches, and libllama's copies of the adapters in float32 (it would round x to float16 otherwise), leave so
 * little that most results are equal to the bit; the verdict lets a few roundings tip and no more.
 */
#include "lora/selftest.h"

#include "base/memory.h"
#include "lora/random_adapter.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SEQUENCES = 4, STEPS = 2, RESULTS = SEQUENCES * STEPS, PROMPT_MAX = 8, ROWS_MAX = SEQUENCES * PROMPT_MAX };
enum { TUNING_MAX = 20, ADAPTERS = 2 };

/* What the test adapters should change, as a share of the logits: visible, and far from drowning the base. */
static const double EFFECT_MIN = 0.5, EFFECT_MAX = 2.0;
/*
 * How far rows may be from libllama, as shares of the effect. A row that got the wrong adapter is off by the whole
 * effect, tipped roundings by a third of it at most; a systematic error shows in the median.
 */
static const double MOST_MAX = 0.5, MEDIAN_MAX = 0.15;

typedef struct test {
    const gr_base_model *base;
    struct llama_context *ctx;
    gr_hook *hook;
    gr_grouped *grouped;
    gr_row_plan *plan;
    gr_adapter *ours[ADAPTERS], *theirs[ADAPTERS]; /* the same numbers, in float16 or Q8_0, and in float32 */
    gr_adapter_set our_sets[SEQUENCES], their_sets[SEQUENCES];
    int length[SEQUENCES];           /* of the prompts */
    llama_token tokens[SEQUENCES][PROMPT_MAX + 1];
    struct llama_batch batch;
    float *plain, *reference, *rows; /* [SEQUENCES][STEPS][n_vocab]: the base, libllama, by rows */
} test;

static float *logits_at(const test *t, float *of, int s, int step) {
    return of + (size_t)(s * STEPS + step) * (size_t)t->base->n_vocab;
}

/* ---- making adapters and prompts ------------------------------------------------------------------------- */

/* Ids of the weights that the architecture's rules name in the first and last layer, ascending. */
static size_t pick_weights(int *out, const gr_base_model *base, size_t max) {
    size_t n = 0;
    int last = base->n_layer - 1;
    for (int layer = 0; layer <= last; layer += last > 0 ? last : 1) {
        for (size_t r = 0; r < base->arch->rules[GR_RULES_LINEAR].n && n < max; r++) {
            char name[96];
            snprintf(name, sizeof name, "blk.%d.%s", layer, base->arch->rules[GR_RULES_LINEAR].list[r].weight);
            int id = gr_base_model_weight(base, name);
            size_t at = n;
            while (id >= 0 && at > 0 && out[at - 1] > id) {
                at--;
            }
            if (id >= 0 && (at == 0 || out[at - 1] != id)) {
                memmove(out + at + 1, out + at, (n - at) * sizeof *out);
                out[at] = id;
                n++;
            }
        }
    }
    return n;
}

/* Ranks that are no round numbers, and both ways of storing that have kernels of their own beside float32. */
static int make_adapters(test *t, graft_error *err) {
    static const int rank[ADAPTERS] = {5, 12};
    static const gr_dtype type[ADAPTERS] = {GR_DTYPE_F16, GR_DTYPE_Q8_0};
    int weights[128], status = 0;
    size_t n = pick_weights(weights, t->base, sizeof weights / sizeof *weights);
    for (int a = 0; a < ADAPTERS && !status; a++) {
        uint64_t seed = 17 + (uint64_t)a;
        status = gr_random_adapter_create(&t->ours[a], t->base, weights, n, rank[a], type[a], 0.2f, seed, err);
        if (!status) {
            status = gr_random_adapter_create(&t->theirs[a], t->base, weights, n, rank[a], GR_DTYPE_F32, 0.2f, seed,
                                              err);
        }
    }
    return status;
}

/* Sequence s uses adapter 0 if bit 0 of s is set, adapter 1 if bit 1 is. Sets are sorted by address. */
static void fill_set(gr_adapter_set *set, int s, gr_adapter *const *adapters, float scale) {
    static const float factor[ADAPTERS] = {1.0f, 0.75f};
    set->n = 0;
    for (int i = 0; i < ADAPTERS; i++) {
        int a = adapters[0] < adapters[1] ? i : 1 - i;
        if (s >> a & 1) {
            set->adapters[set->n] = adapters[a];
            set->scales[set->n++] = scale * factor[a];
        }
    }
}

static void set_scale(test *t, float scale) {
    for (int s = 0; s < SEQUENCES; s++) {
        fill_set(&t->our_sets[s], s, t->ours, scale);
        fill_set(&t->their_sets[s], s, t->theirs, scale);
    }
}

/* Different lengths, no longer than the context allows. */
static void make_prompts(test *t, int longest) {
    uint64_t state = 1234567;
    for (int s = 0; s < SEQUENCES; s++) {
        int length = PROMPT_MAX - s;
        t->length[s] = length < longest ? length : longest;
        for (int i = 0; i <= t->length[s]; i++) {
            t->tokens[s][i] = (llama_token)(gr_random(&state) % (uint32_t)t->base->n_vocab);
        }
    }
}

/* ---- decoding ---------------------------------------------------------------------------------------------- */

static void add_row(test *t, int s, int position, bool output) {
    struct llama_batch *b = &t->batch;
    int i = b->n_tokens++;
    b->token[i] = t->tokens[s][position];
    b->pos[i] = position;
    b->n_seq_id[i] = 1;
    b->seq_id[i][0] = s;
    b->logits[i] = output;
}

/* All rows of one step (0: prompts, 1: one token each), interleaved. */
static void fill_batch(test *t, int step) {
    t->batch.n_tokens = 0;
    for (int i = 0; i < PROMPT_MAX + 1; i++) {
        for (int s = 0; s < SEQUENCES; s++) {
            if (step == 0 ? i < t->length[s] : i == t->length[s]) {
                add_row(t, s, i, step == 1 || i == t->length[s] - 1);
            }
        }
    }
}

static int decode(test *t, graft_error *err) {
    int code = llama_decode(t->ctx, t->batch);
    if (code != 0) {
        return gr_fail(err, GRAFT_E_DECODE_FAILED, "the self-test's decode failed (libllama says %d)", code);
    }
    return 0;
}

/* The logits of the sequences in `mask`. */
static void keep_logits(test *t, float *into, int step, unsigned mask) {
    for (int i = 0; i < t->batch.n_tokens; i++) {
        int s = t->batch.seq_id[i][0];
        if (t->batch.logits[i] && mask >> s & 1) {
            const float *from = llama_get_logits_ith(t->ctx, i);
            memcpy(logits_at(t, into, s, step), from, (size_t)t->base->n_vocab * sizeof *from);
        }
    }
}

/* Both steps with every row under one set, through libllama. */
static int run_libllama(test *t, float *into, unsigned mask, const gr_adapter_set *set, graft_error *err) {
    llama_memory_clear(llama_get_memory(t->ctx), true);
    gr_hook_begin(t->hook, NULL);
    int status = gr_grouped_select(t->grouped, t->ctx, set, err);
    for (int step = 0; step < STEPS && !status; step++) {
        fill_batch(t, step);
        status = decode(t, err);
        if (!status) {
            keep_logits(t, into, step, mask);
        }
    }
    return status;
}

/* Both steps with every row under its sequence's set, by the hook. */
static int run_rows(test *t, graft_error *err) {
    const gr_adapter_set *sets[ROWS_MAX];
    const gr_adapter *bad;
    llama_memory_clear(llama_get_memory(t->ctx), true);
    int status = gr_grouped_select(t->grouped, t->ctx, NULL, err);
    for (int step = 0; step < STEPS && !status; step++) {
        fill_batch(t, step);
        for (int i = 0; i < t->batch.n_tokens; i++) {
            sets[i] = t->our_sets + t->batch.seq_id[i][0];
        }
        gr_row_plan_build(t->plan, sets, t->batch.logits, t->batch.n_tokens);
        gr_hook_begin(t->hook, t->plan);
        status = decode(t, err);
        int noticed = gr_hook_end(t->hook, &bad, status ? NULL : err);
        status = status ? status : noticed;
        if (!status) {
            keep_logits(t, t->rows, step, ~0u);
        }
    }
    return status;
}

/* ---- comparing --------------------------------------------------------------------------------------------- */

/* |a - b| / |b - mean(b)|: what softmax ignores does not count. Infinite if anything is not finite. */
static double relative_difference(const float *a, const float *b, int n) {
    double mean = 0, difference = 0, size = 0;
    for (int i = 0; i < n; i++) {
        mean += (double)b[i] / n;
    }
    for (int i = 0; i < n; i++) {
        difference += ((double)a[i] - b[i]) * ((double)a[i] - b[i]);
        size += (b[i] - mean) * (b[i] - mean);
    }
    double ratio = sqrt(difference / size);
    return isfinite(ratio) ? ratio : INFINITY;
}

static int by_size(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* The differences of sequences [first, end) in all steps, ascending. Returns how many. */
static int differences(double *out, const test *t, float *a, float *b, int first, int end) {
    int n = 0;
    for (int s = first; s < end; s++) {
        for (int step = 0; step < STEPS; step++) {
            out[n++] = relative_difference(logits_at(t, a, s, step), logits_at(t, b, s, step), t->base->n_vocab);
        }
    }
    qsort(out, (size_t)n, sizeof *out, by_size);
    return n;
}

/* What libllama gives for each sequence, with a scale at which either adapter's effect is in range. */
static int references(test *t, double *effect, graft_error *err) {
    double found[RESULTS];
    float scale = 1.0f;
    int status = run_libllama(t, t->plain, ~0u, NULL, err);
    memcpy(t->reference, t->plain, STEPS * (size_t)t->base->n_vocab * sizeof(float)); /* sequence 0: the base */
    for (int i = 0; i < TUNING_MAX && !status; i++) {
        set_scale(t, scale);
        for (int s = 1; s <= ADAPTERS && !status; s++) {
            status = run_libllama(t, t->reference, 1u << s, &t->their_sets[s], err);
        }
        if (!status) {
            differences(found, t, t->reference, t->plain, 1, 1 + ADAPTERS);
            *effect = found[0];
            if (*effect >= EFFECT_MIN && *effect <= EFFECT_MAX) {
                break;
            }
            scale *= *effect < EFFECT_MIN ? 1.6f : 0.7f;
        }
    }
    return status ? status : run_libllama(t, t->reference, 1u << 3, &t->their_sets[3], err);
}

static void judge(gr_selftest_result *out, const test *t, double effect) {
    double found[RESULTS];
    int n = differences(found, t, t->rows, t->reference, 0, SEQUENCES);
    double most = found[n - 1], median = found[n / 2];
    bool visible = effect >= EFFECT_MIN && effect <= EFFECT_MAX;
    out->difference = most;
    out->effect = effect;
    out->passed = visible && most <= MOST_MAX * effect && median <= MEDIAN_MAX * effect;
    snprintf(out->text, sizeof out->text,
             "%s: adapters change the logits by %.2g, rows and libllama differ by %.2g at most, %.2g in the median",
             out->passed ? "passed" : visible ? "failed" : "not conclusive", effect, most, median);
}

/* ---- the whole --------------------------------------------------------------------------------------------- */

static int prepare(test *t, int longest, graft_error *err) {
    size_t size = (size_t)t->base->n_vocab * RESULTS;
    t->batch = llama_batch_init(ROWS_MAX, 0, 1);
    t->reference = gr_calloc(size, sizeof(float));
    t->plain = gr_calloc(size, sizeof(float));
    t->rows = gr_calloc(size, sizeof(float));
    if (!t->reference || !t->plain || !t->rows) {
        return gr_fail_memory(err, size * sizeof(float));
    }
    make_prompts(t, longest);
    int status = gr_row_plan_create(&t->plan, ROWS_MAX, err);
    return status ? status : make_adapters(t, err);
}

static void finish(test *t) {
    gr_hook_begin(t->hook, NULL);
    gr_grouped_select(t->grouped, t->ctx, NULL, NULL);
    for (int a = 0; a < ADAPTERS; a++) {
        gr_grouped_forget(t->grouped, t->ctx, t->theirs[a]);
        gr_random_adapter_free(t->theirs[a]);
        gr_random_adapter_free(t->ours[a]);
    }
    llama_memory_clear(llama_get_memory(t->ctx), true);
    gr_row_plan_free(t->plan);
    gr_free(t->rows);
    gr_free(t->plain);
    gr_free(t->reference);
    llama_batch_free(t->batch);
}

/* Longest prompt for which all rows fit one batch and the context. */
static int longest_prompt(struct llama_context *ctx) {
    int batch = (int)llama_n_ubatch(ctx), context = (int)llama_n_ctx(ctx) - SEQUENCES;
    return (batch < context ? batch : context) / SEQUENCES;
}

int gr_selftest(gr_selftest_result *out, const gr_base_model *base, struct llama_context *ctx, gr_hook *hook,
                gr_grouped *grouped, graft_error *err) {
    gr_selftest_result result = {0};
    test t = {.base = base, .ctx = ctx, .hook = hook, .grouped = grouped};
    graft_error why;
    if (!base->arch || longest_prompt(ctx) < 2) {
        snprintf(result.text, sizeof result.text, base->arch ? "not run: the batch is too small" :
                 "not run: no adapter table for architecture %s", base->architecture);
        *out = result;
        return 0;
    }
    double effect = 0;
    int status = prepare(&t, longest_prompt(ctx), &why);
    if (!status) {
        status = references(&t, &effect, &why);
    }
    if (!status) {
        status = run_rows(&t, &why);
    }
    if (!status) {
        judge(&result, &t, effect);
    } else if (status != GRAFT_E_OUT_OF_MEMORY && status != GRAFT_E_DECODE_FAILED) {
        snprintf(result.text, sizeof result.text, "failed: %.140s", why.message);
        status = 0;
    }
    finish(&t);
    if (status) {
        return gr_fail(err, status, "%s", why.message);
    }
    *out = result;
    return 0;
}
