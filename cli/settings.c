/* The table of settings, and the order in which default, file, environment and flags beat each other. */
#include "cli.h"

#include "base/memory.h"

#include <ctype.h>
#include <string.h>

extern char **environ;

enum { MIB = 1 << 20, MB_MOST = 1 << 24 /* 16 TiB */ };

#define AT(field) offsetof(cli_settings, field)

const cli_setting cli_setting_table[CLI_N_SETTINGS] = {
    [CLI_ID_MODEL] = {"model", "model", 'm', CLI_PATH, "FILE", AT(model), 0, 0,
                      "the base model: a GGUF file, ollama:NAME or hf:ORG/NAME"},
    [CLI_ID_REGISTRY] = {"registry", "registry", 0, CLI_PATH, "FILE", AT(registry), 0, 0,
                         "the registry of projects and adapters (default: registry.db in\n"
                         "the user's data folder for graft)"},
    [CLI_ID_SLOTS] = {"slots", "slots", 's', CLI_INT, "N", AT(slots), 0, 256,
                      "sequences in flight at once, 0 = as the command needs: one per\n"
                      "answer, at most 8 (run) or 16 (demo); 8 (serve)"},
    [CLI_ID_CONTEXT] = {"context", "ctx", 'c', CLI_INT, "N", AT(context), 0, 1 << 20,
                        "tokens per sequence, 0 = as many as answers can need; where that is\n"
                        "over 1024, the model's own, at most 4096"},
    [CLI_ID_BATCH] = {"batch", "batch", 'b', CLI_INT, "N", AT(batch), 16, 4096, "rows per decode, 16 to 4096"},
    [CLI_ID_THREADS] = {"threads", "threads", 't', CLI_INT, "N", AT(threads), 0, 512,
                        "compute threads, 0 = one per physical core"},
    [CLI_ID_KV] = {"kv", "kv", 0, CLI_CHOICE, "f16|f32", AT(kv), 0, 0,
                   "storage of the KV cache; f32 also turns flash attention off"},
    [CLI_ID_APPLY] = {"apply", "apply", 0, CLI_CHOICE, "auto|rows|grouped", AT(apply), 0, 0,
                      "how adapters meet a batch: by rows of one decode, or in one decode per\n"
                      "set of adapters; auto takes rows if the self-test agrees with libllama"},
    [CLI_ID_ADAPTER_TYPE] = {"adapter_type", "adapter-type", 0, CLI_CHOICE, "f16|f32|q8_0", AT(adapter_type), 0, 0,
                             "storage of the adapters' matrices"},
    [CLI_ID_GPU] = {"gpu", "gpu", 0, CLI_BOOL, NULL, AT(gpu), 0, 0,
                    "let libllama offload layers; adapters are then applied grouped"},
    [CLI_ID_SELF_TEST] = {"self_test", "self-test", 0, CLI_BOOL, NULL, AT(self_test), 0, 0,
                          "compare applying by rows with libllama when opening"},
    [CLI_ID_MAX_ADAPTERS] = {"max_adapters", "max-adapters", 0, CLI_INT, "N", AT(max_adapters), 0, 100000,
                             "registered adapters in memory at once, 0 = bounded by memory only"},
    [CLI_ID_MEMORY_LIMIT_MB] = {"memory_limit_mb", "memory-limit-mb", 0, CLI_INT, "MIB", AT(memory_limit_mb), 0, MB_MOST,
                                "memory for base, caches, adapters and graft itself, 0 = what the\n"
                                "machine or its cgroup has"},
    [CLI_ID_POLICY] = {"policy", "policy", 0, CLI_CHOICE, "lru|sieve|s3fifo|wtinylfu|gdsf", AT(policy), 0, 0,
                       "which registered adapter leaves memory when room is needed"},
    [CLI_ID_FALLBACK] = {"fallback", "fallback", 0, CLI_CHOICE, "base|error", AT(fallback), 0, 0,
                         "a registered adapter that cannot be had: answer with the base and say\nso, or fail"},
    [CLI_ID_ADAPTER_WAIT_MS] = {"adapter_wait_ms", "adapter-wait-ms", 0, CLI_INT, "MS", AT(adapter_wait_ms), 0, 86400000,
                                "how long a request waits for its adapter, 0 = as long as loading takes,\n"
                                "and not at all for room"},
    [CLI_ID_RETRY_ATTEMPTS] = {"retry_attempts", "retry-attempts", 0, CLI_INT, "N", AT(retry_attempts), 1, 10,
                               "tries to load an adapter when an error may pass"},
    [CLI_ID_RETRY_BASE_MS] = {"retry_base_ms", "retry-base-ms", 0, CLI_INT, "MS", AT(retry_base_ms), 1, 60000,
                              "first pause between tries; it doubles"},
    [CLI_ID_LOADER_THREADS] = {"loader_threads", "loader-threads", 0, CLI_INT, "N", AT(loader_threads), 1, 8,
                               "adapters that are read at the same time"},
    [CLI_ID_PROBE] = {"probe", "probe", 0, CLI_BOOL, NULL, AT(probe), 0, 0,
                      "evaluate a few tokens with an adapter before it counts as loaded"},
    [CLI_ID_MAX_ADAPTER_MB] = {"max_adapter_mb", "max-adapter-mb", 0, CLI_INT, "MIB", AT(max_adapter_mb), 1, MB_MOST,
                               "larger adapter files are refused before reading"},
    [CLI_ID_ADAPTER_ROOT] = {"adapter_root", "adapter-root", 0, CLI_PATH, "DIR", AT(adapter_root), 0, 0,
                             "registered adapters must lie below this folder (default: anywhere)"},
    [CLI_ID_REGISTRY_WAIT_MS] = {"registry_wait_ms", "registry-wait-ms", 0, CLI_INT, "MS", AT(registry_wait_ms), 0, 60000,
                                 "how long to wait for another process that writes the registry"},
    [CLI_ID_OLLAMA_MODELS] = {"ollama_models", "ollama-models", 0, CLI_PATH, "DIR", AT(ollama_models), 0, 0,
                              "where Ollama keeps its models (default: $OLLAMA_MODELS, else\n~/.ollama/models)"},
    [CLI_ID_HF_HUB] = {"hf_hub", "hf-hub", 0, CLI_PATH, "DIR", AT(hf_hub), 0, 0,
                       "Hugging Face's local cache (default: $HF_HUB_CACHE, else $HF_HOME/hub,\n"
                       "else ~/.cache/huggingface/hub)"},
    [CLI_ID_HOST] = {"host", "host", 0, CLI_STRING, "ADDRESS", AT(host), 0, 0, "the numeric address to listen on"},
    [CLI_ID_PORT] = {"port", "port", 0, CLI_INT, "N", AT(port), 0, 65535, "the port to listen on, 0 = any free one"},
    [CLI_ID_INSECURE_LISTEN] = {"insecure_listen", "insecure-listen", 0, CLI_BOOL, NULL, AT(insecure_listen), 0, 0,
                                "listen on another address than the loopback's without a key"},
    [CLI_ID_API_KEY_FILE] = {"api_key_file", "api-key-file", 0, CLI_PATH, "FILE", AT(api_key_file), 0, 0,
                             "a file whose first line is the key that clients must send, and that\n"
                             "commands send (default: GRAFT_API_KEY in the environment, else none)"},
    [CLI_ID_TLS_CERT] = {"tls_cert", "tls-cert", 0, CLI_PATH, "FILE", AT(tls_cert), 0, 0,
                         "serve HTTPS with the certificate (and its chain) of this PEM file"},
    [CLI_ID_TLS_KEY] = {"tls_key", "tls-key", 0, CLI_PATH, "FILE", AT(tls_key), 0, 0,
                        "the certificate's private key, a PEM file without a passphrase. Both files\n"
                        "are read again at SIGHUP"},
    [CLI_ID_CORS_ORIGINS] = {"cors_origins", "cors-origins", 0, CLI_STRING, "LIST", AT(cors_origins), 0, 0,
                             "origins whose pages may read answers, such as https://a.example, separated\n"
                             "by commas; * = any (default: none)"},
    [CLI_ID_QUEUE] = {"queue", "queue", 0, CLI_INT, "N", AT(queue), 0, 65000,
                      "answers that may wait for a slot; more are refused"},
    [CLI_ID_DEADLINE_S] = {"deadline_s", "deadline-s", 0, CLI_INT, "S", AT(deadline_s), 0, 86400,
                           "most seconds for one request, 0 = no limit"},
    [CLI_ID_DRAIN_S] = {"drain_s", "drain-s", 0, CLI_INT, "S", AT(drain_s), 0, 86400,
                        "seconds that answers may go on after SIGTERM"},
    [CLI_ID_IDLE_UNLOAD_S] = {"idle_unload_s", "idle-unload-s", 0, CLI_INT, "S", AT(idle_unload_s), 0, 2000000,
                              "adapters that nobody asked for in this time leave memory, 0 = never; a\n"
                              "request's keep_alive goes before"},
    [CLI_ID_SERVER] = {"server", "server", 0, CLI_STRING, "URL", AT(server), 0, 0,
                       "the server that commands ask (default: http://127.0.0.1:8080, or where the\n"
                       "settings host, port and tls_cert say that graft serve listens)"},
    [CLI_ID_CA_FILE] = {"ca_file", "ca-file", 0, CLI_PATH, "FILE", AT(ca_file), 0, 0,
                        "for https: the certificates to trust, PEM; a self-signed one for\nexample (default: the system's)"},
    [CLI_ID_LOG_LEVEL] = {"log_level", "log-level", 0, CLI_CHOICE, "debug|info|warning|error", AT(log_level), 0, 0,
                          "what is logged to stderr; -v is debug"},
    [CLI_ID_LOG_FORMAT] = {"log_format", "log-format", 0, CLI_CHOICE, "auto|human|json", AT(log_format), 0, 0,
                           "how; auto is human on a terminal, else JSON, one object a line"},
};

