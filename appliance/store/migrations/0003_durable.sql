-- What durable workflows need: parked steps as rows, what came in for a run, people's tasks, schedules, the outbox.
-- Only additions: the previous release goes on working beside it.

ALTER TYPE step_status ADD VALUE 'unknown';     -- an effect that may or may not have happened: a person settles it

ALTER TABLE runs
    ADD COLUMN details json,                    -- how it was started: {input, parent: {run, key}, depth, rerun_of, …}
    ADD COLUMN result json,                     -- how it ended: {outcome, output}
    ADD COLUMN asked text;                      -- 'pause', 'cancel' or 'retry', until the run takes notice
CREATE INDEX runs_begun ON runs (origin, id) WHERE origin IS NOT NULL;

-- The run that a step called, and the other way round.
CREATE TABLE children (
    parent_id uuid NOT NULL,
    key text NOT NULL,
    run_id uuid NOT NULL,
    PRIMARY KEY (parent_id, key)
);
CREATE INDEX children_run ON children (run_id);

-- What there is to listen for, over all revisions: every replica keeps these in memory, and looks in the tables below
-- only for events that may concern somebody. shape: {"events": […], "paths": […]} or {"events", "machine", "correlate"}.
CREATE TABLE listeners (
    digest uuid PRIMARY KEY,
    shape json NOT NULL
);

-- A run that listens for events with this digest (of the listener and the values), from the event `since` on.
CREATE TABLE waits (
    run_id uuid NOT NULL,
    key text NOT NULL,                          -- of the step; '' for a state machine as a whole
    digest uuid NOT NULL,
    since uuid NOT NULL,                        -- a UUIDv7: events from then on
    PRIMARY KEY (run_id, key, digest)
);
CREATE INDEX waits_digest ON waits (digest);

-- The live state machine of a business key.
CREATE TABLE machines (
    workflow_id integer NOT NULL,
    business_key text NOT NULL,
    run_id uuid NOT NULL,
    PRIMARY KEY (workflow_id, business_key)
);
CREATE INDEX machines_run ON machines (run_id);

-- Events by what they may be waited for.
CREATE TABLE correlations (
    digest uuid NOT NULL,
    event_uid uuid NOT NULL,
    PRIMARY KEY (digest, event_uid)
) PARTITION BY RANGE (event_uid);

-- What came in for a run: events that it listens for, answers to its tasks, ends of the runs that it called.
CREATE TABLE signals (
    run_id uuid NOT NULL,
    id uuid NOT NULL,                           -- the event's uid; else a UUIDv7 of its own
    key text NOT NULL,                          -- of the step that it is for; '': of whichever takes it
    kind text NOT NULL,                         -- event, answer, child, settle
    event_uid uuid,
    payload json,
    at timestamptz NOT NULL DEFAULT now(),
    taken text,                                 -- null: to be looked at; else 'taken' or 'ignored'
    taken_by text,                              -- the step that took it; for a state machine the state that did or didn't
    taken_at timestamptz,
    PRIMARY KEY (run_id, id, key)
) PARTITION BY RANGE (run_id);
CREATE INDEX signals_open ON signals (run_id) WHERE taken IS NULL;

CREATE TYPE task_status AS ENUM ('open', 'answered', 'expired', 'cancelled');
CREATE TABLE tasks (
    id uuid PRIMARY KEY,                        -- derived from run and key; its milliseconds are the run's
    run_id uuid NOT NULL,
    key text NOT NULL,
    workflow_id integer NOT NULL,
    status task_status NOT NULL DEFAULT 'open',
    title text NOT NULL,
    description text,
    assignee text,
    people text,                                -- the group
    form json NOT NULL,
    created_at timestamptz NOT NULL,
    due_at timestamptz,
    answer json,
    answered_by text,
    closed_at timestamptz
) PARTITION BY RANGE (id);
CREATE INDEX tasks_open ON tasks (id) WHERE status = 'open';
CREATE INDEX tasks_run ON tasks (run_id);

CREATE TABLE signals_default PARTITION OF signals DEFAULT;
CREATE TABLE correlations_default PARTITION OF correlations DEFAULT;
CREATE TABLE tasks_default PARTITION OF tasks DEFAULT;

-- One row per schedule of a workflow in force; every replica may tick, the row's lock lets one.
CREATE TABLE schedules (
    workflow_id integer NOT NULL,
    position integer NOT NULL,                  -- among the workflow's triggers
    digest text NOT NULL,                       -- of the schedule as written: a changed one starts anew
    next_at timestamptz NOT NULL,
    last_slot timestamptz,
    PRIMARY KEY (workflow_id, position)
);
CREATE INDEX schedules_next ON schedules (next_at);

-- Events that are to be put into a stream: what finishing runs announce, and with ingest.durability = postgres every
-- event that is taken in. A row goes when its event stands in `events` with its outcome.
CREATE TABLE outbox (
    uid uuid PRIMARY KEY,
    priority text NOT NULL,
    entry json NOT NULL,                        -- the entry's fields: {"event": text, "uid": …, "key": …}
    durable boolean NOT NULL,                   -- kept until its event is settled; else only until it was put in
    created_at timestamptz NOT NULL DEFAULT now(),
    sent_at timestamptz,
    entry_id text
);
CREATE INDEX outbox_unsent ON outbox (uid) WHERE sent_at IS NULL;

CREATE INDEX events_correlation ON events ((attributes ->> 'correlationid')) WHERE attributes ->> 'correlationid' IS NOT NULL;
