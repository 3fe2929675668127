/*
 * GGUF as far as a LoRA adapter needs it:
 *
 *   "GGUF" u32 version u64 n_tensors u64 n_keys          all little-endian
 *   n_keys x    string key, u32 type, value              string = u64 length, bytes
 *   n_tensors x string name, u32 n_dims, u64 ne[n_dims], u32 type, u64 offset
 *   padding to the alignment, tensor data (offsets count from here), each tensor padded to the alignment
 *
 * A cursor that cannot leave the bytes reads it in one pass. The first failure sticks in the cursor.
 */
#include "gguf_lora.h"

#include "base/checked.h"
#include "base/memory.h"
#include "base/utf8.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum {
    ALIGNMENT_DEFAULT = 32,
    ALIGNMENT_MIN = 8,
    ALIGNMENT_MAX = 65536,
    NAME_MAX_BYTES = 63,
    ALORA_MAX = 4096
};

/* Smallest possible entries, by which a count is compared with the bytes that are left. */
enum { KEY_BYTES_MIN = 8 + 1 + 4 + 1, TENSOR_BYTES_MIN = 8 + 1 + 4 + 8 + 4 + 8 };

enum value_type { U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64, N_TYPES };

/* ---- cursor ---------------------------------------------------------------------------------------------- */

typedef struct cursor {
    const uint8_t *bytes;
    size_t n, at;
    uint64_t file_size;
    graft_error *err;
    int code; /* the first failure */
} cursor;

typedef struct span {
    const char *text;
    size_t length;
} span;

#define FAIL(c, ...) ((c)->code ? (c)->code : ((c)->code = gr_fail((c)->err, __VA_ARGS__)))

static bool take(cursor *c, size_t length, const uint8_t **out) {
    if (c->code) {
        return false;
    }
    if (length > c->n - c->at) {
        if (c->n < c->file_size) {
            FAIL(c, GRAFT_E_TOO_LARGE, "keys and tensor table go on after %zu bytes (allowed: %llu)", c->n,
                 (unsigned long long)GR_GGUF_MAX_METADATA);
        } else {
            FAIL(c, GRAFT_E_TRUNCATED, "the file ends at byte %zu, in the middle of its keys or tensor table",
                 c->n);
        }
        return false;
    }
    *out = c->bytes + c->at;
    c->at += length;
    return true;
}

static uint64_t take_number(cursor *c, size_t width) {
    const uint8_t *p;
    uint64_t v = 0;
    if (take(c, width, &p)) {
        for (size_t i = width; i > 0; i--) {
            v = v << 8 | p[i - 1];
        }
    }
    return v;
}

static uint32_t take_u32(cursor *c) {
    return (uint32_t)take_number(c, 4);
}

static uint64_t take_u64(cursor *c) {
    return take_number(c, 8);
}

static span take_string(cursor *c, const char *what) {
    span s = {"", 0};
    size_t at = c->at;
    uint64_t length = take_u64(c);
    const uint8_t *p;
    if (!c->code && length > GR_GGUF_MAX_STRING) {
        FAIL(c, GRAFT_E_GGUF_STRING, "byte %zu: %s of %llu bytes (allowed: %d)", at, what,
             (unsigned long long)length, GR_GGUF_MAX_STRING);
    }
    if (!take(c, (size_t)length, &p)) {
        return s;
    }
    s.text = (const char *)p;
    s.length = (size_t)length;
    if (!gr_utf8_valid(s.text, s.length)) {
        FAIL(c, GRAFT_E_GGUF_STRING, "byte %zu: %s is not UTF-8", at, what);
    }
    return s;
}

static bool is(span s, const char *text) {
    return s.length == strlen(text) && memcmp(s.text, text, s.length) == 0;
}

static bool starts(span s, const char *text) {
    return s.length >= strlen(text) && memcmp(s.text, text, strlen(text)) == 0;
}

/* ---- keys ------------------------------------------------------------------------------------------------ */

