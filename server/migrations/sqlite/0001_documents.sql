CREATE TABLE collections (
    id            INTEGER PRIMARY KEY AUTOINCREMENT,
    name          TEXT    NOT NULL UNIQUE,
    schema        TEXT    NOT NULL,
    embedding     TEXT    NOT NULL,
    generation    INTEGER NOT NULL DEFAULT 0,
    documents     INTEGER NOT NULL DEFAULT 0,
    created_at_ms INTEGER NOT NULL
) STRICT;

-- AUTOINCREMENT: a key is never given twice, so an index that missed a deletion cannot mistake a
-- new document for the old one.
CREATE TABLE documents (
    key           INTEGER PRIMARY KEY AUTOINCREMENT,
    collection    INTEGER NOT NULL REFERENCES collections (id),
    id            TEXT    NOT NULL,
    body          TEXT    NOT NULL,
    text_hash     BLOB    NOT NULL,
    truncated     INTEGER NOT NULL,
    generation    INTEGER NOT NULL,
    updated_at_ms INTEGER NOT NULL,
    UNIQUE (collection, id)
) STRICT;
CREATE INDEX documents_by_generation ON documents (collection, generation);

-- Beside the documents, not inside: listing and fetching documents does not read vectors.
CREATE TABLE vectors (
    key    INTEGER PRIMARY KEY REFERENCES documents (key) ON DELETE CASCADE,
    vector BLOB NOT NULL
) STRICT;

CREATE TABLE deletions (
    collection INTEGER NOT NULL REFERENCES collections (id),
    generation INTEGER NOT NULL,
    key        INTEGER NOT NULL,
    PRIMARY KEY (collection, generation, key)
) STRICT, WITHOUT ROWID;

CREATE TABLE queries (
    collection   INTEGER NOT NULL REFERENCES collections (id),
    query        TEXT    NOT NULL,
    searches     INTEGER NOT NULL,
    hits         INTEGER NOT NULL,
    last_used_ms INTEGER NOT NULL,
    PRIMARY KEY (collection, query)
) STRICT, WITHOUT ROWID;
CREATE INDEX queries_by_searches ON queries (collection, searches DESC);

CREATE TABLE marks (
    name TEXT PRIMARY KEY
) STRICT, WITHOUT ROWID;
