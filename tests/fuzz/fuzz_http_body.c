/*
 * Bodies of the calls that ask for answers, as the server takes them: the first byte of the input chooses the call, the rest is the body.
 * No sockets; a tiny base is open, because some calls look into its template and count tokens.
 */
#include "fuzz.h"
#include "tiny_base.h"

#include "base/memory.h"
#include "graft.h"
#include "internal.h"
#include "ollama_request.h"
#include "openai_request.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static bool (*const calls[])(srv_request *r, srv_fault *f) = {
    openai_take_chat,  openai_take_completion, openai_take_embeddings,  ollama_take_chat,
    ollama_take_generate, ollama_take_embed,   ollama_take_embeddings, ollama_take_model,
};

static server *state;

static void finish(void) {
    graft_close(state->g);
    free(state);
}

static void start(void) {
    state = calloc(1, sizeof *state);
    FUZZ_REQUIRE(state);
    state->g = fuzz_open_base();
    state->o = server_options_default();
    graft_model_get_info(state->g, &state->model);
    strcpy(state->base_id, "llama");
    atexit(finish);
}

static void check_fault(const srv_fault *f) {
    FUZZ_REQUIRE(f->status >= 400 && f->status <= 599 && f->code && f->code[0] && f->message[0]);
    FUZZ_REQUIRE(memchr(f->message, '\0', sizeof f->message) && memchr(f->param, '\0', sizeof f->param));
}

static void check_request(const srv_request *r) {
    FUZZ_REQUIRE(r->n_requests <= (size_t)state->o.limits.choices || r->embeds);
    for (size_t i = 0; i < r->n_requests && r->requests; i++) {
        const graft_request *q = &r->requests[i];
        FUZZ_REQUIRE(isfinite(q->sampling.temperature) && isfinite(q->sampling.top_p) && isfinite(q->sampling.min_p));
        FUZZ_REQUIRE((q->prompt != NULL) + (q->messages != NULL) + (q->tokens != NULL) == 1);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (!state) {
        start();
    }
    if (size == 0) {
        return 0;
    }
    uint64_t held = gr_memory_blocks();
    char *body = gr_strndup((const char *)data + 1, size - 1);
    srv_exchange x = {.s = state, .body = body, .body_length = size - 1};
    srv_fault f = {0};
    srv_request *r = srv_request_new(&x, &f);
    if (r && calls[data[0] % (sizeof calls / sizeof *calls)](r, &f)) {
        check_request(r);
    } else {
        check_fault(&f);
    }
    if (r) {
        srv_request_free(r);
    }
    gr_free(body);
    FUZZ_REQUIRE(gr_memory_blocks() == held);
    return 0;
}
