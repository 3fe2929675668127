/* References into the stores of Ollama and Hugging Face: see reference.h. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* realpath, strcasecmp */
#endif
#include "reference.h"

#include "base/buffer.h"
#include "base/file.h"
#include "base/memory.h"
#include "base/utf8.h"
#include "format/json.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>

enum {
    MAX_PART = 128,             /* a host, namespace, name, tag or revision */
    MAX_MANIFEST = 1 << 20,
    MAX_REF = 256,              /* refs/main holds 40 digits */
    MAX_ENTRIES = 10000,        /* of folders that are searched */
    MAX_DEPTH = 4,
    MAX_LISTED = 64             /* GGUF files among which one would have to be chosen */
};

typedef struct finder {
    const char *reference;
    bool adapter;
    char root[PATH_MAX]; /* the store, links resolved */
    graft_error *err;
} finder;

/* ---- errors --------------------------------------------------------------------------------------------- */

static int cannot_be(const finder *f, const char *why) {
    char q[GR_QUOTE_SIZE];
    return gr_fail(f->err, GRAFT_E_BAD_REQUEST, "\"%s\": %s", gr_quote(q, f->reference, strlen(f->reference)), why);
}

/* What was looked for, below the store. */
static int missing(const finder *f, const char *looked_for) {
    char q[GR_QUOTE_SIZE];
    return gr_fail(f->err, f->adapter ? GRAFT_E_ADAPTER_FILE_MISSING : GRAFT_E_MODEL_MISSING,
                   "\"%.128s\" is not there: looked for %.120s in %.100s", gr_quote(q, f->reference, strlen(f->reference)),
                   looked_for, f->root);
}

static int damaged(const finder *f, const char *file, const char *why) {
    return gr_fail(f->err, f->adapter ? GRAFT_E_NOT_AN_ADAPTER : GRAFT_E_MODEL_INVALID, "%.200s in %.100s: %s", file,
                   f->root, why);
}

/* ---- paths ---------------------------------------------------------------------------------------------- */

/* "ROOT/rest"; BAD_REQUEST if that is longer than any path. */
static int below(char out[PATH_MAX], const finder *f, const char *rest) {
    int n = snprintf(out, PATH_MAX, "%s/%s", f->root, rest);
    return n < PATH_MAX ? 0 : cannot_be(f, "the path would be too long");
}

static int open_store(finder *f, const char *folder, const char *what) {
    char q[GR_QUOTE_SIZE];
    if (!folder || !*folder) {
        return gr_fail(f->err, GRAFT_E_BAD_REQUEST, "\"%.128s\": nobody said where %s lies",
                       gr_quote(q, f->reference, strlen(f->reference)), what);
    }
    if (!realpath(folder, f->root)) {
        return gr_fail(f->err, f->adapter ? GRAFT_E_ADAPTER_FILE_MISSING : GRAFT_E_MODEL_MISSING, "%s at %.200s: %s", what,
                       folder, strerror(errno));
    }
    return 0;
}

/* Follows links and makes sure that they end in the store. *is_folder may be NULL: then a regular file is needed. */
static int check_inside(const finder *f, const char *rest, bool *is_folder) {
    char path[PATH_MAX], real[PATH_MAX];
    struct stat st;
    size_t n = strlen(f->root);
    int rc = below(path, f, rest);
    if (rc) {
        return rc;
    }
    if (!realpath(path, real) || stat(real, &st) != 0) {
        return errno == ENOENT || errno == ENOTDIR || errno == ELOOP || errno == ENAMETOOLONG
                   ? missing(f, rest)
                   : gr_fail(f->err, GRAFT_E_NOT_READABLE, "%.300s: %s", rest, strerror(errno));
    }
    if (n > 1 && (strncmp(real, f->root, n) != 0 || real[n] != '/')) {
        return gr_fail(f->err, GRAFT_E_OUTSIDE_ROOT, "%.200s is a link that leads out of %.150s", rest, f->root);
    }
    if (is_folder) {
        *is_folder = S_ISDIR(st.st_mode);
    }
    if (!S_ISREG(st.st_mode) && !(is_folder && *is_folder)) {
        return gr_fail(f->err, GRAFT_E_NOT_REGULAR_FILE, "%.200s in %.150s: a regular file is needed", rest, f->root);
    }
    return 0;
}

static int give(char **out, const finder *f, const char *rest) {
    char path[PATH_MAX];
    int rc = below(path, f, rest);
    if (rc) {
        return rc;
    }
    *out = gr_strdup(path);
    return *out ? 0 : gr_fail_memory(f->err, strlen(path) + 1);
}

