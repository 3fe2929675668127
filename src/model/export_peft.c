/*
 * To a PEFT folder. From a GGUF adapter modules get the names of the architecture's table and their rows the checkpoint's order;
 * from another folder both stay. The config says what the plan says, so that nothing depends on which options led there:
 * r and lora_alpha are those of most modules, patterns name the others.
 */
#include "export.h"

#include "base/memory.h"
#include "format/safetensors_write.h"
#include "model/export_matrix.h"
#include "model/row_map.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FORM "a PEFT folder"
#define PREFIX "base_model.model."

enum { MODULE_SIZE = 512, PARTS = 4 };

/* One module of the model that the adapter changes. */
typedef struct module {
    const gr_plan_entry *entry;
    char *path;           /* in the checkpoint's model */
    gr_row_map undo;      /* how its rows lie in a GGUF adapter's matrices */
    double alpha;         /* such that alpha / rank is the scale */
} module;

typedef enum part { PART_A, PART_B, PART_BIAS, PART_MAGNITUDE } part;

/* What a tensor of the new file is. */
typedef struct item {
    const char *name;
    const module *module;
    part part;
} item;

typedef struct writer {
    const gr_plan *plan;
    const gr_export_options *options;
    gr_target *target;
    module *modules;
    size_t n;
    int r;                /* of most */
    double alpha;
    bool dora, bias;
    gr_tensor_info *tensors;
    item *items;          /* of each tensor; sorted by name once all are there */
    size_t n_tensors;
    gr_progress progress;
} writer;

/* ---- modules -------------------------------------------------------------------------------------------- */

/* The module that is all of the weight, and no norm; or NULL. */
static const gr_module_rule *rule_of(const gr_plan *plan, const gr_weight *w) {
    char start[32];
    int n = snprintf(start, sizeof start, "blk.%d.", w->layer);
    const gr_module_rule *rule = gr_arch_rule_of(plan->base->arch, w->layer < 0 ? w->name : w->name + n);
    return rule && rule->role != GR_ROLE_NORM ? rule : NULL;
}

/* Where the module lies in the checkpoint's model. What is outside of layers lies beside the list of them. */
static void path_of(char out[MODULE_SIZE], const gr_arch *arch, const gr_module_rule *rule, int layer) {
    const char *dot = strrchr(arch->layers, '.');
    if (layer >= 0) {
        snprintf(out, MODULE_SIZE, "%s.%d.%s", arch->layers, layer, rule->module);
    } else if (rule->role == GR_ROLE_HEAD || !dot) {
        snprintf(out, MODULE_SIZE, "%s", rule->module);
    } else {
        snprintf(out, MODULE_SIZE, "%.*s.%s", (int)(dot - arch->layers), arch->layers, rule->module);
    }
}

static int heads_of(const gr_base_model *base, gr_row_order order) {
    return order == GR_ROWS_ROPE_K ? base->n_head_kv : base->n_head;
}

static int name_from_gguf(module *m, const gr_plan *plan, char out[MODULE_SIZE], graft_error *err) {
    const gr_weight *w = &plan->base->weights[m->entry->weight];
    const gr_module_rule *rule = rule_of(plan, w);
    if (!rule) {
        return gr_fail(err, GRAFT_E_UNSUPPORTED_TARGET, "%s: which module of the checkpoint it was is not certain", w->name);
    }
    m->undo = (gr_row_map){rule->order, rule->order == GR_ROWS_AS_IS ? 0 : heads_of(plan->base, rule->order)};
    if (!gr_row_map_fits(m->undo, (size_t)w->n_out)) {
        return gr_fail(err, GRAFT_E_UNSUPPORTED_TARGET, "%s: its heads do not divide its rows, so their order is unknown", w->name);
    }
    path_of(out, plan->base->arch, rule, w->layer);
    return 0;
}

static int add_module(writer *w, const gr_plan_entry *e, graft_error *err) {
    module *m = &w->modules[w->n];
    char path[MODULE_SIZE];
    int rc = gr_export_low_rank(e, "a folder that graft writes", err);
    *m = (module){.entry = e, .alpha = e->scale * e->rank};
    snprintf(path, sizeof path, "%s", e->module);
    if (!rc && w->plan->source->format == GR_SOURCE_GGUF) {
        rc = name_from_gguf(m, w->plan, path, err);
        m->alpha = w->plan->source->gguf.alpha;
    }
    if (rc) {
        return rc;
    }
    m->path = gr_strdup(path);
    w->n++;
    w->dora = w->dora || e->magnitude;
    w->bias = w->bias || e->bias;
    return m->path ? 0 : gr_fail_memory(err, strlen(path) + 1);
}

