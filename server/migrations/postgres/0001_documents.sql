-- Later migrations only add: servers of the version before work on while new ones start.
-- Names and identifiers sort by their bytes, as they do in SQLite.
-- No foreign keys: every statement that writes holds the lock of its collection's row.

CREATE TABLE collections (
    id                 bigserial PRIMARY KEY,
    name               text COLLATE "C" NOT NULL UNIQUE,
    schema             json NOT NULL,
    embedding          json NOT NULL,
    generation         bigint NOT NULL DEFAULT 0,
    visible_generation bigint NOT NULL DEFAULT 0,
    documents          bigint NOT NULL DEFAULT 0,
    created_at_ms      bigint NOT NULL
) WITH (fillfactor = 50);

-- json, not jsonb: a number comes back as it was written.
CREATE TABLE documents (
    key           bigserial PRIMARY KEY,
    collection    bigint NOT NULL,
    id            text COLLATE "C" NOT NULL,
    body          json NOT NULL,
    text_hash     bytea NOT NULL,
    truncated     boolean NOT NULL,
    generation    bigint NOT NULL,
    updated_at_ms bigint NOT NULL,
    UNIQUE (collection, id)
);
CREATE INDEX documents_by_generation ON documents (collection, generation);

-- A document without a row here has not been embedded since its text changed.
CREATE TABLE vectors (
    key    bigint PRIMARY KEY,
    vector bytea NOT NULL
);
-- Random numbers do not compress.
ALTER TABLE vectors ALTER COLUMN vector SET STORAGE EXTERNAL;

CREATE TABLE deletions (
    collection bigint NOT NULL,
    generation bigint NOT NULL,
    key        bigint NOT NULL,
    PRIMARY KEY (collection, generation, key)
);

CREATE TABLE queries (
    collection   bigint NOT NULL,
    query        text COLLATE "C" NOT NULL,
    searches     bigint NOT NULL,
    hits         bigint NOT NULL,
    last_used_ms bigint NOT NULL,
    PRIMARY KEY (collection, query)
);
CREATE INDEX queries_by_searches ON queries (collection, searches DESC);

CREATE TABLE marks (
    name text PRIMARY KEY
);

-- One row for each document that the index does not have as it is.
CREATE TABLE outbox (
    collection       bigint NOT NULL,
    key              bigint NOT NULL,
    id               text COLLATE "C" NOT NULL,
    -- The document's generation, and that of the oldest change that is not indexed.
    version          bigint NOT NULL,
    first_generation bigint NOT NULL,
    deleted          boolean NOT NULL,
    bulk             boolean NOT NULL,
    attempts         integer NOT NULL DEFAULT 0,
    created_at       timestamptz NOT NULL DEFAULT now(),
    -- When it may be taken. While a worker has it: when its lease ends.
    due_at           timestamptz NOT NULL DEFAULT now(),
    claimed_by       text,
    claimed_version  bigint,
    -- Of the last failure.
    reason           text,
    set_aside_at     timestamptz,
    PRIMARY KEY (collection, key)
) WITH (
    fillfactor = 70,
    -- A queue: most of its rows are dead soon, and claims would step over them.
    autovacuum_vacuum_scale_factor = 0.01,
    autovacuum_vacuum_threshold = 1000
);
CREATE INDEX outbox_waiting ON outbox (collection, bulk, first_generation, key)
    WHERE set_aside_at IS NULL;
CREATE INDEX outbox_set_aside ON outbox (collection, id) WHERE set_aside_at IS NOT NULL;
