/* Ollama's answers, whole and in pieces. Pure: from values to JSON text. */
#ifndef SRV_OLLAMA_REPLY_H
#define SRV_OLLAMA_REPLY_H

#include "answer.h"

extern const srv_format ollama_chat, ollama_generate, ollama_embed, ollama_embeddings;

/* The reply to a request that asked nothing: `reason` is "load" or "unload". */
void ollama_write_nothing(srv_writer *w, const srv_request *r, const srv_format *format, const char *reason);
/* "key": a time as in RFC 3339, `micros` since 1970. */
void ollama_put_time(srv_writer *w, const char *key, int64_t micros);
int64_t ollama_now(void);

#endif
