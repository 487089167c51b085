"""Polling sources: the files that say which rows of somebody's database become which events."""
