/* graft doctor: the model, the registry with its adapters, the key. */
#include "doctor.h"
#include "registry_cli.h"

#include "base/file.h"
#include "base/memory.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

/* ---- the model ---------------------------------------------------------------------------------------- */

/* Its size and first bytes, without opening it as a model. */
static bool look_at_model(doctor *d, const char *path) {
    gr_file f;
    graft_error err = {0};
    char magic[4] = "", bytes[CLI_BYTES_SIZE], q[GR_QUOTE_PATH_SIZE];
    gr_quote_path(q, path);
    if (gr_file_open(&f, AT_FDCWD, path, &err) != 0) {
        doctor_say(d, DOCTOR_FAIL, "model", "-m FILE, or the setting `model`, names the base's GGUF file", "%s", err.message);
        return false;
    }
    int code = gr_file_read(&f, magic, sizeof magic, 0, &err);
    uint64_t size = f.size, most = doctor_memory();
    gr_file_close(&f);
    if (code || memcmp(magic, "GGUF", 4) != 0) {
        doctor_say(d, DOCTOR_FAIL, "model", "a GGUF file is needed", "%s is no GGUF file", q);
        return false;
    }
    if (most && size > most) {
        doctor_say(d, DOCTOR_FAIL, "model", "a smaller quantisation", "%s has %s, more than the memory there is", q,
                   cli_bytes(bytes, size));
        return false;
    }
    doctor_say(d, DOCTOR_OK, "model", NULL, "%s, %s", q, cli_bytes(bytes, size));
    return true;
}

static void tell_open(doctor *d, const graft *g) {
    graft_model_info i;
    graft_model_get_info(g, &i);
    doctor_say(d, i.adapters_supported ? DOCTOR_OK : DOCTOR_FAIL, "architecture",
               i.adapters_supported ? NULL : "another base: the README lists the architectures", "%s (%s), adapters %s",
               i.architecture, i.description, i.adapters_supported ? "supported" : "not supported");
    bool odd = i.apply == GRAFT_APPLY_GROUPED && d->set.apply == GRAFT_APPLY_AUTO && !d->set.gpu;
    doctor_say(d, odd ? DOCTOR_WARN : DOCTOR_OK, "adapters",
               odd ? "mixed batches are slow so; docs/libllama.md says what it rests on" : NULL,
               "applied by %s: %s; kernels %s, %d threads", i.apply == GRAFT_APPLY_ROWS ? "rows" : "groups", i.apply_reason,
               i.kernels, i.threads);
}

/* With one short slot, so that a server beside it keeps its memory. */
static void open_model(doctor *d, const char *path) {
    graft_options o = graft_options_default();
    graft_error err = {0};
    graft *g = NULL;
    cli_settings_options(&d->set, &o);
    o.model = path;
    o.slots = 1;
    o.context = 256;
    o.log = cli_log;
    cli_waiting("opening the model", 0);
    int code = graft_open(&g, &o, &err);
    cli_progress_end();
    if (code) {
        doctor_say(d, DOCTOR_FAIL, "opening",
                   code == GRAFT_E_BUDGET_EXHAUSTED ? "a larger memory_limit_mb, or a smaller base" : "another file",
                   "%s: %s", graft_error_name(code), err.message);
        return;
    }
    tell_open(d, g);
    graft_close(g);
}

void doctor_model(doctor *d) {
    graft_error err = {0};
    char *path = NULL;
    if (!d->set.model) {
        doctor_say(d, DOCTOR_WARN, "model", "-m FILE, or `model = FILE` in the settings file", "none is configured");
        return;
    }
    if (cli_find_model(&path, d->set.model, &d->set, &err) != 0) {
        doctor_say(d, DOCTOR_FAIL, "model", "-m FILE, or the setting `model`, names the base", "%s", err.message);
        return;
    }
    if (look_at_model(d, path)) {
        if (d->quick) {
            doctor_say(d, DOCTOR_OK, "architecture", NULL, "unknown: not opened (--quick)");
        } else {
            open_model(d, path);
        }
    }
    graft_string_free(path);
}

