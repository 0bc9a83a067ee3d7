"""The contenders of the benchmark `models`, each run in a process of its own, peers in environments of their own.

Modules of peers import nothing of Encore, since it is not installed where they run.
"""
