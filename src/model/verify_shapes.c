/* Slots to entries of the plan: pairs of matrices, whole weights, tokens, norms and biases, with shapes as the base's. */
#include "verify_state.h"

#include "base/memory.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

typedef struct matrix {
    uint64_t rows, columns;
} matrix;

/* "[64, 8]" */
static const char *shape_text(char out[96], const gr_tensor_info *t) {
    int o = snprintf(out, 96, "[");
    for (uint32_t i = 0; i < t->n_dims; i++) {
        o += snprintf(out + o, 96 - (size_t)o, "%s%" PRIu64, i ? ", " : "", t->shape[i]);
    }
    snprintf(out + o, 96 - (size_t)o, "]");
    return out;
}

static const char *weight_of(const gr_checker *c, const gr_targets *targets) {
    return c->base->weights[targets->list[0].weight].name;
}

/* ---- entries -------------------------------------------------------------------------------------------- */

/* One more entry for what `e` says, on the target's rows. */
static int add_entry(gr_checker *c, const gr_plan_entry *e, const gr_target *t, const gr_slot *s, graft_error *err) {
    gr_plan *p = c->plan;
    if (p->n == c->room) {
        size_t room = c->room ? 2 * c->room : 64;
        gr_plan_entry *grown = gr_realloc(p->entries, room * sizeof *grown);
        if (!grown) {
            return gr_fail_memory(err, room * sizeof *grown);
        }
        p->entries = grown;
        c->room = room;
    }
    gr_plan_entry *out = &p->entries[p->n];
    *out = *e;
    out->op = t->op;
    out->weight = t->weight;
    out->rows = t->rows;
    out->first_in_file = t->first_in_file;
    out->first = t->first;
    out->n_rows = t->n_rows;
    out->module = gr_strdup(s->path);
    if (!out->module) {
        return gr_fail_memory(err, strlen(s->path) + 1);
    }
    p->n++;
    return 0;
}

static int add_entries(gr_checker *c, const gr_plan_entry *e, const gr_targets *targets, const gr_slot *s, graft_error *err) {
    int rc = 0;
    for (int i = 0; i < targets->n && !rc; i++) {
        rc = add_entry(c, e, &targets->list[i], s, err);
    }
    return rc;
}

/* False after an error in the report: `where` names the tensor that has the rows. Missing weights were told by name. */
static bool find_targets(gr_checker *c, gr_targets *out, const gr_slot *s, bool bias, const gr_tensor_info *where) {
    if (gr_verify_targets(out, c, s->rule, s->layer, bias)) {
        return true;
    }
    if (out->odd[0]) {
        char q[GR_QUOTE_SIZE];
        gr_report_error(c->report, GRAFT_E_UNSUPPORTED_TARGET, gr_verify_where(q, where->name),
                        "the rows of %s cannot be divided among %d heads: its row order is unknown", out->odd, out->heads);
    }
    return false;
}

/* ---- vocabularies --------------------------------------------------------------------------------------- */

/* Embeddings and heads of another vocabulary; `has` is the tensor's number of tokens. */
static void report_vocabulary(gr_checker *c, const gr_tensor_info *t, uint64_t has, int64_t base) {
    char q[GR_QUOTE_SIZE], shape[96];
    uint64_t tokens = (uint64_t)base;
    gr_report_error(c->report, GRAFT_E_WRONG_SHAPE, gr_verify_where(q, t->name),
                    "shape %s is one of %" PRIu64 " tokens, the base has %" PRIu64 ": it %s %" PRIu64 " tokens",
                    shape_text(shape, t), has, tokens, has > tokens ? "adds" : "lacks", has > tokens ? has - tokens : tokens - has);
}

/* ---- pairs of matrices ---------------------------------------------------------------------------------- */

/* The name that the other half of a pair would have. */
static const char *partner(char out[GR_MAX_TENSOR_NAME + 1], const char *name) {
    static const char *const halves[][2] = {
        {"lora_embedding_A", "lora_embedding_B"}, {"lora_A", "lora_B"}, {"lora_a", "lora_b"}};
    snprintf(out, GR_MAX_TENSOR_NAME + 1, "%s", name);
    for (char *p = out + strlen(out); p-- > out;) {
        for (size_t i = 0; i < sizeof halves / sizeof *halves; i++) {
            size_t n = strlen(halves[i][0]);
            if (strncmp(p, halves[i][0], n) == 0 || strncmp(p, halves[i][1], n) == 0) {
                bool first = strncmp(p, halves[i][0], n) == 0;
                p[n - 1] = halves[i][first ? 1 : 0][n - 1];
                return out;
            }
        }
    }
    return out;
}

