/* Lines from a terminal. libedit and not GNU readline, whose licence is not ours. */
#include "line_editor.h"

#include "base/memory.h"

#include <histedit.h>
#include <langinfo.h>
#include <locale.h>
#include <signal.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { HISTORY_LINES = 1000 };

struct line_editor {
    EditLine *el;
    History *history;
    char *file; /* or NULL */
    const char *prompt;
    bool discarded;
};

static line_editor *of(EditLine *el) {
    void *user = NULL;
    el_get(el, EL_CLIENTDATA, &user);
    return user;
}

static char *prompt_of(EditLine *el) {
    return (char *)of(el)->prompt; /* libedit reads it only */
}

/* Ctrl-C as a key: no signal comes while a line is edited. */
static unsigned char discard(EditLine *el, int key) {
    (void)key;
    of(el)->discarded = true;
    return CC_NEWLINE;
}

/* libedit puts the terminal right before, and back afterwards. */
static unsigned char suspend(EditLine *el, int key) {
    (void)el;
    (void)key;
    raise(SIGTSTP);
    return CC_REDISPLAY;
}

/* libedit reads characters as the locale has them, and a program begins in one that has ASCII only. */
static void choose_locale(void) {
    setlocale(LC_CTYPE, "");
    if (strcmp(nl_langinfo(CODESET), "UTF-8") != 0 && !setlocale(LC_CTYPE, "C.UTF-8")) {
        setlocale(LC_CTYPE, "en_US.UTF-8");
    }
}

static void open_history(line_editor *e, const char *file) {
    HistEvent event;
    e->history = history_init();
    if (!e->history) {
        return;
    }
    history(e->history, &event, H_SETSIZE, HISTORY_LINES);
    history(e->history, &event, H_SETUNIQUE, 1);
    el_set(e->el, EL_HIST, history, e->history);
    if (file) {
        e->file = cli_strdup(file);
        history(e->history, &event, H_LOAD, file);
    }
}

line_editor *line_editor_open(const char *history) {
    line_editor *e = cli_alloc(1, sizeof *e);
    choose_locale();
    e->el = el_init("graft", stdin, stdout, stderr);
    if (!e->el) {
        gr_free(e);
        return NULL;
    }
    el_set(e->el, EL_CLIENTDATA, e);
    el_set(e->el, EL_PROMPT, prompt_of);
    el_set(e->el, EL_EDITOR, "emacs");
    el_set(e->el, EL_SIGNAL, 1); /* the terminal is put right before another signal does its work */
    el_set(e->el, EL_SETTY, "-d", "-isig", NULL); /* Ctrl-C and Ctrl-Z are keys */
    el_wset(e->el, EL_ADDFN, L"graft-discard", L"give the line up", discard); /* el_set would leak copies of the names */
    el_set(e->el, EL_BIND, "^C", "graft-discard", NULL);
    el_wset(e->el, EL_ADDFN, L"graft-suspend", L"stop until the shell goes on", suspend);
    el_set(e->el, EL_BIND, "^Z", "graft-suspend", NULL);
    el_set(e->el, EL_BIND, "^R", "em-inc-search-prev", NULL);
    el_set(e->el, EL_BIND, "\033[3~", "ed-delete-next-char", NULL);
    open_history(e, history);
    return e;
}

void line_editor_close(line_editor *e) {
    if (!e) {
        return;
    }
    if (e->history) {
        history_end(e->history);
    }
    el_end(e->el);
    gr_free(e->file);
    gr_free(e);
}

/* With each line: a terminal that is closed leaves no time to do it at the end. What was said is nobody else's business. */
static void remember(line_editor *e, const char *line) {
    HistEvent event;
    if (!e->history || !*line) {
        return;
    }
    history(e->history, &event, H_ENTER, line);
    if (e->file) {
        mode_t old = umask(077);
        history(e->history, &event, H_SAVE, e->file);
        chmod(e->file, 0600);
        umask(old);
    }
}

line_end line_editor_read(line_editor *e, const char *prompt, gr_buffer *out) {
    int count = 0;
    e->prompt = prompt;
    e->discarded = false;
    gr_buffer_clear(out);
    el_set(e->el, EL_PREP_TERM, 1); /* before the prompt is seen: what is typed at once is edited, too */
    const char *line = el_gets(e->el, &count);
    if (e->discarded) {
        return LINE_DISCARDED;
    }
    if (!line || count <= 0) {
        return LINE_EOF;
    }
    gr_buffer_append(out, line, strcspn(line, "\r\n"));
    cli_buffer_check(out);
    remember(e, out->data ? out->data : "");
    return LINE_READ;
}
