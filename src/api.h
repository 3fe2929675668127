/* What lies behind the handles of graft.h, shared by the files that implement it: graft.c (opening, figures),
 * api_adapter.c (adapters), api_request.c (requests). */
#ifndef GR_API_H
#define GR_API_H

#include "base/log.h"
#include "engine/engine.h"
#include "model/base_model.h"

struct graft {
    gr_base_model *base;
    gr_engine *engine;
    gr_log log;     /* what the layers below get: see on_log in graft.c */
    gr_log user_log;
    int slots, context, threads;
    graft_adapter_type adapter_type;
    uint64_t max_adapter_bytes;
};

struct graft_adapter {
    gr_farewell farewell; /* first: the whole block goes to gr_engine_forget. Holds the adapter */
    graft *g;
};

#endif