/* Positions in the lists above are the library's numbers, but where the library has one more for "as the instance". */
_Static_assert(GRAFT_APPLY_AUTO == 0 && GRAFT_APPLY_GROUPED == 2, "apply");
_Static_assert(GRAFT_TYPE_F16 == 0 && GRAFT_TYPE_Q8_0 == 2, "adapter_type");
_Static_assert(GRAFT_KV_F16 == 0 && GRAFT_KV_F32 == 1, "kv");
_Static_assert(GRAFT_POLICY_LRU == 0 && GRAFT_POLICY_GDSF == 4 && GRAFT_POLICIES == 5, "policy");
_Static_assert(GRAFT_FALLBACK_BASE == 1 && GRAFT_FALLBACK_ERROR == 2, "fallback");
_Static_assert(GRAFT_LOG_DEBUG == 0 && GRAFT_LOG_ERROR == 3, "log_level");
_Static_assert(CLI_N_SETTINGS < 64, "CLI_SET has 64 bits");

cli_settings cli_settings_default(void) {
    graft_options o = graft_options_default();
    graft_registry_options r = graft_registry_options_default();
    return (cli_settings){
        .slots = 0,
        .context = o.context,
        .batch = o.batch,
        .threads = o.threads,
        .kv = (int)o.kv_type,
        .apply = (int)o.apply,
        .adapter_type = (int)o.adapter_type,
        .gpu = o.gpu,
        .self_test = o.self_test,
        .max_adapters = o.max_adapters,
        .memory_limit_mb = (int)(o.memory_limit / MIB),
        .policy = (int)o.policy,
        .fallback = o.fallback == GRAFT_FALLBACK_ERROR ? 1 : 0,
        .adapter_wait_ms = o.adapter_wait_ms,
        .retry_attempts = o.retry_attempts,
        .retry_base_ms = o.retry_base_ms,
        .loader_threads = o.loader_threads,
        .probe = o.probe,
        .max_adapter_mb = (int)(o.max_adapter_bytes / MIB),
        .registry_wait_ms = r.wait_ms,
        .host = "127.0.0.1",
        .port = 8080,
        .queue = 256,
        .deadline_s = 600,
        .drain_s = 30,
        .log_level = GRAFT_LOG_WARN,
    };
}

