/* OpenAI's answers, whole and in pieces. Pure: from values to JSON text. */
#ifndef SRV_OPENAI_REPLY_H
#define SRV_OPENAI_REPLY_H

#include "answer.h"

extern const srv_format openai_chat, openai_completion, openai_embeddings;

#endif
