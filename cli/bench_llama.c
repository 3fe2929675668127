/*
 * libllama's own way to an adapter, for comparison: the only place where the command uses libllama itself, as any other
 * program would. The GGUF has the names that graft_inspect found and the matrices as the PEFT file has them. On the llama
 * family a real conversion also reorders rows of q's and k's B; loading does not look at numbers, so here they stay.
 */
#include "bench.h"

#include "base/memory.h"

#include <ggml.h>
#include <gguf.h>
#include <llama.h>
#include <string.h>

struct bench_llama {
    struct llama_model *model;
    const char *gguf; /* borrowed */
};

/* ---- writing the GGUF --------------------------------------------------------------------------------- */

static enum ggml_type type_of(const char *dtype) {
    return strcmp(dtype, "F32") == 0 ? GGML_TYPE_F32 : strcmp(dtype, "F16") == 0 ? GGML_TYPE_F16 : GGML_TYPE_BF16;
}

/* What is lora_A to PEFT is lora_a to libllama, [rank][n_in]; B is [n_out][rank]. Columns come first in ggml. */
static bool add_matrix(struct gguf_context *gguf, struct ggml_context *ctx, const bench_matrix *m, const char *weight,
                       const char *suffix) {
    char name[GGML_MAX_NAME];
    if ((size_t)snprintf(name, sizeof name, "%s%s", weight, suffix) >= sizeof name) {
        return false;
    }
    struct ggml_tensor *t = ggml_new_tensor_2d(ctx, type_of(m->dtype), m->columns, m->rows);
    if (ggml_nbytes(t) != m->n_bytes) {
        return false;
    }
    ggml_set_name(t, name);
    gguf_add_tensor(gguf, t);
    gguf_set_tensor_data(gguf, name, m->bytes);
    return true;
}

/* Two modules of one weight (a fused one, cut in parts) have no counterpart. */
static bool weight_again(const graft_inspection *in, size_t i) {
    for (size_t k = 0; k < i; k++) {
        if (strcmp(in->modules[k].weight, in->modules[i].weight) == 0) {
            return true;
        }
    }
    return false;
}

static bool add_module(struct gguf_context *gguf, struct ggml_context *ctx, const bench_peft *p, const graft_inspection *in,
                       size_t i) {
    const graft_module_info *module = &in->modules[i];
    bench_matrix a, b;
    return !weight_again(in, i) && bench_peft_find(p, module->module, 'A', &a) && bench_peft_find(p, module->module, 'B', &b) &&
           a.rows == module->rank && a.columns == module->n_in && b.rows == module->n_out && b.columns == module->rank &&
           add_matrix(gguf, ctx, &a, module->weight, ".lora_a") && add_matrix(gguf, ctx, &b, module->weight, ".lora_b");
}

int bench_llama_write(const char *path, const char *architecture, const bench_peft *p, const graft_inspection *in,
                      graft_error *err) {
    struct ggml_init_params params = {.mem_size = (2 * in->n_modules + 1) * ggml_tensor_overhead(), .no_alloc = true};
    struct ggml_context *ctx = ggml_init(params);
    struct gguf_context *gguf = gguf_init_empty();
    int code = ctx && gguf ? 0 : gr_fail_memory(err, params.mem_size);
    if (!code) {
        gguf_set_val_str(gguf, "general.type", "adapter");
        gguf_set_val_str(gguf, "general.architecture", architecture);
        gguf_set_val_str(gguf, "adapter.type", "lora");
        gguf_set_val_f32(gguf, "adapter.lora.alpha", (float)in->modules[0].scale * (float)in->modules[0].rank);
    }
    for (size_t i = 0; !code && i < in->n_modules; i++) {
        if (!add_module(gguf, ctx, p, in, i)) {
            code = gr_fail(err, GRAFT_E_UNSUPPORTED_ADAPTER, "%.200s: has no counterpart in a GGUF adapter",
                           in->modules[i].module);
        }
    }
    if (!code && !gguf_write_to_file(gguf, path, false)) {
        code = gr_fail(err, GRAFT_E_IO_ERROR, "%.*s: the GGUF adapter cannot be written", CLI_PATH_SHOWN, path);
    }
    gguf_free(gguf);
    ggml_free(ctx);
    return code;
}

/* ---- loading ------------------------------------------------------------------------------------------ */

int bench_llama_open(bench_llama **out, const char *model, const char *gguf, graft_error *err) {
    struct llama_model_params params = llama_model_default_params();
    params.n_gpu_layers = 0;
    struct llama_model *opened = llama_model_load_from_file(model, params);
    if (!opened) {
        return gr_fail(err, GRAFT_E_MODEL_INVALID, "libllama cannot open the model a second time");
    }
    bench_llama *b = cli_alloc(1, sizeof *b);
    *b = (bench_llama){opened, gguf};
    *out = b;
    return 0;
}

int bench_llama_load(bench_llama *b, double *ms, graft_error *err) {
    double start = bench_now_ms();
    struct llama_adapter_lora *adapter = llama_adapter_lora_init(b->model, b->gguf);
    *ms = bench_now_ms() - start;
    if (!adapter) {
        return gr_fail(err, GRAFT_E_INTERNAL, "libllama cannot load the adapter that was written for it");
    }
    llama_adapter_lora_free(adapter);
    return 0;
}

void bench_llama_close(bench_llama *b) {
    if (b) {
        llama_model_free(b->model);
        gr_free(b);
    }
}
