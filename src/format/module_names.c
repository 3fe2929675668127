/* Names of tensors taken apart: those of PEFT files, of mlx-lm's, of GGUF adapters. */
#include "module_names.h"

#include <limits.h>
#include <stdio.h>
#include <string.h>

/* ---- pieces of names ------------------------------------------------------------------------------------- */

static bool ends_with(const char *s, const char *end) {
    size_t n = strlen(s), m = strlen(end);
    return n >= m && memcmp(s + n - m, end, m) == 0;
}

/* Past `begin`, or NULL. */
static const char *after(const char *s, const char *begin) {
    size_t n = strlen(begin);
    return strncmp(s, begin, n) == 0 ? s + n : NULL;
}

/* Reads "12." and returns what follows the dot; NULL unless the number is written as a program would write it. */
static const char *layer_number(const char *s, int *layer) {
    int value = 0;
    const char *p = s;
    while (*p >= '0' && *p <= '9') {
        if (value > (INT_MAX - 9) / 10) {
            return NULL;
        }
        value = value * 10 + (*p++ - '0');
    }
    if (p == s || *p != '.' || (*s == '0' && p > s + 1)) {
        return NULL;
    }
    *layer = value;
    return p + 1;
}

/* Names are printable (gr_tensor_name_check), but may be longer than a message should be. */
#define NAME "\"%.160s\""

/* ---- modules --------------------------------------------------------------------------------------------- */

static const gr_module_rule *find_rule(gr_rules rules, const char *module) {
    for (size_t i = 0; i < rules.n; i++) {
        if (strcmp(module, rules.list[i].module) == 0) {
            return &rules.list[i];
        }
    }
    return NULL;
}

/* Past "LAYERS." if the path begins with it, or NULL. */
static const char *past_layers(const char *path, const char *layers) {
    const char *rest = after(path, layers);
    return rest && *rest == '.' ? rest + 1 : NULL;
}

/* Past "ROOT." where ROOT is what has the list of layers: "model." of "model.layers". */
static const char *past_root(const char *path, const char *layers) {
    size_t n = (size_t)(strrchr(layers, '.') + 1 - layers);
    return strncmp(path, layers, n) == 0 ? path + n : NULL;
}

/* One of the architecture's lists of layers: the i-th path of it, or NULL after the last. */
static const char *layers_path(const gr_arch *arch, size_t i) {
    return i == 0 ? arch->layers : arch->also ? arch->also[i - 1] : NULL;
}

/* The path within its layer ("self_attn.q_proj"), or NULL. */
static const char *within_layer(const gr_arch *arch, const char *path, int *layer) {
    const char *layers;
    for (size_t i = 0; (layers = layers_path(arch, i)) != NULL; i++) {
        const char *rest = past_layers(path, layers);
        if (rest) {
            return layer_number(rest, layer);
        }
    }
    return NULL;
}

static const gr_module_rule *outside_layers(const gr_arch *arch, const char *path) {
    const gr_module_rule *rule = find_rule(arch->rules[GR_RULES_HEADS], path);
    const char *layers;
    for (size_t i = 0; !rule && (layers = layers_path(arch, i)) != NULL; i++) {
        const char *rest = past_root(path, layers);
        rule = rest ? find_rule(arch->rules[GR_RULES_OUTER], rest) : NULL;
    }
    return rule;
}

/* Modules that models have somewhere and that no adapter can change here. */
static bool is_other_module(const char *path) {
    static const char *const names[] = {"embed_tokens", "lm_head",  "wte",       "wpe",       "score",
                                        "classifier",   "ln_f",     "ln_1",      "ln_2",      "embed_in",
                                        "embed_out",    "norm",     "layernorm", "rotary_emb", "embed_positions"};
    const char *dot = strrchr(path, '.');
    const char *last = dot ? dot + 1 : path;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        if (strcmp(last, names[i]) == 0) {
            return true;
        }
    }
    return ends_with(last, "_norm") || ends_with(last, "layernorm");
}

/* `code`: UNKNOWN_TARGET, or UNSUPPORTED_TARGET for a module that this architecture keeps in another form. */
static int no_such_module(int code, const gr_arch *arch, const char *tensor, graft_error *err) {
    char modules[280] = "";
    size_t at = 0;
    gr_rules linear = arch->rules[GR_RULES_LINEAR];
    for (size_t i = 0; i < linear.n && at < sizeof modules; i++) {
        at += (size_t)snprintf(modules + at, sizeof modules - at, "%s%s", i ? ", " : "", linear.list[i].module);
    }
    return gr_fail(err, code, "tensor " NAME ": %s has no such module%s (it has %s.N. with %s)", tensor, arch->name,
                   code == GRAFT_E_UNSUPPORTED_TARGET ? ", it is fused or split otherwise" : "", arch->layers, modules);
}

