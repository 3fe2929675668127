/*
 * The base model: opened through libllama, plus what verification needs to know about its weights, read from
 * the GGUF itself (libllama does not tell shapes).
 */
#ifndef GR_BASE_MODEL_H
#define GR_BASE_MODEL_H

#include "base/error.h"
#include "base/file.h"
#include "base/log.h"
#include "format/module_names.h"

#include <llama.h>
#include <stdint.h>

/* A 2-D weight of the base, or a vector (a bias, a norm's factors). Its index in the table is the weight's id everywhere
 * in graft. */
typedef struct gr_weight {
    char name[64];       /* GGUF's tensor name */
    int64_t n_in, n_out; /* y[n_out] = W x[n_in]; an embedding has n_out tokens of n_in numbers. A vector has n_in = 1 */
    int layer;           /* N of "blk.N."; -1 outside of layers */
    bool vector;
    int type;            /* enum ggml_type */
    int part;            /* which file of a split model, from 0 */
    uint64_t offset;     /* of its bytes in that file */
} gr_weight;

typedef struct gr_base_model {
    struct llama_model *llama;
    const struct llama_vocab *vocab;
    char *path;
    char architecture[64];
    char description[128];
    const gr_arch *arch;      /* NULL: no adapters on this architecture */
    gr_weight *weights;       /* sorted by name */
    size_t n_weights;
    int n_layer, n_head, n_head_kv, n_vocab, n_embd, n_ctx_train;
    uint64_t weight_bytes;    /* libllama's figure */
    uint8_t fingerprint[32];  /* SHA-256 over architecture, shapes and names of all tensors: same family and size */
    bool offloaded;           /* some layers may live on a GPU */
    gr_file *parts;           /* its files, open for base_weights.h: the ones that the table of weights is of */
    int n_parts;
} gr_base_model;

typedef struct gr_base_options {
    bool gpu;
    bool vocab_only;
    graft_progress_fn progress;
    void *progress_user;
    const gr_log *log;        /* copied; gets libllama's lines until the model closes or another opens (llama_log.h) */
} gr_base_options;

/*
 * Opens the GGUF (split files by their first part). Without `gpu` nothing of it comes near a GPU. The first call
 * initialises libllama. Errors: MODEL_MISSING, MODEL_INVALID (with libllama's first error line, which says most),
 * CANCELLED, OUT_OF_MEMORY. *out: gr_base_model_close.
 */
int gr_base_model_open(gr_base_model **out, const char *path, const gr_base_options *options, graft_error *err);
void gr_base_model_close(gr_base_model *m);

/* The weight's id, or -1. */
int gr_base_model_weight(const gr_base_model *m, const char *name);

#endif
