-- Polling sources: how far each has been read. Only additions; the previous release doesn't look at them.

CREATE TABLE sources (
    name text PRIMARY KEY,
    digest text NOT NULL DEFAULT '',            -- of the file by which it was last read
    basis text,                                 -- the cursor's column and kind; null: not read yet
    due_at timestamptz NOT NULL DEFAULT now(),
    turn bigint NOT NULL DEFAULT 0,             -- grows with every claim: who holds an older one may write nothing
    held_by text,
    held_until timestamptz,
    floor bigint,                               -- rows up to this cursor value are never looked at again
    newest bigint,                              -- greatest cursor value of an event
    bound bigint,                               -- what the floor will be when the scan under way is through
    place bigint,                               -- where that scan goes on, behind this cursor value …
    place_key text,                             -- … and this key
    scanning boolean NOT NULL DEFAULT false,
    marks json,                                 -- whole numbers: [[Unix seconds, greatest value then], …]
    audit json,                                 -- what is counted again later: {"from", "rows", "prev", "at"}
    polled_at timestamptz,                      -- the end of the last look that worked
    failures integer NOT NULL DEFAULT 0,        -- in a row
    error text,
    error_at timestamptz,
    events bigint NOT NULL DEFAULT 0,
    repeats bigint NOT NULL DEFAULT 0,          -- rows whose key has an event already
    refused bigint NOT NULL DEFAULT 0,          -- rows that can't be an event
    late bigint NOT NULL DEFAULT 0,             -- events of rows that were behind newer ones
    missed bigint NOT NULL DEFAULT 0            -- rows that came later than the lag
);

-- Rows above the floor that were dealt with: what is seen again there is nothing new.
CREATE TABLE source_rows (
    source text NOT NULL REFERENCES sources (name) ON DELETE CASCADE,
    key uuid NOT NULL,                          -- a digest of the row's key and cursor value
    cursor bigint NOT NULL,
    PRIMARY KEY (source, key)
);
CREATE INDEX source_rows_cursor ON source_rows (source, cursor);

-- Rows that can't be an event, and why; tried again when the file changes.
CREATE TABLE source_refusals (
    source text NOT NULL REFERENCES sources (name) ON DELETE CASCADE,
    key uuid NOT NULL,
    row_key text,
    cursor bigint NOT NULL,
    error text NOT NULL,
    at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (source, key)
);
