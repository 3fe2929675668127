/* What a server needs beyond answers: to be told of the end, token by token probabilities, biases, reused prefixes. */
#include "api_helpers.h"

#include <math.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>

/* ---- on_end ----------------------------------------------------------------------------------------------- */

typedef struct ends {
    atomic_int n_start, n_text, n_end, text_after_end, start_is_late;
    graft_finish finish;
    int completion_tokens, code;
    char text[512];
    uint64_t id, job_id;
    pthread_mutex_t mutex; /* `job` */
    pthread_cond_t told;
    graft_job *job;
} ends;

static void ends_init(ends *e) {
    memset(e, 0, sizeof *e);
    pthread_mutex_init(&e->mutex, NULL);
    pthread_cond_init(&e->told, NULL);
}

static void on_start(const graft_start *start, void *user) {
    ends *e = user;
    e->n_start++;
    e->start_is_late += e->n_text + e->n_end > 0;
    assert_string_equal(start->project, "");
    assert_string_equal(start->adapter, "");
    assert_string_equal(start->generation, "");
    assert_int_equal(start->fallback->code, 0);
}

static bool count_text(const char *text, size_t length, void *user) {
    ends *e = user;
    (void)text;
    (void)length;
    e->n_text++;
    e->text_after_end += e->n_end > 0;
    return true;
}

/* Everything of the result can be read, and from here on somebody else may free the job. */
static void on_end(graft_job *job, const graft_result *r, void *user) {
    ends *e = user;
    e->finish = r->finish;
    e->code = r->error.code;
    e->completion_tokens = r->completion_tokens;
    snprintf(e->text, sizeof e->text, "%s", r->text);
    e->id = r->id;
    e->job_id = graft_job_id(job);
    e->n_end++;
    pthread_mutex_lock(&e->mutex);
    e->job = job;
    pthread_cond_signal(&e->told);
    pthread_mutex_unlock(&e->mutex);
}

static graft_request told_request(ends *e, int max_tokens) {
    graft_request r = request("tell me of the end", max_tokens);
    ends_init(e);
    r.on_start = on_start;
    r.on_text = count_text;
    r.on_end = on_end;
    r.user = e;
    return r;
}

static void test_end_is_told(void **state) {
    (void)state;
    graft *g = open_small();
    ends e;
    graft_request r = told_request(&e, 9);
    answer a = run(g, &r);
    assert_int_equal(e.n_end, 1);
    assert_int_equal(e.n_start, 1);
    assert_int_equal(e.start_is_late, 0);
    assert_int_equal(e.finish, GRAFT_FINISH_LENGTH);
    assert_int_equal(e.completion_tokens, 9);
    assert_string_equal(e.text, a.text);
    assert_true(e.n_text > 0);
    assert_int_equal(e.text_after_end, 0);
    assert_true(e.id > 0 && e.id == e.job_id);
    graft_close(g);
}

/* Cancelled while it waits or runs, and closed under it: told once each. */
static void test_every_end_is_told(void **state) {
    (void)state;
    graft_options o = small_options();
    o.slots = 1;
    graft *g = open_or_fail(&o);
    enum { N = 6 };
    ends e[N];
    graft_request r[N];
    graft_job *jobs[N];
    for (int i = 0; i < N; i++) {
        r[i] = told_request(&e[i], 100);
    }
    assert_int_equal(graft_submit(jobs, g, r, N, NULL), 0);
    graft_job_cancel(jobs[0]);
    graft_job_cancel(jobs[4]);
    assert_int_equal(graft_job_wait(jobs[4])->finish, GRAFT_FINISH_CANCELLED);
    assert_int_equal(e[4].n_end, 1);
    assert_int_equal(e[4].n_start, 0); /* never left the queue */
    assert_int_equal(e[4].code, GRAFT_E_CANCELLED);
    graft_close(g);
    for (int i = 0; i < N; i++) {
        const graft_result *result = graft_job_wait(jobs[i]);
        assert_int_equal(e[i].n_end, 1);
        assert_true(e[i].n_start <= 1 && e[i].n_start >= (e[i].n_text > 0));
        assert_int_equal(e[i].start_is_late, 0);
        assert_int_equal(e[i].finish, result->finish);
        assert_int_equal(e[i].code, result->error.code);
        graft_job_free(jobs[i]);
    }
}

/* What is refused never began, so it has no end. */
static void test_refused_is_not_told(void **state) {
    (void)state;
    graft *g = open_small();
    ends e;
    graft_request r = told_request(&e, -1);
    graft_job *job;
    assert_int_equal(graft_submit(&job, g, &r, 1, NULL), GRAFT_E_BAD_REQUEST);
    assert_int_equal(e.n_end, 0);
    graft_close(g);
}

/* A server's way: nobody waits; who is told hands the job to a thread that frees it at once. */
static void *free_told(void *arg) {
    ends *e = arg;
    pthread_mutex_lock(&e->mutex);
    while (!e->job) {
        pthread_cond_wait(&e->told, &e->mutex);
    }
    pthread_mutex_unlock(&e->mutex);
    graft_job_free(e->job);
    return NULL;
}

