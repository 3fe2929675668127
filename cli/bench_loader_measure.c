/*
 * The measurements of graft bench-loader: what the dynamic loader costs on this machine, and how that compares with
 * libllama's own way of loading an adapter.
 *
 *   loading   the adapter from the page cache, through its name: verified, hashed, packed; with and without the probe; and
 *             libllama on the same matrices as a GGUF. The three take turns, so that a machine that slows down does so for all
 *   eviction  two names with room for one
 *   names     thousands of links to a small adapter, registered by a scan: what opening them costs in time and memory
 *   hits      leases of resident adapters among those thousands, from several threads at once
 *   policies  Zipf requests through the real loader, once with each policy
 *
 * All through graft.h, as an application would; libllama's part is in bench_llama.c.
 */
#include "bench_loader.h"

#include "base/clock.h"
#include "base/memory.h"
#include "base/mix.h"
#include "base/thread.h"

#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

enum { ZIPF_ROOM = 20, RESIDENT = 32, REPEATS = 5 /* of the hits */ };

/* ---- instances ---------------------------------------------------------------------------------------- */

/* A registry and an instance over it. */
typedef struct place {
    graft_registry *registry;
    graft *g;
    double open_ms, start_ms; /* of the registry alone, of both */
} place;

typedef struct place_options {
    const char *folder; /* scanned when the registry is new */
    const char *name;   /* of the registry's file */
    graft_policy policy;
    int max_adapters;
    bool probe, self_test;
} place_options;

static bool go_on(const graft_scan_item *item, void *user) {
    (void)item;
    (void)user;
    return !cli_interrupted();
}

static int open_registry(graft_registry **out, const loader_bench *b, const char *name, graft_error *err) {
    graft_registry_options o = graft_registry_options_default();
    char *path = cli_temp_path("%s.db", name);
    cli_settings_registry_options(&b->set, &o);
    o.path = path;
    o.root = NULL; /* no log: that thousands of loads in a second are too many to be told apart in the history is known */
    int code = graft_registry_open(out, &o, err);
    gr_free(path);
    return code;
}

/* Registers what lies below `folder`, in a registry of its own. *ms may be NULL. */
static int make_registry(const loader_bench *b, const char *name, const char *folder, size_t expected, double *ms) {
    graft_registry *r;
    graft_scan_summary sum;
    graft_error err = {0};
    if (open_registry(&r, b, name, &err) != 0) {
        return cli_error(&err);
    }
    double start = bench_now_ms();
    int code = graft_registry_scan(r, folder, go_on, NULL, &sum, &err);
    if (ms) {
        *ms = bench_now_ms() - start;
    }
    graft_registry_close(r);
    if (code) {
        return cli_error(&err);
    }
    return sum.added == expected
               ? CLI_GO
               : cli_fail(GRAFT_E_INTERNAL, "%zu adapters were registered instead of %zu", sum.added, expected);
}

static void close_place(place *p) {
    graft_close(p->g);
    graft_registry_close(p->registry);
    *p = (place){0};
}

static int open_place(place *p, const loader_bench *b, const place_options *o) {
    cli_settings set = b->set;
    graft_error err = {0};
    *p = (place){0};
    if (cli_interrupted()) {
        return CLI_INTERRUPTED;
    }
    double start = bench_now_ms();
    if (open_registry(&p->registry, b, o->name, &err) != 0) {
        return cli_error(&err);
    }
    p->open_ms = bench_now_ms() - start;
    set.policy = (int)o->policy;
    set.max_adapters = o->max_adapters;
    set.probe = o->probe;
    set.self_test = set.self_test && o->self_test;
    set.fallback = 1; /* errors are errors here */
    int status = cli_model_open(&p->g, &set, p->registry);
    p->start_ms = bench_now_ms() - start;
    if (status != CLI_GO) {
        close_place(p);
    }
    return status;
}

/* Adds what the instance counted, and closes it. */
static void leave_place(loader_bench *b, place *p) {
    if (p->g) {
        graft_metrics m;
        graft_get_metrics(p->g, &m);
        b->loads += m.loads;
    }
    close_place(p);
}

static int lease_once(graft *g, const char *project, bool *hit) {
    graft_lease_options o = graft_lease_options_default();
    graft_lease *lease;
    graft_error err = {0};
    o.project = project;
    if (graft_lease_take(&lease, g, &o, &err) != 0) {
        return cli_error(&err);
    }
    graft_lease_info info;
    graft_lease_get_info(lease, &info);
    *hit = info.hit;
    graft_lease_release(lease);
    return CLI_GO;
}

