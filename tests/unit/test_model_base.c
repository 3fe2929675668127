/*
 * Opening base models: the small ones beside the oracle's results, broken ones, and a real one if GRAFT_TEST_MODEL
 * names it. Every adapter of the oracle must get a plan on its base, or be refused where graft does not apply it.
 */
#include "format_helpers.h"
#include "make_adapter.h"

#include "model/adapter.h"
#include "model/llama_log.h"

#include <jansson.h>

#define GOLDEN GRAFT_TEST_DATA "/oracle/golden/"

typedef struct lines {
    int n, errors, debug;
    char last_error[512];
} lines;

static void on_line(const graft_log_entry *entry, void *user) {
    lines *l = user;
    l->n++;
    l->debug += entry->level == GRAFT_LOG_DEBUG;
    assert_null(strchr(entry->text, '\n'));
    assert_int_not_equal(entry->text[strlen(entry->text) - 1], '?'); /* what control characters become */
    if (entry->level == GRAFT_LOG_ERROR) {
        l->errors++;
        snprintf(l->last_error, sizeof l->last_error, "%s", entry->text);
    }
}

static gr_base_model *must_open(const char *path) {
    gr_base_model *m = NULL;
    graft_error err;
    int rc = gr_base_model_open(&m, path, &(gr_base_options){0}, &err);
    if (rc) {
        fail_msg("%s: %s", path, err.message);
    }
    return m;
}

static void refused(const char *path, int code, const char *words) {
    gr_base_model *m = NULL;
    graft_error err;
    uint64_t blocks = gr_memory_blocks();
    int rc = gr_base_model_open(&m, path, &(gr_base_options){0}, &err);
    if (rc != code || !strstr(err.message, words)) {
        fail_msg("%s: wanted %s with \"%s\", got %s \"%s\"", path, graft_error_name(code), words, graft_error_name(rc),
                 rc ? err.message : "");
    }
    assert_null(m);
    assert_int_equal(gr_memory_blocks(), blocks);
}

static bool have(const char *path) {
    return access(path, R_OK) == 0;
}

/* ---- opening -------------------------------------------------------------------------------------------- */

static void a_small_model(void **state) {
    (void)state;
    if (!have(GOLDEN "bases/llama.gguf")) {
        skip();
    }
    uint64_t blocks = gr_memory_blocks();
    gr_base_model *m = must_open(GOLDEN "bases/llama.gguf");
    assert_string_equal(m->architecture, "llama");
    assert_ptr_equal(m->arch, gr_arch_find("llama"));
    assert_int_equal(m->n_layer, llama_model_n_layer(m->llama));
    assert_int_equal(m->n_head, llama_model_n_head(m->llama));
    assert_int_equal(m->n_head_kv, llama_model_n_head_kv(m->llama));
    assert_int_equal(m->n_embd, llama_model_n_embd(m->llama));
    assert_int_equal(m->n_ctx_train, llama_model_n_ctx_train(m->llama));
    assert_int_equal(m->n_vocab, 264);
    assert_true(m->n_head > m->n_head_kv); /* or the tests of row order show little */
    assert_false(m->offloaded);
    for (size_t i = 0; i < m->n_weights; i++) {
        assert_true(i == 0 || strcmp(m->weights[i - 1].name, m->weights[i].name) < 0);
        assert_int_equal(gr_base_model_weight(m, m->weights[i].name), i);
    }
    const gr_weight *q = &m->weights[gr_base_model_weight(m, "blk.1.attn_q.weight")];
    assert_int_equal(q->layer, 1);
    assert_int_equal(q->n_in, m->n_embd);
    const gr_weight *embd = &m->weights[gr_base_model_weight(m, "token_embd.weight")];
    assert_int_equal(embd->layer, -1);
    assert_int_equal(embd->n_out, m->n_vocab);
    const gr_weight *norm = &m->weights[gr_base_model_weight(m, "blk.0.attn_norm.weight")];
    assert_true(norm->vector && !q->vector);
    assert_int_equal(norm->n_in, 1);
    assert_int_equal(norm->n_out, m->n_embd);
    assert_int_equal(gr_base_model_weight(m, ""), -1);
    assert_int_equal(gr_base_model_weight(m, "zzz"), -1);
    gr_base_model_close(m);
    gr_base_model_close(NULL);
    assert_int_equal(gr_memory_blocks(), blocks);
}

