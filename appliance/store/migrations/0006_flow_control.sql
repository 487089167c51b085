-- Flow control: runs that wait for their turn, and those that are at work. Only additions.

-- What the parts of flow control that count events remember of a key: rate_limit, throttle, debounce, batch.
CREATE TABLE meters (
    digest uuid PRIMARY KEY,                    -- of workflow, part and the key's value
    workflow_id integer NOT NULL,
    part text NOT NULL,
    key text NOT NULL,                          -- the value, for people
    at timestamptz NOT NULL,                    -- rate_limit: begin of the period; throttle: when a run would be due if
                                                -- none had been early; debounce, batch: the first event
    count integer NOT NULL,                     -- rate_limit: runs begun in the period; batch: events so far
    run_id uuid,                                -- debounce, batch: the run that waits
    position bigint,                            -- debounce: of the last event
    expires_at timestamptz NOT NULL             -- says nothing any more after that
);
CREATE INDEX meters_expires_at ON meters (expires_at);

-- Runs that have a place, for each part of flow control that limits how many may be at work.
CREATE TABLE places (
    digest uuid NOT NULL,
    run_id uuid NOT NULL,
    keeps boolean NOT NULL,                     -- until the run is over; else only until it is parked
    PRIMARY KEY (digest, run_id)
);
CREATE INDEX places_run ON places (run_id);

-- Runs that wait for places: one row for each run.
CREATE TABLE queue (
    run_id uuid PRIMARY KEY,
    workflow_id integer NOT NULL,
    lane uuid NOT NULL,                         -- digest of the key between whose values places are shared fairly
    position bigint NOT NULL,                   -- order within the lane: of the event's entry
    priority text NOT NULL,
    parts text[] NOT NULL,                      -- which places it needs, and has not yet: concurrency.0, ordering …
    digests uuid[] NOT NULL,
    keys text[] NOT NULL,                       -- their values, for people
    limits integer[] NOT NULL,                  -- as its revision has them
    since timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX queue_lane ON queue (workflow_id, lane, position, run_id);

-- Whose turn was last, where lanes share places.
CREATE TABLE turns (
    workflow_id integer PRIMARY KEY,
    lane uuid NOT NULL
);

-- The events of a batch, beside the run's own.
CREATE TABLE batched (
    run_id uuid NOT NULL,
    event_uid uuid NOT NULL,
    position bigint NOT NULL,
    PRIMARY KEY (run_id, event_uid)
) PARTITION BY RANGE (run_id);
CREATE TABLE batched_default PARTITION OF batched DEFAULT;
CREATE INDEX batched_event ON batched (event_uid);

-- How many events started no run, and why.
CREATE TABLE skipped (
    workflow_id integer NOT NULL,
    reason text NOT NULL,                       -- rate_limited, debounced, skipped, replaced
    count bigint NOT NULL,
    PRIMARY KEY (workflow_id, reason)
);
