/* Rows in, logits out: the llama_context, both ways of applying adapters, and what to do when a decode fails. */
#include "decoder.h"

#include "base/memory.h"
#include "lora/grouped.h"
#include "lora/hook.h"
#include "lora/selftest.h"
#include "meter.h"
#include "scheduler.h"

#include <stdlib.h>
#include <string.h>

#define SELFTEST_SEQUENCES 4
#define PROBE_CELLS 256 /* libllama rounds up to that anyway */
#define LOGITS_BYTES ((size_t)16 << 20) /* of one step, about: bounds how much of a text is scored at once */
#define MIN_OUTPUTS 16

/* Some rows of a span: what one llama_decode takes of it. */
typedef struct part {
    gr_span *span;
    int first, n;
} part;

struct gr_decoder {
    const gr_base_model *base;
    const gr_log *log;
    const gr_kernels *kernels;
    gr_hook *hook;
    gr_grouped *grouped;
    gr_row_plan *plan;
    struct llama_context *ctx;
    int max_outputs;
    uint64_t context_bytes;
    gr_decoder_stats stats;
    /* one batch, [batch] each */
    llama_token *token;
    llama_pos *pos;
    int32_t *n_seq;
    llama_seq_id *seq;
    llama_seq_id **seq_of;
    int8_t *output;
    const gr_adapter_set **sets;
    /* during gr_decoder_run */
    gr_logits_sink sink;
    void *sink_user;
    bool rows_broke, embed;
};

/* ---- making it ---------------------------------------------------------------------------------------- */

static int max_outputs(const gr_base_model *base, const gr_decoder_options *o) {
    size_t fit = LOGITS_BYTES / (sizeof(float) * (size_t)base->n_vocab);
    int n = fit > (size_t)o->batch ? o->batch : (int)fit;
    n = n < MIN_OUTPUTS ? MIN_OUTPUTS : n;
    int sequences = o->slots + o->probe_slot;
    return n < sequences ? sequences : n;
}

static struct llama_context_params context_params(const gr_decoder *d, const gr_decoder_options *o) {
    struct llama_context_params p = llama_context_default_params();
    bool exact = o->kv_type == GRAFT_KV_F32;
    p.n_ctx = (uint32_t)(o->slots * o->context + (o->probe_slot ? PROBE_CELLS : 0));
    /* One decode must be one graph over the rows in batch order, or the row plan would not fit it. */
    p.n_batch = p.n_ubatch = (uint32_t)o->batch;
    p.kv_unified = true;
    int sequences = o->slots + o->probe_slot;
    p.n_seq_max = (uint32_t)(sequences > SELFTEST_SEQUENCES ? sequences : SELFTEST_SEQUENCES);
    /* The default, n_batch, would reserve n_batch * n_vocab floats. */
    p.n_outputs_max = (uint32_t)d->max_outputs;
    p.n_threads = p.n_threads_batch = o->threads;
    p.type_k = p.type_v = exact ? GGML_TYPE_F32 : GGML_TYPE_F16;
    p.flash_attn_type = exact ? LLAMA_FLASH_ATTN_TYPE_DISABLED : LLAMA_FLASH_ATTN_TYPE_AUTO;
    /* Full-size caches also for sliding-window layers: with a small one, cells that left the window are gone, and a
     * failed step could not be taken back. */
    p.swa_full = true;
    p.no_perf = true;
    p.cb_eval = gr_hook_callback();
    p.cb_eval_user_data = d->hook;
    return p;
}

