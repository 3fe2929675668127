/* src/format/gguf_lora: adapters built in memory, and the catalogue of broken ones. */
#include "format_helpers.h"

#include "base/buffer.h"
#include "format/gguf_lora.h"

#include <math.h>
#include <stdio.h>

/* ---- writing GGUF ------------------------------------------------------------------------------------------ */

enum { U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 };

static void put(gr_buffer *b, uint64_t value, size_t width) {
    for (size_t i = 0; i < width; i++) {
        char byte = (char)(value >> (8 * i));
        gr_buffer_append(b, &byte, 1);
    }
}

static void put_string(gr_buffer *b, const char *s) {
    put(b, strlen(s), 8);
    gr_buffer_puts(b, s);
}

static void put_f32(gr_buffer *b, float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    put(b, bits, 4);
}

static void key(gr_buffer *b, const char *name, uint32_t type) {
    put_string(b, name);
    put(b, type, 4);
}

static void key_string(gr_buffer *b, const char *name, const char *value) {
    key(b, name, STRING);
    put_string(b, value);
}

static void key_f32(gr_buffer *b, const char *name, float value) {
    key(b, name, F32);
    put_f32(b, value);
}

static void tensor(gr_buffer *b, const char *name, uint64_t ne0, uint64_t ne1, uint32_t type, uint64_t offset) {
    put_string(b, name);
    put(b, 2, 4);
    put(b, ne0, 8);
    put(b, ne1, 8);
    put(b, type, 4);
    put(b, offset, 8);
}

static void pad(gr_buffer *b, size_t alignment) {
    while (b->length % alignment) {
        put(b, 0, 1);
    }
}

static void begin(gr_buffer *b, uint32_t version, uint64_t n_tensors, uint64_t n_keys) {
    gr_buffer_init(b, 1 << 26);
    gr_buffer_puts(b, "GGUF");
    put(b, version, 4);
    put(b, n_tensors, 8);
    put(b, n_keys, 8);
}

#define STANDARD_KEYS 4
static void standard_keys(gr_buffer *b) {
    key_string(b, "general.type", "adapter");
    key_string(b, "general.architecture", "llama");
    key_string(b, "adapter.type", "lora");
    key_f32(b, "adapter.lora.alpha", 16.0f);
}

/* A: 3 x 4 in F32, 48 bytes, padded to 64; B: 5 x 3 in F16, 30 bytes, padded to 32. */
static void standard_tensors(gr_buffer *b) {
    tensor(b, "blk.0.attn_q.weight.lora_b", 3, 5, 1, 64);
}

static void standard(gr_buffer *b, uint32_t version) {
    begin(b, version, 2, STANDARD_KEYS);
    standard_keys(b);
    tensor(b, "blk.0.attn_q.weight.lora_a", 4, 3, 0, 0);
    standard_tensors(b);
    pad(b, 32);
    for (int i = 0; i < 64 + 32; i++) {
        put(b, 0, 1);
    }
}

static int parse_copy(gr_gguf_lora *g, const gr_buffer *b, size_t n, uint64_t size, graft_error *err) {
    assert_false(b->failed);
    uint8_t *copy = exact_copy(b->data, n);
    int code = gr_gguf_lora_parse(g, copy, n, size, err);
    free(copy);
    return code;
}

/* Parses and frees the buffer. */
static void expect(const char *name, gr_buffer *b, int wanted) {
    graft_error err = {0};
    gr_gguf_lora g;
    memset(&g, 0x55, sizeof g);
    int code = parse_copy(&g, b, b->length, b->length, &err);
    expect_code(name, code, wanted, &err);
    if (!code) {
        gr_gguf_lora_finish(&g);
    } else {
        assert_int_equal(((uint8_t *)&g)[0], 0x55); /* untouched */
    }
    gr_buffer_finish(b);
}

/* ---- good ones --------------------------------------------------------------------------------------------- */