void cli_settings_options(const cli_settings *s, graft_options *out) {
    out->model = s->model;
    out->slots = s->slots ? s->slots : out->slots;
    out->context = s->context;
    out->batch = s->batch;
    out->threads = s->threads;
    out->kv_type = (graft_kv_type)s->kv;
    out->apply = (graft_apply)s->apply;
    out->adapter_type = (graft_adapter_type)s->adapter_type;
    out->gpu = s->gpu;
    out->self_test = s->self_test;
    out->max_adapters = s->max_adapters;
    out->memory_limit = (uint64_t)s->memory_limit_mb * MIB;
    out->policy = (graft_policy)s->policy;
    out->fallback = s->fallback ? GRAFT_FALLBACK_ERROR : GRAFT_FALLBACK_BASE;
    out->adapter_wait_ms = s->adapter_wait_ms;
    out->retry_attempts = s->retry_attempts;
    out->retry_base_ms = s->retry_base_ms;
    out->loader_threads = s->loader_threads;
    out->probe = s->probe;
    out->max_adapter_bytes = (uint64_t)s->max_adapter_mb * MIB;
}

void cli_settings_registry_options(const cli_settings *s, graft_registry_options *out) {
    out->path = s->registry;
    out->root = s->adapter_root;
    out->wait_ms = s->registry_wait_ms;
    out->max_adapter_bytes = (uint64_t)s->max_adapter_mb * MIB;
}

