/*
 * An adapter's files, opened and described but not read: what lies at a path, which tensors it says it has.
 * Nothing here knows the base model.
 */
#ifndef GR_SOURCE_H
#define GR_SOURCE_H

#include "base/error.h"
#include "base/file.h"
#include "format/gguf_lora.h"
#include "format/mlx_config.h"
#include "format/peft_config.h"
#include "format/tensor_info.h"

typedef enum gr_source_format { GR_SOURCE_PEFT, GR_SOURCE_GGUF, GR_SOURCE_MLX } gr_source_format;

/* "peft", "gguf", "mlx". Static storage. */
const char *gr_source_format_name(gr_source_format format);

typedef struct gr_source {
    gr_source_format format;
    char *path;                /* as given */
    gr_file weights;           /* stays open: reading continues on this inode whatever happens to the path */
    gr_tensor_list tensors;    /* of a folder: own; GGUF: moved out of `gguf` */
    gr_peft_config config;     /* PEFT only */
    gr_mlx_config mlx;         /* MLX only */
    gr_gguf_lora gguf;         /* GGUF only */
    uint8_t config_hash[32];   /* SHA-256 of adapter_config.json's bytes; of nothing for GGUF */
} gr_source;

/* The files of a folder that make it an adapter: the settings, PEFT's weights, mlx-lm's. */
enum { GR_SOURCE_FILES = 3 };
extern const char *const gr_source_files[GR_SOURCE_FILES];

/* What a file must be like to be opened. */
typedef struct gr_source_limits {
    uint64_t max_bytes; /* of the weights: larger ones are refused before reading */
    const char *root;   /* absolute, resolved: the files lie below it whatever their paths' links say; NULL = anywhere */
} gr_source_limits;

/*
 * Opens the folder of PEFT or mlx-lm, or the GGUF file, at `path`. Both files of a folder are opened relative to one descriptor of
 * the folder. Config findings go to `report` (the source is then open, and not loadable); the rest is returned:
 * ADAPTER_FILE_MISSING (`path` itself; what is wrong with that says all of it), MISSING_FILE (names which), CONFIG_MISSING
 * (also for the path of a safetensors file: the folder is wanted), NOT_READABLE, NOT_REGULAR_FILE, IO_ERROR (also: no
 * descriptors are left), TOO_LARGE, OUTSIDE_ROOT (before reading), PICKLE_REFUSED (adapter_model.bin and no safetensors, or
 * a file with such a name), SHARDED_UNSUPPORTED, LFS_POINTER, UNSUPPORTED_FORMAT, NOT_AN_ADAPTER, JSON (JSON_TOO_LARGE above
 * 1 MiB of config), safetensors and GGUF codes.
 * *out: gr_source_close.
 */
int gr_source_open(gr_source **out, const char *path, gr_source_limits limits, gr_report *report, graft_error *err);
void gr_source_close(gr_source *s);

/*
 * The generation that gr_adapter_build would find: SHA-256 over config_hash, then the whole weights file, as 64 hex
 * digits. Reads all of the file. Errors: IO_ERROR, CHANGED_WHILE_READING, OUT_OF_MEMORY.
 */
int gr_source_generation(const gr_source *s, char out[65], graft_error *err);

#endif
