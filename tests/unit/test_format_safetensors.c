/* src/format/safetensors: the catalogue of broken containers, and that whole ones are read as they are. */
#include "format_helpers.h"

#include "base/buffer.h"
#include "format/safetensors.h"

#include <stdio.h>

/* ---- whole files in memory -------------------------------------------------------------------------------- */

/* Header with its length in front, then `data` zero bytes. */
typedef struct file {
    uint8_t *bytes;
    size_t n;
} file;

static file make_file(const char *header, size_t header_length, size_t data) {
    file f = {.n = 8 + header_length + data};
    f.bytes = calloc(1, f.n);
    assert_non_null(f.bytes);
    for (int i = 0; i < 8; i++) {
        f.bytes[i] = (uint8_t)((uint64_t)header_length >> (8 * i));
    }
    memcpy(f.bytes + 8, header, header_length);
    return f;
}

/* Reads bytes as the loader does: length from the first 16, then the header. `size` may differ from what is there. */
static int read_bytes(gr_tensor_list *out, const uint8_t *bytes, size_t n, uint64_t size, graft_error *err) {
    uint64_t length;
    uint8_t *first = exact_copy(bytes, n < 16 ? n : 16);
    int code = gr_safetensors_header_length(&length, first, n < 16 ? n : 16, size, err);
    free(first);
    if (code) {
        return code;
    }
    assert_true(length <= size - 8);
    if (length > n - 8) {
        return GRAFT_E_CHANGED_WHILE_READING; /* the caller's read would fail */
    }
    char *header = exact_copy(bytes + 8, (size_t)length);
    code = gr_safetensors_parse(out, header, (size_t)length, size, err);
    free(header);
    return code;
}

static int read_text(gr_tensor_list *out, const char *header, size_t data, graft_error *err) {
    file f = make_file(header, strlen(header), data);
    int code = read_bytes(out, f.bytes, f.n, f.n, err);
    free(f.bytes);
    return code;
}

typedef struct header_case {
    const char *name, *header;
    size_t data;
    int code;
} header_case;

static void run(const header_case *cases, size_t n) {
    for (size_t i = 0; i < n; i++) {
        graft_error err = {0};
        gr_tensor_list l = {0};
        int code = read_text(&l, cases[i].header, cases[i].data, &err);
        expect_code(cases[i].name, code, cases[i].code, &err);
        assert_true(code == 0 || (!l.tensors && l.n == 0));
        gr_tensor_list_finish(&l);
    }
}

#define COUNT(a) (sizeof(a) / sizeof *(a))
/* One tensor named by its dtype, shape and offsets. */
#define ONE(dtype, shape, offsets) "{\"t\":{\"dtype\":" dtype ",\"shape\":" shape ",\"data_offsets\":" offsets "}}"
#define A8 "\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}"

/* ---- good ones -------------------------------------------------------------------------------------------- */

static void reads_a_file(void **state) {
    (void)state;
    static const char header[] = "{\"__metadata__\":{\"format\":\"pt\"},"
                                 "\"z.lora_B.weight\":{\"dtype\":\"BF16\",\"shape\":[3,1],\"data_offsets\":[24,30]},"
                                 "\"a.lora_A.weight\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,24]},"
                                 "\"m\":{\"dtype\":\"F16\",\"shape\":[1,1,1,5],\"data_offsets\":[30,40]}}";
    gr_tensor_list l = {0};
    graft_error err;
    assert_int_equal(read_text(&l, header, 40, &err), 0);
    uint64_t data = 8 + strlen(header);
    assert_int_equal(l.n, 3);
    assert_string_equal(l.tensors[0].name, "a.lora_A.weight");
    assert_string_equal(l.tensors[1].name, "m");
    assert_string_equal(l.tensors[2].name, "z.lora_B.weight");
    const gr_tensor_info *a = gr_tensor_list_find(&l, "a.lora_A.weight"), *m = gr_tensor_list_find(&l, "m"),
                         *z = gr_tensor_list_find(&l, "z.lora_B.weight");
    assert_int_equal(a->dtype, GR_DTYPE_F32);
    assert_int_equal(a->n_dims, 2);
    assert_int_equal(a->shape[0], 2);
    assert_int_equal(a->shape[1], 3);
    assert_int_equal(a->offset, data);
    assert_int_equal(a->size, 24);
    assert_int_equal(z->dtype, GR_DTYPE_BF16);
    assert_int_equal(z->offset, data + 24);
    assert_int_equal(z->size, 6);
    assert_int_equal(m->dtype, GR_DTYPE_F16);
    assert_int_equal(m->n_dims, 4);
    assert_int_equal(m->shape[3], 5);
    assert_int_equal(m->offset, data + 30);
    assert_null(gr_tensor_list_find(&l, "b"));
    assert_null(gr_tensor_list_find(&l, ""));
    assert_null(gr_tensor_list_find(&l, "zz"));
    gr_tensor_list_finish(&l);
    assert_null(gr_tensor_list_find(&l, "m"));
}

