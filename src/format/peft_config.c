/*
 * adapter_config.json. Three kinds of keys: those read into fields, those that must be off (what they switch on
 * changes the product, and graft does not apply it), and those that only mattered in training. Everything else
 * must be off too.
 */
#include "peft_config.h"

#include "base/buffer.h"
#include "base/memory.h"
#include "format/json.h"
#include "format/peft_lists.h"

#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

static const char file_name[] = "adapter_config.json";

/* Larger ones are typing errors; the product would overflow long before. */
static const double alpha_max = 1e9;

enum { TARGETS_TEXT_MAX = 4096 };

/* What is being parsed, and where findings go. */
typedef struct parse {
    gr_peft_config *c;
    const json_t *root;
    gr_report *report;
    graft_error *err;
    size_t n_regexes;
} parse;

/* ---- values ---------------------------------------------------------------------------------------------- */

/* The key's value; NULL if it is absent or null, which PEFT treats alike. */
static const json_t *get(const parse *p, const char *key) {
    const json_t *v = json_object_get(p->root, key);
    return json_is_null(v) ? NULL : v;
}

static int bad_type(const parse *p, const char *key, const json_t *v, const char *allowed) {
    return gr_fail(p->err, GRAFT_E_BAD_TYPE, "%s: %s is %s (allowed: %s)", file_name, key, gr_json_type_name(v),
                   allowed);
}

static int get_bool(const parse *p, const char *key, bool *out) {
    const json_t *v = get(p, key);
    if (v && !json_is_boolean(v)) {
        return bad_type(p, key, v, "true, false");
    }
    *out = json_is_true(v);
    return 0;
}

/* *out is borrowed from the JSON; NULL when absent. */
static int get_string(const parse *p, const char *key, const char **out) {
    const json_t *v = get(p, key);
    if (v && !json_is_string(v)) {
        return bad_type(p, key, v, "a string");
    }
    *out = v ? json_string_value(v) : NULL;
    return 0;
}

/* As Python's truth, by which PEFT tests most options: null, false, 0, "", [] and {} are off. */
static bool is_off(const json_t *v) {
    switch (json_typeof(v)) {
    case JSON_NULL:
    case JSON_FALSE: return true;
    case JSON_TRUE: return false;
    case JSON_INTEGER: return json_integer_value(v) == 0;
    case JSON_REAL: return json_real_value(v) == 0;
    case JSON_STRING: return json_string_length(v) == 0;
    case JSON_ARRAY: return json_array_size(v) == 0;
    case JSON_OBJECT: return json_object_size(v) == 0;
    }
    return false;
}

/* 0 if the value is no integer of 1 to INT_MAX. A boolean and 8.0 are none, though Python would take them. */
static int rank_value(const json_t *v) {
    bool ok = json_is_integer(v) && json_integer_value(v) >= 1 && json_integer_value(v) <= INT_MAX;
    return ok ? (int)json_integer_value(v) : 0;
}

/* 0 if the value is no number that can scale something. */
static double alpha_value(const json_t *v) {
    double alpha = json_is_number(v) ? json_number_value(v) : 0;
    return isfinite(alpha) && fabs(alpha) <= alpha_max ? alpha : 0;
}

/* A number as text for a message, or its type. */
static const char *shown(char out[64], const json_t *v) {
    if (json_is_integer(v)) {
        snprintf(out, 64, "%lld", (long long)json_integer_value(v));
    } else if (json_is_real(v)) {
        snprintf(out, 64, "%.9g", json_real_value(v));
    } else {
        snprintf(out, 64, "%s", gr_json_type_name(v));
    }
    return out;
}

/* A switch that old files may have as 0 or as an empty text. */
static int get_switch(const parse *p, const char *key, bool *out) {
    const json_t *v = get(p, key);
    bool off = v && !json_is_array(v) && !json_is_object(v) && is_off(v);
    return off ? 0 : get_bool(p, key, out);
}

/* ---- keys that must be off ------------------------------------------------------------------------------- */

