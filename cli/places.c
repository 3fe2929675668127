/* Where files lie when nobody says. Environment variables are the command's business: the library has none. */
#include "cli.h"

#include "base/memory.h"

#include <stdlib.h>
#include <string.h>

enum { PATH_ROOM = 1 << 16 };

/* Only an absolute path means the same in every folder; others count as unset, as XDG has it. */
static const char *folder_variable(const char *name) {
    const char *value = getenv(name);
    return value && *value == '/' ? value : NULL;
}

/* Programs of others take theirs as they are. */
static const char *set_variable(const char *name) {
    const char *value = getenv(name);
    return value && *value ? value : NULL;
}

/* `a` and `b` joined, or NULL without `a`. */
static char *join(const char *a, const char *b) {
    if (!a) {
        return NULL;
    }
    gr_buffer path;
    gr_buffer_init(&path, PATH_ROOM);
    gr_buffer_printf(&path, "%s%s", a, b);
    cli_buffer_check(&path);
    return path.data;
}

/* `file` in the user's folder of one kind: `variable`'s, else `below` the home folder. */
static char *user_file(const char *variable, const char *below, const char *file) {
    const char *folder = folder_variable(variable);
    char *base = folder ? join(folder, "/graft/") : join(folder_variable("HOME"), below);
    char *path = join(base, file);
    gr_free(base);
    return path;
}

#if defined(__APPLE__)
#define CONFIG_BELOW "/Library/Application Support/graft/"
#define DATA_BELOW "/Library/Application Support/graft/"
#define STATE_BELOW "/Library/Application Support/graft/"
#else
#define CONFIG_BELOW "/.config/graft/"
#define DATA_BELOW "/.local/share/graft/"
#define STATE_BELOW "/.local/state/graft/"
#endif

void cli_place_config(char **out) {
    *out = user_file("XDG_CONFIG_HOME", CONFIG_BELOW, "graft.ini");
}

void cli_place_registry(char **out) {
    *out = user_file("XDG_DATA_HOME", DATA_BELOW, "registry.db");
}

void cli_place_state(char **out) {
    *out = user_file("XDG_STATE_HOME", STATE_BELOW, "chat_history");
}

void cli_place_ollama(char **out) {
    const char *given = set_variable("OLLAMA_MODELS");
    *out = given ? cli_strdup(given) : join(folder_variable("HOME"), "/.ollama/models");
}

void cli_place_hub(char **out) {
    const char *given = set_variable("HF_HUB_CACHE"), *home = set_variable("HF_HOME"), *cache = folder_variable("XDG_CACHE_HOME");
    if (given) {
        *out = cli_strdup(given);
    } else if (home) {
        *out = join(home, "/hub");
    } else {
        *out = cache ? join(cache, "/huggingface/hub") : join(folder_variable("HOME"), "/.cache/huggingface/hub");
    }
}

void cli_place_from(char **out, const char *folder, const char *path) {
    const char *home = folder_variable("HOME");
    if (strncmp(path, "~/", 2) == 0 && home) {
        *out = join(home, path + 1);
    } else if (*path == '/' || *path == '~' || strncmp(path, "ollama:", 7) == 0 || strncmp(path, "hf:", 3) == 0) {
        *out = cli_strdup(path);
    } else {
        *out = join(folder, path);
    }
}