static void vocabulary_only(void **state) {
    (void)state;
    if (!have(GOLDEN "bases/llama.gguf")) {
        skip();
    }
    gr_base_model *m = NULL, *full = must_open(GOLDEN "bases/llama.gguf");
    graft_error err;
    assert_int_equal(gr_base_model_open(&m, GOLDEN "bases/llama.gguf", &(gr_base_options){.vocab_only = true}, &err), 0);
    assert_int_equal(m->n_vocab, 264);
    assert_int_equal(m->n_layer, full->n_layer);
    assert_int_equal(m->n_head_kv, full->n_head_kv);
    assert_int_equal(m->n_weights, full->n_weights);
    assert_memory_equal(m->fingerprint, full->fingerprint, 32);
    gr_base_model_close(full);
    gr_base_model_close(m);
}

static void fingerprints_tell_models_apart(void **state) {
    (void)state;
    if (!have(GOLDEN "bases/llama.gguf")) {
        skip();
    }
    gr_base_model *a = must_open(GOLDEN "bases/llama.gguf"), *b = must_open(GOLDEN "bases/llama.gguf"),
                  *untied = must_open(GOLDEN "bases/llama-untied.gguf");
    assert_memory_equal(a->fingerprint, b->fingerprint, 32);
    assert_memory_not_equal(a->fingerprint, untied->fingerprint, 32);
    /* the same tensors under another architecture's name */
    test_dir d = test_dir_make();
    struct ggml_context *data = NULL;
    struct gguf_context *g = gguf_init_from_file(GOLDEN "bases/llama.gguf", (struct gguf_init_params){false, &data});
    struct gguf_context *renamed = gguf_init_empty();
    gguf_set_kv(renamed, g);
    gguf_set_val_str(renamed, "general.architecture", "granite");
    for (int64_t i = 0; i < gguf_get_n_tensors(g); i++) {
        gguf_add_tensor(renamed, ggml_get_tensor(data, gguf_get_tensor_name(g, i)));
    }
    assert_true(gguf_write_to_file(renamed, test_path(&d, "granite.gguf"), false));
    gguf_free(renamed);
    gr_base_model *granite = NULL;
    graft_error err;
    assert_int_equal(gr_base_model_open(&granite, test_path(&d, "granite.gguf"), &(gr_base_options){.vocab_only = true}, &err), 0);
    assert_memory_not_equal(a->fingerprint, granite->fingerprint, 32);
    ggml_free(data);
    gguf_free(g);
    test_dir_remove(&d);
    gr_base_model_close(granite);
    gr_base_model_close(a);
    gr_base_model_close(b);
    gr_base_model_close(untied);
}

static void copy_file(const test_dir *d, const char *from, const char *to, long max) {
    FILE *in = fopen(from, "rb"), *out = fopen(test_path(d, to), "wb");
    assert_true(in && out);
    for (int c; max-- > 0 && (c = fgetc(in)) != EOF;) {
        fputc(c, out);
    }
    fclose(in);
    fclose(out);
}