/* Whether some architecture has a module of that name: then this one has it too, but fused or split otherwise. */
static bool known_elsewhere(const char *module) {
    size_t n;
    const gr_arch *list = gr_arch_list(&n);
    for (size_t i = 0; i < n; i++) {
        if (find_rule(list[i].rules[GR_RULES_LINEAR], module)) {
            return true;
        }
    }
    return false;
}

/* Sets layer, rule and weight by the path. */
static int find_target(gr_module_name *out, const gr_arch *arch, const char *tensor, graft_error *err) {
    const char *module = within_layer(arch, out->path, &out->layer);
    if (module) {
        out->rule = find_rule(arch->rules[GR_RULES_LINEAR], module);
        out->rule = out->rule ? out->rule : find_rule(arch->rules[GR_RULES_NORMS], module);
    } else {
        out->rule = outside_layers(arch, out->path);
    }
    if (out->rule && module) {
        snprintf(out->weight, sizeof out->weight, "blk.%d.%s", out->layer, out->rule->weight);
        return 0;
    }
    if (out->rule) {
        snprintf(out->weight, sizeof out->weight, "%s", out->rule->weight);
        return 0;
    }
    if (is_other_module(out->path)) {
        return gr_fail(err, GRAFT_E_UNSUPPORTED_TARGET,
                       "tensor " NAME ": adapters cannot change this module of %s models", tensor, arch->name);
    }
    bool other_form = module && known_elsewhere(module);
    return no_such_module(other_form ? GRAFT_E_UNSUPPORTED_TARGET : GRAFT_E_UNKNOWN_TARGET, arch, tensor, err);
}

/* The first `length` bytes of `path` as the name's path, and what it is. */
static int set_path(gr_module_name *name, const gr_arch *arch, const char *path, size_t length, const char *tensor,
                    graft_error *err) {
    if (length >= sizeof name->path) {
        return no_such_module(GRAFT_E_UNKNOWN_TARGET, arch, tensor, err);
    }
    memcpy(name->path, path, length);
    name->path[length] = '\0';
    return find_target(name, arch, tensor, err);
}

/* ---- names in PEFT files --------------------------------------------------------------------------------- */

static const char peft_prefix[] = "base_model.model.";

/* Texts in a name that mean something graft does not apply, most telling first. */
static int refuse_by_name(const char *tensor, graft_error *err) {
    static const struct {
        const char *text;
        const char *means;
    } marks[] = {
        {".lora_A.bias", "a bias in front of the adapter's second half"},
        {".lora_A.default.bias", "a bias in front of the adapter's second half"},
        {".experts.", "an adapter on the experts of a mixture"},
        {".switch_mlp.", "an adapter on the experts of a mixture"},
        {".lora_diag", "KaSA's singular values"},
        {".lora_E", "an AdaLoRA adapter"},
        {".ranknum", "an AdaLoRA adapter"},
        {".vera_", "a VeRA adapter"},
        {".ia3_", "an IA3 adapter"},
        {".hada_", "a LoHa adapter"},
        {".lokr_", "a LoKr adapter"},
        {".oft_", "an OFT adapter"},
        {".boft_", "a BOFT adapter"},
        {".lora_up.", "an adapter in the layout of image models"},
        {".lora_down.", "an adapter in the layout of image models"},
        {"prompt_embeddings", "a prompt-tuning adapter"},
    };
    for (size_t i = 0; i < sizeof marks / sizeof *marks; i++) {
        if (strstr(tensor, marks[i].text)) {
            return gr_fail(err, GRAFT_E_UNSUPPORTED_ADAPTER,
                           "tensor " NAME " holds %s, which graft does not apply", tensor, marks[i].means);
        }
    }
    if (ends_with(tensor, ".alpha")) {
        return gr_fail(err, GRAFT_E_UNSUPPORTED_ADAPTER,
                       "tensor " NAME ": an adapter in the layout of image models", tensor);
    }
    return 0;
}

static int refuse_layout(const char *tensor, graft_error *err) {
    if (ends_with(tensor, ".lora_a") || ends_with(tensor, ".lora_b")) {
        return gr_fail(err, GRAFT_E_UNSUPPORTED_ADAPTER,
                       "tensor " NAME ": the layout of mlx-lm, in a folder of PEFT's", tensor);
    }
    return gr_fail(err, GRAFT_E_UNEXPECTED_TENSOR,
                   "tensor " NAME " is no LoRA matrix (their names are base_model.model.….lora_A.weight)", tensor);
}

