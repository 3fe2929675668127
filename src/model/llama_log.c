/* The one callback that libllama's log goes to, and who gets its lines. */
#include "llama_log.h"

#include "base/thread.h"

#include <llama.h>
#include <string.h>

/*
 * `target` is copied under the mutex and called without it: the callback is the application's and may log or
 * take locks. `calls` counts callers that hold such a copy, so that release can wait for them.
 */
static gr_mutex mutex;
static gr_cond idle;
static gr_log target;
static const void *target_owner;
static int calls;

/* libllama sends lines in pieces ("....\n"); each thread puts its own together. */
static _Thread_local char line[512];
static _Thread_local size_t line_length;
static _Thread_local enum ggml_log_level line_level;
static _Thread_local char first_error[256];

static graft_log_level our_level(enum ggml_log_level level) {
    switch (level) {
    case GGML_LOG_LEVEL_ERROR: return GRAFT_LOG_ERROR;
    case GGML_LOG_LEVEL_WARN: return GRAFT_LOG_WARN;
    default: return GRAFT_LOG_DEBUG;
    }
}

static void forward(graft_log_level level, const char *text) {
    gr_mutex_lock(&mutex);
    gr_log log = target;
    calls++;
    gr_mutex_unlock(&mutex);
    gr_log_line(&log, level, "libllama: %s", text);
    gr_mutex_lock(&mutex);
    if (--calls == 0) {
        gr_cond_broadcast(&idle);
    }
    gr_mutex_unlock(&mutex);
}

static void end_line(void) {
    line[line_length] = '\0';
    if (line_length > 0) {
        if (line_level == GGML_LOG_LEVEL_ERROR && !first_error[0]) {
            memcpy(first_error, line, line_length < sizeof first_error ? line_length + 1 : sizeof first_error);
            first_error[sizeof first_error - 1] = '\0';
        }
        forward(our_level(line_level), line);
    }
    line_length = 0;
}

static void on_log(enum ggml_log_level level, const char *text, void *user) {
    (void)user;
    if (level != GGML_LOG_LEVEL_CONT) {
        end_line(); /* a line that never got its newline */
        line_level = level;
    }
    for (; *text; text++) {
        if (*text == '\n') {
            end_line();
        } else if (line_length + 1 < sizeof line) {
            /* Lines quote the model's metadata, which may hold terminal escapes. */
            unsigned char c = (unsigned char)*text;
            line[line_length++] = c < 0x20 || c == 0x7f ? '?' : *text;
        }
    }
}

static void init(void) {
    gr_mutex_init(&mutex, GR_RANK_LOG);
    gr_cond_init(&idle);
    llama_log_set(on_log, NULL);
    llama_backend_init();
}

void gr_llama_init(void) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, init);
}

void gr_llama_log_claim(const void *owner, const gr_log *log) {
    gr_mutex_lock(&mutex);
    target = log ? *log : (gr_log){NULL, NULL};
    target_owner = owner;
    gr_mutex_unlock(&mutex);
}

void gr_llama_log_release(const void *owner) {
    gr_mutex_lock(&mutex);
    if (target_owner == owner) {
        target = (gr_log){NULL, NULL};
        target_owner = NULL;
    }
    /* Also when another model took over in the meantime: a copy of our target may still be under way. */
    while (calls > 0) {
        gr_cond_wait(&idle, &mutex);
    }
    gr_mutex_unlock(&mutex);
}

void gr_llama_log_reset(void) {
    first_error[0] = '\0';
    line_length = 0;
}

const char *gr_llama_log_error(void) {
    return first_error;
}
