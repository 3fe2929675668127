/*
 * Most mutants of a PEFT folder would be refused by the first check. So here config and header are changed as JSON, and the folder is
 * put together again: offsets as the shapes say, data repeated or cut to fit, lengths right. Three quarters of these are made to agree
 * with the base (load_settle.h). One mutant in eight is libFuzzer's own.
 */
#include "load_mutator.h"

#include "fuzz.h"
#include "load_settle.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

bool fuzz_folder_split(fuzz_folder *out, const uint8_t *data, size_t size) {
    if (size < 4) {
        return false;
    }
    size_t length = (size_t)data[0] | (size_t)data[1] << 8 | (size_t)data[2] << 16 | (size_t)data[3] << 24;
    if (length > size - 4) {
        return false;
    }
    *out = (fuzz_folder){data + 4, data + 4 + length, length, size - 4 - length};
    return true;
}

#ifdef GRAFT_LIBFUZZER

typedef struct mutant {
    uint32_t state;
    json_t *config, *header;
    uint8_t *data; /* of the tensors, as it was */
    size_t n_data;
    bool settled;
} mutant;

static uint32_t below(mutant *m, uint32_t n) {
    m->state = m->state * 1664525u + 1013904223u;
    return (m->state >> 8) % n;
}

static uint64_t read_length(const uint8_t *p) {
    uint64_t v = 0;
    for (int i = 7; i >= 0; i--) {
        v = v << 8 | p[i];
    }
    return v;
}

/* ---- the config ------------------------------------------------------------------------------------------ */

static const char *const settings[] = {
    "{\"use_rslora\": true}",
    "{\"use_rslora\": false}",
    "{\"lora_alpha\": 0.001}",
    "{\"lora_alpha\": -3}",
    "{\"lora_alpha\": 999999999}",
    "{\"lora_alpha\": 1e-30}",
    "{\"r\": 1}",
    "{\"r\": 2}",
    "{\"r\": 4096}",
    "{\"rank_pattern\": {\"q_proj\": 2}}",
    "{\"rank_pattern\": {\".*_proj\": 1}}",
    "{\"alpha_pattern\": {\"q_proj\": 64}}",
    "{\"alpha_pattern\": {\"layers.1.*\": 0.5, \"v_proj\": 3}}",
    "{\"rank_pattern\": {}, \"alpha_pattern\": {}}",
    "{\"use_dora\": true}",
    "{\"use_dora\": false}",
    "{\"lora_bias\": true}",
    "{\"bias\": \"all\"}",
    "{\"fan_in_fan_out\": true}",
    "{\"layers_to_transform\": [0]}",
    "{\"modules_to_save\": [\"lm_head\"]}",
    "{\"modules_to_save\": [\"norm\"]}",
    "{\"trainable_token_indices\": [1, 2, 300]}",
    "{\"alora_invocation_tokens\": [5, 6]}",
    "{\"target_modules\": null}",
};

static void change_config(mutant *m) {
    json_t *change = json_loads(settings[below(m, sizeof settings / sizeof *settings)], 0, NULL);
    json_object_update(m->config, change);
    json_decref(change);
}

/* ---- the header ------------------------------------------------------------------------------------------ */

/* The tensors' names in the header's order; NULL if there are none. Borrowed. */
static const char *some_tensor(mutant *m) {
    size_t n = json_object_size(m->header);
    if (n == 0) {
        return NULL;
    }
    uint32_t wanted = below(m, (uint32_t)n), i = 0;
    const char *key;
    json_t *value;
    json_object_foreach(m->header, key, value) {
        if (i++ == wanted) {
            return json_is_array(json_object_get(value, "shape")) ? key : NULL;
        }
    }
    return NULL;
}

/* "….lora_A.weight" for "….lora_B.weight" and the other way round. False if it is neither. */
static bool other_half(char out[600], const char *name) {
    const char *at = strstr(name, "lora_");
    if (!at || strlen(name) >= 600 || (at[5] != 'A' && at[5] != 'B')) {
        return false;
    }
    strcpy(out, name);
    out[at - name + 5] = at[5] == 'A' ? 'B' : 'A';
    return true;
}

