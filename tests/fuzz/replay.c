/* Runs files through a fuzz target with any compiler: replay FILE|FOLDER… (the corpus, or what a fuzzer found). */
#include "fuzz.h"

#include "base/file.h"
#include "base/memory.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { FILE_MAX = 64 << 20 };

static size_t n_run;

static void run_file(const char *path) {
    char *text;
    size_t length;
    graft_error err;
    if (gr_file_read_all(&text, &length, AT_FDCWD, path, FILE_MAX, &err)) {
        fprintf(stderr, "replay: %s: %s\n", path, err.message);
        exit(2);
    }
    /* Exactly as long as the input, so that a sanitizer sees the byte behind it. */
    uint8_t *copy = malloc(length ? length : 1);
    if (!copy) {
        exit(2);
    }
    memcpy(copy, text, length);
    gr_free(text);
    fprintf(stderr, "%s\n", path); /* the last line tells the input that ended the process */
    LLVMFuzzerTestOneInput(copy, length);
    free(copy);
    n_run++;
}

static void run_folder(const char *path) {
    struct dirent **entries;
    int n = scandir(path, &entries, NULL, alphasort);
    if (n < 0) {
        fprintf(stderr, "replay: cannot read %s\n", path);
        exit(2);
    }
    for (int i = 0; i < n; i++) {
        if (entries[i]->d_name[0] != '.') {
            char inside[4096];
            snprintf(inside, sizeof inside, "%s/%s", path, entries[i]->d_name);
            run_file(inside);
        }
        free(entries[i]);
    }
    free(entries);
}

int main(int argc, char **argv) {
    LLVMFuzzerInitialize(&argc, &argv);
    for (int i = 1; i < argc; i++) {
        struct stat s;
        if (stat(argv[i], &s) == 0 && S_ISDIR(s.st_mode)) {
            run_folder(argv[i]);
        } else {
            run_file(argv[i]);
        }
    }
    printf("%zu inputs\n", n_run);
    return n_run ? 0 : 2; /* an empty corpus is a mistake */
}
