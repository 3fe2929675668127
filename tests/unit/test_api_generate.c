/* Requests without adapters, through graft.h: what is refused, how answers end, streaming, scoring. */
#include "api_helpers.h"

#include <math.h>
#include <stdatomic.h>
#include <stdio.h>

/* ---- opening -------------------------------------------------------------------------------------------- */

static void expect_open(const graft_options *o, int code, const char *part) {
    graft *g = NULL;
    graft_error err = {0};
    assert_int_equal(graft_open(&g, o, &err), code);
    assert_null(g);
    assert_int_equal(err.code, code);
    if (!strstr(err.message, part)) {
        fail_msg("message is '%s', not '…%s…'", err.message, part);
    }
}

static bool give_up(float fraction, void *user) {
    (void)user;
    return fraction < 0.1f;
}

static void test_options(void **state) {
    (void)state;
    uint64_t before = graft_own_bytes();
    graft_options o;
#define EXPECT(field, value, part) \
    o = small_options(); \
    o.field = value; \
    expect_open(&o, GRAFT_E_BAD_REQUEST, part)
    EXPECT(size, 8, "size");
    EXPECT(model, NULL, "model");
    EXPECT(slots, 0, "slots: 0 is outside 1 to");
    EXPECT(slots, 257, "slots");
    EXPECT(context, -1, "context");
    EXPECT(context, 15, "context");
    EXPECT(context, 1 << 21, "context");
    EXPECT(batch, 15, "batch: 15 is outside 16 to 4096");
    EXPECT(batch, 4097, "batch");
    EXPECT(threads, -1, "threads");
    EXPECT(kv_type, (graft_kv_type)7, "kv_type");
    EXPECT(apply, (graft_apply)3, "apply");
    EXPECT(adapter_type, (graft_adapter_type)3, "adapter_type");
#undef EXPECT
    o = small_options();
    o.slots = 256;
    o.context = 1 << 20;
    expect_open(&o, GRAFT_E_BAD_REQUEST, "slots and context");
    o = small_options(); /* learned positions: one beyond the table, and libllama would end the process */
    o.model = golden("bases/gpt2.gguf");
    o.context = 129;
    expect_open(&o, GRAFT_E_BAD_REQUEST, "learned positions for 128 tokens");
    o = small_options();
    o.model = "/nonexistent/model.gguf";
    expect_open(&o, GRAFT_E_MODEL_MISSING, "model.gguf");
    o = small_options();
    o.model = golden("manifest.json");
    expect_open(&o, GRAFT_E_MODEL_INVALID, "");
    o = small_options();
    o.progress = give_up;
    expect_open(&o, GRAFT_E_CANCELLED, "");
    assert_true(graft_own_bytes() == before);
}

static void test_info(void **state) {
    (void)state;
    uint64_t before = graft_own_bytes();
    graft *g = open_small();
    graft_model_info info;
    graft_model_get_info(g, &info);
    assert_string_equal(info.architecture, "llama");
    assert_int_equal(info.n_vocab, 264);
    assert_int_equal(info.n_embd, 64);
    assert_int_equal(strspn(info.fingerprint, "0123456789abcdef"), 64);
    assert_int_equal(strlen(info.fingerprint), 64);
    assert_int_equal(info.context, 128);
    assert_int_equal(info.slots, 4);
    assert_int_equal(info.threads, 1);
    assert_true(info.adapters_supported);
    assert_int_equal(info.apply, GRAFT_APPLY_ROWS);
    assert_string_not_equal(info.apply_reason, "");
    assert_true(info.weight_bytes > 100000);
    /* 512 cells of n_layer x (k + v) float32, and compute buffers */
    assert_true(info.context_bytes > 512 * 1024 && info.context_bytes < (64 << 20));
    assert_true(graft_own_bytes() > before);
    graft_close(g);
    assert_true(graft_own_bytes() == before);
}

/* ---- what is refused -------------------------------------------------------------------------------------- */

