-- The raw fields of the entry that a dead letter was made of.
SELECT fields FROM dead_letters WHERE id = %(id)s;
