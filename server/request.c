/* What the APIs' requests share. */
#include "request.h"

#include "auth.h"
#include "schema.h"

#include "base/memory.h"

#include <math.h>
#include <string.h>

enum { STOPS = 16, MESSAGES = 4096, VALUES = 250000 /* of a body */, EMBED_VALUES = 4 << 20 /* 64 MiB as JSON */ };

/* Any JSON value; the whole answer is one. Depth is the answer's own affair: the grammar's stack is bounded by the library. */
static const char json_grammar[] =
    "root   ::= object\n"
    "value  ::= object | array | string | number | (\"true\" | \"false\" | \"null\") ws\n"
    "object ::= \"{\" ws (string \":\" ws value (\",\" ws string \":\" ws value)*)? \"}\" ws\n"
    "array  ::= \"[\" ws (value (\",\" ws value)*)? \"]\" ws\n"
    "string ::= \"\\\"\" ([^\"\\\\\\x7F\\x00-\\x1F] | \"\\\\\" ([\"\\\\bfnrt/] | \"u\" hex hex hex hex))* \"\\\"\" ws\n"
    "hex    ::= [0-9a-fA-F]\n"
    "number ::= \"-\"? (\"0\" | [1-9] [0-9]*) (\".\" [0-9]+)? ([eE] [-+]? [0-9]+)? ws\n"
    "ws     ::= | \" \" | \"\\n\" [ \\t]? [ \\t]? [ \\t]? [ \\t]?\n";

/* ---- a request and its memory -------------------------------------------------------------------------- */

/* Values of a JSON text, or more: what separates them, outside of strings. A value takes up to 200 bytes in memory and may
 * take three in the text. */
static size_t count_values(const char *text, size_t length) {
    size_t n = 1;
    bool quoted = false;
    for (size_t i = 0; i < length; i++) {
        if (quoted) {
            i += text[i] == '\\';
            quoted = i < length && text[i] != '"';
        } else {
            quoted = text[i] == '"';
            n += text[i] == ',' || text[i] == '[' || text[i] == '{' || text[i] == ':';
        }
    }
    return n;
}

json_t *srv_parse_body(const srv_exchange *x, srv_fault *f) {
    json_error_t e;
    char quoted[GR_QUOTE_SIZE];
    if (count_values(x->body, x->body_length) > VALUES) {
        srv_fault_set(f, 400, "too_many_values", NULL, "the body holds more than %d values", VALUES);
        return NULL;
    }
    json_t *body = json_loadb(x->body, x->body_length, JSON_REJECT_DUPLICATES, &e);
    if (!body) {
        srv_fault_set(f, 400, "json_syntax", NULL, "the body is not JSON: line %d, column %d: %s", e.line, e.column,
                      gr_quote(quoted, e.text, strlen(e.text)));
        return NULL;
    }
    if (!json_is_object(body)) {
        json_decref(body);
        srv_fault_set(f, 400, "bad_type", NULL, "the body must be a JSON object");
        return NULL;
    }
    return body;
}

srv_request *srv_request_new(srv_exchange *x, srv_fault *f) {
    json_t *body = srv_parse_body(x, f);
    srv_request *r = body ? gr_zalloc(sizeof *r) : NULL;
    if (!r) {
        if (body) {
            srv_no_memory(f);
        }
        json_decref(body);
        return NULL;
    }
    *r = (srv_request){.x = x, .body = body, .n = 1, .logprobs = -1, .common = graft_request_default()};
    r->common.cache_domain = srv_auth_domain(x);
    return r;
}

void srv_request_trim(srv_request *r) {
    const char *key;
    json_t *value;
    void *next;
    json_object_foreach_safe(r->body, next, key, value) {
        if (strcmp(key, "model") != 0) { /* whose text is still pointed to */
            json_object_del(r->body, key);
        }
    }
}