static void reads_an_adapter(void **state) {
    (void)state;
    for (uint32_t version = 2; version <= 3; version++) { /* G24 */
        gr_buffer b;
        standard(&b, version);
        graft_error err;
        gr_gguf_lora g;
        assert_int_equal(parse_copy(&g, &b, b.length, b.length, &err), 0);
        assert_string_equal(g.architecture, "llama");
        assert_true(g.alpha == 16.0);
        assert_null(g.invocation);
        assert_false(g.has_tokenizer);
        assert_int_equal(g.tensors.n, 2);
        const gr_tensor_info *A = &g.tensors.tensors[0], *B = &g.tensors.tensors[1];
        assert_string_equal(A->name, "blk.0.attn_q.weight.lora_a");
        assert_int_equal(A->n_dims, 2);
        assert_int_equal(A->shape[0], 3); /* ne reversed */
        assert_int_equal(A->shape[1], 4);
        assert_int_equal(A->dtype, GR_DTYPE_F32);
        assert_int_equal(A->size, 48);
        assert_int_equal(A->offset, b.length - 96);
        assert_string_equal(B->name, "blk.0.attn_q.weight.lora_b");
        assert_int_equal(B->shape[0], 5);
        assert_int_equal(B->shape[1], 3);
        assert_int_equal(B->dtype, GR_DTYPE_F16);
        assert_int_equal(B->size, 30);
        assert_int_equal(B->offset, b.length - 32);
        gr_gguf_lora_finish(&g);
        gr_buffer_finish(&b);
    }
    assert_true(gr_gguf_is((const uint8_t *)"GGUF", 4));
    assert_false(gr_gguf_is((const uint8_t *)"GGUF", 3));
    assert_false(gr_gguf_is((const uint8_t *)"GGUG", 4));
}

/* The last tensor's padding may be there in full or in part, or be missing: writers differ. */
static void last_padding_is_optional(void **state) {
    (void)state;
    gr_buffer b;
    standard(&b, 3);
    for (int missing = -1; missing <= 3; missing++) {
        graft_error err = {0};
        gr_gguf_lora g;
        size_t n = b.length - (size_t)(missing > 0 ? missing : 0);
        uint64_t size = missing < 0 ? n + 1 : n;
        int code = parse_copy(&g, &b, n, size, &err);
        int wanted = missing < 0 ? GRAFT_E_TRAILING_BYTES : missing > 2 ? GRAFT_E_TRUNCATED : 0; /* G17, G18 */
        expect_code("padding", code, wanted, &err);
        if (!code) {
            gr_gguf_lora_finish(&g);
        }
    }
    gr_buffer_finish(&b);
}

static void reads_the_table_from_the_beginning_only(void **state) {
    (void)state;
    gr_buffer b;
    standard(&b, 3);
    graft_error err = {0};
    gr_gguf_lora g;
    expect_code("table only", parse_copy(&g, &b, b.length - 96, b.length, &err), 0, &err);
    gr_gguf_lora_finish(&g);
    expect_code("cut table", parse_copy(&g, &b, b.length - 160, b.length, &err), GRAFT_E_TOO_LARGE, &err);
    gr_buffer_finish(&b);
}

