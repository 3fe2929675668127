/* Text, tokens and chat templates: what requests and the tokenising calls of graft.h share. */
#include "api.h"

#include "base/memory.h"
#include "base/utf8.h"

#include <limits.h>
#include <string.h>

#define MAX_MESSAGES 4096
#define MAX_TOKENS (1 << 24)            /* of one graft_tokenize */
#define MAX_TEXT ((size_t)256 << 20)    /* bytes that one graft_detokenize may give */

void graft_free(void *memory) {
    gr_free(memory);
}

/* ---- checks -------------------------------------------------------------------------------------------- */

int gr_api_check_text(const char *field, const char *text, graft_error *err) {
    return gr_utf8_valid(text, strlen(text)) ? 0 : gr_fail(err, GRAFT_E_BAD_REQUEST, "%s: not valid UTF-8", field);
}

int gr_api_check_tokens(const graft *g, const int32_t *tokens, size_t n, graft_error *err) {
    for (size_t i = 0; i < n; i++) {
        if (tokens[i] < 0 || tokens[i] >= g->base->n_vocab) {
            return gr_fail(err, GRAFT_E_BAD_REQUEST, "tokens: %d is outside 0 to %d", tokens[i], g->base->n_vocab - 1);
        }
    }
    return 0;
}

/* ---- chat ---------------------------------------------------------------------------------------------- */

static int check_messages(const graft_message *messages, size_t n, size_t *bytes, graft_error *err) {
    int rc = n >= 1 && n <= MAX_MESSAGES
                 ? 0
                 : gr_fail(err, GRAFT_E_BAD_REQUEST, "n_messages: %zu is outside 1 to %d", n, MAX_MESSAGES);
    *bytes = 0;
    for (size_t i = 0; i < n && !rc; i++) {
        const graft_message *m = &messages[i];
        if (!m->role || !m->content) {
            return gr_fail(err, GRAFT_E_BAD_REQUEST, "messages: a role or content is NULL");
        }
        rc = gr_api_check_text("messages.role", m->role, err);
        rc = rc ? rc : gr_api_check_text("messages.content", m->content, err);
        *bytes += strlen(m->role) + strlen(m->content);
    }
    return rc;
}

static int apply_template(const char *template, const struct llama_chat_message *chat, size_t n, size_t bytes,
                          char **out, size_t *length, graft_error *err) {
    size_t room = bytes * 2 + 1024;
    for (;;) {
        char *text = gr_alloc(room + 1);
        if (!text) {
            return gr_fail_memory(err, room);
        }
        int32_t needed = llama_chat_apply_template(template, chat, n, true, text, (int32_t)room);
        if (needed >= 0 && (size_t)needed <= room) {
            text[needed] = '\0';
            *out = text;
            *length = (size_t)needed;
            return 0;
        }
        gr_free(text);
        if (needed < 0) {
            return gr_fail(err, GRAFT_E_NO_CHAT_TEMPLATE,
                           "messages: the model's chat template is none that libllama knows");
        }
        room = (size_t)needed;
    }
}

int gr_api_template(const graft *g, const graft_message *messages, size_t n, int most, char **out, size_t *length,
                    graft_error *err) {
    const char *template = llama_model_chat_template(g->base->llama, NULL);
    size_t bytes, longest = (size_t)gr_engine_vocab(g->engine)->longest_piece + 1;
    int rc = check_messages(messages, n, &bytes, err);
    if (rc) {
        return rc;
    }
    if (!template) {
        return gr_fail(err, GRAFT_E_NO_CHAT_TEMPLATE, "messages: the model has no chat template");
    }
    if (bytes / longest > (size_t)most || bytes > INT32_MAX / 4) {
        return gr_fail(err, GRAFT_E_CONTEXT_LENGTH,
                       "the messages have %zu bytes, so at least %zu tokens; at most %d fit", bytes, bytes / longest,
                       most);
    }
    struct llama_chat_message *chat = gr_calloc(n, sizeof *chat);
    if (!chat) {
        return gr_fail_memory(err, n * sizeof *chat);
    }
    for (size_t i = 0; i < n; i++) {
        chat[i] = (struct llama_chat_message){messages[i].role, messages[i].content};
    }
    rc = apply_template(template, chat, n, bytes, out, length, err);
    gr_free(chat);
    return rc;
}

int graft_apply_template(char **prompt, const graft *g, const graft_message *messages, size_t n, graft_error *err) {
    size_t length;
    if (!prompt || !g || !messages) {
        return gr_fail(err, GRAFT_E_BAD_REQUEST, "graft_apply_template: an argument is NULL");
    }
    return gr_api_template(g, messages, n, MAX_TOKENS, prompt, &length, err);
}

/* ---- tokens -------------------------------------------------------------------------------------------- */

int graft_tokenize(int32_t **tokens, size_t *n, const graft *g, const char *text, bool add_special, bool parse_special,
                   graft_error *err) {
    if (!tokens || !n || !g || !text) {
        return gr_fail(err, GRAFT_E_BAD_REQUEST, "graft_tokenize: an argument is NULL");
    }
    llama_token *found;
    int n_found, rc = gr_api_check_text("text", text, err);
    rc = rc ? rc : gr_vocab_tokenize(gr_engine_vocab(g->engine), text, strlen(text), add_special, parse_special, MAX_TOKENS,
                                     &found, &n_found, err);
    if (rc == 0) {
        *tokens = found;
        *n = (size_t)n_found;
    }
    return rc;
}

int graft_detokenize(char **text, size_t *length, const graft *g, const int32_t *tokens, size_t n, graft_error *err) {
    if (!text || !g || (!tokens && n > 0)) {
        return gr_fail(err, GRAFT_E_BAD_REQUEST, "graft_detokenize: an argument is NULL");
    }
    int rc = gr_api_check_tokens(g, tokens, n, err);
    if (rc) {
        return rc;
    }
    gr_buffer out;
    gr_buffer_init(&out, MAX_TEXT);
    bool ok = true;
    for (size_t i = 0; i < n && ok; i++) {
        ok = gr_vocab_piece(gr_engine_vocab(g->engine), tokens[i], true, &out);
    }
    if (!ok || !gr_buffer_append(&out, "", 1)) {
        gr_buffer_finish(&out);
        return gr_fail_memory(err, n);
    }
    *text = out.data;
    if (length) {
        *length = out.length - 1;
    }
    return 0;
}

int graft_token_text(char **text, size_t *length, const graft *g, int32_t token, graft_error *err) {
    return graft_detokenize(text, length, g, &token, 1, err);
}
