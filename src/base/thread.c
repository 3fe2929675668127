/* pthreads behind ranked mutexes; the check of the ranks is in debug builds only. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* sched_getaffinity */
#endif
#include "thread.h"

#include "clock.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#if defined(__linux__)
#include <sched.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#endif

#ifndef NDEBUG
/* Ranks of the mutexes that this thread holds, in the order taken. */
static _Thread_local int held[16];
static _Thread_local int n_held;

static void rank_push(int rank) {
    if (n_held == 16 || (n_held > 0 && held[n_held - 1] >= rank)) {
        fprintf(stderr, "graft: lock order violated: rank %d taken while holding %d\n", rank,
                n_held ? held[n_held - 1] : -1);
        abort();
    }
    held[n_held++] = rank;
}

static void rank_pop(int rank) {
    for (int i = n_held - 1; i >= 0; i--) {
        if (held[i] == rank) {
            for (int j = i; j + 1 < n_held; j++) {
                held[j] = held[j + 1];
            }
            n_held--;
            return;
        }
    }
    abort();
}
#else
static void rank_push(int rank) {
    (void)rank;
}
static void rank_pop(int rank) {
    (void)rank;
}
#endif

void gr_mutex_init(gr_mutex *m, int rank) {
    pthread_mutex_init(&m->m, NULL);
    m->rank = rank;
}

void gr_mutex_finish(gr_mutex *m) {
    pthread_mutex_destroy(&m->m);
}

static void relax(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/*
 * A mutex is held for well under a microsecond, putting a thread to sleep and waking it takes fifty: so it is tried for a moment
 * before that. With eight threads on two cores that took the 99th percentile of a lease from some 100 to some 3 microseconds
 * (bench/RESULTS.md).
 */
void gr_mutex_lock(gr_mutex *m) {
    enum { TRIES = 100 };
    rank_push(m->rank);
    for (int i = 0; i < TRIES; i++) {
        if (pthread_mutex_trylock(&m->m) == 0) {
            return;
        }
        relax();
    }
    pthread_mutex_lock(&m->m);
}

void gr_mutex_unlock(gr_mutex *m) {
    rank_pop(m->rank); /* first: once it is unlocked, another thread may free what it lies in */
    pthread_mutex_unlock(&m->m);
}

void gr_cond_init(gr_cond *c) {
#if defined(__APPLE__)
    pthread_cond_init(&c->c, NULL); /* its relative wait is monotonic */
#else
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&c->c, &attr);
    pthread_condattr_destroy(&attr);
#endif
}

void gr_cond_finish(gr_cond *c) {
    pthread_cond_destroy(&c->c);
}

void gr_cond_wait(gr_cond *c, gr_mutex *m) {
    pthread_cond_wait(&c->c, &m->m);
}

bool gr_cond_wait_until(gr_cond *c, gr_mutex *m, int64_t deadline_us) {
#if defined(__APPLE__)
    int64_t left = deadline_us - gr_now_us();
    struct timespec t = {.tv_sec = left > 0 ? left / 1000000 : 0, .tv_nsec = left > 0 ? left % 1000000 * 1000 : 0};
    return pthread_cond_timedwait_relative_np(&c->c, &m->m, &t) == 0;
#else
    struct timespec t = {.tv_sec = deadline_us / 1000000, .tv_nsec = deadline_us % 1000000 * 1000};
    return pthread_cond_timedwait(&c->c, &m->m, &t) == 0;
#endif
}

void gr_cond_signal(gr_cond *c) {
    pthread_cond_signal(&c->c);
}

void gr_cond_broadcast(gr_cond *c) {
    pthread_cond_broadcast(&c->c);
}

int gr_thread_start(pthread_t *out, void *(*main)(void *), void *arg) {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int rc = pthread_create(out, NULL, main, arg);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return rc;
}

#if defined(__linux__)
/* A CPU counts if it is the first of its siblings that we may run on. The list looks like "0,4" or "0-1". */
static bool first_sibling(int cpu, const cpu_set_t *ours) {
    char path[96];
    snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%d/topology/thread_siblings_list", cpu);
    FILE *f = fopen(path, "r");
    if (!f) {
        return true;
    }
    int first = cpu, a, b;
    char sep = 0;
    while (fscanf(f, "%d%c", &a, &sep) >= 1) {
        b = a;
        if (sep == '-' && fscanf(f, "%d%c", &b, &sep) < 1) {
            break;
        }
        for (int i = a; i <= b && i < first; i++) {
            if (CPU_ISSET(i, ours)) {
                first = i;
            }
        }
        if (sep != ',') {
            break;
        }
    }
    fclose(f);
    return first == cpu;
}
#endif

void gr_thread_join(pthread_t thread) {
    pthread_join(thread, NULL);
}

int gr_physical_cores(void) {
    int n = 0;
#if defined(__linux__)
    cpu_set_t ours;
    if (sched_getaffinity(0, sizeof ours, &ours) == 0) {
        for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
            n += CPU_ISSET(cpu, &ours) && first_sibling(cpu, &ours);
        }
    }
#elif defined(__APPLE__)
    size_t size = sizeof n;
    /* Performance cores only: the slow ones hold up every barrier. */
    if (sysctlbyname("hw.perflevel0.physicalcpu", &n, &size, NULL, 0) != 0) {
        sysctlbyname("hw.physicalcpu", &n, &size, NULL, 0);
    }
#endif
    if (n < 1) {
        n = (int)sysconf(_SC_NPROCESSORS_ONLN);
    }
    return n < 1 ? 1 : n;
}
