/* Bodies of Ollama's calls. */
#include "ollama_request.h"

#include "base/memory.h"

#include <string.h>

enum { TOKEN_BYTES = 64 /* more than tokens have on average in any text worth its name */ };

/* ---- the parts ----------------------------------------------------------------------------------------- */

bool ollama_take_model(srv_request *r, srv_fault *f) {
    char quoted[GR_QUOTE_SIZE];
    const char *name = NULL;
    if (!srv_take_string(r->body, "name", &name, f) || !srv_take_string(r->body, "model", &name, f)) {
        return false;
    }
    if (!name || !*name) {
        return srv_fault_set(f, 400, "missing_field", "model", "model is required");
    }
    if (!srv_field(r->body, "model")) {
        json_object_set(r->body, "model", json_object_get(r->body, "name"));
    }
    if (srv_take_adapters(r, f)) {
        return true;
    }
    return strcmp(f->param, "model") != 0 ? false
                                          : srv_fault_set(f, f->status, f->code, "model", "model '%s' not found",
                                                          gr_quote(quoted, name, strlen(name)));
}

/* What would change the answer; unless its value asks for nothing. */
static bool refuse_unsupported(const srv_request *r, srv_fault *f) {
    static const struct {
        const char *key, *why;
    } fields[] = {
        {"tools", "does not support tools"},
        {"think", "does not support thinking"},
        {"suffix", "does not support insert"},
        {"images", "does not support images"},
        {"template", "does not take another template: send the whole prompt with \"raw\": true"},
        {"context", "does not take a context: send the conversation to /api/chat"},
    };
    for (size_t i = 0; i < sizeof fields / sizeof fields[0]; i++) {
        json_t *v = srv_field(r->body, fields[i].key);
        if (v && !srv_is_nothing(v)) {
            char quoted[GR_QUOTE_SIZE];
            return srv_fault_set(f, 400, "unsupported_parameter", fields[i].key, "%s %s",
                                 gr_quote(quoted, r->model, strlen(r->model)), fields[i].why);
        }
    }
    return true;
}

static bool take_format(srv_request *r, srv_fault *f) {
    json_t *v = srv_field(r->body, "format");
    if (!v || (json_is_string(v) && json_string_length(v) == 0)) {
        return true;
    }
    if (json_is_object(v)) {
        return srv_take_schema(r, v, "format", f);
    }
    srv_take_any_json(r);
    return srv_is_word(v, "json") || srv_bad(f, "format", "\"json\" or a JSON schema is needed");
}

static bool is_minus_one(json_t *options, const char *key) {
    json_t *v = json_object_get(options, key);
    return json_is_integer(v) && json_integer_value(v) == -1;
}

/* -1 stands for "random", "all of the vocabulary", "all of the context". */
static void spell_out(const srv_request *r, json_t *options) {
    if (is_minus_one(options, "seed")) {
        json_object_del(options, "seed");
    }
    if (is_minus_one(options, "top_k")) {
        json_object_set_new(options, "top_k", json_integer(0));
    }
    if (is_minus_one(options, "repeat_last_n")) {
        int context = r->x->s->model.context;
        json_object_set_new(options, "repeat_last_n", json_integer(context < 65536 ? context : 65536));
    }
}

static bool take_options(srv_request *r, srv_fault *f) {
    json_t *options = srv_field(r->body, "options");
    graft_sampling *s = &r->common.sampling;
    double most = 0;
    if (options && !json_is_object(options)) {
        return srv_bad(f, "options", "an object is needed");
    }
    s->temperature = 0.8f;
    s->top_k = 40;
    s->top_p = 0.9f;
    s->min_p = 0;
    s->repeat_penalty = 1.1f;
    s->repeat_last_n = 64;
    spell_out(r, options);
    if (!srv_take_sampling(r, options, f) || !srv_take_stop(r, options, f) ||
        !srv_take_number(options, "num_predict", &most, f) || !srv_take_bool(options, "ignore_eos", &r->common.ignore_eos, f)) {
        return false;
    }
    r->common.max_tokens = most > 0 ? (int)most : 0; /* 0: up to the context's end */
    return true;
}

static bool take_keep(srv_request *r, srv_fault *f) {
    json_t *v = srv_field(r->body, "keep_alive");
    r->has_keep = v != NULL;
    return !v || srv_keep_alive_take(v, &r->keep_ms, f);
}

static bool take_common(srv_request *r, srv_fault *f) {
    r->stream = true;
    return ollama_take_model(r, f) && refuse_unsupported(r, f) && take_keep(r, f) &&
           srv_take_bool(r->body, "stream", &r->stream, f) && take_options(r, f) && take_format(r, f) && srv_take_logprobs(r, f);
}

/* ---- whole bodies -------------------------------------------------------------------------------------- */

bool ollama_take_chat(srv_request *r, srv_fault *f) {
    json_t *messages = srv_field(r->body, "messages");
    r->chat = true;
    if (!take_common(r, f)) {
        return false;
    }
    r->load_only = !messages || (json_is_array(messages) && json_array_size(messages) == 0);
    return r->load_only || (srv_take_messages(r, f) && srv_spread_answers(r, NULL, f));
}

