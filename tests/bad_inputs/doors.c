/*
 * Takes adapters through the library's doors: inspection, an open by path, registration, the load of what is registered, a scan. One
 * process for all of them, so that what one leaves behind shows.
 *
 * usage: doors MODEL REGISTRY [SCANNED]    paths on stdin, each ended by a NUL
 *
 * Lines of JSON on stdout. First one for each path with what inspecting and opening it said; what was held before and after: descriptors, threads,
 * bytes of graft's own; and "peak", how much more memory was resident meanwhile, in bytes. Then one for each path with what registering it said, and
 * the load that follows: after the others, since the registry writes its history when it likes. With SCANNED one for each find of a scan of that
 * folder, and its load. The base's greedy tokens come first and last.
 */
#define _GNU_SOURCE
#include "graft.h"

#include <dirent.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static graft *g;
static graft_registry *registry;

static void die(const char *what, const graft_error *err) {
    fprintf(stderr, "doors: %s: %s: %s\n", what, graft_error_name(err->code), err->message);
    exit(1);
}

static void print(json_t *line) {
    if (json_dumpf(line, stdout, JSON_COMPACT) != 0) {
        fprintf(stderr, "doors: a message that is no UTF-8\n");
        exit(1);
    }
    putchar('\n');
    fflush(stdout);
    json_decref(line);
}

/* ---- what the process holds ----------------------------------------------------------------------------- */

static size_t entries(const char *folder) {
    DIR *dir = opendir(folder);
    size_t n = 0;
    while (dir && readdir(dir)) {
        n++;
    }
    if (dir) {
        closedir(dir);
    }
    return n;
}

static json_t *holdings(void) {
    return json_pack("{s:I, s:I, s:I}", "fds", (json_int_t)entries("/proc/self/fd"), "threads", (json_int_t)entries("/proc/self/task"),
                     "own", (json_int_t)graft_own_bytes());
}

/* A line of /proc/self/status, in bytes; 0 where there is none. */
static uint64_t status(const char *key) {
    FILE *f = fopen("/proc/self/status", "r");
    char line[256];
    unsigned long long kib = 0;
    while (f && fgets(line, sizeof line, f)) {
        if (strncmp(line, key, strlen(key)) == 0) {
            sscanf(line + strlen(key), ": %llu", &kib);
        }
    }
    if (f) {
        fclose(f);
    }
    return kib << 10;
}

/* The peak is counted from here on. */
static uint64_t reset_peak(void) {
    int fd = open("/proc/self/clear_refs", O_WRONLY | O_CLOEXEC);
    if (fd >= 0) {
        if (write(fd, "5", 1) < 0) {
            perror("doors: clear_refs");
        }
        close(fd);
    }
    return status("VmRSS");
}

static int64_t peak_since(uint64_t before) {
    return (int64_t)status("VmHWM") - (int64_t)before;
}

/* ---- the base ------------------------------------------------------------------------------------------- */

static json_t *answer(void) {
    graft_error err = {0};
    graft_request r = graft_request_default();
    graft_job *job = NULL;
    r.prompt = "What?";
    r.max_tokens = 16;
    r.ignore_eos = true;
    r.cache_prompt = false;
    if (graft_submit(&job, g, &r, 1, &err) != 0) {
        die("the base", &err);
    }
    const graft_result *result = graft_job_wait(job);
    if (result->finish == GRAFT_FINISH_ERROR) {
        die("the base", &result->error);
    }
    json_t *text = json_stringn_nocheck(result->text, result->text_length);
    graft_job_free(job);
    return text;
}

/* ---- the doors ------------------------------------------------------------------------------------------ */

static json_t *outcome(int code, const graft_error *err) {
    return code ? json_pack("{s:s, s:s}", "code", graft_error_name(code), "message", err->message) : json_pack("{s:n}", "code");
}

static json_t *inspect(const char *path) {
    graft_inspection *in = NULL;
    graft_error err = {0};
    if (graft_inspect(&in, g, path, &err) != 0) {
        return outcome(err.code, &err);
    }
    json_t *reasons = json_array(), *found = json_pack("{s:n, s:b, s:o}", "code", "loadable", in->loadable, "reasons", reasons);
    bool first = true;
    for (size_t i = 0; i < in->n_reasons; i++) {
        const graft_reason *r = &in->reasons[i];
        if (r->severity == GRAFT_LOG_ERROR && first) {
            json_object_set_new(found, "code", json_string(graft_error_name(r->code)));
            first = false;
        }
        json_array_append_new(reasons, json_pack("{s:s, s:s, s:s}", "code", graft_error_name(r->code), "where", r->where, "message",
                                                 r->message));
    }
    graft_inspection_free(in);
    return found;
}

static json_t *open_by_path(const char *path) {
    graft_adapter *a = NULL;
    graft_error err = {0};
    json_t *said = outcome(graft_adapter_open(&a, g, path, &err), &err);
    graft_adapter_free(a);
    return said;
}