static int make_batch(gr_decoder *d, int batch, graft_error *err) {
    size_t n = (size_t)batch;
    d->token = gr_calloc(n, sizeof *d->token);
    d->pos = gr_calloc(n, sizeof *d->pos);
    d->n_seq = gr_calloc(n, sizeof *d->n_seq);
    d->seq = gr_calloc(n, sizeof *d->seq);
    d->seq_of = gr_calloc(n, sizeof *d->seq_of);
    d->output = gr_calloc(n, sizeof *d->output);
    d->sets = gr_calloc(n, sizeof *d->sets);
    if (!d->token || !d->pos || !d->n_seq || !d->seq || !d->seq_of || !d->output || !d->sets) {
        return gr_fail_memory(err, n * sizeof *d->sets);
    }
    for (size_t i = 0; i < n; i++) {
        d->n_seq[i] = 1;
        d->seq_of[i] = &d->seq[i];
    }
    return 0;
}

static int make_context(gr_decoder *d, const gr_decoder_options *o, graft_error *err) {
    gr_meter_begin();
    d->ctx = llama_init_from_model(d->base->llama, context_params(d, o));
    d->context_bytes = gr_meter_end();
    if (!d->ctx) {
        return gr_fail(err, GRAFT_E_MODEL_INVALID, "libllama cannot make a context of %d x %d tokens for this model",
                       o->slots, o->context);
    }
    gr_hook_attach(d->hook, d->ctx);
    return 0;
}

int gr_decoder_create(gr_decoder **out, gr_base_model *base, const gr_decoder_options *options, graft_error *err) {
    gr_decoder *d = gr_zalloc(sizeof *d);
    if (!d) {
        return gr_fail_memory(err, sizeof *d);
    }
    d->base = base;
    d->log = options->log;
    d->kernels = gr_kernels_best();
    d->max_outputs = max_outputs(base, options);
    int rc = make_batch(d, options->batch, err);
    if (!rc) {
        rc = gr_row_plan_create(&d->plan, options->batch, err);
    }
    if (!rc) {
        rc = gr_hook_create(&d->hook, base, options->batch, options->threads, d->kernels, err);
    }
    if (!rc) {
        rc = gr_grouped_create(&d->grouped, base, err);
    }
    if (!rc) {
        rc = make_context(d, options, err);
    }
    if (rc) {
        gr_decoder_free(d);
        return rc;
    }
    *out = d;
    return 0;
}

void gr_decoder_free(gr_decoder *d) {
    if (!d) {
        return;
    }
    if (d->ctx) {
        llama_free(d->ctx);
    }
    gr_grouped_free(d->grouped);
    gr_hook_free(d->hook);
    gr_row_plan_free(d->plan);
    gr_free(d->token);
    gr_free(d->pos);
    gr_free(d->n_seq);
    gr_free(d->seq);
    gr_free(d->seq_of);
    gr_free(d->output);
    gr_free(d->sets);
    gr_free(d);
}

int gr_decoder_selftest(gr_decoder *d, bool *passed, char text[160], graft_error *err) {
    gr_selftest_result result;
    int rc = gr_selftest(&result, d->base, d->ctx, d->hook, d->grouped, err);
    if (rc == 0) {
        *passed = result.passed;
        memcpy(text, result.text, sizeof result.text);
    }
    return rc;
}

/* ---- one llama_decode --------------------------------------------------------------------------------- */

/* The adapters of a part's row. */
static const gr_adapter_set *set_of(const part *p, int row) {
    const gr_span *span = p->span;
    return span->active ? gr_activation_at(span->active, span->start + p->first + row) : NULL;
}

static bool wants_output(const part *p, int i) {
    return p->first + i >= p->span->n - p->span->n_outputs;
}

static struct llama_batch fill_batch(gr_decoder *d, const part *parts, int n_parts) {
    int rows = 0;
    for (int p = 0; p < n_parts; p++) {
        const gr_span *span = parts[p].span;
        for (int i = 0; i < parts[p].n; i++, rows++) {
            d->token[rows] = span->tokens[parts[p].first + i];
            d->pos[rows] = span->start + parts[p].first + i;
            d->seq[rows] = span->seq;
            d->output[rows] = d->embed || wants_output(&parts[p], i);
            d->sets[rows] = set_of(&parts[p], i);
        }
    }
    if ((uint64_t)rows > d->stats.largest_batch) {
        d->stats.largest_batch = (uint64_t)rows;
    }
    return (struct llama_batch){rows, d->token, NULL, d->pos, d->n_seq, d->seq_of, d->output};
}

