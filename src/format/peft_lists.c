/* Lists of modules and of tokens in adapter_config.json. */
#include "peft_lists.h"

#include "base/memory.h"

#include <stdlib.h>
#include <string.h>

typedef struct reader {
    gr_peft_config *c;
    const json_t *root;
    gr_report *report;
    graft_error *err;
} reader;

/* The key's value; NULL if it is absent or off. */
static const json_t *get(const reader *r, const char *key) {
    const json_t *v = json_object_get(r->root, key);
    bool off = json_is_null(v) || json_is_false(v) || (json_is_string(v) && json_string_length(v) == 0);
    return off ? NULL : v;
}

static int bad_type(const reader *r, const char *key, const json_t *v, const char *allowed) {
    return gr_fail(r->err, GRAFT_E_BAD_TYPE, "adapter_config.json: %s is %s (allowed: %s)", key, gr_json_type_name(v),
                   allowed);
}

/* False after an error in the report. */
static bool check_count(const reader *r, const char *key, size_t n, size_t max) {
    if (n > max) {
        gr_report_error(r->report, GRAFT_E_OUT_OF_RANGE, key, "has %zu entries (allowed: %zu)", n, max);
    }
    return n <= max;
}

/* ---- modules_to_save ------------------------------------------------------------------------------------- */

static int read_module(const reader *r, const json_t *v) {
    static const char key[] = "modules_to_save";
    if (!json_is_string(v)) {
        return bad_type(r, key, v, "a list of strings");
    }
    if (json_string_length(v) == 0 || json_string_length(v) > GR_MAX_PATTERN_KEY) {
        gr_report_error(r->report, GRAFT_E_OUT_OF_RANGE, key, "has a name of %zu bytes (allowed: 1 to %d)",
                        json_string_length(v), GR_MAX_PATTERN_KEY);
        return 0;
    }
    char *name = gr_strdup(json_string_value(v));
    if (!name) {
        return gr_fail_memory(r->err, json_string_length(v) + 1);
    }
    r->c->saved_modules[r->c->n_saved_modules++] = name;
    return 0;
}

static int read_modules(const reader *r) {
    const json_t *v = get(r, "modules_to_save");
    if (!v) {
        return 0;
    }
    if (!json_is_array(v)) {
        return bad_type(r, "modules_to_save", v, "a list of strings");
    }
    size_t n = json_array_size(v);
    if (n == 0 || !check_count(r, "modules_to_save", n, GR_MAX_SAVED_MODULES)) {
        return 0;
    }
    r->c->saved_modules = gr_calloc(n, sizeof *r->c->saved_modules);
    if (!r->c->saved_modules) {
        return gr_fail_memory(r->err, n * sizeof *r->c->saved_modules);
    }
    int code = 0;
    for (size_t i = 0; i < n && !code; i++) {
        code = read_module(r, json_array_get(v, i));
    }
    return code;
}

bool gr_peft_config_saves(const gr_peft_config *c, const char *path) {
    size_t n = strlen(path);
    for (size_t i = 0; i < c->n_saved_modules; i++) {
        size_t m = strlen(c->saved_modules[i]);
        if (m <= n && memcmp(path + n - m, c->saved_modules[i], m) == 0) {
            return true;
        }
    }
    return false;
}

/* ---- tokens ---------------------------------------------------------------------------------------------- */

/* False after an error in the report or, for another type, in *code. */
static bool read_id(const reader *r, const char *key, const json_t *v, int32_t *out, int *code) {
    if (!json_is_integer(v)) {
        *code = bad_type(r, key, v, "lists of integers");
        return false;
    }
    if (json_integer_value(v) < 0 || json_integer_value(v) > INT32_MAX) {
        gr_report_error(r->report, GRAFT_E_OUT_OF_RANGE, key, "names token %lld", (long long)json_integer_value(v));
        return false;
    }
    *out = (int32_t)json_integer_value(v);
    return true;
}

