-- A page of events, newest first. The filters have no indexes of their own, so a page looks at the newest :window
-- events below the cursor only, and may therefore hold fewer events than asked for, or none, before the end is reached:
-- `looked_at` tells how many it looked at and `oldest` where to go on.
WITH looked AS MATERIALIZED (
    SELECT uid, id, source, type, subject, time, received_at, attributes, data, stream, entry_id, outcome
    FROM events
    WHERE {range}
    ORDER BY uid DESC
    LIMIT %(window)s
), bounds AS (
    SELECT count(*) AS looked_at, (array_agg(uid ORDER BY uid))[1] AS oldest FROM looked
)
SELECT bounds.looked_at, bounds.oldest, found.*
FROM bounds LEFT JOIN LATERAL (
    SELECT * FROM looked WHERE {filters} ORDER BY uid DESC LIMIT %(limit)s
) AS found ON true
ORDER BY found.uid DESC;
