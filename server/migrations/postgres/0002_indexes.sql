-- A collection can have several indexes: the one that is searched, one that is being built beside it
-- for another model or other text fields, and the one searched before, kept to go back to.

-- The index that is searched; null means the first, whose number is that of the collection.
ALTER TABLE collections ADD COLUMN index_id bigint;
-- While an index is changed for another, workers leave the collection alone until then.
ALTER TABLE collections ADD COLUMN held_until timestamptz;

-- The index that a vector was made for; null means the first.
ALTER TABLE vectors ADD COLUMN index_id bigint;

-- The index that a worker was told when it claimed the row.
ALTER TABLE outbox ADD COLUMN claimed_index bigint;

-- All indexes but those that are searched.
CREATE TABLE indexes (
    id            bigint PRIMARY KEY,
    collection    bigint NOT NULL,
    text_fields   json NOT NULL,
    embedding     json NOT NULL,
    -- It has every change up to this one.
    generation    bigint NOT NULL,
    created_at_ms bigint NOT NULL,
    -- When another took its place; null while it is being built.
    retired_at    timestamptz,
    -- Who brings it up to date, and until when nobody else does.
    builder       text,
    built_until   timestamptz
);
CREATE INDEX indexes_by_collection ON indexes (collection);

-- Servers that said of late which models they run.
CREATE TABLE servers (
    name    text PRIMARY KEY,
    models  text[] NOT NULL,
    seen_at timestamptz NOT NULL
);