/* OFF_FALSY: off as is_off says. OFF_NULL: a configuration object switches its variant on even when empty. */
enum off { OFF_FALSY, OFF_NULL };

static const struct {
    const char *key;
    enum off off;
    const char *means;
} refused[] = {
    {"target_parameters", OFF_FALSY, "adapters on parameters (experts)"},
    {"layer_replication", OFF_FALSY, "repeated layers"},
    {"use_qalora", OFF_FALSY, "QA-LoRA"},
    {"use_bdlora", OFF_NULL, "BD-LoRA"},
    {"arrow_config", OFF_NULL, "Arrow routing"},
    {"kasa_config", OFF_NULL, "KaSA"},
    {"monteclora_config", OFF_NULL, "MonteCLoRA"},
    {"megatron_config", OFF_FALSY, "Megatron layers"},
    {"loftq_config", OFF_FALSY, "LoftQ, which changes the base"},
};

/* Of no effect on the product of a trained adapter. target_modules and its kin chose what was trained; which
 * tensors there are says it better. The *_config ones belong to ways of initialising, which init_lora_weights
 * names. velora_config changes the backward pass only. The last three are ms-swift's. */
static const char *const harmless[] = {
    "auto_mapping",    "base_model_name_or_path", "corda_config",   "eva_config",
    "exclude_modules", "inference_mode",          "layers_pattern", "lora_dropout",        "lora_ga_config",
    "megatron_core",   "merge_weights",           "peft_version",   "qalora_group_size",   "revision",
    "runtime_config",  "target_modules",          "velora_config",  "lora_dtype",          "lorap_emb_lr",
    "lorap_lr_ratio",
};

/* Read by functions of their own. */
static const char *const handled[] = {
    "alora_invocation_tokens", "alpha_pattern",   "bias", "ensure_weight_tying", "fan_in_fan_out", "init_lora_weights",
    "layers_to_transform",     "lora_alpha",      "lora_bias", "modules_to_save", "peft_type",
    "r",                       "rank_pattern",    "task_type", "trainable_token_indices", "use_dora",
    "use_rslora",
};

static bool is_in(const char *key, const char *const *list, size_t n) {
    for (size_t i = 0; i < n; i++) {
        if (strcmp(key, list[i]) == 0) {
            return true;
        }
    }
    return false;
}

static void check_key(const parse *p, const char *key, const json_t *v) {
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
        if (strcmp(key, refused[i].key) == 0) {
            bool off = refused[i].off == OFF_NULL ? json_is_null(v) || json_is_false(v) : is_off(v);
            if (!off) {
                gr_report_error(p->report, GRAFT_E_UNSUPPORTED_ADAPTER, key,
                                "uses %s, which graft does not apply", refused[i].means);
            }
            return;
        }
    }
    if (is_in(key, harmless, sizeof harmless / sizeof *harmless) ||
        is_in(key, handled, sizeof handled / sizeof *handled) || is_off(v)) {
        return;
    }
    char quoted[GR_QUOTE_SIZE];
    gr_quote(quoted, key, strlen(key));
    gr_report_error(p->report, GRAFT_E_UNKNOWN_OPTION, quoted,
                    "is set (%s), and graft does not know what it does", gr_json_type_name(v));
}

static void check_keys(const parse *p) {
    const char *key;
    json_t *v;
    json_object_foreach((json_t *)p->root, key, v) {
        check_key(p, key, v);
    }
}

/* ---- options that are words ------------------------------------------------------------------------------ */

