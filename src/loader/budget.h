/*
 * The byte budget: what is promised to whom. Pure arithmetic, guarded by the loader's mutex.
 *
 * limit >= fixed + resident + loading + draining holds at all times: bytes are reserved before a file is read,
 * and stay counted until the memory is given back. `own` is measured now and then: nothing more is promised while it
 * takes the rest, but it may grow over what adapters were promised before.
 */
#ifndef GR_BUDGET_H
#define GR_BUDGET_H

#include <stdbool.h>
#include <stdint.h>

typedef struct gr_budget {
    uint64_t limit;
    uint64_t fixed;    /* base weights, KV cache, compute buffers, adapters that no name reaches */
    uint64_t own;      /* graft's own queues and tables, as last measured */
    uint64_t resident; /* adapters that names reach */
    uint64_t loading;  /* reserved for loads under way */
    uint64_t draining; /* no longer reachable, not yet freed */
} gr_budget;

/* Bytes that could still be reserved. */
uint64_t gr_budget_free(const gr_budget *b);
/* Bytes adapters may have altogether: limit less fixed and own. */
uint64_t gr_budget_capacity(const gr_budget *b);

/* Moves `bytes` from free to loading; false if they are not free. */
bool gr_budget_reserve(gr_budget *b, uint64_t bytes);
/* A load is over: its reservation goes, `actual` bytes are resident (0: the load failed). `actual` <= `reserved`. */
void gr_budget_commit(gr_budget *b, uint64_t reserved, uint64_t actual);
/* A resident became unreachable. */
void gr_budget_drain(gr_budget *b, uint64_t bytes);
/* A draining one was freed. */
void gr_budget_freed(gr_budget *b, uint64_t bytes);

/* The smaller of `wanted` and what the machine allows this process: cgroup limit, else physical memory. 0 as
 * `wanted` means the machine's. */
uint64_t gr_budget_clamp(uint64_t wanted);
/* What the machine allows this process: cgroup limit, else physical memory. */
uint64_t gr_machine_memory(void);
/* Resident memory of this process now: statm on Linux, phys_footprint on macOS; 0 if the system does not tell. */
uint64_t gr_process_memory(void);

#endif
