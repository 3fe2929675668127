/* Names to weights, then pairs to plan entries, then the config: in this order reasons are told. */
#include "verify.h"

#include "base/memory.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#define PEFT_PREFIX "base_model.model."
enum { NAMES_SHOWN = 5 };

/* What the adapter has for one weight of the base; the array of slots is indexed by weight id. */
typedef struct slot {
    const gr_tensor_info *a, *b;
    char *path; /* owned until it moves into the plan; NULL: nothing bound here */
    const gr_module_rule *rule;
} slot;

typedef struct checker {
    const gr_base_model *base;
    gr_source *source;
    gr_report *report;
    slot *slots;
    bool *layer_seen;   /* by layer: some tensor of the adapter belongs to it */
    size_t n_bound;     /* tensors whose names made sense for this architecture */
    size_t n_unbound;   /* tensors with an error of their own, by name */
    size_t n_unmapped;  /* LoRA tensors of other models' paths; told in one summary */
    const char *unmapped[NAMES_SHOWN];
    bool config_sound;  /* the config brought no error: its numbers can be compared */
} checker;

/* ---- words ---------------------------------------------------------------------------------------------- */

/* A tensor name as the report's `where`: whole if it is short and plain, else quoted and cut. */
static const char *where(char out[GR_QUOTE_SIZE], const char *name) {
    size_t n = strlen(name), i = 0;
    while (i < n && name[i] >= 0x20 && name[i] < 0x7f) {
        i++;
    }
    if (i == n && n < 160) {
        memcpy(out, name, n + 1);
        return out;
    }
    return gr_quote(out, name, n);
}

/* "[64, 8]" */
static const char *shape_text(char out[96], const gr_tensor_info *t) {
    int o = snprintf(out, 96, "[");
    for (uint32_t i = 0; i < t->n_dims; i++) {
        o += snprintf(out + o, 96 - (size_t)o, "%s%" PRIu64, i ? ", " : "", t->shape[i]);
    }
    snprintf(out + o, 96 - (size_t)o, "]");
    return out;
}

/* The name that the other half of a pair would have. */
static const char *partner(char out[GR_MAX_TENSOR_NAME + 1], const char *name) {
    snprintf(out, GR_MAX_TENSOR_NAME + 1, "%s", name);
    for (char *p = out + strlen(out); p-- > out;) {
        if (strncmp(p, "lora_A", 6) == 0 || strncmp(p, "lora_a", 6) == 0) {
            p[5]++;
            break;
        }
        if (strncmp(p, "lora_B", 6) == 0 || strncmp(p, "lora_b", 6) == 0) {
            p[5]--;
            break;
        }
    }
    return out;
}

/* ---- names to weights ----------------------------------------------------------------------------------- */

static int parse_name(const checker *c, gr_module_name *out, const char *name, graft_error *err) {
    return c->source->format == GR_SOURCE_PEFT ? gr_module_name_parse(out, c->base->arch, name, err)
                                               : gr_gguf_name_parse(out, c->base->arch, name, err);
}

static bool in_layers(const char *path, const char *layers) {
    size_t n = strlen(layers);
    return strncmp(path, layers, n) == 0 && path[n] == '.';
}

/* Whether the name does not even lie among this architecture's layers, as with "language_model." in front: then
 * probably all are like that, and one summary says more than a hundred reasons. */
static bool foreign(const checker *c, const char *name) {
    const gr_arch *arch = c->base->arch;
    if (c->source->format == GR_SOURCE_GGUF) {
        return !in_layers(name, "blk");
    }
    if (strncmp(name, PEFT_PREFIX, strlen(PEFT_PREFIX)) != 0) {
        return true;
    }
    const char *path = name + strlen(PEFT_PREFIX);
    bool ours = in_layers(path, arch->layers);
    for (size_t i = 0; arch->also && arch->also[i]; i++) {
        ours = ours || in_layers(path, arch->also[i]);
    }
    return !ours;
}

/* The parsers of names begin their messages with the name, which `where` says already. */
static const char *without_name(const char *message, const char *name) {
    char begin[GR_MAX_TENSOR_NAME + 16];
    int n = snprintf(begin, sizeof begin, "tensor \"%.160s\"", name);
    if (strncmp(message, begin, (size_t)n) != 0) {
        return message;
    }
    message += n;
    return message + strspn(message, ": ");
}