/* *is_lora is false for another kind of adapter, whose other keys mean nothing to us. */
static int check_peft_type(const parse *p, bool *is_lora) {
    const char *type = NULL;
    int code = get_string(p, "peft_type", &type);
    if (code) {
        return code;
    }
    char quoted[GR_QUOTE_SIZE];
    *is_lora = type && strcmp(type, "LORA") == 0;
    if (!type) {
        bool mlx = json_object_get(p->root, "fine_tune_type") || json_object_get(p->root, "lora_parameters");
        gr_report_error(p->report, GRAFT_E_UNSUPPORTED_ADAPTER, "peft_type", "is missing (allowed: \"LORA\")%s",
                        mlx ? "; this looks like a configuration of mlx-lm" : "");
    } else if (!*is_lora) {
        gr_report_error(p->report, GRAFT_E_UNSUPPORTED_ADAPTER, "peft_type", "is \"%s\" (allowed: \"LORA\")",
                        gr_quote(quoted, type, strlen(type)));
    }
    return 0;
}

static int read_bias(const parse *p) {
    const char *bias = NULL;
    int code = get_string(p, "bias", &bias);
    if (code || !bias || strcmp(bias, "none") == 0) {
        return code;
    }
    char quoted[GR_QUOTE_SIZE];
    if (strcmp(bias, "all") == 0) {
        p->c->biases = GR_BIASES_ALL;
    } else if (strcmp(bias, "lora_only") == 0) {
        p->c->biases = GR_BIASES_LORA_ONLY;
    } else {
        gr_report_error(p->report, GRAFT_E_UNSUPPORTED_ADAPTER, "bias", "is \"%s\" (allowed: \"none\", \"all\", \"lora_only\")",
                        gr_quote(quoted, bias, strlen(bias)));
    }
    return 0;
}

/* The task adds a head of its own unless it is one of generating text. */
static int check_task(const parse *p) {
    const char *task = NULL;
    int code = get_string(p, "task_type", &task);
    if (!code && task && *task && strcmp(task, "CAUSAL_LM") != 0 && strcmp(task, "SEQ_2_SEQ_LM") != 0) {
        char quoted[GR_QUOTE_SIZE];
        gr_report_error(p->report, GRAFT_E_UNSUPPORTED_ADAPTER, "task_type",
                        "is \"%s\" (allowed: \"CAUSAL_LM\")", gr_quote(quoted, task, strlen(task)));
    }
    return code;
}

/* Some ways of initialising take what A and B begin with out of the base's weights. PEFT sets the key to true
 * when it converts such an adapter for the base as it was. */
static int check_init(const parse *p) {
    static const char *const fine[] = {"gaussian", "orthogonal", "eva", "mica", ""};
    static const char *const changes_base[] = {"olora", "corda", "loftq", "lora_ga"};
    const json_t *v = get(p, "init_lora_weights");
    if (!v || json_is_boolean(v)) {
        return 0;
    }
    const char *text = json_string_value(v);
    if (!text) {
        return bad_type(p, "init_lora_weights", v, "true, false, a string");
    }
    char quoted[GR_QUOTE_SIZE];
    gr_quote(quoted, text, strlen(text));
    if (strncmp(text, "pissa", 5) == 0 ||
        is_in(text, changes_base, sizeof changes_base / sizeof *changes_base)) {
        gr_report_error(
            p->report, GRAFT_E_BASE_MODIFIED, "init_lora_weights",
            "\"%s\" changed the base's weights; save it with path_initial_model_for_weight_conversion", quoted);
    } else if (!is_in(text, fine, sizeof fine / sizeof *fine)) {
        gr_report_error(p->report, GRAFT_E_UNKNOWN_OPTION, "init_lora_weights", "\"%s\" is unknown to graft",
                        quoted);
    }
    return 0;
}

/* ---- rank, alpha, layers --------------------------------------------------------------------------------- */

static void read_rank(const parse *p) {
    const json_t *v = get(p, "r");
    char text[64];
    p->c->r = rank_value(v);
    if (!p->c->r) {
        gr_report_error(p->report, GRAFT_E_BAD_RANK, "r", "is %s (allowed: an integer, 1 or more)",
                        v ? shown(text, v) : "missing");
    }
}

static void warn_negative(const parse *p, const char *where, double alpha) {
    if (alpha < 0) {
        gr_report_warn(p->report, GRAFT_E_BAD_ALPHA, where, "%.9g is negative: the adapter is subtracted",
                       alpha);
    }
}

