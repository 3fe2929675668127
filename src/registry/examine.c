#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* realpath */
#endif
#include "examine.h"

#include "base/memory.h"
#include "base/utf8.h"
#include "model/source.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- the path ------------------------------------------------------------------------------------------- */

static int bad_path(const char *path, const char *why, graft_error *err) {
    char q[GR_QUOTE_SIZE];
    return gr_fail(err, GRAFT_E_BAD_REQUEST, "path \"%s\": %s", gr_quote(q, path, strlen(path)), why);
}

/* Paths are kept as text, shown on terminals and sent as JSON. */
static int check_path(const char *path, graft_error *err) {
    size_t n = strlen(path);
    if (n == 0) {
        return bad_path(path, "is empty", err);
    }
    if (n >= PATH_MAX) {
        return bad_path(path, "is too long", err);
    }
    for (size_t i = 0; i < n; i++) {
        if ((unsigned char)path[i] < 0x20 || path[i] == 0x7f) {
            return bad_path(path, "holds a control character", err);
        }
    }
    return gr_utf8_valid(path, n) ? 0 : bad_path(path, "is not UTF-8", err);
}

/* "FOLDER/PATH" without a leading "./" and trailing slashes. Links and ".." stay: they may mean what they say. */
static int make_absolute(char **out, const char *path, const char *root, graft_error *err) {
    char folder[PATH_MAX] = "";
    if (*path != '/') {
        if (root) {
            snprintf(folder, sizeof folder, "%s", root);
        } else if (!getcwd(folder, sizeof folder)) {
            return gr_fail(err, GRAFT_E_NOT_READABLE, "the current folder: %s", strerror(errno));
        }
        while (path[0] == '.' && path[1] == '/') {
            path += 2 + strspn(path + 2, "/");
        }
        path = strcmp(path, ".") == 0 ? "" : path;
    }
    size_t room = strlen(folder) + strlen(path) + 2;
    if (room > PATH_MAX) {
        return bad_path(path, "is too long", err);
    }
    char *full = gr_alloc(room);
    if (!full) {
        return gr_fail_memory(err, room);
    }
    size_t n = (size_t)snprintf(full, room, "%s%s%s", folder, *path && *path != '/' && strcmp(folder, "/") != 0 ? "/" : "", path);
    while (n > 1 && full[n - 1] == '/') {
        full[--n] = '\0';
    }
    *out = full;
    return 0;
}

/* ---- the root ------------------------------------------------------------------------------------------- */

static int outside(const char *path, graft_error *err) {
    char q[GR_QUOTE_SIZE];
    return gr_fail(err, GRAFT_E_OUTSIDE_ROOT, "\"%s\": leads out of the folder that adapters may come from",
                   gr_quote(q, path, strlen(path)));
}

/* What is not there is not outside: opening will say it better. */
static int check_below(const char *path, const char *root, graft_error *err) {
    char real[PATH_MAX];
    if (!realpath(path, real)) {
        return errno == ENAMETOOLONG ? bad_path(path, "is too long", err) : 0;
    }
    return gr_path_below(real, root) ? 0 : outside(path, err);
}

static int check_root(const char *path, const char *root, graft_error *err) {
    int rc = check_below(path, root, err);
    for (size_t i = 0; i < GR_SOURCE_FILES && !rc; i++) {
        char file[PATH_MAX];
        if (snprintf(file, sizeof file, "%s/%s", path, gr_source_files[i]) < (int)sizeof file) {
            rc = check_below(file, root, err);
        }
    }
    return rc;
}

/* ---- the files ------------------------------------------------------------------------------------------ */

static int largest_rank(const gr_source *s) {
    uint64_t rank = 0;
    for (size_t i = 0; i < s->tensors.n; i++) {
        const gr_tensor_info *t = &s->tensors.tensors[i];
        bool is_a = strstr(t->name, "lora_A") || strstr(t->name, "lora_embedding_A") || strstr(t->name, ".lora_a");
        if (is_a && t->n_dims == 2 && t->shape[0] > rank) {
            rank = t->shape[0];
        }
    }
    return rank <= INT_MAX ? (int)rank : 0;
}

static int describe(gr_examined *out, gr_source_limits limits, bool hash, graft_error *err) {
    gr_report report;
    gr_source *source = NULL;
    gr_report_init(&report);
    graft_error why;
    int rc = gr_source_open(&source, out->path, limits, &report, &why);
    rc = rc ? gr_report_end(&report, &why, err) : gr_report_result(&report, err);
    if (!rc) {
        out->format = gr_source_format_name(source->format);
        out->rank = largest_rank(source);
        out->file_bytes = source->weights.size;
        rc = hash ? gr_source_generation(source, out->generation, err) : 0;
    }
    gr_source_close(source);
    gr_report_finish(&report);
    return rc;
}

int gr_examine(gr_examined *out, const char *path, const char *root, uint64_t max_bytes, bool hash, graft_error *err) {
    *out = (gr_examined){.format = ""};
    int rc = check_path(path, err);
    rc = rc ? rc : make_absolute(&out->path, path, root, err);
    rc = rc || !root ? rc : check_root(out->path, root, err);
    return rc ? rc : describe(out, (gr_source_limits){max_bytes, root}, hash, err);
}

void gr_examined_finish(gr_examined *e) {
    gr_free(e->path);
    e->path = NULL;
}