/* Keys of every type before the ones that matter, another alignment, aLoRA, a tokenizer. */
static void skips_other_keys(void **state) {
    (void)state;
    gr_buffer b;
    begin(&b, 3, 2, 19 + STANDARD_KEYS);
    static const size_t width[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
    char name[32];
    for (uint32_t type = U8; type <= F64; type++) {
        if (type != STRING && type != ARRAY) {
            sprintf(name, "test.%u", type);
            key(&b, name, type);
            put(&b, 1, width[type]);
        }
    }
    key_string(&b, "general.name", "\x1b[31m");
    key(&b, "tokenizer.ggml.tokens", ARRAY);
    put(&b, STRING, 4);
    put(&b, 2, 8);
    put_string(&b, "a");
    put_string(&b, "");
    key(&b, "empty", ARRAY);
    put(&b, F64, 4);
    put(&b, 0, 8);
    key(&b, "numbers", ARRAY);
    put(&b, I16, 4);
    put(&b, 3, 8);
    put(&b, 0, 6);
    key(&b, "general.alignment", U32);
    put(&b, 64, 4);
    key(&b, "adapter.alora.invocation_tokens", ARRAY);
    put(&b, U32, 4);
    put(&b, 2, 8);
    put(&b, 5, 4);
    put(&b, 6, 4);
    key(&b, "split.count", U16);
    put(&b, 1, 2);
    key_string(&b, "general.base_model.0.name", "x");
    standard_keys(&b);
    tensor(&b, "blk.0.attn_q.weight.lora_b", 3, 5, 30, 0);
    tensor(&b, "blk.0.attn_q.weight.lora_a", 4, 3, 0, 64);
    pad(&b, 64);
    size_t data = b.length;
    for (int i = 0; i < 128; i++) {
        put(&b, 0, 1);
    }
    graft_error err = {0};
    gr_gguf_lora g;
    expect_code("keys", parse_copy(&g, &b, b.length, b.length, &err), 0, &err);
    assert_int_equal(g.n_invocation, 2);
    assert_int_equal(g.invocation[0], 5);
    assert_int_equal(g.invocation[1], 6);
    assert_true(g.has_tokenizer);
    assert_int_equal(g.tensors.tensors[0].offset, data + 64);
    assert_int_equal(g.tensors.tensors[1].offset, data);
    assert_int_equal(g.tensors.tensors[1].dtype, GR_DTYPE_BF16);
    gr_gguf_lora_finish(&g);
    gr_buffer_finish(&b);
}

/* ---- bad ones: header and keys ------------------------------------------------------------------------------- */

static void rejects_versions_and_counts(void **state) {
    (void)state;
    static const uint32_t versions[] = {0, 1, 4, 0x03000000, 0xffffffff}; /* G01 */
    gr_buffer b;
    for (size_t i = 0; i < sizeof versions / sizeof *versions; i++) {
        standard(&b, versions[i]);
        expect("G01 version", &b, GRAFT_E_GGUF_VERSION);
    }
    standard(&b, 3);
    b.data[3] = 'g';
    expect("G01 magic", &b, GRAFT_E_GGUF_VERSION);
    standard(&b, 0x03000000);
    graft_error err;
    gr_gguf_lora g;
    parse_copy(&g, &b, b.length, b.length, &err);
    assert_non_null(strstr(err.message, "big-endian"));
    gr_buffer_finish(&b);

    static const uint64_t counts[] = {UINT64_MAX, (uint64_t)1 << 63, (uint64_t)1 << 32, 1000}; /* G02 */
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
        begin(&b, 3, counts[i], STANDARD_KEYS);
        standard_keys(&b);
        expect("G02 tensors", &b, GRAFT_E_GGUF_COUNTS);
        begin(&b, 3, 1, counts[i]);
        standard_keys(&b);
        expect("G02 keys", &b, GRAFT_E_GGUF_COUNTS);
    }
    begin(&b, 3, 0, STANDARD_KEYS);
    standard_keys(&b);
    expect("no tensors", &b, GRAFT_E_NO_TENSORS);
}

/* A file whose only extra key is written by `write`. */
static void expect_key(const char *name, void (*write)(gr_buffer *b), int wanted) {
    gr_buffer b;
    begin(&b, 3, 1, STANDARD_KEYS + 1);
    standard_keys(&b);
    write(&b);
    tensor(&b, "blk.0.attn_q.weight.lora_a", 4, 3, 0, 0);
    pad(&b, 32);
    for (int i = 0; i < 64; i++) {
        put(&b, 0, 1);
    }
    expect(name, &b, wanted);
}

static void empty_key(gr_buffer *b) {
    key_string(b, "", "x");
}
static void bad_utf8_key(gr_buffer *b) {
    key_string(b, "a\xff", "x");
}
static void bad_utf8_value(gr_buffer *b) {
    key_string(b, "a", "\xc3");
}
static void huge_key(gr_buffer *b) {
    put(b, UINT64_MAX, 8);
}
static void large_key(gr_buffer *b) {
    put(b, (uint64_t)1 << 30, 8);
}
static void long_value(gr_buffer *b) {
    key(b, "a", STRING);
    put(b, 65537, 8);
    for (int i = 0; i < 65537; i++) {
        put(b, 'x', 1);
    }
}
static void longest_value(gr_buffer *b) {
    key(b, "a", STRING);
    put(b, 65536, 8);
    for (int i = 0; i < 65536; i++) {
        put(b, 'x', 1);
    }
}
static void duplicate_key(gr_buffer *b) {
    key_f32(b, "adapter.lora.alpha", 16.0f);
}
static void duplicate_other(gr_buffer *b) {
    key_string(b, "general.type", "adapter");
}
static void type_13(gr_buffer *b) {
    key(b, "a", 13);
    put(b, 0, 8);
}
static void type_minus_1(gr_buffer *b) {
    key(b, "a", 0xffffffff);
    put(b, 0, 8);
}
static void array_of_arrays(gr_buffer *b) {
    key(b, "a", ARRAY);
    put(b, ARRAY, 4);
    put(b, 0, 8);
}
static void array_of_unknown(gr_buffer *b) {
    key(b, "a", ARRAY);
    put(b, 99, 4);
    put(b, 0, 8);
}
static void array_of_2_30_strings(gr_buffer *b) {
    key(b, "a", ARRAY);
    put(b, STRING, 4);
    put(b, (uint64_t)1 << 30, 8);
}
static void array_of_2_61_doubles(gr_buffer *b) {
    key(b, "a", ARRAY);
    put(b, F64, 4);
    put(b, (uint64_t)1 << 61, 8); /* 8 times this wraps to 0 */
}
static void array_beyond_the_end(gr_buffer *b) {
    key(b, "a", ARRAY);
    put(b, F64, 4);
    put(b, 1000, 8);
}

