"""The only package that speaks SQL: migrations, partitions, the recorder, definitions and the history."""