static void read_alpha(const parse *p) {
    const json_t *v = get(p, "lora_alpha");
    char text[64];
    p->c->lora_alpha = alpha_value(v);
    if (p->c->lora_alpha == 0) {
        gr_report_error(p->report, GRAFT_E_BAD_ALPHA, "lora_alpha",
                        "is %s (allowed: a finite number up to %g, not 0)", v ? shown(text, v) : "missing",
                        alpha_max);
    }
    warn_negative(p, "lora_alpha", p->c->lora_alpha);
}

static int by_int(const void *a, const void *b) {
    int x = *(const int *)a, y = *(const int *)b;
    return (x > y) - (x < y);
}

static int add_layer(const parse *p, const json_t *v) {
    if (!json_is_integer(v)) {
        return bad_type(p, "layers_to_transform", v, "an integer, a list of integers");
    }
    if (json_integer_value(v) < 0 || json_integer_value(v) > INT_MAX) {
        gr_report_error(p->report, GRAFT_E_OUT_OF_RANGE, "layers_to_transform", "names layer %lld",
                        (long long)json_integer_value(v));
        return 0;
    }
    p->c->layers[p->c->n_layers++] = (int)json_integer_value(v);
    return 0;
}

static int read_layers(const parse *p) {
    const json_t *v = get(p, "layers_to_transform");
    if (!v || (json_is_array(v) && json_array_size(v) == 0)) {
        return 0;
    }
    size_t n = json_is_array(v) ? json_array_size(v) : 1;
    p->c->layers = gr_calloc(n, sizeof *p->c->layers);
    if (!p->c->layers) {
        return gr_fail_memory(p->err, n * sizeof *p->c->layers);
    }
    for (size_t i = 0; i < n; i++) {
        int code = add_layer(p, json_is_array(v) ? json_array_get(v, i) : v);
        if (code) {
            return code;
        }
    }
    if (p->c->n_layers > 1) {
        qsort(p->c->layers, p->c->n_layers, sizeof *p->c->layers, by_int);
    }
    return 0;
}

/* ---- text that is only shown ----------------------------------------------------------------------------- */

/* As many names as fit; the rest is only checked. */
static int join_targets(const parse *p, const json_t *list, gr_buffer *text) {
    bool cut = false;
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *item = json_array_get(list, i);
        if (!json_is_string(item)) {
            return bad_type(p, "target_modules", item, "a string, a list of strings");
        }
        cut = cut || text->length + json_string_length(item) > TARGETS_TEXT_MAX;
        if (!cut) {
            gr_buffer_printf(text, "%s%s", i ? ", " : "", json_string_value(item));
        }
    }
    if (cut) {
        gr_buffer_puts(text, ", …");
    }
    return 0;
}

static int read_targets(const parse *p) {
    const json_t *v = get(p, "target_modules");
    if (!v) {
        return 0;
    }
    gr_buffer text;
    gr_buffer_init(&text, TARGETS_TEXT_MAX + 16);
    int code = 0;
    if (json_is_array(v)) {
        gr_buffer_puts(&text, "");
        code = join_targets(p, v, &text);
    } else if (json_is_string(v)) {
        gr_buffer_puts(&text, json_string_length(v) <= TARGETS_TEXT_MAX ? json_string_value(v)
                                                                        : "(a long expression)");
    } else {
        code = bad_type(p, "target_modules", v, "a string, a list of strings");
    }
    if (!code) {
        p->c->target_modules = gr_strdup(text.data);
        code = !text.failed && p->c->target_modules ? 0 : gr_fail_memory(p->err, text.length + 1);
    }
    gr_buffer_finish(&text);
    return code;
}

static int read_base(const parse *p) {
    const char *base = NULL;
    int code = get_string(p, "base_model_name_or_path", &base);
    if (!code && base) {
        p->c->base_model = gr_strdup(base);
        code = p->c->base_model ? 0 : gr_fail_memory(p->err, strlen(base) + 1);
    }
    return code;
}