static void test_freed_once_told(void **state) {
    (void)state;
    graft *g = open_small();
    uint64_t before = graft_own_bytes();
    enum { N = 40 };
    static ends e[N];
    pthread_t threads[N];
    for (int i = 0; i < N; i++) {
        graft_request r = told_request(&e[i], 1 + i % 5);
        assert_int_equal(pthread_create(&threads[i], NULL, free_told, &e[i]), 0);
        submit_or_fail(g, &r);
    }
    for (int i = 0; i < N; i++) {
        pthread_join(threads[i], NULL);
        assert_int_equal(e[i].n_end, 1);
    }
    assert_true(graft_own_bytes() == before);
    graft_close(g);
}

/* ---- the prefix cache ------------------------------------------------------------------------------------- */

#define LETTERS "root ::= [a-z ]*" /* answers that are the same text again as a prompt */

static graft_request letters_request(const char *prompt, int max_tokens) {
    graft_request r = request(prompt, max_tokens);
    r.sampling.grammar = LETTERS;
    return r;
}

static uint64_t evaluated(graft *g) {
    graft_stats s;
    graft_get_stats(g, &s);
    return s.prompt_tokens;
}

static answer run_cold(graft *g, const graft_request *r) {
    graft_request cold = *r;
    cold.cache_prompt = false;
    answer a = run(g, &cold);
    assert_int_equal(a.cached_tokens, 0);
    return a;
}

/* Runs it on what is cached: `cached` tokens, and the rest is evaluated; the answer is that of `cold`, another instance. */
static answer expect_cached(graft *g, graft *cold, const graft_request *r, int cached) {
    uint64_t before = evaluated(g);
    answer a = run(g, r), b = run_cold(cold, r);
    assert_int_equal(a.cached_tokens, cached);
    assert_int_equal(evaluated(g) - before, a.prompt_tokens - cached);
    assert_int_equal(a.prompt_tokens, b.prompt_tokens);
    assert_same_answer(&a, &b);
    return a;
}

static void test_conversation(void **state) {
    (void)state;
    static const char *const bases[] = {"llama", "qwen3", "mistral", "gemma2", "gemma3", "phi3", "stablelm"};
    for (size_t i = 0; i < sizeof bases / sizeof *bases; i++) {
        graft_options o = small_options();
        char path[64];
        snprintf(path, sizeof path, "bases/%s.gguf", bases[i]);
        o.model = golden(path);
        o.context = 256;
        graft *g = open_or_fail(&o), *cold = open_or_fail(&o);
        char text[512] = "user: tell me of the sea. assistant: ";
        int known = 0;
        for (int turn = 0; turn < 4; turn++) {
            graft_request r = letters_request(text, 12);
            answer a = expect_cached(g, cold, &r, known);
            assert_int_equal(a.completion_tokens, 12);
            known = a.prompt_tokens + 11; /* the token drawn last was not evaluated */
            strcat(text, a.text);
            strcat(text, ". user: and then? assistant: ");
        }
        graft_close(g);
        graft_close(cold);
    }
}

/* With a sliding window, cells that left it are used again: what is cut may lack some that the rest would need. */
static void test_sliding_window(void **state) {
    (void)state;
    graft_options o = small_options();
    o.model = golden("bases/gemma3.gguf");
    graft *g = open_or_fail(&o), *cold = open_or_fail(&o);
    graft_request r = letters_request("tell me of the sea, of ships and of what lies beyond the line where it ends. ", 20);
    answer a = expect_cached(g, cold, &r, 0);
    expect_cached(g, cold, &r, 0); /* the same again needs a cut by one */
    char longer[256];
    snprintf(longer, sizeof longer, "%s%.99s, and then?", r.prompt, a.text);
    r = letters_request(longer, 5);
    expect_cached(g, cold, &r, a.prompt_tokens + 19);
    r = letters_request("tell me of the sea, of shells", 20);
    expect_cached(g, cold, &r, 0);
    graft_close(g);
    graft_close(cold);
}

static void test_asked_again(void **state) {
    (void)state;
    graft *g = open_small(), *cold = open_small();
    graft_request r = request("the same question", 20);
    answer a = expect_cached(g, cold, &r, 0);
    expect_cached(g, cold, &r, a.prompt_tokens - 1); /* one row gives the logits */
    r.sampling.temperature = 1;
    r.sampling.repeat_penalty = 1.3f; /* looks at the prompt, cached or not */
    r.sampling.seed = 7;
    expect_cached(g, cold, &r, a.prompt_tokens - 1);
    r.cache_prompt = false;
    expect_cached(g, cold, &r, 0);
    graft_request short_one = request("", 3); /* one token: nothing to share */
    expect_cached(g, cold, &short_one, 0);
    expect_cached(g, cold, &short_one, 0);
    graft_close(g);
    graft_close(cold);
}

enum { USES = 6 };

/* The same words to the base, two adapters, another scale, and both together. */
static size_t uses_of(int kind, graft_adapter *a, graft_adapter *b, graft_adapter_use uses[2]) {
    const float scales[USES][2] = {{0, 0}, {1, 0}, {0, 1}, {0.5f, 0}, {1, 1}, {-1, 0}};
    size_t n = 0;
    for (int i = 0; i < 2; i++) {
        if (scales[kind][i] != 0) {
            uses[n++] = (graft_adapter_use){.adapter = i ? b : a, .scale = scales[kind][i]};
        }
    }
    return n;
}

