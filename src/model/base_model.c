/* Opening a base model: our own look at the GGUF first (clear errors, table of weights), then libllama's. */
#include "base_model.h"

#include "base/memory.h"
#include "format/gguf_lora.h"
#include "model/llama_log.h"
#include "model/sha256.h"

#include <fcntl.h>
#include <gguf.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_PARTS = 9999, MAX_SIDE = 1 << 30 };

/* What the GGUF says about one tensor of any shape, before the table of weights is made of it. */
typedef struct shape {
    char name[GGML_MAX_NAME];
    int64_t ne[GGML_MAX_DIMS];
    int type, part;
    uint64_t offset;
} shape;

_Static_assert(GGML_MAX_NAME <= sizeof((gr_weight){0}.name), "every tensor name fits");

typedef struct shapes {
    shape *list;
    size_t n;
} shapes;

/* ---- the file, before libllama sees it ------------------------------------------------------------------ */

/* What a file without GGUF's magic is, so that the error helps. */
static const char *other_kind(const uint8_t *first, size_t n) {
    static const char lfs[] = "version https:/";
    if (n >= sizeof lfs - 1 && memcmp(first, lfs, sizeof lfs - 1) == 0) {
        return "is a Git LFS pointer, not the model itself: run `git lfs pull`";
    }
    if (n > 8 && first[8] == '{') {
        return "looks like a safetensors file; the base model must be a GGUF file";
    }
    if (n >= 2 && (memcmp(first, "PK", 2) == 0 || first[0] == 0x80)) {
        return "looks like pickled weights; the base model must be a GGUF file";
    }
    return "is not a GGUF file";
}

/* Opens what has a GGUF's magic. */
static int open_file(gr_file *f, const char *path, graft_error *err) {
    graft_error why;
    int rc = gr_file_open(f, AT_FDCWD, path, &why);
    if (rc) {
        int code = rc == GRAFT_E_ADAPTER_FILE_MISSING ? GRAFT_E_MODEL_MISSING
                   : rc == GRAFT_E_OUT_OF_MEMORY ? rc
                   : GRAFT_E_MODEL_INVALID;
        return gr_fail(err, code, "%s", why.message);
    }
    uint8_t first[16] = {0};
    size_t n = f->size < sizeof first ? (size_t)f->size : sizeof first;
    rc = gr_file_read(f, first, n, 0, &why);
    if (rc) {
        rc = gr_fail(err, GRAFT_E_MODEL_INVALID, "%s", why.message);
    } else if (!gr_gguf_is(first, n)) {
        rc = gr_fail(err, GRAFT_E_MODEL_INVALID, "%s: %s", f->name, n == 0 ? "is empty" : other_kind(first, n));
    }
    if (rc) {
        gr_file_close(f);
    }
    return rc;
}

/* The next part. */
static int add_part(gr_base_model *m, const char *path, graft_error *err) {
    gr_file *grown = gr_realloc(m->parts, (size_t)(m->n_parts + 1) * sizeof *grown);
    if (!grown) {
        return gr_fail_memory(err, (size_t)(m->n_parts + 1) * sizeof *grown);
    }
    m->parts = grown;
    int rc = open_file(&m->parts[m->n_parts], path, err);
    m->n_parts += rc == 0;
    return rc;
}

/* ---- keys ----------------------------------------------------------------------------------------------- */
/* gguf_get_val_* abort on a wrong type, so each key's type is looked at first. */

static const char *key_string(const struct gguf_context *g, const char *key) {
    int64_t id = gguf_find_key(g, key);
    return id >= 0 && gguf_get_kv_type(g, id) == GGUF_TYPE_STRING ? gguf_get_val_str(g, id) : NULL;
}

static int clamp_int(uint64_t v) {
    return v > INT_MAX ? INT_MAX : (int)v;
}

