/* A job in a slot: how far its tokens have come, what it generates, and when it ends. Decode thread only. */
#ifndef GR_SEQUENCE_H
#define GR_SEQUENCE_H

#include "engine/activation.h"
#include "engine/decoder.h"
#include "engine/job.h"
#include "engine/scheduler.h"

typedef enum gr_verdict { GR_NO_LOGITS, GR_LOGITS_GOOD, GR_LOGITS_BAD } gr_verdict;

/*
 *   tokens:   | prompt ......................... | generated ... | last drawn |
 *             0        n_past                    spec.n_tokens              n_known
 * What lies before n_past is in the KV cache. Usually n_past is somewhere in the prompt, or n_known - 1; after the
 * cache was cleared it is 0 again, and everything known is computed anew.
 */
typedef struct gr_sequence {
    graft_job *job;      /* NULL = the slot is free */
    int slot;            /* libllama's sequence id */
    llama_token *tokens; /* [context], the slot's */
    int n_known, n_past;
    gr_activation active; /* the job's adapters */
    int n_scored;        /* SCORE, EMBED: tokens whose outputs were taken */
    uint64_t age, served;
    gr_verdict verdict;  /* on this step's logits */
    bool shares;         /* others may go on from its cells; the engine's */
    bool suspect;        /* had bad logits, by its own fault or by another's; the engine's */
    bool ended;
    gr_ending ending;
} gr_sequence;

/* What sampling needs besides the sequence. */
typedef struct gr_draw {
    const gr_vocab *vocab;
    llama_token_data *scratch; /* [n_tokens] */
    gr_buffer piece;
    gr_buffer shown;           /* texts of the tokens that on_token gets: has room for all, so that pointers into it stay */
    int context;               /* tokens per sequence */
    int n_embd;                /* values of a hidden state */
} gr_draw;

/* The first n_cached tokens of the prompt are in the cache: not all of it. */
void gr_sequence_start(gr_sequence *s, graft_job *job, int n_cached);
/* Whether all that is left to compute is the token drawn last. */
bool gr_sequence_generates(const gr_sequence *s);
gr_sched_item gr_sequence_item(const gr_sequence *s);
/* The next `rows` rows as a span. */
gr_span gr_sequence_span(gr_sequence *s, int rows);
/* Logits (EMBED: hidden states) for the span's rows [row, row + count): draws a token, scores or adds up. May end the
 * sequence. Logits that are not finite are bad, and nothing happens but that the verdict says so. */
void gr_sequence_logits(gr_sequence *s, gr_draw *draw, int row, int count, const float *logits);

void gr_sequence_end(gr_sequence *s, graft_finish finish, const graft_error *error);
void gr_sequence_cancel(gr_sequence *s);
/* A suspect that ran alone and is guilty. */
void gr_sequence_convict(gr_sequence *s);

#endif
