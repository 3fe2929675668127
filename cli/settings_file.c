/*
 * The settings file: lines of `key = value`, read by inih. What inih does without a word (a line over its limit goes on as
 * another line, an indented line is added to the one before, a ':' divides as '=' does, text after a section's ']' is dropped)
 * is refused here, line by line, before inih sees it.
 */
#include "cli.h"

#include "base/file.h"
#include "base/memory.h"
#include "base/utf8.h"

#include <fcntl.h>
#include <ini.h>
#include <string.h>

/* inih is built for lines of 200 bytes nearly everywhere; a file should mean the same everywhere. */
enum { FILE_MAX = 1 << 20, LINE_MOST = 198 };

typedef struct reading {
    cli_settings *s;
    const char *path;
    char *folder;       /* of the file, with its last slash; "" for the current one */
    const char *at, *end;
    int line;           /* of what inih has now */
    int seen[CLI_N_SETTINGS]; /* the line that had it; 0 = none yet */
    graft_error *err;   /* of the first error */
    int code;           /* likewise; then reading ends */
} reading;

static int refuse(reading *r, const char *format, ...) GR_PRINTF(2, 3);

static int refuse(reading *r, const char *format, ...) {
    char text[320];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    r->code = gr_fail(r->err, GRAFT_E_BAD_SETTING, "%.*s:%d: %s", 150, r->path, r->line, text);
    return r->code;
}

/* ---- lines -------------------------------------------------------------------------------------------- */

static bool blank(char c) {
    return c == ' ' || c == '\t';
}

static bool holds_controls(const char *text, size_t length) {
    for (size_t i = 0; i < length; i++) {
        if (((unsigned char)text[i] < 0x20 && text[i] != '\t') || text[i] == 0x7f) {
            return true;
        }
    }
    return false;
}

/* Whether it is text. 0 or the error. */
static int check_bytes(reading *r, const char *text, size_t length) {
    char quoted[GR_QUOTE_SIZE];
    if (memchr(text, '\0', length)) {
        return refuse(r, "a NUL byte: a settings file is text");
    }
    if (!gr_utf8_valid(text, length)) {
        return refuse(r, "\"%s\" is not UTF-8", gr_quote(quoted, text, length));
    }
    if (holds_controls(text, length)) {
        return refuse(r, "\"%s\" holds a control character", gr_quote(quoted, text, length));
    }
    return 0;
}

/* Whether inih will take it for what it looks like. 0 or the error. */
static int check_form(reading *r, const char *text, size_t length) {
    char quoted[GR_QUOTE_SIZE];
    size_t indent = 0;
    if (r->line == 1 && length >= 3 && memcmp(text, "\xef\xbb\xbf", 3) == 0) {
        text += 3; /* a byte order mark, which inih skips too */
        length -= 3;
    }
    while (length > 0 && blank(text[length - 1])) {
        length--;
    }
    while (indent < length && blank(text[indent])) {
        indent++;
    }
    if (indent == length || strchr(";#", text[indent])) {
        return 0; /* nothing, or a comment */
    }
    if (indent > 0) {
        return refuse(r, "a line must not begin with blanks: \"%s\"", gr_quote(quoted, text, length));
    }
    if (*text == '[') {
        return length == 7 && memcmp(text, "[graft]", 7) == 0
                   ? 0
                   : refuse(r, "unknown section \"%s\"; no section is needed, and [graft] is the only one",
                            gr_quote(quoted, text, length));
    }
    size_t key = 0;
    while (key < length && !strchr("=:;", text[key])) {
        key++;
    }
    return key < length && text[key] == '=' ? 0 : refuse(r, "\"%s\" is not `key = value`", gr_quote(quoted, text, length));
}