/* ---- preparing ---------------------------------------------------------------------------------------- */

/* The first reason of an adapter that cannot be loaded. */
static int refuse(const graft_inspection *in, const char *path) {
    for (size_t i = 0; i < in->n_reasons; i++) {
        const graft_reason *r = &in->reasons[i];
        if (r->severity == GRAFT_LOG_ERROR) {
            graft_error err;
            cli_path_error(&err, r->code, path, r->where ? r->where : "", r->message);
            return cli_error(&err);
        }
    }
    return cli_fail(GRAFT_E_INTERNAL, "the adapter cannot be loaded");
}

/* What is to be kept of the model and the adapter. */
static int keep_facts(loader_bench *b, const graft_model_info *info, const graft_inspection *in) {
    if (strcmp(in->format, "peft") != 0) {
        return cli_fail(GRAFT_E_BAD_REQUEST, "%.*s: a PEFT folder is needed (the GGUF is made from it)", CLI_PATH_SHOWN,
                        in->path);
    }
    b->model = cli_strdup(info->path);
    b->description = cli_strdup(info->description);
    b->bytes = in->bytes;
    b->n_modules = in->n_modules;
    b->rank = in->modules[0].rank;
    snprintf(b->dtype, sizeof b->dtype, "%s", in->modules[0].dtype);
    return CLI_GO;
}

/* The folder "big" with a copy of the adapter and a second name for it; the same as a GGUF; a small adapter. */
static int write_files(loader_bench *b, const graft_model_info *info, const graft_inspection *in, const bench_peft *p,
                       graft_error *err) {
    char *full = cli_temp_path("big/full"), *small = cli_temp_path("small");
    b->big = cli_temp_path("big");
    b->gguf = cli_temp_path("big.gguf");
    int code = cli_make_folder(b->big, err);
    code = code ? code : bench_peft_copy(p, full, err);
    code = code ? code : bench_make_links(b->big, "full", 1, err);
    code = code ? code : bench_peft_write_one(p, &in->modules[0], small, err);
    code = code ? code : bench_peft_read(&b->small, small, err);
    code = code ? code : bench_llama_write(b->gguf, info->architecture, p, in, err);
    gr_free(full);
    gr_free(small);
    return code;
}

static int make_files(loader_bench *b, const graft_model_info *info, const graft_inspection *in) {
    graft_error err = {0};
    bench_peft p;
    int code = bench_peft_read(&p, in->path, &err);
    b->file_bytes = p.weights.length;
    code = code ? code : cli_temp_make("bench", &err);
    code = code ? code : write_files(b, info, in, &p, &err);
    bench_peft_finish(&p);
    return code ? cli_error(&err) : CLI_GO;
}

static int prepare(loader_bench *b) {
    graft *g = NULL;
    graft_inspection *in = NULL;
    graft_model_info info;
    graft_error err = {0};
    int status = cli_model_open(&g, &b->set, NULL);
    if (status != CLI_GO) {
        return status;
    }
    graft_model_get_info(g, &info);
    char *path = NULL;
    int code = cli_find_adapter(&path, b->adapters.items[0].path, &b->set, &err);
    code = code ? code : graft_inspect(&in, g, path, &err);
    graft_string_free(path);
    if (code) {
        status = cli_error(&err);
    } else if (!in->loadable) {
        status = refuse(in, b->adapters.items[0].path);
    }
    if (status == CLI_GO) status = keep_facts(b, &info, in);
    if (status == CLI_GO) status = make_files(b, &info, in);
    graft_inspection_free(in);
    graft_close(g);
    return status;
}

/* A folder with a small adapter and links to it, `n` names in all: "p00000" and so on, and "small". */
static int make_names(const loader_bench *b, const char *name, int n, double *ms) {
    graft_error err = {0};
    char *folder = cli_temp_path("%s", name), *real = cli_temp_path("%s/small", name);
    int code = cli_make_folder(folder, &err);
    code = code ? code : bench_peft_copy(&b->small, real, &err);
    code = code ? code : bench_make_links(folder, "small", n - 1, &err);
    int status = code ? cli_error(&err) : make_registry(b, name, folder, (size_t)n, ms);
    gr_free(folder);
    gr_free(real);
    return status;
}

/* ---- loading ------------------------------------------------------------------------------------------ */

typedef struct loading {
    place plain, probed;
    bench_llama *llama;
} loading;