/* A module over several weights of the base has an entry for each, with the same matrices. */
static bool seen(const writer *w, const gr_plan_entry *e) {
    for (size_t i = w->n; i-- > 0;) {
        if (w->modules[i].entry->a == e->a) {
            return true;
        }
    }
    return false;
}

/* use_dora holds for all modules: one without a magnitude would get a gain that it must not have. */
static int check_all(const writer *w, graft_error *err) {
    for (size_t i = 0; i < w->n; i++) {
        const gr_plan_entry *e = w->modules[i].entry;
        if (w->dora && !e->magnitude) {
            return gr_export_refuse(e, "a module without DoRA's magnitude among others that have one", FORM, err);
        }
        if (w->bias && !e->bias) {
            return gr_export_refuse(e, "a module without a bias among others that have one", FORM, err);
        }
    }
    return 0;
}

static int by_path(const void *a, const void *b) {
    return strcmp(((const module *)a)->path, ((const module *)b)->path);
}

static int make_modules(writer *w, graft_error *err) {
    w->modules = gr_calloc(w->plan->n, sizeof *w->modules);
    if (!w->modules) {
        return gr_fail_memory(err, w->plan->n * sizeof *w->modules);
    }
    int rc = 0;
    for (size_t i = 0; i < w->plan->n && !rc; i++) {
        if (!seen(w, &w->plan->entries[i])) {
            rc = add_module(w, &w->plan->entries[i], err);
        }
    }
    if (!rc) {
        qsort(w->modules, w->n, sizeof *w->modules, by_path);
    }
    return rc ? rc : check_all(w, err);
}

/* r and alpha of the pair that most modules have. */
static void choose_defaults(writer *w) {
    size_t most = 0;
    for (size_t i = 0; i < w->n && most <= w->n - i; i++) {
        size_t same = 0;
        for (size_t k = i; k < w->n; k++) {
            same += w->modules[k].entry->rank == w->modules[i].entry->rank && w->modules[k].alpha == w->modules[i].alpha;
        }
        if (same > most) {
            most = same;
            w->r = w->modules[i].entry->rank;
            w->alpha = w->modules[i].alpha;
        }
    }
}

/* ---- the config ----------------------------------------------------------------------------------------- */

/* PEFT writes whole numbers as such. */
static json_t *number(double x) {
    return floor(x) == x && fabs(x) < 1e15 ? json_integer((json_int_t)x) : json_real(x);
}

static json_t *patterns(const writer *w, bool ranks) {
    json_t *o = json_object();
    for (size_t i = 0; o && i < w->n; i++) {
        const module *m = &w->modules[i];
        bool other = ranks ? m->entry->rank != w->r : m->alpha != w->alpha;
        if (other && json_object_set_new(o, m->path, ranks ? json_integer(m->entry->rank) : number(m->alpha)) != 0) {
            json_decref(o);
            return NULL;
        }
    }
    return o;
}

/* Full paths, as PEFT itself writes for "all-linear": a short name could also mean modules that have no matrices here. */
static json_t *targets(const writer *w) {
    json_t *list = json_array();
    for (size_t i = 0; list && i < w->n; i++) {
        if (json_array_append_new(list, json_string(w->modules[i].path)) != 0) {
            json_decref(list);
            return NULL;
        }
    }
    return list;
}

static json_t *invocation(const gr_plan *plan) {
    if (!plan->invocation) {
        return json_null();
    }
    json_t *list = json_array();
    for (size_t i = 0; list && i < plan->n_invocation; i++) {
        if (json_array_append_new(list, json_integer(plan->invocation[i])) != 0) {
            json_decref(list);
            return NULL;
        }
    }
    return list;
}

static bool set(json_t *o, const char *key, json_t *value) {
    return json_object_set_new(o, key, value) == 0;
}

