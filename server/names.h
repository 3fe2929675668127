/* What `model` stands for: the base by its own id, or a registered adapter as PROJECT, PROJECT/ADAPTER, BASE:NAME,
 * BASE::NAME; each may end in ":latest". An unknown name is never the base. Without one (NULL) it is the current project, or
 * else the base. */
#ifndef SRV_NAMES_H
#define SRV_NAMES_H

#include "errors.h"

typedef struct srv_name {
    bool base;
    char project[GRAFT_NAME_SIZE], adapter[GRAFT_NAME_SIZE]; /* "" for the base */
} srv_name;

/* The base's id from its path: the file's name without folder and ".gguf". */
void srv_name_base(server *s);
/* False: 404 model_not_found, in *f; also for what the request's key must not see. */
bool srv_name_find(const srv_exchange *x, srv_name *out, const char *text, const char *param, srv_fault *f);
/* "PROJECT/ADAPTER", or "PROJECT" for its default. */
#define SRV_ID_SIZE (2 * GRAFT_NAME_SIZE)
const char *srv_name_id(char out[SRV_ID_SIZE], const char *project, const char *adapter);
/* Splits at the first '/'; "default" without one. False if a part is too long. */
bool srv_name_split(srv_name *out, const char *text);

#endif