static void name_failed(checker *c, const gr_tensor_info *t, int code, const graft_error *why) {
    if (code == GRAFT_E_UNKNOWN_TARGET && foreign(c, t->name)) {
        if (c->n_unmapped < NAMES_SHOWN) {
            c->unmapped[c->n_unmapped] = t->name;
        }
        c->n_unmapped++;
        return;
    }
    char q[GR_QUOTE_SIZE];
    gr_report_error(c->report, code, where(q, t->name), "%s", without_name(why->message, t->name));
    c->n_unbound++;
}

static void weight_missing(checker *c, const gr_tensor_info *t, const gr_module_name *name) {
    char q[GR_QUOTE_SIZE];
    gr_report_error(c->report, GRAFT_E_UNKNOWN_TARGET, where(q, t->name),
                    "the base has no %s; it has layers 0 to %d (wrong base model?)", name->weight,
                    c->base->n_layer - 1);
    c->n_unbound++;
}

/* layers_to_transform says which layers may have tensors; a file that disagrees belongs to another config. */
static bool layer_listed(const gr_peft_config *config, int layer) {
    size_t low = 0, high = config->n_layers;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (config->layers[middle] == layer) {
            return true;
        }
        if (config->layers[middle] < layer) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return config->layers == NULL;
}

static int bind(checker *c, const gr_tensor_info *t, graft_error *err) {
    gr_module_name name;
    graft_error why;
    int rc = parse_name(c, &name, t->name, &why);
    if (rc == GRAFT_E_OUT_OF_MEMORY) {
        return gr_fail(err, rc, "%s", why.message);
    }
    if (rc) {
        name_failed(c, t, rc, &why);
        return 0;
    }
    c->n_bound++;
    if (name.layer >= 0 && name.layer < c->base->n_layer) {
        c->layer_seen[name.layer] = true;
    }
    int id = gr_base_model_weight(c->base, name.weight);
    if (id < 0) {
        weight_missing(c, t, &name);
        return 0;
    }
    char q[GR_QUOTE_SIZE], q2[GR_QUOTE_SIZE];
    if (!name.rule) {
        gr_report_error(c->report, GRAFT_E_UNSUPPORTED_TARGET, where(q, t->name),
                        "%s is not among the weights that adapters can change on %s", name.weight,
                        c->base->arch->name);
        c->n_unbound++;
        return 0;
    }
    if (c->source->format == GR_SOURCE_PEFT && !layer_listed(&c->source->config, name.layer)) {
        gr_report_error(c->report, GRAFT_E_UNEXPECTED_TENSOR, where(q, t->name),
                        "layer %d is not among layers_to_transform of adapter_config.json", name.layer);
    }
    slot *s = &c->slots[id];
    const gr_tensor_info **half = name.part == GR_PART_A ? &s->a : &s->b;
    if (*half) {
        gr_report_error(c->report, GRAFT_E_DUPLICATE_TARGET, where(q, t->name), "%s has %s already", name.weight,
                        where(q2, (*half)->name));
        return 0;
    }
    *half = t;
    s->rule = name.rule;
    if (!s->path && !(s->path = gr_strdup(name.path))) {
        return gr_fail_memory(err, strlen(name.path) + 1);
    }
    return 0;
}

static void report_unmapped(checker *c) {
    if (c->n_unmapped == 0) {
        return;
    }
    char names[NAMES_SHOWN * 68] = "";
    size_t o = 0;
    for (size_t i = 0; i < c->n_unmapped && i < NAMES_SHOWN; i++) {
        char q[GR_QUOTE_SIZE];
        gr_quote(q, c->unmapped[i], strlen(c->unmapped[i]));
        o += (size_t)snprintf(names + o, sizeof names - o, "%s%s", i ? ", " : "", q);
        if (o >= sizeof names) {
            break;
        }
    }
    bool some = c->n_bound > 0;
    gr_report_error(c->report, some ? GRAFT_E_UNMAPPED_TENSORS : GRAFT_E_ZERO_TARGETS, NULL,
                    "%zu of %zu tensors belong to no weight of this %s model (wrong base model, or other names?): "
                    "%s%s",
                    c->n_unmapped, c->source->tensors.n, c->base->arch->name, names,
                    c->n_unmapped > NAMES_SHOWN ? ", …" : "");
}

