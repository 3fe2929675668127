/*
 * What no caller can bring about through graft.h alone: memory that is nearly full, each condition of health, how much a
 * row's company changes it, and allocations that fail. The API's own files are linked in.
 */
#include "loader_helpers.h"

#include "api.h"
#include "base/clock.h"
#include "base/memory.h"
#include "engine/job.h"
#include "loader/loader_state.h"
#include "lora/random_adapter.h"

#include <gguf.h>
#include <inttypes.h>
#include <math.h>

/* ---- the memory limit ------------------------------------------------------------------------------------- */

static void add_plain(int n) {
    static const char *const names[] = {"alder", "birch", "cedar", "dogwood"};
    for (int i = 0; i < n; i++) {
        add(names[i], "adapters/llama/plain");
    }
}

static uint64_t bytes_of(const char *project) {
    graft_lease *l = lease_or_fail(project);
    graft_lease_info info;
    graft_lease_get_info(l, &info);
    graft_lease_release(l);
    graft_unload_adapter(w.g, project, NULL, NULL, NULL, NULL);
    return info.bytes;
}

/* Takes memory until only `left` bytes are free. */
static uint64_t filled;

static void fill_up(uint64_t left) {
    graft_memory m = memory();
    graft_error err;
    filled = m.limit - m.counted - left;
    if (gr_loader_charge(w.g->loader, filled, &err)) {
        fail_msg("%s", err.message);
    }
}

static uint64_t in_use(void) {
    graft_metrics m = metrics();
    return m.fixed + m.resident + m.loading + m.draining;
}

static void bytes_are_a_limit_as_places_are(void **state) {
    (void)state;
    graft_error err;
    add_plain(4);
    open_world_max(0);
    uint64_t bytes = bytes_of("alder");
    assert_true(bytes > 30000);
    fill_up(3 * bytes + bytes * 9 / 10); /* graft's own memory grows and shrinks a little meanwhile */
    static const char *const turns[] = {"alder", "birch", "cedar", "alder", "dogwood"};
    for (int i = 0; i < 5; i++) {
        assert_int_equal(ask(turns[i]).fallback.code, 0);
        assert_true(in_use() <= memory().limit);
        assert_true(metrics().n_resident <= 3);
    }
    assert_string_equal(listing(), "alder:resident cedar:resident dogwood:resident");
    assert_int_equal(metrics().evictions, 1);
    /* All are held: busy at once, or after waiting in vain, or it comes when there is room. */
    graft_lease *a = lease_or_fail("alder"), *c = lease_or_fail("cedar"), *d = lease_or_fail("dogwood");
    assert_int_equal(lease_code("birch", GRAFT_FALLBACK_ERROR, 0, &err), GRAFT_E_BUSY);
    assert_int_equal(lease_code("birch", GRAFT_FALLBACK_ERROR, 30, &err), GRAFT_E_BUSY);
    assert_int_equal(lease_code("birch", GRAFT_FALLBACK_BASE, 0, &err), 0);
    graft_job *waits = start_named("birch", GRAFT_FALLBACK_ERROR, 600000, TOKENS);
    WAIT_UNTIL(strstr(listing(), "birch:loading"))
    graft_lease_release(a);
    assert_int_equal(take_named(waits).a.error.code, 0);
    assert_string_equal(listing(), "birch:resident cedar:resident dogwood:resident");
    graft_lease_release(c);
    graft_lease_release(d);
    gr_loader_discharge(w.g->loader, filled);
    assert_true(gr_loader_check(w.g->loader));
}

static void what_can_never_fit_is_said_at_once(void **state) {
    (void)state;
    graft_error err;
    add_plain(1);
    add("small", "adapters/llama/rank1");
    open_world();
    uint64_t large = bytes_of("alder"), small = bytes_of("small");
    assert_true(small < large / 3);
    fill_up(large - 1000);
    assert_int_equal(ask("small").fallback.code, 0);
    assert_int_equal(lease_code("alder", GRAFT_FALLBACK_ERROR, 600000, &err), GRAFT_E_LARGER_THAN_BUDGET);
    assert_non_null(strstr(err.message, "memory limit"));
    assert_int_equal(ask("alder").fallback.code, GRAFT_E_LARGER_THAN_BUDGET);
    assert_string_equal(listing(), "small:resident"); /* nothing was evicted in vain */
    gr_loader_discharge(w.g->loader, filled);
    assert_int_equal(ask("alder").fallback.code, 0); /* such an answer is not remembered */
}