void srv_request_free(srv_request *r) {
    if (!r) {
        return;
    }
    for (size_t i = 0; i < r->n_blocks; i++) {
        gr_free(r->blocks[i]);
    }
    gr_free(r->blocks);
    gr_free(r->requests);
    gr_free(r->embeds);
    json_decref(r->body);
    gr_free(r);
}

void *srv_request_keep(srv_request *r, size_t count, size_t size) {
    void *block = gr_calloc(count ? count : 1, size);
    void **blocks = block ? gr_realloc(r->blocks, (r->n_blocks + 1) * sizeof *blocks) : NULL;
    if (!blocks) {
        gr_free(block);
        return NULL;
    }
    r->blocks = blocks;
    r->blocks[r->n_blocks++] = block;
    return block;
}

/* ---- fields -------------------------------------------------------------------------------------------- */

bool srv_bad(srv_fault *f, const char *param, const char *why) {
    return srv_fault_set(f, 400, "invalid_value", param, "%s: %s", param, why);
}

json_t *srv_field(json_t *from, const char *key) {
    json_t *v = json_object_get(from, key);
    return json_is_null(v) ? NULL : v;
}

bool srv_take_bool(json_t *from, const char *key, bool *out, srv_fault *f) {
    json_t *v = srv_field(from, key);
    if (v && !json_is_boolean(v)) {
        return srv_bad(f, key, "true or false is needed");
    }
    *out = v ? json_is_true(v) : *out;
    return true;
}

/* A number and its range. */
typedef struct range {
    const char *key;
    double least, most;
    bool whole;
} range;

/* Every number that a body may hold. What is outside is refused, not cut. */
static const range ranges[] = {
    {"temperature", 0, 100, false},       {"top_p", 0, 1, false},
    {"min_p", 0, 1, false},               {"top_k", 0, 2147483647, true},
    {"presence_penalty", -2, 2, false},   {"frequency_penalty", -2, 2, false},
    {"repeat_penalty", 0.01, 100, false}, {"repeat_last_n", 0, 65536, true},
    {"repetition_penalty", 0.01, 100, false}, {"n_predict", -1, 2147483647, true},
    {"max_tokens", 1, 2147483647, true},  {"max_completion_tokens", 1, 2147483647, true},
    {"n", 1, 64, true},                   {"best_of", 1, 64, true},
    {"num_predict", -2147483648.0, 2147483647, true}, {"dimensions", 1, 2147483647, true},
    {"seed", -9007199254740991.0, 9007199254740991.0, true},
    {"top_logprobs", 0, 20, true},        {"logprobs", 0, 20, true},
};

bool srv_take_number(json_t *from, const char *key, double *out, srv_fault *f) {
    const range *at = ranges;
    json_t *v = srv_field(from, key);
    while (strcmp(at->key, key) != 0) {
        at++; /* keys come from the code, never from a body */
    }
    if (!v) {
        return true;
    }
    double n = json_is_number(v) ? json_number_value(v) : (double)NAN;
    if (!(n >= at->least && n <= at->most) || (at->whole && n != floor(n))) {
        return srv_fault_set(f, 400, "invalid_value", key, "%s: a %snumber from %.10g to %.10g is needed", key,
                             at->whole ? "whole " : "", at->least, at->most);
    }
    *out = n;
    return true;
}

bool srv_take_string(json_t *from, const char *key, const char **out, srv_fault *f) {
    json_t *v = srv_field(from, key);
    if (v && !json_is_string(v)) {
        return srv_bad(f, key, "a string is needed");
    }
    *out = v ? json_string_value(v) : *out;
    return true;
}

bool srv_is_nothing(json_t *v) {
    return json_is_false(v) || (json_is_array(v) && json_array_size(v) == 0) || (json_is_object(v) && json_object_size(v) == 0) ||
           (json_is_string(v) && json_string_length(v) == 0);
}

bool srv_is_word(json_t *v, const char *word) {
    return json_is_string(v) && strcmp(json_string_value(v), word) == 0;
}

/* ---- the parts ----------------------------------------------------------------------------------------- */

