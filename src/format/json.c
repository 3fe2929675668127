/*
 * Strict JSON. A scan of our own comes first and decides everything that must be bounded before memory is spent
 * (size, depth, number of values) and what is a matter of encoding; jansson then decides the grammar.
 */
#include "json.h"

#include "base/utf8.h"

#include <string.h>

/* ---- the scan before jansson ---------------------------------------------------------------------------- */

typedef struct scan {
    const char *bytes;
    size_t length, at;
    const char *what;
    int depth;
    size_t containers, commas;
    graft_error *err;
} scan;

static int hex_digit(char c) {
    if (c >= '0' && c <= '9') {
        return c - '0';
    }
    c |= 0x20; /* lower case */
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* Four hex digits at `at`, or -1. */
static int hex4(const scan *s, size_t at) {
    int value = 0;
    for (size_t i = at; i < at + 4; i++) {
        int digit = i < s->length ? hex_digit(s->bytes[i]) : -1;
        if (digit < 0) {
            return -1;
        }
        value = value * 16 + digit;
    }
    return value;
}

/* At the 'u' of an escape. Leaves malformed escapes and \u0000 to jansson. */
static int scan_unicode_escape(scan *s) {
    int unit = hex4(s, s->at + 1);
    if (unit < 0xd800 || unit > 0xdfff) {
        s->at += 1;
        return 0;
    }
    bool pair =
        unit < 0xdc00 && s->at + 6 < s->length && s->bytes[s->at + 5] == '\\' && s->bytes[s->at + 6] == 'u';
    int low = pair ? hex4(s, s->at + 7) : -1;
    if (low < 0xdc00 || low > 0xdfff) {
        return gr_fail(s->err, GRAFT_E_JSON_ENCODING,
                       "%s: byte %zu: half of a surrogate pair (\\u%04x) on its own", s->what, s->at - 1,
                       (unsigned)unit);
    }
    s->at += 11;
    return 0;
}

/* From the opening quote to past the closing one, or to the end. */
static int scan_string(scan *s) {
    s->at++;
    while (s->at < s->length && s->bytes[s->at] != '"') {
        if (s->bytes[s->at] != '\\') {
            s->at++;
        } else if (s->at + 1 < s->length && s->bytes[s->at + 1] == 'u') {
            s->at++;
            int code = scan_unicode_escape(s);
            if (code) {
                return code;
            }
        } else {
            s->at += 2;
        }
    }
    s->at++;
    return 0;
}

static int scan_open(scan *s) {
    s->containers++;
    if (++s->depth > GR_JSON_MAX_DEPTH) {
        return gr_fail(s->err, GRAFT_E_JSON_TOO_DEEP, "%s: byte %zu: nested more than %d deep", s->what, s->at,
                       GR_JSON_MAX_DEPTH);
    }
    return 0;
}

static int scan_counts(const scan *s) {
    if (s->containers > GR_JSON_MAX_CONTAINERS) {
        return gr_fail(s->err, GRAFT_E_JSON_TOO_LARGE, "%s: more than %zu objects and arrays", s->what,
                       GR_JSON_MAX_CONTAINERS);
    }
    if (s->containers + s->commas > GR_JSON_MAX_VALUES) {
        return gr_fail(s->err, GRAFT_E_JSON_TOO_LARGE, "%s: more than %zu values", s->what, GR_JSON_MAX_VALUES);
    }
    return 0;
}

static int scan_all(scan *s) {
    int code = 0;
    while (!code && s->at < s->length) {
        switch (s->bytes[s->at]) {
        case '"': code = scan_string(s); continue;
        case '{':
        case '[': code = scan_open(s); break;
        case '}':
        case ']': s->depth--; break;
        case ',': s->commas++; break;
        default: break;
        }
        s->at++;
        if (!code) {
            code = scan_counts(s);
        }
    }
    return code;
}

static size_t first_invalid_utf8(const char *bytes, size_t length) {
    size_t at = 0;
    while (at < length) {
        size_t width = gr_utf8_char(bytes + at, length - at);
        if (!width) {
            break;
        }
        at += width;
    }
    return at;
}

static int check_before(const char *bytes, size_t length, const char *what, graft_error *err) {
    if (length > GR_JSON_MAX_BYTES) {
        return gr_fail(err, GRAFT_E_JSON_TOO_LARGE, "%s: %zu bytes (allowed: %zu)", what, length,
                       GR_JSON_MAX_BYTES);
    }
    if (length >= 3 && memcmp(bytes, "\xef\xbb\xbf", 3) == 0) {
        return gr_fail(err, GRAFT_E_JSON_SYNTAX, "%s: byte 0: begins with a byte order mark", what);
    }
    if (!gr_utf8_valid(bytes, length)) {
        return gr_fail(err, GRAFT_E_JSON_ENCODING, "%s: byte %zu: not valid UTF-8", what,
                       first_invalid_utf8(bytes, length));
    }
    /* jansson 2.14 drops a NUL byte behind a number. */
    const char *nul = length ? memchr(bytes, '\0', length) : NULL;
    if (nul) {
        return gr_fail(err, GRAFT_E_JSON_SYNTAX, "%s: byte %zu: a NUL byte", what, (size_t)(nul - bytes));
    }
    scan s = {.bytes = bytes, .length = length, .what = what, .err = err};
    return scan_all(&s);
}

/* ---- jansson -------------------------------------------------------------------------------------------- */

static int code_of(const json_error_t *e) {
    switch (json_error_code(e)) {
    case json_error_unknown:
    case json_error_out_of_memory: return GRAFT_E_OUT_OF_MEMORY;
    case json_error_stack_overflow: return GRAFT_E_JSON_TOO_DEEP;
    case json_error_invalid_utf8:
    case json_error_null_character:
    case json_error_null_byte_in_key: return GRAFT_E_JSON_ENCODING;
    case json_error_duplicate_key: return GRAFT_E_JSON_DUPLICATE_KEY;
    case json_error_numeric_overflow: return GRAFT_E_OUT_OF_RANGE;
    default: return GRAFT_E_JSON_SYNTAX;
    }
}

/* jansson stops right behind the second key's closing quote: finds that key and how deep it stands. */
static void locate_key(gr_json_fault *fault, const char *bytes, size_t end) {
    memset(fault, 0, sizeof *fault);
    size_t at = 0;
    while (at < end) {
        char c = bytes[at++];
        if (c == '{' || c == '[') {
            fault->depth++;
        } else if (c == '}' || c == ']') {
            fault->depth--;
        } else if (c == '"') {
            fault->key = at;
            while (at < end && bytes[at] != '"') {
                at += bytes[at] == '\\' ? 2 : 1;
            }
            fault->key_length = (at < end ? at : end) - fault->key;
            at++;
        }
    }
}

int gr_json_parse_with_fault(json_t **out, const char *bytes, size_t length, const char *what,
                             gr_json_fault *fault, graft_error *err) {
    int code = check_before(bytes, length, what, err);
    if (code) {
        return code;
    }
    json_error_t e;
    json_t *value = json_loadb(length ? bytes : "", length, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, &e);
    if (value) {
        *out = value;
        return 0;
    }
    code = code_of(&e);
    char quoted[GR_QUOTE_SIZE];
    size_t at = e.position > 0 ? (size_t)e.position : 0;
    if (code == GRAFT_E_OUT_OF_MEMORY) {
        return gr_fail_memory(err, length);
    }
    if (code == GRAFT_E_JSON_DUPLICATE_KEY) {
        gr_json_fault where;
        locate_key(&where, bytes, at < length ? at : length);
        if (fault) {
            *fault = where;
        }
        return gr_fail(err, code, "%s: byte %zu: key \"%s\" a second time in one object", what, where.key,
                       gr_quote(quoted, bytes + where.key, where.key_length));
    }
    return gr_fail(err, code, "%s: byte %zu: %s", what, at, gr_quote(quoted, e.text, strlen(e.text)));
}

int gr_json_parse(json_t **out, const char *bytes, size_t length, const char *what, graft_error *err) {
    return gr_json_parse_with_fault(out, bytes, length, what, NULL, err);
}

const char *gr_json_type_name(const json_t *v) {
    if (!v) {
        return "nothing";
    }
    switch (json_typeof(v)) {
    case JSON_OBJECT: return "an object";
    case JSON_ARRAY: return "an array";
    case JSON_STRING: return "a string";
    case JSON_INTEGER: return "an integer";
    case JSON_REAL: return "a number with a fraction or exponent";
    case JSON_TRUE:
    case JSON_FALSE: return "a boolean";
    case JSON_NULL: return "null";
    }
    return "something else";
}