static void adapters_by_path_count_and_displace_named_ones(void **state) {
    (void)state;
    graft_error err;
    graft_adapter *a, *b;
    add_plain(2);
    open_world();
    uint64_t bytes = bytes_of("alder");
    fill_up(bytes * 19 / 10); /* as above */
    assert_int_equal(ask("alder").fallback.code, 0);
    assert_int_equal(graft_adapter_open(&a, w.g, golden("adapters/llama/plain"), &err), 0);
    assert_string_equal(listing(), "");
    assert_int_equal(metrics().evictions, 1);
    assert_int_equal(memory().by_path, bytes);
    assert_int_equal(graft_adapter_open(&b, w.g, golden("adapters/llama/plain"), &err), GRAFT_E_BUDGET_EXHAUSTED);
    assert_int_equal(memory().by_path, bytes);
    graft_adapter_free(a);
    assert_int_equal(memory().by_path, 0);
    graft_lease *l = lease_or_fail("alder");
    assert_int_equal(graft_adapter_open(&b, w.g, golden("adapters/llama/plain"), &err), GRAFT_E_BUDGET_EXHAUSTED);
    graft_lease_release(l);
    assert_int_equal(graft_adapter_open(&b, w.g, golden("adapters/llama/plain"), &err), 0);
    graft_adapter_free(b);
    gr_loader_discharge(w.g->loader, filled);
}

/* What is on its way back counts as there: who opens by path waits for it, if it is the only thing that helps. */
static void adapters_by_path_wait_for_what_is_being_freed(void **state) {
    (void)state;
    graft_error err;
    graft_adapter *a;
    add_plain(1);
    graft_options o = world_options();
    o.apply = GRAFT_APPLY_GROUPED; /* counts more for each, against what graft itself takes meanwhile; and frees on the decode thread */
    w.g = open_or_fail(&o);
    uint64_t bytes = bytes_of("alder");
    fill_up(bytes * 19 / 10);
    for (int i = 0; i < 20; i++) {
        graft_lease *l = lease_or_fail("alder");
        graft_adapter_use use = {.scale = 1, .lease = l};
        graft_request r = request(PROMPT, 20);
        r.adapters = &use;
        r.n_adapters = 1;
        graft_job *job = submit_or_fail(w.g, &r);
        graft_lease_release(l);
        graft_unload_adapter(w.g, "alder", NULL, NULL, NULL, NULL);
        assert_int_equal(take_named(job).a.error.code, 0); /* its lease was the last: the clerk frees */
        if (graft_adapter_open(&a, w.g, golden("adapters/llama/plain"), &err)) {
            fail_msg("round %d: %s", i, err.message);
        }
        graft_adapter_free(a);
    }
    gr_loader_discharge(w.g->loader, filled);
}

/* In use as the grouped way needs it: each with libllama's copy, those by path too. */
static void libllamas_copies_count(void **state) {
    (void)state;
    graft_adapter *a;
    graft_adapter_info info;
    graft_options o = world_options();
    o.apply = GRAFT_APPLY_GROUPED;
    w.g = open_or_fail(&o);
    assert_int_equal(graft_adapter_open(&a, w.g, golden("adapters/llama/plain"), NULL), 0);
    graft_adapter_get_info(a, &info);
    graft_adapter_use use = {.adapter = a, .scale = 1};
    graft_request r = request(PROMPT, 2);
    r.adapters = &use;
    r.n_adapters = 1;
    run(w.g, &r);
    graft_memory m = memory();
    assert_true(m.twins > 0);
    assert_true(m.by_path >= info.bytes + m.twins);
    assert_true(m.by_path < info.bytes + 2 * m.twins);
    graft_adapter_free(a);
    assert_int_equal(memory().by_path, 0);
}

/* Told of a warning when its matrices are there and graft_adapter_open is not over. */
static graft_memory while_built;

static void look_while_built(const graft_log_entry *e, void *user) {
    (void)user;
    if (w.g && strstr(e->text, "every A or B is zero")) {
        while_built = memory();
    }
}

