/*
 * The settings of graft: one table (settings.c) from which parsing of flags, environment and file, --help, `graft config`
 * and docs/settings.md are all made. A later source beats an earlier one: default, file, environment, flag.
 *
 * A setting called `max_adapters` in the file is GRAFT_MAX_ADAPTERS in the environment and --max-adapters on the command
 * line. All that the file and the environment hold is checked by every command, also what the command has no use for.
 */
#ifndef GRAFT_CLI_SETTINGS_H
#define GRAFT_CLI_SETTINGS_H

#include "base/error.h"
#include "graft.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* In the order in which they are shown. */
#define CLI_SETTINGS(X)                                                                                        \
    X(MODEL) X(REGISTRY) X(SLOTS) X(CONTEXT) X(BATCH) X(THREADS) X(KV) X(APPLY) X(ADAPTER_TYPE) X(GPU) X(SELF_TEST) \
    X(MAX_ADAPTERS) X(MEMORY_LIMIT_MB) X(POLICY) X(FALLBACK) X(ADAPTER_WAIT_MS) X(RETRY_ATTEMPTS) X(RETRY_BASE_MS) \
    X(LOADER_THREADS) X(PROBE) X(MAX_ADAPTER_MB) X(ADAPTER_ROOT) X(REGISTRY_WAIT_MS) X(OLLAMA_MODELS) X(HF_HUB) \
    X(HOST) X(PORT) X(INSECURE_LISTEN) X(API_KEY_FILE) X(TLS_CERT) X(TLS_KEY) X(CORS_ORIGINS) X(QUEUE) X(DEADLINE_S) X(DRAIN_S) \
    X(IDLE_UNLOAD_S) X(SERVER) X(CA_FILE) X(LOG_LEVEL) X(LOG_FORMAT)

enum cli_setting_id {
#define X(id) CLI_ID_##id,
    CLI_SETTINGS(X)
#undef X
    CLI_N_SETTINGS
};

/* Sets of settings: which ones a command takes as flags. */
#define CLI_SET(id) (UINT64_C(1) << CLI_ID_##id)
#define CLI_SET_ALL ((UINT64_C(1) << CLI_N_SETTINGS) - 1)
#define CLI_SET_LOG (CLI_SET(LOG_LEVEL) | CLI_SET(LOG_FORMAT))
/* Opening a base and applying adapters to it. */
#define CLI_SET_MODEL                                                                                          \
    (CLI_SET(MODEL) | CLI_SET(BATCH) | CLI_SET(THREADS) | CLI_SET(KV) | CLI_SET(ADAPTER_TYPE) | CLI_SET(GPU) | \
     CLI_SET(SELF_TEST) | CLI_SET(MAX_ADAPTER_MB) | CLI_SET(MEMORY_LIMIT_MB) | CLI_SET_STORES | CLI_SET_LOG)
/* Where models lie that are named ollama:NAME and hf:ORG/NAME. */
#define CLI_SET_STORES (CLI_SET(OLLAMA_MODELS) | CLI_SET(HF_HUB))
/* Adapters by name. */
#define CLI_SET_LOADER                                                                                         \
    (CLI_SET(REGISTRY) | CLI_SET(MAX_ADAPTERS) | CLI_SET(POLICY) | CLI_SET(FALLBACK) | CLI_SET(ADAPTER_WAIT_MS) | \
     CLI_SET(RETRY_ATTEMPTS) | CLI_SET(RETRY_BASE_MS) | CLI_SET(LOADER_THREADS) | CLI_SET(PROBE) | CLI_SET(ADAPTER_ROOT))
/* Listening. The key itself is no setting: `graft config` and command lines are there to be read. */
#define CLI_SET_SERVER                                                                                         \
    (CLI_SET(HOST) | CLI_SET(PORT) | CLI_SET(INSECURE_LISTEN) | CLI_SET(API_KEY_FILE) | CLI_SET(TLS_CERT) |    \
     CLI_SET(TLS_KEY) | CLI_SET(CORS_ORIGINS) | CLI_SET(QUEUE) | CLI_SET(DEADLINE_S) | CLI_SET(DRAIN_S) | \
     CLI_SET(IDLE_UNLOAD_S))
/* Asking a server that runs. */
#define CLI_SET_REMOTE (CLI_SET(SERVER) | CLI_SET(API_KEY_FILE) | CLI_SET(CA_FILE) | CLI_SET_LOG)
/* Commands that need a registry and no model. */
#define CLI_SET_REGISTRY                                                                                       \
    (CLI_SET(REGISTRY) | CLI_SET(ADAPTER_ROOT) | CLI_SET(REGISTRY_WAIT_MS) | CLI_SET(MAX_ADAPTER_MB) | CLI_SET_LOG)