static void rejects_keys(void **state) {
    (void)state;
    expect_key("G03 empty key", empty_key, GRAFT_E_GGUF_STRING);
    expect_key("G03 key not UTF-8", bad_utf8_key, GRAFT_E_GGUF_STRING);
    expect_key("G03 value not UTF-8", bad_utf8_value, GRAFT_E_GGUF_STRING);
    expect_key("G03 key of 2^64-1", huge_key, GRAFT_E_GGUF_STRING);
    expect_key("G03 key of 2^30", large_key, GRAFT_E_GGUF_STRING);
    expect_key("64 KiB + 1", long_value, GRAFT_E_GGUF_STRING);
    expect_key("64 KiB", longest_value, 0);
    expect_key("G04 alpha twice", duplicate_key, GRAFT_E_GGUF_DUPLICATE);
    expect_key("G04 type twice", duplicate_other, GRAFT_E_GGUF_DUPLICATE);
    expect_key("G05 type 13", type_13, GRAFT_E_GGUF_TYPE);
    expect_key("G05 type -1", type_minus_1, GRAFT_E_GGUF_TYPE);
    expect_key("G05 array of arrays", array_of_arrays, GRAFT_E_GGUF_TYPE);
    expect_key("G05 array of type 99", array_of_unknown, GRAFT_E_GGUF_TYPE);
    expect_key("G05 2^30 strings", array_of_2_30_strings, GRAFT_E_GGUF_TYPE);
    expect_key("G05 2^61 doubles", array_of_2_61_doubles, GRAFT_E_GGUF_TYPE);
    expect_key("array beyond the end", array_beyond_the_end, GRAFT_E_TRUNCATED);
}

/* ---- bad ones: what the keys say ------------------------------------------------------------------------------ */

/* Writes the four standard keys but for one, which `write` writes if it is not NULL. */
static void expect_instead(const char *name, const char *instead_of, void (*write)(gr_buffer *b), int wanted) {
    gr_buffer b;
    begin(&b, 3, 1, STANDARD_KEYS - (write ? 0 : 1));
    if (strcmp(instead_of, "general.type") != 0) {
        key_string(&b, "general.type", "adapter");
    }
    if (strcmp(instead_of, "general.architecture") != 0) {
        key_string(&b, "general.architecture", "llama");
    }
    if (strcmp(instead_of, "adapter.type") != 0) {
        key_string(&b, "adapter.type", "lora");
    }
    if (strcmp(instead_of, "adapter.lora.alpha") != 0) {
        key_f32(&b, "adapter.lora.alpha", 1.0f);
    }
    if (write) {
        write(&b);
    }
    tensor(&b, "blk.0.attn_q.weight.lora_a", 4, 3, 0, 0);
    pad(&b, 32);
    for (int i = 0; i < 64; i++) {
        put(&b, 0, 1);
    }
    expect(name, &b, wanted);
}