static void what_is_being_built_by_path_is_not_graft_s_own(void **state) {
    (void)state;
    graft_adapter *a, *refused;
    graft_error err;
    graft_options o = world_options();
    o.log = look_while_built;
    copy_adapter("zero", "adapters/llama/plain");
    scale_part("zero", 'B', 0);
    w.g = open_or_fail(&o);
    uint64_t own = memory().own;
    assert_int_equal(graft_adapter_open(&a, w.g, in_world("zero"), &err), 0);
    assert_true(while_built.by_path > 30000);
    if (while_built.own > own + while_built.by_path / 2) {
        fail_msg("own: %" PRIu64 " before, %" PRIu64 " while %" PRIu64 " bytes were built", own, while_built.own, while_built.by_path);
    }
    graft_adapter_free(a);
    scale_part("zero", 'A', INFINITY);
    assert_int_equal(graft_adapter_open(&refused, w.g, in_world("zero"), &err), GRAFT_E_NON_FINITE);
    assert_int_equal(memory().by_path, 0);
    assert_true(memory().own < own + 30000);
}

/* A request that runs keeps an adapter's memory, whatever became of the handle. */
typedef struct gate {
    atomic_bool reached, open;
} gate;

static bool wait_at_gate(const char *text, size_t length, void *user) {
    gate *g = user;
    (void)text, (void)length;
    atomic_store(&g->reached, true);
    while (!atomic_load(&g->open)) {
        gr_sleep_us(1000);
    }
    return true;
}

static void a_handle_that_went_counts_as_long_as_it_is_used(void **state) {
    (void)state;
    graft_adapter *a;
    gate it = {false, false};
    open_world();
    uint64_t before = in_use();
    assert_int_equal(graft_adapter_open(&a, w.g, golden("adapters/llama/plain"), NULL), 0);
    graft_memory held = memory();
    uint64_t fixed = in_use();
    graft_adapter_use use = {.adapter = a, .scale = 1};
    graft_request r = request(PROMPT, 8);
    r.adapters = &use;
    r.n_adapters = 1;
    r.on_text = wait_at_gate;
    r.user = &it;
    graft_job *job = submit_or_fail(w.g, &r);
    while (!atomic_load(&it.reached)) {
        gr_sleep_us(1000);
    }
    graft_adapter_free(a);
    uint64_t by_path = memory().by_path, still = in_use();
    atomic_store(&it.open, true); /* before anything may fail: closing waits for the request */
    assert_int_equal(by_path, held.by_path);
    assert_int_equal(still, fixed);
    assert_int_equal(take_answer(job).error.code, 0);
    assert_int_equal(memory().by_path, 0);
    assert_int_equal(in_use(), before);
}

/* ---- health ----------------------------------------------------------------------------------------------- */

static graft_health health(void) {
    graft_health h;
    graft_health_check(w.g, &h);
    return h;
}

/* The state that a condition has; -1 = it is not there. */
static int condition(const char *name) {
    graft_health h = health();
    for (size_t i = 0; i < h.n_reasons; i++) {
        assert_true(h.reasons[i].state <= h.state);
        assert_true(h.reasons[i].text[0] != '\0');
        if (strcmp(h.reasons[i].name, name) == 0) {
            return (int)h.reasons[i].state;
        }
    }
    return -1;
}

static void a_new_instance_is_healthy_and_failed_loads_show(void **state) {
    (void)state;
    graft_error err;
    add_plain(4);
    add("other", "adapters/qwen3/plain");
    open_world();
    assert_int_equal(health().state, GRAFT_HEALTHY);
    assert_int_equal(health().n_reasons, 0);
    ask("alder");
    assert_int_equal(health().n_reasons, 0);
    ask("other");
    assert_int_equal(condition("loads_fail"), GRAFT_DEGRADED);
    assert_int_equal(condition("no_room"), -1);
    graft_lease *l[3] = {lease_or_fail("alder"), lease_or_fail("birch"), lease_or_fail("cedar")};
    assert_int_equal(lease_code("dogwood", GRAFT_FALLBACK_ERROR, 0, &err), GRAFT_E_BUSY);
    assert_int_equal(condition("no_room"), GRAFT_DEGRADED);
    for (int i = 0; i < 3; i++) {
        graft_lease_release(l[i]);
    }
    assert_int_equal(health().state, GRAFT_DEGRADED);
    assert_string_equal(graft_health_name(health().state), "degraded");
}

static void memory_that_is_nearly_full_shows(void **state) {
    (void)state;
    add_plain(1);
    open_world();
    fill_up(memory().limit / 8);
    assert_int_equal(condition("memory_high"), -1);
    gr_loader_discharge(w.g->loader, filled);
    fill_up(memory().limit / 12);
    assert_int_equal(condition("memory_high"), GRAFT_DEGRADED);
    gr_loader_discharge(w.g->loader, filled);
    assert_int_equal(health().n_reasons, 0);
}