/* ---- pairs of matrices ---------------------------------------------------------------------------------- */

typedef struct matrix {
    uint64_t rows, columns;
} matrix;

/* False after an error in the report. */
static bool as_matrix(checker *c, matrix *out, const gr_tensor_info *t, gr_lora_part part) {
    bool gguf = c->source->format == GR_SOURCE_GGUF;
    if (t->n_dims == 2) {
        *out = (matrix){t->shape[0], t->shape[1]};
        return true;
    }
    /* ggml drops trailing dimensions of 1 on writing, so an A of rank 1 comes back as a vector. */
    if (gguf && part == GR_PART_A && t->n_dims == 1) {
        *out = (matrix){1, t->shape[0]};
        return true;
    }
    char q[GR_QUOTE_SIZE], shape[96];
    gr_report_error(c->report, gguf ? GRAFT_E_WRONG_SHAPE : GRAFT_E_BAD_RANK, where(q, t->name),
                    "has %u dimensions, %s; a matrix is needed", (unsigned)t->n_dims, shape_text(shape, t));
    return false;
}

static bool shapes_fit(checker *c, const slot *s, const gr_weight *w, matrix a, matrix b) {
    uint64_t n_in = (uint64_t)w->n_in, n_out = (uint64_t)w->n_out;
    char q[GR_QUOTE_SIZE], shape[96];
    bool fits = true;
    if (a.rows == n_in && b.columns == n_out && a.columns == b.rows && (a.columns != n_in || b.rows != n_out)) {
        gr_report_error(c->report, GRAFT_E_WRONG_SHAPE, where(q, s->a->name),
                        "shape %s is transposed: PEFT stores lora_A as [rank, %" PRIu64 "] and lora_B as [%" PRIu64
                        ", rank]", shape_text(shape, s->a), n_in, n_out);
        return false;
    }
    if (a.columns != n_in) {
        gr_report_error(c->report, GRAFT_E_WRONG_SHAPE, where(q, s->a->name),
                        "shape %s does not fit %s: %" PRIu64 " columns needed (wrong base model?)",
                        shape_text(shape, s->a), w->name, n_in);
        fits = false;
    }
    if (b.rows != n_out) {
        gr_report_error(c->report, GRAFT_E_WRONG_SHAPE, where(q, s->b->name),
                        "shape %s does not fit %s: %" PRIu64 " rows needed (wrong base model?)",
                        shape_text(shape, s->b), w->name, n_out);
        fits = false;
    }
    return fits;
}

/* `wanted`: the config's rank, 0 if it does not say. */
static bool rank_fits(checker *c, const slot *s, matrix a, matrix b, int wanted) {
    char q[GR_QUOTE_SIZE];
    if (a.rows != b.columns) {
        gr_report_error(c->report, GRAFT_E_RANK_MISMATCH, where(q, s->a->name),
                        "rank %" PRIu64 ", but the other half has rank %" PRIu64, a.rows, b.columns);
        return false;
    }
    if (a.rows < 1 || a.rows > GR_MAX_RANK) {
        gr_report_error(c->report, GRAFT_E_BAD_RANK, where(q, s->a->name), "rank %" PRIu64 ", allowed are 1 to %d",
                        a.rows, GR_MAX_RANK);
        return false;
    }
    if (wanted > 0 && a.rows != (uint64_t)wanted) {
        gr_report_error(c->report, GRAFT_E_RANK_MISMATCH, where(q, s->a->name),
                        "rank %" PRIu64 ", but adapter_config.json says %d", a.rows, wanted);
        return false;
    }
    return true;
}

/* Number of heads for the row order of B, 0 for none, -1 after an error in the report. */
static int permutation(checker *c, const slot *s, const gr_weight *w) {
    if (c->source->format == GR_SOURCE_GGUF || s->rule->order == GR_ROWS_AS_IS) {
        return 0; /* a GGUF adapter was reordered when it was made */
    }
    int heads = s->rule->order == GR_ROWS_ROPE_Q ? c->base->n_head : c->base->n_head_kv;
    if (heads < 1 || w->n_out % (2 * (int64_t)heads) != 0) {
        char q[GR_QUOTE_SIZE];
        gr_report_error(c->report, GRAFT_E_UNSUPPORTED_TARGET, where(q, s->b->name),
                        "%s has %lld rows, which %d heads do not divide: its row order is unknown", w->name,
                        (long long)w->n_out, heads);
        return -1;
    }
    return heads;
}

