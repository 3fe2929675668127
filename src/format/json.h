/* JSON from outside: jansson behind limits, with our error codes. */
#ifndef GR_JSON_H
#define GR_JSON_H

#include "base/error.h"

#include <jansson.h>
#include <stddef.h>

#define GR_JSON_MAX_DEPTH 64
#define GR_JSON_MAX_BYTES ((size_t)16 << 20)
/* Enough for GR_MAX_TENSORS tensors in a safetensors header (an object and two arrays each); bounds what jansson
 * allocates to about 100 MiB whatever the bytes are. */
#define GR_JSON_MAX_CONTAINERS ((size_t)1 << 18)
#define GR_JSON_MAX_VALUES ((size_t)1 << 20)

/*
 * Parses one JSON value that fills bytes[0..length) but for JSON whitespace. `what` names the source in
 * messages ("adapter_config.json"). Duplicate keys (compared decoded) are errors; objects keep their key order.
 * Errors: JSON_SYNTAX with the byte offset, JSON_ENCODING (invalid UTF-8, lone surrogates, NUL characters in
 * strings), JSON_TOO_DEEP, JSON_TOO_LARGE, JSON_DUPLICATE_KEY, OUT_OF_RANGE (a number no double or 64-bit
 * integer can hold), OUT_OF_MEMORY. *out is the caller's (json_decref).
 */
int gr_json_parse(json_t **out, const char *bytes, size_t length, const char *what, graft_error *err);

/*
 * The same, and says where in the bytes it failed: for readers whose own codes depend on it. *fault is set only on
 * JSON_DUPLICATE_KEY. For keys, `depth` is 1 in the outermost object.
 */
typedef struct gr_json_fault {
    size_t key, key_length; /* offset and length of the key as written, quotes not included */
    int depth;
} gr_json_fault;

int gr_json_parse_with_fault(json_t **out, const char *bytes, size_t length, const char *what, gr_json_fault *fault,
                             graft_error *err);

/* "an object", "a string", … for messages. */
const char *gr_json_type_name(const json_t *v);

#endif