/* The system's figure counts, whatever the budget says: here some megabytes are allowed, and the process has more. */
static void a_process_over_the_limit_shows_and_loses_what_nobody_holds(void **state) {
    (void)state;
    add_plain(1);
    graft_options o = world_options();
    o.memory_limit = (uint64_t)6 << 20;
    w.g = open_or_fail(&o);
    assert_true(memory().process > memory().limit);
    assert_int_equal(condition("memory_over"), GRAFT_UNHEALTHY); /* there is nothing to give back */
    graft_lease *l = lease_or_fail("alder");
    assert_int_equal(condition("memory_over"), GRAFT_UNHEALTHY);
    assert_string_equal(listing(), "alder:resident");
    graft_lease_release(l);
    WAIT_UNTIL(metrics().n_resident == 0)
    assert_int_equal(metrics().evictions, 1);
    WAIT_UNTIL(logged("", 0, "the process takes") == 1)
    w.g->memory_limit = (uint64_t)1 << 40;
    assert_int_equal(condition("memory_over"), -1);
}

static atomic_bool gate_reached, gate_open;

static bool wait_at(const char *text, size_t length, void *user) {
    (void)text, (void)length, (void)user;
    atomic_store(&gate_reached, true);
    WAIT_UNTIL(atomic_load(&gate_open))
    return true;
}

static void a_long_queue_shows(void **state) {
    (void)state;
    enum { N = 1100 };
    graft_job *jobs[N];
    open_world();
    graft_request r = request(PROMPT, 1);
    r.on_text = wait_at;
    atomic_store(&gate_open, false);
    atomic_store(&gate_reached, false);
    jobs[0] = submit_or_fail(w.g, &r);
    WAIT_UNTIL(atomic_load(&gate_reached))
    r.on_text = NULL;
    for (int i = 1; i < N; i++) {
        jobs[i] = submit_or_fail(w.g, &r);
    }
    int long_queue = condition("queue_long"), stalled = condition("decoding_stalled");
    atomic_store(&gate_open, true);
    assert_int_equal(long_queue, GRAFT_DEGRADED);
    assert_int_equal(stalled, -1); /* not for so short a time */
    for (int i = 0; i < N; i++) {
        graft_job_free(jobs[i]);
    }
    assert_int_equal(condition("queue_long"), -1);
}

/* ---- one load that is slow --------------------------------------------------------------------------------- */

static int (*load_as_ever)(void *self, void *job, gr_loaded *out, graft_error *err);
static atomic_int at_gate;

static int gated_load(void *self, void *job, gr_loaded *out, graft_error *err) {
    atomic_fetch_add(&at_gate, 1);
    for (int i = 0; i < 10000 && !atomic_load(&gate_open); i++) { /* in the end it opens, so that the test fails and does not hang */
        nap();
    }
    return load_as_ever(self, job, out, err);
}

/* Nobody loads meanwhile. */
static void slow_down_loads(void) {
    gr_loader *l = w.g->loader;
    atomic_store(&gate_open, false);
    atomic_store(&at_gate, 0);
    gr_mutex_lock(&l->mutex);
    load_as_ever = l->o.backend.load;
    l->o.backend.load = gated_load;
    gr_mutex_unlock(&l->mutex);
}

/* As if what is being worked on had begun half a minute earlier. */
static void age_work(void) {
    gr_loader *l = w.g->loader;
    gr_mutex_lock(&l->mutex);
    for (gr_version *v = l->table.versions; v; v = v->next) {
        v->busy_since -= v->busy_since ? 31 * 1000000 : 0;
    }
    gr_mutex_unlock(&l->mutex);
}

/* More wait for slow loads than there are loader threads, and longer than anybody is kept back for: who asks for what is in memory, or for
 * the base, is answered all the same. */
