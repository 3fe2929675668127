/*
 * Bodies of OpenAI's calls. Fields that would change the answer and are not supported are refused by name; those that
 * would not are ignored.
 */
#ifndef SRV_OPENAI_REQUEST_H
#define SRV_OPENAI_REQUEST_H

#include "request.h"

/* Each reads a new request's body. False: *f says why. */
bool openai_take_chat(srv_request *r, srv_fault *f);
bool openai_take_completion(srv_request *r, srv_fault *f);
bool openai_take_embeddings(srv_request *r, srv_fault *f);

#endif