/* An integer of any of the types that converters use; of a list by layers (head_count of some) the first. */
static int key_int(const struct gguf_context *g, const char *key, int otherwise) {
    int64_t id = gguf_find_key(g, key);
    if (id < 0) {
        return otherwise;
    }
    enum gguf_type type = gguf_get_kv_type(g, id);
    if (type == GGUF_TYPE_ARRAY) {
        type = gguf_get_arr_type(g, id);
        if ((type != GGUF_TYPE_UINT32 && type != GGUF_TYPE_INT32) || gguf_get_arr_n(g, id) == 0) {
            return otherwise;
        }
        uint32_t v;
        memcpy(&v, gguf_get_arr_data(g, id), sizeof v);
        return clamp_int(v);
    }
    switch (type) {
    case GGUF_TYPE_UINT16: return gguf_get_val_u16(g, id);
    case GGUF_TYPE_UINT32: return clamp_int(gguf_get_val_u32(g, id));
    case GGUF_TYPE_INT32: return gguf_get_val_i32(g, id);
    case GGUF_TYPE_UINT64: return clamp_int(gguf_get_val_u64(g, id));
    default: return otherwise;
    }
}

/* "llama.block_count" for "block_count". Never negative. */
static int arch_int(const gr_base_model *m, const struct gguf_context *g, const char *key, int otherwise) {
    char full[128];
    snprintf(full, sizeof full, "%s.%s", m->architecture, key);
    int v = key_int(g, full, otherwise);
    return v < 0 ? 0 : v;
}

/* ---- the GGUF's table of tensors ------------------------------------------------------------------------ */

static int invalid(const gr_base_model *m, const char *why, graft_error *err) {
    const char *slash = strrchr(m->path, '/');
    const char *last = slash ? slash + 1 : m->path;
    char quoted[GR_QUOTE_SIZE];
    return gr_fail(err, GRAFT_E_MODEL_INVALID, "%s: %s", gr_quote(quoted, last, strlen(last)), why);
}

/* The tensors of one file: `part` says which. */
static int add_tensors(shapes *s, const struct gguf_context *g, struct ggml_context *tensors, int part, graft_error *err) {
    int64_t n = gguf_get_n_tensors(g);
    shape *grown = gr_realloc(s->list, (s->n + (size_t)n) * sizeof *grown);
    if (!grown) {
        return gr_fail_memory(err, (s->n + (size_t)n) * sizeof *grown);
    }
    s->list = grown;
    struct ggml_tensor *t = ggml_get_first_tensor(tensors);
    for (; t && n > 0; t = ggml_get_next_tensor(tensors, t), n--) {
        shape *out = &s->list[s->n++];
        memset(out, 0, sizeof *out);
        snprintf(out->name, sizeof out->name, "%s", ggml_get_name(t));
        memcpy(out->ne, t->ne, sizeof out->ne);
        int64_t id = gguf_find_tensor(g, ggml_get_name(t));
        out->type = t->type;
        out->part = part;
        out->offset = id < 0 ? 0 : gguf_get_data_offset(g) + gguf_get_tensor_offset(g, id);
    }
    return 0;
}

/* Architecture and figures, from the first part. */
static int read_keys(gr_base_model *m, const struct gguf_context *g, graft_error *err) {
    if (key_int(g, "split.no", 0) != 0) {
        return invalid(m, "is a later part of a split model; give the first", err);
    }
    const char *type = key_string(g, "general.type");
    if (type && strcmp(type, "model") != 0) {
        char quoted[GR_QUOTE_SIZE], why[GR_QUOTE_SIZE + 64];
        snprintf(why, sizeof why, "is a GGUF of type \"%s\", not a model", gr_quote(quoted, type, strlen(type)));
        return invalid(m, why, err);
    }
    const char *arch = key_string(g, "general.architecture");
    if (!arch || !*arch || strlen(arch) >= sizeof m->architecture) {
        return invalid(m, "general.architecture is missing or no usable string", err);
    }
    snprintf(m->architecture, sizeof m->architecture, "%s", arch);
    m->arch = gr_arch_find(m->architecture);
    m->n_layer = arch_int(m, g, "block_count", 0);
    m->n_head = arch_int(m, g, "attention.head_count", 0);
    m->n_head_kv = arch_int(m, g, "attention.head_count_kv", m->n_head);
    m->n_embd = arch_int(m, g, "embedding_length", 0);
    m->n_ctx_train = arch_int(m, g, "context_length", 0);
    return 0;
}

