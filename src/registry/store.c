#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* realpath, O_CLOEXEC, O_DIRECTORY */
#endif
#include "store.h"

#include "base/file.h"
#include "base/memory.h"
#include "registry_schema.h" /* made from schema.sql by CMake */

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>


/* What each version's tables are made of: step i leads from version i to i + 1. */
static const char *const migrations[GR_STORE_VERSION] = {gr_schema_sql, gr_schema_2_sql, gr_schema_3_sql};

/* ---- errors --------------------------------------------------------------------------------------------- */

static int code_of(int sqlite) {
    if (sqlite == SQLITE_IOERR_NOMEM) {
        return GRAFT_E_OUT_OF_MEMORY;
    }
    switch (sqlite & 0xff) {
    case SQLITE_NOMEM: return GRAFT_E_OUT_OF_MEMORY;
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
    case SQLITE_PROTOCOL: return GRAFT_E_REGISTRY_BUSY;
    case SQLITE_CORRUPT:
    case SQLITE_NOTADB:
    case SQLITE_SCHEMA:
    case SQLITE_FORMAT: return GRAFT_E_REGISTRY_INVALID;
    case SQLITE_FULL:
    case SQLITE_IOERR:
    case SQLITE_READONLY:
    case SQLITE_CANTOPEN:
    case SQLITE_PERM: return GRAFT_E_STORAGE_FULL;
    }
    return GRAFT_E_INTERNAL;
}

static const char *quoted_path(const gr_store *s, char q[GR_QUOTE_SIZE]) {
    /* The file's name says more than the first 64 bytes of a long path. */
    size_t n = strlen(s->path);
    return gr_quote(q, n > 64 ? s->path + n - 64 : s->path, n > 64 ? 64 : n);
}

/* The last failure on this connection. */
static int failed(const gr_store *s, graft_error *err) {
    char q[GR_QUOTE_SIZE];
    int sqlite = s->db ? sqlite3_extended_errcode(s->db) : SQLITE_NOMEM;
    int code = code_of(sqlite);
    if (code == GRAFT_E_REGISTRY_BUSY) {
        return gr_fail(err, code, "registry %s: another program has it locked", quoted_path(s, q));
    }
    return gr_fail(err, code, "registry %s: %s%s (SQLite %d)", quoted_path(s, q),
                   code == GRAFT_E_STORAGE_FULL ? "could not be written: "
                   : code == GRAFT_E_REGISTRY_INVALID ? "is damaged: "
                   : "",
                   s->db ? sqlite3_errmsg(s->db) : "out of memory", sqlite);
}

static int invalid(gr_store *s, graft_error *err, const char *why) {
    char q[GR_QUOTE_SIZE];
    return gr_fail(err, GRAFT_E_REGISTRY_INVALID, "registry %s: %s; nothing was changed", quoted_path(s, q), why);
}

/* The same where a backup would not mend it. */
static int not_ours(gr_store *s, graft_error *err, const char *why) {
    s->not_ours = true;
    return invalid(s, err, why);
}

/* ---- statements ----------------------------------------------------------------------------------------- */

static int bind_all(sqlite3_stmt *statement, const char *types, va_list args) {
    int rc = SQLITE_OK;
    for (int i = 0; types[i] && rc == SQLITE_OK; i++) {
        switch (types[i]) {
        case 'i': rc = sqlite3_bind_int64(statement, i + 1, va_arg(args, int64_t)); break;
        case 'd': rc = sqlite3_bind_double(statement, i + 1, va_arg(args, double)); break;
        default: rc = sqlite3_bind_text(statement, i + 1, va_arg(args, const char *), -1, SQLITE_TRANSIENT); break;
        }
    }
    return rc;
}

static int query(gr_store *s, sqlite3_stmt **out, graft_error *err, const char *sql, const char *types, va_list args) {
    sqlite3_stmt *statement = NULL;
    if (sqlite3_prepare_v2(s->db, sql, -1, &statement, NULL) != SQLITE_OK ||
        bind_all(statement, types, args) != SQLITE_OK) {
        int rc = failed(s, err);
        sqlite3_finalize(statement);
        return rc;
    }
    *out = statement;
    return 0;
}

