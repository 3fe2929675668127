/*
 * Who may ask: --api-key's key, which is for everything, and the registry's, each for everything or for some projects. As
 * soon as there is one of either, every request must bring a key, but for /health. Without one the server listens on the
 * loopback only, and refuses what a page of another site could send there under a name of its own.
 */
#ifndef SRV_AUTH_H
#define SRV_AUTH_H

#include "http.h"

/* Checks the option: fills s->key_hash. Errors: BAD_REQUEST (a key that is none). */
int srv_auth_init(server *s, graft_error *err);
/* Whether the address may be served without asking for keys. */
bool srv_auth_may_be_open(const server *s);
/* Whether a key is asked for at all. */
bool srv_auth_asks(const server *s);
/* Sets x->admin and x->key. False if the request was refused; it is answered then. */
bool srv_auth_check(srv_exchange *x);
/* Requests with one number may know what the others asked: those without a key or with one for everything, and those with
 * keys for the same projects. Only after srv_auth_check. */
uint64_t srv_auth_domain(const srv_exchange *x);
/* Whether the request may use, list and see this project's adapters. Others do not exist for it: 404, not 403. The base is
 * everybody's. Only after srv_auth_check. */
bool srv_may(const srv_exchange *x, const char *project);
/* A path as the key may know it: whole if it may see everything, else its last part. Points into `path`. */
const char *srv_path_shown(const srv_exchange *x, const char *path);

#endif
