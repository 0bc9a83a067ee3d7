"""Spark: the session, tasks, and what they cost."""
