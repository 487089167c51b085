-- A page of the runs of some events (parallel arrays: uid, and the range of ids that runs of its millisecond have).
-- A run that its event started has an id in that range; those started otherwise (replays …) are found by runs_origin.
SELECT runs.id, workflows.name AS workflow, revisions.number AS revision, runs.event_uid,
       coalesce(events.id, runs.event_uid::text) AS event_id,
       runs.status, runs.priority, runs.origin, runs.started_at, runs.finished_at, runs.updated_at, runs.error
FROM unnest(%(uids)s::uuid[], %(starts)s::uuid[], %(ends)s::uuid[]) AS wanted (uid, range_start, range_end)
CROSS JOIN LATERAL (
    SELECT * FROM runs
    WHERE runs.id >= wanted.range_start AND runs.id < wanted.range_end
      AND runs.event_uid = wanted.uid AND runs.origin IS NULL
    UNION ALL
    SELECT * FROM runs WHERE runs.event_uid = wanted.uid AND runs.origin IS NOT NULL
) AS runs
JOIN workflows ON workflows.id = runs.workflow_id
JOIN revisions ON revisions.id = runs.revision_id
LEFT JOIN events ON events.uid = runs.event_uid
WHERE {filters}
ORDER BY runs.id DESC
LIMIT %(limit)s;