/* ---- patterns -------------------------------------------------------------------------------------------- */

/*
 * PEFT runs Python's re. What follows is the part of its language that means the same in pcre2; a key with
 * anything else is refused. Left out on purpose: (?…) other than (?:, back references, possessive quantifiers
 * (new in Python 3.11), {,n} (a quantifier in Python, text in older pcre2), classes like [[:alpha:]] (not in
 * Python).
 */
static bool is_word(char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_';
}

/* Past the escape at *s ('\\'), or NULL. `in_class`: \b means backspace there. */
static const char *past_escape(const char *s, bool in_class) {
    char c = s[1];
    if (c && strchr("dDwWsS", c)) {
        return s + 2;
    }
    if ((c == 'b' || c == 'B') && !in_class) {
        return s + 2;
    }
    return c && strchr(".-_^$|()*+?[]{}:/\\", c) ? s + 2 : NULL;
}

/* Past the class at *s ('['), or NULL. */
static const char *past_class(const char *s) {
    s++;
    s += *s == '^';
    bool first = true;
    while (*s && (*s != ']' || first)) {
        if (*s == '\\') {
            s = past_escape(s, true);
            if (!s) {
                return NULL;
            }
        } else if (is_word(*s) || strchr(".-^$|()*+?{}:,]", *s)) {
            s++;
        } else {
            return NULL;
        }
        first = false;
    }
    return *s == ']' ? s + 1 : NULL;
}

/* Past "{3}", "{3,}" or "{3,5}" at *s, or NULL. */
static const char *past_repeat(const char *s) {
    const char *p = s + 1;
    const char *digits = p;
    while (*p >= '0' && *p <= '9') {
        p++;
    }
    if (p == digits) {
        return NULL;
    }
    p += *p == ',';
    while (*p >= '0' && *p <= '9') {
        p++;
    }
    return *p == '}' ? p + 1 : NULL;
}

static const char *past_one(const char *s) {
    switch (*s) {
    case '\\': return past_escape(s, false);
    case '[': return past_class(s);
    case '(': return s[1] == '?' ? (s[2] == ':' ? s + 3 : NULL) : s[1] == '*' ? NULL : s + 1;
    case '{': s = past_repeat(s); break;
    case '*':
    case '+':
    case '?': s++; break;
    default: return is_word(*s) || strchr(".-^$|):", *s) ? s + 1 : NULL;
    }
    return s && *s == '+' ? NULL : s; /* behind a quantifier: possessive */
}

static bool same_in_python(const char *key) {
    if (*key == '?' || *key == '*') {
        return false; /* behind PEFT's own "(" it would be read as (?… or (*… */
    }
    while (key && *key) {
        key = past_one(key);
    }
    return key != NULL;
}

/* "^model.layers\.0.q_proj": the key as a template if it is that plain, else false and *out untouched. */
static bool plain_template(const char *key, char *out, bool *anchored) {
    const char *s = key + (*key == '^');
    size_t n = 0;
    for (; *s; s++) {
        if (is_word(*s) || *s == '-') {
            out[n++] = *s;
        } else if (*s == '.') {
            out[n++] = GR_ANY;
        } else if (*s == '\\' && (s[1] == '.' || s[1] == '-' || s[1] == '_')) {
            out[n++] = *++s;
        } else {
            return false;
        }
    }
    out[n] = '\0';
    *anchored = *key == '^';
    return true;
}

/* pcre2 allocates through us, so that its memory is counted and can fail in tests. */
static void *pcre_alloc(size_t size, void *data) {
    (void)data;
    return gr_alloc(size);
}

static void pcre_free(void *block, void *data) {
    (void)data;
    gr_free(block);
}