/* Fills *e from the slot, or adds to the report. */
static void check_pair(checker *c, gr_plan_entry *e, const slot *s, int id) {
    const gr_weight *w = &c->base->weights[id];
    bool peft = c->source->format == GR_SOURCE_PEFT;
    /* Asked for every module, also a bad one: the config notes which of its patterns matched. */
    double alpha = peft ? gr_peft_config_alpha(&c->source->config, s->path) : c->source->gguf.alpha;
    int wanted = peft ? gr_peft_config_rank(&c->source->config, s->path) : 0;
    char q[GR_QUOTE_SIZE];
    if (!s->a || !s->b) {
        char other[GR_MAX_TENSOR_NAME + 1], q2[GR_QUOTE_SIZE];
        const char *name = s->a ? s->a->name : s->b->name;
        gr_report_error(c->report, GRAFT_E_MISSING_PAIR, where(q, name), "there is no %s to go with it",
                        where(q2, partner(other, name)));
        return;
    }
    matrix a, b;
    bool both = as_matrix(c, &a, s->a, GR_PART_A);
    both = as_matrix(c, &b, s->b, GR_PART_B) && both;
    if (!both || !shapes_fit(c, s, w, a, b) || !rank_fits(c, s, a, b, wanted)) {
        return;
    }
    int heads = permutation(c, s, w);
    e->kind = GR_LOW_RANK;
    e->op = GR_OP_PRODUCT;
    e->weight = id;
    e->n_rows = w->n_out;
    e->a = s->a;
    e->b = s->b;
    e->rank = (int)a.rows;
    e->rows = (gr_row_map){heads > 0 ? s->rule->order : GR_ROWS_AS_IS, heads < 0 ? 0 : heads};
    e->scale = peft ? gr_peft_config_scale(&c->source->config, alpha, e->rank) : alpha / e->rank;
    float applied = (float)e->scale;
    if (c->config_sound && (!isfinite(applied) || applied == 0.0f)) {
        gr_report_error(c->report, GRAFT_E_BAD_ALPHA, where(q, s->a->name),
                        "alpha %g at rank %d gives no usable scale", alpha, e->rank);
    }
}

/* ---- the config against the base ------------------------------------------------------------------------ */

static void check_layers(checker *c) {
    const gr_peft_config *config = &c->source->config;
    for (size_t i = 0; i < config->n_layers; i++) {
        int layer = config->layers[i];
        if (layer < 0 || layer >= c->base->n_layer) {
            gr_report_error(c->report, GRAFT_E_UNKNOWN_TARGET, "layers_to_transform",
                            "names layer %d; the base has layers 0 to %d (wrong base model?)", layer,
                            c->base->n_layer - 1);
        } else if (!c->layer_seen[layer] && c->n_unbound + c->n_unmapped == 0) {
            gr_report_error(c->report, GRAFT_E_PATTERN_UNUSED, "layers_to_transform",
                            "names layer %d, but the file has no tensors of it", layer);
        }
    }
}

static void check_config(checker *c) {
    /* The other way round, Conv1D modules without the option, is fine: PEFT switches it on by itself. */
    if (c->source->config.fan_in_fan_out && !c->base->arch->conv1d) {
        gr_report_error(c->report, GRAFT_E_UNSUPPORTED_ADAPTER, "fan_in_fan_out",
                        "is for Conv1D modules, which %s models do not have", c->base->arch->name);
    }
    check_layers(c);
    /* When names failed, unused patterns only follow from that. */
    if (c->n_unbound + c->n_unmapped == 0) {
        gr_peft_config_report_unused(&c->source->config, c->report);
    }
}

static void unsupported_model(const gr_base_model *base, gr_report *report) {
    char names[256] = "", q[GR_QUOTE_SIZE];
    size_t n, o = 0;
    const gr_arch *list = gr_arch_list(&n);
    for (size_t i = 0; i < n && o < sizeof names; i++) {
        o += (size_t)snprintf(names + o, sizeof names - o, "%s%s", i ? ", " : "", list[i].name);
    }
    gr_report_error(report, GRAFT_E_UNSUPPORTED_MODEL, NULL,
                    "adapters on architecture \"%s\" are not supported; supported are %s",
                    gr_quote(q, base->architecture, strlen(base->architecture)), names);
}

