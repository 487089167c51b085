"""What lies here is data for tests: nothing to collect."""

collect_ignore_glob = ["*"]