/* What the keys said, before it is judged. */
typedef struct facts {
    span architecture, type, adapter_type;
    bool has_architecture, has_type, has_adapter_type, has_alpha;
    float alpha;
    uint32_t alignment;
    uint64_t split_count;
    bool has_tokenizer;
    int32_t *invocation; /* owned */
    size_t n_invocation;
} facts;

/* Bytes of a value of fixed size, or 0. */
static size_t value_width(uint32_t type) {
    static const size_t width[N_TYPES] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
    return type < N_TYPES ? width[type] : 0;
}

static const char *type_name(uint32_t type) {
    static const char *const name[N_TYPES] = {"u8",   "i8",     "u16",   "i16", "u32", "i32", "f32",
                                              "bool", "string", "array", "u64", "i64", "f64"};
    return type < N_TYPES ? name[type] : "an unknown type";
}

static void skip_array(cursor *c, const char *key) {
    uint32_t type = take_u32(c);
    uint64_t n = take_u64(c);
    size_t width = value_width(type);
    if (!c->code && !width && type != STRING) {
        FAIL(c, GRAFT_E_GGUF_TYPE, "key \"%s\": an array of %s", key,
             type == ARRAY ? "arrays" : "an unknown type");
    }
    if (!c->code && n > GR_GGUF_MAX_ARRAY) {
        FAIL(c, GRAFT_E_GGUF_TYPE, "key \"%s\": an array of %llu elements (allowed: %llu)", key,
             (unsigned long long)n, (unsigned long long)GR_GGUF_MAX_ARRAY);
    }
    const uint8_t *p;
    if (width) {
        take(c, (size_t)n * width, &p); /* n is bounded: no wrap */
        return;
    }
    for (uint64_t i = 0; i < n && !c->code; i++) {
        take_string(c, "a string in an array");
    }
}

static void skip_value(cursor *c, uint32_t type, const char *key) {
    const uint8_t *p;
    if (type == STRING) {
        take_string(c, "a value");
    } else if (type == ARRAY) {
        skip_array(c, key);
    } else if (value_width(type)) {
        take(c, value_width(type), &p);
    } else {
        FAIL(c, GRAFT_E_GGUF_TYPE, "key \"%s\": value type %u", key, type);
    }
}

/* False (and failed) unless the value has the type that the key must have. */
static bool typed(cursor *c, const char *key, uint32_t found, uint32_t wanted) {
    if (!c->code && found != wanted) {
        FAIL(c, GRAFT_E_GGUF_KEY_TYPE, "key \"%s\" is %s (allowed: %s)", key, type_name(found),
             type_name(wanted));
    }
    return !c->code;
}

static void read_string_key(cursor *c, const char *key, uint32_t type, span *out, bool *has) {
    if (typed(c, key, type, STRING)) {
        *out = take_string(c, key);
        *has = true;
    }
}

static void read_alpha(cursor *c, const char *key, uint32_t type, facts *f) {
    if (typed(c, key, type, F32)) {
        uint32_t bits = take_u32(c);
        memcpy(&f->alpha, &bits, sizeof f->alpha);
        f->has_alpha = true;
    }
}

static void read_alignment(cursor *c, const char *key, uint32_t type, facts *f) {
    if (!c->code && type != U32) {
        FAIL(c, GRAFT_E_GGUF_ALIGNMENT, "key \"%s\" is %s (allowed: u32)", key, type_name(type));
    }
    f->alignment = take_u32(c);
    bool power = f->alignment && !(f->alignment & (f->alignment - 1));
    if (!c->code && (!power || f->alignment < ALIGNMENT_MIN || f->alignment > ALIGNMENT_MAX)) {
        FAIL(c, GRAFT_E_GGUF_ALIGNMENT, "alignment %u (allowed: a power of two from %d to %d)", f->alignment,
             ALIGNMENT_MIN, ALIGNMENT_MAX);
    }
}