static json_t *describe(const writer *w) {
    const gr_plan *plan = w->plan;
    const char *base = plan->source->format == GR_SOURCE_PEFT ? plan->source->config.base_model : NULL;
    json_t *o = json_object();
    bool good = o && set(o, "alora_invocation_tokens", invocation(plan)) && set(o, "alpha_pattern", patterns(w, false)) &&
                set(o, "base_model_name_or_path", base ? json_string(base) : json_null()) && set(o, "bias", json_string("none")) &&
                set(o, "fan_in_fan_out", json_boolean(plan->base->arch->conv1d)) && set(o, "inference_mode", json_true()) &&
                set(o, "init_lora_weights", json_true()) && set(o, "lora_alpha", number(w->alpha)) &&
                set(o, "lora_bias", json_boolean(w->bias)) && set(o, "lora_dropout", json_real(0.0)) &&
                set(o, "modules_to_save", json_null()) && set(o, "peft_type", json_string("LORA")) && set(o, "r", json_integer(w->r)) &&
                set(o, "rank_pattern", patterns(w, true)) && set(o, "target_modules", targets(w)) &&
                set(o, "task_type", json_string("CAUSAL_LM")) && set(o, "use_dora", json_boolean(w->dora)) &&
                set(o, "use_rslora", json_false());
    if (!good) {
        json_decref(o);
        return NULL;
    }
    return o;
}

static int write_config(writer *w, graft_error *err) {
    json_t *o = describe(w);
    char *text = o ? json_dumps(o, JSON_INDENT(2)) : NULL;
    int rc = text ? gr_target_file(w->target, "adapter_config.json", err) : gr_fail_memory(err, w->n * MODULE_SIZE);
    rc = rc ? rc : gr_target_write(w->target, text, strlen(text), err);
    rc = rc ? rc : gr_target_write(w->target, "\n", 1, err);
    free(text); /* jansson's */
    json_decref(o);
    return rc;
}

/* ---- the tensors ---------------------------------------------------------------------------------------- */

static const gr_tensor_info *source_of(const gr_plan_entry *e, part p) {
    const gr_tensor_info *const parts[] = {e->a, e->b, e->bias, e->magnitude};
    return parts[p];
}

/* Rows of the module in the file: more than one entry's where the base splits it. */
static uint64_t rows_of(const writer *w, const module *m) {
    const gr_plan_entry *e = m->entry;
    return gr_export_transposed(w->plan, e, e->b) ? e->b->shape[1] : e->b->shape[0];
}

static void shape_of(const writer *w, const module *m, part p, gr_tensor_info *t) {
    const gr_weight *weight = &w->plan->base->weights[m->entry->weight];
    uint64_t rank = (uint64_t)m->entry->rank, rows = rows_of(w, m);
    uint64_t n_in = (uint64_t)(m->entry->op == GR_OP_ROWS ? weight->n_out : weight->n_in);
    t->n_dims = p == PART_A || p == PART_B ? 2 : 1;
    t->shape[0] = p == PART_A ? rank : rows;
    t->shape[1] = p == PART_A ? n_in : rank;
}

static uint64_t count(const gr_tensor_info *t) {
    uint64_t n = 1;
    for (uint32_t i = 0; i < t->n_dims; i++) {
        n *= t->shape[i];
    }
    return n;
}

static int add_tensor(writer *w, const module *m, part p, graft_error *err) {
    static const char *const suffixes[2][PARTS] = {
        {"lora_A.weight", "lora_B.weight", "lora_B.bias", "lora_magnitude_vector"},
        {"lora_embedding_A", "lora_embedding_B", "lora_B.bias", "lora_magnitude_vector"}};
    const gr_plan_entry *e = m->entry;
    const gr_tensor_info *from = source_of(e, p);
    if (!from) {
        return 0;
    }
    char name[GR_MAX_TENSOR_NAME + 1];
    int n = snprintf(name, sizeof name, PREFIX "%s.%s", m->path, suffixes[e->op == GR_OP_ROWS][p]);
    gr_tensor_info *t = &w->tensors[w->n_tensors];
    *t = (gr_tensor_info){.dtype = gr_export_dtype(w->options->type, from->dtype)};
    shape_of(w, m, p, t);
    if ((size_t)n >= sizeof name || count(t) != count(from)) {
        return gr_export_refuse(e, (size_t)n >= sizeof name ? "so long a name" : "a tensor of such a shape", FORM, err);
    }
    t->name = gr_strdup(name);
    if (!t->name) {
        return gr_fail_memory(err, sizeof name);
    }
    w->items[w->n_tensors++] = (item){t->name, m, p};
    return 0;
}

