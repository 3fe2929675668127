/* What the dynamic loader did and holds, for people and for scripts. */
#ifndef GRAFT_CLI_LOADER_REPORT_H
#define GRAFT_CLI_LOADER_REPORT_H

#include "cli.h"

/* Tables: each registered adapter, where the memory is, totals and health. As columns are few, they may be turned. */
int cli_loader_print(graft *g, graft_registry *r);

/* Adds "adapters", "loader", "memory" and "health". */
int cli_loader_json(json_t *object, graft *g, graft_registry *r);

/* "alder", or "alder/again" if the adapter is not the default one. */
#define CLI_SHORT_NAME_SIZE (2 * GRAFT_NAME_SIZE)
const char *cli_short_name(char out[CLI_SHORT_NAME_SIZE], const char *project, const char *adapter);

#endif
