-- A page of dead letters, newest first.
SELECT letters.id, letters.kind, letters.status, letters.event_uid,
       coalesce(events.id, letters.event_uid::text) AS event_id,
       letters.run_id, workflows.name AS workflow, letters.step, letters.stream, letters.entry_id,
       letters.error, letters.attempts, letters.created_at, letters.closed_at
FROM (
    SELECT * FROM dead_letters WHERE {filters} ORDER BY id DESC LIMIT %(limit)s
) AS letters
LEFT JOIN events ON events.uid = letters.event_uid
LEFT JOIN runs ON runs.id = letters.run_id
LEFT JOIN workflows ON workflows.id = runs.workflow_id
ORDER BY letters.id DESC;