static void accepts_what_the_reference_accepts(void **state) {
    (void)state;
    static const header_case cases[] = {
        {"S05 spaces", " \n\t{" A8 "}  \r\n ", 8, 0},
        {"S23 odd header length", "{" A8 "} ", 8, 0},
        {"S24 extra fields",
         "{\"a\":{\"dtype\":\"F32\",\"x\":[1,{\"dtype\":\"F16\"}],\"shape\":[2],\"data_offsets\":[0,8],\"y\":null}}", 8, 0},
        {"empty metadata", "{\"__metadata__\":{}," A8 "}", 8, 0},
        {"escaped name", "{\"\\u0061\":{\"dtype\":\"F\\u00332\",\"shape\":[2],\"data_offsets\":[0,8]}}", 8, 0},
        {"S29 order", "{\"b\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[8,12]}," A8 "}", 12, 0},
        {"S23 misaligned start",
         "{\"b\":{\"dtype\":\"F16\",\"shape\":[1],\"data_offsets\":[0,2]},\"c\":{\"dtype\":\"F32\",\"shape\":[1],"
         "\"data_offsets\":[2,6]}}",
         6, 0},
    };
    run(cases, COUNT(cases));
}

/* ---- bad ones --------------------------------------------------------------------------------------------- */

static void rejects_headers(void **state) {
    (void)state;
    static const header_case cases[] = {
        {"S03 no tensors", "{}", 0, GRAFT_E_NO_TENSORS},
        {"S03 metadata only", "{\"__metadata__\":{\"a\":\"b\"}}", 0, GRAFT_E_NO_TENSORS},
        {"S04 encoding", "{\"\xff\":1}", 0, GRAFT_E_JSON_ENCODING},
        {"J01 syntax", "{" A8 ",}", 8, GRAFT_E_JSON_SYNTAX},
        {"J01 two texts", "{" A8 "}{}", 8, GRAFT_E_JSON_SYNTAX},
        {"J08 NaN", "{\"a\":NaN}", 8, GRAFT_E_JSON_SYNTAX},
        {"S06 array", "[{}]", 0, GRAFT_E_HEADER_INVALID},
        {"S06 string", "\"ab\"", 0, GRAFT_E_HEADER_INVALID},
        {"S06 null", "null", 0, GRAFT_E_HEADER_INVALID},
        {"S06 number", "12", 0, GRAFT_E_HEADER_INVALID},
        {"S07 duplicate", "{" A8 "," A8 "}", 8, GRAFT_E_DUPLICATE_TENSOR},
        {"S07 duplicate by escape", "{" A8 ",\"\\u0061\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[8,16]}}", 16,
         GRAFT_E_DUPLICATE_TENSOR},
        {"J05 duplicate field", "{\"a\":{\"dtype\":\"F32\",\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", 8,
         GRAFT_E_JSON_DUPLICATE_KEY},
        {"S25 no dtype", "{\"a\":{\"shape\":[2],\"data_offsets\":[0,8]}}", 8, GRAFT_E_MISSING_FIELD},
        {"S25 no shape", "{\"a\":{\"dtype\":\"F32\",\"data_offsets\":[0,8]}}", 8, GRAFT_E_MISSING_FIELD},
        {"S25 no offsets", "{\"a\":{\"dtype\":\"F32\",\"shape\":[2]}}", 8, GRAFT_E_MISSING_FIELD},
        {"entry null", "{\"a\":null}", 8, GRAFT_E_BAD_TYPE},
        {"entry array", "{\"a\":[]}", 8, GRAFT_E_BAD_TYPE},
        {"S26 metadata number", "{\"__metadata__\":{\"a\":1}," A8 "}", 8, GRAFT_E_METADATA_INVALID},
        {"S26 metadata null", "{\"__metadata__\":null," A8 "}", 8, GRAFT_E_METADATA_INVALID},
        {"S26 metadata array", "{" A8 ",\"__metadata__\":[]}", 8, GRAFT_E_METADATA_INVALID},
        {"S26 metadata is a tensor", "{\"__metadata__\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", 8,
         GRAFT_E_METADATA_INVALID},
        {"S26 metadata twice", "{\"__metadata__\":{}," A8 ",\"__metadata__\":{}}", 8, GRAFT_E_METADATA_INVALID},
        {"S26 key twice in metadata", "{\"__metadata__\":{\"a\":\"1\",\"a\":\"2\"}," A8 "}", 8, GRAFT_E_JSON_DUPLICATE_KEY},
        {"S27 empty name", "{\"\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", 8, GRAFT_E_BAD_TENSOR_NAME},
        {"S27 slash", "{\"a/b\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", 8, GRAFT_E_BAD_TENSOR_NAME},
        {"S27 not NFC", "{\"e\xcc\x81\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", 8,
         GRAFT_E_BAD_TENSOR_NAME},
        {"S27 escape", "{\"\\u001b[31m\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", 8,
         GRAFT_E_BAD_TENSOR_NAME},
        {"S27 NUL", "{\"a\\u0000b\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", 8, GRAFT_E_JSON_ENCODING},
    };
    run(cases, COUNT(cases));
}

