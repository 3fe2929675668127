/* Registering adapters, singly or many in one transaction: what scan.c and put.c share. */
#ifndef GR_PUT_H
#define GR_PUT_H

#include "registry/examine.h"
#include "registry/state.h"

/* Beside GRAFT_ADD_…: */
#define GR_PUT_RELOAD 256u /* the name must be there already; its path is examined again */
#define GR_PUT_SCAN 512u   /* the same path again is fine, and only sets its state */

typedef enum gr_put_outcome { GR_PUT_ADDED, GR_PUT_UPDATED, GR_PUT_SAME } gr_put_outcome;

typedef struct gr_put {
    const char *project, *adapter; /* checked names */
    unsigned flags;
    gr_examined found;      /* the files; taken from as needed */
    graft_error broken;     /* SCAN: code 0, or why they cannot be loaded: registered as failed */
    /* What came of it: */
    graft_error refused;    /* code 0, or why this one was not registered (CONFLICT, NOT_FOUND) */
    gr_put_outcome outcome;
    bool changed;           /* another generation than before */
    bool moved;             /* another path than before */
    /* Between preparing and applying: */
    gr_project *new_project;
    gr_row *new_row, *row;
    char *error;
} gr_put;

/* All or none of those that are not refused. No two may be of one project: each is decided by what is there already. */
int gr_put_all(graft_registry *r, gr_put *puts, size_t n, graft_error *err);

#endif
