/*
 * Text, tokens and the chat template, as llama-server's calls have them. A large text takes a while to cut into tokens: the
 * worker does that, and the loop what is small.
 */
#include "openai_request.h"
#include "route.h"

#include "base/memory.h"
#include "base/utf8.h"

/* Bytes of a body that the loop sees to itself, and that are taken at all. */
enum { TEXT_SMALL = 32 << 10, TEXT_MOST = 1 << 20 };

/* One call. What `act` does may run on the worker: it sees the body, the library and the writer, nothing else. */
typedef struct text_call {
    srv_task task; /* first */
    srv_exchange *x; /* NULL: the client left */
    graft *g;
    srv_request *r; /* its body; apply-template: the messages as well */
    bool add_special, parse_special, with_pieces;
    bool (*act)(struct text_call *c);
    srv_fault f;
    bool good;
    srv_writer w;
} text_call;

static void run_text(srv_task *t) {
    text_call *c = (text_call *)(void *)t; /* its first member */
    c->good = c->act(c);
}

static void free_text(text_call *c) {
    srv_request_free(c->r);
    srv_writer_finish(&c->w);
    gr_free(c);
}

static void text_done(srv_task *t) {
    text_call *c = (text_call *)(void *)t;
    if (c->x && c->good) {
        srv_reply_json(c->x, 200, &c->w);
        srv_writer_init(&c->w); /* it was finished */
    } else if (c->x) {
        srv_reply_fault(c->x, &c->f);
    }
    free_text(c);
}

static void text_gone(srv_exchange *x, void *user) {
    (void)x;
    ((text_call *)user)->x = NULL;
}

static void start_text(text_call *c) {
    srv_exchange *x = c->x;
    c->task.run = run_text;
    c->task.done = text_done;
    if (x->body_length <= TEXT_SMALL) {
        run_text(&c->task);
        text_done(&c->task);
        return;
    }
    x->user = c;
    x->gone = text_gone;
    if (!srv_work_add(x->s->work, &c->task)) {
        x->gone = NULL;
        srv_fault_set(&c->f, 429, "queue_full", NULL, "too many calls are waiting");
        text_done(&c->task);
    }
}

/* NULL: it was answered. */
static text_call *new_text(srv_exchange *x, bool (*act)(text_call *c)) {
    srv_fault f;
    if (x->body_length > TEXT_MOST) {
        srv_reply_error(x, 413, "too_large", NULL, "the body has %zu bytes, at most %d are taken here", x->body_length,
                        TEXT_MOST);
        return NULL;
    }
    text_call *c = gr_zalloc(sizeof *c);
    if (!c) {
        srv_reply_no_memory(x);
        return NULL;
    }
    c->x = x;
    c->g = x->s->g;
    c->act = act;
    c->parse_special = true;
    srv_writer_init(&c->w);
    c->r = srv_request_new(x, &f);
    if (!c->r) {
        srv_reply_fault(x, &f);
        free_text(c);
        return NULL;
    }
    return c;
}

static bool write_token(text_call *c, int32_t token) {
    char *text;
    size_t length;
    graft_error err;
    if (!c->with_pieces) {
        srv_integer(&c->w, token);
        return true;
    }
    if (graft_token_text(&text, &length, c->g, token, &err) != 0) {
        return srv_fault_from(&c->f, &err);
    }
    srv_open(&c->w, '{');
    srv_put_integer(&c->w, "id", token);
    srv_key(&c->w, "piece");
    if (gr_utf8_valid(text, length)) {
        srv_text(&c->w, text, length);
    } else { /* a part of a character: its bytes */
        srv_open(&c->w, '[');
        for (size_t i = 0; i < length; i++) {
            srv_integer(&c->w, (unsigned char)text[i]);
        }
        srv_close(&c->w, ']');
    }
    srv_close(&c->w, '}');
    graft_free(text);
    return true;
}