/* Adds the tensors of file number `part`; with `n_parts` (the first part) reads the keys as well. */
static int read_part(gr_base_model *m, shapes *s, const char *path, int part, int *n_parts, graft_error *err) {
    struct ggml_context *tensors = NULL;
    struct gguf_context *g = gguf_init_from_file(path, (struct gguf_init_params){.no_alloc = true, .ctx = &tensors});
    if (!g) {
        const char *why = gr_llama_log_error();
        return invalid(m, *why ? why : "libllama cannot read it", err);
    }
    int rc = 0;
    if (n_parts) {
        rc = read_keys(m, g, err);
        *n_parts = key_int(g, "split.count", 1);
    }
    if (!rc) {
        rc = add_tensors(s, g, tensors, part, err);
    }
    ggml_free(tensors);
    gguf_free(g);
    return rc;
}

static int read_all_parts(gr_base_model *m, shapes *s, graft_error *err) {
    int n_parts = 1;
    int rc = read_part(m, s, m->path, 0, &n_parts, err);
    if (rc || n_parts <= 1) {
        return rc;
    }
    char prefix[4096], part[4096];
    if (n_parts > MAX_PARTS || !llama_split_prefix(prefix, sizeof prefix, m->path, 0, n_parts)) {
        return invalid(m, "is split, but its name does not end in -00001-of-NNNNN.gguf with the right number", err);
    }
    for (int i = 1; i < n_parts; i++) {
        if (!llama_split_path(part, sizeof part, prefix, i, n_parts)) {
            return invalid(m, "its path is too long", err);
        }
        if ((rc = add_part(m, part, err)) != 0 || (rc = read_part(m, s, part, i, NULL, err)) != 0) {
            return rc;
        }
    }
    return 0;
}

static int by_name(const void *a, const void *b) {
    return strcmp(((const shape *)a)->name, ((const shape *)b)->name);
}

/* Names and sizes only: the same fingerprint for every quantisation and fine-tune of one model. */
static int take_fingerprint(gr_base_model *m, const shapes *s, graft_error *err) {
    gr_sha256 h;
    gr_sha256_init(&h);
    gr_sha256_add(&h, m->architecture, strlen(m->architecture) + 1);
    for (size_t i = 0; i < s->n; i++) {
        char text[GGML_MAX_NAME + 4 * 24];
        const shape *t = &s->list[i];
        int n = snprintf(text, sizeof text, "%s %lld %lld %lld %lld\n", t->name, (long long)t->ne[0],
                         (long long)t->ne[1], (long long)t->ne[2], (long long)t->ne[3]);
        gr_sha256_add(&h, text, (size_t)n);
    }
    int rc = gr_sha256_result(&h, m->fingerprint, err);
    gr_sha256_finish(&h);
    return rc;
}

/* N of "blk.N.…", or -1. */
static int layer_of(const char *name) {
    int layer = -1, end = 0;
    return sscanf(name, "blk.%5d.%n", &layer, &end) == 1 && end > 0 ? layer : -1;
}

/* A matrix product has a 2-D weight; norms and biases are vectors. Stacks of expert matrices are left out. Sizes beyond
 * MAX_SIDE exist nowhere; the limit lets the rest of graft count in int. */
static bool is_known(const shape *t) {
    return t->ne[0] > 1 && t->ne[0] <= MAX_SIDE && t->ne[1] >= 1 && t->ne[1] <= MAX_SIDE && t->ne[2] == 1 && t->ne[3] == 1;
}

static int make_table(gr_base_model *m, const shapes *s, graft_error *err) {
    size_t n = 0;
    for (size_t i = 0; i < s->n; i++) {
        n += is_known(&s->list[i]);
    }
    m->weights = gr_calloc(n, sizeof *m->weights);
    if (!m->weights) {
        return gr_fail_memory(err, n * sizeof *m->weights);
    }
    for (size_t i = 0; i < s->n; i++) {
        const shape *t = &s->list[i];
        if (is_known(t)) {
            gr_weight *w = &m->weights[m->n_weights++];
            memcpy(w->name, t->name, sizeof t->name);
            w->vector = t->ne[1] == 1;
            w->n_in = w->vector ? 1 : t->ne[0];
            w->n_out = w->vector ? t->ne[0] : t->ne[1];
            w->layer = layer_of(t->name);
            w->type = t->type;
            w->part = t->part;
            w->offset = t->offset;
        }
    }
    return 0;
}

