/* What lies behind the handles of graft.h, shared by the files that implement it: graft.c (opening, figures),
 * api_adapter.c (adapters by path), api_request.c (requests), api_text.c (text and tokens), api_embed.c (embeddings),
 * api_loader.c (adapters by name), api_watch.c (health, memory, metrics), backend.c (how the loader loads). */
#ifndef GR_API_H
#define GR_API_H

#include "base/log.h"
#include "engine/engine.h"
#include "engine/probe.h"
#include "loader/loader.h"
#include "model/base_model.h"
#include "model/opened.h"

#include <stdatomic.h>

#define GR_MAX_WAIT_MS 86400000

/* Ends the function with BAD_REQUEST unless the condition holds: for arguments that must not be NULL. */
#define GR_NEEDS(condition, what)                                             \
    if (!(condition)) {                                                       \
        return gr_fail(err, GRAFT_E_BAD_REQUEST, "%s needs " what, __func__); \
    }

struct graft {
    gr_base_model *base;
    gr_engine *engine;
    gr_loader *loader;
    gr_probe *probe; /* NULL: no probing */
    gr_log log;      /* what the layers below get: see on_log in graft.c */
    gr_log user_log;
    int slots, context, threads;
    char fingerprint[65]; /* of the base, as text */
    graft_adapter_type adapter_type;
    uint64_t max_adapter_bytes;

    struct graft_registry *registry; /* borrowed, or NULL */
    bool watching;
    graft_fallback fallback;
    int adapter_wait_ms, max_adapters;
    uint64_t memory_limit;           /* in force */
    _Atomic uint64_t named_bytes;    /* of adapters that the loader holds */
    _Atomic uint64_t path_bytes;     /* of adapters that were opened by path */
    _Atomic uint64_t path_charged;   /* the same as the memory limit has it: with libllama's copies */

    gr_mutex mutex; /* rank API: the next two; and pins follow the registry one by one */
    char current_project[GRAFT_NAME_SIZE], current_adapter[GRAFT_NAME_SIZE]; /* "" = none */
};

struct graft_adapter {
    gr_farewell farewell; /* first: the whole block goes to gr_engine_forget. Holds the adapter */
    graft *g;
    uint64_t bytes, charged; /* of `path_bytes`, of `path_charged` */
};

struct graft_lease {
    graft *g;
    gr_lease *lease;
    char project[GRAFT_NAME_SIZE], adapter[GRAFT_NAME_SIZE];
    double wait_ms;
};

/* Names as an API call gave them to a registered pair of names: NULL adapter = "default", NULL project = the current one.
 * Errors: BAD_REQUEST (no registry, no current project), NOT_FOUND, BAD_NAME. */
int gr_api_resolve(graft *g, const char *project, const char *adapter, char out_project[GRAFT_NAME_SIZE],
                   char out_adapter[GRAFT_NAME_SIZE], graft_error *err);

/* api_text.c. Errors: BAD_REQUEST, naming the field. */
int gr_api_check_text(const char *field, const char *text, graft_error *err);
int gr_api_check_tokens(const graft *g, const int32_t *tokens, size_t n, graft_error *err);
/* Checks messages and puts them into the model's chat template. Errors: BAD_REQUEST, NO_CHAT_TEMPLATE, CONTEXT_LENGTH (cannot be
 * `most` tokens or fewer), OUT_OF_MEMORY. *out: gr_free. */
int gr_api_template(const graft *g, const graft_message *messages, size_t n, int most, char **out, size_t *length,
                    graft_error *err);

/* api_request.c: parts of a request, into the spec. Errors: those of graft_submit that name the field. */
int gr_api_take_adapters(graft *g, const graft_adapter_use *uses, size_t n, gr_job_spec *spec, graft_error *err);
/* How adapters by name are waited for. */
int gr_api_take_patience(const graft *g, graft_fallback fallback, int wait_ms, gr_job_spec *spec, graft_error *err);
/* A text or tokens that may fill the context: no place is kept for an answer. */
int gr_api_take_whole_text(const graft *g, const char *text, const int32_t *tokens, size_t n_tokens, gr_job_spec *spec,
                           graft_error *err);

/* Makes the job for request i. */
typedef int gr_api_maker(graft_job **out, graft *g, const void *requests, size_t i, graft_error *err);
/* api_request.c: makes the jobs for n requests and puts them into the queue together, or none. */
int gr_api_submit(graft_job **out, graft *g, const void *requests, size_t n, gr_api_maker *make, graft_error *err);

/* backend.c: what an adapter takes, with libllama's copy if adapters are applied grouped now: at most, before it is built; and
 * nearly to the byte. */
uint64_t gr_api_most_bytes(const graft *g, const gr_opened *o);
uint64_t gr_api_bytes(const graft *g, const gr_adapter *a);

/* backend.c: whether the adapter can be applied as adapters are now. Errors: UNSUPPORTED_ADAPTER, saying why not. */
int gr_api_check_way(const graft *g, const gr_adapter *a, graft_error *err);

/* When who says `wait_ms` (-1 = as the instance has it) gives up: gr_lease_request.deadline_us. */
int64_t gr_api_deadline(const graft *g, int wait_ms);
/* DEFAULT as the instance has it. */
graft_fallback gr_api_fallback(const graft *g, graft_fallback fallback);

/* backend.c: makes the loader with g's catalogue and adapters; `fixed` bytes are taken. */
int gr_backend_start(graft *g, const graft_options *o, uint64_t fixed, graft_error *err);
/* Stops listening to the registry and ends the loads; leases stay good. */
void gr_backend_stop(graft *g);
/* graft's own bytes: all but adapters. */
uint64_t gr_backend_own_bytes(const graft *g);

#endif