static void test_adapters_never_share(void **state) {
    (void)state;
    graft_options o = small_options();
    o.slots = USES;
    graft *g = open_or_fail(&o), *cold = open_or_fail(&o);
    graft_adapter *a[2] = {load_or_fail(g, "adapters/llama/plain"), load_or_fail(g, "adapters/llama/qv")};
    graft_adapter *b[2] = {load_or_fail(cold, "adapters/llama/plain"), load_or_fail(cold, "adapters/llama/qv")};
    for (int apply = GRAFT_APPLY_ROWS; apply <= GRAFT_APPLY_GROUPED; apply++) {
        assert_int_equal(graft_set_apply(g, (graft_apply)apply, NULL), 0);
        assert_int_equal(graft_set_apply(cold, (graft_apply)apply, NULL), 0);
        char prompt[64];
        snprintf(prompt, sizeof prompt, "%d: what would each of you say?", apply);
        for (int round = 0; round < 3; round++) {
            for (int kind = 0; kind < USES; kind++) {
                graft_adapter_use uses[2], others[2];
                graft_request r = request(prompt, 12);
                r.adapters = uses;
                r.n_adapters = uses_of(kind, a[0], a[1], uses);
                answer x = run(g, &r);
                r.adapters = others;
                uses_of(kind, b[0], b[1], others);
                answer y = run_cold(cold, &r);
                assert_same_answer(&x, &y);
                assert_int_equal(x.cached_tokens, round == 0 ? 0 : x.prompt_tokens - 1);
            }
        }
    }
    for (int i = 0; i < 2; i++) {
        graft_adapter_free(a[i]);
        graft_adapter_free(b[i]);
    }
    graft_close(g);
    graft_close(cold);
}

static answer ask_with(graft *g, graft_adapter *a, const char *prompt) {
    graft_adapter_use use = {.adapter = a, .scale = 1};
    graft_request r = request(prompt, 15);
    r.adapters = &use;
    r.n_adapters = 1;
    return run(g, &r);
}

/* The files count: another adapter in the place of the first finds nothing, the same files again find what is left. */
static void test_adapter_is_replaced(void **state) {
    (void)state;
    static const char prompt[] = "who is there, and since when?";
    graft *cold = open_small();
    graft_adapter *a = load_or_fail(cold, "adapters/llama/qv");
    answer qv = ask_with(cold, a, prompt);
    graft_adapter_free(a);
    graft_close(cold);
    graft *g = open_small();
    a = load_or_fail(g, "adapters/llama/plain");
    answer plain = ask_with(g, a, prompt);
    graft_adapter_free(a);
    a = load_or_fail(g, "adapters/llama/qv"); /* perhaps at the same address */
    answer x = ask_with(g, a, prompt);
    assert_int_equal(x.cached_tokens, 0);
    assert_same_answer(&x, &qv);
    assert_string_not_equal(x.text, plain.text);
    graft_adapter_free(a);
    a = load_or_fail(g, "adapters/llama/plain");
    x = ask_with(g, a, prompt);
    assert_int_equal(x.cached_tokens, x.prompt_tokens - 1);
    assert_same_answer(&x, &plain);
    graft_adapter_free(a);
    graft_close(g);
}

#define SYSTEM "you are a helpful gardener. "

/* A second conversation with the same beginning takes a copy of it: the first can still go on. */
static void test_common_beginning(void **state) {
    (void)state;
    graft *g = open_small(), *cold = open_small();
    char first[256] = SYSTEM "my roses have some brown spots on the leaves, what is to be done? ";
    graft_request r = letters_request(first, 8);
    answer a = expect_cached(g, cold, &r, 0);
    graft_request system = request(SYSTEM, 1);
    int shared = run(cold, &system).prompt_tokens;
    r = letters_request(SYSTEM "when do you sow carrots?", 8);
    expect_cached(g, cold, &r, shared);
    strcat(first, a.text);
    strcat(first, " and?");
    r = letters_request(first, 8);
    expect_cached(g, cold, &r, a.prompt_tokens + 7);
    graft_close(g);
    graft_close(cold);
}

/* While the first still runs, others copy what it has evaluated; nobody has to wait for it to end. */
static bool submit_once(const char *text, size_t length, void *user) {
    (void)text;
    (void)length;
    ends *e = user;
    e->n_text++;
    return true;
}

static void test_shared_with_a_running_one(void **state) {
    (void)state;
    graft_options o = small_options();
    o.context = 1024;
    o.slots = 3;
    graft *g = open_or_fail(&o), *cold = open_or_fail(&o);
    ends e;
    ends_init(&e);
    graft_request first = request(SYSTEM "go on and on", 900), r = request(SYSTEM "one word", 4);
    first.on_text = submit_once;
    first.user = &e;
    graft_job *job = submit_or_fail(g, &first);
    while (e.n_text == 0) { /* its prompt is in the cache then */
        sched_yield();
    }
    answer a = run(g, &r), b = run_cold(cold, &r);
    assert_same_answer(&a, &b);
    assert_true(a.cached_tokens > 20);
    graft_job_cancel(job);
    graft_job_free(job);
    graft_close(g);
    graft_close(cold);
}