/* ---- the registry ------------------------------------------------------------------------------------- */

static void check_backup(doctor *d, const graft_registry_file *backup) {
    enum { DAY = 86400 };
    char written[CLI_TIME_SIZE];
    long days = backup->written ? (long)((time(NULL) - (time_t)backup->written) / DAY) : 0;
    if (backup->error.code == GRAFT_E_NOT_FOUND) {
        doctor_say(d, DOCTOR_OK, "backup", NULL, "none yet: one is made when a registry that was changed is closed");
    } else if (backup->error.code) {
        doctor_say(d, DOCTOR_WARN, "backup", "remove it: the next change makes another", "%s", backup->error.message);
    } else {
        doctor_say(d, DOCTOR_OK, "backup", NULL, "%zu projects, %zu adapters, of %s (%ld days)", backup->projects,
                   backup->adapters,
                   cli_time(written, backup->written), days);
    }
}

static bool readable_in(const char *folder, const char *name) {
    gr_buffer path;
    gr_buffer_init(&path, 1 << 16);
    gr_buffer_printf(&path, "%s/%s", folder, name);
    cli_buffer_check(&path);
    bool good = access(path.data, R_OK) == 0;
    gr_buffer_finish(&path);
    return good;
}

/* What an adapter's files lack, or NULL. */
static const char *missing(const graft_registered *a) {
    struct stat s;
    if (stat(a->path, &s) != 0) {
        return strerror(errno);
    }
    if (!S_ISDIR(s.st_mode)) {
        return access(a->path, R_OK) == 0 ? NULL : strerror(errno);
    }
    if (!readable_in(a->path, "adapter_config.json")) {
        return "adapter_config.json is missing or cannot be read";
    }
    return readable_in(a->path, "adapter_model.safetensors") ? NULL : "adapter_model.safetensors is missing or cannot be read";
}

/* One line for each adapter that is not well, up to a bound, and one for the others. */
static void check_adapters(doctor *d, const graft_registered_list *list) {
    enum { MOST = 20 };
    char name[2 * CLI_NAME_MAX + 8], q[GR_QUOTE_PATH_SIZE];
    size_t n = 0;
    for (size_t i = 0; i < list->n; i++) {
        const graft_registered *a = &list->items[i];
        const char *lack = missing(a);
        bool unwell = !lack && (a->state == GRAFT_REGISTERED_FAILED || a->state == GRAFT_REGISTERED_CHANGED);
        if ((!lack && !unwell) || n++ >= MOST) {
            continue;
        }
        snprintf(name, sizeof name, "%s/%s", a->project, a->adapter);
        if (lack) {
            doctor_say(d, DOCTOR_FAIL, name, "bring the files back, or `graft adapter rm`", "%s: %s",
                       gr_quote_path(q, a->path), lack);
        } else if (a->state == GRAFT_REGISTERED_CHANGED) {
            doctor_say(d, DOCTOR_WARN, name, "`graft adapter reload` accepts them",
                       "its files are not those that were registered");
        } else {
            doctor_say(d, DOCTOR_WARN, name, "`graft inspect` gives every reason", "%s: %s",
                       graft_error_name(a->error_code), a->error);
        }
    }
    if (n > MOST) {
        doctor_say(d, DOCTOR_WARN, "adapters", "`graft adapter list` shows all", "%zu more are not well", n - MOST);
    }
    doctor_say(d, DOCTOR_OK, "registered", NULL, "%zu of %zu adapters are in order", list->n - n, list->n);
}

static void list_adapters(doctor *d) {
    graft_registry *r = NULL;
    graft_registered_list *list = NULL;
    graft_error err = {0};
    int code = cli_registry_open(&r, &d->set, true, &err);
    code = code ? code : graft_registry_adapter_list(&list, r, NULL, NULL, &err);
    if (code) {
        doctor_say(d, DOCTOR_FAIL, "registered", "`graft registry check`", "%s: %s", graft_error_name(code), err.message);
    } else {
        check_adapters(d, list);
        doctor_say(d, DOCTOR_OK, "keys", NULL, "%zu in the registry", graft_registry_key_count(r));
    }
    graft_registered_list_free(list);
    graft_registry_close(r);
}

