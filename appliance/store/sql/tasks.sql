-- What people see of tasks and change in them. A {place} is filled in with clauses of the program, never with input.

-- name: list_tasks
-- A page of tasks, newest first. {range} has its indexes (the id, open ones, a run's); {filters} have none, so a page
-- looks at the newest :window tasks of the range only, and may hold fewer than asked for before the end is reached.
WITH looked AS MATERIALIZED (
    SELECT id, run_id, key, workflow_id, status, title, assignee, people, created_at, due_at, answered_by, closed_at
    FROM tasks
    WHERE {range}
    ORDER BY id DESC
    LIMIT %(window)s
), bounds AS (
    SELECT count(*) AS looked_at, (array_agg(id ORDER BY id))[1] AS oldest FROM looked
)
SELECT bounds.looked_at, bounds.oldest, found.id, found.run_id, found.key AS step, workflows.name AS workflow,
       found.status, found.title, found.assignee, found.people AS "group", found.created_at, found.due_at,
       found.answered_by, found.closed_at
FROM bounds LEFT JOIN LATERAL (
    SELECT * FROM looked WHERE {filters} ORDER BY id DESC LIMIT %(limit)s
) AS found ON true
LEFT JOIN workflows ON workflows.id = found.workflow_id
ORDER BY found.id DESC;

-- name: get_task
SELECT tasks.id, tasks.run_id, tasks.key AS step, workflows.name AS workflow, tasks.status, tasks.title,
       tasks.description, tasks.assignee, tasks.people AS "group", tasks.form, tasks.created_at, tasks.due_at,
       tasks.answer, tasks.answered_by, tasks.closed_at
FROM tasks LEFT JOIN workflows ON workflows.id = tasks.workflow_id
WHERE tasks.id = %(id)s;

-- name: answer_task
-- No row: somebody, or the deadline, was faster.
UPDATE tasks SET status = 'answered', answer = %s::json, answered_by = %s, closed_at = now()
WHERE id = %s::uuid AND status = 'open'

-- name: assign_task
UPDATE tasks SET assignee = CASE WHEN %s THEN %s ELSE assignee END, people = CASE WHEN %s THEN %s ELSE people END
WHERE id = %s::uuid AND status = 'open'
RETURNING assignee, people