/* Whether the tensor is the transposed of what PEFT has. */
static bool is_transposed(const gr_checker *c, const gr_slot *s, gr_name_part part) {
    return c->source->format == GR_SOURCE_MLX ||
           (c->source->format == GR_SOURCE_GGUF && s->rule->role == GR_ROLE_EMBEDDING && part == GR_PART_A);
}

/* A or B as PEFT has them: [rank, n_in], [n_out, rank]. False after an error in the report. */
static bool as_matrix(gr_checker *c, matrix *out, const gr_slot *s, gr_name_part part) {
    const gr_tensor_info *t = s->part[part];
    bool gguf = c->source->format == GR_SOURCE_GGUF;
    if (t->n_dims == 2) {
        bool transposed = is_transposed(c, s, part);
        *out = transposed ? (matrix){t->shape[1], t->shape[0]} : (matrix){t->shape[0], t->shape[1]};
        return true;
    }
    /* ggml drops trailing dimensions of 1 on writing, so an A of rank 1 comes back as a vector. */
    if (gguf && part == GR_PART_A && t->n_dims == 1) {
        *out = (matrix){1, t->shape[0]};
        return true;
    }
    char q[GR_QUOTE_SIZE], shape[96];
    gr_report_error(c->report, gguf ? GRAFT_E_WRONG_SHAPE : GRAFT_E_BAD_RANK, gr_verify_where(q, t->name),
                    "has %u dimensions, %s; a matrix is needed", (unsigned)t->n_dims, shape_text(shape, t));
    return false;
}

static bool is_turned(const gr_checker *c, const gr_targets *targets, matrix a, matrix b) {
    uint64_t n_in = (uint64_t)targets->n_in, n_out = (uint64_t)targets->n_rows;
    return c->source->format != GR_SOURCE_MLX && a.rows == n_in && b.columns == n_out && a.columns == b.rows &&
           (a.columns != n_in || b.rows != n_out);
}

static bool shapes_fit(gr_checker *c, const gr_slot *s, const gr_targets *targets, matrix a, matrix b) {
    uint64_t n_in = (uint64_t)targets->n_in, n_out = (uint64_t)targets->n_rows;
    const gr_tensor_info *ta = s->part[GR_PART_A], *tb = s->part[GR_PART_B];
    char q[GR_QUOTE_SIZE], shape[96];
    if (is_turned(c, targets, a, b)) {
        gr_report_error(c->report, GRAFT_E_WRONG_SHAPE, gr_verify_where(q, ta->name),
                        "shape %s is transposed: PEFT stores lora_A as [rank, %" PRIu64 "] and lora_B as [%" PRIu64
                        ", rank]", shape_text(shape, ta), n_in, n_out);
        return false;
    }
    if (s->rule->role == GR_ROLE_EMBEDDING && a.columns != n_in) {
        report_vocabulary(c, ta, a.columns, targets->n_in);
        return false;
    }
    if (s->rule->role == GR_ROLE_HEAD && b.rows != n_out) {
        report_vocabulary(c, tb, b.rows, targets->n_rows);
        return false;
    }
    if (a.columns != n_in) {
        gr_report_error(c->report, GRAFT_E_WRONG_SHAPE, gr_verify_where(q, ta->name),
                        "shape %s does not fit %s: %" PRIu64 " columns needed (wrong base model?)",
                        shape_text(shape, ta), weight_of(c, targets), n_in);
    }
    if (b.rows != n_out) {
        gr_report_error(c->report, GRAFT_E_WRONG_SHAPE, gr_verify_where(q, tb->name),
                        "shape %s does not fit %s: %" PRIu64 " rows needed (wrong base model?)",
                        shape_text(shape, tb), weight_of(c, targets), n_out);
    }
    return a.columns == n_in && b.rows == n_out;
}

/* `wanted`: the config's rank, 0 if it does not say. */
static bool rank_fits(gr_checker *c, const gr_slot *s, matrix a, matrix b, int wanted) {
    const char *name = s->part[GR_PART_A]->name;
    char q[GR_QUOTE_SIZE];
    if (a.rows != b.columns) {
        gr_report_error(c->report, GRAFT_E_RANK_MISMATCH, gr_verify_where(q, name),
                        "rank %" PRIu64 ", but the other half has rank %" PRIu64, a.rows, b.columns);
        return false;
    }
    if (a.rows < 1 || a.rows > GR_MAX_RANK) {
        gr_report_error(c->report, GRAFT_E_BAD_RANK, gr_verify_where(q, name), "rank %" PRIu64 ", allowed are 1 to %d",
                        a.rows, GR_MAX_RANK);
        return false;
    }
    if (wanted > 0 && a.rows != (uint64_t)wanted) {
        gr_report_error(c->report, GRAFT_E_RANK_MISMATCH, gr_verify_where(q, name),
                        "rank %" PRIu64 ", but adapter_config.json says %d", a.rows, wanted);
        return false;
    }
    return true;
}

