/* Opening and closing, and what can be asked about an open instance. */
#include "api.h"

#include "base/memory.h"
#include "base/thread.h"
#include "engine/meter.h"
#include "engine/scheduler.h"

#include <math.h>
#include <string.h>

#define MAX_CONTEXT (1 << 20)
#define MAX_CELLS ((int64_t)1 << 26) /* slots * context */
#define DEFAULT_CONTEXT 4096
#define MIN_CONTEXT 16

const char *graft_version(void) {
    return GRAFT_VERSION;
}

const char *graft_llama_version(void) {
    return llama_version();
}

uint64_t graft_own_bytes(void) {
    return gr_memory_bytes();
}

graft_options graft_options_default(void) {
    return (graft_options){
        .size = sizeof(graft_options),
        .slots = 8,
        .batch = 512,
        .self_test = true,
        .max_adapter_bytes = (uint64_t)4 << 30,
    };
}

/* Every line passes the meter, which learns the context's size from libllama's. */
static void on_log(graft_log_level level, const char *line, void *user) {
    const graft *g = user;
    gr_meter_line(line);
    if (g->user_log.fn) {
        g->user_log.fn(level, line, g->user_log.user);
    }
}

/* ---- checking options ---------------------------------------------------------------------------------- */

static int check_number(const char *name, int64_t value, int64_t min, int64_t max, graft_error *err) {
    if (value < min || value > max) {
        return gr_fail(err, GRAFT_E_BAD_REQUEST, "option %s: %lld is outside %lld to %lld", name, (long long)value,
                       (long long)min, (long long)max);
    }
    return 0;
}

static int check_options(const graft_options *o, graft_error *err) {
    if (o->size != sizeof *o) {
        return gr_fail(err, GRAFT_E_BAD_REQUEST, "option size: %zu, must be %zu (graft_options_default sets it)",
                       o->size, sizeof *o);
    }
    if (!o->model || !*o->model) {
        return gr_fail(err, GRAFT_E_BAD_REQUEST, "option model: a path is required");
    }
    size_t most = llama_max_parallel_sequences();
    const struct {
        const char *name;
        int64_t value, min, max;
    } table[] = {
        {"slots", o->slots, 1, most < GR_MAX_SLOTS ? (int64_t)most : GR_MAX_SLOTS},
        {"context", o->context, o->context == 0 ? 0 : MIN_CONTEXT, MAX_CONTEXT},
        {"batch", o->batch, 16, 4096},
        {"threads", o->threads, 0, 512},
        {"kv_type", (int64_t)o->kv_type, GRAFT_KV_F16, GRAFT_KV_F32},
        {"apply", (int64_t)o->apply, GRAFT_APPLY_AUTO, GRAFT_APPLY_GROUPED},
        {"adapter_type", (int64_t)o->adapter_type, GRAFT_TYPE_F16, GRAFT_TYPE_F32},
    };
    int rc = 0;
    for (size_t i = 0; i < sizeof table / sizeof *table && !rc; i++) {
        rc = check_number(table[i].name, table[i].value, table[i].min, table[i].max, err);
    }
    return rc;
}

/* What the options leave open, now that the model is known. */
static int resolve(graft *g, const graft_options *o, graft_error *err) {
    int own = g->base->n_ctx_train < MIN_CONTEXT ? MIN_CONTEXT : g->base->n_ctx_train;
    g->slots = o->slots;
    g->context = o->context ? o->context : own < DEFAULT_CONTEXT ? own : DEFAULT_CONTEXT;
    g->threads = o->threads ? o->threads : gr_physical_cores();
    g->adapter_type = o->adapter_type;
    g->max_adapter_bytes = o->max_adapter_bytes;
    if ((int64_t)g->slots * g->context > MAX_CELLS) {
        return gr_fail(err, GRAFT_E_BAD_REQUEST, "options slots and context: %d x %d tokens, at most %lld in all",
                       g->slots, g->context, (long long)MAX_CELLS);
    }
    if (g->context > own) {
        gr_log_line(&g->log, GRAFT_LOG_WARN, "context %d is longer than the model was trained for (%d)", g->context,
                    own);
    }
    return 0;
}