/* What fgets is to inih. */
static char *next_line(char *out, int size, void *user) {
    reading *r = user;
    if (r->code || r->at >= r->end) {
        return NULL;
    }
    const char *newline = memchr(r->at, '\n', (size_t)(r->end - r->at));
    size_t length = (size_t)((newline ? newline : r->end) - r->at);
    r->line++;
    size_t shown = length > 0 && r->at[length - 1] == '\r' ? length - 1 : length; /* either way of ending lines */
    if (check_bytes(r, r->at, shown) != 0 || check_form(r, r->at, shown) != 0) {
        return NULL;
    }
    int most = size - 2 < LINE_MOST ? size - 2 : LINE_MOST;
    if (length > (size_t)most) {
        refuse(r, "the line has %zu bytes, at most %d are allowed; a longer value can come from the environment or a flag",
               length, most);
        return NULL;
    }
    memcpy(out, r->at, length);
    out[length] = '\n';
    out[length + 1] = '\0';
    r->at += length + (newline ? 1 : 0);
    return out;
}

/* ---- settings ----------------------------------------------------------------------------------------- */

static int unknown(reading *r, const char *key) {
    char quoted[GR_QUOTE_SIZE];
    const cli_setting *near = cli_setting_nearest(key, strlen(key));
    gr_quote(quoted, key, strlen(key));
    return near ? refuse(r, "unknown key \"%s\"; the nearest is %s", quoted, near->key)
                : refuse(r, "unknown key \"%s\"; `graft config` lists all", quoted);
}

static int put(reading *r, int id, const char *value) {
    char why[300];
    char *text = cli_strdup(value);
    if (cli_setting_table[id].kind == CLI_PATH && *value) {
        gr_free(text);
        cli_place_from(&text, r->folder, value);
    }
    return cli_settings_put(r->s, id, CLI_FROM_FILE, r->line, cli_keep(text), why, sizeof why)
               ? 0
               : refuse(r, "%s: %s", cli_setting_table[id].key, why);
}

/* inih's handler: nonzero is success there. */
static int take(void *user, const char *section, const char *key, const char *value) {
    reading *r = user;
    (void)section; /* check_form */
    if (r->code) {
        return 0;
    }
    int id = cli_setting_find(key);
    if (id < 0) {
        return unknown(r, key) == 0;
    }
    if (r->seen[id]) {
        return refuse(r, "%s is given already in line %d", key, r->seen[id]) == 0;
    }
    r->seen[id] = r->line;
    return put(r, id, value) == 0;
}

static char *folder_of(const char *path) {
    const char *slash = strrchr(path, '/');
    char *folder = cli_strdup(path);
    folder[slash ? slash - path + 1 : 0] = '\0';
    return folder;
}

static int parse(reading *r) {
    int status = ini_parse_stream(next_line, r, take, r);
    if (r->code == 0 && status != 0) {
        /* Nothing that check_form lets through comes here, unless another inih is stricter. */
        r->line = status > 0 ? status : r->line;
        return refuse(r, "not `key = value`");
    }
    return r->code;
}

int cli_settings_read_text(cli_settings *s, const char *path, const char *text, size_t length, graft_error *err) {
    reading r = {.s = s, .path = path, .folder = folder_of(path), .at = text, .end = text + length, .err = err};
    int code = parse(&r);
    gr_free(r.folder);
    return code;
}

int cli_settings_read_file(cli_settings *s, const char *path, bool missing_ok, graft_error *err) {
    char *text;
    size_t length;
    graft_error why = {0};
    int code = gr_file_read_all(&text, &length, AT_FDCWD, path, FILE_MAX, &why);
    if (code == GRAFT_E_ADAPTER_FILE_MISSING && missing_ok) {
        return 0;
    }
    if (code) {
        return gr_fail(err, GRAFT_E_BAD_SETTING, "settings file %.*s: %.200s", CLI_PATH_SHOWN, path, why.message);
    }
    code = cli_settings_read_text(s, path, text, length, err);
    s->file = path;
    gr_free(text);
    return code;
}