int gr_store_query(gr_store *s, sqlite3_stmt **out, graft_error *err, const char *sql, const char *types, ...) {
    va_list args;
    va_start(args, types);
    int rc = query(s, out, err, sql, types, args);
    va_end(args);
    return rc;
}

int gr_store_step(gr_store *s, sqlite3_stmt *statement, graft_error *err) {
    int rc = sqlite3_step(statement);
    return rc == SQLITE_ROW ? 1 : rc == SQLITE_DONE ? 0 : failed(s, err);
}

int gr_store_run(gr_store *s, graft_error *err, const char *sql, const char *types, ...) {
    sqlite3_stmt *statement;
    va_list args;
    va_start(args, types);
    int rc = query(s, &statement, err, sql, types, args);
    va_end(args);
    if (rc) {
        return rc;
    }
    while ((rc = gr_store_step(s, statement, err)) > 0) {
    }
    sqlite3_finalize(statement);
    return rc;
}

const char *gr_store_text(sqlite3_stmt *statement, int column) {
    const unsigned char *text = sqlite3_column_text(statement, column);
    return text ? (const char *)text : "";
}

int gr_store_number(gr_store *s, int64_t *out, const char *sql, graft_error *err) {
    sqlite3_stmt *statement;
    int rc = gr_store_query(s, &statement, err, sql, "");
    if (rc) {
        return rc;
    }
    rc = gr_store_step(s, statement, err);
    if (rc > 0) {
        *out = sqlite3_column_int64(statement, 0);
        rc = 0;
    }
    sqlite3_finalize(statement);
    return rc;
}

/* Several statements without parameters. */
static int script(gr_store *s, const char *sql, graft_error *err) {
    return sqlite3_exec(s->db, sql, NULL, NULL, NULL) == SQLITE_OK ? 0 : failed(s, err);
}

/* ---- transactions --------------------------------------------------------------------------------------- */

/* Writing to a file that nobody will find again would acknowledge what is lost; and SQLite, when it closes such a file,
 * would clear away the log of the one that took its place. */
int gr_store_still_there(gr_store *s, graft_error *err) {
    struct stat st;
    char q[GR_QUOTE_SIZE];
    if (!s->replaced && stat(s->path, &st) == 0 && (uint64_t)st.st_dev == s->device && (uint64_t)st.st_ino == s->inode) {
        return 0;
    }
    s->replaced = true;
    return gr_fail(err, GRAFT_E_REGISTRY_BUSY,
                   "registry %s: the file was deleted or replaced while it was open; put it back or restart to go on with "
                   "what is there",
                   quoted_path(s, q));
}

int gr_store_begin(gr_store *s, graft_error *err) {
    int rc = gr_store_still_there(s, err);
    return rc ? rc : script(s, "BEGIN IMMEDIATE", err);
}

int gr_store_commit(gr_store *s, graft_error *err) {
    int rc = gr_store_still_there(s, err);
    if (!rc) {
        rc = script(s, "COMMIT", err);
    }
    if (rc) {
        gr_store_rollback(s);
    } else {
        s->commits++;
    }
    return rc;
}

void gr_store_rollback(gr_store *s) {
    if (!sqlite3_get_autocommit(s->db)) { /* some failures roll back by themselves */
        sqlite3_exec(s->db, "ROLLBACK", NULL, NULL, NULL);
    }
}

/* ---- files ---------------------------------------------------------------------------------------------- */

int gr_store_resolve(char **out, const char *path, graft_error *err) {
    char q[GR_QUOTE_SIZE];
    char folder[PATH_MAX], real[PATH_MAX];
    const char *slash = strrchr(path, '/');
    const char *name = slash ? slash + 1 : path;
    if (strlen(path) >= sizeof folder - GR_STORE_SUFFIX || !*name) {
        return gr_fail(err, GRAFT_E_BAD_REQUEST, "registry %s: not a path of a file", gr_quote(q, path, strlen(path)));
    }
    if (realpath(path, real)) {
        *out = gr_strdup(real);
        return *out ? 0 : gr_fail_memory(err, strlen(real) + 1);
    }
    snprintf(folder, sizeof folder, "%.*s", slash ? (int)(slash - path) + 1 : 1, slash ? path : ".");
    if (!realpath(folder, real)) {
        int code = errno == ENOENT || errno == ENOTDIR ? GRAFT_E_NOT_FOUND : GRAFT_E_NOT_READABLE;
        return gr_fail(err, code, "registry %s: its folder: %s", gr_quote(q, path, strlen(path)), strerror(errno));
    }
    size_t room = strlen(real) + strlen(name) + 2;
    char *full = gr_alloc(room);
    if (!full) {
        return gr_fail_memory(err, room);
    }
    snprintf(full, room, "%s%s%s", real, strcmp(real, "/") == 0 ? "" : "/", name);
    *out = full;
    return 0;
}

