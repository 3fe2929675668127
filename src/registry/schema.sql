-- The registry's tables, version 1 (PRAGMA user_version). Later versions are further files (schema_2.sql, schema_3.sql), applied in order by store.c.
-- Times are seconds since 1970, UTC. Names compare by bytes, so `a` and `A` are two names.

CREATE TABLE projects (
    id      INTEGER PRIMARY KEY,
    name    TEXT    NOT NULL UNIQUE CHECK (length(name) BETWEEN 1 AND 128),
    created INTEGER NOT NULL,
    changed INTEGER NOT NULL
) STRICT;

CREATE TABLE adapters (
    id         INTEGER PRIMARY KEY,
    project    INTEGER NOT NULL REFERENCES projects (id) ON DELETE CASCADE,
    name       TEXT    NOT NULL CHECK (length(name) BETWEEN 1 AND 128),
    path       TEXT    NOT NULL CHECK (path <> ''),
    generation TEXT    NOT NULL CHECK (length(generation) IN (0, 64)), -- '' = not read yet
    format     TEXT    NOT NULL CHECK (format IN ('', 'peft', 'gguf')),
    rank       INTEGER NOT NULL,
    file_bytes INTEGER NOT NULL, -- of the weights file
    bytes      INTEGER NOT NULL, -- in memory, measured when last loaded; 0 = not known
    base       TEXT    NOT NULL, -- fingerprint of the base that it last loaded on, or ''
    state      TEXT    NOT NULL CHECK (state IN ('registered', 'ready', 'failed', 'missing', 'changed')),
    error_code INTEGER NOT NULL, -- graft_error_code of the last failure, or 0
    error      TEXT    NOT NULL,
    pinned     INTEGER NOT NULL CHECK (pinned IN (0, 1)),
    created    INTEGER NOT NULL,
    changed    INTEGER NOT NULL,
    UNIQUE (project, name)
) STRICT;

-- Counters of one adapter, all of them since it was registered.
CREATE TABLE usage (
    adapter     INTEGER PRIMARY KEY REFERENCES adapters (id) ON DELETE CASCADE,
    requests    INTEGER NOT NULL,
    tokens      INTEGER NOT NULL,
    loads       INTEGER NOT NULL,
    failures    INTEGER NOT NULL,
    evictions   INTEGER NOT NULL,
    unloads     INTEGER NOT NULL,
    fallbacks   INTEGER NOT NULL,
    load_ms     REAL    NOT NULL, -- of all loads together
    last_loaded INTEGER NOT NULL, -- 0 = never
    last_used   INTEGER NOT NULL
) STRICT;

-- What happened, the newest 10,000. By name and not by id: a removed adapter's past stays.
CREATE TABLE events (
    id         INTEGER PRIMARY KEY,
    at         INTEGER NOT NULL,
    project    TEXT    NOT NULL,
    adapter    TEXT    NOT NULL,
    kind       TEXT    NOT NULL,
    code       INTEGER NOT NULL,
    generation TEXT    NOT NULL,
    bytes      INTEGER NOT NULL,
    ms         REAL    NOT NULL,
    message    TEXT    NOT NULL
) STRICT;

CREATE INDEX events_by_name ON events (project, adapter);
