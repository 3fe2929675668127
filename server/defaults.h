/*
 * What requests get that name neither `model` nor `lora`: the base, until somebody sets other adapters, by llama-server's
 * POST /lora-adapters or by switching to a project. One state for both, kept as long as the server runs. Loop thread only.
 */
#ifndef SRV_DEFAULTS_H
#define SRV_DEFAULTS_H

#include "graft.h"

enum { SRV_DEFAULTS = 8 }; /* as many as a request may add up */

typedef struct srv_default {
    char project[GRAFT_NAME_SIZE], adapter[GRAFT_NAME_SIZE];
    float scale; /* not 0 */
} srv_default;

typedef struct srv_defaults {
    srv_default items[SRV_DEFAULTS];
    size_t n; /* 0 = the base */
} srv_defaults;

struct server;
struct srv_exchange;
struct srv_name;

/* Replaces what is set. Names are not checked here; n is at most SRV_DEFAULTS. */
void srv_defaults_set(struct server *s, const srv_default *items, size_t n);
/* What is set now, valid until the next set; names may have left the registry since. */
const srv_defaults *srv_defaults_get(const struct server *s);
/* The one adapter that is set, at scale 1; NULL if that is not so. */
const srv_default *srv_defaults_current(const struct server *s);
/* What this request gets when it names none: of what is set the adapters that are registered and that its key may use.
 * Returns how many. Both arrays have room for SRV_DEFAULTS. */
size_t srv_default_uses(const struct srv_exchange *x, struct srv_name *names, float *scales);

#endif