static void expect_refused(graft *g, const graft_request *r, int code, const char *part) {
    graft_job *job = NULL;
    graft_error err = {0};
    int rc = graft_submit(&job, g, r, 1, &err);
    if (rc != code || !strstr(err.message, part)) {
        fail_msg("got %s '%s', not %s '…%s…'", graft_error_name(rc), err.message, graft_error_name(code), part);
    }
    assert_null(job);
}

static void test_fields(void **state) {
    (void)state;
    graft *g = open_small();
    uint64_t before = graft_own_bytes();
    graft_request r;
    static const int32_t good_tokens[] = {1, 2}, bad_tokens[] = {1, 264}, negative[] = {-1};
    static const graft_message half[] = {{"user", NULL}}, invalid[] = {{"user", "\xFF"}};
    static const char *const stops[] = {"ok", ""}, *const null_stop[] = {NULL}, *const invalid_stop[] = {"\xC3"};
    char long_stop[300];
    memset(long_stop, 'x', 257);
    long_stop[257] = '\0';
    const char *const long_stops[] = {long_stop};
#define EXPECT(code, part, ...) \
    do { \
        r = request("hi", 4); \
        __VA_ARGS__; \
        expect_refused(g, &r, GRAFT_E_##code, part); \
    } while (0)
    EXPECT(BAD_REQUEST, "size", r.size = 1);
    EXPECT(BAD_REQUEST, "max_tokens: -1 is outside 0 to", r.max_tokens = -1);
    EXPECT(BAD_REQUEST, "temperature: -0.5 is outside 0 to 100", r.sampling.temperature = -0.5f);
    EXPECT(BAD_REQUEST, "temperature", r.sampling.temperature = 101);
    EXPECT(BAD_REQUEST, "temperature", r.sampling.temperature = NAN);
    EXPECT(BAD_REQUEST, "temperature", r.sampling.temperature = INFINITY);
    EXPECT(BAD_REQUEST, "top_k", r.sampling.top_k = -1);
    EXPECT(BAD_REQUEST, "top_k: 16777217 is outside 0 to 16777216", r.sampling.top_k = (1 << 24) + 1);
    EXPECT(BAD_REQUEST, "top_p", r.sampling.top_p = 1.5f);
    EXPECT(BAD_REQUEST, "top_p", r.sampling.top_p = NAN);
    EXPECT(BAD_REQUEST, "min_p", r.sampling.min_p = -1);
    EXPECT(BAD_REQUEST, "repeat_last_n", r.sampling.repeat_last_n = 65537);
    EXPECT(BAD_REQUEST, "repeat_penalty", r.sampling.repeat_penalty = 0);
    EXPECT(BAD_REQUEST, "frequency_penalty", r.sampling.frequency_penalty = -101);
    EXPECT(BAD_REQUEST, "presence_penalty", r.sampling.presence_penalty = NAN);
    EXPECT(BAD_GRAMMAR, "root", r.sampling.grammar = "toor ::= \"a\"");
    EXPECT(BAD_REQUEST, "n_stop", r.n_stop = 17);
    EXPECT(BAD_REQUEST, "stop", r.n_stop = 1);
    EXPECT(BAD_REQUEST, "1 to 256 bytes", r.stop = stops; r.n_stop = 2);
    EXPECT(BAD_REQUEST, "stop", r.stop = null_stop; r.n_stop = 1);
    EXPECT(BAD_REQUEST, "stop", r.stop = invalid_stop; r.n_stop = 1);
    EXPECT(BAD_REQUEST, "stop", r.stop = long_stops; r.n_stop = 1);
    EXPECT(BAD_REQUEST, "exactly one", r.prompt = NULL);
    EXPECT(BAD_REQUEST, "exactly one", r.tokens = good_tokens; r.n_tokens = 2);
    EXPECT(BAD_REQUEST, "not valid UTF-8", r.prompt = "a\xFF");
    EXPECT(BAD_REQUEST, "tokens: 264 is outside 0 to 263", r.prompt = NULL; r.tokens = bad_tokens; r.n_tokens = 2);
    EXPECT(BAD_REQUEST, "tokens: -1", r.prompt = NULL; r.tokens = negative; r.n_tokens = 1);
    EXPECT(BAD_REQUEST, "n_messages", r.prompt = NULL; r.messages = half);
    EXPECT(BAD_REQUEST, "NULL", r.prompt = NULL; r.messages = half; r.n_messages = 1);
    EXPECT(BAD_REQUEST, "UTF-8", r.prompt = NULL; r.messages = invalid; r.n_messages = 1);
    EXPECT(BAD_REQUEST, "n_adapters", r.n_adapters = 9);
    EXPECT(BAD_REQUEST, "adapters", r.n_adapters = 1);
#undef EXPECT
    graft_job *jobs[3] = {NULL};
    graft_error err;
    graft_request three[] = {request("a", 2), request("b", 2), request("c", -1)};
    assert_int_equal(graft_submit(jobs, g, three, 3, &err), GRAFT_E_BAD_REQUEST);
    assert_non_null(strstr(err.message, "request 2: max_tokens"));
    assert_null(jobs[0]);
    assert_int_equal(graft_submit(jobs, g, three, 0, &err), GRAFT_E_BAD_REQUEST);
    assert_int_equal(graft_submit(jobs, g, three, 3, NULL), GRAFT_E_BAD_REQUEST);
    assert_true(graft_own_bytes() == before);
    graft_close(g);
}

static void test_context_length(void **state) {
    (void)state;
    graft *g = open_small();
    int32_t tokens[128];
    for (int i = 0; i < 128; i++) {
        tokens[i] = i;
    }
    graft_request r = request(NULL, 4);
    r.tokens = tokens;
    r.n_tokens = 128;
    expect_refused(g, &r, GRAFT_E_CONTEXT_LENGTH, "128 tokens, at most 127");
    r.n_tokens = 127; /* one place is left */
    answer a = run(g, &r);
    assert_int_equal(a.finish, GRAFT_FINISH_LENGTH);
    assert_int_equal(a.completion_tokens, 1);
    /* Long texts are refused by their length, before they are tokenised. */
    size_t n = 20 << 20;
    char *text = malloc(n + 1);
    memset(text, 'a', n);
    text[n] = '\0';
    r = request(text, 4);
    expect_refused(g, &r, GRAFT_E_CONTEXT_LENGTH, "20971520 bytes");
    graft_message m[] = {{"user", text}};
    r = request(NULL, 4);
    r.messages = m;
    r.n_messages = 1;
    expect_refused(g, &r, GRAFT_E_CONTEXT_LENGTH, "bytes");
    free(text);
    graft_close(g);
}

/* ---- answers ----------------------------------------------------------------------------------------------- */

static void test_lengths(void **state) {
    (void)state;
    graft *g = open_small();
    graft_request r = request("the thing", 7);
    answer a = run(g, &r);
    assert_int_equal(a.finish, GRAFT_FINISH_LENGTH);
    assert_int_equal(a.completion_tokens, 7);
    assert_int_equal(a.error.code, 0);
    r.max_tokens = 0; /* up to the context's end */
    a = run(g, &r);
    assert_int_equal(a.finish, GRAFT_FINISH_LENGTH);
    assert_int_equal(a.prompt_tokens + a.completion_tokens, 128);
    r.max_tokens = 1000000;
    a = run(g, &r);
    assert_int_equal(a.prompt_tokens + a.completion_tokens, 128);
    graft_close(g);
}

static void test_times_and_counts(void **state) {
    (void)state;
    graft *g = open_small();
    graft_request r = request("one two three four", 5);
    graft_job *job = submit_or_fail(g, &r);
    const graft_result *result = graft_job_wait(job);
    assert_true(result->queue_ms >= 0 && result->prompt_ms > 0);
    assert_true(result->total_ms >= result->queue_ms + result->prompt_ms);
    graft_stats s;
    graft_get_stats(g, &s);
    assert_int_equal(s.prompt_tokens, result->prompt_tokens);
    assert_int_equal(s.decode_tokens, 4); /* the first token comes from the prompt's step, the last is not decoded */
    assert_int_equal(s.decode_steps, 4);
    assert_int_equal(s.prompt_steps, 1);
    assert_int_equal(s.largest_batch, result->prompt_tokens);
    assert_true(s.decode_ms > 0 && s.prompt_ms > 0);
    graft_job_free(job);
    graft_close(g);
}

static void test_empty_prompt(void **state) {
    (void)state;
    graft *g = open_small();
    graft_request r = request("", 3);
    answer a = run(g, &r);
    assert_int_equal(a.prompt_tokens, 1); /* the token that begins texts */
    assert_int_equal(a.completion_tokens, 3);
    graft_close(g);
}

static void test_chat(void **state) {
    (void)state;
    graft *g = open_small();
    graft_message m[] = {{"system", "be short"}, {"user", "hello"}};
    graft_request chat = request(NULL, 6), raw = request(NULL, 6);
    chat.messages = m;
    chat.n_messages = 2;
    raw.prompt = "<|im_start|>system\nbe short<|im_end|>\n<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n";
    answer a = run(g, &chat), b = run(g, &raw);
    assert_int_equal(a.prompt_tokens, b.prompt_tokens);
    assert_same_answer(&a, &b);
    raw.special = false; /* then the markers are plain text */
    b = run(g, &raw);
    assert_true(b.prompt_tokens > a.prompt_tokens + 20);
    graft_close(g);
}

typedef struct stream {
    char text[2048];
    size_t length;
    int calls, most;       /* most: calls after which to stop */
    graft_job *_Atomic to_cancel;
} stream;

static bool on_text(const char *text, size_t length, void *user) {
    stream *s = user;
    assert_true(length > 0 && s->length + length < sizeof s->text);
    memcpy(s->text + s->length, text, length);
    s->length += length;
    s->calls++;
    if (s->to_cancel) {
        graft_job_cancel(s->to_cancel);
    }
    return s->most == 0 || s->calls < s->most;
}

/* A stop string cut out of a known answer. */
static void test_stop(void **state) {
    (void)state;
    graft *g = open_small();
    graft_request r = request("once upon a time", 40);
    answer whole = run(g, &r);
    size_t at = whole.length / 2;
    while (at > 0 && ((unsigned char)whole.text[at] & 0xC0) == 0x80) {
        at--;
    }
    size_t n = 1;
    while (((unsigned char)whole.text[at + n] & 0xC0) == 0x80) {
        n++;
    }
    char stop[8] = {0};
    memcpy(stop, whole.text + at, n);
    const char *const stops[] = {"\x01never\x02", stop};
    r.stop = stops;
    r.n_stop = 2;
    if (!strstr(stop, "\xEF\xBF\xBD")) { /* a replaced byte is none that the model wrote */
        answer cut = run(g, &r);
        assert_int_equal(cut.finish, GRAFT_FINISH_STOP);
        char *first = strstr(whole.text, stop);
        assert_int_equal(cut.length, first - whole.text);
        assert_memory_equal(cut.text, whole.text, cut.length);
    }
    graft_close(g);
}

/* Text that only might have become a stop string is part of the answer once nothing follows. */
static void test_held_text_comes_at_the_end(void **state) {
    (void)state;
    graft *g = open_small();
    graft_request r = request("once upon a time", 12);
    answer whole = run(g, &r);
    size_t at = whole.length - 1;
    while (((unsigned char)whole.text[at] & 0xC0) == 0x80) {
        at--;
    }
    char stop[16];
    snprintf(stop, sizeof stop, "%s\x01", whole.text + at);
    const char *const stops[] = {stop};
    stream s = {.length = 0};
    r.stop = stops;
    r.n_stop = 1;
    r.on_text = on_text;
    r.user = &s;
    answer held = run(g, &r);
    assert_same_answer(&whole, &held);
    assert_int_equal(s.length, whole.length);
    graft_close(g);
}

static void test_grammar(void **state) {
    (void)state;
    graft *g = open_small();
    graft_request r = request("is it so?", 20);
    r.ignore_eos = false;
    r.sampling.grammar = "root ::= \"yes\" | \"no\"";
    answer a = run(g, &r);
    assert_true(strcmp(a.text, "yes") == 0 || strcmp(a.text, "no") == 0);
    assert_int_equal(a.finish, GRAFT_FINISH_STOP);
    r.ignore_eos = true;
    answer b = run(g, &r);
    assert_string_equal(a.text, b.text);
    assert_int_equal(b.finish, GRAFT_FINISH_STOP);
    r.sampling.grammar = "root ::= x\nx ::= \"a\" x \"b\" | \"a\" x \"c\" | \"a\"";
    a = run(g, &r);
    assert_true(a.finish == GRAFT_FINISH_STOP || a.error.code == GRAFT_E_BAD_GRAMMAR);
    graft_close(g);
}

static void test_seeds(void **state) {
    (void)state;
    graft *g = open_small();
    graft_request r = request("dice", 30);
    r.sampling.temperature = 1;
    r.sampling.top_k = 0;
    r.sampling.top_p = 1;
    r.sampling.min_p = 0;
    r.sampling.seed = 5;
    answer a = run(g, &r), b = run(g, &r);
    assert_same_answer(&a, &b);
    r.sampling.seed = 6;
    b = run(g, &r);
    assert_string_not_equal(a.text, b.text);
    graft_close(g);
}

/* ---- streaming and cancelling ------------------------------------------------------------------------------ */

static void test_stream(void **state) {
    (void)state;
    graft *g = open_small();
    const char *const stops[] = {"e ", "th", "\n\n"};
    for (int with_stop = 0; with_stop < 2; with_stop++) {
        for (uint32_t seed = 0; seed < 20; seed++) {
            stream s = {.length = 0};
            graft_request r = request("words", 60);
            r.on_text = on_text;
            r.user = &s;
            r.sampling.temperature = 2;
            r.sampling.seed = seed;
            r.stop = stops;
            r.n_stop = with_stop ? 3 : 0;
            answer a = run(g, &r);
            assert_int_equal(s.length, a.length);
            assert_memory_equal(s.text, a.text, a.length);
            assert_true(s.calls > 1 || with_stop);
            for (size_t i = 0; i < r.n_stop; i++) {
                assert_null(strstr(a.text, stops[i]));
            }
        }
    }
    graft_close(g);
}

static void test_callback_cancels(void **state) {
    (void)state;
    graft *g = open_small();
    stream s = {.most = 3};
    graft_request r = request("words", 100);
    r.on_text = on_text;
    r.user = &s;
    answer a = run(g, &r);
    assert_int_equal(a.finish, GRAFT_FINISH_CANCELLED);
    assert_int_equal(a.error.code, GRAFT_E_CANCELLED);
    assert_int_equal(s.calls, 3);
    assert_memory_equal(a.text, s.text, s.length);
    assert_int_equal(a.length, s.length);
    /* graft_job_cancel is the one function that callbacks may call. */
    stream again = {.most = 0};
    r.user = &again;
    graft_job *job = submit_or_fail(g, &r);
    again.to_cancel = job;
    a = take_answer(job);
    assert_int_equal(a.finish, GRAFT_FINISH_CANCELLED);
    graft_close(g);
}

static void test_cancel(void **state) {
    (void)state;
    graft_options o = small_options();
    o.slots = 1;
    o.context = 1024; /* long enough that the first is still running */
    graft *g = open_or_fail(&o);
    graft_request r = request("a long story", 0);
    graft_job *first = submit_or_fail(g, &r), *second = submit_or_fail(g, &r), *third = submit_or_fail(g, &r);
    graft_job_cancel(second); /* in the queue: ends without a row */
    answer b = take_answer(second);
    assert_int_equal(b.finish, GRAFT_FINISH_CANCELLED);
    assert_int_equal(b.completion_tokens, 0);
    graft_job_cancel(first);
    graft_job_cancel(first);
    answer a = take_answer(first);
    assert_int_equal(a.finish, GRAFT_FINISH_CANCELLED);
    graft_job_free(third); /* cancels, waits */
    r.max_tokens = 3;
    a = run(g, &r); /* the slot is free again */
    assert_int_equal(a.finish, GRAFT_FINISH_LENGTH);
    graft_job *ended = submit_or_fail(g, &r);
    graft_job_wait(ended);
    graft_job_cancel(ended); /* harmless */
    assert_int_equal(graft_job_wait(ended)->finish, GRAFT_FINISH_LENGTH);
    graft_job_free(ended);
    graft_close(g);
}

/* ---- many at once --------------------------------------------------------------------------------------------- */

enum { MANY = 24 };

static void test_many_like_alone(void **state) {
    (void)state;
    graft_options o = small_options();
    o.slots = 5;
    o.batch = 16; /* fewer rows than some prompts have */
    graft *g = open_or_fail(&o);
    graft_request r[MANY];
    char prompts[MANY][64];
    static answer alone[MANY];
    for (int i = 0; i < MANY; i++) {
        snprintf(prompts[i], sizeof prompts[i], "%.*s number %d", 1 + i * 2,
                 "a rather long line of some more words", i);
        r[i] = request(prompts[i], 4 + i);
        alone[i] = run(g, &r[i]);
    }
    graft_job *jobs[MANY];
    graft_error err;
    assert_int_equal(graft_submit(jobs, g, r, MANY, &err), 0);
    for (int i = 0; i < MANY; i++) {
        answer a = take_answer(jobs[i]);
        assert_same_answer(&a, &alone[i]);
    }
    graft_stats s;
    graft_get_stats(g, &s);
    assert_true(s.largest_batch > 5);
    graft_close(g);
}

static void test_demo_model(void **state) {
    (void)state;
    const char *model = getenv("GRAFT_TEST_MODEL");
    if (!model) {
        skip();
    }
    graft_options o = graft_options_default();
    o.model = model;
    o.context = 256;
    o.slots = 2;
    graft *g = open_or_fail(&o);
    graft_message m[] = {{"user", "What is the capital of France?"}};
    graft_request r = graft_request_default();
    r.messages = m;
    r.n_messages = 1;
    answer a = run(g, &r);
    assert_int_equal(a.finish, GRAFT_FINISH_STOP);
    assert_non_null(strstr(a.text, "Paris"));
    r.sampling.grammar = "root ::= \"The answer is \" [A-Z] [a-z]+ \".\"";
    a = run(g, &r);
    assert_non_null(strstr(a.text, "The answer is "));
    assert_int_equal(a.text[a.length - 1], '.');
    graft_close(g);
}

/* ---- scoring ----------------------------------------------------------------------------------------------------- */

typedef struct dump {
    float *logits;
    size_t n;
    int n_vocab;
} dump;

static void on_logits(const float *logits, size_t first, size_t count, int n_vocab, void *user) {
    dump *d = user;
    assert_int_equal(first, d->n); /* in order */
    d->n_vocab = n_vocab;
    memcpy(d->logits + first * (size_t)n_vocab, logits, count * (size_t)n_vocab * sizeof *logits);
    d->n += count;
}

static double log_softmax(const float *logits, int n, int token) {
    double sum = 0, most = logits[0];
    for (int i = 1; i < n; i++) {
        most = logits[i] > most ? logits[i] : most;
    }
    for (int i = 0; i < n; i++) {
        sum += exp(logits[i] - most);
    }
    return logits[token] - most - log(sum);
}

static void test_score(void **state) {
    (void)state;
    graft_options o = small_options();
    o.batch = 16;
    graft *g = open_or_fail(&o);
    uint64_t before = graft_own_bytes();
    static float logits[128 * 264];
    dump d = {.logits = logits};
    graft_score_request r = graft_score_request_default();
    r.text = "the quick brown fox jumps over the lazy dog, and the dog does not care at all";
    r.on_logits = on_logits;
    r.user = &d;
    graft_score_result *s;
    graft_error err;
    assert_int_equal(graft_score(&s, g, &r, &err), 0);
    assert_true(s->n_tokens > 40);
    assert_int_equal(d.n, s->n_tokens);
    assert_true(isnan(s->logprobs[0]));
    double sum = 0;
    char text[256] = "";
    for (size_t i = 0; i < s->n_tokens; i++) {
        strcat(text, s->pieces[i]);
        if (i > 0) {
            double expected = log_softmax(logits + (i - 1) * 264, 264, s->tokens[i]);
            assert_true(fabs(s->logprobs[i] - expected) < 1e-5);
            sum += expected;
        }
    }
    assert_string_equal(text, r.text);
    double perplexity = exp(-sum / (double)(s->n_tokens - 1));
    assert_true(fabs(s->perplexity - perplexity) < 1e-3 * perplexity);
    graft_score_result_free(s);
    assert_true(graft_own_bytes() == before);
    graft_close(g);
}

/* What a greedy answer took is what the logits say: generation and scoring agree. */
static void test_score_agrees_with_greedy(void **state) {
    (void)state;
    graft *g = open_small();
    static float logits[128 * 264];
    dump d = {.logits = logits};
    int32_t tokens[60] = {10, 20, 30};
    size_t n = 3;
    for (; n < 12; n++) { /* one token at a time, each a request of its own */
        d.n = 0;
        graft_score_request r = graft_score_request_default();
        r.tokens = tokens;
        r.n_tokens = n;
        r.on_logits = on_logits;
        r.user = &d;
        graft_score_result *s;
        assert_int_equal(graft_score(&s, g, &r, NULL), 0);
        graft_score_result_free(s);
        const float *last = logits + (n - 1) * 264;
        int best = 0;
        for (int i = 1; i < 260; i++) { /* of those that are no end of text */
            best = last[i] > last[best] ? i : best;
        }
        tokens[n] = best;
    }
    graft_request r = request(NULL, (int)n - 3);
    r.tokens = tokens;
    r.n_tokens = 3;
    answer a = run(g, &r);
    graft_score_request whole = graft_score_request_default();
    whole.tokens = tokens;
    whole.n_tokens = n;
    graft_score_result *s;
    assert_int_equal(graft_score(&s, g, &whole, NULL), 0);
    char text[256] = "";
    for (size_t i = 3; i < n; i++) {
        strcat(text, s->pieces[i]);
    }
    graft_score_result_free(s);
    if (!strstr(a.text, "\xEF\xBF\xBD")) {
        assert_string_equal(a.text, text);
    }
    graft_close(g);
}

static void test_score_refuses(void **state) {
    (void)state;
    graft *g = open_small();
    graft_score_request r = graft_score_request_default();
    graft_score_result *s = NULL;
    graft_error err;
    assert_int_equal(graft_score(&s, g, &r, &err), GRAFT_E_BAD_REQUEST);
    int32_t tokens[129] = {0};
    r.tokens = tokens;
    r.n_tokens = 129;
    assert_int_equal(graft_score(&s, g, &r, &err), GRAFT_E_CONTEXT_LENGTH);
    r.n_tokens = 128; /* all of the context */
    assert_int_equal(graft_score(&s, g, &r, &err), 0);
    graft_score_result_free(s);
    r.n_tokens = 1;
    assert_int_equal(graft_score(&s, g, &r, &err), 0);
    assert_true(isnan(s->perplexity));
    graft_score_result_free(s);
    r.size = 3;
    assert_int_equal(graft_score(&s, g, &r, &err), GRAFT_E_BAD_REQUEST);
    graft_close(g);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_options),
        cmocka_unit_test(test_info),
        cmocka_unit_test(test_fields),
        cmocka_unit_test(test_context_length),
        cmocka_unit_test(test_lengths),
        cmocka_unit_test(test_times_and_counts),
        cmocka_unit_test(test_empty_prompt),
        cmocka_unit_test(test_chat),
        cmocka_unit_test(test_stop),
        cmocka_unit_test(test_held_text_comes_at_the_end),
        cmocka_unit_test(test_grammar),
        cmocka_unit_test(test_seeds),
        cmocka_unit_test(test_stream),
        cmocka_unit_test(test_callback_cancels),
        cmocka_unit_test(test_cancel),
        cmocka_unit_test(test_many_like_alone),
        cmocka_unit_test(test_demo_model),
        cmocka_unit_test(test_score),
        cmocka_unit_test(test_score_agrees_with_greedy),
        cmocka_unit_test(test_score_refuses),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