/* What a registered adapter's load says, and what the registry says of it afterwards. */
static json_t *load(const char *project, const char *adapter) {
    graft_error err = {0};
    graft_registered_list *list = NULL;
    json_t *said = outcome(graft_load_adapter(g, project, adapter, false, &err), &err);
    if (graft_registry_adapter_list(&list, registry, project, adapter, &err) != 0) {
        die("the registry's row", &err);
    }
    json_object_set_new(said, "state", json_string(graft_registered_state_name(list->items[0].state)));
    json_object_set_new(said, "row", json_string(list->items[0].error_code ? graft_error_name(list->items[0].error_code) : ""));
    graft_registered_list_free(list);
    graft_unload_adapter(g, project, adapter, NULL, NULL, NULL);
    return said;
}

static json_t *rows(void) {
    graft_registered_list *list = NULL;
    graft_error err = {0};
    if (graft_registry_adapter_list(&list, registry, NULL, NULL, &err) != 0) {
        die("the registry", &err);
    }
    json_t *n = json_integer((json_int_t)list->n);
    graft_registered_list_free(list);
    return n;
}

static void add(const char *path) {
    graft_error err = {0};
    json_t *line = json_object();
    int code = graft_registry_adapter_add(registry, "door", NULL, path, 0, &err);
    json_object_set_new(line, "add", outcome(code, &err));
    json_object_set_new(line, "load", code ? json_null() : load("door", NULL));
    if (!code && graft_registry_adapter_remove(registry, "door", NULL, &err) != 0) {
        die("the registry", &err);
    }
    json_object_set_new(line, "rows", rows());
    print(line);
}

static void look(const char *path) {
    json_t *line = json_object(), *before = holdings();
    uint64_t resident = reset_peak();
    json_object_set_new(line, "inspect", inspect(path));
    json_object_set_new(line, "peak", json_integer(peak_since(resident)));
    json_object_set_new(line, "open", open_by_path(path));
    json_object_set_new(line, "held", json_pack("[o, o]", before, holdings()));
    print(line);
}

static bool found(const graft_scan_item *i, void *user) {
    json_t *said = i->code ? json_pack("{s:s, s:s}", "code", graft_error_name(i->code), "message", i->message) : json_pack("{s:n}", "code");
    json_array_append_new(user, json_pack("{s:s, s:s, s:s, s:s, s:o}", "path", i->path, "project", i->project, "adapter", i->adapter,
                                          "outcome", graft_scan_outcome_name(i->outcome), "scan", said));
    return true;
}

static void scan(const char *folder) {
    graft_error err = {0};
    json_t *finds = json_array();
    size_t i;
    json_t *find;
    if (graft_registry_scan(registry, folder, found, finds, NULL, &err) != 0) {
        die("scan", &err);
    }
    json_array_foreach(finds, i, find) {
        const char *what = json_string_value(json_object_get(find, "outcome"));
        if (strcmp(what, "added") == 0 || strcmp(what, "broken") == 0) {
            json_object_set_new(find, "load", load(json_string_value(json_object_get(find, "project")),
                                                   json_string_value(json_object_get(find, "adapter"))));
        }
        print(json_incref(find));
    }
    json_decref(finds);
}

static void open_all(char **argv) {
    graft_error err = {0};
    graft_registry_options r = graft_registry_options_default();
    graft_options o = graft_options_default();
    r.path = argv[2];
    if (graft_registry_open(&registry, &r, &err) != 0) {
        die(argv[2], &err);
    }
    o.model = argv[1];
    o.slots = 1;
    o.context = 64;
    o.threads = 1;
    o.self_test = false;
    o.registry = registry;
    if (graft_open(&g, &o, &err) != 0 || graft_registry_project_add(registry, "door", &err) != 0) {
        die(argv[1], &err);
    }
}

/* All that comes on stdin; NULL behind the last. */
static char **read_paths(void) {
    char **paths = NULL, *path = NULL;
    size_t n = 0, room = 0;
    do {
        paths = realloc(paths, (n + 1) * sizeof *paths);
        path = NULL;
        room = 0;
        paths[n++] = getdelim(&path, &room, '\0', stdin) > 0 ? path : NULL;
    } while (paths[n - 1]);
    free(path);
    return paths;
}

int main(int argc, char **argv) {
    if (argc != 3 && argc != 4) {
        fprintf(stderr, "usage: doors MODEL REGISTRY [SCANNED] <PATHS\n");
        return 2;
    }
    char **paths = read_paths();
    open_all(argv);
    print(json_pack("{s:o, s:o}", "answer", answer(), "held", holdings()));
    for (size_t i = 0; paths[i]; i++) {
        look(paths[i]);
    }
    for (size_t i = 0; paths[i]; i++) {
        add(paths[i]);
        free(paths[i]);
    }
    free(paths);
    if (argc == 4) {
        scan(argv[3]);
    }
    print(json_pack("{s:o, s:o}", "answer", answer(), "held", holdings()));
    graft_close(g);
    graft_registry_close(registry);
    return 0;
}
