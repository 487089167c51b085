-- What flow control holds, for people (store/queues.py). Nothing here reads more rows than it is told to.

-- name: workflow
SELECT workflows.id, workflows.name, revisions.definition -> 'throttle' AS throttle,
       revisions.definition -> 'concurrency' AS concurrency
FROM workflows LEFT JOIN revisions ON revisions.id = workflows.current_revision
WHERE workflows.name = %(name)s

-- name: workflows
-- The workflows of which runs wait for places, found by going from one to the next.
WITH RECURSIVE found (id) AS (
    (SELECT workflow_id FROM queue WHERE workflow_id > %(after)s ORDER BY workflow_id LIMIT 1)
    UNION ALL
    SELECT (SELECT workflow_id FROM queue WHERE workflow_id > found.id ORDER BY workflow_id LIMIT 1)
    FROM found WHERE found.id IS NOT NULL
)
SELECT found.id, workflows.name AS workflow, counted.waiting, counted.since
FROM (SELECT id FROM found WHERE id IS NOT NULL LIMIT %(limit)s) AS found
JOIN workflows ON workflows.id = found.id
CROSS JOIN LATERAL (
    SELECT count(*) AS waiting, min(since) AS since
    FROM (SELECT since FROM queue WHERE queue.workflow_id = found.id LIMIT %(most)s) AS counted_rows
) AS counted
ORDER BY found.id

-- name: lanes
-- A page of the lanes in which runs of a workflow wait, each with those that come next, what the first of them needs, and
-- who has that.
WITH RECURSIVE found (lane) AS (
    (SELECT lane FROM queue WHERE workflow_id = %(workflow)s AND lane > %(after)s::uuid ORDER BY lane LIMIT 1)
    UNION ALL
    SELECT (SELECT lane FROM queue WHERE workflow_id = %(workflow)s AND lane > found.lane ORDER BY lane LIMIT 1)
    FROM found WHERE found.lane IS NOT NULL
)
SELECT found.lane,
       (SELECT count(*) FROM (SELECT FROM queue WHERE workflow_id = %(workflow)s AND lane = found.lane
                              LIMIT %(most)s) AS counted_rows) AS waiting,
       ARRAY(SELECT run_id::text FROM queue WHERE workflow_id = %(workflow)s AND lane = found.lane
             ORDER BY position, run_id LIMIT %(shown)s) AS next,
       first.since, needs.needs
FROM (SELECT lane FROM found WHERE lane IS NOT NULL LIMIT %(limit)s) AS found
CROSS JOIN LATERAL (
    SELECT * FROM queue WHERE workflow_id = %(workflow)s AND lane = found.lane ORDER BY position, run_id LIMIT 1
) AS first
CROSS JOIN LATERAL (
    SELECT json_agg(json_build_object(
        'part', need.part, 'key', need.key, 'limit', need.most,
        'at_work', (SELECT count(*) FROM (SELECT FROM places WHERE digest = need.digest LIMIT %(most)s) AS counted_rows),
        'runs', ARRAY(SELECT run_id FROM places WHERE digest = need.digest ORDER BY run_id LIMIT %(shown)s)
    ) ORDER BY need.part) AS needs
    FROM unnest(first.parts, first.digests, first.keys, first.limits) AS need (part, digest, key, most)
) AS needs
ORDER BY found.lane

-- name: meters
-- What is counted of a workflow's keys, what is due first at the front. There is no index by workflow, so only the first
-- :window of all meters are looked at.
SELECT part, key, count, at AS since, extract(epoch FROM at)::float8 AS at, expires_at AS until, run_id
FROM (SELECT * FROM meters WHERE expires_at > now() ORDER BY expires_at LIMIT %(window)s) AS looked
WHERE workflow_id = %(workflow)s
ORDER BY expires_at, part, key
LIMIT %(limit)s

