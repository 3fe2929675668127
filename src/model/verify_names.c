/* Tensors to modules: every name is bound to a slot, or told. */
#include "verify_state.h"

#include "base/memory.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define PEFT_PREFIX "base_model.model."

const char *gr_verify_where(char out[GR_QUOTE_SIZE], const char *name) {
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

static int parse_name(const gr_checker *c, gr_module_name *out, const char *name, graft_error *err) {
    switch (c->source->format) {
    case GR_SOURCE_GGUF: return gr_gguf_name_parse(out, c->base->arch, name, err);
    case GR_SOURCE_MLX: return gr_mlx_name_parse(out, c->base->arch, name, err);
    case GR_SOURCE_PEFT: break;
    }
    return gr_module_name_parse(out, c->base->arch, name, err);
}

static bool in_layers(const char *path, const char *layers) {
    size_t n = strlen(layers);
    return strncmp(path, layers, n) == 0 && path[n] == '.';
}

/* Whether the name does not even lie among this architecture's layers, as with "language_model." in front: then
 * probably all are like that, and one summary says more than a hundred reasons. */
static bool foreign(const gr_checker *c, const char *name) {
    const gr_arch *arch = c->base->arch;
    if (c->source->format == GR_SOURCE_GGUF) {
        return !in_layers(name, "blk");
    }
    bool prefixed = strncmp(name, PEFT_PREFIX, strlen(PEFT_PREFIX)) == 0;
    if (c->source->format == GR_SOURCE_PEFT && !prefixed) {
        return true;
    }
    const char *path = prefixed ? name + strlen(PEFT_PREFIX) : name;
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

static void name_failed(gr_checker *c, const gr_tensor_info *t, int code, const graft_error *why) {
    if (code == GRAFT_E_UNKNOWN_TARGET && foreign(c, t->name)) {
        if (c->n_unmapped < GR_NAMES_SHOWN) {
            c->unmapped[c->n_unmapped] = t->name;
        }
        c->n_unmapped++;
        return;
    }
    char q[GR_QUOTE_SIZE];
    gr_report_error(c->report, code, gr_verify_where(q, t->name), "%s", without_name(why->message, t->name));
    c->n_unbound++;
}

static void weight_missing(gr_checker *c, const gr_tensor_info *t, const char *weight) {
    char q[GR_QUOTE_SIZE];
    gr_report_error(c->report, GRAFT_E_UNKNOWN_TARGET, gr_verify_where(q, t->name),
                    "the base has no %s; it has layers 0 to %d (wrong base model?)", weight, c->base->n_layer - 1);
    c->n_unbound++;
}

/* A GGUF adapter's weight that the architecture's table does not have. */
static void weight_unknown(gr_checker *c, const gr_tensor_info *t, const gr_module_name *name) {
    char q[GR_QUOTE_SIZE];
    if (gr_base_model_weight(c->base, name->weight) < 0) {
        weight_missing(c, t, name->weight);
        return;
    }
    gr_report_error(c->report, GRAFT_E_UNSUPPORTED_TARGET, gr_verify_where(q, t->name),
                    "%s is not among the weights that adapters can change on %s", name->weight, c->base->arch->name);
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

static void check_layer(gr_checker *c, const gr_tensor_info *t, const gr_module_name *name) {
    char q[GR_QUOTE_SIZE];
    if (name->layer < 0 || name->part > GR_PART_B_BIAS) {
        return;
    }
    if (c->source->format == GR_SOURCE_PEFT && !layer_listed(&c->source->config, name->layer)) {
        gr_report_error(c->report, GRAFT_E_UNEXPECTED_TENSOR, gr_verify_where(q, t->name),
                        "layer %d is not among layers_to_transform of adapter_config.json", name->layer);
    }
    int last = c->source->format == GR_SOURCE_MLX ? c->source->mlx.num_layers : -1;
    if (last >= 0 && name->layer < c->base->n_layer - last) {
        gr_report_error(c->report, GRAFT_E_UNEXPECTED_TENSOR, gr_verify_where(q, t->name),
                        "layer %d is not among the last %d, which num_layers of adapter_config.json says", name->layer,
                        last);
    }
}

/* False, and told, if the base has no such weights. */
static bool has_weights(gr_checker *c, const gr_tensor_info *t, const gr_module_name *name) {
    if (name->layer >= c->base->n_layer) {
        weight_missing(c, t, name->weight);
        return false;
    }
    if (!name->rule) {
        weight_unknown(c, t, name);
        return false;
    }
    gr_targets targets;
    bool bias = name->part == GR_PART_BIAS;
    if (name->part != GR_PART_COPY && !gr_verify_targets(&targets, c, name->rule, name->layer, bias) && !targets.odd[0]) {
        weight_missing(c, t, targets.missing);
        return false;
    }
    return true;
}

/* PEFT saves a module of modules_to_save under its own name; if asked for whole embeddings, with what it wraps it in as well. */
static bool is_wrapped_twin(const gr_tensor_info *t) {
    return strstr(t->name, ".modules_to_save.") != NULL;
}

static void add_copy(gr_checker *c, const gr_tensor_info *t, const gr_slot *s) {
    c->copies[c->n_copies++] = (gr_copy){t, s};
}

/* Whether a bias is only the copy that rides along with a whole embedding or head. */
static bool is_copied_bias(const gr_checker *c, const gr_module_name *name) {
    bool outer = name->rule->role == GR_ROLE_HEAD || name->rule->role == GR_ROLE_EMBEDDING;
    return c->source->format == GR_SOURCE_PEFT && name->part == GR_PART_BIAS && name->wrapped && outer &&
           c->source->config.biases == GR_BIASES_NONE && !gr_peft_config_saves(&c->source->config, name->path);
}

static void put(gr_checker *c, gr_slot *s, const gr_tensor_info *t, const gr_module_name *name) {
    const gr_tensor_info **part = &s->part[name->part];
    if (name->part == GR_PART_COPY || is_copied_bias(c, name) || (*part && is_wrapped_twin(t))) {
        add_copy(c, t, s);
        return;
    }
    if (*part && !is_wrapped_twin(*part)) {
        char q[GR_QUOTE_SIZE], q2[GR_QUOTE_SIZE];
        gr_report_error(c->report, GRAFT_E_DUPLICATE_TARGET, gr_verify_where(q, t->name), "%s has %s already", name->weight,
                        gr_verify_where(q2, (*part)->name));
        return;
    }
    if (*part) {
        add_copy(c, *part, s);
    }
    *part = t;
}

static int bind(gr_checker *c, const gr_tensor_info *t, graft_error *err) {
    gr_module_name name;
    graft_error why;
    int rc = parse_name(c, &name, t->name, &why);
    if (rc) {
        name_failed(c, t, rc, &why);
        return 0;
    }
    c->n_bound++;
    if (name.layer >= 0 && name.layer < c->base->n_layer) {
        c->layer_seen[name.layer] = true;
    }
    if (!has_weights(c, t, &name)) {
        return 0;
    }
    check_layer(c, t, &name);
    size_t layers = (size_t)c->base->n_layer + 1;
    gr_slot *s = &c->slots[gr_arch_rule_index(c->base->arch, name.rule) * layers + (size_t)(name.layer + 1)];
    if (!s->path && !(s->path = gr_strdup(name.path))) {
        return gr_fail_memory(err, strlen(name.path) + 1);
    }
    if (strcmp(s->path, name.path) != 0) { /* the same layer by another path to the text model */
        char q[GR_QUOTE_SIZE];
        gr_report_error(c->report, GRAFT_E_DUPLICATE_TARGET, gr_verify_where(q, t->name), "%s is %.160s already", name.weight,
                        s->path);
        return 0;
    }
    s->rule = name.rule;
    s->layer = name.layer;
    put(c, s, t, &name);
    return 0;
}

static void report_unmapped(gr_checker *c) {
    if (c->n_unmapped == 0) {
        return;
    }
    char names[GR_NAMES_SHOWN * 68] = "";
    size_t o = 0;
    for (size_t i = 0; i < c->n_unmapped && i < GR_NAMES_SHOWN; i++) {
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
                    c->n_unmapped > GR_NAMES_SHOWN ? ", …" : "");
}

int gr_verify_bind(gr_checker *c, graft_error *err) {
    const gr_tensor_list *tensors = &c->source->tensors;
    for (size_t i = 0; i < tensors->n; i++) {
        int rc = bind(c, &tensors->tensors[i], err);
        if (rc) {
            return rc;
        }
    }
    report_unmapped(c);
    return 0;
}