static void alpha_u32(gr_buffer *b) {
    key(b, "adapter.lora.alpha", U32);
    put(b, 16, 4);
}
static void alpha_f64(gr_buffer *b) {
    key(b, "adapter.lora.alpha", F64);
    put(b, 0x4030000000000000, 8);
}
static void alpha_string(gr_buffer *b) {
    key_string(b, "adapter.lora.alpha", "16");
}
static void alpha_array(gr_buffer *b) {
    key(b, "adapter.lora.alpha", ARRAY);
    put(b, F32, 4);
    put(b, 1, 8);
    put_f32(b, 16);
}
static void alpha_zero(gr_buffer *b) {
    key_f32(b, "adapter.lora.alpha", 0.0f);
}
static void alpha_nan(gr_buffer *b) {
    key_f32(b, "adapter.lora.alpha", NAN);
}
static void alpha_inf(gr_buffer *b) {
    key_f32(b, "adapter.lora.alpha", INFINITY);
}
static void alpha_negative(gr_buffer *b) {
    key_f32(b, "adapter.lora.alpha", -2.0f);
}
static void type_model(gr_buffer *b) {
    key_string(b, "general.type", "model");
}
static void type_int(gr_buffer *b) {
    key(b, "general.type", I32);
    put(b, 0, 4);
}
static void architecture_array(gr_buffer *b) {
    key(b, "general.architecture", ARRAY);
    put(b, STRING, 4);
    put(b, 0, 8);
}
static void architecture_empty(gr_buffer *b) {
    key_string(b, "general.architecture", "");
}
static void architecture_nul(gr_buffer *b) {
    key(b, "general.architecture", STRING);
    put(b, 6, 8);
    gr_buffer_append(b, "llama\0", 6);
}
static void adapter_control(gr_buffer *b) {
    key_string(b, "adapter.type", "control");
}

static void judges_keys(void **state) {
    (void)state;
    expect_instead("G06 alpha u32", "adapter.lora.alpha", alpha_u32, GRAFT_E_GGUF_KEY_TYPE);
    expect_instead("G06 alpha f64", "adapter.lora.alpha", alpha_f64, GRAFT_E_GGUF_KEY_TYPE);
    expect_instead("G06 alpha string", "adapter.lora.alpha", alpha_string, GRAFT_E_GGUF_KEY_TYPE);
    expect_instead("G06 alpha array", "adapter.lora.alpha", alpha_array, GRAFT_E_GGUF_KEY_TYPE);
    expect_instead("G06 type int", "general.type", type_int, GRAFT_E_GGUF_KEY_TYPE);
    expect_instead("G06 architecture array", "general.architecture", architecture_array, GRAFT_E_GGUF_KEY_TYPE);
    expect_instead("F26, G07 model", "general.type", type_model, GRAFT_E_NOT_AN_ADAPTER);
    expect_instead("G07 no type", "general.type", NULL, GRAFT_E_NOT_AN_ADAPTER);
    expect_instead("G07 control vector", "adapter.type", adapter_control, GRAFT_E_NOT_AN_ADAPTER);
    expect_instead("G07 no adapter type", "adapter.type", NULL, GRAFT_E_NOT_AN_ADAPTER);
    expect_instead("no architecture", "general.architecture", NULL, GRAFT_E_MISSING_FIELD);
    expect_instead("empty architecture", "general.architecture", architecture_empty, GRAFT_E_MISSING_FIELD);
    expect_instead("architecture with a NUL", "general.architecture", architecture_nul, GRAFT_E_GGUF_STRING);
    expect_instead("G09 no alpha", "adapter.lora.alpha", NULL, GRAFT_E_ALPHA_MISSING);
    expect_instead("G09 alpha 0", "adapter.lora.alpha", alpha_zero, GRAFT_E_BAD_ALPHA);
    expect_instead("C05 alpha NaN", "adapter.lora.alpha", alpha_nan, GRAFT_E_BAD_ALPHA);
    expect_instead("C05 alpha infinite", "adapter.lora.alpha", alpha_inf, GRAFT_E_BAD_ALPHA);
    expect_instead("alpha negative", "adapter.lora.alpha", alpha_negative, 0);
}

