"""What runs a job, and remembers what it did."""
