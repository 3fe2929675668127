/* Bodies of OpenAI's two completion calls. */
#include "openai_request.h"

#include "auth.h"
#include "schema.h"

#include "base/memory.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { STOPS = 16, BIASES = 1024, MESSAGES = 4096, PROMPTS = 64 };

/* Any JSON value; the whole answer is one. Depth is the answer's own affair: the grammar's stack is bounded by the library. */
static const char json_grammar[] =
    "root   ::= object\n"
    "value  ::= object | array | string | number | (\"true\" | \"false\" | \"null\") ws\n"
    "object ::= \"{\" ws (string \":\" ws value (\",\" ws string \":\" ws value)*)? \"}\" ws\n"
    "array  ::= \"[\" ws (value (\",\" ws value)*)? \"]\" ws\n"
    "string ::= \"\\\"\" ([^\"\\\\\\x7F\\x00-\\x1F] | \"\\\\\" ([\"\\\\bfnrt/] | \"u\" [0-9a-fA-F] [0-9a-fA-F] [0-9a-fA-F] [0-9a-fA-F]))* "
    "\"\\\"\" ws\n"
    "number ::= \"-\"? (\"0\" | [1-9] [0-9]*) (\".\" [0-9]+)? ([eE] [-+]? [0-9]+)? ws\n"
    "ws     ::= | \" \" | \"\\n\" [ \\t]? [ \\t]? [ \\t]? [ \\t]?\n";

/* ---- helpers ------------------------------------------------------------------------------------------ */

static bool bad(srv_fault *f, const char *param, const char *why) {
    return srv_fault_set(f, 400, "invalid_value", param, "%s: %s", param, why);
}

static bool no_memory(srv_fault *f) {
    return srv_fault_set(f, 503, "out_of_memory", NULL, "memory is out");
}

/* Memory that goes with the request. NULL if there is none. */
static void *keep(openai_request *r, size_t count, size_t size) {
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

/* NULL also for null: both mean "as if not given". */
static json_t *field(const openai_request *r, const char *key) {
    json_t *v = json_object_get(r->body, key);
    return json_is_null(v) ? NULL : v;
}

static bool take_bool(const openai_request *r, const char *key, bool *out, srv_fault *f) {
    json_t *v = field(r, key);
    if (v && !json_is_boolean(v)) {
        return bad(f, key, "true or false is needed");
    }
    *out = v ? json_is_true(v) : *out;
    return true;
}

/* A number of the request: its range, and where it goes. */
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
    {"max_tokens", 1, 2147483647, true},  {"max_completion_tokens", 1, 2147483647, true},
    {"n", 1, 64, true},                   {"best_of", 1, 64, true},
    {"seed", -9007199254740992.0, 9007199254740992.0, true},
    {"top_logprobs", 0, 20, true},        {"logprobs", 0, 20, true},
};

/* *out stays if the field is absent. */
static bool take_number(const openai_request *r, const char *key, double *out, srv_fault *f) {
    const range *at = ranges;
    json_t *v = field(r, key);
    while (strcmp(at->key, key) != 0) {
        at++; /* keys come from this file */
    }
    if (!v) {
        return true;
    }
    double n = json_is_number(v) ? json_number_value(v) : (double)NAN;
    if (!(n >= at->least && n <= at->most) || (at->whole && n != floor(n))) {
        return srv_fault_set(f, 400, "invalid_value", key, "%s: a %snumber from %.10g to %.10g is needed", key, at->whole ? "whole " : "",
                             at->least, at->most);
    }
    *out = n;
    return true;
}

/* ---- what is not supported ---------------------------------------------------------------------------- */

static bool is_nothing(json_t *v) {
    return json_is_false(v) || (json_is_array(v) && json_array_size(v) == 0) || (json_is_object(v) && json_object_size(v) == 0) ||
           (json_is_string(v) && json_string_length(v) == 0);
}

static bool is_word(json_t *v, const char *word) {
    return json_is_string(v) && strcmp(json_string_value(v), word) == 0;
}

/* Fields that would change the answer; unless their value asks for nothing. */
static bool refuse_unsupported(const openai_request *r, srv_fault *f) {
    static const char *const keys[] = {"tools",  "functions",          "function_call", "tool_choice", "audio",    "modalities",
                                       "suffix", "web_search_options", "echo",          "prompt_embeds", "logit_processors",
                                       "guided_json", "guided_regex", "guided_choice", "structured_outputs", "use_beam_search"};
    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++) {
        json_t *v = field(r, keys[i]);
        bool harmless = !v || is_nothing(v) || is_word(v, "none") || (i == 3 && is_word(v, "auto")) ||
                        (i == 5 && json_array_size(v) == 1 && is_word(json_array_get(v, 0), "text"));
        if (!harmless) {
            return srv_fault_set(f, 400, "unsupported_parameter", keys[i], "%s is not supported", keys[i]);
        }
    }
    return true;
}

