/*
 * A PEFT folder loaded over a tiny base and used: the input is adapter_config.json's length (u32, little-endian), its bytes, and those of
 * adapter_model.safetensors. What is refused has a code; what is accepted generates 8 tokens and scores a text, with no NaN among the
 * logits, or fails with a code.
 */
#include "fuzz.h"
#include "tiny_base.h"

#include "graft.h"
#include "load_mutator.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { NEW_TOKENS = 8 };

static graft *base;
static char folder[64], config_path[96], weights_path[96];
static size_t n_accepted;

static void finish(void) {
    graft_close(base);
    unlink(config_path);
    unlink(weights_path);
    rmdir(folder);
    fprintf(stderr, "load: %zu accepted and used\n", n_accepted);
}

static void start(void) {
    base = fuzz_open_base();
    snprintf(folder, sizeof folder, "/tmp/graft-fuzz-XXXXXX");
    FUZZ_REQUIRE(mkdtemp(folder) != NULL);
    snprintf(config_path, sizeof config_path, "%s/adapter_config.json", folder);
    snprintf(weights_path, sizeof weights_path, "%s/adapter_model.safetensors", folder);
    atexit(finish);
}

static void write_file(const char *path, const uint8_t *bytes, size_t n) {
    FILE *f = fopen(path, "wb");
    FUZZ_REQUIRE(f && fwrite(bytes, 1, n, f) == n && fclose(f) == 0);
}

static void see_token(const graft_token *token, void *user) {
    int *n = user;
    FUZZ_REQUIRE(!isnan(token->chosen.logprob) && token->chosen.logprob <= 0.001f);
    ++*n;
}

static void see_logits(const float *logits, size_t first, size_t count, int n_vocab, void *user) {
    bool *bad = user;
    (void)first;
    for (size_t i = 0; i < count * (size_t)n_vocab; i++) {
        *bad |= isnan(logits[i]) || logits[i] == INFINITY;
    }
}

static void generate(const graft_adapter_use *use) {
    graft_request r = graft_request_default();
    graft_job *job;
    graft_error err = {0};
    int seen = 0;
    r.adapters = use;
    r.n_adapters = 1;
    r.prompt = "Once upon";
    r.max_tokens = NEW_TOKENS;
    r.ignore_eos = true;
    r.on_token = see_token;
    r.user = &seen;
    int code = graft_submit(&job, base, &r, 1, &err);
    if (code) {
        fuzz_check_error(code, &err);
        return;
    }
    const graft_result *result = graft_job_wait(job);
    if (result->error.code) {
        fuzz_check_error(result->error.code, &result->error);
    } else {
        FUZZ_REQUIRE(result->completion_tokens == NEW_TOKENS && seen == NEW_TOKENS);
    }
    graft_job_free(job);
}

static void score(const graft_adapter_use *use) {
    graft_score_request r = graft_score_request_default();
    graft_score_result *result;
    graft_error err = {0};
    bool bad = false;
    r.adapters = use;
    r.n_adapters = 1;
    r.text = "upon a time";
    r.on_logits = see_logits;
    r.user = &bad;
    int code = graft_score(&result, base, &r, &err);
    if (code) {
        fuzz_check_error(code, &err);
        return;
    }
    FUZZ_REQUIRE(!bad);
    graft_score_result_free(result);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    fuzz_folder parts;
    if (!fuzz_folder_split(&parts, data, size)) {
        return 0;
    }
    if (!base) {
        start();
    }
    write_file(config_path, parts.config, parts.config_length);
    write_file(weights_path, parts.weights, parts.weights_length);
    graft_adapter *adapter;
    graft_error err = {0};
    int code = graft_adapter_open(&adapter, base, folder, &err);
    if (code) {
        fuzz_check_error(code, &err);
        return 0;
    }
    graft_adapter_use use = {.adapter = adapter, .scale = 1};
    generate(&use);
    score(&use);
    graft_adapter_free(adapter);
    n_accepted++;
    return 0;
}

#ifdef GRAFT_LIBFUZZER
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned int seed) {
    return fuzz_mutate_folder(data, size, max_size, seed);
}
#endif
