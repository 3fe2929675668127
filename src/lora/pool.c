/*
 * Borrowing ggml's threads: gr_pool_run computes a graph of two custom operations, built once, on a CPU backend
 * of our own that has the same pool. ggml itself puts the barriers between and after them.
 */
#include "lora/pool.h"

#include "base/memory.h"

#include <ggml-backend.h>
#include <ggml-cpu.h>
#include <signal.h>

struct gr_pool {
    int n_threads;
    ggml_threadpool_t threads;  /* NULL: this ggml has no pools */
    void (*free_threads)(ggml_threadpool_t);
    ggml_backend_t backend;
    void *graph_memory;
    struct ggml_context *graph_context;
    struct ggml_cgraph *graph;

    /* the run under way */
    gr_pool_fn first, second;
    void *user;
};

typedef ggml_threadpool_t (*threadpool_new_fn)(struct ggml_threadpool_params *);
typedef void (*set_threadpool_fn)(ggml_backend_t, ggml_threadpool_t);

/* A function of ggml's CPU backend by name. ISO C does not convert void * to a function pointer; POSIX promises
 * that it works, and that a union does it without a warning. */
typedef union procedure {
    void *address;
    threadpool_new_fn threadpool_new;
    void (*threadpool_free)(ggml_threadpool_t);
    set_threadpool_fn set_threadpool;
    ggml_backend_set_n_threads_t set_n_threads;
} procedure;

static procedure find(ggml_backend_reg_t cpu, const char *name) {
    procedure p = {.address = ggml_backend_reg_get_proc_address(cpu, name)};
    return p;
}

static void run_first(struct ggml_tensor *node, int thread, int n_threads, void *user) {
    gr_pool *p = user;
    (void)node;
    p->first(p->user, thread, n_threads);
}

static void run_second(struct ggml_tensor *node, int thread, int n_threads, void *user) {
    gr_pool *p = user;
    (void)node;
    if (p->second) {
        p->second(p->user, thread, n_threads);
    }
}

/* Two nodes without data; the second depends on the first. */
static bool build_graph(gr_pool *p) {
    size_t size = 4 * ggml_tensor_overhead() + ggml_graph_overhead_custom(4, false);
    p->graph_memory = gr_alloc(size);
    if (!p->graph_memory) {
        return false;
    }
    struct ggml_init_params params = {.mem_size = size, .mem_buffer = p->graph_memory, .no_alloc = true};
    p->graph_context = ggml_init(params);
    if (!p->graph_context) {
        return false;
    }
    struct ggml_tensor *a = ggml_custom_4d(p->graph_context, GGML_TYPE_F32, 1, 1, 1, 1, NULL, 0, run_first,
                                           GGML_N_TASKS_MAX, p);
    struct ggml_tensor *b = ggml_custom_4d(p->graph_context, GGML_TYPE_F32, 1, 1, 1, 1, &a, 1, run_second,
                                           GGML_N_TASKS_MAX, p);
    p->graph = ggml_new_graph_custom(p->graph_context, 4, false);
    ggml_build_forward_expand(p->graph, b);
    return true;
}

/* Threads belong to us, signals to the application: none of them may be handled here. */
static ggml_threadpool_t start_threads(threadpool_new_fn start, int n_threads) {
    struct ggml_threadpool_params params = ggml_threadpool_params_default(n_threads);
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    ggml_threadpool_t threads = start(&params);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return threads;
}

int gr_pool_create(gr_pool **out, int n_threads, graft_error *err) {
    gr_pool *p = gr_zalloc(sizeof *p);
    if (!p) {
        return gr_fail_memory(err, sizeof *p);
    }
    p->n_threads = n_threads;
    ggml_backend_dev_t device = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
    ggml_backend_reg_t cpu = device ? ggml_backend_dev_backend_reg(device) : NULL;
    if (cpu) {
        procedure start = find(cpu, "ggml_threadpool_new"), stop = find(cpu, "ggml_threadpool_free");
        procedure use = find(cpu, "ggml_backend_cpu_set_threadpool"), count = find(cpu, "ggml_backend_set_n_threads");
        if (start.address && stop.address && use.address && count.address) {
            p->free_threads = stop.threadpool_free;
            p->threads = start_threads(start.threadpool_new, n_threads);
            p->backend = ggml_backend_dev_init(device, NULL);
            if (!p->threads || !p->backend || !build_graph(p)) {
                gr_pool_free(p);
                return gr_fail_memory(err, 0);
            }
            use.set_threadpool(p->backend, p->threads);
            count.set_n_threads(p->backend, n_threads);
        }
    }
    *out = p;
    return 0;
}

void gr_pool_free(gr_pool *p) {
    if (!p) {
        return;
    }
    ggml_free(p->graph_context);
    gr_free(p->graph_memory);
    ggml_backend_free(p->backend);
    if (p->threads) {
        p->free_threads(p->threads);
    }
    gr_free(p);
}

void gr_pool_attach(gr_pool *p, struct llama_context *ctx) {
    llama_set_n_threads(ctx, p->n_threads, p->n_threads);
    if (p->threads) {
        llama_attach_threadpool(ctx, p->threads, p->threads);
    }
}

int gr_pool_threads(const gr_pool *p) {
    return p->graph ? p->n_threads : 1;
}

bool gr_pool_run(gr_pool *p, gr_pool_fn first, gr_pool_fn second, void *user) {
    if (!p->graph) {
        first(user, 0, 1);
        if (second) {
            second(user, 0, 1);
        }
        return true;
    }
    p->first = first;
    p->second = second;
    p->user = user;
    return ggml_backend_graph_compute(p->backend, p->graph) == GGML_STATUS_SUCCESS;
}
