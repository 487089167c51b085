-- The steps of a run, in the order in which they were entered.
SELECT key AS id, status, attempt, started_at, finished_at, due_at, output, error
FROM steps
WHERE run_id = %(run_id)s
ORDER BY seq, key;
