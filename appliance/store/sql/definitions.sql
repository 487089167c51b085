-- Workflows and their revisions, for the catalog.

-- name: version
SELECT version FROM catalog_version

-- name: current
-- What is in force, without the definitions: the catalog asks only for those that it hasn't compiled yet.
SELECT w.id, w.name, w.origin, w.file, w.enabled, r.id, r.number, r.digest
FROM workflows w JOIN revisions r ON r.id = w.current_revision
ORDER BY w.id

-- name: revisions
SELECT id, workflow_id, number, definition::text FROM revisions WHERE id = ANY(%b::int4[])

-- name: add_workflows
INSERT INTO workflows (name, origin, enabled)
SELECT name, origin, false FROM unnest(%b::text[], %b::text[]) AS u (name, origin)
ON CONFLICT (name) DO NOTHING

-- name: lock_workflows
-- In the order of their ids, so that two replicas that load the same files don't deadlock.
SELECT id FROM workflows WHERE name = ANY(%b::text[]) ORDER BY id FOR UPDATE

-- name: add_revisions
-- Content that a workflow had before is that revision again.
INSERT INTO revisions (workflow_id, number, digest, definition, source)
SELECT w.id, coalesce((SELECT max(r.number) FROM revisions r WHERE r.workflow_id = w.id), 0) + 1, u.digest,
       u.definition::json, u.source
FROM unnest(%b::text[], %b::text[], %b::text[], %b::text[]) AS u (name, digest, definition, source)
JOIN workflows w ON w.name = u.name
WHERE NOT EXISTS (SELECT 1 FROM revisions r WHERE r.workflow_id = w.id AND r.digest = u.digest)

-- name: set_current
-- The names of the workflows that this changed.
UPDATE workflows w
SET origin = u.origin, file = u.file, enabled = u.enabled, current_revision = r.id, updated_at = now()
FROM unnest(%b::text[], %b::text[], %b::text[], %b::bool[], %b::text[]) AS u (name, origin, file, enabled, digest),
     revisions r
WHERE w.name = u.name AND r.workflow_id = w.id AND r.digest = u.digest
  AND (w.origin, w.file, w.enabled, w.current_revision) IS DISTINCT FROM (u.origin, u.file, u.enabled, r.id)
RETURNING w.name

-- name: disable
UPDATE workflows SET enabled = false, updated_at = now() WHERE name = ANY(%b::text[]) AND enabled RETURNING name

-- name: bump_version
UPDATE catalog_version SET version = version + 1

-- name: audit
INSERT INTO audit_log (actor, action, subject)
SELECT %s, %s, name FROM unnest(%b::text[]) AS u (name)


-- name: add_listeners
INSERT INTO listeners (digest, shape) SELECT digest::uuid, shape::json
FROM unnest(%b::text[], %b::text[]) AS u (digest, shape)
ORDER BY digest
ON CONFLICT (digest) DO NOTHING

-- name: listeners
SELECT shape::text FROM listeners ORDER BY digest
