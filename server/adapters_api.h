/* Changes of adapters that are under way, for who ends the server. Loop thread. */
#ifndef SRV_ADAPTERS_API_H
#define SRV_ADAPTERS_API_H

#include "internal.h"

/* Answers all that wait for an adapter to load with shutting_down. */
void srv_changes_give_up(server *s);
/* Frees what is left; the worker has stopped and no exchange is left. */
void srv_changes_finish(server *s);

#endif
