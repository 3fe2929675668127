/*
 * Bodies of Ollama's calls: its names and defaults for what request.h takes. Options that concern how a model is loaded
 * (num_ctx and its like) are ignored; what would change the answer and is not supported is refused.
 */
#ifndef SRV_OLLAMA_REQUEST_H
#define SRV_OLLAMA_REQUEST_H

#include "request.h"

/* Each reads a new request's body. False: *f says why. With r->load_only nothing was asked. */
bool ollama_take_chat(srv_request *r, srv_fault *f);
bool ollama_take_generate(srv_request *r, srv_fault *f);
bool ollama_take_embed(srv_request *r, srv_fault *f);
bool ollama_take_embeddings(srv_request *r, srv_fault *f);
/* `model` alone, in the older form `name`. */
bool ollama_take_model(srv_request *r, srv_fault *f);

#endif
