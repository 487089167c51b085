-- Workflows and their revisions, for the catalog.

-- name: version
SELECT version FROM catalog_version

-- name: current
-- What is in force, of all workflows or those of these names; without the definitions: the catalog asks only for those
-- that it hasn't compiled yet. The etag is computed in history.sql, too, and must be the same there.
SELECT w.id, w.name, w.origin, w.file, w.enabled, r.id, r.number, r.digest,
       md5((w.current_revision, w.enabled, w.origin, w.file, extract(epoch FROM w.updated_at))::text) AS etag
FROM workflows w JOIN revisions r ON r.id = w.current_revision
WHERE %b::text[] IS NULL OR w.name = ANY(%b::text[])
ORDER BY w.id

-- name: revisions
SELECT id, workflow_id, number, definition::text, digest, created_at FROM revisions WHERE id = ANY(%b::int4[])

-- name: numbered
SELECT id, workflow_id, number, definition::text, digest, created_at FROM revisions
WHERE workflow_id = %s AND number = %s

-- name: before
SELECT id, workflow_id, number, definition::text, digest, created_at FROM revisions
WHERE workflow_id = %s AND number < %s
ORDER BY number DESC LIMIT 1

-- name: alike
SELECT id, workflow_id, number, definition::text, digest, created_at FROM revisions
WHERE workflow_id = %s AND digest = %s

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
-- The workflows that this changed, for the audit log: name, revision, whether it is enabled, revision before.
UPDATE workflows w
SET origin = u.origin, file = u.file, enabled = u.enabled, current_revision = r.id, updated_at = now()
FROM unnest(%b::text[], %b::text[], %b::text[], %b::bool[], %b::text[]) AS u (name, origin, file, enabled, digest),
     revisions r, workflows before LEFT JOIN revisions was ON was.id = before.current_revision
WHERE w.name = u.name AND r.workflow_id = w.id AND r.digest = u.digest AND before.id = w.id
  AND (w.origin, w.file, w.enabled, w.current_revision) IS DISTINCT FROM (u.origin, u.file, u.enabled, r.id)
RETURNING w.name, r.number, w.enabled, was.number

-- name: switch
-- Another stored revision, or on or off. What people change here is the API's from then on.
UPDATE workflows w SET origin = 'api', enabled = u.enabled, current_revision = r.id, updated_at = now()
FROM (VALUES (%s::bool, %s::int4, %s::text)) AS u (enabled, revision_id, name), revisions r,
     workflows before JOIN revisions was ON was.id = before.current_revision
WHERE w.name = u.name AND r.id = u.revision_id AND r.workflow_id = w.id AND before.id = w.id
  AND (w.enabled, w.current_revision) IS DISTINCT FROM (u.enabled, r.id)
RETURNING w.name, r.number, w.enabled, was.number

-- name: disown
-- Unless another file owns it by now.
UPDATE workflows w SET enabled = false, file = NULL, updated_at = now()
FROM unnest(%b::text[], %b::text[]) AS u (name, file), revisions r
WHERE w.name = u.name AND w.file = u.file AND r.id = w.current_revision
RETURNING w.name, r.number, w.enabled, r.number

-- name: bump_version
UPDATE catalog_version SET version = version + 1

-- name: audit
INSERT INTO audit_log (actor, action, subject, detail)
SELECT %s, %s, name, json_build_object('revision', number, 'enabled', enabled, 'from', before)
FROM unnest(%b::text[], %b::int4[], %b::bool[], %b::int4[]) AS u (name, number, enabled, before)

-- name: add_listeners
INSERT INTO listeners (digest, shape) SELECT digest::uuid, shape::json
FROM unnest(%b::text[], %b::text[]) AS u (digest, shape)
ORDER BY digest
ON CONFLICT (digest) DO NOTHING

-- name: listeners
SELECT shape::text FROM listeners ORDER BY digest