static void files_that_are_no_model(void **state) {
    (void)state;
    test_dir d = test_dir_make();
    refused(test_path(&d, "none.gguf"), GRAFT_E_MODEL_MISSING, "none.gguf");
    refused(d.path, GRAFT_E_MODEL_INVALID, "folder");
    test_write_text(&d, "empty.gguf", "");
    refused(test_path(&d, "empty.gguf"), GRAFT_E_MODEL_INVALID, "empty");
    test_write_text(&d, "lfs.gguf", "version https://git-lfs.github.com/spec/v1\noid sha256:00\n");
    refused(test_path(&d, "lfs.gguf"), GRAFT_E_MODEL_INVALID, "git lfs pull");
    test_write_text(&d, "text.gguf", "hello, world, this is text");
    refused(test_path(&d, "text.gguf"), GRAFT_E_MODEL_INVALID, "is not a GGUF file");
    test_write_text(&d, "cut.gguf", "GGUF");
    refused(test_path(&d, "cut.gguf"), GRAFT_E_MODEL_INVALID, "cut.gguf: ");
    test_write(&d, "version.gguf", "GGUF\x63\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", 24);
    refused(test_path(&d, "version.gguf"), GRAFT_E_MODEL_INVALID, "version");
    test_adapter *a = test_adapter_make(GR_DTYPE_F32), *g = test_gguf_make(GR_DTYPE_F32);
    test_write_safetensors(a, &d, "model.safetensors", 0);
    refused(test_path(&d, "model.safetensors"), GRAFT_E_MODEL_INVALID, "safetensors");
    test_write_gguf(g, &d, "adapter.gguf", "adapter", "llama", 8, false);
    refused(test_path(&d, "adapter.gguf"), GRAFT_E_MODEL_INVALID, "type \"adapter\"");
    test_write_gguf(g, &d, "bare.gguf", "model", "llama", 8, false); /* libllama misses its keys */
    refused(test_path(&d, "bare.gguf"), GRAFT_E_MODEL_INVALID, "llama.");
    test_write_gguf(g, &d, "alien.gguf", "model", "no-such-arch", 8, false);
    refused(test_path(&d, "alien.gguf"), GRAFT_E_MODEL_INVALID, "no-such-arch");
    free(a);
    free(g);
    if (have(GOLDEN "bases/llama.gguf")) {
        struct stat st;
        stat(GOLDEN "bases/llama.gguf", &st);
        copy_file(&d, GOLDEN "bases/llama.gguf", "short.gguf", (long)st.st_size - 1);
        refused(test_path(&d, "short.gguf"), GRAFT_E_MODEL_INVALID, "short.gguf: ");
        copy_file(&d, GOLDEN "bases/llama.gguf", "head.gguf", 1000);
        refused(test_path(&d, "head.gguf"), GRAFT_E_MODEL_INVALID, "head.gguf: ");
    }
    test_dir_remove(&d);
}

/* ---- split files ---------------------------------------------------------------------------------------- */

/* Writes tensors [first, last) of `from` as part `no` of 2. */
static void write_part(const char *path, const struct gguf_context *from, struct ggml_context *data, int no, int64_t first,
                       int64_t last) {
    struct gguf_context *g = gguf_init_empty();
    if (no == 0) {
        gguf_set_kv(g, from);
    }
    gguf_set_val_u16(g, "split.no", (uint16_t)no);
    gguf_set_val_u16(g, "split.count", 2);
    gguf_set_val_i32(g, "split.tensors.count", (int32_t)gguf_get_n_tensors(from));
    for (int64_t i = first; i < last; i++) {
        gguf_add_tensor(g, ggml_get_tensor(data, gguf_get_tensor_name(from, i)));
    }
    assert_true(gguf_write_to_file(g, path, false));
    gguf_free(g);
}

static void split_models_open_by_their_first_part(void **state) {
    (void)state;
    if (!have(GOLDEN "bases/llama.gguf")) {
        skip();
    }
    test_dir d = test_dir_make();
    gr_base_model *whole = must_open(GOLDEN "bases/llama.gguf");
    struct ggml_context *data = NULL;
    struct gguf_context *g = gguf_init_from_file(GOLDEN "bases/llama.gguf", (struct gguf_init_params){false, &data});
    assert_non_null(g);
    int64_t n = gguf_get_n_tensors(g);
    write_part(test_path(&d, "m-00001-of-00002.gguf"), g, data, 0, 0, n / 3);
    write_part(test_path(&d, "m-00002-of-00002.gguf"), g, data, 1, n / 3, n);
    write_part(test_path(&d, "misnamed.gguf"), g, data, 0, 0, n / 3);
    write_part(test_path(&d, "n-00001-of-00002.gguf"), g, data, 0, 0, n / 3);
    gr_base_model *m = must_open(test_path(&d, "m-00001-of-00002.gguf"));
    assert_int_equal(m->n_weights, whole->n_weights);
    for (size_t i = 0; i < m->n_weights; i++) { /* all but where in the files they are */
        gr_weight *w = &m->weights[i], *other = &whole->weights[i];
        assert_string_equal(w->name, other->name);
        assert_true(w->n_in == other->n_in && w->n_out == other->n_out && w->type == other->type);
    }
    assert_memory_equal(m->fingerprint, whole->fingerprint, 32);
    gr_base_model_close(m);
    gr_base_model_close(whole);
    refused(test_path(&d, "m-00002-of-00002.gguf"), GRAFT_E_MODEL_INVALID, "give the first");
    refused(test_path(&d, "misnamed.gguf"), GRAFT_E_MODEL_INVALID, "00001-of");
    refused(test_path(&d, "n-00001-of-00002.gguf"), GRAFT_E_MODEL_MISSING, "n-00002-of-00002.gguf");
    ggml_free(data);
    gguf_free(g);
    test_dir_remove(&d);
}

