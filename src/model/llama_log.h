/*
 * libllama's log. It has one per process, so all open base models share it: the model that was opened last
 * gets the lines, until it closes. libllama's INFO is chatter and comes as DEBUG; WARN and ERROR stay.
 */
#ifndef GR_LLAMA_LOG_H
#define GR_LLAMA_LOG_H

#include "base/log.h"

/* Initialises libllama and takes its log over, once per process. From then on nothing goes to stderr. */
void gr_llama_init(void);

/* Lines go to a copy of *log (NULL: nowhere) on behalf of `owner`, any unique address. */
void gr_llama_log_claim(const void *owner, const gr_log *log);
/* If the log is still the owner's, lines go nowhere from now on. On return none is on its way to the owner's
 * callback any more. Must not be called from that callback. */
void gr_llama_log_release(const void *owner);

/* The first error line that this thread got since gr_llama_log_reset, or "". The first says what was wrong, later
 * ones only that something was. Valid until the thread's next call into libllama. */
void gr_llama_log_reset(void);
const char *gr_llama_log_error(void);

#endif
