/* Lines from whoever sits at a terminal, with libedit: editing, history. (line_editor.c) */
#ifndef GRAFT_LINE_EDITOR_H
#define GRAFT_LINE_EDITOR_H

#include "cli.h"

typedef struct line_editor line_editor;

/* `history` is a file that is read now and written with each line, for this user alone; NULL = none is kept. NULL if libedit
 * cannot have the terminal. */
line_editor *line_editor_open(const char *history);
void line_editor_close(line_editor *e);

typedef enum line_end {
    LINE_READ,      /* *out holds it, without its newline */
    LINE_DISCARDED, /* Ctrl-C */
    LINE_EOF        /* Ctrl-D on an empty line, or the terminal is gone */
} line_end;

/* `prompt` must be clean. */
line_end line_editor_read(line_editor *e, const char *prompt, gr_buffer *out);

#endif