static void rejects_entries(void **state) {
    (void)state;
    static const header_case cases[] = {
        {"S12 begin > end", ONE("\"F32\"", "[2]", "[8,0]"), 8, GRAFT_E_BAD_OFFSETS},
        {"S12 negative", ONE("\"F32\"", "[2]", "[-8,0]"), 8, GRAFT_E_BAD_OFFSETS},
        {"S12 negative end", ONE("\"F32\"", "[2]", "[0,-8]"), 8, GRAFT_E_BAD_OFFSETS},
        {"S12 begin = end", ONE("\"F32\"", "[2]", "[0,0]"), 8, GRAFT_E_BAD_OFFSETS},
        {"S13 near 2^64", ONE("\"F32\"", "[2]", "[18446744073709551600,18446744073709551608]"), 8, GRAFT_E_OVERFLOW},
        {"S13 over 2^64", ONE("\"F32\"", "[2]", "[0,184467440737095516160]"), 8, GRAFT_E_OVERFLOW},
        {"S14 none", ONE("\"F32\"", "[2]", "[]"), 8, GRAFT_E_BAD_TYPE},
        {"S14 one", ONE("\"F32\"", "[2]", "[8]"), 8, GRAFT_E_BAD_TYPE},
        {"S14 three", ONE("\"F32\"", "[2]", "[0,8,8]"), 8, GRAFT_E_BAD_TYPE},
        {"S14 strings", ONE("\"F32\"", "[2]", "[\"0\",\"8\"]"), 8, GRAFT_E_BAD_TYPE},
        {"S14 floats", ONE("\"F32\"", "[2]", "[0.0,8.0]"), 8, GRAFT_E_BAD_TYPE},
        {"S14 exponent", ONE("\"F32\"", "[2]", "[0,8e0]"), 8, GRAFT_E_BAD_TYPE},
        {"S14 booleans", ONE("\"F32\"", "[2]", "[false,true]"), 8, GRAFT_E_BAD_TYPE},
        {"S14 object", ONE("\"F32\"", "[2]", "{\"0\":0,\"1\":8}"), 8, GRAFT_E_BAD_TYPE},
        {"S14 null", ONE("\"F32\"", "[2]", "null"), 8, GRAFT_E_BAD_TYPE},
        {"S15 product wraps", ONE("\"F32\"", "[2,18446744073709551614]", "[0,8]"), 8, GRAFT_E_OVERFLOW},
        {"S15 bytes wrap", ONE("\"F32\"", "[2,9223372036854775807]", "[0,8]"), 8, GRAFT_E_OVERFLOW},
        {"S15 wraps to the size", ONE("\"F32\"", "[4611686018427387904,4,2]", "[0,8]"), 8, GRAFT_E_OVERFLOW},
        {"S16 zero first", ONE("\"F32\"", "[0,9223372036854775807,9223372036854775807]", "[0,8]"), 8, GRAFT_E_BAD_RANK},
        {"S16 zero last", ONE("\"F32\"", "[9223372036854775807,9223372036854775807,0]", "[0,8]"), 8, GRAFT_E_BAD_RANK},
        {"S17 zero", ONE("\"F32\"", "[0]", "[0,8]"), 8, GRAFT_E_BAD_RANK},
        {"S17 rank 0", ONE("\"F32\"", "[]", "[0,4]"), 4, GRAFT_E_BAD_RANK},
        {"S17 rank 5", ONE("\"F32\"", "[1,1,1,1,2]", "[0,8]"), 8, GRAFT_E_BAD_RANK},
        {"negative dimension", ONE("\"F32\"", "[-2]", "[0,8]"), 8, GRAFT_E_BAD_RANK},
        {"two negative dimensions", ONE("\"F32\"", "[-2,-1]", "[0,8]"), 8, GRAFT_E_BAD_RANK},
        {"float dimension", ONE("\"F32\"", "[2.0]", "[0,8]"), 8, GRAFT_E_BAD_TYPE},
        {"string dimension", ONE("\"F32\"", "[\"2\"]", "[0,8]"), 8, GRAFT_E_BAD_TYPE},
        {"shape object", ONE("\"F32\"", "{\"0\":2}", "[0,8]"), 8, GRAFT_E_BAD_TYPE},
        {"S18 too small", ONE("\"F32\"", "[1]", "[0,8]"), 8, GRAFT_E_SIZE_MISMATCH},
        {"S18 too large", ONE("\"F16\"", "[5]", "[0,8]"), 8, GRAFT_E_SIZE_MISMATCH},
        {"S19 F128", ONE("\"F128\"", "[2]", "[0,8]"), 8, GRAFT_E_UNKNOWN_DTYPE},
        {"S19 f16", ONE("\"f16\"", "[4]", "[0,8]"), 8, GRAFT_E_UNKNOWN_DTYPE},
        {"S19 empty", ONE("\"\"", "[2]", "[0,8]"), 8, GRAFT_E_UNKNOWN_DTYPE},
        {"S19 number", ONE("32", "[2]", "[0,8]"), 8, GRAFT_E_UNKNOWN_DTYPE},
        {"S19 null", ONE("null", "[2]", "[0,8]"), 8, GRAFT_E_UNKNOWN_DTYPE},
        {"S20 I32", ONE("\"I32\"", "[2]", "[0,8]"), 8, GRAFT_E_UNSUPPORTED_DTYPE},
        {"S20 BOOL", ONE("\"BOOL\"", "[8]", "[0,8]"), 8, GRAFT_E_UNSUPPORTED_DTYPE},
        {"S20 U8", ONE("\"U8\"", "[8]", "[0,8]"), 8, GRAFT_E_UNSUPPORTED_DTYPE},
        {"S20 I64", ONE("\"I64\"", "[1]", "[0,8]"), 8, GRAFT_E_UNSUPPORTED_DTYPE},
        {"S20 C64", ONE("\"C64\"", "[1]", "[0,8]"), 8, GRAFT_E_UNSUPPORTED_DTYPE},
        {"S21 F4", ONE("\"F4\"", "[16]", "[0,8]"), 8, GRAFT_E_UNSUPPORTED_DTYPE},
        {"S21 F8", ONE("\"F8_E4M3\"", "[8]", "[0,8]"), 8, GRAFT_E_UNSUPPORTED_DTYPE},
        {"S22 F64", ONE("\"F64\"", "[1]", "[0,8]"), 8, GRAFT_E_UNSUPPORTED_DTYPE},
    };
    run(cases, COUNT(cases));
}

