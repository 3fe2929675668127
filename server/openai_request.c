/* Bodies of OpenAI's calls. */
#include "openai_request.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { BIASES = 1024, PROMPTS = 64, COMPLETION_TOKENS = 16 /* OpenAI's, for max_tokens of the older call */ };

/* Fields that would change the answer, unless their value asks for nothing: false, 0, "none" or empty, or what else is named
 * here. */
typedef struct unsupported {
    const char *key;
    double least, most; /* numbers that change nothing */
    const char *word;   /* and a word, alone or in a list */
} unsupported;

static const unsupported unsupported_fields[] = {
    {"tools", 0, 0, NULL}, {"functions", 0, 0, NULL}, {"function_call", 0, 0, NULL}, {"tool_choice", 0, 0, "auto"},
    {"audio", 0, 0, NULL}, {"modalities", 0, 0, "text"}, {"suffix", 0, 0, NULL}, {"web_search_options", 0, 0, NULL},
    {"echo", 0, 0, NULL}, {"prompt_embeds", 0, 0, NULL},
    /* vLLM's */
    {"logit_processors", 0, 0, NULL}, {"logits_processors", 0, 0, NULL}, {"guided_json", 0, 0, NULL},
    {"guided_regex", 0, 0, NULL}, {"guided_choice", 0, 0, NULL}, {"guided_grammar", 0, 0, NULL},
    {"structured_outputs", 0, 0, NULL}, {"use_beam_search", 0, 0, NULL},
    {"length_penalty", 1, 1, NULL}, {"min_tokens", 0, 0, NULL}, {"stop_token_ids", 0, 0, NULL}, {"bad_words", 0, 0, NULL},
    {"allowed_token_ids", 0, 0, NULL}, {"include_stop_str_in_output", 0, 0, NULL}, {"truncate_prompt_tokens", -1, -1, NULL},
    {"continue_final_message", 0, 0, NULL}, {"chat_template", 0, 0, NULL}, {"chat_template_kwargs", 0, 0, NULL},
    {"documents", 0, 0, NULL},
    /* llama-server's */
    {"typical_p", 1, 1, NULL}, {"tfs_z", 1, 1, NULL}, {"top_n_sigma", -1e9, 0, NULL}, {"mirostat", 0, 0, NULL},
    {"dynatemp_range", 0, 0, NULL}, {"dry_multiplier", 0, 0, NULL}, {"xtc_probability", 0, 0, NULL}, {"samplers", 0, 0, NULL},
    {"n_probs", 0, 0, NULL},
    /* mistral.rs' and LoRAX': `model` and `lora` name adapters here */
    {"adapter", 0, 0, NULL}, {"adapters", 0, 0, NULL}, {"adapter_id", 0, 0, NULL},
};

static bool is_harmless(json_t *v, const unsupported *u) {
    double n = json_is_number(v) ? json_number_value(v) : (double)NAN;
    json_t *only = json_array_size(v) == 1 ? json_array_get(v, 0) : v;
    return !v || srv_is_nothing(v) || (n >= u->least && n <= u->most) || srv_is_word(v, "none") ||
           (u->word && srv_is_word(only, u->word));
}

static bool refuse(const char *key, srv_fault *f) {
    return srv_fault_set(f, 400, "unsupported_parameter", key, "%s is not supported", key);
}

static bool refuse_unsupported(const srv_request *r, srv_fault *f) {
    json_t *opens = srv_field(r->body, "add_generation_prompt"); /* the one of which false asks for something */
    for (size_t i = 0; i < sizeof unsupported_fields / sizeof unsupported_fields[0]; i++) {
        const unsupported *u = &unsupported_fields[i];
        if (!is_harmless(srv_field(r->body, u->key), u)) {
            return refuse(u->key, f);
        }
    }
    return !opens || json_is_true(opens) || refuse("add_generation_prompt", f);
}

