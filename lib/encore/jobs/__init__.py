"""The jobs: one module each, which declares the tables it reads and writes, and defines `run`."""
