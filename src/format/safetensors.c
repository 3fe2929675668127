/*
 * The safetensors container: u64 little-endian N, N bytes of JSON, data. The JSON gives each tensor a byte
 * range within the data. Nothing here trusts a number before it was compared with the file's size, and no
 * memory is taken for anything but entries that stand in the header.
 */
#include "safetensors.h"

#include "base/checked.h"
#include "base/memory.h"
#include "format/json.h"

#include <stdlib.h>
#include <string.h>

/* ---- the first bytes ------------------------------------------------------------------------------------ */

static uint64_t read_u64(const uint8_t *p) {
    uint64_t v = 0;
    for (int i = 7; i >= 0; i--) {
        v = v << 8 | p[i];
    }
    return v;
}

static uint64_t read_u64_big_endian(const uint8_t *p) {
    uint64_t v = 0;
    for (int i = 0; i < 8; i++) {
        v = v << 8 | p[i];
    }
    return v;
}

static bool json_may_begin(uint8_t c) {
    return c == '{' || c == ' ' || c == '\t' || c == '\n' || c == '\r';
}

/* The length could be right, and what follows could be the header. A pickle or a gzip file can have the first
 * by accident, but not both. */
static bool plausible(uint64_t length, const uint8_t *first, size_t n, uint64_t file_size) {
    return length > 0 && length <= GR_SAFETENSORS_MAX_HEADER && length <= file_size - 8 &&
           (n < 9 || json_may_begin(first[8]));
}

static bool begins(const uint8_t *first, size_t n, const char *with) {
    size_t length = strlen(with);
    return n >= length && memcmp(first, with, length) == 0;
}

/* A code if the bytes are those of some other kind of file, else 0. */
static int recognise(const uint8_t *first, size_t n, graft_error *err) {
    static const struct {
        const char *begin;
        const char *is;
    } kinds[] = {
        {"PK\x03\x04", "a zip archive, as torch.save writes it; save the adapter as safetensors"},
        {"PK\x05\x06", "an empty zip archive"},
        {"\x1f\x8b", "gzip-compressed data; unpack it first"},
        {"GGUF", "a GGUF file; give the path of the file itself, not of its folder"},
        {"\x89HDF", "an HDF5 file"},
        {"<html", "a web page; was the download an error page?"},
        {"<HTML", "a web page; was the download an error page?"},
        {"<!DOCTYPE", "a web page; was the download an error page?"},
        {"<!doctype", "a web page; was the download an error page?"},
        {"{", "a JSON text without the length that must come first"},
    };
    if (begins(first, n, "version https://")) {
        return gr_fail(err, GRAFT_E_LFS_POINTER,
                       "this is a Git LFS pointer, not the file itself: run `git lfs pull`");
    }
    if (n >= 2 && first[0] == 0x80 && first[1] <= 5) {
        return gr_fail(err, GRAFT_E_PICKLE_REFUSED,
                       "this looks like a Python pickle, which can run code: save the adapter as safetensors");
    }
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        if (begins(first, n, kinds[i].begin)) {
            return gr_fail(err, GRAFT_E_UNSUPPORTED_FORMAT, "this looks like %s", kinds[i].is);
        }
    }
    return 0;
}

int gr_safetensors_header_length(uint64_t *out, const uint8_t *first, size_t n, uint64_t file_size,
                                 graft_error *err) {
    if (n < 8 || file_size < 8) {
        return gr_fail(err, GRAFT_E_HEADER_TOO_SMALL, "%llu bytes (a safetensors file has at least 8)",
                       (unsigned long long)(n < 8 ? n : file_size));
    }
    uint64_t length = read_u64(first);
    if (plausible(length, first, n, file_size)) {
        *out = length;
        return 0;
    }
    int code = recognise(first, n, err);
    if (code) {
        return code;
    }
    if (length > file_size - 8) {
        bool swapped = plausible(read_u64_big_endian(first), first, n, file_size);
        return gr_fail(err, GRAFT_E_HEADER_LENGTH, "header length %llu, but only %llu bytes follow%s",
                       (unsigned long long)length, (unsigned long long)(file_size - 8),
                       swapped ? " (it makes sense as big-endian; it must be little-endian)" : "");
    }
    if (length > GR_SAFETENSORS_MAX_HEADER) {
        return gr_fail(err, GRAFT_E_HEADER_TOO_LARGE, "header of %llu bytes (allowed: %llu)",
                       (unsigned long long)length, (unsigned long long)GR_SAFETENSORS_MAX_HEADER);
    }
    if (length < 2) {
        return gr_fail(err, GRAFT_E_HEADER_INVALID, "header of %llu bytes cannot hold a JSON object",
                       (unsigned long long)length);
    }
    *out = length; /* not begun by '{': the JSON parser says what is wrong with it */
    return 0;
}

