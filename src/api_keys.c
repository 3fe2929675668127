/* The keys' part of graft.h: arguments are checked here, the work is in src/registry/keys.c. */
#include "api.h"

#include "registry/registry.h"

int graft_registry_key_add(char secret[GRAFT_KEY_SIZE], graft_registry *r, const char *name, const char *const *projects,
                           size_t n_projects, graft_error *err) {
    GR_NEEDS(secret && r && (projects || !n_projects),
             "somewhere to put the secret, a registry, and projects where it counts some")
    return gr_registry_key_add(secret, r, name, projects, n_projects, err);
}

int graft_registry_key_remove(graft_registry *r, const char *name, graft_error *err) {
    GR_NEEDS(r, "a registry")
    return gr_registry_key_remove(r, name, err);
}

int graft_registry_key_list(graft_key_list **out, graft_registry *r, const char *name, graft_error *err) {
    GR_NEEDS(out && r, "somewhere to put the list, and a registry")
    return gr_registry_key_list(out, r, name, err);
}

int graft_registry_key_find(graft_key_list **out, graft_registry *r, const char *secret, graft_error *err) {
    GR_NEEDS(out && r && secret, "somewhere to put the key, a registry and a secret")
    return gr_registry_key_find(out, r, secret, err);
}

size_t graft_registry_key_count(graft_registry *r) {
    return r ? gr_registry_key_count(r) : 0;
}