/* A vector of this length; else reported. `t` may be NULL. */
static bool vector_fits(gr_checker *c, const gr_tensor_info *t, const gr_targets *targets, int64_t length) {
    if (!t || (t->n_dims == 1 && t->shape[0] == (uint64_t)length)) {
        return true;
    }
    char q[GR_QUOTE_SIZE], shape[96];
    gr_report_error(c->report, GRAFT_E_WRONG_SHAPE, gr_verify_where(q, t->name),
                    "shape %s does not fit %s: [%lld] needed (wrong base model?)", shape_text(shape, t),
                    weight_of(c, targets), (long long)length);
    return false;
}

/* The module's alpha and rank by the config. Asked for every module, also a bad one: PEFT's config notes which of its patterns
 * matched. A rank of 0: it does not say. */
static double config_alpha(const gr_checker *c, const gr_slot *s, int *rank) {
    *rank = 0;
    switch (c->source->format) {
    case GR_SOURCE_GGUF: return c->source->gguf.alpha;
    case GR_SOURCE_MLX: *rank = c->source->mlx.rank; return c->source->mlx.scale;
    case GR_SOURCE_PEFT: break;
    }
    *rank = gr_peft_config_rank(&c->source->config, s->path);
    return gr_peft_config_alpha(&c->source->config, s->path);
}

static bool scale_fits(gr_checker *c, gr_plan_entry *e, double alpha, const gr_slot *s) {
    switch (c->source->format) {
    case GR_SOURCE_GGUF: e->scale = alpha / e->rank; break;
    case GR_SOURCE_MLX: e->scale = alpha; break;
    case GR_SOURCE_PEFT: e->scale = gr_peft_config_scale(&c->source->config, alpha, e->rank); break;
    }
    float applied = (float)e->scale;
    if (c->config_sound && (!isfinite(applied) || applied == 0.0f)) {
        char q[GR_QUOTE_SIZE];
        gr_report_error(c->report, GRAFT_E_BAD_ALPHA, gr_verify_where(q, s->part[GR_PART_A]->name),
                        "alpha %g at rank %d gives no usable scale", alpha, e->rank);
        return false;
    }
    return true;
}

static bool has_both(gr_checker *c, const gr_slot *s) {
    if (s->part[GR_PART_A] && s->part[GR_PART_B]) {
        return true;
    }
    char other[GR_MAX_TENSOR_NAME + 1], q[GR_QUOTE_SIZE], q2[GR_QUOTE_SIZE];
    const gr_tensor_info *half = s->part[GR_PART_A] ? s->part[GR_PART_A] : s->part[GR_PART_B];
    if (half) {
        gr_report_error(c->report, GRAFT_E_MISSING_PAIR, gr_verify_where(q, half->name), "there is no %s to go with it",
                        gr_verify_where(q2, partner(other, half->name)));
        return false;
    }
    const gr_tensor_info *t = s->part[GR_PART_MAGNITUDE] ? s->part[GR_PART_MAGNITUDE] : s->part[GR_PART_B_BIAS];
    gr_report_error(c->report, GRAFT_E_MISSING_PAIR, gr_verify_where(q, t->name), "there are no LoRA matrices to go with it");
    return false;
}

/* mlx-lm computes the logits of a tied base with the embedding's adapter as well, turned around. */
static int add_tied_product(gr_checker *c, const gr_plan_entry *e, const gr_slot *s, graft_error *err) {
    gr_targets head;
    static const gr_module_rule rule = {"lm_head", "output.weight", GR_ROWS_AS_IS, GR_ROLE_HEAD, GR_SHARE_ALL};
    if (c->source->format != GR_SOURCE_MLX || s->rule->role != GR_ROLE_EMBEDDING ||
        !gr_verify_targets(&head, c, &rule, -1, false) || head.list[0].weight != gr_base_model_weight(c->base, "token_embd.weight")) {
        return 0;
    }
    gr_plan_entry turned = *e;
    turned.a = e->b;
    turned.b = e->a;
    turned.transposed = false;
    return add_entries(c, &turned, &head, s, err);
}

