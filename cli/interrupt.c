/*
 * Ctrl-C. A signal handler may not call the library, so one thread waits for SIGINT and SIGTERM, which every
 * other thread has blocked, and cancels the jobs that main is waiting for. A second signal ends the process
 * at once: nobody should have to wait for a hung disk.
 */
#include "cli.h"

#include "base/thread.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <unistd.h>

static atomic_bool interrupted;

/* Held while jobs are cancelled, so that main cannot free them meanwhile. Ranked below the library's own. */
static gr_mutex watch_lock;
static graft_job *const *watched;
static size_t n_watched;

static sigset_t wanted;

static void cancel_watched(void) {
    gr_mutex_lock(&watch_lock);
    for (size_t i = 0; i < n_watched; i++) {
        graft_job_cancel(watched[i]);
    }
    gr_mutex_unlock(&watch_lock);
}

static void *wait_for_signals(void *unused) {
    int signal_number;
    (void)unused;
    while (sigwait(&wanted, &signal_number) == 0) {
        if (atomic_exchange(&interrupted, true)) {
            _exit(CLI_INTERRUPTED);
        }
        cancel_watched();
    }
    return NULL;
}

/* A signal that is ignored, as in a background job of a script, stays ignored. */
static void want(int signal_number) {
    struct sigaction now;
    if (sigaction(signal_number, NULL, &now) == 0 && now.sa_handler != SIG_IGN) {
        sigaddset(&wanted, signal_number);
    }
}

void cli_interrupt_start(void) {
    pthread_t thread;
    sigemptyset(&wanted);
    want(SIGINT);
    want(SIGTERM);
    gr_mutex_init(&watch_lock, GR_RANK_ENGINE_QUEUE - 1);
    pthread_sigmask(SIG_BLOCK, &wanted, NULL);
    if (gr_thread_start(&thread, wait_for_signals, NULL) != 0) {
        pthread_sigmask(SIG_UNBLOCK, &wanted, NULL); /* then a signal simply ends the process */
        return;
    }
    pthread_detach(thread);
}

bool cli_interrupted(void) {
    return atomic_load(&interrupted);
}

void cli_interrupt_watch(graft_job *const *jobs, size_t n) {
    gr_mutex_lock(&watch_lock);
    watched = jobs;
    n_watched = n;
    gr_mutex_unlock(&watch_lock);
    if (cli_interrupted()) {
        cancel_watched();
    }
}

/* ---- for who reads ------------------------------------------------------------------------------------ */

static int ends[2] = {-1, -1};

/* Only write() may be called here. A full pipe is as good as one byte more. */
static void leave_a_byte(int signal_number) {
    int saved = errno;
    ssize_t unused = write(ends[1], "", 1);
    (void)unused;
    (void)signal_number;
    errno = saved;
}

int cli_interrupt_fd(void) {
    /* poll returns all the same; a write to the terminal must not fail because somebody pressed a key. */
    struct sigaction act = {.sa_handler = leave_a_byte, .sa_flags = SA_RESTART};
    if (ends[0] >= 0 || pipe(ends) != 0) {
        return ends[0];
    }
    for (int i = 0; i < 2; i++) {
        fcntl(ends[i], F_SETFL, O_NONBLOCK);
        fcntl(ends[i], F_SETFD, FD_CLOEXEC);
    }
    sigemptyset(&act.sa_mask);
    sigaction(SIGINT, &act, NULL);
    return ends[0];
}

bool cli_interrupt_taken(void) {
    char bytes[64];
    bool any = false;
    while (ends[0] >= 0 && read(ends[0], bytes, sizeof bytes) > 0) {
        any = true;
    }
    return any;
}
