-- A page of runs, newest first. `id` is the time order; every filter has its index (see 0001_first.sql).
SELECT runs.id, workflows.name AS workflow, revisions.number AS revision, runs.event_uid,
       coalesce(events.id, runs.event_uid::text) AS event_id,
       runs.status, runs.priority, runs.origin, runs.started_at, runs.finished_at, runs.updated_at, runs.error
FROM (
    SELECT * FROM runs WHERE {filters} ORDER BY id DESC LIMIT %(limit)s
) AS runs
JOIN workflows ON workflows.id = runs.workflow_id
JOIN revisions ON revisions.id = runs.revision_id
LEFT JOIN events ON events.uid = runs.event_uid
ORDER BY runs.id DESC;
