/*
 * Seeded schedules: base/thread.h, base/clock.h and base/memory.h again, but with one "thread" running at a time and a seed
 * that says which. The code under test is compiled as it is and linked to this instead of to src/base/thread.c, clock.c and
 * memory.c; the same seed always gives the same run.
 *
 * Every lock, unlock, wait, signal, start, join, sleep and look at the clock is a point where another thread may go on. Time
 * is a number: it goes on by a microsecond a point, jumps to the next deadline when everybody waits, and now and then for no
 * reason. Waits wake without a signal now and then, as POSIX allows.
 *
 * What cannot be seen here: data races between two points (that is ThreadSanitizer's work, on real threads).
 */
#ifndef SCHEDULE_H
#define SCHEDULE_H

#include <stdbool.h>
#include <stdint.h>

#if defined(__GNUC__)
#define SCHED_PRINTF(f, a) __attribute__((format(printf, f, a)))
#else
#define SCHED_PRINTF(f, a)
#endif

/* Runs `main` and all threads that it starts to their end. False if something failed; what, and the last steps, are on stderr. */
bool sched_run(const char *scenario, uint64_t seed, void (*main)(void));
/* Prints every step as well. */
void sched_trace(bool on);

/* ---- for the code that runs inside ---- */

/* Another thread may go on here. */
void sched_point(const char *what);
/* A line for the list of last steps. */
void sched_note(const char *what, int number);
/* Ends this schedule as failed; does not return. */
_Noreturn void sched_fail(const char *format, ...) SCHED_PRINTF(1, 2);
/* 0 <= result < n, by the seed. */
uint64_t sched_draw(uint64_t n);
/* Whether the running thread holds any mutex. */
bool sched_holds_lock(void);
/* Called after each unlock of a mutex of that rank, before another thread runs. NULL: nothing. */
void sched_on_unlock(int rank, void (*hook)(void));
/* The n-th gr_thread_start from now fails; 0 = none. */
void sched_fail_thread(int n);
/* Points passed so far in this schedule. */
uint64_t sched_steps(void);

/* ---- arena.c ---- */

/* Forgets all blocks. */
void arena_reset(void);
/* Whether no freed block was written to. */
bool arena_check(void);

#endif