/* The folder that the registry lies in, or the nearest above it that is there. gr_free. */
static char *folder_of(const char *file, bool *there) {
    char *path = cli_strdup(file);
    struct stat s;
    *there = true;
    for (;;) {
        char *slash = strrchr(path, '/');
        if (!slash) {
            gr_free(path);
            return cli_strdup(".");
        }
        slash[slash == path] = '\0';
        if (stat(path, &s) == 0 || strcmp(path, "/") == 0) {
            return path;
        }
        *there = false;
    }
}

static void check_folder(doctor *d) {
    bool there;
    char q[GR_QUOTE_PATH_SIZE];
    char *folder = folder_of(d->set.registry, &there);
    bool made = d->set.from[CLI_ID_REGISTRY].source == CLI_FROM_DEFAULT; /* graft makes its own place */
    gr_quote_path(q, folder);
    if (!there && !made) {
        doctor_say(d, DOCTOR_FAIL, "registry folder", "make it, or name another with --registry",
                   "it is not there; the nearest is %s", q);
    } else if (access(folder, W_OK | X_OK) != 0 || (access(d->set.registry, F_OK) == 0 && access(d->set.registry, W_OK) != 0)) {
        doctor_say(d, DOCTOR_FAIL, "registry folder", "whoever runs graft must be able to write there", "%s: %s", q,
                   strerror(errno));
    } else {
        doctor_say(d, DOCTOR_OK, "registry folder", NULL, "%s can be written", q);
    }
    doctor_disk(d, folder);
    gr_free(folder);
}

void doctor_registry(doctor *d) {
    graft_registry_options o = graft_registry_options_default();
    graft_registry_condition c;
    graft_error err = {0};
    char q[GR_QUOTE_PATH_SIZE];
    if (!d->set.registry) {
        doctor_say(d, DOCTOR_FAIL, "registry", "--registry FILE, or set GRAFT_REGISTRY or HOME", "nothing says where it is");
        return;
    }
    cli_settings_registry_options(&d->set, &o);
    gr_quote_path(q, d->set.registry);
    bool none = access(d->set.registry, F_OK) != 0 && errno == ENOENT;
    if (!none && graft_registry_examine(&c, &o, &err) != 0) {
        doctor_say(d, DOCTOR_FAIL, "registry", "--registry FILE names another", "%s", err.message);
        return;
    }
    if (none) {
        doctor_say(d, DOCTOR_OK, "registry", NULL, "%s: none yet; `graft project add` or `graft serve` makes one", q);
    } else if (c.registry.error.code) {
        bool good = c.backup.error.code == 0;
        doctor_say(d, DOCTOR_FAIL, "registry",
                   good ? "`graft registry recover` goes back to the backup" : "there is no good backup either",
                   "%s", c.registry.error.message);
    } else {
        doctor_say(d, DOCTOR_OK, "registry", NULL, "%s is whole: %zu projects, %zu adapters", q, c.registry.projects,
                   c.registry.adapters);
        check_backup(d, &c.backup);
        list_adapters(d);
    }
    check_folder(d);
}

/* ---- the key ------------------------------------------------------------------------------------------ */

void doctor_key(doctor *d) {
    const char *key;
    graft_error err = {0};
    struct stat s;
    if (cli_api_key(&key, &d->set, &err) != 0) {
        doctor_say(d, DOCTOR_FAIL, "key", "--api-key-file names a file with the key in its first line", "%s", err.message);
    } else if (d->set.api_key_file && stat(d->set.api_key_file, &s) == 0 && (s.st_mode & 077)) {
        doctor_say(d, DOCTOR_WARN, "key", "chmod 600", "%.*s can be read by others than its owner", CLI_PATH_SHOWN,
                   d->set.api_key_file);
    } else {
        doctor_say(d, DOCTOR_OK, "key", NULL, !key ? "none is set" : d->set.api_key_file ? "from a file" : "from GRAFT_API_KEY");
    }
}