typedef struct suffix {
    const char *mark;           /* ".lora_A" */
    const char *const *rests;   /* what may follow, to the end of the name */
    gr_name_part part;
    bool embedding, wrapped;
} suffix;

/* "default" is the adapter's name, which PEFT leaves out when it saves; hand-saved files have it. */
static const char *const as_weight[] = {".weight", ".default.weight", ".default", "", NULL};
static const char *const as_bias[] = {".bias", ".default.bias", NULL};
static const char *const as_parameter[] = {"", ".default", NULL};
static const char *const as_saved[] = {".weight", ".default.weight", NULL};
static const char *const only_weight[] = {".weight", NULL};
static const char *const only_bias[] = {".bias", NULL};

/* The first that fits: longer ones stand before what they end with. */
static const suffix suffixes[] = {
    {".lora_A", as_weight, GR_PART_A, false, false},
    {".lora_B", as_weight, GR_PART_B, false, false},
    {".lora_B", as_bias, GR_PART_B_BIAS, false, false},
    {".lora_magnitude_vector", as_weight, GR_PART_MAGNITUDE, false, false},
    {".lora_embedding_A", as_parameter, GR_PART_A, true, false},
    {".lora_embedding_B", as_parameter, GR_PART_B, true, false},
    {".token_adapter.trainable_tokens_delta", as_parameter, GR_PART_TOKENS, false, true},
    {".token_adapter.base_layer", only_weight, GR_PART_COPY, false, true},
    {".original_module", only_weight, GR_PART_COPY, false, true},
    {".original_module", only_bias, GR_PART_COPY, false, true},
    {".modules_to_save", as_saved, GR_PART_VALUE, false, true},
    {".modules_to_save", as_bias, GR_PART_BIAS, false, true},
    {".base_layer", only_weight, GR_PART_COPY, false, true},
    {".base_layer", only_bias, GR_PART_BIAS, false, true},
    {"", only_weight, GR_PART_VALUE, false, false},
    {"", only_bias, GR_PART_BIAS, false, false},
};

/* Where the suffix begins, with *which; or NULL. */
static const char *find_suffix(const char *tensor, const suffix **which) {
    for (size_t i = 0; i < sizeof suffixes / sizeof *suffixes; i++) {
        for (const char *const *rest = suffixes[i].rests; *rest; rest++) {
            char end[64];
            snprintf(end, sizeof end, "%s%s", suffixes[i].mark, *rest);
            if (ends_with(tensor, end)) {
                *which = &suffixes[i];
                return tensor + strlen(tensor) - strlen(end);
            }
        }
    }
    return NULL;
}

/* Whether PEFT writes this for a module of that kind. */
static int check_role(const gr_module_name *name, const char *tensor, graft_error *err) {
    gr_role role = name->rule->role;
    bool low_rank = name->part == GR_PART_A || name->part == GR_PART_B;
    if (low_rank && role == GR_ROLE_NORM) {
        return gr_fail(err, GRAFT_E_UNSUPPORTED_TARGET, "tensor " NAME ": low-rank adapters on norms do not exist", tensor);
    }
    if (low_rank && name->embedding != (role == GR_ROLE_EMBEDDING)) {
        return gr_fail(err, GRAFT_E_UNEXPECTED_TENSOR,
                       "tensor " NAME ": only adapters of embeddings have, and all of them, lora_embedding_ in their names", tensor);
    }
    if (name->part == GR_PART_TOKENS && role != GR_ROLE_EMBEDDING && role != GR_ROLE_HEAD) {
        return gr_fail(err, GRAFT_E_UNEXPECTED_TENSOR, "tensor " NAME ": this module has no tokens", tensor);
    }
    if (name->part == GR_PART_COPY && role == GR_ROLE_LINEAR) {
        return gr_fail(err, GRAFT_E_BASE_WEIGHTS_INCLUDED,
                       "tensor " NAME " is a weight of the base: save the adapter alone", tensor);
    }
    if (name->part == GR_PART_VALUE && role == GR_ROLE_LINEAR) {
        return gr_fail(err, GRAFT_E_UNSUPPORTED_TARGET,
                       "tensor " NAME " is a whole weight inside a layer; of those only norms can be replaced", tensor);
    }
    return 0;
}

