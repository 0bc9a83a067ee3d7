"""Entry point of the job for spark-submit: spark-submit jobs/smoke.py --env ENV --set a.b=value."""

from encore.cli.entry import job_main

if __name__ == "__main__":
    job_main("smoke")
