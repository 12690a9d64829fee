"""A job's way through a worker: leased, executed, its pictures stored, its result reported."""
