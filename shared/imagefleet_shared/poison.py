"""When a job is poison and given up: it crashed too many workers, or had too many attempts."""

MAX_FAULTS = 3
"""Workers lost while they ran a job, before it is given up."""
MAX_ATTEMPTS = 9
"""Attempts in all, including those in which the job only waited for its turn."""
