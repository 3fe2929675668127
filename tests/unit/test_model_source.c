/* What lies at a path: folders, files, and everything that is neither. */
#include "format_helpers.h"
#include "make_adapter.h"

#include "model/sha256.h"
#include "model/source.h"

#include <sys/resource.h>

static const uint64_t plenty = (uint64_t)4 << 30;

static int open_source(gr_source **out, const char *path, uint64_t max_bytes, gr_report *report, graft_error *err) {
    *out = NULL;
    err->code = 0;
    err->message[0] = '\0';
    gr_report_init(report);
    return gr_source_open(out, path, (gr_source_limits){max_bytes, NULL}, report, err);
}

/* Opens, expects `code` and `words` in the message, and that nothing is left over. */
static void refused(const char *path, uint64_t max_bytes, int code, const char *words) {
    gr_source *s;
    gr_report report;
    graft_error err;
    int fds = test_open_fds();
    uint64_t blocks = gr_memory_blocks();
    int rc = open_source(&s, path, max_bytes, &report, &err);
    if (rc != code || !strstr(err.message, words)) {
        fail_msg("%s: wanted %s with \"%s\", got %s \"%s\"", path, graft_error_name(code), words, graft_error_name(rc),
                 err.message);
    }
    assert_int_equal(err.code, code);
    assert_null(s);
    gr_report_finish(&report);
    assert_int_equal(test_open_fds(), fds);
    assert_int_equal(gr_memory_blocks(), blocks);
}

static void a_folder_opens(void **state) {
    (void)state;
    test_dir d = test_dir_make();
    test_adapter *a = test_adapter_make(GR_DTYPE_F32);
    test_write_peft(a, &d);
    test_write_text(&d, "adapter_model.bin", "\x80never opened"); /* beside safetensors it is of no interest */
    gr_source *s;
    gr_report report;
    graft_error err;
    assert_int_equal(open_source(&s, d.path, plenty, &report, &err), 0);
    assert_int_equal(s->format, GR_SOURCE_PEFT);
    assert_int_equal(s->tensors.n, 12);
    assert_int_equal(s->config.r, 4);
    assert_string_equal(s->path, d.path);
    uint8_t hash[32];
    assert_int_equal(gr_sha256_of(hash, a->config, strlen(a->config), &err), 0);
    assert_memory_equal(s->config_hash, hash, 32);
    assert_int_equal(report.n_errors, 0);
    gr_source_close(s);
    gr_report_finish(&report);
    free(a);
    test_dir_remove(&d);
}

static void a_gguf_adapter_opens(void **state) {
    (void)state;
    test_dir d = test_dir_make();
    test_adapter *a = test_gguf_make(GR_DTYPE_F16);
    test_write_gguf(a, &d, "a.gguf", "adapter", "llama", 8, false);
    gr_source *s;
    gr_report report;
    graft_error err;
    assert_int_equal(open_source(&s, test_path(&d, "a.gguf"), plenty, &report, &err), 0);
    assert_int_equal(s->format, GR_SOURCE_GGUF);
    assert_int_equal(s->tensors.n, 4);
    assert_string_equal(s->gguf.architecture, "llama");
    gr_source_close(s);
    gr_report_finish(&report);
    refused(test_path(&d, "a.gguf"), 100, GRAFT_E_TOO_LARGE, "100");
    free(a);
    test_dir_remove(&d);
}