/* The library takes 32 bits, of which one value stands for "any". */
static uint32_t fold_seed(double seed) {
    int64_t whole = (int64_t)seed;
    uint32_t folded = (uint32_t)((uint64_t)whole ^ ((uint64_t)whole >> 32));
    return folded == UINT32_MAX ? 0 : folded;
}

bool srv_take_sampling(srv_request *r, json_t *from, srv_fault *f) {
    graft_sampling *s = &r->common.sampling;
    const struct {
        const char *key;
        float *real;
        int *whole;
    } fields[] = {
        {"temperature", &s->temperature, NULL},           {"top_p", &s->top_p, NULL},
        {"min_p", &s->min_p, NULL},                       {"top_k", NULL, &s->top_k},
        {"presence_penalty", &s->presence_penalty, NULL}, {"frequency_penalty", &s->frequency_penalty, NULL},
        {"repeat_penalty", &s->repeat_penalty, NULL},     {"repeat_last_n", NULL, &s->repeat_last_n},
    };
    double seed = 0;
    for (size_t i = 0; i < sizeof fields / sizeof fields[0]; i++) {
        double n = fields[i].real ? (double)*fields[i].real : *fields[i].whole;
        if (!srv_take_number(from, fields[i].key, &n, f)) {
            return false;
        }
        if (fields[i].real) {
            *fields[i].real = (float)n;
        } else {
            *fields[i].whole = (int)n;
        }
    }
    if (!srv_take_number(from, "seed", &seed, f)) {
        return false;
    }
    s->seed = srv_field(from, "seed") ? fold_seed(seed) : UINT32_MAX;
    return true;
}

bool srv_take_stop(srv_request *r, json_t *from, srv_fault *f) {
    json_t *v = srv_field(from, "stop");
    size_t n = json_is_array(v) ? json_array_size(v) : v ? 1 : 0;
    if (n > STOPS) {
        return srv_bad(f, "stop", "at most 16 strings are taken");
    }
    const char **stop = srv_request_keep(r, n, sizeof *stop);
    if (!stop) {
        return srv_no_memory(f);
    }
    for (size_t i = 0; i < n; i++) {
        json_t *item = json_is_array(v) ? json_array_get(v, i) : v;
        if (!json_is_string(item) || json_string_length(item) < 1 || json_string_length(item) > 256) {
            return srv_bad(f, "stop", "a string of 1 to 256 bytes or a list of such is needed");
        }
        stop[i] = json_string_value(item);
    }
    r->common.stop = stop;
    r->common.n_stop = n;
    return true;
}

bool srv_take_logprobs(srv_request *r, srv_fault *f) {
    bool wanted = false;
    double top = 0;
    if (!srv_take_bool(r->body, "logprobs", &wanted, f) || !srv_take_number(r->body, "top_logprobs", &top, f)) {
        return false;
    }
    if (top > 0 && !wanted) {
        return srv_bad(f, "top_logprobs", "goes with \"logprobs\": true only");
    }
    if (wanted) {
        r->logprobs = r->common.top_logprobs = (int)top;
    }
    return true;
}

void srv_take_any_json(srv_request *r) {
    r->common.sampling.grammar = json_grammar;
}

bool srv_take_schema(srv_request *r, json_t *schema, const char *param, srv_fault *f) {
    gr_buffer grammar;
    gr_buffer_init(&grammar, 1 << 20);
    bool good = srv_schema_grammar(&grammar, schema, param, f);
    char *kept = good ? srv_request_keep(r, grammar.length + 1, 1) : NULL;
    if (kept) {
        memcpy(kept, grammar.data, grammar.length);
    }
    gr_buffer_finish(&grammar);
    r->common.sampling.grammar = kept;
    return kept || (good && srv_no_memory(f));
}

/* ---- adapters ----------------------------------------------------------------------------------------- */

