/*
 * adapter_config.json as peft 0.21.2 and older write it. What changes the arithmetic is read into fields; what
 * graft does not apply is reported by name; what is training state only is ignored by an explicit list.
 */
#ifndef GR_PEFT_CONFIG_H
#define GR_PEFT_CONFIG_H

#include "base/error.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* One entry of alpha_pattern or rank_pattern; order is the file's. */
typedef struct gr_pattern {
    char *key;        /* a regular expression on the end of a module's path */
    double value;
    char *template;   /* a plain key, unescaped, GR_ANY for "."; NULL for a real regular expression */
    bool anchored;    /* the plain key began with ^ */
    void *compiled;   /* pcre2_code of a real regular expression, owned */
    bool used;        /* matched some module: set by gr_peft_config_alpha / _rank */
    int failed;       /* matching gave up: GRAFT_E_UNSUPPORTED_PATTERN or GRAFT_E_OUT_OF_MEMORY */
} gr_pattern;

/* Keys are module paths as a rule, and there may be one per module; those are compared without pcre2, so
 * that only few patterns can be made to take time. */
#define GR_ANY '\x01'
#define GR_MAX_PATTERNS 10000
#define GR_MAX_REGEXES 256
#define GR_MAX_PATTERN_KEY 512

/* Which of the base's own biases were trained: none, all, those of the modules that have an adapter. */
typedef enum gr_trained_biases { GR_BIASES_NONE, GR_BIASES_ALL, GR_BIASES_LORA_ONLY } gr_trained_biases;

/* The tokens of one module in trainable_token_indices: row i of its tensor is the one of token ids[i]. */
typedef struct gr_token_list {
    char *module; /* the end of the module's path, or NULL: the embedding, whatever it is called */
    int32_t *ids; /* all different, not negative */
    size_t n;
} gr_token_list;

#define GR_MAX_SAVED_MODULES 1024
#define GR_MAX_TOKEN_LISTS 16
#define GR_MAX_TRAINED_TOKENS 65536
#define GR_MAX_INVOCATION 4096

typedef struct gr_peft_config {
    int r;
    double lora_alpha;
    bool use_rslora;
    bool fan_in_fan_out;
    gr_pattern *alpha_pattern;
    size_t n_alpha_pattern;
    gr_pattern *rank_pattern;
    size_t n_rank_pattern;
    char *base_model;      /* base_model_name_or_path, or NULL: a hint only. Text from outside: gr_quote */
    char *target_modules;  /* as text for display: a list joined by ", " or the regex, cut at 4 KiB; or NULL; never
                            * executed. Text from outside: gr_quote */
    int *layers;           /* layers_to_transform, sorted, or NULL */
    size_t n_layers;
    bool use_dora;
    bool lora_bias;
    gr_trained_biases biases;
    char **saved_modules;  /* modules_to_save: the ends of paths. Text from outside: gr_quote */
    size_t n_saved_modules;
    bool ties_weights;     /* ensure_weight_tying: what was trained of a tied embedding is in the file for the head as well */
    gr_token_list *tokens; /* trainable_token_indices */
    size_t n_tokens;
    int32_t *invocation;   /* alora_invocation_tokens, not negative, or NULL */
    size_t n_invocation;
} gr_peft_config;

/*
 * Parses the file's bytes. Syntax errors and wrong types are returned at once through err. Everything that is
 * well-formed but cannot be used (another peft_type, target_parameters, DoRA with lora_bias or aLoRA, …; bad rank
 * or alpha; unknown options that are switched on) goes to `report`, so that a person sees all of it; the return
 * value is then still 0 and the caller looks at report->n_errors. *out: gr_peft_config_finish, also when the
 * report has errors (its alphas and ranks may then be 0). Warnings: a negative alpha.
 * Returned codes: the JSON codes, BAD_TYPE, OUT_OF_MEMORY. Reported: UNSUPPORTED_ADAPTER, BASE_MODIFIED, BAD_RANK,
 * BAD_ALPHA, OUT_OF_RANGE (layers_to_transform, tokens, lists that are too long), UNSUPPORTED_PATTERN, UNKNOWN_OPTION.
 */
int gr_peft_config_parse(gr_peft_config *out, const char *json, size_t length, gr_report *report, graft_error *err);
void gr_peft_config_finish(gr_peft_config *c);

/*
 * The module's lora_alpha and r as PEFT takes them (peft/utils/other.py get_pattern_key): the first pattern in
 * file order for which re.match("(.*\.)?(key)$", path) succeeds, else the config's own. `path` is the module's path
 * inside the wrapped model ("model.layers.0.self_attn.q_proj"). Marks the pattern as used.
 */
double gr_peft_config_alpha(gr_peft_config *c, const char *path);
int gr_peft_config_rank(gr_peft_config *c, const char *path);

/* Whether the module is one of modules_to_save as PEFT takes it: its path ends with one of the names. */
bool gr_peft_config_saves(const gr_peft_config *c, const char *path);

/* alpha / rank, or alpha / sqrt(rank) with use_rslora. */
double gr_peft_config_scale(const gr_peft_config *c, double alpha, int rank);

/* Adds PATTERN_UNUSED for each pattern that matched no module, and UNSUPPORTED_PATTERN for each whose matching took
 * too long (and then counted as no match). Call after all modules were asked for, for both. */
void gr_peft_config_report_unused(const gr_peft_config *c, gr_report *report);

#endif