/* The metadata is longer than the first try reads. */
static void long_gguf_metadata_is_read_in_a_second_try(void **state) {
    (void)state;
    test_dir d = test_dir_make();
    struct gguf_context *g = gguf_init_empty();
    gguf_set_val_str(g, "general.type", "adapter");
    gguf_set_val_str(g, "general.architecture", "llama");
    gguf_set_val_str(g, "adapter.type", "lora");
    gguf_set_val_f32(g, "adapter.lora.alpha", 8);
    char *text = malloc(60001);
    memset(text, 'x', 60000);
    text[60000] = '\0';
    for (int i = 0; i < 20; i++) {
        char key[32];
        snprintf(key, sizeof key, "general.note%d", i);
        gguf_set_val_str(g, key, text);
    }
    struct ggml_context *c = ggml_init((struct ggml_init_params){.mem_size = 1 << 20});
    struct ggml_tensor *t = ggml_new_tensor_2d(c, GGML_TYPE_F32, 40, 4);
    memset(t->data, 0, ggml_nbytes(t));
    ggml_set_name(t, "blk.0.attn_q.weight.lora_a");
    gguf_add_tensor(g, t);
    assert_true(gguf_write_to_file(g, test_path(&d, "a.gguf"), false));
    gguf_free(g);
    ggml_free(c);
    free(text);
    gr_source *s;
    gr_report report;
    graft_error err;
    int rc = open_source(&s, test_path(&d, "a.gguf"), plenty, &report, &err);
    assert_int_equal(rc, 0);
    assert_int_equal(s->tensors.n, 1);
    gr_source_close(s);
    gr_report_finish(&report);
    test_dir_remove(&d);
}

/* F01, F02, C01 */
static void missing_things_are_named(void **state) {
    (void)state;
    test_dir d = test_dir_make();
    test_adapter *a = test_adapter_make(GR_DTYPE_F32);
    refused(test_path(&d, "nothing"), plenty, GRAFT_E_ADAPTER_FILE_MISSING, test_path(&d, "nothing")); /* all of the path */
    refused("", plenty, GRAFT_E_ADAPTER_FILE_MISSING, "does not exist");
    assert_int_equal(symlink("nowhere", test_path(&d, "dangling")), 0);
    refused(test_path(&d, "dangling"), plenty, GRAFT_E_ADAPTER_FILE_MISSING, "dangling");
    assert_int_equal(symlink("loop", test_path(&d, "loop")), 0);
    refused(test_path(&d, "loop"), plenty, GRAFT_E_NOT_READABLE, "loop");
    refused(d.path, plenty, GRAFT_E_MISSING_FILE, "adapter_model.safetensors");
    test_write_text(&d, "adapter_config.json", a->config);
    refused(d.path, plenty, GRAFT_E_MISSING_FILE, "adapter_model.safetensors");
    test_write_peft(a, &d);
    unlink(test_path(&d, "adapter_config.json"));
    refused(d.path, plenty, GRAFT_E_CONFIG_MISSING, "adapter_config.json");
    mkdir(test_path(&d, "adapter_config.json"), 0755);
    refused(d.path, plenty, GRAFT_E_NOT_REGULAR_FILE, "adapter_config.json");
    free(a);
    test_dir_remove(&d);
}

/* Neither the folder nor its files can be opened, and that is not their fault. */
static void no_descriptors_are_left(void **state) {
    (void)state;
    test_dir d = test_dir_make();
    test_adapter *a = test_adapter_make(GR_DTYPE_F32);
    test_write_peft(a, &d);
    struct rlimit before, few;
    gr_source *s;
    gr_report report;
    graft_error err;
    int lowest = dup(0), codes[3];
    close(lowest);
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &before), 0);
    for (int more = 0; more < 3; more++) { /* none; the folder; the folder and its weights */
        few = (struct rlimit){.rlim_cur = (rlim_t)(lowest + more), .rlim_max = before.rlim_max};
        setrlimit(RLIMIT_NOFILE, &few);
        codes[more] = open_source(&s, d.path, plenty, &report, &err);
        setrlimit(RLIMIT_NOFILE, &before);
        gr_report_finish(&report);
    }
    for (int more = 0; more < 3; more++) {
        assert_int_equal(codes[more], GRAFT_E_IO_ERROR);
    }
    free(a);
    test_dir_remove(&d);
}

