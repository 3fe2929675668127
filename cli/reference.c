/* ollama:NAME and hf:ORG/NAME on the command line: where the stores lie is a setting, what they hold the library knows. */
#include "cli.h"

static int find(char **path, const char *reference, const cli_settings *s, graft_error *err,
                int (*how)(char **, const char *, const graft_stores *, graft_error *)) {
    const graft_stores stores = {.size = sizeof stores, .ollama = s->ollama_models, .hf_hub = s->hf_hub};
    return how(path, reference, &stores, err);
}

int cli_find_model(char **path, const char *reference, const cli_settings *s, graft_error *err) {
    return find(path, reference, s, err, graft_find_model);
}

int cli_find_adapter(char **path, const char *reference, const cli_settings *s, graft_error *err) {
    return find(path, reference, s, err, graft_find_adapter);
}