/* NULL with *error set by pcre2; *error is PCRE2_ERROR_NOMEMORY-like (negative or 121) when memory was out. */
static pcre2_code *compile(const char *key, int *error) {
    char text[GR_MAX_PATTERN_KEY + 96];
    /* The limits bound time: without them (a+)+$ would run for years. */
    snprintf(text, sizeof text, "(*LIMIT_MATCH=10000)(*LIMIT_DEPTH=10000)(*LIMIT_HEAP=4096)(.*\\.)?(%s)$", key);
    pcre2_general_context *general = pcre2_general_context_create(pcre_alloc, pcre_free, NULL);
    pcre2_compile_context *context = general ? pcre2_compile_context_create(general) : NULL;
    pcre2_code *code = NULL;
    *error = PCRE2_ERROR_NOMEMORY;
    if (context) {
        PCRE2_SIZE offset;
        code = pcre2_compile((PCRE2_SPTR)text, PCRE2_ZERO_TERMINATED, PCRE2_ANCHORED, error, &offset, context);
    }
    pcre2_compile_context_free(context);
    pcre2_general_context_free(general);
    return code;
}

static bool out_of_memory(int pcre_error) {
    return pcre_error == PCRE2_ERROR_NOMEMORY || pcre_error == PCRE2_ERROR_HEAP_FAILED;
}

static int compile_regex(parse *p, const char *where, const char *key, gr_pattern *out) {
    char quoted[GR_QUOTE_SIZE];
    gr_quote(quoted, key, strlen(key));
    if (!same_in_python(key)) {
        gr_report_error(p->report, GRAFT_E_UNSUPPORTED_PATTERN, where,
                        "key \"%s\": an expression of this kind could mean something else than in PEFT",
                        quoted);
        return 0;
    }
    if (p->n_regexes == GR_MAX_REGEXES) {
        gr_report_error(p->report, GRAFT_E_UNSUPPORTED_PATTERN, where,
                        "key \"%s\": more than %d regular expressions (plain module names are not counted)",
                        quoted, GR_MAX_REGEXES);
        return 0;
    }
    p->n_regexes++;
    int error;
    out->compiled = compile(key, &error);
    if (!out->compiled && out_of_memory(error)) {
        return gr_fail_memory(p->err, sizeof *out);
    }
    if (!out->compiled) {
        char why[128] = "";
        pcre2_get_error_message(error, (PCRE2_UCHAR *)why, sizeof why);
        gr_report_error(p->report, GRAFT_E_UNSUPPORTED_PATTERN, where, "key \"%s\": %s", quoted, why);
    }
    return 0;
}

static int read_key(parse *p, const char *where, const char *key, gr_pattern *out) {
    size_t length = strlen(key);
    char quoted[GR_QUOTE_SIZE];
    if (length > GR_MAX_PATTERN_KEY) {
        gr_report_error(p->report, GRAFT_E_UNSUPPORTED_PATTERN, where, "key \"%s\": %zu bytes (allowed: %d)",
                        gr_quote(quoted, key, length), length, GR_MAX_PATTERN_KEY);
        return 0;
    }
    out->key = gr_strdup(key);
    char template[GR_MAX_PATTERN_KEY + 1];
    if (!out->key) {
        return gr_fail_memory(p->err, length + 1);
    }
    if (!plain_template(key, template, &out->anchored)) {
        return compile_regex(p, where, key, out);
    }
    out->template = gr_strdup(template);
    return out->template ? 0 : gr_fail_memory(p->err, length + 1);
}

static void read_value(const parse *p, const char *where, const char *key, const json_t *v, bool rank,
                       gr_pattern *out) {
    char quoted[GR_QUOTE_SIZE], text[64];
    gr_quote(quoted, key, strlen(key));
    out->value = rank ? (double)rank_value(v) : alpha_value(v);
    if (out->value == 0) {
        gr_report_error(p->report, rank ? GRAFT_E_BAD_RANK : GRAFT_E_BAD_ALPHA, where,
                        "\"%s\" is %s (allowed: %s)", quoted, shown(text, v),
                        rank ? "an integer, 1 or more" : "a finite number, not 0");
    }
    if (!rank) {
        warn_negative(p, where, out->value);
    }
}