const char *gr_store_beside(char *out, const char *path, const char *suffix) {
    snprintf(out, PATH_MAX, "%.*s%s", PATH_MAX - GR_STORE_SUFFIX, path, suffix);
    return out;
}

/* What is no SQLite file at all, found out without SQLite, which would take an empty file for an empty registry. */
static int check_bytes(gr_store *s, graft_error *err) {
    static const char magic[16] = "SQLite format 3";
    graft_error why;
    gr_file f;
    char first[sizeof magic];
    int rc = gr_file_open(&f, AT_FDCWD, s->path, &why);
    if (rc == GRAFT_E_NOT_REGULAR_FILE) {
        return not_ours(s, err, "is no regular file");
    }
    if (rc) {
        return gr_fail(err, rc, "registry %.400s", why.message);
    }
    if (f.size < sizeof first) {
        rc = invalid(s, err, f.size ? "is cut short" : "is empty, which no registry ever is");
    } else if ((rc = gr_file_read(&f, first, sizeof first, 0, err)) == 0 && memcmp(first, magic, sizeof magic) != 0) {
        rc = invalid(s, err, "is no registry");
    }
    s->device = f.device;
    s->inode = f.inode;
    gr_file_close(&f);
    return rc;
}

static int fail_making(const gr_store *s, graft_error *err) {
    char q[GR_QUOTE_SIZE];
    return gr_fail(err, GRAFT_E_STORAGE_FULL, "registry %s: cannot be made: %s", quoted_path(s, q), strerror(errno));
}

void gr_store_sync_folder(const char *path) {
    char folder[PATH_MAX];
    snprintf(folder, sizeof folder, "%.*s", (int)(strrchr(path, '/') - path) + 1, path);
    int fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd >= 0) {
        fsync(fd);
        close(fd);
    }
}

static int sync_file(const gr_store *s, const char *path, graft_error *err) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    int rc = fd >= 0 && fsync(fd) == 0 ? 0 : fail_making(s, err);
    if (fd >= 0) {
        close(fd);
    }
    return rc;
}

/* ---- connections ---------------------------------------------------------------------------------------- */

/* Whether closing leaves the file and its log as they are, instead of merging them: until we know what we opened, and
 * again when it is no longer the file that lies there. */
static void keep_as_it_is(gr_store *s, bool on) {
    sqlite3_db_config(s->db, SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, on ? 1 : 0, NULL);
}

static int connect(gr_store *s, const char *path, int flags, int wait_ms, graft_error *err) {
    /* One thread at a time uses it, so SQLite need not lock. */
    if (sqlite3_open_v2(path, &s->db, flags | SQLITE_OPEN_NOMUTEX, NULL) != SQLITE_OK) {
        int rc = failed(s, err);
        sqlite3_close(s->db);
        s->db = NULL;
        return rc;
    }
    sqlite3_extended_result_codes(s->db, 1);
    sqlite3_busy_timeout(s->db, wait_ms);
    /* The file may come from anybody: it shall not make SQLite do more than store. Never mapped, for a file cut short
     * by somebody else must not kill us. */
    sqlite3_db_config(s->db, SQLITE_DBCONFIG_DEFENSIVE, 1, NULL);
    keep_as_it_is(s, true);
    return script(s,
                  "PRAGMA trusted_schema=OFF; PRAGMA cell_size_check=ON; PRAGMA mmap_size=0; PRAGMA foreign_keys=ON;"
                  "PRAGMA synchronous=FULL; PRAGMA fullfsync=ON; PRAGMA checkpoint_fullfsync=ON; PRAGMA cache_size=-512",
                  err);
}