#define B(begin, end) "\"b\":{\"dtype\":\"F16\",\"shape\":[4],\"data_offsets\":[" begin "," end "]}"

static void rejects_ranges(void **state) {
    (void)state;
    static const header_case cases[] = {
        {"S08 overlap", "{" A8 "," B("4", "12") "}", 12, GRAFT_E_OVERLAP},
        {"S08 identical", "{" A8 "," B("0", "8") "}", 8, GRAFT_E_OVERLAP},
        {"S09 hole", "{" A8 "," B("9", "17") "}", 17, GRAFT_E_HOLE},
        {"S09 hole at the start", ONE("\"F32\"", "[2]", "[1,9]"), 9, GRAFT_E_HOLE},
        {"S09 far away", "{" A8 "," B("9223372036854775799", "9223372036854775807") "}", 16, GRAFT_E_HOLE},
        {"S10 trailing", "{" A8 "}", 9, GRAFT_E_TRAILING_BYTES},
        {"S11 truncated", "{" A8 "}", 7, GRAFT_E_TRUNCATED},
        {"S11 no data", "{" A8 "}", 0, GRAFT_E_TRUNCATED},
        {"huge", ONE("\"F32\"", "[2305843009213693951]", "[0,9223372036854775804]"), 8, GRAFT_E_TRUNCATED},
    };
    run(cases, COUNT(cases));
    graft_error err = {0};
    gr_tensor_list l = {0};
    read_text(&l, "{" A8 "}", 7, &err);
    assert_non_null(strstr(err.message, "has ")); /* S11: has X, needs Y */
    assert_non_null(strstr(err.message, "need "));
}