static bool add_use(srv_request *r, const srv_name *name, float scale, srv_fault *f) {
    if (name->base) {
        return true;
    }
    if (r->n_uses == SRV_USES) {
        return srv_bad(f, "lora", "at most 8 adapters can be added up");
    }
    srv_name *own = &r->names[r->n_uses];
    *own = *name;
    r->uses[r->n_uses++] = (graft_adapter_use){.project = own->project, .name = own->adapter, .scale = scale};
    if (r->n_uses == 1) {
        srv_name_id(r->adapter, own->project, own->adapter);
    }
    return true;
}

/* The name of the `id`-th adapter that /v1/lora_adapters lists to this key. */
static bool name_of_id(const srv_exchange *x, json_int_t id, srv_name *out) {
    graft_registered_list *list = srv_registered(x->s, NULL);
    json_int_t seen = 0;
    bool found = false;
    for (size_t i = 0; list && i < list->n && !found; i++) {
        found = srv_may(x, list->items[i].project) && seen++ == id;
        if (found) {
            srv_name_set(out, list->items[i].project, list->items[i].adapter);
        }
    }
    graft_registered_list_free(list);
    return found;
}

static bool take_lora_item(srv_request *r, json_t *item, srv_fault *f) {
    json_t *name = json_object_get(item, "name"), *id = json_object_get(item, "id"), *scale = json_object_get(item, "scale");
    srv_name found;
    double factor = scale ? json_is_number(scale) ? json_number_value(scale) : (double)NAN : 1;
    if (!json_is_object(item) || (!name == !id) || (name && !json_is_string(name)) || (id && !json_is_integer(id)) ||
        !(fabs(factor) <= 100)) {
        return srv_bad(f, "lora", "a list of objects with \"name\" or \"id\" and a \"scale\" from -100 to 100 is needed");
    }
    if (name && !srv_name_find(r->x, &found, json_string_value(name), "lora", f)) {
        return false;
    }
    if (id && !name_of_id(r->x, json_integer_value(id), &found)) {
        return srv_fault_set(f, 404, "model_not_found", "lora", "lora: no adapter has the id %lld",
                             (long long)json_integer_value(id));
    }
    return add_use(r, &found, (float)factor, f);
}

static bool take_fallback(srv_request *r, srv_fault *f) {
    json_t *v = srv_field(r->body, "fallback");
    if (v && !srv_is_word(v, "base") && !srv_is_word(v, "error")) {
        return srv_bad(f, "fallback", "\"base\" or \"error\" is needed");
    }
    if (v) {
        r->common.fallback = srv_is_word(v, "base") ? GRAFT_FALLBACK_BASE : GRAFT_FALLBACK_ERROR;
    }
    return true;
}

/* What was set for requests that name nothing: defaults.h. */
static void take_defaults(srv_request *r) {
    srv_name names[SRV_DEFAULTS];
    float scales[SRV_DEFAULTS];
    size_t n = srv_default_uses(r->x, names, scales);
    for (size_t i = 0; i < n; i++) {
        add_use(r, &names[i], scales[i], NULL); /* there is room: no more can be set than added up */
    }
}

bool srv_take_adapters(srv_request *r, srv_fault *f) {
    json_t *lora = srv_field(r->body, "lora");
    const char *base = r->x->s->base_id;
    srv_name name;
    if (!srv_take_string(r->body, "model", &r->model, f)) {
        return false;
    }
    if (!r->model && !lora) {
        take_defaults(r);
    } else if (!srv_name_find(r->x, &name, r->model ? r->model : base, "model", f) || !add_use(r, &name, 1, f)) {
        return false;
    }
    if (!r->model) {
        r->model = r->n_uses ? r->adapter : base;
    }
    if (lora && !json_is_array(lora)) {
        return srv_bad(f, "lora", "'lora' must be an array of objects with 'id' and 'scale' fields"); /* llama-server's words */
    }
    for (size_t i = 0; i < json_array_size(lora); i++) {
        if (!take_lora_item(r, json_array_get(lora, i), f)) {
            return false;
        }
    }
    r->common.adapters = r->n_uses ? r->uses : NULL;
    r->common.n_adapters = r->n_uses;
    return take_fallback(r, f);
}

