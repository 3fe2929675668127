/* The terminal: its width, the progress bar on stderr and whole lines beside it, tables on stdout. Widths count code points. */
#include "cli.h"

#include "base/clock.h"
#include "base/memory.h"
#include "base/utf8.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

/* ---- progress bar ------------------------------------------------------------------------------------- */

/* Log lines come from any thread while the bar is up. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct {
    bool off, shown;
    int permille;     /* as last drawn */
    int64_t drawn_us;
} bar;

static bool bar_possible(void) {
    const char *term = getenv("TERM");
    return !bar.off && isatty(STDERR_FILENO) && !(term && strcmp(term, "dumb") == 0);
}

void cli_progress_off(void) {
    bar.off = true;
}

static void draw(const char *what, double done, double total) {
    enum { WIDTH = 30 };
    if (!bar_possible()) {
        return;
    }
    double part = total > 0 && done < total ? done / total : 1;
    int permille = (int)(part * 1000);
    int64_t now = gr_now_us();
    if (bar.shown && (permille == bar.permille || (permille < 1000 && now - bar.drawn_us < 50000))) {
        return;
    }
    const char *no_color = getenv("NO_COLOR");
    bool color = !(no_color && *no_color);
    int filled = (int)(part * WIDTH);
    char cells[WIDTH + 1];
    memset(cells, '#', (size_t)filled);
    memset(cells + filled, '.', (size_t)(WIDTH - filled));
    cells[WIDTH] = '\0';
    fprintf(stderr, "\r%-16s [%s%.*s%s%s] %3d %%", what, color ? "\033[32m" : "", filled, cells,
            color ? "\033[0m" : "", cells + filled, permille / 10);
    fflush(stderr);
    bar.shown = true;
    bar.permille = permille;
    bar.drawn_us = now;
}

void cli_progress(const char *what, double done, double total) {
    pthread_mutex_lock(&lock);
    draw(what, done, total);
    pthread_mutex_unlock(&lock);
}

void cli_waiting(const char *what, int seconds) {
    pthread_mutex_lock(&lock);
    if (bar_possible()) {
        fprintf(stderr, "\r%.44s … %d s", what, seconds);
        fflush(stderr);
        bar.shown = true;
        bar.permille = -1;
    }
    pthread_mutex_unlock(&lock);
}

static void wipe(void) {
    if (bar.shown) {
        fprintf(stderr, "\r%60s\r", "");
        fflush(stderr);
        bar.shown = false;
    }
}

void cli_progress_end(void) {
    pthread_mutex_lock(&lock);
    wipe();
    pthread_mutex_unlock(&lock);
}

void cli_stderr(const char *text, size_t length) {
    pthread_mutex_lock(&lock);
    wipe();
    fwrite(text, 1, length, stderr); /* unbuffered: one write */
    pthread_mutex_unlock(&lock);
}

size_t cli_width(void) {
    struct winsize size;
    if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0) {
        return size.ws_col;
    }
    const char *columns = getenv("COLUMNS");
    long width = columns ? strtol(columns, NULL, 10) : 0;
    return width >= 20 && width <= 10000 ? (size_t)width : 100;
}

/* ---- tables ------------------------------------------------------------------------------------------- */

static size_t characters(const char *s, size_t length) {
    size_t n = 0;
    for (size_t i = 0; i < length; n++) {
        size_t width = gr_utf8_char(s + i, length - i);
        i += width ? width : 1;
    }
    return n;
}

/* Bytes of s that hold at most `n` characters. */
static size_t bytes_of(const char *s, size_t n) {
    size_t i = 0, length = strlen(s);
    while (n-- > 0 && i < length) {
        size_t width = gr_utf8_char(s + i, length - i);
        i += width ? width : 1;
    }
    return i;
}

/* Bytes of s for one line of `n` characters: up to the last space that fits, else cut within the word. */
static size_t line_of(const char *s, size_t n) {
    size_t most = bytes_of(s, n);
    if (s[most] == '\0' || s[most] == ' ') {
        return most;
    }
    for (size_t i = most; i > 0; i--) {
        if (s[i - 1] == ' ') {
            return i;
        }
    }
    return most;
}

