/* What the config says against what the file has, both ways, and against the base. */
#include "verify_state.h"

#include <stdio.h>
#include <string.h>

/* ---- by module ------------------------------------------------------------------------------------------ */

static bool unexpected(gr_checker *c, const gr_tensor_info *t, const char *option) {
    char q[GR_QUOTE_SIZE];
    gr_report_error(c->report, GRAFT_E_UNEXPECTED_TENSOR, gr_verify_where(q, t->name),
                    "adapter_config.json has no %s: the file belongs to another config", option);
    return false;
}

static bool lacks(gr_checker *c, const gr_slot *s, const char *option, const char *what) {
    char q[GR_QUOTE_SIZE];
    gr_report_error(c->report, GRAFT_E_MISSING_PAIR, gr_verify_where(q, s->part[GR_PART_A]->name),
                    "%s is set, but there is no %s to go with it", option, what);
    return false;
}

/* An option that adds a tensor to each pair of matrices. */
static bool check_pair(gr_checker *c, const gr_slot *s, gr_name_part part, bool on, const char *option, const char *what) {
    if (!on && s->part[part]) {
        return unexpected(c, s->part[part], option);
    }
    bool pair = s->part[GR_PART_A] && s->part[GR_PART_B];
    return !on || !pair || s->part[part] || lacks(c, s, option, what);
}

/* A whole weight that modules_to_save does not name. */
static bool refuse_value(gr_checker *c, const gr_slot *s) {
    const gr_tensor_info *t = s->part[GR_PART_VALUE];
    int id = s->rule->role == GR_ROLE_NORM ? -1 : gr_base_model_weight(c->base, "token_embd.weight");
    char q[GR_QUOTE_SIZE];
    if (id < 0) {
        return unexpected(c, t, "modules_to_save that names it");
    }
    if (t->n_dims == 2 && t->shape[0] != (uint64_t)c->base->weights[id].n_out) {
        return true; /* a resized vocabulary, which the shapes tell */
    }
    gr_report_error(c->report, GRAFT_E_BASE_WEIGHTS_INCLUDED, gr_verify_where(q, t->name),
                    "is a whole weight that modules_to_save does not name: save the adapter with "
                    "save_embedding_layers=False");
    return false;
}

static bool check_peft(gr_checker *c, const gr_slot *s) {
    const gr_peft_config *config = &c->source->config;
    if (!check_pair(c, s, GR_PART_MAGNITUDE, config->use_dora, "use_dora", "lora_magnitude_vector") ||
        !check_pair(c, s, GR_PART_B_BIAS, config->lora_bias, "lora_bias", "bias of lora_B")) {
        return false;
    }
    bool outer = s->rule->role == GR_ROLE_HEAD || s->rule->role == GR_ROLE_EMBEDDING;
    bool saved = gr_peft_config_saves(config, s->path) || (outer && config->ties_weights && config->n_saved_modules > 0);
    if (s->part[GR_PART_VALUE] && !saved && !refuse_value(c, s)) {
        return false;
    }
    if (s->part[GR_PART_BIAS] && !saved && config->biases == GR_BIASES_NONE) {
        return unexpected(c, s->part[GR_PART_BIAS], "bias that would train it");
    }
    return !s->part[GR_PART_TOKENS] || gr_verify_tokens(c, s) ||
           unexpected(c, s->part[GR_PART_TOKENS], "trainable_token_indices that names it");
}

static bool check_mlx(gr_checker *c, const gr_slot *s) {
    const gr_tensor_info *magnitude = s->part[GR_PART_MAGNITUDE];
    if (magnitude && s->rule->role == GR_ROLE_EMBEDDING) {
        char q[GR_QUOTE_SIZE];
        gr_report_error(c->report, GRAFT_E_UNSUPPORTED_ADAPTER, gr_verify_where(q, magnitude->name),
                        "is mlx-lm's DoRA of an embedding, which scales tokens; graft does not apply it");
        return false;
    }
    return check_pair(c, s, GR_PART_MAGNITUDE, c->source->mlx.dora, "fine_tune_type \"dora\"", "vector m");
}

bool gr_verify_options(gr_checker *c, const gr_slot *s) {
    if (!c->config_sound) {
        return true; /* what the config lacks may only follow from that */
    }
    switch (c->source->format) {
    case GR_SOURCE_PEFT: return check_peft(c, s);
    case GR_SOURCE_MLX: return check_mlx(c, s);
    case GR_SOURCE_GGUF: break;
    }
    return true;
}

/* Whether `module` is the end of the path, by whole names. */
static bool names(const char *module, const char *path) {
    size_t n = strlen(path), m = strlen(module);
    return m <= n && strcmp(path + n - m, module) == 0 && (m == n || path[n - m - 1] == '.');
}

