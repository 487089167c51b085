"""Rules: conditions, the matcher's index over them, and why a rule did or did not match."""