static void who_loads_slowly_keeps_nobody_back(void **state) {
    (void)state;
    add_plain(4);
    open_world_max(4);
    ask("alder");
    slow_down_loads();
    graft_job *slow[3] = {start_named("birch", GRAFT_FALLBACK_ERROR, 600000, 2), start_named("cedar", GRAFT_FALLBACK_ERROR, 600000, 2),
                          start_named("dogwood", GRAFT_FALLBACK_ERROR, 600000, 2)};
    WAIT_UNTIL(atomic_load(&at_gate) == 2)
    for (int i = 0; i < 400; i++) {
        nap();
    }
    for (int i = 0; i < 3; i++) {
        assert_int_equal(take_named(start_named("alder", GRAFT_FALLBACK_ERROR, 600000, 2)).a.error.code, 0);
        assert_int_equal(ask_base().error.code, 0);
    }
    int waiting = (int)metrics().n_loading, at = atomic_load(&at_gate);
    assert_true(!atomic_load(&gate_open));
    int stalled = condition("loads_stalled");
    age_work();
    int stalled_then = condition("loads_stalled");
    atomic_store(&gate_open, true);
    assert_int_equal(waiting, 3);
    assert_int_equal(at, 2);
    assert_int_equal(stalled, -1);
    assert_int_equal(stalled_then, GRAFT_DEGRADED);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(take_named(slow[i]).a.error.code, 0);
    }
    assert_int_equal(condition("loads_stalled"), -1);
}

/* ---- the probe's noise ------------------------------------------------------------------------------------ */

typedef struct logits {
    float *last;
    int n;
} logits;

static void keep_last(const float *rows, size_t first, size_t count, int n_vocab, void *user) {
    logits *l = user;
    (void)first;
    l->n = n_vocab;
    l->last = realloc(l->last, (size_t)n_vocab * sizeof(float));
    memcpy(l->last, rows + (count - 1) * (size_t)n_vocab, (size_t)n_vocab * sizeof(float));
}

/* The logits of the probe's text, as the probe gets them. */
static logits probe_like(gr_adapter *a) {
    logits l = {NULL, 0};
    gr_job_spec spec = {.kind = GR_JOB_SCORE, .probe = true, .max_tokens = 1, .on_logits = keep_last, .user = &l};
    const char *text = "What is this project about?";
    assert_int_equal(gr_vocab_tokenize(gr_engine_vocab(w.g->engine), text, strlen(text), true, false, 4096, &spec.tokens, &spec.n_tokens, NULL), 0);
    spec.n_tokens = spec.n_tokens < GR_PROBE_TOKENS ? spec.n_tokens : GR_PROBE_TOKENS;
    if (a) {
        gr_adapter_set_add(&spec.adapters, a, 1);
    }
    graft_job *job;
    assert_int_equal(gr_job_create(&job, w.g->engine, &spec, NULL), 0);
    assert_int_equal(gr_engine_submit(w.g->engine, &job, 1, NULL), 0);
    assert_int_equal(graft_job_wait(job)->error.code, 0);
    graft_job_free(job);
    return l;
}

static double relative_difference(const logits *a, const logits *b) {
    double most = 0, size = 0;
    for (int i = 0; i < a->n; i++) {
        most = fmax(most, fabs((double)a->last[i] - (double)b->last[i]));
        size = fmax(size, fabs((double)a->last[i]));
    }
    return most / size;
}

static double noise_in_company(const logits *alone, int rounds) {
    double most = 0;
    for (int i = 0; i < rounds; i++) {
        graft_job *jobs[4];
        int n = 1 + i % 4;
        for (int k = 0; k < n; k++) {
            graft_request r = request(k % 2 ? "A longer text to share the batch with, so that there are rows of prompts too" : "Short", 1 + i % 7);
            jobs[k] = submit_or_fail(w.g, &r);
        }
        logits l = probe_like(NULL);
        most = fmax(most, relative_difference(alone, &l));
        free(l.last);
        for (int k = 0; k < n; k++) {
            graft_job_free(jobs[k]);
        }
    }
    return most;
}

/* What a small adapter does, as if training had hardly begun. */
static double effect_of(const logits *alone, float gain) {
    int weights[512];
    size_t n = 0;
    for (size_t i = 0; i < w.g->base->n_weights && n < 512; i++) {
        const char *name = w.g->base->weights[i].name;
        if (strstr(name, "attn_q") || strstr(name, "attn_v")) {
            weights[n++] = (int)i;
        }
    }
    gr_adapter *a;
    assert_int_equal(gr_random_adapter_create(&a, w.g->base, weights, n, 8, GR_DTYPE_F32, gain, 9, NULL), 0);
    logits l = probe_like(a);
    double effect = relative_difference(alone, &l);
    free(l.last);
    gr_random_adapter_free(a);
    return effect;
}

