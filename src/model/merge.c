/* Which weights the new model has and what happens to each, its keys, and that libllama takes it. */
#include "merge.h"

#include "base/memory.h"
#include "model/gguf_write.h"
#include "model/llama_log.h"
#include "model/merge_tensor.h"

#include <fcntl.h>
#include <gguf.h>
#include <stdio.h>
#include <string.h>

#define EMBEDDING "token_embd.weight"
#define HEAD "output.weight"

/* One file of the base. */
typedef struct part {
    gr_file file;
    struct gguf_context *keys;
    struct ggml_context *tensors;
} part;

typedef struct merger {
    const gr_base_model *base;
    const gr_merge_use *uses;
    size_t n_uses;
    const gr_merge_options *options;
    part *parts;
    int n_parts;
    gr_merge_tensor *list;       /* of the new model, in its order */
    size_t n;
    gr_merge_change *changes;    /* what list[].changes point into: of each kind of use at most one */
    size_t n_changes;
    struct gguf_context *out;
    struct ggml_context *shapes; /* of the new tensors */
} merger;

/* ---- the base's files ----------------------------------------------------------------------------------- */

static int open_part(part *p, const char *path, graft_error *err) {
    int rc = gr_file_open(&p->file, AT_FDCWD, path, err);
    if (rc) {
        return rc;
    }
    gr_llama_log_reset();
    p->keys = gguf_init_from_file(path, (struct gguf_init_params){.no_alloc = true, .ctx = &p->tensors});
    if (!p->keys) {
        return gr_fail(err, GRAFT_E_MODEL_INVALID, "%s: %s", p->file.name, gr_llama_log_error());
    }
    return 0;
}

static int count_parts(const gr_base_model *base) {
    int n = 0;
    for (size_t i = 0; i < base->n_weights; i++) {
        n = base->weights[i].part > n ? base->weights[i].part : n;
    }
    return n + 1;
}

static int open_parts(merger *m, graft_error *err) {
    char prefix[4096], path[4096];
    int n = count_parts(m->base);
    m->parts = gr_calloc((size_t)n, sizeof *m->parts);
    if (!m->parts) {
        return gr_fail_memory(err, (size_t)n * sizeof *m->parts);
    }
    for (int i = 0; i < n; i++) {
        m->parts[i].file.fd = -1;
    }
    m->n_parts = n;
    if (n == 1) {
        return open_part(&m->parts[0], m->base->path, err);
    }
    if (!llama_split_prefix(prefix, sizeof prefix, m->base->path, 0, n)) {
        return gr_fail(err, GRAFT_E_MODEL_INVALID, "the split model's name does not end in -00001-of-%05d.gguf", n);
    }
    int rc = 0;
    for (int i = 0; i < n && !rc; i++) {
        rc = llama_split_path(path, sizeof path, prefix, i, n) ? open_part(&m->parts[i], path, err)
                                                               : gr_fail(err, GRAFT_E_MODEL_INVALID, "a part's path is too long");
    }
    return rc;
}

static bool is_part(const merger *m, const char *path) {
    for (int i = 0; i < m->n_parts; i++) {
        if (gr_target_is_file(path, m->parts[i].file.device, m->parts[i].file.inode)) {
            return true;
        }
    }
    return false;
}

/* ---- what changes what ---------------------------------------------------------------------------------- */

static int refuse(const merger *m, const gr_merge_use *use, int weight, const char *why, graft_error *err) {
    char q[GR_QUOTE_SIZE];
    return gr_fail(err, GRAFT_E_UNSUPPORTED_ADAPTER, "%s: %s: %s", gr_quote(q, use->name, strlen(use->name)),
                   m->base->weights[weight].name, why);
}

static bool is_shift_of(const merger *m, const gr_module *module, const char *name) {
    const char *weight = m->base->weights[module->weight].name;
    size_t n = strlen(weight), suffix = strlen(".weight");
    return module->kind == GR_LOW_RANK && module->shift && n > suffix && strlen(name) == n - suffix + strlen(".bias") &&
           memcmp(name, weight, n - suffix) == 0 && strcmp(name + n - suffix, ".bias") == 0;
}

/* Whether the module changes the tensor `name`, which is the base's weight `id` in the operations that `ops` has bits of. */
static bool concerns(const merger *m, const gr_module *module, int id, unsigned ops, const char *name) {
    if (module->weight == id && module->kind == GR_LOW_RANK && module->zero && !module->gain.magnitude) {
        return false; /* an untouched weight is copied byte for byte */
    }
    return (module->weight == id && (ops & 1u << module->op)) || is_shift_of(m, module, name);
}

