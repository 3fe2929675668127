/* For verify*.c: what verification knows while it runs. */
#ifndef GR_VERIFY_STATE_H
#define GR_VERIFY_STATE_H

#include "model/verify.h"

enum { GR_NAMES_SHOWN = 5 };

/* What the adapter has for one module; slots are indexed by rule and layer. */
typedef struct gr_slot {
    const gr_tensor_info *part[GR_PARTS];
    char *path; /* owned; NULL: nothing bound here */
    const gr_module_rule *rule;
    int layer;
} gr_slot;

/* A tensor that only repeats weights of the base, and the slot of its module. */
typedef struct gr_copy {
    const gr_tensor_info *tensor;
    const gr_slot *slot;
} gr_copy;

/* One weight that a module is, or a part of one. */
typedef struct gr_target {
    int weight;
    gr_op op;
    gr_row_map rows;
    int64_t first_in_file, first, n_rows;
} gr_target;

enum { GR_MAX_TARGETS = 3 };

/* All of a module: its rows are those of the targets, one after another. */
typedef struct gr_targets {
    gr_target list[GR_MAX_TARGETS];
    int n;
    int64_t n_in, n_rows; /* of the operation */
    char missing[64];     /* the weight that the base lacks */
    char odd[64];         /* the weight whose rows the heads do not divide */
    int heads;
} gr_targets;

typedef struct gr_checker {
    const gr_base_model *base;
    gr_source *source;
    gr_report *report;
    gr_slot *slots;
    size_t n_slots;
    bool *layer_seen;   /* by layer: some tensor of the adapter belongs to it */
    gr_copy *copies;
    size_t n_copies;
    size_t n_bound;     /* tensors whose names made sense for this architecture */
    size_t n_unbound;   /* tensors with an error of their own, by name */
    size_t n_unmapped;  /* tensors of other models' paths; told in one summary */
    const char *unmapped[GR_NAMES_SHOWN];
    bool config_sound;  /* the config brought no error: its numbers can be compared */
    gr_plan *plan;
    size_t room;        /* entries that fit */
} gr_checker;

/* ---- verify_names.c: tensors to slots ---- */

/* A tensor name as the report's `where`: whole if it is short and plain, else quoted and cut. */
const char *gr_verify_where(char out[GR_QUOTE_SIZE], const char *name);
/* Binds all tensors; what has no module is reported. Fails with OUT_OF_MEMORY only. */
int gr_verify_bind(gr_checker *c, graft_error *err);

/* ---- verify_targets.c: modules to weights ---- */

/* The weights of a module, or with `bias` its biases. False if the base lacks one (out->missing) or if the row order cannot be
 * known (out->odd). */
bool gr_verify_targets(gr_targets *out, const gr_checker *c, const gr_module_rule *rule, int layer, bool bias);

/* ---- verify_shapes.c: slots to entries ---- */

/* Adds the entries of a slot to the plan, or reasons to the report. Fails with OUT_OF_MEMORY only. */
int gr_verify_entries(gr_checker *c, const gr_slot *s, graft_error *err);
/* Whether a copy of the base's weights has their shape; else reported. */
void gr_verify_copy(gr_checker *c, const gr_copy *copy);

/* ---- verify_config.c: options against tensors and base ---- */

/* Whether the config knows of what the slot has. False after an error in the report. */
bool gr_verify_options(gr_checker *c, const gr_slot *s);
/* The tokens of the slot's part TOKENS, or NULL. */
const gr_token_list *gr_verify_tokens(const gr_checker *c, const gr_slot *s);
/* What concerns the config as a whole; after all slots. */
void gr_verify_config(gr_checker *c);

#endif
