-- The latest revisions of a workflow, newest first.
SELECT number AS revision, digest, created_at
FROM revisions
WHERE workflow_id = %(id)s
ORDER BY number DESC
LIMIT %(limit)s;