/* Prints the figures that GR_PROBE_NOISE stands on, and checks what it promises: alone nothing differs, and what acts is seen. */
static void measure(const char *what, int rounds, bool exact) {
    logits alone = probe_like(NULL), again = probe_like(NULL);
    double same = relative_difference(&alone, &again), noise = noise_in_company(&alone, rounds);
    double effects[3] = {effect_of(&alone, 1e-1f), effect_of(&alone, 1e-2f), effect_of(&alone, 1e-3f)};
    print_message("    %s: alone again %.1e, in company %.1e; adapters of gain 0.1, 0.01, 0.001: %.1e %.1e %.1e\n", what, same, noise,
                  effects[0], effects[1], effects[2]);
    assert_true(same < (double)GR_PROBE_NOISE / 10);
    assert_true(!exact || noise < (double)GR_PROBE_NOISE / 10);
    for (int i = 0; i < 3; i++) {
        assert_true(effects[i] > 10 * (double)GR_PROBE_NOISE);
    }
    free(alone.last);
    free(again.last);
}

static void measure_both(graft_options o, int rounds, bool exact) {
    for (int kv = GRAFT_KV_F16; kv <= GRAFT_KV_F32; kv++) {
        o.kv_type = (graft_kv_type)kv;
        w.g = open_or_fail(&o);
        measure(kv == GRAFT_KV_F16 ? "float16 cache" : "float32 cache", rounds, exact && kv == GRAFT_KV_F32);
        graft_close(w.g);
        w.g = NULL;
    }
}

static void the_faintest_adapter_is_no_noise(void **state) {
    (void)state;
    measure_both(world_options(), 24, true);
}

static void the_faintest_adapter_is_no_noise_on_a_real_model(void **state) {
    (void)state;
    const char *model = getenv("GRAFT_TEST_MODEL");
    if (!model || !*model) {
        skip();
    }
    graft_options o = world_options();
    o.model = model;
    o.threads = 0;
    measure_both(o, 8, false);
}

/* ---- a base that adapters cannot be for ------------------------------------------------------------------- */

static void copy_key(struct gguf_context *to, const char *name, const struct gguf_context *from, int64_t i) {
    switch (gguf_get_kv_type(from, i)) {
    case GGUF_TYPE_STRING: gguf_set_val_str(to, name, gguf_get_val_str(from, i)); break;
    case GGUF_TYPE_UINT32: gguf_set_val_u32(to, name, gguf_get_val_u32(from, i)); break;
    case GGUF_TYPE_FLOAT32: gguf_set_val_f32(to, name, gguf_get_val_f32(from, i)); break;
    default: fail_msg("key %s has a type that this test does not expect", name);
    }
}

/* The small llama under the name of an architecture that is the same to libllama, and that graft has no table for. */
static void write_xverse(const char *path) {
    struct ggml_context *tensors = NULL;
    struct gguf_context *from = gguf_init_from_file(golden("bases/llama-untied.gguf"), (struct gguf_init_params){.ctx = &tensors});
    struct gguf_context *to = gguf_init_empty();
    char name[128];
    assert_non_null(from);
    gguf_set_kv(to, from);
    gguf_set_val_str(to, "general.architecture", "xverse");
    for (int64_t i = 0; i < gguf_get_n_kv(from); i++) {
        if (strncmp(gguf_get_key(from, i), "llama.", 6) == 0) {
            snprintf(name, sizeof name, "xverse.%s", gguf_get_key(from, i) + 6);
            copy_key(to, name, from, i);
        }
    }
    for (int64_t i = 0; i < gguf_get_n_tensors(from); i++) {
        gguf_add_tensor(to, ggml_get_tensor(tensors, gguf_get_tensor_name(from, i)));
    }
    assert_true(gguf_write_to_file(to, path, false));
    gguf_free(to);
    gguf_free(from);
    ggml_free(tensors);
}

static void a_base_without_adapters_falls_back_by_name_and_fails_by_path(void **state) {
    (void)state;
    graft_model_info info;
    graft_adapter *a;
    graft_error err;
    write_xverse(in_world("base.gguf"));
    add("alder", "adapters/llama-untied/plain");
    graft_options o = world_options();
    o.model = in_world("base.gguf");
    w.g = open_or_fail(&o);
    graft_model_get_info(w.g, &info);
    assert_string_equal(info.architecture, "xverse");
    assert_false(info.adapters_supported);
    answer base = ask_base();
    assert_int_equal(base.finish, GRAFT_FINISH_LENGTH);
    named got = ask("alder");
    assert_int_equal(got.fallback.code, GRAFT_E_UNSUPPORTED_MODEL);
    assert_same_answer(&got.a, &base);
    assert_int_equal(lease_code("alder", GRAFT_FALLBACK_ERROR, -1, &err), GRAFT_E_UNSUPPORTED_MODEL);
    assert_int_equal(graft_adapter_open(&a, w.g, golden("adapters/llama-untied/plain"), &err), GRAFT_E_UNSUPPORTED_MODEL);
    assert_int_equal(metrics().loads + memory().resident + memory().by_path, 0);
}

