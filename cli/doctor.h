/* What graft doctor's checks share (doctor_*.c, cmd_doctor.c). */
#ifndef GRAFT_DOCTOR_H
#define GRAFT_DOCTOR_H

#include "cli.h"

typedef enum doctor_state { DOCTOR_OK, DOCTOR_WARN, DOCTOR_FAIL } doctor_state;

typedef struct doctor {
    cli_settings set;
    graft_error bad_settings;
    bool quick;
    json_t *checks; /* {"name","state","text","fix"}; printed as they come, unless --json */
    size_t n[3];    /* by state */
} doctor;

/* Adds a check. `fix` is what to do about it, NULL for those that are well. */
void doctor_say(doctor *d, doctor_state state, const char *name, const char *fix, const char *format, ...) GR_PRINTF(5, 6);

/* ---- doctor_machine.c --------------------------------------------------------------------------------- */

void doctor_machine(doctor *d);
/* Bytes that this process may have, by cgroup and machine; 0 = unknown. */
uint64_t doctor_memory(void);
/* Bytes free where `path` lies. */
void doctor_disk(doctor *d, const char *folder);

/* ---- doctor_files.c ----------------------------------------------------------------------------------- */

void doctor_model(doctor *d);
void doctor_registry(doctor *d);
void doctor_key(doctor *d);

/* ---- doctor_tls.c ------------------------------------------------------------------------------------- */

/* Says nothing where no TLS is set. */
void doctor_tls(doctor *d);

/* ---- doctor_server.c ---------------------------------------------------------------------------------- */

void doctor_server(doctor *d);

#endif