/* ---- one entry of the header ----------------------------------------------------------------------------- */

/* Entry being read; `quoted` is the name for messages. */
typedef struct entry {
    const char *quoted;
    const json_t *value;
    gr_tensor_info *info;
    graft_error *err;
} entry;

static int get_field(const entry *e, const char *key, json_t **out) {
    *out = json_object_get(e->value, key);
    if (!*out) {
        return gr_fail(e->err, GRAFT_E_MISSING_FIELD, "tensor \"%s\": \"%s\" is missing", e->quoted, key);
    }
    return 0;
}

static int read_dtype(const entry *e) {
    static const char *const known[] = {
        "BOOL", "U8", "I8",      "I16",     "U16",     "I32",     "U32",     "I64",         "U64",        "F64",
        "C64",  "F4", "F6_E2M3", "F6_E3M2", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"};
    json_t *field;
    int code = get_field(e, "dtype", &field);
    if (code) {
        return code;
    }
    const char *text = json_string_value(field);
    if (!text) {
        return gr_fail(e->err, GRAFT_E_UNKNOWN_DTYPE, "tensor \"%s\": dtype is %s (allowed: F32, F16, BF16)",
                       e->quoted, gr_json_type_name(field));
    }
    static const gr_dtype usable[] = {GR_DTYPE_F32, GR_DTYPE_F16, GR_DTYPE_BF16};
    for (size_t i = 0; i < sizeof usable / sizeof *usable; i++) {
        if (strcmp(text, gr_dtype_name(usable[i])) == 0) {
            e->info->dtype = usable[i];
            return 0;
        }
    }
    code = GRAFT_E_UNKNOWN_DTYPE;
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        if (strcmp(text, known[i]) == 0) {
            code = GRAFT_E_UNSUPPORTED_DTYPE;
        }
    }
    char quoted[GR_QUOTE_SIZE];
    return gr_fail(e->err, code, "tensor \"%s\": dtype \"%s\" (allowed: F32, F16, BF16)", e->quoted,
                   gr_quote(quoted, text, strlen(text)));
}

static int read_shape(const entry *e) {
    json_t *field;
    int code = get_field(e, "shape", &field);
    if (code) {
        return code;
    }
    if (!json_is_array(field)) {
        return gr_fail(e->err, GRAFT_E_BAD_TYPE, "tensor \"%s\": shape is %s (allowed: an array)", e->quoted,
                       gr_json_type_name(field));
    }
    size_t n = json_array_size(field);
    if (n < 1 || n > GR_MAX_DIMS) {
        return gr_fail(e->err, GRAFT_E_BAD_RANK, "tensor \"%s\": %zu dimensions (allowed: 1 to %d)", e->quoted,
                       n, GR_MAX_DIMS);
    }
    e->info->n_dims = (uint32_t)n;
    for (size_t i = 0; i < n; i++) {
        const json_t *dim = json_array_get(field, i);
        if (!json_is_integer(dim)) {
            return gr_fail(e->err, GRAFT_E_BAD_TYPE, "tensor \"%s\": dimension %zu is %s (allowed: an integer)",
                           e->quoted, i, gr_json_type_name(dim));
        }
        if (json_integer_value(dim) < 1) {
            return gr_fail(e->err, GRAFT_E_BAD_RANK,
                           "tensor \"%s\": dimension %zu is %lld (allowed: 1 or more)", e->quoted, i,
                           (long long)json_integer_value(dim));
        }
        e->info->shape[i] = (uint64_t)json_integer_value(dim);
    }
    return 0;
}

