/*
 * Adapters by name: what a job waits for before it may enter a slot.
 *
 * A supply asks the loader for leases and collects them. It outlives its job if it must: a job that is cancelled leaves at
 * once, and what arrives later is given back. All but create and ask is under the engine's mutex, or the decode thread's
 * alone once the job is in a slot.
 */
#ifndef GR_SUPPLY_H
#define GR_SUPPLY_H

#include "base/thread.h"
#include "loader/loader.h"
#include "lora/row_plan.h"

/* One adapter by name. */
typedef struct gr_want {
    char project[GR_NAME_MAX + 1], adapter[GR_NAME_MAX + 1];
    float scale; /* not 0 */
} gr_want;

/* What a job asks for. */
typedef struct gr_wants {
    gr_loader *loader; /* borrowed; stopped before the engine is */
    gr_want items[GR_MAX_USES];
    int n;
    graft_fallback fallback; /* BASE or ERROR */
    int64_t wait_us;         /* as graft_options.adapter_wait_ms */
} gr_wants;

typedef struct gr_supply gr_supply;

/* Takes over `wants` (from gr_alloc) if it succeeds. `mutex` and `bell` are the engine's; *news is set and the bell rung when the
 * last lease has come. Errors: OUT_OF_MEMORY. */
int gr_supply_create(gr_supply **out, gr_wants *wants, gr_mutex *mutex, gr_cond *bell, bool *news, graft_error *err);

/* Marks it as asked for, under the mutex; then, without, asks. Decode thread. */
void gr_supply_mark(gr_supply *s, int64_t now);
void gr_supply_ask(gr_supply *s);

/* Gives back what has come while more is pending, and what will come; then it is as if it had not been asked for, but that the
 * wait counts from the first time. For who holds an adapter that others need to get on. Decode thread, without the mutex. */
void gr_supply_yield(gr_supply *s);

bool gr_supply_asked(const gr_supply *s);
/* The same for supplies that want the same adapters in the same order; as good as never for others. */
uint64_t gr_supply_key(const gr_supply *s);
/* How long somebody has waited for room in its loader: gr_loader_starved_us. */
int64_t gr_supply_starved_us(const gr_supply *s);
/* Whether it yielded since it last asked. */
bool gr_supply_gave_way(const gr_supply *s);
/* Whether it has some of its leases. */
bool gr_supply_holds(const gr_supply *s);
bool gr_supply_ready(const gr_supply *s);

/* When ready: the first error that left a want without a lease; code 0 = none. */
const graft_error *gr_supply_error(const gr_supply *s);
/* Want i, and when ready and without error its lease. */
const gr_want *gr_supply_want(const gr_supply *s, int i);
const gr_lease *gr_supply_lease(const gr_supply *s, int i);
int gr_supply_count(const gr_supply *s);

/* The job is done with it: leases go back (later ones as they come), and it is freed. NULL is fine. Without the mutex. */
void gr_supply_leave(gr_supply *s);

#endif
