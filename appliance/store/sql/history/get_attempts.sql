-- The failed attempts of a run's steps.
SELECT key AS step, attempt, started_at, finished_at, error
FROM attempts
WHERE run_id = %(run_id)s
ORDER BY key, attempt, started_at;