/* ---- failing allocations ---------------------------------------------------------------------------------- */

static int submit_two(graft_error *err) {
    graft_adapter_use use = {.scale = 1, .project = "alder"};
    graft_request r[2] = {request("hello", 2), request("hello", 2)};
    graft_job *jobs[2];
    int rc;
    for (int i = 0; i < 2; i++) {
        r[i].adapters = &use;
        r[i].n_adapters = 1;
        r[i].fallback = i ? GRAFT_FALLBACK_BASE : GRAFT_FALLBACK_ERROR;
    }
    rc = graft_submit(jobs, w.g, r, 2, err);
    for (int i = 0; i < 2 && !rc; i++) {
        const graft_result *result = graft_job_wait(jobs[i]);
        const graft_error *why = result->error.code ? &result->error : &result->fallback;
        if (why->code) {
            *err = *why;
            for (; i < 2; i++) {
                graft_job_free(jobs[i]);
            }
            return err->code;
        }
        graft_job_free(jobs[i]);
    }
    return rc;
}

static int prefetch_and_wait(graft_error *err) {
    graft_prefetch *p;
    int rc = graft_prefetch_start(&p, w.g, "alder", NULL, NULL, NULL, err);
    if (!rc) {
        rc = graft_prefetch_wait(p, err);
        graft_prefetch_free(p);
    }
    return rc;
}

static int list_all(graft_error *err) {
    graft_loaded_list *l;
    int rc = graft_loaded_adapters(&l, w.g, err);
    if (!rc) {
        graft_loaded_list_free(l);
    }
    return rc;
}

/* All that is done to names, with the n-th allocation failing somewhere, on whatever thread. */
static int whole_round(graft_error *err) {
    bool changed;
    int rc = graft_registry_adapter_add(w.registry, "alder", NULL, in_world("files"), GRAFT_ADD_PROJECT, err);
    rc = rc ? rc : prefetch_and_wait(err);
    rc = rc ? rc : lease_code("alder", GRAFT_FALLBACK_ERROR, -1, err);
    rc = rc ? rc : graft_load_adapter(w.g, "alder", NULL, true, err);
    rc = rc ? rc : submit_two(err);
    rc = rc ? rc : graft_registry_adapter_reload(w.registry, "alder", NULL, &changed, err);
    rc = rc ? rc : submit_two(err);
    rc = rc ? rc : graft_pin_adapter(w.g, "alder", NULL, true, err);
    rc = rc ? rc : graft_switch_project(w.g, "alder", NULL, err);
    rc = rc ? rc : list_all(err);
    rc = rc ? rc : graft_unload_adapter(w.g, "alder", NULL, NULL, NULL, err);
    rc = rc ? rc : graft_registry_project_remove(w.registry, "alder", err);
    return rc;
}

static void fail_each(int forever, uint64_t *rounds) {
    int rc = -1, in_a_row = 0;
    for (uint64_t n = 1; in_a_row < 3; n++) { /* threads share the count: a single round may slip through */
        graft_error err = {0};
        assert_true(n < 3000);
        gr_memory_fail_at(n, forever);
        rc = whole_round(&err);
        gr_memory_fail_at(0, 0);
        if (rc != 0 && rc != GRAFT_E_OUT_OF_MEMORY) {
            fail_msg("allocation %d: %s: %s", (int)n, graft_error_name(rc), err.message);
        }
        assert_int_equal(err.code, rc);
        graft_registry_project_remove(w.registry, "alder", NULL);
        WAIT_UNTIL(metrics().n_loading == 0 && metrics().n_draining == 0 && metrics().n_leases == 0)
        assert_int_equal(metrics().n_resident, 0);
        assert_true(gr_loader_check(w.g->loader));
        in_a_row = rc == 0 ? in_a_row + 1 : 0;
        *rounds = n;
    }
}