/* ---- progress and log ----------------------------------------------------------------------------------- */

static bool give_up(float fraction, void *user) {
    (void)fraction;
    ++*(int *)user;
    return false;
}

static void opening_can_be_given_up(void **state) {
    (void)state;
    if (!have(GOLDEN "bases/llama.gguf")) {
        skip();
    }
    int calls = 0;
    gr_base_model *m = NULL;
    graft_error err;
    gr_base_options options = {.progress = give_up, .progress_user = &calls};
    expect_code("cancel", gr_base_model_open(&m, GOLDEN "bases/llama.gguf", &options, &err), GRAFT_E_CANCELLED, &err);
    assert_true(calls > 0);
    assert_null(m);
}

static void the_last_opener_has_the_log(void **state) {
    (void)state;
    if (!have(GOLDEN "bases/llama.gguf")) {
        skip();
    }
    lines first = {0}, second = {0};
    gr_log log1 = {on_line, &first}, log2 = {on_line, &second};
    gr_base_model *a = NULL, *b = NULL;
    graft_error err;
    assert_int_equal(gr_base_model_open(&a, GOLDEN "bases/llama.gguf", &(gr_base_options){.log = &log1}, &err), 0);
    assert_true(first.debug > 10);
    int before = first.n;
    assert_int_equal(gr_base_model_open(&b, GOLDEN "bases/qwen3.gguf", &(gr_base_options){.log = &log2}, &err), 0);
    assert_int_equal(first.n, before);
    assert_true(second.n > 10);
    gr_base_model_close(a); /* does not take the log from b */
    before = second.n;
    gr_base_model *c = llama_model_load_from_file("/nonexistent", llama_model_default_params()) ? a : NULL;
    assert_null(c);
    assert_true(second.n > before && second.errors > 0);
    gr_base_model_close(b);
    before = second.n;
    llama_model_load_from_file("/nonexistent", llama_model_default_params());
    assert_int_equal(second.n, before);
}

typedef struct attempt {
    const char *path;
} attempt;

static int open_and_close(void *data, graft_error *err) {
    gr_base_model *m = NULL;
    int rc = gr_base_model_open(&m, ((attempt *)data)->path, &(gr_base_options){.vocab_only = true}, err);
    gr_base_model_close(m);
    return rc;
}

static void every_allocation_may_fail(void **state) {
    (void)state;
    if (!have(GOLDEN "bases/llama.gguf")) {
        skip();
    }
    torture("open", open_and_close, &(attempt){GOLDEN "bases/llama.gguf"});
}

/* ---- the oracle's adapters ------------------------------------------------------------------------------ */

/* Number of LoRA matrices that the file holds: every name with lora_A or lora_B in it. */
static size_t count_matrices(const gr_source *s) {
    size_t n = 0;
    for (size_t i = 0; i < s->tensors.n; i++) {
        n += strstr(s->tensors.tensors[i].name, "lora_") != NULL;
    }
    return n;
}

static void check_case(const gr_base_model *base, const char *path, const char *kind, bool refused) {
    gr_source *source = NULL;
    gr_plan *plan = NULL;
    gr_report report;
    graft_error err = {0};
    gr_report_init(&report);
    int rc = gr_source_open(&source, path, (gr_source_limits){(uint64_t)1 << 30, NULL}, &report, &err);
    if (!rc) {
        rc = gr_verify(&plan, base, source, &report, &err);
    }
    bool wanted = !refused && base->arch;
    if ((rc == 0) != wanted) {
        fail_msg("%s: wanted %s, got %s %s", path, wanted ? "a plan" : "a refusal", graft_error_name(rc), err.message);
    }
    if (rc == 0) {
        if (!kind) {
            assert_int_equal(plan->n * 2, count_matrices(source));
        }
        gr_adapter *a = NULL;
        if (gr_adapter_build(&a, plan, GRAFT_TYPE_F16, &err) != 0) {
            fail_msg("%s: %s", path, err.message);
        }
        if (!kind) {
            assert_int_equal(a->n_modules, plan->n);
        }
        assert_false(a->no_effect);
        gr_adapter_release(a);
    }
    gr_plan_free(plan);
    gr_source_close(source);
    gr_report_finish(&report);
}