static int load_by_name(graft *g, double *ms, double *unload_ms) {
    graft_error err = {0};
    double start = bench_now_ms();
    if (graft_load_adapter(g, "full", NULL, false, &err) != 0) {
        return cli_error(&err);
    }
    double loaded = bench_now_ms();
    *ms = loaded - start;
    if (graft_unload_adapter(g, "full", NULL, NULL, NULL, &err) != 0) {
        return cli_error(&err);
    }
    *unload_ms = bench_now_ms() - loaded;
    return CLI_GO;
}

/* The i-th way of the round's order. */
static int load_one_way(loading *l, int way, double out[3], double *unload_ms) {
    graft_error err = {0};
    double ignored;
    switch (way) {
    case 0: return load_by_name(l->plain.g, &out[0], unload_ms);
    case 1: return load_by_name(l->probed.g, &out[1], &ignored);
    default: return bench_llama_load(l->llama, &out[2], &err) != 0 ? cli_error(&err) : CLI_GO;
    }
}

/* Round -1 warms up. */
static int load_rounds(loader_bench *b, loading *l) {
    for (int round = -1; round < b->n.rounds; round++) {
        double ms[3] = {0}, unload_ms = 0;
        cli_progress("loading", round + 1, b->n.rounds + 1);
        for (int i = 0; i < 3; i++) {
            int status = load_one_way(l, (i + round + 3) % 3, ms, &unload_ms);
            if (status != CLI_GO || cli_interrupted()) {
                return status == CLI_GO ? CLI_INTERRUPTED : status;
            }
        }
        if (round >= 0) {
            b->load[round] = ms[0];
            b->load_probe[round] = ms[1];
            b->load_llama[round] = ms[2];
            b->ratio[round] = ms[2] / ms[0];
            b->unload[round] = unload_ms;
        }
    }
    return CLI_GO;
}

/* Two names with room for one: each load evicts the other. */
static int evict_rounds(loader_bench *b, graft *g) {
    static const char *const names[] = {"full", "p00000"};
    graft_metrics before, after;
    graft_error err = {0};
    graft_get_metrics(g, &before);
    for (int i = 0; i < b->n.evictions; i++) {
        cli_progress("evicting", i, b->n.evictions);
        if (graft_load_adapter(g, names[i % 2], NULL, false, &err) != 0) {
            return cli_error(&err);
        }
        if (cli_interrupted()) {
            return CLI_INTERRUPTED;
        }
    }
    graft_get_metrics(g, &after);
    uint64_t n = after.evict_us.count - before.evict_us.count;
    if (after.evictions - before.evictions != (uint64_t)b->n.evictions - 1) {
        return cli_fail(GRAFT_E_INTERNAL, "%d loads with room for one adapter evicted %d", b->n.evictions,
                        (int)(after.evictions - before.evictions));
    }
    b->evict_mean = n ? (double)(after.evict_us.sum_us - before.evict_us.sum_us) / (double)n / 1000 : 0;
    b->evict_max = (double)after.evict_us.max_us / 1000;
    return CLI_GO;
}

static int measure_loading(loader_bench *b) {
    loading l = {0};
    graft_error err = {0};
    int status = make_registry(b, "plain", b->big, 2, NULL);
    if (status == CLI_GO) status = make_registry(b, "probed", b->big, 2, NULL);
    if (status == CLI_GO) status = open_place(&l.plain, b, &(place_options){.name = "plain", .max_adapters = 1});
    if (status == CLI_GO) status = open_place(&l.probed, b, &(place_options){.name = "probed", .max_adapters = 1, .probe = true});
    if (status == CLI_GO && bench_llama_open(&l.llama, b->model, b->gguf, &err) != 0) {
        status = cli_error(&err);
    }
    if (status == CLI_GO) status = load_rounds(b, &l);
    if (status == CLI_GO) status = evict_rounds(b, l.plain.g);
    cli_progress_end();
    bench_llama_close(l.llama);
    leave_place(b, &l.plain);
    leave_place(b, &l.probed);
    return status;
}

/* ---- hits --------------------------------------------------------------------------------------------- */

typedef struct hitter {
    graft *g;
    char name[BENCH_NAME_SIZE];
    const atomic_bool *go;
    float *us; /* one a lease */
    int n;
    graft_error err;
} hitter;

static void *hit_main(void *arg) {
    hitter *h = arg;
    graft_lease_options o = graft_lease_options_default();
    o.project = h->name;
    o.fallback = GRAFT_FALLBACK_ERROR;
    while (!atomic_load(h->go)) {
        sched_yield();
    }
    for (int i = 0; i < h->n; i++) {
        graft_lease *lease;
        double start = bench_now_ms();
        if (graft_lease_take(&lease, h->g, &o, &h->err) != 0) {
            break;
        }
        graft_lease_release(lease);
        h->us[i] = (float)((bench_now_ms() - start) * 1000);
    }
    return NULL;
}