static const float *output_row(const gr_decoder *d, int row) {
    return d->embed ? llama_get_embeddings_ith(d->ctx, row) : llama_get_logits_ith(d->ctx, row);
}

/* Hands the outputs of a decode that went through to the sink, contiguous runs at once. */
static void deliver(gr_decoder *d, const part *parts, int n_parts) {
    int row = 0;
    size_t width = (size_t)(d->embed ? gr_decoder_n_embd(d) : d->base->n_vocab);
    for (int p = 0; p < n_parts; p++) {
        int i = 0, n = parts[p].n;
        while (i < n) {
            if (!wants_output(&parts[p], i)) {
                i++;
                continue;
            }
            const float *values = output_row(d, row + i);
            int count = 1;
            if (!values) {
                gr_fail(&parts[p].span->error, GRAFT_E_DECODE_FAILED, "libllama has no outputs of this model");
                break;
            }
            while (i + count < n && output_row(d, row + i + count) == values + (size_t)count * width) {
                count++;
            }
            d->sink(d->sink_user, parts[p].span, parts[p].first + i, count, values);
            i += count;
        }
        row += n;
    }
}

/* Removes what a failed decode may have left in the KV cache. */
static void undo(gr_decoder *d, part *parts, int n_parts) {
    for (int p = 0; p < n_parts; p++) {
        gr_span *span = parts[p].span;
        if (!llama_memory_seq_rm(llama_get_memory(d->ctx), span->seq, span->start + parts[p].first, -1)) {
            gr_fail(&span->error, GRAFT_E_DECODE_FAILED, "this model's memory cannot be taken back by a few tokens");
        }
    }
}

/* Drops the parts whose span has failed; returns how many remain. */
static int drop_failed(part *parts, int n_parts) {
    int kept = 0;
    for (int p = 0; p < n_parts; p++) {
        if (parts[p].span->error.code == 0) {
            parts[kept++] = parts[p];
        }
    }
    return kept;
}

/* ---- repeating what failed ---------------------------------------------------------------------------- */

static void run_rows(gr_decoder *d, part *parts, int n);
static void run_plain(gr_decoder *d, part *parts, int n);
static void run_grouped(gr_decoder *d, part *parts, int n);

typedef void (*runner)(gr_decoder *d, part *parts, int n);

static void run_halves(gr_decoder *d, part *parts, int n, runner run) {
    if (n > 1) {
        run(d, parts, n / 2);
        run(d, parts + n / 2, n - n / 2);
        return;
    }
    part first = {parts->span, parts->first, parts->n / 2};
    part second = {parts->span, parts->first + first.n, parts->n - first.n};
    run(d, &first, 1);
    if (parts->span->error.code == 0) {
        run(d, &second, 1);
    }
}

/* llama_decode said `status`: 1 is too few free cells, which a smaller batch may still find; the rest is repeated
 * sequence by sequence, so that only the culprit fails. */
static void recover(gr_decoder *d, part *parts, int n, int status, runner run) {
    undo(d, parts, n);
    n = drop_failed(parts, n);
    d->stats.retried_steps++;
    if (status == 1 && (n > 1 || (n == 1 && parts->n > 1))) {
        run_halves(d, parts, n, run);
    } else if (n > 1) {
        for (int p = 0; p < n; p++) {
            run(d, &parts[p], 1);
        }
    } else if (n == 1) {
        gr_fail(&parts->span->error, GRAFT_E_DECODE_FAILED, "libllama could not evaluate the sequence (status %d)",
                status);
    }
}

static bool uses(const gr_adapter_set *set, const gr_adapter *a) {
    for (int i = 0; set && i < set->n; i++) {
        if (set->adapters[i] == a) {
            return true;
        }
    }
    return false;
}