/* F04; root may read everything, so as somebody else */
static void unreadable_files(void **state) {
    (void)state;
    bool root = geteuid() == 0;
    if (root && seteuid(65534) != 0) {
        skip();
    }
    test_dir d = test_dir_make();
    test_adapter *a = test_adapter_make(GR_DTYPE_F32);
    test_write_peft(a, &d);
    chmod(test_path(&d, "adapter_config.json"), 0);
    refused(d.path, plenty, GRAFT_E_NOT_READABLE, "adapter_config.json");
    chmod(test_path(&d, "adapter_model.safetensors"), 0);
    refused(d.path, plenty, GRAFT_E_NOT_READABLE, "adapter_model.safetensors");
    chmod(d.path, 0);
    refused(d.path, plenty, GRAFT_E_NOT_READABLE, "ermission");
    chmod(d.path, 0755);
    free(a);
    test_dir_remove(&d);
    if (root) {
        assert_int_equal(seteuid(0), 0);
    }
}

/* F05, F06, F08 */
static void special_files_and_sizes(void **state) {
    (void)state;
    test_dir d = test_dir_make();
    test_adapter *a = test_adapter_make(GR_DTYPE_F32);
    test_write_peft(a, &d);
    unlink(test_path(&d, "adapter_model.safetensors"));
    assert_int_equal(mkfifo(test_path(&d, "adapter_model.safetensors"), 0644), 0);
    refused(d.path, plenty, GRAFT_E_NOT_REGULAR_FILE, "FIFO");
    refused(test_path(&d, "adapter_model.safetensors"), plenty, GRAFT_E_NOT_REGULAR_FILE, "FIFO");
    refused("/dev/zero", plenty, GRAFT_E_NOT_REGULAR_FILE, "device");
    unlink(test_path(&d, "adapter_model.safetensors"));
    test_write(&d, "adapter_model.safetensors", "", 0);
    assert_int_equal(truncate(test_path(&d, "adapter_model.safetensors"), (off_t)1 << 40), 0);
    refused(d.path, plenty, GRAFT_E_TOO_LARGE, "1099511627776");
    test_write_peft(a, &d);
    struct stat st;
    assert_int_equal(stat(test_path(&d, "adapter_model.safetensors"), &st), 0);
    refused(d.path, (uint64_t)st.st_size - 1, GRAFT_E_TOO_LARGE, "adapter_model.safetensors");
    gr_source *s;
    gr_report report;
    graft_error err;
    assert_int_equal(open_source(&s, d.path, (uint64_t)st.st_size, &report, &err), 0);
    gr_source_close(s);
    gr_report_finish(&report);
    free(a);
    test_dir_remove(&d);
}

/* F23, F26, F27: what lies in a folder in place of the weights */
static void other_weights_in_a_folder(void **state) {
    (void)state;
    const struct { const char *name; int code; const char *words; } cases[] = {
        {"adapter_model.bin", GRAFT_E_PICKLE_REFUSED, "convert"},
        {"adapter_model.pt", GRAFT_E_PICKLE_REFUSED, "safetensors"},
        {"adapter_model.safetensors.index.json", GRAFT_E_SHARDED_UNSUPPORTED, "one file"},
        {"model.safetensors.index.json", GRAFT_E_SHARDED_UNSUPPORTED, "whole model"},
        {"model.safetensors", GRAFT_E_NOT_AN_ADAPTER, "whole model"},
        {"adapters.safetensors", GRAFT_E_HEADER_LENGTH, "header"}, /* mlx-lm's: opened, and no container */
    };
    test_adapter *a = test_adapter_make(GR_DTYPE_F32);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        test_dir d = test_dir_make();
        test_write_text(&d, "adapter_config.json", a->config);
        test_write_text(&d, cases[i].name, "anything");
        refused(d.path, plenty, cases[i].code, cases[i].words);
        test_dir_remove(&d);
    }
    free(a);
}

#define BYTES(s) s, sizeof s - 1