/* ---- the parts ---------------------------------------------------------------------------------------- */

static bool take_stop(openai_request *r, graft_request *d, srv_fault *f) {
    json_t *v = field(r, "stop");
    size_t n = json_is_array(v) ? json_array_size(v) : v ? 1 : 0;
    if (n > STOPS) {
        return bad(f, "stop", "at most 16 strings are taken");
    }
    const char **stop = keep(r, n, sizeof *stop);
    if (!stop) {
        return no_memory(f);
    }
    for (size_t i = 0; i < n; i++) {
        json_t *item = json_is_array(v) ? json_array_get(v, i) : v;
        if (!json_is_string(item) || json_string_length(item) < 1 || json_string_length(item) > 256) {
            return bad(f, "stop", "a string of 1 to 256 bytes or a list of such is needed");
        }
        stop[i] = json_string_value(item);
    }
    d->stop = stop;
    d->n_stop = n;
    return true;
}

static bool take_bias(openai_request *r, server *s, graft_request *d, srv_fault *f) {
    json_t *v = field(r, "logit_bias"), *value;
    const char *key;
    if (v && (!json_is_object(v) || json_object_size(v) > BIASES)) {
        return bad(f, "logit_bias", "an object of at most 1024 token numbers is needed");
    }
    graft_logit_bias *bias = keep(r, json_object_size(v), sizeof *bias);
    if (!bias) {
        return no_memory(f);
    }
    d->logit_bias = bias;
    json_object_foreach(v, key, value) {
        size_t digits = strspn(key, "0123456789");
        long token = digits && digits < 10 && !key[digits] ? strtol(key, NULL, 10) : -1;
        double b = json_is_number(value) ? json_number_value(value) : (double)NAN;
        if (token < 0 || token >= s->model.n_vocab || !(b >= -100 && b <= 100)) {
            return bad(f, "logit_bias", "token numbers of the vocabulary with biases from -100 to 100 are needed");
        }
        bias[d->n_logit_bias++] = (graft_logit_bias){(int32_t)token, (float)b};
    }
    return true;
}

static bool take_schema(openai_request *r, json_t *format, graft_request *d, srv_fault *f) {
    json_t *schema = json_object_get(json_object_get(format, "json_schema"), "schema");
    if (!schema) {
        return bad(f, "response_format", "\"json_schema\": {\"schema\": …} is needed");
    }
    gr_buffer grammar;
    gr_buffer_init(&grammar, 1 << 20);
    bool good = srv_schema_grammar(&grammar, schema, "response_format", f);
    char *kept = good ? keep(r, grammar.length + 1, 1) : NULL;
    if (kept) {
        memcpy(kept, grammar.data, grammar.length);
    }
    gr_buffer_finish(&grammar);
    d->sampling.grammar = kept;
    return kept || (good && no_memory(f));
}

static bool take_format(openai_request *r, graft_request *d, srv_fault *f) {
    json_t *v = field(r, "response_format"), *type = json_object_get(v, "type"), *grammar = field(r, "grammar");
    if (grammar && !json_is_string(grammar)) {
        return bad(f, "grammar", "a string in GBNF is needed");
    }
    d->sampling.grammar = json_string_value(grammar);
    if (!v || is_word(type, "text")) {
        return true;
    }
    if (grammar) {
        return bad(f, "grammar", "goes with no response_format but text");
    }
    if (is_word(type, "json_schema")) {
        return take_schema(r, v, d, f);
    }
    d->sampling.grammar = json_grammar;
    return is_word(type, "json_object") || bad(f, "response_format", "its type must be text, json_object or json_schema");
}

/* The library takes 32 bits, of which one value stands for "any". */
static uint32_t fold_seed(double seed) {
    int64_t whole = (int64_t)seed;
    uint32_t folded = (uint32_t)((uint64_t)whole ^ ((uint64_t)whole >> 32));
    return folded == UINT32_MAX ? 0 : folded;
}