/* In file order: the first key that matches wins. */
static int read_patterns(parse *p, const char *where, bool rank, gr_pattern **out, size_t *n_out) {
    const json_t *v = get(p, where);
    if (!v) {
        return 0;
    }
    if (!json_is_object(v)) {
        return bad_type(p, where, v, "an object");
    }
    size_t n = json_object_size(v);
    if (n > GR_MAX_PATTERNS) {
        gr_report_error(p->report, GRAFT_E_UNSUPPORTED_PATTERN, where, "%zu keys (allowed: %d)", n,
                        GR_MAX_PATTERNS);
        return 0;
    }
    *out = gr_calloc(n, sizeof **out);
    if (!*out) {
        return gr_fail_memory(p->err, n * sizeof **out);
    }
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)v, key, value) {
        gr_pattern *pattern = &(*out)[(*n_out)++];
        int code = read_key(p, where, key, pattern);
        if (code) {
            return code;
        }
        read_value(p, where, key, value, rank, pattern);
    }
    return 0;
}

static void finish_patterns(gr_pattern *patterns, size_t n) {
    for (size_t i = 0; i < n; i++) {
        gr_free(patterns[i].key);
        gr_free(patterns[i].template);
        pcre2_code_free(patterns[i].compiled);
    }
    gr_free(patterns);
}

/* ---- matching -------------------------------------------------------------------------------------------- */

/* A plain key is the whole path, or its end behind a dot. */
static bool matches_template(const gr_pattern *pattern, const char *path, size_t length) {
    size_t n = strlen(pattern->template);
    if (n > length || (n < length && (pattern->anchored || path[length - n - 1] != '.'))) {
        return false;
    }
    for (size_t i = 0; i < n; i++) {
        if (pattern->template[i] != GR_ANY && pattern->template[i] != path[length - n + i]) {
            return false;
        }
    }
    return true;
}

static bool matches_regex(gr_pattern *pattern, const char *path, size_t length) {
    pcre2_match_data *data = pcre2_match_data_create_from_pattern(pattern->compiled, NULL);
    int result = PCRE2_ERROR_NOMEMORY;
    if (data) {
        result = pcre2_match(pattern->compiled, (PCRE2_SPTR)path, length, 0, 0, data, NULL);
    }
    pcre2_match_data_free(data);
    if (result < 0 && result != PCRE2_ERROR_NOMATCH) {
        pattern->failed = out_of_memory(result) ? GRAFT_E_OUT_OF_MEMORY : GRAFT_E_UNSUPPORTED_PATTERN;
    }
    return result >= 0;
}

/* The first that matches, or NULL. Later ones that match as well decide nothing, but are no typing errors
 * either, so they count as used. One that gave up is not tried again. */
static gr_pattern *first_match(gr_pattern *patterns, size_t n, const char *path) {
    size_t length = strlen(path);
    gr_pattern *first = NULL;
    for (size_t i = 0; i < n; i++) {
        gr_pattern *p = &patterns[i];
        if (first && p->used) {
            continue;
        }
        bool matches = p->template   ? matches_template(p, path, length)
                       : p->compiled ? !p->failed && matches_regex(p, path, length)
                                     : false;
        p->used = p->used || matches;
        first = first ? first : matches ? p : NULL;
    }
    return first;
}

double gr_peft_config_alpha(gr_peft_config *c, const char *path) {
    const gr_pattern *p = first_match(c->alpha_pattern, c->n_alpha_pattern, path);
    return p ? p->value : c->lora_alpha;
}

int gr_peft_config_rank(gr_peft_config *c, const char *path) {
    const gr_pattern *p = first_match(c->rank_pattern, c->n_rank_pattern, path);
    return p ? (int)p->value : c->r;
}

double gr_peft_config_scale(const gr_peft_config *c, double alpha, int rank) {
    return c->use_rslora ? alpha / sqrt((double)rank) : alpha / rank;
}