static int describe(gr_base_model *m, graft_error *err) {
    shapes s = {NULL, 0};
    int rc = read_all_parts(m, &s, err);
    if (!rc) {
        qsort(s.list, s.n, sizeof *s.list, by_name);
        rc = take_fingerprint(m, &s, err);
    }
    if (!rc) {
        rc = make_table(m, &s, err);
    }
    gr_free(s.list);
    return rc;
}

/* ---- libllama ------------------------------------------------------------------------------------------- */

typedef struct watcher {
    const gr_base_options *options;
    bool cancelled;
} watcher;

static bool on_progress(float fraction, void *user) {
    watcher *w = user;
    if (w->options->progress && !w->options->progress(fraction, w->options->progress_user)) {
        w->cancelled = true;
    }
    return !w->cancelled;
}

static int load(gr_base_model *m, const gr_base_options *options, graft_error *err) {
    /* An empty list instead of NULL: with NULL libllama takes every GPU it finds, and even with no layer on them
     * contexts would get their backends, whose buffers the host cannot write. */
    static ggml_backend_dev_t no_devices[1] = {NULL};
    watcher w = {.options = options};
    struct llama_model_params params = llama_model_default_params();
    params.n_gpu_layers = options->gpu ? -1 : 0;
    params.devices = options->gpu ? NULL : no_devices;
    params.vocab_only = options->vocab_only;
    params.progress_callback = on_progress;
    params.progress_callback_user_data = &w;
    m->llama = llama_model_load_from_file(m->path, params);
    if (!m->llama) {
        if (w.cancelled) {
            return gr_fail(err, GRAFT_E_CANCELLED, "opening the model was cancelled");
        }
        const char *why = gr_llama_log_error();
        return invalid(m, *why ? why : "libllama cannot open it and does not say why", err);
    }
    m->vocab = llama_model_get_vocab(m->llama);
    m->n_vocab = llama_vocab_n_tokens(m->vocab);
    m->weight_bytes = llama_model_size(m->llama);
    m->offloaded = options->gpu && llama_supports_gpu_offload();
    llama_model_desc(m->llama, m->description, sizeof m->description);
    return 0;
}

int gr_base_model_open(gr_base_model **out, const char *path, const gr_base_options *options, graft_error *err) {
    gr_llama_init();
    gr_base_model *m = gr_zalloc(sizeof *m);
    if (!m) {
        return gr_fail_memory(err, sizeof *m);
    }
    int rc = add_part(m, path, err);
    if (rc) {
        gr_free(m->parts);
        gr_free(m);
        return rc;
    }
    gr_llama_log_claim(m, options->log);
    gr_llama_log_reset();
    m->path = gr_strdup(path);
    if (!m->path) {
        rc = gr_fail_memory(err, strlen(path) + 1);
    } else if ((rc = describe(m, err)) == 0) {
        rc = load(m, options, err);
    }
    if (rc) {
        gr_base_model_close(m);
        return rc;
    }
    *out = m;
    return 0;
}

void gr_base_model_close(gr_base_model *m) {
    if (m) {
        llama_model_free(m->llama);
        gr_llama_log_release(m);
        for (int i = 0; i < m->n_parts; i++) {
            gr_file_close(&m->parts[i]);
        }
        gr_free(m->parts);
        gr_free(m->weights);
        gr_free(m->path);
        gr_free(m);
    }
}

int gr_base_model_weight(const gr_base_model *m, const char *name) {
    size_t low = 0, high = m->n_weights;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        int order = strcmp(name, m->weights[middle].name);
        if (order == 0) {
            return (int)middle;
        }
        if (order < 0) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    return -1;
}