static bool take_sampling(openai_request *r, graft_request *d, srv_fault *f) {
    /* OpenAI's defaults for OpenAI's fields, the library's for its own. */
    double temperature = 1, top_p = 1, min_p = (double)d->sampling.min_p, top_k = d->sampling.top_k, presence = 0, frequency = 0;
    double repeat = (double)d->sampling.repeat_penalty, last_n = d->sampling.repeat_last_n, seed = -1;
    if (!take_number(r, "temperature", &temperature, f) || !take_number(r, "top_p", &top_p, f) || !take_number(r, "min_p", &min_p, f) ||
        !take_number(r, "top_k", &top_k, f) || !take_number(r, "presence_penalty", &presence, f) ||
        !take_number(r, "frequency_penalty", &frequency, f) || !take_number(r, "repeat_penalty", &repeat, f) ||
        !take_number(r, "repeat_last_n", &last_n, f) || !take_number(r, "seed", &seed, f)) {
        return false;
    }
    d->sampling.temperature = (float)temperature;
    d->sampling.top_p = (float)top_p;
    d->sampling.min_p = (float)min_p;
    d->sampling.top_k = (int)top_k;
    d->sampling.presence_penalty = (float)presence;
    d->sampling.frequency_penalty = (float)frequency;
    d->sampling.repeat_penalty = (float)repeat;
    d->sampling.repeat_last_n = (int)last_n;
    d->sampling.seed = field(r, "seed") ? fold_seed(seed) : UINT32_MAX;
    return true;
}

static bool take_counts(openai_request *r, const server *s, graft_request *d, srv_fault *f) {
    double n = 1, best = 0, tokens = r->chat ? 0 : 16, completion = 0; /* 0: up to the context's end. 16 is OpenAI's */
    if (!take_number(r, "n", &n, f) || !take_number(r, "best_of", &best, f) || !take_number(r, "max_tokens", &tokens, f) ||
        !take_number(r, "max_completion_tokens", &completion, f)) {
        return false;
    }
    if (n > s->o.limits.choices) {
        return bad(f, "n", "more answers than the server gives to one request");
    }
    if (best > 0 && best != n) {
        return srv_fault_set(f, 400, "unsupported_parameter", "best_of", "best_of: only the same number as n is supported");
    }
    r->n = (int)n;
    d->max_tokens = (int)(completion > 0 ? completion : tokens);
    return true;
}

static bool take_logprobs(openai_request *r, graft_request *d, srv_fault *f) {
    bool wanted = false;
    double top = 0;
    r->logprobs = -1;
    if (r->chat) {
        if (!take_bool(r, "logprobs", &wanted, f) || !take_number(r, "top_logprobs", &top, f)) {
            return false;
        }
        if (top > 0 && !wanted) {
            return bad(f, "top_logprobs", "goes with \"logprobs\": true only");
        }
    } else {
        wanted = field(r, "logprobs") != NULL;
        if (!take_number(r, "logprobs", &top, f)) {
            return false;
        }
    }
    if (wanted) {
        r->logprobs = (int)top;
        d->top_logprobs = (int)top;
    }
    return true;
}

static bool take_stream(openai_request *r, srv_fault *f) {
    json_t *options = field(r, "stream_options");
    if (!take_bool(r, "stream", &r->stream, f)) {
        return false;
    }
    if (options && !r->stream) {
        return bad(f, "stream_options", "goes with \"stream\": true only");
    }
    if (options && !json_is_object(options)) {
        return bad(f, "stream_options", "an object is needed");
    }
    json_t *usage = json_object_get(options, "include_usage");
    if (usage && !json_is_boolean(usage) && !json_is_null(usage)) {
        return bad(f, "stream_options.include_usage", "true or false is needed");
    }
    r->usage = json_is_true(usage);
    return true;
}

/* ---- adapters ----------------------------------------------------------------------------------------- */

