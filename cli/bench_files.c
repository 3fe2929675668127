/*
 * Adapters that `graft bench-loader` and `graft demo` make for themselves: copies of one that exists, a small one cut from
 * it, and thousands of links to that one.
 */
#include "bench.h"

#include "base/memory.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { PATH_SIZE = 4096, HEADER_PREFIX = 8 };

const char *bench_link_name(char out[BENCH_NAME_SIZE], int i) {
    snprintf(out, BENCH_NAME_SIZE, "p%05d", i);
    return out;
}

int bench_make_links(const char *folder, const char *target, int n, graft_error *err) {
    int fd = open(folder, O_RDONLY | O_DIRECTORY);
    bool ok = fd >= 0;
    for (int i = 0; ok && i < n; i++) {
        char name[BENCH_NAME_SIZE];
        ok = symlinkat(target, fd, bench_link_name(name, i)) == 0;
    }
    int why = errno;
    if (fd >= 0) {
        close(fd);
    }
    return ok ? 0 : gr_fail(err, GRAFT_E_IO_ERROR, "%.*s: links cannot be made: %s", CLI_PATH_SHOWN, folder, strerror(why));
}

/* ---- reading a PEFT folder ---------------------------------------------------------------------------- */

static int read_part(gr_buffer *out, const char *folder, const char *name, graft_error *err) {
    char path[PATH_SIZE];
    if ((size_t)snprintf(path, sizeof path, "%s/%s", folder, name) >= sizeof path) {
        return gr_fail(err, GRAFT_E_BAD_REQUEST, "the adapter's path is too long");
    }
    return cli_read(out, path, err);
}

static int parse_header(bench_peft *p, graft_error *err) {
    uint64_t length = 0;
    if (p->weights.length >= HEADER_PREFIX) {
        for (int i = HEADER_PREFIX - 1; i >= 0; i--) {
            length = length << 8 | (unsigned char)p->weights.data[i];
        }
    }
    if (length == 0 || length > p->weights.length - HEADER_PREFIX) {
        return gr_fail(err, GRAFT_E_HEADER_LENGTH, "the header's length does not fit the file");
    }
    p->header = json_loadb(p->weights.data + HEADER_PREFIX, (size_t)length, 0, NULL);
    if (!json_is_object(p->header)) {
        return gr_fail(err, GRAFT_E_HEADER_INVALID, "the header is not a JSON object");
    }
    p->data = p->weights.data + HEADER_PREFIX + length;
    p->n_data = p->weights.length - HEADER_PREFIX - (size_t)length;
    return 0;
}

int bench_peft_read(bench_peft *out, const char *folder, graft_error *err) {
    memset(out, 0, sizeof *out);
    int code = read_part(&out->config, folder, "adapter_config.json", err);
    code = code ? code : read_part(&out->weights, folder, "adapter_model.safetensors", err);
    return code ? code : parse_header(out, err);
}

void bench_peft_finish(bench_peft *p) {
    json_decref(p->header);
    gr_buffer_finish(&p->config);
    gr_buffer_finish(&p->weights);
    memset(p, 0, sizeof *p);
}

/* "…MODULE.lora_A.weight", or with the adapter's name between: "…MODULE.lora_A.default.weight". */
static bool names_matrix(const char *key, const char *module, char which) {
    char middle[16];
    size_t length = strlen(module), end = strlen(key);
    const char *at = strstr(key, module);
    snprintf(middle, sizeof middle, ".lora_%c.", which);
    return at && (at == key || at[-1] == '.') && strncmp(at + length, middle, strlen(middle)) == 0 && end > 7 &&
           strcmp(key + end - 7, ".weight") == 0;
}

static size_t element_size(const char *dtype) {
    return strcmp(dtype, "F32") == 0 ? 4 : 2;
}

static bool fill_matrix(const bench_peft *p, const char *key, json_t *value, bench_matrix *out) {
    json_t *shape = json_object_get(value, "shape"), *offsets = json_object_get(value, "data_offsets");
    const char *dtype = json_string_value(json_object_get(value, "dtype"));
    json_int_t from = json_integer_value(json_array_get(offsets, 0)), to = json_integer_value(json_array_get(offsets, 1));
    json_int_t rows = json_integer_value(json_array_get(shape, 0)), columns = json_integer_value(json_array_get(shape, 1));
    if (!dtype || json_array_size(shape) != 2 || from < 0 || to < from || (uint64_t)to > p->n_data || rows <= 0 || columns <= 0 ||
        (uint64_t)(to - from) / element_size(dtype) / (uint64_t)rows != (uint64_t)columns) {
        return false;
    }
    *out = (bench_matrix){key, dtype, rows, columns, p->data + from, (size_t)(to - from)};
    return true;
}