/* ---- messages and prompts ----------------------------------------------------------------------------- */

/* Content in parts as one string, one part a line. NULL with *f set. */
static const char *join_parts(srv_request *r, json_t *parts, srv_fault *f) {
    size_t length = 1;
    for (size_t i = 0; i < json_array_size(parts); i++) {
        json_t *part = json_array_get(parts, i), *text = json_object_get(part, "text");
        if (!srv_is_word(json_object_get(part, "type"), "text") || !json_is_string(text)) {
            srv_bad(f, "messages", "parts of a content must be {\"type\":\"text\",\"text\":…}");
            return NULL;
        }
        length += json_string_length(text) + 1;
    }
    char *joined = srv_request_keep(r, length, 1), *at = joined;
    if (!joined) {
        srv_no_memory(f);
        return NULL;
    }
    for (size_t i = 0; i < json_array_size(parts); i++) {
        json_t *text = json_object_get(json_array_get(parts, i), "text");
        if (i) {
            *at++ = '\n';
        }
        memcpy(at, json_string_value(text), json_string_length(text));
        at += json_string_length(text);
    }
    return joined;
}

static bool take_message(srv_request *r, json_t *m, graft_message *out, srv_fault *f) {
    const char *role = json_string_value(json_object_get(m, "role"));
    json_t *content = json_object_get(m, "content");
    if (!role) {
        return srv_bad(f, "messages", "each must be an object with \"role\" and \"content\"");
    }
    if (strcmp(role, "developer") == 0) {
        role = "system";
    }
    if (strcmp(role, "system") != 0 && strcmp(role, "user") != 0 && strcmp(role, "assistant") != 0) {
        return srv_bad(f, "messages", "roles are system, developer, user and assistant");
    }
    json_t *calls = json_object_get(m, "tool_calls"), *images = json_object_get(m, "images");
    if (calls && !json_is_null(calls) && !srv_is_nothing(calls)) {
        return srv_bad(f, "messages", "tool calls are not supported");
    }
    if (images && !json_is_null(images) && !srv_is_nothing(images)) {
        return srv_bad(f, "messages", "images are not supported");
    }
    *out = (graft_message){role, json_string_value(content)};
    if (json_is_array(content)) {
        out->content = join_parts(r, content, f);
        return out->content != NULL;
    }
    return out->content || srv_bad(f, "messages", "content must be a string or a list of text parts");
}

bool srv_take_messages(srv_request *r, srv_fault *f) {
    json_t *list = srv_field(r->body, "messages");
    size_t n = json_array_size(list);
    if (n < 1 || n > MESSAGES) {
        return srv_bad(f, "messages", "a list of 1 to 4096 messages is needed");
    }
    graft_message *messages = srv_request_keep(r, n, sizeof *messages);
    if (!messages) {
        return srv_no_memory(f);
    }
    for (size_t i = 0; i < n; i++) {
        if (!take_message(r, json_array_get(list, i), &messages[i], f)) {
            return false;
        }
    }
    r->common.messages = messages;
    r->common.n_messages = n;
    return true;
}

/* ---- texts --------------------------------------------------------------------------------------------- */

static bool is_tokens(json_t *v) {
    return json_is_array(v) && json_array_size(v) > 0 && json_is_integer(json_array_get(v, 0));
}

size_t srv_count_texts(json_t *v) {
    return json_is_array(v) && !is_tokens(v) ? json_array_size(v) : v != NULL;
}

json_t *srv_text_at(json_t *v, size_t i) {
    return json_is_array(v) && !is_tokens(v) ? json_array_get(v, i) : v;
}

