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
void srv_name_set(srv_name *out, const char *project, const char *adapter);
/* What is registered under the name, or with NULL all there is: graft_registered_list_free. NULL if there is nothing of that name, no
 * registry, or no memory. Any thread. */
graft_registered_list *srv_registered(const server *s, const srv_name *name);
/* Splits at the first '/'; "default" without one. False if a part is too long. */
bool srv_name_split(srv_name *out, const char *text);

#endif
