/* The checks that all fuzz targets share, and what is done once before the first input. */
#include "fuzz.h"

#include "base/utf8.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    (void)argc;
    (void)argv;
    json_object_seed(1); /* the same path for the same input */
    return 0;
}

void fuzz_broken(const char *file, int line, const char *what) {
    fprintf(stderr, "%s:%d: does not hold: %s\n", file, line, what);
    abort();
}

static void check_line(const char *text) {
    FUZZ_REQUIRE(gr_utf8_valid(text, strlen(text)));
    for (const char *p = text; *p; p++) {
        FUZZ_REQUIRE((unsigned char)*p >= 0x20 && *p != 0x7f);
    }
}

void fuzz_check_error(int code, const graft_error *err) {
    FUZZ_REQUIRE(code != 0 && strcmp(graft_error_name(code), "unknown") != 0);
    FUZZ_REQUIRE(err->code == code);
    FUZZ_REQUIRE(err->message[0] != '\0');
    check_line(err->message);
}

void fuzz_check_report(const gr_report *report) {
    for (size_t i = 0; i < report->n; i++) {
        fuzz_check_error(report->reasons[i].error.code, &report->reasons[i].error);
        check_line(report->reasons[i].where);
    }
}
