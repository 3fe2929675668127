/*
 * To a GGUF adapter. Both its readers take a pair's scale as alpha / rank, with one alpha for the file; alpha 0 means "no scale"
 * to libllama and a damaged file to graft, so there is always an alpha: the one that leaves most pairs as they are.
 */
#include "export.h"

#include "base/memory.h"
#include "model/convert.h"
#include "model/export_matrix.h"
#include "model/gguf_write.h"
#include "model/row_map.h"

#include <ggml.h>
#include <gguf.h>
#include <llama.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FORM "a GGUF adapter"
enum { RANK_MAX = GR_MAX_RANK };

/* One weight's two matrices: the plan's entries [first, first + n), stacked. */
typedef struct pair {
    size_t first, n;
    int rank;         /* sum over the entries */
    bool uniform;     /* all have one scale */
    bool scaled;      /* B is multiplied with something */
    gr_dtype type_a, type_b;
    int64_t n_in, n_out;
} pair;

typedef struct writer {
    const gr_plan *plan;
    const gr_export_options *options;
    gr_target *target;
    pair *pairs;
    size_t n;
    float alpha;
    struct ggml_context *tensors; /* shapes only */
    gr_progress progress;
} writer;

/* ---- what goes together --------------------------------------------------------------------------------- */

static int check_entry(const gr_plan *plan, const gr_plan_entry *e, graft_error *err) {
    int rc = gr_export_low_rank(e, FORM, err);
    if (rc) {
        return rc;
    }
    if (e->magnitude) {
        return gr_export_refuse(e, "DoRA's magnitude", FORM, err);
    }
    if (e->bias) {
        return gr_export_refuse(e, "a bias of the adapter (lora_bias)", FORM, err);
    }
    /* libllama takes token_embd's pair for the embedding alone. */
    bool embedding = strcmp(plan->base->weights[e->weight].name, "token_embd.weight") == 0;
    if (e->op == GR_OP_PRODUCT && embedding) {
        return gr_export_refuse(e, "an adapter of a head that is tied to the embedding", FORM, err);
    }
    return 0;
}

static gr_dtype wider(gr_dtype a, gr_dtype b) {
    return a == b ? a : GR_DTYPE_F32;
}

static int add_entry(pair *p, const gr_plan *plan, size_t i, graft_error *err) {
    const gr_plan_entry *e = &plan->entries[i], *first = &plan->entries[p->first];
    p->type_a = p->n ? wider(p->type_a, e->a->dtype) : e->a->dtype;
    p->type_b = p->n ? wider(p->type_b, e->b->dtype) : e->b->dtype;
    p->uniform = p->n == 0 || (p->uniform && (float)e->scale == (float)first->scale);
    p->rank += e->rank;
    p->n++;
    return p->rank <= RANK_MAX ? 0 : gr_export_refuse(e, "a rank above 1024 for one weight", FORM, err);
}

static int make_pairs(writer *w, graft_error *err) {
    const gr_plan *plan = w->plan;
    w->pairs = gr_calloc(plan->n, sizeof *w->pairs);
    if (!w->pairs) {
        return gr_fail_memory(err, plan->n * sizeof *w->pairs);
    }
    int rc = 0;
    for (size_t i = 0; i < plan->n && !rc; i++) {
        const gr_plan_entry *e = &plan->entries[i];
        const gr_weight *weight = &plan->base->weights[e->weight];
        rc = check_entry(plan, e, err);
        bool more = i > 0 && e->weight == e[-1].weight && e->op == e[-1].op;
        if (!more) {
            bool rows = e->op == GR_OP_ROWS;
            w->pairs[w->n++] = (pair){.first = i,
                                      .n_in = rows ? weight->n_out : weight->n_in,
                                      .n_out = rows ? weight->n_in : weight->n_out};
        }
        rc = rc ? rc : add_entry(&w->pairs[w->n - 1], plan, i, err);
    }
    return rc;
}

/* ---- alpha ---------------------------------------------------------------------------------------------- */

/* As both readers compute it. */
static float applied(float alpha, int rank) {
    return (float)((double)alpha / rank);
}

