/* References into stores laid out as Ollama and Hugging Face lay theirs out. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* nftw */
#endif
#include "make_adapter.h"

#include "model/reference.h"

#include <errno.h>
#include <ftw.h>
#include <unistd.h>

static const char digest_a[] = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
static const char commit[] = "0123456789abcdef0123456789abcdef01234567";
static char root[PATH_MAX];  /* of all */
static char ollama[PATH_MAX], hub[PATH_MAX];
static graft_stores stores;

static int remove_one(const char *path, const struct stat *st, int kind, struct FTW *ftw) {
    (void)st, (void)kind, (void)ftw;
    return remove(path);
}

/* ROOT/name with all its folders; one of a few buffers. */
static const char *place(const char *name) {
    static char buffers[4][PATH_MAX];
    static int next;
    char *path = buffers[next++ % 4];
    snprintf(path, PATH_MAX, "%.200s/%.800s", root, name);
    for (char *slash = strchr(path + strlen(root) + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        assert_true(mkdir(path, 0700) == 0 || errno == EEXIST);
        *slash = '/';
    }
    return path;
}

static void put(const char *name, const char *text) {
    FILE *file = fopen(place(name), "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(text, 1, strlen(text), file), strlen(text));
    assert_int_equal(fclose(file), 0);
}

static void link_to(const char *target, const char *name) {
    unlink(place(name));
    assert_int_equal(symlink(target, place(name)), 0);
}

static const char *manifest(const char *type, const char *digest) {
    static char text[1024];
    snprintf(text, sizeof text,
             "{\"schemaVersion\":2,\"config\":{\"digest\":\"sha256:00\",\"size\":1},\"layers\":["
             "{\"mediaType\":\"application/vnd.ollama.image.license\",\"digest\":\"sha256:beef\",\"size\":2},"
             "{\"mediaType\":\"application/vnd.ollama.image.%s\",\"digest\":\"%s\",\"size\":3}]}",
             type, digest);
    return text;
}

static const char *sha(const char *hex) {
    static char text[100];
    snprintf(text, sizeof text, "sha256:%s", hex);
    return text;
}

static int setup(void **state) {
    (void)state;
    char temporary[] = "/tmp/graft-reference-XXXXXX", rest[512];
    assert_non_null(mkdtemp(temporary));
    assert_non_null(realpath(temporary, root));
    snprintf(ollama, sizeof ollama, "%.200s/ollama", root);
    snprintf(hub, sizeof hub, "%.200s/hub", root);
    stores = (graft_stores){.size = sizeof stores, .ollama = ollama, .hf_hub = hub};
    snprintf(rest, sizeof rest, "ollama/blobs/sha256-%s", digest_a);
    put(rest, "GGUF");
    put("ollama/manifests/one.host/library/small/latest", manifest("model", sha(digest_a)));
    put("ollama/manifests/one.host/library/small/q4", manifest("model", sha(digest_a)));
    put("ollama/manifests/one.host/me/mine/latest", manifest("adapter", sha(digest_a)));
    put("secret", "GGUF outside");
    put("hub/models--org--model/refs/main", commit);
    put("hub/models--org--model/blobs/b1", "GGUF");
    snprintf(rest, sizeof rest, "hub/models--org--model/snapshots/%s/model.Q4.gguf", commit);
    link_to("../../blobs/b1", rest);
    snprintf(rest, sizeof rest, "hub/models--org--model/snapshots/%s/README.md", commit);
    link_to("../../blobs/b1", rest);
    return 0;
}

static int teardown(void **state) {
    (void)state;
    return nftw(root, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

static void finds_either(bool adapter, const char *reference, const char *expected) {
    graft_error err = {0};
    char *path = NULL, wanted[PATH_MAX + 2];
    uint64_t blocks = gr_memory_blocks();
    if ((adapter ? gr_find_adapter : gr_find_model)(&path, reference, &stores, &err)) {
        fail_msg("%s: %s: %s", reference, graft_error_name(err.code), err.message);
    }
    snprintf(wanted, sizeof wanted, "%.300s/%.700s", root, expected);
    assert_string_equal(path, wanted);
    gr_free(path);
    assert_int_equal(gr_memory_blocks(), blocks);
}

static void fails_either(bool adapter, const char *reference, int code, const char *words) {
    graft_error err = {0};
    char *path = NULL;
    uint64_t blocks = gr_memory_blocks();
    int fds = test_open_fds();
    int rc = (adapter ? gr_find_adapter : gr_find_model)(&path, reference, &stores, &err);
    if (rc != code || !strstr(err.message, words)) {
        fail_msg("%s: wanted %s with \"%s\", got %s \"%s\"", reference, graft_error_name(code), words, graft_error_name(rc),
                 err.message);
    }
    assert_null(path);
    assert_int_equal(gr_memory_blocks(), blocks);
    assert_int_equal(test_open_fds(), fds);
}

#define finds(reference, expected) finds_either(false, reference, expected)
#define fails(reference, code, words) fails_either(false, reference, code, words)

static void plain_paths(void **state) {
    (void)state;
    const char *const paths[] = {"/no/such/file", "relative", "./hf:org/name", "Ollama:x", "hf", "a:b", "..", " "};
    for (size_t i = 0; i < sizeof paths / sizeof *paths; i++) {
        char *path;
        assert_int_equal(gr_find_model(&path, paths[i], NULL, NULL), 0);
        assert_string_equal(path, paths[i]);
        gr_free(path);
    }
    fails("", GRAFT_E_BAD_REQUEST, "empty");
}

static void ollama_finds(void **state) {
    (void)state;
    char blob[100];
    snprintf(blob, sizeof blob, "ollama/blobs/sha256-%s", digest_a);
    finds("ollama:small", blob);
    finds("ollama:small:q4", blob);
    finds("ollama:library/small:latest", blob);
    finds("ollama:one.host/library/small", blob);
    finds_either(true, "ollama:me/mine", blob);
    fails("ollama:me/mine", GRAFT_E_MODEL_INVALID, "holds no model");
    fails_either(true, "ollama:small", GRAFT_E_NOT_AN_ADAPTER, "holds no adapter");
    fails("ollama:small:q8", GRAFT_E_MODEL_MISSING, "looked for manifests/*/library/small/q8 in ");
    fails_either(true, "ollama:other", GRAFT_E_ADAPTER_FILE_MISSING, "other/latest");
    fails("ollama:no.host/library/small", GRAFT_E_MODEL_MISSING, "manifests/no.host/library/small/latest");
    /* Two hosts: one has to be named. */
    put("ollama/manifests/two.host:5000/library/small/latest", manifest("model", sha(digest_a)));
    fails("ollama:small", GRAFT_E_BAD_REQUEST, "two.host:5000");
    finds("ollama:two.host:5000/library/small", blob);
    finds("ollama:small:q4", blob);
}

static void names_that_cannot_be(void **state) {
    (void)state;
    const char *const bad[] = {
        "ollama:", "ollama:..", "ollama:../../secret", "ollama:/etc/passwd", "ollama:a/../b", "ollama:a//b", "ollama:a/b/c/d",
        "ollama:small:", "ollama::q4", "ollama:small:../x", "ollama:small:a:b", "ollama:%2e%2e/x", "ollama:a b", "ollama:-x",
        "ollama:.hidden", "ollama:a\nb", "ollama:\xff", "ollama:a\\b", "ollama:a/b/",
        "hf:", "hf:org", "hf:/etc/passwd", "hf:../model", "hf:org/..", "hf:org/model/", "hf:org/model/..", "hf:org/model/../x",
        "hf:org/model//x", "hf:org/model/a/./b", "hf:org/model/%2e%2e/x", "hf:org/model@", "hf:org/model@../x", "hf:org/model@a@b",
        "hf:a--b/c", "hf:a/b--c", "hf:org/model/a\\b", "hf:org/model/a\x1b[0m", "hf:org/model/\xff.gguf", "hf:%6frg/model",
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        fails(bad[i], GRAFT_E_BAD_REQUEST, "is not ");
        fails_either(true, bad[i], GRAFT_E_BAD_REQUEST, "is not ");
    }
    char longer[GR_REFERENCE_MAX + 10];
    memset(longer, 'a', sizeof longer);
    longer[sizeof longer - 1] = '\0';
    memcpy(longer, "ollama:", 7);
    fails(longer, GRAFT_E_BAD_REQUEST, "longer");
    longer[7 + 129] = '\0';
    fails(longer, GRAFT_E_BAD_REQUEST, "is not ");
    memcpy(longer, "hf:o/m/", 7);
    memset(longer + 7, 'a', 300);
    longer[307] = '\0';
    fails(longer, GRAFT_E_BAD_REQUEST, "is not ");
}

static void bad_manifests(void **state) {
    (void)state;
    static const char file[] = "ollama/manifests/one.host/library/bad/latest";
    char rest[200], big[600];
    put(file, "");
    fails("ollama:bad", GRAFT_E_JSON_SYNTAX, "manifest");
    put(file, "{\"layers\":[");
    fails("ollama:bad", GRAFT_E_JSON_SYNTAX, "manifest");
    put(file, "[]");
    fails("ollama:bad", GRAFT_E_MODEL_INVALID, "holds no model");
    put(file, "{\"layers\":{\"a\":1}}");
    fails("ollama:bad", GRAFT_E_MODEL_INVALID, "holds no model");
    put(file, "{\"layers\":[1,null,{\"mediaType\":3},{\"mediaType\":\"application/vnd.ollama.image.model\",\"digest\":4}]}");
    fails("ollama:bad", GRAFT_E_MODEL_INVALID, "digest");
    const char *const digests[] = {"", "sha256:", "sha256:abcd", "sha256:../../../secret", "/etc/passwd",
                                   "md5:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
                                   "sha256:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
                                   "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa/",
                                   "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"};
    for (size_t i = 0; i < sizeof digests / sizeof *digests; i++) {
        put(file, manifest("model", digests[i]));
        fails("ollama:bad", GRAFT_E_MODEL_INVALID, "digest");
    }
    snprintf(big, sizeof big, "{\"layers\":[{\"mediaType\":\"application/vnd.ollama.image.model\",\"digest\":\"sha256:%s\"},"
             "{\"mediaType\":\"application/vnd.ollama.image.model\",\"digest\":\"sha256:%s\"}]}", digest_a, digest_a);
    put(file, big);
    fails("ollama:bad", GRAFT_E_MODEL_INVALID, "more than one");
    put(file, manifest("model", "sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"));
    fails("ollama:bad", GRAFT_E_MODEL_MISSING, "blobs/sha256-bbbb");
    snprintf(rest, sizeof rest, "ollama/blobs/sha256-%s", "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb");
    link_to("../../secret", rest);
    fails("ollama:bad", GRAFT_E_OUTSIDE_ROOT, "leads out");
    link_to("sha256-bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb", rest); /* itself */
    fails("ollama:bad", GRAFT_E_MODEL_MISSING, "blobs/");
    unlink(place(rest));
    assert_int_equal(mkdir(place(rest), 0700), 0);
    fails("ollama:bad", GRAFT_E_NOT_REGULAR_FILE, "regular file");
    link_to("../../../../../secret", file);
    fails("ollama:bad", GRAFT_E_OUTSIDE_ROOT, "leads out");
    unlink(place(file));
    assert_int_equal(mkfifo(place(file), 0600), 0);
    fails("ollama:bad", GRAFT_E_NOT_REGULAR_FILE, "regular file");
    unlink(place(file));
    char *huge = gr_alloc((1 << 20) + 2);
    memset(huge, ' ', (1 << 20) + 1);
    huge[(1 << 20) + 1] = '\0';
    put(file, huge);
    gr_free(huge);
    fails("ollama:bad", GRAFT_E_TOO_LARGE, "");
}

static void no_stores(void **state) {
    (void)state;
    char *path;
    graft_error err;
    graft_stores none = {.size = sizeof none};
    assert_int_equal(gr_find_model(&path, "ollama:small", NULL, &err), GRAFT_E_BAD_REQUEST);
    assert_int_equal(gr_find_model(&path, "hf:org/model", &none, &err), GRAFT_E_BAD_REQUEST);
    none.ollama = none.hf_hub = "/no/such/folder";
    assert_int_equal(gr_find_model(&path, "ollama:small", &none, &err), GRAFT_E_MODEL_MISSING);
    assert_non_null(strstr(err.message, "/no/such/folder"));
    assert_int_equal(gr_find_adapter(&path, "hf:org/model", &none, &err), GRAFT_E_ADAPTER_FILE_MISSING);
}

static const char *in_snapshot(const char *name) {
    static char rest[4][600];
    static int next;
    char *out = rest[next++ % 4];
    snprintf(out, sizeof rest[0], "hub/models--org--model/snapshots/%s/%s", commit, name);
    return out;
}

static void hf_finds(void **state) {
    (void)state;
    finds("hf:org/model", in_snapshot("model.Q4.gguf"));
    finds("hf:org/model/model.Q4.gguf", in_snapshot("model.Q4.gguf"));
    finds("hf:org/model@main/model.Q4.gguf", in_snapshot("model.Q4.gguf"));
    char by_commit[100];
    snprintf(by_commit, sizeof by_commit, "hf:org/model@%s", commit);
    finds(by_commit, in_snapshot("model.Q4.gguf"));
    fails("hf:org/model@v2", GRAFT_E_MODEL_MISSING, "looked for models--org--model/refs/v2");
    fails("hf:org/none", GRAFT_E_MODEL_MISSING, "models--org--none/refs/main");
    fails("hf:org/model/none.gguf", GRAFT_E_MODEL_MISSING, "none.gguf");
    put("hub/models--org--model/refs/dev", "0123456789abcdef0123456789abcdef01234567\n");
    finds("hf:org/model@dev", in_snapshot("model.Q4.gguf"));
    /* What is no model does not count; of a split one the first part does. */
    put(in_snapshot("mmproj-model.gguf"), "x");
    put(in_snapshot(".hidden.gguf"), "x");
    finds("hf:org/model", in_snapshot("model.Q4.gguf"));
    link_to("../../../blobs/b1", in_snapshot("Q8/big-00001-of-00002.gguf"));
    link_to("../../../blobs/b1", in_snapshot("Q8/big-00002-of-00002.gguf"));
    fails("hf:org/model", GRAFT_E_BAD_REQUEST, "Q8/big-00001-of-00002.gguf, model.Q4.gguf");
    finds("hf:org/model/Q8/big-00001-of-00002.gguf", in_snapshot("Q8/big-00001-of-00002.gguf"));
    unlink(place(in_snapshot("model.Q4.gguf")));
    finds("hf:org/model", in_snapshot("Q8/big-00001-of-00002.gguf"));
    fails("hf:org/model/Q8", GRAFT_E_NOT_REGULAR_FILE, "regular file");
    unlink(place(in_snapshot("Q8/big-00001-of-00002.gguf")));
    fails("hf:org/model", GRAFT_E_MODEL_MISSING, "*.gguf");
    for (int i = 0; i < 100; i++) {
        char name[40];
        snprintf(name, sizeof name, "model-%03d.gguf", i);
        put(in_snapshot(name), "x");
    }
    fails("hf:org/model", GRAFT_E_BAD_REQUEST, "…");
}

static void hf_hostile(void **state) {
    (void)state;
    link_to("../../../../secret", in_snapshot("model.Q4.gguf"));
    fails("hf:org/model", GRAFT_E_OUTSIDE_ROOT, "leads out");
    fails("hf:org/model/model.Q4.gguf", GRAFT_E_OUTSIDE_ROOT, "leads out");
    put("hub-other/secret", "GGUF"); /* begins as the store's own name does */
    link_to("../../../../hub-other/secret", in_snapshot("model.Q4.gguf"));
    fails("hf:org/model", GRAFT_E_OUTSIDE_ROOT, "leads out");
    link_to("/", in_snapshot("folder"));
    fails("hf:org/model/folder/etc/passwd", GRAFT_E_OUTSIDE_ROOT, "leads out");
    fails_either(true, "hf:org/model/folder", GRAFT_E_OUTSIDE_ROOT, "leads out");
    link_to("../../blobs/none", in_snapshot("model.Q4.gguf"));
    fails("hf:org/model", GRAFT_E_MODEL_MISSING, "model.Q4.gguf");
    const char *const refs[] = {"", "main", "../../../..", "0123456789abcdef0123456789abcdef0123456/",
                                "0123456789ABCDEF0123456789ABCDEF01234567"};
    for (size_t i = 0; i < sizeof refs / sizeof *refs; i++) {
        put("hub/models--org--model/refs/main", refs[i]);
        fails("hf:org/model", GRAFT_E_MODEL_INVALID, "holds no revision");
    }
    put("hub/models--org--model/refs/main", "1111111111111111111111111111111111111111");
    fails("hf:org/model", GRAFT_E_MODEL_MISSING, "snapshots/1111");
    link_to("../../../secret", "hub/models--org--model/refs/main");
    fails("hf:org/model", GRAFT_E_OUTSIDE_ROOT, "leads out");
    link_to("..", in_snapshot("loop"));
    link_to("../../../secret", "hub/models--org--model/snapshots/branch");
    fails("hf:org/model@branch", GRAFT_E_OUTSIDE_ROOT, "leads out");
    link_to("..", "hub/models--org--away");
    fails("hf:org/away", GRAFT_E_MODEL_MISSING, "refs/main");
}

static void hf_adapters(void **state) {
    (void)state;
    fails_either(true, "hf:org/model/none", GRAFT_E_ADAPTER_FILE_MISSING, "none");
    finds_either(true, "hf:org/model", in_snapshot("model.Q4.gguf")); /* the only file; opening it tells what it is */
    put(in_snapshot("sub/adapter_config.json"), "{}");
    finds_either(true, "hf:org/model/sub", in_snapshot("sub"));
    link_to("../../../blobs/b1", in_snapshot("sub/adapter_model.safetensors"));
    finds_either(true, "hf:org/model/sub", in_snapshot("sub"));
    finds_either(true, "hf:org/model/model.Q4.gguf", in_snapshot("model.Q4.gguf"));
    link_to("../../blobs/b1", in_snapshot("adapter_config.json"));
    char folder[200];
    snprintf(folder, sizeof folder, "hub/models--org--model/snapshots/%s", commit);
    finds_either(true, "hf:org/model", folder);
    link_to("../../../../../secret", in_snapshot("sub/adapter_model.safetensors"));
    fails_either(true, "hf:org/model/sub", GRAFT_E_OUTSIDE_ROOT, "leads out");
}

static void allocation_failures(void **state) {
    (void)state;
    const char *const references[] = {"ollama:small", "hf:org/model", "path"};
    for (size_t i = 0; i < 3; i++) {
        int rc = -1;
        for (uint64_t n = 1; rc != 0; n++) {
            char *path = NULL;
            uint64_t blocks = gr_memory_blocks();
            gr_memory_fail_at(n, 1);
            rc = gr_find_model(&path, references[i], &stores, NULL);
            gr_memory_fail_at(0, 0);
            assert_true(n < 100 && (rc == 0 || rc == GRAFT_E_OUT_OF_MEMORY));
            gr_free(path);
            assert_int_equal(gr_memory_blocks(), blocks);
        }
    }
}

#define with_stores(test) cmocka_unit_test_setup_teardown(test, setup, teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        with_stores(plain_paths), with_stores(ollama_finds), with_stores(names_that_cannot_be), with_stores(bad_manifests),
        with_stores(no_stores),   with_stores(hf_finds),     with_stores(hf_hostile),           with_stores(hf_adapters),
        with_stores(allocation_failures),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
