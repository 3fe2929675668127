/* Errors as clients see them: a status, and OpenAI's error object. */
#ifndef SRV_ERRORS_H
#define SRV_ERRORS_H

#include "http.h"

typedef struct srv_fault {
    int status;       /* 0 = no fault */
    const char *code; /* stable name; static storage */
    char param[64];   /* the field that is wrong; "" = none */
    char message[512];
    int retry_after;  /* seconds; 0 = unsaid */
    bool no_retry;    /* trying again will not help, whatever the status makes a client think */
} srv_fault;

/* Fills *f and returns false, so that a check can end with it. `param` may be NULL. */
bool srv_fault_set(srv_fault *f, int status, const char *code, const char *param, const char *format, ...) GR_PRINTF(5, 6);
bool srv_fault_from(srv_fault *f, const graft_error *err);
bool srv_no_memory(srv_fault *f);
bool srv_shutting_down(srv_fault *f);

/* {"error":{"message","type","param","code"}}; below /api/, where Ollama's clients ask, {"error":"message"} */
void srv_fault_write(srv_writer *w, const srv_exchange *x, const srv_fault *f);
void srv_reply_fault(srv_exchange *x, const srv_fault *f);
/* The same in one call. */
void srv_reply_error(srv_exchange *x, int status, const char *code, const char *param, const char *format, ...) GR_PRINTF(5, 6);
void srv_reply_no_memory(srv_exchange *x);
void srv_reply_shutting_down(srv_exchange *x);

#endif