static int by_us(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

/* All threads once. */
static int hit_once(const loader_bench *b, graft *g, int threads, double *p50, double *p99, double *per_second) {
    size_t total = (size_t)threads * (size_t)b->n.hits;
    float *us = cli_alloc(total, sizeof *us);
    hitter h[BENCH_THREADS_MAX];
    pthread_t ids[BENCH_THREADS_MAX];
    atomic_bool go = false;
    int started = 0, status = CLI_GO;
    for (; started < threads; started++) {
        h[started] = (hitter){.g = g, .go = &go, .us = us + (size_t)started * (size_t)b->n.hits, .n = b->n.hits};
        bench_link_name(h[started].name, started % RESIDENT);
        if (gr_thread_start(&ids[started], hit_main, &h[started]) != 0) {
            status = cli_fail(GRAFT_E_OUT_OF_MEMORY, "a thread cannot be started");
            break;
        }
    }
    double start = bench_now_ms();
    atomic_store(&go, true);
    for (int i = 0; i < started; i++) {
        pthread_join(ids[i], NULL);
        if (h[i].err.code && status == CLI_GO) {
            status = cli_error(&h[i].err);
        }
    }
    *per_second = (double)total / (bench_now_ms() - start) * 1000;
    qsort(us, total, sizeof *us, by_us);
    *p50 = (double)us[total / 2];
    *p99 = (double)us[total - 1 - total / 100];
    gr_free(us);
    return status;
}

static int measure_hits(loader_bench *b, graft *g, int threads, cli_spread *p50, cli_spread *p99, cli_spread *per_second) {
    double a[REPEATS], z[REPEATS], s[REPEATS];
    for (int i = -1; i < REPEATS; i++) {
        double first, last, speed;
        cli_progress("leasing", i + 1, REPEATS + 1);
        int status = hit_once(b, g, threads, &first, &last, &speed);
        if (status != CLI_GO || cli_interrupted()) {
            return status == CLI_GO ? CLI_INTERRUPTED : status;
        }
        if (i >= 0) {
            a[i] = first;
            z[i] = last;
            s[i] = speed;
        }
    }
    *p50 = cli_spread_of(a, REPEATS);
    *p99 = cli_spread_of(z, REPEATS);
    *per_second = cli_spread_of(s, REPEATS);
    return CLI_GO;
}

static int measure_switching(loader_bench *b, graft *g) {
    double ms[201];
    size_t n = CLI_COUNT(ms);
    graft_error err = {0};
    for (size_t i = 0; i < n; i++) {
        char name[BENCH_NAME_SIZE];
        bench_link_name(name, (int)(i % RESIDENT));
        double start = bench_now_ms();
        if (graft_switch_project(g, name, NULL, &err) != 0) {
            return cli_error(&err);
        }
        ms[i] = bench_now_ms() - start;
    }
    b->switching = cli_spread_of(ms, n);
    return CLI_GO;
}

/* ---- many names --------------------------------------------------------------------------------------- */

/* Each name is leased once, so that whatever the loader keeps for a name is there; the first ones last, so that they stay. */
static int touch_all(const loader_bench *b, graft *g) {
    for (int i = b->n.names - 2; i >= 0; i--) {
        char name[BENCH_NAME_SIZE];
        bool hit;
        cli_progress("touching names", b->n.names - 2 - i, b->n.names - 1);
        int status = cli_interrupted() ? CLI_INTERRUPTED : lease_once(g, bench_link_name(name, i), &hit);
        if (status != CLI_GO) {
            return status;
        }
    }
    bool hit;
    int status = lease_once(g, "small", &hit);
    /* Which of the policies' victims "small" displaced does not matter, as long as all that hits ask for are there. */
    for (int i = 0; status == CLI_GO && i < RESIDENT; i++) {
        char name[BENCH_NAME_SIZE];
        status = lease_once(g, bench_link_name(name, i), &hit);
    }
    cli_progress_end();
    return status;
}

static const place_options all_names = {.name = "many", .max_adapters = RESIDENT + 1};
static const place_options one_name = {.name = "one", .max_adapters = RESIDENT + 1};

/* Opening both kinds of registry in turns. What the model's own opening takes is in both. */
static int measure_starts(loader_bench *b) {
    for (int i = 0; i < b->n.starts; i++) {
        place p;
        double one;
        int status = open_place(&p, b, &one_name);
        one = p.start_ms;
        leave_place(b, &p);
        if (status == CLI_GO) {
            status = open_place(&p, b, &all_names);
            b->open[i] = p.open_ms;
            b->start[i] = p.start_ms - one;
            b->start_one[i] = one;
            leave_place(b, &p);
        }
        if (status != CLI_GO) {
            return status;
        }
    }
    return CLI_GO;
}

/* What an instance and its registry have before any name was used; when all were, one after the other; and when what
 * happened to them has been written to the file, which takes a second: until then up to 1024 events wait. */
typedef struct own_memory {
    graft_memory unused, burst, used;
} own_memory;

enum { HISTORY_US = 2500000 };

static int measure_own(loader_bench *b, place *p, const place_options *o, own_memory *out) {
    int status = open_place(p, b, o);
    if (status != CLI_GO) {
        return status;
    }
    graft_memory_report(p->g, &out->unused);
    if (o == &all_names) {
        status = touch_all(b, p->g);
    } else {
        bool hit;
        status = lease_once(p->g, "small", &hit);
    }
    graft_memory_report(p->g, &out->burst);
    if (status == CLI_GO) {
        gr_sleep_us(HISTORY_US);
    }
    graft_memory_report(p->g, &out->used);
    return status;
}

static int measure_names(loader_bench *b) {
    own_memory one = {0}, all = {0};
    place p = {0};
    int status = make_names(b, "one", 1, NULL);
    if (status == CLI_GO) status = make_names(b, "many", b->n.names, &b->scan_ms);
    if (status == CLI_GO) status = measure_starts(b);
    if (status == CLI_GO) status = measure_own(b, &p, &one_name, &one);
    leave_place(b, &p);
    if (status == CLI_GO) status = measure_own(b, &p, &all_names, &all);
    b->unused_bytes = (double)all.unused.own - (double)one.unused.own;
    b->burst_bytes = (double)all.burst.own - (double)one.used.own;
    b->overhead_bytes = (double)all.used.own - (double)one.used.own;
    cli_spread ignored;
    if (status == CLI_GO) status = measure_hits(b, p.g, b->threads, &b->hit_p50, &b->hit_p99, &b->hits_per_second);
    if (status == CLI_GO) status = measure_hits(b, p.g, 1, &b->hit_p50_one, &ignored, &ignored);
    if (status == CLI_GO) status = measure_switching(b, p.g);
    cli_progress_end();
    leave_place(b, &p);
    return status;
}

/* ---- policies ----------------------------------------------------------------------------------------- */

/* Zipf with exponent 1: rank i with weight 1/(i+1). */
static int next_rank(uint64_t *state) {
    double sum = 0, total = 0;
    for (int i = 0; i < BENCH_ZIPF_NAMES; i++) {
        total += 1.0 / (i + 1);
    }
    double at = (double)(gr_mix_next(state) >> 11) / 9007199254740992.0 * total;
    for (int i = 0; i < BENCH_ZIPF_NAMES; i++) {
        sum += 1.0 / (i + 1);
        if (at < sum) {
            return i;
        }
    }
    return BENCH_ZIPF_NAMES - 1;
}

/* The same requests for every policy. */
static int measure_policy(loader_bench *b, graft_policy policy) {
    const place_options o = {.name = "zipf", .policy = policy, .max_adapters = ZIPF_ROOM};
    char what[32];
    uint64_t state = 1;
    int hits = 0;
    place p;
    int status = open_place(&p, b, &o);
    snprintf(what, sizeof what, "policy %s", graft_policy_name(policy));
    for (int i = 0; status == CLI_GO && i < b->n.requests; i++) {
        char name[BENCH_NAME_SIZE];
        bool hit = false;
        if (i % 64 == 0) {
            cli_progress(what, i, b->n.requests);
        }
        status = cli_interrupted() ? CLI_INTERRUPTED : lease_once(p.g, bench_link_name(name, next_rank(&state)), &hit);
        hits += hit;
    }
    cli_progress_end();
    b->hit_rate[policy] = (double)hits / b->n.requests;
    leave_place(b, &p);
    return status;
}

static int measure_policies(loader_bench *b) {
    int status = make_names(b, "zipf", BENCH_ZIPF_NAMES + 1, NULL);
    for (int i = 0; status == CLI_GO && i < GRAFT_POLICIES; i++) {
        status = measure_policy(b, (graft_policy)i);
    }
    return status;
}

int bench_loader_measure(loader_bench *b) {
    int status = prepare(b);
    if (status == CLI_GO) status = measure_loading(b);
    if (status == CLI_GO) status = measure_names(b);
    if (status == CLI_GO) status = measure_policies(b);
    return status;
}