/* Leaves `offset` relative to the data: the check of the whole makes it the file's. */
static int read_offsets(const entry *e) {
    json_t *field;
    int code = get_field(e, "data_offsets", &field);
    if (code) {
        return code;
    }
    const json_t *begin = json_array_get(field, 0), *end = json_array_get(field, 1);
    if (json_array_size(field) != 2 || !json_is_integer(begin) || !json_is_integer(end)) {
        return gr_fail(e->err, GRAFT_E_BAD_TYPE, "tensor \"%s\": data_offsets must be an array of two integers",
                       e->quoted);
    }
    long long b = json_integer_value(begin), n = json_integer_value(end);
    if (b < 0 || n <= b) { /* equal would be an empty tensor: there are none without a dimension of 0 */
        return gr_fail(e->err, GRAFT_E_BAD_OFFSETS, "tensor \"%s\": data_offsets [%lld, %lld]", e->quoted, b,
                       n);
    }
    e->info->offset = (uint64_t)b;
    e->info->size = (uint64_t)n - (uint64_t)b;
    return 0;
}

static int check_size(const entry *e) {
    uint64_t size;
    if (!gr_tensor_byte_size(&size, e->info)) {
        return gr_fail(e->err, GRAFT_E_OVERFLOW, "tensor \"%s\": the shape's size does not fit 64 bits",
                       e->quoted);
    }
    if (size != e->info->size) {
        return gr_fail(e->err, GRAFT_E_SIZE_MISMATCH,
                       "tensor \"%s\": data_offsets span %llu bytes, the shape needs %llu", e->quoted,
                       (unsigned long long)e->info->size, (unsigned long long)size);
    }
    return 0;
}

static int read_entry(gr_tensor_info *info, const char *name, const json_t *value, graft_error *err) {
    int code = gr_tensor_name_check(name, strlen(name), err);
    if (code) {
        return code;
    }
    char quoted[GR_QUOTE_SIZE];
    entry e = {.quoted = gr_quote(quoted, name, strlen(name)), .value = value, .info = info, .err = err};
    if (!json_is_object(value)) {
        return gr_fail(err, GRAFT_E_BAD_TYPE, "tensor \"%s\": %s (allowed: an object)", e.quoted,
                       gr_json_type_name(value));
    }
    if ((code = read_dtype(&e)) || (code = read_shape(&e)) || (code = read_offsets(&e)) ||
        (code = check_size(&e))) {
        return code;
    }
    info->name = gr_strdup(name);
    return info->name ? 0 : gr_fail_memory(err, strlen(name) + 1);
}

static int check_metadata(const json_t *metadata, graft_error *err) {
    if (!json_is_object(metadata)) {
        return gr_fail(err, GRAFT_E_METADATA_INVALID, "__metadata__ is %s (allowed: an object of strings)",
                       gr_json_type_name(metadata));
    }
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)metadata, key, value) {
        if (!json_is_string(value)) {
            char quoted[GR_QUOTE_SIZE];
            return gr_fail(err, GRAFT_E_METADATA_INVALID, "__metadata__: \"%s\" is %s (allowed: a string)",
                           gr_quote(quoted, key, strlen(key)), gr_json_type_name(value));
        }
    }
    return 0;
}

/* ---- all entries together ---------------------------------------------------------------------------------
 */

static int by_offset(const void *a, const void *b) {
    uint64_t x = ((const gr_tensor_info *)a)->offset, y = ((const gr_tensor_info *)b)->offset;
    return x < y ? -1 : x > y;
}

/* Every byte from the header's end to the file's belongs to exactly one tensor. */
static int check_coverage(gr_tensor_list *l, uint64_t data, uint64_t file_size, graft_error *err) {
    char quoted[GR_QUOTE_SIZE], before[GR_QUOTE_SIZE];
    qsort(l->tensors, l->n, sizeof *l->tensors, by_offset);
    uint64_t end = 0;
    for (size_t i = 0; i < l->n; i++) {
        gr_tensor_info *t = &l->tensors[i];
        gr_quote(quoted, t->name, strlen(t->name));
        if (t->offset < end) {
            const char *other = l->tensors[i - 1].name; /* end > 0, so there is one */
            return gr_fail(err, GRAFT_E_OVERLAP, "tensors \"%s\" and \"%s\" share bytes",
                           gr_quote(before, other, strlen(other)), quoted);
        }
        if (t->offset > end) {
            return gr_fail(err, GRAFT_E_HOLE, "%llu bytes before tensor \"%s\" belong to none",
                           (unsigned long long)(t->offset - end), quoted);
        }
        end += t->size; /* both come from int64 values: no wrap */
        t->offset += data;
    }
    uint64_t needed;
    if (!gr_add_u64(&needed, end, data)) {
        return gr_fail(err, GRAFT_E_OVERFLOW, "the tensors' size does not fit 64 bits");
    }
    if (needed > file_size) {
        return gr_fail(err, GRAFT_E_TRUNCATED,
                       "the file has %llu bytes, its tensors need %llu: a cut-off download?",
                       (unsigned long long)file_size, (unsigned long long)needed);
    }
    if (needed < file_size) {
        return gr_fail(err, GRAFT_E_TRAILING_BYTES,
                       "%llu bytes after the last tensor belong to none: save the file anew",
                       (unsigned long long)(file_size - needed));
    }
    return 0;
}