/* The alpha that gives this scale at this rank; for some ranks no float32 gives it to the last bit, then the nearest. */
static float alpha_for(double scale, int rank) {
    float want = (float)scale, near = (float)(scale * rank);
    const float tries[] = {near, nextafterf(near, INFINITY), nextafterf(near, -INFINITY)};
    for (size_t i = 0; i < 3; i++) {
        if (applied(tries[i], rank) == want) {
            return tries[i];
        }
    }
    return near;
}

static bool fits(float alpha, const pair *p, double scale) {
    float want = (float)scale, got = applied(alpha, p->rank);
    return p->uniform && (got == want || got == nextafterf(want, INFINITY) || got == nextafterf(want, -INFINITY));
}

static int by_value(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

/* The value that occurs most often among n sorted ones. */
static float most_frequent(const float *x, size_t n) {
    float best = x[0];
    size_t most = 0;
    for (size_t i = 0, run = 0; i < n; i++) {
        run = i > 0 && x[i] == x[i - 1] ? run + 1 : 1;
        if (run > most) {
            most = run;
            best = x[i];
        }
    }
    return best;
}

static int choose_alpha(writer *w, graft_error *err) {
    float *alphas = gr_calloc(w->n, sizeof *alphas);
    if (!alphas) {
        return gr_fail_memory(err, w->n * sizeof *alphas);
    }
    for (size_t i = 0; i < w->n; i++) {
        alphas[i] = alpha_for(w->plan->entries[w->pairs[i].first].scale, w->pairs[i].rank);
    }
    qsort(alphas, w->n, sizeof *alphas, by_value);
    w->alpha = most_frequent(alphas, w->n);
    gr_free(alphas);
    if (!isfinite(w->alpha) || w->alpha == 0) {
        return gr_fail(err, GRAFT_E_BAD_ALPHA, "the scale is too large or too small for a GGUF adapter's alpha");
    }
    for (size_t i = 0; i < w->n; i++) {
        pair *p = &w->pairs[i];
        p->scaled = !fits(w->alpha, p, w->plan->entries[p->first].scale);
        p->type_a = gr_export_dtype(w->options->type, p->type_a);
        p->type_b = gr_export_dtype(w->options->type, p->scaled ? GR_DTYPE_F32 : p->type_b);
    }
    return 0;
}

/* ---- names, shapes, keys -------------------------------------------------------------------------------- */

static enum ggml_type ggml_type_of(gr_dtype t) {
    return t == GR_DTYPE_F32 ? GGML_TYPE_F32 : t == GR_DTYPE_F16 ? GGML_TYPE_F16 : GGML_TYPE_BF16;
}

static bool by_token(const writer *w, const pair *p) {
    return w->plan->entries[p->first].op == GR_OP_ROWS;
}

/* False if the name would be cut. */
static bool add_tensor(writer *w, struct gguf_context *g, const char *weight, const char *suffix, gr_dtype type, int64_t columns,
                       int64_t rows) {
    char name[GGML_MAX_NAME];
    int n = snprintf(name, sizeof name, "%s.%s", weight, suffix);
    struct ggml_tensor *t = ggml_new_tensor_2d(w->tensors, ggml_type_of(type), columns, rows);
    ggml_set_name(t, name);
    gguf_add_tensor(g, t);
    return (size_t)n < sizeof name;
}

/* A of an embedding is stored by token: libllama takes rows of it. */
static int add_tensors(writer *w, struct gguf_context *g, graft_error *err) {
    for (size_t i = 0; i < w->n; i++) {
        const pair *p = &w->pairs[i];
        const char *name = w->plan->base->weights[w->plan->entries[p->first].weight].name;
        bool rows = by_token(w, p);
        if (!add_tensor(w, g, name, "lora_a", p->type_a, rows ? p->rank : p->n_in, rows ? p->n_in : p->rank) ||
            !add_tensor(w, g, name, "lora_b", p->type_b, p->rank, p->n_out)) {
            return gr_fail(err, GRAFT_E_UNSUPPORTED_TARGET, "%s: the name is too long for a GGUF adapter", name);
        }
    }
    return 0;
}

/* "ORG/NAME" of Hugging Face's, as configs have it; anything else is a path of the machine that trained. */
static bool is_repository(const char *s) {
    static const char allowed[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-";
    size_t org = strspn(s, allowed);
    size_t name = s[org] == '/' ? strspn(s + org + 1, allowed) : 0;
    return org > 0 && name > 0 && s[0] != '.' && s[org + 1 + name] == '\0' && strlen(s) < 200;
}

static void set_base(struct gguf_context *g, const char *repository) {
    char organization[200], url[256];
    if (!repository || !is_repository(repository)) {
        return;
    }
    const char *slash = strchr(repository, '/');
    snprintf(organization, sizeof organization, "%.*s", (int)(slash - repository), repository);
    snprintf(url, sizeof url, "https://huggingface.co/%s", repository);
    gguf_set_val_u32(g, "general.base_model.count", 1);
    gguf_set_val_str(g, "general.base_model.0.name", slash + 1);
    gguf_set_val_str(g, "general.base_model.0.organization", organization);
    gguf_set_val_str(g, "general.base_model.0.repo_url", url);
}

/* The last part of the source's path, if it can stand in a key. */
static void set_name(struct gguf_context *g, const char *path) {
    char name[128];
    size_t n;
    const char *last = gr_path_last(path, &n);
    snprintf(name, sizeof name, "%.*s", (int)n, last);
    for (const char *p = name; *p; p++) {
        if ((unsigned char)*p < 0x20 || (unsigned char)*p >= 0x7f) {
            return;
        }
    }
    gguf_set_val_str(g, "general.name", name);
}

static void set_file_type(const writer *w, struct gguf_context *g) {
    gr_dtype type = w->pairs[0].type_a;
    for (size_t i = 0; i < w->n; i++) {
        type = wider(wider(type, w->pairs[i].type_a), w->pairs[i].type_b);
    }
    gguf_set_val_u32(g, "general.file_type", type == GR_DTYPE_F32   ? LLAMA_FTYPE_ALL_F32
                                             : type == GR_DTYPE_F16 ? LLAMA_FTYPE_MOSTLY_F16
                                                                    : LLAMA_FTYPE_MOSTLY_BF16);
}

static int set_keys(const writer *w, struct gguf_context *g, graft_error *err) {
    const gr_source *source = w->plan->source;
    char generation[65];
    int rc = gr_source_generation(source, generation, err);
    if (rc) {
        return rc;
    }
    gguf_set_val_str(g, "general.type", "adapter");
    gguf_set_val_str(g, "general.architecture", w->plan->base->architecture);
    gguf_set_val_str(g, "adapter.type", "lora");
    gguf_set_val_f32(g, "adapter.lora.alpha", w->alpha);
    if (w->plan->invocation) {
        gguf_set_arr_data(g, "adapter.alora.invocation_tokens", GGUF_TYPE_UINT32, w->plan->invocation, w->plan->n_invocation);
    }
    set_name(g, source->path);
    set_base(g, source->format == GR_SOURCE_PEFT ? source->config.base_model : NULL);
    set_file_type(w, g);
    gguf_set_val_str(g, "graft.version", GRAFT_VERSION);
    gguf_set_val_str(g, "graft.source.generation", generation);
    return 0;
}

/* ---- writing -------------------------------------------------------------------------------------------- */

/* The entries' A one below the other; for an embedding, the columns of A one after the other. */
static int stack_a(writer *w, const pair *p, float *out, graft_error *err) {
    size_t n_in = (size_t)p->n_in, rank = (size_t)p->rank, at = 0;
    bool rows = by_token(w, p);
    for (size_t i = 0; i < p->n; i++) {
        const gr_plan_entry *e = &w->plan->entries[p->first + i];
        float *a = NULL;
        int rc = gr_export_read(&a, w->plan->source, e->a, gr_export_transposed(w->plan, e, e->a), err);
        if (rc) {
            return rc;
        }
        for (size_t k = 0; k < (size_t)e->rank; k++) {
            for (size_t c = 0; rows && c < n_in; c++) {
                out[c * rank + at + k] = a[k * n_in + c];
            }
        }
        if (!rows) {
            memcpy(out + at * n_in, a, (size_t)e->rank * n_in * sizeof *a);
        }
        at += (size_t)e->rank;
        gr_free(a);
    }
    return 0;
}

/* Each entry's rows of B in its own columns and its own rows; the rest stays 0. */
static int stack_b(writer *w, const pair *p, float *out, graft_error *err) {
    size_t rank = (size_t)p->rank, at = 0;
    for (size_t i = 0; i < p->n; i++) {
        const gr_plan_entry *e = &w->plan->entries[p->first + i];
        size_t own = (size_t)e->rank, n = (size_t)e->n_rows;
        float factor = p->scaled ? (float)(e->scale * p->rank / (double)w->alpha) : 1.0f;
        float *b = NULL;
        int rc = gr_export_read(&b, w->plan->source, e->b, gr_export_transposed(w->plan, e, e->b), err);
        if (rc) {
            return rc;
        }
        for (size_t r = 0; r < n; r++) {
            const float *from = b + ((size_t)e->first_in_file + gr_row_map_from(e->rows, n, r)) * own;
            float *to = out + ((size_t)e->first + r) * rank + at;
            for (size_t k = 0; k < own; k++) {
                to[k] = factor * from[k];
            }
        }
        at += own;
        gr_free(b);
    }
    return 0;
}

static int write_matrix(writer *w, const pair *p, bool is_b, graft_error *err) {
    size_t n = (size_t)p->rank * (size_t)(is_b ? p->n_out : p->n_in);
    gr_dtype type = is_b ? p->type_b : p->type_a;
    const char *name = w->plan->entries[p->first].module;
    float *x = gr_calloc(n, sizeof *x);
    if (!x) {
        return gr_fail_memory(err, n * sizeof *x);
    }
    int rc = is_b ? stack_b(w, p, x, err) : stack_a(w, p, x, err);
    if (!rc && gr_f32_largest(x, n) >= GR_F32_INFINITY) {
        rc = gr_fail(err, GRAFT_E_OUT_OF_RANGE, "%s: its scale takes B beyond float32", name);
    }
    rc = rc ? rc : gr_export_write(w->target, x, n, type, name, err);
    rc = rc ? rc : gr_target_pad(w->target, GGUF_DEFAULT_ALIGNMENT, err);
    gr_free(x);
    return rc ? rc : gr_export_step(&w->progress, n, err);
}

static uint64_t data_bytes(const writer *w) {
    uint64_t bytes = 0;
    for (size_t i = 0; i < w->n; i++) {
        const pair *p = &w->pairs[i];
        bytes += (uint64_t)p->rank * ((uint64_t)p->n_in * gr_dtype_size(p->type_a) + (uint64_t)p->n_out * gr_dtype_size(p->type_b)) +
                 2 * GGUF_DEFAULT_ALIGNMENT;
    }
    return bytes;
}

static uint64_t elements(const writer *w) {
    uint64_t n = 0;
    for (size_t i = 0; i < w->n; i++) {
        n += (uint64_t)w->pairs[i].rank * (uint64_t)(w->pairs[i].n_in + w->pairs[i].n_out);
    }
    return n;
}

static int write_all(writer *w, struct gguf_context *g, graft_error *err) {
    int rc = set_keys(w, g, err);
    rc = rc ? rc : add_tensors(w, g, err);
    rc = rc ? rc : gr_target_room(w->target, gguf_get_meta_size(g) + data_bytes(w), err);
    rc = rc ? rc : gr_gguf_write_header(w->target, g, err);
    w->progress = gr_export_progress(w->options, elements(w));
    for (size_t i = 0; i < w->n && !rc; i++) {
        rc = write_matrix(w, &w->pairs[i], false, err);
        rc = rc ? rc : write_matrix(w, &w->pairs[i], true, err);
    }
    return rc;
}

int gr_export_gguf(const gr_plan *plan, gr_target *target, const gr_export_options *options, graft_error *err) {
    writer w = {.plan = plan, .options = options, .target = target};
    struct gguf_context *g = NULL;
    int rc = make_pairs(&w, err);
    rc = rc ? rc : choose_alpha(&w, err);
    if (!rc) {
        size_t size = (2 * w.n + 1) * ggml_tensor_overhead();
        w.tensors = ggml_init((struct ggml_init_params){.mem_size = size, .no_alloc = true});
        g = gguf_init_empty();
        rc = w.tensors && g ? write_all(&w, g, err) : gr_fail_memory(err, size);
    }
    gguf_free(g);
    ggml_free(w.tensors);
    gr_free(w.pairs);
    return rc;
}