/* The hook says that `bad` produced something that is no number: the spans that used it fail, the rest runs again. A span's
 * last row has all adapters of those before it. */
static void recover_without(gr_decoder *d, part *parts, int n, const gr_adapter *bad, const graft_error *why) {
    undo(d, parts, n);
    bool found = false;
    for (int p = 0; p < n; p++) {
        if (uses(set_of(&parts[p], parts[p].n - 1), bad)) {
            parts[p].span->error = *why;
            found = true;
        }
    }
    for (int p = 0; p < n && !found; p++) { /* cannot be; but never loop for ever */
        parts[p].span->error = *why;
    }
    n = drop_failed(parts, n);
    if (n > 0) {
        d->stats.retried_steps++;
        run_rows(d, parts, n);
    }
}

/* ---- the two ways ------------------------------------------------------------------------------------- */

static void fail_all(part *parts, int n, const graft_error *why) {
    for (int p = 0; p < n; p++) {
        parts[p].span->error = *why;
    }
}

static void note_adapters(gr_decoder *d, int n) {
    if ((uint64_t)n > d->stats.most_adapters) {
        d->stats.most_adapters = (uint64_t)n;
    }
}

/* One decode for all parts; the hook adds each row's delta. */
static void run_rows(gr_decoder *d, part *parts, int n) {
    graft_error why = {0};
    const gr_adapter *bad = NULL;
    struct llama_batch batch = fill_batch(d, parts, n);
    gr_row_plan_build(d->plan, d->sets, d->output, batch.n_tokens);
    note_adapters(d, d->plan->n_groups);
    gr_hook_begin(d->hook, d->plan);
    int status = llama_decode(d->ctx, batch);
    int noticed = gr_hook_end(d->hook, &bad, &why);
    if (status != 0) {
        recover(d, parts, n, status, run_rows);
    } else if (noticed == GRAFT_E_NON_FINITE_OUTPUT) {
        recover_without(d, parts, n, bad, &why);
    } else if (noticed != 0) {
        gr_log_line(d->log, GRAFT_LOG_ERROR, "adapters are applied grouped from now on: %s", why.message);
        d->rows_broke = true;
        d->stats.retried_steps++;
        undo(d, parts, n);
        run_grouped(d, parts, drop_failed(parts, n));
    } else {
        deliver(d, parts, n);
    }
}

/* One decode for all parts with whatever adapters the context has selected; the hook stays idle. */
static void run_plain(gr_decoder *d, part *parts, int n) {
    gr_hook_begin(d->hook, NULL);
    int status = llama_decode(d->ctx, fill_batch(d, parts, n));
    gr_hook_end(d->hook, NULL, NULL);
    if (status != 0) {
        recover(d, parts, n, status, run_plain);
    } else {
        deliver(d, parts, n);
    }
}

static bool same_set(const gr_adapter_set *a, const gr_adapter_set *b) {
    int n = a ? a->n : 0;
    if (n != (b ? b->n : 0)) {
        return false;
    }
    for (int i = 0; i < n; i++) {
        if (a->adapters[i] != b->adapters[i] || a->scales[i] != b->scales[i]) {
            return false;
        }
    }
    return true;
}

/* Takes the rows off the part's beginning that have one set. */
static part split_off(part *p) {
    part head = *p;
    int64_t until = p->span->active ? gr_activation_until(p->span->active, p->span->start + p->first) : GR_NEVER;
    int64_t rows = until - (p->span->start + p->first);
    head.n = rows < p->n ? (int)rows : p->n;
    p->first += head.n;
    p->n -= head.n;
    return head;
}

/* Drops the parts of which nothing is left to do; returns how many remain. */
static int drop_done(part *parts, int n) {
    int kept = 0;
    for (int p = 0; p < n; p++) {
        if (parts[p].n > 0) {
            parts[kept++] = parts[p];
        }
    }
    return drop_failed(parts, kept);
}