/* *out: gr_free; NULL after an error in the report. */
static int read_ids(const reader *r, const char *key, const json_t *list, size_t max, int32_t **out, size_t *n_out) {
    size_t n = json_array_size(list);
    if (!json_is_array(list)) {
        return bad_type(r, key, list, "lists of integers");
    }
    if (n == 0) {
        gr_report_error(r->report, GRAFT_E_OUT_OF_RANGE, key, "names no token");
    }
    if (n == 0 || !check_count(r, key, n, max)) {
        return 0;
    }
    int32_t *ids = gr_calloc(n, sizeof *ids);
    if (!ids) {
        return gr_fail_memory(r->err, n * sizeof *ids);
    }
    int code = 0;
    size_t i = 0;
    while (i < n && read_id(r, key, json_array_get(list, i), &ids[i], &code)) {
        i++;
    }
    if (i < n) {
        gr_free(ids);
        return code;
    }
    *out = ids;
    *n_out = n;
    return 0;
}

static int by_id(const void *a, const void *b) {
    int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;
    return (x > y) - (x < y);
}

/* Two rows for one token: which counts would be an accident. */
static int check_different(const reader *r, const gr_token_list *l) {
    int32_t *sorted = gr_alloc(l->n * sizeof *sorted);
    if (!sorted) {
        return gr_fail_memory(r->err, l->n * sizeof *sorted);
    }
    memcpy(sorted, l->ids, l->n * sizeof *sorted);
    qsort(sorted, l->n, sizeof *sorted, by_id);
    for (size_t i = 1; i < l->n; i++) {
        if (sorted[i] == sorted[i - 1]) {
            gr_report_error(r->report, GRAFT_E_DUPLICATE_TARGET, "trainable_token_indices", "names token %d twice",
                            (int)sorted[i]);
            break;
        }
    }
    gr_free(sorted);
    return 0;
}

/* `module` may be NULL. */
static int read_token_list(const reader *r, const char *module, const json_t *list) {
    gr_token_list *l = &r->c->tokens[r->c->n_tokens];
    int code = read_ids(r, "trainable_token_indices", list, GR_MAX_TRAINED_TOKENS, &l->ids, &l->n);
    if (code || !l->ids) {
        return code;
    }
    r->c->n_tokens++;
    l->module = gr_strdup(module);
    if (module && !l->module) {
        return gr_fail_memory(r->err, strlen(module) + 1);
    }
    return check_different(r, l);
}

static int read_tokens(const reader *r) {
    static const char key[] = "trainable_token_indices";
    const json_t *v = get(r, key);
    if (!v) {
        return 0;
    }
    if (!json_is_array(v) && !json_is_object(v)) {
        return bad_type(r, key, v, "a list of integers, an object of such lists");
    }
    size_t n = json_is_array(v) ? json_array_size(v) > 0 : json_object_size(v);
    if (n == 0 || !check_count(r, key, n, GR_MAX_TOKEN_LISTS)) {
        return 0;
    }
    r->c->tokens = gr_calloc(n, sizeof *r->c->tokens);
    if (!r->c->tokens) {
        return gr_fail_memory(r->err, n * sizeof *r->c->tokens);
    }
    if (json_is_array(v)) {
        return read_token_list(r, NULL, v);
    }
    const char *module;
    json_t *list;
    int code = 0;
    json_object_foreach((json_t *)v, module, list) {
        code = code ? code : read_token_list(r, module, list);
    }
    return code;
}

static int read_invocation(const reader *r) {
    static const char key[] = "alora_invocation_tokens";
    const json_t *v = get(r, key);
    if (!v) {
        return 0;
    }
    return read_ids(r, key, v, GR_MAX_INVOCATION, &r->c->invocation, &r->c->n_invocation);
}

/* ---- all ------------------------------------------------------------------------------------------------- */

int gr_peft_lists_read(gr_peft_config *c, const json_t *root, gr_report *report, graft_error *err) {
    reader r = {c, root, report, err};
    int code = read_modules(&r);
    code = code ? code : read_tokens(&r);
    return code ? code : read_invocation(&r);
}

void gr_peft_lists_finish(gr_peft_config *c) {
    for (size_t i = 0; i < c->n_saved_modules; i++) {
        gr_free(c->saved_modules[i]);
    }
    for (size_t i = 0; i < c->n_tokens; i++) {
        gr_free(c->tokens[i].module);
        gr_free(c->tokens[i].ids);
    }
    gr_free(c->saved_modules);
    gr_free(c->tokens);
    gr_free(c->invocation);
}
