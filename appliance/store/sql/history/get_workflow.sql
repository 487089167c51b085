-- One workflow, by name or number, with the definition of its current revision.
SELECT workflows.id, workflows.name, revisions.number AS revision, workflows.enabled, workflows.origin, workflows.file,
       revisions.definition ->> 'description' AS description, workflows.updated_at, revisions.definition
FROM workflows
LEFT JOIN revisions ON revisions.id = workflows.current_revision
WHERE {match};