/* F03, F24, F25 in the folder, and some of S: the container's codes come through */
static void weights_that_are_something_else(void **state) {
    (void)state;
    static const struct { const char *bytes; size_t n; int code; } cases[] = {
        {BYTES(""), GRAFT_E_HEADER_TOO_SMALL},
        {BYTES("1234567"), GRAFT_E_HEADER_TOO_SMALL},
        {BYTES("PK\x03\x04 a zip archive of something"), GRAFT_E_UNSUPPORTED_FORMAT},
        {BYTES("\x80\x02}q\x01(X\x06\x00\x00\x00weight"), GRAFT_E_PICKLE_REFUSED},
        {BYTES("GGUF\x03\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"), GRAFT_E_UNSUPPORTED_FORMAT},
        {BYTES("<!DOCTYPE html><html></html>"), GRAFT_E_UNSUPPORTED_FORMAT},
        {BYTES("version https://git-lfs.github.com/spec/v1\noid sha256:00"), GRAFT_E_LFS_POINTER},
        {BYTES("\xff\xff\xff\xff\xff\xff\xff\xff{}"), GRAFT_E_HEADER_LENGTH},
        {BYTES("\0\0\0\0\0\0\0\0{}"), GRAFT_E_HEADER_INVALID},
        {BYTES("\2\0\0\0\0\0\0\0{}"), GRAFT_E_NO_TENSORS},
        {BYTES("\2\0\0\0\0\0\0\0[]"), GRAFT_E_HEADER_INVALID},
        {BYTES("\2\0\0\0\0\0\0\0{,"), GRAFT_E_JSON_SYNTAX},
    };
    test_adapter *a = test_adapter_make(GR_DTYPE_F32);
    test_dir d = test_dir_make();
    test_write_text(&d, "adapter_config.json", a->config);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        test_write(&d, "adapter_model.safetensors", cases[i].bytes, cases[i].n);
        refused(d.path, plenty, cases[i].code, "");
    }
    test_write_peft(a, &d);
    struct stat st;
    stat(test_path(&d, "adapter_model.safetensors"), &st);
    assert_int_equal(truncate(test_path(&d, "adapter_model.safetensors"), st.st_size - 1), 0);
    refused(d.path, plenty, GRAFT_E_TRUNCATED, "");
    assert_int_equal(truncate(test_path(&d, "adapter_model.safetensors"), st.st_size + 1), 0);
    refused(d.path, plenty, GRAFT_E_TRAILING_BYTES, "");
    free(a);
    test_dir_remove(&d);
}

static void a_single_file_that_is_no_gguf_adapter(void **state) {
    (void)state;
    test_dir d = test_dir_make();
    test_adapter *a = test_adapter_make(GR_DTYPE_F32);
    test_write_peft(a, &d);
    refused(test_path(&d, "adapter_model.safetensors"), plenty, GRAFT_E_CONFIG_MISSING, "give the folder");
    refused(test_path(&d, "adapter_config.json"), plenty, GRAFT_E_UNSUPPORTED_FORMAT, "adapter_config.json");
    test_write_text(&d, "weights.pth", "anything");
    refused(test_path(&d, "weights.pth"), plenty, GRAFT_E_PICKLE_REFUSED, "weights.pth");
    test_write_text(&d, "weights", "\x80\x02}q anything at all");
    refused(test_path(&d, "weights"), plenty, GRAFT_E_PICKLE_REFUSED, "");
    test_write_text(&d, "a.gguf", "version https://git-lfs.github.com/spec/v1\n");
    refused(test_path(&d, "a.gguf"), plenty, GRAFT_E_LFS_POINTER, "");
    test_write_text(&d, "page.gguf", "<html><body>not found</body></html>");
    refused(test_path(&d, "page.gguf"), plenty, GRAFT_E_UNSUPPORTED_FORMAT, "page.gguf");
    test_write_text(&d, "empty.gguf", "");
    refused(test_path(&d, "empty.gguf"), plenty, GRAFT_E_HEADER_TOO_SMALL, "");
    /* F26: models */
    test_write_gguf(a, &d, "model.gguf", "model", "llama", 8, false);
    refused(test_path(&d, "model.gguf"), plenty, GRAFT_E_NOT_AN_ADAPTER, "");
    free(a);
    test_dir_remove(&d);
}