/* From s->version to today's, each step with its number in one transaction. */
static int migrate(gr_store *s, graft_error *err) {
    int rc = 0;
    while (s->version < GR_STORE_VERSION && !rc) {
        char numbers[96];
        snprintf(numbers, sizeof numbers, "PRAGMA application_id=%d; PRAGMA user_version=%d", GR_STORE_APPLICATION,
                 s->version + 1);
        rc = script(s, "BEGIN IMMEDIATE", err);
        rc = rc ? rc : script(s, migrations[s->version], err);
        rc = rc ? rc : script(s, numbers, err);
        rc = rc ? rc : script(s, "COMMIT", err);
        if (rc) {
            gr_store_rollback(s);
        } else {
            s->version++;
        }
    }
    return rc;
}

static void remove_unfinished(const gr_store *s) {
    static const char *const suffixes[] = {".new", ".new-journal", ".new-wal", ".new-shm", GR_STORE_BACKUP "-new",
                                           GR_STORE_BACKUP "-new-journal"};
    char path[PATH_MAX];
    for (size_t i = 0; i < sizeof suffixes / sizeof *suffixes; i++) {
        unlink(gr_store_beside(path, s->path, suffixes[i]));
    }
}

static int make_empty(gr_store *s, const char *path, graft_error *err) {
    int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0) {
        return fail_making(s, err);
    }
    close(fd);
    return 0;
}

int gr_store_copy(gr_store *s, const char *path, bool wal, graft_error *err) {
    unlink(path);
    int rc = make_empty(s, path, err);
    rc = rc ? rc : gr_store_run(s, err, "VACUUM INTO ?1", "s", path);
    if (!rc && wal) { /* a connection of its own: the copy must be at rest when it is renamed */
        gr_store copy = {.path = s->path};
        rc = connect(&copy, path, SQLITE_OPEN_READWRITE, 0, err);
        rc = rc ? rc : script(&copy, "PRAGMA journal_mode=WAL", err);
        if (copy.db) {
            keep_as_it_is(&copy, false);
            sqlite3_close(copy.db);
        }
    }
    rc = rc ? rc : sync_file(s, path, err);
    if (rc) {
        unlink(path);
    }
    return rc;
}

/* A whole, empty registry at PATH.new. */
static int make_new(gr_store *s, const char *path, graft_error *err) {
    int rc = make_empty(s, path, err);
    if (rc) {
        return rc;
    }
    rc = connect(s, path, SQLITE_OPEN_READWRITE, 0, err);
    if (rc) {
        return rc;
    }
    keep_as_it_is(s, false);
    rc = migrate(s, err);
    /* Kept in the file. Where it is not possible SQLite stays with its rollback journal, which is as safe. */
    rc = rc ? rc : script(s, "PRAGMA journal_mode=WAL", err);
    if (sqlite3_close(s->db) != SQLITE_OK && !rc) {
        rc = failed(s, err);
    }
    s->db = NULL;
    return rc ? rc : sync_file(s, path, err);
}

/* A registry that is gone is no empty one. */
static int check_gone(gr_store *s, graft_error *err) {
    char path[PATH_MAX];
    struct stat st;
    if (stat(gr_store_beside(path, s->path, "-wal"), &st) == 0 && st.st_size > 0) {
        /* SQLite would pour it into the new file. */
        return invalid(s, err, "is gone, but its write-ahead log (-wal) is still there");
    }
    return lstat(gr_store_beside(path, s->path, GR_STORE_BACKUP), &st) == 0
               ? invalid(s, err, "is gone, but its backup is still there")
               : 0;
}

static int create(gr_store *s, graft_error *err) {
    char path[PATH_MAX];
    gr_store_beside(path, s->path, ".new");
    int rc = make_new(s, path, err);
    if (!rc && rename(path, s->path) != 0) {
        rc = fail_making(s, err);
    }
    if (rc) {
        remove_unfinished(s);
        return rc;
    }
    gr_store_sync_folder(s->path);
    return 0;
}