bool bench_peft_find(const bench_peft *p, const char *module, char which, bench_matrix *out) {
    const char *key;
    json_t *value;
    json_object_foreach(p->header, key, value) {
        if (names_matrix(key, module, which)) {
            return fill_matrix(p, key, value, out);
        }
    }
    return false;
}

/* ---- writing one -------------------------------------------------------------------------------------- */

typedef struct piece {
    const void *bytes;
    size_t length;
} piece;

static int write_part(const char *folder, const char *name, const piece *pieces, size_t n, graft_error *err) {
    char path[PATH_SIZE];
    FILE *file = NULL;
    bool ok = (size_t)snprintf(path, sizeof path, "%s/%s", folder, name) < sizeof path && (file = fopen(path, "wb"));
    for (size_t i = 0; ok && i < n; i++) {
        ok = fwrite(pieces[i].bytes, 1, pieces[i].length, file) == pieces[i].length;
    }
    int why = errno;
    if (file && fclose(file) != 0 && ok) {
        why = errno;
        ok = false;
    }
    return ok ? 0 : gr_fail(err, GRAFT_E_IO_ERROR, "%.*s: %s", CLI_PATH_SHOWN, path, strerror(why));
}

int bench_peft_copy(const bench_peft *p, const char *folder, graft_error *err) {
    int code = cli_make_folder(folder, err);
    code = code ? code : write_part(folder, "adapter_config.json", &(piece){p->config.data, p->config.length}, 1, err);
    return code ? code : write_part(folder, "adapter_model.safetensors", &(piece){p->weights.data, p->weights.length}, 1, err);
}

static void header_entry(json_t *header, const bench_matrix *m, size_t at) {
    json_t *o = cli_json_object(), *shape = cli_json_array(), *offsets = cli_json_array();
    cli_json_append(shape, cli_json_integer(m->rows));
    cli_json_append(shape, cli_json_integer(m->columns));
    cli_json_append(offsets, cli_json_integer((int64_t)at));
    cli_json_append(offsets, cli_json_integer((int64_t)(at + m->n_bytes)));
    cli_json_set(o, "dtype", cli_json_string(m->dtype));
    cli_json_set(o, "shape", shape);
    cli_json_set(o, "data_offsets", offsets);
    cli_json_set(header, m->name, o);
}

static int write_two(const char *folder, const bench_matrix *a, const bench_matrix *b, graft_error *err) {
    json_t *header = cli_json_object();
    header_entry(header, a, 0);
    header_entry(header, b, a->n_bytes);
    char *text = json_dumps(header, JSON_COMPACT);
    json_decref(header);
    if (!text) {
        cli_no_memory();
    }
    unsigned char prefix[HEADER_PREFIX];
    size_t length = strlen(text);
    for (int i = 0; i < HEADER_PREFIX; i++) {
        prefix[i] = (unsigned char)((uint64_t)length >> 8 * i);
    }
    const piece pieces[] = {{prefix, sizeof prefix}, {text, length}, {a->bytes, a->n_bytes}, {b->bytes, b->n_bytes}};
    int code = write_part(folder, "adapter_model.safetensors", pieces, CLI_COUNT(pieces), err);
    free(text);
    return code;
}

int bench_peft_write_one(const bench_peft *p, const graft_module_info *module, const char *folder, graft_error *err) {
    bench_matrix a, b;
    char config[512];
    const char *last = strrchr(module->module, '.');
    if (!bench_peft_find(p, module->module, 'A', &a) || !bench_peft_find(p, module->module, 'B', &b)) {
        return gr_fail(err, GRAFT_E_UNSUPPORTED_ADAPTER, "%.200s: no small adapter can be cut from it", module->module);
    }
    int n = snprintf(config, sizeof config,
                     "{\"peft_type\":\"LORA\",\"task_type\":\"CAUSAL_LM\",\"r\":%d,\"lora_alpha\":%d,\"bias\":\"none\",\n"
                     "\"target_modules\":[\"%.200s\"]}\n",
                     module->rank, module->rank, last ? last + 1 : module->module);
    int code = cli_make_folder(folder, err);
    code = code ? code : write_part(folder, "adapter_config.json", &(piece){config, (size_t)n}, 1, err);
    return code ? code : write_two(folder, &a, &b, err);
}