/* One decode for each set of adapters, in the order of their first rows. Rows of one span whose sets differ take turns, in
 * their order. */
static void run_grouped(gr_decoder *d, part *parts, int n) {
    part group[GR_MAX_SLOTS];
    for (n = drop_done(parts, n); n > 0; n = drop_done(parts, n)) {
        const gr_adapter_set *set = set_of(parts, 0);
        int n_group = 0;
        for (int p = 0; p < n; p++) {
            if (same_set(set, set_of(&parts[p], 0))) {
                group[n_group++] = split_off(&parts[p]);
            }
        }
        graft_error why = {0};
        note_adapters(d, set ? set->n : 0);
        if (gr_grouped_select(d->grouped, d->ctx, set, &why)) {
            fail_all(group, n_group, &why);
        } else {
            run_plain(d, group, n_group);
        }
    }
}

bool gr_decoder_run(gr_decoder *d, gr_span *spans, int n, bool rows, gr_logits_sink sink, void *user) {
    part parts[GR_MAX_SLOTS];
    graft_error why = {0};
    for (int i = 0; i < n; i++) {
        parts[i] = (part){&spans[i], 0, spans[i].n};
        spans[i].error = (graft_error){0};
    }
    d->sink = sink;
    d->sink_user = user;
    d->rows_broke = false;
    d->embed = n > 0 && spans[0].embed;
    llama_set_embeddings(d->ctx, d->embed); /* makes all rows outputs, so it must not stay on */
    if (!rows) {
        run_grouped(d, parts, n);
    } else if (gr_grouped_select(d->grouped, d->ctx, NULL, &why)) {
        fail_all(parts, n, &why);
    } else {
        run_rows(d, parts, n);
    }
    return !d->rows_broke;
}

/* ---- the rest ----------------------------------------------------------------------------------------- */

void gr_decoder_forget_sequence(gr_decoder *d, int seq) {
    llama_memory_seq_rm(llama_get_memory(d->ctx), seq, -1, -1);
}

gr_sharing gr_decoder_sharing(const gr_decoder *d) {
    const struct llama_model *model = d->base->llama;
    if (llama_model_is_recurrent(model) || llama_model_is_hybrid(model)) {
        return GR_SHARE_NOTHING;
    }
    return llama_model_n_swa(model) > 0 ? GR_SHARE_WHOLE : GR_SHARE_ANY;
}

bool gr_decoder_cut(gr_decoder *d, int seq, int n) {
    if (llama_memory_seq_rm(llama_get_memory(d->ctx), seq, n, -1)) {
        return true;
    }
    gr_decoder_forget_sequence(d, seq);
    return false;
}

void gr_decoder_copy(gr_decoder *d, int from, int to, int n) {
    gr_decoder_forget_sequence(d, to);
    llama_memory_seq_cp(llama_get_memory(d->ctx), from, to, 0, n);
}

void gr_decoder_clear(gr_decoder *d) {
    llama_memory_clear(llama_get_memory(d->ctx), true);
    d->stats.retried_steps++;
}

void gr_decoder_forget_adapter(gr_decoder *d, const gr_adapter *a) {
    gr_grouped_forget(d->grouped, d->ctx, a);
}

int gr_decoder_max_outputs(const gr_decoder *d) {
    return d->max_outputs;
}

int gr_decoder_n_embd(const gr_decoder *d) {
    return llama_model_n_embd_out(d->base->llama);
}

uint64_t gr_decoder_twin_bytes(const gr_decoder *d) {
    return gr_grouped_bytes(d->grouped);
}

uint64_t gr_decoder_context_bytes(const gr_decoder *d) {
    return d->context_bytes;
}

const char *gr_decoder_kernels(const gr_decoder *d) {
    return d->kernels->name;
}

gr_decoder_stats gr_decoder_get_stats(const gr_decoder *d) {
    return d->stats;
}