static void rejects_long_names_and_shapes(void **state) {
    (void)state;
    char *header = malloc(300000);
    static const struct {
        int name;
        int code;
    } lengths[] = {{512, 0}, {513, GRAFT_E_BAD_TENSOR_NAME}, {65536, GRAFT_E_BAD_TENSOR_NAME}};
    for (size_t i = 0; i < COUNT(lengths); i++) {
        char *name = malloc((size_t)lengths[i].name + 1);
        memset(name, 'n', (size_t)lengths[i].name);
        name[lengths[i].name] = '\0';
        sprintf(header, "{\"%s\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", name);
        header_case c = {"name", header, 8, lengths[i].code};
        run(&c, 1);
        free(name);
    }
    size_t n = (size_t)sprintf(header, "{\"a\":{\"dtype\":\"F32\",\"data_offsets\":[0,4],\"shape\":[");
    for (int i = 0; i < 100000; i++) {
        n += (size_t)sprintf(header + n, "%s1", i ? "," : "");
    }
    sprintf(header + n, "]}}");
    header_case c = {"S17 rank 100,000", header, 4, GRAFT_E_BAD_RANK};
    run(&c, 1);
    free(header);
}

/* S28, S31: as many tensors as allowed are read in linear time, more are refused. */
static int many(size_t n, gr_tensor_list *l, graft_error *err) {
    size_t capacity = n * 96 + 16, at = 0;
    char *header = malloc(capacity);
    at += (size_t)sprintf(header, "{");
    for (size_t i = 0; i < n; i++) {
        size_t k = n - 1 - i; /* names and offsets against the file's order */
        at += (size_t)snprintf(header + at, capacity - at, "%s\"t%zu\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[%zu,%zu]}",
                               i ? "," : "", i, k * 4, k * 4 + 4);
    }
    at += (size_t)snprintf(header + at, capacity - at, "}");
    int code = gr_safetensors_parse(l, header, at, 8 + at + n * 4, err);
    free(header);
    return code;
}

static void bounds_the_number(void **state) {
    (void)state;
    gr_tensor_list l = {0};
    graft_error err = {0};
    expect_code("S31 60,000", many(60000, &l, &err), 0, &err);
    assert_int_equal(l.n, 60000);
    const gr_tensor_info *t = gr_tensor_list_find(&l, "t59999");
    assert_non_null(t);
    assert_int_equal(t->offset, gr_tensor_list_find(&l, "t59998")->offset - 4);
    gr_tensor_list_finish(&l);
    expect_code("65,536", many(GR_MAX_TENSORS, &l, &err), 0, &err);
    gr_tensor_list_finish(&l);
    expect_code("65,537", many(GR_MAX_TENSORS + 1, &l, &err), GRAFT_E_TOO_MANY_TENSORS, &err);
    expect_code("S28 170,000", many(170000, &l, &err), GRAFT_E_TOO_MANY_TENSORS, &err);
}

/* ---- the first bytes -------------------------------------------------------------------------------------- */

typedef struct first_case {
    const char *name;
    const char *first; /* 16 bytes */
    uint64_t size;
    int code;
} first_case;

