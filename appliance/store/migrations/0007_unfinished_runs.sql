-- The unfinished runs of one workflow, however many there are of others or of its own that are over. Only an addition;
-- a run that goes through in one piece is never in it.
CREATE INDEX runs_open ON runs (workflow_id, id) WHERE status IN ('running', 'waiting', 'retrying', 'paused');