void cli_table_init(cli_table *t, size_t n_columns, const char *const *heads, unsigned right) {
    memset(t, 0, sizeof *t);
    t->n_columns = n_columns;
    t->right = right;
    for (size_t i = 0; i < n_columns; i++) {
        cli_table_text(t, heads[i], strlen(heads[i]));
    }
}

void cli_table_text(cli_table *t, const char *text, size_t length) {
    gr_buffer clean;
    gr_buffer_init(&clean, SIZE_MAX / 4);
    cli_clean(&clean, text, length, false);
    cli_buffer_check(&clean);
    t->cells = cli_grow(t->cells, t->n_cells, sizeof *t->cells);
    t->cells[t->n_cells++] = cli_strdup(clean.data ? clean.data : "");
    gr_buffer_finish(&clean);
}

void cli_table_cell(cli_table *t, const char *format, ...) {
    char text[1024];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    cli_table_text(t, text, strlen(text));
}

void cli_table_span(cli_table *t, const char *text) {
    cli_table_text(t, text, strlen(text));
    for (size_t i = 1; i < t->n_columns; i++) {
        t->cells = cli_grow(t->cells, t->n_cells, sizeof *t->cells);
        t->cells[t->n_cells++] = NULL;
    }
}

static bool is_span(const cli_table *t, const char *const *row) {
    return t->n_columns > 1 && !row[1];
}

static size_t *column_widths(const cli_table *t, size_t widest) {
    size_t *widths = cli_alloc(t->n_columns, sizeof *widths);
    for (size_t i = 0; i < t->n_cells; i++) {
        size_t column = i % t->n_columns;
        if (is_span(t, (const char *const *)&t->cells[i - column])) {
            continue;
        }
        size_t n = characters(t->cells[i], strlen(t->cells[i]));
        n = widest && n > widest ? widest : n;
        widths[column] = n > widths[column] ? n : widths[column];
    }
    return widths;
}

/* One line of a row; moves each rest[i] on past what was printed. Whether anything is left. */
static bool print_line(const cli_table *t, const char **rest, const size_t *widths) {
    bool more = false;
    size_t owed = 0; /* spaces that are written only if something follows: no line ends in them */
    for (size_t i = 0; i < t->n_columns; i++) {
        size_t length = line_of(rest[i], widths[i]);
        size_t shown = length;
        while (shown > 0 && rest[i][shown - 1] == ' ') {
            shown--;
        }
        size_t pad = widths[i] - characters(rest[i], shown);
        bool right = t->right >> i & 1;
        owed += right ? pad : 0;
        if (shown > 0) {
            printf("%*s%.*s", (int)owed, "", (int)shown, rest[i]);
            owed = 0;
        }
        owed += (right ? 0 : pad) + 2;
        rest[i] += length;
        rest[i] += strspn(rest[i], " ");
        more = more || *rest[i];
    }
    putchar('\n');
    return more;
}

static void print_rule(const cli_table *t, const size_t *widths) {
    for (size_t i = 0; i < t->n_columns; i++) {
        for (size_t k = 0; k < widths[i]; k++) {
            putchar('-');
        }
        fputs(i + 1 < t->n_columns ? "  " : "\n", stdout);
    }
}

void cli_table_print(const cli_table *t, size_t widest) {
    size_t *widths = column_widths(t, widest);
    const char **rest = cli_alloc(t->n_columns, sizeof *rest);
    for (size_t at = 0; at < t->n_cells; at += t->n_columns) {
        const char *const *row = (const char *const *)&t->cells[at];
        if (is_span(t, row)) {
            printf("%s\n", row[0]);
            continue;
        }
        memcpy(rest, row, t->n_columns * sizeof *rest);
        while (print_line(t, rest, widths)) {
        }
        if (at == 0) {
            print_rule(t, widths);
        }
    }
    gr_free(rest);
    gr_free(widths);
}

void cli_table_finish(cli_table *t) {
    for (size_t i = 0; i < t->n_cells; i++) {
        gr_free(t->cells[i]);
    }
    gr_free(t->cells);
    memset(t, 0, sizeof *t);
}
