/* Tokenising and pieces, with the buffer sizes that libllama leaves to its callers. */
#include "vocab.h"

#include "base/memory.h"

#include <stdlib.h>
#include <string.h>

int gr_vocab_init(gr_vocab *v, const struct llama_vocab *llama, graft_error *err) {
    memset(v, 0, sizeof *v);
    v->llama = llama;
    v->n_tokens = llama_vocab_n_tokens(llama);
    int n = 0;
    for (llama_token t = 0; t < v->n_tokens; t++) {
        n += llama_vocab_is_eog(llama, t);
    }
    v->end_tokens = gr_calloc((size_t)n + 1, sizeof *v->end_tokens);
    if (!v->end_tokens) {
        return gr_fail_memory(err, ((size_t)n + 1) * sizeof *v->end_tokens);
    }
    for (llama_token t = 0; t < v->n_tokens; t++) {
        if (llama_vocab_is_eog(llama, t)) {
            v->end_tokens[v->n_end_tokens++] = t;
        }
        int length = llama_token_to_piece(llama, t, NULL, 0, 0, true);
        if (-length > v->longest_piece) {
            v->longest_piece = -length;
        }
    }
    return 0;
}

void gr_vocab_finish(gr_vocab *v) {
    gr_free(v->end_tokens);
    memset(v, 0, sizeof *v);
}

bool gr_vocab_is_end(const gr_vocab *v, llama_token token) {
    return llama_vocab_is_eog(v->llama, token);
}

bool gr_vocab_piece(const gr_vocab *v, llama_token token, bool special, gr_buffer *out) {
    char piece[256];
    int n = llama_token_to_piece(v->llama, token, piece, sizeof piece, 0, special);
    if (n >= 0) {
        return gr_buffer_append(out, piece, (size_t)n);
    }
    char *longer = gr_alloc((size_t)-n);
    if (!longer) {
        return false;
    }
    n = llama_token_to_piece(v->llama, token, longer, -n, 0, special);
    bool ok = n >= 0 && gr_buffer_append(out, longer, (size_t)n);
    gr_free(longer);
    return ok;
}

int gr_vocab_tokenize(const gr_vocab *v, const char *text, size_t length, bool around, bool special, int most,
                      llama_token **out, int *n, graft_error *err) {
    size_t longest = v->longest_piece > 0 ? (size_t)v->longest_piece : 1;
    if (length / longest > (size_t)most || length > INT32_MAX / 2) {
        return gr_fail(err, GRAFT_E_CONTEXT_LENGTH, "the prompt has %zu bytes, so at least %zu tokens; at most %d fit",
                       length, length / longest, most);
    }
    /* Mostly there are no more tokens than bytes. Where normalisation adds some, libllama says how many there are. */
    int32_t room = (length < (size_t)most ? (int32_t)length : most) + 8; /* 8: for BOS, EOS, a leading space */
    int32_t found = -room;
    llama_token *tokens = NULL;
    for (int attempt = 0; attempt < 2 && found < 0 && found >= -most - 8; attempt++) {
        gr_free(tokens);
        tokens = gr_calloc((size_t)room, sizeof *tokens);
        if (!tokens) {
            return gr_fail_memory(err, (size_t)room * sizeof *tokens);
        }
        found = llama_tokenize(v->llama, text, (int32_t)length, tokens, room, around, special);
        room = -found; /* for the second attempt */
    }
    if (found < 0 || found > most) {
        gr_free(tokens);
        return gr_fail(err, GRAFT_E_CONTEXT_LENGTH, "the prompt has %d tokens, at most %d fit",
                       found < -INT32_MAX ? INT32_MAX : abs(found), most);
    }
    *out = tokens;
    *n = found;
    return 0;
}
