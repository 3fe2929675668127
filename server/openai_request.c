/* Bodies of OpenAI's calls. */
#include "openai_request.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { BIASES = 1024, PROMPTS = 64, COMPLETION_TOKENS = 16 /* OpenAI's, for max_tokens of the older call */ };

/* Fields that would change the answer; unless their value asks for nothing. */
static bool refuse_unsupported(const srv_request *r, srv_fault *f) {
    static const char *const keys[] = {"tools",  "functions",          "function_call", "tool_choice", "audio",    "modalities",
                                       "suffix", "web_search_options", "echo",          "prompt_embeds", "logit_processors",
                                       "guided_json", "guided_regex", "guided_choice", "structured_outputs", "use_beam_search"};
    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++) {
        json_t *v = srv_field(r->body, keys[i]);
        bool harmless = !v || srv_is_nothing(v) || srv_is_word(v, "none") || (i == 3 && srv_is_word(v, "auto")) ||
                        (i == 5 && json_array_size(v) == 1 && srv_is_word(json_array_get(v, 0), "text"));
        if (!harmless) {
            return srv_fault_set(f, 400, "unsupported_parameter", keys[i], "%s is not supported", keys[i]);
        }
    }
    return true;
}

/* ---- the parts ----------------------------------------------------------------------------------------- */

static bool take_bias(srv_request *r, srv_fault *f) {
    json_t *v = srv_field(r->body, "logit_bias"), *value;
    const char *key;
    if (v && (!json_is_object(v) || json_object_size(v) > BIASES)) {
        return srv_bad(f, "logit_bias", "an object of at most 1024 token numbers is needed");
    }
    graft_logit_bias *bias = srv_request_keep(r, json_object_size(v), sizeof *bias);
    if (!bias) {
        return srv_no_memory(f);
    }
    r->common.logit_bias = bias;
    json_object_foreach(v, key, value) {
        size_t digits = strspn(key, "0123456789");
        long token = digits && digits < 10 && !key[digits] ? strtol(key, NULL, 10) : -1;
        double b = json_is_number(value) ? json_number_value(value) : (double)NAN;
        if (token < 0 || token >= r->x->s->model.n_vocab || !(b >= -100 && b <= 100)) {
            return srv_bad(f, "logit_bias", "token numbers of the vocabulary with biases from -100 to 100 are needed");
        }
        bias[r->common.n_logit_bias++] = (graft_logit_bias){(int32_t)token, (float)b};
    }
    return true;
}

static bool take_format(srv_request *r, srv_fault *f) {
    json_t *v = srv_field(r->body, "response_format"), *type = json_object_get(v, "type");
    const char **grammar = &r->common.sampling.grammar;
    if (!srv_take_string(r->body, "grammar", grammar, f)) {
        return false;
    }
    if (!v || srv_is_word(type, "text")) {
        return true;
    }
    if (*grammar) {
        return srv_bad(f, "grammar", "goes with no response_format but text");
    }
    if (srv_is_word(type, "json_schema")) {
        json_t *schema = json_object_get(json_object_get(v, "json_schema"), "schema");
        return schema ? srv_take_schema(r, schema, "response_format", f)
                      : srv_bad(f, "response_format", "\"json_schema\": {\"schema\": …} is needed");
    }
    srv_take_any_json(r);
    return srv_is_word(type, "json_object") || srv_bad(f, "response_format", "its type must be text, json_object or json_schema");
}