static int by_name(const void *a, const void *b) {
    return strcmp(((const item *)a)->name, ((const item *)b)->name);
}

static int add_tensors(writer *w, graft_error *err) {
    w->tensors = gr_calloc(w->n, PARTS * sizeof *w->tensors);
    w->items = gr_calloc(w->n, PARTS * sizeof *w->items);
    int rc = w->tensors && w->items ? 0 : gr_fail_memory(err, w->n * PARTS * sizeof *w->tensors);
    for (size_t i = 0; i < w->n && !rc; i++) {
        for (part p = PART_A; p <= PART_MAGNITUDE && !rc; p++) {
            rc = add_tensor(w, &w->modules[i], p, err);
        }
    }
    if (!rc) {
        qsort(w->items, w->n_tensors, sizeof *w->items, by_name);
    }
    return rc;
}

/* Rows from the GGUF's order into the checkpoint's. NULL when memory is out. */
static float *put_back(const module *m, const float *x, size_t rows, size_t columns) {
    float *out = gr_calloc(rows * columns, sizeof *out);
    for (size_t r = 0; out && r < rows; r++) {
        memcpy(out + r * columns, x + gr_row_map_to(m->undo, rows, r) * columns, columns * sizeof *out);
    }
    return out;
}

static int write_tensor(writer *w, const gr_tensor_info *t, graft_error *err) {
    const item key = {.name = t->name}, *of = bsearch(&key, w->items, w->n_tensors, sizeof key, by_name);
    const module *m = of->module;
    part p = of->part;
    size_t columns = t->n_dims > 1 ? (size_t)t->shape[1] : 1, n = (size_t)t->shape[0] * columns;
    float *x = NULL;
    const gr_tensor_info *from = source_of(m->entry, p);
    int rc = gr_export_read(&x, w->plan->source, from, gr_export_transposed(w->plan, m->entry, from), err);
    if (!rc && p != PART_A && m->undo.order != GR_ROWS_AS_IS) {
        float *back = put_back(m, x, (size_t)t->shape[0], columns);
        gr_free(x);
        x = back;
        rc = x ? 0 : gr_fail_memory(err, n * sizeof *x);
    }
    rc = rc ? rc : gr_export_write(w->target, x, n, t->dtype, t->name, err);
    gr_free(x);
    return rc ? rc : gr_export_step(&w->progress, t->size, err);
}

static int write_weights(writer *w, graft_error *err) {
    gr_buffer header;
    gr_buffer_init(&header, (size_t)32 << 20);
    int rc = gr_safetensors_begin(&header, w->tensors, w->n_tensors, err);
    w->progress = gr_export_progress(w->options, 0);
    for (size_t i = 0; i < w->n_tensors; i++) {
        w->progress.total += w->tensors[i].size;
    }
    rc = rc ? rc : gr_target_room(w->target, header.length + w->progress.total, err);
    rc = rc ? rc : gr_target_file(w->target, "adapter_model.safetensors", err);
    rc = rc ? rc : gr_target_write(w->target, header.data, header.length, err);
    gr_buffer_finish(&header);
    for (size_t i = 0; i < w->n_tensors && !rc; i++) {
        rc = write_tensor(w, &w->tensors[i], err);
    }
    return rc;
}

int gr_export_peft(const gr_plan *plan, gr_target *target, const gr_export_options *options, graft_error *err) {
    writer w = {.plan = plan, .options = options, .target = target};
    int rc = make_modules(&w, err);
    if (!rc) {
        choose_defaults(&w);
        rc = add_tensors(&w, err);
    }
    rc = rc ? rc : write_weights(&w, err);
    rc = rc ? rc : write_config(&w, err);
    for (size_t i = 0; w.modules && i < w.n; i++) {
        gr_free(w.modules[i].path);
    }
    for (size_t i = 0; w.tensors && i < w.n_tensors; i++) {
        gr_free(w.tensors[i].name);
    }
    gr_free(w.tensors);
    gr_free(w.items);
    gr_free(w.modules);
    return rc;
}
