/* Which weights of the base a module is: one, several (a fused module over split weights), or a part of one. */
#include "verify_state.h"

#include <stdio.h>
#include <string.h>

/* "blk.3.attn_q.weight", or ".bias". */
static void weight_name(char out[64], const char *weight, int layer, bool bias) {
    size_t stem = strlen(weight) - (sizeof ".weight" - 1);
    char number[24] = "";
    if (layer >= 0) {
        snprintf(number, sizeof number, "blk.%d.", layer);
    }
    snprintf(out, 64, "%s%.*s%s", number, (int)stem, weight, bias ? ".bias" : ".weight");
}

/* The weight's id, or -1 with out->missing set. `vector`: it has to be one. */
static int find(gr_targets *out, const gr_checker *c, const char *weight, int layer, bool bias, bool vector) {
    char name[64];
    weight_name(name, weight, layer, bias);
    int id = gr_base_model_weight(c->base, name);
    if (id >= 0 && c->base->weights[id].vector != vector) {
        id = -1;
    }
    if (id < 0 && !out->missing[0]) {
        memcpy(out->missing, name, sizeof name);
    }
    return id;
}

static bool rows_fit(gr_row_map map, int64_t n) {
    int64_t each = map.order == GR_ROWS_NEOX_QKV ? 3 : 2;
    return map.order == GR_ROWS_AS_IS || (map.heads > 0 && n % (each * map.heads) == 0);
}

/* Rows first to first + n of the weight, as the module's next. A GGUF adapter was reordered when it was made. */
static bool add(gr_targets *out, const gr_checker *c, int id, gr_row_order order, int64_t first, int64_t n) {
    if (c->source->format == GR_SOURCE_GGUF) {
        order = GR_ROWS_AS_IS;
    }
    gr_row_map map = {order, order == GR_ROWS_AS_IS ? 0 : order == GR_ROWS_ROPE_K ? c->base->n_head_kv : c->base->n_head};
    if (!rows_fit(map, n)) {
        memcpy(out->odd, c->base->weights[id].name, sizeof out->odd);
        out->heads = map.heads;
        return false;
    }
    out->list[out->n++] = (gr_target){.weight = id, .op = GR_OP_PRODUCT, .rows = map,
                                      .first_in_file = out->n_rows, .first = first, .n_rows = n};
    out->n_rows += n;
    out->n_in = c->base->weights[id].n_in;
    return true;
}

static bool add_whole(gr_targets *out, const gr_checker *c, int id, gr_row_order order) {
    return id >= 0 && add(out, c, id, order, 0, c->base->weights[id].n_out);
}

/* Several weights, one below the other. */
static bool add_stack(gr_targets *out, const gr_checker *c, const char *const *weights, int n, int layer, bool bias) {
    for (int i = 0; i < n; i++) {
        const gr_module_rule *rule = gr_arch_rule_of(c->base->arch, weights[i]);
        if (!rule || !add_whole(out, c, find(out, c, weights[i], layer, bias, bias), rule->order)) {
            return false;
        }
    }
    return true;
}

static const char *const qkv[] = {"attn_q.weight", "attn_k.weight", "attn_v.weight"};
static const char *const gate_up[] = {"ffn_gate.weight", "ffn_up.weight"};

/* q, k or v as a part of attn_qkv, whose heads all have one size. */
static bool add_part_of_qkv(gr_targets *out, const gr_checker *c, int part, int id) {
    int64_t heads[3] = {c->base->n_head, c->base->n_head_kv, c->base->n_head_kv}, rows = c->base->weights[id].n_out;
    int64_t all = heads[0] + heads[1] + heads[2];
    if (all < 1 || rows % all != 0) {
        memcpy(out->odd, c->base->weights[id].name, sizeof out->odd);
        out->heads = (int)all;
        return false;
    }
    int64_t size = rows / all, first = part == 0 ? 0 : part == 1 ? heads[0] * size : (heads[0] + heads[1]) * size;
    return add(out, c, id, GR_ROWS_AS_IS, first, heads[part] * size);
}

/* The weight is not there under the name that the rule has: the base may have q, k and v fused, or not. */
static bool add_otherwise(gr_targets *out, const gr_checker *c, const gr_module_rule *rule, int layer, bool bias) {
    gr_targets other = {.n = 0};
    if (rule->order != GR_ROWS_AS_IS || c->source->format == GR_SOURCE_GGUF) {
        return false;
    }
    if (strcmp(rule->weight, "attn_qkv.weight") == 0) {
        bool found = add_stack(&other, c, qkv, 3, layer, bias);
        if (found || other.odd[0]) {
            *out = other;
        }
        return found;
    }
    for (int i = 0; i < 3; i++) {
        if (strcmp(rule->weight, qkv[i]) == 0) {
            int id = find(&other, c, "attn_qkv.weight", layer, bias, bias);
            bool found = id >= 0 && add_part_of_qkv(&other, c, i, id);
            if (found || other.odd[0]) {
                *out = other;
            }
            return found;
        }
    }
    return false;
}

static bool add_linear(gr_targets *out, const gr_checker *c, const gr_module_rule *rule, int layer, bool bias) {
    if (rule->share == GR_SHARE_GATE_UP) {
        return add_stack(out, c, gate_up, 2, layer, bias);
    }
    int id = find(out, c, rule->weight, layer, bias, bias);
    if (rule->share == GR_SHARE_ALL) {
        return id >= 0 ? add_whole(out, c, id, rule->order) : add_otherwise(out, c, rule, layer, bias);
    }
    int64_t half = id >= 0 ? c->base->weights[id].n_out / 2 : 0;
    return half > 0 && add(out, c, id, rule->order, rule->share == GR_SHARE_UP ? half : 0, half);
}

/* The head of a base that has none of its own is its embedding, in another operation. */
static bool add_head(gr_targets *out, const gr_checker *c, bool bias) {
    int id = find(out, c, "output.weight", -1, bias, bias);
    if (id < 0 && !bias && c->source->format != GR_SOURCE_GGUF) {
        id = find(out, c, "token_embd.weight", -1, false, false);
    }
    return add_whole(out, c, id, GR_ROWS_AS_IS);
}

static bool add_embedding(gr_targets *out, const gr_checker *c) {
    int id = find(out, c, "token_embd.weight", -1, false, false);
    if (!add_whole(out, c, id, GR_ROWS_AS_IS)) {
        return false;
    }
    const gr_weight *w = &c->base->weights[id];
    out->list[0].op = GR_OP_ROWS;
    out->list[0].n_rows = out->n_rows = w->n_in;
    out->n_in = w->n_out;
    return true;
}

bool gr_verify_targets(gr_targets *out, const gr_checker *c, const gr_module_rule *rule, int layer, bool bias) {
    *out = (gr_targets){.n = 0};
    bool found = false;
    switch (rule->role) {
    case GR_ROLE_LINEAR: found = add_linear(out, c, rule, layer, bias); break;
    case GR_ROLE_EMBEDDING: found = !bias && add_embedding(out, c); break;
    case GR_ROLE_HEAD: found = add_head(out, c, bias); break;
    case GR_ROLE_NORM: found = add_whole(out, c, find(out, c, rule->weight, layer, bias, true), GR_ROWS_AS_IS); break;
    }
    for (int i = 0; found && i < out->n; i++) {
        gr_target *t = &out->list[i];
        t->op = bias ? GR_OP_ADD : rule->role == GR_ROLE_NORM ? GR_OP_MUL : t->op;
    }
    if (!found && !out->missing[0] && !out->odd[0]) {
        weight_name(out->missing, rule->weight, layer, bias);
    }
    return found;
}