typedef enum cli_source { CLI_FROM_DEFAULT, CLI_FROM_FILE, CLI_FROM_ENVIRONMENT, CLI_FROM_FLAG } cli_source;

/* The values in force. Choices are positions in their lists; strings are NULL where nothing was said and there is no
 * default. Strings live until the program ends. */
typedef struct cli_settings {
    const char *model, *registry, *adapter_root, *ollama_models, *hf_hub;
    int slots; /* 0 = as the command needs */
    int context, batch, threads, kv, apply, adapter_type;
    bool gpu, self_test, probe;
    int max_adapters, memory_limit_mb, policy, fallback, adapter_wait_ms, retry_attempts, retry_base_ms, loader_threads;
    int max_adapter_mb, registry_wait_ms;
    const char *host, *api_key_file, *tls_cert, *tls_key, *cors_origins, *server, *ca_file;
    int port, queue, deadline_s, drain_s, idle_unload_s;
    bool insecure_listen;
    int log_level, log_format;

    const char *config; /* --config, or NULL */
    const char *file;   /* the file that was read, or NULL */
    struct cli_origin {
        cli_source source;
        int line; /* in the file */
    } from[CLI_N_SETTINGS];
} cli_settings;

/* graft_options_default() in this form. A command with other defaults sets them before cli_parse. */
cli_settings cli_settings_default(void);

typedef enum cli_kind { CLI_INT, CLI_BOOL, CLI_CHOICE, CLI_STRING, CLI_PATH } cli_kind;

typedef struct cli_setting {
    const char *key;   /* in the file */
    const char *flag;  /* without dashes; a bool also has --no-FLAG */
    int letter;        /* short flag, or 0 */
    cli_kind kind;
    const char *value; /* what --help calls it; "a|b|c" for choices */
    size_t at;         /* offset in cli_settings */
    double min, max;
    const char *help;  /* may hold newlines */
} cli_setting;

extern const cli_setting cli_setting_table[CLI_N_SETTINGS];

/* "GRAFT_MAX_ADAPTERS" */
#define CLI_VARIABLE_SIZE 64
const char *cli_setting_variable(char out[CLI_VARIABLE_SIZE], const cli_setting *t);

/* Checks `text` and takes it over unless a later source spoke already. On a bad one false, and why: "\"x\" is not …". */
bool cli_settings_put(cli_settings *s, int id, cli_source source, int line, const char *text, char *why, size_t why_size);

/*
 * Adds what the file and the environment say. Errors: BAD_SETTING (file and line or variable, key, found, allowed). Unknown
 * GRAFT_ variables are no error, since other programs have such too: cli_settings_strangers logs them.
 */
int cli_settings_load(cli_settings *s, graft_error *err);
void cli_settings_strangers(void);

/* Reads the file at `path` into s (settings_file.c). Errors: BAD_SETTING. With `missing_ok` a missing one is none. */
int cli_settings_read_file(cli_settings *s, const char *path, bool missing_ok, graft_error *err);

/* The same with the file's bytes at hand; `path` is for messages, and its folder for paths in them. */
int cli_settings_read_text(cli_settings *s, const char *path, const char *text, size_t length, graft_error *err);

/* The setting whose key is nearest to `key` (of any length), or NULL if none is near. */
const cli_setting *cli_setting_nearest(const char *key, size_t length);
/* The id of the setting with this key, or -1. */
int cli_setting_find(const char *key);

/* What the library takes. Slots and context 0 stay the library's default; log and progress are not set. */
void cli_settings_options(const cli_settings *s, graft_options *out);
void cli_settings_registry_options(const cli_settings *s, graft_registry_options *out);

/* ---- places (places.c) -------------------------------------------------------------------------------- */

/* Where things lie when nobody says. *out: gr_free; NULL if the environment names no folder (HOME is unset). */
void cli_place_config(char **out);   /* graft.ini in the user's folder for settings */
void cli_place_registry(char **out); /* registry.db in the user's folder for data */
void cli_place_state(char **out);    /* chat_history in the user's folder for what programs remember */
void cli_place_ollama(char **out);   /* OLLAMA_MODELS, else ~/.ollama/models */
void cli_place_hub(char **out);      /* HF_HUB_CACHE, HF_HOME/hub, else ~/.cache/huggingface/hub */

/* A path from a file below `folder`: "~/" is the user's home, and what is not absolute lies below `folder`. ollama: and
 * hf: names stay as they are. *out: gr_free. */
void cli_place_from(char **out, const char *folder, const char *path);

#endif