static void every_case_of_the_oracle(void **state) {
    (void)state;
    if (!have(GOLDEN "manifest.json")) {
        skip();
    }
    json_t *manifest = json_load_file(GOLDEN "manifest.json", 0, NULL), *base, *test;
    assert_non_null(manifest);
    json_t *for_ever = json_object_get(manifest, "refused_for_ever");
    size_t i, k, n_planned = 0, n_refused = 0;
    uint64_t blocks = gr_memory_blocks();
    json_array_foreach(json_object_get(manifest, "bases"), i, base) {
        const char *name = json_string_value(json_object_get(base, "base"));
        char path[1024];
        snprintf(path, sizeof path, GOLDEN "%s", json_string_value(json_object_get(base, "gguf")));
        gr_base_model *m = must_open(path);
        assert_string_equal(m->architecture, json_string_value(json_object_get(base, "architecture")));
        json_array_foreach(json_object_get(manifest, "cases"), k, test) {
            if (strcmp(json_string_value(json_object_get(test, "base")), name) == 0) {
                const char *kind = json_string_value(json_array_get(json_object_get(test, "kinds"), 0));
                bool refused = kind && json_object_get(for_ever, kind);
                snprintf(path, sizeof path, GOLDEN "%s", json_string_value(json_object_get(test, "adapter")));
                check_case(m, path, kind, refused);
                *(refused ? &n_refused : &n_planned) += 1;
            }
        }
        gr_base_model_close(m);
    }
    print_message("%zu adapters planned, %zu refused\n", n_planned, n_refused);
    assert_true(n_planned > 30 && n_refused > 5);
    assert_int_equal(gr_memory_blocks(), blocks);
    json_decref(manifest);
}

/* ---- a real model --------------------------------------------------------------------------------------- */

static void the_model_given_by_the_environment(void **state) {
    (void)state;
    const char *path = getenv("GRAFT_TEST_MODEL");
    if (!path) {
        skip();
    }
    gr_base_model *m = must_open(path), *again = must_open(path);
    assert_memory_equal(m->fingerprint, again->fingerprint, 32);
    gr_base_model_close(again);
    assert_non_null(m->arch);
    assert_int_equal(m->n_layer, llama_model_n_layer(m->llama));
    assert_int_equal(m->n_vocab, m->weights[gr_base_model_weight(m, "token_embd.weight")].n_out);
    assert_true(m->weight_bytes > 0);
    assert_true(m->description[0] != '\0');
    for (int layer = 0; layer < m->n_layer; layer++) {
        for (size_t r = 0; r < m->arch->rules[GR_RULES_LINEAR].n; r++) {
            char name[64];
            snprintf(name, sizeof name, "blk.%d.%s", layer, m->arch->rules[GR_RULES_LINEAR].list[r].weight);
            int id = gr_base_model_weight(m, name);
            bool fused = strstr(name, "attn_qkv") != NULL; /* or split: one of the two is there */
            assert_true(id >= 0 || fused);
            assert_true(id < 0 || m->weights[id].layer == layer);
        }
    }
    if (strstr(path, "SmolLM2-135M")) {
        assert_int_equal(m->n_layer, 30);
        assert_int_equal(m->n_weights, 272); /* 7 and 2 norms in each layer, the tied embedding, the last norm */
        assert_int_equal(m->n_head, 9);
        assert_int_equal(m->n_head_kv, 3);
        const gr_weight *down = &m->weights[gr_base_model_weight(m, "blk.29.ffn_down.weight")];
        assert_int_equal(down->n_in, 1536);
        assert_int_equal(down->n_out, 576);
    }
    gr_base_model_close(m);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_small_model),
        cmocka_unit_test(vocabulary_only),
        cmocka_unit_test(fingerprints_tell_models_apart),
        cmocka_unit_test(files_that_are_no_model),
        cmocka_unit_test(split_models_open_by_their_first_part),
        cmocka_unit_test(opening_can_be_given_up),
        cmocka_unit_test(the_last_opener_has_the_log),
        cmocka_unit_test(every_allocation_may_fail),
        cmocka_unit_test(every_case_of_the_oracle),
        cmocka_unit_test(the_model_given_by_the_environment),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