static int check_version(gr_store *s, graft_error *err) {
    int64_t application = 0, version = 0;
    int rc = gr_store_number(s, &application, "PRAGMA application_id", err);
    rc = rc ? rc : gr_store_number(s, &version, "PRAGMA user_version", err);
    if (rc) {
        return rc;
    }
    if (application != GR_STORE_APPLICATION) {
        return invalid(s, err, "is an SQLite file of some other program");
    }
    if (version < 1 || version > GR_STORE_VERSION) {
        char why[96];
        snprintf(why, sizeof why, "is of version %lld, this graft knows up to %d", (long long)version, GR_STORE_VERSION);
        return (version < 1 ? invalid : not_ours)(s, err, why);
    }
    s->version = (int)version;
    return 0;
}

static int check_whole(gr_store *s, graft_error *err) {
    sqlite3_stmt *statement;
    int rc = gr_store_query(s, &statement, err, "PRAGMA quick_check(1)", "");
    if (rc) {
        return rc;
    }
    rc = gr_store_step(s, statement, err);
    if (rc > 0) {
        const char *says = gr_store_text(statement, 0);
        char q[GR_QUOTE_SIZE], why[120]; /* short: what to do about it must still fit behind it */
        snprintf(why, sizeof why, "is damaged: %s", gr_quote(q, says, strlen(says)));
        rc = strcmp(says, "ok") == 0 ? 0 : invalid(s, err, why);
    }
    sqlite3_finalize(statement);
    return rc;
}

/* Read-only on a medium where SQLite cannot make the files that its readers share. Without a log nothing can be
 * missed by doing without them. `why` is what opening in the usual way failed with. */
static int connect_immutable(gr_store *s, int why, graft_error *err) {
    char path[PATH_MAX], uri[3 * PATH_MAX + 32];
    struct stat st;
    if (stat(gr_store_beside(path, s->path, "-wal"), &st) == 0) {
        return why;
    }
    size_t o = (size_t)snprintf(uri, sizeof uri, "file:");
    for (const char *c = s->path; *c; c++) {
        o += (size_t)snprintf(uri + o, sizeof uri - o, strchr("%?#", *c) ? "%%%02x" : "%c", (unsigned char)*c);
    }
    snprintf(uri + o, sizeof uri - o, "?immutable=1");
    sqlite3_close(s->db);
    s->db = NULL;
    int rc = connect(s, uri, SQLITE_OPEN_READONLY | SQLITE_OPEN_URI, 0, err);
    return rc ? rc : check_version(s, err);
}

static int connect_and_check(gr_store *s, bool read_only, int wait_ms, graft_error *err) {
    int rc = connect(s, s->path, read_only ? SQLITE_OPEN_READONLY : SQLITE_OPEN_READWRITE, wait_ms, err);
    rc = rc ? rc : check_version(s, err);
    return rc == GRAFT_E_STORAGE_FULL && read_only ? connect_immutable(s, rc, err) : rc;
}

static int open_existing(gr_store *s, bool read_only, int wait_ms, graft_error *err) {
    int rc = check_bytes(s, err);
    rc = rc ? rc : connect_and_check(s, read_only, wait_ms, err);
    rc = rc ? rc : check_whole(s, err);
    rc = rc || read_only ? rc : migrate(s, err);
    if (!rc && !read_only) {
        keep_as_it_is(s, false);
    }
    return rc;
}

int gr_store_open(gr_store *s, char *path, bool read_only, int wait_ms, graft_error *err) {
    char q[GR_QUOTE_SIZE];
    struct stat st;
    *s = (gr_store){.path = path};
    int rc = 0;
    if (!read_only) {
        remove_unfinished(s);
    }
    if (lstat(path, &st) != 0 && errno == ENOENT) {
        rc = check_gone(s, err);
        rc = rc          ? rc
             : read_only ? gr_fail(err, GRAFT_E_NOT_FOUND, "registry %s: there is none yet", quoted_path(s, q))
                         : create(s, err);
    }
    rc = rc ? rc : open_existing(s, read_only, wait_ms, err);
    if (rc) {
        gr_store_close(s);
    }
    return rc;
}

void gr_store_close(gr_store *s) {
    if (s->db && s->replaced) {
        keep_as_it_is(s, true);
    }
    sqlite3_close(s->db);
    s->db = NULL;
    gr_free(s->path);
    s->path = NULL;
}
