/* From a path to opened files: a folder, a GGUF file, or the most helpful refusal. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* O_DIRECTORY, O_CLOEXEC */
#endif
#include "source.h"

#include "base/memory.h"
#include "format/safetensors.h"
#include "model/sha256.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define WEIGHTS_NAME "adapter_model.safetensors"
#define MLX_WEIGHTS_NAME "adapters.safetensors"
#define CONFIG_NAME "adapter_config.json"

const char *const gr_source_files[GR_SOURCE_FILES] = {CONFIG_NAME, WEIGHTS_NAME, MLX_WEIGHTS_NAME};

enum {
    FIRST_BYTES = 16,
    MAX_CONFIG = 1 << 20,     /* real ones have 1 to 20 KB */
    HASH_CHUNK = 256 << 10,
    GGUF_FIRST_TRY = 1 << 20, /* an adapter's keys and tensor table are far smaller than the 64 MiB allowed */
};

/* ---- the folder ----------------------------------------------------------------------------------------- */

/* What may lie in a folder in place of the weights; the first that is there decides. */
static const struct {
    const char *name;
    int code;
    const char *says;
} instead[] = {
    {WEIGHTS_NAME ".index.json", GRAFT_E_SHARDED_UNSUPPORTED, "sharded weights; save them as one file"},
    {"model.safetensors.index.json", GRAFT_E_SHARDED_UNSUPPORTED, "sharded weights, and of a whole model"},
    {"adapter_model.bin", GRAFT_E_PICKLE_REFUSED,
     "pickled weights, which can run code; convert them with PEFT (load, then save_pretrained writes safetensors)"},
    {"adapter_model.pt", GRAFT_E_PICKLE_REFUSED, "pickled weights, which can run code; save them as safetensors"},
    {"adapter_model.pth", GRAFT_E_PICKLE_REFUSED, "pickled weights, which can run code; save them as safetensors"},
    {"pytorch_model.bin", GRAFT_E_PICKLE_REFUSED, "pickled weights, which can run code, and of a whole model"},
    {"model.safetensors", GRAFT_E_NOT_AN_ADAPTER, "a whole model, not an adapter"},
    {"pytorch_lora_weights.safetensors", GRAFT_E_NOT_AN_ADAPTER, "a LoRA of diffusers, for image models"},
};

static int weights_missing(int dir, graft_error *err) {
    for (size_t i = 0; i < sizeof instead / sizeof *instead; i++) {
        struct stat st;
        if (fstatat(dir, instead[i].name, &st, 0) == 0) {
            return gr_fail(err, instead[i].code, "the folder has no %s but %s: %s", WEIGHTS_NAME, instead[i].name,
                           instead[i].says);
        }
    }
    return gr_fail(err, GRAFT_E_MISSING_FILE, "the folder has no %s", WEIGHTS_NAME);
}

static int too_large(const gr_file *f, uint64_t max_bytes, graft_error *err) {
    return gr_fail(err, GRAFT_E_TOO_LARGE, "%s: has %" PRIu64 " bytes, adapters may have %" PRIu64, f->name, f->size,
                   max_bytes);
}

static int check_root(const gr_file *f, gr_source_limits limits, graft_error *err) {
    return limits.root ? gr_file_below(f, limits.root, err) : 0;
}

/* PEFT's file, or mlx-lm's where there is none; sets the format by it. */
static int open_weights(gr_source *s, int dir, gr_source_limits limits, graft_error *err) {
    struct stat st;
    bool peft = fstatat(dir, WEIGHTS_NAME, &st, 0) == 0, mlx = !peft && fstatat(dir, MLX_WEIGHTS_NAME, &st, 0) == 0;
    s->format = mlx ? GR_SOURCE_MLX : GR_SOURCE_PEFT;
    int rc = gr_file_open(&s->weights, dir, mlx ? MLX_WEIGHTS_NAME : WEIGHTS_NAME, err);
    if (rc == GRAFT_E_ADAPTER_FILE_MISSING) {
        return weights_missing(dir, err);
    }
    rc = rc ? rc : check_root(&s->weights, limits, err);
    if (!rc && s->weights.size > limits.max_bytes) {
        rc = too_large(&s->weights, limits.max_bytes, err);
    }
    return rc;
}

static int read_header(gr_source *s, graft_error *err) {
    uint8_t first[FIRST_BYTES];
    size_t n = s->weights.size < sizeof first ? (size_t)s->weights.size : sizeof first;
    uint64_t length;
    int rc = gr_file_read(&s->weights, first, n, 0, err);
    if (rc || (rc = gr_safetensors_header_length(&length, first, n, s->weights.size, err)) != 0) {
        return rc;
    }
    /* The length was compared with the file's size and with a limit. */
    char *header = gr_alloc((size_t)length);
    if (!header) {
        return gr_fail_memory(err, (size_t)length);
    }
    rc = gr_file_read(&s->weights, header, (size_t)length, 8, err);
    if (!rc) {
        rc = gr_safetensors_parse(&s->tensors, header, (size_t)length, s->weights.size, err);
    }
    gr_free(header);
    return rc;
}