bool srv_take_text(srv_request *r, json_t *v, const char *param, srv_given *out, srv_fault *f) {
    *out = (srv_given){.text = json_string_value(v)};
    if (out->text) {
        return true;
    }
    if (!is_tokens(v)) {
        return srv_bad(f, param, "a string, a list of strings, of tokens or of lists of tokens is needed");
    }
    int n_vocab = r->x->s->model.n_vocab;
    size_t n = json_array_size(v);
    int32_t *tokens = srv_request_keep(r, n, sizeof *tokens);
    if (!tokens) {
        return srv_no_memory(f);
    }
    for (size_t i = 0; i < n; i++) {
        json_t *t = json_array_get(v, i);
        json_int_t token = json_is_integer(t) ? json_integer_value(t) : -1;
        if (token < 0 || token >= n_vocab) {
            return srv_fault_set(f, 400, "invalid_value", param, "%s: tokens are whole numbers from 0 to %d", param, n_vocab - 1);
        }
        tokens[i] = (int32_t)token;
    }
    out->tokens = tokens;
    out->n = n;
    return true;
}

/* ---- one request for each answer ----------------------------------------------------------------------- */

/* The same but for the prompt, and for the seed, or all answers would be one. */
static bool spread_one(srv_request *r, graft_request *q, size_t index, json_t *prompts, srv_fault *f) {
    size_t of_prompt = index % (size_t)r->n;
    srv_given given;
    *q = r->common;
    if (q->sampling.seed != UINT32_MAX) {
        q->sampling.seed = fold_seed((double)q->sampling.seed + (double)of_prompt);
    }
    if (!prompts) {
        return true;
    }
    if (!srv_take_text(r, srv_text_at(prompts, index / (size_t)r->n), "prompt", &given, f)) {
        return false;
    }
    q->prompt = given.text;
    q->tokens = given.tokens;
    q->n_tokens = given.n;
    return true;
}

bool srv_spread_answers(srv_request *r, json_t *prompts, srv_fault *f) {
    r->n_prompts = prompts ? srv_count_texts(prompts) : 1;
    size_t n = r->n_prompts * (size_t)r->n; /* both are bounded */
    r->requests = gr_calloc(n, sizeof *r->requests);
    if (!r->requests) {
        return srv_no_memory(f);
    }
    for (; r->n_requests < n; r->n_requests++) {
        if (!spread_one(r, &r->requests[r->n_requests], r->n_requests, prompts, f)) {
            return false;
        }
    }
    return true;
}

/* All values of an answer must find room in one reply. */
static bool check_embeds(srv_request *r, size_t n, const char *param, srv_fault *f) {
    int n_embd = r->x->s->model.n_embd;
    double dimensions = n_embd;
    if (n < 1 || n > SRV_TEXTS || n * (size_t)n_embd > EMBED_VALUES) {
        return srv_fault_set(f, 400, "invalid_value", param, "%s: 1 to %d texts are needed", param,
                             EMBED_VALUES / n_embd < SRV_TEXTS ? EMBED_VALUES / n_embd : SRV_TEXTS);
    }
    if (!srv_take_number(r->body, "dimensions", &dimensions, f)) {
        return false;
    }
    return dimensions == n_embd ||
           srv_fault_set(f, 400, "unsupported_parameter", "dimensions", "dimensions: the model gives %d, and no others", n_embd);
}

bool srv_spread_embeds(srv_request *r, json_t *texts, const char *param, srv_fault *f) {
    size_t n = srv_count_texts(texts);
    if (!check_embeds(r, n, param, f)) {
        return false;
    }
    r->n_prompts = n;
    r->embeds = gr_calloc(n, sizeof *r->embeds);
    if (!r->embeds) {
        return srv_no_memory(f);
    }
    for (; r->n_requests < n; r->n_requests++) {
        graft_embed_request *q = &r->embeds[r->n_requests];
        srv_given given;
        if (!srv_take_text(r, srv_text_at(texts, r->n_requests), param, &given, f)) {
            return false;
        }
        *q = graft_embed_request_default();
        q->adapters = r->common.adapters;
        q->n_adapters = r->common.n_adapters;
        q->fallback = r->common.fallback;
        q->text = given.text;
        q->tokens = given.tokens;
        q->n_tokens = given.n;
    }
    return true;
}
