"""Spark: the session, tasks, broadcasts, and metrics."""