int gr_module_name_parse(gr_module_name *out, const gr_arch *arch, const char *tensor, graft_error *err) {
    int code = refuse_by_name(tensor, err);
    if (code) {
        return code;
    }
    gr_module_name name = {.layer = -1};
    const suffix *which = NULL;
    const char *end = find_suffix(tensor, &which), *path = after(tensor, peft_prefix);
    if (!end || (!path && which->mark[0] == '\0')) {
        return refuse_layout(tensor, err);
    }
    if (!path || path >= end) {
        return gr_fail(err, GRAFT_E_UNKNOWN_TARGET, "tensor " NAME " does not begin with base_model.model.", tensor);
    }
    name.part = which->part;
    name.embedding = which->embedding;
    name.wrapped = which->wrapped;
    code = set_path(&name, arch, path, (size_t)(end - path), tensor, err);
    code = code ? code : check_role(&name, tensor, err);
    if (!code) {
        *out = name;
    }
    return code;
}

/* ---- names in mlx-lm's files ----------------------------------------------------------------------------- */

int gr_mlx_name_parse(gr_module_name *out, const gr_arch *arch, const char *tensor, graft_error *err) {
    static const struct {
        const char *end;
        gr_name_part part;
    } ends[] = {{".lora_a", GR_PART_A}, {".lora_b", GR_PART_B}, {".m", GR_PART_MAGNITUDE}};
    int code = refuse_by_name(tensor, err);
    if (code) {
        return code;
    }
    for (size_t i = 0; i < sizeof ends / sizeof *ends; i++) {
        if (!ends_with(tensor, ends[i].end)) {
            continue;
        }
        gr_module_name name = {.layer = -1, .part = ends[i].part};
        code = set_path(&name, arch, tensor, strlen(tensor) - strlen(ends[i].end), tensor, err);
        if (!code && name.rule->role == GR_ROLE_NORM) {
            code = gr_fail(err, GRAFT_E_UNSUPPORTED_TARGET, "tensor " NAME ": low-rank adapters on norms do not exist", tensor);
        }
        if (!code) {
            *out = name;
        }
        return code;
    }
    return gr_fail(err, GRAFT_E_UNEXPECTED_TENSOR,
                   "tensor " NAME " is no LoRA matrix (their names are model.layers.N.….lora_a)", tensor);
}

/* ---- names in GGUF adapters ------------------------------------------------------------------------------ */

/* `value`: a whole tensor, which only norms are. */
static int check_gguf_weight(gr_module_name *name, const gr_arch *arch, bool value, const char *tensor, graft_error *err) {
    bool product = ends_with(name->weight, ".weight") && !ends_with(name->weight, "_norm.weight") &&
                   strcmp(name->weight, "position_embd.weight") != 0 && strcmp(name->weight, "rope_freqs.weight") != 0;
    if (!product && !value) {
        return gr_fail(err, GRAFT_E_UNSUPPORTED_TARGET,
                       "tensor " NAME ": low-rank adapters on positions, norms and biases do not exist", tensor);
    }
    const char *within = after(name->weight, "blk.");
    within = within ? layer_number(within, &name->layer) : NULL;
    bool outer = strcmp(name->weight, "token_embd.weight") == 0 || strcmp(name->weight, "output.weight") == 0 ||
                 strcmp(name->weight, "output_norm.weight") == 0;
    if (!outer && (!within || !*within)) {
        return gr_fail(err, GRAFT_E_UNKNOWN_TARGET,
                       "tensor " NAME " belongs to no layer (their names begin with blk.N.)", tensor);
    }
    name->rule = arch ? gr_arch_rule_of(arch, outer ? name->weight : within) : NULL;
    return 0;
}

int gr_gguf_name_parse(gr_module_name *out, const gr_arch *arch, const char *tensor, graft_error *err) {
    static const size_t ab = sizeof ".lora_a" - 1;
    gr_module_name name = {.layer = -1};
    size_t length = strlen(tensor);
    bool a = ends_with(tensor, ".lora_a"), b = ends_with(tensor, ".lora_b"), norm = ends_with(tensor, "_norm.weight");
    size_t end = norm ? 0 : ab;
    /* A second suffix inside: whoever strips suffixes by replacing text would see another weight than we do. */
    bool twice = length > ab && (strstr(tensor, ".lora_a.") || strstr(tensor, ".lora_b."));
    if ((!a && !b && !norm) || twice || length <= end || length - end >= sizeof name.weight) {
        return gr_fail(err, GRAFT_E_UNEXPECTED_TENSOR,
                       "tensor " NAME " is no LoRA matrix (their names are blk.N.….weight.lora_a and .lora_b)",
                       tensor);
    }
    name.part = norm ? GR_PART_VALUE : a ? GR_PART_A : GR_PART_B;
    memcpy(name.weight, tensor, length - end);
    memcpy(name.path, tensor, length - end);
    int code = check_gguf_weight(&name, arch, norm, tensor, err);
    if (!code) {
        *out = name;
    }
    return code;
}