static void judges_first_bytes(void **state) {
    (void)state;
    static const first_case cases[] = {
        {"S01 over the file", "\x65\0\0\0\0\0\0\0{\"a\":{\"d", 108, GRAFT_E_HEADER_LENGTH},
        {"just fits", "\x64\0\0\0\0\0\0\0{\"a\":{\"d", 108, 0},
        {"S01 2^63", "\0\0\0\0\0\0\0\x80{\"a\":{\"d", 1000, GRAFT_E_HEADER_LENGTH},
        {"S01 2^64-1", "\xff\xff\xff\xff\xff\xff\xff\xff{\"a\":{\"d", 1000, GRAFT_E_HEADER_LENGTH},
        {"S01 2^64-8", "\xf8\xff\xff\xff\xff\xff\xff\xff{\"a\":{\"d", 1000, GRAFT_E_HEADER_LENGTH},
        {"S02 100,000,001", "\x01\xe1\xf5\x05\0\0\0\0{\"a\":{\"d", 200000000, GRAFT_E_HEADER_TOO_LARGE},
        {"S02 16 MiB + 1", "\x01\0\0\x01\0\0\0\0{\"a\":{\"d", 200000000, GRAFT_E_HEADER_TOO_LARGE},
        {"16 MiB", "\0\0\0\x01\0\0\0\0{\"a\":{\"d", 200000000, 0},
        {"S03 0", "\0\0\0\0\0\0\0\0{\"a\":{\"d", 1000, GRAFT_E_HEADER_INVALID},
        {"S03 1", "\x01\0\0\0\0\0\0\0[       ", 1000, GRAFT_E_HEADER_INVALID},
        {"S30 big-endian", "\0\0\0\0\0\0\0\x64{\"a\":{\"d", 1000, GRAFT_E_HEADER_LENGTH},
        {"F24 zip", "PK\x03\x04\x14\0\0\0\x08\x08\0\0\0\0\0\0", 1000, GRAFT_E_UNSUPPORTED_FORMAT},
        {"F24 large zip", "PK\x03\x04\0\0\0\0\x08\x08\0\0\0\0\0\0", 1u << 31, GRAFT_E_UNSUPPORTED_FORMAT},
        {"F23 pickle 2", "\x80\x02\x8a\x0al\xfc\x9c\x46\xf9 j\xa8P\x19.\x80", 1000, GRAFT_E_PICKLE_REFUSED},
        {"F23 pickle 4", "\x80\x04\x95\x10\0\0\0\0\0\0\0}\x94.  ", 1u << 31, GRAFT_E_PICKLE_REFUSED},
        {"F24 pickle with a plausible length", "\x80\x02}q\0\0\0\0\x01X\x01\0\0\0aq", 1u << 31, GRAFT_E_PICKLE_REFUSED},
        {"F24 gzip", "\x1f\x8b\x08\x08\xf0\x11\x22\x65\0\x03 abcde", 1000, GRAFT_E_UNSUPPORTED_FORMAT},
        {"F24 gzip without a time", "\x1f\x8b\x08\0\0\0\0\0\0\x03 abcde", 1u << 31, GRAFT_E_UNSUPPORTED_FORMAT},
        {"F24 GGUF", "GGUF\x03\0\0\0\x01\0\0\0\0\0\0\0", 1000, GRAFT_E_UNSUPPORTED_FORMAT},
        {"F24 html", "<html><head><tit", 1000, GRAFT_E_UNSUPPORTED_FORMAT},
        {"F24 doctype", "<!DOCTYPE html><", 1000, GRAFT_E_UNSUPPORTED_FORMAT},
        {"JSON", "{\"a\":{\"dtype\":\"F", 1000, GRAFT_E_UNSUPPORTED_FORMAT},
        {"F25 LFS", "version https://", 134, GRAFT_E_LFS_POINTER},
        {"a header that begins as a pickle", "\x80\x02\0\0\0\0\0\0{\"a\":{\"d", 1000, 0},
        {"a header that begins as gzip", "\x1f\x8b\x08\0\0\0\0\0 {\"a\":{\"", 1u << 31, 0},
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        graft_error err = {0};
        uint64_t length = 77;
        uint8_t *first = exact_copy(cases[i].first, 16);
        int code = gr_safetensors_header_length(&length, first, 16, cases[i].size, &err);
        free(first);
        expect_code(cases[i].name, code, cases[i].code, &err);
        assert_true(code == 0 || length == 77);
    }
    graft_error err = {0};
    uint64_t length;
    assert_int_equal(gr_safetensors_header_length(&length, (const uint8_t *)"\0\0\0\0\0\0\0\x64{", 9, 1000, &err),
                     GRAFT_E_HEADER_LENGTH);
    assert_non_null(strstr(err.message, "big-endian"));
}

