/* Files that a user names: read whole, and JSON lines one by one with their numbers. */
#include "cli.h"

#include "base/utf8.h"

#include <errno.h>
#include <string.h>

/* More text than this is no prompt; it also bounds what a wrong file name can cost. */
enum { READ_MAX = 256 * 1024 * 1024 };

static int read_stream(gr_buffer *out, FILE *file, const char *name, graft_error *err) {
    char block[16384];
    size_t n;
    while ((n = fread(block, 1, sizeof block, file)) > 0) {
        if (!gr_buffer_append(out, block, n)) {
            return out->length + n > out->max
                       ? gr_fail(err, GRAFT_E_TOO_LARGE, "%.*s is larger than %d bytes", CLI_PATH_SHOWN, name,
                                 READ_MAX)
                       : gr_fail_memory(err, n);
        }
    }
    return ferror(file) ? gr_fail(err, GRAFT_E_IO_ERROR, "%.*s: %s", CLI_PATH_SHOWN, name, strerror(errno)) : 0;
}

/* stdio and not gr_file_open: pipes and <(process substitution) are welcome here. */
int cli_read(gr_buffer *out, const char *path, graft_error *err) {
    gr_buffer_init(out, READ_MAX);
    if (strcmp(path, "-") == 0) {
        return read_stream(out, stdin, "standard input", err);
    }
    FILE *file = fopen(path, "rb");
    if (!file) {
        return gr_fail(err, GRAFT_E_NOT_READABLE, "%.*s: %s", CLI_PATH_SHOWN, path, strerror(errno));
    }
    int code = read_stream(out, file, path, err);
    fclose(file);
    return code;
}

/* jansson's reason as one of our codes. */
static int syntax_error(const json_error_t *why, graft_error *err) {
    char quoted[GR_QUOTE_SIZE];
    int code = GRAFT_E_JSON_SYNTAX;
    switch (json_error_code(why)) {
    case json_error_null_character: return gr_fail(err, code, "column %d: \\u0000 is not allowed", why->column);
    case json_error_invalid_utf8: code = GRAFT_E_JSON_ENCODING; break;
    case json_error_duplicate_key: code = GRAFT_E_JSON_DUPLICATE_KEY; break;
    case json_error_stack_overflow: code = GRAFT_E_JSON_TOO_DEEP; break;
    case json_error_out_of_memory: code = GRAFT_E_OUT_OF_MEMORY; break;
    default: break;
    }
    return gr_fail(err, code, "column %d: %s", why->column, gr_quote(quoted, why->text, strlen(why->text)));
}

static int one_line(const char *text, size_t length, cli_line_fn *fn, void *user, graft_error *err) {
    json_error_t why;
    json_t *line = json_loadb(text, length, JSON_REJECT_DUPLICATES, &why);
    if (!line) {
        return syntax_error(&why, err);
    }
    int code = json_is_object(line) ? fn(line, user, err)
                                    : gr_fail(err, GRAFT_E_BAD_TYPE, "a JSON object is needed");
    json_decref(line);
    return code;
}

static bool is_blank(const char *text, size_t length) {
    size_t i = 0;
    while (i < length && strchr(" \t\r", text[i]) && text[i]) {
        i++;
    }
    return i == length;
}

int cli_read_lines(const char *path, cli_line_fn *fn, void *user, graft_error *err) {
    gr_buffer all;
    graft_error inner = {0};
    const char *name = strcmp(path, "-") == 0 ? "standard input" : path;
    size_t number = 0, n_used = 0;
    int code = cli_read(&all, path, err);
    if (code) {
        gr_buffer_finish(&all);
        return code;
    }
    size_t at = all.length >= 3 && memcmp(all.data, "\xef\xbb\xbf", 3) == 0 ? 3 : 0; /* a byte order mark */
    while (code == 0 && at < all.length) {
        const char *text = all.data + at;
        const char *end = memchr(text, '\n', all.length - at);
        size_t length = end ? (size_t)(end - text) : all.length - at;
        number++;
        at += length + 1;
        if (is_blank(text, length)) {
            continue;
        }
        n_used++;
        code = one_line(text, length, fn, user, &inner);
    }
    gr_buffer_finish(&all);
    if (code) {
        return gr_fail(err, code, "%.*s, line %zu: %s", CLI_PATH_SHOWN, name, number, inner.message);
    }
    return n_used ? 0 : gr_fail(err, GRAFT_E_BAD_REQUEST, "%.*s holds no line", CLI_PATH_SHOWN, name);
}

int cli_check_keys(json_t *object, const char *const *known, graft_error *err) {
    const char *key;
    json_t *value;
    json_object_foreach(object, key, value) {
        size_t i = 0;
        while (known[i] && strcmp(known[i], key) != 0) {
            i++;
        }
        if (!known[i]) {
            char quoted[GR_QUOTE_SIZE];
            return gr_fail(err, GRAFT_E_BAD_REQUEST, "unknown key \"%s\"", gr_quote(quoted, key, strlen(key)));
        }
    }
    return 0;
}