static int read_entries(gr_tensor_list *l, const json_t *root, graft_error *err) {
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)root, key, value) {
        int code = strcmp(key, "__metadata__") == 0 ? check_metadata(value, err)
                                                    : read_entry(&l->tensors[l->n], key, value, err);
        if (code) {
            return code;
        }
        l->n += strcmp(key, "__metadata__") != 0;
    }
    return 0;
}

static int read_root(gr_tensor_list *l, const json_t *root, uint64_t data, uint64_t file_size,
                     graft_error *err) {
    if (!json_is_object(root)) {
        return gr_fail(err, GRAFT_E_HEADER_INVALID, "the header is %s (allowed: an object)",
                       gr_json_type_name(root));
    }
    size_t n = json_object_size(root) - (json_object_get(root, "__metadata__") != NULL);
    if (n > GR_MAX_TENSORS) {
        return gr_fail(err, GRAFT_E_TOO_MANY_TENSORS, "%zu tensors (allowed: %d)", n, GR_MAX_TENSORS);
    }
    l->tensors = gr_calloc(n, sizeof *l->tensors);
    if (!l->tensors) {
        return gr_fail_memory(err, n * sizeof *l->tensors);
    }
    int code = read_entries(l, root, err);
    if (code) {
        return code;
    }
    if (l->n == 0) {
        return gr_fail(err, GRAFT_E_NO_TENSORS, "the header names no tensors");
    }
    code = check_coverage(l, data, file_size, err);
    if (!code) {
        gr_tensor_list_sort(l);
    }
    return code;
}

/* JSON's codes in the words of this format: a key of the outermost object is a tensor, its numbers are sizes,
 * and what makes a header of bounded length large is their number. */
static int translate(int code, const char *header, const gr_json_fault *fault, graft_error *err) {
    if (code == GRAFT_E_JSON_DUPLICATE_KEY && fault->depth == 1) {
        bool metadata = fault->key_length == 12 && memcmp(header + fault->key, "__metadata__", 12) == 0;
        code = metadata ? GRAFT_E_METADATA_INVALID : GRAFT_E_DUPLICATE_TENSOR;
    } else if (code == GRAFT_E_OUT_OF_RANGE) {
        code = GRAFT_E_OVERFLOW;
    } else if (code == GRAFT_E_JSON_TOO_LARGE) {
        code = GRAFT_E_TOO_MANY_TENSORS;
    }
    if (err) {
        err->code = code;
    }
    return code;
}

int gr_safetensors_parse(gr_tensor_list *out, const char *header, size_t length, uint64_t file_size,
                         graft_error *err) {
    uint64_t data;
    if (!gr_add_u64(&data, length, 8) || data > file_size) {
        return gr_fail(err, GRAFT_E_HEADER_LENGTH, "header of %zu bytes in a file of %llu", length,
                       (unsigned long long)file_size);
    }
    if (length > GR_SAFETENSORS_MAX_HEADER) {
        return gr_fail(err, GRAFT_E_HEADER_TOO_LARGE, "header of %zu bytes (allowed: %llu)", length,
                       (unsigned long long)GR_SAFETENSORS_MAX_HEADER);
    }
    json_t *root;
    gr_json_fault fault = {0};
    int code = gr_json_parse_with_fault(&root, header, length, "safetensors header", &fault, err);
    if (code) {
        return translate(code, header, &fault, err);
    }
    gr_tensor_list list = {0};
    code = read_root(&list, root, data, file_size, err);
    json_decref(root);
    if (code) {
        gr_tensor_list_finish(&list);
        return code;
    }
    *out = list;
    return 0;
}
