"""Benchmarks: ``make bench``. Every figure is a ratio to a raw limit that was measured in the same run."""
