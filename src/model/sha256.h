/* SHA-256 through libcrypto: identity of a base model and of an adapter's generation. */
#ifndef GR_SHA256_H
#define GR_SHA256_H

#include "base/error.h"

#include <stddef.h>
#include <stdint.h>

#define GR_SHA256_SIZE 32

/* Embedded; gr_sha256_finish ends it, also after a failed gr_sha256_init. */
typedef struct gr_sha256 {
    void *context; /* EVP_MD_CTX */
    int failed;    /* sticky, so that only gr_sha256_result needs a check */
} gr_sha256;

void gr_sha256_init(gr_sha256 *h);
void gr_sha256_add(gr_sha256 *h, const void *bytes, size_t length);
/* Once per hash. Errors: OUT_OF_MEMORY (libcrypto's only reason to fail here). */
int gr_sha256_result(gr_sha256 *h, uint8_t out[GR_SHA256_SIZE], graft_error *err);
void gr_sha256_finish(gr_sha256 *h);

/* All of it for bytes in memory. */
int gr_sha256_of(uint8_t out[GR_SHA256_SIZE], const void *bytes, size_t length, graft_error *err);

/* 64 lower-case hex digits and a NUL. */
void gr_sha256_hex(char out[2 * GR_SHA256_SIZE + 1], const uint8_t hash[GR_SHA256_SIZE]);

#endif
