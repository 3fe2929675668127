/* What the engine asks of libllama's vocabulary: pieces of any length, and facts collected once. Any thread. */
#ifndef GR_VOCAB_H
#define GR_VOCAB_H

#include "base/buffer.h"

#include <llama.h>

typedef struct gr_vocab {
    const struct llama_vocab *llama;
    int n_tokens;
    llama_token *end_tokens;  /* those that end a generation */
    int n_end_tokens;
    int longest_piece;        /* bytes */
} gr_vocab;

/* Errors: OUT_OF_MEMORY. */
int gr_vocab_init(gr_vocab *v, const struct llama_vocab *llama, graft_error *err);
void gr_vocab_finish(gr_vocab *v);

bool gr_vocab_is_end(const gr_vocab *v, llama_token token);
/* Appends the token's text (special tokens have none unless `special`); false when memory is out. */
bool gr_vocab_piece(const gr_vocab *v, llama_token token, bool special, gr_buffer *out);

/*
 * Tokenises. Special tokens that the model wants around a text (BOS) are added if `around`; those written in the text are parsed
 * if `special`. Errors: CONTEXT_LENGTH if it cannot be `most` tokens or fewer (told by its length before any work
 * where possible), OUT_OF_MEMORY. *out: gr_free.
 */
int gr_vocab_tokenize(const gr_vocab *v, const char *text, size_t length, bool around, bool special, int most,
                      llama_token **out, int *n, graft_error *err);

#endif