static bool is_there(const finder *f, const char *rest) {
    char path[PATH_MAX];
    struct stat st;
    return below(path, f, rest) == 0 && stat(path, &st) == 0;
}

/* 1 to MAX_PART of A-Z a-z 0-9 . _ - (and `also`), not beginning with . or -: no part can be a path or an option. */
static bool good_part(const char *part, size_t n, const char *also) {
    if (n == 0 || n > MAX_PART || *part == '.' || *part == '-') {
        return false;
    }
    for (size_t i = 0; i < n; i++) {
        char c = part[i];
        if (!((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || strchr("._-", c) ||
              strchr(also, c))) {
            return false;
        }
    }
    return true;
}

/* ---- ollama --------------------------------------------------------------------------------------------- */

/* [HOST/][NAMESPACE/]NAME[:TAG], cut to pieces within `text`. */
typedef struct ollama_name {
    char text[GR_REFERENCE_MAX + 1];
    const char *host; /* NULL = whichever has it */
    const char *space, *name, *tag;
} ollama_name;

static int ollama_parse(ollama_name *out, const finder *f, const char *text) {
    char *parts[3] = {NULL};
    size_t n = 0;
    snprintf(out->text, sizeof out->text, "%s", text);
    for (char *at = out->text; at; n++) {
        if (n == 3) {
            return cannot_be(f, "is not ollama:[[HOST/]NAMESPACE/]NAME[:TAG]");
        }
        parts[n] = at;
        at = strchr(at, '/');
        if (at) {
            *at++ = '\0';
        }
    }
    char *colon = strchr(parts[n - 1], ':');
    out->tag = colon ? colon + 1 : "latest";
    if (colon) {
        *colon = '\0';
    }
    out->name = parts[n - 1];
    out->space = n > 1 ? parts[n - 2] : "library";
    out->host = n > 2 ? parts[0] : NULL;
    bool good = good_part(out->name, strlen(out->name), "") && good_part(out->space, strlen(out->space), "") &&
                good_part(out->tag, strlen(out->tag), "") && (!out->host || good_part(out->host, strlen(out->host), ":"));
    return good ? 0 : cannot_be(f, "is not ollama:[[HOST/]NAMESPACE/]NAME[:TAG]");
}

/* Sets host to the one that has the name. The store's own first level says which hosts there are. */
static int choose_host(char host[MAX_PART + 1], const finder *f, const ollama_name *name) {
    char path[PATH_MAX], rest[PATH_MAX];
    int rc = below(path, f, "manifests");
    DIR *dir = rc ? NULL : opendir(path);
    size_t entries = 0;
    *host = '\0';
    snprintf(rest, sizeof rest, "manifests/*/%s/%s/%s", name->space, name->name, name->tag);
    if (!dir) {
        return rc ? rc : missing(f, rest);
    }
    for (struct dirent *d; !rc && (d = readdir(dir)) && entries++ < MAX_ENTRIES;) {
        char at[PATH_MAX];
        if (!good_part(d->d_name, strlen(d->d_name), ":")) {
            continue;
        }
        snprintf(at, sizeof at, "manifests/%s/%s/%s/%s", d->d_name, name->space, name->name, name->tag);
        if (is_there(f, at) && *host) {
            rc = gr_fail(f->err, GRAFT_E_BAD_REQUEST, "%s/%s:%s is there from %s and from %s: say ollama:HOST/%s/%s:%s",
                         name->space, name->name, name->tag, host, d->d_name, name->space, name->name, name->tag);
        } else if (is_there(f, at)) {
            memcpy(host, d->d_name, strlen(d->d_name) + 1); /* good parts fit */
        }
    }
    closedir(dir);
    return rc ? rc : *host ? 0 : missing(f, rest);
}

/* "sha256:" and 64 hexadecimal digits. */
static bool good_digest(const char *digest) {
    static const char prefix[] = "sha256:";
    return strncmp(digest, prefix, sizeof prefix - 1) == 0 && strlen(digest) == sizeof prefix - 1 + 64 &&
           strspn(digest + sizeof prefix - 1, "0123456789abcdef") == 64;
}

/* Copies the digits of the one layer of that kind. */
static int layer_digest(char hex[65], const finder *f, const json_t *manifest, const char *file) {
    const char *wanted = f->adapter ? "application/vnd.ollama.image.adapter" : "application/vnd.ollama.image.model";
    const json_t *layers = json_object_get(manifest, "layers"), *layer;
    size_t i, found = 0;
    json_array_foreach(layers, i, layer) {
        const char *type = json_string_value(json_object_get(layer, "mediaType"));
        const char *digest = json_string_value(json_object_get(layer, "digest"));
        if (!type || strcmp(type, wanted) != 0) {
            continue;
        }
        if (!digest || !good_digest(digest)) {
            return damaged(f, file, "a layer's digest is not sha256: and 64 hexadecimal digits");
        }
        snprintf(hex, 65, "%s", digest + 7);
        found++;
    }
    return found == 1 ? 0
                      : damaged(f, file, found > 1     ? "holds more than one such layer"
                                         : f->adapter ? "holds no adapter"
                                                      : "holds no model");
}

static int read_manifest(json_t **out, const finder *f, const char *rest) {
    char path[PATH_MAX], *bytes;
    size_t length;
    int rc = check_inside(f, rest, NULL);
    rc = rc ? rc : below(path, f, rest);
    rc = rc ? rc : gr_file_read_all(&bytes, &length, AT_FDCWD, path, MAX_MANIFEST, f->err);
    if (rc) {
        return rc;
    }
    rc = gr_json_parse(out, bytes, length, "the model's manifest", f->err);
    gr_free(bytes);
    return rc;
}

static int find_ollama(char **out, finder *f, const char *folder, const char *text) {
    ollama_name name;
    char host[MAX_PART + 1], rest[PATH_MAX], hex[65], blob[96];
    json_t *manifest = NULL;
    int rc = ollama_parse(&name, f, text);
    rc = rc ? rc : open_store(f, folder, "Ollama's store");
    if (rc) {
        return rc;
    }
    if (name.host) {
        snprintf(host, sizeof host, "%s", name.host);
    } else if ((rc = choose_host(host, f, &name)) != 0) {
        return rc;
    }
    snprintf(rest, sizeof rest, "manifests/%s/%s/%s/%s", host, name.space, name.name, name.tag);
    rc = read_manifest(&manifest, f, rest);
    rc = rc ? rc : layer_digest(hex, f, manifest, rest);
    json_decref(manifest);
    if (rc) {
        return rc;
    }
    snprintf(blob, sizeof blob, "blobs/sha256-%s", hex);
    rc = check_inside(f, blob, NULL);
    return rc ? rc : give(out, f, blob);
}

/* ---- hugging face --------------------------------------------------------------------------------------- */

/* ORG/NAME[@REVISION][/FILE], cut to pieces within `text`. */
typedef struct hf_name {
    char text[GR_REFERENCE_MAX + 1];
    const char *org, *name, *revision;
    const char *file; /* NULL = none was named */
} hf_name;

/* Names as they are on disk: nothing is decoded, so no %2e%2e either. */
static bool good_file(const char *file) {
    size_t n = strlen(file);
    if (n == 0 || !gr_utf8_valid(file, n) || strpbrk(file, "\\%")) {
        return false;
    }
    for (const char *part = file; part;) {
        const char *slash = strchr(part, '/');
        size_t length = slash ? (size_t)(slash - part) : strlen(part);
        if (length == 0 || length > 255 || (length == 1 && *part == '.') || (length == 2 && memcmp(part, "..", 2) == 0)) {
            return false;
        }
        part = slash ? slash + 1 : NULL;
    }
    for (const char *c = file; *c; c++) {
        if ((unsigned char)*c < 0x20 || *c == 0x7f) {
            return false;
        }
    }
    return true;
}

/* "--" separates the two in the folder's name: a name that holds it would be another's. */
static bool good_hub_part(const char *part) {
    return good_part(part, strlen(part), "") && !strstr(part, "--") && !strstr(part, "..");
}

static int hf_parse(hf_name *out, const finder *f, const char *text) {
    static const char form[] = "is not hf:ORG/NAME[@REVISION][/FILE]";
    snprintf(out->text, sizeof out->text, "%s", text);
    char *slash = strchr(out->text, '/');
    if (!slash) {
        return cannot_be(f, form);
    }
    *slash = '\0';
    out->org = out->text;
    out->name = slash + 1;
    slash = strchr(slash + 1, '/');
    out->file = slash ? slash + 1 : NULL;
    if (slash) {
        *slash = '\0';
    }
    char *at = strchr(out->name, '@');
    out->revision = at ? at + 1 : "main";
    if (at) {
        *at = '\0';
    }
    bool good = good_hub_part(out->org) && good_hub_part(out->name) && good_part(out->revision, strlen(out->revision), "") &&
                (!out->file || good_file(out->file));
    return good ? 0 : cannot_be(f, form);
}

/* The snapshot's folder, below the store: what refs/REVISION names, else the one of that very name. */
static int find_snapshot(char out[PATH_MAX], const finder *f, const hf_name *h) {
    char ref[PATH_MAX], path[PATH_MAX], *bytes;
    size_t length;
    bool is_folder;
    snprintf(ref, sizeof ref, "models--%s--%s/refs/%s", h->org, h->name, h->revision);
    if (is_there(f, ref)) {
        int rc = check_inside(f, ref, NULL);
        rc = rc ? rc : below(path, f, ref);
        rc = rc ? rc : gr_file_read_all(&bytes, &length, AT_FDCWD, path, MAX_REF, f->err);
        if (rc) {
            return rc;
        }
        while (length > 0 && isspace((unsigned char)bytes[length - 1])) {
            bytes[--length] = '\0';
        }
        bool good = (length == 40 || length == 64) && strspn(bytes, "0123456789abcdef") == length;
        snprintf(out, PATH_MAX, "models--%s--%s/snapshots/%s", h->org, h->name, good ? bytes : "");
        gr_free(bytes);
        if (!good) {
            return damaged(f, ref, "holds no revision");
        }
    } else {
        snprintf(out, PATH_MAX, "models--%s--%s/snapshots/%s", h->org, h->name, h->revision);
        if (!is_there(f, out)) {
            return missing(f, ref);
        }
    }
    int rc = check_inside(f, out, &is_folder);
    return rc || is_folder ? rc : damaged(f, out, "a folder is needed");
}

typedef struct listing {
    char *names[MAX_LISTED]; /* below the snapshot */
    size_t n, entries;
    bool more;
} listing;

/* Whether libllama can open it as a model: not the second part of a split one, not the part that sees pictures. */
static bool is_candidate(const char *name) {
    size_t n = strlen(name);
    unsigned part, parts;
    int end = 0;
    if (n < 6 || strcasecmp(name + n - 5, ".gguf") != 0 || strncasecmp(name, "mmproj", 6) == 0) {
        return false;
    }
    const char *tail = n > 20 ? name + n - 20 : NULL; /* "-00001-of-00003.gguf" */
    if (tail && sscanf(tail, "-%5u-of-%5u.%n", &part, &parts, &end) == 2 && end == 16) {
        return part == 1;
    }
    return true;
}

/* Every GGUF file of a snapshot's folder and those below. `rest` is below the store, `prefix` of it the snapshot. */
static int list_gguf(listing *l, const finder *f, const char *rest, size_t prefix, int depth) {
    char path[PATH_MAX];
    int rc = below(path, f, rest);
    DIR *dir = rc ? NULL : opendir(path);
    for (struct dirent *d; dir && !rc && (d = readdir(dir));) {
        char next[PATH_MAX];
        struct stat st;
        if (++l->entries > MAX_ENTRIES) {
            rc = cannot_be(f, "there are too many files: name one");
            break;
        }
        if (*d->d_name == '.' || snprintf(next, sizeof next, "%s/%s", rest, d->d_name) >= (int)sizeof next ||
            (rc = below(path, f, next)) != 0 || lstat(path, &st) != 0) {
            continue;
        }
        if (S_ISDIR(st.st_mode)) { /* links to folders are not followed: they could go round */
            rc = depth < MAX_DEPTH ? list_gguf(l, f, next, prefix, depth + 1) : 0;
        } else if (is_candidate(d->d_name) && l->n == MAX_LISTED) {
            l->more = true;
        } else if (is_candidate(d->d_name)) {
            l->names[l->n] = gr_strdup(next + prefix + 1);
            rc = l->names[l->n] ? 0 : gr_fail_memory(f->err, sizeof next);
            l->n += rc == 0;
        }
    }
    if (dir) {
        closedir(dir);
    }
    return rc;
}

static int by_name(const void *a, const void *b) {
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static int say_which(const finder *f, listing *l) {
    gr_buffer names;
    char q[GR_QUOTE_SIZE];
    gr_buffer_init(&names, 300);
    qsort(l->names, l->n, sizeof *l->names, by_name);
    for (size_t i = 0; i < l->n; i++) { /* as many as fit */
        size_t before = names.length;
        if (before > 200) {
            l->more = true;
            break;
        }
        gr_buffer_printf(&names, "%s%.80s", i ? ", " : "", gr_quote(q, l->names[i], strlen(l->names[i])));
    }
    int rc = gr_fail(f->err, GRAFT_E_BAD_REQUEST, "\"%.80s\" holds several GGUF files, name one behind it: %s%s",
                     gr_quote(q, f->reference, strlen(f->reference)), names.data ? names.data : "", l->more ? ", …" : "");
    gr_buffer_finish(&names);
    return rc;
}

static int find_only_gguf(char **out, const finder *f, const char *snapshot) {
    listing l = {.n = 0};
    char rest[PATH_MAX];
    int rc = list_gguf(&l, f, snapshot, strlen(snapshot), 0);
    if (!rc && l.n == 0) {
        snprintf(rest, sizeof rest, "%.*s/*.gguf", PATH_MAX - 16, snapshot);
        rc = missing(f, rest);
    } else if (!rc && l.n > 1) {
        rc = say_which(f, &l);
    } else if (!rc) {
        snprintf(rest, sizeof rest, "%.2000s/%.2000s", snapshot, l.names[0]);
        rc = check_inside(f, rest, NULL);
        rc = rc ? rc : give(out, f, rest);
    }
    for (size_t i = 0; i < l.n; i++) {
        gr_free(l.names[i]);
    }
    return rc;
}

/* A PEFT folder: what will be read from it must lie in the store as well. *is_one false: it is none. */
static int check_peft(const finder *f, const char *folder, bool *is_one) {
    static const char *const files[] = {"adapter_config.json", "adapter_model.safetensors"};
    char rest[PATH_MAX];
    int rc = 0;
    *is_one = false;
    for (size_t i = 0; i < sizeof files / sizeof *files && !rc; i++) {
        snprintf(rest, sizeof rest, "%.*s/%s", PATH_MAX - 64, folder, files[i]);
        bool there = is_there(f, rest);
        *is_one = *is_one || (i == 0 && there);
        rc = there ? check_inside(f, rest, NULL) : 0; /* a weights file that is absent is told by who opens the folder */
    }
    return rc;
}

static int find_hf(char **out, finder *f, const char *folder, const char *text) {
    hf_name name;
    char snapshot[PATH_MAX], rest[PATH_MAX];
    bool is_folder = true, peft = false;
    int rc = hf_parse(&name, f, text);
    rc = rc ? rc : open_store(f, folder, "Hugging Face's cache");
    rc = rc ? rc : find_snapshot(snapshot, f, &name);
    if (rc) {
        return rc;
    }
    snprintf(rest, sizeof rest, name.file ? "%.2000s/%.2000s" : "%.2000s", snapshot, name.file ? name.file : "");
    if (name.file) {
        rc = check_inside(f, rest, f->adapter ? &is_folder : NULL);
        is_folder = f->adapter && is_folder;
    }
    if (!rc && f->adapter && is_folder) {
        rc = check_peft(f, rest, &peft);
    }
    if (rc) {
        return rc;
    }
    return peft || (name.file && !is_folder) ? give(out, f, rest) : find_only_gguf(out, f, rest);
}

/* ---- both ----------------------------------------------------------------------------------------------- */

static int find(char **path, const char *reference, const graft_stores *stores, bool adapter, graft_error *err) {
    finder f = {.reference = reference, .adapter = adapter, .err = err};
    bool ollama = strncmp(reference, "ollama:", 7) == 0, hf = strncmp(reference, "hf:", 3) == 0;
    if (!*reference) {
        return gr_fail(err, GRAFT_E_BAD_REQUEST, "the path is empty");
    }
    if (!ollama && !hf) {
        *path = gr_strdup(reference);
        return *path ? 0 : gr_fail_memory(err, strlen(reference) + 1);
    }
    if (strlen(reference) > GR_REFERENCE_MAX) {
        return cannot_be(&f, "is longer than a reference may be");
    }
    return ollama ? find_ollama(path, &f, stores ? stores->ollama : NULL, reference + 7)
                  : find_hf(path, &f, stores ? stores->hf_hub : NULL, reference + 3);
}

int gr_find_model(char **path, const char *reference, const graft_stores *stores, graft_error *err) {
    return find(path, reference, stores, false, err);
}

int gr_find_adapter(char **path, const char *reference, const graft_stores *stores, graft_error *err) {
    return find(path, reference, stores, true, err);
}