static void align(gr_buffer *b, uint32_t type, uint64_t value) {
    key(b, "general.alignment", type);
    put(b, value, type == U64 ? 8 : 4);
}
static void align_0(gr_buffer *b) {
    align(b, U32, 0);
}
static void align_3(gr_buffer *b) {
    align(b, U32, 3);
}
static void align_48(gr_buffer *b) {
    align(b, U32, 48);
}
static void align_2_31(gr_buffer *b) {
    align(b, U32, 0x80000000);
}
static void align_u64(gr_buffer *b) {
    align(b, U64, 32);
}
static void align_i32(gr_buffer *b) {
    align(b, I32, 32);
}
static void alora(gr_buffer *b, uint32_t type, uint64_t n, size_t there) {
    key(b, "adapter.alora.invocation_tokens", ARRAY);
    put(b, type, 4);
    put(b, n, 8);
    for (size_t i = 0; i < there; i++) {
        put(b, i, 4);
    }
}
static void alora_fine(gr_buffer *b) {
    alora(b, U32, 2, 2);
}
static void alora_empty(gr_buffer *b) {
    alora(b, U32, 0, 0);
}
static void alora_i32(gr_buffer *b) {
    alora(b, I32, 2, 2);
}
static void alora_10m(gr_buffer *b) {
    alora(b, U32, 10000000, 100);
}
static void alora_4097(gr_buffer *b) {
    alora(b, U32, 4097, 4097);
}
static void alora_4096(gr_buffer *b) {
    alora(b, U32, 4096, 4096);
}
static void alora_negative(gr_buffer *b) {
    key(b, "adapter.alora.invocation_tokens", ARRAY);
    put(b, U32, 4);
    put(b, 1, 8);
    put(b, 0x80000000u, 4);
}
static void alora_string(gr_buffer *b) {
    key_string(b, "adapter.alora.invocation_tokens", "x");
}
static void split_3(gr_buffer *b) {
    key(b, "split.count", U16);
    put(b, 3, 2);
}
static void split_string(gr_buffer *b) {
    key_string(b, "split.count", "3");
}

static void judges_optional_keys(void **state) {
    (void)state;
    expect_key("G10 alignment 0", align_0, GRAFT_E_GGUF_ALIGNMENT);
    expect_key("G10 alignment 3", align_3, GRAFT_E_GGUF_ALIGNMENT);
    expect_key("G10 alignment 48", align_48, GRAFT_E_GGUF_ALIGNMENT);
    expect_key("G10 alignment 2^31", align_2_31, GRAFT_E_GGUF_ALIGNMENT);
    expect_key("G10 alignment u64", align_u64, GRAFT_E_GGUF_ALIGNMENT);
    expect_key("G10 alignment i32", align_i32, GRAFT_E_GGUF_ALIGNMENT);
    expect_key("G22 empty", alora_empty, GRAFT_E_GGUF_ALORA);
    expect_key("G22 i32", alora_i32, GRAFT_E_GGUF_ALORA);
    expect_key("G22 10 million", alora_10m, GRAFT_E_GGUF_ALORA);
    expect_key("G22 string", alora_string, GRAFT_E_GGUF_KEY_TYPE);
    expect_key("G22 fine", alora_fine, 0);
    expect_key("G22 4096", alora_4096, 0);
    expect_key("G22 4097", alora_4097, GRAFT_E_GGUF_ALORA);
    expect_key("G22 2^31", alora_negative, GRAFT_E_GGUF_ALORA);
    expect_key("G25 split", split_3, GRAFT_E_SHARDED_UNSUPPORTED);
    expect_key("G25 split string", split_string, GRAFT_E_GGUF_KEY_TYPE);
}

/* ---- bad ones: tensors ------------------------------------------------------------------------------------------ */

/* A file with one tensor in front of the standard B, whose parts are all given; B's offset too. */
typedef struct tensor_case {
    const char *what, *name;
    uint32_t n_dims;
    uint64_t ne[5];
    uint32_t type;
    uint64_t offset, b_offset;
    int code;
} tensor_case;

#define A_NAME "blk.0.attn_q.weight.lora_a"

