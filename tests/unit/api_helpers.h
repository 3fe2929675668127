/* For tests through the public API alone: opening small bases, running requests, comparing texts. */
#ifndef API_HELPERS_H
#define API_HELPERS_H

#include "graft.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "engine_helpers.h"

/* The defaults of these tests: the small llama in float32 throughout, so that company changes no answer. */
static inline graft_options small_options(void) {
    graft_options o = graft_options_default();
    o.model = golden("bases/llama.gguf");
    o.slots = 4;
    o.context = 128;
    o.batch = 64;
    o.threads = 1;
    o.kv_type = GRAFT_KV_F32;
    o.adapter_type = GRAFT_TYPE_F32;
    return o;
}

static inline graft *open_or_fail(const graft_options *o) {
    graft *g = NULL;
    graft_error err;
    if (graft_open(&g, o, &err)) {
        fail_msg("graft_open: %s", err.message);
    }
    return g;
}

static inline graft *open_small(void) {
    graft_options o = small_options();
    return open_or_fail(&o);
}

static inline graft_adapter *load_or_fail(graft *g, const char *name) {
    graft_adapter *a = NULL;
    graft_error err;
    if (graft_adapter_open(&a, g, golden(name), &err)) {
        fail_msg("graft_adapter_open %s: %s", name, err.message);
    }
    return a;
}

static inline graft_request request(const char *prompt, int max_tokens) {
    graft_request r = graft_request_default();
    r.prompt = prompt;
    r.max_tokens = max_tokens;
    r.ignore_eos = true;
    return r;
}

static inline graft_job *submit_or_fail(graft *g, const graft_request *r) {
    graft_job *job = NULL;
    graft_error err;
    if (graft_submit(&job, g, r, 1, &err)) {
        fail_msg("graft_submit: %s", err.message);
    }
    return job;
}

typedef struct answer {
    char text[2048];
    size_t length;
    int prompt_tokens, cached_tokens, completion_tokens;
    graft_finish finish;
    graft_error error;
} answer;

/* Waits, copies, frees. */
static inline answer take_answer(graft_job *job) {
    const graft_result *r = graft_job_wait(job);
    answer a = {.length = r->text_length, .prompt_tokens = r->prompt_tokens, .cached_tokens = r->cached_tokens,
                .completion_tokens = r->completion_tokens, .finish = r->finish, .error = r->error};
    assert_true(r->text_length < sizeof a.text);
    assert_int_equal(r->text[r->text_length], '\0');
    memcpy(a.text, r->text, r->text_length + 1);
    graft_job_free(job);
    return a;
}

static inline answer run(graft *g, const graft_request *r) {
    return take_answer(submit_or_fail(g, r));
}

static inline void assert_same_answer(const answer *a, const answer *b) {
    assert_int_equal(a->finish, b->finish);
    assert_int_equal(a->length, b->length);
    assert_memory_equal(a->text, b->text, a->length);
    assert_int_equal(a->completion_tokens, b->completion_tokens);
}

#endif
