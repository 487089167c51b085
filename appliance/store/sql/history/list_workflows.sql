-- A page of workflows by name, each with its current revision.
SELECT workflows.id, workflows.name, revisions.number AS revision, workflows.enabled, workflows.origin, workflows.file,
       revisions.definition ->> 'description' AS description, workflows.updated_at
FROM workflows
LEFT JOIN revisions ON revisions.id = workflows.current_revision
WHERE {filters}
ORDER BY workflows.name
LIMIT %(limit)s;