/* *json: gr_free. */
static int read_config_file(char **json, size_t *length, int dir, gr_source_limits limits, graft_error *err) {
    gr_file f;
    int rc = gr_file_open(&f, dir, CONFIG_NAME, err);
    if (!rc) {
        rc = check_root(&f, limits, err);
        rc = rc ? rc : gr_file_read_whole(json, length, &f, MAX_CONFIG, err);
        gr_file_close(&f);
    }
    return rc;
}

static int read_config(gr_source *s, int dir, gr_source_limits limits, gr_report *report, graft_error *err) {
    static const char lfs[] = "version https://git-lfs";
    char *json = NULL;
    size_t length;
    int rc = read_config_file(&json, &length, dir, limits, err);
    if (rc == GRAFT_E_ADAPTER_FILE_MISSING) {
        return gr_fail(err, GRAFT_E_CONFIG_MISSING, "the folder has no %s", CONFIG_NAME);
    }
    if (rc == GRAFT_E_TOO_LARGE) {
        return gr_fail(err, GRAFT_E_JSON_TOO_LARGE, "%s: may have %d bytes", CONFIG_NAME, MAX_CONFIG);
    }
    if (rc) {
        return rc;
    }
    if (length >= sizeof lfs - 1 && memcmp(json, lfs, sizeof lfs - 1) == 0) {
        rc = gr_fail(err, GRAFT_E_LFS_POINTER, "%s: is a Git LFS pointer: run `git lfs pull`", CONFIG_NAME);
    }
    if (!rc) {
        rc = gr_sha256_of(s->config_hash, json, length, err);
    }
    if (!rc && s->format == GR_SOURCE_MLX) {
        rc = gr_mlx_config_parse(&s->mlx, json, length, report, err);
    } else if (!rc) {
        rc = gr_peft_config_parse(&s->config, json, length, report, err);
    }
    gr_free(json);
    return rc;
}

static int open_folder(gr_source *s, int dir, gr_source_limits limits, gr_report *report, graft_error *err) {
    int rc = open_weights(s, dir, limits, err);
    if (!rc) {
        rc = read_config(s, dir, limits, report, err);
    }
    if (!rc) {
        rc = read_header(s, err);
    }
    return rc;
}

/* ---- the file ------------------------------------------------------------------------------------------- */

static bool ends_with(const char *s, const char *end) {
    size_t n = strlen(s), m = strlen(end);
    return n >= m && memcmp(s + n - m, end, m) == 0;
}

/* A regular file that is no GGUF is never an adapter; the answer is in what it is instead. */
static int other_file(const gr_source *s, const uint8_t *first, size_t n, graft_error *err) {
    static const char *const pickles[] = {".bin", ".pt", ".pth", ".ckpt", ".pkl"};
    const char *name = s->weights.name;
    for (size_t i = 0; i < sizeof pickles / sizeof *pickles; i++) {
        if (ends_with(s->path, pickles[i])) {
            return gr_fail(err, GRAFT_E_PICKLE_REFUSED,
                           "%s: pickled weights can run code and are never opened; save the adapter as safetensors",
                           name);
        }
    }
    uint64_t length;
    int rc = gr_safetensors_header_length(&length, first, n, s->weights.size, err);
    if (rc == 0) {
        return gr_fail(err, GRAFT_E_CONFIG_MISSING,
                       "%s: give the folder that holds it together with its %s, not the file", name, CONFIG_NAME);
    }
    if (!ends_with(s->path, ".safetensors") && rc != GRAFT_E_PICKLE_REFUSED && rc != GRAFT_E_LFS_POINTER &&
        rc != GRAFT_E_HEADER_TOO_SMALL) {
        return gr_fail(err, GRAFT_E_UNSUPPORTED_FORMAT,
                       "%s: is no GGUF file; give a GGUF adapter or the folder of an adapter of PEFT or mlx-lm", name);
    }
    return rc;
}

/* Parses the first `n` bytes of the file. */
static int parse_gguf(gr_source *s, size_t n, graft_error *err) {
    uint8_t *bytes = gr_alloc(n);
    if (!bytes) {
        return gr_fail_memory(err, n);
    }
    int rc = gr_file_read(&s->weights, bytes, n, 0, err);
    if (!rc) {
        rc = gr_gguf_lora_parse(&s->gguf, bytes, n, s->weights.size, err);
    }
    gr_free(bytes);
    return rc;
}