/* As lora/combine.h has it: a row can have one such change. */
static bool replaces_or_scales(const gr_module *module) {
    return module->kind == GR_LOW_RANK ? module->gain.magnitude != NULL : module->kind != GR_BIAS;
}

/* Puts what changes list[i] behind the other changes. */
static int collect(merger *m, gr_merge_tensor *t, int id, unsigned ops, graft_error *err) {
    size_t first = m->n_changes;
    const gr_merge_use *other = NULL; /* an adapter may have several on one weight, on rows of their own */
    for (size_t u = 0; u < m->n_uses; u++) {
        const gr_merge_use *use = &m->uses[u];
        for (size_t k = 0; k < use->adapter->n_modules && use->factor != 0; k++) {
            const gr_module *module = &use->adapter->modules[k];
            if (!concerns(m, module, id, ops, t->name)) {
                continue;
            }
            bool alone = replaces_or_scales(module) && module->weight == id;
            if (alone && other && other != use) {
                return refuse(m, use, module->weight,
                              "two adapters replace or scale (DoRA) it: their result depends on their order", err);
            }
            other = alone ? use : other;
            m->changes[m->n_changes++] = (gr_merge_change){module, use->factor};
        }
    }
    t->changes = m->changes + first;
    t->n_changes = m->n_changes - first;
    t->vector = t->ne[1] * t->ne[2] * t->ne[3] == 1;
    return 0;
}

/* Every module has one tensor, and one more if it adds a bias. */
static size_t most_changes(const merger *m) {
    size_t n = 0;
    for (size_t u = 0; u < m->n_uses; u++) {
        n += 2 * m->uses[u].adapter->n_modules;
    }
    return n;
}

static bool has_tensor(const merger *m, const char *name) {
    for (int i = 0; i < m->n_parts; i++) {
        if (gguf_find_tensor(m->parts[i].keys, name) >= 0) {
            return true;
        }
    }
    return false;
}

static int check_module(const merger *m, const gr_merge_use *use, const gr_module *module, graft_error *err) {
    char bias[GGML_MAX_NAME + 8];
    const char *weight = m->base->weights[module->weight].name;
    if (module->kind != GR_LOW_RANK || !module->shift) {
        return 0;
    }
    size_t n = strlen(weight) - strlen(".weight");
    snprintf(bias, sizeof bias, "%.*s.bias", (int)n, weight);
    return has_tensor(m, bias) ? 0 : refuse(m, use, module->weight, "adds a bias, and the base has none there to add it to", err);
}

static int check_uses(const merger *m, graft_error *err) {
    for (size_t u = 0; u < m->n_uses; u++) {
        const gr_merge_use *use = &m->uses[u];
        char q[GR_QUOTE_SIZE];
        if (use->adapter->invocation) {
            return gr_fail(err, GRAFT_E_UNSUPPORTED_ADAPTER, "%s: is active only after certain tokens (aLoRA), which no weights express",
                           gr_quote(q, use->name, strlen(use->name)));
        }
        for (size_t k = 0; k < use->adapter->n_modules; k++) {
            int rc = check_module(m, use, &use->adapter->modules[k], err);
            if (rc) {
                return rc;
            }
        }
    }
    return 0;
}

/* ---- the new model's tensors ---------------------------------------------------------------------------- */

static int choose_type(const merger *m, gr_merge_tensor *t, bool head, graft_error *err) {
    t->to = gr_merge_type_of(m->options->type, t->name, head, t->from, t->ne);
    bool computed = t->n_changes || t->to != t->from;
    if (computed && !(gr_merge_type_readable(t->from) && gr_merge_type_writable(t->to))) {
        return gr_fail(err, GRAFT_E_BAD_REQUEST, "%s: is %s, which cannot be made without an importance matrix; choose another type",
                       t->name, ggml_type_name(t->to));
    }
    return 0;
}

static int add_tensor(merger *m, int part_no, const struct ggml_tensor *from, const char *name, unsigned ops, bool head,
                      graft_error *err) {
    const part *p = &m->parts[part_no];
    gr_merge_tensor *t = &m->list[m->n++];
    int64_t id = gguf_find_tensor(p->keys, ggml_get_name(from));
    *t = (gr_merge_tensor){.file = &p->file, .from = from->type, .to = from->type};
    t->offset = gguf_get_data_offset(p->keys) + gguf_get_tensor_offset(p->keys, id);
    snprintf(t->name, sizeof t->name, "%s", name);
    memcpy(t->ne, from->ne, sizeof t->ne);
    int rc = collect(m, t, gr_base_model_weight(m->base, ggml_get_name(from)), ops, err);
    return rc ? rc : choose_type(m, t, head, err);
}