/* ---- one setting -------------------------------------------------------------------------------------- */

const char *cli_setting_variable(char out[CLI_VARIABLE_SIZE], const cli_setting *t) {
    int n = snprintf(out, CLI_VARIABLE_SIZE, "GRAFT_%s", t->key);
    for (int i = 0; i < n && i < CLI_VARIABLE_SIZE; i++) {
        out[i] = (char)toupper((unsigned char)out[i]);
    }
    return out;
}

int cli_setting_find(const char *key) {
    for (int i = 0; i < CLI_N_SETTINGS; i++) {
        if (strcmp(cli_setting_table[i].key, key) == 0) {
            return i;
        }
    }
    return -1;
}

static bool take_bool(const char *text, bool *out, char *why, size_t why_size) {
    static const char *const words[] = {"false", "true", "no", "yes", "off", "on", "0", "1"};
    for (size_t i = 0; i < CLI_COUNT(words); i++) {
        if (strcmp(text, words[i]) == 0) {
            *out = i % 2;
            return true;
        }
    }
    char quoted[GR_QUOTE_SIZE];
    snprintf(why, why_size, "\"%s\" is not true or false", gr_quote(quoted, text, strlen(text)));
    return false;
}

static bool take_string(const char *text, const char **out, char *why, size_t why_size) {
    if (!*text) {
        snprintf(why, why_size, "\"\" is not a value");
        return false;
    }
    *out = text;
    return true;
}

bool cli_settings_put(cli_settings *s, int id, cli_source source, int line, const char *text, char *why, size_t why_size) {
    const cli_setting *t = &cli_setting_table[id];
    /* A value that an earlier flag beats is checked all the same. */
    cli_settings unused;
    bool beaten = source < s->from[id].source;
    void *target = (char *)(beaten ? &unused : s) + t->at;
    const cli_option o = {.name = t->flag, .value = t->value, .target = target, .min = t->min, .max = t->max};
    bool good = false;
    switch (t->kind) {
    case CLI_INT: good = cli_take_int(&o, text, why, why_size); break;
    case CLI_CHOICE: good = cli_take_choice(&o, text, why, why_size); break;
    case CLI_BOOL: good = take_bool(text, target, why, why_size); break;
    case CLI_STRING:
    case CLI_PATH: good = take_string(text, target, why, why_size); break;
    }
    if (good && !beaten) {
        s->from[id].source = source;
        s->from[id].line = line;
    }
    return good;
}

/* ---- names that are nearly right ---------------------------------------------------------------------- */

enum { NAME_MOST = 32 };

static int least(int a, int b, int c) {
    int m = a < b ? a : b;
    return m < c ? m : c;
}

/* Letters to insert, drop or change to make b of a; case and '-' for '_' cost nothing. Both at most NAME_MOST long. */
static int distance(const char *a, size_t length, const char *b) {
    int row[NAME_MOST + 1];
    int n = (int)strlen(b);
    for (int k = 0; k <= n; k++) {
        row[k] = k;
    }
    for (int i = 0; i < (int)length; i++) {
        int diagonal = row[0];
        char c = a[i] == '-' ? '_' : (char)tolower((unsigned char)a[i]);
        row[0] = i + 1;
        for (int k = 0; k < n; k++) {
            int above = row[k + 1];
            row[k + 1] = least(above + 1, row[k] + 1, diagonal + (c != b[k]));
            diagonal = above;
        }
    }
    return row[n];
}