static int add_pair(gr_checker *c, const gr_slot *s, double alpha, int wanted, graft_error *err) {
    if (!has_both(c, s)) {
        return 0;
    }
    gr_targets targets;
    matrix a, b;
    bool both = as_matrix(c, &a, s, GR_PART_A);
    both = as_matrix(c, &b, s, GR_PART_B) && both;
    if (!both || !find_targets(c, &targets, s, false, s->part[GR_PART_B]) || !shapes_fit(c, s, &targets, a, b) ||
        !rank_fits(c, s, a, b, wanted) || !vector_fits(c, s->part[GR_PART_MAGNITUDE], &targets, targets.n_rows) ||
        !vector_fits(c, s->part[GR_PART_B_BIAS], &targets, targets.n_rows)) {
        return 0;
    }
    gr_plan_entry e = {.kind = GR_LOW_RANK,
                       .a = s->part[GR_PART_A],
                       .b = s->part[GR_PART_B],
                       .magnitude = s->part[GR_PART_MAGNITUDE],
                       .bias = s->part[GR_PART_B_BIAS],
                       .transposed = c->source->format == GR_SOURCE_MLX,
                       .rank = (int)a.rows};
    if (!scale_fits(c, &e, alpha, s)) {
        return 0;
    }
    int rc = add_entries(c, &e, &targets, s, err);
    return rc ? rc : add_tied_product(c, &e, s, err);
}

/* ---- whole weights, tokens, norms, biases --------------------------------------------------------------- */

/* A matrix with this many columns; else reported. */
static bool is_matrix(gr_checker *c, const gr_tensor_info *t, const gr_targets *targets, int64_t columns) {
    if (t->n_dims == 2 && t->shape[1] == (uint64_t)columns) {
        return true;
    }
    char q[GR_QUOTE_SIZE], shape[96];
    gr_report_error(c->report, GRAFT_E_WRONG_SHAPE, gr_verify_where(q, t->name),
                    "shape %s does not fit %s: %lld columns needed (wrong base model?)", shape_text(shape, t),
                    weight_of(c, targets), (long long)columns);
    return false;
}

/* Of an embedding or head: n tokens of `width` numbers in the base, and another number in the file is told. */
static bool vocabulary_fits(gr_checker *c, const gr_tensor_info *t, const gr_targets *targets) {
    const gr_weight *w = &c->base->weights[targets->list[0].weight];
    if (!is_matrix(c, t, targets, w->n_in)) {
        return false;
    }
    if (t->shape[0] != (uint64_t)w->n_out) {
        report_vocabulary(c, t, t->shape[0], w->n_out);
        return false;
    }
    return true;
}

static int add_value(gr_checker *c, const gr_slot *s, graft_error *err) {
    const gr_tensor_info *t = s->part[GR_PART_VALUE];
    gr_targets targets;
    if (!find_targets(c, &targets, s, false, t)) {
        return 0;
    }
    bool norm = s->rule->role == GR_ROLE_NORM;
    if (norm ? !vector_fits(c, t, &targets, targets.n_rows) : !vocabulary_fits(c, t, &targets)) {
        return 0;
    }
    gr_plan_entry e = {.kind = norm ? GR_NORM : GR_WHOLE, .value = t};
    if (norm && c->source->format != GR_SOURCE_GGUF) {
        e.added = c->base->arch->norm_added;
    }
    return add_entries(c, &e, &targets, s, err);
}

static int add_bias(gr_checker *c, const gr_slot *s, graft_error *err) {
    const gr_tensor_info *t = s->part[GR_PART_BIAS];
    gr_targets targets;
    if (!find_targets(c, &targets, s, true, t) || !vector_fits(c, t, &targets, targets.n_rows)) {
        return 0;
    }
    return add_entries(c, &(gr_plan_entry){.kind = GR_BIAS, .value = t}, &targets, s, err);
}

static bool tokens_fit(gr_checker *c, const gr_tensor_info *t, const gr_token_list *l, const gr_targets *targets) {
    const gr_weight *w = &c->base->weights[targets->list[0].weight];
    char q[GR_QUOTE_SIZE], shape[96];
    if (!is_matrix(c, t, targets, w->n_in)) {
        return false;
    }
    if (t->shape[0] != l->n) {
        gr_report_error(c->report, GRAFT_E_WRONG_SHAPE, gr_verify_where(q, t->name),
                        "shape %s, but trainable_token_indices names %zu tokens", shape_text(shape, t), l->n);
        return false;
    }
    for (size_t i = 0; i < l->n; i++) {
        if (l->ids[i] >= w->n_out) {
            gr_report_error(c->report, GRAFT_E_OUT_OF_RANGE, "trainable_token_indices",
                            "names token %d; the base has %lld tokens: the adapter adds tokens", (int)l->ids[i],
                            (long long)w->n_out);
            return false;
        }
    }
    return true;
}

