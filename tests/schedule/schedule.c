/*
 * The scheduler behind schedule.h. "Threads" are coroutines: makecontext gives each its stack once, from then on _setjmp and
 * _longjmp go from one to the other (swapcontext asks the kernel for the signal mask each time, which costs more than all the
 * rest). Under AddressSanitizer it is swapcontext, with the annotations that tell it of the stacks.
 */
#undef _FORTIFY_SOURCE /* its longjmp refuses to go to another stack */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "schedule.h"

#include "base/clock.h"
#include "base/thread.h"

#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#if defined(__SANITIZE_ADDRESS__)
#define SCHED_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define SCHED_ASAN 1
#endif
#endif
#ifdef SCHED_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

enum {
    MAX_FIBERS = 16,
    STACK_SIZE = 256 * 1024,
    MOST_STEPS = 60000, /* a schedule that needs more goes round in circles */
    TRACE = 64,
    MAX_HELD = 8,
    CHANGES = 3
};
static const int64_t START_US = 1000000;
static const int64_t SHORT_US = 2000000; /* deadlines that may come although somebody could go on; longer ones mean: never */

typedef enum state { UNUSED, READY, ON_MUTEX, ON_COND, ASLEEP, JOINING, DONE } state;

typedef struct fiber {
    state state;
    const void *object;   /* the mutex or condition it waits for */
    int waits_for;        /* JOINING */
    int64_t wake_at;      /* 0: only others wake it */
    bool timed_out;
    int priority;
    int held[MAX_HELD], n_held;
    void *(*main)(void *);
    void *arg;
    /* kept from schedule to schedule */
    void *stack;
    bool fresh;           /* its next switch begins at the top of `run_fiber` */
    ucontext_t context;
    jmp_buf jump;
    void *shadow;         /* AddressSanitizer's */
} fiber;

/* What lies in a gr_mutex and a gr_cond here. */
typedef struct sim_mutex {
    uint32_t magic;
    int owner;
} sim_mutex;
typedef struct sim_cond {
    uint32_t magic;
} sim_cond;
enum { ALIVE = 0x6d757478, CONDITION = 0x636f6e64, FINISHED = 0x676f6e65 };
_Static_assert(sizeof(sim_mutex) <= sizeof(pthread_mutex_t) && sizeof(sim_cond) <= sizeof(pthread_cond_t), "must fit");

typedef struct event {
    int64_t at;
    int fiber, number;
    const char *what;
} event;

static fiber fibers[MAX_FIBERS + 1]; /* the last one is the host: who called sched_run */
static const int HOST = MAX_FIBERS;
static int current, n_fibers;
static int64_t now;
static uint64_t seed, rng, steps;
static bool failed, tracing, priorities;
static unsigned stay;                  /* of 8: how often the running thread simply goes on */
static uint64_t changes[CHANGES];      /* steps at which the running thread becomes the least important */
static int lowest;
static const char *scenario;
static void (*main_inside)(void);
static event events[TRACE];
static uint64_t n_events;
static int hook_rank, thread_to_fail;
static void (*hook)(void);

/* ---- randomness ------------------------------------------------------------------------------------------- */