static const tensor_case tensors[] = {
    {"fine", A_NAME, 2, {4, 3}, 0, 0, 64, 0},
    {"one dimension", A_NAME, 1, {12}, 0, 0, 64, 0},
    {"four dimensions", A_NAME, 4, {2, 2, 1, 3}, 0, 0, 64, 0}, /* G21 is for verification */
    {"G11 no dimensions", A_NAME, 0, {0}, 0, 0, 64, GRAFT_E_GGUF_SHAPE},
    {"G11 five dimensions", A_NAME, 5, {1, 1, 1, 4, 3}, 0, 0, 64, GRAFT_E_GGUF_SHAPE},
    {"G11 2^32-1 dimensions", A_NAME, UINT32_MAX, {4, 3}, 0, 0, 64, GRAFT_E_GGUF_SHAPE},
    {"G11 negative", A_NAME, 2, {UINT64_MAX, 3}, 0, 0, 64, GRAFT_E_GGUF_SHAPE},
    {"G11 zero", A_NAME, 2, {0, 3}, 0, 0, 64, GRAFT_E_GGUF_SHAPE},
    {"G11 zero last", A_NAME, 2, {4, 0}, 0, 0, 64, GRAFT_E_GGUF_SHAPE},
    {"G12 product wraps", A_NAME, 2, {(uint64_t)1 << 33, (uint64_t)1 << 33}, 0, 0, 64, GRAFT_E_GGUF_OVERFLOW},
    {"G12 bytes wrap", A_NAME, 2, {(uint64_t)1 << 31, (uint64_t)1 << 31}, 0, 0, 64, GRAFT_E_GGUF_OVERFLOW},
    {"G12 padded size wraps to 0", A_NAME, 3, {4, 0x3fffffff, 0x40000001}, 0, 0, 0, GRAFT_E_GGUF_OVERFLOW},
    {"large", A_NAME, 2, {(uint64_t)1 << 30, (uint64_t)1 << 30}, 0, 0, (uint64_t)1 << 62, GRAFT_E_TRUNCATED},
    {"two large", A_NAME, 2, {(uint64_t)1 << 60, 1}, 0, 0, (uint64_t)1 << 62, GRAFT_E_TRUNCATED},
    {"G13 type 43", A_NAME, 2, {4, 3}, 43, 0, 64, GRAFT_E_GGUF_TENSOR_TYPE},
    {"G13 removed type", A_NAME, 2, {4, 3}, 4, 0, 64, GRAFT_E_GGUF_TENSOR_TYPE},
    {"G13 removed repacked type", A_NAME, 2, {4, 3}, 31, 0, 64, GRAFT_E_GGUF_TENSOR_TYPE},
    {"G13 negative", A_NAME, 2, {4, 3}, UINT32_MAX, 0, 64, GRAFT_E_GGUF_TENSOR_TYPE},
    {"G14 Q4_K", A_NAME, 2, {256, 3}, 12, 0, 448, GRAFT_E_UNSUPPORTED_DTYPE},
    {"G14 Q8_0", A_NAME, 2, {32, 3}, 8, 0, 128, GRAFT_E_UNSUPPORTED_DTYPE},
    {"I32", A_NAME, 2, {4, 3}, 26, 0, 64, GRAFT_E_UNSUPPORTED_DTYPE},
    {"G16 offset -1", A_NAME, 2, {4, 3}, 0, UINT64_MAX, 64, GRAFT_E_GGUF_OFFSET},
    {"G16 not 0", A_NAME, 2, {4, 3}, 0, 32, 96, GRAFT_E_GGUF_OFFSET},
    {"G16 unaligned", A_NAME, 2, {4, 3}, 0, 0, 48, GRAFT_E_GGUF_OFFSET},
    {"G16 overlap", A_NAME, 2, {4, 3}, 0, 0, 32, GRAFT_E_GGUF_OFFSET},
    {"G16 identical", A_NAME, 2, {4, 3}, 0, 0, 0, GRAFT_E_GGUF_OFFSET},
    {"G16 hole", A_NAME, 2, {4, 3}, 0, 0, 96, GRAFT_E_GGUF_OFFSET},
    {"G04 name twice", "blk.0.attn_q.weight.lora_b", 2, {4, 3}, 0, 0, 64, GRAFT_E_GGUF_DUPLICATE},
    {"G20 63 bytes", "123456789012345678901234567890123456789012345678901234567890123", 2, {4, 3}, 0, 0, 64, 0},
    {"G20 64 bytes", "1234567890123456789012345678901234567890123456789012345678901234", 2, {4, 3}, 0, 0, 64,
     GRAFT_E_GGUF_NAME},
    {"empty name", "", 2, {4, 3}, 0, 0, 64, GRAFT_E_BAD_TENSOR_NAME},
    {"name with an escape", "\x1b[1m", 2, {4, 3}, 0, 0, 64, GRAFT_E_BAD_TENSOR_NAME},
    {"name not UTF-8", "a\xff", 2, {4, 3}, 0, 0, 64, GRAFT_E_GGUF_STRING},
};

