"""Encore on AWS: how a job is started there, in what order, and what it may touch."""
