"""When a job counts as poison and is given up: it took too many workers down, or never ends."""

MAX_FAULTS = 3
"""Workers lost while they were at work on a job, before it is given up."""
MAX_ATTEMPTS = 9
"""Attempts in all, those included in which the job only waited for its turn."""