/* Whether the other operation does the very same to the weight: trained tokens, of which PEFT ties both. */
static bool has_twin(const gr_adapter *a, const gr_module *m) {
    size_t row = (size_t)(m->op == GR_OP_ROWS ? m->stride_out : m->stride_in);
    for (size_t k = 0; k < a->n_modules && m->kind == GR_TOKENS; k++) {
        const gr_module *o = &a->modules[k];
        if (o->kind == GR_TOKENS && o->weight == m->weight && o->op != m->op && o->n_tokens == m->n_tokens) {
            size_t other = (size_t)(o->op == GR_OP_ROWS ? o->stride_out : o->stride_in);
            return row == other && memcmp(o->tokens, m->tokens, (size_t)m->n_tokens * sizeof *m->tokens) == 0 &&
                   memcmp(o->a, m->a, (size_t)m->n_tokens * row * sizeof(float)) == 0;
        }
    }
    return false;
}

/* Whether a tied embedding can stay one weight. */
static bool stays_tied(const merger *m) {
    int id = gr_base_model_weight(m->base, EMBEDDING);
    for (size_t u = 0; u < m->n_uses; u++) {
        const gr_adapter *a = m->uses[u].adapter;
        for (size_t k = 0; m->uses[u].factor != 0 && k < a->n_modules; k++) {
            if (a->modules[k].weight == id && !has_twin(a, &a->modules[k])) {
                return false;
            }
        }
    }
    return true;
}

/* One weight for two purposes: as soon as something changes one of them alone it takes two. */
static int add_embedding(merger *m, int part_no, const struct ggml_tensor *t, graft_error *err) {
    bool tied = !has_tensor(m, HEAD);
    if (!tied || stays_tied(m)) {
        return add_tensor(m, part_no, t, EMBEDDING, 1u << GR_OP_ROWS, tied, err);
    }
    int rc = add_tensor(m, part_no, t, EMBEDDING, 1u << GR_OP_ROWS, false, err);
    return rc ? rc : add_tensor(m, part_no, t, HEAD, 1u << GR_OP_PRODUCT, true, err);
}

static int add_tensors(merger *m, graft_error *err) {
    size_t n = 1;
    for (int i = 0; i < m->n_parts; i++) {
        n += (size_t)gguf_get_n_tensors(m->parts[i].keys);
    }
    m->list = gr_calloc(n, sizeof *m->list);
    m->changes = gr_calloc(most_changes(m), sizeof *m->changes);
    int rc = m->list && m->changes ? 0 : gr_fail_memory(err, n * sizeof *m->list);
    for (int i = 0; i < m->n_parts && !rc; i++) {
        struct ggml_tensor *t = ggml_get_first_tensor(m->parts[i].tensors);
        for (int64_t left = gguf_get_n_tensors(m->parts[i].keys); t && left > 0 && !rc; left--) {
            const char *name = ggml_get_name(t);
            rc = strcmp(name, EMBEDDING) == 0 ? add_embedding(m, i, t, err)
                                              : add_tensor(m, i, t, name, ~0u, strcmp(name, HEAD) == 0, err);
            t = ggml_get_next_tensor(m->parts[i].tensors, t);
        }
    }
    return rc;
}

/* ---- keys ----------------------------------------------------------------------------------------------- */

static void set_provenance(const merger *m) {
    char key[64];
    gguf_set_val_str(m->out, "graft.version", GRAFT_VERSION);
    gguf_set_val_u32(m->out, "graft.merged.count", (uint32_t)m->n_uses);
    for (size_t i = 0; i < m->n_uses; i++) {
        snprintf(key, sizeof key, "graft.merged.%zu.name", i);
        gguf_set_val_str(m->out, key, m->uses[i].name);
        snprintf(key, sizeof key, "graft.merged.%zu.generation", i);
        gguf_set_val_str(m->out, key, m->uses[i].adapter->generation);
        snprintf(key, sizeof key, "graft.merged.%zu.factor", i);
        gguf_set_val_f32(m->out, key, m->uses[i].factor);
    }
}

/* The base's, but for what described its files. */
static void set_keys(const merger *m) {
    static const char *const files[] = {"split.no", "split.count", "split.tensors.count", "general.alignment"};
    gguf_set_kv(m->out, m->parts[0].keys);
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        gguf_remove_key(m->out, files[i]);
    }
    if (m->options->type != GR_MERGE_SAME) {
        gguf_set_val_u32(m->out, "general.file_type", gr_merge_file_type(m->options->type));
        gguf_set_val_u32(m->out, "general.quantization_version", GGML_QNT_VERSION);
    }
    set_provenance(m);
}