static bool add_use(openai_request *r, const srv_name *name, float scale, srv_fault *f) {
    if (name->base) {
        return true;
    }
    if (r->n_uses == OPENAI_USES) {
        return bad(f, "lora", "at most 8 adapters can be added up");
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
    const server *s = x->s;
    graft_registered_list *list = NULL;
    json_int_t seen = 0;
    bool found = false;
    if (s->registry) {
        graft_registry_adapter_list(&list, s->registry, NULL, NULL, NULL);
    }
    for (size_t i = 0; list && i < list->n && !found; i++) {
        found = srv_may(x, list->items[i].project) && seen++ == id;
        if (found) {
            *out = (srv_name){0};
            snprintf(out->project, sizeof out->project, "%s", list->items[i].project);
            snprintf(out->adapter, sizeof out->adapter, "%s", list->items[i].adapter);
        }
    }
    graft_registered_list_free(list);
    return found;
}

static bool take_lora_item(openai_request *r, const srv_exchange *x, json_t *item, srv_fault *f) {
    json_t *name = json_object_get(item, "name"), *id = json_object_get(item, "id"), *scale = json_object_get(item, "scale");
    srv_name found;
    double factor = scale ? json_is_number(scale) ? json_number_value(scale) : (double)NAN : 1;
    if (!json_is_object(item) || (!name == !id) || (name && !json_is_string(name)) || (id && !json_is_integer(id)) ||
        !(fabs(factor) <= 100)) {
        return bad(f, "lora", "a list of objects with \"name\" or \"id\" and a \"scale\" from -100 to 100 is needed");
    }
    if (name && !srv_name_find(x, &found, json_string_value(name), "lora", f)) {
        return false;
    }
    if (id && !name_of_id(x, json_integer_value(id), &found)) {
        return srv_fault_set(f, 404, "model_not_found", "lora", "lora: no adapter has the id %lld", (long long)json_integer_value(id));
    }
    return add_use(r, &found, (float)factor, f);
}

/* What was set for requests that name nothing: defaults.h. */
static void take_defaults(openai_request *r, const srv_exchange *x) {
    srv_name names[SRV_DEFAULTS];
    float scales[SRV_DEFAULTS];
    size_t n = srv_default_uses(x, names, scales);
    for (size_t i = 0; i < n; i++) {
        add_use(r, &names[i], scales[i], NULL); /* there is room: no more can be set than added up */
    }
}

/* `model`, then `lora`, whose adapters are added to it. */
static bool take_adapters(openai_request *r, const srv_exchange *x, graft_request *d, srv_fault *f) {
    json_t *model = field(r, "model"), *lora = field(r, "lora"), *fallback = field(r, "fallback");
    srv_name name;
    if (model && !json_is_string(model)) {
        return bad(f, "model", "a string is needed");
    }
    if (!model && !lora) {
        take_defaults(r, x);
    } else if (!srv_name_find(x, &name, model ? json_string_value(model) : x->s->base_id, "model", f) || !add_use(r, &name, 1, f)) {
        return false;
    }
    r->model = model ? json_string_value(model) : r->n_uses && !lora ? r->adapter : x->s->base_id;
    if (lora && !json_is_array(lora)) {
        return bad(f, "lora", "a list of objects is needed");
    }
    for (size_t i = 0; i < json_array_size(lora); i++) {
        if (!take_lora_item(r, x, json_array_get(lora, i), f)) {
            return false;
        }
    }
    if (fallback && !is_word(fallback, "base") && !is_word(fallback, "error")) {
        return bad(f, "fallback", "\"base\" or \"error\" is needed");
    }
    if (fallback) {
        d->fallback = is_word(fallback, "base") ? GRAFT_FALLBACK_BASE : GRAFT_FALLBACK_ERROR;
    }
    d->adapters = r->n_uses ? r->uses : NULL;
    d->n_adapters = r->n_uses;
    return true;
}

/* ---- messages and prompts ----------------------------------------------------------------------------- */

/* Content in parts as one string, one part a line. NULL with *f set. */
static const char *join_parts(openai_request *r, json_t *parts, srv_fault *f) {
    size_t length = 1;
    for (size_t i = 0; i < json_array_size(parts); i++) {
        json_t *part = json_array_get(parts, i), *text = json_object_get(part, "text");
        if (!is_word(json_object_get(part, "type"), "text") || !json_is_string(text)) {
            bad(f, "messages", "parts of a content must be {\"type\":\"text\",\"text\":…}");
            return NULL;
        }
        length += json_string_length(text) + 1;
    }
    char *joined = keep(r, length, 1), *at = joined;
    if (!joined) {
        no_memory(f);
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

static bool take_message(openai_request *r, json_t *m, graft_message *out, srv_fault *f) {
    const char *role = json_string_value(json_object_get(m, "role"));
    json_t *content = json_object_get(m, "content");
    if (!role) {
        return bad(f, "messages", "each must be an object with \"role\" and \"content\"");
    }
    if (strcmp(role, "developer") == 0) {
        role = "system";
    }
    if (strcmp(role, "system") != 0 && strcmp(role, "user") != 0 && strcmp(role, "assistant") != 0) {
        return bad(f, "messages", "roles are system, developer, user and assistant");
    }
    json_t *calls = json_object_get(m, "tool_calls");
    if (calls && !json_is_null(calls) && !is_nothing(calls)) {
        return bad(f, "messages", "tool calls are not supported");
    }
    *out = (graft_message){role, json_string_value(content)};
    if (json_is_array(content)) {
        out->content = join_parts(r, content, f);
        return out->content != NULL;
    }
    return out->content || bad(f, "messages", "content must be a string or a list of text parts");
}

static bool take_messages(openai_request *r, graft_request *d, srv_fault *f) {
    json_t *list = field(r, "messages");
    size_t n = json_array_size(list);
    if (n < 1 || n > MESSAGES) {
        return bad(f, "messages", "a list of 1 to 4096 messages is needed");
    }
    graft_message *messages = keep(r, n, sizeof *messages);
    if (!messages) {
        return no_memory(f);
    }
    for (size_t i = 0; i < n; i++) {
        if (!take_message(r, json_array_get(list, i), &messages[i], f)) {
            return false;
        }
    }
    d->messages = messages;
    d->n_messages = n;
    r->n_prompts = 1;
    return true;
}

static bool is_tokens(json_t *v) {
    return json_is_array(v) && json_array_size(v) > 0 && json_is_integer(json_array_get(v, 0));
}

static bool take_prompt(openai_request *r, server *s, json_t *v, graft_request *out, srv_fault *f) {
    if (json_is_string(v)) {
        out->prompt = json_string_value(v);
        return true;
    }
    size_t n = json_array_size(v);
    int32_t *tokens = is_tokens(v) ? keep(r, n, sizeof *tokens) : NULL;
    if (!tokens) {
        return is_tokens(v) ? no_memory(f) : bad(f, "prompt", "a string, a list of strings, of tokens or of lists of tokens is needed");
    }
    for (size_t i = 0; i < n; i++) {
        json_t *t = json_array_get(v, i);
        json_int_t token = json_is_integer(t) ? json_integer_value(t) : -1;
        if (token < 0 || token >= s->model.n_vocab) {
            return srv_fault_set(f, 400, "invalid_value", "prompt", "prompt: tokens are whole numbers from 0 to %d", s->model.n_vocab - 1);
        }
        tokens[i] = (int32_t)token;
    }
    out->tokens = tokens;
    out->n_tokens = n;
    return true;
}

static json_t *prompt_at(json_t *v, size_t i) {
    return json_is_array(v) && !is_tokens(v) ? json_array_get(v, i) : v;
}

static bool count_prompts(openai_request *r, const server *s, srv_fault *f) {
    json_t *v = field(r, "prompt");
    r->n_prompts = json_is_array(v) && !is_tokens(v) ? json_array_size(v) : 1;
    if (!v || r->n_prompts < 1 || r->n_prompts > PROMPTS || r->n_prompts * (size_t)r->n > (size_t)s->o.limits.choices) {
        return bad(f, "prompt", v ? "none, or more than the server answers in one request" : "is needed");
    }
    return true;
}

/* One request for each answer: the same but for the prompt, and for the seed, or all answers would be one. */
static bool spread(openai_request *r, server *s, const graft_request *d, srv_fault *f) {
    size_t n = r->n_prompts * (size_t)r->n;
    r->requests = gr_calloc(n, sizeof *r->requests);
    if (!r->requests) {
        return no_memory(f);
    }
    for (; r->n_requests < n; r->n_requests++) {
        graft_request *q = &r->requests[r->n_requests];
        size_t of_prompt = r->n_requests % (size_t)r->n;
        *q = *d;
        if (d->sampling.seed != UINT32_MAX) {
            q->sampling.seed = fold_seed((double)d->sampling.seed + (double)of_prompt);
        }
        if (!r->chat && !take_prompt(r, s, prompt_at(field(r, "prompt"), r->n_requests / (size_t)r->n), q, f)) {
            return false;
        }
    }
    return true;
}

json_t *srv_parse_body(const srv_exchange *x, srv_fault *f) {
    json_error_t e;
    char quoted[GR_QUOTE_SIZE];
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

bool openai_request_parse(openai_request *r, srv_exchange *x, bool chat, srv_fault *f) {
    server *s = x->s;
    graft_request d = graft_request_default();
    *r = (openai_request){.chat = chat, .body = srv_parse_body(x, f)};
    return r->body && take_adapters(r, x, &d, f) && take_bool(r, "ignore_eos", &d.ignore_eos, f) && refuse_unsupported(r, f) &&
           take_stream(r, f) && take_counts(r, s, &d, f) && take_sampling(r, &d, f) && take_stop(r, &d, f) && take_bias(r, s, &d, f) && take_format(r, &d, f) && take_logprobs(r, &d, f) &&
           (chat ? take_messages(r, &d, f) : count_prompts(r, s, f)) && spread(r, s, &d, f);
}

void openai_request_finish(openai_request *r) {
    for (size_t i = 0; i < r->n_blocks; i++) {
        gr_free(r->blocks[i]);
    }
    gr_free(r->blocks);
    gr_free(r->requests);
    json_decref(r->body);
}
