/* adapter_config.json as mlx-lm writes it: the settings of the training run, of which few say how the adapter is applied. */
#ifndef GR_MLX_CONFIG_H
#define GR_MLX_CONFIG_H

#include "base/error.h"

#include <stdbool.h>
#include <stddef.h>

typedef struct gr_mlx_config {
    bool dora;          /* fine_tune_type "dora" */
    int rank;           /* lora_parameters.rank; of every module */
    double scale;       /* lora_parameters.scale: what B(Ax) is multiplied with, as it is */
    int num_layers;     /* the adapter is on the last so many layers; -1: on all, or not said */
    char *base_model;   /* "model", or NULL: a hint only. Text from outside: gr_quote */
} gr_mlx_config;

/*
 * Parses the file's bytes. Syntax errors and wrong types are returned; what is well-formed but cannot be used goes to
 * `report`, and 0 is returned then, as gr_peft_config_parse does. *out: gr_mlx_config_finish, also when the report has errors.
 * Returned codes: the JSON codes, BAD_TYPE, OUT_OF_MEMORY. Reported: UNSUPPORTED_ADAPTER (fine_tune_type "full", a config of
 * PEFT), MISSING_FIELD (lora_parameters), BAD_RANK, BAD_ALPHA (scale), OUT_OF_RANGE (num_layers), UNKNOWN_OPTION.
 */
int gr_mlx_config_parse(gr_mlx_config *out, const char *json, size_t length, gr_report *report, graft_error *err);
void gr_mlx_config_finish(gr_mlx_config *c);

#endif