static void set_rank(json_t *entry, bool is_a, json_int_t rank) {
    json_t *shape = json_object_get(entry, "shape");
    if (json_array_size(shape) == 2) {
        json_array_set_new(shape, is_a ? 0 : 1, json_integer(rank));
    }
}

static void change_rank(mutant *m, const char *name) {
    char other[600];
    json_int_t rank = 1 + below(m, 20);
    if (other_half(other, name)) {
        set_rank(json_object_get(m->header, name), strstr(name, "lora_A") != NULL, rank);
        set_rank(json_object_get(m->header, other), strstr(other, "lora_A") != NULL, rank);
    }
    if (below(m, 2)) {
        json_object_set_new(m->config, "r", json_integer(rank));
    }
}

static void remove_pair(mutant *m, const char *name) {
    char other[600];
    if (other_half(other, name) && below(m, 8)) {
        json_object_del(m->header, other);
    }
    json_object_del(m->header, name);
}

static void change_dtype(mutant *m, const char *name) {
    static const char *const types[] = {"F32", "F16", "BF16"};
    const char *type = types[below(m, 3)], *key;
    bool all = below(m, 2);
    json_t *value;
    json_object_foreach(m->header, key, value) {
        if ((all || value == json_object_get(m->header, name)) && json_object_get(value, "dtype")) {
            json_object_set_new(value, "dtype", json_string(type));
        }
    }
}

/* Another module or layer, both halves alike as a rule. */
static void rename_pair(mutant *m, const char *name) {
    static const char *const modules[] = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "layers.0", "layers.1"};
    const char *from = modules[below(m, 9)], *to = modules[below(m, 9)], *at = strstr(name, from);
    char other[600], renamed[700];
    bool paired = other_half(other, name);
    for (int half = 0; at && half < (paired ? 2 : 1); half++) {
        const char *old = half ? other : name;
        int before = (int)(at - name);
        snprintf(renamed, sizeof renamed, "%.*s%s%s", before, old, to, old + before + strlen(from));
        json_t *entry = json_incref(json_object_get(m->header, old));
        if (entry) {
            json_object_set_new(m->header, renamed, json_deep_copy(entry));
        }
        json_decref(entry);
    }
}

static void change_dimension(mutant *m, const char *name) {
    json_t *shape = json_object_get(json_object_get(m->header, name), "shape");
    if (json_array_size(shape) > 0) {
        json_array_set_new(shape, below(m, (uint32_t)json_array_size(shape)), json_integer(1 + below(m, 130)));
    }
}

static void change_header(mutant *m) {
    const char *name = some_tensor(m);
    char copy[600];
    if (!name || strlen(name) >= sizeof copy) {
        return;
    }
    strcpy(copy, name); /* the key goes when its entry does */
    switch (below(m, 7)) {
    case 0:
    case 1: change_rank(m, copy); break;
    case 2: change_dtype(m, copy); break;
    case 3: remove_pair(m, copy); break;
    case 4:
    case 5: rename_pair(m, copy); break;
    default: change_dimension(m, copy); break;
    }
}

/* ---- the data -------------------------------------------------------------------------------------------- */

static void change_data(mutant *m) {
    static const uint32_t words[] = {0x00000000, 0x80000000, 0x7f800000, 0xff800000, 0x7fc00000, 0x7f7fffff, 0x00000001, 0x477fe000,
                                     0x47800000, 0x7bff7bff, 0x7c007c00, 0x7e017e01, 0x3f800000, 0xc2c80000, 0x5f000000, 0x1e3ce508};
    if (m->n_data < 4) {
        return;
    }
    if (below(m, 4) == 0) {
        LLVMFuzzerMutate(m->data, m->n_data, m->n_data);
        return;
    }
    uint32_t word = words[below(m, sizeof words / sizeof *words)];
    size_t at = below(m, (uint32_t)(m->n_data / 4)), n = below(m, 2) ? 1 : 1 + below(m, (uint32_t)(m->n_data / 4 - at));
    for (size_t i = at; i < at + n; i++) {
        memcpy(m->data + 4 * i, &word, 4);
    }
}