/* Whether the base has a chat template. */
static bool has_template(const server *s) {
    char *prompt = NULL;
    bool has = graft_apply_template(&prompt, s->g, &(graft_message){"user", "a"}, 1, NULL) == 0;
    graft_free(prompt);
    return has;
}

/* The prompt as a message, after the system's if there is one. */
static bool take_turn(srv_request *r, const char *system, const char *prompt, srv_fault *f) {
    graft_message *messages = srv_request_keep(r, 2, sizeof *messages);
    if (!messages) {
        return srv_no_memory(f);
    }
    r->common.messages = messages;
    if (system && *system) {
        messages[r->common.n_messages++] = (graft_message){"system", system};
    }
    messages[r->common.n_messages++] = (graft_message){"user", prompt};
    return srv_spread_answers(r, NULL, f);
}

bool ollama_take_generate(srv_request *r, srv_fault *f) {
    const char *prompt = NULL, *system = NULL;
    bool raw = false;
    if (!take_common(r, f) || !srv_take_string(r->body, "prompt", &prompt, f) ||
        !srv_take_string(r->body, "system", &system, f) || !srv_take_bool(r->body, "raw", &raw, f)) {
        return false;
    }
    r->load_only = !prompt || !*prompt;
    if (r->load_only) {
        return true;
    }
    bool plain = raw || !has_template(r->x->s);
    if (plain && system && *system) {
        return srv_bad(f, "system", raw ? "does not go with \"raw\": true" : "the base has no chat template to put it into");
    }
    return plain ? srv_spread_answers(r, srv_field(r->body, "prompt"), f) : take_turn(r, system, prompt, f);
}

/* ---- embeddings ---------------------------------------------------------------------------------------- */

/* At least the first `most` tokens of the text, of a long one without looking at all of it if that will do. */
static int first_tokens(int32_t **tokens, size_t *n, const server *s, const char *text, size_t most, graft_error *err) {
    size_t length = most * TOKEN_BYTES;
    if (strlen(text) <= length) {
        return graft_tokenize(tokens, n, s->g, text, true, true, err);
    }
    while (length > 0 && ((unsigned char)text[length] & 0xc0) == 0x80) { /* within a character */
        length--;
    }
    char *start = gr_strndup(text, length);
    int code = start ? graft_tokenize(tokens, n, s->g, start, true, true, err) : gr_fail_memory(err, length);
    gr_free(start);
    if (!code && *n <= most) { /* unusually long tokens */
        graft_free(*tokens);
        code = graft_tokenize(tokens, n, s->g, text, true, true, err);
    }
    return code;
}

/* No more tokens of the text than the context holds. */
static bool cut(srv_request *r, graft_embed_request *q, srv_fault *f) {
    size_t most = (size_t)r->x->s->model.context, n;
    int32_t *tokens;
    graft_error err = {0};
    if (strlen(q->text) < most) { /* a token has a byte at least, and one may begin the text */
        return true;
    }
    if (first_tokens(&tokens, &n, r->x->s, q->text, most, &err) != 0) {
        return srv_fault_from(f, &err);
    }
    int32_t *kept = n > most ? srv_request_keep(r, most, sizeof *kept) : NULL;
    bool good = n <= most || kept;
    if (kept) {
        memcpy(kept, tokens, most * sizeof *kept);
        q->text = NULL;
        q->tokens = kept;
        q->n_tokens = most;
    }
    graft_free(tokens);
    return good || srv_no_memory(f);
}

static bool check_strings(json_t *v, srv_fault *f) {
    for (size_t i = 0; i < srv_count_texts(v); i++) {
        if (!json_is_string(srv_text_at(v, i))) {
            return srv_bad(f, "input", "a string or a list of strings is needed");
        }
    }
    return true;
}

bool ollama_take_embed(srv_request *r, srv_fault *f) {
    json_t *input = srv_field(r->body, "input");
    bool truncate = true;
    if (!ollama_take_model(r, f) || !take_keep(r, f) || !srv_take_bool(r->body, "truncate", &truncate, f)) {
        return false;
    }
    r->load_only = !input || (srv_is_nothing(input) && !json_is_false(input) && !json_is_object(input));
    if (r->load_only) {
        return true;
    }
    if (!check_strings(input, f) || !srv_spread_embeds(r, input, "input", f)) {
        return false;
    }
    for (size_t i = 0; truncate && i < r->n_requests; i++) {
        if (!cut(r, &r->embeds[i], f)) {
            return false;
        }
    }
    return true;
}

bool ollama_take_embeddings(srv_request *r, srv_fault *f) {
    const char *prompt = NULL;
    if (!ollama_take_model(r, f) || !take_keep(r, f) || !srv_take_string(r->body, "prompt", &prompt, f)) {
        return false;
    }
    r->load_only = !prompt || !*prompt;
    if (r->load_only) {
        return true;
    }
    if (!srv_spread_embeds(r, srv_field(r->body, "prompt"), "prompt", f)) {
        return false;
    }
    r->embeds[0].normalize = false; /* Ollama's newer call normalizes, this one does not */
    return cut(r, &r->embeds[0], f);
}
