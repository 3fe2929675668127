/* Opening and closing, and what can be asked about an open instance. */
#include "api.h"

#include "base/memory.h"
#include "base/thread.h"
#include "engine/meter.h"
#include "engine/scheduler.h"
#include "loader/budget.h"
#include "model/sha256.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

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
        .max_adapters = 3,
        .memory_limit = (uint64_t)4096 << 20,
        .policy = GRAFT_POLICY_LRU,
        .fallback = GRAFT_FALLBACK_BASE,
        .retry_attempts = 3,
        .retry_base_ms = 50,
        .adapter_wait_ms = 30000,
        .loader_threads = 2,
        .probe = true,
    };
}

/* Every line passes the meter, which learns the context's size from libllama's. */
static void on_log(const graft_log_entry *entry, void *user) {
    const graft *g = user;
    gr_meter_line(entry->text);
    if (g->user_log.fn) {
        g->user_log.fn(entry, g->user_log.user);
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
        {"adapter_type", (int64_t)o->adapter_type, GRAFT_TYPE_F16, GRAFT_TYPE_Q8_0},
        {"max_adapters", o->max_adapters, 0, 100000},
        {"policy", (int64_t)o->policy, 0, GRAFT_POLICIES - 1},
        {"fallback", (int64_t)o->fallback, GRAFT_FALLBACK_DEFAULT, GRAFT_FALLBACK_ERROR},
        {"retry_attempts", o->retry_attempts, 1, 10},
        {"retry_base_ms", o->retry_base_ms, 1, 60000},
        {"adapter_wait_ms", o->adapter_wait_ms, 0, GR_MAX_WAIT_MS},
        {"loader_threads", o->loader_threads, 1, 8},
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
    gr_sha256_hex(g->fingerprint, g->base->fingerprint);
    g->slots = o->slots;
    g->context = o->context ? o->context : own < DEFAULT_CONTEXT ? own : DEFAULT_CONTEXT;
    g->threads = o->threads ? o->threads : gr_physical_cores();
    g->adapter_type = o->adapter_type;
    g->max_adapter_bytes = o->max_adapter_bytes;
    g->registry = o->registry;
    g->fallback = o->fallback == GRAFT_FALLBACK_DEFAULT ? GRAFT_FALLBACK_BASE : o->fallback;
    g->adapter_wait_ms = o->adapter_wait_ms;
    g->max_adapters = o->max_adapters;
    if ((int64_t)g->slots * g->context > MAX_CELLS) {
        return gr_fail(err, GRAFT_E_BAD_REQUEST, "options slots and context: %d x %d tokens, at most %lld in all",
                       g->slots, g->context, (long long)MAX_CELLS);
    }
    /* Learned positions end where the table ends, and libllama would end the process there. */
    int table = gr_base_model_weight(g->base, "position_embd.weight");
    if (table >= 0 && g->context > g->base->weights[table].n_out) {
        return gr_fail(err, GRAFT_E_BAD_REQUEST,
                       "option context: %d, but the model has learned positions for %lld tokens and no more", g->context,
                       (long long)g->base->weights[table].n_out);
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

/* ---- the memory limit ---------------------------------------------------------------------------------- */

static unsigned long long mib(uint64_t bytes) {
    return (unsigned long long)((bytes + 1048575) >> 20);
}

/* What to do about it; the limit is never more than what the machine allows (gr_budget_clamp). */
static const char *way_out(const graft *g) {
    return g->memory_limit < gr_budget_clamp(0) ? "raise memory_limit (0 = all that the machine has)" : "the machine has no more";
}

/* Before anything is loaded: the weights take at least what their file (the first, of several) does. */
static int check_file_fits(const graft *g, const char *path, graft_error *err) {
    struct stat s;
    if (stat(path, &s) != 0 || s.st_size <= 0 || (uint64_t)s.st_size <= g->memory_limit) {
        return 0; /* what is not there is for opening to say */
    }
    return gr_fail(err, GRAFT_E_BUDGET_EXHAUSTED,
                   "the base model's file has %llu MiB, the memory limit is %llu MiB; %s", mib((uint64_t)s.st_size),
                   mib(g->memory_limit), way_out(g));
}

/* Elements of a layer's keys (or values) for one token. The file may give heads a size of their own. */
static uint64_t kv_width(const gr_base_model *m, const char *which) {
    char key[96], value[32];
    uint64_t head = m->n_head > 0 ? (uint64_t)(m->n_embd / m->n_head) : 0;
    snprintf(key, sizeof key, "%s.attention.%s_length", m->architecture, which);
    if (llama_model_meta_val_str(m->llama, key, value, sizeof value) > 0) {
        head = strtoull(value, NULL, 10);
    }
    return head * (uint64_t)(m->n_head_kv > 0 ? m->n_head_kv : 0);
}

/* Before the caches are made: so much the KV cache takes at least. What it really takes is measured when it is there. */
static int check_cache_fits(const graft *g, const graft_options *o, graft_error *err) {
    const gr_base_model *m = g->base;
    uint64_t element = o->kv_type == GRAFT_KV_F32 ? 4 : 2;
    uint64_t cells = (uint64_t)g->slots * (uint64_t)g->context;
    uint64_t kv = cells * (uint64_t)m->n_layer * (kv_width(m, "key") + kv_width(m, "value")) * element;
    if (kv < g->memory_limit && m->weight_bytes < g->memory_limit - kv) {
        return 0;
    }
    return gr_fail(err, GRAFT_E_BUDGET_EXHAUSTED,
                   "the base needs %llu MiB of weights and %llu MiB of KV cache (%d slots of %d tokens), "
                   "the memory limit is %llu MiB; "
                   "%s, or take fewer slots or a shorter context",
                   mib(m->weight_bytes), mib(kv), g->slots, g->context, mib(g->memory_limit), way_out(g));
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
        .probe_slot = o->probe && o->registry,
        .log = &g->log,
    };
    int rc = gr_engine_create(&g->engine, g->base, &engine, err);
    return rc ? rc : gr_backend_start(g, o, g->base->weight_bytes + gr_engine_context_bytes(g->engine), err);
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
    g->memory_limit = gr_budget_clamp(options->memory_limit);
    gr_mutex_init(&g->mutex, GR_RANK_API);
    rc = check_file_fits(g, options->model, err);
    rc = rc ? rc : open_base(g, options, err);
    rc = rc ? rc : resolve(g, options, err);
    rc = rc ? rc : check_cache_fits(g, options, err);
    rc = rc ? rc : start_engine(g, options, err);
    if (rc) {
        graft_close(g);
        return rc;
    }
    *out = g;
    return 0;
}

void graft_close(graft *g) {
    if (!g) {
        return;
    }
    /* First nobody waits for an adapter any more, then nobody uses one, then they go. */
    gr_backend_stop(g);
    if (g->engine) {
        gr_engine_stop(g->engine);
    }
    gr_loader_free(g->loader);
    gr_probe_free(g->probe);
    gr_engine_free(g->engine);
    gr_base_model_close(g->base);
    gr_mutex_finish(&g->mutex);
    gr_free(g);
}

/* ---- asking -------------------------------------------------------------------------------------------- */

void graft_model_get_info(const graft *g, graft_model_info *out) {
    const gr_base_model *m = g->base;
    const char *chat_template = llama_model_chat_template(m->llama, NULL);
    *out = (graft_model_info){
        .path = m->path,
        .architecture = m->architecture,
        .description = m->description,
        .weight_bytes = m->weight_bytes,
        .context_bytes = gr_engine_context_bytes(g->engine),
        .n_vocab = m->n_vocab,
        .n_layer = m->n_layer,
        .n_embd = m->n_embd,
        .fingerprint = g->fingerprint,
        .context = g->context,
        .slots = g->slots,
        .chat_template = chat_template ? chat_template : "",
        .bos = llama_vocab_bos(m->vocab),
        .eos = llama_vocab_eos(m->vocab),
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

int graft_slots(graft_slot_list **out, graft *g, graft_error *err) {
    return gr_engine_slots(out, g->engine, err);
}

/* ---- the instance of the process ----------------------------------------------------------------------- */

/* Opening takes seconds and is not done under the mutex: who comes meanwhile waits for its end. */
static struct {
    pthread_once_t once;
    gr_mutex mutex; /* rank API: the rest */
    gr_cond ended;
    graft *instance;
    bool opening;
    uint64_t attempt;   /* that ended last */
    graft_error failed; /* how, if it failed */
} the = {.once = PTHREAD_ONCE_INIT};

static void make_the(void) {
    gr_mutex_init(&the.mutex, GR_RANK_API);
    gr_cond_init(&the.ended);
}

/* The mutex is held, nobody is opening, there is no instance. */
static void open_the(const graft_options *options) {
    graft *g = NULL;
    graft_error failed = {0};
    the.opening = true;
    gr_mutex_unlock(&the.mutex);
    int rc = graft_open(&g, options, &failed);
    gr_mutex_lock(&the.mutex);
    the.opening = false;
    the.attempt++;
    the.failed = failed;
    the.instance = rc ? NULL : g;
    gr_cond_broadcast(&the.ended);
}

int graft_default(graft **out, const graft_options *options, graft_error *err) {
    if (!out) {
        return gr_fail(err, GRAFT_E_BAD_REQUEST, "graft_default needs somewhere to put the handle");
    }
    pthread_once(&the.once, make_the);
    gr_mutex_lock(&the.mutex);
    bool waited = the.opening;
    for (uint64_t attempt = the.attempt; the.opening && the.attempt == attempt;) {
        gr_cond_wait(&the.ended, &the.mutex);
    }
    if (!the.instance && !waited && options) {
        open_the(options);
    }
    int rc = 0;
    if (the.instance) {
        *out = the.instance;
    } else if (!waited && !options) {
        rc = gr_fail(err, GRAFT_E_BAD_REQUEST, "graft_default: none is open yet, and there are no options to open one with");
    } else if (the.failed.code == 0) {
        rc = gr_fail(err, GRAFT_E_SHUTTING_DOWN, "graft_default: the instance was closed again before this call could have it");
    } else {
        rc = the.failed.code;
        if (err) {
            *err = the.failed;
        }
    }
    gr_mutex_unlock(&the.mutex);
    return rc;
}

void graft_default_close(void) {
    pthread_once(&the.once, make_the);
    gr_mutex_lock(&the.mutex);
    graft *g = the.instance;
    the.instance = NULL;
    gr_mutex_unlock(&the.mutex);
    graft_close(g);
}
