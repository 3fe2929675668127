/*
 * The registry's file: SQLite, and everything that knows it. Opening refuses what is damaged, empty, foreign or newer,
 * and never writes to such a file. One thread at a time uses a store.
 *
 * WAL with synchronous=FULL: when a commit returns, it is on the disk. A new registry is made under another name and
 * renamed, so a file of this name is a whole registry from its first moment, and an empty one is always damage.
 * One of an older version is brought to today's when it is opened for writing; who only reads it sees it as it is.
 */
#ifndef GR_STORE_H
#define GR_STORE_H

#include "base/error.h"

#include <sqlite3.h>
#include <stdbool.h>
#include <stdint.h>

#define GR_STORE_VERSION 3
#define GR_STORE_KEYS 2 /* the first version that has the table `keys` */
#define GR_STORE_APPLICATION 0x47524654 /* "GRFT", PRAGMA application_id */

#define GR_STORE_BACKUP ".backup"
/* The file beside a registry's: its path and a suffix, in `out` [PATH_MAX], which is returned. */
const char *gr_store_beside(char *out, const char *path, const char *suffix);

#define GR_STORE_SUFFIX 40 /* room for what is put behind a registry's path: ".damaged-20260131T120000Z-9-wal" */

typedef struct gr_store {
    sqlite3 *db;
    char *path;              /* absolute, links resolved */
    uint64_t device, inode;  /* of the file that was opened */
    bool replaced;           /* another file lies there now: nothing is written any more */
    bool not_ours;           /* opening failed because of what no backup mends: a newer version, no file at all */
    int version;             /* of its tables: today's, or an older one if it was opened for reading */
    uint64_t commits;        /* transactions so far */
} gr_store;

/* The file's absolute path with links resolved; its folder must exist. *out: gr_free. Errors: NOT_FOUND (the folder),
 * NOT_READABLE, OUT_OF_MEMORY. */
int gr_store_resolve(char **out, const char *path, graft_error *err);

/*
 * Opens `path` (as resolved; taken over in any case), making it if `read_only` is false and there is none: the caller then holds
 * the lock. Errors: NOT_FOUND (read_only), NOT_READABLE, REGISTRY_INVALID, REGISTRY_BUSY, STORAGE_FULL, OUT_OF_MEMORY.
 * On failure *s is finished.
 */
int gr_store_open(gr_store *s, char *path, bool read_only, int wait_ms, graft_error *err);
void gr_store_close(gr_store *s);

/* BEGIN IMMEDIATE, after checking that the file is still the one that was opened. Errors: REGISTRY_BUSY, as below. */
int gr_store_begin(gr_store *s, graft_error *err);
/* Rolls back if it fails: then nothing was written. */
int gr_store_commit(gr_store *s, graft_error *err);
void gr_store_rollback(gr_store *s);

/* Whether the file is still the one that was opened. Errors: REGISTRY_BUSY. */
int gr_store_still_there(gr_store *s, graft_error *err);

/*
 * Writes all that is in the store to `path`, mode 0600, synced; what was there goes. With `wal` the copy is ready to be a
 * registry. Fails if anything cannot be read. Errors: as gr_store_run.
 */
int gr_store_copy(gr_store *s, const char *path, bool wal, graft_error *err);
/* A rename in the folder of `path` is only safe once the folder is on the disk too. Best effort: some file systems refuse. */
void gr_store_sync_folder(const char *path);

/*
 * Runs one statement without rows. `types` says what follows for its parameters: i int64_t, s const char *, d double.
 * Errors: STORAGE_FULL (could not be written), REGISTRY_BUSY, REGISTRY_INVALID (found damaged), OUT_OF_MEMORY, INTERNAL.
 */
int gr_store_run(gr_store *s, graft_error *err, const char *sql, const char *types, ...);
/* Prepares one with rows and binds as above; *out: sqlite3_finalize. */
int gr_store_query(gr_store *s, sqlite3_stmt **out, graft_error *err, const char *sql, const char *types, ...);
/* Steps: 1 = a row, 0 = no more, negative = a code. */
int gr_store_step(gr_store *s, sqlite3_stmt *statement, graft_error *err);
/* The one number that a query gives. */
int gr_store_number(gr_store *s, int64_t *out, const char *sql, graft_error *err);
/* A column as text, never NULL; valid until the next step. */
const char *gr_store_text(sqlite3_stmt *statement, int column);

#endif