static uint64_t next_random(void) {
    uint64_t z = (rng += UINT64_C(0x9e3779b97f4a7c15));
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

uint64_t sched_draw(uint64_t n) {
    return (next_random() >> 32) * n >> 32;
}

/* ---- saying what happened --------------------------------------------------------------------------------- */

static void print_event(const event *e) {
    fprintf(stderr, "  %8lld us  thread %d  %s", (long long)(e->at - START_US), e->fiber, e->what);
    fprintf(stderr, e->number == INT32_MIN ? "\n" : " %d\n", e->number);
}

void sched_note(const char *what, int number) {
    event *e = &events[n_events++ % TRACE];
    *e = (event){now, current, number, what};
    if (tracing) {
        print_event(e);
    }
}

static void print_state(void) {
    static const char *const names[] = {"unused", "ready", "waits for a mutex", "waits for a condition", "sleeps", "joins", "ended"};
    if (!tracing) {
        for (uint64_t i = n_events > TRACE ? n_events - TRACE : 0; i < n_events; i++) {
            print_event(&events[i % TRACE]);
        }
    }
    for (int i = 0; i < n_fibers; i++) {
        fprintf(stderr, "  thread %d %s%s\n", i, names[fibers[i].state], i == current ? " (running)" : "");
    }
}

static void say_failed(const char *why) {
    fprintf(stderr, "FAILED: scenario %s, seed %llu, step %llu: %s\n", scenario, (unsigned long long)seed, (unsigned long long)steps, why);
    print_state();
    fprintf(stderr, "again, with every step: test_schedules %s %llu\n", scenario, (unsigned long long)seed);
}

/* A crash inside a schedule: where it was is half the finding. */
static void crashed(int signal) {
    say_failed(signal == SIGSEGV ? "segmentation fault (memory used after it was freed?)" : "aborted");
    _exit(1);
}

#ifdef SCHED_ASAN
void __asan_on_error(void);
void __asan_on_error(void) {
    say_failed("AddressSanitizer reports:");
}
#endif

static void catch_crashes(void) {
    static bool done;
    static char *stack;
    if (done) {
        return;
    }
    done = true;
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = crashed;
    action.sa_flags = SA_ONSTACK;
    stack = malloc(STACK_SIZE);
    sigaltstack(&(stack_t){.ss_sp = stack, .ss_size = STACK_SIZE}, NULL);
    sigaction(SIGABRT, &action, NULL);
#ifndef SCHED_ASAN
    sigaction(SIGSEGV, &action, NULL);
    sigaction(SIGBUS, &action, NULL);
#endif
}

/* ---- going from one to the other -------------------------------------------------------------------------- */

static void run_fiber(void);

static void prepare_fiber(fiber *f) {
    if (!f->stack) {
        char *map = mmap(NULL, STACK_SIZE + 16384, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (map == MAP_FAILED) {
            abort();
        }
        mprotect(map, 16384, PROT_NONE); /* an overflow is a crash, not a riddle */
        f->stack = map + 16384;
    }
#ifdef SCHED_ASAN
    ASAN_UNPOISON_MEMORY_REGION(f->stack, STACK_SIZE);
#endif
    getcontext(&f->context);
    f->context.uc_stack.ss_sp = f->stack;
    f->context.uc_stack.ss_size = STACK_SIZE;
    f->context.uc_link = NULL;
    makecontext(&f->context, run_fiber, 0);
    f->fresh = true;
}

#ifdef SCHED_ASAN
static const void *host_stack;
static size_t host_size;
static int came_from;

static void arrived(int at) {
    const void *bottom;
    size_t size;
    __sanitizer_finish_switch_fiber(fibers[at].shadow, &bottom, &size);
    if (came_from == HOST) {
        host_stack = bottom;
        host_size = size;
    }
}

__attribute__((noinline)) static void go(int to) {
    int from = current;
    current = came_from = from;
    current = to;
    fibers[to].fresh = false;
    __sanitizer_start_switch_fiber(&fibers[from].shadow, to == HOST ? host_stack : fibers[to].stack, to == HOST ? host_size : STACK_SIZE);
    swapcontext(&fibers[from].context, &fibers[to].context);
    arrived(from);
}
#else
static void arrived(int at) {
    (void)at;
}

__attribute__((noinline)) static void go(int to) {
    fiber *from = &fibers[current];
    current = to;
    if (_setjmp(from->jump) != 0) {
        return;
    }
    if (fibers[to].fresh) {
        fibers[to].fresh = false;
        setcontext(&fibers[to].context);
    }
    _longjmp(fibers[to].jump, 1);
}
#endif

_Noreturn void sched_fail(const char *format, ...) {
    char text[400];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    failed = true;
    say_failed(text);
    if (current == HOST) {
        _exit(1);
    }
    go(HOST); /* this stack is never gone on with: prepare_fiber makes it anew */
    abort();
}

/* ---- choosing --------------------------------------------------------------------------------------------- */

static void wake(fiber *f, bool timed_out) {
    f->state = READY;
    f->wake_at = 0;
    f->timed_out = timed_out;
    f->object = NULL;
}

static void wake_those_due(void) {
    for (int i = 0; i < n_fibers; i++) {
        if (fibers[i].wake_at && fibers[i].wake_at <= now) {
            wake(&fibers[i], true);
        }
    }
}

/* To the next deadline within `most`. */
static bool jump_to_deadline(int64_t most) {
    int64_t next = 0;
    for (int i = 0; i < n_fibers; i++) {
        int64_t at = fibers[i].wake_at;
        next = at && (next == 0 || at < next) ? at : next;
    }
    if (next == 0 || next - now > most) {
        return false;
    }
    now = next > now ? next : now;
    wake_those_due();
    return true;
}

/* A condition's wait may end without a signal. */
static void wake_for_no_reason(void) {
    int i = (int)sched_draw((uint64_t)n_fibers);
    if (fibers[i].state == ON_COND) {
        wake(&fibers[i], false);
    }
}

static int choose_by_priority(const int *ready, int n) {
    int best = ready[0];
    for (int i = 0; i < CHANGES; i++) {
        if (steps == changes[i]) {
            fibers[current].priority = --lowest;
        }
    }
    for (int i = 1; i < n; i++) {
        best = fibers[ready[i]].priority > fibers[best].priority ? ready[i] : best;
    }
    return best;
}

static int choose(void) {
    int ready[MAX_FIBERS], n = 0;
    for (;;) {
        for (int i = 0; i < n_fibers; i++) {
            if (fibers[i].state == READY) {
                ready[n++] = i;
            }
        }
        if (n > 0) {
            break;
        }
        if (!jump_to_deadline(INT64_MAX / 2)) {
            sched_fail("deadlock: nobody can go on, and nobody has a deadline");
        }
    }
    if (n == 1) {
        return ready[0];
    }
    if (priorities) {
        return choose_by_priority(ready, n);
    }
    if (stay && fibers[current].state == READY && sched_draw(8) < stay) {
        return current;
    }
    return ready[sched_draw((uint64_t)n)];
}

/* The running thread has set its own state; who goes on? */
static void step(void) {
    steps++;
    now++;
    if (steps > MOST_STEPS) {
        sched_fail("livelock: no end after %d steps", MOST_STEPS);
    }
    wake_those_due();
    uint64_t odd = sched_draw(256);
    if (odd == 0) {
        jump_to_deadline(SHORT_US);
    } else if (odd == 1) {
        wake_for_no_reason();
    }
    int next = choose();
    if (next != current) {
        go(next);
    }
}

void sched_point(const char *what) {
    sched_note(what, INT32_MIN);
    step();
}

uint64_t sched_steps(void) {
    return steps;
}

/* ---- threads ---------------------------------------------------------------------------------------------- */

static void ended(int index) {
    fibers[index].state = DONE;
    for (int i = 0; i < n_fibers; i++) {
        if (fibers[i].state == JOINING && fibers[i].waits_for == index) {
            wake(&fibers[i], false);
        }
    }
}

static bool all_done(void) {
    for (int i = 0; i < n_fibers; i++) {
        if (fibers[i].state != DONE) {
            return false;
        }
    }
    return true;
}

/* Each fiber serves one thread of each schedule. */
static void run_fiber(void) {
    arrived(current);
    for (;;) {
        int me = current;
        if (me == 0) {
            main_inside();
        } else {
            fibers[me].main(fibers[me].arg);
        }
        if (fibers[me].n_held) {
            sched_fail("a thread ended with a mutex held");
        }
        sched_note("ended", INT32_MIN);
        ended(me);
        if (me == 0 && !all_done()) {
            sched_fail("a thread was never joined");
        }
        go(all_done() ? HOST : choose());
    }
}

static int new_fiber(void *(*main)(void *), void *arg) {
    if (n_fibers == MAX_FIBERS) {
        sched_fail("more than %d threads", MAX_FIBERS);
    }
    int index = n_fibers++;
    fiber *f = &fibers[index];
    f->state = READY;
    f->object = NULL;
    f->wake_at = 0;
    f->n_held = 0;
    f->main = main;
    f->arg = arg;
    f->priority = (int)sched_draw(1000000);
    if (!f->stack) {
        prepare_fiber(f);
    }
    return index;
}

int gr_thread_start(pthread_t *out, void *(*main)(void *), void *arg) {
    if (thread_to_fail && --thread_to_fail == 0) {
        return EAGAIN;
    }
    int index = new_fiber(main, arg);
    *out = (pthread_t)(uintptr_t)index;
    sched_note("starts thread", index);
    step();
    return 0;
}

void gr_thread_join(pthread_t thread) {
    int index = (int)(uintptr_t)thread;
    sched_note("joins thread", index);
    if (fibers[index].state != DONE) {
        fibers[current].state = JOINING;
        fibers[current].waits_for = index;
    }
    step();
}

int gr_physical_cores(void) {
    return 2;
}

/* ---- mutexes ---------------------------------------------------------------------------------------------- */

static sim_mutex *inside(gr_mutex *m) {
    return (sim_mutex *)(void *)&m->m;
}

static sim_mutex *living(gr_mutex *m) {
    if (inside(m)->magic != ALIVE) {
        sched_fail("a mutex is used that was finished or never made");
    }
    return inside(m);
}

void gr_mutex_init(gr_mutex *m, int rank) {
    *inside(m) = (sim_mutex){ALIVE, -1};
    m->rank = rank;
}

void gr_mutex_finish(gr_mutex *m) {
    if (living(m)->owner >= 0) {
        sched_fail("a mutex is finished while it is held");
    }
    inside(m)->magic = FINISHED;
}

static void take(gr_mutex *m) {
    while (living(m)->owner >= 0) {
        fibers[current].state = ON_MUTEX;
        fibers[current].object = m;
        step();
    }
    inside(m)->owner = current;
    fiber *f = &fibers[current];
    f->held[f->n_held++] = m->rank;
}

static void give(gr_mutex *m) {
    fiber *f = &fibers[current];
    if (living(m)->owner != current) {
        sched_fail("a mutex is unlocked that this thread does not hold");
    }
    inside(m)->owner = -1;
    f->n_held--;
    if (hook && m->rank == hook_rank) {
        hook();
    }
    for (int i = 0; i < n_fibers; i++) {
        if (fibers[i].state == ON_MUTEX && fibers[i].object == m) {
            wake(&fibers[i], false);
        }
    }
}

void gr_mutex_lock(gr_mutex *m) {
    const fiber *f = &fibers[current];
    if (f->n_held == MAX_HELD || (f->n_held > 0 && f->held[f->n_held - 1] >= m->rank)) {
        sched_fail("lock order: rank %d taken while holding %d", m->rank, f->held[f->n_held - 1]);
    }
    sched_point("lock");
    take(m);
}

void gr_mutex_unlock(gr_mutex *m) {
    sched_note("unlock", INT32_MIN);
    give(m);
    step();
}

bool sched_holds_lock(void) {
    return fibers[current].n_held > 0;
}

void sched_on_unlock(int rank, void (*new_hook)(void)) {
    hook_rank = rank;
    hook = new_hook;
}

void sched_fail_thread(int n) {
    thread_to_fail = n;
}

/* ---- conditions ------------------------------------------------------------------------------------------- */

static void check_condition(const gr_cond *c) {
    if (((const sim_cond *)(const void *)&c->c)->magic != CONDITION) {
        sched_fail("a condition is used that was finished or never made");
    }
}

void gr_cond_init(gr_cond *c) {
    ((sim_cond *)(void *)&c->c)->magic = CONDITION;
}

void gr_cond_finish(gr_cond *c) {
    check_condition(c);
    for (int i = 0; i < n_fibers; i++) {
        if (fibers[i].state == ON_COND && fibers[i].object == c) {
            sched_fail("a condition is finished while a thread waits for it");
        }
    }
    ((sim_cond *)(void *)&c->c)->magic = FINISHED;
}

static void wait_on(gr_cond *c, gr_mutex *m, int64_t deadline_us) {
    check_condition(c);
    give(m);
    fiber *f = &fibers[current];
    f->state = ON_COND;
    f->object = c;
    f->wake_at = deadline_us;
    f->timed_out = false;
    step();
    bool timed_out = f->timed_out; /* take() may wait as well */
    take(m);
    f->timed_out = timed_out;
}

void gr_cond_wait(gr_cond *c, gr_mutex *m) {
    sched_note("wait", INT32_MIN);
    wait_on(c, m, 0);
}

bool gr_cond_wait_until(gr_cond *c, gr_mutex *m, int64_t deadline_us) {
    sched_note("wait until", (int)(deadline_us - START_US));
    wait_on(c, m, deadline_us > 0 ? deadline_us : 1);
    return !fibers[current].timed_out;
}

void gr_cond_signal(gr_cond *c) {
    int waiting[MAX_FIBERS], n = 0;
    check_condition(c);
    for (int i = 0; i < n_fibers; i++) {
        if (fibers[i].state == ON_COND && fibers[i].object == c) {
            waiting[n++] = i;
        }
    }
    if (n > 0) {
        int lucky = waiting[sched_draw((uint64_t)n)];
        sched_note("signals thread", lucky);
        wake(&fibers[lucky], false);
    } else {
        sched_note("signals nobody", INT32_MIN);
    }
    step();
}

void gr_cond_broadcast(gr_cond *c) {
    check_condition(c);
    for (int i = 0; i < n_fibers; i++) {
        if (fibers[i].state == ON_COND && fibers[i].object == c) {
            wake(&fibers[i], false);
        }
    }
    sched_point("broadcast");
}

/* ---- time ------------------------------------------------------------------------------------------------- */

int64_t gr_now_us(void) {
    step();
    return now;
}

void gr_sleep_us(int64_t us) {
    sched_note("sleeps", (int)us);
    fibers[current].state = ASLEEP;
    fibers[current].wake_at = now + (us > 0 ? us : 1);
    step();
}

/* ---- one schedule ----------------------------------------------------------------------------------------- */

void sched_trace(bool on) {
    tracing = on;
}

bool sched_run(const char *name, uint64_t with_seed, void (*main)(void)) {
    catch_crashes();
    if (failed) { /* stacks that were left in the middle */
        for (int i = 0; i < MAX_FIBERS; i++) {
            if (fibers[i].stack) {
                prepare_fiber(&fibers[i]);
            }
        }
    }
    scenario = name;
    seed = rng = with_seed;
    failed = false;
    steps = n_events = 0;
    now = START_US;
    hook = NULL;
    thread_to_fail = 0;
    main_inside = main;
    n_fibers = 0;
    lowest = 0;
    uint64_t mode = sched_draw(4);
    priorities = mode == 3;
    stay = mode == 2 ? 6 : mode == 1 ? 3 : 0;
    for (int i = 0; i < CHANGES; i++) { /* short and long runs alike */
        changes[i] = sched_draw(UINT64_C(1) << (3 + sched_draw(8)));
    }
    current = HOST;
    go(new_fiber(NULL, NULL));
    return !failed;
}