static void read_alora(cursor *c, const char *key, uint32_t type, facts *f) {
    if (!typed(c, key, type, ARRAY)) {
        return;
    }
    uint32_t element = take_u32(c);
    uint64_t n = take_u64(c);
    if (!c->code && (element != U32 || n == 0 || n > ALORA_MAX)) {
        FAIL(c, GRAFT_E_GGUF_ALORA, "key \"%s\": %llu of %s (allowed: 1 to %d of u32)", key,
             (unsigned long long)n, type_name(element), ALORA_MAX);
    }
    int32_t *ids = c->code ? NULL : gr_calloc((size_t)n, sizeof *ids);
    if (!c->code && !ids) {
        c->code = gr_fail_memory(c->err, (size_t)n * sizeof *ids);
    }
    for (uint64_t i = 0; i < n && !c->code; i++) {
        uint32_t id = take_u32(c);
        if (!c->code && id > INT32_MAX) {
            FAIL(c, GRAFT_E_GGUF_ALORA, "key \"%s\": token %u", key, id);
        } else if (!c->code) {
            ids[i] = (int32_t)id;
        }
    }
    gr_free(f->invocation); /* of the same key before: refused once all keys are known */
    f->invocation = ids;
    f->n_invocation = (size_t)n;
}

static void read_split_count(cursor *c, const char *key, uint32_t type, facts *f) {
    if (!c->code && (!value_width(type) || type == F32 || type == F64 || type == BOOL)) {
        FAIL(c, GRAFT_E_GGUF_KEY_TYPE, "key \"%s\" is %s (allowed: an integer)", key, type_name(type));
        return;
    }
    f->split_count = take_number(c, value_width(type));
}

static span read_key(cursor *c, facts *f) {
    span key = take_string(c, "a key");
    uint32_t type = take_u32(c);
    char quoted[GR_QUOTE_SIZE];
    gr_quote(quoted, key.text, key.length);
    if (!c->code && key.length == 0) {
        FAIL(c, GRAFT_E_GGUF_STRING, "byte %zu: an empty key", c->at);
    }
    if (is(key, "general.architecture")) {
        read_string_key(c, quoted, type, &f->architecture, &f->has_architecture);
    } else if (is(key, "general.type")) {
        read_string_key(c, quoted, type, &f->type, &f->has_type);
    } else if (is(key, "adapter.type")) {
        read_string_key(c, quoted, type, &f->adapter_type, &f->has_adapter_type);
    } else if (is(key, "adapter.lora.alpha")) {
        read_alpha(c, quoted, type, f);
    } else if (is(key, "general.alignment")) {
        read_alignment(c, quoted, type, f);
    } else if (is(key, "adapter.alora.invocation_tokens")) {
        read_alora(c, quoted, type, f);
    } else if (is(key, "split.count")) {
        read_split_count(c, quoted, type, f);
    } else {
        f->has_tokenizer |= starts(key, "tokenizer.");
        skip_value(c, type, quoted);
    }
    return key;
}

static int by_text(const void *a, const void *b) {
    const span *x = a, *y = b;
    size_t n = x->length < y->length ? x->length : y->length;
    int order = memcmp(x->text, y->text, n);
    return order ? order : (x->length > y->length) - (x->length < y->length);
}

static void read_keys(cursor *c, uint64_t n, facts *f) {
    span *keys = gr_calloc((size_t)n, sizeof *keys); /* n is bounded by the bytes left */
    if (!keys) {
        c->code = gr_fail_memory(c->err, (size_t)n * sizeof *keys);
        return;
    }
    for (uint64_t i = 0; i < n && !c->code; i++) {
        keys[i] = read_key(c, f);
    }
    if (!c->code && n > 1) {
        qsort(keys, (size_t)n, sizeof *keys, by_text);
    }
    for (uint64_t i = 1; i < n && !c->code; i++) {
        if (by_text(&keys[i - 1], &keys[i]) == 0) {
            char quoted[GR_QUOTE_SIZE];
            FAIL(c, GRAFT_E_GGUF_DUPLICATE, "key \"%s\" twice", gr_quote(quoted, keys[i].text, keys[i].length));
        }
    }
    gr_free(keys);
}