static void report_patterns(const gr_pattern *patterns, size_t n, const char *where, gr_report *report) {
    char quoted[GR_QUOTE_SIZE];
    for (size_t i = 0; i < n; i++) {
        const gr_pattern *p = &patterns[i];
        const char *key = p->key ? p->key : "";
        gr_quote(quoted, key, strlen(key));
        if (p->failed == GRAFT_E_OUT_OF_MEMORY) {
            gr_report_error(report, p->failed, where, "no memory for matching key \"%s\"", quoted);
        } else if (p->failed) {
            gr_report_error(report, p->failed, where, "key \"%s\": matching takes too long", quoted);
        } else if (!p->used && (p->template || p->compiled)) {
            gr_report_error(report, GRAFT_E_PATTERN_UNUSED, where,
                            "key \"%s\" matches no module of the adapter", quoted);
        }
    }
}

void gr_peft_config_report_unused(const gr_peft_config *c, gr_report *report) {
    report_patterns(c->rank_pattern, c->n_rank_pattern, "rank_pattern", report);
    report_patterns(c->alpha_pattern, c->n_alpha_pattern, "alpha_pattern", report);
}

/* ---- the whole ------------------------------------------------------------------------------------------- */

/* What PEFT itself refuses together. */
static void check_together(const parse *p) {
    if (p->c->use_dora && p->c->lora_bias) {
        gr_report_error(p->report, GRAFT_E_UNSUPPORTED_ADAPTER, "lora_bias", "with use_dora is nothing that PEFT has");
    }
    if (p->c->use_dora && p->c->invocation) {
        gr_report_error(p->report, GRAFT_E_UNSUPPORTED_ADAPTER, "alora_invocation_tokens",
                        "with use_dora is nothing that PEFT has");
    }
}

static int read_all(parse *p) {
    gr_peft_config *c = p->c;
    int code;
    if (!json_is_object(p->root)) {
        return gr_fail(p->err, GRAFT_E_BAD_TYPE, "%s is %s (allowed: an object)", file_name,
                       gr_json_type_name(p->root));
    }
    bool is_lora;
    code = check_peft_type(p, &is_lora);
    if (code || !is_lora) {
        return code;
    }
    if ((code = read_bias(p)) || (code = check_task(p)) || (code = check_init(p)) ||
        (code = get_bool(p, "use_rslora", &c->use_rslora)) ||
        (code = get_bool(p, "fan_in_fan_out", &c->fan_in_fan_out)) ||
        (code = get_switch(p, "use_dora", &c->use_dora)) || (code = get_switch(p, "lora_bias", &c->lora_bias)) ||
        (code = get_switch(p, "ensure_weight_tying", &c->ties_weights)) ||
        (code = read_base(p)) || (code = read_targets(p)) || (code = read_layers(p)) ||
        (code = gr_peft_lists_read(c, p->root, p->report, p->err))) {
        return code;
    }
    check_together(p);
    check_keys(p);
    read_rank(p);
    read_alpha(p);
    code = read_patterns(p, "rank_pattern", true, &c->rank_pattern, &c->n_rank_pattern);
    return code ? code : read_patterns(p, "alpha_pattern", false, &c->alpha_pattern, &c->n_alpha_pattern);
}

int gr_peft_config_parse(gr_peft_config *out, const char *json, size_t length, gr_report *report,
                         graft_error *err) {
    json_t *root;
    int code = gr_json_parse(&root, json, length, file_name, err);
    if (code) {
        return code;
    }
    gr_peft_config c = {0};
    parse p = {.c = &c, .root = root, .report = report, .err = err};
    code = read_all(&p);
    json_decref(root);
    if (code) {
        gr_peft_config_finish(&c);
        return code;
    }
    *out = c;
    return 0;
}

void gr_peft_config_finish(gr_peft_config *c) {
    finish_patterns(c->alpha_pattern, c->n_alpha_pattern);
    finish_patterns(c->rank_pattern, c->n_rank_pattern);
    gr_free(c->base_model);
    gr_free(c->target_modules);
    gr_free(c->layers);
    gr_peft_lists_finish(c);
    memset(c, 0, sizeof *c);
}
