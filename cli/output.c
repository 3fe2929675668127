/* What is written: errors, text that strangers made up, JSON. Tables and bars are in terminal.c. */
#include "cli.h"

#include "base/memory.h"
#include "base/utf8.h"

#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static bool json_wanted;

void cli_set_json(bool on) {
    json_wanted = on;
}

bool cli_json(void) {
    return json_wanted;
}

/* ---- errors ------------------------------------------------------------------------------------------- */

static void error_line(const char *code, const char *message) {
    gr_buffer line;
    gr_buffer_init(&line, 4096);
    cli_clean(&line, message, strlen(message), false);
    cli_progress_end();
    fflush(stdout); /* the answer so far comes before the complaint */
    fprintf(stderr, "graft: error: %s: %s\n", code, line.data ? line.data : "");
    gr_buffer_finish(&line);
}

void cli_error_line(const graft_error *err) {
    error_line(graft_error_name(err->code), err->message);
}

static json_t *error_json(const char *code, const char *message) {
    json_t *object = cli_json_object();
    cli_json_set(object, "code", cli_json_string(code));
    cli_json_set(object, "message", cli_json_string(message));
    return object;
}

static int tell(const char *code, const char *message) {
    error_line(code, message);
    if (json_wanted) {
        json_t *object = cli_json_object();
        cli_json_set(object, "error", error_json(code, message));
        cli_json_print(object);
    }
    return CLI_FAILED;
}

int cli_error(const graft_error *err) {
    return tell(graft_error_name(err->code), err->message);
}

int cli_fail_as(const char *code, const char *format, ...) {
    char message[1024];
    va_list args;
    va_start(args, format);
    vsnprintf(message, sizeof message, format, args);
    va_end(args);
    return tell(code, message);
}

static int error_va(int code, const char *format, va_list args) GR_PRINTF(2, 0);

static int error_va(int code, const char *format, va_list args) {
    graft_error err = {.code = code};
    vsnprintf(err.message, sizeof err.message, format, args);
    return cli_error(&err);
}

int cli_fail(int code, const char *format, ...) {
    va_list args;
    va_start(args, format);
    int status = error_va(code, format, args);
    va_end(args);
    return status;
}

int cli_usage(const char *format, ...) {
    va_list args;
    va_start(args, format);
    error_va(GRAFT_E_BAD_REQUEST, format, args);
    va_end(args);
    return CLI_USAGE;
}

/* ---- memory ------------------------------------------------------------------------------------------- */

void cli_no_memory(void) {
    fputs("graft: error: out_of_memory: an allocation failed\n", stderr);
    exit(CLI_FAILED);
}

void *cli_alloc(size_t count, size_t size) {
    void *block = gr_calloc(count, size);
    if (!block) {
        cli_no_memory();
    }
    return block;
}

/* Grows at powers of two: `count` items fit until the next one is reached. */
void *cli_grow(void *items, size_t count, size_t size) {
    if (count != 0 && (count & (count - 1)) != 0) {
        return items;
    }
    size_t room = count ? count * 2 : 1;
    void *grown = room > SIZE_MAX / 2 / size ? NULL : gr_realloc(items, room * size);
    if (!grown) {
        cli_no_memory();
    }
    memset((char *)grown + count * size, 0, (room - count) * size);
    return grown;
}

char *cli_strdup(const char *s) {
    char *copy = gr_strdup(s);
    if (!copy) {
        cli_no_memory();
    }
    return copy;
}

void cli_buffer_check(const gr_buffer *b) {
    if (b->failed) {
        cli_no_memory();
    }
}

/* Texts that live until the end: a settings file's values. */
static struct {
    char **items;
    size_t n;
} kept;

const char *cli_keep(char *text) {
    kept.items = cli_grow(kept.items, kept.n, sizeof *kept.items);
    kept.items[kept.n++] = text;
    return text;
}

static void free_kept(void) {
    for (size_t i = 0; i < kept.n; i++) {
        gr_free(kept.items[i]);
    }
    gr_free(kept.items);
    kept.items = NULL;
    kept.n = 0;
}

/* ---- text --------------------------------------------------------------------------------------------- */