/* Is this a LoRA adapter that can be read? */
static void judge(cursor *c, const facts *f) {
    char quoted[GR_QUOTE_SIZE];
    if (c->code) {
        return;
    }
    if (!f->has_type || !is(f->type, "adapter")) {
        FAIL(c, GRAFT_E_NOT_AN_ADAPTER, "general.type is \"%s\" (allowed: \"adapter\"); is this a model?",
             gr_quote(quoted, f->type.text, f->type.length));
    } else if (!f->has_adapter_type || !is(f->adapter_type, "lora")) {
        FAIL(c, GRAFT_E_NOT_AN_ADAPTER, "adapter.type is \"%s\" (allowed: \"lora\")",
             gr_quote(quoted, f->adapter_type.text, f->adapter_type.length));
    } else if (f->split_count > 1) {
        FAIL(c, GRAFT_E_SHARDED_UNSUPPORTED, "part of an adapter that is split into %llu files",
             (unsigned long long)f->split_count);
    } else if (!f->has_architecture || f->architecture.length == 0) {
        FAIL(c, GRAFT_E_MISSING_FIELD, "general.architecture is missing");
    } else if (memchr(f->architecture.text, '\0', f->architecture.length)) {
        FAIL(c, GRAFT_E_GGUF_STRING, "general.architecture \"%s\" holds a NUL byte",
             gr_quote(quoted, f->architecture.text, f->architecture.length));
    } else if (!f->has_alpha) {
        FAIL(c, GRAFT_E_ALPHA_MISSING, "adapter.lora.alpha is missing");
    } else if (!isfinite(f->alpha) || f->alpha == 0) {
        FAIL(c, GRAFT_E_BAD_ALPHA, "adapter.lora.alpha is %g (allowed: finite, not 0)", (double)f->alpha);
    }
}

/* ---- tensors --------------------------------------------------------------------------------------------- */

static bool read_name(cursor *c, gr_tensor_info *t) {
    span name = take_string(c, "a tensor name");
    char quoted[GR_QUOTE_SIZE];
    if (!c->code && name.length > NAME_MAX_BYTES) {
        FAIL(c, GRAFT_E_GGUF_NAME, "tensor name \"%s\" has %zu bytes (allowed: %d)",
             gr_quote(quoted, name.text, name.length), name.length, NAME_MAX_BYTES);
    }
    if (c->code) {
        return false;
    }
    c->code = gr_tensor_name_check(name.text, name.length, c->err);
    if (c->code) {
        return false;
    }
    t->name = gr_strndup(name.text, name.length);
    if (!t->name) {
        c->code = gr_fail_memory(c->err, name.length + 1);
    }
    return !c->code;
}

/* GGUF lists the fastest dimension first; gr_tensor_info lists it last. */
static void read_dims(cursor *c, gr_tensor_info *t) {
    t->n_dims = take_u32(c);
    if (!c->code && (t->n_dims < 1 || t->n_dims > GR_MAX_DIMS)) {
        FAIL(c, GRAFT_E_GGUF_SHAPE, "tensor \"%s\": %u dimensions (allowed: 1 to %d)", t->name, t->n_dims,
             GR_MAX_DIMS);
    }
    for (uint32_t i = t->n_dims; i > 0 && !c->code; i--) {
        uint64_t ne = take_u64(c);
        if (!c->code && (ne < 1 || ne > INT64_MAX)) {
            FAIL(c, GRAFT_E_GGUF_SHAPE, "tensor \"%s\": a dimension of %lld (allowed: 1 or more)", t->name,
                 (long long)ne);
        }
        if (!c->code) {
            t->shape[i - 1] = ne;
        }
    }
}