static void configs(void **state) {
    (void)state;
    test_dir d = test_dir_make();
    test_adapter *a = test_adapter_make(GR_DTYPE_F32);
    test_write_peft(a, &d);
    test_write_text(&d, "adapter_config.json", "");
    refused(d.path, plenty, GRAFT_E_JSON_SYNTAX, "adapter_config.json");
    test_write_text(&d, "adapter_config.json", "version https://git-lfs.github.com/spec/v1\noid sha256:00\n");
    refused(d.path, plenty, GRAFT_E_LFS_POINTER, "git lfs pull");
    char *big = malloc((1 << 20) + 1);
    memset(big, ' ', (1 << 20) + 1);
    test_write(&d, "adapter_config.json", big, (1 << 20) + 1);
    refused(d.path, plenty, GRAFT_E_JSON_TOO_LARGE, "1048576");
    memcpy(big, a->config, strlen(a->config));
    test_write(&d, "adapter_config.json", big, 1 << 20);
    gr_source *s;
    gr_report report;
    graft_error err;
    assert_int_equal(open_source(&s, d.path, plenty, &report, &err), 0);
    gr_source_close(s);
    gr_report_finish(&report);
    /* well-formed and unusable: the source opens, the report says why */
    test_write_text(&d, "adapter_config.json", "{\"peft_type\":\"LOHA\",\"r\":4,\"lora_alpha\":8}");
    assert_int_equal(open_source(&s, d.path, plenty, &report, &err), 0);
    assert_true(report.n_errors > 0);
    gr_source_close(s);
    gr_report_finish(&report);
    free(big);
    free(a);
    test_dir_remove(&d);
}

static int open_and_close(void *path, graft_error *err) {
    gr_source *s;
    gr_report report;
    int rc = open_source(&s, path, plenty, &report, err);
    if (!rc && report.n_errors > 0) {
        rc = gr_report_result(&report, err);
    }
    gr_source_close(s);
    gr_report_finish(&report);
    return rc;
}

static void every_allocation_may_fail(void **state) {
    (void)state;
    test_dir d = test_dir_make();
    test_adapter *a = test_adapter_make(GR_DTYPE_F32), *g = test_gguf_make(GR_DTYPE_F32);
    test_config_add(a, ",\"alpha_pattern\":{\"q_proj\":4},\"layers_to_transform\":[0,1]");
    test_write_peft(a, &d);
    test_write_gguf(g, &d, "a.gguf", "adapter", "llama", 8, false);
    int fds = test_open_fds();
    torture("folder", open_and_close, d.path);
    torture("GGUF", open_and_close, (void *)(uintptr_t)test_path(&d, "a.gguf"));
    assert_int_equal(test_open_fds(), fds);
    free(a);
    free(g);
    test_dir_remove(&d);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_folder_opens),
        cmocka_unit_test(a_gguf_adapter_opens),
        cmocka_unit_test(long_gguf_metadata_is_read_in_a_second_try),
        cmocka_unit_test(missing_things_are_named),
        cmocka_unit_test(unreadable_files),
        cmocka_unit_test(no_descriptors_are_left),
        cmocka_unit_test(special_files_and_sizes),
        cmocka_unit_test(other_weights_in_a_folder),
        cmocka_unit_test(weights_that_are_something_else),
        cmocka_unit_test(a_single_file_that_is_no_gguf_adapter),
        cmocka_unit_test(configs),
        cmocka_unit_test(every_allocation_may_fail),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
