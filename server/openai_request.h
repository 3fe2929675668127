/*
 * A body of /v1/chat/completions or /v1/completions as requests of the library. Fields that would change the answer and are not
 * supported are refused by name; those that would not are ignored.
 */
#ifndef SRV_OPENAI_REQUEST_H
#define SRV_OPENAI_REQUEST_H

#include "names.h"

#include <jansson.h>

enum { OPENAI_USES = 8 };

typedef struct openai_request {
    bool chat;
    json_t *body; /* strings below belong to it */
    const char *model;
    bool stream, usage;
    int n;                  /* answers to each prompt */
    size_t n_prompts;
    int logprobs;           /* alternatives shown; -1 = no probabilities */
    srv_name names[OPENAI_USES];
    char adapter[SRV_ID_SIZE]; /* of the first; "" = the base */

    graft_request *requests; /* n * n_prompts, prompt by prompt */
    size_t n_requests;
    graft_adapter_use uses[OPENAI_USES];
    size_t n_uses;
    void **blocks;          /* what else the requests point to */
    size_t n_blocks;
} openai_request;

/* False: *f says why. Always: openai_request_finish. */
bool openai_request_parse(openai_request *r, srv_exchange *x, bool chat, srv_fault *f);
void openai_request_finish(openai_request *r);

/* What the extension fields of all APIs share: a JSON object as body. */
json_t *srv_parse_body(const srv_exchange *x, srv_fault *f);

#endif