static bool same_tokens(const gr_token_list *a, const gr_token_list *b) {
    return a->n == b->n && memcmp(a->ids, b->ids, a->n * sizeof *a->ids) == 0;
}

/* Whether the head of a tied base follows the embedding's tokens: PEFT ties them, unless the head has others of its own. */
static bool head_follows(const gr_checker *c, const gr_token_list *l) {
    const gr_peft_config *config = &c->source->config;
    for (size_t i = 0; i < config->n_tokens; i++) {
        const char *module = config->tokens[i].module, *dot = module ? strrchr(module, '.') : NULL;
        const char *last = dot ? dot + 1 : module;
        if (last && (strcmp(last, "lm_head") == 0 || strcmp(last, "embed_out") == 0)) {
            return same_tokens(&config->tokens[i], l);
        }
    }
    return true;
}

static int add_tokens(gr_checker *c, const gr_slot *s, graft_error *err) {
    const gr_token_list *l = gr_verify_tokens(c, s);
    const gr_tensor_info *t = s->part[GR_PART_TOKENS];
    gr_targets targets, head;
    if (!l || !find_targets(c, &targets, s, false, t) || !tokens_fit(c, t, l, &targets)) {
        return 0;
    }
    gr_plan_entry e = {.kind = GR_TOKENS, .value = t, .tokens = l->ids, .n_tokens = l->n};
    int rc = add_entries(c, &e, &targets, s, err);
    static const gr_module_rule rule = {"lm_head", "output.weight", GR_ROWS_AS_IS, GR_ROLE_HEAD, GR_SHARE_ALL};
    if (!rc && s->rule->role == GR_ROLE_EMBEDDING && gr_verify_targets(&head, c, &rule, -1, false) &&
        head.list[0].weight == targets.list[0].weight && head_follows(c, l)) {
        rc = add_entries(c, &e, &head, s, err);
    }
    return rc;
}

int gr_verify_entries(gr_checker *c, const gr_slot *s, graft_error *err) {
    int rc = 0, rank = 0;
    bool low_rank = s->part[GR_PART_A] || s->part[GR_PART_B] || s->part[GR_PART_MAGNITUDE] || s->part[GR_PART_B_BIAS];
    double alpha = low_rank ? config_alpha(c, s, &rank) : 0;
    if (!gr_verify_options(c, s)) {
        return 0;
    }
    if (low_rank) {
        rc = add_pair(c, s, alpha, rank, err);
    }
    if (!rc && s->part[GR_PART_VALUE]) {
        rc = add_value(c, s, err);
    }
    if (!rc && s->part[GR_PART_BIAS]) {
        rc = add_bias(c, s, err);
    }
    if (!rc && s->part[GR_PART_TOKENS]) {
        rc = add_tokens(c, s, err);
    }
    return rc;
}

/* ---- copies --------------------------------------------------------------------------------------------- */

/* What the copy rides along with. */
static bool has_company(const gr_slot *s) {
    return s->part[GR_PART_A] || s->part[GR_PART_B] || s->part[GR_PART_VALUE] || s->part[GR_PART_TOKENS] ||
           s->part[GR_PART_BIAS];
}

void gr_verify_copy(gr_checker *c, const gr_copy *copy) {
    const gr_tensor_info *t = copy->tensor;
    size_t n = strlen(t->name);
    bool bias = n > 5 && strcmp(t->name + n - 5, ".bias") == 0;
    char q[GR_QUOTE_SIZE];
    gr_targets targets;
    if (!has_company(copy->slot)) {
        gr_report_error(c->report, GRAFT_E_BASE_WEIGHTS_INCLUDED, gr_verify_where(q, t->name),
                        "is a weight of the base: save the adapter with save_embedding_layers=False");
        return;
    }
    if (!find_targets(c, &targets, copy->slot, bias, t)) {
        return;
    }
    bool fits = bias || copy->slot->rule->role == GR_ROLE_NORM ? vector_fits(c, t, &targets, targets.n_rows)
                                                               : vocabulary_fits(c, t, &targets);
    if (fits) {
        gr_report_warn(c->report, GRAFT_E_BASE_WEIGHTS_INCLUDED, gr_verify_where(q, t->name),
                       "is left out: it repeats a weight of the base");
    }
}
