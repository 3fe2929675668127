/*
 * The whole of verification: names to modules (verify_names.c), modules to entries (verify_shapes.c), then the config
 * (verify_config.c): in this order reasons are told.
 */
#include "verify.h"

#include "base/memory.h"
#include "model/verify_state.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

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
static bool check_gguf(gr_checker *c) {
    const gr_gguf_lora *g = &c->source->gguf;
    char q[GR_QUOTE_SIZE], q2[GR_QUOTE_SIZE];
    if (strcmp(g->architecture, c->base->architecture) != 0) {
        gr_report_error(c->report, GRAFT_E_WRONG_BASE, "general.architecture", "is \"%s\"; the base is \"%s\"",
                        gr_quote(q, g->architecture, strlen(g->architecture)),
                        gr_quote(q2, c->base->architecture, strlen(c->base->architecture)));
        return false;
    }
    return true;
}

/* ---- the plan ------------------------------------------------------------------------------------------- */

static int by_place(const void *a, const void *b) {
    const gr_plan_entry *x = a, *y = b;
    if (x->weight != y->weight) {
        return x->weight < y->weight ? -1 : 1;
    }
    if (x->op != y->op) {
        return x->op < y->op ? -1 : 1;
    }
    return (x->first > y->first) - (x->first < y->first);
}

static const char *tensor_of(const gr_plan_entry *e) {
    return e->value ? e->value->name : e->b->name;
}

/* Two modules that are, or have, the same rows of one weight: what came out would depend on an order. */
static void check_overlaps(gr_checker *c) {
    const gr_plan *p = c->plan;
    for (size_t i = 1; i < p->n; i++) {
        const gr_plan_entry *before = &p->entries[i - 1], *e = &p->entries[i];
        if (e->weight == before->weight && e->op == before->op && e->first < before->first + before->n_rows) {
            char q[GR_QUOTE_SIZE], q2[GR_QUOTE_SIZE];
            gr_report_error(c->report, GRAFT_E_DUPLICATE_TARGET, gr_verify_where(q, tensor_of(e)),
                            "%s is changed by %s already", c->base->weights[e->weight].name,
                            gr_verify_where(q2, tensor_of(before)));
        }
    }
}

static void find_ranks(gr_plan *p) {
    for (size_t i = 0; i < p->n; i++) {
        int rank = p->entries[i].rank;
        if (p->entries[i].kind == GR_LOW_RANK) {
            p->rank_min = p->rank_min == 0 || rank < p->rank_min ? rank : p->rank_min;
            p->rank_max = rank > p->rank_max ? rank : p->rank_max;
        }
    }
}

static int check_slots(gr_checker *c, graft_error *err) {
    for (size_t i = 0; i < c->n_slots; i++) {
        int rc = c->slots[i].path ? gr_verify_entries(c, &c->slots[i], err) : 0;
        if (rc) {
            return rc;
        }
    }
    for (size_t i = 0; i < c->n_copies; i++) {
        gr_verify_copy(c, &c->copies[i]);
    }
    if (c->plan->n > 1) {
        qsort(c->plan->entries, c->plan->n, sizeof *c->plan->entries, by_place);
    }
    check_overlaps(c);
    find_ranks(c->plan);
    gr_verify_config(c);
    return gr_report_result(c->report, err);
}

static int check_tensors(gr_checker *c, graft_error *err) {
    c->n_slots = gr_arch_n_rules(c->base->arch) * ((size_t)c->base->n_layer + 1);
    c->slots = gr_calloc(c->n_slots, sizeof *c->slots);
    c->layer_seen = gr_calloc((size_t)c->base->n_layer + 1, sizeof *c->layer_seen);
    c->copies = gr_calloc(c->source->tensors.n, sizeof *c->copies);
    c->plan = gr_zalloc(sizeof *c->plan);
    if (!c->slots || !c->layer_seen || !c->copies || !c->plan) {
        return gr_fail_memory(err, c->n_slots * sizeof *c->slots);
    }
    c->plan->base = c->base;
    c->plan->source = c->source;
    int rc = gr_verify_bind(c, err);
    return rc ? rc : check_slots(c, err);
}

int gr_verify(gr_plan **out, const gr_base_model *base, gr_source *source, gr_report *report, graft_error *err) {
    gr_checker c = {.base = base, .source = source, .report = report, .config_sound = report->n_errors == 0};
    if (!base->arch) {
        unsupported_model(base, report);
        return gr_report_result(report, err);
    }
    if (source->format == GR_SOURCE_GGUF && !check_gguf(&c)) {
        return gr_report_result(report, err);
    }
    int rc = check_tensors(&c, err);
    for (size_t i = 0; c.slots && i < c.n_slots; i++) {
        gr_free(c.slots[i].path);
    }
    gr_free(c.slots);
    gr_free(c.layer_seen);
    gr_free(c.copies);
    if (rc) {
        gr_plan_free(c.plan);
        return rc;
    }
    *out = c.plan;
    return 0;
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

const char *gr_plan_entry_kind(const gr_plan *p, const gr_plan_entry *e) {
    static const char *const low_rank[3][3] = {{"LoRA", "DoRA", "LoRA + bias"},
                                               {"head LoRA", "head DoRA", "head LoRA + bias"},
                                               {"embedding LoRA", "embedding DoRA", "embedding LoRA + bias"}};
    int place = e->op == GR_OP_ROWS ? 2 : p->base->weights[e->weight].layer < 0 ? 1 : 0;
    switch (e->kind) {
    case GR_LOW_RANK: return low_rank[place][e->magnitude ? 1 : e->bias ? 2 : 0];
    case GR_WHOLE: return place == 2 ? "embedding" : "head";
    case GR_TOKENS: return place == 2 ? "embedding tokens" : "head tokens";
    case GR_NORM: return "norm";
    case GR_BIAS: return "bias";
    }
    return "?";
}
