/* What requests get that name no model. */
#include "defaults.h"

#include "names.h"

#include <string.h>

void srv_defaults_set(server *s, const srv_default *items, size_t n) {
    srv_defaults fresh = {.n = n < SRV_DEFAULTS ? n : SRV_DEFAULTS};
    if (fresh.n) {
        memcpy(fresh.items, items, fresh.n * sizeof *items);
    }
    s->defaults = fresh;
}

const srv_defaults *srv_defaults_get(const server *s) {
    return &s->defaults;
}

const srv_default *srv_defaults_current(const server *s) {
    const srv_defaults *d = &s->defaults;
    return d->n == 1 && d->items[0].scale == 1.0f ? &d->items[0] : NULL;
}

size_t srv_default_uses(const srv_exchange *x, srv_name *names, float *scales) {
    const srv_defaults *d = &x->s->defaults;
    size_t n = 0;
    for (size_t i = 0; i < d->n; i++) {
        char id[SRV_ID_SIZE];
        srv_fault f;
        if (srv_name_find(x, &names[n], srv_name_id(id, d->items[i].project, d->items[i].adapter), "model", &f) &&
            !names[n].base) {
            scales[n++] = d->items[i].scale;
        }
    }
    return n;
}