/* Models that libllama opens but graft cannot use; llama.cpp would abort on the first call. */
static int check_model(const gr_base_model *m, graft_error *err) {
    if (llama_vocab_type(m->vocab) == LLAMA_VOCAB_TYPE_NONE) {
        return gr_fail(err, GRAFT_E_MODEL_INVALID, "the model file holds no tokenizer");
    }
    if (!llama_model_has_decoder(m->llama) || llama_model_has_encoder(m->llama)) {
        return gr_fail(err, GRAFT_E_MODEL_INVALID, "the model is no plain decoder (architecture %s)", m->architecture);
    }
    return 0;
}

/* ---- opening ------------------------------------------------------------------------------------------- */

static int open_base(graft *g, const graft_options *o, graft_error *err) {
    gr_base_options base = {
        .gpu = o->gpu,
        .progress = o->progress,
        .progress_user = o->progress_user,
        .log = &g->log,
    };
    int rc = gr_base_model_open(&g->base, o->model, &base, err);
    return rc ? rc : check_model(g->base, err);
}

static int start_engine(graft *g, const graft_options *o, graft_error *err) {
    gr_engine_options engine = {
        .slots = g->slots,
        .context = g->context,
        .batch = o->batch,
        .threads = g->threads,
        .kv_type = o->kv_type,
        .apply = o->apply,
        .self_test = o->self_test,
        .log = &g->log,
    };
    return gr_engine_create(&g->engine, g->base, &engine, err);
}

int graft_open(graft **out, const graft_options *options, graft_error *err) {
    if (!out || !options) {
        return gr_fail(err, GRAFT_E_BAD_REQUEST, "graft_open needs somewhere to put the handle, and options");
    }
    int rc = check_options(options, err);
    if (rc) {
        return rc;
    }
    graft *g = gr_zalloc(sizeof *g);
    if (!g) {
        return gr_fail_memory(err, sizeof *g);
    }
    g->user_log = (gr_log){options->log, options->log_user};
    g->log = (gr_log){on_log, g};
    rc = open_base(g, options, err);
    rc = rc ? rc : resolve(g, options, err);
    rc = rc ? rc : start_engine(g, options, err);
    if (rc) {
        graft_close(g);
        return rc;
    }
    *out = g;
    return 0;
}

void graft_close(graft *g) {
    if (g) {
        gr_engine_free(g->engine);
        gr_base_model_close(g->base);
        gr_free(g);
    }
}

/* ---- asking -------------------------------------------------------------------------------------------- */

void graft_model_get_info(const graft *g, graft_model_info *out) {
    const gr_base_model *m = g->base;
    *out = (graft_model_info){
        .path = m->path,
        .architecture = m->architecture,
        .description = m->description,
        .weight_bytes = m->weight_bytes,
        .context_bytes = gr_engine_context_bytes(g->engine),
        .n_vocab = m->n_vocab,
        .n_layer = m->n_layer,
        .context = g->context,
        .slots = g->slots,
        .adapters_supported = m->arch != NULL,
        .apply = gr_engine_apply(g->engine),
        .apply_reason = gr_engine_apply_reason(g->engine),
        .kernels = gr_engine_kernels(g->engine),
        .threads = g->threads,
    };
}

int graft_set_apply(graft *g, graft_apply apply, graft_error *err) {
    int rc = check_number("apply", (int64_t)apply, GRAFT_APPLY_AUTO, GRAFT_APPLY_GROUPED, err);
    return rc ? rc : gr_engine_set_apply(g->engine, apply, err);
}

void graft_get_stats(const graft *g, graft_stats *out) {
    gr_engine_stats(g->engine, out);
}
