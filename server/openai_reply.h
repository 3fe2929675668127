/* Answers of OpenAI's two completion calls, whole and in pieces. Pure: from values to JSON text. */
#ifndef SRV_OPENAI_REPLY_H
#define SRV_OPENAI_REPLY_H

#include "relay.h"
#include "writer.h"

/* One answer of a request, as far as it has come. */
typedef struct openai_choice {
    gr_buffer text, tokens;
    size_t characters; /* of tokens shown: text_offset */
    const char *finish; /* NULL = goes on */
    int prompt_tokens, cached_tokens, completion_tokens;
    double queue_ms, adapter_ms, prompt_ms, total_ms;
} openai_choice;

/* What all pieces of one reply share. */
typedef struct openai_head {
    bool chat;
    char id[48];
    int64_t created; /* seconds since 1970 */
    const char *model, *adapter; /* adapter "" = the base */
    char generation[65];         /* "" = the base, or not known yet */
    graft_error fallback;        /* code 0 = none */
    bool logprobs;
    openai_choice *choices;
    size_t n;
    int per_prompt; /* choices to one prompt */
} openai_head;

/* The whole answer. */
void openai_write_answer(srv_writer *w, openai_head *h);

/* Pieces of a stream: the first of a choice (chat only), what a choice said, a choice's end, the usage. */
void openai_write_role(srv_writer *w, openai_head *h, size_t index);
void openai_write_said(srv_writer *w, openai_head *h, size_t index, const gr_buffer *text, const gr_buffer *tokens);
void openai_write_finish(srv_writer *w, openai_head *h, size_t index);
void openai_write_usage(srv_writer *w, openai_head *h);

#endif