/* Fewer slots than conversations: the one left longest ago is gone. */
static void test_eviction(void **state) {
    (void)state;
    graft_options o = small_options();
    o.slots = 2;
    graft *g = open_or_fail(&o), *cold = open_or_fail(&o);
    graft_request a = request("a: first", 4), b = request("b: second", 4), c = request("c: third", 4);
    answer one = expect_cached(g, cold, &a, 0);
    int n_begin = one.prompt_tokens - (int)strlen(a.prompt); /* what is put before every text */
    expect_cached(g, cold, &b, n_begin);
    expect_cached(g, cold, &a, one.prompt_tokens - 1);
    expect_cached(g, cold, &c, n_begin); /* takes b's place */
    expect_cached(g, cold, &a, one.prompt_tokens - 1);
    expect_cached(g, cold, &b, n_begin);
    graft_close(g);
    graft_close(cold);
}

/* Scoring needs the logits of every token: it shares nothing, and leaves nothing. */
static void test_scoring_shares_nothing(void **state) {
    (void)state;
    graft_options o = small_options();
    o.slots = 1;
    graft *g = open_or_fail(&o), *cold = open_or_fail(&o);
    graft_score_request s = graft_score_request_default();
    graft_request r = request("a sentence to be looked at", 5);
    s.text = r.prompt;
    expect_cached(g, cold, &r, 0);
    graft_score_result *x, *y;
    assert_int_equal(graft_score(&x, g, &s, NULL), 0);
    assert_int_equal(graft_score(&y, cold, &s, NULL), 0);
    for (size_t i = 1; i < x->n_tokens; i++) {
        assert_true(fabsf(x->logprobs[i] - y->logprobs[i]) < 1e-4f);
    }
    graft_score_result_free(x);
    graft_score_result_free(y);
    expect_cached(g, cold, &r, 0);
    graft_close(g);
    graft_close(cold);
}

/* What a cancelled request had evaluated is good for the next. */
static bool stop_soon(const char *text, size_t length, void *user) {
    (void)text;
    (void)length;
    return ++*(int *)user < 5;
}

static void test_cancelled_leaves_its_prefix(void **state) {
    (void)state;
    graft *g = open_small(), *cold = open_small();
    int calls = 0;
    graft_request r = request("to be broken off", 60), whole = r;
    r.on_text = stop_soon;
    r.user = &calls;
    answer a = run(g, &r);
    assert_int_equal(a.finish, GRAFT_FINISH_CANCELLED);
    expect_cached(g, cold, &whole, a.prompt_tokens - 1);
    graft_close(g);
    graft_close(cold);
}

/* Conversations of all kinds, more than slots, some up to the context's end, some broken off: whatever is shared with whom, every
 * answer is that of a cold instance. */
static uint32_t seed = 3;
static int roll(int n) {
    seed = seed * 1664525u + 1013904223u;
    return (int)((uint64_t)(seed >> 8) * (uint32_t)n >> 24);
}

enum { TALKS = 12, ROUNDS = 12 };

static void random_talks(graft_apply apply) {
    graft_options o = small_options();
    o.slots = 8;
    o.batch = 32;
    graft *g = open_or_fail(&o), *cold = open_or_fail(&o);
    assert_int_equal(graft_set_apply(g, apply, NULL), 0);
    graft_adapter *a[2] = {load_or_fail(g, "adapters/llama/plain"), load_or_fail(g, "adapters/llama/qv")};
    graft_adapter *b[2] = {load_or_fail(cold, "adapters/llama/plain"), load_or_fail(cold, "adapters/llama/qv")};
    static char texts[TALKS][512];
    memset(texts, 0, sizeof texts);
    int cached = 0;
    for (int round = 0; round < ROUNDS; round++) {
        graft_request r[TALKS];
        graft_adapter_use uses[TALKS][2], others[2];
        graft_job *jobs[TALKS];
        for (int i = 0; i < TALKS; i++) {
            if (strlen(texts[i]) > 100 || !texts[i][0]) {
                snprintf(texts[i], sizeof texts[i], "%.*s talk %d ", roll(40), SYSTEM SYSTEM, roll(3));
            } else if (roll(3) == 0) { /* another turn of phrase */
                texts[i][strlen(texts[i]) - (size_t)roll(10)] = '\0';
            }
            r[i] = letters_request(texts[i], roll(10) ? 1 + roll(20) : 0);
            r[i].adapters = uses[i];
            r[i].n_adapters = uses_of(i % USES, a[0], a[1], uses[i]);
            r[i].cache_prompt = roll(6) > 0;
        }
        assert_int_equal(graft_submit(jobs, g, r, TALKS, NULL), 0);
        int broken = roll(TALKS);
        graft_job_cancel(jobs[broken]);
        for (int i = 0; i < TALKS; i++) {
            answer x = take_answer(jobs[i]);
            cached += x.cached_tokens;
            if (i != broken) {
                r[i].adapters = others;
                uses_of(i % USES, b[0], b[1], others);
                answer y = run_cold(cold, &r[i]);
                assert_same_answer(&x, &y);
                strcat(texts[i], x.text);
                strcat(texts[i], ", ");
            }
        }
    }
    assert_true(cached > 200);
    for (int i = 0; i < 2; i++) {
        graft_adapter_free(a[i]);
        graft_adapter_free(b[i]);
    }
    graft_close(g);
    graft_close(cold);
}

static void test_random_talks(void **state) {
    (void)state;
    random_talks(GRAFT_APPLY_ROWS);
    random_talks(GRAFT_APPLY_GROUPED);
}

/* ---- probabilities and biases ------------------------------------------------------------------------------ */

typedef struct shown {
    int32_t tokens[128];
    float logprobs[128];
    char text[1024];
    int n, n_top, n_ends;
    int texts_before; /* calls of on_text when a token of that text had not been shown */
    size_t text_length;
} shown;