static bool take_counts(srv_request *r, srv_fault *f) {
    double n = 1, best = 0, tokens = r->chat ? 0 : COMPLETION_TOKENS, completion = 0; /* 0: up to the context's end */
    if (!srv_take_number(r->body, "n", &n, f) || !srv_take_number(r->body, "best_of", &best, f) ||
        !srv_take_number(r->body, "max_tokens", &tokens, f) ||
        !srv_take_number(r->body, "max_completion_tokens", &completion, f)) {
        return false;
    }
    if (n > r->x->s->o.limits.choices) {
        return srv_bad(f, "n", "more answers than the server gives to one request");
    }
    if (best > 0 && best != n) {
        return srv_fault_set(f, 400, "unsupported_parameter", "best_of", "best_of: only the same number as n is supported");
    }
    r->n = (int)n;
    r->common.max_tokens = (int)(completion > 0 ? completion : tokens);
    return true;
}

/* The older call says how many alternatives, and no boolean. */
static bool take_logprobs(srv_request *r, srv_fault *f) {
    double top = -1;
    if (r->chat) {
        return srv_take_logprobs(r, f);
    }
    if (!srv_take_number(r->body, "logprobs", &top, f)) {
        return false;
    }
    r->logprobs = (int)top;
    r->common.top_logprobs = top > 0 ? (int)top : 0;
    return true;
}

static bool take_stream(srv_request *r, srv_fault *f) {
    json_t *options = srv_field(r->body, "stream_options");
    if (!srv_take_bool(r->body, "stream", &r->stream, f)) {
        return false;
    }
    if (options && !r->stream) {
        return srv_bad(f, "stream_options", "goes with \"stream\": true only");
    }
    if (options && !json_is_object(options)) {
        return srv_bad(f, "stream_options", "an object is needed");
    }
    json_t *usage = json_object_get(options, "include_usage");
    if (usage && !json_is_boolean(usage) && !json_is_null(usage)) {
        return srv_bad(f, "stream_options.include_usage", "true or false is needed");
    }
    r->usage = json_is_true(usage);
    return true;
}

static bool take_prompts(srv_request *r, srv_fault *f) {
    json_t *v = srv_field(r->body, "prompt");
    size_t n = srv_count_texts(v);
    if (n < 1 || n > PROMPTS || n * (size_t)r->n > (size_t)r->x->s->o.limits.choices) {
        return srv_bad(f, "prompt", v ? "none, or more than the server answers in one request" : "is needed");
    }
    return srv_spread_answers(r, v, f);
}

/* ---- whole bodies -------------------------------------------------------------------------------------- */

/* OpenAI's defaults for OpenAI's fields, the library's for its own. */
static bool take_sampling(srv_request *r, srv_fault *f) {
    r->common.sampling.temperature = 1;
    r->common.sampling.top_p = 1;
    return srv_take_sampling(r, r->body, f);
}

static bool take_answers(srv_request *r, srv_fault *f) {
    return srv_take_adapters(r, f) && srv_take_bool(r->body, "ignore_eos", &r->common.ignore_eos, f) &&
           refuse_unsupported(r, f) && take_stream(r, f) && take_counts(r, f) && take_sampling(r, f) &&
           srv_take_stop(r, r->body, f) && take_bias(r, f) && take_format(r, f) && take_logprobs(r, f);
}

bool openai_take_chat(srv_request *r, srv_fault *f) {
    r->chat = true;
    return take_answers(r, f) && srv_take_messages(r, f) && srv_spread_answers(r, NULL, f);
}

bool openai_take_completion(srv_request *r, srv_fault *f) {
    return take_answers(r, f) && take_prompts(r, f);
}

bool openai_take_embeddings(srv_request *r, srv_fault *f) {
    json_t *input = srv_field(r->body, "input"), *format = srv_field(r->body, "encoding_format");
    if (!srv_take_adapters(r, f)) {
        return false;
    }
    if (format && !srv_is_word(format, "float") && !srv_is_word(format, "base64")) {
        return srv_bad(f, "encoding_format", "\"float\" or \"base64\" is needed");
    }
    r->base64 = srv_is_word(format, "base64");
    if (!input || srv_is_nothing(input)) {
        return srv_bad(f, "input", input ? "is empty" : "is needed");
    }
    return srv_spread_embeds(r, input, "input", f);
}
