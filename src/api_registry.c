/* The registry's part of graft.h: arguments are checked here, the work is in src/registry. */
#define _XOPEN_SOURCE 700 /* realpath */
#include "api.h"

#include "base/file.h"
#include "registry/registry.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

graft_registry_options graft_registry_options_default(void) {
    return (graft_registry_options){
        .size = sizeof(graft_registry_options),
        .wait_ms = 2000,
        .max_adapter_bytes = (uint64_t)4 << 30,
    };
}

static int check_options(const graft_registry_options *o, graft_error *err) {
    enum { MAX_WAIT_MS = 60000 };
    if (o->size != sizeof *o) {
        return gr_fail(err, GRAFT_E_BAD_REQUEST, "option size: %zu, must be %zu (graft_registry_options_default sets it)",
                       o->size, sizeof *o);
    }
    if (!o->path || !*o->path) {
        return gr_fail(err, GRAFT_E_BAD_REQUEST, "option path: the registry's file is required");
    }
    if (o->wait_ms < 0 || o->wait_ms > MAX_WAIT_MS) {
        return gr_fail(err, GRAFT_E_BAD_REQUEST, "option wait_ms: %d is outside 0 to %d", o->wait_ms, MAX_WAIT_MS);
    }
    return 0;
}

int graft_registry_open(graft_registry **out, const graft_registry_options *o, graft_error *err) {
    GR_NEEDS(out && o, "somewhere to put the handle, and options")
    int rc = check_options(o, err);
    return rc ? rc : gr_registry_open(out, o, err);
}

int graft_registry_examine(graft_registry_condition *out, const graft_registry_options *o, graft_error *err) {
    GR_NEEDS(out && o, "somewhere to put what it finds, and options")
    int rc = check_options(o, err);
    return rc ? rc : gr_registry_examine(out, o, err);
}

int graft_registry_recover(graft_registry_condition *out, const graft_registry_options *o, graft_error *err) {
    GR_NEEDS(out && o, "somewhere to put what it did, and options")
    int rc = check_options(o, err);
    return rc ? rc : gr_registry_recover(out, o, err);
}

void graft_registry_close(graft_registry *r) {
    gr_registry_close(r);
}

int graft_registry_project_add(graft_registry *r, const char *project, graft_error *err) {
    GR_NEEDS(r, "a registry")
    return gr_registry_project_add(r, project, err);
}

int graft_registry_project_rename(graft_registry *r, const char *from, const char *to, graft_error *err) {
    GR_NEEDS(r, "a registry")
    return gr_registry_project_rename(r, from, to, err);
}

int graft_registry_project_remove(graft_registry *r, const char *project, graft_error *err) {
    GR_NEEDS(r, "a registry")
    return gr_registry_project_remove(r, project, err);
}

static int check_flags(unsigned flags, graft_error *err) {
    const unsigned known = GRAFT_ADD_PROJECT | GRAFT_ADD_NEW_PROJECT | GRAFT_ADD_REPLACE;
    return flags & ~known ? gr_fail(err, GRAFT_E_BAD_REQUEST, "flags: 0x%x holds bits that have no meaning", flags) : 0;
}

int graft_registry_adapter_add(graft_registry *r, const char *project, const char *adapter, const char *path, unsigned flags,
                               graft_error *err) {
    GR_NEEDS(r && path, "a registry and a path")
    int rc = check_flags(flags, err);
    return rc ? rc : gr_registry_adapter_add(r, project, adapter, path, flags, err);
}

int graft_registry_adapter_add_below(graft_registry *r, const char *below, const char *project, const char *adapter,
                                     const char *path, unsigned flags, graft_error *err) {
    char folder[PATH_MAX], quoted[GR_QUOTE_SIZE];
    GR_NEEDS(r && below && path, "a registry, a folder and a path")
    int rc = check_flags(flags, err);
    if (!rc && !realpath(below, folder)) {
        rc = gr_fail(err, gr_open_code(errno), "folder %s: %s", gr_quote(quoted, below, strlen(below)), strerror(errno));
    }
    return rc ? rc : gr_registry_adapter_add_below(r, folder, project, adapter, path, flags, err);
}

int graft_registry_adapter_remove(graft_registry *r, const char *project, const char *adapter, graft_error *err) {
    GR_NEEDS(r, "a registry")
    return gr_registry_adapter_remove(r, project, adapter, err);
}

int graft_registry_adapter_pin(graft_registry *r, const char *project, const char *adapter, bool pinned, graft_error *err) {
    GR_NEEDS(r, "a registry")
    return gr_registry_adapter_pin(r, project, adapter, pinned, err);
}

int graft_registry_adapter_reload(graft_registry *r, const char *project, const char *adapter, bool *changed, graft_error *err) {
    GR_NEEDS(r, "a registry")
    return gr_registry_adapter_reload(r, project, adapter, changed, err);
}

int graft_registry_adapter_list(graft_registered_list **out, graft_registry *r, const char *project, const char *adapter,
                                graft_error *err) {
    GR_NEEDS(out && r, "somewhere to put the list, and a registry")
    return gr_registry_adapter_list(out, r, project, adapter, err);
}

int graft_registry_project_list(graft_project_list **out, graft_registry *r, const char *project, graft_error *err) {
    GR_NEEDS(out && r, "somewhere to put the list, and a registry")
    return gr_registry_project_list(out, r, project, err);
}

int graft_registry_event_list(graft_event_list **out, graft_registry *r, const char *project, const char *adapter, size_t most,
                              graft_error *err) {
    GR_NEEDS(out && r, "somewhere to put the list, and a registry")
    return gr_registry_event_list(out, r, project, adapter, most, err);
}

int graft_registry_scan(graft_registry *r, const char *path, graft_scan_fn fn, void *user, graft_scan_summary *out,
                        graft_error *err) {
    const gr_scan_limits limits = {GRAFT_SCAN_ENTRIES, GRAFT_SCAN_DEPTH};
    GR_NEEDS(r && path, "a registry and a path")
    return gr_registry_scan(r, path, &limits, fn, user, out, err);
}