/* Two names of one thing: which of them counts is nobody's to guess. */
static bool refuse_both(const srv_request *r, const char *key, const char *other, srv_fault *f) {
    return !srv_field(r->body, key) || !srv_field(r->body, other) ||
           srv_fault_set(f, 400, "invalid_value", key, "%s: does not go with %s", key, other);
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

/* OpenAI's `response_format` or what llama-server calls `json_schema`; or a grammar. */
static bool take_format(srv_request *r, srv_fault *f) {
    json_t *v = srv_field(r->body, "response_format"), *type = json_object_get(v, "type"),
           *schema = srv_field(r->body, "json_schema");
    const char **grammar = &r->common.sampling.grammar;
    bool plain = !v || srv_is_word(type, "text");
    if (!srv_take_string(r->body, "grammar", grammar, f)) {
        return false;
    }
    if (*grammar && (!plain || schema)) {
        return srv_bad(f, "grammar", "goes with no response_format but text, and not with json_schema");
    }
    if (schema) {
        return plain ? srv_take_schema(r, schema, "json_schema", f)
                     : srv_bad(f, "json_schema", "goes with no response_format but text");
    }
    if (plain) {
        return true;
    }
    if (srv_is_word(type, "json_schema")) {
        schema = json_object_get(json_object_get(v, "json_schema"), "schema");
        return schema ? srv_take_schema(r, schema, "response_format", f)
                      : srv_bad(f, "response_format", "\"json_schema\": {\"schema\": …} is needed");
    }
    srv_take_any_json(r);
    return srv_is_word(type, "json_object") || srv_bad(f, "response_format", "its type must be text, json_object or json_schema");
}

/* Up to how many tokens, by any of its names; 0: up to the context's end. */
static bool take_length(srv_request *r, srv_fault *f) {
    double tokens = r->chat ? 0 : COMPLETION_TOKENS, completion = 0, predict = tokens;
    if (!refuse_both(r, "n_predict", "max_tokens", f) || !refuse_both(r, "n_predict", "max_completion_tokens", f) ||
        !srv_take_number(r->body, "n_predict", &predict, f)) {
        return false;
    }
    if (predict == 0 && srv_field(r->body, "n_predict")) {
        return srv_bad(f, "n_predict", "at least one token is answered; -1 is up to the context's end");
    }
    tokens = predict < 0 ? 0 : predict;
    if (!srv_take_number(r->body, "max_tokens", &tokens, f) ||
        !srv_take_number(r->body, "max_completion_tokens", &completion, f)) {
        return false;
    }
    r->common.max_tokens = (int)(completion > 0 ? completion : tokens);
    return true;
}

static bool take_counts(srv_request *r, srv_fault *f) {
    double n = 1, best = 0;
    if (!srv_take_number(r->body, "n", &n, f) || !srv_take_number(r->body, "best_of", &best, f) || !take_length(r, f)) {
        return false;
    }
    if (n > r->x->s->o.limits.choices) {
        return srv_bad(f, "n", "more answers than the server gives to one request");
    }
    if (best > 0 && best != n) {
        return srv_fault_set(f, 400, "unsupported_parameter", "best_of", "best_of: only the same number as n is supported");
    }
    r->n = (int)n;
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

/* OpenAI's defaults for OpenAI's fields, the library's for its own. vLLM and others say repetition_penalty. */
static bool take_sampling(srv_request *r, srv_fault *f) {
    double repeat = (double)r->common.sampling.repeat_penalty;
    if (!refuse_both(r, "repetition_penalty", "repeat_penalty", f) ||
        !srv_take_number(r->body, "repetition_penalty", &repeat, f)) {
        return false;
    }
    r->common.sampling.repeat_penalty = (float)repeat;
    r->common.sampling.temperature = 1;
    r->common.sampling.top_p = 1;
    return srv_take_sampling(r, r->body, f);
}

static bool take_answers(srv_request *r, srv_fault *f) {
    return srv_take_adapters(r, f) && srv_take_bool(r->body, "ignore_eos", &r->common.ignore_eos, f) &&
           srv_take_bool(r->body, "cache_prompt", &r->common.cache_prompt, f) && refuse_unsupported(r, f) &&
           take_stream(r, f) && take_counts(r, f) && take_sampling(r, f) && srv_take_stop(r, r->body, f) &&
           take_bias(r, f) && take_format(r, f) && take_logprobs(r, f);
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
    if (!srv_take_adapters(r, f) || !refuse_unsupported(r, f)) {
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