static int open_file(gr_source *s, gr_source_limits limits, graft_error *err) {
    s->format = GR_SOURCE_GGUF;
    int rc = gr_file_open(&s->weights, AT_FDCWD, s->path, err);
    rc = rc ? rc : check_root(&s->weights, limits, err);
    if (rc) {
        return rc;
    }
    uint8_t first[FIRST_BYTES];
    size_t n = s->weights.size < sizeof first ? (size_t)s->weights.size : sizeof first;
    if ((rc = gr_file_read(&s->weights, first, n, 0, err)) != 0) {
        return rc;
    }
    if (!gr_gguf_is(first, n)) {
        return other_file(s, first, n, err);
    }
    if (s->weights.size > limits.max_bytes) {
        return too_large(&s->weights, limits.max_bytes, err);
    }
    if ((rc = gr_sha256_of(s->config_hash, "", 0, err)) != 0) {
        return rc;
    }
    /* A parse that failed on the file's beginning says nothing yet: it may only have been too short. */
    size_t all = s->weights.size < GR_GGUF_MAX_METADATA ? (size_t)s->weights.size : (size_t)GR_GGUF_MAX_METADATA;
    rc = parse_gguf(s, all < GGUF_FIRST_TRY ? all : GGUF_FIRST_TRY, err);
    if (rc && rc != GRAFT_E_OUT_OF_MEMORY && all > GGUF_FIRST_TRY) {
        rc = parse_gguf(s, all, err);
    }
    if (!rc) {
        s->tensors = s->gguf.tensors;
        s->gguf.tensors = (gr_tensor_list){NULL, 0};
    }
    return rc;
}

const char *gr_source_format_name(gr_source_format format) {
    switch (format) {
    case GR_SOURCE_PEFT: return "peft";
    case GR_SOURCE_GGUF: return "gguf";
    case GR_SOURCE_MLX: return "mlx";
    }
    return "?";
}

/* ---- both ----------------------------------------------------------------------------------------------- */

static int open_either(gr_source *s, gr_source_limits limits, gr_report *report, graft_error *err) {
    int dir;
    do {
        dir = open(s->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    } while (dir < 0 && errno == EINTR);
    if (dir >= 0) {
        int rc = open_folder(s, dir, limits, report, err);
        close(dir);
        return rc;
    }
    if (gr_open_code(errno) == GRAFT_E_IO_ERROR || gr_open_code(errno) == GRAFT_E_OUT_OF_MEMORY) {
        char q[GR_QUOTE_PATH_SIZE];
        int why = errno; /* it may well be a folder */
        return gr_fail(err, gr_open_code(why), "%s: cannot be opened: %s", gr_quote_path(q, s->path), strerror(why));
    }
    /* No folder: gr_file_open finds out what else, and words the error. */
    return open_file(s, limits, err);
}

int gr_source_open(gr_source **out, const char *path, gr_source_limits limits, gr_report *report, graft_error *err) {
    gr_source *s = gr_zalloc(sizeof *s);
    if (!s) {
        return gr_fail_memory(err, sizeof *s);
    }
    s->weights.fd = -1;
    s->path = gr_strdup(path);
    int rc = s->path ? open_either(s, limits, report, err) : gr_fail_memory(err, strlen(path) + 1);
    if (rc) {
        gr_source_close(s);
        return rc;
    }
    *out = s;
    return 0;
}

void gr_source_close(gr_source *s) {
    if (s) {
        gr_file_close(&s->weights);
        gr_tensor_list_finish(&s->tensors);
        gr_peft_config_finish(&s->config);
        gr_mlx_config_finish(&s->mlx);
        gr_gguf_lora_finish(&s->gguf);
        gr_free(s->path);
        gr_free(s);
    }
}

/* ---- identity ------------------------------------------------------------------------------------------- */

static int hash_weights(const gr_source *s, gr_sha256 *h, graft_error *err) {
    uint8_t *chunk = gr_alloc(HASH_CHUNK);
    int rc = chunk ? 0 : gr_fail_memory(err, HASH_CHUNK);
    for (uint64_t at = 0; !rc && at < s->weights.size; at += HASH_CHUNK) {
        uint64_t left = s->weights.size - at;
        size_t n = left < HASH_CHUNK ? (size_t)left : HASH_CHUNK;
        rc = gr_file_read(&s->weights, chunk, n, at, err);
        if (!rc) {
            gr_sha256_add(h, chunk, n);
        }
    }
    gr_free(chunk);
    return rc ? rc : gr_file_unchanged(&s->weights, err);
}

int gr_source_generation(const gr_source *s, char out[65], graft_error *err) {
    uint8_t hash[GR_SHA256_SIZE];
    gr_sha256 h;
    gr_sha256_init(&h);
    gr_sha256_add(&h, s->config_hash, sizeof s->config_hash);
    int rc = hash_weights(s, &h, err);
    if (!rc) {
        rc = gr_sha256_result(&h, hash, err);
    }
    gr_sha256_finish(&h);
    if (!rc) {
        gr_sha256_hex(out, hash);
    }
    return rc;
}