static void on_token(const graft_token *t, void *user) {
    shown *s = user;
    s->tokens[s->n] = t->chosen.token;
    s->logprobs[s->n++] = t->chosen.logprob;
    s->n_top = t->n_top;
    s->n_ends += t->ends;
    if (!t->ends) {
        memcpy(s->text + strlen(s->text), t->chosen.text, t->chosen.length);
    }
    double sum = 0;
    for (int i = 0; i < t->n_top; i++) {
        sum += exp((double)t->top[i].logprob);
        assert_true(i == 0 || t->top[i].logprob <= t->top[i - 1].logprob);
        assert_true(t->top[i].token != t->chosen.token || t->top[i].logprob == t->chosen.logprob);
        assert_true(t->chosen.logprob <= t->top[0].logprob);
        for (int k = 0; k < i; k++) {
            assert_int_not_equal(t->top[i].token, t->top[k].token);
        }
    }
    assert_true(sum <= 1.0001);
}

static bool after_token(const char *text, size_t length, void *user) {
    shown *s = user;
    (void)text;
    s->text_length += length;
    s->texts_before += s->text_length > strlen(s->text);
    return true;
}

/* What was shown while generating is what scoring the whole says, whatever the temperature and however it was chosen. */
static void test_probabilities(void **state) {
    (void)state;
    graft *g = open_small();
    graft_adapter *a = load_or_fail(g, "adapters/llama/plain");
    graft_adapter_use use = {.adapter = a, .scale = 1};
    static const int32_t prompt[] = {20, 30, 40, 50};
    for (int top = 0; top <= 20; top += 10) {
        static shown s;
        memset(&s, 0, sizeof s);
        graft_request r = letters_request(NULL, 30);
        graft_logit_bias bias = {70, 1};
        r.tokens = prompt;
        r.n_tokens = 4;
        r.adapters = &use;
        r.n_adapters = 1;
        r.sampling.temperature = 3;
        r.sampling.repeat_penalty = 1.2f;
        r.sampling.seed = (uint32_t)top;
        r.logit_bias = &bias;
        r.n_logit_bias = 1;
        r.on_token = on_token;
        r.on_text = after_token;
        r.top_logprobs = top;
        r.user = &s;
        answer x = run(g, &r);
        assert_int_equal(s.n, x.completion_tokens);
        assert_int_equal(s.n_top, top);
        assert_string_equal(s.text, x.text);
        assert_int_equal(s.texts_before, 0);
        int32_t whole[64];
        memcpy(whole, prompt, sizeof prompt);
        memcpy(whole + 4, s.tokens, (size_t)s.n * sizeof *whole);
        graft_score_request score = graft_score_request_default();
        graft_score_result *result;
        score.tokens = whole;
        score.n_tokens = 4 + (size_t)s.n;
        score.adapters = &use;
        score.n_adapters = 1;
        assert_int_equal(graft_score(&result, g, &score, NULL), 0);
        for (int i = 0; i < s.n; i++) {
            assert_true(fabsf(result->logprobs[4 + i] - s.logprobs[i]) < 1e-3f);
        }
        graft_score_result_free(result);
    }
    graft_adapter_free(a);
    graft_close(g);
}

/* An end token is shown, and is no text. */
static void test_end_token_is_shown(void **state) {
    (void)state;
    graft *g = open_small();
    static shown s;
    memset(&s, 0, sizeof s);
    graft_request r = request("yes or no?", 20);
    r.ignore_eos = false;
    r.sampling.grammar = "root ::= \"yes\" | \"no\"";
    r.on_token = on_token;
    r.user = &s;
    answer a = run(g, &r);
    assert_int_equal(s.n, a.completion_tokens);
    assert_int_equal(s.n_ends, 1);
    assert_string_equal(s.text, a.text);
    graft_close(g);
}

static void test_biased_answers(void **state) {
    (void)state;
    graft *g = open_small();
    static shown s;
    memset(&s, 0, sizeof s);
    graft_request r = request("which word comes?", 10);
    r.on_token = on_token;
    r.user = &s;
    run(g, &r);
    graft_logit_bias bias[1024] = {{s.tokens[0], -100}};
    int32_t banned = s.tokens[0];
    r.logit_bias = bias;
    r.n_logit_bias = 1;
    memset(&s, 0, sizeof s);
    run(g, &r);
    for (int i = 0; i < s.n; i++) {
        assert_int_not_equal(s.tokens[i], banned);
    }
    bias[0] = (graft_logit_bias){banned, 100};
    memset(&s, 0, sizeof s);
    graft_job *job = submit_or_fail(g, &r);
    memset(bias, 0, sizeof bias); /* was copied */
    take_answer(job);
    for (int i = 0; i < s.n; i++) {
        assert_int_equal(s.tokens[i], banned);
    }
    for (int i = 0; i < 264; i++) {
        bias[i] = (graft_logit_bias){i, -100};
    }
    r.n_logit_bias = 264;
    answer a = run(g, &r);
    assert_int_equal(a.finish, GRAFT_FINISH_ERROR);
    assert_int_equal(a.error.code, GRAFT_E_BAD_REQUEST);
    graft_close(g);
}

