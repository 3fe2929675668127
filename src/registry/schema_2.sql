-- From version 1 to 2: keys that a server asks for. Their secrets are nowhere, only what they hash to.

CREATE TABLE keys (
    id       INTEGER PRIMARY KEY,
    name     TEXT    NOT NULL UNIQUE CHECK (length(name) BETWEEN 1 AND 128),
    hash     TEXT    NOT NULL UNIQUE CHECK (length(hash) = 64), -- SHA-256 of the secret's text, in hex
    admin    INTEGER NOT NULL CHECK (admin IN (0, 1)),
    projects TEXT    NOT NULL, -- sorted names with a space between, of projects that there may not be; '' = admin
    created  INTEGER NOT NULL,
    CHECK (admin = (projects = '')) -- said twice, so that a lost list of projects does not make an administrator
) STRICT;