/* False if looking at the tensors makes no sense. */
static bool check_gguf(checker *c) {
    const gr_gguf_lora *g = &c->source->gguf;
    char q[GR_QUOTE_SIZE], q2[GR_QUOTE_SIZE];
    if (strcmp(g->architecture, c->base->architecture) != 0) {
        gr_report_error(c->report, GRAFT_E_WRONG_BASE, "general.architecture", "is \"%s\"; the base is \"%s\"",
                        gr_quote(q, g->architecture, strlen(g->architecture)),
                        gr_quote(q2, c->base->architecture, strlen(c->base->architecture)));
        return false;
    }
    if (g->has_alora) {
        gr_report_error(c->report, GRAFT_E_UNSUPPORTED_ADAPTER, "adapter.alora.invocation_tokens",
                        "an adapter that is active only after certain tokens (aLoRA) is not supported");
    }
    return true;
}

/* ---- the plan ------------------------------------------------------------------------------------------- */

static int make_plan(gr_plan **out, checker *c, graft_error *err) {
    size_t n = 0;
    for (size_t i = 0; i < c->base->n_weights; i++) {
        n += c->slots[i].path != NULL;
    }
    gr_plan *p = gr_zalloc(sizeof *p);
    gr_plan_entry *entries = gr_calloc(n, sizeof *entries);
    if (!p || !entries) {
        gr_free(p);
        gr_free(entries);
        return gr_fail_memory(err, n * sizeof *entries);
    }
    p->base = c->base;
    p->source = c->source;
    p->entries = entries;
    for (size_t i = 0; i < c->base->n_weights; i++) {
        slot *s = &c->slots[i];
        if (s->path) {
            gr_plan_entry *e = &entries[p->n++];
            check_pair(c, e, s, (int)i);
            e->module = s->path;
            s->path = NULL;
            p->rank_min = p->n == 1 || e->rank < p->rank_min ? e->rank : p->rank_min;
            p->rank_max = e->rank > p->rank_max ? e->rank : p->rank_max;
        }
    }
    *out = p;
    return 0;
}

static int check_tensors(gr_plan **out, checker *c, graft_error *err) {
    const gr_tensor_list *tensors = &c->source->tensors;
    for (size_t i = 0; i < tensors->n; i++) {
        int rc = bind(c, &tensors->tensors[i], err);
        if (rc) {
            return rc;
        }
    }
    report_unmapped(c);
    gr_plan *p = NULL;
    int rc = make_plan(&p, c, err);
    if (rc) {
        return rc;
    }
    if (c->source->format == GR_SOURCE_PEFT) {
        check_config(c);
    }
    rc = gr_report_result(c->report, err);
    if (rc) {
        gr_plan_free(p);
        return rc;
    }
    *out = p;
    return 0;
}

int gr_verify(gr_plan **out, const gr_base_model *base, gr_source *source, gr_report *report, graft_error *err) {
    checker c = {.base = base, .source = source, .report = report, .config_sound = report->n_errors == 0};
    if (!base->arch) {
        unsupported_model(base, report);
        return gr_report_result(report, err);
    }
    if (source->format == GR_SOURCE_GGUF && !check_gguf(&c)) {
        return gr_report_result(report, err);
    }
    int rc;
    c.slots = gr_calloc(base->n_weights, sizeof *c.slots);
    c.layer_seen = gr_calloc((size_t)base->n_layer, sizeof *c.layer_seen);
    if (!c.slots || !c.layer_seen) {
        rc = gr_fail_memory(err, base->n_weights * sizeof *c.slots);
    } else {
        rc = check_tensors(out, &c, err);
    }
    for (size_t i = 0; c.slots && i < base->n_weights; i++) {
        gr_free(c.slots[i].path);
    }
    gr_free(c.slots);
    gr_free(c.layer_seen);
    return rc;
}

void gr_plan_free(gr_plan *p) {
    if (p) {
        for (size_t i = 0; i < p->n; i++) {
            gr_free(p->entries[i].module);
        }
        gr_free(p->entries);
        gr_free(p);
    }
}