static void judges_tensors(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof tensors / sizeof *tensors; i++) {
        const tensor_case *t = &tensors[i];
        gr_buffer b;
        begin(&b, 3, 2, STANDARD_KEYS);
        standard_keys(&b);
        put_string(&b, t->name);
        put(&b, t->n_dims, 4);
        for (uint32_t d = 0; d < t->n_dims && d < 5; d++) {
            put(&b, t->ne[d], 8);
        }
        put(&b, t->type, 4);
        put(&b, t->offset, 8);
        tensor(&b, "blk.0.attn_q.weight.lora_b", 3, 5, 1, t->b_offset);
        pad(&b, 32);
        for (int k = 0; k < 96; k++) {
            put(&b, 0, 1);
        }
        expect(t->what, &b, t->code);
    }
}

/* ---- every cut, every bit, every allocation ------------------------------------------------------------------ */

static void every_truncation_fails(void **state) {
    (void)state;
    gr_buffer b;
    standard(&b, 3);
    for (size_t n = 0; n < b.length - 2; n++) { /* without the last two bytes it is whole: padding */
        graft_error err = {0};
        gr_gguf_lora g;
        assert_int_not_equal(parse_copy(&g, &b, n, n, &err), 0);
    }
    gr_buffer_finish(&b);
}

static void no_bit_flip_harms(void **state) {
    (void)state;
    gr_buffer b;
    standard(&b, 3);
    uint64_t blocks = gr_memory_blocks();
    for (size_t bit = 0; bit < (b.length - 96) * 8; bit++) {
        b.data[bit / 8] = (char)(b.data[bit / 8] ^ (1 << (bit % 8)));
        graft_error err = {0};
        gr_gguf_lora g = {0};
        int code = parse_copy(&g, &b, b.length, b.length, &err);
        for (size_t i = 0; i < g.tensors.n; i++) {
            assert_true(g.tensors.tensors[i].offset + g.tensors.tensors[i].size <= b.length);
        }
        assert_true(code != 0 || (g.tensors.n == 2 && isfinite(g.alpha)));
        gr_gguf_lora_finish(&g);
        b.data[bit / 8] = (char)(b.data[bit / 8] ^ (1 << (bit % 8)));
    }
    assert_int_equal(gr_memory_blocks(), blocks);
    gr_buffer_finish(&b);
}

static int attempt(void *data, graft_error *err) {
    gr_gguf_lora g = {0};
    int code = parse_copy(&g, data, ((gr_buffer *)data)->length, ((gr_buffer *)data)->length, err);
    gr_gguf_lora_finish(&g);
    return code;
}

static void every_allocation_may_fail(void **state) {
    (void)state;
    gr_buffer b;
    standard(&b, 3);
    torture("standard", attempt, &b);
    gr_buffer_finish(&b);
}

static void bounds_the_number(void **state) {
    (void)state;
    for (size_t extra = 0; extra < 2; extra++) {
        gr_buffer b;
        size_t n = GR_MAX_TENSORS + extra;
        begin(&b, 3, n, STANDARD_KEYS);
        standard_keys(&b);
        for (size_t i = 0; i < n; i++) {
            char name[40];
            sprintf(name, "blk.%zu.x.weight.lora_a", n - i);
            tensor(&b, name, 1, 1, 0, i * 32);
        }
        pad(&b, 32);
        uint64_t size = b.length + n * 32;
        graft_error err = {0};
        gr_gguf_lora g = {0};
        int code = parse_copy(&g, &b, b.length, size, &err);
        expect_code("tensors", code, extra ? GRAFT_E_TOO_MANY_TENSORS : 0, &err);
        gr_gguf_lora_finish(&g);
        gr_buffer_finish(&b);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reads_an_adapter),
        cmocka_unit_test(last_padding_is_optional),
        cmocka_unit_test(reads_the_table_from_the_beginning_only),
        cmocka_unit_test(skips_other_keys),
        cmocka_unit_test(rejects_versions_and_counts),
        cmocka_unit_test(rejects_keys),
        cmocka_unit_test(judges_keys),
        cmocka_unit_test(judges_optional_keys),
        cmocka_unit_test(judges_tensors),
        cmocka_unit_test(bounds_the_number),
        cmocka_unit_test(every_truncation_fails),
        cmocka_unit_test(no_bit_flip_harms),
        cmocka_unit_test(every_allocation_may_fail),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
