"""The jobs: one module each, with what it reads, what it writes and one function."""