static void set_tensors(const merger *m) {
    for (size_t i = 0; i < m->n; i++) {
        const gr_merge_tensor *t = &m->list[i];
        int n_dims = GGML_MAX_DIMS;
        while (n_dims > 1 && t->ne[n_dims - 1] == 1) {
            n_dims--;
        }
        struct ggml_tensor *shape = ggml_new_tensor(m->shapes, t->to, n_dims, t->ne);
        ggml_set_name(shape, t->name);
        gguf_add_tensor(m->out, shape);
    }
}

/* ---- writing -------------------------------------------------------------------------------------------- */

static int write_all(const merger *m, gr_target *target, graft_error *err) {
    gr_progress progress = {.fn = m->options->progress, .user = m->options->progress_user};
    for (size_t i = 0; i < m->n; i++) {
        progress.total += gr_merge_tensor_bytes(&m->list[i]);
    }
    uint64_t padding = m->n * GGUF_DEFAULT_ALIGNMENT;
    int rc = gr_target_room(target, gguf_get_meta_size(m->out) + progress.total + padding, err);
    rc = rc ? rc : gr_gguf_write_header(target, m->out, err);
    for (size_t i = 0; i < m->n && !rc; i++) {
        rc = gr_merge_tensor_write(target, &m->list[i], m->options->threads, &progress, err);
        rc = rc ? rc : gr_target_pad(target, GGUF_DEFAULT_ALIGNMENT, err);
    }
    for (int i = 0; i < m->n_parts && !rc; i++) {
        rc = gr_file_unchanged(&m->parts[i].file, err);
    }
    return rc;
}

/* libllama counts the tensors that its graph takes: one too many, as a head of its own on some architectures, and it refuses. */
static int check_result(const gr_target *target, graft_error *err) {
    static ggml_backend_dev_t no_devices[1] = {NULL};
    struct llama_model_params params = llama_model_default_params();
    params.devices = no_devices;
    params.n_gpu_layers = 0;
    params.use_extra_bufts = false; /* repacking would copy every weight */
    params.load_mode = LLAMA_LOAD_MODE_MMAP;
    gr_llama_log_reset();
    struct llama_model *model = llama_model_load_from_file(target->temporary, params);
    if (!model) {
        return gr_fail(err, GRAFT_E_UNSUPPORTED_MODEL, "libllama would not open the merged model: %s", gr_llama_log_error());
    }
    llama_model_free(model);
    return 0;
}

static int write_model(merger *m, const char *path, graft_error *err) {
    gr_target target;
    int rc = gr_target_open(&target, path, NULL, m->options->replace, err);
    rc = rc ? rc : write_all(m, &target, err);
    rc = rc ? rc : check_result(&target, err);
    if (rc) {
        gr_target_abandon(&target, NULL);
        return rc;
    }
    return gr_target_commit(&target, NULL, err);
}

static int prepare(merger *m, const char *path, graft_error *err) {
    int rc = open_parts(m, err);
    if (!rc && is_part(m, path)) {
        rc = gr_fail(err, GRAFT_E_BAD_REQUEST, "the merged model cannot be written over its own base");
    }
    rc = rc ? rc : check_uses(m, err);
    rc = rc ? rc : add_tensors(m, err);
    if (rc) {
        return rc;
    }
    size_t size = (m->n + 1) * ggml_tensor_overhead();
    m->shapes = ggml_init((struct ggml_init_params){.mem_size = size, .no_alloc = true});
    m->out = gguf_init_empty();
    if (!m->shapes || !m->out) {
        return gr_fail_memory(err, size);
    }
    set_keys(m);
    set_tensors(m);
    return 0;
}

int gr_merge(const gr_base_model *base, const gr_merge_use *uses, size_t n_uses, const char *path,
             const gr_merge_options *options, graft_error *err) {
    merger m = {.base = base, .uses = uses, .n_uses = n_uses, .options = options};
    int rc = prepare(&m, path, err);
    rc = rc ? rc : write_model(&m, path, err);
    gguf_free(m.out);
    ggml_free(m.shapes);
    for (int i = 0; m.parts && i < m.n_parts; i++) {
        gguf_free(m.parts[i].keys);
        ggml_free(m.parts[i].tensors);
        gr_file_close(&m.parts[i].file);
    }
    gr_free(m.parts);
    gr_free(m.list);
    gr_free(m.changes);
    return rc;
}