static void each_allocation_may_fail(void **state) {
    (void)state;
    close_world();
    uint64_t blocks = gr_memory_blocks();
    copy_adapter("files", "adapters/llama/plain");
    for (int forever = 0; forever < 2; forever++) {
        uint64_t rounds = 0;
        graft_error err;
        open_registry();
        graft_options o = world_options();
        o.retry_attempts = 1;
        w.g = open_or_fail(&o);
        fail_each(forever, &rounds);
        print_message("    %d allocations\n", (int)rounds);
        assert_true(rounds > 60);
        if (whole_round(&err)) { /* nothing is left that hinders */
            fail_msg("%s", err.message);
        }
        close_world();
        assert_int_equal(gr_memory_blocks(), blocks);
    }
}

/* One allocation that fails is an error that may pass: the load is tried again. */
static void a_load_is_tried_again_when_its_error_may_pass(void **state) {
    (void)state;
    int passed = 0;
    add_plain(1);
    graft_options o = world_options();
    o.retry_base_ms = 1;
    w.g = open_or_fail(&o);
    for (uint64_t n = 1; n <= 40; n++) {
        uint64_t retries = metrics().retries;
        gr_memory_fail_at(n, 0);
        int rc = graft_load_adapter(w.g, "alder", NULL, true, NULL);
        gr_memory_fail_at(0, 0);
        assert_true(rc == 0 || rc == GRAFT_E_OUT_OF_MEMORY);
        passed += rc == 0 && metrics().retries == retries + 1;
    }
    assert_true(passed > 10);
    graft_metrics m = metrics();
    assert_int_equal(m.n_retried, 1);
    assert_int_equal(m.retried[0].code, GRAFT_E_OUT_OF_MEMORY);
    assert_int_equal(m.retried[0].n, m.retries);
    assert_true(logged("alder", GRAFT_E_OUT_OF_MEMORY, "attempt 1 of 3") > 0);
}

static void opening_survives_failing_allocations(void **state) {
    (void)state;
    close_world();
    uint64_t blocks = gr_memory_blocks();
    int rc = -1;
    open_registry();
    open_world(); /* from now on the registry knows the base */
    graft_close(w.g);
    w.g = NULL;
    uint64_t with_registry = gr_memory_blocks();
    for (uint64_t n = 1; rc; n++) {
        graft_options o = world_options();
        graft_error err = {0};
        graft *g = NULL;
        assert_true(n < 1000);
        o.slots = 1;
        gr_memory_fail_at(n, 1);
        rc = graft_open(&g, &o, &err);
        gr_memory_fail_at(0, 0);
        assert_true(rc == 0 || rc == GRAFT_E_OUT_OF_MEMORY);
        assert_int_equal(err.code, rc);
        graft_close(g);
        assert_int_equal(gr_memory_blocks(), with_registry);
    }
    close_world();
    assert_int_equal(gr_memory_blocks(), blocks);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        WORLD_TEST(bytes_are_a_limit_as_places_are),
        WORLD_TEST(what_can_never_fit_is_said_at_once),
        WORLD_TEST(adapters_by_path_count_and_displace_named_ones),
        WORLD_TEST(adapters_by_path_wait_for_what_is_being_freed),
        WORLD_TEST(what_is_being_built_by_path_is_not_graft_s_own),
        WORLD_TEST(a_handle_that_went_counts_as_long_as_it_is_used),
        WORLD_TEST(libllamas_copies_count),
        WORLD_TEST(a_new_instance_is_healthy_and_failed_loads_show),
        WORLD_TEST(memory_that_is_nearly_full_shows),
        WORLD_TEST(a_process_over_the_limit_shows_and_loses_what_nobody_holds),
        WORLD_TEST(a_long_queue_shows),
        WORLD_TEST(who_loads_slowly_keeps_nobody_back),
        WORLD_TEST(the_faintest_adapter_is_no_noise),
        WORLD_TEST(the_faintest_adapter_is_no_noise_on_a_real_model),
        WORLD_TEST(a_base_without_adapters_falls_back_by_name_and_fails_by_path),
        WORLD_TEST(each_allocation_may_fail),
        WORLD_TEST(a_load_is_tried_again_when_its_error_may_pass),
        WORLD_TEST(opening_survives_failing_allocations),
    };
    cmocka_set_test_filter(getenv("GRAFT_TEST_FILTER"));
    return cmocka_run_group_tests(tests, NULL, NULL);
}
