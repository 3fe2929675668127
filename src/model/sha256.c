/* A thin cover over EVP. */
#include "sha256.h"

#include <openssl/evp.h>

void gr_sha256_init(gr_sha256 *h) {
    h->context = EVP_MD_CTX_new();
    h->failed = !h->context || !EVP_DigestInit_ex(h->context, EVP_sha256(), NULL);
}

void gr_sha256_add(gr_sha256 *h, const void *bytes, size_t length) {
    if (!h->failed && !EVP_DigestUpdate(h->context, bytes, length)) {
        h->failed = 1;
    }
}

int gr_sha256_result(gr_sha256 *h, uint8_t out[GR_SHA256_SIZE], graft_error *err) {
    if (h->failed || !EVP_DigestFinal_ex(h->context, out, NULL)) {
        return gr_fail(err, GRAFT_E_OUT_OF_MEMORY, "libcrypto could not compute a SHA-256");
    }
    return 0;
}

void gr_sha256_finish(gr_sha256 *h) {
    EVP_MD_CTX_free(h->context);
    h->context = NULL;
    h->failed = 1;
}

int gr_sha256_of(uint8_t out[GR_SHA256_SIZE], const void *bytes, size_t length, graft_error *err) {
    gr_sha256 h;
    gr_sha256_init(&h);
    gr_sha256_add(&h, bytes, length);
    int rc = gr_sha256_result(&h, out, err);
    gr_sha256_finish(&h);
    return rc;
}

void gr_sha256_hex(char out[2 * GR_SHA256_SIZE + 1], const uint8_t hash[GR_SHA256_SIZE]) {
    static const char digits[] = "0123456789abcdef";
    for (int i = 0; i < GR_SHA256_SIZE; i++) {
        out[2 * i] = digits[hash[i] >> 4];
        out[2 * i + 1] = digits[hash[i] & 15];
    }
    out[2 * GR_SHA256_SIZE] = '\0';
}