static void read_type(cursor *c, gr_tensor_info *t) {
    uint32_t type = take_u32(c);
    /* ggml's numbers: 4, 5, 31 to 33 and 36 to 38 were given up. */
    bool known =
        type <= 42 && type != 4 && type != 5 && !(type >= 31 && type <= 33) && !(type >= 36 && type <= 38);
    switch (type) {
    case 0: t->dtype = GR_DTYPE_F32; return;
    case 1: t->dtype = GR_DTYPE_F16; return;
    case 30: t->dtype = GR_DTYPE_BF16; return;
    default: break;
    }
    if (!c->code) {
        FAIL(c, known ? GRAFT_E_UNSUPPORTED_DTYPE : GRAFT_E_GGUF_TENSOR_TYPE,
             "tensor \"%s\": ggml type %u (allowed: 0 = F32, 1 = F16, 30 = BF16)", t->name, type);
    }
}

/* `expected` is where the tensor must begin; becomes where the next one must. */
static void read_place(cursor *c, gr_tensor_info *t, uint32_t alignment, uint64_t *expected) {
    t->offset = take_u64(c);
    if (c->code) {
        return;
    }
    if (t->offset != *expected) {
        FAIL(c, GRAFT_E_GGUF_OFFSET, "tensor \"%s\": offset %llu (allowed: %llu, behind the tensor before it)",
             t->name, (unsigned long long)t->offset, (unsigned long long)*expected);
        return;
    }
    uint64_t padded;
    if (!gr_tensor_byte_size(&t->size, t) || !gr_pad_u64(&padded, t->size, alignment) ||
        !gr_add_u64(expected, *expected, padded) || *expected > INT64_MAX) {
        FAIL(c, GRAFT_E_GGUF_OVERFLOW, "tensor \"%s\": its size does not fit 63 bits", t->name);
    }
}

/* Turns offsets into the file's, and compares the end of the data with the file's. */
static void place_all(cursor *c, gr_tensor_list *l, uint32_t alignment, uint64_t padded_data) {
    uint64_t begin, end;
    if (c->code) {
        return;
    }
    if (!gr_pad_u64(&begin, c->at, alignment) || !gr_add_u64(&end, begin, padded_data)) {
        FAIL(c, GRAFT_E_GGUF_OVERFLOW, "the tensors' size does not fit 64 bits");
        return;
    }
    const gr_tensor_info *last = &l->tensors[l->n - 1];
    uint64_t needed = begin + last->offset + last->size; /* at most end: no wrap */
    if (c->file_size < needed) {
        FAIL(c, GRAFT_E_TRUNCATED, "the file has %llu bytes, its tensors need %llu: a cut-off download?",
             (unsigned long long)c->file_size, (unsigned long long)needed);
    } else if (c->file_size > end) {
        FAIL(c, GRAFT_E_TRAILING_BYTES, "%llu bytes after the last tensor belong to none",
             (unsigned long long)(c->file_size - end));
    }
    for (size_t i = 0; i < l->n; i++) {
        l->tensors[i].offset += begin;
    }
}

static void read_tensors(cursor *c, gr_tensor_list *l, uint64_t n, uint32_t alignment) {
    if (c->code) {
        return;
    }
    l->tensors = gr_calloc((size_t)n, sizeof *l->tensors);
    if (!l->tensors) {
        c->code = gr_fail_memory(c->err, (size_t)n * sizeof *l->tensors);
        return;
    }
    uint64_t expected = 0;
    while (l->n < n && !c->code) {
        gr_tensor_info *t = &l->tensors[l->n];
        if (!read_name(c, t)) {
            return;
        }
        l->n++;
        read_dims(c, t);
        read_type(c, t);
        read_place(c, t, alignment, &expected);
    }
    place_all(c, l, alignment, expected);
    if (c->code) {
        return;
    }
    gr_tensor_list_sort(l);
    for (size_t i = 1; i < l->n && !c->code; i++) {
        if (strcmp(l->tensors[i - 1].name, l->tensors[i].name) == 0) {
            FAIL(c, GRAFT_E_GGUF_DUPLICATE, "tensor \"%s\" twice", l->tensors[i].name);
        }
    }
}

