"""The lake: what its tables are, and how they are read and written."""