/* Characters that change what a terminal does or in which direction it writes. */
static bool is_control(const char *c, size_t width) {
    const unsigned char *u = (const unsigned char *)c;
    if (width == 1) {
        return u[0] < 0x20 || u[0] == 0x7f;
    }
    if (width == 2) {
        return u[0] == 0xc2 && u[1] < 0xa0;
    }
    if (width != 3 || u[0] != 0xe2) {
        return false;
    }
    return (u[1] == 0x80 && ((u[2] >= 0xaa && u[2] <= 0xae) || u[2] == 0x8e || u[2] == 0x8f)) ||
           (u[1] == 0x81 && u[2] >= 0xa6 && u[2] <= 0xa9);
}

void cli_clean(gr_buffer *out, const char *text, size_t length, bool lines) {
    size_t width;
    for (size_t i = 0; i < length; i += width) {
        const char *c = text + i;
        width = gr_utf8_char(c, length - i);
        if (width == 0) {
            gr_buffer_puts(out, "\xef\xbf\xbd");
            width = 1;
        } else if (*c == '\n' || *c == '\t') {
            gr_buffer_append(out, lines ? c : " ", 1);
        } else if (!is_control(c, width)) {
            gr_buffer_append(out, c, width);
        }
    }
}

bool cli_write_text(const char *text, size_t length) {
    if (!isatty(STDOUT_FILENO)) {
        return fwrite(text, 1, length, stdout) == length && fflush(stdout) == 0;
    }
    gr_buffer clean;
    gr_buffer_init(&clean, SIZE_MAX / 4);
    cli_clean(&clean, text, length, true);
    cli_buffer_check(&clean);
    bool ok = clean.length == 0 || fwrite(clean.data, 1, clean.length, stdout) == clean.length;
    gr_buffer_finish(&clean);
    return ok && fflush(stdout) == 0;
}

const char *cli_bytes(char out[CLI_BYTES_SIZE], uint64_t bytes) {
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    double value = (double)bytes;
    size_t unit = 0;
    while (value >= 1024 && unit + 1 < CLI_COUNT(units)) {
        value /= 1024;
        unit++;
    }
    snprintf(out, CLI_BYTES_SIZE, unit ? "%.2f %s" : "%.0f %s", value, units[unit]);
    return out;
}

/* ---- JSON --------------------------------------------------------------------------------------------- */

static json_t *needed(json_t *value) {
    if (!value) {
        cli_no_memory();
    }
    return value;
}

json_t *cli_json_text(const char *text, size_t length) {
    if (gr_utf8_valid(text, length)) {
        return needed(json_stringn(text, length));
    }
    gr_buffer valid;
    gr_buffer_init(&valid, SIZE_MAX / 4);
    size_t width;
    for (size_t i = 0; i < length; i += width) {
        width = gr_utf8_char(text + i, length - i);
        gr_buffer_append(&valid, width ? text + i : "\xef\xbf\xbd", width ? width : 3);
        width = width ? width : 1;
    }
    cli_buffer_check(&valid);
    json_t *value = needed(json_stringn(valid.data, valid.length));
    gr_buffer_finish(&valid);
    return value;
}

json_t *cli_json_string(const char *text) {
    return text ? cli_json_text(text, strlen(text)) : json_null();
}

json_t *cli_json_number(double value) {
    return isfinite(value) ? needed(json_real(value)) : json_null();
}

json_t *cli_json_integer(int64_t value) {
    return needed(json_integer(value));
}

json_t *cli_json_object(void) {
    return needed(json_object());
}

json_t *cli_json_array(void) {
    return needed(json_array());
}

void cli_json_set(json_t *object, const char *key, json_t *value) {
    if (json_object_set_new(object, key, value) != 0) {
        cli_no_memory();
    }
}

void cli_json_append(json_t *array, json_t *value) {
    if (json_array_append_new(array, value) != 0) {
        cli_no_memory();
    }
}

json_t *cli_json_error(const graft_error *err) {
    return error_json(graft_error_name(err->code), err->message);
}

/* Nine digits tell every float32 from its neighbours, and do not show a double's noise. */
void cli_json_print(json_t *value) {
    char *line = json_dumps(value, JSON_COMPACT | JSON_REAL_PRECISION(9));
    if (!line) {
        cli_no_memory();
    }
    puts(line);
    fflush(stdout);
    free(line);
    json_decref(value);
}

/* ---- the end ------------------------------------------------------------------------------------------ */

int cli_finish(int status) {
    free_kept();
    if (fflush(stdout) == 0 && !ferror(stdout)) {
        return status;
    }
    fprintf(stderr, "graft: error: %s: cannot write to standard output\n", graft_error_name(GRAFT_E_IO_ERROR));
    return status == CLI_OK ? CLI_FAILED : status;
}