/* ---- the whole ------------------------------------------------------------------------------------------- */

bool gr_gguf_is(const uint8_t *first, size_t n) {
    return n >= 4 && memcmp(first, "GGUF", 4) == 0;
}

static void read_version(cursor *c) {
    const uint8_t *magic;
    if (!take(c, 4, &magic)) {
        return;
    }
    if (!gr_gguf_is(magic, 4)) {
        FAIL(c, GRAFT_E_GGUF_VERSION, "does not begin with \"GGUF\"");
        return;
    }
    uint32_t version = take_u32(c);
    if (!c->code && version != 2 && version != 3) {
        bool swapped = version && (version & 0xffff) == 0;
        FAIL(c, GRAFT_E_GGUF_VERSION, "version %u (allowed: 2 and 3)%s", version,
             swapped ? "; this looks like a big-endian file" : "");
    }
}

static void check_counts(cursor *c, uint64_t n_tensors, uint64_t n_keys) {
    uint64_t left = c->file_size - c->at;
    if (c->code) {
        return;
    }
    if (n_keys > GR_GGUF_MAX_KEYS || n_keys > left / KEY_BYTES_MIN) {
        FAIL(c, GRAFT_E_GGUF_COUNTS, "%llu keys in a file of %llu bytes (allowed: %d)",
             (unsigned long long)n_keys, (unsigned long long)c->file_size, GR_GGUF_MAX_KEYS);
    } else if (n_tensors > left / TENSOR_BYTES_MIN) {
        FAIL(c, GRAFT_E_GGUF_COUNTS, "%llu tensors in a file of %llu bytes", (unsigned long long)n_tensors,
             (unsigned long long)c->file_size);
    } else if (n_tensors > GR_MAX_TENSORS) {
        FAIL(c, GRAFT_E_TOO_MANY_TENSORS, "%llu tensors (allowed: %d)", (unsigned long long)n_tensors,
             GR_MAX_TENSORS);
    }
}

int gr_gguf_lora_parse(gr_gguf_lora *out, const uint8_t *bytes, size_t n, uint64_t file_size,
                       graft_error *err) {
    cursor c = {.bytes = bytes, .n = n < file_size ? n : (size_t)file_size, .file_size = file_size, .err = err};
    facts f = {
        .architecture = {"", 0}, .type = {"", 0}, .adapter_type = {"", 0}, .alignment = ALIGNMENT_DEFAULT};
    gr_gguf_lora g = {0};
    read_version(&c);
    uint64_t n_tensors = take_u64(&c);
    uint64_t n_keys = take_u64(&c);
    check_counts(&c, n_tensors, n_keys);
    if (!c.code) {
        read_keys(&c, n_keys, &f);
    }
    judge(&c, &f);
    if (!c.code && n_tensors == 0) {
        FAIL(&c, GRAFT_E_NO_TENSORS, "the file holds no tensors");
    }
    read_tensors(&c, &g.tensors, n_tensors, f.alignment);
    if (!c.code) {
        g.architecture = gr_strndup(f.architecture.text, f.architecture.length);
        c.code = g.architecture ? 0 : gr_fail_memory(err, f.architecture.length + 1);
    }
    g.invocation = f.invocation;
    g.n_invocation = f.n_invocation;
    if (c.code) {
        gr_gguf_lora_finish(&g);
        return c.code;
    }
    g.alpha = (double)f.alpha;
    g.has_tokenizer = f.has_tokenizer;
    *out = g;
    return 0;
}

void gr_gguf_lora_finish(gr_gguf_lora *g) {
    gr_free(g->architecture);
    gr_free(g->invocation);
    gr_tensor_list_finish(&g->tensors);
    memset(g, 0, sizeof *g);
}
