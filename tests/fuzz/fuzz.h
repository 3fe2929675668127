/*
 * What the fuzz targets share. Each target is one file that defines LLVMFuzzerTestOneInput; it is linked to libFuzzer (preset "fuzz")
 * or, with any compiler, to replay.c, which runs the files of the corpus through it.
 */
#ifndef GR_FUZZ_H
#define GR_FUZZ_H

#include "base/error.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* libFuzzer's names. The first two are called by libFuzzer or replay.c. */
int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
/* Only with libFuzzer (GRAFT_LIBFUZZER). */
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned int seed);
size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max_size);

/* What must hold for every input; ends the process if it does not. */
#define FUZZ_REQUIRE(condition) ((condition) ? (void)0 : fuzz_broken(__FILE__, __LINE__, #condition))
void fuzz_broken(const char *file, int line, const char *what);

/* A failure has a code of graft.h, the same in *err, and one line of printable UTF-8 as its message. */
void fuzz_check_error(int code, const graft_error *err);
/* The same of everything in a report. */
void fuzz_check_report(const gr_report *report);

#endif