const cli_setting *cli_setting_nearest(const char *key, size_t length) {
    const cli_setting *best = NULL;
    int nearest = length > 6 ? 4 : 3; /* further is another word */
    for (int i = 0; length <= NAME_MOST && i < CLI_N_SETTINGS; i++) {
        int d = distance(key, length, cli_setting_table[i].key);
        if (d < nearest && d < (int)length) {
            nearest = d;
            best = &cli_setting_table[i];
        }
    }
    return best;
}

/* ---- the sources -------------------------------------------------------------------------------------- */

static int read_file(cli_settings *s, graft_error *err) {
    const char *given = s->config;
    if (!given) {
        const char *variable = getenv("GRAFT_CONFIG");
        given = variable && *variable ? variable : NULL;
    }
    if (given && strcmp(given, "/dev/null") == 0) {
        return 0; /* the usual way to say: none */
    }
    char *path = given ? cli_strdup(given) : NULL;
    if (!path) {
        cli_place_config(&path);
    }
    if (!path) {
        return 0;
    }
    return cli_settings_read_file(s, cli_keep(path), !given, err);
}

static int read_environment(cli_settings *s, graft_error *err) {
    for (int i = 0; i < CLI_N_SETTINGS; i++) {
        char variable[CLI_VARIABLE_SIZE], why[512];
        const char *value = getenv(cli_setting_variable(variable, &cli_setting_table[i]));
        if (value && *value && !cli_settings_put(s, i, CLI_FROM_ENVIRONMENT, 0, value, why, sizeof why)) {
            return gr_fail(err, GRAFT_E_BAD_SETTING, "environment: %s: %s", variable, why);
        }
    }
    return 0;
}

/* Defaults that the environment of other programs or the user's folders give. */
static void fill_places(cli_settings *s) {
    const struct {
        const char **field;
        void (*place)(char **out);
    } places[] = {{&s->registry, cli_place_registry}, {&s->ollama_models, cli_place_ollama}, {&s->hf_hub, cli_place_hub}};
    for (size_t i = 0; i < CLI_COUNT(places); i++) {
        char *path = NULL;
        if (!*places[i].field) {
            places[i].place(&path);
            *places[i].field = path ? cli_keep(path) : NULL;
        }
    }
}

int cli_settings_load(cli_settings *s, graft_error *err) {
    int code = read_file(s, err);
    code = code ? code : read_environment(s, err);
    fill_places(s);
    return code;
}

/* What graft's scripts and build use, which the command must not wonder about. */
static bool known_elsewhere(const char *name, size_t length) {
    static const char *const names[] = {"API_KEY", "CONFIG", "BIN", "CACHE", "DEMO_MODEL", "SANITIZE", "TESTS", "WERROR"};
    static const char *const prefixes[] = {"TEST_", "LLAMA_", "BENCH_"};
    for (size_t i = 0; i < CLI_COUNT(names); i++) {
        if (strlen(names[i]) == length && memcmp(name, names[i], length) == 0) {
            return true;
        }
    }
    for (size_t i = 0; i < CLI_COUNT(prefixes); i++) {
        if (strncmp(name, prefixes[i], strlen(prefixes[i])) == 0) {
            return true;
        }
    }
    for (int i = 0; i < CLI_N_SETTINGS; i++) {
        char variable[CLI_VARIABLE_SIZE];
        const char *own = cli_setting_variable(variable, &cli_setting_table[i]) + strlen("GRAFT_");
        if (strlen(own) == length && memcmp(name, own, length) == 0) {
            return true;
        }
    }
    return false;
}

void cli_settings_strangers(void) {
    for (char **at = environ; at && *at; at++) {
        const char *name = *at + strlen("GRAFT_");
        if (strncmp(*at, "GRAFT_", strlen("GRAFT_")) != 0) {
            continue;
        }
        size_t length = strcspn(name, "=");
        if (known_elsewhere(name, length)) {
            continue;
        }
        char quoted[GR_QUOTE_SIZE], variable[CLI_VARIABLE_SIZE] = "";
        const cli_setting *near = cli_setting_nearest(name, length);
        cli_log_line(GRAFT_LOG_WARN, GRAFT_E_BAD_SETTING, "environment: unknown variable GRAFT_%s has no meaning%s%s",
                     gr_quote(quoted, name, length), near ? "; the nearest is " : "",
                     near ? cli_setting_variable(variable, near) : "");
    }
}