/* ---- together -------------------------------------------------------------------------------------------- */

static json_int_t bytes_of(json_t *entry) {
    const char *dtype = json_string_value(json_object_get(entry, "dtype"));
    json_int_t bytes = dtype && strcmp(dtype, "F32") == 0 ? 4 : 2;
    size_t i;
    json_t *dim;
    json_array_foreach(json_object_get(entry, "shape"), i, dim) {
        json_int_t n = json_integer_value(dim);
        bytes = n > 0 && n < 1 << 16 && bytes < 1 << 20 ? bytes * n : 0;
    }
    return bytes;
}

static size_t lay_out(mutant *m) {
    json_int_t at = 0;
    const char *key;
    json_t *entry;
    json_object_foreach(m->header, key, entry) {
        if (json_object_get(entry, "shape")) {
            json_int_t end = at + bytes_of(entry);
            json_object_set_new(entry, "data_offsets", json_pack("[I,I]", at, end));
            at = end;
        }
    }
    return (size_t)at;
}

static void settle_values(mutant *m, uint8_t *data) {
    const char *key;
    json_t *entry;
    json_object_foreach(m->header, key, entry) {
        if (json_object_get(entry, "shape")) {
            size_t bytes = (size_t)bytes_of(entry);
            fuzz_settle_values(data, bytes, json_string_value(json_object_get(entry, "dtype")));
            data += bytes;
        }
    }
}

static size_t put_together(mutant *m, uint8_t *out, size_t max_size) {
    size_t n = lay_out(m), written = 0;
    char *config = json_dumps(m->config, JSON_COMPACT), *header = json_dumps(m->header, JSON_COMPACT);
    if (config && header) {
        size_t c = strlen(config), h = strlen(header);
        if (4 + c + 8 + h + n <= max_size) {
            for (int i = 0; i < 4; i++) {
                out[i] = (uint8_t)(c >> 8 * i);
            }
            memcpy(out + 4, config, c);
            uint8_t *weights = out + 4 + c;
            for (int i = 0; i < 8; i++) {
                weights[i] = (uint8_t)((uint64_t)h >> 8 * i);
            }
            memcpy(weights + 8, header, h);
            for (size_t i = 0; i < n; i++) {
                weights[8 + h + i] = m->n_data ? m->data[i % m->n_data] : 0;
            }
            if (m->settled) {
                settle_values(m, weights + 8 + h);
            }
            written = 4 + c + 8 + h + n;
        }
    }
    free(config);
    free(header);
    return written;
}

static bool take_apart(mutant *m, const uint8_t *data, size_t size) {
    fuzz_folder f;
    if (!fuzz_folder_split(&f, data, size) || f.weights_length < 8 || read_length(f.weights) > f.weights_length - 8) {
        return false;
    }
    size_t length = (size_t)read_length(f.weights);
    m->config = json_loadb((const char *)f.config, f.config_length, 0, NULL);
    m->header = json_loadb((const char *)f.weights + 8, length, 0, NULL);
    m->n_data = f.weights_length - 8 - length;
    m->data = malloc(m->n_data ? m->n_data : 1);
    if (m->data) {
        memcpy(m->data, f.weights + 8 + length, m->n_data);
    }
    return json_is_object(m->config) && json_is_object(m->header) && m->data;
}

size_t fuzz_mutate_folder(uint8_t *data, size_t size, size_t max_size, unsigned int seed) {
    mutant m = {.state = seed};
    size_t written = 0;
    if (below(&m, 8) != 0 && take_apart(&m, data, size)) {
        for (uint32_t left = 1 + below(&m, 3); left > 0; left--) {
            switch (below(&m, 4)) {
            case 0: change_config(&m); break;
            case 1: change_header(&m); break;
            default: change_data(&m); break;
            }
        }
        m.settled = below(&m, 4) != 0;
        if (m.settled) {
            fuzz_settle(m.config, m.header);
        }
        written = put_together(&m, data, max_size);
    }
    json_decref(m.config);
    json_decref(m.header);
    free(m.data);
    return written ? written : LLVMFuzzerMutate(data, size, max_size);
}

#endif