static void test_refused_fields(void **state) {
    (void)state;
    graft *g = open_small();
    graft_logit_bias good[1025] = {{1, 0}}, unknown = {264, 1}, negative = {-1, 1}, nan_bias = {1, NAN}, inf_bias = {1, INFINITY};
    const struct {
        const graft_logit_bias *bias;
        size_t n;
        int top;
        const char *part;
    } table[] = {
        {NULL, 1, 0, "logit_bias"}, {good, 1025, 0, "n_logit_bias"}, {&unknown, 1, 0, "logit_bias.token: 264 is outside 0 to 263"},
        {&negative, 1, 0, "logit_bias.token"}, {&nan_bias, 1, 0, "logit_bias.bias"}, {&inf_bias, 1, 0, "logit_bias.bias"},
        {NULL, 0, -1, "top_logprobs"}, {NULL, 0, 21, "top_logprobs: 21 is outside 0 to 20"},
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        graft_request r = request("x", 1);
        graft_job *job;
        graft_error err;
        r.logit_bias = table[i].bias;
        r.n_logit_bias = table[i].n;
        r.top_logprobs = table[i].top;
        assert_int_equal(graft_submit(&job, g, &r, 1, &err), GRAFT_E_BAD_REQUEST);
        assert_non_null(strstr(err.message, table[i].part));
    }
    graft_request r = request("x", 1);
    r.logit_bias = good;
    r.n_logit_bias = 1024;
    assert_int_equal(run(g, &r).error.code, 0);
    graft_close(g);
}

/* ---- text and tokens --------------------------------------------------------------------------------------- */

static void assert_text_of(graft *g, const int32_t *tokens, size_t n, const char *expected, size_t n_expected) {
    char *text;
    size_t length;
    assert_int_equal(graft_detokenize(&text, &length, g, tokens, n, NULL), 0);
    assert_int_equal(length, n_expected);
    assert_memory_equal(text, expected, length + 1);
    graft_free(text);
}

/* A request with the tokens is the same as one with the text. */
static void test_tokenize_as_requests_do(void **state) {
    (void)state;
    graft *g = open_small();
    static const char text[] = "a caf\xC3\xA9 <|im_end|> here";
    uint64_t before = graft_own_bytes();
    for (int parse = 0; parse < 2; parse++) {
        int32_t *tokens, *bare;
        size_t n, n_bare;
        assert_int_equal(graft_tokenize(&tokens, &n, g, text, true, parse, NULL), 0);
        assert_int_equal(graft_tokenize(&bare, &n_bare, g, text, false, parse, NULL), 0);
        assert_true(n >= n_bare);
        assert_memory_equal(tokens + (n - n_bare), bare, n_bare * sizeof *bare);
        graft_request r = request(text, 8), of_tokens = request(NULL, 8);
        r.special = parse;
        of_tokens.tokens = tokens;
        of_tokens.n_tokens = n;
        answer a = run(g, &r), b = run(g, &of_tokens);
        assert_int_equal(a.prompt_tokens, n);
        assert_same_answer(&a, &b);
        assert_text_of(g, bare, n_bare, text, strlen(text));
        char *first;
        size_t length;
        assert_int_equal(graft_token_text(&first, &length, g, bare[0], NULL), 0);
        assert_true(length > 0 && strncmp(first, text, length) == 0);
        graft_free(first);
        graft_free(bare);
        graft_free(tokens);
    }
    int32_t *tokens;
    size_t n;
    assert_int_equal(graft_tokenize(&tokens, &n, g, "", false, false, NULL), 0);
    assert_int_equal(n, 0);
    graft_free(tokens);
    assert_text_of(g, NULL, 0, "", 0);
    assert_true(graft_own_bytes() == before);
    graft_close(g);
}

/* Bases that begin texts with a token of their own: only asked for. */
static void test_tokens_around(void **state) {
    (void)state;
    static const char *const bases[] = {"gemma2", "gemma3", "mistral", "phi3", "command-r"};
    int with = 0;
    for (size_t i = 0; i < sizeof bases / sizeof *bases; i++) {
        graft_options o = small_options();
        char path[64];
        snprintf(path, sizeof path, "bases/%s.gguf", bases[i]);
        o.model = golden(path);
        graft *g = open_or_fail(&o);
        int32_t *tokens, *bare;
        size_t n, n_bare;
        assert_int_equal(graft_tokenize(&tokens, &n, g, "abc", true, false, NULL), 0);
        assert_int_equal(graft_tokenize(&bare, &n_bare, g, "abc", false, false, NULL), 0);
        with += n > n_bare;
        assert_memory_equal(tokens + (n - n_bare), bare, n_bare * sizeof *bare);
        graft_free(tokens);
        graft_free(bare);
        graft_close(g);
    }
    assert_true(with > 0);
}

static void test_apply_template(void **state) {
    (void)state;
    graft *g = open_small();
    const graft_message m[] = {{"system", "be short"}, {"user", "hello"}};
    char *prompt;
    assert_int_equal(graft_apply_template(&prompt, g, m, 2, NULL), 0);
    assert_string_equal(prompt, "<|im_start|>system\nbe short<|im_end|>\n<|im_start|>user\nhello<|im_end|>\n"
                                "<|im_start|>assistant\n");
    graft_request chat = request(NULL, 6), raw = request(prompt, 6);
    chat.messages = m;
    chat.n_messages = 2;
    answer a = run(g, &chat), b = run(g, &raw);
    assert_int_equal(a.prompt_tokens, b.prompt_tokens);
    assert_same_answer(&a, &b);
    graft_free(prompt);
    graft_free(NULL);
    graft_close(g);
}

