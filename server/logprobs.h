/* Probabilities of tokens as JSON, out of what relay.h collects: the shape that OpenAI's chat and Ollama share. */
#ifndef SRV_LOGPROBS_H
#define SRV_LOGPROBS_H

#include "relay.h"
#include "writer.h"

/* [{"token","logprob","bytes","top_logprobs":[{"token","logprob","bytes"}]}] */
void srv_write_logprobs(srv_writer *w, const gr_buffer *tokens);
/* One number. JSON has no -infinity, which a banned token has: -9999. */
void srv_write_logprob(srv_writer *w, float logprob);

#endif
