/* The references' part of graft.h: arguments are checked here, the work is in src/model/reference.c. */
#include "base/error.h"
#include "base/memory.h"
#include "model/reference.h"

static int check(char **path, const char *reference, const graft_stores *stores, graft_error *err) {
    if (!path || !reference) {
        return gr_fail(err, GRAFT_E_BAD_REQUEST, "graft_find needs somewhere to put the path, and a reference");
    }
    if (stores && stores->size != sizeof *stores) {
        return gr_fail(err, GRAFT_E_BAD_REQUEST, "stores' size: %zu, must be %zu", stores->size, sizeof *stores);
    }
    return 0;
}

int graft_find_model(char **path, const char *reference, const graft_stores *stores, graft_error *err) {
    int rc = check(path, reference, stores, err);
    return rc ? rc : gr_find_model(path, reference, stores, err);
}

int graft_find_adapter(char **path, const char *reference, const graft_stores *stores, graft_error *err) {
    int rc = check(path, reference, stores, err);
    return rc ? rc : gr_find_adapter(path, reference, stores, err);
}

void graft_string_free(char *s) {
    gr_free(s);
}
