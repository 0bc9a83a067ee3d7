"""Encore on AWS: how jobs are started there, in what order, and what each may access."""
