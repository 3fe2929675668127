/* graft doctor: the certificate and key that `graft serve` would use, and the certificates that commands trust. */
#include "doctor.h"

#include <errno.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509.h>
#include <string.h>

enum { DAY = 86400, SOON_DAYS = 14 };

/* No passphrase is asked for: a server has nobody to ask. */
static int no_passphrase(char *out, int size, int writing, void *user) {
    (void)out;
    (void)size;
    (void)writing;
    (void)user;
    return -1;
}

static FILE *open_file(doctor *d, const char *path) {
    FILE *f = fopen(path, "r");
    if (!f) {
        doctor_say(d, DOCTOR_FAIL, "tls", "a PEM file that whoever runs graft can read", "%.*s: %s", CLI_PATH_SHOWN, path,
                   strerror(errno));
    }
    return f;
}

static X509 *read_certificate(doctor *d, const char *path) {
    FILE *f = open_file(d, path);
    X509 *c = f ? PEM_read_X509(f, NULL, no_passphrase, NULL) : NULL;
    if (f && !c) {
        doctor_say(d, DOCTOR_FAIL, "tls", "a PEM file: -----BEGIN CERTIFICATE-----", "%.*s holds no certificate",
                   CLI_PATH_SHOWN, path);
    }
    if (f) {
        fclose(f);
    }
    return c;
}

static EVP_PKEY *read_key(doctor *d, const char *path) {
    FILE *f = open_file(d, path);
    EVP_PKEY *k = f ? PEM_read_PrivateKey(f, NULL, no_passphrase, NULL) : NULL;
    if (f && !k) {
        doctor_say(d, DOCTOR_FAIL, "tls", "a PEM file without a passphrase: -----BEGIN PRIVATE KEY-----",
                   "%.*s holds no private key",
                   CLI_PATH_SHOWN, path);
    }
    if (f) {
        fclose(f);
    }
    return k;
}

static void check_pair(doctor *d, X509 *certificate, EVP_PKEY *key) {
    int days = 0, seconds = 0;
    if (X509_check_private_key(certificate, key) != 1) {
        doctor_say(d, DOCTOR_FAIL, "tls", "tls_cert and tls_key must belong together", "the key is not the certificate's");
        return;
    }
    bool known = ASN1_TIME_diff(&days, &seconds, NULL, X509_get0_notAfter(certificate)) == 1;
    if (X509_cmp_current_time(X509_get0_notBefore(certificate)) > 0) {
        doctor_say(d, DOCTOR_FAIL, "tls", "look at the clock", "the certificate is not valid yet");
    } else if (known && (days < 0 || seconds < 0)) {
        doctor_say(d, DOCTOR_FAIL, "tls", "renew it; SIGHUP makes a server read it again",
                   "the certificate ran out %d days ago", -days);
    } else if (known && days < SOON_DAYS) {
        doctor_say(d, DOCTOR_WARN, "tls", "renew it; SIGHUP makes a server read it again",
                   "the certificate is good for %d days", days);
    } else {
        doctor_say(d, DOCTOR_OK, "tls", NULL, "the certificate is good for %d days, and the key is its own", days);
    }
}

static void check_server(doctor *d) {
    if (!d->set.tls_cert || !d->set.tls_key) {
        doctor_say(d, DOCTOR_FAIL, "tls", "both or neither", "tls_cert and tls_key go together");
        return;
    }
    X509 *certificate = read_certificate(d, d->set.tls_cert);
    EVP_PKEY *key = read_key(d, d->set.tls_key);
    if (certificate && key) {
        check_pair(d, certificate, key);
    }
    X509_free(certificate);
    EVP_PKEY_free(key);
    ERR_clear_error();
}

void doctor_tls(doctor *d) {
    if (d->set.tls_cert || d->set.tls_key) {
        check_server(d);
    }
    X509 *trusted = d->set.ca_file ? read_certificate(d, d->set.ca_file) : NULL;
    if (trusted) {
        doctor_say(d, DOCTOR_OK, "ca_file", NULL, "%.*s", CLI_PATH_SHOWN, d->set.ca_file);
    }
    X509_free(trusted);
    ERR_clear_error();
}