const gr_token_list *gr_verify_tokens(const gr_checker *c, const gr_slot *s) {
    const gr_peft_config *config = &c->source->config;
    for (size_t i = 0; i < config->n_tokens; i++) {
        const gr_token_list *l = &config->tokens[i];
        if (l->module ? names(l->module, s->path) : s->rule->role == GR_ROLE_EMBEDDING) {
            return l;
        }
    }
    return NULL;
}

/* ---- as a whole ----------------------------------------------------------------------------------------- */

static void check_layers(gr_checker *c) {
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

static bool is_saved(const gr_checker *c, const char *module) {
    size_t m = strlen(module);
    for (size_t i = 0; i < c->n_slots; i++) {
        const gr_slot *s = &c->slots[i];
        size_t n = s->path ? strlen(s->path) : 0;
        if (s->path && (s->part[GR_PART_VALUE] || s->part[GR_PART_BIAS]) && m <= n && strcmp(s->path + n - m, module) == 0) {
            return true;
        }
    }
    return false;
}

static void check_saved(gr_checker *c) {
    const gr_peft_config *config = &c->source->config;
    char q[GR_QUOTE_SIZE];
    for (size_t i = 0; i < config->n_saved_modules; i++) {
        const char *module = config->saved_modules[i];
        if (!is_saved(c, module)) {
            gr_report_error(c->report, GRAFT_E_PATTERN_UNUSED, "modules_to_save", "names \"%s\", but the file has no such weight",
                            gr_quote(q, module, strlen(module)));
        }
    }
}

/* A head that is tied has no tokens of its own in the file, if they are those of the embedding. */
static bool has_tokens(const gr_checker *c, const gr_token_list *l) {
    for (size_t i = 0; i < c->n_slots; i++) {
        const gr_slot *s = &c->slots[i];
        const gr_token_list *other = s->path && s->part[GR_PART_TOKENS] ? gr_verify_tokens(c, s) : NULL;
        bool tied = other && s->rule->role == GR_ROLE_EMBEDDING && gr_base_model_weight(c->base, "output.weight") < 0 &&
                    other->n == l->n && memcmp(other->ids, l->ids, l->n * sizeof *l->ids) == 0;
        if (other == l || tied) {
            return true;
        }
    }
    return false;
}

static void check_tokens(gr_checker *c) {
    const gr_peft_config *config = &c->source->config;
    for (size_t i = 0; i < config->n_tokens; i++) {
        const char *module = config->tokens[i].module ? config->tokens[i].module : "the embedding";
        char q[GR_QUOTE_SIZE];
        if (!has_tokens(c, &config->tokens[i])) {
            gr_report_error(c->report, GRAFT_E_MISSING_PAIR, "trainable_token_indices", "the file has no such tokens of %s",
                            gr_quote(q, module, strlen(module)));
        }
    }
}

/* PEFT applies everything but products whether the invocation was read or not; then rows before it would not be the base's. */
static void check_invocation(gr_checker *c) {
    bool peft = c->source->format == GR_SOURCE_PEFT;
    const char *key = peft ? "alora_invocation_tokens" : "adapter.alora.invocation_tokens";
    c->plan->invocation = peft ? c->source->config.invocation : c->source->gguf.invocation;
    c->plan->n_invocation = peft ? c->source->config.n_invocation : c->source->gguf.n_invocation;
    for (size_t i = 0; i < c->plan->n_invocation; i++) {
        if (c->plan->invocation[i] >= c->base->n_vocab) {
            gr_report_error(c->report, GRAFT_E_OUT_OF_RANGE, key, "names token %d; the base has %d tokens (wrong base model?)",
                            (int)c->plan->invocation[i], c->base->n_vocab);
            return;
        }
    }
    for (size_t i = 0; c->plan->invocation && i < c->plan->n; i++) {
        const gr_plan_entry *e = &c->plan->entries[i];
        if (e->kind != GR_LOW_RANK || e->op != GR_OP_PRODUCT) {
            gr_report_error(c->report, GRAFT_E_UNSUPPORTED_ADAPTER, key,
                            "can switch products only, not the change of %.160s", e->module);
            return;
        }
    }
}

static void check_peft_config(gr_checker *c) {
    /* The other way round, Conv1D modules without the option, is fine: PEFT switches it on by itself. */
    if (c->source->config.fan_in_fan_out && !c->base->arch->conv1d) {
        gr_report_error(c->report, GRAFT_E_UNSUPPORTED_ADAPTER, "fan_in_fan_out",
                        "is for Conv1D modules, which %s models do not have", c->base->arch->name);
    }
    check_layers(c);
    /* When names failed, what is unused only follows from that. */
    if (c->n_unbound + c->n_unmapped == 0) {
        gr_peft_config_report_unused(&c->source->config, c->report);
        check_saved(c);
        check_tokens(c);
    }
}

void gr_verify_config(gr_checker *c) {
    if (c->source->format == GR_SOURCE_PEFT) {
        check_peft_config(c);
    }
    if (c->source->format != GR_SOURCE_MLX) {
        check_invocation(c);
    }
}
