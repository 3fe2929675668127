/* Ollama's requests that ask nothing: they bring their adapters into memory, or with keep_alive 0 let them go. Loop thread. */
#ifndef SRV_OLLAMA_LOAD_H
#define SRV_OLLAMA_LOAD_H

#include "answer.h"

/* Replies later, and takes over the request. False: *f says why not, and the request stays the caller's. */
bool ollama_load_start(srv_exchange *x, srv_request *r, const srv_format *format, srv_fault *f);
/* Answers all that wait for an adapter to load with shutting_down. */
void ollama_loads_give_up(server *s);
/* Frees what is left; no exchange is. */
void ollama_loads_finish(server *s);

#endif
