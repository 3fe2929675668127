/* What `model` stands for. */
#include "names.h"

#include "auth.h"

#include <string.h>

void srv_name_base(server *s) {
    const char *path = s->model.path, *slash = strrchr(path, '/');
    const char *name = slash ? slash + 1 : path;
    size_t n = strlen(name);
    if (n > 5 && strcmp(name + n - 5, ".gguf") == 0) {
        n -= 5;
    }
    snprintf(s->base_id, sizeof s->base_id, "%.*s", (int)(n < sizeof s->base_id ? n : sizeof s->base_id - 1), name);
}

const char *srv_name_id(char out[SRV_ID_SIZE], const char *project, const char *adapter) {
    bool plain = strcmp(adapter, "default") == 0;
    snprintf(out, SRV_ID_SIZE, "%s%s%s", project, plain ? "" : "/", plain ? "" : adapter);
    return out;
}

void srv_name_set(srv_name *out, const char *project, const char *adapter) {
    *out = (srv_name){0};
    snprintf(out->project, sizeof out->project, "%s", project);
    snprintf(out->adapter, sizeof out->adapter, "%s", adapter);
}

bool srv_name_split(srv_name *out, const char *text) {
    const char *slash = strchr(text, '/');
    size_t n = slash ? (size_t)(slash - text) : strlen(text);
    const char *adapter = slash ? slash + 1 : "default";
    if (n == 0 || n >= GRAFT_NAME_SIZE || !*adapter || strlen(adapter) >= GRAFT_NAME_SIZE) {
        return false;
    }
    memset(out, 0, sizeof *out);
    memcpy(out->project, text, n);
    strcpy(out->adapter, adapter);
    return true;
}

graft_registered_list *srv_registered(const server *s, const srv_name *name) {
    graft_registered_list *list = NULL;
    if (s->registry) {
        graft_registry_adapter_list(&list, s->registry, name ? name->project : NULL, name ? name->adapter : NULL, NULL);
    }
    return list;
}

static bool is_registered(const server *s, const srv_name *name) {
    graft_registered_list *list = srv_registered(s, name);
    bool found = list != NULL;
    graft_registered_list_free(list);
    return found;
}

/* Past "BASE:" or "BASE::", if that is how it begins. */
static const char *skip_base(const server *s, const char *text) {
    size_t n = strlen(s->base_id);
    if (strncmp(text, s->base_id, n) != 0 || text[n] != ':') {
        return text;
    }
    return text + n + 1 + (text[n + 1] == ':');
}

bool srv_name_find(const srv_exchange *x, srv_name *out, const char *text, const char *param, srv_fault *f) {
    const server *s = x->s;
    char name[2 * SRV_ID_SIZE], quoted[GR_QUOTE_SIZE];
    if (!text) {
        const srv_default *d = srv_defaults_current(s);
        *out = (srv_name){.base = !d || !srv_may(x, d->project)};
        if (!out->base) {
            snprintf(out->project, sizeof out->project, "%s", d->project);
            snprintf(out->adapter, sizeof out->adapter, "%s", d->adapter);
        }
        return true;
    }
    if (strcmp(text, s->base_id) == 0) {
        *out = (srv_name){.base = true};
        return true;
    }
    const char *rest = skip_base(s, text);
    size_t n = strlen(rest), tag = strlen(":latest");
    if (n > tag && strcmp(rest + n - tag, ":latest") == 0) {
        n -= tag;
    }
    if (n < sizeof name) {
        memcpy(name, rest, n);
        name[n] = '\0';
        if (strcmp(name, s->base_id) == 0 || (rest != text && strcmp(name, "latest") == 0)) {
            *out = (srv_name){.base = true};
            return true;
        }
        srv_name found;
        if (srv_name_split(&found, name) && srv_may(x, found.project) && is_registered(s, &found)) {
            *out = found;
            return true;
        }
    }
    return srv_fault_set(f, 404, "model_not_found", param, "The model `%s` does not exist.",
                         gr_quote(quoted, text, strlen(text)));
}
