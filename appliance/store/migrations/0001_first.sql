-- The first schema. Statuses are enums so that a row reads like the documentation.
-- events, runs, steps and attempts are partitioned by ranges of UUIDv7, that is by time: a run's id shares the first
-- 48 bits (milliseconds) with its event's uid, so an event and all that it caused live and are dropped together.

CREATE TYPE event_outcome AS ENUM ('handled', 'unmatched', 'dead');
CREATE TYPE run_status AS ENUM ('running', 'waiting', 'retrying', 'paused', 'succeeded', 'failed', 'cancelled');
CREATE TYPE step_status AS ENUM ('running', 'retrying', 'waiting', 'succeeded', 'failed', 'skipped', 'cancelled');
CREATE TYPE letter_kind AS ENUM ('entry', 'step');
CREATE TYPE letter_status AS ENUM ('open', 'redriven', 'discarded');

CREATE TABLE workflows (
    id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text NOT NULL UNIQUE,
    origin text NOT NULL,                       -- 'file' or 'api'
    file text,                                  -- the file that owns it, relative to the config folder
    enabled boolean NOT NULL DEFAULT true,
    current_revision integer,                   -- revisions.id
    updated_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE revisions (
    id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    workflow_id integer NOT NULL REFERENCES workflows (id),
    number integer NOT NULL,
    digest text NOT NULL,                       -- of the canonical definition
    definition json NOT NULL,                   -- in our own language
    source text,                                -- as it was written, when that was another dialect
    created_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (workflow_id, number)
);

-- Bumped with every change of workflows or revisions: replicas poll this one row.
CREATE TABLE catalog_version (version bigint NOT NULL);
INSERT INTO catalog_version VALUES (0);

CREATE TABLE events (
    uid uuid PRIMARY KEY,
    id text,                                    -- the sender's id; null when the uid is the id
    source text NOT NULL,
    type text NOT NULL,
    subject text,
    time timestamptz NOT NULL,
    received_at timestamptz NOT NULL,
    attributes json,
    data json,
    key uuid,
    stream text,                                -- the priority: high, normal, low
    entry_id text,
    outcome event_outcome                       -- null while work is under way
) PARTITION BY RANGE (uid);
CREATE INDEX events_id ON events (id) WHERE id IS NOT NULL;

-- What a sender's key stands for; outlives the Redis copy that ingest asks first.
CREATE TABLE event_keys (
    key uuid PRIMARY KEY,
    uid uuid NOT NULL,
    seen_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX event_keys_seen_at ON event_keys USING brin (seen_at);

-- Entries that turned out to be duplicates of an event.
CREATE TABLE duplicates (
    uid uuid PRIMARY KEY,                       -- of the later entry
    first_uid uuid NOT NULL,
    stream text NOT NULL,
    entry_id text NOT NULL,
    at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE runs (
    id uuid PRIMARY KEY,
    event_uid uuid,
    workflow_id integer NOT NULL,
    revision_id integer NOT NULL,
    status run_status NOT NULL,
    version integer NOT NULL,                   -- fencing: every write names the version that it read
    started_at timestamptz NOT NULL,
    finished_at timestamptz,
    updated_at timestamptz NOT NULL,
    priority text NOT NULL,
    state json,                                 -- the core's state while the run is not finished
    error text,
    origin text                                 -- null: by its event; else 'replay', 'manual', 'schedule', 'subflow'
) PARTITION BY RANGE (id);
CREATE INDEX runs_workflow ON runs (workflow_id, id);
CREATE INDEX runs_unfinished ON runs (status, updated_at) WHERE status IN ('running', 'waiting', 'retrying', 'paused');
CREATE INDEX runs_failed ON runs (id) WHERE status IN ('failed', 'cancelled');
CREATE INDEX runs_origin ON runs (event_uid) WHERE origin IS NOT NULL;

CREATE TABLE steps (
    run_id uuid NOT NULL,
    key text NOT NULL,                          -- the step's id; with #n behind it from the second visit on
    seq integer NOT NULL,
    status step_status NOT NULL,
    attempt integer NOT NULL,
    started_at timestamptz,
    finished_at timestamptz,
    due_at timestamptz,                         -- of the next attempt, or of the end of a delay
    output json,
    error text,
    PRIMARY KEY (run_id, key)
) PARTITION BY RANGE (run_id);

-- Failed attempts; the last one's outcome is the step's.
CREATE TABLE attempts (
    run_id uuid NOT NULL,
    key text NOT NULL,
    attempt integer NOT NULL,
    started_at timestamptz NOT NULL,
    finished_at timestamptz NOT NULL,
    error text NOT NULL
) PARTITION BY RANGE (run_id);
CREATE INDEX attempts_run ON attempts (run_id, key);

-- For rows outside every range; the ranges themselves are made by store/partitions.py.
CREATE TABLE events_default PARTITION OF events DEFAULT;
CREATE TABLE runs_default PARTITION OF runs DEFAULT;
CREATE TABLE steps_default PARTITION OF steps DEFAULT;
CREATE TABLE attempts_default PARTITION OF attempts DEFAULT;

-- What is to be put into a stream when its time has come: a parked run to be woken (run_id, key), or at once: a run that
-- a person put back to work, the entry of a dead letter that is redriven (letter). Deleted in the transaction in which
-- it was put into a stream.
CREATE TABLE timers (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    run_id uuid,
    key text,
    letter uuid,
    reopens boolean NOT NULL DEFAULT false,     -- takes the event out of the ledger's 'dead'
    due_at timestamptz NOT NULL,
    priority text NOT NULL,
    UNIQUE (run_id, key)
);
CREATE INDEX timers_due ON timers (due_at);

CREATE TABLE deliveries (
    run_id uuid NOT NULL,
    key text NOT NULL,
    channel text NOT NULL,
    recipient text NOT NULL,
    status text NOT NULL,                       -- sent, failed (may be retried), rejected
    attempts integer NOT NULL,
    message_id text,
    error text,
    updated_at timestamptz NOT NULL,
    PRIMARY KEY (run_id, key, channel, recipient)
);

CREATE TABLE dead_letters (
    id uuid PRIMARY KEY,
    kind letter_kind NOT NULL,
    status letter_status NOT NULL DEFAULT 'open',
    event_uid uuid,
    run_id uuid,
    step text,
    stream text,                                -- the priority
    entry_id text,
    fields json,                                -- of an entry: [[name, value], …], base64, byte for byte
    error text NOT NULL,
    attempts integer NOT NULL,
    created_at timestamptz NOT NULL,
    closed_at timestamptz
);
CREATE INDEX dead_letters_open ON dead_letters (id) WHERE status = 'open';
CREATE INDEX dead_letters_event ON dead_letters (event_uid);
CREATE INDEX dead_letters_run ON dead_letters (run_id);

-- The ledger's counters as last seen in Redis, per life of the streams (they count from zero after Redis lost its data).
CREATE TABLE ledger_epochs (
    epoch text PRIMARY KEY,
    accepted bigint NOT NULL,
    handled bigint NOT NULL,
    unmatched bigint NOT NULL,
    duplicate bigint NOT NULL,
    dead bigint NOT NULL,
    in_flight bigint NOT NULL,
    closed boolean NOT NULL DEFAULT false,
    seen_at timestamptz NOT NULL
);

CREATE TABLE audit_log (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at timestamptz NOT NULL DEFAULT now(),
    actor text NOT NULL,
    action text NOT NULL,
    subject text NOT NULL,
    detail json
);

-- Ends the transaction when a guarded write met fewer rows than it must: somebody else was faster.
CREATE FUNCTION appliance_expect(actual bigint, expected bigint) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF actual <> expected THEN
        RAISE EXCEPTION 'expected % rows, met %', expected, actual USING ERRCODE = 'AP001';
    END IF;
END
$$;