static void test_text_is_refused(void **state) {
    (void)state;
    graft *g = open_small();
    int32_t *tokens = NULL;
    static const int32_t outside[] = {1, 264};
    const graft_message half = {"user", NULL};
    char *text = NULL;
    size_t n = 7;
    graft_error err;
    assert_int_equal(graft_tokenize(&tokens, &n, g, "a\xFF", true, true, &err), GRAFT_E_BAD_REQUEST);
    assert_non_null(strstr(err.message, "text: not valid UTF-8"));
    assert_int_equal(graft_tokenize(&tokens, &n, g, NULL, true, true, &err), GRAFT_E_BAD_REQUEST);
    assert_int_equal(graft_detokenize(&text, &n, g, outside, 2, &err), GRAFT_E_BAD_REQUEST);
    assert_non_null(strstr(err.message, "264 is outside 0 to 263"));
    assert_int_equal(graft_detokenize(&text, &n, g, NULL, 1, &err), GRAFT_E_BAD_REQUEST);
    assert_int_equal(graft_apply_template(&text, g, &half, 1, &err), GRAFT_E_BAD_REQUEST);
    assert_int_equal(graft_apply_template(&text, g, &half, 0, &err), GRAFT_E_BAD_REQUEST);
    assert_null(tokens);
    assert_null(text);
    assert_int_equal(n, 7);
    graft_close(g);
}

/* ---- embeddings -------------------------------------------------------------------------------------------- */

typedef struct vector {
    float x[512];
    int n, tokens;
    graft_error error;
} vector;

static vector take_vector(graft_job *job) {
    const graft_result *r = graft_job_wait(job);
    vector v = {.tokens = r->prompt_tokens, .error = r->error};
    const float *x = graft_job_embedding(job, &v.n);
    assert_true((x != NULL) == (r->error.code == 0) && v.n <= 512);
    if (x) {
        assert_int_equal(r->finish, GRAFT_FINISH_STOP);
        memcpy(v.x, x, (size_t)v.n * sizeof *x);
    }
    graft_job_free(job);
    return v;
}

static vector embed(graft *g, const graft_embed_request *r) {
    graft_job *job;
    graft_error err;
    if (graft_embed(&job, g, r, 1, &err)) {
        fail_msg("graft_embed: %s", err.message);
    }
    return take_vector(job);
}

static double product(const vector *a, const vector *b) {
    double sum = 0;
    assert_true(a->n == b->n && a->n > 0);
    for (int i = 0; i < a->n; i++) {
        sum += (double)a->x[i] * (double)b->x[i];
    }
    return sum;
}

static void assert_near(const vector *a, const vector *b) {
    assert_int_equal(a->n, b->n);
    for (int i = 0; i < a->n; i++) {
        assert_true(fabsf(a->x[i] - b->x[i]) < 1e-4f);
    }
}

static graft_embed_request embed_request(const char *text) {
    graft_embed_request r = graft_embed_request_default();
    r.text = text;
    return r;
}

#define WORDS "the quick brown fox jumps over the lazy dog, and the dog does not care at all"

static void test_embedding_kinds(void **state) {
    (void)state;
    graft *g = open_small();
    uint64_t before = graft_own_bytes();
    graft_embed_request r = embed_request(WORDS);
    vector mean = embed(g, &r);
    assert_true(mean.n > 16 && mean.tokens > 40);
    assert_true(fabs(product(&mean, &mean) - 1) < 1e-5);
    r.normalize = false;
    vector plain = embed(g, &r);
    double length = sqrt(product(&plain, &plain));
    assert_true(fabs(length - 1) > 1e-3);
    assert_true(fabs(product(&mean, &plain) / length - 1) < 1e-5); /* the same direction */
    r.pooling = GRAFT_POOL_LAST;
    r.normalize = true;
    vector last = embed(g, &r);
    assert_true(product(&mean, &last) < 0.999);
    int32_t *tokens;
    size_t n;
    assert_int_equal(graft_tokenize(&tokens, &n, g, WORDS, true, true, NULL), 0);
    r.text = NULL;
    r.tokens = tokens;
    r.n_tokens = n;
    vector same = embed(g, &r);
    assert_near(&same, &last);
    r.n_tokens = 1;
    vector one = embed(g, &r);
    r.pooling = GRAFT_POOL_MEAN;
    vector mean_of_one = embed(g, &r);
    assert_near(&one, &mean_of_one);
    graft_free(tokens);
    graft_request answer_request = request("x", 2);
    graft_job *job = submit_or_fail(g, &answer_request);
    int none = 7;
    graft_job_wait(job);
    assert_null(graft_job_embedding(job, &none));
    assert_int_equal(none, 0);
    graft_job_free(job);
    assert_true(graft_own_bytes() == before);
    graft_close(g);
}

