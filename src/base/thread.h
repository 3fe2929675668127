/*
 * Mutexes with ranks, condition variables, threads: thin covers over pthreads.
 *
 * A mutex may be locked only while every mutex that the thread holds has a lower rank; debug builds abort on
 * the first violation, so a possible deadlock shows in any run and not only in the unlucky one.
 * No mutex is held across file I/O, libllama, a callback or a large allocation.
 */
#ifndef GR_THREAD_H
#define GR_THREAD_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

/* In locking order. */
enum gr_rank {
    GR_RANK_API = 5,           /* src/: the current project, prefetches, the process-wide instance */
    GR_RANK_REGISTRY = 10,     /* src/registry: its table in memory */
    GR_RANK_ENGINE_QUEUE = 20, /* src/engine: requests waiting, wake-up of the decode thread */
    GR_RANK_LOADER = 30,       /* src/loader: names, versions, leases, budget */
    GR_RANK_JOB = 40,          /* src/engine: one job's end */
    GR_RANK_PROBE = 45,        /* src/engine: the base's logits for the probe */
    GR_RANK_SLOTS = 48,        /* src/engine: what others see of the slots */
    GR_RANK_HASH = 50,         /* src/model: what is still to be hashed of a file */
    GR_RANK_LOG = 60
};

typedef struct gr_mutex {
    pthread_mutex_t m;
    int rank;
} gr_mutex;

void gr_mutex_init(gr_mutex *m, int rank);
void gr_mutex_finish(gr_mutex *m);
void gr_mutex_lock(gr_mutex *m);
void gr_mutex_unlock(gr_mutex *m);

typedef struct gr_cond {
    pthread_cond_t c;
} gr_cond;

void gr_cond_init(gr_cond *c);
void gr_cond_finish(gr_cond *c);
void gr_cond_wait(gr_cond *c, gr_mutex *m);
/* Waits until signalled or until gr_now_us() reaches `deadline_us`; false then. */
bool gr_cond_wait_until(gr_cond *c, gr_mutex *m, int64_t deadline_us);
void gr_cond_signal(gr_cond *c);
void gr_cond_broadcast(gr_cond *c);

/* 0 or an errno value. All signals are blocked in the new thread: they belong to the application. */
int gr_thread_start(pthread_t *out, void *(*main)(void *), void *arg);
void gr_thread_join(pthread_t thread);

/* Physical cores that this process may use; at least 1. SMT siblings count once where the system tells. */
int gr_physical_cores(void);

#endif
