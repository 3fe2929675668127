/* Where the registry lies when nobody says. Environment variables are the command's business: the library has none. */
#include "registry_cli.h"

#include "base/memory.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { PATH_ROOM = 4096 };

static const char *environment(const char *name) {
    const char *value = getenv(name);
    return value && *value ? value : NULL;
}

/* The user's data folder for graft. False if the environment names none, which must be absolute to mean anything. */
static bool data_folder(gr_buffer *out) {
    const char *data = environment("XDG_DATA_HOME");
    const char *home = environment("HOME");
    if (data && *data == '/') {
        return gr_buffer_printf(out, "%s/graft", data);
    }
    if (!home || *home != '/') {
        return false;
    }
#if defined(__APPLE__)
    return gr_buffer_printf(out, "%s/Library/Application Support/graft", home);
#else
    return gr_buffer_printf(out, "%s/.local/share/graft", home);
#endif
}

/* Every folder on the way that is not there. Opening tells what could not be made. */
static void make_folders(char *path) {
    for (char *slash = strchr(path + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        mkdir(path, 0700);
        *slash = '/';
    }
    mkdir(path, 0700);
}

int cli_registry_path(char **out, const char *option, bool make, graft_error *err) {
    const char *given = option ? option : environment("GRAFT_REGISTRY");
    if (given) {
        *out = cli_strdup(given);
        return 0;
    }
    gr_buffer path;
    gr_buffer_init(&path, PATH_ROOM);
    if (!data_folder(&path)) {
        gr_buffer_finish(&path);
        return gr_fail(err, GRAFT_E_BAD_REQUEST, "where is the registry? give --registry FILE, or set GRAFT_REGISTRY or HOME");
    }
    if (make) {
        make_folders(path.data);
    }
    gr_buffer_puts(&path, "/registry.db");
    cli_buffer_check(&path);
    *out = cli_strdup(path.data);
    gr_buffer_finish(&path);
    return 0;
}