/* In small batches, among answers and scores, by rows and grouped: each what it is alone, and others are not changed either. */
static void test_embeddings_in_company(void **state) {
    (void)state;
    enum { N = 12 };
    graft_options o = small_options();
    o.batch = 16;
    graft *g = open_or_fail(&o), *alone = open_small();
    graft_adapter *a[2] = {load_or_fail(g, "adapters/llama/plain"), load_or_fail(alone, "adapters/llama/plain")};
    graft_adapter_use use[2] = {{.adapter = a[0], .scale = 1}, {.adapter = a[1], .scale = 1}};
    for (int apply = GRAFT_APPLY_ROWS; apply <= GRAFT_APPLY_GROUPED; apply++) {
        assert_int_equal(graft_set_apply(g, (graft_apply)apply, NULL), 0);
        graft_embed_request r[N];
        graft_request q[N];
        graft_job *vectors[N], *answers[N];
        for (int i = 0; i < N; i++) {
            r[i] = embed_request((const char *)WORDS + 3 * i);
            r[i].pooling = i % 3 ? GRAFT_POOL_MEAN : GRAFT_POOL_LAST;
            q[i] = request((const char *)WORDS + 2 * i, 3 + i);
            r[i].adapters = q[i].adapters = use;
            r[i].n_adapters = q[i].n_adapters = i % 2;
        }
        for (int i = 0; i < N; i += 3) {
            assert_int_equal(graft_embed(vectors + i, g, r + i, 3, NULL), 0);
            assert_int_equal(graft_submit(answers + i, g, q + i, 3, NULL), 0);
        }
        vector first = {.n = 0};
        for (int i = 0; i < N; i++) {
            vector v = take_vector(vectors[i]);
            answer x = take_answer(answers[i]);
            r[i].adapters = q[i].adapters = use + 1;
            vector w = embed(alone, &r[i]);
            answer y = run_cold(alone, &q[i]);
            assert_near(&v, &w);
            assert_same_answer(&x, &y);
            first = i == 0 ? v : first;
        }
        r[0].adapters = use;
        r[0].n_adapters = 1;
        vector with = embed(g, &r[0]);
        assert_true(product(&first, &with) < 0.9999); /* the adapter counts */
    }
    graft_adapter_free(a[0]);
    graft_adapter_free(a[1]);
    graft_close(g);
    graft_close(alone);
}

static void take_at_end(graft_job *job, const graft_result *r, void *user) {
    (void)r;
    graft_job_embedding(job, user);
}

static void test_embedding_at_its_end(void **state) {
    (void)state;
    graft *g = open_small();
    int n = 0;
    graft_embed_request r = embed_request("a");
    r.on_end = take_at_end;
    r.user = &n;
    vector v = embed(g, &r);
    assert_int_equal(n, v.n);
    graft_close(g);
}

static void test_embedding_is_refused(void **state) {
    (void)state;
    graft *g = open_small();
    int32_t tokens[129] = {0};
    graft_embed_request r[2] = {embed_request("a"), embed_request("a")};
    graft_job *jobs[2];
    graft_error err;
#define EXPECT(code, part, ...) \
    do { \
        r[1] = embed_request("a"); \
        __VA_ARGS__; \
        assert_int_equal(graft_embed(jobs, g, r, 2, &err), GRAFT_E_##code); \
        assert_non_null(strstr(err.message, part)); \
    } while (0)
    EXPECT(BAD_REQUEST, "request 1: size", r[1].size = 1);
    EXPECT(BAD_REQUEST, "pooling", r[1].pooling = (graft_pooling)2);
    EXPECT(BAD_REQUEST, "exactly one of text and tokens", r[1].text = NULL);
    EXPECT(BAD_REQUEST, "UTF-8", r[1].text = "\xFF");
    EXPECT(BAD_REQUEST, "n_adapters", r[1].n_adapters = 9);
    EXPECT(BAD_REQUEST, "adapter_wait_ms", r[1].adapter_wait_ms = -2);
    EXPECT(CONTEXT_LENGTH, "129", r[1].text = NULL; r[1].tokens = tokens; r[1].n_tokens = 129);
#undef EXPECT
    r[1] = embed_request(NULL);
    r[1].tokens = tokens;
    r[1].n_tokens = 128; /* all of the context */
    assert_int_equal(embed(g, &r[1]).error.code, 0);
    graft_close(g);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_end_is_told),
        cmocka_unit_test(test_every_end_is_told),
        cmocka_unit_test(test_refused_is_not_told),
        cmocka_unit_test(test_freed_once_told),
        cmocka_unit_test(test_conversation),
        cmocka_unit_test(test_sliding_window),
        cmocka_unit_test(test_asked_again),
        cmocka_unit_test(test_adapters_never_share),
        cmocka_unit_test(test_adapter_is_replaced),
        cmocka_unit_test(test_common_beginning),
        cmocka_unit_test(test_shared_with_a_running_one),
        cmocka_unit_test(test_eviction),
        cmocka_unit_test(test_scoring_shares_nothing),
        cmocka_unit_test(test_cancelled_leaves_its_prefix),
        cmocka_unit_test(test_random_talks),
        cmocka_unit_test(test_probabilities),
        cmocka_unit_test(test_end_token_is_shown),
        cmocka_unit_test(test_biased_answers),
        cmocka_unit_test(test_refused_fields),
        cmocka_unit_test(test_tokenize_as_requests_do),
        cmocka_unit_test(test_tokens_around),
        cmocka_unit_test(test_apply_template),
        cmocka_unit_test(test_text_is_refused),
        cmocka_unit_test(test_embedding_kinds),
        cmocka_unit_test(test_embeddings_in_company),
        cmocka_unit_test(test_embedding_at_its_end),
        cmocka_unit_test(test_embedding_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
