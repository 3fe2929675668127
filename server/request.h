/*
 * A body as requests of the library: what all APIs that ask for answers share. Which fields there are, how they are called
 * and what they are without being given is each API's own affair (openai_request.c, ollama_request.c); what a value may be
 * is told here, once.
 *
 * Functions that take a field leave what they fill as it is if the field is absent or null, and return false with *f filled
 * if its value cannot be.
 */
#ifndef SRV_REQUEST_H
#define SRV_REQUEST_H

#include "names.h"

#include <jansson.h>

enum { SRV_USES = 8, SRV_TEXTS = 2048 /* most texts of one request for embeddings */ };

typedef struct srv_request {
    srv_exchange *x;
    json_t *body;           /* strings below belong to it */
    bool chat;              /* messages rather than prompts */
    const char *model;
    srv_name names[SRV_USES];
    char adapter[SRV_ID_SIZE]; /* of the first; "" = the base */
    bool stream, usage;
    int n;                  /* answers to each prompt */
    size_t n_prompts;
    int logprobs;           /* alternatives shown; -1 = no probabilities */
    bool base64;            /* embeddings not as numbers */
    bool load_only;         /* nothing is asked: the adapter is to be brought in, or let go */
    bool has_keep;          /* keep_alive was given */
    int64_t keep_ms;        /* as in keep_alive.h */

    graft_request common;   /* what all requests have */
    graft_request *requests; /* n * n_prompts, prompt by prompt */
    graft_embed_request *embeds; /* instead, for embeddings */
    size_t n_requests;
    graft_adapter_use uses[SRV_USES];
    size_t n_uses;
    void **blocks;          /* what else the requests point to */
    size_t n_blocks;
} srv_request;

/* With the body parsed: a JSON object. NULL: *f says why. The exchange is borrowed. */
srv_request *srv_request_new(srv_exchange *x, srv_fault *f);
/* All of it was submitted: lets go of the body but for `model`. An answer may wait for long, and a body of 4 MiB may take a
 * hundred. */
void srv_request_trim(srv_request *r);
void srv_request_free(srv_request *r);
/* A body alone, which is the caller's. */
json_t *srv_parse_body(const srv_exchange *x, srv_fault *f);

/* Memory that goes with the request. NULL if there is none. */
void *srv_request_keep(srv_request *r, size_t count, size_t size);

/* False, with 400 in *f. */
bool srv_bad(srv_fault *f, const char *param, const char *why);

/* NULL also for null: both mean "as if not given". */
json_t *srv_field(json_t *from, const char *key);
/* false, "", [] or {}: a field that asks for nothing. */
bool srv_is_nothing(json_t *v);
bool srv_is_word(json_t *v, const char *word);

bool srv_take_bool(json_t *from, const char *key, bool *out, srv_fault *f);
/* One of the numbers that request.c knows, with its range. */
bool srv_take_number(json_t *from, const char *key, double *out, srv_fault *f);
bool srv_take_string(json_t *from, const char *key, const char **out, srv_fault *f);

/* `temperature` and its like, whose defaults are in r->common. */
bool srv_take_sampling(srv_request *r, json_t *from, srv_fault *f);
bool srv_take_stop(srv_request *r, json_t *from, srv_fault *f);
/* `logprobs` (a boolean) with `top_logprobs`. */
bool srv_take_logprobs(srv_request *r, srv_fault *f);
/* The answer is to be some JSON object, or a value of the schema. */
void srv_take_any_json(srv_request *r);
bool srv_take_schema(srv_request *r, json_t *schema, const char *param, srv_fault *f);

/* `model`, then `lora`, whose adapters are added to it; `fallback`. */
bool srv_take_adapters(srv_request *r, srv_fault *f);
/* `messages`, at least one. */
bool srv_take_messages(srv_request *r, srv_fault *f);

/* A text, or the tokens of one: one of the two is set. */
typedef struct srv_given {
    const char *text;
    const int32_t *tokens;
    size_t n;
} srv_given;

/* How many texts a value holds that is one or a list of such; 0 = none. The i-th of them. */
size_t srv_count_texts(json_t *v);
json_t *srv_text_at(json_t *v, size_t i);
bool srv_take_text(srv_request *r, json_t *v, const char *param, srv_given *out, srv_fault *f);

/* One of `requests` for each answer: as r->common but for the prompt out of `prompts` (NULL = messages), and the seed. */
bool srv_spread_answers(srv_request *r, json_t *prompts, srv_fault *f);
/* One of `embeds` for each of the texts, with the adapters of r->common. Checks `dimensions`. */
bool srv_spread_embeds(srv_request *r, json_t *texts, const char *param, srv_fault *f);

#endif
