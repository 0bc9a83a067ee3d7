"""Arrays, without Spark and without Delta."""