/* A string as tokens, a number as the token that it is. `add`: with the tokens around a text. */
static bool tokenize_part(text_call *c, json_t *part, bool add) {
    graft_error err;
    int32_t *tokens;
    size_t n;
    if (json_is_integer(part)) {
        json_int_t token = json_integer_value(part);
        if (token < 0 || token > INT32_MAX) {
            return srv_fault_set(&c->f, 400, "invalid_value", "content", "content: no such token");
        }
        return write_token(c, (int32_t)token);
    }
    if (!json_is_string(part)) {
        return srv_fault_set(&c->f, 400, "invalid_value", "content",
                             "content: a string, or a list of strings and tokens, is needed");
    }
    if (graft_tokenize(&tokens, &n, c->g, json_string_value(part), add, c->parse_special, &err) != 0) {
        return srv_fault_from(&c->f, &err);
    }
    bool good = true;
    for (size_t i = 0; good && i < n; i++) {
        good = write_token(c, tokens[i]);
    }
    graft_free(tokens);
    return good;
}

static bool act_tokenize(text_call *c) {
    json_t *body = c->r->body, *content = json_object_get(body, "content");
    bool good = srv_take_bool(body, "add_special", &c->add_special, &c->f) &&
                srv_take_bool(body, "parse_special", &c->parse_special, &c->f) &&
                srv_take_bool(body, "with_pieces", &c->with_pieces, &c->f);
    srv_open(&c->w, '{');
    srv_key(&c->w, "tokens");
    srv_open(&c->w, '[');
    if (json_is_array(content)) {
        for (size_t i = 0; good && i < json_array_size(content); i++) {
            good = tokenize_part(c, json_array_get(content, i), c->add_special && i == 0);
        }
    } else if (content) {
        good = good && tokenize_part(c, content, c->add_special);
    }
    srv_close(&c->w, ']');
    srv_close(&c->w, '}');
    return good;
}

/* NULL: the fault is set. */
static int32_t *take_tokens(text_call *c, json_t *list) {
    size_t n = json_array_size(list);
    int32_t *tokens = gr_calloc(n ? n : 1, sizeof *tokens);
    bool good = tokens && (!list || json_is_array(list));
    for (size_t i = 0; good && i < n; i++) {
        json_t *t = json_array_get(list, i);
        json_int_t token = json_is_integer(t) ? json_integer_value(t) : -1;
        good = token >= 0 && token <= INT32_MAX;
        tokens[i] = (int32_t)token;
    }
    if (!tokens) {
        srv_no_memory(&c->f);
    } else if (!good) {
        srv_fault_set(&c->f, 400, "invalid_value", "tokens", "tokens: a list of tokens is needed");
        gr_free(tokens);
        tokens = NULL;
    }
    return tokens;
}

static bool act_detokenize(text_call *c) {
    json_t *list = json_object_get(c->r->body, "tokens");
    int32_t *tokens = take_tokens(c, list);
    size_t n = json_array_size(list), length = 0;
    char *text = NULL;
    graft_error err;
    bool good = tokens != NULL;
    if (good && graft_detokenize(&text, &length, c->g, tokens, n, &err) != 0) {
        good = srv_fault_from(&c->f, &err);
    }
    srv_open(&c->w, '{');
    srv_key(&c->w, "content");
    srv_text(&c->w, text ? text : "", length);
    srv_close(&c->w, '}');
    graft_free(text);
    gr_free(tokens);
    return good;
}

static bool act_template(text_call *c) {
    const graft_request *r = c->r->requests;
    char *prompt;
    graft_error err;
    if (graft_apply_template(&prompt, c->g, r->messages, r->n_messages, &err) != 0) {
        return srv_fault_from(&c->f, &err);
    }
    srv_open(&c->w, '{');
    srv_put_string(&c->w, "prompt", prompt);
    srv_close(&c->w, '}');
    graft_free(prompt);
    return true;
}

void srv_post_tokenize(srv_exchange *x) {
    text_call *c = new_text(x, act_tokenize);
    if (c) {
        start_text(c);
    }
}

void srv_post_detokenize(srv_exchange *x) {
    text_call *c = new_text(x, act_detokenize);
    if (c) {
        start_text(c);
    }
}

void srv_post_template(srv_exchange *x) {
    text_call *c = new_text(x, act_template);
    if (!c) {
        return;
    }
    if (openai_take_chat(c->r, &c->f)) {
        start_text(c);
    } else {
        text_done(&c->task); /* not good: the fault */
    }
}
