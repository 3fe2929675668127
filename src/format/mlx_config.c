/* mlx-lm's adapter_config.json. */
#include "mlx_config.h"

#include "base/memory.h"
#include "format/json.h"

#include <limits.h>
#include <math.h>
#include <string.h>

static const char file_name[] = "adapter_config.json";
static const double scale_max = 1e9; /* as PEFT's alpha */

static int bad_type(const char *key, const json_t *v, const char *allowed, graft_error *err) {
    return gr_fail(err, GRAFT_E_BAD_TYPE, "%s: %s is %s (allowed: %s)", file_name, key, gr_json_type_name(v), allowed);
}

/* The key's value; NULL if it is absent or null. */
static const json_t *get(const json_t *root, const char *key) {
    const json_t *v = json_object_get(root, key);
    return json_is_null(v) ? NULL : v;
}

/* mlx-lm before 0.20 had a switch of its own for DoRA. */
static int read_type(gr_mlx_config *c, const json_t *root, gr_report *report, graft_error *err) {
    const json_t *type = get(root, "fine_tune_type"), *old = get(root, "use_dora");
    if (type && !json_is_string(type)) {
        return bad_type("fine_tune_type", type, "a string", err);
    }
    if (old && !json_is_boolean(old)) {
        return bad_type("use_dora", old, "true, false", err);
    }
    if (get(root, "peft_type")) {
        gr_report_error(report, GRAFT_E_UNSUPPORTED_ADAPTER, "peft_type", "is PEFT's, but the weights are mlx-lm's adapters.safetensors");
    }
    const char *text = type ? json_string_value(type) : json_is_true(old) ? "dora" : "lora";
    c->dora = strcmp(text, "dora") == 0;
    if (!c->dora && strcmp(text, "lora") != 0) {
        char q[GR_QUOTE_SIZE];
        gr_report_error(report, GRAFT_E_UNSUPPORTED_ADAPTER, "fine_tune_type", "is \"%s\" (allowed: \"lora\", \"dora\")",
                        gr_quote(q, text, strlen(text)));
    }
    return 0;
}

static void read_rank(gr_mlx_config *c, const json_t *parameters, gr_report *report) {
    const json_t *v = get(parameters, "rank");
    if (json_is_integer(v) && json_integer_value(v) >= 1 && json_integer_value(v) <= INT_MAX) {
        c->rank = (int)json_integer_value(v);
        return;
    }
    gr_report_error(report, GRAFT_E_BAD_RANK, "lora_parameters.rank", "is %s (allowed: an integer, 1 or more)",
                    !v ? "missing" : json_is_integer(v) ? "out of range" : gr_json_type_name(v));
}

static void read_scale(gr_mlx_config *c, const json_t *parameters, gr_report *report) {
    const json_t *v = get(parameters, "scale");
    double scale = json_is_number(v) ? json_number_value(v) : 0;
    c->scale = isfinite(scale) && fabs(scale) <= scale_max ? scale : 0;
    if (c->scale == 0) {
        gr_report_error(report, GRAFT_E_BAD_ALPHA, "lora_parameters.scale", "is %s (allowed: a finite number up to %g, not 0)",
                        !v ? "missing" : json_is_number(v) ? "out of range" : gr_json_type_name(v), scale_max);
    } else if (c->scale < 0) {
        gr_report_warn(report, GRAFT_E_BAD_ALPHA, "lora_parameters.scale", "%.9g is negative: the adapter is subtracted", c->scale);
    }
}

/* `keys` chose the modules, dropout is for training, alpha stood there once without effect. */
static void check_parameters(const json_t *parameters, gr_report *report) {
    static const char *const known[] = {"rank", "scale", "keys", "dropout", "alpha"};
    const char *key;
    json_t *v;
    json_object_foreach((json_t *)parameters, key, v) {
        bool is_known = false;
        for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
            is_known = is_known || strcmp(key, known[i]) == 0;
        }
        if (!is_known) {
            char q[GR_QUOTE_SIZE];
            gr_report_error(report, GRAFT_E_UNKNOWN_OPTION, "lora_parameters", "has \"%s\", and graft does not know what it does",
                            gr_quote(q, key, strlen(key)));
        }
    }
}

static int read_parameters(gr_mlx_config *c, const json_t *root, gr_report *report, graft_error *err) {
    const json_t *parameters = get(root, "lora_parameters");
    if (!parameters) {
        gr_report_error(report, GRAFT_E_MISSING_FIELD, "lora_parameters", "is missing: rank and scale stand there");
        return 0;
    }
    if (!json_is_object(parameters)) {
        return bad_type("lora_parameters", parameters, "an object", err);
    }
    read_rank(c, parameters, report);
    read_scale(c, parameters, report);
    check_parameters(parameters, report);
    return 0;
}

/* Called lora_layers once. */
static int read_layers(gr_mlx_config *c, const json_t *root, gr_report *report, graft_error *err) {
    const char *key = get(root, "num_layers") ? "num_layers" : "lora_layers";
    const json_t *v = get(root, key);
    if (!v) {
        return 0;
    }
    if (!json_is_integer(v)) {
        return bad_type(key, v, "an integer", err);
    }
    if (json_integer_value(v) < -1 || json_integer_value(v) == 0 || json_integer_value(v) > INT_MAX) {
        gr_report_error(report, GRAFT_E_OUT_OF_RANGE, key, "is %lld (allowed: -1, or 1 and more)",
                        (long long)json_integer_value(v));
        return 0;
    }
    c->num_layers = (int)json_integer_value(v);
    return 0;
}

static int read_base(gr_mlx_config *c, const json_t *root, graft_error *err) {
    const json_t *v = get(root, "model");
    if (v && !json_is_string(v)) {
        return bad_type("model", v, "a string", err);
    }
    c->base_model = v ? gr_strdup(json_string_value(v)) : NULL;
    return v && !c->base_model ? gr_fail_memory(err, json_string_length(v) + 1) : 0;
}

static int read_all(gr_mlx_config *c, const json_t *root, gr_report *report, graft_error *err) {
    if (!json_is_object(root)) {
        return gr_fail(err, GRAFT_E_BAD_TYPE, "%s is %s (allowed: an object)", file_name, gr_json_type_name(root));
    }
    size_t before = report->n_errors;
    int code = read_type(c, root, report, err);
    if (code || report->n_errors > before) {
        return code; /* of another kind: the rest means nothing to us */
    }
    if ((code = read_parameters(c, root, report, err)) || (code = read_layers(c, root, report, err))) {
        return code;
    }
    return read_base(c, root, err);
}

int gr_mlx_config_parse(gr_mlx_config *out, const char *json, size_t length, gr_report *report, graft_error *err) {
    json_t *root;
    int code = gr_json_parse(&root, json, length, file_name, err);
    if (code) {
        return code;
    }
    gr_mlx_config c = {.num_layers = -1};
    code = read_all(&c, root, report, err);
    json_decref(root);
    if (code) {
        gr_mlx_config_finish(&c);
        return code;
    }
    *out = c;
    return 0;
}

void gr_mlx_config_finish(gr_mlx_config *c) {
    gr_free(c->base_model);
    memset(c, 0, sizeof *c);
}
