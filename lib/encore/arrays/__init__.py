"""Array types and operations that depend on neither Spark nor Delta."""
