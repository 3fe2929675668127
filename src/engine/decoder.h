/*
 * Rows in, logits out: owns the libllama context, the hook and the grouped way, and knows nothing of requests. A step
 * is a list of spans; the decoder turns it into one or several llama_decode calls, repeats what failed without the
 * culprit, and says for each span whether it went through. Decode thread only, but for create, free and the getters.
 */
#ifndef GR_DECODER_H
#define GR_DECODER_H

#include "base/log.h"
#include "engine/activation.h"
#include "model/base_model.h"

typedef struct gr_decoder gr_decoder;

typedef struct gr_decoder_options {
    int slots, context, batch, threads; /* all resolved: no zeros */
    graft_kv_type kv_type;
    bool probe_slot; /* one more sequence, of few tokens */
    const gr_log *log;
} gr_decoder_options;

/* Consecutive tokens of one sequence. At most one span per sequence and step. */
typedef struct gr_span {
    int seq;                  /* 0 to slots-1; slots: the probe's */
    llama_pos start;          /* position of the first token */
    const llama_token *tokens;
    int n;
    int n_outputs;            /* the last so many rows give logits */
    bool embed;               /* they give the model's last hidden state instead. All spans of a step alike, and each row
                                 then counts as one with outputs: libllama computes all or none */
    const gr_activation *active; /* adapters, by position; NULL: the base */
    graft_error error;        /* out: code 0, or why the span's rows are not in the KV cache */
    void *user;
} gr_span;

/* `count` rows of logits, or of gr_decoder_n_embd values, contiguous, for the span's rows from `row` on; valid during the
 * call. */
typedef void (*gr_logits_sink)(void *user, gr_span *span, int row, int count, const float *logits);

typedef struct gr_decoder_stats {
    uint64_t largest_batch, most_adapters, retried_steps;
} gr_decoder_stats;

/* Errors: OUT_OF_MEMORY, MODEL_INVALID (libllama refuses a context). *out: gr_decoder_free. */
int gr_decoder_create(gr_decoder **out, gr_base_model *base, const gr_decoder_options *options, graft_error *err);
void gr_decoder_free(gr_decoder *d);

/* Runs the self-test. Returns 0 with its verdict in *passed and one line of text. Errors: DECODE_FAILED,
 * OUT_OF_MEMORY (it could not run). */
int gr_decoder_selftest(gr_decoder *d, bool *passed, char text[160], graft_error *err);

/*
 * Decodes all spans, `rows` says which way. For every span that went through the sink got its outputs in order, before
 * the next llama_decode. A span's error does not touch the others: NON_FINITE_OUTPUT (of an adapter), DECODE_FAILED,
 * OUT_OF_MEMORY, INTERNAL. The spans' rows sum up to at most options.batch, outputs to gr_decoder_max_outputs.
 * Returns false if the row-wise way turned out not to work; the step was then done grouped, as the next ones should be.
 */
bool gr_decoder_run(gr_decoder *d, gr_span *spans, int n, bool rows, gr_logits_sink sink, void *user);

/* Removes a sequence's cells from the KV cache. */
void gr_decoder_forget_sequence(gr_decoder *d, int seq);

/* What another request may take over of a sequence's cells. */
typedef enum gr_sharing {
    GR_SHARE_NOTHING, /* recurrent models: their memory is one state, not a row of cells */
    GR_SHARE_WHOLE,   /* sliding windows: cells that left the window are gone, so a sequence can only be continued at its end */
    GR_SHARE_ANY
} gr_sharing;

gr_sharing gr_decoder_sharing(const gr_decoder *d);
/* Leaves the first n > 0 tokens of a sequence in the cache. False if the model's memory cannot; it is then removed. */
bool gr_decoder_cut(gr_decoder *d, int seq, int n);
/* The sequence `to` begins with the first n tokens of `from`, and has no others; their cells are shared. */
void gr_decoder_copy(gr_decoder *d, int from, int to, int n);
/* Removes all sequences and sets the cache's values to zero, those of free cells too. */
void gr_decoder_clear(gr_decoder *d);
/* Drops libllama's twin of an adapter, if there is one. */
void gr_decoder_forget_adapter(gr_decoder *d, const gr_adapter *a);

/* Rows with logits that one step may have; at least the number of slots. */
int gr_decoder_max_outputs(const gr_decoder *d);
/* Values of a hidden state. */
int gr_decoder_n_embd(const gr_decoder *d);
uint64_t gr_decoder_context_bytes(const gr_decoder *d);
/* Of libllama's twins of adapters. Any thread. */
uint64_t gr_decoder_twin_bytes(const gr_decoder *d);
const char *gr_decoder_kernels(const gr_decoder *d);
gr_decoder_stats gr_decoder_get_stats(const gr_decoder *d);

#endif