static void refuses_short_files(void **state) {
    (void)state;
    for (size_t n = 0; n < 8; n++) { /* F03 */
        graft_error err = {0};
        uint64_t length;
        uint8_t *first = exact_copy("\x02\0\0\0\0\0\0\0", n);
        expect_code("F03", gr_safetensors_header_length(&length, first, n, n, &err), GRAFT_E_HEADER_TOO_SMALL, &err);
        free(first);
    }
    gr_tensor_list l = {0};
    graft_error err = {0};
    expect_code("header longer than the file", gr_safetensors_parse(&l, "{}", 2, 9, &err), GRAFT_E_HEADER_LENGTH, &err);
}

static void refuses_nul_padding(void **state) {
    (void)state;
    static const char header[] = "{" A8 "}\0\0\0";
    file f = make_file(header, sizeof header - 1, 8);
    gr_tensor_list l = {0};
    graft_error err = {0};
    expect_code("S05 NULs", read_bytes(&l, f.bytes, f.n, f.n, &err), GRAFT_E_JSON_SYNTAX, &err);
    free(f.bytes);
}

/* ---- every cut, every bit, every allocation ----------------------------------------------------------------- */

static const char sample[] = "{\"__metadata__\":{\"format\":\"pt\"},\"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight\":"
                             "{\"dtype\":\"F32\",\"shape\":[2,4],\"data_offsets\":[0,32]},\"b.lora_B.weight\":"
                             "{\"dtype\":\"BF16\",\"shape\":[4,2],\"data_offsets\":[32,48]}}";

static void every_truncation_fails(void **state) {
    (void)state;
    file f = make_file(sample, strlen(sample), 48);
    for (size_t n = 0; n < f.n; n++) {
        graft_error err = {0};
        gr_tensor_list l = {0};
        int code = read_bytes(&l, f.bytes, n, n, &err);
        assert_int_not_equal(code, 0);
        assert_ptr_equal(l.tensors, NULL);
    }
    free(f.bytes);
}

/* S32: a flipped bit gives an error or still describes the file without gaps. */
static void no_bit_flip_harms(void **state) {
    (void)state;
    file f = make_file(sample, strlen(sample), 48);
    uint64_t blocks = gr_memory_blocks();
    for (size_t bit = 0; bit < (8 + strlen(sample)) * 8; bit++) {
        f.bytes[bit / 8] ^= (uint8_t)(1u << (bit % 8));
        graft_error err = {0};
        gr_tensor_list l = {0};
        int code = read_bytes(&l, f.bytes, f.n, f.n, &err);
        uint64_t sum = 0;
        for (size_t i = 0; i < l.n; i++) {
            sum += l.tensors[i].size;
            assert_true(l.tensors[i].offset + l.tensors[i].size <= f.n);
        }
        assert_true(code != 0 || sum == 48);
        gr_tensor_list_finish(&l);
        f.bytes[bit / 8] ^= (uint8_t)(1u << (bit % 8));
    }
    assert_int_equal(gr_memory_blocks(), blocks);
    free(f.bytes);
}

static int attempt(void *data, graft_error *err) {
    (void)data;
    gr_tensor_list l = {0};
    int code = read_text(&l, sample, 48, err);
    gr_tensor_list_finish(&l);
    return code;
}

static void every_allocation_may_fail(void **state) {
    (void)state;
    torture("sample", attempt, NULL);
}

static void dtypes(void **state) {
    (void)state;
    assert_string_equal(gr_dtype_name(GR_DTYPE_F32), "F32");
    assert_string_equal(gr_dtype_name(GR_DTYPE_F16), "F16");
    assert_string_equal(gr_dtype_name(GR_DTYPE_BF16), "BF16");
    assert_int_equal(gr_dtype_size(GR_DTYPE_F32), 4);
    assert_int_equal(gr_dtype_size(GR_DTYPE_F16), 2);
    assert_int_equal(gr_dtype_size(GR_DTYPE_BF16), 2);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reads_a_file),
        cmocka_unit_test(accepts_what_the_reference_accepts),
        cmocka_unit_test(rejects_headers),
        cmocka_unit_test(rejects_entries),
        cmocka_unit_test(rejects_ranges),
        cmocka_unit_test(rejects_long_names_and_shapes),
        cmocka_unit_test(bounds_the_number),
        cmocka_unit_test(judges_first_bytes),
        cmocka_unit_test(refuses_short_files),
        cmocka_unit_test(refuses_nul_padding),
        cmocka_unit_test(every_truncation_fails),
        cmocka_unit_test(no_bit_flip_harms),
        cmocka_unit_test(every_allocation_may_fail),
        cmocka_unit_test(dtypes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
